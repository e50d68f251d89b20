//! A few hosts and one task to play with, and the machine's invariants by brute force.

use std::collections::BTreeSet;
use std::time::Duration;

use damselfly_core::swarm::{Answer, Held, Holding, HostInfo, Origin, PieceFault, Registration, Report, SourceWish};
use damselfly_core::{Geometry, HostId, Moment, PeerId, PieceDigest, PieceNumber, TaskId};

use crate::machine::Activity;
use crate::{Config, Core, Event, Fact, Notice, Output};

pub(super) const PIECES: u32 = 8;

pub(super) fn task() -> TaskId {
    TaskId::from_bytes([7; 32])
}

pub(super) fn geometry() -> Geometry {
    Geometry::new(u64::from(PIECES) * 10, 10).unwrap()
}

pub(super) fn peer(name: &str) -> PeerId {
    PeerId::from(format!("peer-{name}"))
}

pub(super) fn host(name: &str) -> HostId {
    HostId::from(name)
}

pub(super) fn digest(piece: u32) -> PieceDigest {
    PieceDigest::of(&piece.to_le_bytes())
}

pub(super) fn host_info(name: &str) -> HostInfo {
    HostInfo {
        id: host(name),
        seed: name.starts_with("seed"),
        hostname: name.to_owned(),
        ip: [127, 0, 0, 1].into(),
        rpc_port: 4000,
        data_port: 4005,
        proxy_port: None,
        upload_slots: 3,
        idc: String::new(),
        location: String::new(),
        tls: false,
    }
}

pub(super) fn registration(name: &str) -> Registration {
    Registration {
        host: host(name),
        task: task(),
        peer: peer(name),
        // Its digest has the last word: what hosts say of pieces needs no comparison.
        origin: Origin { url: "http://origin/file".into(), digest: Some("sha256:00".into()), ..Origin::default() },
        geometry: None,
        held: None,
        source: SourceWish::Allowed,
        extended: true,
    }
}

pub(super) fn held(pieces: impl IntoIterator<Item = u32>) -> Held {
    let pieces = pieces.into_iter().map(|piece| (PieceNumber(piece), digest(piece).blake3)).collect();
    Held { geometry: geometry(), pieces }
}

/// What a peer was told, in a form that reads well in a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Wait,
    Empty,
    /// To the source, for everything.
    Source,
    /// To the source, for these pieces.
    Run(u32, u32),
    /// Names of the parents' hosts.
    Parents(Vec<String>, bool),
    Proofs(Vec<u32>),
    End,
}

pub(super) struct World {
    pub(super) core: Core,
    pub(super) now: Moment,
    pub(super) facts: Vec<Fact>,
    pub(super) notices: Vec<Notice>,
    pub(super) triggered: Vec<HostId>,
}

impl World {
    pub(super) fn new(config: Config) -> Self {
        let core = Core::new(config, 1);
        Self { core, now: Moment::START, facts: Vec::new(), notices: Vec::new(), triggered: Vec::new() }
    }

    pub(super) fn with_hosts(names: &[&str]) -> Self {
        // What bounds the children is tested by the slots of hosts, save where a test says so.
        let mut world = Self::new(Config { children_per_task: usize::MAX, uncut_lease: 0, ..Config::default() });
        for name in names {
            world.announce(host_info(name));
        }
        world
    }

    pub(super) fn announce(&mut self, info: HostInfo) -> Vec<(String, Told)> {
        self.event(Event::HostAnnounced(info))
    }

    pub(super) fn event(&mut self, event: Event) -> Vec<(String, Told)> {
        self.core.handle(self.now, event);
        let told = self.drain();
        check(&self.core);
        told
    }

    fn drain(&mut self) -> Vec<(String, Told)> {
        let mut told = Vec::new();
        while let Some(output) = self.core.poll() {
            let (peer, what) = match output {
                Output::Fact(fact) => {
                    self.facts.push(fact);
                    continue;
                }
                Output::Notice(notice) => {
                    self.notices.push(notice);
                    continue;
                }
                Output::TriggerSeed { host, .. } => {
                    self.triggered.push(host.id);
                    continue;
                }
                Output::End(peer) => (peer, Told::End),
                Output::Answer(peer, answer) => (peer, tell(answer)),
            };
            told.push((peer.as_str().trim_start_matches("peer-").to_owned(), what));
        }
        told
    }

    pub(super) fn register(&mut self, name: &str) -> Vec<(String, Told)> {
        self.event(Event::Register(registration(name)))
    }

