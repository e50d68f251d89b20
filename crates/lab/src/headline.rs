//! The headline: one cold file to N hosts at once, direct and through the daemons, against the time that a link needs
//! for the file. Nobody can be done sooner than that.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::client::Outcome;
use crate::fleet::{Bench, Crowd, File, Fleet, Plan, Reading};
use crate::network::Counter;
use crate::report::{self, Chart, Line, Table};
use crate::units::{Rate, Size};

/// Above this, all links of a run together are more than two processors carry.
const MOST_TOGETHER: f64 = 0.8e9;
/// A run that took more of the machine's processors than this says more about them than about the swarm.
const BUSY: f64 = 0.6;
/// How often links are looked at for a timeline.
const SAMPLE: Duration = Duration::from_millis(250);

#[derive(Args)]
pub(crate) struct Options {
    /// How many hosts, one run each
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8,16,32")]
    hosts: Vec<usize>,
    /// The file
    #[arg(long, default_value = "200MB")]
    size: Size,
    /// A host's link, each way
    #[arg(long, default_value = "200Mbit")]
    link: Rate,
    /// The origin's link, each way
    #[arg(long, default_value = "2000Mbit")]
    origin: Rate,
    /// Divide all links by this [default: as much as keeps N links together below 800 Mbit/s, to the next power of two]
    #[arg(long)]
    scale: Option<f64>,
    /// Run each so often; the run with the median last host is reported
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Leave out the direct downloads
    #[arg(long)]
    no_direct: bool,
    /// Write everything that was measured (per host and moment) to this file, as JSON
    #[arg(long, value_name = "FILE")]
    raw: Option<PathBuf>,
}

/// One run: N clients, one file.
struct Run {
    outcomes: Vec<(usize, Outcome)>,
    reading: Reading,
    samples: Vec<(f64, BTreeMap<String, Counter>)>,
    length: u64,
    /// The time that a host's link needs for the file, in seconds.
    least: f64,
}

impl Run {
    fn measure(fleet: &Fleet, file: &File, link: Rate, start: impl FnOnce() -> Crowd) -> Result<Self> {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let meter = fleet.meter()?;
            let sampler = fleet.sample(scope, SAMPLE, &stop);
            let outcomes = start().outcomes();
            stop.store(true, Ordering::Relaxed);
            let samples = sampler.join().unwrap_or_default();
            let length = file.content.length;
            Ok(Self {
                outcomes: outcomes?,
                reading: meter.read(fleet)?,
                samples,
                length,
                least: link.seconds_for(length),
            })
        })
    }

    /// Times of all clients over the least time, sorted.
    fn ratios(&self) -> Vec<f64> {
        sorted(self.outcomes.iter().map(|(_, outcome)| outcome.finished.as_secs_f64() / self.least))
    }

    fn last(&self) -> f64 {
        self.ratios().last().copied().unwrap_or(f64::NAN)
    }

    fn first_bytes(&self) -> Vec<f64> {
        sorted(self.outcomes.iter().map(|(_, o)| o.first_byte.unwrap_or(o.finished).as_secs_f64()))
    }

    fn uploads(&self) -> Vec<f64> {
        sorted(self.reading.hosts.iter().map(|counter| counter.up as f64 / self.length as f64))
    }

    fn origin_files(&self) -> f64 {
        self.reading.origin.up as f64 / self.length as f64
    }

    fn longest_gap(&self) -> f64 {
        self.outcomes.iter().map(|(_, outcome)| outcome.longest_gap().as_secs_f64()).fold(0.0, f64::max)
    }

    fn bad(&self) -> usize {
        self.outcomes.iter().filter(|(_, outcome)| outcome.failed() || outcome.wrong.is_some()).count()
    }

    fn raw(&self) -> Value {
        let hosts = self.outcomes.iter().map(|(n, o)| {
            json!({
                "host": n, "finished": o.finished.as_secs_f64(), "first_byte": o.first_byte.map(|d| d.as_secs_f64()),
                "gap": o.gap.0.as_secs_f64(), "gap_at": o.gap.1.as_secs_f64(), "error": o.error, "wrong": o.wrong,
                "up": self.reading.hosts[*n].up, "down": self.reading.hosts[*n].down, "task": o.task,
                "progress": o.progress.iter().map(|(at, bytes)| (at.as_secs_f64(), *bytes)).collect::<Vec<_>>(),
            })
        });
        let samples = self.samples.iter().map(|(at, counters)| {
            let links: BTreeMap<_, _> = counters.iter().map(|(name, c)| (name, [c.up, c.down])).collect();
            json!({ "at": at, "links": links })
        });
        json!({
            "least": self.least, "length": self.length, "origin": self.reading.origin.up,
            "cpu": self.reading.cpu, "busy": self.reading.busy, "took": self.reading.took.as_secs_f64(),
            "hosts": hosts.collect::<Vec<_>>(), "samples": samples.collect::<Vec<_>>(),
        })
    }
}

