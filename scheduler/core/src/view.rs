//! What the machine knows, for people and for other programs to look at.

use std::ops::Range;

use damselfly_core::swarm::{HostInfo, Origin};
use damselfly_core::{Geometry, HostId, PeerId, TaskId};

use crate::machine::{Activity, Core};
use crate::task::Task;

/// How much is known, and what peers do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tasks.
    pub tasks: usize,
    /// Announced hosts.
    pub hosts: usize,
    /// Announced hosts that are seeds.
    pub seeds: usize,
    /// Hosts that are not offered for any task because they served wrong bytes.
    pub isolated: usize,
    /// Peers, of whatever state.
    pub peers: usize,
    /// Peers that wait.
    pub waiting: usize,
    /// Peers that have parents.
    pub fetching: usize,
    /// Peers that read the source.
    pub sourcing: usize,
}

/// One task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskView {
    /// Its id.
    pub id: TaskId,
    /// Where its content comes from.
    pub origin: Origin,
    /// How it is cut, if known.
    pub geometry: Option<Geometry>,
    /// Who reads which pieces from the source, those that are still to come.
    pub leases: Vec<(PeerId, Range<u32>)>,
    /// Which seed was asked and has not come yet.
    pub seed: Option<HostId>,
    /// How many pieces are vouched for.
    pub proofs: usize,
    /// Peers with something to give.
    pub holders: usize,
    /// How many peers it has.
    pub peer_count: usize,
    /// Its peers; none in a list of tasks.
    pub peers: Vec<PeerView>,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerView {
    /// Its id.
    pub id: PeerId,
    /// Its host.
    pub host: HostId,
    /// What it does: `waiting`, `fetching`, `source`, `silent` (a plain peer that has not asked) or `done`.
    pub state: &'static str,
    /// How many pieces it has.
    pub pieces: u32,
    /// Its parents.
    pub parents: Vec<PeerId>,
    /// How many children it has.
    pub children: usize,
}

/// One announced host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostView {
    /// What it said of itself.
    pub info: HostInfo,
    /// How many peers of it are known.
    pub peers: usize,
    /// Upload slots in use.
    pub children: u32,
    /// Whether it is not offered because it served wrong bytes.
    pub isolated: bool,
    /// Whether it is not offered because it could not be reached.
    pub silent: bool,
}

impl Core {
    /// How much is known.
    pub fn counts(&self) -> Counts {
        let Activity { waiting, fetching, sourcing } = self.activity;
        Counts {
            tasks: self.tasks.len(),
            hosts: self.hosts_by_age.len(),
            seeds: self.seeds.len(),
            isolated: self.isolated,
            peers: self.peers.len(),
            waiting,
            fetching,
            sourcing,
        }
    }

    /// All tasks, in the order of their ids, without their peers.
    pub fn tasks(&self) -> impl Iterator<Item = TaskView> + '_ {
        self.tasks.iter().map(|(id, task)| self.summary(id, task))
    }

    /// The tasks of which the origin says so, without their peers.
    pub fn tasks_where<'a>(&'a self, says: impl Fn(&Origin) -> bool + 'a) -> impl Iterator<Item = TaskView> + 'a {
        let tasks = self.tasks.iter().filter(move |(_, task)| says(&task.origin));
        tasks.map(|(id, task)| self.summary(id, task))
    }

    /// One task.
    pub fn task(&self, id: &TaskId) -> Option<TaskView> {
        let task = self.tasks.get(id)?;
        let peers = task.peers.iter().filter_map(|peer| self.peer(peer)).collect();
        Some(TaskView { peers, ..self.summary(id, task) })
    }

    pub(crate) fn summary(&self, id: &TaskId, task: &Task) -> TaskView {
        TaskView {
            id: *id,
            origin: task.origin.clone(),
            geometry: task.geometry,
            leases: task.leases.iter().map(|lease| (lease.peer.clone(), lease.pieces.clone())).collect(),
            seed: task.seed.as_ref().map(|seed| seed.host.clone()),
            proofs: task.proofs.len(),
            holders: task.holders.len(),
            peer_count: task.peers.len(),
            peers: Vec::new(),
        }
    }

    pub(crate) fn peer(&self, id: &PeerId) -> Option<PeerView> {
        let peer = self.peers.get(id)?;
        let state = match peer {
            peer if !peer.open => "done",
            peer if peer.sourcing.is_some() => "source",
            peer if !peer.parents.is_empty() => "fetching",
            peer if peer.ticket.is_some() => "waiting",
            _ => "silent",
        };
        Some(PeerView {
            id: id.clone(),
            host: peer.host.clone(),
            state,
            pieces: peer.pieces.len(),
            parents: peer.parents.iter().cloned().collect(),
            children: peer.children.len(),
        })
    }

    /// Tells this time that the host is known from every other; `None` where it is not announced. It changes when the
    /// host, and what it held, was forgotten meanwhile.
    pub fn host_number(&self, id: &HostId) -> Option<u64> {
        self.hosts.get(id).filter(|host| host.info.is_some()).map(|host| host.number)
    }

    /// All announced hosts, in the order of their ids.
    pub fn hosts(&self) -> impl Iterator<Item = HostView> + '_ {
        self.hosts.values().filter_map(|host| {
            Some(HostView {
                info: host.info.clone()?,
                peers: host.peers.len(),
                children: host.children,
                isolated: host.isolated.is_some(),
                silent: host.silent,
            })
        })
    }
}