    pub(super) fn register_as(&mut self, name: &str, source: SourceWish, extended: bool) -> Vec<(String, Told)> {
        self.event(Event::Register(Registration { source, extended, ..registration(name) }))
    }

    pub(super) fn report(&mut self, name: &str, report: Report) -> Vec<(String, Told)> {
        self.event(Event::Report(peer(name), report))
    }

    /// A piece from the source, or from a parent.
    pub(super) fn piece(&mut self, name: &str, piece: u32, parent: Option<&str>) -> Vec<(String, Told)> {
        let parent = parent.map(self::peer);
        self.report(name, Report::PieceFinished { piece: PieceNumber(piece), parent, digest: digest(piece) })
    }

    pub(super) fn opened(&mut self, name: &str) -> Vec<(String, Told)> {
        self.report(name, Report::SourceOpened(geometry()))
    }

    pub(super) fn piece_failed(&mut self, name: &str, parent: &str, fault: PieceFault) -> Vec<(String, Told)> {
        self.report(name, Report::PieceFailed { piece: PieceNumber(0), parent: self::peer(parent), fault })
    }

    pub(super) fn reschedule(&mut self, name: &str, failed: &[&str]) -> Vec<(String, Told)> {
        self.report(name, Report::Reschedule { failed: failed.iter().map(|name| self::peer(name)).collect() })
    }

    pub(super) fn holds(&mut self, name: &str, pieces: impl IntoIterator<Item = u32>) -> Vec<(String, Told)> {
        let origin = registration(name).origin;
        let holding = Holding { task: task(), peer: peer(name), origin, held: held(pieces) };
        self.event(Event::Held(host(name), holding))
    }

    /// Lets the time come that the machine waits for.
    pub(super) fn wait(&mut self) -> Option<Vec<(String, Told)>> {
        let at = self.core.deadline()?;
        self.now = self.now.max(at);
        Some(self.event(Event::Timer))
    }

    /// Lets time pass, waking the machine whenever it wants.
    pub(super) fn pass(&mut self, time: Duration) -> Vec<(String, Told)> {
        let end = self.now + time;
        let mut told = Vec::new();
        while let Some(at) = self.core.deadline().filter(|at| *at <= end) {
            assert!(at > self.now || self.now == Moment::START, "a deadline that has passed");
            self.now = at;
            told.extend(self.event(Event::Timer));
        }
        self.now = end;
        told
    }
}

fn tell(answer: Answer) -> Told {
    match answer {
        Answer::Wait => Told::Wait,
        Answer::Empty => Told::Empty,
        Answer::GoToSource { pieces: None } => Told::Source,
        Answer::GoToSource { pieces: Some(run) } => Told::Run(run.start, run.end),
        Answer::Parents { offers, proven, .. } => {
            Told::Parents(offers.iter().map(|offer| offer.host.to_string()).collect(), proven)
        }
        Answer::Proofs(proofs) => Told::Proofs(proofs.iter().map(|(piece, _)| piece.0).collect()),
    }
}

pub(super) fn parents(names: &[&str]) -> Told {
    Told::Parents(names.iter().map(|name| (*name).to_owned()).collect(), true)
}

pub(super) fn told(name: &str, what: Told) -> (String, Told) {
    (name.to_owned(), what)
}

/// Everything that always holds.
pub(super) fn check(core: &Core) {
    for (id, peer) in &core.peers {
        let has_work = !peer.parents.is_empty() || (!peer.extended && core.has_lease(id));
        assert!(peer.ticket.is_none() || !has_work, "{id} waits and has work: {peer:?}");
        let doing = peer.ticket.is_some() || peer.sourcing.is_some() || !peer.parents.is_empty();
        assert!(peer.open || !doing, "{id} is done and does something");
        assert!(!peer.is_idle() || peer.ticket.is_some() || told_empty(core, &peer.task), "{id} was left alone");
        for parent in &peer.parents {
            let parent = &core.peers[parent];
            assert!(parent.children.contains(id), "{id} has a wrong edge");
            assert_ne!(parent.host, peer.host);
        }
        for child in &peer.children {
            assert!(core.peers[child].parents.contains(id));
        }
        assert!(
            core.hosts[&peer.host].peers.contains(&(peer.task, id.clone()))
                && core.tasks[&peer.task].peers.contains(id)
        );
        assert!(peer.extended || peer.answers <= core.config.plain_answers);
        assert!(peer.failed.len() <= core.config.max_failed && peer.failed.len() == peer.failures.len());
        assert!(peer.former.len() <= core.config.max_failed);
        assert!(!peer.extended || peer.parents.len() <= core.config.max_parents, "{id} has too many parents");
    }
    for (id, host) in &core.hosts {
        let children: usize = host.peers.iter().map(|(_, peer)| core.peers[peer].children.len()).sum();
        assert_eq!(host.children as usize, children, "{id} counts its children");
        let leases = host.peers.iter().filter(|(_, peer)| core.has_lease(peer)).count();
        assert_eq!(host.leases as usize, leases, "{id} counts its leases");
    }
    let open = || core.peers.values().filter(|peer| peer.open);
    let (waiting, sourcing) =
        (open().filter(|peer| peer.ticket.is_some()), open().filter(|peer| peer.sourcing.is_some()));
    let fetching = open().filter(|peer| !peer.parents.is_empty()).count();
    assert_eq!(core.activity, Activity { waiting: waiting.count(), fetching, sourcing: sourcing.count() });
    assert_eq!(core.isolated, core.hosts.values().filter(|host| host.isolated.is_some()).count());
    check_bounds(core);
    for id in core.tasks.keys() {
        check_task(core, id);
    }
}

