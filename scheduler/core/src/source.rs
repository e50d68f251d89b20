//! Who reads what from the source: leases on runs of pieces, and seeds before normal peers.
//!
//! A lease is the right to read a few pieces that follow each other for everybody. Several peers hold one at a time, so
//! that soon everybody has something that the others lack; as many as the source's measured rate bears, and at least two
//! where there are two who can read, so that there is always somebody to compare with. Who has read its run is given the
//! next one. One that is alone gets everything, and is cut short when others come.
//!
//! **A lease is a promise with a rate.** Its holder loses it after a few seconds in which nothing came, or when a piece
//! takes several times as long as it takes the other readers. If nothing comes for anybody it is the source that is slow:
//! leases then pass on less and less often, so that a slow source is not asked by the whole herd.
//!
//! **A piece that nobody has and that is not leased is leased as soon as there is somebody who may read it.**

use std::ops::Range;
use std::time::Duration;

use damselfly_core::swarm::{Answer, SourceWish};
use damselfly_core::{Geometry, HostId, Moment, PeerId, PieceNumber, TaskId};

use crate::machine::{Core, Wake};
use crate::task::{Lease, PendingSeed, Task};
use crate::{Fact, LeaseLoss, Notice, Output};

/// How many peers that could read are compared for a lease.
const LOOK: usize = 16;
/// How long a run should take its reader.
const RUN_TIME: Duration = Duration::from_secs(1);
/// Another may read the source at the same time while a piece takes its readers no longer than this: what is slow is then
/// not the source but their own links, on which the pieces of parents come at the same time.
pub(crate) const PIECE_TIME: Duration = Duration::from_secs(4);
/// One reader more must bring so much of what each of the others brings, or it only divides what a slow source gives.
const WORTH: f64 = 0.5;
/// A lease whose pieces take its reader longer than this is cut, however few bytes it has: what is slow may be the reader, by
/// its link or by a limit of its own.
const LONG_LEASE: Duration = Duration::from_secs(20);
/// The most pieces of one run, and how many it has while nobody knows how fast the source is.
const MOST_PIECES: u32 = 16;
const FIRST_PIECES: u32 = 4;
/// A piece that takes so many times as long as it takes the others is one that its reader cannot bring...
const SLOW_FACTOR: u32 = 4;
/// ... if it takes so much longer besides.
const SLOW_MARGIN: Duration = Duration::from_secs(2);
/// The same where somebody waits for that piece, and others read as well.
const LATE_FACTOR: u32 = 3;
const LATE_MARGIN: Duration = Duration::from_secs(1);
/// A lease that brings nothing passes on after its time the first few times, then after twice that, and so on.
const DOUBLINGS: u32 = 4;

impl Core {
    /// Leases what nobody has and nobody reads, as far as there is somebody to read it.
    pub(crate) fn assign(&mut self, now: Moment, task: &TaskId) {
        let mut from = 0;
        // Every turn makes one lease, cuts one, or finds that nobody can read a run: there are only so many.
        for _ in 0..=4 * self.config.max_leases {
            let Some(state) = self.tasks.get(task) else { return };
            if state.open == 0 || state.seed.is_some() || state.leases.len() >= self.allowed_leases(state) {
                return;
            }
            let Some(run) = self.free_run(task, from) else {
                if from > 0 || !self.cut_long_lease(task) {
                    return;
                }
                continue;
            };
            let Some(peer) = self.pick_reader(task, &run) else {
                from = run.start + 1;
                continue;
            };
            let host = self.peers.get(&peer).map(|peer| peer.host.clone());
            let is_seed = host.as_ref().is_some_and(|host| self.seeds.contains(host));
            if let (false, Some(host)) = (is_seed, host)
                && let Some(seed) = self.pick_seed(task, &host)
            {
                return self.trigger(now, *task, seed);
            }
            self.lease_to(now, &peer, run);
        }
    }

    /// As many as bring at least a piece in four seconds each, and two to compare.
    pub(crate) fn allowed_leases(&self, task: &Task) -> usize {
        if task.geometry.is_none() {
            return 1;
        }
        let readers = u32::try_from(task.leases.len()).unwrap_or(u32::MAX);
        let each_second = match task.source_took {
            Some(took) => (PIECE_TIME.saturating_mul(readers).as_millis() / took.as_millis().max(1)) as usize,
            None => 0,
        };
        worth_reading(2 + each_second, &task.took_beside).min(self.config.max_leases)
    }

