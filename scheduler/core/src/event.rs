//! What the driver tells the machine, and what the machine asks of the driver.

use std::ops::Range;
use std::time::Duration;

use damselfly_core::swarm::{Answer, Holding, HostInfo, Origin, Registration, Report};
use damselfly_core::{HostId, PeerId, PieceNumber, TaskId};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A host says that it is there.
    HostAnnounced(HostInfo),
    /// A host says goodbye.
    HostLeft(HostId),
    /// A host holds nothing but what it says from now on, and what its open conversations say.
    HoldsNothing(HostId),
    /// A host says what it holds of a task, beside what is known already; no piece at all, if it dropped the task.
    Held(HostId, Holding),
    /// A peer opens a conversation. One that was open under the same peer id is over.
    Register(Registration),
    /// A peer with an open conversation reports.
    Report(PeerId, Report),
    /// A peer's conversation broke off.
    PeerGone(PeerId),
    /// A seed could not be triggered.
    SeedRefused {
        /// For which task.
        task: TaskId,
        /// Which seed.
        host: HostId,
    },
    /// A task is to be forgotten: nobody is offered its holders any more.
    TaskDeleted(TaskId),
    /// The deadline has come.
    Timer,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Tell a peer.
    Answer(PeerId, Answer),
    /// End the conversation with a peer. Nothing more is said in it.
    End(PeerId),
    /// Make a seed download a task; say [`Event::SeedRefused`] if it does not take it.
    TriggerSeed {
        /// The seed.
        host: HostInfo,
        /// The task.
        task: TaskId,
        /// Where its content comes from.
        origin: Box<Origin>,
    },
    /// Something worth counting happened.
    Fact(Fact),
    /// Something worth a line in the log happened.
    Notice(Notice),
}

/// Things worth counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fact {
    /// A peer registered.
    Registered,
    /// A peer could not register: every task or peer that is known is in use.
    Refused,
    /// A peer was offered parents.
    Offered,
    /// A peer was sent to the source.
    SourceGranted,
    /// A lease was taken from a peer that left, failed or fell silent.
    LeaseLost,
    /// A seed was asked to fetch a task.
    SeedTriggered,
    /// A seed did not take a task.
    SeedFailed,
    /// A host is not offered for one task because it served wrong bytes.
    IsolatedForTask,
    /// A host is not offered for any task because several hosts had wrong bytes from it.
    Isolated,
    /// A host is not offered until it is heard of because several hosts could not reach it.
    Silent,
    /// A host was dropped because it stopped announcing itself.
    HostDropped,
    /// Two peers say different things of a piece's bytes.
    ProofConflict,
    /// Two peers cut one content differently.
    GeometryConflict,
    /// A task was forgotten for a newer one.
    TaskForgotten,
    /// A peer finished.
    Finished,
    /// A peer failed or its conversation broke off.
    Failed,
}

/// What an operator who looks for a fault wants to read: about whom, and why. How often it happens is a [`Fact`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A peer had wrong bytes from a parent.
    WrongPiece {
        /// Of which task.
        task: TaskId,
        /// Which piece.
        piece: PieceNumber,
        /// Who had it.
        child: PeerId,
        /// From whom.
        parent: PeerId,
    },
    /// A host is not offered for one task.
    IsolatedForTask {
        /// Which task.
        task: TaskId,
        /// Which host.
        host: HostId,
        /// Who says that its bytes are wrong.
        accuser: HostId,
    },
    /// A host is not offered for any task.
    Isolated {
        /// Which host.
        host: HostId,
        /// How many hosts say that its bytes are wrong.
        accusers: usize,
        /// For how long.
        time: Duration,
    },
    /// A host is not offered until it is heard of.
    Silent {
        /// Which host.
        host: HostId,
        /// How many hosts could not reach it.
        missed_by: usize,
    },
    /// A lease was taken from its holder; what it had not brought is leased again.
    LeaseLost {
        /// Of which task.
        task: TaskId,
        /// From whom.
        peer: PeerId,
        /// What it had not brought.
        pieces: Range<u32>,
        /// Why.
        why: LeaseLoss,
    },
}

/// Why a lease was taken from its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseLoss {
    /// It left, failed, or its conversation broke off.
    Gone,
    /// The source refused it, or broke off.
    SourceFailed,
    /// Nothing was heard of its progress for too long.
    Silent,
    /// The others need much less time for a piece.
    Slow,
    /// It has pieces that its children do not get.
    PassesNothingOn,
}

impl LeaseLoss {
    /// In a few words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Gone => "it has gone",
            Self::SourceFailed => "the source failed it",
            Self::Silent => "it makes no progress",
            Self::Slow => "it is much slower than others",
            Self::PassesNothingOn => "it passes nothing on",
        }
    }
}
