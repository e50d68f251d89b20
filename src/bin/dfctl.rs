//! `dfctl`: operates this host's daemon.

use std::process::ExitCode;

use damselfly::cli::dfctl::{Args, run};
use damselfly_runtime::exit;

fn main() -> ExitCode {
    match exit::arguments::<Args>() {
        Ok(args) => exit::finish(run(&args)),
        Err(code) => code,
    }
}
