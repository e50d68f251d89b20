//! containerd, with its own client.

use std::path::Path;
use std::process::Command;

use super::super::tools::{Tool, run, skipped};
use super::super::{Process, digest, wait_for};
use super::{Pull, Runtime, Way, clean, write};

/// A running containerd.
pub(crate) struct Containerd {
    _process: Process,
    ctr: Tool,
    home: tempfile::TempDir,
}

impl Containerd {
    pub(crate) fn start() -> Option<Self> {
        let (containerd, ctr) = (Tool::find("containerd")?, Tool::find("ctr")?);
        if !rustix::process::geteuid().is_root() {
            skipped("containerd (only root may run it)");
            return None;
        }
        let home = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| home.path().join(name).to_string_lossy().into_owned();
        let socket = path("containerd.sock");
        let config = format!(
            "version = 2\nroot = '{}'\nstate = '{}'\ndisabled_plugins = ['io.containerd.grpc.v1.cri', \
             'io.containerd.internal.v1.opt']\n[grpc]\naddress = '{socket}'\n[ttrpc]\naddress = '{socket}.ttrpc'\n",
            path("root"),
            path("state"),
        );
        write(Path::new(&path("containerd.toml")), &config);
        let mut command = containerd.command();
        clean(&mut command, home.path());
        let process = Process::start("containerd", home.path(), command.args(["--config", &path("containerd.toml")]));
        let running = Self { _process: process, ctr, home };
        wait_for("containerd", || run(running.ctr().arg("version")).ok.then_some(()));
        Some(running)
    }

    fn ctr(&self) -> Command {
        let mut command = self.ctr.command();
        clean(&mut command, self.home.path());
        command.arg("--address").arg(self.home.path().join("containerd.sock"));
        command
    }
}

impl Containerd {
    /// A command that is pointed at the host.
    fn begin(&self, pull: &Pull<'_>, words: &[&str]) -> Command {
        let hosts = self.home.path().join("certs.d").join(&pull.host.name);
        let mirror = match pull.way {
            Way::Mirror => Some(pull.host.proxy),
            Way::Port => Some(pull.mirror_port()),
            Way::Proxy | Way::Direct => None,
        };
        if let Some(mirror) = mirror {
            let text = format!(
                "server = \"https://{}\"\n[host.\"http://{mirror}\"]\ncapabilities = [\"pull\", \"resolve\", \"push\"]\n",
                pull.registry
            );
            write(&hosts.join(pull.registry).join("hosts.toml"), &text);
        }
        // The client program asks the registries itself, so the settings of a proxy are its own.
        let mut command = self.ctr();
        pull.environment(&mut command);
        command.args(words);
        if mirror.is_some() {
            command.arg("--hosts-dir").arg(&hosts);
        }
        if let Some((user, password)) = pull.user {
            command.args(["--user", &format!("{user}:{password}")]);
        }
        command
    }

    fn remove(&self, name: &str) -> Result<(), String> {
        let removed = run(self.ctr().args(["images", "rm", "--sync", name]));
        removed.ok.then_some(()).ok_or(removed.errors)
    }
}

impl Runtime for Containerd {
    fn pull(&mut self, pull: &Pull<'_>) -> Result<(), String> {
        let done = run(self.begin(pull, &["content", "fetch"]).arg(pull.name()));
        if !done.ok {
            return Err(done.errors);
        }
        let layer = run(self.ctr().args(["content", "get", &digest(&pull.image.layer)]));
        self.remove(&pull.name())?;
        let left = run(self.ctr().args(["content", "get", &digest(&pull.image.layer)]));
        match layer.output == pull.image.layer {
            true if left.ok => Err("the layer is still there after its removal".into()),
            true => Ok(()),
            false => Err(format!("the layer differs: {}", layer.errors)),
        }
    }

    fn push(&mut self, pull: &Pull<'_>, to: &str) -> Result<(), String> {
        let (from, to) = (pull.name(), format!("{}/{to}", pull.registry));
        let steps = [
            self.begin(pull, &["content", "fetch"]).arg(&from),
            self.ctr().args(["images", "tag", &from, &to]),
            self.begin(pull, &["images", "push"]).arg(&to),
        ]
        .map(run);
        self.remove(&from)?;
        self.remove(&to)?;
        steps.into_iter().find(|done| !done.ok).map_or(Ok(()), |done| Err(done.errors))
    }
}
