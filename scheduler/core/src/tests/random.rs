//! Any sequence of events leaves the machine in order, and what it says can be believed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use damselfly_core::swarm::{Answer, Holding, HostInfo, Origin, PieceFault, Registration, Report, SourceWish};
use damselfly_core::{Geometry, Moment, PeerId, PieceDigest, PieceNumber, TaskId};
use proptest::prelude::*;

use super::world::{check, geometry, held, host, host_info, registration};
use crate::{Config, Core, Event, Output};

const HOSTS: u8 = 7;
const TASKS: u8 = 3;

/// One step; numbers name hosts, tasks and peers.
#[derive(Clone, Debug)]
enum Step {
    Announce { host: u8, slots: u32 },
    Leave { host: u8 },
    HoldNothing { host: u8 },
    Hold { host: u8, task: u8, life: u8, pieces: u8 },
    Register { host: u8, task: u8, life: u8, wish: u8, extended: bool, pieces: Option<u8>, geometry: bool },
    Opened { peer: Named, odd: bool },
    Piece { peer: Named, parent: Option<Named>, piece: u32, lie: bool },
    PieceFailed { peer: Named, parent: Option<Named>, piece: u32, fault: u8 },
    Reschedule { peer: Named, all: bool },
    Simple { peer: Named, what: u8 },
    Delete { task: u8 },
    RefuseSeeds,
    Pass { millis: u64 },
}

type Named = (u8, u8, u8);

fn id((host, task, life): Named) -> PeerId {
    PeerId::from(format!("h{host}-t{task}-{life}"))
}

fn task_id(task: u8) -> TaskId {
    TaskId::from_bytes([task; 32])
}

/// Of every second task the name says what its bytes are.
fn origin(task: u8) -> Origin {
    let origin = registration("a").origin;
    Origin { digest: origin.digest.filter(|_| task.is_multiple_of(2)), ..origin }
}

fn named() -> impl Strategy<Value = Named> {
    (0..HOSTS, 0..TASKS, 0u8..2)
}

fn step() -> impl Strategy<Value = Step> {
    let piece = 0u32..9;
    prop_oneof![
        4 => (0..HOSTS, 0u32..4).prop_map(|(host, slots)| Step::Announce { host, slots }),
        1 => (0..HOSTS).prop_map(|host| Step::Leave { host }),
        1 => (0..HOSTS).prop_map(|host| Step::HoldNothing { host }),
        2 => (named(), any::<u8>()).prop_map(|((host, task, life), pieces)| Step::Hold { host, task, life, pieces }),
        8 => (named(), 0u8..4, any::<bool>(), prop::option::of(any::<u8>()), any::<bool>()).prop_map(
            |((host, task, life), wish, extended, pieces, geometry)| {
                Step::Register { host, task, life, wish, extended, pieces, geometry }
            }
        ),
        2 => (named(), prop::bool::weighted(0.1)).prop_map(|(peer, odd)| Step::Opened { peer, odd }),
        8 => (named(), prop::option::of(named()), piece.clone(), prop::bool::weighted(0.1))
            .prop_map(|(peer, parent, piece, lie)| Step::Piece { peer, parent, piece, lie }),
        4 => (named(), prop::option::of(named()), piece, 0u8..5)
            .prop_map(|(peer, parent, piece, fault)| Step::PieceFailed { peer, parent, piece, fault }),
        4 => (named(), any::<bool>()).prop_map(|(peer, all)| Step::Reschedule { peer, all }),
        6 => (named(), 0u8..7).prop_map(|(peer, what)| Step::Simple { peer, what }),
        1 => (0..TASKS).prop_map(|task| Step::Delete { task }),
        1 => Just(Step::RefuseSeeds),
        4 => prop_oneof![0u64..100, 1000u64..40_000, Just(1_000_000)].prop_map(|millis| Step::Pass { millis }),
    ]
}

/// The machine and what a driver knows of it.
struct Run {
    core: Core,
    now: Moment,
    talking: BTreeMap<PeerId, Talk>,
    seeds: Vec<(TaskId, damselfly_core::HostId)>,
}

