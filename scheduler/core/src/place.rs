//! Parents for a peer, and waking those who wait.
//!
//! A peer gets a hand of parents drawn by chance, near ones first but always some others, and most of them get it as a
//! parent in return: every edge of the mesh that can carry pieces both ways does. More, or better ones, are pushed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use damselfly_core::swarm::{Answer, HostInfo, Offer};
use damselfly_core::{HostId, Moment, PeerId, PieceNumber, TaskId};

use crate::Fact;
use crate::holders::Place;
use crate::machine::Core;
use crate::peer::Peer;

/// How many holders are drawn for an offer, near ones and all, each.
const LOOK: usize = 24;

/// How many holders are drawn in search of those who have one certain piece, and how many of these are offered.
const LOOK_FOR_PIECE: usize = 64;
const HOLDERS_OF_PIECE: usize = 3;

/// How many holders are compared for one who has more than a parent does.
const LOOK_FOR_RICHER: usize = 8;

/// How many are drawn who may want one that has just become complete.
const OFFERED_COMPLETE: usize = 8;

/// The longest wait between two looks for more parents for a peer that has some.
const MOST_IMPROVE_WAIT: Duration = Duration::from_secs(30);

/// What can be done for a peer that wants parents.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// These, best first.
    Offers(Vec<PeerId>),
    /// Nobody can serve it now.
    Nobody,
}

impl Core {
    /// Serves whom an event left without work, and those who wait for what it set free.
    pub(crate) fn settle(&mut self, now: Moment) {
        loop {
            if let Some(orphan) = self.unsettled.orphans.pop_first() {
                if self.peers.get(&orphan).is_some_and(|peer| peer.lacks_parents() && peer.ticket.is_none()) {
                    self.place(now, &orphan);
                }
            } else if let Some(task) = self.unsettled.freed.pop_first() {
                self.serve_waiting(now, &task);
            } else if let Some(task) = self.unsettled.work.pop_first() {
                self.assign_checks(now, &task);
                self.assign(now, &task);
            } else {
                return;
            }
        }
    }

    /// Finds work for a peer that has none: parents, the source, or a place in the queue.
    pub(crate) fn place(&mut self, now: Moment, peer: &PeerId) {
        let Some(task) = self.peers.get(peer).map(|peer| peer.task) else { return };
        if let Choice::Offers(offers) = self.choose(peer, self.config.max_parents) {
            self.offer(now, peer, offers);
        } else if self.peers.get(peer).is_some_and(Peer::lacks_parents) {
            self.join_queue(peer);
        }
        self.assign(now, &task);
        let Some(state) = self.peers.get(peer).filter(|peer| peer.is_idle()) else { return };
        if state.extended && state.asked {
            self.answer(peer, Answer::Wait);
        }
    }

    /// Serves those who wait, in their order, as long as there is somebody to serve them.
    fn serve_waiting(&mut self, now: Moment, task: &TaskId) {
        let mut next = 0;
        while let Some((ticket, peer)) = self.waiting_from(task, next) {
            next = ticket + 1;
            if !self.tasks.get(task).is_some_and(|task| task.holders.has_free()) {
                return;
            }
            if let Choice::Offers(offers) = self.choose(&peer, self.config.max_parents) {
                self.offer(now, &peer, offers);
            }
        }
    }

    /// The first in a task's queue with this ticket or a later one.
    pub(crate) fn waiting_from(&self, task: &TaskId, ticket: u64) -> Option<(u64, PeerId)> {
        let (ticket, peer) = self.tasks.get(task)?.waiting.range(ticket..).next()?;
        Some((*ticket, peer.clone()))
    }

    /// Up to `most` new parents for a peer.
    pub(crate) fn choose(&mut self, peer: &PeerId, most: usize) -> Choice {
        let Some(child) = self.peers.get(peer) else { return Choice::Nobody };
        let Some(task) = self.tasks.get(&child.task) else { return Choice::Nobody };
        let me = self.hosts.get(&child.host).and_then(|host| host.info.as_ref());
        let idc = me.map_or("", |me| me.idc.as_str());
        let mut drawn = task.holders.draw_free_in(idc, LOOK, &mut self.rng);
        drawn.extend(task.holders.draw_free(LOOK, &mut self.rng));
        let mut seen = BTreeSet::new();
        drawn.retain(|id| seen.insert(id.clone()) && self.is_usable(child, id));
        let ranked: BTreeMap<_, &PeerId> =
            drawn.iter().enumerate().filter_map(|(at, id)| Some(((self.rank(me, id)?, at), id))).collect();
        let mut hosts: BTreeSet<&HostId> = BTreeSet::new();
        let one_each = |id: &&PeerId| self.peers.get(*id).is_some_and(|peer| hosts.insert(&peer.host));
        let mut ranked: Vec<PeerId> = ranked.into_values().filter(one_each).cloned().collect();
        // A few from anywhere: near ones alone would be a swarm of their own.
        let others = most / 4;
        if ranked.len() > most && others > 0 {
            let rest = ranked.split_off(most - others);
            let skip = self.rng.usize(..=rest.len() - others);
            ranked.extend(rest.into_iter().skip(skip).take(others));
        }
        ranked.truncate(most);
        if ranked.is_empty() { Choice::Nobody } else { Choice::Offers(ranked) }
    }

