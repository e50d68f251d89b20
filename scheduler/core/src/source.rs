//! Who may read the source: one lease per task, and seeds before normal peers.
//!
//! A lease lives while its holder gets on (source opened, pieces read). It passes on at once when the holder leaves,
//! fails, falls silent or has no more to read; to somebody who reads the source already, else to somebody who waits,
//! else, if the holders together lack something, to whoever has most.
//!
//! A peer that cannot wait ([`SourceWish::Wanted`]) may read the source beside a lease that has brought nothing yet; a
//! few may, and the first of them that gets on takes the lease over. **While the lease gets on, whoever reads the source
//! beside it waits for parents**, so that a herd that came while there was no scheduler, or a slow one, is called back.
//! A lease that gets on slowly is no reason to ask the origin more than once: another reader would only share its rate.

use std::time::Duration;

use damselfly_core::swarm::{Answer, SourceWish};
use damselfly_core::{HostId, Moment, PeerId, TaskId};

use crate::machine::{Core, Wake};
use crate::peer::Peer;
use crate::pieces::Pieces;
use crate::place::Choice;
use crate::task::{Lease, PendingSeed, Task};
use crate::{Fact, Output};

impl Core {
    /// Nobody feeds the task: makes a seed fetch it, or this peer, or lets it wait for somebody who may.
    pub(crate) fn feed_from(&mut self, now: Moment, peer: &PeerId) {
        let Some(state) = self.peers.get(peer) else { return };
        let task = state.task;
        let may = state.open && state.wish != SourceWish::Forbidden && !state.source_spent;
        let is_seed = self.seeds.contains(&state.host);
        let host = state.host.clone();
        let seed = if may && is_seed { None } else { self.pick_seed(&task, &host) };
        match seed {
            Some(seed) => self.trigger(now, task, seed),
            None if may => self.grant(now, peer),
            None => {}
        }
    }

    /// Sends a peer to the source, with the lease if that is free.
    pub(crate) fn grant(&mut self, now: Moment, peer: &PeerId) {
        self.become_root(peer);
        self.leave_queue(peer);
        let Some(state) = self.peers.get_mut(peer) else { return };
        state.sourcing = Some(now);
        state.source_spent = false;
        let (task, extended) = (state.task, state.extended);
        let Some(state) = self.tasks.get_mut(&task) else { return };
        state.sourcing.insert(peer.clone());
        if state.lease.is_none() {
            self.lease_to(now, &task, peer, false);
        }
        self.fact(Fact::SourceGranted);
        self.answer(peer, Answer::GoToSource);
        if !extended {
            self.proofs_may_have_ended(&task);
        }
    }

    /// Whether one more may read the source beside a lease that has brought nothing yet.
    pub(crate) fn may_grant_beside(&self, task: &TaskId) -> bool {
        self.tasks.get(task).is_some_and(|task| {
            let crowd = u32::try_from(task.waiting.len() + task.sourcing.len()).unwrap_or(u32::MAX);
            let beside = task.sourcing.len().saturating_sub(usize::from(task.lease.is_some()));
            match &task.lease {
                Some(lease) => !lease.progressed && beside <= crowd.max(1).ilog2() as usize,
                None => true,
            }
        })
    }

    fn lease_to(&mut self, now: Moment, task: &TaskId, peer: &PeerId, progressed: bool) {
        self.leave_queue(peer);
        let Some(state) = self.tasks.get_mut(task) else { return };
        let due = now + lease_span(self.config.lease_time, self.config.slow_source, state);
        state.lease = Some(Lease { peer: peer.clone(), progressed, due });
        self.wake_at(due, Wake::Lease(*task));
        if progressed {
            self.call_back(task);
        }
    }

    /// The lease gets on: whoever reads the source beside it waits for parents.
    fn call_back(&mut self, task: &TaskId) {
        let Some(state) = self.tasks.get(task) else { return };
        let Some(holder) = state.lease.as_ref().map(|lease| &lease.peer) else { return };
        let extended = |peer: &&PeerId| self.peers.get(*peer).is_some_and(|peer| peer.extended);
        for peer in state.sourcing.iter().filter(|peer| *peer != holder).filter(extended).cloned().collect::<Vec<_>>() {
            self.join_queue(&peer);
        }
        self.note_freed(task);
    }

    pub(crate) fn has_lease(&self, peer: &PeerId) -> bool {
        let task = self.peers.get(peer).and_then(|peer| self.tasks.get(&peer.task));
        task.and_then(|task| task.lease.as_ref()).is_some_and(|lease| lease.peer == *peer)
    }

