//! Parents for a peer, and waking those who wait.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use damselfly_core::swarm::{Answer, HostInfo, Offer};
use damselfly_core::{HostId, Moment, PeerId, TaskId};

use crate::Fact;
use crate::machine::Core;
use crate::peer::Peer;

/// How many usable holders are compared for an offer, near ones and all, each.
const LOOK: usize = 24;

/// The longest wait between two looks for more parents for a peer that has some.
const MOST_IMPROVE_WAIT: Duration = Duration::from_secs(30);

/// What can be done for a peer that wants parents.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// These, best first.
    Offers(Vec<PeerId>),
    /// Somebody could serve it, but has no free slot.
    Busy,
    /// Nobody can.
    Nobody,
}

impl Core {
    /// Serves whom an event left without work, and those who wait for what it set free.
    pub(crate) fn settle(&mut self, now: Moment) {
        loop {
            if let Some(orphan) = self.unsettled.orphans.pop_first() {
                if self.peers.get(&orphan).is_some_and(|peer| peer.is_idle() && peer.ticket.is_none()) {
                    self.place(now, &orphan);
                }
            } else if let Some(task) = self.unsettled.freed.pop_first() {
                self.serve_waiting(now, &task);
            } else if let Some(task) = self.unsettled.shaken.pop_first() {
                self.feed(now, &task);
            } else if let Some(task) = self.unsettled.dry.pop_first() {
                self.feed_the_dry(now, &task);
            } else {
                return;
            }
        }
    }

    /// Finds work for a peer that has none: parents, a place in the queue, or the source.
    pub(crate) fn place(&mut self, now: Moment, peer: &PeerId) {
        let Some(task) = self.peers.get(peer).map(|peer| peer.task) else { return };
        match self.choose(peer, self.parents_each(&task)) {
            Choice::Offers(offers) => return self.offer(now, peer, offers),
            Choice::Nobody if self.tasks.get(&task).is_some_and(|task| !task.is_fed()) => {
                // Somebody may read the source unbidden: then there is no lease to give, but one to inherit.
                self.feed_or_inherit(now, &task, peer);
            }
            Choice::Nobody | Choice::Busy => {}
        }
        let Some(state) = self.peers.get(peer).filter(|peer| peer.is_idle()) else { return };
        let tell = state.extended && state.asked;
        self.join_queue(peer);
        if tell {
            self.answer(peer, Answer::Wait);
        }
    }

    fn feed_or_inherit(&mut self, now: Moment, task: &TaskId, peer: &PeerId) {
        if self.tasks.get(task).is_some_and(|task| !task.sourcing.is_empty()) {
            self.feed(now, task);
        }
        if self.tasks.get(task).is_some_and(|task| !task.is_fed()) {
            self.feed_from(now, peer);
        }
    }

    /// Serves those who wait, in their order, as long as there are free slots.
    fn serve_waiting(&mut self, now: Moment, task: &TaskId) {
        let mut next = 0;
        while let Some((ticket, peer)) = self.waiting_from(task, next) {
            next = ticket + 1;
            if !self.tasks.get(task).is_some_and(|task| task.holders.has_free()) {
                return;
            }
            if let Choice::Offers(offers) = self.choose(&peer, self.parents_each(task)) {
                self.offer(now, &peer, offers);
            }
        }
    }

    /// The first in a task's queue with this ticket or a later one.
    pub(crate) fn waiting_from(&self, task: &TaskId, ticket: u64) -> Option<(u64, PeerId)> {
        let (ticket, peer) = self.tasks.get(task)?.waiting.range(ticket..).next()?;
        Some((*ticket, peer.clone()))
    }

    /// How many parents a peer gets at once: one while more peers wait than there are holders to serve them, so that
    /// the first copies multiply as fast as they can.
    fn parents_each(&self, task: &TaskId) -> usize {
        let Some(task) = self.tasks.get(task) else { return 1 };
        let (waiting, free) = (task.waiting.len(), task.holders.free_len());
        if waiting > free { 1 } else { self.config.max_parents.min(if 2 * waiting > free { 2 } else { usize::MAX }) }
    }

