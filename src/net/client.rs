//! The client itself: which connection a request goes out on, and when it is sent once more.
//!
//! **A request is sent again only where that cannot be seen**: when none of it has left, when the origin says that it has
//! not processed it (HTTP/2), or when it is idempotent, has no body, and a kept-open connection ended without a byte of
//! an answer (RFC 9110, 9.2.2; RFC 9112, 9.3.1). All others go out on a connection that was not used before.

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, EXPECT, HOST, PROXY_AUTHORIZATION, TRANSFER_ENCODING};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, request};
use http_body::Body as _;
use hyper::body::Incoming;
use rustls::RootCertStore;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::connect::Connector;
use super::dial::{Dialer, OwnAddresses};
use super::egress::Egress;
use super::error::{ConfigError, NetError};
use super::io::OriginStream;
use super::policy::{self, DestinationPolicy};
use super::pool::{ClientConnection, Connection, Pool, PooledConnection, ResponseBody, Want};
use super::replay::Replay;
use super::resolve::Resolver;
use super::upstream::{self, Upstream};
use super::{Body, auth, tls};

/// How often one request is sent at most.
const MAX_ATTEMPTS: u32 = 4;

/// In a request's extensions: it is about the whole server, not about a path (`OPTIONS *`).
#[derive(Clone, Copy, Debug)]
pub struct WholeServer;

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
    /// The way out, where it is not the direct one.
    pub egress: Egress,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(15 * 60),
            idle_per_host: 32,
            idle_timeout: Duration::from_secs(60),
            policy: DestinationPolicy::default(),
            upstreams: Vec::new(),
            own_addresses: OwnAddresses::default(),
            egress: Egress::default(),
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
    best: Arc<Pool>,
    /// HTTP/1.1 only.
    http1: Arc<Pool>,
    /// TLS in which no protocol is agreed on.
    opaque: Connector,
}

impl HttpClient {
    /// A client with these settings.
    ///
    /// # Errors
    /// A CA, certificate or key of an upstream is of no use.
    pub fn new(config: ClientConfig) -> Result<Self, ConfigError> {
        let roots = tls::machine_roots();
        let strict = ClientConfig { policy: config.policy.for_others(), ..config.clone() };
        let resolver = Resolver::default();
        let others = Self::with(strict, &roots, &resolver, None)?;
        Self::with(config, &roots, &resolver, Some(others))
    }

    fn with(
        config: ClientConfig,
        roots: &RootCertStore,
        resolver: &Resolver,
        others: Option<Self>,
    ) -> Result<Self, ConfigError> {
        let dialer = Dialer {
            policy: Arc::new(config.policy.clone()),
            own: config.own_addresses.clone(),
            timeout: config.connect_timeout,
            resolver: resolver.clone(),
            egress: Arc::new(config.egress.clone()),
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
    /// A [`ClientConnection`] in the request's extensions says whose it is; case and reason of an HTTP/1 head go through
    /// the extensions as the library has them there.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<ResponseBody>, NetError> {
        self.request(request, false).await
    }

    /// Sends a request with `Upgrade` over HTTP/1.1; `hyper::upgrade::on` works on an answer 101.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn send_upgrade(&self, request: Request<Body>) -> Result<Response<ResponseBody>, NetError> {
        self.request(request, true).await
    }

    /// A connection to a destination that the policy allows.
    ///
    /// # Errors
    /// There is none.
    pub async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, NetError> {
        self.0.dialer.dial(host, port).await
    }

    /// The same with TLS in which anything may be spoken, unless that destination is to be reached without.
    ///
    /// # Errors
    /// There is none.
    pub async fn dial_tls(&self, host: &str, port: u16) -> Result<OriginStream, NetError> {
        let host = if host.contains(':') { format!("[{}]", policy::bare(host)) } else { host.to_owned() };
        let uri = format!("https://{host}:{port}/").parse::<Uri>();
        let mut uri = uri.map_err(|error| NetError::Target { why: error.to_string() })?;
        let mut pools = &self.0.any;
        if let Some(index) = upstream::find(&self.0.upstreams, &uri) {
            pools = self.0.own_tls.get(index).and_then(Option::as_ref).unwrap_or(pools);
            uri = self.0.upstreams[index].apply(&uri).unwrap_or(uri);
        }
        Ok(pools.opaque.connect(&uri).await?.stream)
    }

    /// The client for what this connection's client asks.
    pub fn on_behalf_of(&self, client: Option<&ClientConnection>) -> &Self {
        if client.is_some_and(ClientConnection::is_remote) { self.for_others() } else { self }
    }

