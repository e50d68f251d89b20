//! Parents that serve by turns, leases, and readers that wait for one piece.

use damselfly_core::swarm::PieceFault;

use super::*;

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl Bench {
    /// Parents that serve by turns and have these pieces.
    fn queueing(&mut self, parents: &[(&str, &[u32])]) -> Vec<Action> {
        self.parents(&parents.iter().map(|(name, _)| *name).collect::<Vec<_>>(), false);
        let mut actions = Vec::new();
        for (name, pieces) in parents {
            self.tell(Event::ParentQueues { parent: peer(name) });
            pieces.iter().for_each(|piece| actions.extend(self.has(name, *piece)));
        }
        actions
    }

    fn turn(&mut self, name: &str, least_sent: &[u32]) -> Vec<Action> {
        let least_sent = least_sent.iter().map(|piece| PieceNumber(*piece)).collect();
        self.tell(Event::Turn { parent: peer(name), least_sent })
    }
}

fn asks(actions: &[Action]) -> Vec<&str> {
    let asked = actions.iter().filter_map(|action| match action {
        Action::AskTurn { parent, .. } => Some(parent.as_str()),
        _ => None,
    });
    asked.collect()
}

#[test]
fn every_parent_that_could_help_is_asked_for_a_turn_and_the_first_to_give_one_serves() {
    let mut bench = Bench::whole(4);
    let asked = bench.queueing(&[("a", &[0, 1]), ("b", &[0]), ("c", &[])]);
    assert_eq!(asks(&asked), ["a", "b"]);
    // The reader's next piece comes first; b can then do nothing for us, whoever it would send what to.
    assert_eq!(bench.turn("b", &[0]), [fetch("b", 0)]);
    assert_eq!(bench.turn("a", &[0, 1]), [fetch("a", 1)], "what it has sent least is under way already");
}

#[test]
fn the_sender_chooses_among_what_is_wanted() {
    let mut bench = Bench::whole(8);
    bench.tell(Event::ReaderAt { reader: ReaderId(1), offset: 0 });
    bench.queueing(&[("a", &[3, 4, 5]), ("b", &[5])]);
    assert_eq!(bench.turn("a", &[4, 3]), [fetch("a", 4)], "though 3 is as rare");
    bench.tell(Event::PieceHeld { piece: PieceNumber(5) });
    assert_eq!(bench.turn("b", &[5]), [Action::PassTurn { parent: peer("b") }], "it has come from elsewhere");
}

#[test]
fn a_busy_parent_rests_and_a_dead_one_is_left() {
    let mut bench = Bench::whole(2);
    bench.queueing(&[("a", &[0]), ("b", &[1])]);
    assert_eq!(bench.tell(Event::TurnRefused { parent: peer("a"), fault: None }), []);
    let gone = bench.tell(Event::TurnRefused { parent: peer("b"), fault: Some(PieceFault::Gone) });
    let report = Report::PieceFailed { piece: PieceNumber(1), parent: peer("b"), fault: PieceFault::Gone };
    assert_eq!(gone, [Action::Report(report), Action::Unfollow(peer("b"))]);
    let (waited, actions) = bench.wait();
    assert!(waited <= Config::default().rest * 2);
    assert_eq!(asks(&actions), ["a"]);
}

#[test]
fn few_pieces_come_at_a_time() {
    let most = Config::default().turns_at_once;
    let mut bench = Bench::whole(20);
    let names = one_piece_each(&mut bench, 0..10);
    let fetched =
        names.iter().filter(|name| bench.turn(name, &[]).iter().any(|action| matches!(action, Action::Fetch { .. })));
    assert_eq!(fetched.count(), most as usize);
}

#[test]
fn a_piece_that_a_parent_is_slow_to_give_goes_to_the_next_that_has_a_turn() {
    let mut bench = Bench::whole(1);
    bench.queueing(&[("a", &[0]), ("b", &[0])]);
    assert_eq!(bench.turn("a", &[0]), [fetch("a", 0)]);
    // b was asked, too, and has nothing else for us.
    assert_eq!(bench.turn("b", &[0]), [Action::PassTurn { parent: peer("b") }]);
    let (waited, actions) = bench.wait();
    assert_eq!(waited, secs(3) + Config::default().slow_margin, "nothing is known of what is usual");
    assert_eq!(asks(&actions), ["b"]);
    let slow = Report::PieceFailed { piece: PieceNumber(0), parent: peer("a"), fault: PieceFault::Slow };
    let cancel = Action::Cancel { parent: peer("a"), piece: PieceNumber(0) };
    assert_eq!(bench.turn("b", &[0]), [cancel, Action::Report(slow), fetch("b", 0)]);
    assert_eq!(bench.arrives("a", 0), [], "what was given up is not heard any more");
    assert_eq!(bench.arrives("b", 0)[..2], kept(0, "b"));
}

