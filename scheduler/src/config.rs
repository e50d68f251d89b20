//! The scheduler's configuration: flags and environment over a YAML file over the defaults. Unknown keys are refused.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use damselfly_runtime::telemetry::{self, Format};
use damselfly_runtime::{Secret, Security, UsageError, config};
use serde::{Deserialize, Serialize};

use crate::driver;

/// The scheduler service: tells the daemons of a fleet who gets which pieces from whom.
///
/// Flags win over the environment, the environment over the file, the file over the defaults.
#[derive(Debug, Default, clap::Parser)]
#[command(name = "scheduler", version)]
pub struct Args {
    /// What to set.
    #[command(flatten)]
    pub flags: Flags,
    /// What to do instead of running.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do instead of running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
    /// Print the whole effective configuration as YAML and exit
    Config,
}

/// Settings that have a flag.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// Configuration file (YAML)
    #[arg(long, global = true, env = "SCHEDULER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Where daemons reach it (gRPC); port 0 lets the system choose
    #[arg(long, global = true, env = "SCHEDULER_LISTEN", value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,

    /// Where health, metrics and lists are (HTTP); port 0 lets the system choose
    #[arg(long, global = true, env = "SCHEDULER_HTTP", value_name = "IP:PORT")]
    pub http: Option<SocketAddr>,

    /// Directory for addresses.json; without it none is written
    #[arg(long, global = true, env = "SCHEDULER_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// error, warn, info, debug, trace or off, or tracing directives
    #[arg(long, global = true, env = "SCHEDULER_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,

    /// text or json
    #[arg(long, global = true, env = "SCHEDULER_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,
}

/// The file's shape, and with every default the effective configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Config {
    /// Where daemons reach it.
    pub listen: SocketAddr,
    /// Health, metrics and lists.
    pub http: SocketAddr,
    /// For addresses.json.
    pub data_dir: Option<PathBuf>,
    /// How long conversations may go on after SIGTERM.
    #[serde(with = "span")]
    pub grace: Duration,
    /// Logs.
    pub log: Log,
    /// How it schedules.
    pub scheduling: Scheduling,
    /// What daemons must show.
    pub security: Security,
}

/// Logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Log {
    /// A level or tracing directives.
    pub level: String,
    /// `text` or `json`.
    pub format: String,
}

/// How it schedules: see [`damselfly_scheduler_core::Config`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Scheduling {
    /// Parents that a peer is offered at most.
    pub max_parents: usize,
    /// How long a reader of the source may be silent.
    #[serde(with = "span")]
    pub lease_time: Duration,
    /// How long a triggered seed has to register.
    #[serde(with = "span")]
    pub seed_time: Duration,
    /// How often hosts announce themselves.
    #[serde(with = "span")]
    pub announce_interval: Duration,
    /// Announcements that a host may miss.
    pub missed_announcements: u32,
    /// How long a host that served wrong bytes is not offered.
    #[serde(with = "span")]
    pub isolation: Duration,
    /// The most tasks known.
    pub max_tasks: usize,
    /// The most peers known.
    pub max_peers: usize,
    /// The most hosts known.
    pub max_hosts: usize,
}

impl Default for Config {
    fn default() -> Self {
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Self {
            listen: SocketAddr::new(any, 8002),
            http: SocketAddr::new(any, 8080),
            data_dir: None,
            grace: Duration::from_secs(5),
            log: Log::default(),
            scheduling: Scheduling::default(),
            security: Security::default(),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: Format::default().as_str().into() }
    }
}

impl Default for Scheduling {
    fn default() -> Self {
        let core = damselfly_scheduler_core::Config::default();
        Self {
            max_parents: core.max_parents,
            lease_time: core.lease_time,
            seed_time: core.seed_time,
            announce_interval: core.announce_interval,
            missed_announcements: core.missed_announcements,
            isolation: core.isolation,
            max_tasks: core.max_tasks,
            max_peers: core.max_peers,
            max_hosts: core.max_hosts,
        }
    }
}

