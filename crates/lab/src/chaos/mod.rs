//! Chaos: scenarios with names. Each is a fleet, a file, a fault, and a verdict on what the clients saw of it.
//!
//! A scenario says how long a client may be without a byte and how many copies the origin may send; failed requests and
//! wrong bytes are never allowed. Hosts whose own daemon, link or disk is the fault are not judged, unless their client
//! could have been served all the same.

mod hosts;
mod origin;
mod schedulers;

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

use crate::client::Outcome;
use crate::fleet::{Bench, File, Fleet, Meter, Plan};
use crate::report::{self, Table};
use crate::units::{Rate, Size};

/// A client may be without a byte for so long, and the time of one piece.
const GAP: Duration = Duration::from_secs(3);
/// The longest piece of a task that others may share.
const PIECE: u64 = 4 << 20;
/// Copies that the origin may send after the death of a scheduler or a parent.
const COPIES: f64 = 1.3;

#[derive(Args)]
pub(crate) struct Options {
    /// Which scenarios; all where none is named
    names: Vec<String>,
    /// Print the names and what they mean
    #[arg(long)]
    pub(crate) list: bool,
    /// The file
    #[arg(long, default_value = "60MB")]
    size: Size,
    /// A host's link, each way
    #[arg(long, default_value = "50Mbit")]
    link: Rate,
    /// Run each so often
    #[arg(long, default_value_t = 1)]
    rounds: usize,
}

/// One scenario.
pub(crate) struct Scenario {
    name: &'static str,
    about: &'static str,
    run: fn(&Stage<'_>) -> Result<Seen>,
}

/// What a scenario is given.
pub(crate) struct Stage<'a> {
    bench: &'a Bench,
    size: u64,
    link: Rate,
}

impl Stage<'_> {
    /// The usual fleet: an origin with ten times a host's link, one scheduler.
    fn plan(&self, hosts: usize) -> Plan {
        Plan { hosts, schedulers: 1, link: self.link, origin: Rate(self.link.0 * 10.0), config: Vec::new() }
    }

    fn fleet(&self, hosts: usize) -> Result<Fleet> {
        Fleet::start(self.bench, &self.plan(hosts))
    }

    /// The time that a host's link needs for a part of the file, in seconds.
    fn seconds(&self, share: f64) -> f64 {
        self.link.seconds_for((self.size as f64 * share) as u64)
    }

    fn usual_gap(&self) -> Duration {
        GAP + Duration::from_secs_f64(self.link.seconds_for(PIECE))
    }
}

/// What is measured from a moment on.
struct Watch {
    meter: Meter,
    sent: u64,
}

impl Watch {
    fn begin(fleet: &Fleet) -> Result<Self> {
        Ok(Self { meter: fleet.meter()?, sent: fleet.origin.sent() })
    }

    /// What the clients of `file` saw, and what the origin sent meanwhile.
    fn end(self, fleet: &Fleet, file: &File, outcomes: Vec<(usize, Outcome)>) -> Result<Seen> {
        let reading = self.meter.read(fleet)?;
        Ok(Seen {
            outcomes,
            copies: reading.origin.up as f64 / file.content.length as f64,
            handed: (fleet.origin.sent() - self.sent) as f64 / file.content.length as f64,
            gap: None,
            most_copies: COPIES,
            busy: reading.busy,
        })
    }
}

/// What came of a scenario.
pub(crate) struct Seen {
    /// Of the hosts that are judged.
    outcomes: Vec<(usize, Outcome)>,
    /// Copies that went over the origin's link.
    copies: f64,
    /// Copies that the origin handed to its sockets.
    handed: f64,
    /// The longest gap that is allowed; the usual one where nothing is said.
    gap: Option<Duration>,
    most_copies: f64,
    busy: f64,
}

impl Seen {
    fn allow_gap(self, gap: Duration) -> Self {
        Self { gap: Some(gap), ..self }
    }

    fn allow_copies(self, most_copies: f64) -> Self {
        Self { most_copies, ..self }
    }

    fn failed(&self) -> usize {
        self.outcomes.iter().filter(|(_, outcome)| outcome.failed()).count()
    }

    fn wrong(&self) -> usize {
        self.outcomes.iter().filter(|(_, outcome)| outcome.wrong.is_some()).count()
    }

    fn first_byte(&self) -> Duration {
        let waits = self.outcomes.iter().map(|(_, outcome)| outcome.first_byte.unwrap_or(outcome.finished));
        waits.max().unwrap_or_default()
    }

    fn later_gap(&self) -> Duration {
        self.outcomes.iter().map(|(_, outcome)| outcome.gap.0).max().unwrap_or_default()
    }