/// Parents "p0", "p1", … that have a piece each, that of their number.
fn one_piece_each(bench: &mut Bench, numbers: std::ops::Range<u32>) -> Vec<String> {
    let names: Vec<String> = numbers.clone().map(|number| format!("p{number}")).collect();
    let own: Vec<[u32; 1]> = numbers.map(|piece| [piece]).collect();
    let parents: Vec<(&str, &[u32])> = names.iter().zip(&own).map(|(name, own)| (name.as_str(), &own[..])).collect();
    bench.queueing(&parents);
    names
}

#[test]
fn who_has_no_turn_left_takes_nothing_over() {
    let most = Config::default().turns_at_once;
    let mut bench = Bench::whole(20);
    // No reader waits for any of these.
    let mut names = one_piece_each(&mut bench, 1..most + 3);
    let last = names.pop().expect("there are several");
    bench.has(&last, 1);
    assert_eq!(bench.turn("p1", &[1]), [fetch("p1", 1)]);
    bench.wait();
    for (name, piece) in names.iter().zip(1..).skip(1) {
        assert_eq!(bench.turn(name, &[piece]), [fetch(name, piece)]);
    }
    assert_eq!(bench.turn(&last, &[1]), [Action::PassTurn { parent: peer(&last) }], "though p1 is slow to give it");
}

#[test]
fn who_waits_for_slow_parents_alone_asks_others() {
    let Config { turns_at_once, concurrent_pieces, .. } = Config::default();
    let mut bench = Bench::whole(20);
    for first in (0..concurrent_pieces).step_by(turns_at_once as usize) {
        let names = one_piece_each(&mut bench, first..first + turns_at_once);
        for (name, piece) in names.iter().zip(first..) {
            assert_eq!(bench.turn(name, &[piece]), [fetch(name, piece)]);
        }
        bench.wait();
    }
    assert_eq!(asks(&bench.queueing(&[("other", &[0])])), ["other"]);
    assert!(bench.turn("other", &[0]).contains(&fetch("other", 0)));
}

#[test]
fn what_was_fetched_before_a_parent_said_that_it_serves_by_turns_is_no_turn() {
    let mut bench = Bench::whole(20);
    for (name, pieces) in [("a", [0, 1]), ("b", [2, 3]), ("c", [4, 5])] {
        bench.parents(&[name], false);
        pieces.iter().for_each(|piece| drop(bench.has(name, *piece)));
    }
    for name in ["a", "b", "c"] {
        assert_eq!(bench.tell(Event::ParentQueues { parent: peer(name) }), []);
    }
}

#[test]
fn a_turn_of_a_parent_that_was_left_is_passed() {
    let mut bench = Bench::whole(1);
    bench.queueing(&[("a", &[0])]);
    bench.tell(Event::ParentGone { parent: peer("a"), fault: PieceFault::Gone });
    assert_eq!(bench.turn("a", &[0]), [Action::PassTurn { parent: peer("a") }]);
}

#[test]
fn leased_pieces_come_from_the_source_and_the_others_from_parents() {
    let mut bench = Bench::whole(6);
    assert_eq!(bench.lease(1, 3), [read(1, 3)]);
    bench.tell(Event::SourceOpened { geometry: geometry(6) });
    assert_eq!(asks(&bench.queueing(&[("a", &[0, 4])])), ["a"]);
    assert_eq!(bench.turn("a", &[4, 0]), [fetch("a", 0)]);
    bench.sourced(1);
    assert_eq!(bench.sourced(2), [finished(2, None)]);
    assert_eq!(bench.tell(Event::SourceEnded(End::Complete)), [], "and nothing without another lease");
    assert_eq!(bench.lease(3, 4), [read(3, 4)]);
}

