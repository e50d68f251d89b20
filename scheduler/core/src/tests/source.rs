//! Leases and seeds.

use std::time::Duration;

use damselfly_core::swarm::{Registration, Report, SourceWish};
use damselfly_core::{Geometry, HostId, PieceNumber};

use super::world::{PIECES, Told, World, geometry, host, parents, peer, registration, task, told};
use crate::{Config, Event, Fact, LeaseLoss, Notice};

/// Who holds the lease of what, by name.
fn leases(world: &World) -> Vec<(String, u32, u32)> {
    let view = world.core.task(&task()).unwrap();
    let named = |(peer, run): (damselfly_core::PeerId, std::ops::Range<u32>)| {
        (peer.as_str().trim_start_matches("peer-").to_owned(), run.start, run.end)
    };
    let mut leases: Vec<_> = view.leases.into_iter().map(named).collect();
    leases.sort_by_key(|(_, first, _)| *first);
    leases
}

fn lease(name: &str, first: u32, end: u32) -> (String, u32, u32) {
    (name.to_owned(), first, end)
}

/// `a` has opened the source; the lease of the first half is its own, that of the second somebody else's.
fn opened(others: &[&str]) -> (World, String) {
    let mut world = World::with_hosts(&["a"]);
    others.iter().for_each(|name| drop(world.announce(super::world::host_info(name))));
    world.register("a");
    others.iter().for_each(|name| drop(world.register(name)));
    world.opened("a");
    let second = leases(&world).last().unwrap().0.clone();
    (world, second)
}

#[test]
fn one_that_is_alone_reads_everything() {
    let mut world = World::with_hosts(&["a"]);
    assert_eq!(world.register("a"), [told("a", Told::Source)]);
    assert_eq!(world.opened("a"), []);
    assert_eq!(leases(&world), [lease("a", 0, PIECES)]);
    (0..PIECES).for_each(|piece| drop(world.piece("a", piece, None)));
    assert_eq!(leases(&world), []);
}

#[test]
fn two_read_different_pieces_and_all_follow_each_other() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    assert_eq!(world.register("a"), [told("a", Told::Source)]);
    assert_eq!(world.register("b"), [told("b", Told::Wait)], "nobody knows yet how the content is cut");
    assert_eq!(world.register("c"), [told("c", Told::Wait)]);
    let answers = world.opened("a");
    let second = leases(&world)[1].0.clone();
    assert_eq!(leases(&world), [lease("a", 0, 4), lease(&second, 4, 8)]);
    assert!(answers.contains(&told("a", Told::Run(0, 4))), "its lease is cut: {answers:?}");
    assert!(answers.contains(&told(&second, Told::Run(4, 8))), "{answers:?}");
    for name in ["a", "b", "c"] {
        let parents = |(to, what): &(String, Told)| to == name && matches!(what, Told::Parents(..));
        assert!(answers.iter().any(parents), "{name} follows the others, who will have something: {answers:?}");
    }
    assert_eq!(world.core.counts().waiting, 0);
}

#[test]
fn a_reader_that_is_done_with_its_run_gets_what_is_left() {
    let geometry = Geometry::new(100, 1).unwrap();
    let mut world = World::with_hosts(&["a", "b"]);
    world.register("a");
    world.register("b");
    world.report("a", Report::SourceOpened(geometry));
    assert_eq!(leases(&world), [lease("a", 0, 4), lease("b", 4, 8)]);
    world.now = world.now + Duration::from_millis(500);
    let answers: Vec<_> = (0..4).flat_map(|piece| world.piece("a", piece, None)).collect();
    // Its pieces took it no time but the first: runs are longer now.
    assert!(answers.iter().any(|(to, what)| to == "a" && matches!(what, Told::Run(8, 10..))), "{answers:?}");
}

