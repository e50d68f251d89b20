//! The binary `scheduler`.

use std::process::ExitCode;

use damselfly_runtime::{exit, telemetry};
use damselfly_scheduler::config::{Args, Command, Config};
use damselfly_scheduler::serve;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match exit::arguments::<Args>() {
        Ok(args) => exit::finish(run(&args)),
        Err(code) => code,
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let config = Config::load(&args.flags)?;
    if args.command == Some(Command::Config) {
        print!("{}", config.to_yaml()?);
        return Ok(());
    }
    telemetry::init(&config.log.level, config.log.format.parse()?)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(serve::serve(config));
    runtime.shutdown_background();
    served
}
