//! Deterministic simulations: one scheduler core and many download machines, the real ones, in virtual time.
//!
//! A run is its seed. `DAMSELFLY_SIM_SEED=N` runs one seed, `DAMSELFLY_SIM_RUNS=N` that many more of them. A seed that
//! failed becomes a test with a name.

mod named;
mod slow_origin;
mod stragglers;

use std::time::Duration;

use damselfly_core::Geometry;
use damselfly_sim::{Fault, Outcome, Plan, World, least_time};

const MIB: u64 = 1 << 20;
/// 1 Gbit/s.
const LINK: f64 = 125e6;
/// Children that a host serves at once over all tasks; in one task the scheduler's core bounds them.
const SLOTS: u32 = 50;

fn plan(seed: u64, hosts: usize, pieces: u64) -> Plan {
    Plan {
        seed,
        hosts,
        geometry: Geometry::new(pieces * 4 * MIB - 12345, 4 * MIB).expect("a sensible geometry"),
        slots: SLOTS,
        uploads: 4,
        link: LINK,
        origin: LINK,
        origin_each: f64::INFINITY,
        arrivals: Duration::from_millis(100),
        delay: Duration::from_millis(2),
        odd: 0,
        blind: 0,
        under_way: 0,
        download: Default::default(),
        scheduler: Default::default(),
    }
}

/// Names the seed of a run that panics.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with DAMSELFLY_SIM_SEED={}", self.0);
        }
    }
}

/// The seeds to run: the one that is asked for, or so many from 1 on.
fn seeds(default: u64) -> Vec<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse::<u64>().ok());
    match number("DAMSELFLY_SIM_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("DAMSELFLY_SIM_RUNS").unwrap_or(default)).collect(),
    }
}

/// A cold file of 256 MiB, hosts with 100 Mbit/s, an origin with ten times that.
fn cold(hosts: usize) -> Plan {
    Plan {
        geometry: Geometry::new(256 * MIB - 12345, MIB).expect("a sensible geometry"),
        link: LINK / 10.0,
        origin: LINK,
        ..plan(seeds(1)[0], hosts, 1)
    }
}

fn calm(plan: Plan) -> Outcome {
    let _seed = Seed(plan.seed);
    let least = least_time(&plan);
    let length = plan.geometry.length();
    let hosts = plan.hosts;
    let mut world = World::new(plan);
    let done = world.run(Duration::from_secs(3600));
    let outcome = world.outcome();
    assert!(done, "not done after an hour: {outcome:?}");
    let ratio = outcome.last_finish().as_secs_f64() / least;
    let copies = outcome.origin_bytes as f64 / length as f64;
    println!(
        "{hosts} hosts: last finish {:?}, {ratio:.2} of the least; origin sent {copies:.3} copies",
        outcome.last_finish()
    );
    assert!(copies <= 1.02, "the origin sent {copies} copies");
    assert!(ratio <= 1.15, "{ratio} times the least time");
    outcome
}

#[test]
fn a_hundred_hosts_without_faults_are_fast_and_ask_the_origin_once() {
    let outcome = calm(cold(100));
    assert_eq!(outcome.failures, 0);
}

#[test]
fn a_thousand_hosts_without_faults() {
    calm(cold(1000));
}

#[test]
fn hosts_that_know_nothing_of_the_length_or_hold_an_answer_already() {
    let outcome = calm(Plan { blind: 100, ..cold(100) });
    assert_eq!(outcome.failures, 0);
    let outcome = calm(Plan { blind: 50, under_way: 50, ..cold(100) });
    assert_eq!(outcome.failures, 0);
}

/// Phase one ends here: nothing goes wrong any more.
const HEALED: Duration = Duration::from_secs(15);
/// Phase two: every living host has what it wants this long after.
const PATIENCE: Duration = Duration::from_secs(120);

/// Nobody is without anything on its way for so long then, while complete hosts are idle.
const LIVENESS: Duration = Duration::from_secs(5);

