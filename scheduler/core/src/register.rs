//! A peer opens a conversation; a host says what it holds; a task is deleted. And room is made for them.

use damselfly_core::swarm::{Answer, Held, Holding, Origin, Registration, SourceWish};
use damselfly_core::{Geometry, HostId, Moment, PeerId, TaskId};

use crate::machine::Core;
use crate::peer::Peer;
use crate::task::Lease;
use crate::{Fact, Output};

/// How many of the tasks that were idle longest are looked at for one that can be forgotten.
const LOOK_FOR_ROOM: usize = 64;

impl Core {
    /// Whether a peer is of this host and task, or nobody's yet. A peer belongs to the host that made it: nobody else may end
    /// it or speak for it.
    pub fn may_speak(&self, host: &HostId, task: &TaskId, peer: &PeerId) -> bool {
        self.peers.get(peer).is_none_or(|known| known.task == *task && known.host == *host)
    }

    pub(crate) fn register(&mut self, now: Moment, registration: Registration) {
        let Registration { host, task, peer, origin, geometry, held, source, extended } = registration;
        self.heard_of(&host);
        if !self.may_speak(&host, &task, &peer) {
            self.fact(Fact::Refused);
            return;
        }
        self.drop_former(&host, &task, &peer);
        if !self.admit(now, &host, &task, &peer, origin) {
            self.fact(Fact::Refused);
            self.output(Output::End(peer));
            return;
        }
        self.fact(Fact::Registered);
        if extended {
            // It says now what it holds; what it held before may be gone.
            self.forget_pieces(&peer);
        }
        self.open(now, &peer, source, extended);
        let geometry = geometry.or(held.as_ref().map(|held| held.geometry));
        let agrees = self.learn_geometry(&task, &peer, geometry);
        if let Some(held) = held.filter(|_| agrees) {
            self.record_held(now, &peer, &held);
        }
        self.reindex(&peer);
        self.answer_registration(now, &peer);
    }

    /// A conversation begins; a former one of the same peer is over, what it held stays.
    fn open(&mut self, now: Moment, peer: &PeerId, wish: SourceWish, extended: bool) {
        self.unlink_parents(peer);
        self.leave_queue(peer);
        let Some(state) = self.peers.get_mut(peer) else { return };
        if !state.open {
            self.peer_number += 1;
            state.begin(now, self.peer_number);
            if let Some(task) = self.tasks.get_mut(&state.task) {
                task.open += 1;
            }
        }
        state.open = true;
        state.asked = true;
        state.wish = wish;
        state.extended = extended;
        state.source_spent = false;
        state.answers = 0;
        state.told_proven = None;
        state.proofs_sent = 0;
        state.former.clear();
    }

    fn answer_registration(&mut self, now: Moment, peer: &PeerId) {
        let Some(state) = self.peers.get(peer) else { return };
        let Some(task) = self.tasks.get_mut(&state.task) else { return };
        if !state.stranger && task.geometry.is_some_and(|geometry| geometry.count() == 0) {
            self.answer(peer, Answer::Empty);
            return;
        }
        let (wish, stranger, host, task_id) = (state.wish, state.stranger, state.host.clone(), state.task);
        let triggered = task.seed.as_ref().is_some_and(|seed| seed.host == host);
        let lease = task.leases.iter().find(|lease| lease.peer == *peer).map(|lease| lease.pieces.clone());
        if triggered {
            self.forget_seed(&task_id);
            self.unsettled.work.insert(task_id);
        }
        match lease {
            _ if stranger && wish != SourceWish::Forbidden => return self.lease_to(now, peer, 0..u32::MAX),
            Some(_) if wish == SourceWish::Forbidden => self.release_source(peer),
            Some(pieces) => self.lease_to(now, peer, pieces),
            // It read the source without a lease in its former conversation.
            None => self.release_source(peer),
        }
        if wish == SourceWish::Wanted && self.may_grant_beside(&task_id) {
            let run = self.unproductive_run(&task_id).unwrap_or(0..u32::MAX);
            self.lease_to(now, peer, run);
        }
        self.place(now, peer);
    }

