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
        world.piece("a", piece, None);
    }
    let answers = world.pass(Duration::from_millis(20));
    let proofs = |name: &str| answers.iter().filter(|(to, what)| to == name && matches!(what, Told::Proofs(_))).count();
    assert!(answers.contains(&told("b", Told::Proofs(vec![1, 2, 3]))), "{answers:?}");
    assert_eq!((proofs("b"), proofs("c")), (1, 0), "once, and not to c: {answers:?}");
    assert_eq!(world.pass(Duration::from_millis(500)), []);
}

#[test]
fn a_plain_reader_of_the_source_leaves_the_task_unproven() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    world.register_as("a", SourceWish::Allowed, false);
    world.piece("a", 0, None);
    let unproven = Told::Parents(vec!["a".into()], false);
    assert!(world.register("b").contains(&told("b", unproven)));
}

#[test]
fn whoever_waits_for_proofs_is_told_that_they_will_not_come() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    world.holds("a", 0..PIECES);
    assert!(world.register("b").contains(&told("b", parents(&["a"]))));
    world.register_as("c", SourceWish::Allowed, false);
    let answers = world.piece("c", 0, None);
    assert_eq!(answers, [], "that piece has its proof");
    let (mut world, plain) = (World::with_hosts(&["a", "b", "c"]), SourceWish::Wanted);
    world.announce(damselfly_core::swarm::HostInfo { upload_slots: 1, ..super::world::host_info("a") });
    world.holds("a", [0]);
    world.register_as("b", SourceWish::Forbidden, true);
    let answers = world.register_as("c", plain, false);
    assert!(answers.contains(&told("c", Told::Source)), "{answers:?}");
    assert!(answers.contains(&told("b", Told::Parents(vec!["a".into()], false))), "{answers:?}");
}

#[test]
fn only_the_holder_of_a_lease_vouches_for_what_it_read_and_it_overrules_what_was_announced() {
    let mut world = World::with_hosts(&["a", "b", "c"]);
    world.holds("b", 4..PIECES);
    assert_eq!(proof(&world.core, 4), Some(digest(4).blake3));
    world.register("a");
    world.register("c");
    // a has the lease of what b lacks. c has none, whatever it says.
    let holder = world.core.task(&task()).unwrap().leases[0].clone();
    assert_eq!(holder, (peer("a"), 0..4));
    world.report("c", lie(0));
    assert_eq!(proof(&world.core, 0), None);
    world.report("a", lie(4));
    assert_eq!(proof(&world.core, 4), Some(digest(4).blake3), "nor has a the lease of that piece");
    world.piece("a", 0, None);
    assert_eq!(proof(&world.core, 0), Some(digest(0).blake3));
    // What a holding says does not overrule it.
    world.event(Event::PeerGone(peer("c")));
    let held = damselfly_core::swarm::Held {
        geometry: super::world::geometry(),
        pieces: vec![(PieceNumber(0), Blake3([9; 32]))],
    };
    let origin = super::world::registration("c").origin;
    let holding = damselfly_core::swarm::Holding { task: task(), peer: peer("c"), origin, held };
    world.event(Event::Held("c".into(), holding));
    assert_eq!(proof(&world.core, 0), Some(digest(0).blake3));
    assert!(world.facts.contains(&Fact::ProofConflict));
}

#[test]
fn a_hash_that_was_not_said_vouches_for_nothing() {
    let mut world = World::with_hosts(&["a", "b"]);
    world.register("a");
    world.opened("a");
    let digest = PieceDigest { crc32: 1, blake3: Blake3([0; 32]) };
    world.report("a", Report::PieceFinished { piece: PieceNumber(0), parent: None, digest });
    let answers = world.register("b");
    assert!(answers.contains(&told("b", Told::Parents(vec!["a".into()], false))), "{answers:?}");
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
