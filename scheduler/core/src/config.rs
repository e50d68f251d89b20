//! The machine's limits and patience.

use std::time::Duration;

/// The limits and patience of a scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Whether only hosts of the fleet are heard, so that what they say that they hold needs no comparison.
    pub members_only: bool,
    /// How many parents a peer is offered at most.
    pub max_parents: usize,
    /// How many children a host serves in one task at most; over all tasks its own upload slots bound them. They wait
    /// their turn at its uplink, so their number costs little; it bounds what a host keeps track of.
    pub children_per_task: usize,
    /// How many leases of one task there are at most: so many hosts read different pieces from the source at a time.
    pub max_leases: usize,
    /// A lease of so many bytes or less is not cut to let others read at the same time, unless one waits for a piece of it.
    pub uncut_lease: u64,
    /// How long the holder of a lease may be silent before the lease passes on.
    pub lease_time: Duration,
    /// The same for a peer of the plain protocol, which reports whole pieces only. A piece's length at
    /// [`Config::slow_source`] is added once the geometry is known.
    pub plain_lease_time: Duration,
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
    /// How long a parent is not offered again to a child that it did not serve; twice as long when it fails again, and so
    /// on.
    pub failure_rest: Duration,
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
            members_only: false,
            max_parents: 10,
            children_per_task: 24,
            max_leases: 8,
            uncut_lease: 48 << 20,
            lease_time: Duration::from_secs(3),
            plain_lease_time: Duration::from_secs(30),
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
            failure_rest: Duration::from_secs(2),
            max_failed: 1024,
        }
    }
}