/// Draws what goes wrong, and lets it.
fn stormy(seed: u64, hosts: usize) -> Outcome {
    let _seed = Seed(seed);
    let plan = Plan {
        arrivals: Duration::from_secs(2),
        delay: Duration::from_millis(20),
        odd: 20,
        blind: 30,
        under_way: 20,
        ..plan(seed, hosts, 32)
    };
    let length = plan.geometry.length();
    let mut world = World::new(plan);
    let mut rng = fastrand::Rng::with_seed(!seed);
    let mut faults = Vec::new();
    let some = |rng: &mut fastrand::Rng, share: usize| rng.usize(..=hosts / share);
    for _ in 0..some(&mut rng, 20) {
        world.make_liar(rng.usize(..hosts));
    }
    for _ in 0..some(&mut rng, 10) {
        let host = rng.usize(..hosts);
        faults.push(Fault::Kill { host, loud: rng.bool() });
        if rng.bool() {
            faults.push(Fault::Revive { host });
        }
    }
    for _ in 0..some(&mut rng, 20) {
        faults.push(Fault::Freeze { host: rng.usize(..hosts), time: HEALED.mul_f64(rng.f64() / 3.0) });
    }
    for _ in 0..some(&mut rng, 20) {
        faults.push(Fault::CutOff { host: rng.usize(..hosts), time: HEALED.mul_f64(rng.f64() / 3.0) });
    }
    for _ in 0..rng.u32(..3) {
        faults.push(Fault::KillSourceReader);
    }
    for _ in 0..rng.u32(..2) {
        faults.push(Fault::CutOrigin { time: HEALED.mul_f64(rng.f64() / 5.0) });
    }
    for _ in 0..rng.u32(..2) {
        faults.push(Fault::RestartScheduler { time: HEALED.mul_f64(rng.f64() / 5.0) });
    }
    for _ in 0..rng.u32(..2) {
        faults.push(Fault::Delay { by: Duration::from_millis(300), time: HEALED.mul_f64(rng.f64() / 2.0) });
    }
    let bound = excused(&faults, hosts, 32.0);
    for fault in faults {
        // Most of it happens while the swarm is busy.
        world.fault(HEALED.mul_f64(rng.f64() * rng.f64() * 0.6), fault);
    }
    world.run(HEALED);
    let healed = world.now();
    world.watch_liveness(LIVENESS);
    let done = world.run(HEALED + PATIENCE);
    let outcome = world.outcome();
    assert!(done, "healed at {healed:?}, and still not done at {:?}: {}", world.now(), world.unfinished());
    let copies = outcome.origin_bytes as f64 / length as f64;
    println!("seed {seed}: last {:?}, {copies:.2} copies, {} failures", outcome.last_finish(), outcome.failures);
    assert!(copies <= bound, "the origin sent {copies} copies, and {bound} can be excused");
    outcome
}

/// How often the origin may send the content: about once; once more if some reader of it was lost or frozen, and for each
/// fault that is aimed at it; and where the scheduler was lost, three pieces for each host of the herd that came meanwhile,
/// half of them to compare what hosts say, and a copy for the one that was sent there again.
fn excused(faults: &[Fault], hosts: usize, pieces: f64) -> f64 {
    let each = |fault: &Fault| match fault {
        Fault::KillSourceReader | Fault::CutOrigin { .. } => 1.0,
        Fault::RestartScheduler { .. } => 1.0 + 3.0 * hosts as f64 / pieces,
        Fault::Kill { .. }
        | Fault::Revive { .. }
        | Fault::Freeze { .. }
        | Fault::FreezeScheduler { .. }
        | Fault::Delay { .. }
        | Fault::CutOff { .. }
        | Fault::Slow { .. } => 0.0,
    };
    2.05 + faults.iter().map(each).sum::<f64>()
}

#[test]
fn a_thousand_hosts_with_faults_all_finish() {
    stormy(seeds(1)[0], 1000);
}

#[test]
fn whatever_goes_wrong_nobody_keeps_wrong_bytes_and_all_finish_when_it_is_over() {
    for seed in seeds(8) {
        stormy(seed, 100);
    }
}
