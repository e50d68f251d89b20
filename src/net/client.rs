//! The client itself: pools of connections, one per set of TLS settings and protocol.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri, Version};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::RootCertStore;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::connect::Connector;
use super::dial::{Dialer, OwnAddresses};
use super::error::{ConfigError, NetError};
use super::policy::DestinationPolicy;
use super::upstream::{self, Upstream};
use super::{Body, BoxError, tls};

/// Flow-control window of one HTTP/2 answer: enough for 1 Gbit/s at 32 ms.
const H2_STREAM_WINDOW: u32 = 4 << 20;
/// Window of one HTTP/2 connection, shared by its answers.
const H2_CONNECTION_WINDOW: u32 = 16 << 20;
/// How often a silent HTTP/2 connection is asked whether it lives, and how long it may take to say so.
const H2_PING: Duration = Duration::from_secs(20);
/// Header lines of an answer; more is an error of that answer.
const MAX_HEADERS: usize = 256;

/// Bytes of an HTTP/2 answer's header lines, as many as HTTP/1 clients usually take.
const MAX_HEADER_BYTES: u32 = 256 * 1024;

/// Settings of the HTTP client.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// How long resolving and connecting may take.
    pub connect_timeout: Duration,
    /// How long nothing may move between a request and the head of its answer.
    pub head_timeout: Duration,
    /// How many unused connections are kept open per authority.
    pub idle_per_host: usize,
    /// How long an unused connection is kept open.
    pub idle_timeout: Duration,
    /// Where clients may be connected to.
    pub policy: DestinationPolicy,
    /// Origins and registries that are reached in their own way.
    pub upstreams: Vec<Upstream>,
    /// Our own listening addresses; may be filled later.
    pub own_addresses: OwnAddresses,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(60),
            idle_per_host: 32,
            idle_timeout: Duration::from_secs(60),
            policy: DestinationPolicy::default(),
            upstreams: Vec::new(),
            own_addresses: OwnAddresses::default(),
        }
    }
}

/// The one HTTP client. Clones share everything.
#[derive(Clone)]
pub struct HttpClient(Arc<Inner>);

struct Inner {
    dialer: Dialer,
    head_timeout: Duration,
    upstreams: Vec<Upstream>,
    /// One for each upstream that has TLS settings of its own, by its index.
    own_tls: Vec<Option<Pools>>,
    any: Pools,
    /// The same client for what other hosts ask of this one; that one has none.
    others: Option<HttpClient>,
}

/// Connections with the same TLS settings.
struct Pools {
    /// What both sides like best: HTTP/2 or HTTP/1.1.
    best: Client<Connector, Watched>,
    /// HTTP/1.1 only.
    http1: Client<Connector, Watched>,
}

impl HttpClient {
    /// A client with these settings.
    ///
    /// # Errors
    /// A CA, certificate or key of an upstream is of no use.
    pub fn new(config: ClientConfig) -> Result<Self, ConfigError> {
        let roots = tls::machine_roots();
        let strict = ClientConfig { policy: config.policy.for_others(), ..config.clone() };
        let others = Self::with(strict, &roots, None)?;
        Self::with(config, &roots, Some(others))
    }

    fn with(config: ClientConfig, roots: &RootCertStore, others: Option<Self>) -> Result<Self, ConfigError> {
        let dialer = Dialer {
            policy: Arc::new(config.policy.clone()),
            own: config.own_addresses.clone(),
            timeout: config.connect_timeout,
        };
        let pools = |upstream: Option<&Upstream>| Pools::new(&config, &dialer, roots, upstream);
        let any = pools(None)?;
        let own_tls =
            config.upstreams.iter().map(|upstream| upstream.has_tls().then(|| pools(Some(upstream))).transpose());
        let own_tls = own_tls.collect::<Result<_, _>>()?;
        let head_timeout = config.head_timeout;
        Ok(Self(Arc::new(Inner { dialer, head_timeout, upstreams: config.upstreams, own_tls, any, others })))
    }