impl Config {
    /// Reads the file that the flags name, puts the flags over it, and checks the whole.
    ///
    /// # Errors
    /// One sentence that names the file, the key and the reason.
    pub fn load(flags: &Flags) -> Result<Self, UsageError> {
        let path = flags.config.as_deref().filter(|path| !path.as_os_str().is_empty());
        let mut config = path.map_or_else(|| Ok(Self::default()), config::load)?;
        config.apply(flags);
        config.check(path)?;
        Ok(config)
    }

    fn apply(&mut self, flags: &Flags) {
        self.listen = flags.listen.unwrap_or(self.listen);
        self.http = flags.http.unwrap_or(self.http);
        if let Some(dir) = flags.data_dir.as_ref().filter(|dir| !dir.as_os_str().is_empty()) {
            self.data_dir = Some(dir.clone());
        }
        if let Some(level) = &flags.log_level {
            self.log.level.clone_from(level);
        }
        if let Some(format) = &flags.log_format {
            self.log.format.clone_from(format);
        }
    }

    fn check(&self, path: Option<&Path>) -> Result<(), UsageError> {
        let place = path.map_or_else(|| "configuration".into(), |path| path.display().to_string());
        let wrong = |key: &str, reason: String| Err(UsageError::new(format!("{place}: {key}: {reason}")));
        let Scheduling { max_parents, max_tasks, max_peers, max_hosts, missed_announcements, .. } = self.scheduling;
        for (key, number) in [
            ("scheduling.maxParents", max_parents),
            ("scheduling.maxTasks", max_tasks),
            ("scheduling.maxPeers", max_peers),
            ("scheduling.maxHosts", max_hosts),
            ("scheduling.missedAnnouncements", missed_announcements as usize),
        ] {
            if number == 0 {
                return wrong(key, "must be at least 1".into());
            }
        }
        for (key, span) in [
            ("scheduling.leaseTime", self.scheduling.lease_time),
            ("scheduling.announceInterval", self.scheduling.announce_interval),
        ] {
            if span.is_zero() {
                return wrong(key, "must be longer than nothing".into());
            }
        }
        if let Err((key, why)) = self.security.token() {
            return wrong(key, why);
        }
        if let Err((key, why)) = self.security.member_files() {
            return wrong(key, why);
        }
        if let Err(error) = telemetry::check_filter(&self.log.level) {
            return wrong("log.level", error.to_string());
        }
        match self.log.format.parse::<Format>() {
            Ok(_) => Ok(()),
            Err(error) => wrong("log.format", error.to_string()),
        }
    }

    /// The effective configuration as YAML.
    ///
    /// # Errors
    /// For a path that is not UTF-8.
    pub fn to_yaml(&self) -> Result<String, UsageError> {
        serde_saphyr::to_string(self).map_err(|error| UsageError::new(format!("cannot be written as YAML: {error}")))
    }

    /// The fleet's token, if there is one.
    ///
    /// # Errors
    /// Where its file cannot be read any more.
    pub fn token(&self) -> Result<Option<Secret>, UsageError> {
        self.security.token().map_err(|(key, why)| UsageError::new(format!("configuration: {key}: {why}")))
    }

    /// What the driver is made of.
    pub fn driver(&self) -> driver::Config {
        let core = damselfly_scheduler_core::Config {
            members_only: self.security.demands(),
            max_parents: self.scheduling.max_parents,
            lease_time: self.scheduling.lease_time,
            seed_time: self.scheduling.seed_time,
            announce_interval: self.scheduling.announce_interval,
            missed_announcements: self.scheduling.missed_announcements,
            isolation: self.scheduling.isolation,
            max_tasks: self.scheduling.max_tasks,
            max_peers: self.scheduling.max_peers,
            max_hosts: self.scheduling.max_hosts,
            ..damselfly_scheduler_core::Config::default()
        };
        driver::Config { core, ..driver::Config::default() }
    }
}

