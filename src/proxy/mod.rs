//! The proxy: from an accepted connection to the answer.
//!
//! # The way of a request
//! `listener` accepts and `detect`s what is spoken; the `gate` hands over one well-framed request at a time (`framing`);
//! the `handler` has `route` decide, which is pure, and does what it says: `forward` passes on, `tunnel` carries
//! `CONNECT` blind or looks inside and serves HTTP there by the same handler, `task` answers from the peer-to-peer
//! network. `respond` follows the answer to its end, and `access` writes it down. A `fault` is what is answered when we
//! cannot.
//!
//! # Invariants
//! - **Policy is decided in one place**, `route::classify`; nothing else looks at a request to choose its way.
//! - **Never worse than direct**: whatever fails on our side before the first byte is forwarded as it came.
//! - **No clean end of a broken answer**: HTTP/1 connections are reset, HTTP/2 streams too.
//! - **Nothing secret is written**: no query, user, or header value reaches a log.

mod access;
mod auth;
mod authorize;
mod budget;
mod bypass;
mod conditional;
mod config;
mod detect;
mod fault;
mod first_request;
mod forward;
mod framing;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod gate;
mod handler;
mod headers;
mod limits;
mod listener;
mod manifest;
mod metrics;
mod page;
mod pipe;
mod prefixed;
mod respond;
mod route;
mod rules;
mod task;
#[cfg(test)]
mod tests;
mod token;
mod transparent;
mod tunnel;

use std::sync::Arc;
use std::time::Duration;

use damselfly_runtime::Watch;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

pub use auth::BasicAuth;
pub use config::{Config, PrivateContent};
pub use limits::{PATH as LIMITS_PATH, ShownLimit};
pub use metrics::Metrics;
pub use page::HOST as PAGE_HOST;
pub use rules::{Rule, SUFFIXES};

use crate::limit::Limiter;
use crate::mitm::{Interceptor, Policy};
use crate::net::{HttpClient, Upstream};
use crate::p2p::Tasks;
use crate::registry::{Mirror, Registry, TokenConfig, Tokens};
use authorize::Authorizer;
use budget::Budget;
use first_request::FirstRequests;
use handler::Inner;
use manifest::Manifests;
use route::Routes;

/// What the proxy stands on.
pub struct Parts {
    /// How origins are asked.
    pub http: HttpClient,
    /// The tasks of this host.
    pub tasks: Tasks,
    /// Which hosts' TLS is intercepted.
    pub policy: Policy,
    /// How it is intercepted.
    pub interceptor: Interceptor,
    /// Which registry a mirror request means.
    pub mirror: Mirror,
    /// Origins that are reached in their own way.
    pub upstreams: Vec<Upstream>,
    /// When to stop.
    pub drain: Watch,
    /// How fast bytes may be passed on.
    pub limiter: Limiter,
    /// What is counted.
    pub metrics: Metrics,
}

/// Registries whose challenge is kept, and for how long: what a registry asks of its callers hardly changes.
const MAX_CHALLENGES: u64 = 256;
const CHALLENGE_TTL: Duration = Duration::from_secs(300);

/// The proxy. Clones are the same proxy.
#[derive(Clone)]
pub struct Proxy(Arc<Inner>);

impl Proxy {
    /// A proxy that listens nowhere yet.
    pub fn new(config: Config, parts: Parts) -> Self {
        let Parts { http, tasks, policy, interceptor, mirror, upstreams, drain, limiter, metrics } = parts;
        let slots = Arc::new(Semaphore::new(config.max_connections.min(Semaphore::MAX_PERMITS)));
        let budget = Budget::new(config.in_flight);
        let tokens =
            TokenConfig { per_realm: config.token_requests, reuse: config.verdict_ttl, ..TokenConfig::default() };
        let tokens = Tokens::new(tokens, metrics.tokens.clone());
        let authorizer = Authorizer::new(config.verdict_ttl, metrics.clone());
        let challenges =
            moka::future::Cache::builder().max_capacity(MAX_CHALLENGES).time_to_live(CHALLENGE_TTL).build();
        let routes = Routes { config, policy, mirror, upstreams };
        let manifests = Manifests::new();
        Self(Arc::new(Inner {
            routes,
            http,
            tasks,
            authorizer,
            first_requests: FirstRequests::default(),
            tokens,
            manifests,
            challenges,
            interceptor,
            drain,
            limiter,
            metrics: Arc::new(metrics),
            slots,
            budget,
        }))
    }

    /// Serves clients of the proxy and mirror port until the drain closes. Connections in hand go on after that; the
    /// drain's guards know of them.
    pub async fn serve(self, listener: TcpListener) {
        self.0.serve_tcp(listener, None).await;
    }

    /// The same for a port that is a mirror of one registry: all that is addressed to it is meant for that.
    pub async fn serve_mirror(self, listener: TcpListener, registry: Registry) {
        self.0.serve_tcp(listener, Some(Arc::new(registry))).await;
    }

    /// The same for connections that the firewall redirects here.
    pub async fn serve_transparent(self, listener: TcpListener) {
        self.0.serve_transparent(listener).await;
    }

    /// The same for the local API's socket, whose clients speak HTTP as to a proxy and need no password.
    pub async fn serve_unix(self, listener: UnixListener) {
        self.0.serve_unix(listener).await;
    }
}
