//! The HTTP client's connector: a dialled connection, with TLS around it for `https`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_rustls::MaybeHttpsStream;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tower_service::Service;

use super::dial::Dialer;
use super::error::{NetError, innermost};
use super::policy::bare;
use super::upstream::port_of;

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

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

    async fn connect(self, uri: Uri) -> Result<MaybeHttpsStream<TokioIo<TcpStream>>, NetError> {
        let unclear = |why: &str| NetError::Target { why: why.into() };
        let host = uri.host().ok_or_else(|| unclear("no host"))?;
        let port = port_of(&uri).ok_or_else(|| unclear("neither http nor https"))?;
        let stream = self.dialer.dial(host, port).await?;
        if uri.scheme_str() != Some("https") {
            return Ok(MaybeHttpsStream::Http(TokioIo::new(stream)));
        }
        let to = format!("{host}:{port}");
        let name = ServerName::try_from(bare(host).to_owned()).map_err(|_| unclear("not a host name"))?;
        match timeout(HANDSHAKE_TIMEOUT, self.tls.connect(name, TokioIo::new(TokioIo::new(stream)))).await {
            Ok(Ok(stream)) => Ok(MaybeHttpsStream::from(stream)),
            Ok(Err(error)) => Err(NetError::Tls { to, why: tls_reason(&error) }),
            Err(_) => Err(NetError::ConnectTimeout { to }),
        }
    }
}

/// The TLS library's own words, which an I/O error may hide from `source`.
fn tls_reason(error: &std::io::Error) -> String {
    error.get_ref().map_or_else(|| innermost(error), |inner| inner.to_string())
}

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = NetError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, NetError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NetError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}
