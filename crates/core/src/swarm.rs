//! The words that a peer and its scheduler exchange, free of any wire format.
//!
//! Both pure machines speak them: the download machine (a peer) and the scheduler's core. Between hosts they travel as
//! `scheduler.v2`; inside one process, and in the simulations, they are handed over as they are.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::ops::Range;
use std::sync::Arc;

use crate::digest::{Blake3, PieceDigest};
use crate::geometry::{Geometry, PieceNumber};
use crate::id::{HostId, PeerId, TaskId};

/// What a host says of itself when it announces itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostInfo {
    /// The host's id.
    pub id: HostId,
    /// Whether it is a seed peer: asked first to fetch from the source.
    pub seed: bool,
    /// Its name.
    pub hostname: String,
    /// Where other hosts reach it.
    pub ip: IpAddr,
    /// Its peer gRPC port.
    pub rpc_port: u16,
    /// Its piece data port.
    pub data_port: u16,
    /// Its proxy's port, if other hosts reach it.
    pub proxy_port: Option<NonZeroU16>,
    /// How many children it serves at once.
    pub upload_slots: u32,
    /// Its data centre, or empty.
    pub idc: String,
    /// Where it stands, from the widest to the narrowest, split by `|`; or empty.
    pub location: String,
    /// Whether its gRPC and piece data ports speak TLS with members of its fleet.
    pub tls: bool,
}

/// May this peer fetch from the source?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceWish {
    /// Yes, when the scheduler grants it.
    #[default]
    Allowed,
    /// It wants to now: it is a triggered seed, or its parents failed it.
    Wanted,
    /// Never (`disableBackToSource`).
    Forbidden,
}

/// Pieces that a host holds, each with the BLAKE3 that it computed when the bytes came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// How the content is cut.
    pub geometry: Geometry,
    /// The pieces; a number that the geometry does not have is ignored.
    pub pieces: Vec<(PieceNumber, Blake3)>,
}

/// What anyone needs to fetch a task's content from its source, without credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The URL.
    pub url: String,
    /// The explicit identity text ([`crate::Identity::content`]), where the task has one.
    pub content: Option<String>,
    /// The content's digest as text, where it has one.
    pub digest: Option<String>,
    /// The user's tag, or empty.
    pub tag: String,
    /// The user's application, or empty.
    pub application: String,
    /// Whether the source asks for credentials, which stay on the host that was given them: no seed can fetch it.
    pub private: bool,
    /// What a peer of the plain Dragonfly protocol said of its task that no task of ours has, in the form in which it came;
    /// nothing in it is secret. A plain seed needs it: it works out the task's id from it.
    pub plain: Option<Arc<Vec<u8>>>,
}

/// A host's request to take part in a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Which host.
    pub host: HostId,
    /// Which task.
    pub task: TaskId,
    /// The new peer.
    pub peer: PeerId,
    /// Where the content comes from.
    pub origin: Origin,
    /// Its geometry, if the peer knows it already.
    pub geometry: Option<Geometry>,
    /// What the host holds of it already.
    pub held: Option<Held>,
    /// Whether it may or must use the source.
    pub source: SourceWish,
    /// Whether the peer understands [`Answer::Proofs`] and any number of [`Answer::Parents`]; a peer of the plain
    /// Dragonfly protocol understands neither.
    pub extended: bool,
}

/// What a host holds of one task, told to a scheduler that may have forgotten or never known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Which task.
    pub task: TaskId,
    /// The peer under which this host takes part in it.
    pub peer: PeerId,
    /// Where the content came from.
    pub origin: Origin,
    /// The pieces.
    pub held: Held,
}

/// What a host says that it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// The host.
    pub host: HostId,
    /// Whether this is the beginning of everything that it holds: what was known before is forgotten.
    pub all: bool,
    /// Holdings; one without pieces was dropped.
    pub list: Vec<Holding>,
}

/// Why a piece could not be had from a parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceFault {
    /// The bytes failed their check: this parent lies or its disk does.
    Bad,
    /// No byte came for the stall time.
    Stalled,
    /// The connection failed or broke.
    Gone,
    /// The parent says that it does not have the piece.
    Missing,
    /// It came so slowly, beside what others give, that it was asked of somebody else.
    Slow,
}

/// What a registered peer tells its scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The source answered; this is how the content is cut.
    SourceOpened(Geometry),
    /// A piece is written and checked.
    PieceFinished {
        /// Which piece.
        piece: PieceNumber,
        /// From which parent; `None` from the source.
        parent: Option<PeerId>,
        /// Its digests, computed here.
        digest: PieceDigest,
    },
    /// A piece could not be had from a parent.
    PieceFailed {
        /// Which piece.
        piece: PieceNumber,
        /// The parent.
        parent: PeerId,
        /// Why.
        fault: PieceFault,
    },
    /// The source still sends, and the piece under way is not whole yet. At most about once a second.
    SourceProgress,
    /// The lease that holds this piece is given back: nobody here wants what is left of it.
    Declined {
        /// The first piece that is given back.
        piece: PieceNumber,
    },
    /// A reader of this peer waits for this piece, and nobody brings it.
    Late {
        /// The piece.
        piece: PieceNumber,
    },
    /// These parents are of no use (any more); please offer others, or the source.
    Reschedule {
        /// Parents not to be offered again.
        failed: Vec<PeerId>,
    },
    /// The source failed this peer; it goes on with parents if it gets any.
    SourceFailed,
    /// Everything this peer wanted is here. If that is the whole content it goes on serving it. Ends the conversation.
    Finished,
    /// The peer gives up or is no longer wanted. Ends the conversation.
    Failed,
}

/// A peer that may be asked for pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The parent.
    pub peer: PeerId,
    /// Its host.
    pub host: HostId,
    /// Its peer gRPC address; where it serves piece data it says itself.
    pub rpc: SocketAddr,
    /// Whether it speaks TLS there with members of its fleet.
    pub tls: bool,
}

/// What the scheduler tells a registered peer. Silence means: wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// You are registered; parents or the source follow when there are any.
    Wait,
    /// The content has no bytes.
    Empty,
    /// Take pieces from these. Replaces the parents offered before.
    Parents {
        /// The parents, best first.
        offers: Vec<Offer>,
        /// How the content is cut, if the scheduler knows.
        geometry: Option<Geometry>,
        /// Whether every piece of this task is vouched for: then none is to be taken from a parent before its
        /// proof has come.
        proven: bool,
    },
    /// Fetch these pieces from the source: you hold their lease, and no other. Other pieces may come from parents at the
    /// same time.
    GoToSource {
        /// The pieces; `None` for all of them, also where nobody knows yet how many there are.
        pieces: Option<Range<u32>>,
    },
    /// The BLAKE3 of pieces as the peers that read them from the source reported it. Only for extended peers.
    Proofs(Vec<(PieceNumber, Blake3)>),
}
