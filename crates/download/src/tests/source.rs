//! Reading from the source: runs, cuts, changes, and giving way to parents.

use super::*;

fn ended(bench: &mut Bench, end: End) -> Vec<Action> {
    bench.tell(Event::SourceEnded(end))
}

#[test]
fn every_piece_from_the_source_is_reported_and_the_end_too() {
    let mut bench = Bench::granted(2);
    assert_eq!(bench.sourced(0), [finished(0, None)]);
    let end = [finished(1, None), Action::StopSource, Action::Report(Report::Finished), Action::Finish];
    assert_eq!(bench.sourced(1), end);
}

#[test]
fn the_geometry_is_learned_from_the_source() {
    let mut bench = Bench::new(setup(None));
    bench.wants(1, RangeWish::Whole);
    assert_eq!(bench.answer(Answer::GoToSource { pieces: None }), [Action::ReadSource { range: None }]);
    let opened = bench.tell(Event::SourceOpened { geometry: geometry(2) });
    assert_eq!(opened, [Action::Report(Report::SourceOpened(geometry(2)))]);
    assert_eq!(bench.download.geometry(), Some(geometry(2)));
    assert_eq!(bench.sourced(0), [finished(0, None)]);
}

#[test]
fn a_stream_opened_blindly_is_left_if_not_all_of_it_is_wanted() {
    let mut bench = Bench::new(setup(None));
    bench.wants(1, RangeWish::From(150));
    assert_eq!(bench.answer(Answer::GoToSource { pieces: None }), [Action::ReadSource { range: None }]);
    let opened = bench.tell(Event::SourceOpened { geometry: geometry(4) });
    assert_eq!(opened, [Action::StopSource, Action::Report(Report::SourceOpened(geometry(4))), read(1, 4)]);
}

#[test]
fn a_source_of_another_length_has_changed() {
    let mut bench = Bench::whole(2);
    bench.answer(Answer::GoToSource { pieces: None });
    let actions = bench.tell(Event::SourceOpened { geometry: geometry(3) });
    assert_eq!(actions, [Action::StopSource, Action::Report(Report::Failed), Action::Fail(Failure::Changed)]);
}

#[test]
fn a_changed_source_fails_the_task_at_once() {
    let mut bench = Bench::granted(2);
    bench.sourced(0);
    let actions = ended(&mut bench, End::Changed);
    assert_eq!(actions[actions.len() - 1], Action::Fail(Failure::Changed));
}

#[test]
fn an_answer_under_way_is_used_when_the_source_is_granted() {
    let mut bench = Bench::new(Setup { source_under_way: true, ..setup(Some(2)) });
    bench.wants(1, RangeWish::Whole);
    assert_eq!(bench.answer(Answer::GoToSource { pieces: None }), [read(0, 2)]);
}

#[test]
fn an_answer_under_way_is_dropped_when_parents_come() {
    let mut bench = Bench::new(Setup { source_under_way: true, ..setup(Some(2)) });
    bench.wants(1, RangeWish::Whole);
    assert_eq!(bench.answer(Answer::Wait), [], "it is held while there is nobody else");
    assert_eq!(bench.parents(&["a"], false), [Action::Follow(offer("a"))], "they may have nothing themselves");
    assert_eq!(bench.has("a", 1), [Action::StopSource, fetch("a", 1)]);
}

#[test]
fn a_cut_stream_is_taken_up_where_it_broke_with_growing_waits() {
    let mut bench = Bench::granted(4);
    bench.sourced(0);
    let mut wait = Config::default().backoff;
    for _ in 0..Config::default().source_retries {
        assert_eq!(ended(&mut bench, End::Cut), []);
        assert_eq!(bench.wait(), (wait, vec![read(1, 4)]));
        wait *= 2;
    }
    assert_eq!(ended(&mut bench, End::Cut), [Action::Report(Report::SourceFailed)]);
    let end = vec![Action::Report(Report::Failed), Action::Fail(Failure::Cut)];
    assert_eq!(bench.wait(), (Config::default().patience, end), "others may have it by then");
}

