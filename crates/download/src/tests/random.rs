//! Random events against a model of the driver: no panic, one producer a piece, bounded in flight, never stuck.

use std::collections::{BTreeMap, BTreeSet};

use damselfly_core::swarm::PieceFault;
use proptest::prelude::*;

use super::*;

const PIECES: u32 = 12;
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// What the machine has asked of its driver and not taken back.
#[derive(Default)]
struct Model {
    fetches: BTreeMap<PieceNumber, PeerId>,
    /// What arrived and waits for a word.
    arrived: BTreeSet<PieceNumber>,
    /// The pieces from the next one to the one behind the last.
    source: Option<(u32, u32)>,
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
                let by_source = self.source.is_some_and(|(next, end)| (next..end).contains(&piece.0));
                assert!(!by_source, "{piece} has a producer: the source");
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
                }
                self.source = Some((first, end));
            }
            Action::StopSource => self.source = None,
            Action::Finish | Action::Fail(_) => {
                assert!(self.fetches.is_empty() && self.source.is_none(), "everything is stopped at the end");
                self.ended = true;
            }
            Action::Register { .. } | Action::Report(_) => {}
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Wait,
    Parents(Vec<usize>, bool, bool),
    Grant,
    Hold,
    Proof(u32, bool),
    Lost,
    Has(usize, u32),
    Gone(usize),
    Arrive(usize, bool),
    Fault(usize, usize),
    Open,
    Source(bool),
    End(usize),
    Reader(u64, u64, u64),
    At(u64, u64),
    Leave(u64),
    Whole,
    Drain,
    Held(u32),
    Missing(u32),
    Queues(usize),
    Turn(usize, Vec<u32>),
    NoTurn(usize, usize),
    Lease(u32, u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let reader = 0u64..3;
    let step = prop_oneof![
        4 => Just(Step::Wait),
        3 => (prop::collection::vec(0usize..4, 0..4), prop::bool::weighted(0.3), prop::bool::weighted(0.9))
            .prop_map(|(who, proven, fits)| Step::Parents(who, proven, fits)),
        2 => Just(Step::Grant),
        1 => Just(Step::Hold),
        4 => (0u32..PIECES + 2, prop::bool::weighted(0.9)).prop_map(|(piece, good)| Step::Proof(piece, good)),
        1 => Just(Step::Lost),
        12 => (0usize..4, 0u32..PIECES + 2).prop_map(|(who, piece)| Step::Has(who, piece)),
        1 => (0usize..4).prop_map(Step::Gone),
        9 => (0usize..8, prop::bool::weighted(0.9)).prop_map(|(which, good)| Step::Arrive(which, good)),
        2 => (0usize..8, 0usize..4).prop_map(|(which, fault)| Step::Fault(which, fault)),
        2 => Just(Step::Open),
        6 => prop::bool::weighted(0.8).prop_map(Step::Source),
        2 => (0usize..5).prop_map(Step::End),
        2 => (reader.clone(), 0..PIECES as u64 * PIECE, 1..PIECES as u64 * PIECE)
            .prop_map(|(who, from, len)| Step::Reader(who, from, len)),
        2 => (reader.clone(), 0..PIECES as u64 * PIECE).prop_map(|(who, at)| Step::At(who, at)),
        1 => reader.prop_map(Step::Leave),
        1 => Just(Step::Whole),
        1 => Just(Step::Drain),
        1 => (0u32..PIECES + 2).prop_map(Step::Held),
        1 => (0u32..PIECES + 2).prop_map(Step::Missing),
        4 => (0usize..4).prop_map(Step::Queues),
        9 => (0usize..4, prop::collection::vec(0u32..PIECES + 2, 0..4)).prop_map(|(which, named)| Step::Turn(which, named)),
        3 => (0usize..4, 0usize..5).prop_map(|(which, fault)| Step::NoTurn(which, fault)),
        3 => (0u32..PIECES, 1u32..6).prop_map(|(first, many)| Step::Lease(first, (first + many).min(PIECES))),
    ];
    prop::collection::vec(step, 0..120)
}

/// The event that a driver could tell in this step; `None` where it could not.
fn event(step: Step, bench: &mut Bench, model: &mut Model) -> Option<Event> {
    let pick = |which: usize| model.fetches.iter().nth(which).map(|(&piece, parent)| (piece, parent.clone()));
    Some(match step {
        Step::Wait => {
            bench.now = bench.now.max(bench.download.deadline()?);
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
            bench.download.geometry()?;
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
        Step::Leave(who) => Event::ReaderGone { reader: ReaderId(who) },
        Step::Whole => Event::WantWhole,
        Step::Drain => Event::Drain,
        Step::Held(piece) => {
            let piece = PieceNumber(piece);
            if piece.0 >= PIECES || bench.download.geometry().is_none() {
                return None;
            }
            model.have.insert(piece);
            Event::PieceHeld { piece }
        }
        Step::Missing(piece) => {
            model.have.remove(&PieceNumber(piece));
            Event::PieceLost { piece: PieceNumber(piece) }
        }
    })
}

fn step(bench: &mut Bench, model: &mut Model, step: Step) {
    let Some(event) = event(step, bench, model) else { return };
    for action in bench.tell(event) {
        model.act(action);
    }
    assert!(model.arrived.is_empty(), "every arrived piece is kept or discarded at once");
    assert!(model.ended || model.given.is_none(), "a turn is used or passed at once");
    assert!(model.fetches.len() <= Config::default().concurrent_pieces as usize);
    assert!(bench.download.has_ended() == model.ended);
    assert!(model.ended || bench.download.deadline().is_some(), "waiting without a deadline");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_happens_the_invariants_hold_and_silence_ends_it(
        steps in steps(), known in any::<bool>(), scheduler in any::<bool>(), under_way in any::<bool>(),
        wish in 0usize..3, seed in any::<u64>(),
    ) {
        let source = [SourceWish::Allowed, SourceWish::Wanted, SourceWish::Forbidden][wish];
        let known = known.then_some(u64::from(PIECES));
        let mut bench = Bench::new(Setup { source, scheduler, source_under_way: under_way, seed, ..setup(known) });
        let mut model = Model::default();
        for action in std::iter::from_fn(|| bench.download.poll()) {
            model.act(action);
        }
        for next in steps {
            step(&mut bench, &mut model, next);
        }
        // Nobody says anything any more: the machine finds its end by its own deadlines, in a bounded time.
        let silent = bench.now;
        for _ in 0..3000 {
            if bench.download.has_ended() {
                break;
            }
            step(&mut bench, &mut model, Step::Wait);
        }
        prop_assert!(bench.download.has_ended(), "still waiting: {:?}", bench.download);
        prop_assert!(bench.now.since(silent) < Duration::from_secs(1200));
    }
}
