//! Programs of the release build, each in a place: started, signalled, measured, ended with their guard.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::network::Place;

/// How long a program may take to listen, or to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often is looked.
const POLL: Duration = Duration::from_millis(10);
/// The kernel counts processor time in these.
const TICKS_PER_SECOND: f64 = 100.0;

/// A running program.
pub(crate) struct Program {
    child: Child,
    name: String,
}

impl Program {
    /// Starts it and waits until it has written where it listens, which it does last.
    pub(crate) fn start(place: &Place, binary: &Path, arguments: &[String], data: &Path, log: &Path) -> Result<Self> {
        let name = place.name.clone();
        fs::create_dir_all(data).with_context(|| format!("{} cannot be created", data.display()))?;
        let addresses = data.join("addresses.json");
        // What a killed process left behind is not the next one's.
        let _ = fs::remove_file(&addresses);
        let output = File::options().create(true).append(true).open(log)?;
        let child = place.slot().create(|| {
            place.run(|| {
                let mut command = Command::new(binary);
                command.args(arguments).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
                command.spawn().with_context(|| format!("{} cannot be started", binary.display()))
            })?
        })?;
        let mut program = Self { child, name };
        let started = Instant::now();
        while !addresses.exists() {
            if let Some(status) = program.child.try_wait()? {
                bail!("{} ended with {status}: see {}", program.name, log.display());
            }
            if started.elapsed() > PATIENCE {
                bail!("{} does not listen after {PATIENCE:?}: see {}", program.name, log.display());
            }
            thread::sleep(POLL);
        }
        Ok(program)
    }

    /// SIGSTOP: the program answers nothing, its connections stay open.
    pub(crate) fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    pub(crate) fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// SIGKILL, and waits for the end.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let started = Instant::now();
        while self.child.try_wait()?.is_none() {
            if started.elapsed() > PATIENCE {
                bail!("{} does not end {PATIENCE:?} after SIGTERM", self.name);
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a process has an id")?;
        kill_process(pid, signal).with_context(|| format!("{} cannot be signalled", self.name))
    }

    /// Processor time so far, in seconds.
    pub(crate) fn cpu(&self) -> f64 {
        cpu_of(&format!("/proc/{}/stat", self.child.id()))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processor time of this process, in seconds.
pub(crate) fn own_cpu() -> f64 {
    cpu_of("/proc/self/stat")
}

fn cpu_of(path: &str) -> f64 {
    let stat = fs::read_to_string(path).unwrap_or_default();
    // The name may contain blanks; what follows it begins with the state.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / TICKS_PER_SECOND
}

/// Busy and total processor time of the machine, in ticks.
pub(crate) fn machine_ticks() -> (u64, u64) {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<u64> =
        stat.lines().next().unwrap_or_default().split_whitespace().skip(1).take(8).flat_map(str::parse).collect();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    let total: u64 = ticks.iter().sum();
    (total - idle, total)
}

/// Where the programs are.
#[derive(Debug, Clone)]
pub(crate) struct Binaries {
    pub(crate) dfdaemon: PathBuf,
    pub(crate) scheduler: PathBuf,
}

impl Binaries {
    /// Both in `dir`, or beside this program.
    pub(crate) fn find(dir: Option<PathBuf>) -> Result<Self> {
        let beside = std::env::current_exe()?.parent().map(Path::to_path_buf);
        let dir = dir.or(beside).context("this program has no directory")?;
        let binaries = Self { dfdaemon: dir.join("dfdaemon"), scheduler: dir.join("scheduler") };
        for path in [&binaries.dfdaemon, &binaries.scheduler] {
            if !path.exists() {
                bail!(
                    "there is no {}: build it with `cargo build --release -p damselfly -p damselfly-scheduler`, or name \
                     its directory with --bin-dir",
                    path.display()
                );
            }
        }
        Ok(binaries)
    }
}

/// Sets `value` at a path like `proxy.server.port`.
pub(crate) fn set(config: &mut Value, path: &str, value: Value) {
    let mut place = config;
    for key in path.split('.') {
        if place.is_null() {
            *place = Value::Object(serde_json::Map::new());
        }
        place = &mut place[key];
    }
    *place = value;
}
