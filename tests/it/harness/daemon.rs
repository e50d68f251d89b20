//! Daemons and schedulers as a user runs them: executables with a configuration file in a fresh directory.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Answer, Ask, Process, Sockets, cut_short, rot, wait_for};

/// The path of one of the workspace's executables.
pub(crate) fn binary(name: &str) -> PathBuf {
    match name {
        "dfdaemon" => env!("CARGO_BIN_EXE_dfdaemon").into(),
        "dfctl" => env!("CARGO_BIN_EXE_dfctl").into(),
        "dfget" => env!("CARGO_BIN_EXE_dfget").into(),
        _ => scheduler_binary(),
    }
}

/// The scheduler belongs to another package, so cargo does not build it for these tests when they are run alone.
fn scheduler_binary() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let path = BUILT.get_or_init(|| {
        let beside = Path::new(env!("CARGO_BIN_EXE_dfdaemon"));
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "-p", "damselfly-scheduler", "--bin", "scheduler"]);
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        if beside.components().any(|component| component.as_os_str() == "release") {
            build.arg("--release");
        }
        if let Some(target) = beside.parent().and_then(Path::parent) {
            build.env("CARGO_TARGET_DIR", target);
        }
        assert!(build.status().expect("cargo runs").success(), "the scheduler does not build");
        beside.with_file_name("scheduler")
    });
    path.clone()
}

/// Sets `value` at a path like `proxy.server.port`; appends where the path ends in `[]`.
fn set(config: &mut Value, path: &str, value: Value) {
    let (path, append) = path.strip_suffix("[]").map_or((path, false), |path| (path, true));
    let place = path.split('.').fold(config, |place, key| {
        if place.is_null() {
            *place = json!({});
        }
        &mut place[key]
    });
    if append {
        if place.is_null() {
            *place = json!([]);
        }
        place.as_array_mut().expect("a list").push(value);
    } else {
        *place = value;
    }
}

