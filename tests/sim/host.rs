//! One simulated host: a real download machine, and a model of the driver, the store and the transport around it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use damselfly::p2p::download::Download;
use damselfly_core::{Blake3, PeerId, PieceDigest, PieceNumber};

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
    pub id: u64,
    pub parent: PeerId,
    pub from: Place,
    pub flow: Option<u64>,
    pub variant: Variant,
}

/// The source stream under way at a host.
#[derive(Debug)]
pub(crate) struct Stream {
    pub id: u64,
    pub next: u32,
    pub end: u32,
    pub flow: Option<u64>,
}

/// What a host wants of the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// A client reads all of it in order.
    Read,
    /// All of it, and no client waits.
    Prefetch,
    /// A client reads the first half.
    Half,
}

#[derive(Debug)]
pub(crate) struct Host {
    pub place: Place,
    pub alive: bool,
    /// Counts restarts and new downloads: what was meant for an earlier one is ignored.
    pub life: u32,
    pub lies: bool,
    /// Sends nothing until then, though its connections stand.
    pub frozen: Duration,
    pub want: Want,
    pub machine: Option<Download>,
    pub peer: PeerId,
    /// The conversation with the scheduler, if there is one.
    pub conversation: Option<u64>,
    pub have: Vec<Option<Variant>>,
    pub prefix: u32,
    pub fetches: BTreeMap<PieceNumber, Fetching>,
    pub arrived: BTreeMap<PieceNumber, Variant>,
    pub stream: Option<Stream>,
    pub following: BTreeSet<PeerId>,
    /// Who wants to be told of new pieces: child and its life.
    pub followers: BTreeSet<(usize, u32)>,
    /// Every offer it got since it began was of a proven task.
    pub proven: bool,
    pub wake: Option<Duration>,
    pub finished: Option<Duration>,
    pub failures: u32,
    /// Messages to and from the scheduler stay in order.
    pub sent: Duration,
    pub received: Duration,
    /// Announcements from each parent stay in order, too.
    pub heard: BTreeMap<PeerId, Duration>,
}

impl Host {
    pub(crate) fn new(place: Place, pieces: usize) -> Self {
        Self {
            place,
            alive: true,
            life: 0,
            lies: false,
            frozen: Duration::ZERO,
            want: Want::Read,
            machine: None,
            peer: PeerId::from(format!("peer-{place}-0")),
            conversation: None,
            have: vec![None; pieces],
            prefix: 0,
            fetches: BTreeMap::new(),
            arrived: BTreeMap::new(),
            stream: None,
            following: BTreeSet::new(),
            followers: BTreeSet::new(),
            proven: true,
            wake: None,
            finished: None,
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
