//! Pieces from parents: which, from whom, how many at a time, and what is done when they fail.

use damselfly_core::swarm::PieceFault;

use super::*;

fn failed(bench: &mut Bench, parent: &str, piece: u32, fault: PieceFault) -> Vec<Action> {
    bench.tell(Event::PieceFailed { parent: peer(parent), piece: PieceNumber(piece), fault })
}

fn report(parent: &str, piece: u32, fault: PieceFault) -> Action {
    Action::Report(Report::PieceFailed { piece: PieceNumber(piece), parent: peer(parent), fault })
}

fn fetched(actions: &[Action]) -> Vec<(String, u32)> {
    let one = |action: &Action| match action {
        Action::Fetch { parent, piece, .. } => Some((parent.to_string(), piece.0)),
        _ => None,
    };
    actions.iter().filter_map(one).collect()
}

#[test]
fn pieces_come_from_who_announces_them_and_the_end_is_reported() {
    let mut bench = Bench::whole(2);
    assert_eq!(bench.parents(&["a", "b"], false), [Action::Follow(offer("a")), Action::Follow(offer("b"))]);
    assert_eq!(bench.has("b", 1), [fetch("b", 1)]);
    assert_eq!(bench.has("a", 1), [], "a piece has one producer");
    assert_eq!(bench.arrives("b", 1), kept(1, "b"));
    assert_eq!(bench.has("a", 0), [fetch("a", 0)]);
    let [keep, finish] = kept(0, "a");
    assert_eq!(bench.arrives("a", 0), [keep, finish, Action::Report(Report::Finished), Action::Finish]);
}

#[test]
fn in_a_proven_task_nothing_is_fetched_before_its_proof() {
    let mut bench = Bench::whole(2);
    bench.parents(&["a"], true);
    assert_eq!(bench.has("a", 0), []);
    let proof = proof_of(digest(0));
    let fetch = Action::Fetch { parent: peer("a"), piece: PieceNumber(0), proof };
    assert_eq!(bench.proof(0, 0), [fetch]);
    assert_eq!(bench.arrives("a", 0), kept(0, "a"));
}

#[test]
fn a_piece_that_fails_its_proof_is_not_kept_and_its_parent_never_asked_again() {
    let mut bench = Bench::whole(3);
    bench.parents(&["a", "b"], true);
    bench.proof(0, 7);
    assert_eq!(fetched(&bench.has("a", 0)), [("a".into(), 0)]);
    assert_eq!(
        bench.arrives("a", 0),
        [Action::Discard { piece: PieceNumber(0) }, report("a", 0, PieceFault::Bad), Action::Unfollow(peer("a"))]
    );
    assert_eq!(bench.parents(&["a", "b"], true), [], "it is banned, no matter who offers it");
    bench.proof(1, 1);
    assert_eq!(bench.has("a", 1), []);
    assert_eq!(fetched(&bench.has("b", 1)), [("b".into(), 1)]);
}

#[test]
fn a_piece_in_flight_when_proofs_become_due_is_not_kept_without_one() {
    let mut bench = Bench::whole(2);
    bench.parents(&["a"], false);
    assert_eq!(bench.has("a", 0), [fetch("a", 0)]);
    assert_eq!(bench.parents(&["a"], true), []);
    assert_eq!(bench.arrives("a", 0), [Action::Discard { piece: PieceNumber(0) }]);
    assert_eq!(fetched(&bench.proof(0, 0)), [("a".into(), 0)], "an honest parent may try again");
}

#[test]
fn proofs_stay_due_once_they_were() {
    let mut bench = Bench::whole(2);
    bench.parents(&["a"], true);
    bench.parents(&["a"], false);
    assert_eq!(bench.has("a", 0), []);
}

#[test]
fn the_first_proof_of_a_piece_counts() {
    let mut bench = Bench::whole(2);
    bench.parents(&["a"], true);
    bench.proof(0, 0);
    bench.proof(0, 9);
    bench.has("a", 0);
    assert_eq!(bench.arrives("a", 0), kept(0, "a"));
}

#[test]
fn offers_for_another_geometry_are_ignored() {
    let mut bench = Bench::whole(2);
    let answer = Answer::Parents { offers: vec![offer("a")], geometry: Some(geometry(3)), proven: false };
    let reschedule = Action::Report(Report::Reschedule { failed: vec![peer("a")] });
    assert_eq!(bench.answer(answer), [reschedule]);
}

#[test]
fn what_parents_announced_before_the_geometry_was_known_counts() {
    let mut bench = Bench::new(setup(None));
    bench.wants(1, RangeWish::Whole);
    bench.parents(&["a"], false);
    assert_eq!(bench.has("a", 1), []);
    assert_eq!(bench.has("a", 7), [], "no such piece, as it turns out");
    assert_eq!(bench.tell(Event::GeometryLearned { geometry: geometry(2) }), [fetch("a", 1)]);
}