    /// Some who have this piece and may be this peer's parents.
    pub(crate) fn holders_of(&mut self, peer: &PeerId, piece: PieceNumber) -> Vec<PeerId> {
        let Some(child) = self.peers.get(peer) else { return Vec::new() };
        let Some(task) = self.tasks.get(&child.task).filter(|task| task.copies_of(piece) > 0) else {
            return Vec::new();
        };
        let mut drawn = task.holders.draw_free(LOOK_FOR_PIECE, &mut self.rng);
        drawn.extend(task.holders.draw_full(LOOK_FOR_PIECE, &mut self.rng));
        let has = |id: &PeerId| self.peers.get(id).is_some_and(|peer| peer.pieces.contains(piece));
        drawn.retain(|id| self.is_usable(child, id) && has(id));
        drawn.truncate(HOLDERS_OF_PIECE.min(self.config.max_parents));
        drawn
    }

    fn is_usable(&self, child: &Peer, id: &PeerId) -> bool {
        !child.stranger
            && !child.parents.contains(id)
            // One of the plain protocol cannot follow a parent that has nothing yet.
            && self.peers.get(id).is_some_and(|peer| {
                peer.host != child.host && !child.avoids(id, peer.number, self.now) && (child.extended || !peer.pieces.is_empty())
            })
    }

    /// What makes one holder better than another, smallest first: near, not stuck, few children.
    fn rank(&self, me: Option<&HostInfo>, id: &PeerId) -> Option<(Reverse<usize>, bool, u32, usize)> {
        let peer = self.peers.get(id)?;
        let host = self.hosts.get(&peer.host)?;
        let info = host.info.as_ref()?;
        let count = self.tasks.get(&peer.task)?.geometry.map(|geometry| geometry.count());
        let stuck = !peer.open && count.is_some_and(|count| peer.pieces.len() < count);
        // In hundredths, so that a large host takes more children than a small one.
        let load = host.children.saturating_mul(100) / info.upload_slots.max(1);
        Some((Reverse(me.map_or(0, |me| nearness(me, info))), stuck, load, peer.children.len()))
    }

    /// Gives a peer these parents beside those it has, and it to them where they can use it.
    pub(crate) fn offer(&mut self, now: Moment, peer: &PeerId, offers: Vec<PeerId>) {
        self.leave_queue(peer);
        self.make_room_in_hand(peer, offers.len());
        for parent in &offers {
            self.link(parent, peer);
        }
        let Some(state) = self.peers.get_mut(peer) else { return };
        state.offered_at = now;
        let wants_more = state.extended && state.improve.is_none();
        if !self.has_lease(peer) {
            // What it reads without a lease it leaves for them.
            self.release_source(peer);
        }
        self.fact(Fact::Offered);
        self.answer_parents(peer, &offers);
        if wants_more {
            self.improve_later(now, peer, self.config.improve_interval);
        }
        for parent in &offers {
            self.offer_back(now, peer, parent);
        }
    }

    /// Takes the poorest parents from a peer until so many fit beside the others.
    fn make_room_in_hand(&mut self, peer: &PeerId, many: usize) {
        while let Some(state) = self.peers.get(peer).filter(|state| state.extended)
            && state.parents.len() + many > self.config.max_parents
        {
            let has = |id: &PeerId| self.peers.get(id).map_or(0, |peer| peer.pieces.len());
            let Some(poorest) = state.parents.iter().min_by_key(|id| has(id)).cloned() else { return };
            self.unlink(&poorest, peer);
        }
    }

