//! Registering, waiting, losing the scheduler, and the ladder of resorts.

use damselfly_core::swarm::PieceFault;

use super::*;

const REGISTER: Action = Action::Register { source: SourceWish::Allowed };
const WANT: Action = Action::Register { source: SourceWish::Wanted };

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn reschedule(failed: &[&str]) -> Action {
    Action::Report(Report::Reschedule { failed: failed.iter().map(|name| peer(name)).collect() })
}

#[test]
fn it_registers_first_and_asks_nobody_before_an_answer() {
    let mut bench = Bench::whole(2);
    assert_eq!(bench.answer(Answer::Wait), []);
    assert_eq!(bench.answer(Answer::GoToSource { pieces: None }), [read(0, 2)]);
}

#[test]
fn an_empty_content_is_finished_at_once() {
    let mut bench = Bench::new(setup(None));
    bench.wants(1, RangeWish::Whole);
    assert_eq!(bench.answer(Answer::Empty), [Action::Report(Report::Finished), Action::Finish]);
    assert_eq!(bench.download.deadline(), None);
}

#[test]
fn an_empty_answer_to_a_content_with_bytes_is_not_believed() {
    let mut bench = Bench::whole(2);
    assert_eq!(bench.answer(Answer::Empty), []);
    assert!(!bench.download.has_ended());
}

#[test]
fn a_silent_scheduler_is_given_its_grace_and_no_more() {
    let mut bench = Bench::whole(2);
    assert_eq!(bench.wait(), (secs(1), vec![read(0, 2)]));
}

#[test]
fn one_who_is_told_to_wait_wants_the_source_after_the_first_byte_budget_and_enters_it_after_a_grace() {
    let mut bench = Bench::whole(2);
    bench.answer(Answer::Wait);
    assert_eq!(bench.wait(), (secs(10), vec![WANT]));
    assert_eq!(bench.wait(), (secs(1), vec![read(0, 2)]));
}

#[test]
fn a_scheduler_that_says_that_somebody_gets_on_with_the_source_is_believed_some_times() {
    for with_parents in [false, true] {
        let mut bench = Bench::whole(2);
        bench.answer(Answer::Wait);
        assert_eq!(bench.wait(), (secs(10), vec![WANT]));
        for _ in 0..Config::default().confirmed_waits {
            assert_eq!(bench.answer(Answer::Wait), []);
            assert_eq!(bench.wait(), (secs(10), vec![WANT]));
        }
        if with_parents {
            // Whatever they announced, they have not brought anything.
            bench.parents(&["a"], false);
            for _ in 0..Config::default().reschedules {
                assert_eq!(bench.wait().1, [reschedule(&[])]);
            }
            assert_eq!(bench.wait().1, [WANT]);
        }
        assert_eq!(bench.answer(Answer::Wait), []);
        assert_eq!(bench.wait(), (secs(1), vec![read(0, 2)]));
    }
}

#[test]
fn one_who_has_idle_parents_and_wants_the_source_waits_too_while_somebody_gets_on() {
    let mut bench = Bench::whole(2);
    bench.parents(&["a"], false);
    while bench.wait().1 != [WANT] {}
    assert_eq!(bench.answer(Answer::Wait), []);
    assert_eq!(bench.wait(), (secs(10), vec![WANT]));
}

#[test]
fn one_who_may_not_use_the_source_waits_longer_and_then_fails() {
    let mut bench = Bench::new(Setup { source: SourceWish::Forbidden, ..setup(Some(2)) });
    let register = Action::Register { source: SourceWish::Forbidden };
    assert_eq!(bench.wants(1, RangeWish::Whole), [register]);
    assert_eq!(bench.answer(Answer::Wait), []);
    assert_eq!(bench.answer(Answer::GoToSource { pieces: None }), [Action::Report(Report::SourceFailed)]);
    let end = vec![Action::Report(Report::Failed), Action::Fail(Failure::NoPeers)];
    assert_eq!(bench.wait(), (secs(60), end));
}

#[test]
fn a_seed_says_from_the_start_that_it_wants_the_source() {
    let mut bench = Bench::new(Setup { source: SourceWish::Wanted, ..setup(Some(2)) });
    assert_eq!(bench.tell(Event::WantWhole), [WANT]);
    assert_eq!(bench.answer(Answer::GoToSource { pieces: None }), [read(0, 2)]);
}

