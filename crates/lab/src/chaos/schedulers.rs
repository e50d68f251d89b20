//! Faults of schedulers: restarted, dead, frozen, out of reach.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use super::{Scenario, Seen, Stage, Watch};
use crate::fleet::Fleet;

/// Downloads with three schedulers, of which one dies.
const MANY: usize = 48;

pub(super) const SCENARIOS: [Scenario; 8] = [
    Scenario {
        name: "scheduler-restarted-idle",
        about: "The scheduler is killed and started again while nobody downloads. A second later six hosts want a cold file.",
        run: |stage| {
            let mut fleet = stage.fleet(6)?;
            fleet.schedulers[0].kill()?;
            sleep(Duration::from_millis(500));
            fleet.start_scheduler(0)?;
            sleep(Duration::from_secs(1));
            let file = fleet.publish(stage.size);
            let watch = Watch::begin(&fleet)?;
            let outcomes = fleet.clients(0..6, &file).outcomes()?;
            watch.end(&fleet, &file, outcomes)
        },
    },
    Scenario {
        name: "scheduler-restarted-held",
        about: "Three hosts hold the file; the scheduler is killed and started again. Three seconds later three others want the file.",
        run: |stage| {
            let mut fleet = stage.fleet(6)?;
            let file = fleet.publish(stage.size);
            fleet.clients(0..3, &file).outcomes()?;
            fleet.schedulers[0].kill()?;
            fleet.start_scheduler(0)?;
            sleep(Duration::from_secs(3));
            let watch = Watch::begin(&fleet)?;
            let outcomes = fleet.clients(3..6, &file).outcomes()?;
            Ok(watch.end(&fleet, &file, outcomes)?.allow_copies(0.3))
        },
    },
    Scenario {
        name: "scheduler-killed",
        about: "The scheduler is killed when six hosts have 30 % of the file, and stays away.",
        run: |stage| midway(stage, |fleet| fleet.schedulers[0].kill()),
    },
    Scenario {
        name: "scheduler-restarted",
        about: "The scheduler is killed when six hosts have 30 % of the file, and starts again at once.",
        run: |stage| {
            midway(stage, |fleet| {
                fleet.schedulers[0].kill()?;
                fleet.start_scheduler(0)
            })
        },
    },
    Scenario {
        name: "scheduler-out-of-reach",
        about: "Packets to and from the scheduler are lost from 30 % on.",
        run: |stage| midway(stage, |fleet| fleet.schedulers[0].place.partition()),
    },
    Scenario {
        name: "scheduler-frozen",
        about: "The scheduler is stopped (SIGSTOP) while nobody downloads. Six hosts want a cold file: each may read for itself.",
        run: |stage| {
            let mut fleet = stage.fleet(6)?;
            fleet.schedulers[0].freeze()?;
            let file = fleet.publish(stage.size);
            let watch = Watch::begin(&fleet)?;
            let outcomes = fleet.clients(0..6, &file).outcomes()?;
            Ok(watch.end(&fleet, &file, outcomes)?.allow_copies(6.0))
        },
    },
    Scenario {
        name: "scheduler-gone",
        about: "The scheduler refuses connections. One host wants a cold file, and another: the second must not wait again.",
        run: |stage| {
            let mut fleet = stage.fleet(1)?;
            fleet.schedulers[0].kill()?;
            sleep(Duration::from_secs(1));
            let first = fleet.publish(stage.size);
            let second = fleet.publish(stage.size);
            fleet.clients([0], &first).outcomes()?;
            let watch = Watch::begin(&fleet)?;
            let outcomes = fleet.clients([0], &second).outcomes()?;
            Ok(watch.end(&fleet, &second, outcomes)?.allow_gap(Duration::from_millis(500)).allow_copies(1.05))
        },
    },
    Scenario {
        name: "one-of-three-schedulers",
        about: "Six hosts, three schedulers, 48 downloads of 16 files; one scheduler is killed in the middle.",
        run: one_of_three,
    },
];

/// Six hosts want a file; when all have 30 % of it, something happens.
fn midway(stage: &Stage<'_>, fault: impl FnOnce(&mut Fleet) -> Result<()>) -> Result<Seen> {
    let mut fleet = stage.fleet(6)?;
    let file = fleet.publish(stage.size);
    let watch = Watch::begin(&fleet)?;
    let crowd = fleet.clients(0..6, &file);
    crowd.wait_for_share(0.3);
    fault(&mut fleet)?;
    let outcomes = crowd.outcomes()?;
    watch.end(&fleet, &file, outcomes)
}

fn one_of_three(stage: &Stage<'_>) -> Result<Seen> {
    let mut plan = stage.plan(6);
    plan.schedulers = 3;
    let mut fleet = Fleet::start(stage.bench, &plan)?;
    // Together they are one file of the usual size, three times over for each host.
    let files: Vec<_> = (0..MANY / 3).map(|_| fleet.publish((stage.size / 16).max(12 << 20))).collect();
    let watch = Watch::begin(&fleet)?;
    let mut outcomes = Vec::new();
    for (round, files) in files.chunks(4).enumerate() {
        let mut crowds =
            files.iter().enumerate().map(|(n, file)| fleet.clients([n % 6, (n + 2) % 6, (n + 3) % 6], file));
        let mut crowd = crowds.next().expect("a chunk is not empty");
        crowds.for_each(|more| crowd.add(more));
        if round == 1 {
            crowd.wait_for_any(0.5);
            fleet.schedulers[1].kill()?;
        }
        outcomes.extend(crowd.outcomes()?);
    }
    let mut seen = watch.end(&fleet, &files[0], outcomes)?;
    seen.copies /= files.len() as f64;
    seen.handed /= files.len() as f64;
    Ok(seen)
}