    /// A new child is offered to its parent as one more parent; where that has its hand full, in place of one drawn by
    /// chance. So every hand is a draw from all who came, early or late: else the first few would know only each other.
    fn offer_back(&mut self, now: Moment, child: &PeerId, parent: &PeerId) {
        let Some(state) = self.peers.get(parent) else { return };
        let has_all = self
            .tasks
            .get(&state.task)
            .and_then(|task| task.geometry)
            .is_some_and(|geometry| state.pieces.len() >= geometry.count());
        let free = self.peers.get(child).is_some_and(|child| matches!(child.place, Some(Place::Free(_))));
        if !state.open || !state.extended || has_all || !free || !self.is_usable(state, child) {
            return;
        }
        if state.parents.len() >= self.config.max_parents {
            let at = self.rng.usize(..state.parents.len());
            if let Some(drawn) = state.parents.iter().nth(at).cloned() {
                self.unlink(&drawn, parent);
            }
        }
        self.leave_queue(parent);
        self.link(child, parent);
        if let Some(state) = self.peers.get_mut(parent) {
            state.offered_at = now;
        }
        self.answer_parents(parent, std::slice::from_ref(child));
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
        Some(Offer {
            peer: parent.clone(),
            host: host.clone(),
            rpc: SocketAddr::new(info.ip, info.rpc_port),
            tls: info.tls,
        })
    }

    /// Gives a peer that has fewer parents than it may have some more, if nobody waits; and one with a full hand somebody
    /// who has much in place of the one who has least.
    pub(crate) fn improve(&mut self, now: Moment, at: Moment, peer: &PeerId) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        let Some((_, wait)) = state.improve.take_if(|(due, _)| *due == at) else { return };
        if !state.open || state.parents.is_empty() {
            return;
        }
        let (task, room) = (state.task, self.config.max_parents.saturating_sub(state.parents.len()));
        let crowded = self.tasks.get(&task).is_none_or(|task| !task.waiting.is_empty());
        let offers = match () {
            () if crowded => Vec::new(),
            () if room == 0 => self.exchange_poorest(peer).into_iter().collect(),
            () => match self.choose(peer, room) {
                Choice::Offers(offers) => offers,
                Choice::Nobody => Vec::new(),
            },
        };
        if offers.is_empty() {
            let wait = wait.saturating_mul(2).clamp(self.config.improve_interval, MOST_IMPROVE_WAIT);
            return self.improve_later(now, peer, wait);
        }
        self.offer(now, peer, offers);
        self.improve_later(now, peer, self.config.improve_interval);
    }

    /// A parent that failed a peer may be offered to it again.
    pub(crate) fn parent_rested(&mut self, now: Moment, peer: &PeerId) {
        let Some(state) = self.peers.get(peer).filter(|peer| peer.open) else { return };
        if state.parents.is_empty() {
            let task = state.task;
            self.note_freed(&task);
        } else if state.extended {
            self.improve_later(now, peer, Duration::ZERO);
        }
    }

    /// Takes the parent that has least from a peer, if there is somebody who has clearly more; says who.
    fn exchange_poorest(&mut self, peer: &PeerId) -> Option<PeerId> {
        let child = self.peers.get(peer)?;
        let task = self.tasks.get(&child.task)?;
        let has = |id: &PeerId| self.peers.get(id).map_or(0, |peer| peer.pieces.len());
        let drawn = task.holders.draw_free(LOOK_FOR_RICHER, &mut self.rng);
        let richest = drawn.into_iter().filter(|id| self.is_usable(child, id)).max_by_key(&has)?;
        let poorest = child.parents.iter().min_by_key(|id| has(id))?.clone();
        let margin = task.geometry.map_or(0, |geometry| geometry.count()) / 16;
        if has(&richest) <= has(&poorest) + margin {
            return None;
        }
        self.unlink(&poorest, peer);
        Some(richest)
    }

    /// A peer has everything now: a few that have not are offered it, in place of their poorest parents.
    pub(crate) fn offer_complete(&mut self, now: Moment, complete: &PeerId) {
        let Some(state) = self.peers.get(complete) else { return };
        if !matches!(state.place, Some(Place::Free(_))) {
            return;
        }
        let task = state.task;
        let Some(task) = self.tasks.get(&task) else { return };
        let drawn = task.holders.draw_free(OFFERED_COMPLETE, &mut self.rng);
        for child in drawn {
            let Some(state) = self.peers.get(&child) else { continue };
            if !state.open || !state.extended || state.parents.is_empty() || !self.is_usable(state, complete) {
                continue;
            }
            self.offer(now, &child, vec![complete.clone()]);
        }
    }
}

/// How near two hosts are: the same data centre above all, then what their locations have in common from the left.
fn nearness(a: &HostInfo, b: &HostInfo) -> usize {
    const SAME_IDC: usize = 1000;
    let idc = if !a.idc.is_empty() && a.idc == b.idc { SAME_IDC } else { 0 };
    let common = a.location.split('|').zip(b.location.split('|')).take_while(|(a, b)| !a.is_empty() && a == b);
    idc + common.count()
}
