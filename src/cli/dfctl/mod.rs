//! `dfctl`: what an operator does with a daemon.
//!
//! [`ca`] makes, shows and hands out the certificate authority of intercepted hosts, [`certs`] makes the certificates of a
//! fleet's members, [`stores`] knows where systems keep
//! the authorities that they trust, [`env`] prints what points the programs of a shell at the proxy, [`explain`] asks the
//! scheduler why a download goes as it goes, [`limit`] shows and sets the daemon's limits of bandwidth, and [`found`] finds
//! the daemon and its certificate.
//!
//! **Keys are written once, for their owner only.** That of the authority of intercepted hosts is never read here.

mod ca;
mod certs;
mod env;
mod explain;
mod found;
mod http;
mod limit;
mod stores;

use std::net::SocketAddr;
use std::path::PathBuf;

/// Operate this host's daemon.
#[derive(Debug, clap::Parser)]
#[command(name = "dfctl", version)]
pub struct Args {
    /// The daemon's data directory [default: /var/lib/damselfly for root, else ~/.local/share/damselfly]
    #[arg(long, global = true, env = "DFDAEMON_DATA_DIR", hide_env_values = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// The daemon's proxy [default: as its addresses.json says, else 127.0.0.1:4001]
    #[arg(long, global = true, env = "DFDAEMON_PROXY_ADDR", hide_env_values = true, value_name = "IP:PORT")]
    pub proxy: Option<SocketAddr>,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// The certificate authority that signs for intercepted hosts
    #[command(subcommand)]
    Ca(ca::Command),
    /// The certificates with which the members of a fleet know each other
    #[command(subcommand)]
    Certs(certs::Command),
    /// Print what makes the programs of a shell use the proxy: eval "$(dfctl env)"
    Env(env::Args),
    /// Say why a download goes as it goes: who has what, from whom, how fast, and who waits for what
    Explain(explain::Args),
    /// Show the daemon's limits of bandwidth, or set one: dfctl limit download 50MiB
    Limit(limit::Args),
}

/// Does what the arguments say.
///
/// # Errors
/// A [`damselfly_runtime::UsageError`] where the arguments are wrong; anything else that could not be done.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let daemon = found::Daemon::new(args.data_dir.clone(), args.proxy);
    match &args.command {
        Command::Ca(command) => ca::run(command, &daemon),
        Command::Certs(command) => certs::run(command),
        Command::Env(args) => env::run(args, &daemon),
        Command::Explain(args) => explain::run(args),
        Command::Limit(args) => limit::run(args, &daemon),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn arguments_are_well_formed() {
        Args::command().debug_assert();
    }
}