    /// How many pieces one lease has while there are several.
    fn run_length(&self, task: &Task) -> u32 {
        let fits = match task.source_took {
            Some(took) => (RUN_TIME.as_millis() / took.as_millis().max(1)) as u32,
            None => FIRST_PIECES,
        };
        fits.clamp(1, MOST_PIECES)
    }

    /// The first pieces from `from` on that nobody has and nobody reads; all that follow each other where there is nobody to share
    /// them with.
    fn free_run(&mut self, task: &TaskId, from: u32) -> Option<Range<u32>> {
        let state = self.tasks.get_mut(task)?;
        let Some(count) = state.geometry.map(Geometry::count) else {
            return (state.leases.is_empty() && from == 0).then_some(0..u32::MAX);
        };
        while state.cursor < count && state.copies_of(PieceNumber(state.cursor)) > 0 {
            state.cursor += 1;
        }
        let state = self.tasks.get(task)?;
        let is_free = |piece: u32| {
            let piece = PieceNumber(piece);
            state.copies_of(piece) == 0 && state.lease_of(piece).is_none()
        };
        let first = (state.cursor.max(from)..count).find(|&piece| is_free(piece))?;
        let most = if state.open > 1 { self.run_length(state) } else { u32::MAX };
        let end = (first..count.min(first.saturating_add(most))).find(|&piece| !is_free(piece));
        Some(first..end.unwrap_or_else(|| count.min(first.saturating_add(most))))
    }

    /// Everything is leased, and another could read: the longest lease is cut to a run. Says whether there was one.
    ///
    /// What was on its way is then lost, some mebibytes: a lease that is not much longer is left as it is, until somebody
    /// waits for what is in it ([`Self::late`]), or it is seen to take long.
    fn cut_long_lease(&mut self, task: &TaskId) -> bool {
        let Some(state) = self.tasks.get(task) else { return false };
        let (run, piece) = (self.run_length(state), state.geometry.map_or(0, Geometry::piece_length));
        let extended = |lease: &&Lease| self.peers.get(&lease.peer).is_some_and(|peer| peer.extended);
        let length = |lease: &Lease| lease.pieces.end - lease.pieces.start;
        let longest = state.leases.iter().filter(extended).max_by_key(|lease| length(lease));
        let took = state.source_took.unwrap_or_default();
        let is_long = |lease: &Lease| {
            let takes_long = took > PIECE_TIME || took.saturating_mul(length(lease)) > LONG_LEASE;
            takes_long || u64::from(length(lease)) * piece > self.config.uncut_lease
        };
        let worth = |lease: &&Lease| length(lease) > run && is_long(lease);
        let Some(lease) = longest.filter(worth) else { return false };
        let (peer, pieces) = (lease.peer.clone(), lease.pieces.start..lease.pieces.start + run);
        if self.pick_reader(task, &(pieces.end..lease.pieces.end)).is_none() {
            return false;
        }
        self.change_lease(task, &peer, pieces);
        true
    }

    fn change_lease(&mut self, task: &TaskId, peer: &PeerId, pieces: Range<u32>) {
        let Some(state) = self.tasks.get_mut(task) else { return };
        let Some(lease) = state.leases.iter_mut().find(|lease| lease.peer == *peer) else { return };
        lease.pieces = pieces.clone();
        state.cursor = 0;
        self.answer(peer, Answer::GoToSource { pieces: Some(pieces) });
    }

