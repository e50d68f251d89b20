//! What pieces hash to, as those who read them from the source say, and who is told.
//!
//! What is said without a lease is believed first ([`crate::claims`]). Then the first word holds; only the holder of the
//! lease overrules what somebody else said. Proofs are gathered for a
//! moment, the longer the more peers there are, and sent to every extended peer that was offered parents. **A peer has
//! all proofs known so far before its first parents.**

use damselfly_core::swarm::Answer;
use damselfly_core::{Blake3, Moment, PeerId, PieceNumber, TaskId};

use crate::Fact;
use crate::machine::{Core, Wake};
use crate::task::Proof;

/// The most proofs in one answer: about 150 KB on the wire.
const PROOFS_PER_ANSWER: usize = 4096;

/// What stands for a hash that was not said.
const UNSAID: Blake3 = Blake3([0; 32]);

impl Core {
    /// An extended peer says what a piece hashes to.
    pub(crate) fn vouch(&mut self, now: Moment, task: &TaskId, piece: PieceNumber, blake3: Blake3, leased: bool) {
        if blake3 == UNSAID {
            return self.note_unproven(task, piece);
        }
        let Some(state) = self.tasks.get_mut(task) else { return };
        match state.proofs.get_mut(&piece) {
            Some(known) if known.blake3 == blake3 => {
                known.leased |= leased;
                return;
            }
            Some(known) if known.leased || !leased => return self.fact(Fact::ProofConflict),
            Some(_) => self.fact(Fact::ProofConflict),
            None => {}
        }
        let Some(state) = self.tasks.get_mut(task) else { return };
        state.proofs.insert(piece, Proof { blake3, leased });
        state.proof_log.push((piece, blake3));
        state.unproven.remove(piece);
        if state.proofs_due.is_none() {
            let peers = u32::try_from(state.open).unwrap_or(u32::MAX);
            let wait = self.config.proof_delay + self.config.proof_delay_per_peer.saturating_mul(peers);
            state.proofs_due = Some(now + wait);
            self.wake_at(now + wait, Wake::Proofs(*task));
        }
    }

    /// Somebody has a piece and does not vouch for it.
    pub(crate) fn note_unproven(&mut self, task: &TaskId, piece: PieceNumber) {
        let Some(state) = self.tasks.get_mut(task) else { return };
        if state.proofs.contains_key(&piece) {
            return;
        }
        let first = state.unproven.is_empty();
        if state.unproven.insert(piece) && first {
            self.proofs_may_have_ended(task);
        }
    }

    /// Whether every piece that anybody has, or is about to read from the source, has or will have its proof.
    pub(crate) fn is_proven(&self, task: &TaskId) -> bool {
        self.tasks.get(task).is_some_and(|task| {
            let plain = |peer: &PeerId| self.peers.get(peer).is_some_and(|peer| !peer.extended);
            task.unproven.is_empty() && !task.sourcing.iter().any(plain)
        })
    }

    /// Whoever was told to wait for proofs is told if some will not come.
    pub(crate) fn proofs_may_have_ended(&mut self, task: &TaskId) {
        if self.is_proven(task) {
            return;
        }
        let Some(state) = self.tasks.get(task) else { return };
        let misled = |id: &&PeerId| {
            self.peers.get(*id).is_some_and(|peer| {
                peer.open && peer.extended && peer.told_proven == Some(true) && !peer.parents.is_empty()
            })
        };
        for peer in state.peers.iter().filter(misled).cloned().collect::<Vec<_>>() {
            self.answer_parents(&peer, &[]);
        }
    }

    pub(crate) fn send_gathered_proofs(&mut self, now: Moment, task: &TaskId) {
        let Some(state) = self.tasks.get_mut(task) else { return };
        if state.proofs_due.take_if(|due| *due <= now).is_none() {
            return;
        }
        for peer in state.peers.clone() {
            if self.peers.get(&peer).is_some_and(|peer| peer.told_proven.is_some()) {
                self.send_proofs(&peer);
            }
        }
    }

    /// Sends an extended peer the proofs that it does not have.
    pub(crate) fn send_proofs(&mut self, peer: &PeerId) {
        let Some(state) = self.peers.get_mut(peer).filter(|peer| peer.open && peer.extended) else { return };
        let Some(task) = self.tasks.get(&state.task) else { return };
        let fresh = task.proof_log.get(state.proofs_sent..).unwrap_or_default();
        state.proofs_sent = task.proof_log.len();
        let answers: Vec<_> = fresh.chunks(PROOFS_PER_ANSWER).map(|proofs| Answer::Proofs(proofs.to_vec())).collect();
        for answer in answers {
            self.answer(peer, answer);
        }
    }
}
