//! What the driver tells the machine, and what the machine asks of the driver.

use damselfly_core::swarm::{Answer, Holding, HostInfo, Origin, Registration, Report};
use damselfly_core::{HostId, PeerId, TaskId};

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