fn told_empty(core: &Core, task: &TaskId) -> bool {
    core.tasks[task].geometry.is_some_and(|geometry| geometry.count() == 0)
}

fn check_bounds(core: &Core) {
    assert!(core.tasks.len() <= core.config.max_tasks && core.tasks.len() == core.tasks_by_age.len());
    assert!(core.peers.len() <= core.config.max_peers);
    assert!(core.hosts_by_age.len() <= core.config.max_hosts);
    assert!(core.hosts.values().all(|host| !host.is_unneeded()));
}

fn check_task(core: &Core, id: &TaskId) {
    let task = &core.tasks[id];
    assert!(!task.peers.is_empty());
    assert_eq!(task.open, task.peers.iter().filter(|peer| core.peers[*peer].open).count());
    for lease in &task.leases {
        assert!(core.peers[&lease.peer].sourcing.is_some() && task.sourcing.contains(&lease.peer));
        assert!(!lease.pieces.is_empty(), "{} holds the lease of nothing", lease.peer);
        assert_eq!(task.leases.iter().filter(|other| other.peer == lease.peer).count(), 1);
    }
    let holders: BTreeSet<_> = task.peers.iter().filter(|peer| offerable(core, peer)).collect();
    let has_slot = |peer: &&&PeerId| {
        let host = &core.hosts[&core.peers[**peer].host];
        host.children < host.info.as_ref().unwrap().upload_slots
            && core.peers[**peer].children.len() < core.config.children_per_task
    };
    assert_eq!(holders.len(), task.holders.len());
    for (piece, copies) in task.copies.iter().enumerate() {
        let have = holders.iter().filter(|id| core.peers[**id].pieces.contains(PieceNumber(piece as u32))).count();
        assert_eq!(*copies as usize, have, "copies of {piece}");
    }
    for waiting in task.waiting.values() {
        let child = &core.peers[waiting];
        let usable = |id: &&&PeerId| {
            let holder = &core.peers[**id];
            !child.stranger
                && !child.avoids(id, core.peers[**id].number, core.now)
                && holder.host != child.host
                && (child.extended || !holder.pieces.is_empty())
        };
        assert!(!holders.iter().filter(usable).any(|id| has_slot(&id)), "{waiting} waits and could be served");
    }
    check_leases(core, id);
}

/// What nobody has and nobody reads is leased if there is somebody to read it.
fn check_leases(core: &Core, id: &TaskId) {
    let task = &core.tasks[id];
    if task.seed.is_some() || task.open == 0 || task.leases.len() >= core.allowed_leases(task) {
        return;
    }
    let free = match task.geometry {
        None if task.leases.is_empty() => Some(0),
        None => None,
        Some(geometry) => {
            let is_free = |piece: &PieceNumber| task.copies_of(*piece) == 0 && task.lease_of(*piece).is_none();
            geometry.pieces().find(is_free).map(|piece| piece.0)
        }
    };
    let Some(first) = free else { return };
    let reader = task.peers.iter().find(|peer| core.may_lease(id, peer, &(first..first + 1)));
    assert_eq!(reader, None, "could read {first}, which nobody has");
}

fn offerable(core: &Core, peer: &PeerId) -> bool {
    let peer = &core.peers[peer];
    let host = &core.hosts[&peer.host];
    let gets_some = peer.open && peer.extended && core.tasks[&peer.task].geometry.is_some();
    (!peer.pieces.is_empty() || gets_some)
        && !peer.stranger
        && peer.withholds.is_none()
        && host.offered().is_some_and(|info| info.upload_slots > 0)
        && !core.tasks[&peer.task].isolated.contains_key(&peer.host)
}
