//! The machine's limits and patience.

use std::time::Duration;

/// The limits and patience of a scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How many parents a peer is offered at most.
    pub max_parents: usize,
    /// How many children a host serves in one task; over all tasks its own upload slots bound them. Since no peer is its
    /// own ancestor, those near the source depend on a share of one link, and the whole swarm goes at its rate: measured
    /// with a hundred hosts, all are done in 2.3 times the least time with one child or two, in 3.1 with three, 4.1 with
    /// four, 6.9 with eight. Two outlive the loss of one.
    pub children_per_task: usize,
    /// How long a peer may read from the source without a sign of progress before the lease passes on. A piece's
    /// length at [`Config::slow_source`] is added once the geometry is known.
    pub lease_time: Duration,
    /// Bytes in a second below which a source counts as dead rather than slow.
    pub slow_source: u64,
    /// How long a triggered seed has to register.
    pub seed_time: Duration,
    /// How many seeds are tried for a task before a normal peer is sent to the source.
    pub seed_tries: usize,
    /// How often hosts announce themselves.
    pub announce_interval: Duration,
    /// After so many announcements missed a host is dropped.
    pub missed_announcements: u32,
    /// How long a host that served wrong bytes is not offered.
    pub isolation: Duration,
    /// How many hosts must report wrong bytes before a host is isolated for every task.
    pub isolate_after: usize,
    /// How many hosts must report that a host does not answer before it is not offered until it is heard of.
    pub silent_after: usize,
    /// How many hosts a peer can accuse before its word isolates nobody any more.
    pub max_accused: usize,
    /// The least wait between two offers to a peer that did not ask for the second.
    pub improve_interval: Duration,
    /// How long new proofs are gathered before they are sent, for a small task.
    pub proof_delay: Duration,
    /// What every open peer of the task adds to that.
    pub proof_delay_per_peer: Duration,
    /// How many answers a peer of the plain protocol gets in one conversation.
    pub plain_answers: u32,
    /// The most tasks known. The one that was idle longest is forgotten for a new one.
    pub max_tasks: usize,
    /// The most peers known, over all tasks.
    pub max_peers: usize,
    /// The most hosts known. The one that announced itself longest ago is forgotten for a new one.
    pub max_hosts: usize,
    /// The most parents that a peer's failures are remembered of.
    pub max_failed: usize,
}

impl Config {
    /// How long a host is known after its last announcement.
    pub fn host_time(&self) -> Duration {
        self.announce_interval.saturating_mul(self.missed_announcements)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_parents: 4,
            children_per_task: 2,
            lease_time: Duration::from_secs(30),
            slow_source: 256 * 1024,
            seed_time: Duration::from_secs(5),
            seed_tries: 2,
            announce_interval: Duration::from_secs(300),
            missed_announcements: 3,
            isolation: Duration::from_secs(600),
            isolate_after: 3,
            silent_after: 3,
            max_accused: 3,
            improve_interval: Duration::from_secs(2),
            proof_delay: Duration::from_millis(10),
            proof_delay_per_peer: Duration::from_micros(50),
            plain_answers: 5,
            max_tasks: 100_000,
            max_peers: 1_000_000,
            max_hosts: 100_000,
            max_failed: 1024,
        }
    }
}