#[test]
fn the_number_in_flight_is_bounded_for_each_parent_and_for_all() {
    let mut bench = Bench::new(Setup {
        config: Config { concurrent_pieces: 3, pieces_per_parent: 2, ..setup(None).config },
        ..setup(Some(20))
    });
    bench.wants(1, RangeWish::Whole);
    bench.parents(&["a", "b", "c"], false);
    let mut asked = Vec::new();
    for piece in 0..20 {
        asked.extend(fetched(&bench.has("a", piece)));
    }
    assert_eq!(asked.len(), 2, "from one parent");
    for piece in 0..20 {
        asked.extend(fetched(&bench.has("b", piece)));
        asked.extend(fetched(&bench.has("c", piece)));
    }
    assert_eq!(asked.len(), 3, "from all");
}

#[test]
fn the_number_in_flight_follows_a_parents_rate() {
    let run = |took: u64| {
        let mut bench = Bench::whole(64);
        bench.parents(&["a"], false);
        let mut flying: Vec<u32> = (0..64).flat_map(|piece| fetched(&bench.has("a", piece))).map(|one| one.1).collect();
        for _ in 0..6 {
            bench.now = bench.now + Duration::from_millis(took);
            let piece = flying.remove(0);
            flying.extend(fetched(&bench.arrives("a", piece)).into_iter().map(|one| one.1));
        }
        flying.len()
    };
    assert_eq!((run(10), run(2000), run(9000)), (4, 2, 1), "fast, middling, slow");
}

#[test]
fn the_faster_parent_gets_more_to_do() {
    let mut bench = Bench::whole(40);
    bench.parents(&["a", "b"], false);
    assert_eq!(fetched(&bench.has("a", 0)).len() + fetched(&bench.has("b", 1)).len(), 2);
    bench.now = bench.now + Duration::from_millis(10);
    bench.arrives("a", 0);
    bench.now = bench.now + Duration::from_secs(2);
    bench.arrives("b", 1);
    bench.has("b", 2);
    bench.arrives("b", 2);
    bench.has("a", 3);
    bench.arrives("a", 3);
    // Both idle, both have it: the fast one is asked. It is announced first by the slow one, which is asked at once, so
    // what counts is whom the piece goes to when that one has lost it.
    assert_eq!(fetched(&bench.has("b", 4)), [("b".into(), 4)]);
    bench.has("a", 4);
    let again = failed(&mut bench, "b", 4, PieceFault::Missing);
    assert_eq!(fetched(&again), [("a".into(), 4)]);
}

#[test]
fn a_missing_piece_is_forgotten_of_its_parent_and_asked_elsewhere() {
    let mut bench = Bench::whole(2);
    bench.parents(&["a", "b"], false);
    bench.has("a", 0);
    bench.has("b", 0);
    assert_eq!(failed(&mut bench, "a", 0, PieceFault::Missing), [report("a", 0, PieceFault::Missing), fetch("b", 0)]);
    assert_eq!(bench.has("a", 1), [fetch("a", 1)], "it is still a parent");
}

#[test]
fn a_parent_that_never_has_what_it_announces_is_left() {
    let mut bench = Bench::whole(2);
    bench.parents(&["a", "b"], false);
    let left = (0..100).position(|_| {
        assert_eq!(bench.has("a", 0), [fetch("a", 0)]);
        failed(&mut bench, "a", 0, PieceFault::Missing).contains(&Action::Unfollow(peer("a")))
    });
    assert_eq!(left, Some(15));
}

#[test]
fn a_stalled_or_broken_parent_is_left_and_its_other_pieces_go_to_others() {
    for fault in [PieceFault::Stalled, PieceFault::Gone] {
        let mut bench = Bench::whole(2);
        bench.parents(&["a", "b"], false);
        bench.has("a", 0);
        bench.has("a", 1);
        bench.has("b", 0);
        bench.has("b", 1);
        let cancel = Action::Cancel { parent: peer("a"), piece: PieceNumber(1) };
        let mut actions = failed(&mut bench, "a", 0, fault);
        let again = actions.split_off(3);
        assert_eq!(actions, [report("a", 0, fault), cancel, Action::Unfollow(peer("a"))]);
        assert_eq!(fetched(&again), [("b".into(), 0), ("b".into(), 1)]);
    }
}

#[test]
fn a_parent_that_fails_again_and_again_rests_longer_and_longer_but_is_never_lost() {
    let mut bench = Bench::whole(4);
    let mut rests = Vec::new();
    for _ in 0..4 {
        assert_eq!(bench.parents(&["a"], false), [Action::Follow(offer("a"))]);
        let offered = bench.now;
        let mut asked = fetched(&bench.has("a", 0));
        while asked.is_empty() {
            asked = fetched(&bench.wait().1);
        }
        assert_eq!(asked, [("a".into(), 0)]);
        rests.push(bench.now.since(offered).as_millis());
        let actions = failed(&mut bench, "a", 0, PieceFault::Stalled);
        assert!(actions.contains(&Action::Unfollow(peer("a"))));
    }
    assert_eq!(rests, [0, 500, 1000, 2000]);
    bench.parents(&["a"], false);
    bench.has("a", 0);
    while fetched(&bench.wait().1).is_empty() {}
    bench.arrives("a", 0);
    bench.has("a", 1);
    failed(&mut bench, "a", 1, PieceFault::Stalled);
    bench.parents(&["a"], false);
    bench.has("a", 1);
    let waited = bench.wait().0;
    assert_eq!(waited.as_millis(), 500, "what it failed before it gave a piece is forgiven");
}

