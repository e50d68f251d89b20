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
        // They give nothing: who is offered to whom is then plain to see.
        world.announce(HostInfo { upload_slots: 0, ..host_info(name) });
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
fn an_incomplete_holder_is_as_good() {
    let mut world = World::with_hosts(&["a", "b"]);
    world.holds("a", [3]);
    assert_eq!(offered(&world.register("b"), "b"), ["a"]);
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
fn who_is_done_stays_a_parent_and_who_failed_does_not() {
    let mut world = with_complete_a(&["b", "c", "d"]);
    world.announce(host_info("b"));
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
fn holders_are_offered_with_the_proofs_of_what_they_have() {
    let mut world = with_complete_a(&["b", "c"]);
    let answers = world.register("b");
    assert_eq!(answers, [told("b", Told::Proofs((0..PIECES).collect())), told("b", parents(&["a"]))]);
    assert_eq!(offered(&world.register("c"), "c"), ["a"], "b gives nothing");
}

#[test]
fn those_who_are_getting_pieces_are_parents_of_each_other() {
    let mut world = World::with_hosts(&["a", "b"]);
    world.holds("a", 0..PIECES);
    world.register("b");
    world.announce(host_info("c"));
    let answers = world.register("c");
    let mut found = offered(&answers, "c");
    found.sort();
    assert_eq!(found, ["a", "b"]);
    assert_eq!(offered(&answers, "b")[0], "c", "it is offered in return");
}

#[test]
fn early_comers_know_late_ones() {
    let names: Vec<String> = (0..200).map(|number| format!("h{number:03}")).collect();
    let mut world = World::new(Config::default());
    for name in &names {
        world.announce(HostInfo { upload_slots: 50, ..host_info(name) });
        world.register(name);
        world.opened("h000");
    }
    // Were the first twenty to keep whom they knew first, none of their parents would be of the second hundred.
    let view = world.core.task(&task()).unwrap();
    let early = view.peers.iter().filter(|peer| *peer.host.as_str() < *"h020");
    let late = early.flat_map(|peer| &peer.parents).filter(|parent| parent.as_str() >= "peer-h100").count();
    assert!(late > 40, "{late} of about 200 are of the second half");
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
}

#[test]
fn a_host_that_gives_itself_more_slots_serves_more() {
    let mut world = with_complete_a(&["b", "c"]);
    world.announce(HostInfo { upload_slots: 0, ..host_info("a") });
    assert_eq!(world.register("b"), [told("b", Told::Source)], "no slots at all means no holder");
    let answers = world.announce(HostInfo { upload_slots: 2, ..host_info("a") });
    assert_eq!(offered(&answers, "b"), ["a"], "though it reads the source meanwhile");
    assert_eq!(offered(&world.register("c"), "c"), ["a"]);
}

#[test]
fn a_peer_is_offered_its_own_host_never_and_says_anew_what_it_holds() {
    let mut world = with_complete_a(&[]);
    assert_eq!(world.register("a"), [told("a", Told::Source)], "it does not have any more what it had");
}

#[test]
fn near_ones_come_first_and_some_others_always() {
    let mut world = World::new(Config { max_parents: 4, ..Config::default() });
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
    let found = offered(&world.register("me"), "me");
    assert_eq!(found[..3], ["both", "idc", "rack"]);
    assert!(["west", "eu", "far1", "far2"].contains(&found[3].as_str()), "one by chance: {found:?}");
}

#[test]
fn a_parent_that_failed_a_peer_is_not_offered_to_it_again() {
    for fault in [PieceFault::Bad, PieceFault::Stalled, PieceFault::Gone] {
        let mut world = with_complete_a(&["b", "c", "d"]);
        world.holds("d", 0..PIECES);
        world.register("b");
        world.announce(host_info("d"));
        assert_eq!(offered(&world.piece_failed("b", "a", fault), "b"), ["d"], "{fault:?}");
        world.reschedule("b", &["d"]);
        assert_eq!(world.core.counts().waiting, 1, "{fault:?}: nobody is left, and together they have all");
        let others = offered(&world.register("c"), "c");
        assert_eq!(others.contains(&"a".to_owned()), fault != PieceFault::Bad, "{fault:?}: {others:?}");
    }
}

#[test]
fn a_slow_parent_is_exchanged_if_there_is_another() {
    let mut world = with_complete_a(&["b"]);
    world.register("b");
    assert_eq!(world.piece_failed("b", "a", PieceFault::Slow), [], "there is nobody else");
    assert_eq!(world.core.counts().fetching, 1);
    world.announce(host_info("c"));
    world.holds("c", 0..PIECES);
    assert_eq!(offered(&world.piece_failed("b", "a", PieceFault::Slow), "b"), ["c"]);
    // That does not count against it: it may only have been busy.
    assert_eq!(offered(&world.piece_failed("b", "c", PieceFault::Slow), "b"), ["a"]);
}

#[test]
fn a_piece_that_a_silent_holder_does_not_have_is_crossed_off() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    world.holds("a", 0..PIECES);
    world.register("b");
    let answers = world.piece_failed("b", "a", PieceFault::Missing);
    assert_eq!(answers, [told("b", Told::Run(0, 1))], "nobody has it now: it is read from the source");
}

#[test]
fn orphans_are_placed_at_once() {
    let mut world = with_complete_a(&["b"]);
    world.register("b");
    world.announce(host_info("c"));
    world.register("c");
    world.piece("c", 0, Some("a"));
    let answers = world.event(Event::HostLeft(damselfly_core::HostId::from("a")));
    assert_eq!(world.core.counts().waiting, 1, "who has no parents waits for some, whatever it reads meanwhile");
    let runs = answers.iter().filter(|(_, what)| matches!(what, Told::Run(..))).count();
    assert_eq!(runs, 2, "what a had and c has not is read from the source: {answers:?}");
}

#[test]
fn a_reschedule_that_crossed_an_offer_is_answered_with_it() {
    let mut world = with_complete_a(&["b"]);
    world.register("b");
    assert_eq!(offered(&world.reschedule("b", &[]), "b"), ["a"]);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.reschedule("b", &[]), [told("b", Told::Wait)], "it has tried it, and there is nobody else");
}

