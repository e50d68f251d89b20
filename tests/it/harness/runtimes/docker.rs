//! docker, with a daemon for each way and host: what proxy it takes stands in its daemon's environment.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::super::tools::{Tool, run, skipped};
use super::super::{Image, Process, digest, wait_for};
use super::{Pull, Runtime, Way, clean, write};

/// docker, with the daemons that were needed so far.
pub(crate) struct Docker {
    docker: Tool,
    dockerd: Tool,
    home: tempfile::TempDir,
    running: BTreeMap<String, Dockerd>,
}

/// A running daemon.
struct Dockerd {
    process: Process,
    home: PathBuf,
}

impl Docker {
    pub(crate) fn find() -> Option<Self> {
        let (docker, dockerd) = (Tool::find("docker")?, Tool::find("dockerd")?);
        if !rustix::process::geteuid().is_root() {
            skipped("dockerd (only root may run it)");
            return None;
        }
        let home = tempfile::tempdir().expect("a temporary directory");
        Some(Self { docker, dockerd, home, running: BTreeMap::new() })
    }

    fn client(&self, daemon: &Path) -> Command {
        let mut command = self.docker.command();
        clean(&mut command, self.home.path());
        command.arg("--host").arg(format!("unix://{}", daemon.join("docker.sock").display()));
        command.arg("--config").arg(daemon.join("client"));
        command
    }

    /// The daemon for this pull, started if need be.
    fn daemon(&mut self, pull: &Pull<'_>) -> PathBuf {
        // A mirror is named in what is pulled, not in the daemon's settings.
        let settings = if pull.way == Way::Port { Way::Mirror } else { pull.way };
        let key = format!("{settings:?}-{}", pull.host.name);
        if !self.running.contains_key(&key) {
            let started = self.start(&key, &json!({}), |command| pull.environment(command));
            self.running.insert(key.clone(), started);
        }
        self.running[&key].home.clone()
    }

    fn start(&self, name: &str, config: &Value, environment: impl FnOnce(&mut Command)) -> Dockerd {
        let home = self.home.path().join(name);
        write(&home.join("daemon.json"), &config.to_string());
        let path = |name: &str| home.join(name).to_string_lossy().into_owned();
        let mut command = self.dockerd.command();
        clean(&mut command, &home);
        environment(&mut command);
        command.args([
            "--config-file",
            &path("daemon.json"),
            "--data-root",
            &path("root"),
            "--exec-root",
            &path("exec"),
        ]);
        command.args(["--pidfile", &path("pid"), "--host", &format!("unix://{}", path("docker.sock"))]);
        command.args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs"]);
        let process = Process::start("dockerd", &home, &mut command);
        wait_for("dockerd", || run(self.client(&home).arg("version")).ok.then_some(()));
        Dockerd { process, home }
    }

    /// Pulls an image of docker.io through this mirror, with a daemon that can reach nothing else, into an empty store.
    pub(crate) fn pull_from_docker_io(
        &mut self,
        mirror: SocketAddr,
        name: &str,
        user: Option<(&str, &str)>,
        image: &Image,
    ) -> Result<(), String> {
        let key = format!("hub-{mirror}");
        if !self.running.contains_key(&key) {
            let config = json!({ "registry-mirrors": [format!("http://{mirror}")] });
            let started = self.start(&key, &config, |command| _ = command.env("HTTPS_PROXY", "http://127.0.0.1:9"));
            self.running.insert(key.clone(), started);
        }
        self.pull_at(&self.running[&key].home, name, "https://index.docker.io/v1/", user, image)
    }

    /// Pulls an image, looks whether it is the right one, and removes it.
    fn pull_at(
        &self,
        daemon: &Path,
        name: &str,
        login: &str,
        user: Option<(&str, &str)>,
        image: &Image,
    ) -> Result<(), String> {
        write_auth(daemon, login, user);
        let done = run(self.client(daemon).args(["pull", "--quiet", name]));
        if !done.ok {
            return Err(done.errors);
        }
        let id = run(self.client(daemon).args(["image", "inspect", "--format", "{{.Id}}", name]));
        let removed = run(self.client(daemon).args(["image", "rm", "--force", name]));
        if !removed.ok {
            return Err(removed.errors);
        }
        let found = String::from_utf8_lossy(&id.output).contains(&digest(&image.config));
        found.then_some(()).ok_or(format!("another image was pulled: {}", id.errors))
    }
}

/// Writes what `docker login` leaves behind.
fn write_auth(daemon: &Path, login: &str, user: Option<(&str, &str)>) {
    let auth = |(user, password)| (login.to_owned(), json!({ "auth": STANDARD.encode(format!("{user}:{password}")) }));
    let auths: serde_json::Map<_, _> = user.map(auth).into_iter().collect();
    write(&daemon.join("client/config.json"), &json!({ "auths": auths }).to_string());
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        // It ends its own containerd when it is asked to end.
        self.process.signal(Signal::TERM);
        self.process.wait();
    }
}

/// Where a password is kept for a name: there is one for a host, whatever the path.
fn login_of(registry: &str) -> &str {
    registry.split('/').next().unwrap_or_default()
}

impl Runtime for Docker {
    fn pull(&mut self, pull: &Pull<'_>) -> Result<(), String> {
        let daemon = self.daemon(pull);
        let registry = pull.pushed_to();
        let name = format!("{registry}/{}:{}", pull.repository, pull.tag);
        self.pull_at(&daemon, &name, login_of(&registry), pull.user, pull.image)
    }

    fn push(&mut self, pull: &Pull<'_>, to: &str) -> Result<(), String> {
        let daemon = self.daemon(pull);
        let registry = pull.pushed_to();
        let (from, to) = (format!("{registry}/{}:{}", pull.repository, pull.tag), format!("{registry}/{to}"));
        write_auth(&daemon, login_of(&registry), pull.user);
        let steps: [&[&str]; 4] = [
            &["pull", "--quiet", &from],
            &["tag", &from, &to],
            &["push", &to],
            &["image", "rm", "--force", &from, &to],
        ];
        for step in steps {
            let done = run(self.client(&daemon).args(step));
            if !done.ok {
                return Err(done.errors);
            }
        }
        Ok(())
    }
}
