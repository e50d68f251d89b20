//! One scheduler core, many hosts and one origin in virtual time. Everything is drawn from the seed; nothing else is
//! random, so a seed is a run.
//!
//! Safety is checked at every action: **no piece has two producers, nobody keeps wrong bytes in a proven task, one lease
//! at a time.**

mod faults;
mod liveness;
mod plan;
mod talk;
mod transfer;
mod turns;

use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use damselfly_core::swarm::{Answer, Held, Holding, HostInfo, Origin, PieceFault, Registration, Report, SourceWish};
use damselfly_core::{HostId, Moment, PeerId, PieceNumber, TaskId};
use damselfly_download as download;
use damselfly_scheduler_core as scheduler;

use plan::{Carries, Happening, Planned};
pub use plan::{Fault, Outcome, Plan};

use crate::host::{Host, Want, digest};
use crate::net::{Net, Place};

/// No byte from a parent for so long: the transport gives up.
const STALL: Duration = Duration::from_secs(3);

/// The whole of it.
pub struct World {
    pub(crate) plan: Plan,
    rng: fastrand::Rng,
    pub(crate) now: Duration,
    order: u64,
    queue: BinaryHeap<Planned>,
    /// How many hosts are alive and do not have what they want.
    unfinished: usize,
    net: Net,
    flows: BTreeMap<u64, Carries>,
    origin: Place,
    origin_away: Duration,
    pub(crate) hosts: Vec<Host>,
    peers: BTreeMap<PeerId, usize>,
    core: Option<scheduler::Core>,
    core_config: scheduler::Config,
    epoch: u32,
    core_wake: Option<Duration>,
    conversations: BTreeMap<PeerId, (usize, u64)>,
    ids: u64,
    slower: (Duration, Duration),
    /// The scheduler says nothing until then.
    scheduler_frozen: Duration,
    /// See [`World::watch_liveness`].
    idle_at_most: Option<Duration>,
    outcome: Outcome,
}

impl World {
    /// Nothing has happened yet. All hosts are announced, and begin within the plan's time.
    pub fn new(plan: Plan) -> Self {
        let mut rng = fastrand::Rng::with_seed(plan.seed);
        let mut net = Net::default();
        let pieces = plan.geometry.count() as usize;
        let hosts: Vec<_> = (0..plan.hosts).map(|_| Host::new(net.add(plan.link, plan.link), pieces)).collect();
        let origin = net.add(plan.origin, plan.origin);
        net.limit_each(origin, plan.origin_each);
        let core_config = plan.scheduler.clone();
        let core = scheduler::Core::new(core_config.clone(), rng.u64(..));
        let mut world = Self {
            rng,
            now: Duration::ZERO,
            order: 0,
            queue: BinaryHeap::new(),
            unfinished: plan.hosts,
            net,
            flows: BTreeMap::new(),
            origin,
            origin_away: Duration::ZERO,
            hosts,
            peers: BTreeMap::new(),
            core: Some(core),
            core_config,
            epoch: 0,
            core_wake: None,
            conversations: BTreeMap::new(),
            ids: 0,
            slower: (Duration::ZERO, Duration::ZERO),
            scheduler_frozen: Duration::ZERO,
            idle_at_most: None,
            outcome: Outcome::default(),
            plan,
        };
        for host in 0..world.plan.hosts {
            world.announce(host);
            let at = world.plan.arrivals.mul_f64(world.rng.f64());
            world.at(at, Happening::Begin { host });
            let odd = world.rng.u32(..100) < world.plan.odd;
            if odd {
                world.hosts[host].want = if world.rng.bool() { Want::Prefetch } else { Want::Half };
            }
        }
        world
    }

    /// Makes a host come at this time, and want this.
    pub fn wants(&mut self, host: usize, want: Want, at: Duration) {
        self.hosts[host].want = want;
        self.queue
            .retain(|planned| !matches!(planned.happening, Happening::Begin { host: planned } if planned == host));
        self.at(at, Happening::Begin { host });
    }

    /// The plan.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How much time has passed.
    pub const fn now(&self) -> Duration {
        self.now
    }

    /// Plans a fault.
    pub fn fault(&mut self, at: Duration, fault: Fault) {
        self.at(at, Happening::Fault(fault));
    }

    /// Lets things happen until then, or until every living host has what it wants.
    pub fn run(&mut self, until: Duration) -> bool {
        while !self.is_done() {
            if self.queue.peek().is_none_or(|planned| planned.at > until) {
                return false;
            }
            let Planned { at, happening, .. } = self.queue.pop().expect("just seen");
            self.now = at;
            self.outcome.events += 1;
            self.happen(happening);
        }
        true
    }