/// Where it is slow, one more is tried.
#[test]
fn more_read_at_a_time_where_the_source_bears_it() {
    let names: Vec<String> = (0..20).map(|number| format!("h{number}")).collect();
    for (took, expected) in [(Duration::from_millis(100), Config::default().max_leases), (Duration::from_secs(10), 3)] {
        let mut world = World::with_hosts(&names.iter().map(String::as_str).collect::<Vec<_>>());
        names.iter().for_each(|name| drop(world.register(name)));
        world.report("h0", Report::SourceOpened(Geometry::new(500, 1).unwrap()));
        assert_eq!(leases(&world).len(), 2, "nothing is known of the source");
        let second = leases(&world)[1].0.clone();
        for step in 1..=10 {
            world.now = world.now + took / 10;
            world.report("h0", Report::SourceProgress);
            world.report(&second, Report::SourceProgress);
            if step == 10 {
                world.piece("h0", 0, None);
                world.piece(&second, 4, None);
            }
        }
        assert_eq!(leases(&world).len(), expected, "{took:?} a piece");
    }
}

#[test]
fn a_lease_passes_on_when_its_holder_is_lost() {
    type Loss = fn(&mut World) -> Vec<(String, Told)>;
    let losses: [(&str, Loss); 6] = [
        ("it left", |world| world.event(Event::PeerGone(peer("a")))),
        ("it failed", |world| world.report("a", Report::Failed)),
        ("its host left", |world| world.event(Event::HostLeft(host("a")))),
        ("the source failed it", |world| world.report("a", Report::SourceFailed)),
        ("it gave it back", |world| world.report("a", Report::Declined { piece: PieceNumber(0) })),
        ("it fell silent", |world| {
            world.now = world.now + Config::default().lease_time;
            let second = leases(world)[1].0.clone();
            let mut told = world.report(&second, Report::SourceProgress);
            told.extend(world.event(Event::Timer));
            told
        }),
    ];
    for (why, lose) in losses {
        let (mut world, second) = opened(&["b", "c"]);
        let third = if second == "b" { "c" } else { "b" };
        let answers = lose(&mut world);
        assert!(answers.contains(&told(third, Told::Run(0, 4))), "{why}: {answers:?}");
        assert_eq!(leases(&world), [lease(third, 0, 4), lease(&second, 4, 8)], "{why}");
    }
}

#[test]
fn a_holder_that_is_slow_beside_the_others_loses_what_it_has_not_read() {
    let (mut world, second) = opened(&["b", "c", "d", "e"]);
    // The second needs a tenth of a second for a piece, the first trickles.
    for piece in 4..8 {
        world.now = world.now + Duration::from_millis(100);
        world.report("a", Report::SourceProgress);
        world.piece(&second, piece, None);
    }
    let mut answers = Vec::new();
    for _ in 0..25 {
        answers.extend(world.pass(Duration::from_millis(100)));
        world.report("a", Report::SourceProgress);
    }
    assert!(world.facts.contains(&Fact::LeaseLost));
    let slow = Notice::LeaseLost { task: task(), peer: "peer-a".into(), pieces: 0..4, why: LeaseLoss::Slow };
    assert_eq!(world.notices.first(), Some(&slow));
    let heir = answers.iter().rfind(|(_, what)| matches!(what, Told::Run(0, _)));
    assert!(answers.contains(&told("a", Told::Run(0, 1))), "it ends where its piece does: {answers:?}");
    assert!(heir.is_some_and(|(name, _)| name != "a"), "{answers:?}");
}

#[test]
fn signs_of_progress_keep_a_lease() {
    let (mut world, second) = opened(&["b"]);
    for _ in 0..5 {
        assert_eq!(world.pass(Config::default().lease_time - Duration::from_millis(1)), []);
        world.report("a", Report::SourceProgress);
        world.report(&second, Report::SourceProgress);
    }
    assert_eq!(leases(&world), [lease("a", 0, 4), lease(&second, 4, 8)]);
    assert!(!world.facts.contains(&Fact::LeaseLost));
}

