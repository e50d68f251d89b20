//! What clients meet: the certificate authority and the proxy.

use anyhow::Context as _;
use damselfly_runtime::{UsageError, Watch};
use prometheus_client::registry::Registry;

use crate::config::Config;
use crate::mitm::{CertificateAuthority, Interceptor, Policy};
use crate::net::HttpClient;
use crate::p2p::Tasks;
use crate::proxy::{Metrics, Parts, Proxy};

/// The authority for intercepted hosts: the operator's, or one of this installation's own.
pub(super) fn interceptor(config: &Config) -> anyhow::Result<Interceptor> {
    let authority = match &config.ca {
        Some(files) => CertificateAuthority::load(&files.cert, &files.key)
            .map_err(|error| UsageError::new(format!("proxy.server.caCert and caKey: {error}")))?,
        None => CertificateAuthority::load_or_create(&config.data_dir).context("the data directory's CA")?,
    };
    Interceptor::new(authority).context("setting up the interception of TLS")
}

/// The proxy and registry mirror.
pub(super) fn proxy(
    config: &Config,
    http: &HttpClient,
    tasks: &Tasks,
    interceptor: Interceptor,
    drain: Watch,
    registry: &mut Registry,
) -> Proxy {
    let metrics = Metrics::default();
    metrics.register(registry);
    let parts = Parts {
        http: http.clone(),
        tasks: tasks.clone(),
        policy: Policy::new(config.intercept.clone()),
        interceptor,
        mirror: config.mirror.clone(),
        upstreams: config.client.upstreams.clone(),
        drain,
        metrics,
    };
    Proxy::new(config.proxy.clone(), parts)
}