#[test]
fn more_parents_are_offered_when_they_come() {
    let mut world = with_complete_a(&["b", "c"]);
    world.register("b");
    world.announce(host_info("c"));
    world.holds("c", 0..PIECES);
    assert_eq!(world.pass(Duration::from_secs(1)), [], "not at once");
    assert_eq!(offered(&world.pass(Duration::from_secs(2)), "b"), ["c", "a"]);
}

#[test]
fn one_that_has_become_complete_is_offered_to_those_who_have_little() {
    let mut world = World::new(Config { max_parents: 1, ..Config::default() });
    world.announce(host_info("a"));
    world.holds("a", [0]);
    for name in ["b", "c"] {
        world.announce(host_info(name));
        world.register(name);
    }
    for piece in 0..PIECES {
        world.piece("c", piece, Some("a"));
    }
    world.report("c", Report::Finished);
    let view = world.core.task(&task()).unwrap();
    let b = view.peers.iter().find(|view| view.id == peer("b")).unwrap();
    assert_eq!(b.parents, [peer("c")], "in place of what it had");
}

#[test]
fn a_host_serves_so_many_children_in_one_task_and_more_in_others() {
    let mut world = World::new(Config { children_per_task: 2, ..Config::default() });
    world.announce(HostInfo { upload_slots: 9, ..host_info("a") });
    world.holds("a", 0..PIECES);
    for name in ["b", "c", "d"] {
        world.announce(HostInfo { upload_slots: 0, ..host_info(name) });
    }
    assert_eq!(offered(&world.register("b"), "b"), ["a"]);
    assert_eq!(offered(&world.register("c"), "c"), ["a"]);
    assert_eq!(world.register("d"), [told("d", Told::Wait)]);
}

/// A host that lost its network calls all its parents failed, one after another. They are offered to it again when they
/// have rested, each time later, whether it reads from the source meanwhile or not.
#[test]
fn parents_that_failed_a_peer_are_offered_to_it_again_after_a_rest() {
    let mut world = with_complete_a(&["b"]);
    assert_eq!(offered(&world.register("b"), "b"), ["a"]);
    let mut rests = Vec::new();
    for round in 0..4 {
        let mut told = world.piece_failed("b", "a", PieceFault::Stalled);
        if round % 2 == 1 {
            told.extend(world.opened("b"));
        }
        assert_eq!(offered(&told, "b"), Vec::<String>::new(), "it has only just failed");
        let failed = world.now;
        while offered(&told, "b").is_empty() {
            told = world.wait().expect("something is to come");
        }
        rests.push(world.now.since(failed).as_secs());
    }
    assert_eq!(rests, [2, 4, 8, 16]);
    world.piece("b", 0, Some("a"));
    let failed = world.now;
    let mut told = world.piece_failed("b", "a", PieceFault::Stalled);
    while offered(&told, "b").is_empty() {
        told = world.wait().expect("something is to come");
    }
    assert_eq!(world.now.since(failed).as_secs(), 2, "forgiven");
}
