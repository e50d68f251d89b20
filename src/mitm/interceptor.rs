//! Ending a client's TLS in the name of the host that it wanted.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ServerSessionMemoryCache, StoresServerSessions};
use rustls::sign::SingleCertAndKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::authority::{CertificateAuthority, fingerprint};
use super::files::CaError;
use super::leaf::LeafIssuer;

/// How long a client may take for its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Hosts whose leaf is kept; the least used one goes first.
const MAX_LEAVES: u64 = 1024;
/// A leaf is replaced after this, long before it expires.
const LEAF_REUSE: Duration = Duration::from_secs(24 * 60 * 60);
/// TLS sessions that clients may resume.
const MAX_SESSIONS: usize = 1024;

/// Accepts TLS for any host. Clones share certificates and sessions.
#[derive(Clone)]
pub struct Interceptor(Arc<Inner>);

struct Inner {
    issuer: LeafIssuer,
    leaves: Cache<String, Arc<ServerConfig>>,
    provider: Arc<CryptoProvider>,
    sessions: Arc<dyn StoresServerSessions>,
}

impl Interceptor {
    /// Signs with this CA.
    ///
    /// # Errors
    /// The leaves' key cannot be made.
    pub fn new(ca: CertificateAuthority) -> Result<Self, CaError> {
        Ok(Self(Arc::new(Inner {
            issuer: LeafIssuer::new(ca)?,
            leaves: Cache::builder().max_capacity(MAX_LEAVES).time_to_live(LEAF_REUSE).build(),
            provider: Arc::new(aws_lc_rs::default_provider()),
            sessions: ServerSessionMemoryCache::new(MAX_SESSIONS),
        })))
    }

    /// The certificate that clients have to trust, in PEM.
    pub fn authority_pem(&self) -> &str {
        self.0.issuer.authority().pem()
    }

    /// The same in DER.
    pub fn authority_der(&self) -> &[u8] {
        &self.0.issuer.authority().der
    }

    /// The SHA-256 of the same, in hex: what people compare.
    pub fn authority_fingerprint(&self) -> String {
        fingerprint(self.authority_der())
    }

    /// The server's side of a TLS handshake on `stream`, as `host` (a name or an address). ALPN offers `h2` and
    /// `http/1.1`; what was agreed is in the stream's connection.
    ///
    /// # Errors
    /// The handshake fails or takes too long, or `host` cannot stand in a certificate.
    pub async fn accept<S>(&self, stream: S, host: &str) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.config(host).map_err(io::Error::other)?;
        match timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream)).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake took too long")),
        }
    }

    /// The TLS settings for a host; made once, also when many clients come at once.
    fn config(&self, host: &str) -> Result<Arc<ServerConfig>, Arc<CaError>> {
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        self.0.leaves.try_get_with_by_ref(&host, || self.0.make(&host))
    }
}

impl Inner {
    fn make(&self, host: &str) -> Result<Arc<ServerConfig>, CaError> {
        let leaf = SingleCertAndKey::from(self.issuer.leaf(host)?);
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| CaError::Make(error.to_string()))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(leaf));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::clone(&self.sessions);
        Ok(Arc::new(config))
    }
}

impl std::fmt::Debug for Interceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interceptor").field("leaves", &self.0.leaves.entry_count()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
