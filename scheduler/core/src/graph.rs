//! Edges between parents and children, and who stands among a task's holders.
//!
//! The edges make a mesh: a peer may be the parent of its own parent. A piece has one producer per host, so data cannot go
//! round; and what keeps a swarm alive is not the graph's shape but that each piece that is wanted is held by somebody who
//! can be reached, or leased to somebody who gets on ([`super::source`]).

use std::sync::Arc;
use std::time::Duration;

use damselfly_core::{HostId, Moment, PeerId, PieceNumber, TaskId};

use crate::holders::Place;
use crate::machine::{Core, Wake};
use crate::peer::Peer;

impl Core {
    /// Makes `parent` one of `child`'s parents and takes one of its host's slots.
    pub(crate) fn link(&mut self, parent: &PeerId, child: &PeerId) {
        if !self.peers.contains_key(parent) {
            return;
        }
        let Some(state) = self.peers.get_mut(child) else { return };
        if !state.parents.insert(parent.clone()) {
            return;
        }
        self.activity.fetching += usize::from(state.parents.len() == 1);
        if let Some(state) = self.peers.get_mut(parent) {
            state.children.insert(child.clone());
            let host = state.host.clone();
            if let Some(host) = self.hosts.get_mut(&host) {
                host.children += 1;
            }
            self.reindex_load(parent);
        }
    }

    /// Takes an edge away and frees the slot.
    pub(crate) fn unlink(&mut self, parent: &PeerId, child: &PeerId) {
        let most = self.config.max_failed;
        if let Some(state) = self.peers.get_mut(child)
            && state.parents.remove(parent)
        {
            self.activity.fetching -= usize::from(state.parents.is_empty());
            state.given.remove(parent);
            state.remember_former(parent, most);
        }
        let Some(state) = self.peers.get_mut(parent) else { return };
        if !state.children.remove(child) {
            return;
        }
        let host = state.host.clone();
        if let Some(host) = self.hosts.get_mut(&host) {
            host.children -= 1;
        }
        self.reindex_load(parent);
    }

    /// Somebody who waits in this task may be served now.
    pub(crate) fn note_freed(&mut self, task: &TaskId) {
        if self.tasks.get(task).is_some_and(|task| !task.waiting.is_empty() && task.holders.has_free()) {
            self.unsettled.freed.insert(*task);
        }
    }

    /// Takes all of a child's parents away.
    pub(crate) fn unlink_parents(&mut self, child: &PeerId) {
        let Some(state) = self.peers.get(child) else { return };
        for parent in state.parents.clone() {
            self.unlink(&parent, child);
        }
    }

    /// Takes all of a parent's children away. Those who now have nothing to work with are served by the next
    /// [`Core::settle`].
    pub(crate) fn unlink_children(&mut self, parent: &PeerId) {
        let Some(state) = self.peers.get(parent) else { return };
        for child in state.children.clone() {
            self.unlink(parent, &child);
            if self.peers.get(&child).is_some_and(Peer::lacks_parents) {
                self.unsettled.orphans.insert(child);
            }
        }
    }

    /// Puts a peer where it belongs among its task's holders.
    pub(crate) fn reindex(&mut self, peer: &PeerId) {
        let Some(state) = self.peers.get(peer) else { return };
        let place = self.place_of(peer);
        if place == state.place {
            return;
        }
        let task_id = state.task;
        let (was_there, is_there) = (state.place.is_some(), place.is_some());
        let was_free = matches!(state.place, Some(Place::Free(_)));
        let is_free = matches!(place, Some(Place::Free(_)));
        if let Some(task) = self.tasks.get_mut(&state.task) {
            if let Some(old) = &state.place {
                task.holders.remove(peer, old);
            }
            if let Some(new) = &place {
                task.holders.add(peer, new);
            }
            if was_there != is_there {
                task.count_copies(&state.pieces, is_there);
            }
        }
        if let Some(state) = self.peers.get_mut(peer) {
            state.place = place;
        }
        if is_free && !was_free {
            self.note_freed(&task_id);
        }
        if was_there != is_there {
            self.unsettled.work.insert(task_id);
        }
    }

    /// One that has nothing yet can be followed once everybody knows how the content is cut.
    fn place_of(&self, peer: &PeerId) -> Option<Place> {
        let state = self.peers.get(peer)?;
        let host = self.hosts.get(&state.host)?;
        let task = self.tasks.get(&state.task)?;
        let info = host.offered()?;
        let gets_some = state.open && state.extended && task.geometry.is_some();
        if (state.pieces.is_empty() && !gets_some)
            || state.stranger
            || state.withholds.is_some()
            || info.upload_slots == 0
            || task.isolated.contains_key(&state.host)
        {
            return None;
        }
        if host.children >= info.upload_slots || state.children.len() >= self.config.children_per_task {
            return Some(Place::Full);
        }
        Some(Place::Free(Arc::clone(&host.idc)))
    }

