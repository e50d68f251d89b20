//! Accepting connections and serving HTTP on them, whatever they came by.
//!
//! At most `max_connections` at a time; more wait in the kernel's queue. While the process drains idle connections are
//! closed, and requests in hand are finished; new connections are accepted for one request each until the drain closes.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use damselfly_runtime::Guard;
use http::{HeaderValue, Method, Request, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::timeout;

use super::detect::{Protocol, detect};
use super::framing::{MAX_HEAD, MAX_HEADERS};
use super::gate::{ConnControl, Gate, IoStream};
use super::handler::Inner;
use super::metrics::Metrics;
use super::route::{Ingress, SocketCaller};
use super::transparent::make_absolute;
use crate::net::ClientConnection;
use crate::registry::Registry;

/// How long to wait before accepting again when the process has no file descriptor left.
const EXHAUSTED: Duration = Duration::from_millis(100);
/// Bytes that end the parking of a connection.
const FEW: usize = 32;
/// How long the end of a parked connection may take to say.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long a client may say nothing on a new connection while the process drains.
const LAST_CALL: Duration = Duration::from_secs(5);
/// How much of one answer over HTTP/2 waits for its client.
const MAX_STREAM_BUFFER: usize = 128 * 1024;
/// After how much silence the kernel asks a client whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// What a client that begins a TLS handshake here is told. A tool that tries TLS first understands this and goes on in
/// plain HTTP at once.
const NOT_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\
    X-Dragonfly-Error-Type: proxy\r\nContent-Length: 56\r\n\r\nThis port speaks plain HTTP; a TLS handshake came here.\n";

/// What keeps a client's connection, and the tunnels that come out of it, counted.
pub(super) struct ConnectionPermit {
    _slot: OwnedSemaphorePermit,
    _guard: Guard,
    metrics: Arc<Metrics>,
    /// Whether the client is on another host.
    pub(super) remote: bool,
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.metrics.connections.dec();
    }
}

/// One connection on which HTTP is spoken.
pub(super) struct Session {
    pub(super) ingress: Ingress,
    /// Whether its client needs no password, or has named it.
    pub(super) admitted: bool,
    pub(super) control: Arc<ConnControl>,
    pub(super) permit: Arc<ConnectionPermit>,
    pub(super) client: ClientConnection,
}

/// What connections come from.
pub(super) trait Accept {
    type Stream;

    fn accept_one(&self) -> impl Future<Output = std::io::Result<Self::Stream>> + Send;

    /// Whether the other end is on another host.
    fn is_remote(stream: &Self::Stream) -> bool;
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept_one(&self) -> std::io::Result<TcpStream> {
        Ok(self.accept().await?.0)
    }

    fn is_remote(stream: &TcpStream) -> bool {
        let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else { return true };
        // A host that connects to itself has the same address at both ends, or loopback at one.
        let peer = peer.ip().to_canonical();
        !peer.is_loopback() && peer != local.ip().to_canonical()
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn accept_one(&self) -> std::io::Result<UnixStream> {
        Ok(self.accept().await?.0)
    }

    fn is_remote(_: &UnixStream) -> bool {
        false
    }
}

/// Sends small things at once, and has the kernel ask whether the client is still there.
pub(super) fn keep_alive(stream: &TcpStream) {
    // A connection on which these fail is about to fail anyway.
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE));
}

async fn has_begun(mut began: watch::Receiver<bool>) {
    // An error means that the connection has ended.
    let _ = began.wait_for(|began| *began).await;
}

impl Inner {
    /// Serves every connection that comes to `listener` until the drain closes.
    pub(super) async fn serve_tcp(self: Arc<Self>, listener: TcpListener, registry: Option<Arc<Registry>>) {
        let _door = self.drain.door();
        while let Some((stream, permit)) = self.next(&listener).await {
            let ingress = Ingress {
                through: None,
                local: stream.local_addr().ok(),
                registry: registry.clone(),
                ..Ingress::default()
            };
            tokio::spawn(self.clone().greet(stream, ingress, permit));
        }
    }

