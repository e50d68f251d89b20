//! Connections to origins with the same TLS settings, and which request may have which of them.
//!
//! A connection is in one place at a time: idle here, bound to one client's connection ([`ClientConnection`]), or in the
//! [`ResponseBody`] of the answer that it carries. It comes back when that answer has been read to its end.
//!
//! **What one client has authenticated no other client gets**: a connection on which NTLM or Negotiate was spoken stays
//! with the client's connection that spoke it. **What an origin sends behind an answer reaches nobody else**: see
//! [`super::io`]; and a connection whose last answer had no body by rule (to HEAD; 204, 304) rests a moment before
//! another client gets it, because a body that comes all the same would come then.

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::Instant;

use super::connect::{Connected, Connector};
use super::egress::EgressProxy;
use super::error::NetError;
use super::io::{Activity, OriginIo};
use super::replay::{Replay, RequestBody};
use super::upstream::port_of;

/// Flow-control window of one HTTP/2 answer: enough for 1 Gbit/s at 32 ms.
const H2_STREAM_WINDOW: u32 = 4 << 20;
/// Window of one HTTP/2 connection, shared by its answers.
const H2_CONNECTION_WINDOW: u32 = 16 << 20;
/// How often a silent HTTP/2 connection is asked whether it lives, and how long it may take to say so.
const H2_PING: Duration = Duration::from_secs(20);
/// Header lines of an answer, as a rule and at most. An answer with more of them than the rule is asked for again.
const USUAL_HEADERS: usize = 256;
/// Bytes of an answer that are read at once, and that wait while its client is slow.
const USUAL_BUFFER: usize = 64 * 1024;
const MAX_HEADERS: usize = 8 * 1024;
/// Bytes of an HTTP/2 answer's header lines, as many as HTTP/1 clients usually take.
const MAX_HEADER_BYTES: u32 = 256 * 1024;
/// How long a connection rests behind an answer without a body before another client gets it.
const REST: Duration = Duration::from_millis(100);

/// A client's connection to us, as far as it matters to origins: where it may go, and which connections to origins are
/// its own. Clones are the same.
#[derive(Clone, Default)]
pub struct ClientConnection(Arc<Bound>);

#[derive(Default)]
struct Bound {
    /// Whether it comes from another host.
    remote: bool,
    any: AtomicBool,
    connections: Mutex<HashMap<Key, Vec<H1>>>,
}

impl ClientConnection {
    /// One that comes from another host: this host's loopback is not for it.
    pub fn from_another_host() -> Self {
        Self(Arc::new(Bound { remote: true, ..Bound::default() }))
    }

    /// Whether it comes from another host.
    pub fn is_remote(&self) -> bool {
        self.0.remote
    }

    /// Whether an origin knows this client by its connection: then what it answers is for this client only.
    pub fn is_authenticated(&self) -> bool {
        self.0.any.load(Ordering::Acquire)
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<Key, Vec<H1>>> {
        self.0.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ClientConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientConnection").field("authenticated", &self.is_authenticated()).finish()
    }
}

/// Where a connection leads: scheme, host, port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key(bool, String, u16);

impl Key {
    fn of(uri: &Uri) -> Option<Self> {
        Some(Self(uri.scheme_str() == Some("https"), uri.host()?.to_ascii_lowercase(), port_of(uri)?))
    }
}

/// An HTTP/1 connection between two requests.
struct H1 {
    sender: http1::SendRequest<RequestBody>,
    activity: Arc<Activity>,
    proxy: Option<EgressProxy>,
    since: Instant,
    /// Until when only the client that it last answered may have it.
    rests: Option<(Instant, Weak<Bound>)>,
}

type H2 = http2::SendRequest<RequestBody>;

/// A connection that a request is sent on.
pub(super) enum Connection {
    H1(PooledConnection),
    H2 { sender: H2, reused: bool },
}

/// What a request may be sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// Anything.
    Any,
    /// HTTP/2, or a connection that was not used before.
    Unused,
    /// A connection that was not used before and takes very many header lines.
    Roomy,
}

/// An HTTP/1 connection in use.
pub(super) struct PooledConnection {
    sender: http1::SendRequest<RequestBody>,
    activity: Arc<Activity>,
    /// The proxy at the other end, which wants absolute URLs.
    pub(super) proxy: Option<EgressProxy>,
    pub(super) reused: bool,
    key: Key,
    pool: Weak<Pool>,
    owner: Option<ClientConnection>,
    /// Whether it stays with its owner.
    bound: bool,
    /// Whether it is to rest behind the current answer.
    rests: bool,
}

/// Connections with the same TLS settings and protocols.
pub(super) struct Pool {
    connector: Connector,
    idle_timeout: Duration,
    idle_per_host: usize,
    idle: Mutex<HashMap<Key, Idle>>,
    sweeping: AtomicBool,
}

