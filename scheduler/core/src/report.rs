//! What a peer with an open conversation reports.

use std::collections::BTreeSet;
use std::time::Duration;

use damselfly_core::swarm::{Answer, PieceFault, Report, SourceWish};
use damselfly_core::{Geometry, Moment, PeerId, PieceDigest, PieceNumber};

use crate::machine::{Core, Wake};
use crate::peer::Peer;
use crate::place::Choice;
use crate::{Fact, LeaseLoss, Notice, Output};

/// A peer that asks for others so soon after it was offered some cannot have tried them: it has not read the offer.
const CROSSED: Duration = Duration::from_secs(1);

impl Core {
    pub(crate) fn report(&mut self, now: Moment, peer: &PeerId, report: Report) {
        let Some(state) = self.peers.get(peer).filter(|peer| peer.open) else { return };
        let host = state.host.clone();
        self.heard_of(&host);
        match report {
            Report::SourceOpened(geometry) => self.source_opened(now, peer, geometry),
            Report::PieceFinished { piece, parent, digest } => {
                self.piece_finished(now, peer, piece, parent.as_ref(), digest);
            }
            Report::PieceFailed { piece, parent, fault } => self.piece_failed(now, peer, piece, &parent, fault),
            Report::SourceProgress => self.source_heard(now, peer, None),
            Report::Declined { piece } => self.declined(peer, piece),
            Report::Late { piece } => self.late(now, peer, piece),
            Report::Reschedule { failed } => self.reschedule(now, peer, failed),
            Report::SourceFailed => self.source_failed(now, peer),
            Report::Finished => self.finished(now, peer),
            Report::Failed => self.failed(peer),
        }
    }

    fn source_opened(&mut self, now: Moment, peer: &PeerId, geometry: Geometry) {
        let Some(task) = self.peers.get(peer).map(|peer| peer.task) else { return };
        let agrees = self.learn_geometry(&task, peer, Some(geometry));
        self.reindex(peer);
        self.source_entered(now, peer);
        if agrees && geometry.count() == 0 {
            self.tell_empty(peer);
        }
    }

    /// The content turned out to have no bytes: whoever waits is done.
    fn tell_empty(&mut self, reader: &PeerId) {
        let Some(task) = self.peers.get(reader).and_then(|peer| self.tasks.get(&peer.task)) else { return };
        for waiting in task.waiting.values().cloned().collect::<Vec<_>>() {
            self.leave_queue(&waiting);
            self.answer(&waiting, Answer::Empty);
        }
    }