    /// The same for the local API's socket. Whoever may open it needs no password.
    pub(super) async fn serve_unix(self: Arc<Self>, listener: UnixListener) {
        let _door = self.drain.door();
        while let Some((stream, permit)) = self.next(&listener).await {
            // One whose caller is not known may still ask.
            let caller = stream.peer_cred().map(|caller| caller.uid()).ok();
            let operates = caller.is_some_and(|uid| uid == 0 || uid == rustix::process::geteuid().as_raw());
            let ingress = Ingress { socket: Some(SocketCaller { operates }), ..Ingress::default() };
            tokio::spawn(self.clone().serve(Box::new(stream), Vec::new(), Protocol::Http1, ingress, true, permit));
        }
    }

    /// The next connection; `None` once the drain has closed and nobody waits any more.
    pub(super) async fn next<A: Accept>(&self, listener: &A) -> Option<(A::Stream, Arc<ConnectionPermit>)> {
        let accepted = async {
            // The semaphore is never closed.
            let slot = self.slots.clone().acquire_owned().await.ok()?;
            loop {
                match listener.accept_one().await {
                    Ok(stream) => return Some((stream, slot)),
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(EXHAUSTED).await;
                    }
                }
            }
        };
        let (stream, slot) = tokio::select! {
            biased;
            accepted = accepted => accepted?,
            () = self.drain.closed() => return None,
        };
        self.metrics.connections.inc();
        let remote = A::is_remote(&stream);
        let permit =
            ConnectionPermit { _slot: slot, _guard: self.drain.guard(), metrics: self.metrics.clone(), remote };
        Some((stream, Arc::new(permit)))
    }

    async fn greet(self: Arc<Self>, mut stream: TcpStream, ingress: Ingress, permit: Arc<ConnectionPermit>) {
        keep_alive(&stream);
        let patience = self.config().first_byte_from_client;
        let detected = tokio::select! {
            detected = detect(&mut stream, Vec::new(), patience) => detected,
            () = self.last_call() => return,
        };
        match detected {
            (Protocol::Closed | Protocol::Silent, _) => {}
            (Protocol::Tls, _) => {
                let _ = stream.write_all(NOT_TLS).await;
                let _ = stream.shutdown().await;
            }
            (Protocol::Http2, read) => {
                self.serve(Box::new(stream), read, Protocol::Http2, ingress, false, permit).await;
            }
            // What is no HTTP at all is refused by the gate, in words.
            (_, read) => self.serve(Box::new(stream), read, Protocol::Http1, ingress, false, permit).await,
        }
    }

    /// Resolves when a client that has said nothing yet is not waited for any longer because the process drains.
    pub(super) async fn last_call(&self) {
        self.drain.draining().await;
        tokio::time::sleep(LAST_CALL).await;
    }

    /// Serves HTTP on one connection, of which `read` was read already, to its end.
    ///
    /// The future is boxed because it contains itself: a request on the connection may open a tunnel in which HTTP is
    /// spoken again.
    pub(super) fn serve(
        self: Arc<Self>,
        io: Box<dyn IoStream>,
        read: Vec<u8>,
        protocol: Protocol,
        ingress: Ingress,
        admitted: bool,
        permit: Arc<ConnectionPermit>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let client =
                if permit.remote { ClientConnection::from_another_host() } else { ClientConnection::default() };
            let mut next = Some((io, read));
            while let Some((io, read)) = next {
                let control = ConnControl::new(self.budget.clone());
                let session = Session {
                    ingress: ingress.clone(),
                    admitted,
                    control: control.clone(),
                    permit: permit.clone(),
                    client: client.clone(),
                };
                // Nothing of it is left while the connection is parked.
                Box::pin(self.clone().converse(io, read, protocol, Arc::new(session))).await;
                next = match control.take_parked() {
                    Some(io) => self.next_request(io).await,
                    None => None,
                };
            }
        })
    }

    /// The first bytes of the next request on a connection that is parked; `None` at its end, which is made here if the
    /// client does not.
    async fn next_request(&self, mut io: Box<dyn IoStream>) -> Option<(Box<dyn IoStream>, Vec<u8>)> {
        let mut few = [0; FEW];
        let read = tokio::select! {
            biased;
            // A request that has come is answered.
            read = timeout(self.config().head_timeout, io.read(&mut few)) => read.ok(),
            () = self.drain.draining() => None,
        };
        match read {
            Some(Ok(count @ 1..)) => return Some((io, few[..count].to_vec())),
            Some(_) => {}
            None => drop(timeout(FAREWELL, io.shutdown()).await),
        }
        None
    }

    /// Serves HTTP until the client or we close the connection, or it is parked.
    async fn converse(
        self: Arc<Self>,
        io: Box<dyn IoStream>,
        read: Vec<u8>,
        protocol: Protocol,
        session: Arc<Session>,
    ) {
        let control = session.control.clone();
        let idle = self.config().idle;
        let gate = match protocol {
            Protocol::Http2 => Gate::open(io, read, control.clone(), idle),
            _ => Gate::new(io, read, control.clone(), idle),
        };
        let io = TokioIo::new(gate);
        let drain = self.drain.clone();
        let (max_streams, head_timeout) = (self.config().max_streams, self.config().head_timeout);
        let client = session.client.clone();
        let (first, began) = watch::channel(false);
        // A request that is on its way when the drain begins is waited for; the library would close the connection.
        let last_request = async {
            drain.draining().await;
            let _ = timeout(LAST_CALL, has_begun(began.clone())).await;
        };
        let service = service_fn(move |mut request: Request<Incoming>| {
            first.send_replace(true);
            if let Some(to) = session.ingress.redirected {
                make_absolute(&mut request, to);
            }
            request.extensions_mut().insert(client.clone());
            request.extensions_mut().insert(control.clone());
            let (inner, session, control) = (self.clone(), session.clone(), control.clone());
            let drain = self.drain.clone();
            async move {
                let connects = request.method() == Method::CONNECT;
                // The library keeps room for it in every connection, also in those that wait.
                let mut response = Box::pin(inner.handle(session, request)).await;
                let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
                let becomes_another = switches || (connects && response.status().is_success());
                control.answered(becomes_another);
                if drain.is_draining() && protocol != Protocol::Http2 && !becomes_another {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response)
            }
        });
        // Each protocol's connection is another type; both are driven alike.
        macro_rules! drive {
                ($connection:expr) => {{
                    let mut connection = std::pin::pin!($connection);
                    let ended = tokio::select! {
                        ended = connection.as_mut() => ended,
                        // The library waits long for the beginning of HTTP/2.
                        Err(_) = timeout(head_timeout, has_begun(began.clone())), if protocol == Protocol::Http2 => return,
                        () = last_request => {
                            connection.as_mut().graceful_shutdown();
                            connection.await
                        }
                    };
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a client's connection ended");
                    }
                }};
            }
        if protocol == Protocol::Http2 {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder.timer(TokioTimer::new()).max_concurrent_streams(max_streams);
            builder.max_header_list_size(MAX_HEAD as u32).adaptive_window(true);
            builder.max_send_buf_size(MAX_STREAM_BUFFER).keep_alive_interval(KEEPALIVE);
            drive!(builder.serve_connection(io, service));
        } else {
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(head_timeout);
            // One line may be the gate's.
            builder.max_headers(MAX_HEADERS + 1).max_buf_size(2 * MAX_HEAD);
            builder.preserve_header_case(true).title_case_headers(true);
            drive!(builder.serve_connection(io, service).with_upgrades());
        }
    }
}