    /// Who is to read these pieces: one that reads the source already, else the first that waits, else any of ours; of
    /// several the one whose host reads least for others.
    pub(crate) fn pick_reader(&mut self, task: &TaskId, run: &Range<u32>) -> Option<PeerId> {
        let drawn = self.tasks.get(task)?.holders.draw_free(2 * LOOK, &mut self.rng);
        let state = self.tasks.get(task)?;
        let ours = |id: &&PeerId| self.peers.get(*id).is_some_and(|peer| peer.extended);
        let can = |id: &&PeerId| self.may_lease(task, id, run);
        if let Some(reader) = state.sourcing.iter().filter(can).find(ours) {
            return Some(reader.clone());
        }
        let reads = |id: &PeerId| {
            self.peers.get(id).and_then(|peer| self.hosts.get(&peer.host)).map_or(u32::MAX, |host| host.leases)
        };
        let waiting = state.waiting.values().filter(can).take(LOOK).filter(ours).min_by_key(|id| reads(id));
        if let Some(waiting) = waiting {
            return Some(waiting.clone());
        }
        let holder = drawn.iter().filter(can).filter(ours).min_by_key(|id| reads(id));
        // The last are those that could not be offered, and those of the plain protocol.
        let any = || state.peers.iter().filter(can).min_by_key(|id| (!self.peers[*id].extended, reads(id)));
        holder.or_else(any).cloned()
    }

    /// Whether a peer may be given the lease of these pieces. While a seed reads, nobody else is sent to the source.
    pub(crate) fn may_lease(&self, task: &TaskId, id: &PeerId, run: &Range<u32>) -> bool {
        let (Some(peer), Some(task)) = (self.peers.get(id), self.tasks.get(task)) else { return false };
        let is_seed = |id: &PeerId| self.peers.get(id).is_some_and(|peer| self.seeds.contains(&peer.host));
        peer.may_read()
            && !peer.stranger
            && peer.withholds.is_none()
            && !peer.pieces.contains(PieceNumber(run.start))
            && task.leases.iter().all(|lease| lease.peer != *id && (!is_seed(&lease.peer) || is_seed(id)))
    }