#[test]
fn a_source_that_is_silent_for_everybody_is_not_asked_by_the_whole_herd() {
    let names: Vec<String> = (0..40).map(|number| format!("h{number}")).collect();
    let mut world = World::with_hosts(&names.iter().map(String::as_str).collect::<Vec<_>>());
    names.iter().for_each(|name| drop(world.register(name)));
    world.opened("h0");
    world.pass(Duration::from_secs(60));
    let granted = world.facts.iter().filter(|fact| **fact == Fact::SourceGranted).count();
    assert!(granted <= 12, "{granted} were sent there in a minute");
}

#[test]
fn a_piece_that_a_reader_waits_for_is_offered_promised_or_leased() {
    let late = |piece| Report::Late { piece: PieceNumber(piece) };
    let (mut world, second) = opened(&["b", "c"]);
    let third = if second == "b" { "c" } else { "b" };
    world.now = world.now + Duration::from_secs(2);
    world.report("a", Report::SourceProgress);
    assert_eq!(world.report(third, late(0)), [told(third, Told::Wait)], "a gets on with it");
    // a is heard of no more; nobody has taken its lease yet.
    world.now = world.now + Config::default().lease_time;
    let answers = world.report(third, late(0));
    assert!(answers.contains(&told(third, Told::Run(0, 1))), "{answers:?}");
    // One that has what is wanted is offered, though the hand is full.
    let mut world = World::new(Config { max_parents: 1, ..Config::default() });
    ["a", "b", "c"].into_iter().for_each(|name| drop(world.announce(super::world::host_info(name))));
    world.holds("a", [0]);
    world.register("b");
    world.holds("c", [5]);
    let answers = world.report("b", late(5));
    assert!(answers.iter().any(|(to, what)| to == "b" && matches!(what, Told::Parents(names, _) if names[0] == "c")));
}

/// One that waited for a piece while it was still read has not waited for those who have it now.
#[test]
fn what_has_only_just_come_from_the_source_is_not_read_again_for_who_waited_for_it() {
    let late = |piece| Report::Late { piece: PieceNumber(piece) };
    let mut world = World::with_hosts(&["a", "b"]);
    world.register("a");
    world.opened("a");
    world.register("b");
    for _ in 0..3 {
        world.now = world.now + Duration::from_secs(2);
        world.report("a", Report::SourceProgress);
        assert!(world.report("b", late(0)).contains(&told("b", Told::Wait)), "a reads it");
    }
    world.piece("a", 0, None);
    let answers = world.report("b", late(0));
    assert!(!answers.iter().any(|(to, what)| to == "b" && matches!(what, Told::Run(0, _))), "{answers:?}");
}

#[test]
fn what_a_slow_host_alone_has_is_read_again_for_who_waits_for_it_twice() {
    let late = |piece| Report::Late { piece: PieceNumber(piece) };
    let mut world = World::with_hosts(&["a", "b"]);
    world.register("a");
    world.opened("a");
    (0..PIECES).for_each(|piece| drop(world.piece("a", piece, None)));
    assert_eq!(leases(&world), [], "a has everything");
    world.register("b");
    assert_eq!(world.report("b", late(2)), [told("b", Told::Wait)], "it follows a, who has it");
    assert_eq!(world.report("b", late(3)), [told("b", Told::Wait)], "it got on: that is another piece");
    world.piece("b", 5, Some("a"));
    assert_eq!(world.report("b", late(3)), [told("b", Told::Run(3, 5))], "and what is behind it, but not what it has");
    assert_eq!(leases(&world), [lease("b", 3, 5)]);
    assert_eq!(world.report("b", late(3)), [told("b", Told::Wait)], "it reads it itself");
}

