//! Every state with every event: nothing panics, the invariants hold (the machine checks them itself in debug builds),
//! and the end is the end.

use std::time::Duration;

use damselfly_core::swarm::PieceFault;

use super::*;

/// The machine in each state worth telling apart, by name.
fn states() -> Vec<(&'static str, Bench)> {
    let blind = || {
        let mut bench = Bench::new(setup(None));
        bench.wants(1, RangeWish::Whole);
        bench
    };
    let with = |mut bench: Bench, steps: &dyn Fn(&mut Bench)| {
        steps(&mut bench);
        bench
    };
    vec![
        ("nobody wants anything", Bench::new(setup(Some(4)))),
        ("asked", Bench::whole(4)),
        ("asked, blind", blind()),
        ("waiting", with(Bench::whole(4), &|bench| drop(bench.answer(Answer::Wait)))),
        (
            "wanting the source",
            with(Bench::whole(4), &|bench| {
                bench.answer(Answer::Wait);
                bench.wait();
            }),
        ),
        ("parents, nothing announced", with(Bench::whole(4), &|bench| drop(bench.parents(&["a"], false)))),
        ("parents, blind", with(blind(), &|bench| drop(bench.parents(&["a"], false)))),
        (
            "fetching",
            with(Bench::whole(4), &|bench| {
                bench.parents(&["a", "b"], false);
                bench.has("a", 0);
            }),
        ),
        (
            "proofs missing",
            with(Bench::whole(4), &|bench| {
                bench.parents(&["a", "b"], true);
                bench.has("a", 0);
            }),
        ),
        (
            "a turn asked for",
            with(Bench::whole(4), &|bench| {
                bench.parents(&["a", "b"], false);
                bench.tell(Event::ParentQueues { parent: peer("a") });
                bench.has("a", 0);
            }),
        ),
        ("a lease", with(Bench::whole(4), &|bench| drop(bench.lease(1, 3)))),
        (
            "late",
            with(Bench::whole(4), &|bench| {
                bench.parents(&["a"], false);
                bench.wait();
            }),
        ),
        (
            "retired parent",
            with(Bench::whole(4), &|bench| {
                bench.parents(&["a"], false);
                bench.has("a", 0);
                bench.parents(&["b"], false);
            }),
        ),
        ("source opening, blind", with(blind(), &|bench| drop(bench.answer(Answer::GoToSource { pieces: None })))),
        ("source reading", Bench::granted(4)),
        (
            "source and parents",
            with(Bench::granted(4), &|bench| {
                bench.parents(&["a"], false);
                bench.has("a", 3);
            }),
        ),
        ("source cut", with(Bench::granted(4), &|bench| drop(bench.tell(Event::SourceEnded(End::Cut))))),
        (
            "source dead",
            with(Bench::granted(4), &|bench| {
                bench.parents(&["a"], false);
                bench.tell(Event::SourceEnded(End::Refused));
            }),
        ),
        ("scheduler lost", with(Bench::whole(4), &|bench| drop(bench.tell(Event::SchedulerLost)))),
        (
            "finished",
            with(Bench::whole(4), &|bench| {
                (0..4).for_each(|piece| drop(bench.tell(Event::PieceHeld { piece: PieceNumber(piece) })));
            }),
        ),
        ("failed", with(Bench::whole(4), &|bench| drop(bench.tell(Event::DigestMismatch)))),
    ]
}

