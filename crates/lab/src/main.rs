//! The laboratory: a fleet of real daemons on one machine, each in a network namespace with a shaped link, an origin
//! and schedulers that fail on command, and clients that check every byte.
//!
//! - [`slot`], [`network`], [`program`]: what is created on the machine, and removed again however the run ends.
//! - [`content`], [`origin`], [`client`]: the bytes, who serves them, who reads and checks them.
//! - [`fleet`]: all of it together, in the words of a scenario.
//! - [`headline`], [`chaos`]: what is run; [`report`]: what is written of it.

mod chaos;
mod client;
mod content;
mod fleet;
mod headline;
mod network;
mod origin;
mod program;
mod report;
mod slot;
mod units;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser, Subcommand};

use crate::fleet::Bench;
use crate::program::Binaries;
use crate::slot::Slot;

/// A fleet in network namespaces with shaped links, faults on command, and its figures.
#[derive(Parser)]
#[command(name = "lab", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

#[derive(Subcommand)]
enum Command {
    /// One cold file to all hosts at once, direct and through the daemons.
    Headline(headline::Options),
    /// Named scenarios with faults, each with a verdict.
    Chaos(chaos::Options),
}

#[derive(Args)]
struct Common {
    /// Where dfdaemon and scheduler are [default: beside this program]
    #[arg(long, global = true, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Where the report is written
    #[arg(long, global = true, value_name = "DIR", default_value = "docs/benchmarks")]
    out: PathBuf,
    /// Where logs and data are kept while it runs [default: a temporary directory]
    #[arg(long, global = true, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Keep logs and data of the last run
    #[arg(long, global = true)]
    keep: bool,
    /// What daemons and schedulers log
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info")]
    log_level: String,
    /// The priority of everything that runs here, from -20 (highest) to 19
    #[arg(long, global = true, default_value_t = 0, allow_negative_numbers = true)]
    nice: i32,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything was as it should be.
fn run(Cli { command, common }: Cli) -> Result<bool> {
    if let Command::Chaos(options) = &command
        && options.list
    {
        chaos::list();
        return Ok(true);
    }
    let has = |program| network::run(program, &["-V"]).is_ok();
    ensure!(
        rustix::process::geteuid().is_root() && has("ip") && has("tc"),
        "the laboratory makes network namespaces, so it must be run as root on a Linux with iproute2 (ip and tc)"
    );
    let binaries = Binaries::find(common.bin_dir)?;
    if common.nice != 0 {
        rustix::process::setpriority_process(None, common.nice).context("the priority cannot be set")?;
    }
    let slot = Slot::take(common.work, common.keep)?;
    let bench = Bench { slot, binaries, log_level: common.log_level };
    match command {
        Command::Headline(options) => headline::run(&bench, &options, &common.out),
        Command::Chaos(options) => chaos::run(&bench, &options, &common.out),
    }
}