    /// A peer has one more piece.
    pub(crate) fn add_piece(&mut self, peer: &PeerId, piece: PieceNumber) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        let first = state.pieces.is_empty();
        let task_id = state.task;
        if state.pieces.insert(piece)
            && state.place.is_some()
            && let Some(task) = self.tasks.get_mut(&task_id)
        {
            task.count_copy(piece, true);
            if task.copies_of(piece) == 1 {
                self.unsettled.work.insert(task_id);
            }
            if first {
                // Those of the plain protocol have waited for that.
                self.note_freed(&task_id);
            }
        }
    }

    /// Nothing is known any more of what a peer has.
    pub(crate) fn forget_pieces(&mut self, peer: &PeerId) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        let pieces = std::mem::take(&mut state.pieces);
        if state.place.is_some()
            && let Some(task) = self.tasks.get_mut(&state.task)
        {
            task.count_copies(&pieces, false);
            self.unsettled.work.insert(state.task);
        }
    }

    /// A peer has one piece less.
    pub(crate) fn remove_piece(&mut self, peer: &PeerId, piece: PieceNumber) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        if state.pieces.remove(piece)
            && state.place.is_some()
            && let Some(task) = self.tasks.get_mut(&state.task)
        {
            task.count_copy(piece, false);
            self.unsettled.work.insert(state.task);
        }
    }

    /// Reindexes after a peer's number of children changed. All of its host's peers move when the last slot is taken or
    /// given back; the tasks in which somebody waits for that are served by the next [`Core::settle`].
    fn reindex_load(&mut self, peer: &PeerId) {
        self.reindex(peer);
        let Some(state) = self.peers.get(peer) else { return };
        let Some(host) = self.hosts.get(&state.host) else { return };
        let full = host.info.as_ref().is_none_or(|info| host.children >= info.upload_slots);
        if full != host.full {
            let host_id = state.host.clone();
            self.reindex_host(&host_id);
        }
    }

    /// Reindexes all of a host's peers.
    pub(crate) fn reindex_host(&mut self, host: &HostId) {
        let Some(state) = self.hosts.get_mut(host) else { return };
        state.full = state.info.as_ref().is_none_or(|info| state.children >= info.upload_slots);
        for (_, peer) in state.peers.clone() {
            self.reindex(&peer);
        }
    }

    /// Looks at a peer's chances to get more parents again after `wait`.
    pub(crate) fn improve_later(&mut self, now: Moment, peer: &PeerId, wait: Duration) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        let old = state.improve.replace((now + wait, wait));
        if let Some((at, _)) = old {
            self.cancel_wake(at, Wake::Improve(peer.clone()));
        }
        self.wake_at(now + wait, Wake::Improve(peer.clone()));
    }

    /// Takes a peer out of its task's queue.
    pub(crate) fn leave_queue(&mut self, peer: &PeerId) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        if let (Some(ticket), Some(task)) = (state.ticket.take(), self.tasks.get_mut(&state.task)) {
            task.waiting.remove(&ticket);
            self.activity.waiting -= 1;
        }
    }

    /// Puts a peer at the end of its task's queue, unless it stands there.
    pub(crate) fn join_queue(&mut self, peer: &PeerId) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        if let (None, Some(task)) = (state.ticket, self.tasks.get_mut(&state.task)) {
            state.ticket = Some(self.next_ticket);
            self.activity.waiting += 1;
            task.waiting.insert(self.next_ticket, peer.clone());
            self.next_ticket += 1;
        }
    }

    /// Forgets a peer altogether.
    pub(crate) fn remove_peer(&mut self, peer: &PeerId) {
        self.release_source(peer);
        self.unlink_parents(peer);
        self.unlink_children(peer);
        self.leave_queue(peer);
        let Some(state) = self.peers.remove(peer) else { return };
        if let Some((at, _)) = state.improve {
            self.cancel_wake(at, Wake::Improve(peer.clone()));
        }
        if let Some(host) = self.hosts.get_mut(&state.host) {
            host.peers.remove(&(state.task, peer.clone()));
            if host.is_unneeded() {
                self.hosts.remove(&state.host);
            }
        }
        if let Some(task) = self.tasks.get_mut(&state.task) {
            task.peers.remove(peer);
            task.open -= usize::from(state.open);
            if let Some(place) = &state.place {
                task.holders.remove(peer, place);
                task.count_copies(&state.pieces, false);
            }
            if task.peers.is_empty() {
                self.forget_task(&state.task);
            } else {
                self.unsettled.work.insert(state.task);
            }
        }
    }

    /// Forgets a task that nobody takes part in.
    pub(crate) fn forget_task(&mut self, task: &TaskId) {
        if let Some(state) = self.tasks.remove(task) {
            self.tasks_by_age.remove(&(state.touched, *task));
            if let Some(due) = state.leases_due {
                self.cancel_wake(due, Wake::Lease(*task));
            }
            if let Some(seed) = state.seed {
                self.cancel_wake(seed.until, Wake::Seed(*task));
            }
            if let Some(due) = state.proofs_due {
                self.cancel_wake(due, Wake::Proofs(*task));
            }
            for (host, until) in state.isolated {
                self.cancel_wake(until, Wake::TaskIsolation(*task, host));
            }
        }
    }
}