    /// Up to `most` new parents for a peer.
    pub(crate) fn choose(&self, peer: &PeerId, most: usize) -> Choice {
        let Some(child) = self.peers.get(peer) else { return Choice::Nobody };
        let behind = |id: &PeerId| child.children.is_empty() || self.order(id) < child.order;
        let choice = self.choose_among(child, most, &behind);
        if matches!(choice, Choice::Offers(_)) || child.children.is_empty() {
            return choice;
        }
        // None of smaller order: whoever is not a descendant closes no cycle either.
        let descendants = self.descendants(peer);
        self.choose_among(child, most, &|id| !descendants.contains(id))
    }

    fn order(&self, peer: &PeerId) -> u64 {
        self.peers.get(peer).map_or(u64::MAX, |peer| peer.order)
    }

    fn choose_among(&self, child: &Peer, most: usize, acyclic: &dyn Fn(&PeerId) -> bool) -> Choice {
        let Some(task) = self.tasks.get(&child.task) else { return Choice::Nobody };
        let me = self.hosts.get(&child.host).and_then(|host| host.info.as_ref());
        let idc = me.map_or("", |me| me.idc.as_str());
        let usable = |id: &&PeerId| self.is_usable(child, id) && acyclic(id);
        let near = task.holders.free_in(idc).filter(usable).take(LOOK);
        let found: BTreeSet<&PeerId> = near.chain(task.holders.free().filter(usable).take(LOOK)).collect();
        let mut ranked: Vec<_> = found.into_iter().filter_map(|id| Some((self.rank(me, id)?, id))).collect();
        ranked.sort();
        let mut hosts: BTreeSet<&HostId> = BTreeSet::new();
        let one_each = ranked.iter().filter(|(_, id)| self.peers.get(*id).is_some_and(|peer| hosts.insert(&peer.host)));
        let offers: Vec<PeerId> = one_each.take(most).map(|(_, id)| (*id).clone()).collect();
        if !offers.is_empty() {
            Choice::Offers(offers)
        } else if task.holders.full().any(|id| usable(&id)) {
            Choice::Busy
        } else {
            Choice::Nobody
        }
    }

    fn is_usable(&self, child: &Peer, id: &PeerId) -> bool {
        !child.stranger
            && !child.failed.contains(id)
            && !child.parents.contains(id)
            && self.peers.get(id).is_some_and(|peer| peer.host != child.host)
    }

    /// What makes one holder better than another, smallest first: near, not stuck, little to do, chance.
    fn rank(&self, me: Option<&HostInfo>, id: &PeerId) -> Option<(Reverse<usize>, bool, u32, usize, u64)> {
        let peer = self.peers.get(id)?;
        let host = self.hosts.get(&peer.host)?;
        let info = host.info.as_ref()?;
        let count = self.tasks.get(&peer.task)?.geometry.map(|geometry| geometry.count());
        let stuck = !peer.open && count.is_some_and(|count| peer.pieces.len() < count);
        // In thousandths, so that a large host takes more children than a small one.
        let load = host.children.saturating_mul(1000) / info.upload_slots.max(1);
        Some((Reverse(me.map_or(0, |me| nearness(me, info))), stuck, load, peer.children.len(), peer.tie))
    }

    /// Gives a peer these parents beside those it has. If it reads the source it leaves that for them.
    pub(crate) fn offer(&mut self, now: Moment, peer: &PeerId, offers: Vec<PeerId>) {
        self.release_source(peer);
        self.leave_queue(peer);
        for parent in &offers {
            self.link(parent, peer);
        }
        let Some(state) = self.peers.get_mut(peer) else { return };
        state.offered_at = now;
        let (task, holds) = (state.task, !state.pieces.is_empty());
        let wants_more = state.extended && state.parents.len() < self.config.max_parents;
        self.fact(Fact::Offered);
        self.answer_parents(peer, &offers);
        if holds {
            // An ancestor that waited for its slots can do so no more: that would be a cycle.
            self.note_lost(&task);
        }
        if wants_more {
            self.improve_later(now, peer, self.config.improve_interval);
        }
    }

