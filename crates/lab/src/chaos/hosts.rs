//! Faults of hosts: dead, frozen, slow, cut off, full.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{Scenario, Seen, Stage, Watch};
use crate::client::Client;
use crate::fleet::{Crowd, File, Fleet};
use crate::network::Way;
use crate::units::Rate;

/// Two KiB a second.
const TRICKLE: Rate = Rate(16_384.0);
/// How long a host is away that comes back.
const ABSENCE: Duration = Duration::from_secs(10);

pub(super) const SCENARIOS: [Scenario; 17] = [
    Scenario {
        name: "calm",
        about: "Six hosts want a cold file at once, and nothing happens to them.",
        run: |stage| {
            let mut fleet = stage.fleet(6)?;
            let file = fleet.publish(stage.size);
            let watch = Watch::begin(&fleet)?;
            let outcomes = fleet.clients(0..6, &file).outcomes()?;
            Ok(watch.end(&fleet, &file, outcomes)?.allow_copies(1.05))
        },
    },
    Scenario {
        name: "holder-trickles",
        about: "The only host that holds the file sends 2 KiB/s. Five others want the file.",
        run: |stage| {
            let mut fleet = stage.fleet(6)?;
            let file = fleet.publish(stage.size);
            fleet.warm([0], &file)?;
            fleet.hosts[0].place.shape(Way::Up, TRICKLE)?;
            let watch = Watch::begin(&fleet)?;
            let outcomes = fleet.clients(1..6, &file).outcomes()?;
            watch.end(&fleet, &file, outcomes)
        },
    },
    Scenario {
        name: "holder-at-1-percent",
        about: "The only host that holds the file has one percent of a usual uplink. Five others want the file.",
        run: |stage| {
            let mut fleet = stage.fleet(6)?;
            let file = fleet.publish(stage.size);
            fleet.warm([0], &file)?;
            fleet.hosts[0].place.shape(Way::Up, Rate(stage.link.0 / 100.0))?;
            let watch = Watch::begin(&fleet)?;
            let outcomes = fleet.clients(1..6, &file).outcomes()?;
            watch.end(&fleet, &file, outcomes)
        },
    },
    Scenario {
        name: "reader-trickles",
        about: "The host that reads the source sends only 2 KiB/s to the others from 30 % on.",
        run: |stage| reader_fault(stage, |fleet, reader| fleet.hosts[reader].place.shape(Way::Up, TRICKLE)),
    },
    Scenario {
        name: "reader-slow-link",
        about: "The first host has a tenth of a link and reads the source when five others come.",
        run: |stage| {
            let mut fleet = stage.fleet(6)?;
            let slow = Rate(stage.link.0 / 10.0);
            fleet.hosts[0].place.shape(Way::Up, slow)?;
            fleet.hosts[0].place.shape(Way::Down, slow)?;
            let file = fleet.publish(stage.size);
            let watch = Watch::begin(&fleet)?;
            let first = fleet.client(0, &file);
            sleep(Duration::from_secs(1));
            let outcomes = fleet.clients(1..6, &file).outcomes()?;
            let seen = watch.end(&fleet, &file, outcomes)?;
            first.leave();
            first.outcome()?;
            Ok(seen)
        },
    },
    Scenario {
        name: "reader-frozen",
        about: "The host that reads the source is stopped (SIGSTOP) at 30 %.",
        run: |stage| reader_fault(stage, |fleet, reader| fleet.hosts[reader].freeze()),
    },
    Scenario {
        name: "reader-killed",
        about: "The host that reads the source is killed at 30 %.",
        run: |stage| reader_fault(stage, |fleet, reader| fleet.hosts[reader].kill()),
    },
    Scenario {
        name: "reader-cut-off",
        about: "The host that reads the source loses its network at 30 %.",
        run: |stage| reader_fault(stage, |fleet, reader| fleet.hosts[reader].place.partition()),
    },
    Scenario {
        name: "cut-off-for-10-s",
        about: "A host that follows others loses its network for ten seconds: its client gets the rest afterwards.",
        run: |stage| {
            let mut fleet = stage.fleet(6)?;
            let file = fleet.publish(stage.size);
            let watch = Watch::begin(&fleet)?;
            let crowd = fleet.clients(0..6, &file);
            crowd.wait_for_any(0.3);
            let reader = fleet.reader(&file)?;
            let follower = &fleet.hosts[(reader + 1) % 6].place;
            follower.partition()?;
            sleep(ABSENCE);
            follower.heal()?;
            let outcomes = crowd.outcomes()?;
            Ok(watch.end(&fleet, &file, outcomes)?.allow_gap(ABSENCE + stage.usual_gap()))
        },
    },
    Scenario {
        name: "frozen-for-10-s",
        about: "A host that follows others is stopped for ten seconds and goes on: its client gets the rest afterwards.",
        run: |stage| {
            let mut fleet = stage.fleet(6)?;
            let file = fleet.publish(stage.size);
            let watch = Watch::begin(&fleet)?;
            let crowd = fleet.clients(0..6, &file);
            crowd.wait_for_any(0.3);
            let reader = fleet.reader(&file)?;
            let follower = &fleet.hosts[(reader + 1) % 6];
            follower.freeze()?;
            sleep(ABSENCE);
            follower.thaw()?;
            let outcomes = crowd.outcomes()?;
            Ok(watch.end(&fleet, &file, outcomes)?.allow_gap(ABSENCE + stage.usual_gap()))
        },
    },
    Scenario {
        name: "holders-cut-off",
        about: "Three hosts hold the file and have just lost their network. Three others want the file.",
        run: |stage| {
            let mut fleet = stage.fleet(6)?;
            let file = fleet.publish(stage.size);
            fleet.warm(0..3, &file)?;
            for host in &fleet.hosts[..3] {
                host.place.partition()?;
            }
            let watch = Watch::begin(&fleet)?;
            let outcomes = fleet.clients(3..6, &file).outcomes()?;
            watch.end(&fleet, &file, outcomes)
        },
    },
    Scenario {
        name: "slow-children",
        about: "128 connections to the only holder ask for pieces and do not read. Three hosts want the file.",
        run: slow_children,
    },
    Scenario {
        name: "range-not-held",
        about: "The only parent holds the first part of the file. Another host wants the last MiB.",
        run: |stage| {
            let mut fleet = stage.fleet(2)?;
            let file = fleet.publish(stage.size);
            let first = fleet.client(0, &file);
            while first.bytes() < stage.size / 4 && !first.is_done() {
                sleep(Duration::from_millis(10));
            }
            let watch = Watch::begin(&fleet)?;
            let mut request = fleet.request(&file, true);
            request.range = Some((stage.size - (1 << 20), stage.size));
            let outcome = Client::start(&fleet.hosts[1].place, request).outcome()?;
            let seen = watch.end(&fleet, &file, vec![(1, outcome)])?;
            first.leave();
            first.outcome()?;
            Ok(seen.allow_gap(Duration::from_secs(1)))
        },
    },
    Scenario {
        name: "better-holders-come",
        about: "A host pulls from one with a tenth of an uplink. Three hosts that hold the file come back: it must change over.",
        run: |stage| {
            let mut fleet = stage.fleet(5)?;
            let file = fleet.publish(stage.size);
            fleet.warm(0..4, &file)?;
            for host in &mut fleet.hosts[1..4] {
                host.stop()?;
            }
            fleet.hosts[0].place.shape(Way::Up, Rate(stage.link.0 / 10.0))?;
            let watch = Watch::begin(&fleet)?;
            let crowd = fleet.clients([4], &file);
            sleep(Duration::from_secs(3));
            for n in 1..4 {
                fleet.start_host(n)?;
            }
            let outcomes = crowd.outcomes()?;
            let mut seen = watch.end(&fleet, &file, outcomes)?;
            // Three seconds alone with the slow one, then the link's rate, with time to notice.
            let least = 3.0 + stage.seconds(1.0) + 5.0;
            for (_, outcome) in &mut seen.outcomes {
                if outcome.error.is_none() && outcome.finished.as_secs_f64() > least {
                    outcome.error = Some(format!("took {:.1} s", outcome.finished.as_secs_f64()));
                }
            }
            Ok(seen)
        },
    },
    Scenario {
        name: "stale-holders",
        about: "Four of five hosts that held the file have evicted it. Another one wants it: the fifth gives it.",
        run: stale_holders,
    },
    Scenario {
        name: "network-comes-late",
        about: "A host's daemon starts before its network is up. Once it is, it must take part.",
        run: |stage| {
            let mut fleet = Fleet::build(stage.bench, &stage.plan(2))?;
            fleet.start_host(0)?;
            fleet.hosts[1].place.interface(false)?;
            // Without `host.ip` the daemon finds its address by itself.
            fleet.hosts[1].set("host", json!({ "hostname": "h1" }));
            fleet.hosts[1].set("scheduler.announceInterval", "2s");
            fleet.start_host(1)?;
            sleep(Duration::from_secs(1));
            fleet.hosts[1].place.interface(true)?;
            fleet.settle(2)?;
            let file = fleet.publish(stage.size);
            let watch = Watch::begin(&fleet)?;
            fleet.warm([1], &file)?;
            let outcomes = fleet.clients([0], &file).outcomes()?;
            Ok(watch.end(&fleet, &file, outcomes)?.allow_copies(1.05))
        },
    },
    Scenario {
        name: "disk-full",
        about: "One of six hosts has a disk for a third of the file. All six want it.",
        run: |stage| {
            let mut fleet = Fleet::build(stage.bench, &stage.plan(6))?;
            fleet.hosts[0].small_disk(stage.size / 3)?;
            for n in 0..6 {
                fleet.start_host(n)?;
            }
            fleet.settle(6)?;
            let file = fleet.publish(stage.size);
            let watch = Watch::begin(&fleet)?;
            let outcomes = fleet.clients(0..6, &file).outcomes()?;
            // The host without room has to read for itself.
            Ok(watch.end(&fleet, &file, outcomes)?.allow_copies(2.0))
        },
    },
];

