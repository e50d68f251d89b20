//! What pieces hash to, and who is told.

use std::time::Duration;

use damselfly_core::swarm::{Answer, Report, SourceWish};
use damselfly_core::{Blake3, PieceDigest, PieceNumber};

use super::world::{PIECES, Told, World, digest, parents, peer, task, told};
use crate::{Core, Event, Fact, Output};

fn lie(piece: u32) -> Report {
    let digest = PieceDigest { crc32: 0, blake3: Blake3([9; 32]) };
    Report::PieceFinished { piece: PieceNumber(piece), parent: None, digest }
}

fn proof(core: &Core, piece: u32) -> Option<Blake3> {
    core.tasks[&task()].proofs.get(&PieceNumber(piece)).map(|proof| proof.blake3)
}

#[test]
fn proofs_are_gathered_and_sent_to_those_with_parents() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    world.register("a");
    world.opened("a");
    world.piece("a", 0, None);
    world.register("b");
    world.register_as("c", SourceWish::Allowed, false);
    for piece in 1..4 {
        assert_eq!(world.piece("a", piece, None), []);
    }
    assert_eq!(world.pass(Duration::from_millis(20)), [told("b", Told::Proofs(vec![1, 2, 3]))], "once, and not to c");
    assert_eq!(world.pass(Duration::from_millis(500)), []);
}

#[test]
fn a_plain_reader_of_the_source_leaves_the_task_unproven() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    world.register_as("a", SourceWish::Allowed, false);
    world.piece("a", 0, None);
    let unproven = Told::Parents(vec!["a".into()], false);
    assert_eq!(world.register("b"), [told("b", unproven)]);
}

#[test]
fn whoever_waits_for_proofs_is_told_that_they_will_not_come() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    world.holds("a", [0]);
    assert_eq!(world.register("b").last(), Some(&told("b", parents(&["a"]))));
    let answers = world.register_as("c", SourceWish::Wanted, false);
    assert_eq!(answers[0], told("c", Told::Source));
    assert_eq!(answers[1], told("b", Told::Parents(vec!["a".into()], false)));
}

#[test]
fn the_first_word_holds_and_only_the_lease_overrules() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    world.holds("b", 0..PIECES);
    let told_by_b = proof(&world.core, 0);
    assert_eq!(told_by_b, Some(digest(0).blake3));
    // c reads the source unbidden, beside its parent: its word is as good as b's, and later.
    world.register("c");
    world.report("c", lie(0));
    assert_eq!(proof(&world.core, 0), told_by_b);
    assert_eq!(world.facts.iter().filter(|fact| **fact == Fact::ProofConflict).count(), 1);
    // a holds the lease.
    world.register_as("a", SourceWish::Wanted, true);
    let answers = world.report("a", lie(0));
    assert_eq!(answers, []);
    assert_eq!(proof(&world.core, 0), Some(Blake3([9; 32])));
    assert_eq!(world.pass(Duration::from_millis(20)), [told("c", Told::Proofs(vec![0]))], "c is told anew");
    // What a lease said is not overruled by the next.
    world.event(Event::PeerGone(peer("a")));
    world.piece("c", 0, None);
    assert_eq!(proof(&world.core, 0), Some(Blake3([9; 32])));
}

#[test]
fn a_hash_that_was_not_said_vouches_for_nothing() {
    let mut world = World::with_hosts(&["a", "b"]);
    world.register("a");
    world.opened("a");
    let digest = PieceDigest { crc32: 1, blake3: Blake3([0; 32]) };
    world.report("a", Report::PieceFinished { piece: PieceNumber(0), parent: None, digest });
    assert_eq!(world.register("b"), [told("b", Told::Parents(vec!["a".into()], false))]);
}

#[test]
fn a_long_list_comes_in_several_answers() {
    let pieces = 10_000;
    let geometry = damselfly_core::Geometry::new(u64::from(pieces), 1).unwrap();
    let mut core = Core::new(crate::Config::default(), 1);
    let now = damselfly_core::Moment::START;
    core.handle(now, Event::HostAnnounced(super::world::host_info("a")));
    let listed = (0..pieces).map(|piece| (PieceNumber(piece), digest(piece).blake3)).collect();
    let held = damselfly_core::swarm::Held { geometry, pieces: listed };
    let registration = super::world::registration("a");
    let held = damselfly_core::swarm::Holding { task: task(), peer: peer("a"), origin: registration.origin, held };
    core.handle(now, Event::Held(registration.host, held));
    core.handle(now, Event::Register(super::world::registration("b")));
    let mut lists = Vec::new();
    while let Some(output) = core.poll() {
        if let Output::Answer(_, Answer::Proofs(proofs)) = output {
            lists.push(proofs.len());
        }
    }
    assert_eq!(lists, [4096, 4096, 1808]);
}
