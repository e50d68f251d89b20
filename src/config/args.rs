//! The daemon's arguments and their environment variables.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::file::File;

/// The per-host daemon: an HTTP(S) proxy and registry mirror that gets large downloads from neighbouring hosts.
///
/// With no arguments and no file it starts on this host alone, with a scheduler of its own, and says where its proxy
/// is. Flags win over the environment, the environment over the file, the file over the defaults.
#[derive(Debug, Default, clap::Parser)]
#[command(name = "dfdaemon", version, args_conflicts_with_subcommands = false)]
pub struct Args {
    /// What to set.
    #[command(flatten)]
    pub flags: Flags,
    /// What to do instead of running.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do instead of running.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print the whole effective configuration as YAML, without secrets, and exit
    Config,
}

/// Settings that have a flag.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// Configuration file (YAML); without it /etc/damselfly/dfdaemon.yaml, if there is one
    #[arg(long, global = true, hide_env_values = true, env = "DFDAEMON_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// A scheduler; may be given several times. Without any, the daemon works alone with a scheduler of its own
    #[arg(
        long,
        global = true,
        hide_env_values = true,
        env = "DFDAEMON_SCHEDULER",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    pub scheduler: Vec<String>,

    /// Directory for content, CA, socket and addresses.json [default: /var/lib/damselfly for root, else
    /// ~/.local/share/damselfly]
    #[arg(long, global = true, hide_env_values = true, env = "DFDAEMON_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Where the proxy and registry mirror listens; port 0 lets the system choose
    #[arg(long, global = true, hide_env_values = true, env = "DFDAEMON_PROXY_ADDR", value_name = "IP:PORT")]
    pub proxy_addr: Option<SocketAddr>,

    /// error, warn, info, debug, trace or off, or tracing directives
    #[arg(long, global = true, hide_env_values = true, env = "DFDAEMON_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,

    /// text or json
    #[arg(long, global = true, hide_env_values = true, env = "DFDAEMON_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,

    /// Be a seed peer: asked first to fetch from the source
    #[arg(long, global = true, hide_env_values = true, env = "DFDAEMON_SEED", value_parser = clap::builder::FalseyValueParser::new())]
    pub seed: bool,

    /// Take over from the daemon that runs on this data directory, if there is one: serve in its place at once, and let it
    /// finish what it has in hand
    #[arg(long, global = true, hide_env_values = true, env = "DFDAEMON_TAKE_OVER", value_parser = clap::builder::FalseyValueParser::new())]
    pub take_over: bool,
}

impl Flags {
    /// Puts what is set over the file's values.
    pub fn apply(&self, file: &mut File) {
        // An empty variable is one that is not set.
        let addrs: Vec<String> = self.scheduler.iter().filter(|addr| !addr.is_empty()).cloned().collect();
        if !addrs.is_empty() {
            file.scheduler.addrs = addrs;
        }
        if let Some(dir) = self.data_dir.as_ref().filter(|dir| !dir.as_os_str().is_empty()) {
            file.data_dir = Some(dir.clone());
        }
        if let Some(addr) = self.proxy_addr {
            file.proxy.server.ip = addr.ip();
            file.proxy.server.port = addr.port();
        }
        if let Some(level) = &self.log_level {
            file.log.level.clone_from(level);
        }
        if let Some(format) = &self.log_format {
            file.log.format.clone_from(format);
        }
        file.seed_peer.enable |= self.seed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[test]
    fn arguments_are_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn flags_win_over_the_file_and_leave_the_rest() {
        let mut file = File::default();
        file.scheduler.addrs = vec!["a:1".into()];
        file.log.level = "warn".into();
        let line = ["dfdaemon", "--scheduler", "b:2,c:3", "--proxy-addr", "[::1]:0", "--data-dir", "/d", "config"];
        let args = Args::try_parse_from(line).unwrap();
        assert!(matches!(args.command, Some(Command::Config)));
        args.flags.apply(&mut file);
        assert_eq!(file.scheduler.addrs, ["b:2", "c:3"]);
        assert_eq!((file.proxy.server.ip, file.proxy.server.port), ("::1".parse().unwrap(), 0));
        assert_eq!(file.data_dir, Some("/d".into()));
        assert_eq!(file.log.level, "warn");
        assert!(!file.seed_peer.enable);
    }

    #[test]
    fn flags_may_stand_behind_the_command() {
        let args = Args::try_parse_from(["dfdaemon", "config", "--seed", "--scheduler", "a:1"]).unwrap();
        assert!(args.flags.seed);
        assert_eq!(args.flags.scheduler, ["a:1"]);
    }

    #[test]
    fn every_flag_has_its_variable() {
        for arg in Args::command().get_arguments().filter(|arg| !["help", "version"].contains(&arg.get_id().as_str())) {
            let expected = format!("DFDAEMON_{}", arg.get_id().as_str().to_uppercase());
            assert_eq!(arg.get_env().and_then(|name| name.to_str()), Some(expected.as_str()));
        }
    }
}
