//! `CONNECT`: a pipe to where the client wants to go, or, to hosts that are intercepted, a look inside.
//!
//! Inside, HTTP is served by the same handler as outside. A client that speaks neither TLS nor HTTP there, waits for the
//! server to speak first, means another server, or offers only protocols that are not HTTP, gets its pipe after all.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use http::uri::{Authority, Scheme};
use http::{Response, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::access::{End, Record};
use super::detect::{Protocol, detect};
use super::fault::Fault;
use super::gate::{Gate, IoStream};
use super::handler::Inner;
use super::listener::{ConnectionPermit, Session};
use super::pipe::pipe;
use super::prefixed::PrefixedIo;
use super::route::{Endpoint, Ingress, Label};
use crate::limit::Priority;
use crate::mitm::ClientHello;
use crate::net::{Body, HttpClient, OriginStream, empty_body};

impl IoStream for TokioIo<Upgraded> {
    // A stream of an HTTP/2 connection; the library resets it when it is dropped.
    fn abort(&self) {}
}

impl IoStream for OriginStream {
    fn abort(&self) {
        Self::tcp(self).abort();
    }

    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(stream) => Some(stream),
            Self::Tls(_) => None,
        }
    }
}

impl<T: IoStream> IoStream for TlsStream<T> {
    // Without its closing alert, TLS does not take an end for the end.
    fn abort(&self) {
        self.get_ref().0.abort();
    }
}

impl Inner {
    /// Opens a blind tunnel. The answer says whether the other end could be reached.
    pub(super) async fn tunnel(
        self: &Arc<Self>,
        endpoint: Endpoint,
        client: OnUpgrade,
        session: &Session,
        record: &mut Option<Record>,
    ) -> Result<Response<Body>, Fault> {
        let mut record = open(record, Label::Tunnel);
        let server = match self.http.on_behalf_of(Some(&session.client)).dial(&endpoint.host, endpoint.port).await {
            Ok(server) => server,
            Err(error) => {
                let fault = Fault::from(&error);
                answered(&mut record, fault.status(), End::Complete);
                return Err(fault);
            }
        };
        let (inner, permit) = (self.clone(), session.permit.clone());
        tokio::spawn(async move {
            if let Some((io, read)) = taken_over(client).await {
                inner.carry(io, read, server, &mut record).await;
            }
            drop(permit);
        });
        Ok(established())
    }

    /// Opens a tunnel that we look into: TLS is ended here, with a certificate of our own.
    pub(super) fn intercept(
        self: &Arc<Self>,
        endpoint: Endpoint,
        client: OnUpgrade,
        session: &Session,
        record: &mut Option<Record>,
    ) -> Response<Body> {
        let record = open(record, Label::Intercept);
        tokio::spawn(self.clone().look_inside(endpoint, client, session.permit.clone(), record));
        established()
    }

    async fn look_inside(
        self: Arc<Self>,
        endpoint: Endpoint,
        client: OnUpgrade,
        permit: Arc<ConnectionPermit>,
        record: Option<Record>,
    ) {
        let mut record = record;
        let Some((mut io, read)) = taken_over(client).await else { return };
        let (protocol, read) = detect(&mut *io, read, self.config().detect_timeout).await;
        match protocol {
            Protocol::Closed => {}
            Protocol::Opaque | Protocol::Silent => {
                match self.http_for(&permit).dial(&endpoint.host, endpoint.port).await {
                    Ok(server) => self.carry(io, read, server, &mut record).await,
                    Err(_) => io.abort(),
                }
            }
            Protocol::Http1 | Protocol::Http2 => {
                answered(&mut record, StatusCode::OK, End::Complete);
                drop(record);
                self.inside(io, read, protocol, Scheme::HTTP, &endpoint, permit).await;
            }
            Protocol::Tls => self.end_tls(io, read, endpoint, permit, record).await,
        }
    }

