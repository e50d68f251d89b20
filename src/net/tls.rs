//! TLS towards upstreams: the machine's root certificates, the configured ones, and our client certificate.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tracing::warn;

use super::error::ConfigError;
use super::upstream::Upstream;

/// The cryptography of all our TLS; given explicitly everywhere, so that no process-wide default matters.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The certificates that this machine trusts. None at all is worth a warning only: plain HTTP works without.
pub(super) fn machine_roots() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        warn!("this machine has no trusted root certificates: https origins need proxy.upstreams[].caCert");
    }
    roots
}

/// The TLS settings for one upstream, or for all without settings of their own.
pub(super) fn client_config(roots: &RootCertStore, upstream: Option<&Upstream>) -> Result<ClientConfig, ConfigError> {
    let host = upstream.map_or("any", |upstream| &upstream.host);
    let fail = |why: String| ConfigError::Upstream { host: host.into(), why };
    let mut roots = roots.clone();
    if let Some(pem) = upstream.and_then(|upstream| upstream.ca_pem.as_deref()) {
        for certificate in certificates(pem).map_err(|why| fail(format!("its CA file: {why}")))? {
            roots.add(certificate).map_err(|error| fail(format!("its CA: {error}")))?;
        }
    }
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| ConfigError::Tls(error.into()))?
        .with_root_certificates(roots);
    let identity = upstream.and_then(|upstream| Some((upstream.cert_pem.as_deref()?, upstream.key_pem.as_deref())));
    let Some((cert, key)) = identity else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(cert).map_err(|why| fail(format!("its client certificate: {why}")))?;
    let key = key.ok_or_else(|| fail("its client certificate has no key".into()))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| fail("its client key is no private key in PEM".into()))?;
    builder.with_client_auth_cert(chain, key).map_err(|error| fail(format!("its client certificate: {error}")))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err("no certificate in it".into()),
        Ok(all) => Ok(all),
        Err(error) => Err(error.to_string()),
    }
}