/// Six hosts want a file; at 30 % something happens to the host that reads the source. Its own client is not judged.
fn reader_fault(stage: &Stage<'_>, fault: impl FnOnce(&mut Fleet, usize) -> Result<()>) -> Result<Seen> {
    let mut fleet = stage.fleet(6)?;
    let file = fleet.publish(stage.size);
    let watch = Watch::begin(&fleet)?;
    let mut crowd = fleet.clients(0..6, &file);
    let (reader, client) = wait_for_reader(&fleet, &file, &mut crowd)?;
    fault(&mut fleet, reader)?;
    let outcomes = crowd.outcomes()?;
    let seen = watch.end(&fleet, &file, outcomes)?;
    client.leave();
    client.outcome()?;
    Ok(seen)
}

/// Waits until somebody has 30 % of the file, and takes the host that reads the source out of the crowd.
pub(super) fn wait_for_reader(fleet: &Fleet, file: &File, crowd: &mut Crowd) -> Result<(usize, Client)> {
    crowd.wait_for_any(0.3);
    let reader = fleet.reader(file)?;
    let client = crowd.remove(reader).context("the reader has no client")?;
    Ok((reader, client))
}

fn stale_holders(stage: &Stage<'_>) -> Result<Seen> {
    let mut plan = stage.plan(6);
    plan.config.push(("gc.interval", json!("1s")));
    let mut fleet = Fleet::build(stage.bench, &plan)?;
    for host in &mut fleet.hosts[1..5] {
        // Room for one file, not for two.
        host.set("gc.policy.diskThreshold", stage.size * 3 / 2);
    }
    for n in 0..6 {
        fleet.start_host(n)?;
    }
    fleet.settle(6)?;
    let file = fleet.publish(stage.size);
    let other = fleet.publish(stage.size);
    fleet.clients(0..5, &file).outcomes()?;
    fleet.clients(1..5, &other).outcomes()?;
    sleep(Duration::from_secs(3));
    let watch = Watch::begin(&fleet)?;
    let outcomes = fleet.clients([5], &file).outcomes()?;
    Ok(watch.end(&fleet, &file, outcomes)?.allow_copies(0.1))
}

