//! What is said of a task to people who ask why.

use std::time::Duration;

use damselfly_core::PieceNumber;
use damselfly_core::swarm::{PieceFault, Report};

use super::world::{PIECES, World, host, host_info, peer, registration, task};
use crate::{Event, NotOffered, PeerExplanation};

fn explain(world: &World, name: &str) -> PeerExplanation {
    let why = world.core.explain(world.now, &task(), 100).expect("it is known");
    why.peers.into_iter().find(|why| why.peer.id == peer(name)).expect("it is one of its peers")
}

#[test]
fn who_gives_whom_how_much_and_what_is_waited_for() {
    let mut world = World::with_hosts(&["a", "c"]);
    world.holds("a", (0..PIECES).filter(|piece| *piece != 3));
    world.register("c");
    let why = world.core.explain(world.now, &task(), 1).expect("it is known");
    let [lease] = &why.leases[..] else { panic!("nobody has piece 3: {why:?}") };
    assert_eq!((lease.peer.clone(), lease.pieces.clone()), (peer("c"), 3..4));
    for piece in [0, 1, 2] {
        world.pass(Duration::from_millis(500));
        world.piece("c", piece, Some("a"));
    }
    world.report("c", Report::Late { piece: PieceNumber(4) });
    world.pass(Duration::from_secs(2));
    let why = explain(&world, "c");
    assert!(matches!(&why.held[..], [run] if *run == (0..3)));
    assert_eq!(why.idle, Some(Duration::from_secs(2)));
    assert_eq!(why.waits_for, Some(PieceNumber(4)));
    let [from] = &why.parents[..] else { panic!("{why:?}") };
    assert_eq!((from.id.clone(), from.pieces, from.milli_pieces), (peer("a"), 3, 2000));
    assert_eq!(from.last, Some(Duration::from_secs(2)));
    assert_eq!(explain(&world, "a").held, [0..3, 4..PIECES]);
    world.piece("c", 4, Some("a"));
    assert_eq!(explain(&world, "c").waits_for, None);

    let why = world.core.explain(world.now, &task(), 1).expect("it is known");
    assert_eq!(why.peers.len(), 1, "those who are not done come first");
    assert_eq!((why.peers[0].peer.id.clone(), why.task.peer_count), (peer("c"), 2));
}

#[test]
fn why_somebody_is_no_parent() {
    let reason = |change: fn(&mut World)| {
        let mut world = World::with_hosts(&["c"]);
        world.announce(host_info("a"));
        world.holds("a", 0..PIECES);
        change(&mut world);
        let why = explain(&world, "c");
        why.others.into_iter().find(|(id, _)| *id == peer("a")).map(|(_, why)| why)
    };
    let joined = |world: &mut World| drop(world.register("c"));
    assert_eq!(reason(joined), None, "it is one");
    assert_eq!(
        reason(|world| {
            world.register("c");
            world.piece_failed("c", "a", PieceFault::Gone);
        }),
        Some(NotOffered::Failed)
    );
    assert_eq!(
        reason(|world| {
            world.register("c");
            world.piece_failed("c", "a", PieceFault::Bad);
        }),
        Some(NotOffered::Isolated)
    );
    assert_eq!(
        reason(|world| {
            let mut info = host_info("a");
            info.upload_slots = 0;
            world.announce(info);
            world.register("c");
        }),
        Some(NotOffered::SharesNothing)
    );
    assert_eq!(
        reason(|world| {
            let mut info = host_info("a");
            info.upload_slots = 1;
            world.announce(info);
            world.announce(host_info("b"));
            world.register("b");
            world.register("c");
        }),
        Some(NotOffered::HostFull)
    );
    assert_eq!(
        reason(|world| {
            world.register("c");
            world.event(Event::HostLeft(host("a")));
            world.event(Event::Register(registration("a")));
        }),
        Some(NotOffered::NotAnnounced)
    );
}
