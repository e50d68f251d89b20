//! What is known of one task.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use damselfly_core::swarm::Origin;
use damselfly_core::{Blake3, Geometry, HostId, Moment, PeerId, PieceNumber};

use crate::claims::Claims;
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
    /// Who reads which pieces from the source for everybody.
    pub(crate) leases: Vec<Lease>,
    /// When the leases are looked at next.
    pub(crate) leases_due: Option<Moment>,
    /// How many leases in a row were lost without anything having come from the source.
    pub(crate) leases_lost: u32,
    /// How long the readers of the source need for a piece, smoothed.
    pub(crate) source_took: Option<Duration>,
    /// The same where it is long, by how many readers there were: whether one more brings more, or only divides what there
    /// is.
    pub(crate) took_beside: Vec<Option<Duration>>,
    /// How long it takes a host to send a piece to another, smoothed over all of them.
    pub(crate) pass_took: Option<Duration>,
    /// How many holders that may be offered have each piece.
    pub(crate) copies: Vec<u32>,
    /// Every piece before this one is held by somebody, or leased.
    pub(crate) cursor: u32,
    /// Open peers that read the source: the holders of leases, and others who could not wait.
    pub(crate) sourcing: BTreeSet<PeerId>,
    pub(crate) seed: Option<PendingSeed>,
    /// Seeds that were tried.
    pub(crate) seeds_tried: BTreeSet<HostId>,
    /// Hosts that are not offered here, until when.
    pub(crate) isolated: BTreeMap<HostId, Moment>,
    /// What hosts say of pieces and nobody has compared yet.
    pub(crate) claims: Claims,
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

/// The right to read some pieces from the source for everybody.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) peer: PeerId,
    /// The pieces that are still to come; up to [`u32::MAX`] where nobody knows how many there are.
    pub(crate) pieces: Range<u32>,
    /// Whether anything came from the source under it.
    pub(crate) progressed: bool,
    /// When its holder was last heard to get on.
    pub(crate) heard: Moment,
    /// Since when it reads the next piece.
    pub(crate) since: Moment,
    /// How many leases there were then.
    pub(crate) beside: usize,
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
    /// The lease that a piece is in.
    pub(crate) fn lease_of(&self, piece: PieceNumber) -> Option<&Lease> {
        self.leases.iter().find(|lease| lease.pieces.contains(&piece.0))
    }

    /// A piece took long while there were so many readers.
    pub(crate) fn note_took_beside(&mut self, readers: usize, took: Duration) {
        if readers >= self.took_beside.len() {
            self.took_beside.resize(readers + 1, None);
        }
        let known = &mut self.took_beside[readers];
        *known = Some(known.map_or(took, |known| (known * 3 + took) / 4));
    }

    /// How many holders that may be offered have the piece.
    pub(crate) fn copies_of(&self, piece: PieceNumber) -> u32 {
        self.copies.get(piece.index()).copied().unwrap_or(0)
    }

    /// A holder has these pieces, or has them no more.
    pub(crate) fn count_copies(&mut self, pieces: &Pieces, more: bool) {
        for piece in pieces.iter() {
            self.count_copy(piece, more);
        }
    }

    /// A holder has this piece, or has it no more.
    pub(crate) fn count_copy(&mut self, piece: PieceNumber, more: bool) {
        if piece.index() >= self.copies.len() {
            self.copies.resize(piece.index() + 1, 0);
        }
        let copies = &mut self.copies[piece.index()];
        *copies = if more { copies.saturating_add(1) } else { copies.saturating_sub(1) };
        if *copies == 0 {
            self.cursor = self.cursor.min(piece.0);
        }
    }
}
