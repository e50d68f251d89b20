//! What is known of one peer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use damselfly_core::swarm::SourceWish;
use damselfly_core::{HostId, Moment, PeerId, PieceNumber, TaskId};

use crate::holders::Place;
use crate::pieces::Pieces;

/// How often the time for which a parent that failed is left alone doubles at most.
const REST_DOUBLINGS: u32 = 4;

/// How a parent failed a child.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure {
    /// The parent's number: under another one it is not the parent that failed.
    number: u64,
    /// How often in a row.
    times: u32,
    /// Until when it is not offered again; `None` for good.
    until: Option<Moment>,
}

/// A host's part in one task.
///
/// **It waits only while it has no parents.** It may hold the lease of some pieces at the same time: those come from the
/// source, all others from parents. Once its conversation is over it does none of it and is only a holder.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) task: TaskId,
    pub(crate) host: HostId,
    /// Tells this part in the task from an earlier one under the same id, which may have failed somebody.
    pub(crate) number: u64,
    pub(crate) extended: bool,
    pub(crate) wish: SourceWish,
    /// Whether its conversation is open.
    pub(crate) open: bool,
    /// Whether it has asked something that is not answered yet; what counts for peers of the plain protocol.
    pub(crate) asked: bool,
    /// The piece that its reader last waited for, and whether somebody had it then.
    pub(crate) late: Option<(PieceNumber, bool)>,
    /// Its place in the task's queue, while it waits.
    pub(crate) ticket: Option<u64>,
    /// When it was last heard to get on with the source, while it reads from it.
    pub(crate) sourcing: Option<Moment>,
    /// The source failed it, or it was silent for too long: it is not sent there again until it asks.
    pub(crate) source_spent: bool,
    /// When it was last heard that a child had a piece from it, and how long it takes it to send one, smoothed.
    pub(crate) passed: Option<(Moment, Duration)>,
    /// It does not pass on what it has: until then it is offered to nobody, what only it has counts as held by nobody, and
    /// others read the source.
    pub(crate) withholds: Option<Moment>,
    /// It cuts the content differently: nobody's parent.
    pub(crate) stranger: bool,
    pub(crate) pieces: Pieces,
    pub(crate) parents: BTreeSet<PeerId>,
    pub(crate) children: BTreeSet<PeerId>,
    /// Parents that failed it: they are not offered to it for a while, unless they come anew.
    pub(crate) failed: BTreeMap<PeerId, Failure>,
    /// The same in the order in which they failed it, so that the oldest can be forgotten.
    pub(crate) failures: VecDeque<PeerId>,
    /// Hosts that it said to have had wrong bytes from.
    pub(crate) accused: BTreeSet<HostId>,
    /// Parents that it was offered and has no more: its word counts against them, too. At most as many as failures.
    pub(crate) former: VecDeque<PeerId>,
    /// Where it stands among the task's holders.
    pub(crate) place: Option<Place>,
    /// How many answers its conversation has had.
    pub(crate) answers: u32,
    /// What it was last told of the task's proofs being complete.
    pub(crate) told_proven: Option<bool>,
    /// How many entries of the task's proof log it was sent.
    pub(crate) proofs_sent: usize,
    /// When it last got a piece, or began.
    pub(crate) moved: Moment,
    /// What each of its parents has given it.
    pub(crate) given: BTreeMap<PeerId, Given>,
    /// When it was last offered parents.
    pub(crate) offered_at: Moment,
    /// When it is offered more parents than it has, if there are any then; and the wait after that.
    pub(crate) improve: Option<(Moment, Duration)>,
}

/// What one parent has given to one child.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given {
    pub(crate) pieces: u32,
    /// When the first and the last came.
    pub(crate) first: Moment,
    pub(crate) last: Moment,
}