    /// The client for what other hosts ask of this one: it does not reach this host's loopback.
    pub fn for_others(&self) -> &Self {
        self.0.others.as_ref().unwrap_or(self)
    }

    /// The set of our own listening addresses, to be filled once they are known.
    pub fn own_addresses(&self) -> &OwnAddresses {
        &self.0.dialer.own
    }

    async fn request(&self, request: Request<Body>, http1: bool) -> Result<Response<ResponseBody>, NetError> {
        let (mut parts, body) = request.into_parts();
        let to = authority(&parts.uri)?;
        let owner = parts.extensions.get::<ClientConnection>().cloned();
        let inner = &self.on_behalf_of(owner.as_ref()).0;
        let mut pools = &inner.any;
        if let Some(index) = upstream::find(&inner.upstreams, &parts.uri) {
            pools = inner.own_tls.get(index).and_then(Option::as_ref).unwrap_or(pools);
            parts.uri = inner.upstreams[index].apply(&parts.uri).unwrap_or(parts.uri);
        }
        let authenticates = auth::is_by_connection(&parts.headers);
        let http1 = http1
            || !agree(&mut parts)
            || authenticates
            || owner.as_ref().is_some_and(ClientConnection::is_authenticated)
            || parts.extensions.get::<WholeServer>().is_some()
            // Over HTTP/2 the library does not tell of interim answers.
            || parts.headers.contains_key(EXPECT);
        let pool = if http1 { &pools.http1 } else { &pools.best };
        let repeatable = parts.method.is_idempotent() && body.is_end_stream();
        let exchange = Exchange { replay: Replay::new(body), parts, to, repeatable, head_timeout: self.0.head_timeout };
        let mut want = if repeatable { Want::Any } else { Want::Unused };
        let mut attempt = 1;
        loop {
            let failure = match pool.get(&exchange.parts.uri, want, owner.as_ref()).await? {
                Connection::H1(lease) => match exchange.over_h1(lease, want, authenticates).await {
                    Ok(response) => return Ok(response),
                    Err(failure) => failure,
                },
                Connection::H2 { sender, reused } => match exchange.over_h2(sender, reused).await {
                    Ok(response) => return Ok(response),
                    Err(failure) => {
                        if failure.again.is_some() {
                            pool.forget_h2(&exchange.parts.uri);
                        }
                        failure
                    }
                },
            };
            match failure.again {
                Some(next) if attempt < MAX_ATTEMPTS && exchange.replay.is_whole() => want = next,
                _ => return Err(failure.error),
            }
            attempt += 1;
        }
    }
}

/// A request on its way, as often as it takes.
struct Exchange {
    parts: request::Parts,
    replay: Replay,
    to: String,
    /// Whether it may be sent again though the origin may have seen it.
    repeatable: bool,
    head_timeout: Duration,
}

/// An attempt that gave no answer.
struct Failure {
    error: NetError,
    /// On what connection the request may be sent again, if it may.
    again: Option<Want>,
}

impl Exchange {
    async fn over_h1(
        &self,
        mut lease: PooledConnection,
        want: Want,
        authenticates: bool,
    ) -> Result<Response<ResponseBody>, Failure> {
        let mut parts = self.parts.clone();
        parts.version = Version::HTTP_11;
        if !parts.headers.contains_key(HOST)
            && let Some(host) = host_of(&parts.uri)
        {
            parts.headers.insert(HOST, host);
        }
        parts.uri = match (parts.extensions.get::<WholeServer>(), &lease.proxy) {
            // It writes the `*` itself.
            (_, Some(proxy)) => {
                if let Some(authorization) = &proxy.authorization {
                    parts.headers.insert(PROXY_AUTHORIZATION, authorization.clone());
                }
                parts.uri
            }
            (Some(WholeServer), None) => Uri::from_static("*"),
            (None, None) => origin_form(&parts.uri),
        };
        let sent = lease.send(Request::from_parts(parts, self.replay.attempt()));
        let mut response = match self.head(sent).await {
            Ok(response) => response,
            Err(error) => {
                let unseen = lease.reused && !lease.activity().has_written();
                let unanswered = lease.reused && !lease.activity().has_read() && self.repeatable;
                let again = match &error {
                    Some(error) if error.is_parse_too_large() && want != Want::Roomy && self.repeatable => {
                        Some(Want::Roomy)
                    }
                    Some(_) if unseen || unanswered => Some(Want::Unused),
                    _ => None,
                };
                return Err(Failure { error: self.error(error), again });
            }
        };
        if let Some(proxy) =
            lease.proxy.as_ref().filter(|_| response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED)
        {
            // It is we whom it asks, and not our client.
            let why = "it asks for a user name and a password: set proxy.egress".into();
            let error = NetError::Egress { proxy: format!("{proxy:?}"), to: self.to.clone(), why };
            return Err(Failure { error, again: None });
        }
        if authenticates || auth::is_session(response.headers()) {
            lease.bind();
        }
        if self.parts.method == Method::HEAD
            || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        {
            lease.rest();
        }
        settle_length(response.headers_mut());
        let lease = (response.status() != StatusCode::SWITCHING_PROTOCOLS).then_some(lease);
        Ok(response.map(|body| ResponseBody::new(body, lease, self.replay.clone())))
    }