fn events() -> Vec<Event> {
    let (a, nobody) = (peer("a"), peer("nobody"));
    let (first, none) = (PieceNumber(0), PieceNumber(999));
    let parents = |geometry, proven| Answer::Parents { offers: vec![offer("a"), offer("c")], geometry, proven };
    let fault = |parent: &PeerId, piece, fault| Event::PieceFailed { parent: parent.clone(), piece, fault };
    vec![
        Event::Answer(Answer::Wait),
        Event::Answer(Answer::Empty),
        Event::Answer(Answer::GoToSource { pieces: None }),
        Event::Answer(Answer::GoToSource { pieces: Some(0..2) }),
        Event::Answer(Answer::GoToSource { pieces: Some(2..9) }),
        Event::ParentQueues { parent: a.clone() },
        Event::Turn { parent: a.clone(), least_sent: vec![none, first] },
        Event::Turn { parent: nobody.clone(), least_sent: Vec::new() },
        Event::TurnRefused { parent: a.clone(), fault: None },
        Event::TurnRefused { parent: a.clone(), fault: Some(PieceFault::Gone) },
        Event::Answer(parents(None, false)),
        Event::Answer(parents(Some(geometry(4)), true)),
        Event::Answer(parents(Some(geometry(9)), true)),
        Event::Answer(Answer::Parents { offers: vec![], geometry: None, proven: false }),
        Event::Answer(Answer::Proofs(vec![(first, digest(0).blake3), (none, digest(1).blake3)])),
        Event::SchedulerLost,
        Event::GeometryLearned { geometry: geometry(4) },
        Event::GeometryLearned { geometry: geometry(9) },
        Event::ParentHas { parent: a.clone(), piece: first },
        Event::ParentHas { parent: a.clone(), piece: none },
        Event::ParentHas { parent: nobody.clone(), piece: first },
        Event::ParentGone { parent: a.clone(), fault: PieceFault::Gone },
        Event::ParentGone { parent: nobody.clone(), fault: PieceFault::Gone },
        Event::PieceArrived { parent: a.clone(), piece: first, digest: digest(0) },
        Event::PieceArrived { parent: nobody.clone(), piece: none, digest: digest(0) },
        fault(&a, first, PieceFault::Bad),
        fault(&a, first, PieceFault::Stalled),
        fault(&a, first, PieceFault::Gone),
        fault(&a, first, PieceFault::Missing),
        fault(&nobody, none, PieceFault::Bad),
        Event::AsideEnded,
        Event::SourceGives { pieces: 1..3 },
        Event::PieceHeld { piece: first },
        Event::PieceHeld { piece: none },
        Event::PieceLost { piece: first },
        Event::PieceLost { piece: none },
        Event::SourceOpened { geometry: geometry(4) },
        Event::SourceOpened { geometry: geometry(9) },
        Event::SourcePiece { piece: first, digest: digest(0) },
        Event::SourcePiece { piece: none, digest: digest(0) },
        Event::SourceProgress { bytes: u64::MAX },
        Event::SourceEnded(End::Complete),
        Event::SourceEnded(End::Cut),
        Event::SourceEnded(End::Changed),
        Event::SourceEnded(End::Refused),
        Event::SourceEnded(End::Unsized),
        Event::ReaderWants { reader: ReaderId(2), wish: RangeWish::Suffix(1) },
        Event::ReaderWants { reader: ReaderId(1), wish: RangeWish::From(u64::MAX) },
        Event::ReaderAt { reader: ReaderId(1), offset: u64::MAX },
        Event::ReaderAt { reader: ReaderId(9), offset: 0 },
        Event::ReaderGone { reader: ReaderId(1) },
        Event::ReaderGone { reader: ReaderId(9) },
        Event::WantWhole,
        Event::DigestMismatch,
        Event::Timer,
        Event::HeldUp { by: Duration::ZERO },
        Event::HeldUp { by: Duration::MAX },
        Event::Drain,
    ]
}

#[test]
fn every_state_takes_every_event_twice() {
    let states_count = states().len();
    let mut ends = 0;
    for first in events() {
        for second in events() {
            for (name, mut bench) in states() {
                let was_over = bench.download.has_ended();
                for event in [&first, &second] {
                    let over = bench.download.has_ended();
                    let actions = bench.tell(event.clone());
                    assert!(!over || actions.is_empty(), "{name}: {event:?} after the end gives {actions:?}");
                    assert_eq!(bench.download.deadline().is_none(), bench.download.has_ended(), "{name}: {event:?}");
                }
                ends += usize::from(!was_over && bench.download.has_ended());
            }
        }
    }
    assert!(states_count > 15 && ends > 100, "the table is about something");
}

#[test]
fn what_ends_a_download_and_how() {
    let last = |name: &str, event: &Event| {
        let (_, mut bench) = states().into_iter().find(|state| state.0 == name).expect("a known state");
        bench.tell(event.clone()).pop()
    };
    let gone = Event::ReaderGone { reader: ReaderId(1) };
    for (state, event, want) in [
        ("asked", &Event::DigestMismatch, Some(Action::Fail(Failure::Digest))),
        ("asked", &gone, Some(Action::Fail(Failure::Abandoned))),
        ("asked", &Event::SourceEnded(End::Changed), None),
        ("source reading", &Event::SourceEnded(End::Changed), Some(Action::Fail(Failure::Changed))),
        ("source reading", &Event::SourceEnded(End::Unsized), Some(Action::Fail(Failure::Unsized))),
        ("source reading", &Event::SourceEnded(End::Refused), Some(Action::Fail(Failure::Refused))),
        ("source reading", &Event::SourceEnded(End::Cut), None),
        (
            "source dead",
            &Event::ParentGone { parent: peer("a"), fault: PieceFault::Gone },
            Some(Action::Fail(Failure::Refused)),
        ),
        ("nobody wants anything", &Event::Drain, Some(Action::Fail(Failure::Abandoned))),
        ("finished", &Event::DigestMismatch, None),
        ("asked, blind", &Event::Answer(Answer::Empty), Some(Action::Finish)),
    ] {
        assert_eq!(last(state, event), want, "{state}: {event:?}");
    }
}
