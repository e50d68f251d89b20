//! `dfctl limit`: the daemon's limits of bandwidth, shown and set by its socket.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use damselfly_runtime::UsageError;

use super::found::Daemon;
use super::http::{self, Answer};
use crate::config::Size;
use crate::limit::Class;
use crate::proxy::{LIMITS_PATH, PAGE_HOST, ShownLimit};

/// What to show or set.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which traffic: download, back-to-source, upload or pass-through; none: show all
    #[arg(value_name = "CLASS")]
    class: Option<Class>,
    /// How many bytes a second: a size such as 50MiB, or off. It holds until the daemon reads its configuration again
    #[arg(value_name = "RATE", requires = "class", value_parser = rate)]
    rate: Option<u64>,
    /// Set the limit of each task, or of each request that is passed on, instead of the whole host's
    #[arg(long, requires = "rate")]
    per_task: bool,
    /// The daemon's Unix socket [default: as its addresses.json says, else dfdaemon.sock in its data directory]
    #[arg(short = 'e', long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// How to print it
    #[arg(short, long, default_value = "text")]
    output: Output,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// One JSON document
    Json,
}

/// A rate in bytes a second; 0 for none.
fn rate(text: &str) -> Result<u64, String> {
    match text {
        "off" | "none" => Ok(0),
        text => text.trim_end_matches("/s").parse::<Size>().map(|size| size.0),
    }
}

pub(super) fn run(args: &Args, daemon: &Daemon) -> anyhow::Result<()> {
    let sockets = args.socket.as_ref().map_or_else(|| daemon.sockets(), |path| vec![path.clone()]);
    let socket = sockets.iter().find(|path| path.exists()).or(sockets.first()).context("no socket is known")?;
    let answer = match (args.class, args.rate) {
        (Some(class), Some(rate)) => {
            let name = if args.per_task { "perTask" } else { "total" };
            ask(socket, "PUT", &format!("/{}?{name}={rate}", class.name()))?
        }
        _ => ask(socket, "GET", "")?,
    };
    let mut shown: Vec<ShownLimit> = serde_json::from_str(&answer).context("the daemon's answer")?;
    if let Some(class) = args.class {
        shown.retain(|shown| shown.class == class.name());
    }
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&shown)?),
        Output::Text => print!("{}", table(&shown)),
    }
    Ok(())
}

fn ask(socket: &Path, method: &str, rest: &str) -> anyhow::Result<String> {
    let answer = http::ask_socket(socket, method, PAGE_HOST, &format!("http://{PAGE_HOST}{LIMITS_PATH}{rest}"))?;
    let why = said(&answer);
    match answer.status.split(' ').nth(1) {
        Some("200") => Ok(answer.body),
        Some("400") => Err(UsageError::new(why).into()),
        _ => bail!("the daemon at {} says: {why}", socket.display()),
    }
}

/// What a refusal says.
fn said(answer: &Answer) -> String {
    let text = answer.body.trim();
    if text.is_empty() { answer.status.clone() } else { text.to_owned() }
}

fn table(shown: &[ShownLimit]) -> String {
    let rate =
        |bytes: Option<u64>, none: &str| bytes.map_or_else(|| none.to_owned(), |bytes| format!("{}/s", human(bytes)));
    let mut out = format!("{:<16}{:>14}{:>14}{:>14}{:>9}\n", "CLASS", "LIMIT", "PER TASK", "NOW", "WAITING");
    for ShownLimit { class, total, per_task, rate: now, waiting } in shown {
        let (total, per_task, now) = (rate(*total, "off"), rate(*per_task, "off"), rate(*now, "-"));
        out += &format!("{class:<16}{total:>14}{per_task:>14}{now:>14}{waiting:>9}\n");
    }
    out
}

/// Bytes as people read them: a whole number of a unit, or one with a digit behind the point.
fn human(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let exact = [("GB", 1_000_000_000), ("MB", 1_000_000)].into_iter().chain(UNITS);
    if let Some((unit, size)) = exact.clone().find(|(_, size)| bytes >= *size && bytes.is_multiple_of(*size)) {
        return format!("{}{unit}", bytes / size);
    }
    match UNITS.into_iter().find(|(_, size)| bytes >= *size) {
        Some((unit, size)) => format!("{:.1}{unit}", bytes as f64 / size as f64),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_sizes_or_off() {
        for (text, bytes) in [("50MiB", 50 << 20), ("1 GB/s", 1_000_000_000), ("4096", 4096), ("off", 0), ("none", 0)] {
            assert_eq!(rate(text), Ok(bytes), "{text}");
        }
        for bad in ["", "fast", "-1"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_table_has_a_line_for_each_class() {
        let shown =
            |class: &str, total, rate| ShownLimit { class: class.into(), total, per_task: None, rate, waiting: 3 };
        let text = table(&[shown("download", Some(50 << 20), Some(51_234_567)), shown("upload", None, None)]);
        assert_eq!(
            text,
            "CLASS                    LIMIT      PER TASK           NOW  WAITING\n\
             download               50MiB/s         off     48.9MiB/s        3\n\
             upload                     off         off             -        3\n"
                .replace("50MiB/s         off", "50MiB/s           off")
                .replace("    off         off", "    off           off")
        );
        for (bytes, text) in [(0, "0B"), (1_000_000, "1MB"), (16 << 10, "16KiB"), (1_234_567, "1.2MiB")] {
            assert_eq!(human(bytes), text);
        }
    }
}