#[test]
fn a_lease_that_is_cut_short_ends_the_stream_there() {
    let mut bench = Bench::granted(6);
    bench.sourced(0);
    assert_eq!(bench.lease(1, 3), [Action::ShortenSource { end: 3 * PIECE }]);
    assert_eq!(asks(&bench.queueing(&[("a", &[4])])), ["a"], "what is cut off may come from others now");
    bench.sourced(1);
    bench.sourced(2);
    assert_eq!(bench.tell(Event::SourceEnded(End::Complete)), []);
}

#[test]
fn a_lease_of_what_nobody_here_wants_is_given_back() {
    let mut bench = Bench::new(setup(Some(6)));
    bench.wants(1, RangeWish::Span(0, 2 * PIECE - 1));
    let declined = |piece| [Action::Report(Report::Declined { piece: PieceNumber(piece) })];
    assert!(bench.lease(2, 4).contains(&declined(2)[0]));
    assert_eq!(bench.lease(1, 4), [read(1, 2)], "what is wanted of it is read");
    bench.tell(Event::SourceOpened { geometry: geometry(6) });
    assert!(bench.sourced(1).contains(&declined(2)[0]));
}

#[test]
fn a_source_that_is_silent_for_two_readers_ends_like_one_that_is_for_one() {
    let config = Config { jitter: Duration::ZERO, ..Config::default() };
    let mut bench = Bench::new(Setup { config, ..setup(Some(8)) });
    bench.wants(1, RangeWish::Span(0, PIECE - 1));
    bench.wants(2, RangeWish::Span(2 * PIECE, 3 * PIECE - 1));
    // The scheduler has nobody, and says no more: each piece is read because a reader waits for it.
    bench.tell(Event::Answer(Answer::Wait));
    let mut opened = 0;
    for _ in 0..1000 {
        if bench.download.has_ended() {
            break;
        }
        let (_, actions) = bench.wait();
        opened += actions.iter().filter(|action| matches!(action, Action::ReadSource { .. })).count();
    }
    assert!(bench.download.has_ended(), "it is asked for ever for what the one and the other wait for");
    let tries = Config::default().source_retries as usize + 1;
    assert!(opened <= 2 * tries, "it was asked {opened} times");
}

/// A download whose reader is told by its parents of pieces, but not of the next one.
fn late() -> Bench {
    let config = Config { jitter: Duration::ZERO, ..Config::default() };
    let mut bench = Bench::new(Setup { config, ..setup(Some(8)) });
    bench.wants(1, RangeWish::Whole);
    bench.queueing(&[("a", &[])]);
    bench
}

#[test]
fn a_reader_whose_next_piece_nobody_brings_has_it_from_the_source_within_three_seconds() {
    let mut bench = late();
    let (waited, actions) = bench.wait();
    assert_eq!(
        (waited, actions),
        (Config::default().late, vec![Action::Report(Report::Late { piece: PieceNumber(0) })])
    );
    // The scheduler says nothing.
    let (waited, actions) = bench.wait();
    assert!(waited <= secs(1));
    assert_eq!(actions, [read(0, 1)], "just that piece");
}

/// Answers every question for the late piece with "wait", and every registration with the same parent; says how often it
/// was asked, and for how long, until the source is read for it.
fn promised(bench: &mut Bench) -> (u32, Duration) {
    let begun = bench.now;
    let mut asked = 0;
    loop {
        let (_, actions) = bench.wait();
        if actions.iter().any(|action| matches!(action, Action::ReadSource { .. })) {
            assert_eq!(*actions.last().unwrap(), read(0, 1), "after {asked}, {:?}", bench.now.since(begun));
            return (asked, bench.now.since(begun));
        }
        for action in actions {
            match action {
                Action::Report(Report::Late { .. }) => {
                    asked += 1;
                    bench.answer(Answer::Wait);
                }
                Action::Report(Report::Reschedule { .. }) => drop(bench.answer(Answer::Wait)),
                Action::Register { .. } => drop(bench.parents(&["a"], false)),
                _ => {}
            }
        }
    }
}

#[test]
fn a_scheduler_that_says_that_a_parent_brings_it_is_believed_a_few_times() {
    let mut bench = late();
    bench.has("a", 0);
    let (asked, waited) = promised(&mut bench);
    assert_eq!(asked, Config::default().late_confirmed + 1);
    assert!(waited <= secs(60), "{waited:?}");
}

