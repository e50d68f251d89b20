//! What is known of one peer.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use damselfly_core::swarm::SourceWish;
use damselfly_core::{HostId, Moment, PeerId, TaskId};

use crate::holders::Place;
use crate::pieces::Pieces;

/// A host's part in one task.
///
/// **It waits, is served by parents, or reads the source: never two of them**, save that one that reads the source
/// without the lease may wait for parents meanwhile. Once its conversation is over it does none of them and is only a
/// holder.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) task: TaskId,
    pub(crate) host: HostId,
    pub(crate) extended: bool,
    pub(crate) wish: SourceWish,
    /// Whether its conversation is open.
    pub(crate) open: bool,
    /// Whether it has asked something that is not answered yet; what counts for peers of the plain protocol.
    pub(crate) asked: bool,
    /// Its place in the task's queue, while it waits.
    pub(crate) ticket: Option<u64>,
    /// When it was last heard to get on with the source, while it reads from it.
    pub(crate) sourcing: Option<Moment>,
    /// The source failed it, or it was silent for too long: it is not sent there again until it asks.
    pub(crate) source_spent: bool,
    /// It cuts the content differently: nobody's parent.
    pub(crate) stranger: bool,
    pub(crate) pieces: Pieces,
    pub(crate) parents: BTreeSet<PeerId>,
    pub(crate) children: BTreeSet<PeerId>,
    /// Parents that failed it.
    pub(crate) failed: BTreeSet<PeerId>,
    /// The same in the order in which they failed it, so that the oldest can be forgotten.
    pub(crate) failures: VecDeque<PeerId>,
    /// Hosts that it said to have had wrong bytes from.
    pub(crate) accused: BTreeSet<HostId>,
    /// Greater than the order of each of its parents, so a parent of smaller order closes no cycle.
    pub(crate) order: u64,
    /// A drawn number that spreads children over holders that are equally good.
    pub(crate) tie: u64,
    /// Where it stands among the task's holders.
    pub(crate) place: Option<Place>,
    /// How many answers its conversation has had.
    pub(crate) answers: u32,
    /// What it was last told of the task's proofs being complete.
    pub(crate) told_proven: Option<bool>,
    /// How many entries of the task's proof log it was sent.
    pub(crate) proofs_sent: usize,
    /// When it was last offered parents.
    pub(crate) offered_at: Moment,
    /// When it is offered more parents than it has, if there are any then; and the wait after that.
    pub(crate) improve: Option<(Moment, Duration)>,
}

impl Peer {
    /// A peer whose conversation is not open and that holds nothing.
    pub(crate) fn new(task: TaskId, host: HostId, tie: u64) -> Self {
        Self {
            task,
            host,
            extended: false,
            wish: SourceWish::Allowed,
            open: false,
            asked: false,
            ticket: None,
            sourcing: None,
            source_spent: false,
            stranger: false,
            pieces: Pieces::default(),
            parents: BTreeSet::new(),
            children: BTreeSet::new(),
            failed: BTreeSet::new(),
            failures: VecDeque::new(),
            accused: BTreeSet::new(),
            order: 0,
            tie,
            place: None,
            answers: 0,
            told_proven: None,
            proofs_sent: 0,
            offered_at: Moment::START,
            improve: None,
        }
    }

    /// Whether it has nothing to work with and an answer would reach it.
    pub(crate) fn is_idle(&self) -> bool {
        self.open && self.sourcing.is_none() && self.parents.is_empty() && (self.extended || self.asked)
    }

    /// Remembers a parent that failed it; at most `most` of them.
    pub(crate) fn remember_failure(&mut self, parent: PeerId, most: usize) {
        if self.failed.insert(parent.clone()) {
            self.failures.push_back(parent);
        }
        while self.failures.len() > most {
            if let Some(oldest) = self.failures.pop_front() {
                self.failed.remove(&oldest);
            }
        }
    }
}
