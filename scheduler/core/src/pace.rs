//! Who passes pieces on, and who does not: a host that is frozen, cut off or has next to no uplink may read the source as
//! fast as any, and hold what everybody waits for.
//!
//! **What only a host has that passes nothing on counts as held by nobody**: it is leased again as soon as somebody waits
//! for it, and the host is offered to nobody and reads the source for nobody, for a while.

use std::time::Duration;

use damselfly_core::{Moment, PeerId, PieceNumber, TaskId};

use crate::LeaseLoss;
use crate::machine::{Core, Wake};
use crate::source::PIECE_TIME;

/// A host that has sent nothing for so long, beside what it usually takes, withholds what others wait for.
const SILENT: Duration = Duration::from_secs(1);
/// The same for one that takes so many times as long as the others do.
const SLOW_FACTOR: u32 = 4;
/// So many pieces are sent at a time from one uplink.
const SHARES: u32 = 4;
/// What it usually takes counts up to this.
const MOST_USUAL: Duration = Duration::from_secs(5);
/// Two pieces from it in so short a time, and it is counted on again.
const QUICK: Duration = Duration::from_millis(500);
/// How long it is not offered.
const REST: Duration = Duration::from_secs(30);

impl Core {
    /// A child had a piece from this peer.
    pub(crate) fn passed_on(&mut self, now: Moment, peer: &PeerId) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        let Some(task) = self.tasks.get_mut(&state.task) else { return };
        let Some((before, known)) = state.passed else {
            state.passed = Some((now, Duration::ZERO));
            return;
        };
        let took = now.since(before);
        let quick = task.pass_took.unwrap_or_default().saturating_mul(SLOW_FACTOR).max(QUICK);
        let again = state.withholds.is_some() && took <= quick;
        let smoothed = if known.is_zero() { took } else { (known * 3 + took) / 4 };
        state.passed = Some((now, smoothed));
        task.pass_took = Some(task.pass_took.map_or(took, |known| (known * 15 + took) / 16));
        if again {
            // It was stopped, or its network was away, and is back.
            state.withholds = None;
            state.passed = None;
            self.reindex(peer);
        }
    }

    /// A peer waits for a piece: those of its parents that have it and pass nothing on, or very slowly beside others, are
    /// not counted on any more. Says whether there was one.
    pub(crate) fn judge_holders(&mut self, now: Moment, task: &TaskId, peer: &PeerId, piece: PieceNumber) -> bool {
        let (Some(state), Some(child)) = (self.tasks.get(task), self.peers.get(peer)) else { return false };
        let usual = state.pass_took.unwrap_or_default().min(MOST_USUAL);
        // Several share an uplink: where it takes long to read a piece it takes several times as long to send one.
        let read = state.source_took.unwrap_or_default();
        let takes = state.pass_took.unwrap_or_default().max(read / 2);
        let patience = SILENT + (takes * SHARES).min(MOST_USUAL);
        // While the pieces of a slow source come nobody has anything to send.
        let is_slow = read > PIECE_TIME;
        let offered = child.offered_at;
        let withholds = |id: &&PeerId| {
            self.peers.get(*id).is_some_and(|holder| {
                let (last, took) = holder.passed.unwrap_or((offered, Duration::ZERO));
                let last_or_got = if is_slow { last.max(holder.moved) } else { last };
                let silent = now.since(last_or_got.max(offered)) > patience;
                let slow = took > usual * SLOW_FACTOR && took > Duration::from_secs(1);
                holder.place.is_some() && holder.pieces.contains(piece) && (silent || slow)
            })
        };
        let found: Vec<PeerId> = child.parents.iter().filter(withholds).cloned().collect();
        for id in &found {
            self.withholds(now, id);
        }
        !found.is_empty()
    }

    /// A peer does not pass on what it has, or brings what it reads from the source too slowly.
    pub(crate) fn withholds(&mut self, now: Moment, peer: &PeerId) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        state.withholds = Some(now + REST);
        state.source_spent = true;
        self.wake_at(now + REST, Wake::Withholds(peer.clone()));
        self.reindex(peer);
        let Some(task) = self.peers.get(peer).map(|peer| peer.task) else { return };
        if self.has_lease(peer) {
            self.take_lease(&task, peer, LeaseLoss::PassesNothingOn);
        }
    }

    pub(crate) fn may_pass_on_again(&mut self, now: Moment, peer: &PeerId) {
        let Some(state) = self.peers.get_mut(peer) else { return };
        if state.withholds.take_if(|until| *until <= now).is_some() {
            state.passed = None;
            self.reindex(peer);
        }
    }
}
