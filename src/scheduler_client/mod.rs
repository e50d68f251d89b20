//! The daemon's side of the scheduler: finding it, announcing to it, conversing about a task.
//!
//! # The data's way
//! A download [registers](SchedulerClient::register) and gets a [`Conversation`]: nouns in, nouns out. Over gRPC a pump
//! per conversation turns them into `AnnouncePeer` messages and back and keeps the plain protocol's ceremony. The
//! [`Announcer`] tells the schedulers that this host is there, what it holds, and when it leaves.
//!
//! # Invariants
//! - **A lost scheduler is an event, not an error**: the conversation's answers close, and the download goes on alone.
//! - Every wait has an end: connecting, headers, keep-alive, the end of a conversation. Every queue is bounded.
//! - A task's peers meet at the same scheduler as long as it answers; see [`ring`].

mod announcer;
#[cfg(test)]
mod conformance;
mod discovery;
mod embedded;
mod grpc;
mod pump;
mod ring;
mod scheduler;

use std::time::Duration;

use async_trait::async_trait;
use damselfly_core::HostId;
use damselfly_core::swarm::{Answer, Holdings, HostInfo, Registration, Report};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};

pub use announcer::{Announcer, Inventory};
pub use damselfly_api::member::Membership;
pub use damselfly_api::token::ShowToken;
pub use discovery::Discovery;
pub use embedded::Embedded;
pub use grpc::GrpcSchedulers;

/// How many reports or answers of one conversation wait to be taken.
pub const QUEUE: usize = 64;

/// No scheduler can be spoken to; why, in one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no scheduler: {0}")]
pub struct SchedulerLost(pub String);

/// An open conversation about one task.
///
/// It ends with [`Report::Finished`] or [`Report::Failed`]. Where the answers close before that was sent, the scheduler
/// is lost. Dropping it without them says that the peer is gone.
#[derive(Debug)]
pub struct Conversation {
    /// To the scheduler.
    pub reports: mpsc::Sender<Report>,
    /// From the scheduler.
    pub answers: mpsc::Receiver<Answer>,
}

/// A scheduler, wherever it is.
#[async_trait]
pub trait SchedulerClient: Send + Sync {
    /// Registers a peer.
    async fn register(&self, registration: Registration) -> Result<Conversation, SchedulerLost>;

    /// Says that this host is there.
    async fn announce_host(&self, host: &HostInfo) -> Result<(), SchedulerLost>;

    /// Says what this host holds: everything to those that do not know it, changes to those that do.
    async fn announce_holdings(&self, holdings: Holdings) -> Result<(), SchedulerLost>;

    /// Whether a scheduler that can be spoken to does not know what this host holds.
    fn wants_holdings(&self) -> bool;

    /// Says that this host leaves.
    async fn leave(&self, host: &HostId) -> Result<(), SchedulerLost>;

    /// Whether other hosts ask it too, so that it may know of somebody who holds what is wanted here.
    fn is_shared(&self) -> bool {
        true
    }

    /// Changes when a scheduler may have forgotten this host: it is to be announced again.
    fn forgotten(&self) -> watch::Receiver<u64> {
        watch::Sender::new(0).subscribe()
    }
}

/// Patience with schedulers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How often the host announces itself.
    pub announce_interval: Duration,
    /// How long a connection may take to come about.
    pub connect_timeout: Duration,
    /// How long the head of an answer may take, and the whole answer where it is a single message.
    pub head_timeout: Duration,
    /// After so much silence a connection in use is asked for a sign of life.
    pub keepalive_interval: Duration,
    /// How long that sign may take.
    pub keepalive_timeout: Duration,
    /// How long a scheduler that failed is left alone at first; doubles with every failure.
    pub backoff_least: Duration,
    /// How long it is left alone at most.
    pub backoff_most: Duration,
    /// The fleet's token, shown with every call.
    pub token: ShowToken,
    /// What is shown to schedulers, which have to be members too.
    pub membership: Option<Membership>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            announce_interval: Duration::from_secs(300),
            connect_timeout: Duration::from_secs(3),
            head_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(3),
            backoff_least: Duration::from_secs(1),
            backoff_most: Duration::from_secs(10),
            token: ShowToken::default(),
            membership: None,
        }
    }
}

/// What the scheduler client counts. Clones share their values.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    registered: Counter,
    lost: Counter,
    failed: Counter,
}

impl Metrics {
    /// Makes them visible.
    pub fn register(&self, registry: &mut Registry) {
        let mut count = |name: &str, help: &str, counter: &Counter| {
            registry.register(format!("dragonfly_client_{name}"), help, counter.clone());
        };
        count("scheduler_registrations", "Conversations opened with a scheduler", &self.registered);
        count("scheduler_conversations_lost", "Conversations that broke off", &self.lost);
        count("scheduler_failures", "Calls that a scheduler did not answer", &self.failed);
    }
}