#[test]
fn who_passes_nothing_on_is_not_counted_on_until_it_does_again() {
    let late = |piece| Report::Late { piece: PieceNumber(piece) };
    let mut world = World::with_hosts(&["a", "b", "c"]);
    world.holds("a", 0..PIECES);
    world.register("b");
    world.register("c");
    assert_eq!(world.report("b", late(2)), [told("b", Told::Wait)], "it has only just been offered a");
    world.now = world.now + Duration::from_millis(1500);
    let answers = world.report("b", late(2));
    assert!(answers.contains(&told("b", Told::Run(2, 6))), "a has sent nothing to anybody: {answers:?}");
    assert!(answers.contains(&told("c", Told::Run(0, 2))), "what only a has is read by others, too: {answers:?}");
    assert_eq!(world.core.task(&task()).unwrap().holders, 2, "a is offered to nobody");
    // It was stopped, and goes on: what it gives in short time shows that it is back.
    world.piece("b", 7, Some("a"));
    world.now = world.now + Duration::from_millis(100);
    world.piece("c", 7, Some("a"));
    assert_eq!(world.core.task(&task()).unwrap().holders, 3);
}

#[test]
fn one_that_withholds_is_tried_again_after_a_while() {
    let mut world = World::with_hosts(&["a", "b"]);
    world.holds("a", 0..PIECES);
    world.register("b");
    world.now = world.now + Duration::from_millis(1500);
    world.report("b", Report::Late { piece: PieceNumber(2) });
    assert_eq!(world.core.task(&task()).unwrap().holders, 1);
    world.pass(Duration::from_secs(31));
    assert_eq!(world.core.task(&task()).unwrap().holders, 2);
}

#[test]
fn a_piece_that_nobody_vouches_for_is_read_again_for_who_waits_for_it() {
    let mut world = World::with_hosts(&["a", "b"]);
    world.holds("a", 0..4);
    world.register_as("a", SourceWish::Forbidden, true);
    (0..PIECES).for_each(|piece| drop(world.piece("a", piece, None)));
    world.register("b");
    // a read it all without a lease: b was told of the proofs of none of it.
    let answers = world.report("b", Report::Late { piece: PieceNumber(5) });
    assert!(answers.iter().any(|(to, what)| to == "b" && matches!(what, Told::Run(5, 6) | Told::Parents(_, false))));
}

#[test]
fn a_short_lease_is_cut_only_for_one_who_waits_for_a_piece_of_it() {
    let mut world = World::new(Config::default());
    ["a", "b"].into_iter().for_each(|name| drop(world.announce(super::world::host_info(name))));
    world.register("a");
    world.register("b");
    world.opened("a");
    assert_eq!(leases(&world), [lease("a", 0, 8)]);
    let answers = world.report("b", Report::Late { piece: PieceNumber(3) });
    assert!(
        answers.contains(&told("a", Told::Run(0, 3))) && answers.contains(&told("b", Told::Run(3, 7))),
        "{answers:?}"
    );
}

/// Another may be faster, if what is slow is its reader.
#[test]
fn a_short_lease_whose_reader_would_take_long_is_cut() {
    for (took, is_cut) in [(Duration::from_millis(100), false), (Duration::from_millis(500), true)] {
        let mut world = World::new(Config::default());
        ["a", "b"].into_iter().for_each(|name| drop(world.announce(super::world::host_info(name))));
        world.register("a");
        world.register("b");
        world.report("a", Report::SourceOpened(Geometry::new(100, 1).unwrap()));
        assert_eq!(leases(&world), [lease("a", 0, 100)], "it is short");
        world.now = world.now + took;
        world.piece("a", 0, None);
        let leases = leases(&world);
        assert_eq!(leases.len() > 1, is_cut, "{took:?} a piece: {leases:?}");
        assert!(!is_cut || leases[1].0 == "b", "{leases:?}");
    }
}

