//! What comes from parents, or does not: each piece is checked and kept, and a parent that fails is left.

use damselfly_core::swarm::{PieceFault, Report};
use damselfly_core::{Moment, PeerId, PieceDigest, PieceNumber, PieceSet};

use super::pieces::State;
use super::{Action, Download};

impl Download {
    pub(super) fn parent_has(&mut self, peer: &PeerId, piece: PieceNumber) {
        let Some(parent) = self.parents.followed.get_mut(peer) else { return };
        if parent.has.insert(piece)
            && let Some(pieces) = &mut self.pieces
        {
            pieces.add_holder(piece, &self.proofs);
        }
    }

    pub(super) fn arrived(&mut self, now: Moment, peer: PeerId, piece: PieceNumber, digest: PieceDigest) {
        let Some(since) = self.landed(&peer, piece) else { return };
        let proof = self.proofs.known.get(&piece);
        if proof.is_some_and(|proof| *proof != digest.blake3) {
            self.actions.push_back(Action::Discard { piece });
            self.report(Report::PieceFailed { piece, parent: peer.clone(), fault: PieceFault::Bad });
            self.leave(now, &peer, true);
            return;
        }
        if proof.is_none() && self.proofs.required {
            // It was asked for before anyone said that proofs are needed.
            self.actions.push_back(Action::Discard { piece });
            return;
        }
        let took = now.since(since);
        self.took = Some(self.took.map_or(took, |known| (known * 7 + took) / 8));
        self.parents.forgive(&peer);
        if let Some(parent) = self.parents.followed.get_mut(&peer) {
            parent.arrived(took, self.config.pieces_per_parent);
        }
        self.set(piece, State::Have);
        self.from_parents = true;
        self.link.progress();
        self.actions.push_back(Action::Keep { piece });
        self.report(Report::PieceFinished { piece, parent: Some(peer), digest });
    }

    pub(super) fn failed(&mut self, now: Moment, peer: PeerId, piece: PieceNumber, fault: PieceFault) {
        if self.landed(&peer, piece).is_none() {
            return;
        }
        self.report(Report::PieceFailed { piece, parent: peer.clone(), fault });
        match fault {
            PieceFault::Missing => {
                let Some(parent) = self.parents.followed.get_mut(&peer) else { return };
                parent.has.remove(piece);
                let too_often = parent.misses();
                if let Some(pieces) = &mut self.pieces {
                    pieces.remove_holder(piece, &self.proofs);
                }
                if too_often {
                    self.leave(now, &peer, false);
                }
            }
            PieceFault::Stalled | PieceFault::Gone | PieceFault::Slow => self.leave(now, &peer, false),
            PieceFault::Bad => self.leave(now, &peer, true),
        }
    }

    /// A parent can no longer be asked what it has. The scheduler learns of one that does not answer at once, and not when
    /// nobody else is left: it thinks that this host is served.
    pub(super) fn parent_gone(&mut self, now: Moment, peer: &PeerId, fault: PieceFault) {
        let Some(parent) = self.parents.followed.get(peer) else { return };
        let piece = self.pieces.as_ref().and_then(|pieces| parent.has.common(pieces.ready_set()).next());
        if fault != PieceFault::Missing {
            let piece = piece.unwrap_or(PieceNumber(0));
            self.report(Report::PieceFailed { piece, parent: peer.clone(), fault });
        }
        self.leave(now, peer, false);
    }

    /// A fetch is over, well or not: nobody is fetching the piece now. `None` if it was not under way.
    pub(super) fn landed(&mut self, peer: &PeerId, piece: PieceNumber) -> Option<Moment> {
        let pieces = self.pieces.as_mut()?;
        let since = pieces.fetch_from(piece, peer)?.since;
        pieces.release(piece, &self.wanted, &self.proofs);
        self.one_less_in_flight(peer);
        Some(since)
    }

    /// A fetch from a parent is over, or dropped. One that is not offered any more goes with the last.
    pub(super) fn one_less_in_flight(&mut self, peer: &PeerId) {
        let Some(parent) = self.parents.followed.get_mut(peer) else { return };
        parent.in_flight = parent.in_flight.saturating_sub(1);
        if parent.retired && parent.in_flight == 0 {
            self.unfollow(peer);
        }
    }

    /// Lets go of a parent that is not offered any more.
    pub(super) fn unfollow(&mut self, peer: &PeerId) {
        if let Some(parent) = self.parents.followed.remove(peer) {
            self.forget_holder(&parent.has);
            self.actions.push_back(Action::Unfollow(peer.clone()));
        }
    }

    /// Leaves a parent that failed: whatever is in flight from it goes to others.
    pub(super) fn leave(&mut self, now: Moment, peer: &PeerId, ban: bool) {
        let Some(parent) = self.parents.leave(now, peer, ban) else { return };
        self.forget_holder(&parent.has);
        if let Some(pieces) = &mut self.pieces {
            let from_it = pieces.fetches.iter().filter(|(_, fetch)| fetch.parent == *peer);
            for piece in from_it.map(|(&piece, _)| piece).collect::<Vec<_>>() {
                pieces.release(piece, &self.wanted, &self.proofs);
                self.actions.push_back(Action::Cancel { parent: peer.clone(), piece });
            }
        }
        self.actions.push_back(Action::Unfollow(peer.clone()));
    }

    fn forget_holder(&mut self, has: &PieceSet) {
        if let Some(pieces) = &mut self.pieces {
            has.iter().for_each(|piece| pieces.remove_holder(piece, &self.proofs));
        }
    }
}
