//! A model of the driver, which judges what the machine does: for random events of the tests, and for a fuzzer's bytes.
//!
//! **No panic, one producer for a piece, a bounded number in flight, and an end in a bounded time when nobody says
//! anything any more.**

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use damselfly_core::swarm::{Answer, Offer, PieceFault, SourceWish};
use damselfly_core::{Geometry, Moment, PeerId, PieceDigest, PieceNumber, PieceSet, RangeWish};

use super::{Action, Config, Download, End, Event, ReaderId, Setup};

pub(crate) const PIECE: u64 = 100;

pub(crate) fn geometry(pieces: u64) -> Geometry {
    Geometry::new(pieces * PIECE, PIECE).unwrap()
}

pub(crate) fn digest(piece: u32) -> PieceDigest {
    PieceDigest::of(&piece.to_be_bytes())
}

pub(crate) fn peer(name: &str) -> PeerId {
    PeerId::from(name)
}

pub(crate) fn offer(name: &str) -> Offer {
    Offer { peer: peer(name), host: name.into(), rpc: ([127, 0, 0, 1], 1).into(), tls: false }
}

pub(crate) fn setup(pieces: Option<u64>) -> Setup {
    Setup {
        // What is done for a reader that waits for one piece has tests of its own.
        config: Config {
            jitter: Duration::ZERO,
            late: Duration::from_secs(100_000),
            scattered: 0,
            ..Config::default()
        },
        geometry: pieces.map(geometry),
        have: PieceSet::empty(0),
        source: SourceWish::Allowed,
        source_under_way: false,
        scheduler: true,
        seed: 1,
    }
}

/// The pieces of the content.
pub const PIECES: u32 = 12;
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// What the machine has asked of its driver and not taken back.
#[derive(Debug, Default)]
struct Model {
    fetches: BTreeMap<PieceNumber, PeerId>,
    /// What arrived and waits for a word.
    arrived: BTreeSet<PieceNumber>,
    /// The pieces from the next one to the one behind the last.
    source: Option<(u32, u32)>,
    /// The stream beside it.
    aside: Option<(u32, u32)>,
    have: BTreeSet<PieceNumber>,
    followed: BTreeSet<PeerId>,
    /// Parents that serve by turns; those that were asked for one, and the one that gave it and waits for a word.
    queueing: BTreeSet<PeerId>,
    asked: BTreeSet<PeerId>,
    given: Option<PeerId>,
    ended: bool,
}

impl Model {
    fn act(&mut self, action: Action) {
        assert!(!self.ended, "nothing after the end: {action:?}");
        match action {
            Action::Follow(offer) => assert!(self.followed.insert(offer.peer)),
            Action::Unfollow(peer) => {
                assert!(self.followed.remove(&peer));
                self.queueing.remove(&peer);
                self.asked.remove(&peer);
            }
            Action::AskTurn { parent, wanted } => {
                assert!(self.queueing.contains(&parent) && self.asked.insert(parent), "asked once");
                assert!(!wanted.is_empty());
            }
            Action::PassTurn { parent } => assert_eq!(self.given.take(), Some(parent)),
            Action::ShortenSource { end } => {
                let (next, before) = self.source.expect("a stream is under way");
                let end = (end / PIECE) as u32;
                assert!(next < end && end < before, "it ends earlier than it did, and not at once");
                self.source = Some((next, end));
            }
            Action::Fetch { parent, piece, .. } => {
                assert!(self.followed.contains(&parent), "only followed parents are asked");
                if self.queueing.contains(&parent) {
                    assert_eq!(self.given.take().as_ref(), Some(&parent), "only in its turn");
                }
                assert!(!self.have.contains(&piece) && !self.arrived.contains(&piece));
                let streams = [self.source, self.aside].into_iter().flatten();
                let mut by_source = streams.filter(|(next, end)| (*next..*end).contains(&piece.0));
                assert_eq!(by_source.next(), None, "{piece} has a producer: the source");
                assert_eq!(self.fetches.insert(piece, parent), None, "{piece} has a producer");
            }
            Action::Cancel { parent, piece } => assert_eq!(self.fetches.remove(&piece), Some(parent)),
            Action::Keep { piece } => assert!(self.arrived.remove(&piece) && self.have.insert(piece)),
            Action::Discard { piece } => assert!(self.arrived.remove(&piece)),
            Action::ReadSource { range } => {
                assert_eq!(self.source, None, "the old stream is over");
                let (first, end) = range.map_or((0, PIECES), |range| {
                    assert_eq!(range.start() % PIECE, 0);
                    assert_eq!(range.end() % PIECE, 0);
                    ((range.start() / PIECE) as u32, (range.end() / PIECE) as u32)
                });
                for piece in first..end {
                    assert!(!self.fetches.contains_key(&PieceNumber(piece)), "#{piece} has a producer: a parent");
                    let aside = self.aside.is_some_and(|(next, end)| (next..end).contains(&piece));
                    assert!(!aside, "#{piece} has a producer: the second stream");
                }
                self.source = Some((first, end));
            }
            Action::ReadAside { range } => {
                assert_eq!(self.aside, None, "one at a time");
                let (first, end) = ((range.start() / PIECE) as u32, range.end().div_ceil(PIECE) as u32);
                for piece in first..end {
                    let by_source = self.source.is_some_and(|(next, end)| (next..end).contains(&piece));
                    assert!(!by_source && !self.fetches.contains_key(&PieceNumber(piece)), "#{piece} has a producer");
                }
                self.aside = Some((first, end));
            }
            Action::StopAside => self.aside = None,
            Action::StopSource => self.source = None,
            Action::Finish | Action::Fail(_) => {
                let streams = self.source.is_some() || self.aside.is_some();
                assert!(self.fetches.is_empty() && !streams, "everything is stopped at the end");
                self.ended = true;
            }
            Action::Register { .. } | Action::Report(_) => {}
        }
    }
}

