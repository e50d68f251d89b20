//! Leases and seeds.

use std::time::Duration;

use damselfly_core::Geometry;
use damselfly_core::swarm::{HostInfo, PieceFault, Registration, Report, SourceWish};

use super::world::{Told, World, geometry, host, host_info, parents, peer, registration, task, told};
use crate::{Config, Event, Fact};

#[test]
fn the_first_reads_the_source_and_the_others_wait() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    assert_eq!(world.register("a"), [told("a", Told::Source)]);
    assert_eq!(world.register("b"), [told("b", Told::Wait)]);
    assert_eq!(world.register("c"), [told("c", Told::Wait)]);
    assert_eq!(world.opened("a"), [], "nobody has anything yet");
    let woken = world.piece("a", 0, None);
    assert_eq!(
        woken,
        [
            told("b", Told::Proofs(vec![0])),
            told("b", parents(&["a"])),
            told("c", Told::Proofs(vec![0])),
            told("c", parents(&["a"])),
        ]
    );
}

#[test]
fn a_lease_passes_on_when_its_holder_is_lost() {
    type Loss = fn(&mut World) -> Vec<(String, Told)>;
    let ended = Some(told("a", Told::End));
    let losses: [(&str, Loss, Option<_>); 5] = [
        ("it left", |world| world.event(Event::PeerGone(peer("a"))), None),
        ("it failed", |world| world.report("a", Report::Failed), ended.clone()),
        ("its host left", |world| world.event(Event::HostLeft(host("a"))), ended),
        ("the source failed it", |world| world.report("a", Report::SourceFailed), None),
        ("it fell silent", |world| world.pass(Config::default().lease_time), None),
    ];
    for (why, lose, also) in losses {
        let mut world = World::with_hosts(&["a", "b", "c"]);
        for name in ["a", "b", "c"] {
            world.register(name);
        }
        let expected: Vec<_> = also.into_iter().chain([told("b", Told::Source)]).collect();
        assert_eq!(lose(&mut world), expected, "{why}");
        assert_eq!(world.core.task(&task()).unwrap().lease, Some(peer("b")), "{why}");
    }
}

#[test]
fn signs_of_progress_keep_a_lease() {
    let mut world = World::with_hosts(&["a", "b"]);
    world.register("a");
    world.register("b");
    let almost = Config::default().lease_time - Duration::from_millis(1);
    assert_eq!(world.pass(almost), []);
    world.opened("a");
    assert_eq!(world.pass(almost), []);
    world.piece("a", 0, None);
    assert_eq!(world.core.task(&task()).unwrap().lease, Some(peer("a")));
    // Large pieces take long from a slow source.
    let mut world = World::with_hosts(&["a", "b"]);
    world.register("a");
    world.register("b");
    world.report("a", Report::SourceOpened(Geometry::new(1 << 30, 64 << 20).unwrap()));
    assert_eq!(world.pass(almost + Duration::from_secs(200)), []);
    assert_eq!(world.pass(Duration::from_secs(100)), [told("b", Told::Source)]);
}

#[test]
fn a_reader_that_was_only_slow_goes_on_without_being_told() {
    let mut world = World::with_hosts(&["a"]);
    world.register("a");
    world.opened("a");
    assert_eq!(world.pass(Duration::from_secs(60)), []);
    assert_eq!(world.core.counts().waiting, 1);
    assert_eq!(world.piece("a", 0, None), []);
    assert_eq!(world.core.task(&task()).unwrap().lease, Some(peer("a")));
}

#[test]
fn who_wants_the_source_now_gets_it_unless_somebody_brings_it() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    world.register("a");
    assert_eq!(world.register_as("b", SourceWish::Wanted, true), [told("b", Told::Source)]);
    assert_eq!(world.core.task(&task()).unwrap().lease, Some(peer("a")), "there is one lease");
    world.opened("a");
    assert_eq!(world.register_as("c", SourceWish::Wanted, true), [told("c", Told::Wait)]);
    assert_eq!(world.event(Event::PeerGone(peer("a"))), [], "who reads already inherits the lease");
    assert_eq!(world.core.task(&task()).unwrap().lease, Some(peer("b")));
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
fn the_lease_holder_that_registers_again_keeps_it() {
    let mut world = World::with_hosts(&["a", "b"]);
    world.register("a");
    world.register("b");
    assert_eq!(world.register("a"), [told("a", Told::Source)]);
    assert_eq!(world.core.counts().sourcing, 1);
}

#[test]
fn a_seed_comes_first() {
    let mut world = World::with_hosts(&["a", "seed1", "b"]);
    assert_eq!(world.register("a"), [told("a", Told::Wait)]);
    assert_eq!(world.register("b"), [told("b", Told::Wait)]);
    assert_eq!(world.triggered, [host("seed1")], "it is asked once");
    assert_eq!(world.register_as("seed1", SourceWish::Wanted, true), [told("seed1", Told::Source)]);
    assert_eq!(world.pass(Duration::from_secs(10)), [], "it came in time");
    world.opened("seed1");
    assert_eq!(world.piece("seed1", 0, None).len(), 4);
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
    assert_eq!(world.report("a", Report::SourceOpened(empty)), [told("b", Told::Empty)]);
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
    assert_eq!(world.register("c").last(), Some(&told("c", parents(&["a"]))));
    assert_eq!(world.core.task(&task()).unwrap().geometry, Some(geometry()));
}