    /// A peer got on with the source.
    pub(crate) fn source_heard(&mut self, now: Moment, peer: &PeerId) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        if state.sourcing.is_none() {
            if state.parents.is_empty() {
                // It was thought to be silent and was only slow, or its conversation is a new one.
                self.source_entered(now, peer);
            }
            // Else it has parents by now, and is about to leave the source.
            return;
        }
        state.sourcing = Some(now);
        let task = state.task;
        let Some(state) = self.tasks.get_mut(&task) else { return };
        state.seeds_tried.clear();
        match &mut state.lease {
            Some(lease) if lease.progressed && lease.peer == *peer => {}
            Some(lease) if lease.progressed => self.make_room(now, peer),
            Some(lease) if lease.peer == *peer => {
                lease.progressed = true;
                self.call_back(&task);
            }
            Some(lease) => {
                let due = lease.due;
                self.cancel_wake(due, Wake::Lease(task));
                self.lease_to(now, &task, peer, true);
            }
            None => self.lease_to(now, &task, peer, true),
        }
    }

    /// A peer reads from the source. One that went there without being sent, since nobody answered it in time, gets the
    /// lease if that is free or has brought nothing yet; else it waits for parents meanwhile.
    pub(crate) fn source_entered(&mut self, now: Moment, peer: &PeerId) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        if !state.open || !state.parents.is_empty() {
            return;
        }
        state.sourcing = Some(now);
        state.source_spent = false;
        state.asked = false;
        let (task, extended) = (state.task, state.extended);
        self.leave_queue(peer);
        if let Some(state) = self.tasks.get_mut(&task) {
            state.sourcing.insert(peer.clone());
        }
        self.source_heard(now, peer);
        if !extended {
            self.proofs_may_have_ended(&task);
        } else if !self.has_lease(peer) {
            self.join_queue(peer);
            self.note_freed(&task);
        }
    }

    /// A peer reads the source no more; its lease is free.
    pub(crate) fn release_source(&mut self, peer: &PeerId) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        state.sourcing = None;
        let task = state.task;
        let Some(state) = self.tasks.get_mut(&task) else { return };
        state.sourcing.remove(peer);
        if let Some(lease) = state.lease.take_if(|lease| lease.peer == *peer) {
            self.cancel_wake(lease.due, Wake::Lease(task));
            self.unsettled.shaken.insert(task);
            self.unsettled.dry.insert(task);
        }
    }

    /// The same, and not because it was done.
    pub(crate) fn lose_source(&mut self, peer: &PeerId) {
        if self.has_lease(peer) {
            self.fact(Fact::LeaseLost);
        }
        self.release_source(peer);
    }

    pub(crate) fn lease_may_be_over(&mut self, now: Moment, at: Moment, task: TaskId) {
        let Some(state) = self.tasks.get_mut(&task) else { return };
        let span = lease_span(self.config.lease_time, self.config.slow_source, state);
        let Some(lease) = state.lease.as_mut().filter(|lease| lease.due == at) else { return };
        let peer = lease.peer.clone();
        let heard = self.peers.get(&peer).and_then(|peer| peer.sourcing).unwrap_or(Moment::START);
        if heard + span > now {
            lease.due = heard + span;
            return self.wake_at(heard + span, Wake::Lease(task));
        }
        self.lose_source(&peer);
        if let Some(state) = self.peers.get_mut(&peer) {
            state.source_spent = true;
            if state.is_idle() {
                self.unsettled.orphans.insert(peer);
            }
        }
    }

    /// Somebody waits, and nobody feeds the task: whoever reads the source already inherits the lease; else the first
    /// who waits in vain gets it.
    pub(crate) fn feed(&mut self, now: Moment, task: &TaskId) {
        let Some(state) = self.tasks.get(task) else { return };
        if state.is_fed() {
            return;
        }
        let span = lease_span(self.config.lease_time, self.config.slow_source, state);
        let heard =
            |peer: &&PeerId| self.peers.get(*peer).and_then(|peer| peer.sourcing).is_some_and(|at| at + span > now);
        if let Some(heir) = state.sourcing.iter().find(heard).cloned() {
            return self.lease_to(now, task, &heir, false);
        }
        let mut next = 0;
        while let Some((ticket, peer)) = self.waiting_from(task, next) {
            next = ticket + 1;
            match self.choose(&peer, 1) {
                Choice::Offers(offers) => self.offer(now, &peer, offers),
                Choice::Busy => {}
                Choice::Nobody => self.feed_from(now, &peer),
            }
            if self.tasks.get(task).is_none_or(Task::is_fed) {
                return;
            }
        }
    }

    /// Nobody waits, and nobody feeds the task: if the holders together lack something, whoever has most is sent to the
    /// source. It may turn out to want no more; then it says so, and the next is sent.
    pub(crate) fn feed_the_dry(&mut self, now: Moment, task: &TaskId) {
        let Some(state) = self.tasks.get(task).filter(|task| !task.is_fed() && task.open > 0) else { return };
        let Some(count) = state.geometry.map(|geometry| geometry.count()) else { return };
        let mut all = Pieces::default();
        for holder in state.peers.iter().filter_map(|id| self.peers.get(id)).filter(|peer| peer.place.is_some()) {
            all.extend(&holder.pieces);
            if all.len() >= count {
                return;
            }
        }
        let may = |peer: &&Peer| {
            let lacks = peer.pieces.len() < count && !peer.stranger;
            lacks && peer.open && peer.extended && peer.wish != SourceWish::Forbidden && !peer.source_spent
        };
        let able = state.peers.iter().filter_map(|id| self.peers.get(id).filter(may).map(|peer| (peer, id)));
        if let Some((_, most)) = able.max_by_key(|(peer, _)| peer.pieces.len()) {
            let most = most.clone();
            self.grant(now, &most);
        }
    }

    fn pick_seed(&mut self, task: &TaskId, not: &HostId) -> Option<HostId> {
        let state = self.tasks.get(task)?;
        // What needs credentials is read by the hosts that have them.
        if state.origin.private || state.seeds_tried.len() >= self.config.seed_tries {
            return None;
        }
        let usable = |seed: &&HostId| {
            *seed != not
                && !state.seeds_tried.contains(*seed)
                && !state.isolated.contains_key(*seed)
                && self.hosts.get(*seed).is_some_and(|host| host.offered().is_some())
        };
        let usable: Vec<&HostId> = self.seeds.iter().filter(usable).collect();
        if usable.is_empty() {
            return None;
        }
        let drawn = self.rng.usize(..usable.len());
        Some(usable[drawn].clone())
    }

    fn trigger(&mut self, now: Moment, task: TaskId, seed: HostId) {
        let Some(info) = self.hosts.get(&seed).and_then(|host| host.info.clone()) else { return };
        let Some(state) = self.tasks.get_mut(&task) else { return };
        let until = now + self.config.seed_time;
        state.seeds_tried.insert(seed.clone());
        state.seed = Some(PendingSeed { host: seed, until });
        let origin = state.origin.clone();
        self.wake_at(until, Wake::Seed(task));
        self.fact(Fact::SeedTriggered);
        self.output(Output::TriggerSeed { host: info, task, origin: Box::new(origin) });
    }

    /// The seed came: what it does from now on is a peer's.
    pub(crate) fn forget_seed(&mut self, task: &TaskId) {
        if let Some(seed) = self.tasks.get_mut(task).and_then(|task| task.seed.take()) {
            self.cancel_wake(seed.until, Wake::Seed(*task));
        }
    }

    pub(crate) fn seed_failed(&mut self, task: TaskId, host: &HostId) {
        if self.tasks.get(&task).and_then(|task| task.seed.as_ref()).is_some_and(|seed| seed.host == *host) {
            self.forget_seed(&task);
            self.fact(Fact::SeedFailed);
            self.unsettled.shaken.insert(task);
        }
    }

    /// A seed will not come to any task.
    pub(crate) fn seed_gone(&mut self, host: &HostId) {
        let asked = |task: &Task| task.seed.as_ref().is_some_and(|seed| seed.host == *host);
        let tasks: Vec<TaskId> = self.tasks.iter().filter(|(_, task)| asked(task)).map(|(id, _)| *id).collect();
        for task in tasks {
            self.seed_failed(task, host);
        }
    }

    pub(crate) fn seed_may_be_late(&mut self, now: Moment, task: TaskId) {
        let seed = self.tasks.get(&task).and_then(|task| task.seed.as_ref());
        if let Some(host) = seed.filter(|seed| seed.until <= now).map(|seed| seed.host.clone()) {
            self.seed_failed(task, &host);
        }
    }
}

/// How long a reader of the source may be silent.
fn lease_span(lease_time: Duration, slow_source: u64, task: &Task) -> Duration {
    let piece = task.geometry.map_or(0, |geometry| geometry.piece_length().min(geometry.length()));
    lease_time + Duration::from_secs(piece / slow_source.max(1))
}