/// A source that takes a minute for a piece is not read by everybody because of that.
#[test]
fn a_scheduler_that_says_that_somebody_reads_it_is_believed_for_minutes() {
    let (asked, waited) = promised(&mut late());
    assert_eq!(asked, Config::default().late_read + 1);
    assert!(secs(90) <= waited && waited <= secs(240), "{waited:?}");
}

#[test]
fn a_lost_scheduler_is_not_asked_for_a_late_piece() {
    let mut bench = late();
    bench.tell(Event::SchedulerLost);
    let mut waited = Duration::ZERO;
    loop {
        let (more, actions) = bench.wait();
        waited += more;
        if actions.iter().any(|action| matches!(action, Action::ReadSource { .. })) {
            break;
        }
        bench.tell(Event::SchedulerLost);
    }
    assert!(waited <= secs(3), "{waited:?}");
}

#[test]
fn a_piece_that_trickles_from_a_parent_is_taken_from_it_for_a_reader_that_waits() {
    let mut bench = late();
    bench.has("a", 0);
    assert_eq!(bench.turn("a", &[]), [fetch("a", 0)]);
    let begun = bench.now;
    loop {
        let (_, actions) = bench.wait();
        if let Some(at) = actions.iter().position(|action| matches!(action, Action::ReadSource { .. })) {
            assert!(actions[..at].contains(&Action::Cancel { parent: peer("a"), piece: PieceNumber(0) }));
            break;
        }
    }
    assert!(bench.now.since(begun) <= secs(7), "{:?}", bench.now.since(begun));
}

/// However many fetches become slow, and however many turns are given meanwhile, no more come than may: at most one beside
/// them, which a reader waits for.
#[test]
fn what_is_taken_over_from_slow_parents_is_bounded_like_all_else() {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    let config = Config { jitter: Duration::ZERO, ..Config::default() };
    let mut bench = Bench::new(Setup { config, ..setup(Some(32)) });
    bench.wants(1, RangeWish::Whole);
    let all: Vec<u32> = (0..32).collect();
    bench.queueing(&names.map(|name| (name, &all[..])));
    for _ in 0..6 {
        for name in names {
            bench.tell(Event::Turn { parent: peer(name), least_sent: Vec::new() });
        }
        bench.wait();
    }
    let fetches = &bench.download.pieces.as_ref().expect("the geometry is known").fetches;
    let quick = fetches.values().filter(|fetch| !fetch.slow).count();
    assert!(quick <= Config::default().turns_at_once as usize + 1, "{quick}");
}

#[test]
fn what_our_own_limit_holds_up_is_no_parents_fault() {
    let mut bench = Bench::whole(1);
    bench.queueing(&[("a", &[0]), ("b", &[0])]);
    assert_eq!(bench.turn("a", &[0]), [fetch("a", 0)]);
    bench.turn("b", &[0]);
    // An hour, of which two seconds were not our own doing: not as long as a fetch may take.
    for _ in 0..1800 {
        bench.now = bench.now + secs(2);
        let by = secs(2).saturating_sub(Duration::from_millis(1));
        assert_eq!(bench.tell(Event::HeldUp { by }), []);
    }
    assert_eq!(asks(&bench.tell(Event::Timer)), [""; 0]);
    // As soon as nothing waits for the limit, a slow parent is a slow parent.
    let mut asked = Vec::new();
    for _ in 0..4 {
        let (_, actions) = bench.wait();
        asked.extend(asks(&actions).into_iter().map(str::to_owned));
    }
    assert_eq!(asked.first().map(String::as_str), Some("b"), "{asked:?}");
}

#[test]
fn few_pieces_come_at_a_time_while_our_own_limit_holds_them_up() {
    let mut bench = Bench::whole(20);
    let names = one_piece_each(&mut bench, 0..10);
    bench.tell(Event::HeldUp { by: Duration::from_millis(5) });
    let fetched = |actions: Vec<Action>| actions.iter().any(|action| matches!(action, Action::Fetch { .. }));
    let before = names.iter().filter(|name| fetched(bench.turn(name, &[]))).count();
    assert_eq!(before, 2);
    // A second later nothing is held up any more, and more are asked.
    bench.now = bench.now + secs(1);
    assert!(!asks(&bench.tell(Event::Timer)).is_empty());
}