#[test]
fn who_wants_the_source_now_gets_it_unless_somebody_brings_it() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    world.register("a");
    assert_eq!(world.register_as("b", SourceWish::Wanted, true), [told("b", Told::Source)], "beside the first");
    world.opened("a");
    world.report("a", Report::SourceProgress);
    let answers = world.register_as("c", SourceWish::Wanted, true);
    assert!(!answers.iter().any(|(to, what)| to == "c" && *what == Told::Source), "{answers:?}");
}

#[test]
fn one_that_reads_without_a_lease_is_given_one_or_called_back() {
    let (mut world, second) = opened(&["b", "c"]);
    let third = if second == "b" { "c" } else { "b" };
    world.opened(third);
    assert_eq!(world.core.counts().sourcing, 3);
    // It reads already: the next lease that is free is its own.
    world.event(Event::PeerGone(peer("a")));
    assert_eq!(leases(&world)[0].0, third);
}

#[test]
fn the_lease_holder_that_registers_again_keeps_it() {
    let (mut world, second) = opened(&["b"]);
    world.piece("a", 0, None);
    let answers = world.register("a");
    assert!(answers.contains(&told("a", Told::Run(1, 4))), "{answers:?}");
    assert_eq!(leases(&world), [lease("a", 1, 4), lease(&second, 4, 8)]);
}

#[test]
fn nobody_is_sent_to_the_source_for_what_the_holders_have_together() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    world.holds("b", 4..8);
    world.holds("a", 0..4);
    world.register("c");
    assert_eq!(leases(&world), []);
    let answers = world.event(Event::HostLeft(host("b")));
    assert!(answers.contains(&told("c", Told::Run(4, 8))), "half of it is gone: {answers:?}");
}

#[test]
fn who_may_not_use_the_source_never_gets_it() {
    let mut world = World::with_hosts(&["a", "b"]);
    assert_eq!(world.register_as("a", SourceWish::Forbidden, true), [told("a", Told::Wait)]);
    assert_eq!(world.reschedule("a", &[]), [told("a", Told::Wait)]);
    assert_eq!(world.register("b"), [told("b", Told::Source)]);
    assert_eq!(world.event(Event::PeerGone(peer("b"))), []);
}

#[test]
fn who_the_source_failed_is_not_sent_back_until_it_asks() {
    let mut world = World::with_hosts(&["a"]);
    world.register("a");
    assert_eq!(world.report("a", Report::SourceFailed), []);
    assert_eq!(world.pass(Duration::from_secs(100)), []);
    assert_eq!(world.reschedule("a", &[]), [told("a", Told::Source)]);
}

#[test]
fn a_seed_comes_first() {
    let mut world = World::with_hosts(&["a", "seed1", "b"]);
    assert_eq!(world.register("a"), [told("a", Told::Wait)]);
    assert_eq!(world.register("b"), [told("b", Told::Wait)]);
    assert_eq!(world.triggered, [host("seed1")], "it is asked once");
    assert_eq!(world.register_as("seed1", SourceWish::Wanted, true), [told("seed1", Told::Source)]);
    assert_eq!(world.pass(Duration::from_secs(2)), [], "it came in time");
    world.opened("seed1");
    let answers = world.piece("seed1", 0, None);
    assert!(answers.iter().all(|(_, what)| !matches!(what, Told::Source | Told::Run(..))), "while the seed reads");
}

#[test]
fn a_seed_that_fails_us_is_replaced() {
    type Loss = fn(&mut World) -> Vec<(String, Told)>;
    let losses: [(&str, Loss); 3] = [
        ("refused", |world| {
            let seed = world.triggered.last().unwrap().clone();
            world.event(Event::SeedRefused { task: task(), host: seed })
        }),
        ("late", |world| world.pass(Config::default().seed_time)),
        ("gone", |world| {
            let seed = world.triggered.last().unwrap().clone();
            world.event(Event::HostLeft(seed))
        }),
    ];
    for (why, lose) in losses {
        let mut world = World::with_hosts(&["a", "seed1", "seed2", "seed3"]);
        world.register("a");
        assert_eq!(lose(&mut world), [], "{why}: another seed is asked");
        assert_eq!(world.triggered.len(), 2, "{why}");
        assert_ne!(world.triggered[0], world.triggered[1], "{why}");
        assert_eq!(lose(&mut world), [told("a", Told::Source)], "{why}: two are enough");
    }
}

