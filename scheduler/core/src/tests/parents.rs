//! Who is offered to whom.

use std::time::Duration;

use damselfly_core::swarm::{HostInfo, PieceFault, Report};

use super::world::{PIECES, Told, World, host_info, parents, peer, task, told};
use crate::{Config, Event};

/// A world in which `a` holds everything.
fn with_complete_a(others: &[&str]) -> World {
    let mut world = World::with_hosts(&["a"]);
    world.holds("a", 0..PIECES);
    for name in others {
        world.announce(host_info(name));
    }
    world
}

fn offered(answers: &[(String, Told)], name: &str) -> Vec<String> {
    let to_it = answers.iter().rev().filter(|(to, _)| to == name);
    to_it
        .filter_map(|(_, what)| match what {
            Told::Parents(names, _) => Some(names.clone()),
            _ => None,
        })
        .next()
        .unwrap_or_default()
}

#[test]
fn holders_are_offered_and_one_without_pieces_is_not() {
    let mut world = with_complete_a(&["b", "c"]);
    let answers = world.register("b");
    assert_eq!(answers, [told("b", Told::Proofs((0..PIECES).collect())), told("b", parents(&["a"]))]);
    assert_eq!(offered(&world.register("c"), "c"), ["a"], "b has nothing yet");
}

#[test]
fn an_incomplete_holder_is_as_good() {
    let mut world = World::with_hosts(&["a", "b"]);
    world.holds("a", [3]);
    assert_eq!(offered(&world.register("b"), "b"), ["a"]);
}

#[test]
fn slots_are_respected_and_freed_ones_given_on() {
    let mut world = with_complete_a(&["b", "c", "d", "e", "f"]);
    for name in ["b", "c", "d"] {
        assert_eq!(offered(&world.register(name), name), ["a"]);
    }
    assert_eq!(world.register("e"), [told("e", Told::Wait)], "a has three slots");
    assert_eq!(world.register("f"), [told("f", Told::Wait)]);
    assert_eq!(offered(&world.report("b", Report::Failed), "e"), ["a"], "the first in the queue gets it");
    let answers = world.piece("c", 0, Some("a"));
    assert_eq!(offered(&answers, "f"), ["c"], "a new holder serves the next");
}

#[test]
fn a_host_that_gives_itself_more_slots_serves_more() {
    let mut world = with_complete_a(&["b", "c"]);
    world.announce(HostInfo { upload_slots: 0, ..host_info("a") });
    assert_eq!(world.register("b"), [told("b", Told::Source)], "no slots at all means no holder");
    world.announce(HostInfo { upload_slots: 1, ..host_info("a") });
    assert_eq!(offered(&world.register("c"), "c"), ["a"]);
}

#[test]
fn the_waiting_are_woken_one_parent_each_while_they_are_many() {
    let mut world = with_complete_a(&["b"]);
    world.announce(HostInfo { upload_slots: 1, ..host_info("a") });
    world.register("b");
    let names: Vec<String> = (0..6).map(|number| format!("w{number}")).collect();
    for name in &names {
        world.announce(host_info(name));
        assert_eq!(world.register(name), [told(name, Told::Wait)]);
    }
    let answers = world.piece("b", 0, Some("a"));
    let woken: Vec<_> = answers.iter().filter(|(_, what)| matches!(what, Told::Parents(..))).collect();
    assert_eq!(woken.len(), 3, "as many as b has slots: {woken:?}");
    assert!(woken.iter().all(|(_, what)| *what == parents(&["b"])));
}

#[test]
fn a_peer_is_offered_its_own_host_never() {
    let mut world = with_complete_a(&[]);
    assert_eq!(world.register("a"), [told("a", Told::Source)]);
}

#[test]
fn near_ones_come_first_and_a_full_hand_is_bounded() {
    let mut world = World::with_hosts(&[]);
    for (name, idc, location) in [
        ("far1", "x", ""),
        ("far2", "", ""),
        ("idc", "here", ""),
        ("both", "here", "eu|west|rack1"),
        ("rack", "", "eu|west|rack1"),
        ("west", "", "eu|west|rack2"),
        ("eu", "", "eu|east"),
    ] {
        world.announce(HostInfo { idc: idc.into(), location: location.into(), ..host_info(name) });
        world.holds(name, 0..PIECES);
    }
    world.announce(HostInfo { idc: "here".into(), location: "eu|west|rack1".into(), ..host_info("me") });
    assert_eq!(offered(&world.register("me"), "me"), ["both", "idc", "rack", "west"]);
}

#[test]
fn children_are_spread_evenly() {
    let mut world = World::new(Config { max_parents: 1, ..Config::default() });
    for name in ["a", "b", "c"] {
        world.announce(host_info(name));
        world.holds(name, 0..PIECES);
    }
    for number in 0..6 {
        let name = format!("w{number}");
        world.announce(HostInfo { upload_slots: 0, ..host_info(&name) });
        world.register(&name);
    }
    assert!(world.core.hosts().filter(|host| host.info.upload_slots > 0).all(|host| host.children == 2));
}