    /// Whether one more may read the source beside leases that have brought nothing yet.
    fn may_grant_beside(&self, task: &TaskId) -> bool {
        self.tasks.get(task).is_some_and(|task| {
            let crowd = u32::try_from(task.open).unwrap_or(u32::MAX);
            !task.leases.iter().any(|lease| lease.progressed)
                && task.leases.len() <= 1 + crowd.max(1).ilog2() as usize
                && task.copies.iter().all(|copies| *copies == 0)
        })
    }

    /// The pieces of a lease that has brought nothing.
    fn unproductive_run(&self, task: &TaskId) -> Option<std::ops::Range<u32>> {
        let task = self.tasks.get(task)?;
        task.leases.iter().find(|lease| !lease.progressed).map(|lease| lease.pieces.clone())
    }

    pub(crate) fn held(&mut self, now: Moment, host: HostId, holding: Holding) {
        let Holding { task, peer, origin, held } = holding;
        self.heard_of(&host);
        if !self.may_speak(&host, &task, &peer) {
            self.fact(Fact::Refused);
            return;
        }
        let is_open = self.peers.get(&peer).is_some_and(|known| known.open);
        if held.pieces.is_empty() && !is_open {
            self.remove_peer(&peer);
            return;
        }
        self.drop_former(&host, &task, &peer);
        if !self.admit(now, &host, &task, &peer, origin) {
            self.fact(Fact::Refused);
            return;
        }
        let agrees = self.learn_geometry(&task, &peer, Some(held.geometry));
        if let Some(state) = self.peers.get_mut(&peer).filter(|_| !is_open) {
            // Only hosts of ours announce what they hold.
            state.extended = true;
        }
        if agrees {
            self.record_held(now, &peer, &held);
        }
        self.reindex(&peer);
        self.advance_lease(&peer);
        self.unsettled.work.insert(task);
    }

    pub(crate) fn delete_task(&mut self, task: &TaskId) {
        let Some(state) = self.tasks.get(task) else { return };
        for peer in state.peers.clone() {
            if self.peers.get(&peer).is_some_and(|peer| peer.open) {
                self.output(Output::End(peer.clone()));
            }
            self.remove_peer(&peer);
        }
    }

    /// What a host held under an earlier peer it holds under this one now, if at all.
    fn drop_former(&mut self, host: &HostId, task: &TaskId, peer: &PeerId) {
        for former in self.peers_of(host, task) {
            if former != *peer && self.peers.get(&former).is_some_and(|former| !former.open) {
                self.remove_peer(&former);
            }
        }
    }

    /// Makes sure that the peer, its host and its task are known; `false` if there is no room.
    fn admit(&mut self, now: Moment, host: &HostId, task: &TaskId, peer: &PeerId, origin: Origin) -> bool {
        let new_task = !self.tasks.contains_key(task);
        let new_peer = !self.peers.contains_key(peer);
        while (new_task && self.tasks.len() >= self.config.max_tasks)
            || (new_peer && self.peers.len() >= self.config.max_peers)
        {
            if !self.forget_idlest(task) {
                return false;
            }
        }
        let state = self.tasks.entry(*task).or_default();
        if state.origin.url.is_empty() {
            state.origin = origin;
        }
        state.peers.insert(peer.clone());
        let touched = std::mem::replace(&mut state.touched, now);
        self.tasks_by_age.remove(&(touched, *task));
        self.tasks_by_age.insert((now, *task));
        self.hosts.entry(host.clone()).or_default().peers.insert((*task, peer.clone()));
        if new_peer {
            self.peer_number += 1;
            self.peers.insert(peer.clone(), Peer::new(*task, host.clone(), self.peer_number));
        }
        true
    }