    fn piece_finished(
        &mut self,
        now: Moment,
        peer: &PeerId,
        piece: PieceNumber,
        parent: Option<&PeerId>,
        digest: PieceDigest,
    ) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        state.got(now, parent);
        let task = state.task;
        let geometry = self.tasks.get(&task).and_then(|task| task.geometry);
        if state.stranger || geometry.is_some_and(|geometry| geometry.piece(piece.0).is_none()) {
            self.source_heard(now, peer, None);
            return;
        }
        let first = state.pieces.is_empty();
        if let Some(parent) = parent {
            state.forgive(parent);
            let (waits, was_offered) = (state.ticket.is_some(), state.was_offered(parent));
            if waits {
                self.note_freed(&task);
            }
            if was_offered {
                self.passed_on(now, parent);
            }
        }
        let Some(state) = self.peers.get(peer) else { return };
        let vouches = state.extended && parent.is_none() && geometry.is_some();
        self.add_piece(peer, piece);
        // Nobody else's word counts: who was not sent to the source may say anything.
        let leased = self.has_lease_of(peer, piece);
        if vouches && leased {
            self.vouch(now, &task, piece, digest.blake3, true);
            self.judge_claims(now, &task, peer, piece, digest.blake3);
        } else if vouches && !self.names_its_bytes(&task) {
            self.claim(now, &task, peer, piece, digest.blake3);
        } else if leased || self.names_its_bytes(&task) {
            self.note_unproven(&task, piece);
        }
        if parent.is_none() {
            self.source_heard(now, peer, Some(piece));
        }
        self.advance_lease(peer);
        // Only now: whoever is woken by it is told of the proof first.
        if first {
            self.reindex(peer);
        }
    }

    fn piece_failed(&mut self, now: Moment, peer: &PeerId, piece: PieceNumber, parent: &PeerId, fault: PieceFault) {
        let most = self.config.max_failed;
        let max_accused = self.config.max_accused;
        let Some(state) = self.peers.get_mut(peer) else { return };
        // What is said of a parent that was never offered hurts nobody.
        let was_offered = state.was_offered(parent);
        let (task, by) = (state.task, state.host.clone());
        if fault == PieceFault::Missing {
            if was_offered {
                self.piece_missing(parent, piece);
            }
            return;
        }
        if fault == PieceFault::Slow {
            if was_offered {
                self.parent_is_slow(now, peer, parent);
            }
            return;
        }
        let Some((host, number)) = self.peers.get(parent).map(|parent| (parent.host.clone(), parent.number)) else {
            return;
        };
        let rest = (fault != PieceFault::Bad).then_some(self.config.failure_rest);
        let Some(state) = self.peers.get_mut(peer) else { return };
        let rested = state.remember_failure((parent.clone(), number), now, rest, most);
        if let Some(at) = rested {
            self.wake_at(at, Wake::Rested(peer.clone()));
        }
        self.unlink(parent, peer);
        if was_offered && fault == PieceFault::Bad {
            self.notice(Notice::WrongPiece { task, piece, child: peer.clone(), parent: parent.clone() });
            let Some(state) = self.peers.get_mut(peer) else { return };
            if state.accused.len() < max_accused || state.accused.contains(&host) {
                state.accused.insert(host.clone());
                self.accused(now, &host, &by, &task);
            }
        } else if was_offered {
            self.missed(&host, &by);
        }
        let Some(state) = self.peers.get(peer) else { return };
        if state.lacks_parents() && state.ticket.is_none() {
            self.place(now, peer);
        } else if was_offered && state.extended && !state.parents.is_empty() {
            // Another one in its place, if there is one.
            self.improve_later(now, peer, Duration::ZERO);
        }
    }

    /// A parent is slow beside others: another is offered in its place, if there is one.
    fn parent_is_slow(&mut self, now: Moment, peer: &PeerId, parent: &PeerId) {
        if let Choice::Offers(offers) = self.choose(peer, 1) {
            self.unlink(parent, peer);
            self.offer(now, peer, offers);
        }
    }

    /// A parent does not have what it was thought to have. One that still talks says itself what it has.
    fn piece_missing(&mut self, parent: &PeerId, piece: PieceNumber) {
        if self.peers.get(parent).is_some_and(|parent| !parent.open) {
            self.remove_piece(parent, piece);
            self.reindex(parent);
        }
    }

    fn reschedule(&mut self, now: Moment, peer: &PeerId, failed: Vec<PeerId>) {
        let (most, plain_answers) = (self.config.max_failed, self.config.plain_answers);
        let number = |id: &PeerId| self.peers.get(id).map_or(0, |parent| parent.number);
        let failed: Vec<(PeerId, u64)> = failed.into_iter().take(most).map(|id| (id.clone(), number(&id))).collect();
        let Some(state) = self.peers.get_mut(peer) else { return };
        state.asked = true;
        state.source_spent = false;
        self.unsettled.work.insert(state.task);
        let mut rested = BTreeSet::new();
        for (parent, number) in failed {
            // Those that it reported one by one rest already.
            if !state.avoids(&parent, number, now) {
                rested.extend(state.remember_failure((parent, number), now, Some(self.config.failure_rest), most));
            }
        }
        for at in rested {
            self.wake_at(at, Wake::Rested(peer.clone()));
        }
        let Some(state) = self.peers.get(peer) else { return };
        let number = |id: &PeerId| self.peers.get(id).map_or(0, |parent| parent.number);
        let is_useless = |id: &&PeerId| !state.extended || state.avoids(id, number(id), now);
        let useless: Vec<PeerId> = state.parents.iter().filter(is_useless).cloned().collect();
        for parent in useless {
            self.unlink(&parent, peer);
        }
        let Some(state) = self.peers.get(peer) else { return };
        if !state.extended && state.answers + 1 >= plain_answers {
            return self.last_answer(now, peer);
        }
        if state.sourcing.is_some() && !self.has_lease(peer) {
            self.release_source(peer);
        }
        if self.peers.get(peer).is_some_and(|peer| peer.parents.is_empty()) {
            return self.place(now, peer);
        }
        self.offer_others(now, peer);
    }

    /// A peer does not want what is left of its lease. It goes to somebody who does.
    fn declined(&mut self, peer: &PeerId, piece: PieceNumber) {
        if !self.has_lease_of(peer, piece) {
            return;
        }
        if let Some(state) = self.peers.get_mut(peer) {
            state.source_spent = true;
        }
        self.release_source(peer);
    }

    /// A peer with parents that it does not call failed wants others.
    fn offer_others(&mut self, now: Moment, peer: &PeerId) {
        let Some(state) = self.peers.get(peer) else { return };
        let (kept, offered_at, task) = (state.parents.len(), state.offered_at, state.task);
        let room = self.config.max_parents.saturating_sub(kept).max(1);
        match self.choose(peer, room) {
            Choice::Offers(offers) => {
                // A full hand of parents that are of no use is given back.
                if kept >= self.config.max_parents {
                    self.unlink_parents(peer);
                }
                self.offer(now, peer, offers);
            }
            Choice::Nobody if now.since(offered_at) < CROSSED => self.offer(now, peer, Vec::new()),
            Choice::Nobody => {
                self.assign(now, &task);
                let told = self.peers.get(peer).is_none_or(|state| !state.extended || !state.asked);
                if !told && !self.has_lease(peer) {
                    self.answer(peer, Answer::Wait);
                }
                self.improve_later(now, peer, self.config.improve_interval);
            }
        }
    }

    /// A peer of the plain protocol reads no further answer after this one.
    fn last_answer(&mut self, now: Moment, peer: &PeerId) {
        let Some(state) = self.peers.get(peer) else { return };
        if state.answers >= self.config.plain_answers {
            self.failed(peer);
        } else if state.wish == SourceWish::Forbidden {
            self.place(now, peer);
        } else {
            self.lease_to(now, peer, 0..u32::MAX);
        }
    }

    fn source_failed(&mut self, now: Moment, peer: &PeerId) {
        self.lose_source(peer, LeaseLoss::SourceFailed);
        if let Some(state) = self.peers.get_mut(peer) {
            state.source_spent = true;
        }
        if self.peers.get(peer).is_some_and(Peer::is_idle) {
            self.place(now, peer);
        }
    }

    fn finished(&mut self, now: Moment, peer: &PeerId) {
        self.fact(Fact::Finished);
        self.output(Output::End(peer.clone()));
        self.release_source(peer);
        self.leave_queue(peer);
        self.unlink_parents(peer);
        let Some(state) = self.peers.get_mut(peer) else { return };
        state.open = false;
        let task = state.task;
        let empty = state.pieces.is_empty();
        if let Some(task) = self.tasks.get_mut(&task) {
            task.open -= 1;
        }
        if empty {
            return self.remove_peer(peer);
        }
        self.reindex(peer);
        self.offer_complete(now, peer);
    }

    fn failed(&mut self, peer: &PeerId) {
        self.output(Output::End(peer.clone()));
        self.peer_gone_from(peer);
    }

    /// A peer's conversation broke off: who knows whether it is still there. It says so by registering again.
    pub(crate) fn peer_gone(&mut self, peer: &PeerId) {
        if self.peers.get(peer).is_some_and(|peer| peer.open) {
            self.peer_gone_from(peer);
        }
    }

    fn peer_gone_from(&mut self, peer: &PeerId) {
        self.fact(Fact::Failed);
        self.lose_source(peer, LeaseLoss::Gone);
        self.remove_peer(peer);
    }
}
