//! Situations that went wrong once, each by its name.

use std::time::Duration;

use damselfly_core::Geometry;

use super::{LINK, MIB, Seed, plan, stormy};
use damselfly_sim::{Fault, Outcome, Plan, Want, World, least_time};

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

/// A host that loses its network for ten seconds asks those again that stalled meanwhile, as soon as it is back: it once
/// crawled on at a piece in ten seconds, with five complete hosts idle.
#[test]
fn a_host_that_was_cut_off_is_served_again_at_once() {
    for seed in 1..=8 {
        let _seed = Seed(seed);
        let geometry = Geometry::new(60 * MIB, MIB).expect("a sensible geometry");
        let mut world = World::new(Plan { geometry, link: LINK / 20.0, origin: LINK / 2.0, ..plan(seed, 6, 1) });
        let away = Duration::from_secs(10);
        let (from, host) = (Duration::from_secs(3), seed as usize % 6);
        world.fault(from, Fault::CutOff { host, time: away });
        world.run(from + away);
        world.watch_liveness(Duration::from_secs(2));
        let (copies, outcome) = copies(&mut world);
        assert!(outcome.last_finish() < from + away + Duration::from_secs(14), "{:?}", outcome.last_finish());
        assert!(copies <= 1.3, "the origin sent {copies} copies");
    }
}

/// On links on which a piece takes most of a second everything is as on fast ones, only slower: no rule that is a number of
/// seconds keeps the hosts to one piece after another, all the same, or to two readers of a source that could give more.
#[test]
fn slow_links_are_used_as_well_as_fast_ones() {
    for (hosts, slower) in [(8, 80.0), (16, 80.0), (16, 40.0), (32, 40.0)] {
        let _seed = Seed(1);
        let geometry = Geometry::new(200 * MIB, MIB).expect("a sensible geometry");
        let plan = Plan { geometry, link: LINK / slower, origin: LINK / slower * 10.0, ..plan(1, hosts, 1) };
        let least = least_time(&plan);
        let mut world = World::new(plan);
        let (copies, outcome) = copies(&mut world);
        let ratio = outcome.last_finish().as_secs_f64() / least;
        println!("{hosts} hosts, links of {:.2} MB/s: {ratio:.3} of the least", LINK / slower / 1e6);
        assert!(ratio <= 1.10, "{ratio} times the least time");
        assert!(copies <= 1.03, "the origin sent {copies} copies");
    }
}

/// Six hosts of which the first has begun to read all: its lease is cut, and each of the others reads another run. Where
/// that one host read it all, and the others wanted the same piece of it at the same time, it took 4 times as long.
#[test]
fn what_one_host_has_begun_to_read_six_read_together() {
    let _seed = Seed(1);
    let geometry = Geometry::new(60 * MIB, MIB).expect("a sensible geometry");
    let plan = Plan { geometry, link: LINK / 20.0, origin: LINK / 2.0, ..plan(1, 6, 1) };
    let least = least_time(&plan);
    let mut world = World::new(plan);
    let (copies, outcome) = copies(&mut world);
    let ratio = outcome.last_finish().as_secs_f64() / least;
    println!("{ratio:.3} of the least, gaps {:?}", outcome.gaps);
    assert!(ratio <= 1.05, "{ratio} times the least time");
    assert!(copies <= 1.02, "the origin sent {copies} copies");
}

/// Six hosts want 60 MiB, and the scheduler falls silent for good without closing anything: how many copies the origin sent,
/// and the longest that anybody waited for a piece.
fn with_a_scheduler_that_falls_silent(seed: u64, at: Duration) -> (f64, Duration, Outcome) {
    let geometry = Geometry::new(60 * MIB, MIB).expect("a sensible geometry");
    let mut world = World::new(Plan { geometry, link: LINK / 20.0, origin: LINK / 2.0, ..plan(seed, 6, 1) });
    world.fault(at, Fault::FreezeScheduler { time: Duration::from_secs(3600) });
    let (copies, outcome) = copies(&mut world);
    let waited = (0..6).map(|host| world.longest_wait(host)).max().unwrap_or_default();
    println!("waited {waited:?}");
    (copies, waited, outcome)
}

/// The scheduler falls silent without closing anything, in the middle. Who knows parents and proofs goes on with them; what
/// nobody has vouched for is read from the source, all of it and not a piece in five seconds, as it once was until the
/// connection was found to be dead.
#[test]
fn a_scheduler_that_is_silent_in_the_middle_holds_nobody_up() {
    for seed in 1..=4 {
        let _seed = Seed(seed);
        let (copies, waited, _) = with_a_scheduler_that_falls_silent(seed, Duration::from_secs(5));
        assert!(waited <= Duration::from_secs(4), "somebody waited {waited:?}");
        // A third of the content had not been read when it fell silent.
        assert!(copies <= 2.8, "the origin sent {copies} copies");
    }
}

/// One that was silent before anybody came is not waited for.
#[test]
fn a_scheduler_that_is_silent_from_the_start_holds_nobody_up() {
    for seed in 1..=4 {
        let _seed = Seed(seed);
        let (copies, waited, outcome) = with_a_scheduler_that_falls_silent(seed, Duration::ZERO);
        assert!(waited <= Duration::from_secs(4), "somebody waited {waited:?}");
        assert!(copies <= 6.05 && outcome.failures == 0, "the origin sent {copies} copies");
    }
}
