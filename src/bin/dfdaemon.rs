//! `dfdaemon`: the per-host daemon.

use std::process::ExitCode;

use anyhow::Context as _;
use damselfly::config::{self, Args, Command};
use damselfly::daemon;
use damselfly_runtime::{Inherited, exit, limits, telemetry};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Threads for file and name look-ups. Each keeps memory of its own: more of them cost more than they bring.
const BLOCKING_THREADS: usize = 32;

fn main() -> ExitCode {
    match exit::arguments::<Args>() {
        Ok(args) => exit::finish(start(&args)),
        Err(code) => code,
    }
}

fn start(args: &Args) -> anyhow::Result<()> {
    let passed = Inherited::from_environment().context("the sockets in LISTEN_FDS")?;
    let loaded = config::load(&args.flags)?;
    if let Some(Command::Config) = args.command {
        print!("{}", loaded.effective.to_yaml()?);
        return Ok(());
    }
    telemetry::init(&loaded.config.log.filter, loaded.config.log.format)?;
    limits::raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(daemon::run(loaded, passed))
}
