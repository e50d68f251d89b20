//! Edges between parents and children, and who stands among a task's holders.
//!
//! **No peer is its own ancestor**: an edge leads from a smaller order to a greater one. A peer without children takes a
//! fresh order, the greatest so far, with its first parent; one that has children, and finds parents only among peers of
//! greater order that are not its descendants, is moved behind them together with all its descendants.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use damselfly_core::{HostId, Moment, PeerId, TaskId};

use crate::holders::Place;
use crate::machine::{Core, Wake};
use crate::peer::Peer;

impl Core {
    /// Makes `parent` one of `child`'s parents and takes one of its host's slots.
    pub(crate) fn link(&mut self, parent: &PeerId, child: &PeerId) {
        let Some(order) = self.peers.get(parent).map(|peer| peer.order) else { return };
        let Some(state) = self.peers.get_mut(child) else { return };
        if !state.parents.insert(parent.clone()) {
            return;
        }
        if state.order <= order {
            self.move_behind(child);
        }
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
        if let Some(state) = self.peers.get_mut(child) {
            state.parents.remove(parent);
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
        // Even where no slot was missing: a cycle that was in somebody's way may be open now.
        if let Some(task) = self.peers.get(parent).map(|parent| parent.task) {
            self.note_freed(&task);
        }
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
            if self.peers.get(&child).is_some_and(Peer::is_idle) {
                self.unsettled.orphans.insert(child);
            }
        }
    }

    /// Everybody who gets pieces from `peer`, directly or not; not itself.
    pub(crate) fn descendants(&self, peer: &PeerId) -> BTreeSet<PeerId> {
        let mut found = BTreeSet::new();
        let mut next = vec![peer];
        while let Some(state) = next.pop().and_then(|id| self.peers.get(id)) {
            for child in &state.children {
                if found.insert(child.clone()) {
                    next.push(child);
                }
            }
        }
        found
    }

    /// Gives `peer` and its descendants fresh orders, each after all of its parents.
    fn move_behind(&mut self, peer: &PeerId) {
        let mut moved: Vec<(u64, PeerId)> = self
            .descendants(peer)
            .into_iter()
            .filter_map(|id| self.peers.get(&id).map(|state| (state.order, id)))
            .collect();
        // Their old orders sort them; `peer` comes before all its descendants.
        moved.sort();
        for id in std::iter::once(peer).chain(moved.iter().map(|(_, id)| id)) {
            if let Some(state) = self.peers.get_mut(id) {
                state.order = self.next_order;
                self.next_order += 1;
            }
        }
    }

    /// A peer that is done has no parents: it may be anybody's.
    pub(crate) fn become_root(&mut self, peer: &PeerId) {
        self.unlink_parents(peer);
        if let Some(state) = self.peers.get_mut(peer) {
            state.order = 0;
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
        let is_lost = place.is_none();
        let was_free = matches!(state.place, Some(Place::Free(..)));
        let is_free = matches!(place, Some(Place::Free(..)));
        if let Some(task) = self.tasks.get_mut(&state.task) {
            if let Some(old) = &state.place {
                task.holders.remove(peer, old);
            }
            if let Some(new) = &place {
                task.holders.add(peer, new);
            }
        }
        if let Some(state) = self.peers.get_mut(peer) {
            state.place = place;
        }
        if is_free && !was_free {
            self.note_freed(&task_id);
        }
        if is_lost {
            self.note_lost(&task_id);
            self.unsettled.dry.insert(task_id);
        }
    }

    fn place_of(&self, peer: &PeerId) -> Option<Place> {
        let state = self.peers.get(peer)?;
        let host = self.hosts.get(&state.host)?;
        let task = self.tasks.get(&state.task)?;
        let info = host.offered()?;
        if state.pieces.is_empty()
            || state.stranger
            || info.upload_slots == 0
            || task.isolated.contains_key(&state.host)
        {
            return None;
        }
        if host.children >= info.upload_slots || state.children.len() >= self.config.children_per_task {
            return Some(Place::Full);
        }
        Some(Place::Free((state.children.len(), state.tie, peer.clone()), Arc::clone(&host.idc)))
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
        for peer in state.peers.clone() {
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
        }
    }

    /// Puts a peer at the end of its task's queue, unless it stands there.
    pub(crate) fn join_queue(&mut self, peer: &PeerId) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        if let (None, Some(task)) = (state.ticket, self.tasks.get_mut(&state.task)) {
            state.ticket = Some(self.next_ticket);
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
            host.peers.remove(peer);
            if host.is_unneeded() {
                self.hosts.remove(&state.host);
            }
        }
        if let Some(task) = self.tasks.get_mut(&state.task) {
            task.peers.remove(peer);
            task.open -= usize::from(state.open);
            if let Some(place) = &state.place {
                task.holders.remove(peer, place);
            }
            if task.peers.is_empty() {
                self.forget_task(&state.task);
            } else if state.place.is_some() {
                self.note_lost(&state.task);
                self.unsettled.dry.insert(state.task);
            }
        }
    }

    /// Somebody who waits in this task may have lost what they waited for.
    pub(crate) fn note_lost(&mut self, task: &TaskId) {
        if self.tasks.get(task).is_some_and(|task| !task.is_fed() && !task.waiting.is_empty()) {
            self.unsettled.shaken.insert(*task);
        }
    }

    /// Forgets a task that nobody takes part in.
    pub(crate) fn forget_task(&mut self, task: &TaskId) {
        if let Some(state) = self.tasks.remove(task) {
            self.tasks_by_age.remove(&(state.touched, *task));
            if let Some(lease) = state.lease {
                self.cancel_wake(lease.due, Wake::Lease(*task));
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