impl Peer {
    /// A peer whose conversation is not open and that holds nothing.
    pub(crate) fn new(task: TaskId, host: HostId, number: u64) -> Self {
        Self {
            task,
            host,
            number,
            extended: false,
            wish: SourceWish::Allowed,
            open: false,
            asked: false,
            late: None,
            ticket: None,
            sourcing: None,
            source_spent: false,
            passed: None,
            withholds: None,
            stranger: false,
            pieces: Pieces::default(),
            parents: BTreeSet::new(),
            children: BTreeSet::new(),
            failed: BTreeMap::new(),
            failures: VecDeque::new(),
            accused: BTreeSet::new(),
            former: VecDeque::new(),
            place: None,
            answers: 0,
            told_proven: None,
            proofs_sent: 0,
            moved: Moment::START,
            given: BTreeMap::new(),
            offered_at: Moment::START,
            improve: None,
        }
    }

    /// Whether it has nothing to work with and an answer would reach it.
    pub(crate) fn is_idle(&self) -> bool {
        self.open && self.sourcing.is_none() && self.parents.is_empty() && (self.extended || self.asked)
    }

    /// Whether an answer with parents is what it lacks most: it has none, whatever it reads from the source meanwhile.
    pub(crate) fn lacks_parents(&self) -> bool {
        self.is_idle() || (self.open && self.extended && self.parents.is_empty())
    }

    /// Whether it may be sent to the source.
    pub(crate) fn may_read(&self) -> bool {
        self.open && self.wish != SourceWish::Forbidden && !self.source_spent && (self.extended || self.asked)
    }

    /// Whether it has, or had in this conversation, this parent.
    pub(crate) fn was_offered(&self, parent: &PeerId) -> bool {
        self.parents.contains(parent) || self.former.contains(parent)
    }

    /// Remembers a parent that was taken from it; at most `most` of them.
    pub(crate) fn remember_former(&mut self, parent: &PeerId, most: usize) {
        if !self.former.contains(parent) {
            self.former.push_back(parent.clone());
        }
        while self.former.len() > most {
            self.former.pop_front();
        }
    }

    /// A conversation begins that is no continuation of another: what was said in the last one is over.
    pub(crate) fn begin(&mut self, now: Moment, number: u64) {
        self.number = number;
        self.moved = now;
        self.late = None;
        self.failed.clear();
        self.failures.clear();
        self.accused.clear();
    }

    /// It has a piece, from that parent or from the source.
    pub(crate) fn got(&mut self, now: Moment, parent: Option<&PeerId>) {
        self.moved = now;
        if let Some(parent) = parent.filter(|parent| self.parents.contains(*parent)) {
            let given = self.given.entry(parent.clone()).or_insert(Given { pieces: 0, first: now, last: now });
            (given.pieces, given.last) = (given.pieces + 1, now);
        }
    }

    /// Remembers a parent that failed it, and under which number; at most `most` of them. It rests for `rest` the first
    /// time, and twice as long each time after that; for good if that is `None`. Says until when.
    pub(crate) fn remember_failure(
        &mut self,
        (parent, number): (PeerId, u64),
        now: Moment,
        rest: Option<Duration>,
        most: usize,
    ) -> Option<Moment> {
        let known = self.failed.get(&parent).copied().filter(|failure| failure.number == number);
        let times = known.map_or(0, |failure| failure.times);
        let for_good = rest.is_none() || known.is_some_and(|failure| failure.until.is_none());
        let until = rest.filter(|_| !for_good).map(|rest| now + rest.saturating_mul(1 << times.min(REST_DOUBLINGS)));
        if self.failed.insert(parent.clone(), Failure { number, times: times + 1, until }).is_none() {
            self.failures.push_back(parent);
        }
        while self.failures.len() > most {
            if let Some(oldest) = self.failures.pop_front() {
                self.failed.remove(&oldest);
            }
        }
        until
    }

    /// A parent gave it something: what it failed before is forgiven, unless that was for good.
    pub(crate) fn forgive(&mut self, parent: &PeerId) {
        if self.failed.get(parent).is_some_and(|failure| failure.until.is_some()) {
            self.failed.remove(parent);
            self.failures.retain(|failed| failed != parent);
        }
    }

    /// Whether a parent failed it and has not rested since.
    pub(crate) fn avoids(&self, parent: &PeerId, number: u64, now: Moment) -> bool {
        self.failed
            .get(parent)
            .is_some_and(|failure| failure.number == number && failure.until.is_none_or(|until| until > now))
    }
}
