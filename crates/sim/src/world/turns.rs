//! Turns at a host's uplink: who waits for one, and who has one.

use damselfly_core::PieceSet;

use super::*;
use crate::host::Ask;

/// How many children wait for a turn at one host at most; more are told that it is busy.
const QUEUE: usize = 64;
/// How long one waits for a turn at most.
const WAIT: Duration = Duration::from_secs(2);
/// How many pieces a parent names with a turn.
const NAMED: usize = 16;

impl World {
    /// A child asks a parent for a turn.
    pub(super) fn ask(&mut self, child: usize, parent: PeerId, wanted: PieceSet) {
        let id = self.id();
        let at = self.peers[&parent];
        self.hosts[child].asks.insert(parent.clone(), Ask { id, at, wanted, granted: false });
        let at = self.now + self.delay();
        self.at(at, Happening::Asked { child, parent, id });
    }

    fn has_asked(&self, child: usize, parent: &PeerId, id: u64) -> bool {
        self.hosts[child].asks.get(parent).is_some_and(|ask| ask.id == id)
    }

    pub(super) fn asked(&mut self, child: usize, parent: PeerId, id: u64) {
        if !self.has_asked(child, &parent, id) {
            return;
        }
        let host = self.peers[&parent];
        let busy = self.hosts[host].queue.len() >= QUEUE;
        let expires = |world: &mut Self, after: Duration, fault| {
            let (at, parent) = (world.now + after, parent.clone());
            world.at(at, Happening::AskExpires { child, parent, id, fault });
        };
        let delay = self.delay();
        if !self.hosts[host].alive {
            expires(self, delay, Some(PieceFault::Gone));
        } else if self.now < self.hosts[host].frozen || !self.reaches(child, host) {
            expires(self, STALL, Some(PieceFault::Stalled));
        } else if busy {
            expires(self, delay, None);
        } else {
            self.hosts[host].queue.push_back((child, parent.clone(), id));
            expires(self, WAIT + delay, None);
            self.give_turns(host);
        }
    }

    /// Nobody has given a turn in time, or none will be given.
    pub(super) fn ask_expires(&mut self, child: usize, parent: &PeerId, id: u64, fault: Option<PieceFault>) {
        let expired = self.hosts[child].asks.get(parent).is_some_and(|ask| ask.id == id && !ask.granted);
        let lost = fault.is_some() && self.has_asked(child, parent, id);
        if !expired && !lost {
            return;
        }
        let host = self.peers[parent];
        self.hosts[host].queue.retain(|(_, _, queued)| *queued != id);
        self.hosts[child].asks.remove(parent);
        self.tell(child, download::Event::TurnRefused { parent: parent.clone(), fault });
    }

    /// Whoever waits is given a turn, as far as there is room.
    fn give_turns(&mut self, host: usize) {
        while self.hosts[host].alive
            && self.now >= self.hosts[host].frozen
            && self.hosts[host].uploads < self.plan.uploads
        {
            let Some((child, parent, id)) = self.next_in_queue(host) else { return };
            let Some(ask) = self.hosts[child].asks.get_mut(&parent).filter(|ask| ask.id == id) else { continue };
            ask.granted = true;
            let wanted = ask.wanted.clone();
            let (hosts, rng) = (&self.hosts, &mut self.rng);
            let have = wanted.iter().filter(|piece| hosts[host].have[piece.index()].is_some());
            let mut named: Vec<_> =
                have.map(|piece| (hosts[host].sent_pieces[piece.index()], rng.u32(..), piece)).collect();
            named.sort_unstable();
            let least_sent = named.into_iter().take(NAMED).map(|(_, _, piece)| piece).collect();
            self.hosts[host].uploads += 1;
            let at = self.now + self.delay();
            self.at(at, Happening::Turn { child, parent, id, least_sent });
        }
    }

    /// Takes out whose turn it is: who names one piece only, else who lacks most, as the daemons do among hosts that have
    /// equally many turns.
    fn next_in_queue(&mut self, host: usize) -> Option<(usize, PeerId, u64)> {
        let lacks = |(child, parent, id): &(usize, PeerId, u64)| {
            let ask = self.hosts[*child].asks.get(parent).filter(|ask| ask.id == *id);
            ask.map_or(0, |ask| ask.wanted.len())
        };
        let queue = self.hosts[host].queue.iter().enumerate();
        let rank = |(at, one): &(usize, &(usize, PeerId, u64))| {
            let lacks = lacks(one);
            (lacks > 1, std::cmp::Reverse(lacks), *at)
        };
        let at = queue.min_by_key(rank)?.0;
        self.hosts[host].queue.remove(at)
    }

    pub(super) fn turn(&mut self, child: usize, parent: PeerId, id: u64, least_sent: Vec<PieceNumber>) {
        if self.has_asked(child, &parent, id) {
            self.tell(child, download::Event::Turn { parent, least_sent });
        }
    }

    /// A turn that was asked for, or given, is not wanted any more.
    pub(super) fn drop_ask(&mut self, child: usize, parent: &PeerId) {
        let Some(ask) = self.hosts[child].asks.remove(parent) else { return };
        if ask.granted {
            self.turn_over_soon(ask.at);
        } else {
            self.hosts[ask.at].queue.retain(|(_, _, queued)| *queued != ask.id);
        }
    }

    pub(super) fn turn_over_soon(&mut self, host: usize) {
        let (at, life) = (self.now + self.delay(), self.hosts[host].life);
        self.at(at, Happening::TurnOver { host, life });
    }

    /// A host has sent a piece, or its child did not want one.
    pub(super) fn upload_over(&mut self, host: usize) {
        self.hosts[host].uploads = self.hosts[host].uploads.saturating_sub(1);
        self.give_turns(host);
    }
}
