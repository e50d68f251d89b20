//! Faults of the origin: refusing, cutting, slow, silent, changed.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::hosts::wait_for_reader;
use super::{Scenario, Seen, Stage, Watch};
use crate::content::Content;
use crate::fleet::Fleet;
use crate::network::Way;
use crate::origin::Mood;
use crate::units::Rate;

/// How long the origin is silent.
const SILENCE: Duration = Duration::from_secs(35);

pub(super) const SCENARIOS: [Scenario; 6] = [
    Scenario {
        name: "parent-dies-origin-503",
        about: "The host that reads the source is killed at 30 % while the origin answers 503 for half a second.",
        run: |stage| {
            let mut fleet = stage.fleet(6)?;
            let file = fleet.publish(stage.size);
            let watch = Watch::begin(&fleet)?;
            let mut crowd = fleet.clients(0..6, &file);
            let (reader, client) = wait_for_reader(&fleet, &file, &mut crowd)?;
            fleet.origin.set(Mood::Refusing(503));
            fleet.hosts[reader].kill()?;
            sleep(Duration::from_millis(500));
            fleet.origin.set(Mood::Serving);
            let outcomes = crowd.outcomes()?;
            let seen = watch.end(&fleet, &file, outcomes)?;
            client.leave();
            client.outcome()?;
            Ok(seen)
        },
    },
    Scenario {
        name: "origin-cuts",
        about: "The origin closes every connection once a second, five times.",
        run: |stage| {
            midway(stage, |fleet| {
                for _ in 0..5 {
                    fleet.origin.cut();
                    sleep(Duration::from_secs(1));
                }
                Ok(())
            })
        },
    },
    Scenario {
        name: "origin-503",
        about: "The origin cuts all connections and answers 503 for two seconds.",
        run: |stage| {
            midway(stage, |fleet| {
                fleet.origin.cut();
                fleet.origin.set(Mood::Refusing(503));
                sleep(Duration::from_secs(2));
                fleet.origin.set(Mood::Serving);
                Ok(())
            })
            .map(|seen| seen.allow_gap(stage.usual_gap() + Duration::from_secs(2)))
        },
    },
    Scenario {
        name: "origin-slow",
        about: "The origin sends 100 KiB/s altogether. Six hosts want a file of 4 MB: one copy, and everybody follows it.",
        run: |stage| {
            let mut plan = stage.plan(6);
            // So small a file is not shared by default.
            plan.config.push(("proxy.p2p.minSize", json!("1MiB")));
            let mut fleet = Fleet::start(stage.bench, &plan)?;
            fleet.origin.place.shape(Way::Up, Rate(819_200.0))?;
            let file = fleet.publish(4_000_000);
            let watch = Watch::begin(&fleet)?;
            let outcomes = fleet.clients(0..6, &file).outcomes()?;
            let seen = watch.end(&fleet, &file, outcomes)?;
            // Who follows the reader sees a piece when it is whole.
            Ok(seen.allow_copies(1.1).allow_gap(Duration::from_secs(50)))
        },
    },
    Scenario {
        name: "origin-silent",
        about: "The origin is silent for 35 s from 30 % on. It still sends one copy.",
        run: |stage| {
            midway(stage, |fleet| {
                fleet.origin.set(Mood::Silent);
                sleep(SILENCE);
                fleet.origin.set(Mood::Serving);
                Ok(())
            })
            .map(|seen| seen.allow_gap(SILENCE + stage.usual_gap()))
        },
    },
    Scenario {
        name: "origin-changed",
        about: "The file changes at the origin at 30 %. Each client gets one version or an error, never a mixture.",
        run: |stage| {
            let mut fleet = stage.fleet(6)?;
            let file = fleet.publish(stage.size);
            let watch = Watch::begin(&fleet)?;
            let changed = Content { version: file.content.version + 1, ..file.content };
            let mut request = fleet.request(&file, true);
            // Who had no byte before the change may get all of the new version.
            request.versions.push(changed);
            let crowd = fleet.clients_with(0..6, &request);
            crowd.wait_for_any(0.3);
            fleet.origin.publish(&file.name, changed);
            fleet.origin.cut();
            let mut outcomes = crowd.outcomes()?;
            // A broken transfer is the right answer here; a client that comes afterwards gets the new version.
            for (_, outcome) in &mut outcomes {
                outcome.error = None;
            }
            let new = crate::fleet::File { content: changed, ..file.clone() };
            outcomes.extend(fleet.clients(0..6, &new).outcomes()?);
            Ok(watch.end(&fleet, &file, outcomes)?.allow_copies(2.3))
        },
    },
];

/// Six hosts want a file; when one has 30 % of it, something happens to the origin.
fn midway(stage: &Stage<'_>, fault: impl FnOnce(&mut Fleet) -> Result<()>) -> Result<Seen> {
    let mut fleet = stage.fleet(6)?;
    let file = fleet.publish(stage.size);
    let watch = Watch::begin(&fleet)?;
    let crowd = fleet.clients(0..6, &file);
    crowd.wait_for_any(0.3);
    fault(&mut fleet)?;
    let outcomes = crowd.outcomes()?;
    watch.end(&fleet, &file, outcomes)
}