#[derive(Default)]
struct Idle {
    h1: Vec<H1>,
    h2: Option<H2>,
}

impl Pool {
    pub(super) fn new(connector: Connector, idle_timeout: Duration, idle_per_host: usize) -> Arc<Self> {
        Arc::new(Self {
            connector,
            idle_timeout,
            idle_per_host,
            idle: Mutex::default(),
            sweeping: AtomicBool::new(false),
        })
    }

    fn idle(&self) -> MutexGuard<'_, HashMap<Key, Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection to where `uri` leads.
    pub(super) async fn get(
        self: &Arc<Self>,
        uri: &Uri,
        want: Want,
        owner: Option<&ClientConnection>,
    ) -> Result<Connection, NetError> {
        let key = Key::of(uri).ok_or_else(|| NetError::Target { why: "it is neither http nor https".into() })?;
        if let Some(bound) = owner.filter(|_| want != Want::Roomy).and_then(|owner| take_bound(owner, &key)) {
            return Ok(Connection::H1(self.lease(bound, key, owner, true, true)));
        }
        if want != Want::Roomy
            && let Some(found) = self.take(&key, want, owner)
        {
            return Ok(found);
        }
        let Connected { stream, h2, proxy } = Box::pin(self.connector.connect(uri)).await?;
        let activity = Arc::new(Activity::default());
        let io = TokioIo::new(OriginIo::new(stream, activity.clone()));
        let broken = |error: hyper::Error| NetError::find(&format!("{}:{}", key.1, key.2), &error);
        if h2 {
            let (sender, connection) = h2_builder().handshake(io).await.map_err(broken)?;
            tokio::spawn(connection);
            self.idle().entry(key).or_default().h2 = Some(sender.clone());
            return Ok(Connection::H2 { sender, reused: false });
        }
        let (sender, connection) = h1_builder(want).handshake(io).await.map_err(broken)?;
        tokio::spawn(connection.with_upgrades());
        let fresh = H1 { sender, activity, proxy, since: Instant::now(), rests: None };
        Ok(Connection::H1(self.lease(fresh, key, owner, false, want == Want::Roomy)))
    }

    /// `private`: never for the shared pool.
    fn lease(
        self: &Arc<Self>,
        h1: H1,
        key: Key,
        owner: Option<&ClientConnection>,
        reused: bool,
        private: bool,
    ) -> PooledConnection {
        PooledConnection {
            sender: h1.sender,
            activity: h1.activity,
            proxy: h1.proxy,
            reused,
            key,
            pool: Arc::downgrade(self),
            owner: owner.cloned(),
            bound: private,
            rests: false,
        }
    }

    /// A connection that is open already.
    fn take(self: &Arc<Self>, key: &Key, want: Want, owner: Option<&ClientConnection>) -> Option<Connection> {
        let mut all = self.idle();
        let idle = all.get_mut(key)?;
        idle.h2.take_if(|sender| sender.is_closed());
        if let Some(sender) = &idle.h2 {
            return Some(Connection::H2 { sender: sender.clone(), reused: true });
        }
        if want != Want::Any {
            return None;
        }
        let now = Instant::now();
        idle.h1.retain(|h1| h1.sender.is_ready() && now < h1.since + self.idle_timeout);
        // The last one that was used is the likeliest to be open still.
        let at = idle.h1.iter().rposition(|h1| h1.may_serve(owner, now))?;
        let h1 = idle.h1.remove(at);
        drop(all);
        Some(Connection::H1(self.lease(h1, key.clone(), owner, true, false)))
    }

    /// Forgets an HTTP/2 connection that takes no more requests.
    pub(super) fn forget_h2(&self, uri: &Uri) {
        if let Some(key) = Key::of(uri)
            && let Some(idle) = self.idle().get_mut(&key)
        {
            idle.h2 = None;
        }
    }

    fn put(self: &Arc<Self>, key: Key, h1: H1) {
        {
            let mut all = self.idle();
            let idle = all.entry(key).or_default();
            if idle.h1.len() >= self.idle_per_host {
                idle.h1.remove(0);
            }
            idle.h1.push(h1);
        }
        if !self.sweeping.swap(true, Ordering::AcqRel) {
            tokio::spawn(sweep(Arc::downgrade(self), self.idle_timeout));
        }
    }
}