#[test]
fn a_parent_that_can_no_longer_be_asked_is_reported_at_once() {
    let mut bench = Bench::whole(4);
    bench.parents(&["a", "b"], false);
    let gone = bench.tell(Event::ParentGone { parent: peer("a"), fault: PieceFault::Gone });
    assert_eq!(gone, [report("a", 0, PieceFault::Gone), Action::Unfollow(peer("a"))]);
    let missing = bench.tell(Event::ParentGone { parent: peer("b"), fault: PieceFault::Missing });
    assert_eq!(missing[0], Action::Unfollow(peer("b")), "a host that does not have the task can be reached");
}

#[test]
fn a_fetch_that_nobody_ends_is_given_up() {
    let mut bench = Bench::whole(1);
    bench.parents(&["a"], false);
    bench.has("a", 0);
    let begun = bench.now;
    assert_eq!(bench.wait().1, [], "it is slow by now, and there is nobody else");
    let (_, actions) = bench.wait();
    assert_eq!(bench.now.since(begun), Config::default().piece_timeout);
    assert_eq!(
        actions[..3],
        [
            Action::Cancel { parent: peer("a"), piece: PieceNumber(0) },
            report("a", 0, PieceFault::Stalled),
            Action::Unfollow(peer("a"))
        ]
    );
    assert_eq!(bench.arrives("a", 0), [], "what was cancelled is not heard any more");
}

#[test]
fn parents_that_are_not_offered_any_more_are_let_go_when_nothing_is_in_flight() {
    let mut bench = Bench::whole(3);
    bench.parents(&["a", "b"], false);
    assert_eq!(bench.has("a", 0), [fetch("a", 0)]);
    assert_eq!(bench.parents(&["c"], false), [Action::Follow(offer("c")), Action::Unfollow(peer("b"))]);
    assert_eq!(bench.has("a", 1), [], "nothing new is asked of it");
    let [keep, report] = kept(0, "a");
    assert_eq!(bench.arrives("a", 0), [Action::Unfollow(peer("a")), keep, report]);
}

#[test]
fn a_retired_parent_that_lies_is_banned_all_the_same() {
    let mut bench = Bench::whole(3);
    bench.parents(&["a"], true);
    bench.proof(0, 7);
    bench.has("a", 0);
    bench.parents(&["b"], true);
    bench.arrives("a", 0);
    assert_eq!(bench.parents(&["a", "b"], true), []);
}

#[test]
fn a_piece_that_somebody_else_stored_is_not_fetched_on() {
    let mut bench = Bench::whole(2);
    bench.parents(&["a"], false);
    bench.has("a", 0);
    let actions = bench.tell(Event::PieceHeld { piece: PieceNumber(0) });
    assert_eq!(actions, [Action::Cancel { parent: peer("a"), piece: PieceNumber(0) }]);
    assert_eq!(bench.tell(Event::PieceLost { piece: PieceNumber(0) }), [fetch("a", 0)], "a lost piece is fetched anew");
}

#[test]
fn pieces_of_a_whole_that_is_wrong_are_suspected_together() {
    let mut bench = Bench::whole(2);
    bench.parents(&["a"], false);
    bench.has("a", 0);
    assert_eq!(
        bench.tell(Event::DigestMismatch),
        [
            Action::Cancel { parent: peer("a"), piece: PieceNumber(0) },
            Action::Report(Report::Failed),
            Action::Fail(Failure::Digest)
        ]
    );
}

/// A host that was cut off has lost all its parents, and the scheduler does not hear it yet.
#[test]
fn parents_that_failed_are_followed_again_by_a_download_that_has_no_others() {
    let mut bench = Bench::new(setup(Some(8)));
    bench.wants(1, RangeWish::Whole);
    bench.parents(&["a", "b"], false);
    let followed = |actions: &[Action]| actions.iter().filter(|action| matches!(action, Action::Follow(_))).count();
    let gone = |parent| Event::ParentGone { parent: peer(parent), fault: PieceFault::Stalled };
    assert_eq!(followed(&bench.tell(gone("a"))), 0);
    assert_eq!(followed(&bench.tell(gone("b"))), 0);
    bench.now = bench.now + Duration::from_secs(1);
    let actions = bench.tell(Event::Timer);
    assert_eq!(followed(&actions), 2, "{actions:?}");
    bench.has("a", 0);
    assert!(!bench.tell(Event::Timer).iter().any(|action| matches!(action, Action::Follow(_))), "both are followed");
}