    fn is_done(&self) -> bool {
        self.unfinished == 0
    }

    /// What came out so far.
    pub fn outcome(&self) -> Outcome {
        fn sorted<T: Ord>(values: impl Iterator<Item = T>) -> Vec<T> {
            let mut values: Vec<T> = values.collect();
            values.sort_unstable();
            values
        }
        Outcome {
            finished: sorted(self.hosts.iter().filter_map(|host| host.finished)),
            first_pieces: sorted(self.hosts.iter().filter_map(|host| host.first)),
            gaps: sorted(self.hosts.iter().map(|host| host.gap)),
            uploads: sorted(self.hosts.iter().map(|host| host.uploaded)),
            ..self.outcome.clone()
        }
    }

    /// The longest that a host's reader waited, for its first piece or for another.
    pub fn longest_wait(&self, host: usize) -> Duration {
        let state = &self.hosts[host];
        let unserved = if state.finished.is_none() { self.now - state.moved.max(state.began) } else { Duration::ZERO };
        let first = state.first.map_or(Duration::ZERO, |first| first - state.began);
        state.gap.max(first).max(unserved)
    }

    /// Whether these hosts have what they want.
    pub fn are_done(&self, mut hosts: std::ops::Range<usize>) -> bool {
        hosts.all(|host| self.hosts[host].finished.is_some())
    }

    /// Makes a host have everything from the start on.
    pub fn holds(&mut self, host: usize) {
        self.hosts[host].have.iter_mut().for_each(|piece| *piece = Some(0));
        self.announce(host);
    }

    /// How many pieces the host has that has most.
    pub fn most_held(&self) -> usize {
        self.hosts.iter().map(|host| host.have.iter().flatten().count()).max().unwrap_or(0)
    }

    /// Whoever reads the most from the source now.
    pub fn source_reader(&self) -> Option<usize> {
        let ahead = |host: &Host| host.stream.as_ref().map(|stream| stream.end - stream.next);
        (0..self.hosts.len())
            .filter(|&host| ahead(&self.hosts[host]).is_some())
            .max_by_key(|&host| ahead(&self.hosts[host]))
    }

