//! Why a task goes as it goes: who has what, who gives whom how much, who may read what, and why nobody else was offered.

use std::ops::Range;
use std::time::Duration;

use damselfly_core::{Moment, PeerId, PieceNumber, TaskId};

use crate::Core;
use crate::peer::Peer;
use crate::task::Task;
use crate::view::{PeerView, TaskView};

/// How many runs of pieces are told of one peer.
const MOST_RUNS: usize = 64;

/// How many other peers are looked at for each.
const MOST_OTHERS: usize = 100;

/// One task, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The task, without its peers.
    pub task: TaskView,
    /// Who reads what from the source.
    pub leases: Vec<LeaseView>,
    /// How many leases in a row were lost without anything having come from the source.
    pub leases_lost: u32,
    /// How long the readers of the source need for a piece, if that is known.
    pub source_took: Option<Duration>,
    /// Its peers, those with an open conversation first; at most as many as were asked for.
    pub peers: Vec<PeerExplanation>,
}

/// The right to read some pieces from the source for everybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    /// Who has it.
    pub peer: PeerId,
    /// The pieces that are still to come.
    pub pieces: Range<u32>,
    /// How long ago its holder was last heard to get on.
    pub heard: Duration,
    /// For how long it has read the next piece.
    pub reading: Duration,
}

/// One peer, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerExplanation {
    /// What it does.
    pub peer: PeerView,
    /// What it has, the first runs of it.
    pub held: Vec<Range<u32>>,
    /// How long ago it got its last piece, or began; `None` once it is done.
    pub idle: Option<Duration>,
    /// The piece that a reader of it waits for, if it said so and does not have it.
    pub waits_for: Option<PieceNumber>,
    /// What its parents have given it.
    pub parents: Vec<ParentView>,
    /// The others, and why they are no parents of it. None once it is done.
    pub others: Vec<(PeerId, NotOffered)>,
}

/// One parent of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentView {
    /// Which.
    pub id: PeerId,
    /// How many pieces it has given.
    pub pieces: u32,
    /// Thousandths of a piece a second, from the first to the last.
    pub milli_pieces: u64,
    /// How long ago the last piece came.
    pub last: Option<Duration>,
}

/// Why somebody is no parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NotOffered {
    /// It is of the same host.
    SameHost,
    /// It cuts the content differently.
    OtherGeometry,
    /// Its host is not announced.
    NotAnnounced,
    /// Several hosts could not reach its host.
    Silent,
    /// Its host served wrong bytes.
    Isolated,
    /// Its host does not share.
    SharesNothing,
    /// It has nothing and gets nothing.
    HasNothing,
    /// It failed this peer.
    Failed,
    /// All upload slots of its host are in use.
    HostFull,
    /// It has as many children in this task as one may have.
    Full,
    /// It could be a parent, and was not drawn.
    NotDrawn,
}

impl NotOffered {
    /// In a few words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::SameHost => "on the same host",
            Self::OtherGeometry => "cuts the content differently",
            Self::NotAnnounced => "host not announced",
            Self::Silent => "host could not be reached",
            Self::Isolated => "host served wrong bytes",
            Self::SharesNothing => "host shares nothing",
            Self::HasNothing => "has nothing",
            Self::Failed => "failed this peer",
            Self::HostFull => "host has no free upload slot",
            Self::Full => "has enough children",
            Self::NotDrawn => "not drawn",
        }
    }
}

impl Core {
    /// Why a task goes as it goes, with at most `most` of its peers.
    pub fn explain(&self, now: Moment, id: &TaskId, most: usize) -> Option<Explanation> {
        let task = self.tasks.get(id)?;
        let lease = |lease: &crate::task::Lease| LeaseView {
            peer: lease.peer.clone(),
            pieces: lease.pieces.clone(),
            heard: now.since(lease.heard),
            reading: now.since(lease.since),
        };
        let is_open = |id: &&PeerId| self.peers.get(*id).is_some_and(|peer| peer.open);
        let (open, done): (Vec<_>, Vec<_>) = task.peers.iter().partition(is_open);
        let peers = open.into_iter().chain(done).take(most).filter_map(|id| self.explain_peer(now, task, id));
        Some(Explanation {
            task: self.summary(id, task),
            leases: task.leases.iter().map(lease).collect(),
            leases_lost: task.leases_lost,
            source_took: task.source_took,
            peers: peers.collect(),
        })
    }

    fn explain_peer(&self, now: Moment, task: &Task, id: &PeerId) -> Option<PeerExplanation> {
        let peer = self.peers.get(id)?;
        let parent = |id: &PeerId| {
            let given = peer.given.get(id);
            let time = given.map_or(Duration::ZERO, |given| given.last.since(given.first));
            let pieces = given.map_or(0, |given| given.pieces);
            let between = u128::from(pieces.saturating_sub(1)) * 1_000_000;
            let milli_pieces = u64::try_from(between.checked_div(time.as_millis()).unwrap_or(0)).unwrap_or(u64::MAX);
            ParentView { id: id.clone(), pieces, milli_pieces, last: given.map(|given| now.since(given.last)) }
        };
        let others = task.peers.iter().filter(|other| *other != id && !peer.parents.contains(*other));
        let others = others.take(if peer.open { MOST_OTHERS } else { 0 });
        Some(PeerExplanation {
            peer: self.peer(id)?,
            held: runs(peer),
            idle: peer.open.then(|| now.since(peer.moved)),
            waits_for: peer.late.map(|(piece, _)| piece).filter(|&piece| peer.open && !peer.pieces.contains(piece)),
            parents: peer.parents.iter().map(parent).collect(),
            others: others.filter_map(|other| Some((other.clone(), self.why_not(task, peer, other)?))).collect(),
        })
    }

    fn why_not(&self, task: &Task, child: &Peer, id: &PeerId) -> Option<NotOffered> {
        let peer = self.peers.get(id)?;
        let host = self.hosts.get(&peer.host)?;
        let Some(info) = &host.info else { return Some(NotOffered::NotAnnounced) };
        Some(match () {
            () if peer.host == child.host => NotOffered::SameHost,
            () if peer.stranger || child.stranger => NotOffered::OtherGeometry,
            () if host.silent => NotOffered::Silent,
            () if host.isolated.is_some() || task.isolated.contains_key(&peer.host) => NotOffered::Isolated,
            () if info.upload_slots == 0 => NotOffered::SharesNothing,
            () if peer.pieces.is_empty() && !(peer.open && peer.extended && child.extended) => NotOffered::HasNothing,
            () if child.avoids(id, peer.number, self.now) => NotOffered::Failed,
            () if host.children >= info.upload_slots => NotOffered::HostFull,
            () if peer.children.len() >= self.config.children_per_task => NotOffered::Full,
            () => NotOffered::NotDrawn,
        })
    }
}

/// The first runs of pieces that a peer has.
fn runs(peer: &Peer) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for piece in peer.pieces.iter() {
        if let Some(run) = runs.last_mut().filter(|run| run.end == piece.0) {
            run.end += 1;
        } else if runs.len() == MOST_RUNS {
            break;
        } else {
            runs.push(piece.0..piece.0 + 1);
        }
    }
    runs
}