#[test]
fn a_task_belongs_to_one_seed_and_few_move_when_another_comes() {
    let seeds_of_tasks = |names: &[&str]| -> Vec<HostId> {
        let seed_of = |byte| {
            let mut world = World::with_hosts(names);
            let task = damselfly_core::TaskId::from_bytes([byte; 32]);
            world.event(Event::Register(Registration { task, ..registration("a") }));
            world.triggered[0].clone()
        };
        (0..100).map(seed_of).collect()
    };
    let before = seeds_of_tasks(&["a", "seed1", "seed2", "seed3"]);
    assert_eq!(before, seeds_of_tasks(&["seed3", "seed2", "a", "seed1"]));
    for name in ["seed1", "seed2", "seed3"] {
        assert!(before.iter().filter(|seed| **seed == host(name)).count() > 15, "{before:?}");
    }
    let after = seeds_of_tasks(&["a", "seed1", "seed2", "seed3", "seed4"]);
    assert!(before.iter().zip(&after).all(|(before, after)| before == after || *after == host("seed4")));
}

#[test]
fn a_refusal_that_comes_late_changes_nothing() {
    let mut world = World::with_hosts(&["a", "seed1"]);
    world.register("a");
    world.register_as("seed1", SourceWish::Wanted, true);
    assert_eq!(world.event(Event::SeedRefused { task: task(), host: host("seed1") }), []);
    assert_eq!(world.event(Event::SeedRefused { task: task(), host: host("a") }), []);
}

#[test]
fn an_empty_content_is_said_to_be_empty() {
    let empty = Geometry::new(0, 10).unwrap();
    let mut world = World::with_hosts(&["a", "b", "c"]);
    world.register("a");
    world.register("b");
    assert!(world.report("a", Report::SourceOpened(empty)).contains(&told("b", Told::Empty)));
    let knows = Registration { geometry: Some(empty), ..registration("c") };
    assert_eq!(world.event(Event::Register(knows)), [told("c", Told::Empty)]);
    assert_eq!(world.report("c", Report::Finished), [told("c", Told::End)]);
}

#[test]
fn who_cuts_differently_shares_nothing() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    world.register("a");
    world.opened("a");
    world.piece("a", 0, None);
    let odd = Registration { geometry: Some(Geometry::new(100, 7).unwrap()), ..registration("b") };
    assert_eq!(world.event(Event::Register(odd)), [told("b", Told::Source)]);
    world.piece("b", 3, None);
    assert!(world.facts.contains(&Fact::GeometryConflict));
    assert!(world.register("c").contains(&told("c", parents(&["a"]))));
    assert_eq!(world.core.task(&task()).unwrap().geometry, Some(geometry()));
}

#[test]
fn one_reader_more_is_let_in_as_long_as_it_brings_more() {
    use crate::source::worth_reading;
    let took = |seconds: &[u64]| -> Vec<_> {
        seconds.iter().map(|&seconds| (seconds > 0).then(|| Duration::from_secs(seconds))).collect()
    };
    // Nothing is known of more.
    assert_eq!(worth_reading(2, &took(&[])), 2);
    assert_eq!(worth_reading(2, &took(&[0, 0, 10])), 3);
    // Every stream is slow by itself.
    assert_eq!(worth_reading(2, &took(&[0, 0, 10, 10, 10, 11])), 6);
    // They divide what there is.
    assert_eq!(worth_reading(2, &took(&[0, 0, 20, 30])), 2);
    // Four are as many as it bears.
    assert_eq!(worth_reading(2, &took(&[0, 0, 10, 10, 11, 14])), 4);
}
