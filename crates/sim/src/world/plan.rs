//! What is simulated, what happens in it, and what came out.

use std::cmp::Ordering;
use std::time::Duration;

use damselfly_core::swarm::{Answer, PieceFault};
use damselfly_core::{Geometry, PeerId, PieceNumber};
use damselfly_download as download;
use damselfly_scheduler_core as scheduler;

use crate::net::Due;

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where every choice comes from.
    pub seed: u64,
    /// How many hosts.
    pub hosts: usize,
    /// How the content is cut.
    pub geometry: Geometry,
    /// How many children a host serves at once.
    pub slots: u32,
    /// How many pieces a host sends at a time.
    pub uploads: u32,
    /// Bytes in a second of every host's link, each way.
    pub link: f64,
    /// Bytes in a second of the origin.
    pub origin: f64,
    /// Bytes in a second that the origin gives one stream at most.
    pub origin_each: f64,
    /// All hosts begin within this time.
    pub arrivals: Duration,
    /// The longest that a message takes.
    pub delay: Duration,
    /// How many hosts want something else than to read everything, in a hundred.
    pub odd: u32,
    /// How many hosts do not know the length before somebody tells them (a blob, a bare digest), in a hundred.
    pub blind: u32,
    /// The limits and patience of every download, and of the scheduler.
    pub download: download::Config,
    /// The same of the scheduler.
    pub scheduler: scheduler::Config,
    /// How many hosts come with an answer of the origin that is already under way, in a hundred.
    pub under_way: u32,
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// A host dies; loudly, or so that nobody notices but by its silence.
    Kill {
        /// Which.
        host: usize,
        /// Whether its connections break.
        loud: bool,
    },
    /// Whoever reads from the source dies.
    KillSourceReader,
    /// A host that died comes back with what it has.
    Revive {
        /// Which.
        host: usize,
    },
    /// A host sends nothing for a while.
    Freeze {
        /// Which.
        host: usize,
        /// How long.
        time: Duration,
    },
    /// A host loses its network for a while: nothing reaches it or comes from it.
    CutOff {
        /// Which.
        host: usize,
        /// How long.
        time: Duration,
    },
    /// The origin breaks every stream off, and is away for a while.
    CutOrigin {
        /// How long.
        time: Duration,
    },
    /// The scheduler dies, and comes back after a while knowing nothing.
    RestartScheduler {
        /// How long it is away.
        time: Duration,
    },
    /// The scheduler says nothing for a while, though its connections stand; what is said to it waits.
    FreezeScheduler {
        /// How long.
        time: Duration,
    },
    /// Messages take longer for a while.
    Delay {
        /// By how much.
        by: Duration,
        /// How long.
        time: Duration,
    },
    /// A host's link is so many bytes in a second from now on.
    Slow {
        /// Which.
        host: usize,
        /// Bytes in a second that it can send.
        up: f64,
        /// Bytes in a second that it can receive.
        down: f64,
    },
}

#[derive(Debug)]
pub(super) enum Happening {
    Begin {
        host: usize,
    },
    Wake {
        host: usize,
        life: u32,
    },
    CoreWake {
        epoch: u32,
    },
    ToCore {
        epoch: u32,
        from: Option<(usize, u64)>,
        event: Box<scheduler::Event>,
    },
    Answer {
        host: usize,
        conversation: u64,
        answer: Answer,
    },
    Lost {
        host: usize,
        conversation: u64,
    },
    /// The scheduler has said nothing for so long that the conversation counts as lost, if it still says nothing.
    Silent {
        host: usize,
        conversation: u64,
    },
    Subscribe {
        child: usize,
        life: u32,
        parent: PeerId,
    },
    Has {
        child: usize,
        life: u32,
        parent: PeerId,
        piece: PieceNumber,
    },
    Gone {
        child: usize,
        life: u32,
        parent: PeerId,
    },
    FetchBegins {
        child: usize,
        id: u64,
        piece: PieceNumber,
    },
    FetchFails {
        child: usize,
        id: u64,
        piece: PieceNumber,
        fault: PieceFault,
    },
    Asked {
        child: usize,
        parent: PeerId,
        id: u64,
    },
    AskExpires {
        child: usize,
        parent: PeerId,
        id: u64,
        fault: Option<PieceFault>,
    },
    Turn {
        child: usize,
        parent: PeerId,
        id: u64,
        least_sent: Vec<PieceNumber>,
    },
    TurnOver {
        host: usize,
        life: u32,
    },
    Flows {
        due: Due,
    },
    StreamBegins {
        child: usize,
        id: u64,
    },
    StreamLives {
        child: usize,
        id: u64,
    },
    StreamEnds {
        child: usize,
        id: u64,
        end: download::End,
    },
    SchedulerUp,
    LivenessCheck,
    Fault(Fault),
}

/// What is to happen when; the soonest is the greatest, and of equals the one that was planned first.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) at: Duration,
    pub(super) order: u64,
    pub(super) happening: Happening,
}

impl Ord for Planned {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Planned {}

#[derive(Clone, Copy, Debug)]
pub(super) enum Carries {
    Fetch { child: usize, id: u64, piece: PieceNumber },
    Source { child: usize, id: u64 },
}

/// What came out.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Bytes that the origin sent.
    pub origin_bytes: u64,
    /// When each host that has all that it wants had it, the first first.
    pub finished: Vec<Duration>,
    /// When each reader had its first piece, the first first.
    pub first_pieces: Vec<Duration>,
    /// The longest that each reader waited for its next piece, the shortest first.
    pub gaps: Vec<Duration>,
    /// Bytes that each host sent, the least first.
    pub uploads: Vec<u64>,
    /// Downloads that failed; their clients tried again.
    pub failures: u32,
    /// Pieces with wrong bytes that arrived.
    pub bad_arrivals: u32,
    /// How often a peer was sent to the source.
    pub grants: u32,
    /// Events that the scheduler's machine handled.
    pub decisions: u64,
    /// Events of the simulation.
    pub events: u64,
}

impl Outcome {
    /// When the last host had all that it wants.
    pub fn last_finish(&self) -> Duration {
        self.finished.last().copied().unwrap_or_default()
    }
}