/// One conversation as its peer sees it.
#[derive(Default)]
struct Talk {
    extended: bool,
    answers: u32,
    parents: Vec<PeerId>,
    proofs: BTreeSet<PieceNumber>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let config =
            Config { max_tasks: 2, max_peers: 12, max_hosts: 6, max_failed: 3, uncut_lease: 0, ..Config::default() };
        Self { core: Core::new(config, seed), now: Moment::START, talking: BTreeMap::new(), seeds: Vec::new() }
    }

    fn event(&mut self, event: Event) {
        self.core.handle(self.now, event);
        while let Some(output) = self.core.poll() {
            match output {
                Output::Fact(_) | Output::Notice(_) => {}
                Output::End(peer) => {
                    assert!(self.talking.remove(&peer).is_some(), "{peer} was ended and did not talk");
                }
                Output::TriggerSeed { host, task, .. } => {
                    assert!(host.seed);
                    self.seeds.push((task, host.id));
                }
                Output::Answer(peer, answer) => self.hear(&peer, answer),
            }
        }
        check(&self.core);
        let open: BTreeSet<_> = self.core.peers.iter().filter(|(_, peer)| peer.open).map(|(id, _)| id).collect();
        assert_eq!(open, self.talking.keys().collect(), "who talks is open and who is open talks");
    }

    fn hear(&mut self, peer: &PeerId, answer: Answer) {
        let talk = self.talking.get_mut(peer).unwrap_or_else(|| panic!("{peer} is told {answer:?} and does not talk"));
        talk.answers += 1;
        match answer {
            Answer::Wait => assert!(talk.extended),
            Answer::Proofs(proofs) => {
                assert!(talk.extended);
                talk.proofs.extend(proofs.into_iter().map(|(piece, _)| piece));
            }
            Answer::Parents { offers, .. } => talk.parents = offers.into_iter().map(|offer| offer.peer).collect(),
            Answer::Empty | Answer::GoToSource { .. } => {}
        }
        assert!(talk.extended || talk.answers <= self.core.config().plain_answers);
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.core.deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.event(Event::Timer);
            assert!(self.core.deadline().is_none_or(|next| next > at), "it spins at {at:?}");
        }
        self.now = end;
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Announce { host, slots } => self.event(Event::HostAnnounced(info(host, slots))),
            Step::Leave { host } => self.event(Event::HostLeft(name(host))),
            Step::HoldNothing { host } => self.event(Event::HoldsNothing(name(host))),
            Step::Hold { host, task, life, pieces } => {
                let peer = id((host, task, life));
                let holding = Holding { task: task_id(task), peer, origin: origin(task), held: held(bits(pieces)) };
                self.event(Event::Held(name(host), holding));
            }
            Step::Register { host, task, life, wish, extended, pieces, geometry } => {
                let peer = id((host, task, life));
                self.talking.insert(peer.clone(), Talk { extended, ..Talk::default() });
                let source = [SourceWish::Allowed, SourceWish::Allowed, SourceWish::Wanted, SourceWish::Forbidden];
                self.event(Event::Register(Registration {
                    host: name(host),
                    task: task_id(task),
                    peer,
                    origin: origin(task),
                    geometry: geometry.then(self::geometry),
                    held: pieces.map(|pieces| held(bits(pieces))),
                    source: source[wish as usize],
                    extended,
                }));
            }
            Step::Opened { peer, odd } => {
                let geometry = if odd { Geometry::new(100, 7).unwrap() } else { geometry() };
                self.report(peer, Report::SourceOpened(geometry));
            }
            Step::Piece { peer, parent, piece, lie } => {
                let digest = PieceDigest::of(&[piece.to_le_bytes(), [u8::from(lie); 4]].concat());
                let parent = self.parent_of(peer, parent);
                self.report(peer, Report::PieceFinished { piece: PieceNumber(piece), parent, digest });
            }
            Step::PieceFailed { peer, parent, piece, fault } => {
                let faults =
                    [PieceFault::Bad, PieceFault::Stalled, PieceFault::Gone, PieceFault::Missing, PieceFault::Slow];
                let parent = self.parent_of(peer, parent).unwrap_or_else(|| id((0, 0, 0)));
                let fault = faults[fault as usize];
                self.report(peer, Report::PieceFailed { piece: PieceNumber(piece), parent, fault });
            }
            Step::Reschedule { peer, all } => {
                let parents = self.talking.get(&id(peer)).map(|talk| talk.parents.clone()).unwrap_or_default();
                self.report(peer, Report::Reschedule { failed: if all { parents } else { Vec::new() } });
            }
            Step::Simple { peer, what } => match what {
                0 => self.report(peer, Report::SourceFailed),
                1 => self.report(peer, Report::Finished),
                2 => self.report(peer, Report::Failed),
                3 => self.report(peer, Report::SourceProgress),
                4 => self.report(peer, Report::Late { piece: PieceNumber(u32::from(peer.0)) }),
                5 => self.report(peer, Report::Declined { piece: PieceNumber(u32::from(peer.0)) }),
                _ if self.talking.remove(&id(peer)).is_some() => self.event(Event::PeerGone(id(peer))),
                _ => {}
            },
            Step::Delete { task } => self.event(Event::TaskDeleted(task_id(task))),
            Step::RefuseSeeds => {
                for (task, host) in std::mem::take(&mut self.seeds) {
                    self.event(Event::SeedRefused { task, host });
                }
            }
            Step::Pass { millis } => self.pass(Duration::from_millis(millis)),
        }
    }

    /// A parent that the peer has, if any; else the one that was drawn.
    fn parent_of(&self, peer: Named, drawn: Option<Named>) -> Option<PeerId> {
        let drawn = drawn?;
        let first = self.talking.get(&id(peer)).and_then(|talk| talk.parents.first());
        Some(first.cloned().unwrap_or_else(|| id(drawn)))
    }

    fn report(&mut self, peer: Named, report: Report) {
        self.event(Event::Report(id(peer), report));
    }
}

fn name(number: u8) -> damselfly_core::HostId {
    if number == 0 { host("seed-0") } else { host(&format!("h{number}")) }
}

fn info(number: u8, slots: u32) -> HostInfo {
    let idc = if number.is_multiple_of(2) { "even" } else { "" };
    HostInfo { upload_slots: slots, idc: idc.into(), ..host_info(name(number).as_str()) }
}

fn bits(pieces: u8) -> impl Iterator<Item = u32> {
    (0..8).filter(move |bit| pieces >> bit & 1 == 1)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn any_sequence_keeps_the_machine_in_order(seed: u64, steps in prop::collection::vec(step(), 1..150)) {
        let mut run = Run::new(seed);
        for step in steps {
            run.take(step);
        }
        // Left alone, everybody who still talks is served, waits with a reason (checked above), or reads the source;
        // and the machine comes to rest.
        run.pass(Duration::from_secs(4000));
    }
}
