//! Situations that went wrong once, each by its name.

use std::time::Duration;

use damselfly_core::Geometry;

use super::{LINK, MIB, Seed, plan, stormy};
use damselfly_sim::{Fault, Outcome, Plan, Want, World};

/// Runs until all are done, and says how often the origin sent the content.
fn copies(world: &mut World) -> (f64, Outcome) {
    let done = world.run(Duration::from_secs(3600));
    assert!(done, "not done after an hour: {}", world.unfinished());
    let outcome = world.outcome();
    let copies = outcome.origin_bytes as f64 / world.plan().geometry.length() as f64;
    println!("{copies:.3} copies, last {:?}", outcome.last_finish());
    (copies, outcome)
}

/// Hosts that lose the scheduler before anybody has a piece all go to the source. When it is back they leave the source
/// again at the end of a piece or two, instead of reading the whole.
#[test]
fn a_scheduler_that_restarts_while_all_wait_calls_the_herd_back_from_the_origin() {
    for seed in 1..=2 {
        let _seed = Seed(seed);
        let plan = Plan { origin: LINK / 4.0, ..plan(seed, 50, 128) };
        let mut world = World::new(plan);
        world.fault(Duration::from_millis(90), Fault::RestartScheduler { time: Duration::from_secs(3) });
        let (copies, _) = copies(&mut world);
        // A piece and a half a host that it reads by itself, and as much to compare what hosts say with the source.
        assert!(copies <= 1.05 + 50.0 * 3.0 / 128.0, "the origin sent {copies} copies");
    }
}

/// Hosts that the scheduler answers too late read the source unbidden. They are still offered parents, and go over to
/// them.
#[test]
fn a_scheduler_that_answers_late_calls_the_herd_back_from_the_origin() {
    for seed in 1..=2 {
        let _seed = Seed(seed);
        let mut world = World::new(Plan { origin: LINK / 4.0, ..plan(seed, 50, 128) });
        world.fault(Duration::ZERO, Fault::Delay { by: Duration::from_secs(4), time: Duration::from_secs(3) });
        let (copies, _) = copies(&mut world);
        assert!(copies <= 1.05 + 50.0 * 1.5 / 128.0, "the origin sent {copies} copies");
    }
}

/// Whoever has the lease and leaves with half of the content passes it on at once: nobody's patience runs out.
#[test]
fn a_lease_holder_that_wants_half_passes_the_lease_on_at_once() {
    for seed in 1..=4 {
        let _seed = Seed(seed);
        let mut world = World::new(plan(seed, 20, 32));
        world.wants(0, Want::Half, Duration::ZERO);
        (1..20).for_each(|host| world.wants(host, Want::Read, Duration::from_millis(20)));
        let (copies, outcome) = copies(&mut world);
        assert!(copies <= 1.05 + 2.0 / 32.0, "the origin sent {copies} copies");
        assert!(
            outcome.last_finish() < Duration::from_secs(4),
            "somebody waited too long: {:?}",
            outcome.last_finish()
        );
    }
}

/// A slow origin is not made slower by a fleet that cannot wait.
#[test]
fn a_slow_origin_that_gets_on_is_not_stampeded() {
    let _seed = Seed(1);
    let geometry = Geometry::new(4 * 4 * MIB, 4 * MIB).expect("a sensible geometry");
    let mut world = World::new(Plan { origin: 250e3, geometry, ..plan(1, 100, 4) });
    let (copies, outcome) = copies(&mut world);
    assert!(copies <= 1.05, "the origin sent {copies} copies");
    assert_eq!(outcome.failures, 0);
}

/// Every slot was taken by hosts that had several parents, while a dozen roots of the graph read the whole from the source
/// and waited for parents that were not their own descendants.
#[test]
fn a_herd_finds_parents_although_every_slot_is_taken() {
    for seed in [77, 132] {
        stormy(seed, 100);
    }
}