#[test]
fn a_stream_that_makes_progress_may_be_cut_more_often() {
    let mut bench = Bench::granted(4);
    for _ in 0..Config::default().source_retries * 3 {
        bench.tell(Event::SourceProgress { bytes: 1 << 20 });
        assert_eq!(ended(&mut bench, End::Cut), []);
        assert_eq!(bench.wait().1, [read(0, 4)]);
    }
}

#[test]
fn a_stream_that_ends_early_counts_as_cut() {
    let mut bench = Bench::granted(4);
    bench.sourced(0);
    assert_eq!(ended(&mut bench, End::Complete), []);
    assert_eq!(bench.wait().1, [read(1, 4)]);
}

#[test]
fn a_silent_stream_counts_as_cut() {
    let mut bench = Bench::granted(2);
    let (waited, actions) = bench.wait();
    assert_eq!((waited, actions), (Config::default().source_stall, vec![Action::StopSource]));
    assert_eq!(bench.wait().1, [read(0, 2)]);
}

#[test]
fn progress_keeps_a_slow_stream_alive() {
    let mut bench = Bench::granted(2);
    for _ in 0..10 {
        bench.now = bench.now + Duration::from_secs(20);
        let told = bench.tell(Event::SourceProgress { bytes: 1 });
        assert_eq!(told, [Action::Report(Report::SourceProgress)], "the scheduler is told that it lives");
        assert_eq!(bench.tell(Event::SourceProgress { bytes: 1 }), [], "but not all the time");
    }
}

#[test]
fn a_refusing_source_fails_the_task_unless_parents_serve() {
    for (end, failure) in [(End::Refused, Failure::Refused), (End::Unsized, Failure::Unsized)] {
        let mut bench = Bench::granted(2);
        let actions = ended(&mut bench, end);
        let failed = Action::Report(Report::SourceFailed);
        assert_eq!(actions, [failed.clone(), Action::Report(Report::Failed), Action::Fail(failure)]);

        let mut bench = Bench::granted(2);
        bench.parents(&["a"], false);
        assert_eq!(ended(&mut bench, end), [failed]);
        assert_eq!(bench.has("a", 0), [fetch("a", 0)]);
        assert_eq!(bench.arrives("a", 0), kept(0, "a"));
    }
}

#[test]
fn a_silent_parent_does_not_hide_for_ever_that_the_source_refuses() {
    let mut bench = Bench::granted(2);
    bench.parents(&["a"], false);
    ended(&mut bench, End::Refused);
    for _ in 0..20 {
        if bench.download.has_ended() {
            break;
        }
        bench.wait();
    }
    assert!(bench.download.has_ended());
}

#[test]
fn the_stream_gives_way_at_a_pieces_end_to_a_parent_that_has_the_next() {
    let mut bench = Bench::granted(4);
    bench.sourced(0);
    bench.parents(&["a"], false);
    bench.tell(Event::SourceProgress { bytes: 1 });
    assert_eq!(bench.has("a", 2), [], "the piece has a producer, and the stream is in the middle of one");
    let actions = bench.sourced(1);
    assert_eq!(actions, [finished(1, None), Action::StopSource, fetch("a", 2), read(3, 4)], "and reads what a has not");
}

#[test]
fn a_herd_of_equals_gives_way_to_parents_that_have_less() {
    let mut bench = Bench::whole(4);
    assert_eq!(bench.wait().1, [read(0, 4)], "the scheduler was silent");
    bench.tell(Event::SourceOpened { geometry: geometry(4) });
    bench.sourced(0);
    bench.parents(&["a"], false);
    bench.tell(Event::SourceProgress { bytes: 1 });
    assert_eq!(bench.has("a", 0), [], "in the middle of a piece");
    assert_eq!(bench.sourced(1), [finished(1, None), Action::StopSource]);
    assert_eq!(bench.has("a", 1), []);
    assert_eq!(bench.has("a", 2), [fetch("a", 2)]);
}

