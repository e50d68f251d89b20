//! The proxy's settings, valid by type.

use std::time::Duration;

use super::auth::BasicAuth;
use super::rules::{Rule, SUFFIXES};

const MIB: u64 = 1024 * 1024;

/// The proxy's settings. Where it listens is the composition root's business.
#[derive(Clone, Debug)]
pub struct Config {
    /// This proxy's name in `Via`, by which it knows requests that it sent itself. Unique per process.
    pub id: String,
    /// `proxy.rules`: the first one whose expression matches holds.
    pub rules: Vec<Rule>,
    /// `proxy.p2p.suffixes`: endings of paths that are asked for by range first, because they look like large files.
    pub suffixes: Vec<String>,
    /// `proxy.p2p.minSize`: what is smaller is not shared, unless a rule or the client asks for it.
    pub min_size: u64,
    /// `proxy.privateContent`: what is done with content that comes with credentials.
    pub private_content: PrivateContent,
    /// `proxy.authorization.verdictTTL`: how long a registry's yes is good for the same question.
    pub verdict_ttl: Duration,
    /// `proxy.authorization.concurrentTokenRequests`: questions at a time to one authorisation service.
    pub token_requests: usize,
    /// `proxy.authorization.staleIfError`: how old a manifest may be that is given when its registry fails.
    pub stale_if_error: Duration,
    /// False with `proxy.disableBackToSource`: a task's bytes come from peers or not at all.
    pub use_source: bool,
    /// `proxy.server.basicAuth`: the password that clients of the TCP ports must name.
    pub basic_auth: Option<BasicAuth>,
    /// Ports that nobody may `CONNECT` to. Only mail by default: what a stolen proxy is used for.
    pub denied_ports: Vec<u16>,
    /// Connections at a time; more of them wait to be accepted.
    pub max_connections: usize,
    /// Concurrent requests on one HTTP/2 connection.
    pub max_streams: u32,
    /// How long a fresh connection may take to say what it speaks.
    pub first_byte_from_client: Duration,
    /// Bytes of answers that all connections together hold for clients that are slow to take them.
    pub in_flight: usize,
    /// How long a connection may be idle between requests and take to send a request's head, together.
    pub head_timeout: Duration,
    /// How long a client may stay silent behind a `CONNECT` to an intercepted host before it is taken for one that waits
    /// for the server to speak first.
    pub detect_timeout: Duration,
    /// How long a task may take to give its first byte; then the origin is asked directly.
    pub first_byte: Duration,
    /// How long nothing may move in a body.
    pub idle: Duration,
    /// `proxy.tunnelTimeout`: how long nothing may move in a tunnel or an upgraded connection; `None`: as long as both
    /// ends live, which the kernel asks them.
    pub tunnel_idle: Option<Duration>,
}

/// What is done with content that comes with credentials, or over an upstream with a client certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrivateContent {
    /// Stored, and shared with the fleet; each host asks the registry for each of its own callers.
    #[default]
    Share,
    /// Stored on this host for its own callers, likewise; no other host is told of it.
    Host,
    /// Passed through.
    Off,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            id: format!("damselfly-{:08x}", fastrand::u32(..)),
            rules: Vec::new(),
            suffixes: SUFFIXES.iter().map(|&suffix| suffix.to_owned()).collect(),
            min_size: 8 * MIB,
            private_content: PrivateContent::default(),
            verdict_ttl: Duration::from_secs(60),
            token_requests: 4,
            stale_if_error: Duration::ZERO,
            use_source: true,
            basic_auth: None,
            denied_ports: vec![25],
            max_connections: 16 * 1024,
            max_streams: 256,
            first_byte_from_client: Duration::from_secs(10),
            in_flight: 64 * MIB as usize,
            head_timeout: Duration::from_secs(75),
            detect_timeout: Duration::from_secs(1),
            first_byte: Duration::from_secs(30),
            idle: Duration::from_secs(15 * 60),
            tunnel_idle: None,
        }
    }
}
