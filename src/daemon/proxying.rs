//! What clients meet: the certificate authority and the proxy.

use anyhow::Context as _;
use damselfly_runtime::{UsageError, Watch};
use prometheus_client::registry::Registry;

use crate::config::Config;
use crate::limit::Limiter;
use crate::mitm::{CertificateAuthority, Interceptor, Policy};
use crate::net::HttpClient;
use crate::p2p::Tasks;
use crate::proxy::{Metrics, Parts, Proxy};
use crate::storage::Storage;

/// The authority for intercepted hosts, and these hosts: the operator's authority, or one of this installation's own. Where
/// that can be neither read nor kept, because the data directory cannot be used, TLS is passed through.
pub(super) fn interceptor(config: &Config, storage: &Storage) -> anyhow::Result<(Interceptor, Policy)> {
    let mut hosts = config.intercept.clone();
    let authority = match &config.ca {
        Some(files) => CertificateAuthority::load(&files.cert, &files.key)
            .map_err(|error| UsageError::new(format!("proxy.server.caCert and caKey: {error}")))?,
        None => match CertificateAuthority::load_or_create(&config.data_dir) {
            Err(error) if storage.missing().is_some() => {
                tracing::error!(%error, "TLS is passed through untouched: there is no authority to intercept it with");
                hosts.clear();
                CertificateAuthority::for_this_process().context("making an authority that nobody uses")?
            }
            loaded => loaded.context("the data directory's CA")?,
        },
    };
    let interceptor = Interceptor::new(authority).context("setting up the interception of TLS")?;
    Ok((interceptor, Policy::new(hosts)))
}

/// The proxy and registry mirror.
pub(super) fn proxy(
    config: &Config,
    http: &HttpClient,
    tasks: &Tasks,
    (interceptor, policy): (Interceptor, Policy),
    limiter: &Limiter,
    drain: Watch,
    registry: &mut Registry,
) -> Proxy {
    let metrics = Metrics::default();
    metrics.register(registry);
    let parts = Parts {
        http: http.clone(),
        tasks: tasks.clone(),
        policy,
        interceptor,
        mirror: config.mirror.clone(),
        upstreams: config.client.upstreams.clone(),
        drain,
        limiter: limiter.clone(),
        metrics,
    };
    Proxy::new(config.proxy.clone(), parts)
}