#[test]
fn an_ungranted_stream_reads_on_only_until_parents_can_give() {
    let mut bench = Bench::whole(4);
    assert_eq!(bench.wait().1, [read(0, 4)], "the scheduler was silent");
    bench.tell(Event::SourceOpened { geometry: geometry(4) });
    bench.parents(&["a"], false);
    bench.tell(Event::SourceProgress { bytes: 1 });
    for piece in 0..4 {
        assert_eq!(bench.has("a", piece), []);
    }
    let actions = bench.sourced(0);
    assert_eq!(actions[1], Action::StopSource);
    assert!(!actions.iter().any(|action| matches!(action, Action::ReadSource { .. })));
    assert_eq!(actions.iter().filter(|action| matches!(action, Action::Fetch { .. })).count(), 2);
}

#[test]
fn with_parents_the_source_is_read_in_short_runs() {
    let mut bench = Bench::whole(64);
    bench.parents(&["a"], false);
    assert_eq!(bench.answer(Answer::GoToSource { pieces: None }), [read(0, 16)]);
}

#[test]
fn the_source_reads_what_parents_do_not_have() {
    let mut bench = Bench::whole(8);
    bench.parents(&["a"], false);
    for piece in [0, 1, 4] {
        bench.has("a", piece);
    }
    assert_eq!(bench.answer(Answer::GoToSource { pieces: None }), [read(2, 4)]);
}

#[test]
fn a_source_that_contradicts_the_proofs_is_believed_alone() {
    let mut bench = Bench::whole(4);
    bench.parents(&["a"], true);
    bench.proof(0, 9);
    assert_eq!(bench.answer(Answer::GoToSource { pieces: None }), [read(0, 4)]);
    assert_eq!(bench.sourced(0), [Action::Unfollow(peer("a")), finished(0, None)]);
    assert_eq!(bench.parents(&["b"], true), []);
    assert_eq!(bench.sourced(1), [finished(1, None)]);
}

#[test]
fn a_source_that_contradicts_the_proofs_never_makes_a_mixture() {
    let mut bench = Bench::whole(4);
    bench.parents(&["a"], true);
    bench.proof(0, 0);
    bench.has("a", 0);
    bench.arrives("a", 0);
    bench.proof(1, 9);
    bench.answer(Answer::GoToSource { pieces: None });
    let actions = bench.sourced(1);
    assert_eq!(actions[actions.len() - 1], Action::Fail(Failure::Changed));
}

#[test]
fn a_lost_scheduler_leaves_unproven_pieces_to_the_source_alone() {
    let mut bench = Bench::whole(2);
    bench.parents(&["a"], true);
    bench.proof(0, 0);
    bench.has("a", 0);
    bench.has("a", 1);
    bench.tell(Event::SchedulerLost);
    assert_eq!(bench.arrives("a", 0), [Action::Keep { piece: PieceNumber(0) }]);
    for _ in 0..20 {
        match &bench.wait().1[..] {
            [] => {}
            [Action::Register { .. }] => assert_eq!(bench.tell(Event::SchedulerLost), []),
            actions => return assert_eq!(actions, [read(1, 2)]),
        }
    }
    panic!("the source was not read");
}

#[test]
fn a_stream_whose_last_piece_came_in_another_way_is_complete() {
    let mut bench = Bench::granted(3);
    bench.sourced(0);
    bench.tell(Event::PieceHeld { piece: PieceNumber(2) });
    bench.tell(Event::PieceHeld { piece: PieceNumber(0) });
    bench.tell(Event::PieceLost { piece: PieceNumber(0) });
    // Piece 1 comes, piece 2 is passed by.
    bench.sourced(1);
    let ended = bench.tell(Event::SourceEnded(End::Complete));
    assert_eq!(ended, [read(0, 1)], "at once: nothing was cut");
}

#[test]
fn a_stream_that_our_own_limit_holds_up_is_not_silent() {
    let mut bench = Bench::granted(4);
    for _ in 0..100 {
        bench.now = bench.now + Config::default().source_stall;
        assert_eq!(bench.tell(Event::HeldUp { by: Config::default().source_stall }), []);
    }
    let (waited, actions) = bench.wait();
    assert!(waited > Duration::ZERO && !actions.contains(&Action::StopSource), "{waited:?} {actions:?}");
}