    fn last(&self) -> Duration {
        self.outcomes.iter().map(|(_, outcome)| outcome.finished).max().unwrap_or_default()
    }

    /// What was not as it should be; nothing where all was.
    fn objections(&self, usual_gap: Duration) -> Vec<String> {
        let gap = self.gap.unwrap_or(usual_gap);
        let mut objections = Vec::new();
        for (host, outcome) in &self.outcomes {
            if let Some(at) = outcome.wrong {
                objections.push(format!("h{host}: wrong byte at {at}"));
            }
            if let (Some(error), false) = (&outcome.error, outcome.left) {
                objections.push(format!("h{host}: {error}"));
            }
        }
        let longest = self.first_byte().max(self.later_gap());
        if longest > gap {
            objections.push(format!("{:.1} s without a byte", longest.as_secs_f64()));
        }
        if self.copies > self.most_copies * 1.05 {
            objections.push(format!("origin sent {:.2} files", self.copies));
        }
        objections
    }
}

fn scenarios() -> impl Iterator<Item = &'static Scenario> {
    hosts::SCENARIOS.iter().chain(&schedulers::SCENARIOS).chain(&origin::SCENARIOS)
}

/// Prints what there is.
pub(crate) fn list() {
    for scenario in scenarios() {
        println!("{:24} {}", scenario.name, scenario.about);
    }
}

/// A row without figures.
fn not_run<const N: usize>(name: &str, error: &anyhow::Error) -> [String; N] {
    let mut cells = [const { String::new() }; N];
    cells[0] = name.to_owned();
    cells[1] = format!("could not be run: {error:#}");
    cells
}

/// Whether every scenario had a good verdict.
pub(crate) fn run(bench: &Bench, options: &Options, out: &Path) -> Result<bool> {
    for name in &options.names {
        ensure!(scenarios().any(|scenario| scenario.name == name), "there is no scenario {name}: see --list");
    }
    let stage = Stage { bench, size: options.size.0, link: options.link };
    let mut table = Table::new([
        "scenario",
        "verdict",
        "requests",
        "failed",
        "wrong",
        "first byte at most (s)",
        "longest gap later (s)",
        "last done (s)",
        "origin sent (files)",
        "processors busy",
    ]);
    let mut abouts = String::new();
    let mut good = true;
    let chosen = scenarios().filter(|s| options.names.is_empty() || options.names.iter().any(|name| name == s.name));
    for scenario in chosen {
        // Writing to a string does not fail.
        let _ = writeln!(abouts, "- **{}**: {}", scenario.name, scenario.about);
        for _ in 0..options.rounds {
            let seen = match (scenario.run)(&stage) {
                Ok(seen) => seen,
                Err(error) => {
                    good = false;
                    println!("{:24} could not be run: {error:#}", scenario.name);
                    table.row(not_run(scenario.name, &error));
                    continue;
                }
            };
            let objections = seen.objections(stage.usual_gap());
            let verdict = if objections.is_empty() { "good".to_owned() } else { objections.join("; ") };
            good &= objections.is_empty();
            println!(
                "{:24} {} requests, first byte {:.1} s, gap {:.1} s, last {:.1} s, origin {:.2} files ({:.2} handed), {:.0} % busy: {verdict}",
                scenario.name,
                seen.outcomes.len(),
                seen.first_byte().as_secs_f64(),
                seen.later_gap().as_secs_f64(),
                seen.last().as_secs_f64(),
                seen.copies,
                seen.handed,
                seen.busy * 100.0,
            );
            table.row([
                scenario.name.to_owned(),
                verdict,
                seen.outcomes.len().to_string(),
                seen.failed().to_string(),
                seen.wrong().to_string(),
                format!("{:.1}", seen.first_byte().as_secs_f64()),
                format!("{:.1}", seen.later_gap().as_secs_f64()),
                format!("{:.1}", seen.last().as_secs_f64()),
                format!("{:.2}", seen.copies),
                format!("{:.0} %", seen.busy * 100.0),
            ]);
        }
    }
    let text = format!(
        "# Chaos\n\n    {}\n\n\
         {} MB, hosts with {} each way, an origin with ten times that. Good is: no failed request, no wrong byte, nobody \
         longer than {} s and a piece's time without a byte while the origin would give, and not more copies from the origin \
         than the scenario allows ({COPIES} after a death, headers not counted). Hosts whose own daemon is the fault are \
         not judged.\n\n{table}\n{abouts}",
        report::command(),
        options.size.0 as f64 / 1e6,
        options.link,
        GAP.as_secs(),
    );
    report::write(out, "chaos.md", &text)?;
    Ok(good)
}
