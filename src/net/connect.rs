//! A connection for the client's pool: dialled, with TLS around it for `https`.

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::dial::{Dialer, Plain};
use super::egress::EgressProxy;
use super::error::{NetError, innermost};
use super::io::OriginStream;
use super::policy::bare;
use super::upstream::port_of;

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection for the client's pool.
pub(super) struct Connected {
    pub(super) stream: OriginStream,
    /// Whether HTTP/2 was agreed on.
    pub(super) h2: bool,
    /// The proxy at the other end, which wants absolute URLs.
    pub(super) proxy: Option<EgressProxy>,
}

/// Opens connections for the client's pool.
#[derive(Clone)]
pub(super) struct Connector {
    dialer: Dialer,
    tls: TlsConnector,
}

impl Connector {
    /// With `tls`, which says by ALPN what is spoken.
    pub(super) fn new(dialer: Dialer, tls: ClientConfig) -> Self {
        Self { dialer, tls: TlsConnector::from(Arc::new(tls)) }
    }

    /// A connection to where `uri` leads.
    pub(super) async fn connect(&self, uri: &Uri) -> Result<Connected, NetError> {
        let unclear = |why: &str| NetError::Target { why: why.into() };
        let host = uri.host().ok_or_else(|| unclear("no host"))?;
        let port = port_of(uri).ok_or_else(|| unclear("neither http nor https"))?;
        if uri.scheme_str() != Some("https") {
            let Plain { stream, proxy } = self.dialer.dial_plain(host, port).await?;
            return Ok(Connected { stream: OriginStream::Plain(stream), h2: false, proxy });
        }
        let stream = self.dialer.dial(host, port).await?;
        let to = format!("{host}:{port}");
        let name = ServerName::try_from(bare(host).to_owned()).map_err(|_| unclear("not a host name"))?;
        match timeout(HANDSHAKE_TIMEOUT, self.tls.connect(name, stream)).await {
            Ok(Ok(stream)) => {
                let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                Ok(Connected { stream: OriginStream::Tls(Box::new(stream)), h2, proxy: None })
            }
            Ok(Err(error)) => Err(NetError::Tls { to, why: tls_reason(&error) }),
            Err(_) => Err(NetError::ConnectTimeout { to }),
        }
    }
}

/// The TLS library's own words, which an I/O error may hide from `source`.
fn tls_reason(error: &std::io::Error) -> String {
    error.get_ref().map_or_else(|| innermost(error), |inner| inner.to_string())
}