/// What is reported of one N.
struct Row {
    hosts: usize,
    scale: f64,
    direct: Option<Run>,
    through: Run,
}

/// Whether every byte of every run was right.
pub(crate) fn run(bench: &Bench, options: &Options, out: &Path) -> Result<bool> {
    ensure!(options.rounds > 0 && options.hosts.iter().all(|&n| n > 0), "at least one host and one round are needed");
    let mut rows = Vec::new();
    let mut raw = Vec::new();
    for &hosts in &options.hosts {
        let scale = options.scale.unwrap_or_else(|| scale_for(hosts, options.link));
        let link = Rate(options.link.0 / scale);
        let plan = Plan { hosts, schedulers: 1, link, origin: Rate(options.origin.0 / scale), config: Vec::new() };
        let mut direct = Vec::new();
        let mut through = Vec::new();
        for _ in 0..options.rounds {
            let mut fleet = Fleet::start(bench, &plan).with_context(|| format!("no fleet of {hosts} hosts"))?;
            if !options.no_direct {
                let file = fleet.publish(options.size.0);
                direct.push(Run::measure(&fleet, &file, link, || fleet.direct_clients(&file))?);
            }
            let file = fleet.publish(options.size.0);
            let run = Run::measure(&fleet, &file, link, || fleet.clients(0..hosts, &file))?;
            raw.push(
                json!({ "hosts": hosts, "scale": scale, "through": run.raw(), "source": source_reads(&fleet, &file) }),
            );
            through.push(run);
        }
        let row = Row { hosts, scale, direct: median(direct), through: median(through).context("there was a round")? };
        println!("{}", line(&row));
        rows.push(row);
    }
    if let Some(path) = &options.raw {
        fs::write(path, Value::Array(raw).to_string())
            .with_context(|| format!("{} cannot be written", path.display()))?;
    }
    write(options, &rows, out)?;
    Ok(rows.iter().all(|row| row.through.bad() == 0))
}

fn scale_for(hosts: usize, link: Rate) -> f64 {
    let mut scale = 1.0;
    while hosts as f64 * link.0 / scale > MOST_TOGETHER {
        scale *= 2.0;
    }
    scale
}

/// Who read what from the origin.
fn source_reads(fleet: &Fleet, file: &File) -> Value {
    let accesses = fleet.origin.accesses().into_iter().filter(|access| access.name == file.name).collect::<Vec<_>>();
    let first = accesses.first().map(|access| access.at);
    let reads = accesses.iter().map(|access| {
        let after = first.map_or(0.0, |first| (access.at - first).as_secs_f64());
        let host = fleet.host_at(access.from);
        json!({ "after": after, "host": host, "status": access.status, "first": access.first, "asked": access.asked, "sent": access.sent })
    });
    reads.collect()
}

/// The run whose last host is the median of all.
fn median(mut runs: Vec<Run>) -> Option<Run> {
    runs.sort_by(|a, b| a.last().total_cmp(&b.last()));
    let middle = runs.len().checked_sub(1)? / 2;
    Some(runs.swap_remove(middle))
}

fn sorted(figures: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures
}