/// Spans of time as people write them: `30s`, `5m`, `1h 30m`.
mod span {
    use std::time::Duration;

    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*span))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(text.trim())
            .map_err(|_| D::Error::custom(format!("{text:?} is not a span of time such as 30s, 5m or 250ms")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, flags: Flags) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let flags = Flags { config: Some(file.path().to_owned()), ..flags };
        Config::load(&flags).map_err(|error| error.to_string().replace(&file.path().display().to_string(), "FILE"))
    }

    #[test]
    fn the_effective_configuration_reads_as_itself() {
        let config = Config { data_dir: Some("/var/lib/a".into()), ..Config::default() };
        assert_eq!(load(&config.to_yaml().unwrap(), Flags::default()), Ok(config));
        assert_eq!(load("", Flags::default()), Ok(Config::default()));
    }

    #[test]
    fn flags_win_over_the_file() {
        let http = Some("127.0.0.1:2".parse().unwrap());
        let flags = Flags { http, data_dir: Some(PathBuf::new()), ..Flags::default() };
        let text = "listen: 127.0.0.1:1\nhttp: 127.0.0.1:1\ndataDir: /d\nscheduling: {leaseTime: 5s, maxParents: 2}\n";
        let config = load(text, flags).unwrap();
        assert_eq!((config.listen.port(), config.http.port()), (1, 2));
        assert_eq!(config.data_dir, Some("/d".into()), "an empty variable is one that is not set");
        assert_eq!(config.driver().core.lease_time, Duration::from_secs(5));
        assert_eq!(config.driver().core.max_parents, 2);
    }

    #[test]
    fn every_key_and_flag_is_documented_with_its_default_and_no_other() {
        let document = include_str!("../../docs/reference/scheduler.md");
        let rows: Vec<Vec<&str>> = document
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
            .collect();
        let mut keys = Vec::new();
        for (key, value) in serde_json::to_value(Config::default()).unwrap().as_object().unwrap() {
            match value.as_object() {
                Some(inner) => keys.extend(inner.iter().map(|(name, value)| (format!("{key}.{name}"), value.clone()))),
                None => keys.push((key.clone(), value.clone())),
            }
        }
        for (key, default) in &keys {
            let row =
                rows.iter().find(|row| row[0] == format!("`{key}`")).unwrap_or_else(|| panic!("{key} has no row"));
            let default = default.as_str().map_or_else(|| default.to_string(), str::to_owned);
            assert_eq!(row[1], format!("`{default}`"), "{key}");
        }
        for row in rows.iter().filter(|row| !row[0].starts_with("`--") && !row[0].starts_with("`/")) {
            let known = keys.iter().any(|(key, _)| row[0] == format!("`{key}`"));
            assert!(known, "no such key: {}", row[0]);
        }
        for arg in <Args as clap::CommandFactory>::command().get_arguments() {
            let flag = format!("`--{}", arg.get_long().unwrap_or_default());
            assert!(document.contains(&flag), "{flag} is not listed");
        }
    }

    #[test]
    fn mistakes_name_file_key_and_reason() {
        for (text, expected) in [
            ("listn: 1\n", "FILE: listn: unknown key"),
            ("listen: here\n", "FILE: listen: "),
            ("grace: 5\n", "FILE: grace: "),
            ("scheduling: {maxParents: 0}\n", "FILE: scheduling.maxParents: must be at least 1"),
            ("scheduling: {leaseTime: 0s}\n", "FILE: scheduling.leaseTime: must be longer than nothing"),
            ("log: {level: a=b=c}\n", "FILE: log.level: "),
            ("log: {level: loud}\n", "FILE: log.level: "),
            ("log: {format: xml}\n", "FILE: log.format: "),
            ("security: {token: short}\n", "FILE: security.token: must be 16 or more"),
            ("security: {tokenFile: /nowhere}\n", "FILE: security.tokenFile: /nowhere cannot be read"),
        ] {
            let error = load(text, Flags::default()).unwrap_err();
            assert!(error.starts_with(expected), "{text:?}: {error}");
        }
    }
}