/// The sum of the lines of a `/metrics` page that contain all of `parts`.
fn metric(page: &Answer, parts: &[&str]) -> f64 {
    let text = String::from_utf8_lossy(&page.body);
    let lines = text.lines().filter(|line| !line.starts_with('#') && parts.iter().all(|part| line.contains(part)));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// A daemon to be started.
pub(crate) struct DaemonPlan {
    name: String,
    home: TempDir,
    config: Value,
    sockets: Option<Sockets>,
}

impl DaemonPlan {
    /// Passes these sockets to each of its processes.
    pub(crate) fn sockets(mut self, sockets: Sockets) -> Self {
        self.sockets = Some(sockets);
        self
    }

    pub(crate) fn set(mut self, path: &str, value: impl Into<Value>) -> Self {
        set(&mut self.config, path, value.into());
        self
    }

    pub(crate) fn scheduler(self, scheduler: &Scheduler) -> Self {
        let address = scheduler.grpc.to_string();
        self.set("scheduler.addrs[]", address)
    }

    /// Intercepts the TLS of this host.
    pub(crate) fn intercept(self, host: &str) -> Self {
        self.set("proxy.intercept.hosts[]", host)
    }

    /// Reaches this `HOST:PORT` in plain text, however it is asked for.
    pub(crate) fn plain_upstream(self, authority: &str) -> Self {
        self.set("proxy.upstreams[]", json!({ "host": authority, "scheme": "http" }))
    }

    /// Trusts this authority for this `HOST:PORT`.
    pub(crate) fn trusted_upstream(self, authority: &str, pem: &str) -> Self {
        self.upstream(authority, pem, None)
    }

    /// Trusts this authority for this `HOST:PORT`, and shows a certificate with its key there.
    pub(crate) fn upstream(self, authority: &str, pem: &str, identity: Option<(String, String)>) -> Self {
        let mut upstream = json!({ "host": authority, "caCert": self.keep("upstream-ca.pem", pem) });
        if let Some((certificate, key)) = identity {
            upstream["cert"] = self.keep("upstream-cert.pem", &certificate).into();
            upstream["key"] = self.keep("upstream-key.pem", &key).into();
        }
        self.set("proxy.upstreams[]", upstream)
    }

    /// Writes a file that the configuration names.
    fn keep(&self, name: &str, text: &str) -> String {
        let path = self.home.path().join(name);
        std::fs::write(&path, text).expect("a writable directory");
        path.to_string_lossy().into_owned()
    }

    /// The daemon's own directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// The command that starts the daemon.
    pub(crate) fn command(&self) -> Command {
        let file = self.home.path().join("dfdaemon.yaml");
        // JSON is YAML.
        std::fs::write(&file, self.config.to_string()).expect("a writable directory");
        let mut command = Process::command(binary("dfdaemon"));
        command
            .arg("--config")
            .arg(file)
            .arg("--data-dir")
            .arg(self.data())
            .args(["--log-level", "info,damselfly=debug"]);
        command
    }

    pub(crate) fn start(self) -> Daemon {
        let (process, addresses) = self.launch(&[]);
        Daemon { process, addresses, plan: self }
    }

    fn launch(&self, flags: &[&str]) -> (Process, Value) {
        let file = self.data().join("addresses.json");
        // What a killed process has left behind is not the next one's.
        let _ = std::fs::remove_file(&file);
        let mut command = self.command();
        command.args(flags);
        if let Some(sockets) = &self.sockets {
            command = sockets.pass_to(&command);
        }
        let mut process = Process::start(&self.name, self.home.path(), &mut command);
        let addresses = serde_json::from_str(&process.wait_for_file(&file)).expect("addresses.json is JSON");
        (process, addresses)
    }
}

/// A running daemon.
pub(crate) struct Daemon {
    pub(crate) process: Process,
    addresses: Value,
    plan: DaemonPlan,
}

impl Daemon {
    /// A daemon named `name`, alone with its embedded scheduler until it is told otherwise.
    pub(crate) fn plan(name: &str) -> DaemonPlan {
        let config = json!({
            "host": { "hostname": name, "ip": "127.0.0.1" },
            "proxy": { "server": { "ip": "127.0.0.1", "port": 0 } },
            "upload": { "server": { "ip": "127.0.0.1", "port": 0 } },
            "storage": { "server": { "ip": "127.0.0.1", "tcpPort": 0 } },
            "health": { "server": { "ip": "127.0.0.1", "port": 0 } },
        });
        let home = tempfile::tempdir().expect("a temporary directory");
        DaemonPlan { name: name.into(), home, config, sockets: None }
    }

    /// Where it listens, as it says.
    pub(crate) fn addresses(&self) -> &Value {
        &self.addresses
    }

    fn address(&self, name: &str) -> SocketAddr {
        let text = self.addresses[name].as_str();
        text.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no {name} in {}", self.addresses))
    }

    pub(crate) fn proxy(&self) -> SocketAddr {
        self.address("proxy")
    }

    /// Its mirror port for this configured registry.
    pub(crate) fn mirror(&self, registry: &str) -> SocketAddr {
        let text = self.addresses["mirrors"][registry].as_str();
        text.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no {registry} in {}", self.addresses))
    }

    pub(crate) fn data_address(&self) -> SocketAddr {
        self.address("data")
    }

    /// Where peers ask it for its pieces' lists.
    pub(crate) fn peer_address(&self) -> SocketAddr {
        self.address("peer")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.addresses["socket"].as_str().expect("the socket's path").into()
    }

    /// A path under the daemon's own directory.
    pub(crate) fn data(&self, path: &str) -> PathBuf {
        self.plan.data().join(path)
    }

    /// The certificate of its authority.
    pub(crate) fn ca(&self) -> String {
        std::fs::read_to_string(self.data("ca.pem")).expect("ca.pem")
    }

    /// GETs through its proxy.
    pub(crate) fn get(&self, url: &str) -> Answer {
        Ask::get(url).via(self.proxy()).send()
    }

    /// What its administration answers at a path.
    pub(crate) fn admin(&self, path: &str) -> Answer {
        Ask::get(&format!("http://{}{path}", self.address("admin"))).send()
    }

    /// The sum of the lines of `/metrics` that contain all of `parts`.
    pub(crate) fn metric(&self, parts: &[&str]) -> f64 {
        metric(&self.admin("/metrics"), parts)
    }

    /// Waits until every piece that it has written is recorded on its disk.
    pub(crate) fn wait_until_recorded(&self, pieces: usize) {
        wait_for("the pieces to be recorded", || {
            let written = self.metric(&["storage_pieces_written"]);
            (written >= pieces as f64 && self.metric(&["storage_pending"]) == 0.0).then_some(())
        });
    }

    /// Flips a bit of the stored content of `length` bytes at this offset.
    pub(crate) fn rot(&self, length: usize, offset: usize) {
        rot(&self.plan.data(), length, offset);
    }

    /// Cuts the stored content of `length` bytes short.
    pub(crate) fn cut_short(&self, length: usize, left: usize) {
        cut_short(&self.plan.data(), length, left);
    }

    /// Kills it as a power cut would, and starts it again on what is on its disk.
    pub(crate) fn kill_and_start_again(&mut self) {
        self.process.kill();
        (self.process, self.addresses) = self.plan.launch(&[]);
    }

    /// Starts another process that takes over from it, and gives back the one before.
    pub(crate) fn take_over(&mut self) -> Process {
        let (process, addresses) = self.plan.launch(&["--take-over"]);
        let before = std::mem::replace(&mut self.process, process);
        self.addresses = addresses;
        before
    }

    /// Asks it to end, and starts it again with another setting.
    pub(crate) fn start_again_with(&mut self, path: &str, value: impl Into<Value>) {
        assert!(self.stop().success());
        set(&mut self.plan.config, path, value.into());
        self.start_again();
    }

    /// Starts it again after it has ended.
    pub(crate) fn start_again(&mut self) {
        (self.process, self.addresses) = self.plan.launch(&[]);
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.process.signal(Signal::TERM);
        self.process.wait()
    }
}

/// A running scheduler.
pub(crate) struct Scheduler {
    pub(crate) process: Process,
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
    home: TempDir,
}

impl Scheduler {
    pub(crate) fn start() -> Self {
        Self::start_with("")
    }

    /// With this configuration file.
    pub(crate) fn start_with(config: &str) -> Self {
        let home = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(home.path().join("scheduler.yaml"), config).expect("the configuration is written");
        Self::launch(home, "127.0.0.1:0")
    }

    fn launch(home: TempDir, listen: &str) -> Self {
        let data = home.path().join("data");
        let file = data.join("addresses.json");
        let _ = std::fs::remove_file(&file);
        let mut command = Process::command(binary("scheduler"));
        command
            .args([
                "--listen",
                listen,
                "--http",
                "127.0.0.1:0",
                "--log-level",
                "debug,h2=info,hyper=info,tonic=info,tower=info",
                "--data-dir",
            ])
            .arg(&data)
            .arg("--config")
            .arg(home.path().join("scheduler.yaml"));
        let mut process = Process::start("scheduler", home.path(), &mut command);
        let addresses: Value = serde_json::from_str(&process.wait_for_file(&file)).expect("addresses.json is JSON");
        let address = |name: &str| addresses[name].as_str().and_then(|text| text.parse().ok()).expect("an address");
        Self { process, grpc: address("grpc"), http: address("http"), home }
    }

    /// What its HTTP side answers at a path.
    pub(crate) fn admin(&self, path: &str) -> Answer {
        Ask::get(&format!("http://{}{path}", self.http)).send()
    }

    /// How many hosts it knows to hold something of a task.
    pub(crate) fn holders(&self, task: &str) -> u64 {
        let page = self.admin(&format!("/api/v1/tasks/{task}"));
        let task: Value = serde_json::from_slice(&page.body).unwrap_or_default();
        task["holders"].as_u64().unwrap_or_default()
    }

    /// Kills it and starts it again at the same address.
    pub(crate) fn kill_and_start_again(mut self) -> Self {
        self.process.kill();
        let Self { process, grpc, home, .. } = self;
        drop(process);
        Self::launch(home, &grpc.to_string())
    }
}