/// What happens next.
#[derive(Clone, Debug)]
pub enum Step {
    /// The time comes that the machine waits for.
    Wait,
    /// The scheduler names parents: which, whether proofs come with them, whether the geometry fits.
    Parents(Vec<usize>, bool, bool),
    /// The scheduler grants the source.
    Grant,
    /// The scheduler has nothing yet.
    Hold,
    /// The scheduler says what a piece is, or something wrong.
    Proof(u32, bool),
    /// The scheduler is lost.
    Lost,
    /// A parent has a piece.
    Has(usize, u32),
    /// A parent is gone.
    Gone(usize),
    /// A piece that is fetched arrives, or other bytes.
    Arrive(usize, bool),
    /// A piece that is fetched fails.
    Fault(usize, usize),
    /// The source is opened.
    Open,
    /// The source gives a whole piece, or some bytes.
    Source(bool),
    /// The source ends.
    End(usize),
    /// A reader wants a span.
    Reader(u64, u64, u64),
    /// A reader is at an offset.
    At(u64, u64),
    /// A reader leaves.
    Leave(u64),
    /// Somebody wants all of it.
    Whole,
    /// The process drains.
    Drain,
    /// A piece is on disk already.
    Held(u32),
    /// A piece is lost from disk.
    Missing(u32),
    /// A parent serves by turns.
    Queues(usize),
    /// A parent gives a turn.
    Turn(usize, Vec<u32>),
    /// A parent gives no turn.
    NoTurn(usize, usize),
    /// The scheduler leases a run of pieces.
    Lease(u32, u32),
    /// The second stream ends by itself.
    AsideEnds,
    /// This host's own limit has held it up for so many milliseconds.
    HeldUp(u32),
}

impl Step {
    /// The step that the next bytes mean; `None` behind the last.
    fn read(bytes: &mut impl Iterator<Item = u8>) -> Option<Self> {
        let kind = bytes.next()?;
        let mut number = |below: u32| bytes.next().map_or(0, u32::from) % below;
        if kind >= 250 {
            return Some(Self::HeldUp(100 * number(50)));
        }
        Some(match kind % 25 {
            0 => Self::Wait,
            1 => {
                let flags = number(8);
                let who = (0..number(4)).map(|_| number(4) as usize).collect();
                Self::Parents(who, flags & 1 == 1, flags & 6 != 0)
            }
            2 => Self::Grant,
            3 => Self::Hold,
            4 => Self::Proof(number(PIECES + 2), number(8) != 0),
            5 => Self::Lost,
            6 => Self::Has(number(4) as usize, number(PIECES + 2)),
            7 => Self::Gone(number(4) as usize),
            8 => Self::Arrive(number(8) as usize, number(8) != 0),
            9 => Self::Fault(number(8) as usize, number(4) as usize),
            10 => Self::Open,
            11 => Self::Source(number(8) != 0),
            12 => Self::End(number(5) as usize),
            13 => Self::Reader(number(3).into(), 37 * u64::from(number(32)), 1 + 37 * u64::from(number(32))),
            14 => Self::At(number(3).into(), 37 * u64::from(number(32))),
            15 => Self::Leave(number(3).into()),
            16 => Self::Whole,
            17 => Self::Drain,
            18 => Self::Held(number(PIECES + 2)),
            19 => Self::Missing(number(PIECES + 2)),
            20 => Self::Queues(number(4) as usize),
            21 => Self::Turn(number(4) as usize, (0..number(4)).map(|_| number(PIECES + 2)).collect()),
            22 => Self::NoTurn(number(4) as usize, number(5) as usize),
            23 => Self::AsideEnds,
            _ => {
                let first = number(PIECES);
                Self::Lease(first, (first + 1 + number(5)).min(PIECES))
            }
        })
    }
}