    /// Who still waits, and for what.
    pub fn unfinished(&self) -> String {
        let waiting = self.hosts.iter().enumerate().filter(|(_, host)| host.alive && host.finished.is_none());
        let lines = waiting.take(3).map(|(index, host)| {
            let missing = host.have.iter().filter(|piece| piece.is_none()).count();
            format!("host {index} ({:?}) lacks {missing} pieces: {:?}", host.want, host.machine)
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    fn at(&mut self, at: Duration, happening: Happening) {
        self.order += 1;
        self.queue.push(Planned { at: at.max(self.now), order: self.order, happening });
    }

    fn moment(&self) -> Moment {
        Moment::after_start(self.now)
    }

    fn id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    /// How long a message takes now.
    fn delay(&mut self) -> Duration {
        let (by, until) = self.slower;
        let most = if self.now < until { self.plan.delay + by } else { self.plan.delay };
        Duration::from_micros(100) + most.mul_f64(self.rng.f64())
    }

    fn host_id(&self, host: usize) -> HostId {
        HostId::from(format!("host-{host}"))
    }

    fn task() -> TaskId {
        TaskId::from_bytes([7; 32])
    }

    fn origin_of() -> Origin {
        Origin { url: "http://origin/file".into(), ..Origin::default() }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Begin { host } => self.begin(host),
            Happening::Wake { host, life } => {
                if self.hosts[host].life == life {
                    self.hosts[host].wake = None;
                    let due = self.hosts[host].machine.as_ref().and_then(download::Download::deadline);
                    if due.is_some_and(|due| due <= self.moment()) {
                        self.tell(host, download::Event::Timer);
                    } else {
                        self.arm(host);
                    }
                }
            }
            Happening::CoreWake { epoch } => {
                if self.now < self.scheduler_frozen {
                    let at = self.scheduler_frozen;
                    return self.at(at, Happening::CoreWake { epoch });
                }
                if epoch == self.epoch {
                    self.core_wake = None;
                    self.core(scheduler::Event::Timer);
                }
            }
            Happening::ToCore { epoch, from, event } => self.core_hears(epoch, from, *event),
            Happening::Answer { host, conversation, answer } => {
                if self.hosts[host].conversation == Some(conversation) {
                    if let Answer::Parents { proven, .. } = &answer {
                        self.hosts[host].proven &= proven;
                    }
                    self.tell(host, download::Event::Answer(answer));
                }
            }
            Happening::Lost { host, conversation } => {
                if self.hosts[host].conversation == Some(conversation) {
                    self.hosts[host].conversation = None;
                    self.tell(host, download::Event::SchedulerLost);
                }
            }
            Happening::Silent { host, conversation } => {
                if self.now < self.scheduler_frozen {
                    self.happen(Happening::Lost { host, conversation });
                }
            }
            Happening::Subscribe { child, life, parent } => self.subscribe(child, life, parent),
            Happening::Has { child, life, parent, piece } => {
                if self.hosts[child].life == life {
                    self.tell(child, download::Event::ParentHas { parent, piece });
                }
            }
            Happening::Gone { child, life, parent } => {
                if self.hosts[child].life == life && self.hosts[child].following.contains(&parent) {
                    self.tell(child, download::Event::ParentGone { parent, fault: PieceFault::Gone });
                }
            }
            Happening::FetchBegins { child, id, piece } => self.fetch_begins(child, id, piece),
            Happening::FetchFails { child, id, piece, fault } => self.fetch_fails(child, id, piece, fault),
            Happening::Asked { child, parent, id } => self.asked(child, parent, id),
            Happening::AskExpires { child, parent, id, fault } => self.ask_expires(child, &parent, id, fault),
            Happening::Turn { child, parent, id, least_sent } => self.turn(child, parent, id, least_sent),
            Happening::TurnOver { host, life } => {
                if self.hosts[host].life == life {
                    self.upload_over(host);
                }
            }
            Happening::Flows { due } => {
                if self.net.is_due(due) {
                    self.flowed(due.flow);
                }
            }
            Happening::StreamBegins { child, id } => self.stream_begins(child, id),
            Happening::StreamLives { child, id } => self.stream_lives(child, id),
            Happening::StreamEnds { child, id, end } => {
                if self.hosts[child].stream.as_ref().is_some_and(|stream| stream.id == id) {
                    self.drop_stream(child);
                    self.tell(child, download::Event::SourceEnded(end));
                }
            }
            Happening::SchedulerUp => self.scheduler_up(),
            Happening::LivenessCheck => self.check_liveness(),
            Happening::Fault(fault) => self.go_wrong(fault),
        }
    }

    /// A client comes to a host.
    fn begin(&mut self, index: usize) {
        if !self.hosts[index].alive || self.hosts[index].finished.is_some() || self.hosts[index].machine.is_some() {
            return;
        }
        self.hosts[index].began = self.now;
        let seed = self.rng.u64(..);
        let blind = self.rng.u32(..100) < self.plan.blind;
        let source_under_way = self.rng.u32(..100) < self.plan.under_way;
        let now = self.moment();
        let geometry = self.plan.geometry;
        let host = &mut self.hosts[index];
        host.life += 1;
        host.peer = PeerId::from(format!("peer-{index}-{}", host.life));
        host.proven = true;
        host.heard.clear();
        let mut have = damselfly_core::PieceSet::empty(geometry.count());
        have.extend(geometry.pieces().filter(|piece| host.have[piece.index()].is_some()));
        let setup = download::Setup {
            config: self.plan.download.clone(),
            // What is on disk says how long it is.
            geometry: (!blind || !have.is_empty()).then_some(geometry),
            have,
            source: SourceWish::Allowed,
            source_under_way,
            scheduler: true,
            seed,
        };
        host.machine = Some(download::Download::new(setup, now));
        self.peers.insert(host.peer.clone(), index);
        let reader = download::ReaderId(1);
        let event = match host.want {
            Want::Prefetch => download::Event::WantWhole,
            Want::Read => download::Event::ReaderWants { reader, wish: damselfly_core::RangeWish::Whole },
            Want::Half => {
                let wish = damselfly_core::RangeWish::Span(0, (geometry.length() / 2).max(1) - 1);
                download::Event::ReaderWants { reader, wish }
            }
        };
        self.tell(index, event);
    }

    /// Tells a host's machine, and does what it asks.
    fn tell(&mut self, index: usize, event: download::Event) {
        let now = self.moment();
        let Some(machine) = &mut self.hosts[index].machine else { return };
        machine.handle(now, event);
        while let Some(action) = self.hosts[index].machine.as_mut().and_then(download::Download::poll) {
            self.act(index, action);
        }
        assert!(self.hosts[index].arrived.is_empty(), "host {index} neither keeps nor discards");
        self.arm(index);
    }

    fn arm(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        let Some(deadline) = host.machine.as_ref().and_then(download::Download::deadline) else { return };
        let at = deadline.since_start().max(self.now);
        if host.wake.is_none_or(|wake| at < wake) {
            host.wake = Some(at);
            let life = host.life;
            self.at(at, Happening::Wake { host: index, life });
        }
    }

    fn act(&mut self, index: usize, action: download::Action) {
        use download::Action;
        match action {
            Action::Register { source } => self.register(index, source),
            Action::Report(report) => self.report(index, report),
            Action::Follow(offer) => {
                let life = self.hosts[index].life;
                self.hosts[index].following.insert(offer.peer.clone());
                let at = self.now + self.delay();
                self.at(at, Happening::Subscribe { child: index, life, parent: offer.peer });
            }
            Action::Unfollow(peer) => {
                self.hosts[index].following.remove(&peer);
                self.drop_ask(index, &peer);
            }
            Action::AskTurn { parent, wanted } => self.ask(index, parent, wanted),
            Action::PassTurn { parent } => self.drop_ask(index, &parent),
            Action::Fetch { parent, piece, .. } => {
                let producer = self.hosts[index].producer(piece);
                assert_eq!(producer, None, "host {index} asks {parent} for {piece}");
                assert_eq!(self.hosts[index].have[piece.index()], None, "host {index} asks for what it has: {piece}");
                let id = self.id();
                let from = self.peers[&parent];
                let in_turn = self.hosts[index].asks.remove(&parent).is_some_and(|ask| ask.granted);
                let fetching = crate::host::Fetching { id, parent, from, flow: None, variant: 0, in_turn };
                self.hosts[index].fetches.insert(piece, fetching);
                let at = self.now + self.delay();
                self.at(at, Happening::FetchBegins { child: index, id, piece });
            }
            Action::Cancel { piece, .. } => self.drop_fetch(index, piece),
            Action::Keep { piece } => {
                let variant = self.hosts[index].arrived.remove(&piece).expect("only what arrived is kept");
                let proven = self.hosts[index].proven;
                assert!(!proven || variant == 0, "host {index} keeps wrong bytes as {piece}");
                self.keep(index, piece, variant);
            }
            Action::Discard { piece } => {
                self.hosts[index].arrived.remove(&piece).expect("only what arrived is discarded");
            }
            Action::ReadSource { range } => {
                assert!(self.hosts[index].stream.is_none(), "host {index} reads the source twice");
                let length = self.plan.geometry.piece_length();
                let range = range.unwrap_or(damselfly_core::ByteRange::whole(self.plan.geometry.length()));
                let (next, end) = ((range.start() / length) as u32, range.end().div_ceil(length) as u32);
                for piece in (next..end).map(PieceNumber) {
                    assert_eq!(self.hosts[index].producer(piece), None, "host {index} reads {piece}");
                }
                let id = self.id();
                self.hosts[index].stream = Some(crate::host::Stream { id, next, end, flow: None });
                let at = self.now + self.delay() * 2;
                self.at(at, Happening::StreamBegins { child: index, id });
            }
            Action::ShortenSource { end } => {
                if let Some(stream) = &mut self.hosts[index].stream {
                    stream.end = (end / self.plan.geometry.piece_length()) as u32;
                }
            }
            Action::StopSource => self.drop_stream(index),
            Action::ReadAside { .. } | Action::StopAside => panic!("host {index} has no reader far ahead"),
            Action::Finish => self.ended(index, true),
            Action::Fail(failure) => {
                use download::Failure;
                assert!(matches!(failure, Failure::Cut | Failure::NoPeers), "host {index} fails: {failure}");
                self.ended(index, false);
            }
        }
    }

    fn ended(&mut self, index: usize, well: bool) {
        let host = &mut self.hosts[index];
        host.machine = None;
        host.following.clear();
        let asks: Vec<PeerId> = host.asks.keys().cloned().collect();
        asks.iter().for_each(|parent| self.drop_ask(index, parent));
        let host = &mut self.hosts[index];
        assert!(host.fetches.is_empty() && host.stream.is_none(), "host {index} ends and leaves something running");
        if well {
            let wanted = if host.want == Want::Half { host.have.len() / 2 } else { host.have.len() };
            assert!(
                host.have[..wanted].iter().all(Option::is_some),
                "host {index} finishes without all that is wanted"
            );
            host.finished = Some(self.now);
            self.unfinished -= 1;
        } else {
            host.failures += 1;
            self.outcome.failures += 1;
            // Its client tries again.
            let at = self.now + Duration::from_secs(1);
            self.at(at, Happening::Begin { host: index });
        }
    }
}
