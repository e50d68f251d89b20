//! A child process with its log, ended by its id at the latest when it is dropped.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::{SECRET, wait_for};

/// How much of a log is shown when a test fails.
const SHOWN: usize = 8_000;

/// A running executable.
pub(crate) struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; everything it says goes to `<directory>/<name>.log`.
    pub(crate) fn start(name: &str, directory: &Path, command: &mut Command) -> Self {
        let log = directory.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log).expect("a log file");
        let errors = output.try_clone().expect("a second handle");
        let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn();
        let child = child.unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        Self { child, name: name.into(), log }
    }

    /// A command with a clean environment: no proxy, no language, no settings of the machine.
    pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            let upper = name.to_string_lossy().to_uppercase();
            if upper.ends_with("_PROXY") || upper.starts_with("DFDAEMON_") || upper.starts_with("SCHEDULER_") {
                command.env_remove(&name);
            }
        }
        command
    }

    /// Waits for a file that the process writes once it is ready.
    pub(crate) fn wait_for_file(&mut self, path: &Path) -> String {
        let name = self.name.clone();
        let mut ended = None;
        let text = wait_for(&format!("{} of {name}", path.display()), || {
            ended = self.child.try_wait().expect("the child's state");
            match fs::read_to_string(path) {
                Ok(text) if !text.is_empty() => Some(Some(text)),
                _ => ended.is_some().then_some(None),
            }
        });
        text.unwrap_or_else(|| panic!("{name} ended with {ended:?} before it was ready:\n{}", self.log()))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(id, signal).expect("the child is there");
    }

    /// Ends it at once, with no chance to tidy up.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("the child can be killed");
        self.child.wait().expect("the child's end");
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the child's state").is_none()
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let name = self.name.clone();
        wait_for(&format!("the end of {name}"), || self.child.try_wait().expect("the child's state"))
    }

    /// All that it has said so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log();
        if std::thread::panicking() {
            let from = log.char_indices().rev().nth(SHOWN).map_or(0, |(at, _)| at);
            println!("---- log of {} ----\n{}", self.name, &log[from..]);
        } else {
            assert!(!log.contains(SECRET), "{} has written a credential into its log:\n{log}", self.name);
            assert!(!log.contains("panicked at"), "{} has panicked:\n{log}", self.name);
        }
    }
}
