//! Hosts that fall silent, lie, or come back.

use std::time::Duration;

use damselfly_core::swarm::PieceFault;

use super::world::{PIECES, Told, World, host, host_info, parents, registration, task, told};
use crate::{Config, Event, Fact, Notice};

#[test]
fn a_host_that_stops_announcing_is_dropped() {
    let mut world = World::with_hosts(&["a"]);
    world.holds("a", 0..PIECES);
    let time = Config::default().host_time();
    world.pass(time - Duration::from_secs(1));
    world.announce(host_info("a"));
    world.pass(time - Duration::from_secs(1));
    assert_eq!(world.core.hosts().count(), 1);
    world.pass(Duration::from_secs(1));
    assert_eq!((world.core.hosts().count(), world.core.counts().tasks), (0, 0));
    assert!(world.facts.contains(&Fact::HostDropped));
}

#[test]
fn a_host_that_is_not_announced_is_served_and_not_offered() {
    let mut world = World::with_hosts(&["b"]);
    assert_eq!(world.register("a"), [told("a", Told::Source)]);
    world.opened("a");
    world.piece("a", 0, None);
    let answers = world.register("b");
    assert!(answers.contains(&told("b", Told::Run(0, 1))), "nobody can have it from a: {answers:?}");
    let answers = world.announce(host_info("a"));
    assert!(answers.contains(&told("b", parents(&["a"]))), "{answers:?}");
}

/// Registers a child of every given name, who accuses `a`.
fn accuse(world: &mut World, names: &[&str], fault: PieceFault) {
    for name in names {
        world.announce(host_info(name));
        let mut other = registration(name);
        // Each in a task of its own, where `a` is not isolated yet.
        other.task = damselfly_core::TaskId::from_bytes([name.as_bytes()[0]; 32]);
        let holding = damselfly_core::swarm::Holding {
            task: other.task,
            peer: damselfly_core::PeerId::from(format!("peer-a-{name}")),
            origin: other.origin.clone(),
            held: super::world::held(0..PIECES),
        };
        world.event(Event::Held(host("a"), holding));
        world.event(Event::Register(other));
        world.piece_failed(name, &format!("a-{name}"), fault);
    }
}

#[test]
fn a_host_that_lies_to_several_is_isolated_for_a_while() {
    let mut world = World::with_hosts(&["a", "z"]);
    world.holds("a", 0..PIECES);
    accuse(&mut world, &["b", "c"], PieceFault::Bad);
    assert!(!world.facts.contains(&Fact::Isolated), "two may be mistaken");
    accuse(&mut world, &["d"], PieceFault::Bad);
    assert!(world.facts.contains(&Fact::Isolated));
    let time = Config::default().isolation;
    assert_eq!(world.notices.last(), Some(&Notice::Isolated { host: host("a"), accusers: 3, time }));
    let wrong = world.notices.iter().filter(|notice| matches!(notice, Notice::WrongPiece { .. })).count();
    assert_eq!(wrong, 3, "{:?}", world.notices);
    assert_eq!(world.register("z"), [told("z", Told::Source)]);
    world.announce(host_info("a"));
    assert_eq!(world.core.counts().isolated, 1, "announcing itself does not help");
    world.pass(Config::default().isolation);
    assert_eq!(world.core.counts().isolated, 0);
    assert_eq!(world.core.task(&task()).unwrap().holders, 2, "a, and z which gets it");
}

#[test]
fn a_host_that_nobody_reaches_is_not_offered_until_it_is_heard_of() {
    let mut world = World::with_hosts(&["a", "z"]);
    world.holds("a", 0..PIECES);
    accuse(&mut world, &["b", "c"], PieceFault::Gone);
    // Every announcement of holdings was a sign of life: only what came since counts.
    assert!(!world.facts.contains(&Fact::Silent));
    let mut world = World::with_hosts(&["a", "b", "c", "d", "z"]);
    world.holds("a", 0..PIECES);
    for name in ["b", "c", "d"] {
        world.register(name);
    }
    for name in ["b", "c", "d"] {
        world.piece_failed(name, "a", PieceFault::Gone);
    }
    assert!(world.facts.contains(&Fact::Silent));
    assert_eq!(world.notices, [Notice::Silent { host: host("a"), missed_by: 3 }]);
    assert_eq!(world.core.task(&task()).unwrap().holders, 3, "the others");
    world.announce(host_info("a"));
    assert_eq!(world.core.task(&task()).unwrap().holders, 4);
}

