//! `dfget`: downloads one URL through this host's daemon.

use std::process::ExitCode;

use damselfly::cli::dfget::{Args, run};
use damselfly_runtime::exit;

fn main() -> ExitCode {
    let args = match exit::arguments::<Args>() {
        Ok(args) => args,
        Err(code) => return code,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    exit::finish(runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run(args))))
}