#[test]
fn a_parent_that_failed_a_peer_is_not_offered_to_it_again() {
    for fault in [PieceFault::Bad, PieceFault::Stalled, PieceFault::Gone] {
        let mut world = with_complete_a(&["b", "c", "d"]);
        world.holds("d", 0..PIECES);
        world.announce(HostInfo { upload_slots: 0, ..host_info("d") });
        world.register("b");
        world.announce(host_info("d"));
        assert_eq!(offered(&world.piece_failed("b", "a", fault), "b"), ["d"], "{fault:?}");
        let answers = world.reschedule("b", &["d"]);
        assert_eq!(answers, [told("b", Told::Source)], "{fault:?}: nobody is left");
        let others = offered(&world.register("c"), "c");
        assert_eq!(others.contains(&"a".to_owned()), fault != PieceFault::Bad, "{fault:?}: {others:?}");
    }
}

#[test]
fn a_piece_that_a_silent_holder_does_not_have_is_crossed_off() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    world.holds("a", [0]);
    world.register("b");
    assert_eq!(world.piece_failed("b", "a", PieceFault::Missing), [told("b", Told::Source)], "a has nothing left");
    assert_eq!(world.register("c"), [told("c", Told::Wait)]);
}

#[test]
fn no_cycle_is_closed() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    world.register("a");
    world.opened("a");
    world.piece("a", 0, None);
    world.register("b");
    world.piece("b", 0, Some("a"));
    // a loses the source: the only other holder is its own child.
    let answers = world.report("a", Report::SourceFailed);
    // It is never offered as that; it is sent to the source in its place, and then it is nobody's child.
    assert_eq!(answers[0], told("b", Told::Source));
    assert_eq!(offered(&answers, "a"), ["b"]);
}

#[test]
fn orphans_are_placed_at_once() {
    let mut world = with_complete_a(&["b", "c"]);
    world.register("b");
    world.register("c");
    world.piece("c", 0, Some("a"));
    let answers = world.event(Event::HostLeft(damselfly_core::HostId::from("a")));
    assert_eq!(offered(&answers, "b"), ["c"]);
    assert!(answers.contains(&told("c", Told::Source)), "{answers:?}");
}

#[test]
fn rescheduling_offers_others_then_waits_while_somebody_feeds_the_task() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    world.register("a");
    world.opened("a");
    world.piece("a", 0, None);
    world.register("b");
    assert_eq!(world.reschedule("b", &["a"]), [told("b", Told::Wait)], "a reads the source");
    world.holds("c", [1]);
    assert_eq!(world.core.counts().waiting, 0, "c came and is offered");
    assert_eq!(world.core.task(&task()).unwrap().peers.len(), 3);
}

#[test]
fn a_reschedule_that_crossed_an_offer_is_answered_with_it() {
    let mut world = with_complete_a(&["b"]);
    world.register("b");
    assert_eq!(offered(&world.reschedule("b", &[]), "b"), ["a"]);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.reschedule("b", &[]), [told("b", Told::Source)], "it has tried it, and there is nobody else");
}

#[test]
fn more_parents_are_offered_when_they_come() {
    let mut world = with_complete_a(&["b", "c", "d"]);
    world.register("b");
    world.holds("c", 0..PIECES);
    assert_eq!(world.pass(Duration::from_secs(1)), [], "not at once");
    assert_eq!(offered(&world.pass(Duration::from_secs(2)), "b"), ["c", "a"]);
    world.holds("d", 0..PIECES);
    world.announce(HostInfo { upload_slots: 1, ..host_info("d") });
    let answers = world.pass(Duration::from_secs(60));
    assert_eq!(offered(&answers, "b"), Vec::<String>::new(), "the last slot is kept for who has nothing");
}

#[test]
fn who_is_done_stays_a_parent_and_who_failed_does_not() {
    let mut world = with_complete_a(&["b", "c", "d"]);
    world.register("b");
    for piece in 0..PIECES {
        world.piece("b", piece, Some("a"));
    }
    assert_eq!(world.report("b", Report::Finished), [told("b", Told::End)]);
    let mut found = offered(&world.register("c"), "c");
    found.sort();
    assert_eq!(found, ["a", "b"]);
    world.piece("c", 0, Some("a"));
    world.report("c", Report::Failed);
    assert!(!offered(&world.register("d"), "d").contains(&"c".to_owned()));
    assert_eq!(world.event(Event::Report(peer("c"), Report::Finished)), [], "who has gone is not heard");
}

#[test]
fn what_a_host_dropped_is_not_offered() {
    let mut world = with_complete_a(&["b"]);
    world.holds("a", []);
    assert_eq!(world.register("b"), [told("b", Told::Source)]);
}

#[test]
fn a_host_serves_few_children_in_one_task_and_more_in_others() {
    let mut world = World::new(Config::default());
    ["a", "b", "c", "d"].into_iter().for_each(|name| drop(world.announce(host_info(name))));
    world.holds("a", 0..PIECES);
    assert_eq!(offered(&world.register("b"), "b"), ["a"]);
    assert_eq!(offered(&world.register("c"), "c"), ["a"]);
    assert_eq!(world.register("d"), [told("d", Told::Wait)], "nobody else has a piece yet");
    assert_eq!(offered(&world.piece("b", 0, Some("a")), "d"), ["b"]);
}