    /// Sends a request with an absolute URI and awaits the head of the answer. `Host` goes out as it is in the request.
    ///
    /// An idempotent request without a body is sent once more if a kept-open connection turns out to be dead.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, NetError> {
        self.request(request, false).await
    }

    /// Sends a request with `Upgrade` over HTTP/1.1; `hyper::upgrade::on` works on an answer 101.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn send_upgrade(&self, request: Request<Body>) -> Result<Response<Incoming>, NetError> {
        self.request(request, true).await
    }

    /// A connection to a destination that the policy allows.
    ///
    /// # Errors
    /// There is none.
    pub async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, NetError> {
        self.0.dialer.dial(host, port).await
    }

    /// The client for what other hosts ask of this one: it does not reach this host's loopback.
    pub fn for_others(&self) -> &Self {
        self.0.others.as_ref().unwrap_or(self)
    }

    /// The set of our own listening addresses, to be filled once they are known.
    pub fn own_addresses(&self) -> &OwnAddresses {
        &self.0.dialer.own
    }

    async fn request(&self, request: Request<Body>, http1: bool) -> Result<Response<Incoming>, NetError> {
        let (mut parts, body) = request.into_parts();
        let to = authority(&parts.uri)?;
        let mut pools = &self.0.any;
        if let Some(index) = upstream::find(&self.0.upstreams, &parts.uri) {
            pools = self.0.own_tls.get(index).and_then(Option::as_ref).unwrap_or(pools);
            parts.uri = self.0.upstreams[index].apply(&parts.uri).unwrap_or(parts.uri);
        }
        parts.version = Version::HTTP_11;
        let http1 = http1 || !agree(&mut parts);
        let moved = Arc::new(AtomicU64::new(0));
        let request = Request::from_parts(parts, Watched { body, moved: Arc::clone(&moved) });
        let client = if http1 { &pools.http1 } else { &pools.best };
        let mut answer = client.request(request);
        let mut seen = 0;
        loop {
            match timeout(self.0.head_timeout, &mut answer).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => return Err(NetError::find(&to, &error)),
                // A long upload is no silence.
                Err(_) => match moved.load(Ordering::Relaxed) {
                    now if now > seen => seen = now,
                    _ => return Err(NetError::HeadTimeout { to }),
                },
            }
        }
    }
}

impl std::fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpClient").field("upstreams", &self.0.upstreams).finish_non_exhaustive()
    }
}

impl Pools {
    fn new(
        config: &ClientConfig,
        dialer: &Dialer,
        roots: &RootCertStore,
        upstream: Option<&Upstream>,
    ) -> Result<Self, ConfigError> {
        let mut tls = tls::client_config(roots, upstream)?;
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(config.idle_timeout)
            .pool_max_idle_per_host(config.idle_per_host)
            .http1_max_headers(MAX_HEADERS)
            // Origins that clients understand, we understand; the client gets it written properly.
            .http1_allow_obsolete_multiline_headers_in_responses(true)
            .http1_allow_spaces_after_header_name_in_responses(true)
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .http2_initial_stream_window_size(H2_STREAM_WINDOW)
            .http2_initial_connection_window_size(H2_CONNECTION_WINDOW)
            .http2_keep_alive_interval(H2_PING)
            .http2_keep_alive_timeout(H2_PING);
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let http1 = builder.build(Connector::new(dialer.clone(), tls.clone()));
        tls.alpn_protocols.insert(0, b"h2".to_vec());
        let best = builder.build(Connector::new(dialer.clone(), tls));
        Ok(Self { best, http1 })
    }
}

/// `host[:port]` of an absolute URI without credentials.
fn authority(uri: &Uri) -> Result<String, NetError> {
    let fail = |why: &str| Err(NetError::Target { why: why.into() });
    match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS => {}
        _ => return fail("it is neither an http nor an https URL"),
    }
    match uri.authority() {
        None => fail("it names no host"),
        Some(authority) if authority.host().is_empty() => fail("it names no host"),
        Some(authority) if authority.as_str().contains('@') => fail("it has credentials in it"),
        Some(authority) => Ok(authority.as_str().to_owned()),
    }
}

/// Writes the URI's authority as the `Host` writes it. False where they name different authorities: HTTP/2 has no place
/// for that.
fn agree(parts: &mut http::request::Parts) -> bool {
    let Some(host) = parts.headers.get(HOST) else { return true };
    let Ok(host) = Authority::try_from(host.as_bytes()) else { return false };
    if !same(&host, &parts.uri) {
        return false;
    }
    let mut uri = parts.uri.clone().into_parts();
    uri.authority = Some(host);
    Uri::from_parts(uri).map(|uri| parts.uri = uri).is_ok()
}

/// Whether `host` is the URI's authority, be it with or without the scheme's default port.
fn same(host: &Authority, uri: &Uri) -> bool {
    let default = || uri.scheme().and_then(upstream::default_port);
    uri.host().is_some_and(|own| own.eq_ignore_ascii_case(host.host()))
        && host.port_u16().or_else(default) == upstream::port_of(uri)
}

/// A request body that counts its steps, so that an upload under way is told from silence.
struct Watched {
    body: Body,
    moved: Arc<AtomicU64>,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if frame.is_ready() {
            self.moved.fetch_add(1, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