    /// Sends a peer to the source for these pieces; one of the plain protocol for all.
    pub(crate) fn lease_to(&mut self, now: Moment, peer: &PeerId, run: Range<u32>) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        self.activity.sourcing += usize::from(state.sourcing.replace(now).is_none());
        state.source_spent = false;
        let (task, extended, host) = (state.task, state.extended, state.host.clone());
        let stranger = state.stranger;
        if !extended {
            // It does one thing at a time.
            self.leave_queue(peer);
            self.unlink_parents(peer);
        }
        let Some(state) = self.tasks.get_mut(&task) else { return };
        if stranger {
            // It reads for itself alone: its pieces are nobody else's.
            state.sourcing.insert(peer.clone());
            self.fact(Fact::SourceGranted);
            return self.answer(peer, Answer::GoToSource { pieces: None });
        }
        let count = state.geometry.map(Geometry::count);
        let everything = 0..count.unwrap_or(u32::MAX);
        let run = if extended { run } else { everything.clone() };
        let pieces = (run.start > 0 || run.end < everything.end).then(|| run.clone());
        state.sourcing.insert(peer.clone());
        let before = state.leases.len();
        state.leases.retain(|lease| lease.peer != *peer);
        let had_one = state.leases.len() < before;
        state.cursor = if had_one { 0 } else { state.cursor };
        let beside = before + usize::from(!had_one);
        state.leases.push(Lease { peer: peer.clone(), pieces: run, progressed: false, heard: now, since: now, beside });
        if let Some(host) = self.hosts.get_mut(&host) {
            host.leases += u32::from(!had_one);
        }
        self.unsettled.work.insert(task);
        self.fact(Fact::SourceGranted);
        self.answer(peer, Answer::GoToSource { pieces });
        self.watch_leases(now, &task);
        if !extended {
            self.proofs_may_have_ended(&task);
        }
    }

    pub(crate) fn has_lease(&self, peer: &PeerId) -> bool {
        let task = self.peers.get(peer).and_then(|peer| self.tasks.get(&peer.task));
        task.is_some_and(|task| task.leases.iter().any(|lease| lease.peer == *peer))
    }

    /// Whether a peer holds the lease of a piece.
    pub(crate) fn has_lease_of(&self, peer: &PeerId, piece: PieceNumber) -> bool {
        let task = self.peers.get(peer).and_then(|peer| self.tasks.get(&peer.task));
        task.is_some_and(|task| task.leases.iter().any(|lease| lease.peer == *peer && lease.pieces.contains(&piece.0)))
    }

    /// A peer gets on with the source; with `piece`, it has read that one.
    pub(crate) fn source_heard(&mut self, now: Moment, peer: &PeerId, piece: Option<PieceNumber>) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        if state.sourcing.is_none() && piece.is_none() {
            return;
        }
        let task = state.task;
        state.sourcing = state.sourcing.map(|_| now);
        let Some(state) = self.tasks.get_mut(&task) else { return };
        state.seeds_tried.clear();
        state.leases_lost = 0;
        let readers = state.leases.len();
        let Some(lease) = state.leases.iter_mut().find(|lease| lease.peer == *peer) else { return };
        lease.heard = now;
        lease.progressed = true;
        let Some(piece) = piece.filter(|piece| lease.pieces.contains(&piece.0)) else { return };
        let took = now.since(lease.since);
        let beside = std::mem::replace(&mut lease.beside, readers);
        lease.since = now;
        lease.pieces.start = piece.0 + 1;
        state.source_took = Some(state.source_took.map_or(took, |known| (known * 3 + took) / 4));
        if took > PIECE_TIME && beside == readers {
            state.note_took_beside(readers, took);
        }
        self.watch_leases(now, &task);
    }

    /// What the holder of a lease has, from wherever, is no longer part of it; one that has all of it is done with it.
    pub(crate) fn advance_lease(&mut self, peer: &PeerId) {
        let Some(state) = self.peers.get(peer) else { return };
        let Some(task) = self.tasks.get_mut(&state.task) else { return };
        let Some(lease) = task.leases.iter_mut().find(|lease| lease.peer == *peer) else { return };
        while lease.pieces.start < lease.pieces.end && state.pieces.contains(PieceNumber(lease.pieces.start)) {
            lease.pieces.start += 1;
        }
        self.unsettled.work.insert(state.task);
        if lease.pieces.start >= lease.pieces.end {
            self.release_source(peer);
        }
    }

    /// A peer reads from the source, sent there or not.
    pub(crate) fn source_entered(&mut self, now: Moment, peer: &PeerId) {
        let Some(state) = self.peers.get_mut(peer).filter(|peer| peer.open) else { return };
        self.activity.sourcing += usize::from(state.sourcing.replace(now).is_none());
        state.source_spent = false;
        state.asked = false;
        let (task, extended) = (state.task, state.extended);
        if let Some(state) = self.tasks.get_mut(&task) {
            state.sourcing.insert(peer.clone());
        }
        self.source_heard(now, peer, None);
        if !extended {
            self.proofs_may_have_ended(&task);
        }
        if self.has_lease(peer) {
            return;
        }
        // It had waited too long. It may have a lease by that, or parents, and goes over to what it is given.
        self.unsettled.work.insert(task);
        if extended && self.peers.get(peer).is_some_and(|peer| peer.parents.is_empty()) {
            self.join_queue(peer);
            self.note_freed(&task);
        }
    }

    /// A peer reads the source no more; its lease is free.
    pub(crate) fn release_source(&mut self, peer: &PeerId) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        self.activity.sourcing -= usize::from(state.sourcing.take().is_some());
        let (task, host) = (state.task, state.host.clone());
        let Some(state) = self.tasks.get_mut(&task) else { return };
        state.sourcing.remove(peer);
        self.drop_lease(&task, &host, peer);
        if self.peers.get(peer).is_some_and(crate::peer::Peer::is_idle) {
            self.unsettled.orphans.insert(peer.clone());
        }
    }

    /// A peer's lease is free, if it has one.
    pub(crate) fn drop_lease(&mut self, task: &TaskId, host: &HostId, peer: &PeerId) {
        let Some(state) = self.tasks.get_mut(task) else { return };
        let before = state.leases.len();
        state.leases.retain(|lease| lease.peer != *peer);
        if state.leases.len() == before {
            return;
        }
        state.cursor = 0;
        self.unsettled.work.insert(*task);
        if let Some(host) = self.hosts.get_mut(host) {
            host.leases = host.leases.saturating_sub(1);
        }
    }

    /// The same as [`Self::release_source`], and not because it was done.
    pub(crate) fn lose_source(&mut self, peer: &PeerId, why: LeaseLoss) {
        let task = self.peers.get(peer).and_then(|peer| Some((peer.task, self.tasks.get(&peer.task)?)));
        let lease = task.and_then(|(id, task)| Some((id, task.leases.iter().find(|lease| lease.peer == *peer)?)));
        if let Some((task, lease)) = lease {
            let pieces = lease.pieces.clone();
            self.fact(Fact::LeaseLost);
            self.notice(Notice::LeaseLost { task, peer: peer.clone(), pieces, why });
        }
        self.release_source(peer);
    }

    fn watch_leases(&mut self, now: Moment, task: &TaskId) {
        let Some(state) = self.tasks.get(task) else { return };
        let next = state.leases.iter().map(|lease| self.lease_ends(state, lease)).min();
        let next = next.map(|at| at.max(now + Duration::from_millis(1)));
        let Some(state) = self.tasks.get_mut(task) else { return };
        if state.leases_due == next {
            return;
        }
        let before = std::mem::replace(&mut state.leases_due, next);
        if let Some(due) = before {
            self.cancel_wake(due, Wake::Lease(*task));
        }
        if let Some(due) = next {
            self.wake_at(due, Wake::Lease(*task));
        }
    }

    /// When a lease is lost unless its holder gets on.
    fn lease_ends(&self, task: &Task, lease: &Lease) -> Moment {
        let extended = self.peers.get(&lease.peer).is_some_and(|peer| peer.extended);
        if !extended {
            let piece = task.geometry.map_or(0, |geometry| geometry.piece_length().min(geometry.length()));
            let patience = self.config.plain_lease_time + Duration::from_secs(piece / self.config.slow_source.max(1));
            return lease.heard + patience;
        }
        let doublings = task.leases_lost.saturating_sub(1).min(DOUBLINGS);
        let silent = lease.heard + self.config.lease_time.saturating_mul(1 << doublings);
        match task.source_took.filter(|_| task.open > 1) {
            Some(took) => silent.min(lease.since + took.saturating_mul(SLOW_FACTOR) + SLOW_MARGIN),
            None => silent,
        }
    }

    pub(crate) fn look_after_leases(&mut self, now: Moment, at: Moment, task: &TaskId) {
        let Some(state) = self.tasks.get_mut(task).filter(|task| task.leases_due == Some(at)) else { return };
        state.leases_due = None;
        let Some(state) = self.tasks.get(task) else { return };
        if let Some(over) = state.leases.iter().find(|lease| self.lease_ends(state, lease) <= now) {
            let is_silent = now.since(over.heard) >= self.config.lease_time;
            let why = if is_silent { LeaseLoss::Silent } else { LeaseLoss::Slow };
            self.take_lease(task, &over.peer.clone(), why);
        }
        self.watch_leases(now, task);
    }

    /// Takes a lease from a peer that cannot bring its pieces.
    ///
    /// It is told to end where the piece under way does: else it would read what others read now, too.
    pub(crate) fn take_lease(&mut self, task: &TaskId, peer: &PeerId, why: LeaseLoss) {
        let lease = self.tasks.get(task).and_then(|task| task.leases.iter().find(|lease| lease.peer == *peer));
        let rest = lease.map(|lease| lease.pieces.clone()).filter(|pieces| pieces.len() > 1);
        let is_ours = self.peers.get(peer).is_some_and(|peer| peer.extended);
        if let (Some(rest), true) = (rest, is_ours) {
            self.answer(peer, Answer::GoToSource { pieces: Some(rest.start..rest.start + 1) });
        }
        if let Some(state) = self.tasks.get_mut(task) {
            state.leases_lost = state.leases_lost.saturating_add(1);
        }
        if let Some(state) = self.peers.get_mut(peer) {
            state.source_spent = true;
        }
        self.lose_source(peer, why);
    }

    /// A reader of a peer waits for a piece that nobody brings: it is given those who have it, or told that somebody
    /// reads it and gets on, or reads it itself.
    pub(crate) fn late(&mut self, now: Moment, peer: &PeerId, piece: PieceNumber) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        if state.stranger || !state.extended {
            return;
        }
        state.asked = true;
        state.source_spent = false;
        let (held, is_slow) = self.tasks.get(&state.task).map_or((false, false), |task| {
            (task.copies_of(piece) > 0, task.source_took.is_some_and(|took| took > PIECE_TIME))
        });
        let before = state.late.replace((piece, held));
        // While a slow source was read for it nobody could have given it.
        let again = before.is_some_and(|(before, held)| before == piece && (held || !is_slow));
        let (task, forbidden) = (state.task, state.wish == SourceWish::Forbidden);
        self.unsettled.work.insert(task);
        if !forbidden && self.lease_unproven(now, &task, peer, piece) {
            return;
        }
        let holders = self.holders_of(peer, piece);
        if !holders.is_empty() {
            return self.offer(now, peer, holders);
        }
        let withheld = self.judge_holders(now, &task, peer, piece) && self.is_free(&task, piece);
        let slow = self.judge_reader(now, &task, peer, piece);
        if (withheld || slow) && !forbidden && self.lease_run(now, &task, peer, piece) {
            return;
        }
        let Some(state) = self.tasks.get(&task) else { return };
        // Where nothing comes for anybody it is not the holder's fault, and the next would fare no better.
        let doublings = state.leases_lost.saturating_sub(1).min(DOUBLINGS);
        let patience = self.config.lease_time.saturating_mul(1 << doublings);
        let lease = state.lease_of(piece).map(|lease| (lease.peer.clone(), lease.heard + patience));
        let gets_on = lease.as_ref().is_some_and(|(holder, until)| holder != peer && *until > now);
        let has_own = self.has_lease(peer);
        let may = !has_own && !forbidden && state.seed.is_none() && state.copies_of(piece) == 0;
        if may && self.share_lease(now, &task, peer, piece) {
            return;
        }
        let owns = self.has_lease_of(peer, piece);
        if again && !owns && !forbidden && self.lease_withheld(now, &task, peer, piece) {
            return;
        }
        let Some(state) = self.tasks.get(&task) else { return };
        if gets_on || has_own || forbidden || state.copies_of(piece) > 0 || state.seed.is_some() {
            return self.answer(peer, Answer::Wait);
        }
        if let Some((holder, _)) = lease {
            self.take_lease(&task, &holder, LeaseLoss::Silent);
        }
        self.lease_to(now, peer, piece.0..piece.0 + 1);
    }

    /// A piece that a peer has waited for twice is with parents that it follows, and none of them gives it in time: what is
    /// held by somebody slow must not keep everybody to that rate. The piece is read once more, and with it those behind
    /// it that are no better spread. Says whether it was so.
    fn lease_withheld(&mut self, now: Moment, task: &TaskId, peer: &PeerId, piece: PieceNumber) -> bool {
        let Some(state) = self.tasks.get(task) else { return false };
        let copies = state.copies_of(piece);
        let none_to_give = copies == 0 || state.lease_of(piece).is_some();
        if none_to_give
            || state.seed.is_some()
            || (!self.has_lease(peer) && state.leases.len() >= self.allowed_leases(state))
        {
            return false;
        }
        self.lease_run(now, task, peer, piece)
    }

    /// Whether nobody who may be offered has the piece, and nobody reads it.
    fn is_free(&self, task: &TaskId, piece: PieceNumber) -> bool {
        self.tasks.get(task).is_some_and(|task| task.copies_of(piece) == 0 && task.lease_of(piece).is_none())
    }

    /// A peer waits for a piece that another reads: whether that one takes much longer than the others do. It then reads
    /// for nobody else.
    fn judge_reader(&mut self, now: Moment, task: &TaskId, peer: &PeerId, piece: PieceNumber) -> bool {
        let Some(state) = self.tasks.get(task) else { return false };
        let Some(lease) = state.lease_of(piece).filter(|lease| lease.peer != *peer) else { return false };
        let Some(usual) = state.source_took else { return false };
        let is_ours = self.peers.get(&lease.peer).is_some_and(|holder| holder.extended);
        let waits = now.since(lease.since);
        let is_slow = state.leases.len() > 1 && waits > usual * LATE_FACTOR + LATE_MARGIN;
        if !is_ours || !is_slow || state.leases_lost > state.leases.len() as u32 {
            return false;
        }
        let holder = lease.peer.clone();
        self.take_lease(task, &holder, LeaseLoss::Slow);
        self.withholds(now, &holder);
        true
    }

    /// Leases a piece to a peer that waits for it, and with it those behind it that are no better spread.
    fn lease_run(&mut self, now: Moment, task: &TaskId, peer: &PeerId, piece: PieceNumber) -> bool {
        let (Some(state), Some(child)) = (self.tasks.get(task), self.peers.get(peer)) else { return false };
        let copies = state.copies_of(piece);
        let count = state.geometry.map_or(0, Geometry::count);
        let run = if child.withholds.is_some() { 1 } else { self.run_length(state) };
        let most = count.min(piece.0.saturating_add(run));
        let as_rare = |number: &u32| {
            let number = PieceNumber(*number);
            state.copies_of(number) <= copies && state.lease_of(number).is_none() && !child.pieces.contains(number)
        };
        let end = (piece.0 + 1..most).find(|number| !as_rare(number)).unwrap_or(most);
        self.lease_to(now, peer, piece.0..end);
        true
    }

    /// A piece that somebody has and nobody vouches for, since it was read without a lease, helps nobody who was once told
    /// to wait for proofs: it is read once more. Says whether it was so.
    fn lease_unproven(&mut self, now: Moment, task: &TaskId, peer: &PeerId, piece: PieceNumber) -> bool {
        let Some(state) = self.tasks.get(task) else { return false };
        let is_free = state.unproven.contains(piece) && state.lease_of(piece).is_none();
        if !is_free || self.has_lease(peer) || state.leases.len() >= self.config.max_leases {
            return false;
        }
        self.lease_to(now, peer, piece.0..piece.0 + 1);
        true
    }

    /// A piece that a peer waits for is in the lease of another who is not at it yet: the rest of that is the peer's now,
    /// a run of it. Says whether it was so.
    fn share_lease(&mut self, now: Moment, task: &TaskId, peer: &PeerId, piece: PieceNumber) -> bool {
        let Some(state) = self.tasks.get(task) else { return false };
        if state.leases.len() >= self.allowed_leases(state) {
            return false;
        }
        let run = self.run_length(state);
        let Some(lease) = state.lease_of(piece).filter(|lease| lease.peer != *peer && lease.pieces.start < piece.0)
        else {
            return false;
        };
        let (holder, pieces) = (lease.peer.clone(), lease.pieces.clone());
        if self.peers.get(&holder).is_none_or(|holder| !holder.extended) {
            return false;
        }
        self.change_lease(task, &holder, pieces.start..piece.0);
        self.lease_to(now, peer, piece.0..pieces.end.min(piece.0 + run));
        true
    }

    /// The seed that a task belongs to, of those that can be asked: the greatest hash of both (highest random weight).
    /// Whoever asks again, and every scheduler that knows the same seeds, finds the content at the same one.
    fn pick_seed(&self, task: &TaskId, not: &HostId) -> Option<HostId> {
        let state = self.tasks.get(task)?;
        // What needs credentials is read by the hosts that have them.
        let tried = state.seeds_tried.len() >= self.config.seed_tries;
        if state.origin.private || !state.leases.is_empty() || tried {
            return None;
        }
        let usable = |seed: &&HostId| {
            *seed != not
                && !state.seeds_tried.contains(*seed)
                && !state.isolated.contains_key(*seed)
                && self.hosts.get(*seed).is_some_and(|host| host.offered().is_some())
        };
        let weight = |seed: &&HostId| *blake3::keyed_hash(task.as_bytes(), seed.as_str().as_bytes()).as_bytes();
        self.seeds.iter().filter(usable).max_by_key(weight).cloned()
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
            self.unsettled.work.insert(task);
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

/// How many may read a source at least of which `least` may: one more each time that the last one brought more. Where each
/// stream is slow by itself that is all of them; where they divide what there is, they stay few.
pub(crate) fn worth_reading(least: usize, took_beside: &[Option<Duration>]) -> usize {
    let rate = |readers: usize| {
        let took = took_beside.get(readers).copied().flatten()?;
        Some(readers as f64 / took.as_secs_f64())
    };
    let mut readers = least;
    while let Some(now) = rate(readers) {
        match rate(readers + 1) {
            Some(more) if more < now * (1.0 + WORTH / readers as f64) => break,
            _ => readers += 1,
        }
    }
    readers
}
