//! One simulated host: a real download machine, and a model of the driver, the store and the transport around it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use damselfly_core::{Blake3, PeerId, PieceDigest, PieceNumber, PieceSet};
use damselfly_download::Download;

use crate::net::Place;

/// Which bytes a piece has: 0 are the right ones.
pub(crate) type Variant = u32;

/// The digests that a piece's bytes would have.
pub(crate) fn digest(piece: PieceNumber, variant: Variant) -> PieceDigest {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&piece.0.to_be_bytes());
    bytes[4..8].copy_from_slice(&variant.to_be_bytes());
    // All zeros would stand for a hash that was not said.
    bytes[31] = 1;
    PieceDigest { crc32: piece.0 ^ variant, blake3: Blake3(bytes) }
}

/// A fetch under way at a child.
#[derive(Debug)]
pub(crate) struct Fetching {
    pub(crate) id: u64,
    pub(crate) parent: PeerId,
    pub(crate) from: Place,
    pub(crate) flow: Option<u64>,
    pub(crate) variant: Variant,
    /// It comes in a turn: one of the parent's uploads is taken by it.
    pub(crate) in_turn: bool,
}

/// A turn that was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) id: u64,
    pub(crate) at: Place,
    pub(crate) wanted: PieceSet,
    /// The parent has room for a piece and waits to be told which.
    pub(crate) granted: bool,
}

/// The source stream under way at a host.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) id: u64,
    pub(crate) next: u32,
    pub(crate) end: u32,
    pub(crate) flow: Option<u64>,
}

/// What a host wants of the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// A client reads all of it in order.
    Read,
    /// All of it, and no client waits.
    Prefetch,
    /// A client reads the first half.
    Half,
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) place: Place,
    pub(crate) alive: bool,
    /// Counts restarts and new downloads: what was meant for an earlier one is ignored.
    pub(crate) life: u32,
    pub(crate) lies: bool,
    /// Sends nothing until then, though its connections stand.
    pub(crate) frozen: Duration,
    /// Nothing reaches it or comes from it until then.
    pub(crate) cut_off: Duration,
    /// When something was last on its way to it, as far as [`crate::World::watch_liveness`] looks.
    pub(crate) served: Duration,
    pub(crate) want: Want,
    pub(crate) machine: Option<Download>,
    pub(crate) peer: PeerId,
    /// The conversation with the scheduler, if there is one.
    pub(crate) conversation: Option<u64>,
    pub(crate) have: Vec<Option<Variant>>,
    pub(crate) prefix: u32,
    pub(crate) fetches: BTreeMap<PieceNumber, Fetching>,
    pub(crate) asks: BTreeMap<PeerId, Ask>,
    /// Children that wait for a turn: which, by what name they know this host, and which ask.
    pub(crate) queue: VecDeque<(usize, PeerId, u64)>,
    /// Turns that are being used.
    pub(crate) uploads: u32,
    /// How often each piece was sent.
    pub(crate) sent_pieces: Vec<u32>,
    pub(crate) uploaded: u64,
    pub(crate) arrived: BTreeMap<PieceNumber, Variant>,
    pub(crate) stream: Option<Stream>,
    pub(crate) following: BTreeSet<PeerId>,
    /// Who wants to be told of new pieces: child and its life.
    pub(crate) followers: BTreeSet<(usize, u32)>,
    /// Every offer it got since it began was of a proven task.
    pub(crate) proven: bool,
    pub(crate) wake: Option<Duration>,
    pub(crate) finished: Option<Duration>,
    /// When its reader came and had its first piece, and the longest that it waited for the next one after that.
    pub(crate) began: Duration,
    pub(crate) first: Option<Duration>,
    pub(crate) gap: Duration,
    pub(crate) moved: Duration,
    pub(crate) failures: u32,
    /// Messages to and from the scheduler stay in order.
    pub(crate) sent: Duration,
    pub(crate) received: Duration,
    /// Announcements from each parent stay in order, too.
    pub(crate) heard: BTreeMap<PeerId, Duration>,
}

impl Host {
    pub(crate) fn new(place: Place, pieces: usize) -> Self {
        Self {
            place,
            alive: true,
            life: 0,
            lies: false,
            frozen: Duration::ZERO,
            cut_off: Duration::ZERO,
            served: Duration::ZERO,
            want: Want::Read,
            machine: None,
            peer: PeerId::from(format!("peer-{place}-0")),
            conversation: None,
            have: vec![None; pieces],
            prefix: 0,
            fetches: BTreeMap::new(),
            asks: BTreeMap::new(),
            queue: VecDeque::new(),
            uploads: 0,
            sent_pieces: vec![0; pieces],
            uploaded: 0,
            arrived: BTreeMap::new(),
            stream: None,
            following: BTreeSet::new(),
            followers: BTreeSet::new(),
            proven: true,
            wake: None,
            finished: None,
            began: Duration::ZERO,
            first: None,
            gap: Duration::ZERO,
            moved: Duration::ZERO,
            failures: 0,
            sent: Duration::ZERO,
            received: Duration::ZERO,
            heard: BTreeMap::new(),
        }
    }

    /// The bytes that it sends for a piece.
    pub(crate) fn serves(&self, piece: PieceNumber) -> Option<Variant> {
        let here = self.have.get(piece.index()).copied().flatten()?;
        let corrupt = self.lies && (piece.0 as usize + self.place).is_multiple_of(2);
        Some(if corrupt { 1000 + self.place as Variant } else { here })
    }

    /// Who may write the piece now, by name.
    pub(crate) fn producer(&self, piece: PieceNumber) -> Option<String> {
        let parent = self.fetches.get(&piece).map(|fetching| format!("{} (fetching)", fetching.parent));
        let source = self.stream.as_ref().filter(|stream| (stream.next..stream.end).contains(&piece.0));
        parent.or_else(|| source.map(|stream| format!("the source (stream {})", stream.id)))
    }
}
