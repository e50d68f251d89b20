//! What the driver tells the machine, and what the machine asks of the driver.

use std::time::Duration;

use damselfly_core::swarm::{Answer, Offer, PieceFault, Report, SourceWish};
use damselfly_core::{Blake3, ByteRange, Geometry, PeerId, PieceDigest, PieceNumber, PieceSet, RangeWish};

/// One reader of a download, as the driver numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReaderId(pub u64);

/// How a source stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Every byte that was asked for has come.
    Complete,
    /// It could not be reached, broke off or fell silent: worth another try.
    Cut,
    /// The source has another version of the content now.
    Changed,
    /// The source answers, but not with the content: another try would be answered the same.
    Refused,
    /// The source does not say how long the content is, so it cannot be cut into pieces.
    Unsized,
}

/// Why a download ended without what was wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The content at the source is not the one that this download began with.
    #[error("the content at the source has changed")]
    Changed,
    /// The pieces are all here, but their whole is not the content that was named.
    #[error("the content does not have the digest that it was named by")]
    Digest,
    /// The source broke off again and again, and nobody else has the content.
    #[error("the source broke off and no peer has the content")]
    Cut,
    /// The source does not give the content, and nobody else has it.
    #[error("the source refused and no peer has the content")]
    Refused,
    /// The source does not say how long the content is: it can be passed on, but not shared.
    #[error("the source does not say how long the content is")]
    Unsized,
    /// No peer has the content, and this download may not ask the source.
    #[error("no peer has the content and the source may not be asked")]
    NoPeers,
    /// Nobody wants anything any more. Pieces that are here stay.
    #[error("nobody wants the content any more")]
    Abandoned,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The scheduler answered.
    Answer(Answer),
    /// The conversation with the scheduler failed, or could not be begun.
    SchedulerLost,
    /// The geometry became known in another way than by the scheduler or an opened source.
    GeometryLearned {
        /// How the content is cut.
        geometry: Geometry,
    },
    /// A parent says that it has a piece.
    ParentHas {
        /// The parent.
        parent: PeerId,
        /// The piece.
        piece: PieceNumber,
    },
    /// A parent serves by turns: it is asked for a turn, and says when a piece can be sent and which it has sent least.
    /// One that does not say so is asked for single pieces.
    ParentQueues {
        /// The parent.
        parent: PeerId,
    },
    /// A parent that was asked for a turn can send a piece now. Answered by [`Action::Fetch`] or [`Action::PassTurn`].
    Turn {
        /// The parent.
        parent: PeerId,
        /// Pieces that it would send, those first that it has sent least.
        least_sent: Vec<PieceNumber>,
    },
    /// A parent that was asked for a turn gives none.
    TurnRefused {
        /// The parent.
        parent: PeerId,
        /// What is the matter with it; `None` if it is only busy.
        fault: Option<PieceFault>,
    },
    /// A parent can no longer be asked what it has. Not for a stream that ended because everything was announced.
    ParentGone {
        /// The parent.
        parent: PeerId,
        /// Why: [`PieceFault::Missing`] where it does not have the task.
        fault: PieceFault,
    },
    /// All bytes of a piece came from a parent and agree with the checksum that it sent.
    PieceArrived {
        /// The parent.
        parent: PeerId,
        /// The piece.
        piece: PieceNumber,
        /// The digest of what came.
        digest: PieceDigest,
    },
    /// A piece did not come from a parent.
    PieceFailed {
        /// The parent.
        parent: PeerId,
        /// The piece.
        piece: PieceNumber,
        /// Why.
        fault: PieceFault,
    },
    /// A piece was found in the store: another producer than this download put it there.
    PieceHeld {
        /// The piece.
        piece: PieceNumber,
    },
    /// The store no longer has a piece that it had.
    PieceLost {
        /// The piece.
        piece: PieceNumber,
    },
    /// The source answered with the content. The driver chooses the piece length, unless [`super::Download::geometry`]
    /// is known by then.
    SourceOpened {
        /// How the content is cut.
        geometry: Geometry,
    },
    /// The source stream brought a whole piece, which is kept.
    SourcePiece {
        /// The piece.
        piece: PieceNumber,
        /// Its digest.
        digest: PieceDigest,
    },
    /// Bytes came from the source. Needed about once a second at most: it shows that the stream lives.
    SourceProgress {
        /// How many since the last time.
        bytes: u64,
    },
    /// The source stream ended by itself.
    SourceEnded(End),
    /// The stream of [`Action::ReadAside`] ended by itself, well or not.
    AsideEnded,
    /// The answer of the source to an [`Action::ReadSource`] without a range brings just these pieces, because the driver
    /// asked for what the reader wants. Told before [`Event::SourceOpened`]; no pieces where it fits none.
    SourceGives {
        /// From the first to the one behind the last.
        pieces: std::ops::Range<u32>,
    },
    /// A reader joins, or wants another range from now on.
    ReaderWants {
        /// The reader.
        reader: ReaderId,
        /// The bytes it wants.
        wish: RangeWish,
    },
    /// A reader has got so far.
    ReaderAt {
        /// The reader.
        reader: ReaderId,
        /// The offset in the content of the next byte that it wants.
        offset: u64,
    },
    /// A reader left.
    ReaderGone {
        /// The reader.
        reader: ReaderId,
    },
    /// From now on the whole content is wanted, with or without readers: a prefetch, a preheat, a seed.
    WantWhole,
    /// All pieces are here, but the whole does not have the digest that the content is named by.
    DigestMismatch,
    /// This host's own limit of bandwidth has held up what comes, for so long since this was last said. That is told before
    /// anything else that happens.
    HeldUp {
        /// For how long.
        by: Duration,
    },
    /// The deadline has come.
    Timer,
    /// The daemon is stopping: only what readers need is still fetched.
    Drain,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Register with the scheduler. A conversation that is still open is dropped for the new one.
    Register {
        /// Whether the source may or must be used.
        source: SourceWish,
    },
    /// Tell the scheduler.
    Report(Report),
    /// Ask a parent which pieces it has, and tell of each.
    Follow(Offer),
    /// Stop asking a parent.
    Unfollow(PeerId),
    /// Ask a parent that serves by turns for one.
    AskTurn {
        /// The parent.
        parent: PeerId,
        /// The pieces that could be used.
        wanted: PieceSet,
    },
    /// A turn is not used.
    PassTurn {
        /// The parent.
        parent: PeerId,
    },
    /// Fetch a piece from a parent; in its turn, if it has one.
    Fetch {
        /// The parent.
        parent: PeerId,
        /// The piece.
        piece: PieceNumber,
        /// What its bytes must hash to, where that is known. The machine compares; this is for the log.
        proof: Option<Blake3>,
    },
    /// Break off a fetch; nothing is to be told of it any more.
    Cancel {
        /// The parent.
        parent: PeerId,
        /// The piece.
        piece: PieceNumber,
    },
    /// An arrived piece is good: finish its writer.
    Keep {
        /// The piece.
        piece: PieceNumber,
    },
    /// An arrived piece is not wanted: drop its writer.
    Discard {
        /// The piece.
        piece: PieceNumber,
    },
    /// Read these bytes from the source. Begins and ends where pieces do. A stream still under way is replaced, save
    /// the answer that was under way at the start ([`crate::Setup::source_under_way`]): that one is used
    /// if the range begins at 0.
    ReadSource {
        /// The bytes; `None` for all, where the length is not known.
        range: Option<ByteRange>,
    },
    /// The stream under way is to end here, where a piece does, and not where it was asked to. It ends with
    /// [`End::Complete`] then.
    ShortenSource {
        /// The offset behind its last byte.
        end: u64,
    },
    /// Read these bytes from the source beside the stream under way. Begins and ends where pieces do.
    ReadAside {
        /// The bytes.
        range: ByteRange,
    },
    /// Drop the stream of [`Action::ReadAside`], if it has not ended.
    StopAside,
    /// Drop the source stream, or the answer that was under way, and the unfinished piece's writer.
    StopSource,
    /// Everything that was wanted is here. The machine has ended.
    Finish,
    /// The machine has ended without everything that was wanted.
    Fail(Failure),
}