    /// Ends the client's TLS here and serves what is inside, or carries it as it is where that is not ours to do.
    pub(super) async fn end_tls(
        self: Arc<Self>,
        mut io: Box<dyn IoStream>,
        read: Vec<u8>,
        endpoint: Endpoint,
        permit: Arc<ConnectionPermit>,
        mut record: Option<Record>,
    ) {
        let (hello, read) = match ClientHello::read(&mut *io, read).await {
            Ok(read) => read,
            Err(error) => return tracing::debug!(host = %endpoint.host, %error, "no TLS hello came from a client"),
        };
        if !hello.is_some_and(|hello| hello.is_answerable(&endpoint.host)) {
            return match self.http_for(&permit).dial(&endpoint.host, endpoint.port).await {
                Ok(server) => self.carry(io, read, server, &mut record).await,
                Err(_) => io.abort(),
            };
        }
        let mut tls = match self.interceptor.accept(PrefixedIo::new(io, read), &endpoint.host).await {
            Ok(tls) => tls,
            Err(error) => {
                return tracing::info!(
                    host = %endpoint.host, %error,
                    "the TLS handshake with a client failed: if it does not trust our CA, install ca.pem there"
                );
            }
        };
        let agreed = tls.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        let (protocol, read) = match agreed.as_deref() {
            Some(b"http/1.1") => (Protocol::Http1, Vec::new()),
            Some(_) => detect(&mut tls, Vec::new(), self.config().first_byte_from_client).await,
            None => detect(&mut tls, Vec::new(), self.config().detect_timeout).await,
        };
        match protocol {
            Protocol::Http1 | Protocol::Http2 => {
                answered(&mut record, StatusCode::OK, End::Complete);
                drop(record);
                self.inside(Box::new(tls), read, protocol, Scheme::HTTPS, &endpoint, permit).await;
            }
            Protocol::Closed => {}
            // It has said that it speaks HTTP/2.
            _ if agreed.is_some() => tls.abort(),
            // Another protocol in TLS, whose server may have to speak first.
            _ => match self.http_for(&permit).dial_tls(&endpoint.host, endpoint.port).await {
                Ok(server) => self.carry(Box::new(tls), read, server, &mut record).await,
                Err(_) => tls.abort(),
            },
        }
    }

    /// How a client that looks inside is connected to its server after all.
    pub(super) fn http_for(&self, permit: &ConnectionPermit) -> &HttpClient {
        if permit.remote { self.http.for_others() } else { &self.http }
    }

    async fn inside(
        self: Arc<Self>,
        io: Box<dyn IoStream>,
        read: Vec<u8>,
        protocol: Protocol,
        scheme: Scheme,
        endpoint: &Endpoint,
        permit: Arc<ConnectionPermit>,
    ) {
        let Some(authority) = endpoint.authority(&scheme) else { return };
        let ingress = Ingress { through: Some((scheme, authority)), ..Ingress::default() };
        self.serve(io, read, protocol, ingress, true, permit).await;
    }

    /// Carries bytes between the two until both are done. What breaks one end breaks the other.
    pub(super) async fn carry<S: IoStream>(
        &self,
        mut io: Box<dyn IoStream>,
        read: Vec<u8>,
        mut server: S,
        record: &mut Option<Record>,
    ) {
        let down = AtomicU64::new(0);
        let (flow, idle) = (self.limiter.flow(Priority::default()), self.config().tunnel_idle);
        let sent = async {
            server.write_all(&read).await?;
            server.flush().await
        };
        let ended = match sent.await {
            Ok(()) => pipe(&mut io, &mut server, idle, &flow, self.drain.draining(), &down).await,
            Err(error) => Err(error),
        };
        let end = if ended.is_ok() { End::Complete } else { End::Broken };
        if end == End::Broken {
            io.abort();
            server.abort();
        }
        if let Some(record) = record {
            record.sent(down.into_inner());
        }
        answered(record, StatusCode::OK, end);
    }
}

/// Takes the record over from the answer: it ends with the tunnel.
fn open(record: &mut Option<Record>, label: Label) -> Option<Record> {
    let mut record = record.take();
    if let Some(record) = &mut record {
        record.route(label);
    }
    record
}

fn answered(record: &mut Option<Record>, status: StatusCode, end: End) {
    if let Some(record) = record {
        record.answered(status);
        record.ended(end);
    }
}

fn established() -> Response<Body> {
    Response::new(empty_body())
}

/// The client's connection once our answer is on it, and what was read of it already.
pub(super) async fn taken_over(client: OnUpgrade) -> Option<(Box<dyn IoStream>, Vec<u8>)> {
    let upgraded = client.await.inspect_err(|error| tracing::debug!(%error, "a tunnel's client left")).ok()?;
    Some(match upgraded.downcast::<TokioIo<Gate>>() {
        Ok(parts) => {
            let (io, held) = parts.io.into_inner().into_parts();
            let mut read = parts.read_buf.to_vec();
            read.extend(held);
            (io, read)
        }
        Err(upgraded) => (Box::new(TokioIo::new(upgraded)), Vec::new()),
    })
}

impl Endpoint {
    /// The authority of URLs inside a tunnel to here.
    fn authority(&self, scheme: &Scheme) -> Option<Authority> {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let default = if *scheme == Scheme::HTTPS { 443 } else { 80 };
        let text = if self.port == default { host } else { format!("{host}:{}", self.port) };
        text.parse().ok()
    }
}
