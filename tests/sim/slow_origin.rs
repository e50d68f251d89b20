//! The source gives next to nothing: all read it together, and nobody reads it for itself.

use std::time::Duration;

use damselfly_core::Geometry;

use super::{LINK, MIB, Seed, plan};
use damselfly_sim::{Plan, World};

/// 50 Mbit/s.
const USUAL: f64 = LINK / 20.0;
/// 100 KiB/s.
const SLOW: f64 = 102_400.0;
const SEEDS: u64 = 6;

/// Six hosts with links of 50 Mbit/s.
fn six(seed: u64, length: u64, origin: f64, origin_each: f64) -> Plan {
    let geometry = Geometry::new(length, MIB).expect("a sensible geometry");
    Plan { geometry, link: USUAL, origin, origin_each, ..plan(seed, 6, 1) }
}

/// Runs until all are done; says how often the origin sent the content, and in how much of the time that one stream needs
/// for it.
fn judge(plan: Plan) -> (f64, f64) {
    let _seed = Seed(plan.seed);
    let length = plan.geometry.length() as f64;
    let alone = length / plan.origin_each.min(plan.origin);
    let mut world = World::new(plan);
    let done = world.run(Duration::from_secs(3600));
    assert!(done, "not done after an hour: {}", world.unfinished());
    let outcome = world.outcome();
    let (copies, share) = (outcome.origin_bytes as f64 / length, outcome.last_finish().as_secs_f64() / alone);
    println!("{copies:.2} copies, last {:?}, {share:.2} of alone, waits {:?}", outcome.last_finish(), outcome.gaps);
    (copies, share)
}

/// What it gives, it gives once: all have it when one would have it alone.
#[test]
fn an_origin_that_gives_little_altogether_gives_it_once() {
    for seed in 1..=SEEDS {
        let (copies, share) = judge(six(seed, 4_000_000, SLOW, f64::INFINITY));
        assert!(copies <= 1.02, "the origin sent {copies} copies");
        assert!(share <= 1.05, "it took {share} times what one host alone needs");
    }
}

/// Six streams bring six times what one does, of different pieces.
#[test]
fn an_origin_that_gives_each_stream_little_is_read_by_all_together() {
    for seed in 1..=SEEDS {
        let (copies, share) = judge(six(seed, 40 * MIB, USUAL * 10.0, SLOW));
        assert!(copies <= 1.02, "the origin sent {copies} copies");
        assert!(share <= 0.27, "it took {share} of what one host alone needs");
    }
}