    /// Forgets the task that was idle longest, other than `keep`; `false` if all are in use.
    fn forget_idlest(&mut self, keep: &TaskId) -> bool {
        let idle = self.tasks_by_age.iter().take(LOOK_FOR_ROOM).map(|(_, task)| task);
        let idle = idle.filter(|task| *task != keep && self.tasks.get(task).is_some_and(|task| task.open == 0));
        let Some(idlest) = idle.copied().next() else { return false };
        self.delete_task(&idlest);
        self.fact(Fact::TaskForgotten);
        true
    }

    /// A peer says how the content is cut. `false` if others, who hold pieces, cut it differently: then this peer shares
    /// nothing with them.
    pub(crate) fn learn_geometry(&mut self, task: &TaskId, peer: &PeerId, geometry: Option<Geometry>) -> bool {
        let Some(geometry) = geometry else { return true };
        let Some(state) = self.tasks.get_mut(task) else { return false };
        let agrees = match state.geometry {
            Some(known) if known == geometry => true,
            Some(_)
                if state.peers.iter().any(|id| {
                    id != peer && self.peers.get(id).is_some_and(|other| !other.stranger && !other.pieces.is_empty())
                }) =>
            {
                false
            }
            _ => {
                state.geometry = Some(geometry);
                self.geometry_changed(task, geometry);
                true
            }
        };
        let before = self.peers.get_mut(peer).map(|state| std::mem::replace(&mut state.stranger, !agrees));
        if !agrees && before == Some(false) {
            self.fact(Fact::GeometryConflict);
            if let Some(host) = self.peers.get(peer).map(|state| state.host.clone()) {
                self.drop_lease(task, &host, peer);
            }
        }
        if agrees && before == Some(true) {
            self.note_freed(task);
        }
        agrees
    }

    /// What was said of pieces under another geometry says nothing any more.
    fn geometry_changed(&mut self, task: &TaskId, geometry: Geometry) {
        let Some(state) = self.tasks.get_mut(task) else { return };
        state.claims.clear();
        state.proofs.clear();
        state.proof_log.clear();
        state.unproven.truncate(geometry.count());
        let peers = state.peers.clone();
        for id in &peers {
            let Some(peer) = self.peers.get_mut(id) else { continue };
            if let (Some(place), Some(state)) = (peer.place.take(), self.tasks.get_mut(task)) {
                state.holders.remove(id, &place);
            }
            peer.proofs_sent = 0;
            peer.stranger = false;
            peer.pieces.truncate(geometry.count());
        }
        if let Some(state) = self.tasks.get_mut(task) {
            state.copies.clear();
            state.cursor = 0;
            let open_ended = |lease: &&mut Lease| lease.pieces.end > geometry.count();
            for lease in state.leases.iter_mut().filter(open_ended) {
                lease.pieces.end = geometry.count().max(lease.pieces.start.min(geometry.count()));
                lease.pieces.start = lease.pieces.start.min(geometry.count());
            }
        }
        let empty = |id: &&PeerId| {
            let lease = self.tasks.get(task).and_then(|task| task.leases.iter().find(|lease| lease.peer == **id));
            lease.is_some_and(|lease| lease.pieces.start >= lease.pieces.end)
        };
        for id in peers.iter().filter(empty).cloned().collect::<Vec<_>>() {
            self.release_source(&id);
        }
        for id in &peers {
            self.reindex(id);
        }
        self.unsettled.work.insert(*task);
        self.note_freed(task);
    }

    /// Pieces that a host says it holds, with what they hashed to.
    fn record_held(&mut self, now: Moment, peer: &PeerId, held: &Held) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        let (task, extended) = (state.task, state.extended);
        for (piece, blake3) in &held.pieces {
            if held.geometry.piece(piece.0).is_none() {
                continue;
            }
            self.add_piece(peer, *piece);
            if extended {
                self.claim(now, &task, peer, *piece, *blake3);
            } else if self.names_its_bytes(&task) {
                self.note_unproven(&task, *piece);
            }
        }
    }
}
