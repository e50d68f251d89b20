//! Parents that serve by turns: when one is asked, what is fetched in its turn, and what is taken over from a slow one.
//!
//! **A piece is chosen only when a parent can send it now.** So several parents are asked at a time, whoever is free
//! first serves, and nothing waits for one of them. What is the rarest here and what the parent has sent least are both
//! known at that moment, and no other.

use std::time::Duration;

use damselfly_core::swarm::{PieceFault, Report};
use damselfly_core::{Geometry, Moment, PeerId, PieceNumber};

use super::parents::Turn;
use super::pieces::Fetch;
use super::{Action, Download};

/// Of how many pieces the rarest is chosen where the parent names none. Bounds the work of one choice.
const SAMPLE: usize = 256;
/// What a piece is taken to need from a parent while nothing is known.
const USUAL: Duration = Duration::from_secs(1);
/// A fetch is slow after so many times the usual.
const SLOW_FACTOR: u32 = 3;

impl Download {
    pub(super) fn parent_queues(&mut self, peer: &PeerId) {
        if let Some(parent) = self.parents.followed.get_mut(peer)
            && parent.turn == Turn::Plain
        {
            parent.turn = Turn::Idle;
        }
    }

    /// How long a fetch may take before another parent may take it over.
    pub(super) fn slow_after(&self) -> Duration {
        self.took.unwrap_or(USUAL).saturating_mul(SLOW_FACTOR) + self.config.slow_margin
    }

    /// How many pieces come that are not slow.
    fn quick(&self) -> usize {
        self.pieces.iter().flat_map(|pieces| pieces.fetches.values()).filter(|fetch| !fetch.slow).count()
    }

    /// Whether one more turn may be used, if only for a piece that is taken over from a slow parent.
    fn has_turn(&self) -> bool {
        self.quick() < self.turns_at_once()
    }

    /// Whether one more piece may come in it.
    fn has_room(&self) -> bool {
        let fetches = self.pieces.as_ref().map_or(0, |pieces| pieces.fetches.len());
        self.has_turn() && fetches < self.pieces_at_once()
    }

    /// Asks every parent for a turn that could use it.
    pub(super) fn ask_for_turns(&mut self) {
        if !self.has_turn() {
            return;
        }
        let room = self.has_room();
        let Some(pieces) = &self.pieces else { return };
        let slow: Vec<(PieceNumber, &Fetch)> =
            pieces.fetches.iter().filter(|(_, fetch)| fetch.slow).map(|(&piece, fetch)| (piece, fetch)).collect();
        for (peer, parent) in &mut self.parents.followed {
            if !parent.may_be_asked() {
                continue;
            }
            let useful = (room && parent.has.meets(pieces.ready_set()))
                || slow.iter().any(|(piece, fetch)| fetch.parent != *peer && parent.has.contains(*piece));
            if useful {
                parent.turn = Turn::Asked;
                let mut wanted = pieces.ready_set().clone();
                wanted.extend(slow.iter().map(|(piece, _)| *piece));
                self.actions.push_back(Action::AskTurn { parent: peer.clone(), wanted });
            }
        }
    }

    pub(super) fn turn(&mut self, now: Moment, peer: &PeerId, least_sent: &[PieceNumber]) {
        let Some(parent) = self.parents.followed.get_mut(peer).filter(|parent| parent.turn == Turn::Asked) else {
            // It was left meanwhile.
            return self.actions.push_back(Action::PassTurn { parent: peer.clone() });
        };
        parent.turn = Turn::Idle;
        let piece = self.take_over_the_urgent(now, peer);
        let piece = piece.or_else(|| self.has_room().then(|| self.choose_in_turn(now, peer, least_sent)).flatten());
        let piece = piece.or_else(|| self.take_over(now, peer));
        let (Some(piece), Some(pieces)) = (piece, &mut self.pieces) else {
            return self.actions.push_back(Action::PassTurn { parent: peer.clone() });
        };
        if let Some(parent) = self.parents.followed.get_mut(peer) {
            parent.in_flight += 1;
        }
        let fetch = Fetch {
            parent: peer.clone(),
            since: now,
            slow: false,
            #[cfg(any(test, debug_assertions))]
            by_turn: true,
        };
        pieces.fetch(piece, fetch, &self.proofs);
        let proof = self.proofs.known.get(&piece).copied();
        self.actions.push_back(Action::Fetch { parent: peer.clone(), piece, proof });
    }

    /// Now and then what a reader waits for; else what the parent has sent least; else the rarest that it has.
    fn choose_in_turn(&mut self, now: Moment, peer: &PeerId, least_sent: &[PieceNumber]) -> Option<PieceNumber> {
        let pieces = self.pieces.as_ref()?;
        let parent = self.parents.followed.get(peer)?;
        if self.urgent_is_due(now) {
            let next: Vec<_> = self.readers.windows(pieces, 1).map(|next| PieceNumber(next.start)).collect();
            let next = next.into_iter().find(|&next| pieces.is_ready(next) && parent.has.contains(next));
            if next.is_some() {
                self.chose_urgent(now);
                return next;
            }
        }
        self.since_urgent = self.since_urgent.saturating_add(1);
        let usable = |piece: &&PieceNumber| pieces.is_needed(**piece) && self.proofs.allow(**piece);
        if let Some(piece) = least_sent.iter().find(usable) {
            return Some(*piece);
        }
        let rng = &mut self.rng;
        let common: Vec<PieceNumber> = parent.has.common(pieces.ready_set()).collect();
        let start = if common.is_empty() { 0 } else { rng.usize(..common.len()) };
        let sample = common.iter().cycle().skip(start).take(common.len().min(SAMPLE)).copied();
        sample.map(|piece| ((pieces.held_by(piece), rng.u32(..)), piece)).min().map(|(_, piece)| piece)
    }

