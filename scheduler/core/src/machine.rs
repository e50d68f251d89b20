//! The machine's state, its clock and its small change.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use damselfly_core::swarm::Answer;
use damselfly_core::{HostId, Moment, PeerId, TaskId};

use crate::hosts::Host;
use crate::peer::Peer;
use crate::task::Task;
use crate::{Config, Event, Fact, Notice, Output};

/// What the machine wants to be woken for. A wake-up whose reason is gone does nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wake {
    /// A host may have stopped announcing itself.
    Host(HostId),
    /// A host's isolation may be over.
    Isolation(HostId),
    /// The same for one task.
    TaskIsolation(TaskId, HostId),
    /// A lease may be lost.
    Lease(TaskId),
    /// A seed may have failed to come.
    Seed(TaskId),
    /// Gathered proofs are to be sent.
    Proofs(TaskId),
    /// A peer may be offered more parents.
    Improve(PeerId),
    /// A peer that passed nothing on may be offered again.
    Withholds(PeerId),
    /// A peer's parent that failed it has rested.
    Rested(PeerId),
}

/// The scheduler: tasks, hosts, peers, and what is to be said to them.
#[derive(Debug)]
pub struct Core {
    pub(crate) config: Config,
    pub(crate) rng: fastrand::Rng,
    /// When the event that is handled came.
    pub(crate) now: Moment,
    pub(crate) hosts: BTreeMap<HostId, Host>,
    pub(crate) tasks: BTreeMap<TaskId, Task>,
    pub(crate) peers: BTreeMap<PeerId, Peer>,
    /// Announced hosts, the one that was silent longest first.
    pub(crate) hosts_by_age: BTreeSet<(Moment, HostId)>,
    /// Tasks, the one that was idle longest first.
    pub(crate) tasks_by_age: BTreeSet<(Moment, TaskId)>,
    pub(crate) seeds: BTreeSet<HostId>,
    wakes: BTreeSet<(Moment, Wake)>,
    outputs: VecDeque<Output>,
    pub(crate) unsettled: Unsettled,
    pub(crate) next_ticket: u64,
    pub(crate) activity: Activity,
    /// How many hosts are isolated.
    pub(crate) isolated: usize,
    /// The last number that a host and a peer were given.
    pub(crate) host_number: u64,
    pub(crate) peer_number: u64,
}

/// How many peers do what; kept, so that nobody has to count them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Activity {
    pub(crate) waiting: usize,
    pub(crate) fetching: usize,
    pub(crate) sourcing: usize,
}

/// What an event stirred up and [`Core::settle`] puts in order.
#[derive(Debug, Default)]
pub(crate) struct Unsettled {
    /// Peers that lost what they worked with.
    pub(crate) orphans: BTreeSet<PeerId>,
    /// Tasks in which somebody waits and a holder has a free slot that had none.
    pub(crate) freed: BTreeSet<TaskId>,
    /// Tasks in which there may be pieces to lease, or somebody to lease them to.
    pub(crate) work: BTreeSet<TaskId>,
}

impl Core {
    /// A scheduler that knows nobody. Every choice that is left to chance comes from `seed`.
    pub fn new(config: Config, seed: u64) -> Self {
        Self {
            config,
            rng: fastrand::Rng::with_seed(seed),
            now: Moment::START,
            hosts: BTreeMap::new(),
            tasks: BTreeMap::new(),
            peers: BTreeMap::new(),
            hosts_by_age: BTreeSet::new(),
            tasks_by_age: BTreeSet::new(),
            seeds: BTreeSet::new(),
            wakes: BTreeSet::new(),
            outputs: VecDeque::new(),
            unsettled: Unsettled::default(),
            next_ticket: 0,
            activity: Activity::default(),
            isolated: 0,
            host_number: 0,
            peer_number: 0,
        }
    }

    /// Something happened.
    pub fn handle(&mut self, now: Moment, event: Event) {
        self.now = now;
        match event {
            Event::HostAnnounced(info) => self.host_announced(now, info),
            Event::HostLeft(host) => self.host_left(&host),
            Event::HoldsNothing(host) => self.holds_nothing(&host),
            Event::Held(host, holding) => self.held(now, host, holding),
            Event::Register(registration) => self.register(now, registration),
            Event::Report(peer, report) => self.report(now, &peer, report),
            Event::PeerGone(peer) => self.peer_gone(&peer),
            Event::SeedRefused { task, host } => self.seed_failed(task, &host),
            Event::TaskDeleted(task) => self.delete_task(&task),
            Event::Timer => {}
        }
        self.settle(now);
        self.wake(now);
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When the machine wants [`Event::Timer`], unless something else happens first.
    pub fn deadline(&self) -> Option<Moment> {
        self.wakes.first().map(|(at, _)| *at)
    }

    /// The limits and patience it works with.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    fn wake(&mut self, now: Moment) {
        while let Some((at, wake)) = self.wakes.pop_first() {
            if at > now {
                self.wakes.insert((at, wake));
                return;
            }
            match wake {
                Wake::Host(host) => self.host_may_be_gone(now, &host),
                Wake::Isolation(host) => self.isolation_may_be_over(now, &host),
                Wake::TaskIsolation(task, host) => self.task_isolation_may_be_over(now, &task, &host),
                Wake::Lease(task) => self.look_after_leases(now, at, &task),
                Wake::Seed(task) => self.seed_may_be_late(now, task),
                Wake::Proofs(task) => self.send_gathered_proofs(now, &task),
                Wake::Improve(peer) => self.improve(now, at, &peer),
                Wake::Withholds(peer) => self.may_pass_on_again(now, &peer),
                Wake::Rested(peer) => self.parent_rested(now, &peer),
            }
            self.settle(now);
        }
    }

    pub(crate) fn wake_at(&mut self, at: Moment, wake: Wake) {
        self.wakes.insert((at, wake));
    }

    pub(crate) fn cancel_wake(&mut self, at: Moment, wake: Wake) {
        self.wakes.remove(&(at, wake));
    }

    pub(crate) fn fact(&mut self, fact: Fact) {
        self.outputs.push_back(Output::Fact(fact));
    }

    pub(crate) fn notice(&mut self, notice: Notice) {
        self.outputs.push_back(Output::Notice(notice));
    }

    pub(crate) fn output(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    /// Answers a peer, and counts it.
    pub(crate) fn answer(&mut self, peer: &PeerId, answer: Answer) {
        if let Some(state) = self.peers.get_mut(peer) {
            state.answers += 1;
            state.asked = false;
            self.outputs.push_back(Output::Answer(peer.clone(), answer));
        }
    }
}
