//! What hosts say of pieces that they did not read under a lease, and when that is believed.
//!
//! Content whose name has a digest is checked by that in the end. Any other could be anybody's invention: **what a host
//! says of such content is believed only once one of its pieces, drawn by chance, was read from the source by another host
//! and was the same.** If it was not, the host is not offered for this task any more. What two hosts say differently is
//! not believed of either.

use std::collections::{BTreeMap, BTreeSet};

use damselfly_core::swarm::SourceWish;
use damselfly_core::{Blake3, HostId, Moment, PeerId, PieceNumber, TaskId};

use crate::Fact;
use crate::machine::Core;
use crate::task::Task;

/// How many hosts' words are compared with the source at a time, in one task.
const AT_ONCE: usize = 8;

/// How many hosts that say the same of a piece are remembered.
const MOST_HOSTS: usize = 32;

/// What is said of pieces and not believed yet.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    said: BTreeMap<PieceNumber, Claim>,
    /// Of how many pieces each host says something that is not disputed.
    by_host: BTreeMap<HostId, u32>,
    /// Hosts that were right when they were compared: what they read from then on is believed.
    believed: BTreeSet<HostId>,
}

#[derive(Debug)]
struct Claim {
    blake3: Blake3,
    /// Who says so, [`MOST_HOSTS`] at most.
    hosts: Vec<HostId>,
    /// Another host says something else.
    disputed: bool,
}

impl Claims {
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Says whether it agrees with what was said before.
    fn add(&mut self, host: &HostId, piece: PieceNumber, blake3: Blake3) -> bool {
        let new = || Claim { blake3, hosts: Vec::new(), disputed: false };
        let claim = self.said.entry(piece).or_insert_with(new);
        if claim.blake3 == blake3 {
            if !claim.disputed && claim.hosts.len() < MOST_HOSTS && !claim.hosts.contains(host) {
                claim.hosts.push(host.clone());
                *self.by_host.entry(host.clone()).or_default() += 1;
            }
            return true;
        }
        if !std::mem::replace(&mut claim.disputed, true) {
            for host in std::mem::take(&mut claim.hosts) {
                self.count_down(&host);
            }
        }
        false
    }

    fn count_down(&mut self, host: &HostId) {
        if let Some(count) = self.by_host.get_mut(host) {
            *count -= 1;
            if *count == 0 {
                self.by_host.remove(host);
            }
        }
    }

    /// Takes out what a host said.
    fn take(&mut self, host: &HostId) -> Vec<(PieceNumber, Blake3)> {
        let mut taken = Vec::new();
        if self.by_host.remove(host).is_some() {
            for (piece, claim) in &mut self.said {
                let before = claim.hosts.len();
                claim.hosts.retain(|said_by| said_by != host);
                if claim.hosts.len() < before {
                    taken.push((*piece, claim.blake3));
                }
            }
            self.said.retain(|_, claim| claim.disputed || !claim.hosts.is_empty());
        }
        taken
    }

    /// A piece that a host said something of, drawn by chance.
    fn draw(&self, host: &HostId, rng: &mut fastrand::Rng) -> Option<PieceNumber> {
        let of_host = |(_, claim): &(&PieceNumber, &Claim)| claim.hosts.contains(host);
        let count = *self.by_host.get(host)? as usize;
        self.said.iter().filter(of_host).nth(rng.usize(..count)).map(|(piece, _)| *piece)
    }
}

impl Task {
    /// Whether the content's own name says what its bytes are.
    pub(crate) fn names_its_bytes(&self) -> bool {
        self.origin.digest.is_some()
    }
}

impl Core {
    pub(crate) fn names_its_bytes(&self, task: &TaskId) -> bool {
        self.tasks.get(task).is_some_and(Task::names_its_bytes)
    }

    /// A host says what a piece hashes to that it did not read under a lease.
    pub(crate) fn claim(&mut self, now: Moment, task: &TaskId, peer: &PeerId, piece: PieceNumber, blake3: Blake3) {
        let Some(host) = self.peers.get(peer).map(|peer| peer.host.clone()) else { return };
        let Some(state) = self.tasks.get_mut(task) else { return };
        if state.names_its_bytes() || self.config.members_only {
            return self.vouch(now, task, piece, blake3, false);
        }
        if blake3 == Blake3([0; 32]) {
            return;
        }
        if state.claims.believed.contains(&host) {
            return self.vouch(now, task, piece, blake3, false);
        }
        let agrees = match state.proofs.get(&piece) {
            Some(proof) => proof.blake3 == blake3,
            None => state.claims.add(&host, piece, blake3),
        };
        self.unsettled.work.insert(*task);
        if !agrees {
            self.fact(Fact::ProofConflict);
        }
    }

    /// Has somebody read a piece of each host that said something and was not compared yet.
    pub(crate) fn assign_checks(&mut self, now: Moment, task: &TaskId) {
        let Some(state) = self.tasks.get(task).filter(|task| task.open > 0) else { return };
        let hosts: Vec<HostId> = state.claims.by_host.keys().take(AT_ONCE).cloned().collect();
        for host in hosts {
            let Some(state) = self.tasks.get(task) else { return };
            // A piece of it is being read already.
            let under_way = state.leases.iter().any(|lease| {
                let read = PieceNumber(lease.pieces.start)..PieceNumber(lease.pieces.end);
                lease.pieces.start < lease.pieces.end
                    && state.claims.said.range(read).any(|(_, claim)| claim.hosts.contains(&host))
            });
            if under_way || state.leases.len() >= self.config.max_leases {
                continue;
            }
            let Some(piece) = state.claims.draw(&host, &mut self.rng) else { continue };
            let run = piece.0..piece.0 + 1;
            match self.pick_reader(task, &run) {
                Some(reader) => self.lease_to(now, &reader, run),
                None if self.nobody_may_read(task) => self.believe(now, task, &host),
                None => {}
            }
        }
    }

    /// Whether all who want the content are forbidden to read its source.
    fn nobody_may_read(&self, task: &TaskId) -> bool {
        let forbidden =
            |id: &PeerId| self.peers.get(id).is_none_or(|peer| !peer.open || peer.wish == SourceWish::Forbidden);
        self.tasks.get(task).is_some_and(|task| task.peers.iter().all(forbidden))
    }

    /// A lease's holder has read a piece from the source: whoever said something of it was right, or was not.
    pub(crate) fn judge_claims(
        &mut self,
        now: Moment,
        task: &TaskId,
        reader: &PeerId,
        piece: PieceNumber,
        blake3: Blake3,
    ) {
        let Some(by) = self.peers.get(reader).map(|peer| peer.host.clone()) else { return };
        let Some(state) = self.tasks.get(task) else { return };
        let Some(claim) = state.claims.said.get(&piece) else { return };
        let others = claim.hosts.iter().filter(|host| **host != by).cloned().collect::<Vec<_>>();
        let same = claim.blake3 == blake3;
        for host in others {
            if same {
                self.believe(now, task, &host);
                continue;
            }
            if let Some(state) = self.tasks.get_mut(task) {
                state.claims.take(&host);
                state.claims.believed.remove(&host);
            }
            self.accused(now, &host, &by, task);
        }
    }

    fn believe(&mut self, now: Moment, task: &TaskId, host: &HostId) {
        let Some(state) = self.tasks.get_mut(task) else { return };
        state.claims.believed.insert(host.clone());
        for (piece, blake3) in state.claims.take(host) {
            self.vouch(now, task, piece, blake3, false);
        }
    }
}
