//! Clients that may or may not be installed here.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use super::Process;

/// An installed program.
pub(crate) struct Tool {
    path: PathBuf,
}

/// What a tool has done.
pub(crate) struct Done {
    pub(crate) ok: bool,
    pub(crate) output: Vec<u8>,
    pub(crate) errors: String,
}

impl Tool {
    /// The tool; where it is missing, says so by name and the test ends without having proved anything.
    pub(crate) fn find(name: &str) -> Option<Self> {
        let places = std::env::var_os("PATH").unwrap_or_default();
        let extra = ["/usr/sbin", "/usr/local/bin", "/sbin"].map(PathBuf::from);
        let path =
            std::env::split_paths(&places).chain(extra).map(|place| place.join(name)).find(|path| path.is_file());
        if path.is_none() {
            skipped(name);
        }
        path.map(|path| Self { path })
    }

    /// A command without this machine's proxy settings.
    pub(crate) fn command(&self) -> Command {
        Process::command(&self.path)
    }

    /// Runs a command of this tool to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Done {
        let mut command = self.command();
        command.args(arguments);
        run(&mut command)
    }
}

/// Says that nothing was proved for want of a tool. Written past the test harness, which shows only what fails.
pub(crate) fn skipped(what: &str) {
    // When nobody hears it, there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "skipped: {what}");
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Done {
    let output = command.stdin(std::process::Stdio::null()).output().expect("the tool starts");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    Done { ok: output.status.success(), output: output.stdout, errors }
}

/// Runs curl with these arguments, if there is one.
pub(crate) fn curl(arguments: &[&str]) -> Option<Done> {
    let tool = Tool::find("curl")?;
    let mut all = vec!["--silent", "--show-error", "--max-time", "60"];
    all.extend_from_slice(arguments);
    Some(tool.run(&all))
}
