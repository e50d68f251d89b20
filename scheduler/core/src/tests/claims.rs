//! What is said of content whose name has no digest, and whether it is believed.

use damselfly_core::swarm::{Holding, Origin, PieceFault, Registration, Report, SourceWish};
use damselfly_core::{Blake3, PieceDigest, PieceNumber};

use super::world::{PIECES, Told, World, held, host, host_info, parents, peer, registration, task, told};
use crate::{Config, Event, Fact};

type Answers = Vec<(String, Told)>;

fn nameless() -> Origin {
    Origin { digest: None, ..registration("a").origin }
}

fn holds(world: &mut World, name: &str, lies: bool) -> Answers {
    let mut held = held(0..PIECES);
    if lies {
        held.pieces.iter_mut().for_each(|(_, blake3)| *blake3 = Blake3([9; 32]));
    }
    let holding = Holding { task: task(), peer: peer(name), origin: nameless(), held };
    world.event(Event::Held(host(name), holding))
}

fn joins(world: &mut World, name: &str, source: SourceWish) -> Answers {
    world.event(Event::Register(Registration { origin: nameless(), source, ..registration(name) }))
}

/// The one piece that a peer is sent to the source for.
fn compared(answers: &Answers, name: &str) -> u32 {
    let runs: Vec<_> = answers.iter().filter(|(to, _)| to == name).collect();
    let run =
        runs.iter().find_map(|(_, what)| if let Told::Run(start, end) = what { Some((*start, *end)) } else { None });
    let (start, end) = run.unwrap_or_else(|| panic!("nothing is compared: {answers:?}"));
    assert_eq!(end, start + 1, "one piece is enough");
    start
}

fn proofs(answers: &Answers, name: &str) -> usize {
    let listed = answers.iter().map(|(to, what)| match what {
        Told::Proofs(pieces) if to == name => pieces.len(),
        _ => 0,
    });
    listed.sum()
}

#[test]
fn one_piece_is_compared_before_what_a_host_says_is_believed() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    holds(&mut world, "a", false);
    let answers = joins(&mut world, "b", SourceWish::Allowed);
    assert!(answers.contains(&told("b", parents(&["a"]))), "{answers:?}");
    assert_eq!(proofs(&answers, "b"), 0, "nothing is proven: {answers:?}");
    let piece = compared(&answers, "b");
    let answers = joins(&mut world, "c", SourceWish::Allowed);
    assert!(!answers.iter().any(|(_, what)| matches!(what, Told::Run(..))), "one is enough: {answers:?}");
    world.piece("b", piece, None);
    let answers = world.pass(std::time::Duration::from_millis(100));
    assert_eq!((proofs(&answers, "b"), proofs(&answers, "c")), (PIECES as usize, PIECES as usize));
    assert!(!world.facts.contains(&Fact::IsolatedForTask));
}

#[test]
fn the_liar_who_comes_first_is_found_out_and_what_it_said_is_forgotten() {
    let mut world = World::with_hosts(&["a", "b"]);
    holds(&mut world, "a", true);
    let answers = joins(&mut world, "b", SourceWish::Allowed);
    let piece = compared(&answers, "b");
    let answers = world.piece("b", piece, None);
    assert!(world.facts.contains(&Fact::IsolatedForTask));
    assert_eq!(proofs(&answers, "b"), 0);
    let answers = world.pass(std::time::Duration::from_millis(100));
    assert!(proofs(&answers, "b") <= 1, "only what b read itself: {answers:?}");
    let readable = world.core.task(&task()).unwrap();
    assert_eq!((readable.holders, readable.proofs), (1, 1), "b alone, and what it read");
}

#[test]
fn what_two_hosts_say_differently_is_not_believed_of_either() {
    for first_lies in [true, false] {
        let mut world = World::with_hosts(&["a", "b", "c"]);
        holds(&mut world, "a", first_lies);
        holds(&mut world, "c", !first_lies);
        assert!(world.facts.contains(&Fact::ProofConflict));
        joins(&mut world, "b", SourceWish::Allowed);
        assert_eq!(world.core.task(&task()).unwrap().proofs, 0);
    }
}

#[test]
fn what_was_read_without_a_lease_is_compared_too() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    joins(&mut world, "a", SourceWish::Allowed);
    world.opened("a");
    joins(&mut world, "b", SourceWish::Allowed);
    // a was sent there for the first piece, and b says that it read it.
    let lie = PieceDigest { crc32: 0, blake3: Blake3([9; 32]) };
    let piece = PieceNumber(0);
    world.report("b", Report::PieceFinished { piece, parent: None, digest: lie });
    assert_eq!(world.core.task(&task()).unwrap().proofs, 0);
    world.report("b", Report::PieceFinished { piece, parent: Some(peer("a")), digest: lie });
    assert_eq!(world.core.task(&task()).unwrap().proofs, 0, "nor does it matter what it says of others' pieces");
}

#[test]
fn where_nobody_may_read_the_source_the_fleet_is_believed() {
    let mut world = World::with_hosts(&["a", "b"]);
    holds(&mut world, "a", false);
    joins(&mut world, "b", SourceWish::Forbidden);
    let answers = world.pass(std::time::Duration::from_millis(100));
    assert_eq!(proofs(&answers, "b"), PIECES as usize, "{answers:?}");
}

#[test]
fn members_of_a_fleet_are_believed() {
    let mut world = World::new(Config { members_only: true, ..Config::default() });
    ["a", "b"].iter().for_each(|name| drop(world.announce(host_info(name))));
    holds(&mut world, "a", false);
    let answers = joins(&mut world, "b", SourceWish::Allowed);
    assert_eq!(proofs(&answers, "b"), PIECES as usize, "{answers:?}");
}

#[test]
fn a_reader_that_cannot_compare_is_not_waited_for() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    holds(&mut world, "a", false);
    let answers = joins(&mut world, "b", SourceWish::Allowed);
    compared(&answers, "b");
    joins(&mut world, "c", SourceWish::Allowed);
    let answers = world.report("b", Report::SourceFailed);
    let piece = compared(&answers, "c");
    world.piece("c", piece, None);
    let answers = world.pass(std::time::Duration::from_millis(100));
    assert_eq!(proofs(&answers, "b"), PIECES as usize, "{answers:?}");
}

#[test]
fn one_that_accuses_whom_it_has_never_met_isolates_nobody() {
    let mut world = World::with_hosts(&["a", "b", "c", "d"]);
    holds(&mut world, "a", false);
    world.announce(host_info("e"));
    for name in ["b", "c", "d"] {
        joins(&mut world, name, SourceWish::Allowed);
        world.piece_failed(name, "e", PieceFault::Bad);
    }
    assert!(!world.facts.contains(&Fact::Isolated) && !world.facts.contains(&Fact::IsolatedForTask));
}