/// Closes connections that nobody has wanted for long; ends when there are none left.
async fn sweep(pool: Weak<Pool>, idle_timeout: Duration) {
    loop {
        tokio::time::sleep(idle_timeout / 2).await;
        let Some(pool) = pool.upgrade() else { return };
        let now = Instant::now();
        let mut all = pool.idle();
        all.retain(|_, idle| {
            idle.h1.retain(|h1| !h1.sender.is_closed() && now < h1.since + idle_timeout);
            idle.h2.take_if(|sender| sender.is_closed());
            !idle.h1.is_empty() || idle.h2.is_some()
        });
        if all.is_empty() {
            pool.sweeping.store(false, Ordering::Release);
            return;
        }
    }
}

/// The client's own connection to there, if it has one that lives.
fn take_bound(owner: &ClientConnection, key: &Key) -> Option<H1> {
    if !owner.is_authenticated() {
        return None;
    }
    let mut all = owner.connections();
    let bound = all.get_mut(key)?;
    bound.retain(|h1| h1.sender.is_ready());
    bound.pop()
}

impl H1 {
    fn may_serve(&self, owner: Option<&ClientConnection>, now: Instant) -> bool {
        self.rests.as_ref().is_none_or(|(until, last)| {
            *until <= now || owner.is_some_and(|owner| std::ptr::eq(Arc::as_ptr(&owner.0), last.as_ptr()))
        })
    }
}

fn h1_builder(want: Want) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .max_headers(if want == Want::Roomy { MAX_HEADERS } else { USUAL_HEADERS })
        .preserve_header_case(true)
        .title_case_headers(true)
        // Origins that clients understand, we understand; the client gets it written properly.
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_spaces_after_header_name_in_responses(true)
        .ignore_invalid_headers_in_responses(true);
    // What can be asked again gets a connection with room if its answer's head turns out to need it.
    if want == Want::Any {
        builder.max_buf_size(USUAL_BUFFER);
    }
    builder
}

fn h2_builder() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEADER_BYTES)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .keep_alive_interval(H2_PING)
        .keep_alive_timeout(H2_PING);
    builder
}

impl PooledConnection {
    /// Begins a request.
    pub(super) fn send(
        &mut self,
        request: http::Request<RequestBody>,
    ) -> impl Future<Output = hyper::Result<http::Response<Incoming>>> + use<> {
        self.activity.begin(self.reused);
        self.sender.send_request(request)
    }

    pub(super) fn activity(&self) -> &Activity {
        &self.activity
    }

    /// Keeps the connection with the client that has it, for good.
    pub(super) fn bind(&mut self) {
        self.bound = true;
        if let Some(owner) = &self.owner {
            owner.0.any.store(true, Ordering::Release);
        }
    }

    /// Has the connection rest behind the current answer.
    pub(super) const fn rest(&mut self) {
        self.rests = true;
    }

    /// Gives the connection back; the answer on it has ended.
    fn give_back(mut self) {
        if self.sender.is_ready() {
            return self.put();
        }
        // The library may have the last bytes of the exchange still before it.
        if !self.sender.is_closed() {
            tokio::spawn(async move {
                if self.sender.ready().await.is_ok() {
                    self.put();
                }
            });
        }
    }

    fn put(self) {
        let since = Instant::now();
        let owner = self.owner.as_ref();
        let rests = self.rests.then(|| (since + REST, owner.map_or_else(Weak::new, |o| Arc::downgrade(&o.0))));
        let h1 = H1 { sender: self.sender, activity: self.activity, proxy: self.proxy, since, rests };
        match (self.bound, owner, self.pool.upgrade()) {
            // One whose client cannot be told is nobody's.
            (true, Some(owner), _) if owner.is_authenticated() => {
                owner.connections().entry(self.key).or_default().push(h1);
            }
            (false, _, Some(pool)) => pool.put(self.key, h1),
            _ => {}
        }
    }
}

/// The body of an origin's answer. Its connection goes back when it has ended.
pub struct ResponseBody {
    body: Incoming,
    lease: Option<PooledConnection>,
    /// The request's body, which may not have been wanted.
    request: Option<Replay>,
}

impl ResponseBody {
    pub(super) fn new(body: Incoming, lease: Option<PooledConnection>, request: Replay) -> Self {
        let mut body = Self { body, lease, request: Some(request) };
        if body.body.is_end_stream() {
            body.ended();
        }
        body
    }

    /// The answer is complete.
    fn ended(&mut self) {
        let unwanted = self.request.take().is_some_and(|request| request.abandon_untouched());
        if let Some(lease) = self.lease.take().filter(|_| !unwanted) {
            lease.give_back();
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let Some(request) = &self.request {
            request.abandon_untouched();
        }
    }
}

/// A body on a connection that is not the pool's.
impl From<Incoming> for ResponseBody {
    fn from(body: Incoming) -> Self {
        Self { body, lease: None, request: None }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            None => self.ended(),
            Some(Ok(_)) if self.body.is_end_stream() => self.ended(),
            Some(Ok(_)) => {}
            Some(Err(_)) => self.lease = None,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}
