//! What is known of one task.

use std::collections::{BTreeMap, BTreeSet};

use damselfly_core::swarm::Origin;
use damselfly_core::{Blake3, Geometry, HostId, Moment, PeerId, PieceNumber};

use crate::holders::Holders;
use crate::pieces::Pieces;

/// One content and everybody who takes part in it.
#[derive(Debug, Default)]
pub(crate) struct Task {
    pub(crate) origin: Origin,
    pub(crate) geometry: Option<Geometry>,
    pub(crate) peers: BTreeSet<PeerId>,
    /// How many of them have an open conversation.
    pub(crate) open: usize,
    pub(crate) holders: Holders,
    /// Who waits, in the order in which they came.
    pub(crate) waiting: BTreeMap<u64, PeerId>,
    pub(crate) lease: Option<Lease>,
    /// Open peers that read the source: the holder of the lease, and others who could not wait.
    pub(crate) sourcing: BTreeSet<PeerId>,
    pub(crate) seed: Option<PendingSeed>,
    /// Seeds that were tried.
    pub(crate) seeds_tried: BTreeSet<HostId>,
    /// Hosts that are not offered here, until when.
    pub(crate) isolated: BTreeMap<HostId, Moment>,
    pub(crate) proofs: BTreeMap<PieceNumber, Proof>,
    /// Every proof in the order in which it came; a piece stands in it twice if the source's reader overruled.
    pub(crate) proof_log: Vec<(PieceNumber, Blake3)>,
    /// Pieces that somebody has and nobody vouches for.
    pub(crate) unproven: Pieces,
    /// When the proofs gathered so far are sent.
    pub(crate) proofs_due: Option<Moment>,
    /// When it was last touched, as the index of idle tasks knows it.
    pub(crate) touched: Moment,
}

/// The right to read the source for everybody.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) peer: PeerId,
    /// Whether anything came from the source under it.
    pub(crate) progressed: bool,
    /// When it is looked at next.
    pub(crate) due: Moment,
}

/// A seed that was asked to fetch the task.
#[derive(Debug)]
pub(crate) struct PendingSeed {
    pub(crate) host: HostId,
    pub(crate) until: Moment,
}

/// What a piece's bytes hash to, and how well that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Proof {
    pub(crate) blake3: Blake3,
    /// Said by a holder of the lease, who read it from the source.
    pub(crate) leased: bool,
}

impl Task {
    /// Whether somebody is fetching it from the source, or about to.
    pub(crate) const fn is_fed(&self) -> bool {
        self.lease.is_some() || self.seed.is_some()
    }
}