fn slow_children(stage: &Stage<'_>) -> Result<Seen> {
    let mut fleet = stage.fleet(5)?;
    let file = fleet.publish(stage.size);
    let held = fleet.client(0, &file).outcome()?;
    let task = held.task.context("the proxy names no task")?;
    let holder = std::net::SocketAddr::new(fleet.hosts[0].place.ip.into(), 4005);
    let connections = fleet.hosts[4].place.run(|| (0..128).map(|_| ask_and_wait(holder, &task)).collect::<Vec<_>>())?;
    sleep(Duration::from_secs(1));
    let watch = Watch::begin(&fleet)?;
    let outcomes = fleet.clients(1..4, &file).outcomes()?;
    let seen = watch.end(&fleet, &file, outcomes)?;
    drop(connections);
    // They may well be refused: what counts is what the others get.
    Ok(seen.allow_copies(0.3))
}

/// Asks a data port for the first piece of a task (a Vortex frame) and reads nothing.
fn ask_and_wait(holder: std::net::SocketAddr, task: &str) -> std::io::Result<std::net::TcpStream> {
    use std::io::Write as _;
    const REQUEST: u8 = 0;
    let mut stream = std::net::TcpStream::connect_timeout(&holder, Duration::from_secs(3))?;
    let mut frame = vec![1, REQUEST];
    frame.extend(68_u32.to_be_bytes());
    frame.extend(task.as_bytes());
    frame.extend(0_u32.to_be_bytes());
    stream.write_all(&frame)?;
    Ok(stream)
}