#[test]
fn a_reader_of_the_source_that_serves_wrong_bytes_loses_its_children_and_goes_on_for_itself() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    world.register("a");
    world.opened("a");
    world.piece("a", 0, None);
    world.register("b");
    world.register("c");
    world.piece("c", 0, Some("a"));
    // b had wrong bytes from a: c, who has the piece, is offered instead.
    let answers = world.piece_failed("b", "a", PieceFault::Bad);
    assert!(answers.contains(&told("b", parents(&["c"]))), "{answers:?}");
    assert!(world.facts.contains(&Fact::IsolatedForTask));
    assert_eq!(world.core.counts().sourcing, 1, "a goes on reading for itself");
}

#[test]
fn who_reads_the_source_beside_a_lease_that_gets_on_is_offered_parents_and_leaves() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    for name in ["a", "b", "c"] {
        world.register(name);
    }
    world.opened("a");
    assert_eq!(world.opened("b"), [], "it was not sent there");
    assert_eq!(world.core.counts().sourcing, 2);
    let answers = world.piece("a", 0, None);
    assert!(answers.contains(&told("b", parents(&["a"]))), "{answers:?}");
    assert_eq!(world.core.counts().sourcing, 1, "b is taken to leave the source for them");
    world.piece("b", 0, None);
    assert_eq!(world.core.counts().sourcing, 1, "what it was in the middle of changes nothing");
}

#[test]
fn of_those_who_read_the_source_the_first_to_get_on_has_the_lease() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    world.register("a");
    assert_eq!(world.register_as("b", SourceWish::Wanted, true), [told("b", Told::Source)]);
    world.opened("b");
    assert_eq!(world.core.task(&task()).unwrap().lease, Some(peer("b")));
    assert_eq!(world.register_as("c", SourceWish::Wanted, true), [told("c", Told::Wait)]);
    let answers = world.piece("b", 0, None);
    assert!(answers.contains(&told("a", parents(&["b"]))), "a came first and is called back: {answers:?}");
}

#[test]
fn a_few_may_read_the_source_beside_a_lease_that_brings_nothing() {
    let names: Vec<String> = (0..40).map(|number| format!("h{number}")).collect();
    let mut world = World::with_hosts(&names.iter().map(String::as_str).collect::<Vec<_>>());
    names.iter().for_each(|name| drop(world.register(name)));
    for name in &names[1..] {
        world.register_as(name, SourceWish::Wanted, true);
    }
    assert_eq!(world.core.counts().sourcing, 1 + 1 + 5, "one more than the crowd's logarithm beside the holder");
}

#[test]
fn a_holder_of_the_lease_that_is_done_with_a_part_passes_it_on_at_once() {
    type Leave = fn(&mut World) -> Vec<(String, Told)>;
    let ways: [(&str, Leave); 3] = [
        ("finished", |world| world.report("a", Report::Finished)),
        ("nothing more to read", |world| world.reschedule("a", &[])),
        ("gone", |world| world.event(Event::PeerGone(peer("a")))),
    ];
    for (why, leave) in ways {
        let mut world = World::with_hosts(&["a", "b", "c"]);
        world.register("a");
        world.opened("a");
        world.piece("a", 0, None);
        world.piece("a", 1, None);
        world.register("b");
        world.register("c");
        world.piece("b", 0, Some("a"));
        let answers = leave(&mut world);
        assert!(
            answers.contains(&told("b", Told::Source)),
            "{why}: b, which has most, though nobody waits: {answers:?}"
        );
        assert_eq!(world.core.task(&task()).unwrap().lease, Some(peer("b")), "{why}");
    }
}

#[test]
fn nobody_is_sent_to_the_source_for_what_the_holders_have_together() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    world.holds("b", 4..8);
    world.register("c");
    world.holds("a", 0..4);
    assert_eq!(world.reschedule("c", &[]).len(), 2, "the other one, too");
    let answers = world.event(Event::HostLeft(host("b")));
    assert!(answers.contains(&told("c", Told::Source)), "half of it is gone: {answers:?}");
}

#[test]
fn who_reads_the_source_beside_the_lease_is_given_the_slot_of_a_child_that_has_several_parents() {
    let mut world = World::with_hosts(&["a", "d", "e", "x"]);
    world.announce(HostInfo { upload_slots: 1, ..host_info("a") });
    world.register("a");
    world.opened("a");
    world.piece("a", 0, None);
    world.register("d");
    world.holds("e", [1]);
    let answers = world.pass(Duration::from_secs(3));
    assert!(answers.contains(&told("d", parents(&["e", "a"]))), "{answers:?}");
    world.announce(HostInfo { upload_slots: 1, ..host_info("e") });
    assert_eq!(world.register("x"), [told("x", Told::Wait)], "every slot is taken");
    assert_eq!(world.opened("x"), []);
    let answers = world.piece("x", 0, None);
    assert!(answers.contains(&told("d", parents(&["e"]))), "{answers:?}");
    assert!(answers.contains(&told("x", parents(&["a"]))), "{answers:?}");
}