    /// What a reader waits for and another parent is slow to give; one beside as many as come at a time otherwise.
    fn take_over_the_urgent(&mut self, now: Moment, peer: &PeerId) -> Option<PieceNumber> {
        let pieces = self.pieces.as_ref()?;
        let parent = self.parents.followed.get(peer)?;
        let slow = |piece: &PieceNumber| {
            pieces.fetches.get(piece).is_some_and(|fetch| fetch.slow && fetch.parent != *peer)
                && parent.has.contains(*piece)
                && self.proofs.allow(*piece)
        };
        if self.quick() > self.turns_at_once() {
            return None;
        }
        let next: Vec<_> = self.readers.windows(pieces, 1).map(|next| PieceNumber(next.start)).collect();
        let piece = next.into_iter().find(slow)?;
        let from = pieces.fetches.get(&piece)?.parent.clone();
        self.give_up(now, &from, piece);
        Some(piece)
    }

    /// A piece that another parent is slow to give: it is taken from that one. The oldest first.
    fn take_over(&mut self, now: Moment, peer: &PeerId) -> Option<PieceNumber> {
        if self.quick() >= self.turns_at_once() {
            return None;
        }
        let pieces = self.pieces.as_ref()?;
        let parent = self.parents.followed.get(peer)?;
        let slow = pieces.fetches.iter().filter(|(piece, fetch)| {
            fetch.slow && fetch.parent != *peer && parent.has.contains(**piece) && self.proofs.allow(**piece)
        });
        let (piece, from) =
            slow.min_by_key(|(_, fetch)| fetch.since).map(|(&piece, fetch)| (piece, fetch.parent.clone()))?;
        self.give_up(now, &from, piece);
        Some(piece)
    }

    /// Breaks a slow fetch off.
    pub(super) fn give_up(&mut self, now: Moment, from: &PeerId, piece: PieceNumber) {
        if self.landed(from, piece).is_none() {
            return;
        }
        self.actions.push_back(Action::Cancel { parent: from.clone(), piece });
        self.report(Report::PieceFailed { piece, parent: from.clone(), fault: PieceFault::Slow });
        let rest = self.config.rest.saturating_mul(8);
        if let Some(parent) = self.parents.followed.get_mut(from) {
            parent.rests = Some(now + rest);
        }
    }

    pub(super) fn turn_refused(&mut self, now: Moment, peer: &PeerId, fault: Option<PieceFault>) {
        let Some(parent) = self.parents.followed.get_mut(peer).filter(|parent| parent.turn == Turn::Asked) else {
            return;
        };
        parent.turn = Turn::Idle;
        let Some(fault) = fault else {
            let rest = self.config.rest.mul_f64(0.5 + self.rng.f64());
            parent.rests = Some(now + rest);
            return;
        };
        let ready = self.pieces.as_ref().map(|pieces| pieces.ready_set());
        let piece = ready.and_then(|ready| parent.has.common(ready).next());
        if let Some(piece) = piece {
            self.report(Report::PieceFailed { piece, parent: peer.clone(), fault });
        }
        if fault != PieceFault::Missing {
            self.leave(now, peer, fault == PieceFault::Bad);
        } else if let Some(parent) = self.parents.followed.get_mut(peer) {
            parent.rests = Some(now + self.config.rest);
            if parent.misses() {
                self.leave(now, peer, false);
            }
        }
    }

    /// Marks fetches that have become slow, and lets parents be asked again that have rested.
    pub(super) fn expire_turns(&mut self, now: Moment) {
        let slow_after = self.slow_after();
        if let Some(pieces) = &mut self.pieces {
            pieces.fetches.values_mut().for_each(|fetch| fetch.slow |= fetch.since + slow_after <= now);
        }
        for parent in self.parents.followed.values_mut() {
            parent.rests = parent.rests.filter(|until| *until > now);
        }
        self.follow_known_again(now);
    }

    /// With few left to ask, those that failed are asked again.
    fn follow_known_again(&mut self, now: Moment) {
        if self.alone {
            return;
        }
        let count = self.geometry().map(Geometry::count);
        while let Some(offer) = self.parents.known_again(now) {
            if !self.parents.offer(now, &offer, count, self.config.pieces_per_parent) {
                return;
            }
            self.actions.push_back(Action::Follow(offer));
        }
    }

    /// When [`Self::expire_turns`] has something to do.
    pub(super) fn turns_deadline(&self) -> Option<Moment> {
        let fetches = self.pieces.iter().flat_map(|pieces| pieces.fetches.values());
        let slow = fetches.filter(|fetch| !fetch.slow).map(|fetch| fetch.since + self.slow_after()).min();
        let rested = self.parents.followed.values().filter_map(|parent| parent.rests).min();
        let known = self.parents.known_deadline().filter(|_| !self.alone);
        [slow, rested, known].into_iter().flatten().min()
    }
}