    async fn over_h2(
        &self,
        mut sender: hyper::client::conn::http2::SendRequest<super::replay::RequestBody>,
        reused: bool,
    ) -> Result<Response<ResponseBody>, Failure> {
        let mut parts = self.parts.clone();
        parts.version = Version::HTTP_2;
        // It is in the URI, spelled alike.
        parts.headers.remove(HOST);
        let sent = sender.send_request(Request::from_parts(parts, self.replay.attempt()));
        match self.head(sent).await {
            Ok(mut response) => {
                settle_length(response.headers_mut());
                Ok(response.map(|body| ResponseBody::new(body, None, self.replay.clone())))
            }
            Err(error) => {
                let again = error
                    .as_ref()
                    .is_some_and(|error| is_unprocessed(error) || (reused && self.repeatable && !is_reset(error)));
                Err(Failure { error: self.error(error), again: again.then_some(Want::Unused) })
            }
        }
    }

    /// Awaits the head of the answer as long as something moves; `None` is for when nothing did for too long.
    async fn head(
        &self,
        answer: impl Future<Output = hyper::Result<Response<Incoming>>>,
    ) -> Result<Response<Incoming>, Option<hyper::Error>> {
        let mut answer = std::pin::pin!(answer);
        let mut seen = self.replay.taken();
        loop {
            match timeout(self.head_timeout, &mut answer).await {
                Ok(answer) => return answer.map_err(Some),
                // A long upload is no silence.
                Err(_) => match self.replay.taken() {
                    now if now > seen => seen = now,
                    _ => return Err(None),
                },
            }
        }
    }

    fn error(&self, error: Option<hyper::Error>) -> NetError {
        let to = self.to.clone();
        error.map_or(NetError::HeadTimeout { to }, |error| NetError::find(&self.to, &error))
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
        let pool = |tls| Pool::new(Connector::new(dialer.clone(), tls), config.idle_timeout, config.idle_per_host);
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let http1 = pool(tls.clone());
        tls.alpn_protocols.insert(0, b"h2".to_vec());
        let best = pool(tls.clone());
        tls.alpn_protocols.clear();
        Ok(Self { best, http1, opaque: Connector::new(dialer.clone(), tls) })
    }
}

/// Whether the origin says that it has done nothing about a request, or nothing of it was ever sent.
fn is_unprocessed(error: &hyper::Error) -> bool {
    error.is_canceled()
        || h2_error(error).is_some_and(|error| {
            error.reason() == Some(h2::Reason::REFUSED_STREAM) || (error.is_go_away() && error.is_remote())
        })
}

/// Whether the origin has refused this one request.
fn is_reset(error: &hyper::Error) -> bool {
    h2_error(error).is_some_and(h2::Error::is_reset)
}

fn h2_error(error: &hyper::Error) -> Option<&h2::Error> {
    std::error::Error::source(error)?.downcast_ref()
}

/// Leaves one length that is true: none where the answer came in chunks, and one line of it (RFC 9112, 6.3).
fn settle_length(headers: &mut HeaderMap) {
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    } else if let Some(length) = headers.get(CONTENT_LENGTH) {
        // The library has seen to it that all of them say the same.
        let first = length.as_bytes().split(|byte| *byte == b',').next().unwrap_or_default().trim_ascii();
        if (first.len() != length.len() || headers.get_all(CONTENT_LENGTH).iter().count() > 1)
            && let Ok(first) = HeaderValue::from_bytes(first)
        {
            headers.insert(CONTENT_LENGTH, first);
        }
    }
}

/// The path and query of an absolute URI.
fn origin_form(uri: &Uri) -> Uri {
    uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")).into()
}

/// The `Host` that an absolute URI means.
fn host_of(uri: &Uri) -> Option<HeaderValue> {
    let host = uri.host()?;
    match uri.port_u16().filter(|port| Some(*port) != uri.scheme().and_then(upstream::default_port)) {
        Some(port) => HeaderValue::try_from(format!("{host}:{port}")).ok(),
        None => HeaderValue::try_from(host).ok(),
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

#[cfg(test)]
mod tests;