    /// Tells a peer its parents, these first.
    pub(crate) fn answer_parents(&mut self, peer: &PeerId, first: &[PeerId]) {
        self.send_proofs(peer);
        let Some(state) = self.peers.get(peer) else { return };
        let task = state.task;
        let rest = state.parents.iter().filter(|id| !first.contains(id));
        let offers = first.iter().chain(rest).filter_map(|id| self.offer_of(id)).collect();
        let proven = self.is_proven(&task);
        let geometry = self.tasks.get(&task).and_then(|task| task.geometry);
        if let Some(state) = self.peers.get_mut(peer) {
            state.told_proven = Some(proven);
        }
        self.answer(peer, Answer::Parents { offers, geometry, proven });
    }

    fn offer_of(&self, parent: &PeerId) -> Option<Offer> {
        let host = &self.peers.get(parent)?.host;
        let info = self.hosts.get(host)?.info.as_ref()?;
        Some(Offer { peer: parent.clone(), host: host.clone(), rpc: SocketAddr::new(info.ip, info.rpc_port) })
    }

    /// Gives a peer that has fewer parents than it may have some more, if nobody waits and the hosts have more than
    /// their last slot free: that one is kept for who comes next.
    pub(crate) fn improve(&mut self, now: Moment, at: Moment, peer: &PeerId) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        let Some((_, wait)) = state.improve.take_if(|(due, _)| *due == at) else { return };
        let room = self.config.max_parents.saturating_sub(state.parents.len());
        if !state.open || state.parents.is_empty() || room == 0 {
            return;
        }
        let task = state.task;
        let crowded = self.tasks.get(&task).is_none_or(|task| !task.waiting.is_empty());
        let better = match self.choose(peer, room) {
            Choice::Offers(offers) if !crowded => offers.into_iter().filter(|id| self.has_spare_slots(id)).collect(),
            _ => Vec::new(),
        };
        if better.is_empty() {
            self.improve_later(now, peer, wait.saturating_mul(2).min(MOST_IMPROVE_WAIT));
        } else {
            self.offer(now, peer, better);
        }
    }

    /// Serves a peer that waits and reads the source meanwhile, though every slot that could serve it is taken: a child
    /// that has other parents, too, gives one up.
    pub(crate) fn make_room(&mut self, now: Moment, peer: &PeerId) {
        let Some(state) = self.peers.get(peer).filter(|peer| peer.ticket.is_some() && peer.extended) else { return };
        let Some(task) = self.tasks.get(&state.task) else { return };
        let descendants = self.descendants(peer);
        let rich =
            |child: &&PeerId| self.peers.get(*child).is_some_and(|child| child.extended && child.parents.len() > 1);
        let full = task.holders.full().filter(|id| self.is_usable(state, id) && !descendants.contains(*id));
        let found =
            full.take(LOOK).find_map(|id| Some((id.clone(), self.peers.get(id)?.children.iter().find(rich)?.clone())));
        if let Some((parent, child)) = found {
            self.unlink(&parent, &child);
            self.answer_parents(&child, &[]);
            self.offer(now, peer, vec![parent]);
        }
    }

    fn has_spare_slots(&self, peer: &PeerId) -> bool {
        let Some(peer) = self.peers.get(peer) else { return false };
        let info = self.hosts.get(&peer.host).and_then(|host| host.info.as_ref().map(|info| (host.children, info)));
        info.is_some_and(|(children, info)| children + 1 < info.upload_slots)
            && peer.children.len() + 1 < self.config.children_per_task
    }
}

/// How near two hosts are: the same data centre above all, then what their locations have in common from the left.
fn nearness(a: &HostInfo, b: &HostInfo) -> usize {
    const SAME_IDC: usize = 1000;
    let idc = if !a.idc.is_empty() && a.idc == b.idc { SAME_IDC } else { 0 };
    let common = a.location.split('|').zip(b.location.split('|')).take_while(|(a, b)| !a.is_empty() && a == b);
    idc + common.count()
}