/// So often in a row may a machine be woken without time having passed: one deadline may lead to the next.
const MOST_WAKES: u32 = 16;

/// How many steps of a run are looked at.
const MAX_STEPS: usize = 400;

/// A machine and the driver that it is told of.
#[derive(Debug)]
pub struct Run {
    download: Download,
    now: Moment,
    /// How often in a row the machine was woken without time having passed.
    stood_still: u32,
    model: Model,
}

impl Run {
    /// A machine that has just begun. `wish` (of three) is what it may do with the source; `known`: whether the content's
    /// length is.
    pub fn new(known: bool, scheduler: bool, source_under_way: bool, wish: usize, seed: u64) -> Self {
        let wishes = [SourceWish::Allowed, SourceWish::Wanted, SourceWish::Forbidden];
        let known = known.then_some(u64::from(PIECES));
        let mut setup = Setup { source: wishes[wish % 3], scheduler, source_under_way, seed, ..setup(known) };
        // Readers who read here and there have rules of their own.
        if seed % 2 == 1 {
            (setup.config.far, setup.config.scattered) = (2, 4);
        }
        let mut run = Self {
            download: Download::new(setup, Moment::START),
            now: Moment::START,
            stood_still: 0,
            model: Model::default(),
        };
        while let Some(action) = run.download.poll() {
            run.model.act(action);
        }
        run
    }

    /// Runs what `bytes` say, to the end.
    pub fn of_bytes(bytes: &[u8]) {
        let mut bytes = bytes.iter().copied();
        let flags = bytes.next().unwrap_or_default();
        let seed = u64::from(bytes.next().unwrap_or_default());
        let mut run = Self::new(flags & 1 == 1, flags & 2 == 2, flags & 4 == 4, usize::from(flags >> 3), seed);
        for step in std::iter::from_fn(|| Step::read(&mut bytes)).take(MAX_STEPS) {
            run.step(step);
        }
        run.fall_silent();
    }

    /// One step.
    pub fn step(&mut self, step: Step) {
        let Some(event) = self.event(step) else { return };
        self.download.handle(self.now, event);
        while let Some(action) = self.download.poll() {
            self.model.act(action);
        }
        let model = &self.model;
        assert!(model.arrived.is_empty(), "every arrived piece is kept or discarded at once");
        assert!(model.ended || model.given.is_none(), "a turn is used or passed at once");
        assert!(model.fetches.len() <= Config::default().concurrent_pieces as usize);
        assert!(self.download.has_ended() == model.ended);
        assert!(model.ended || self.download.deadline().is_some(), "waiting without a deadline");
    }

    /// Nobody says anything any more: the machine finds its end by its own deadlines, in a bounded time.
    pub fn fall_silent(mut self) {
        let silent = self.now;
        for _ in 0..3000 {
            if self.download.has_ended() {
                break;
            }
            self.step(Step::Wait);
            // A driver lets no question for a turn go without an answer.
            for _ in 0..self.model.asked.len() {
                self.step(Step::NoTurn(0, 1));
            }
        }
        assert!(self.download.has_ended(), "still waiting: {:?}", self.download);
        assert!(self.now.since(silent) < Duration::from_secs(1200));
    }