#[test]
fn without_a_scheduler_the_source_is_read_at_once() {
    let mut bench = Bench::new(Setup { scheduler: false, ..setup(Some(2)) });
    assert_eq!(bench.wants(1, RangeWish::Whole), [read(0, 2)]);
}

#[test]
fn a_lost_scheduler_is_tried_again_and_the_source_entered_after_grace_and_jitter() {
    let config = Config { jitter: secs(2), ..setup(None).config };
    let mut waits = Vec::new();
    for seed in 0..8 {
        let mut bench = Bench::new(Setup { config: config.clone(), seed, ..setup(Some(2)) });
        bench.wants(1, RangeWish::Whole);
        bench.answer(Answer::Wait);
        assert_eq!(bench.tell(Event::SchedulerLost), []);
        let lost = bench.now;
        let mut registered = 0;
        loop {
            match &bench.wait().1[..] {
                [] => {}
                [action] if *action == REGISTER => {
                    registered += 1;
                    assert_eq!(bench.tell(Event::SchedulerLost), []);
                }
                actions => break assert_eq!(actions, [read(0, 2)]),
            }
        }
        assert!(registered > 0, "it is tried again first");
        waits.push(bench.now.since(lost));
        assert!(bench.now.since(lost) <= secs(3));
    }
    waits.sort();
    waits.dedup();
    assert_eq!(waits.len(), 8, "a fleet does not come all at once");
}

#[test]
fn a_lost_scheduler_does_not_stop_what_parents_give() {
    let mut bench = Bench::whole(2);
    bench.parents(&["a"], false);
    assert_eq!(bench.has("a", 0), [fetch("a", 0)]);
    assert_eq!(bench.tell(Event::SchedulerLost), []);
    assert_eq!(bench.arrives("a", 0), [Action::Keep { piece: PieceNumber(0) }], "nobody is there to report to");
    assert_eq!(bench.has("a", 1), [fetch("a", 1)]);
    assert_eq!(bench.arrives("a", 1), [Action::Keep { piece: PieceNumber(1) }, Action::Finish]);
}

#[test]
fn a_lost_scheduler_is_not_tried_for_ever() {
    let mut bench = Bench::granted(2);
    bench.tell(Event::SchedulerLost);
    let mut registered = 0;
    while !bench.download.has_ended() {
        bench.tell(Event::SourceProgress { bytes: 1 });
        if bench.wait().1 == [REGISTER] {
            registered += 1;
            bench.tell(Event::SchedulerLost);
        }
    }
    assert_eq!(registered, Config::default().reregistrations);
}

#[test]
fn when_the_last_parent_is_left_others_are_asked_for_at_once() {
    let mut bench = Bench::whole(2);
    bench.parents(&["a", "b"], false);
    let gone = |name| Event::ParentGone { parent: peer(name), fault: PieceFault::Missing };
    assert_eq!(bench.tell(gone("a")), [Action::Unfollow(peer("a"))]);
    let actions = bench.tell(gone("b"));
    assert_eq!(actions, [Action::Unfollow(peer("b")), reschedule(&["a", "b"])]);
}

#[test]
fn reschedules_without_progress_are_bounded_and_then_the_source_is_wanted() {
    let mut bench = Bench::whole(2);
    let mut actions = bench.parents(&["a"], false);
    let mut reschedules = 0;
    for _ in 0..20 {
        actions = match &actions[..] {
            [Action::Follow(_)] => bench.wait().1,
            [Action::Report(Report::Reschedule { .. })] => {
                reschedules += 1;
                bench.wait().1
            }
            _ => break,
        };
    }
    assert_eq!(reschedules, Config::default().reschedules);
    assert_eq!(actions, [WANT]);
    assert_eq!(bench.wait(), (secs(1), vec![read(0, 2)]));
}

#[test]
fn parents_that_announce_nothing_are_given_up_after_a_while() {
    let mut bench = Bench::whole(2);
    bench.parents(&["a"], false);
    assert_eq!(bench.wait(), (Config::default().patience, vec![reschedule(&[])]));
}

#[test]
fn a_download_without_any_reader_ends_after_a_grace() {
    let mut bench = Bench::new(setup(Some(2)));
    assert_eq!(bench.download.poll(), Some(REGISTER));
    let end = vec![Action::Report(Report::Failed), Action::Fail(Failure::Abandoned)];
    assert_eq!(bench.wait(), (secs(10), end));
}
