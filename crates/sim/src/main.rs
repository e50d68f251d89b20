//! `damselfly-sim`: one cold file to many hosts at once, in virtual time, and what came of it.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use damselfly_core::{Geometry, short_piece_length};
use damselfly_sim::{Outcome, Plan, World, least_time};

const USAGE: &str = "\
Usage: damselfly-sim [--OPTION VALUE]...

  --hosts N          how many hosts pull the file at once (100)
  --size SIZE        how long it is (200MiB)
  --piece SIZE       how long a piece is (as the daemon cuts a URL's content)
  --link RATE        each host's link, each way (100Mbps)
  --origin RATE      the origin's link (1Gbps)
  --seed N           where every choice comes from (1)
  --uploads N        pieces that a host sends at a time (4)
  --turns N          pieces that a host takes at a time (as the daemon does)
  --urgent N         one in so many pieces may be what a reader waits for (as the daemon does)
  --parents N        parents that a host has at most (as the scheduler does)
  --leases N         hosts that read the source at a time at most (as the scheduler does)
  --arrivals TIME    all begin within this time (100ms)
  --delay TIME       the longest that a message takes (2ms)
  --blind PERCENT    hosts that do not know how long the file is (0)
  --json yes         figures as one line of JSON
";

struct Options {
    plan: Plan,
    json: bool,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(why) => {
            eprintln!("damselfly-sim: {why}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let least = least_time(&options.plan);
    let begun = Instant::now();
    let mut world = World::new(options.plan);
    let done = world.run(Duration::from_secs(24 * 3600));
    let took = begun.elapsed();
    print(world.plan(), &world.outcome(), least, took, options.json);
    if done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut plan = Plan {
        seed: 1,
        hosts: 100,
        geometry: Geometry::new(0, 1).map_err(|error| error.to_string())?,
        slots: 128,
        uploads: 4,
        link: 100e6 / 8.0,
        origin: 1e9 / 8.0,
        origin_each: f64::INFINITY,
        arrivals: Duration::from_millis(100),
        delay: Duration::from_millis(2),
        odd: 0,
        blind: 0,
        under_way: 0,
        download: Default::default(),
        scheduler: Default::default(),
    };
    let (mut size, mut piece, mut json) = (200 << 20, None, false);
    while let Some(name) = args.next() {
        if name == "--help" {
            return Err("these are its options".into());
        }
        let value = args.next().ok_or(format!("{name} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{name}: {value} is not a number"));
        let scaled = |units: &[(&str, f64)]| {
            let split = value.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(value.len());
            let (digits, unit) = value.split_at(split);
            let scale = units.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale);
            match (digits.parse::<f64>(), scale) {
                (Ok(number), Some(scale)) => Ok(number * scale),
                _ => Err(format!("{name}: {value} is not a number with one of the units {units:?}")),
            }
        };
        let bytes = || scaled(&[("", 1.0), ("KiB", 1024.0), ("MiB", 1_048_576.0), ("GiB", 1_073_741_824.0)]);
        let rate = || scaled(&[("Kbps", 125.0), ("Mbps", 125e3), ("Gbps", 125e6)]);
        let time = || scaled(&[("ms", 0.001), ("s", 1.0)]).map(Duration::from_secs_f64);
        match name.as_str() {
            "--hosts" => plan.hosts = number()?.max(1) as usize,
            "--size" => size = bytes()? as u64,
            "--piece" => piece = Some(bytes()? as u64),
            "--link" => plan.link = rate()?,
            "--origin" => plan.origin = rate()?,
            "--seed" => plan.seed = number()?,
            "--uploads" => plan.uploads = number()? as u32,
            "--turns" => plan.download.turns_at_once = number()? as u32,
            "--urgent" => plan.download.urgent_share = number()? as u32,
            "--parents" => plan.scheduler.max_parents = number()? as usize,
            "--leases" => plan.scheduler.max_leases = number()? as usize,
            "--arrivals" => plan.arrivals = time()?,
            "--delay" => plan.delay = time()?,
            "--blind" => plan.blind = number()? as u32,
            "--json" => json = value == "yes",
            _ => return Err(format!("there is no option {name}")),
        }
    }
    let piece = piece.unwrap_or_else(|| short_piece_length(size));
    plan.geometry = Geometry::new(size, piece).map_err(|error| error.to_string())?;
    Ok(Options { plan, json })
}

fn print(plan: &Plan, outcome: &Outcome, least: f64, took: Duration, json: bool) {
    let size = plan.geometry.length().max(1) as f64;
    let middle = |values: &[Duration]| values.get(values.len() / 2).copied().unwrap_or_default().as_secs_f64();
    let last = |values: &[Duration]| values.last().copied().unwrap_or_default().as_secs_f64();
    let upload = |at: usize| outcome.uploads.get(at).copied().unwrap_or_default() as f64 / size;
    let most = outcome.uploads.len().saturating_sub(1);
    let (makespan, origin) = (last(&outcome.finished), outcome.origin_bytes as f64 / size);
    let decided = outcome.decisions as f64 / took.as_secs_f64().max(1e-9);
    if json {
        return println!(
            "{{\"hosts\":{},\"finished\":{},\"least\":{least:.3},\"makespan\":{makespan:.3},\"ratio\":{:.4},\"median\":{:.4},\
             \"firstPieceMedian\":{:.3},\"longestGap\":{:.3},\"originFiles\":{origin:.4},\"uploads\":[{:.3},{:.3},{:.3}],\
             \"decisions\":{},\"events\":{},\"seconds\":{:.2}}}",
            plan.hosts,
            outcome.finished.len(),
            makespan / least,
            middle(&outcome.finished) / least,
            middle(&outcome.first_pieces),
            last(&outcome.gaps),
            upload(0),
            upload(most / 2),
            upload(most),
            outcome.decisions,
            outcome.events,
            took.as_secs_f64(),
        );
    }
    println!("{} of {} hosts have all of it", outcome.finished.len(), plan.hosts);
    println!("last host      {makespan:>8.2} s  {:.3} times the least time of {least:.2} s", makespan / least);
    println!("median host    {:>8.2} s  {:.3}", middle(&outcome.finished), middle(&outcome.finished) / least);
    println!(
        "first piece    {:>8.2} s  median, {:.2} s the last",
        middle(&outcome.first_pieces),
        last(&outcome.first_pieces)
    );
    println!("longest wait   {:>8.2} s  of a reader for its next piece", last(&outcome.gaps));
    println!("origin         {origin:>8.3} files, {} leases", outcome.grants);
    println!(
        "uploads        {:>8.2} files the least, {:.2} the median, {:.2} the most",
        upload(0),
        upload(most / 2),
        upload(most)
    );
    println!(
        "took           {:>8.1} s, {} events; {} decisions of the scheduler, {decided:.0} a second",
        took.as_secs_f64(),
        outcome.events,
        outcome.decisions
    );
}