fn middle(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn line(row: &Row) -> String {
    let through = &row.through;
    let direct = row.direct.as_ref().map_or("-".to_owned(), |run| format!("{:.2}", run.last()));
    format!(
        "{:>3} hosts, links / {}: last {:.2}, median {:.2} (direct {direct}); first byte {:.2} s; origin {:.2} files; \
         uploads {}; longest gap {:.1} s; processors {:.0} % ours, {:.0} % busy; {} bad",
        row.hosts,
        row.scale,
        through.last(),
        middle(&through.ratios()),
        middle(&through.first_bytes()),
        through.origin_files(),
        spread(&through.uploads()),
        through.longest_gap(),
        through.reading.ours() * 100.0,
        through.reading.busy * 100.0,
        through.bad(),
    )
}

fn spread(sorted: &[f64]) -> String {
    let (least, most) = (sorted.first().copied().unwrap_or_default(), sorted.last().copied().unwrap_or_default());
    format!("{least:.2} / {:.2} / {most:.2}", middle(sorted))
}

fn write(options: &Options, rows: &[Row], out: &Path) -> Result<()> {
    let mut table = Table::new([
        "hosts",
        "links divided by",
        "last host",
        "median host",
        "direct: last",
        "direct: median",
        "first byte: median, last (s)",
        "origin sent (files)",
        "uploads: least / median / most (files)",
        "longest gap (s)",
        "processors: ours, of all that was used",
    ]);
    for row in rows {
        let direct =
            |figure: fn(&Run) -> f64| row.direct.as_ref().map_or("-".to_owned(), |run| format!("{:.2}", figure(run)));
        let first_bytes = row.through.first_bytes();
        let (ours, busy) = (row.through.reading.ours(), row.through.reading.busy);
        table.row([
            row.hosts.to_string(),
            row.scale.to_string(),
            format!("**{:.2}**", row.through.last()),
            format!("{:.2}", middle(&row.through.ratios())),
            direct(Run::last),
            direct(|run| middle(&run.ratios())),
            format!("{:.2}, {:.2}", middle(&first_bytes), first_bytes.last().copied().unwrap_or_default()),
            format!("{:.3}", row.through.origin_files()),
            spread(&row.through.uploads()),
            format!("{:.1}", row.through.longest_gap()),
            format!("{:.0} % of {:.0} %{}", ours * 100.0, busy * 100.0, if ours > BUSY { " (the limit)" } else { "" }),
        ]);
    }
    let points = |figure: &dyn Fn(&Row) -> Option<f64>| {
        rows.iter().filter_map(|row| Some((row.hosts as f64, figure(row)?))).collect::<Vec<_>>()
    };
    let chart = Chart {
        title: "Time of the last host over file / link".to_owned(),
        x: "hosts (each step doubles)".to_owned(),
        logarithmic: true,
        values: true,
        lines: vec![
            Line { name: "through Damselfly".to_owned(), points: points(&|row| Some(row.through.last())) },
            Line { name: "direct".to_owned(), points: points(&|row| Some(row.direct.as_ref()?.last())) },
        ],
    };
    let text = format!(
        "# One cold file to all hosts at once\n\n    {}\n\n\
         {} MB, hosts with {} each way, an origin with {}, both divided by the factor in the table so that the processors \
         of one machine carry all hosts. Times are multiples of file / link: nobody can be done before 1.0. Bytes are the \
         interfaces' own counters, headers included. Of {} rounds, the one with the median last host is shown. Where the fleet \
         took more than {:.0} % of the machine's processors, they were the limit, and the figure says little about the swarm.\n\n{table}\n![last host](headline.svg)\n\n![use of the links](links.svg)\n",
        report::command(),
        options.size.0 as f64 / 1e6,
        options.link,
        options.origin,
        options.rounds,
        BUSY * 100.0,
    );
    report::write(out, "headline.md", &text)?;
    report::write(out, "headline.svg", &chart.svg())?;
    let largest = rows.iter().max_by_key(|row| row.hosts);
    largest.map_or(Ok(()), |row| report::write(out, "links.svg", &links(row).svg()))
}

/// How much of all hosts' links was used, moment by moment.
fn links(row: &Row) -> Chart {
    let run = &row.through;
    let link = run.length as f64 / run.least;
    let used = |of: fn(&Counter) -> u64| {
        let points = run.samples.windows(2).map(|pair| {
            let [(before, earlier), (now, later)] = [&pair[0], &pair[1]];
            let sum = |counters: &BTreeMap<String, Counter>| -> u64 {
                counters.iter().filter(|(name, _)| name.starts_with('h')).map(|(_, counter)| of(counter)).sum()
            };
            let bytes = sum(later).saturating_sub(sum(earlier)) as f64;
            (*now, bytes / (now - before) / link / row.hosts as f64)
        });
        points.collect()
    };
    Chart {
        title: format!("Share of the links used, {} hosts", row.hosts),
        x: "seconds".to_owned(),
        logarithmic: false,
        values: false,
        lines: vec![
            Line { name: "downlinks".to_owned(), points: used(|counter| counter.down) },
            Line { name: "uplinks".to_owned(), points: used(|counter| counter.up) },
        ],
    }
}
