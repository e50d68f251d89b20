//! Hosts that fall silent, lie, or come back.

use std::time::Duration;

use damselfly_core::swarm::PieceFault;

use super::world::{PIECES, Told, World, host, host_info, parents, registration, task, told};
use crate::{Config, Event, Fact};

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
    assert_eq!(world.register("b"), [told("b", Told::Wait)]);
    let answers = world.announce(host_info("a"));
    assert_eq!(answers, [told("b", Told::Proofs(vec![0])), told("b", parents(&["a"]))]);
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
    assert_eq!(world.register("z"), [told("z", Told::Source)]);
    world.announce(host_info("a"));
    assert_eq!(world.core.counts().isolated, 1, "announcing itself does not help");
    world.pass(Config::default().isolation);
    assert_eq!(world.core.counts().isolated, 0);
    assert_eq!(world.core.task(&task()).unwrap().holders, 1);
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
    assert_eq!(world.core.task(&task()).unwrap().holders, 0);
    world.announce(host_info("a"));
    assert_eq!(world.core.task(&task()).unwrap().holders, 1);
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
    let mut world = World::with_hosts(&["a", "b"]);
    world.register("b");
    world.holds("a", 0..PIECES);
    for fault in [PieceFault::Bad, PieceFault::Missing, PieceFault::Gone] {
        world.piece_failed("b", "a", fault);
    }
    assert_eq!(world.core.task(&task()).unwrap().holders, 1);
}