    /// The event that a driver could tell in this step; `None` where it could not.
    fn event(&mut self, step: Step) -> Option<Event> {
        let model = &mut self.model;
        let pick = |which: usize| model.fetches.iter().nth(which).map(|(&piece, parent)| (piece, parent.clone()));
        Some(match step {
            Step::Wait => {
                let before = self.now;
                self.now = self.now.max(self.download.deadline()?);
                self.stood_still = if self.now > before { 0 } else { self.stood_still + 1 };
                assert!(self.stood_still < MOST_WAKES, "woken at {before:?} again and again: {:?}", self.download);
                Event::Timer
            }
            Step::Parents(who, proven, fits) => Event::Answer(Answer::Parents {
                offers: who.into_iter().map(|who| offer(NAMES[who])).collect(),
                geometry: Some(geometry(if fits { PIECES.into() } else { 3 })),
                proven,
            }),
            Step::Grant => Event::Answer(Answer::GoToSource { pieces: None }),
            Step::Hold => Event::Answer(Answer::Wait),
            Step::Proof(piece, good) => {
                let proof = digest(if good { piece } else { 99 }).blake3;
                Event::Answer(Answer::Proofs(vec![(PieceNumber(piece), proof)]))
            }
            Step::Lost => Event::SchedulerLost,
            Step::Has(who, piece) => Event::ParentHas { parent: peer(NAMES[who]), piece: PieceNumber(piece) },
            Step::Gone(who) => Event::ParentGone { parent: peer(NAMES[who]), fault: PieceFault::Gone },
            Step::Arrive(which, good) => {
                let (piece, parent) = pick(which)?;
                model.fetches.remove(&piece);
                model.arrived.insert(piece);
                Event::PieceArrived { parent, piece, digest: digest(if good { piece.0 } else { 98 }) }
            }
            Step::Fault(which, fault) => {
                let (piece, parent) = pick(which)?;
                model.fetches.remove(&piece);
                let faults = [PieceFault::Bad, PieceFault::Stalled, PieceFault::Gone, PieceFault::Missing];
                Event::PieceFailed { parent, piece, fault: faults[fault] }
            }
            Step::Queues(who) => {
                let parent = peer(NAMES[who]);
                // A parent says so before anything else.
                if !model.followed.contains(&parent) || model.fetches.values().any(|fetching| *fetching == parent) {
                    return None;
                }
                model.queueing.insert(parent.clone());
                Event::ParentQueues { parent }
            }
            Step::Turn(which, named) => {
                let parent = model.asked.iter().nth(which)?.clone();
                model.asked.remove(&parent);
                model.given = Some(parent.clone());
                Event::Turn { parent, least_sent: named.into_iter().map(PieceNumber).collect() }
            }
            Step::NoTurn(which, fault) => {
                let parent = model.asked.iter().nth(which)?.clone();
                model.asked.remove(&parent);
                let faults = [PieceFault::Bad, PieceFault::Stalled, PieceFault::Gone, PieceFault::Missing];
                Event::TurnRefused { parent, fault: faults.get(fault).copied() }
            }
            Step::Lease(first, end) => Event::Answer(Answer::GoToSource { pieces: Some(first..end) }),
            Step::Open => {
                model.source?;
                Event::SourceOpened { geometry: geometry(PIECES.into()) }
            }
            Step::Source(whole) => {
                let (next, end) = model.source.filter(|(next, end)| next < end)?;
                self.download.geometry()?;
                if !whole {
                    return Some(Event::SourceProgress { bytes: 7 });
                }
                model.source = Some((next + 1, end));
                model.have.insert(PieceNumber(next));
                Event::SourcePiece { piece: PieceNumber(next), digest: digest(next) }
            }
            Step::End(end) => {
                let (next, end_of) = model.source?;
                let end = [End::Complete, End::Cut, End::Changed, End::Refused, End::Unsized][end];
                if end == End::Complete && next < end_of {
                    return None;
                }
                model.source = None;
                Event::SourceEnded(end)
            }
            Step::Reader(who, from, len) => {
                Event::ReaderWants { reader: ReaderId(who), wish: RangeWish::Span(from, from + len - 1) }
            }
            Step::At(who, offset) => Event::ReaderAt { reader: ReaderId(who), offset },
            Step::HeldUp(millis) => {
                // A driver tells no more than the time that has passed.
                self.now = self.now + Duration::from_millis(millis.into());
                self.stood_still = 0;
                Event::HeldUp { by: Duration::from_millis(millis.into()) }
            }
            Step::Leave(who) => Event::ReaderGone { reader: ReaderId(who) },
            Step::Whole => Event::WantWhole,
            Step::Drain => Event::Drain,
            Step::Held(piece) => {
                let piece = PieceNumber(piece);
                if piece.0 >= PIECES || self.download.geometry().is_none() {
                    return None;
                }
                model.have.insert(piece);
                // The second stream tells of its pieces so, one after the other.
                if let Some((next, end)) = &mut model.aside {
                    while *next < *end && model.have.contains(&PieceNumber(*next)) {
                        *next += 1;
                    }
                }
                Event::PieceHeld { piece }
            }
            Step::AsideEnds => {
                model.aside.take()?;
                Event::AsideEnded
            }
            Step::Missing(piece) => {
                model.have.remove(&PieceNumber(piece));
                Event::PieceLost { piece: PieceNumber(piece) }
            }
        })
    }
}