#[test]
fn one_that_accuses_everybody_isolates_few() {
    let mut world = World::new(Config { max_accused: 2, ..Config::default() });
    let names: Vec<String> = (0..5).map(|number| format!("h{number}")).collect();
    world.announce(host_info("liar"));
    for name in &names {
        world.announce(host_info(name));
        world.holds(name, 0..PIECES);
    }
    world.register("liar");
    for name in &names {
        world.piece_failed("liar", name, PieceFault::Bad);
    }
    assert_eq!(world.facts.iter().filter(|fact| **fact == Fact::IsolatedForTask).count(), 2);
}

#[test]
fn what_is_said_of_somebody_who_was_never_offered_hurts_nobody() {
    let mut world = World::new(Config { max_parents: 1, ..Config::default() });
    ["a", "b", "c"].into_iter().for_each(|name| drop(world.announce(host_info(name))));
    world.holds("a", 0..PIECES);
    world.register("b");
    world.holds("c", 0..PIECES);
    for fault in [PieceFault::Bad, PieceFault::Missing, PieceFault::Gone] {
        world.piece_failed("b", "c", fault);
    }
    assert_eq!(world.core.task(&task()).unwrap().holders, 3);
}

#[test]
fn one_that_lied_to_several_is_isolated_though_the_first_accusation_took_it_from_the_others() {
    // Five were offered the liar in one task. The first accusation unlinks the others; theirs count all the same.
    let mut world = World::with_hosts(&["a", "b", "c", "d", "e", "f"]);
    world.announce(damselfly_core::swarm::HostInfo { upload_slots: 9, ..host_info("a") });
    world.holds("a", 0..PIECES);
    for name in ["b", "c", "d", "e", "f"] {
        world.register(name);
    }
    for name in ["b", "c", "d"] {
        world.piece_failed(name, "a", PieceFault::Bad);
    }
    assert!(world.facts.contains(&Fact::Isolated), "{:?}", world.facts);
}

#[test]
fn a_host_that_says_anew_what_it_holds_is_offered_for_nothing_else() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    world.holds("a", 0..PIECES);
    world.holds("b", 0..PIECES);
    assert_eq!(world.event(Event::HoldsNothing(host("a"))), []);
    assert_eq!(world.register("c"), [told("c", Told::Proofs((0..PIECES).collect())), told("c", parents(&["b"]))]);
    world.event(Event::HoldsNothing(host("c")));
    assert_eq!(world.core.counts().fetching, 1, "a conversation goes on");
}

#[test]
fn an_evicted_task_is_offered_from_nobody() {
    let mut world = World::with_hosts(&["a", "c"]);
    world.holds("a", 0..PIECES);
    world.holds("a", []);
    assert_eq!(world.register("c"), [told("c", Told::Source)]);
}

#[test]
fn a_peer_belongs_to_its_host() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    world.holds("a", 0..PIECES);
    world.register("c");
    for name in ["a", "c"] {
        let stolen = damselfly_core::swarm::Registration { peer: super::world::peer(name), ..registration("b") };
        assert!(!world.core.may_speak(&stolen.host, &stolen.task, &stolen.peer));
        assert_eq!(world.event(Event::Register(stolen.clone())), []);
        let origin = stolen.origin;
        let held = super::world::held([]);
        let dropped = damselfly_core::swarm::Holding { task: stolen.task, peer: stolen.peer, origin, held };
        assert_eq!(world.event(Event::Held(host("b"), dropped)), []);
    }
    let counts = world.core.counts();
    assert_eq!((counts.peers, counts.fetching), (2, 1), "neither was ended");
}

#[test]
fn a_parent_that_failed_is_offered_again_once_it_came_anew() {
    let mut world = World::with_hosts(&["a", "c"]);
    world.holds("a", 0..PIECES);
    world.register("c");
    world.piece_failed("c", "a", PieceFault::Gone);
    world.event(Event::HostLeft(host("a")));
    world.announce(host_info("a"));
    let answers = world.holds("a", 0..PIECES);
    assert!(answers.contains(&told("c", parents(&["a"]))), "{answers:?}");
}

#[test]
fn a_host_that_was_forgotten_has_another_number() {
    let mut world = World::with_hosts(&["a"]);
    let first = world.core.host_number(&host("a"));
    world.announce(host_info("a"));
    assert_eq!(world.core.host_number(&host("a")), first);
    world.pass(Config::default().host_time());
    assert_eq!(world.core.host_number(&host("a")), None);
    world.announce(host_info("a"));
    assert!(world.core.host_number(&host("a")) > first);
}
