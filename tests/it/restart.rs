//! Restarts and upgrades while clients pull: no request fails, whichever process answers.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use bytes::Bytes;
use rustix::process::Signal;

use crate::harness::{
    Ask, Daemon, DaemonPlan, Ending, Fleet, Gate, Image, MIB, Origin, Page, Process, Pulls, Sockets, binary, random,
    run, sha256_hex, wait_for,
};

const REPOSITORY: &str = "library/app";
/// What the question costs whether a file is still what it was.
const PROBE: u64 = 64 << 10;

/// An origin with small and large things, and clients that pull them in many ways without a pause.
struct Load {
    origin: Arc<Origin>,
    file: Bytes,
    image: Image,
}

impl Load {
    fn new(seed: u64) -> Self {
        let origin = Origin::start();
        let file = random(9 * MIB, seed);
        origin.put("/big.bin", Page::file(file.clone()));
        origin.put("/page", Page::plain("a page"));
        let image = Image::new(9 * MIB, seed + 1);
        image.publish(&origin, REPOSITORY, "1");
        Self { origin: Arc::new(origin), file, image }
    }

    fn plan(&self) -> DaemonPlan {
        let mirror = serde_json::json!({ "port": 0, "registry": self.origin.url("") });
        // However slow the machine is, nothing is cut off.
        Daemon::plan("h1").set("proxy.mirrors[]", mirror).set("drain.grace", "10m")
    }

    /// Small and large, held and fresh, by the proxy, by the mirror's port, and by the socket.
    fn pull(&self, proxy: SocketAddr, mirror: SocketAddr, socket: std::path::PathBuf) -> Pulls {
        let mut pulls = Pulls::default();
        let url = self.origin.url("/page");
        pulls.add(move |_| Ask::get(&url).via(proxy).send().assert_is(b"a page"));
        let (url, file) = (self.origin.url("/big.bin"), self.file.clone());
        pulls.add(move |_| Ask::get(&url).via(proxy).send().assert_is(&file));
        let (origin, file) = (Arc::clone(&self.origin), self.file.clone());
        pulls.add(move |number| {
            let path = format!("/fresh{number}.bin");
            origin.put(&path, Page::file(file.clone()));
            Ask::get(&origin.url(&path)).via(proxy).send().assert_is(&file);
        });
        let (manifest, layer) = (self.image.manifest.clone(), self.image.layer.clone());
        let blob = format!("http://{mirror}{}", self.image.layer_path(REPOSITORY));
        let tag = format!("http://{mirror}/v2/{REPOSITORY}/manifests/1");
        pulls.add(move |_| {
            Ask::get(&tag).send().assert_is(&manifest);
            Ask::get(&blob).send().assert_is(&layer);
        });
        let (url, want) = (self.origin.url("/big.bin"), sha256_hex(&self.file));
        let home = tempfile::tempdir().expect("a temporary directory");
        pulls.add(move |_| {
            let output = home.path().join("out");
            let mut command = Process::command(binary("dfget"));
            command.arg(&url).arg("-O").arg(&output).arg("--no-fallback").arg("--endpoint").arg(&socket);
            let done = run(&mut command);
            assert!(done.ok, "{}", done.errors);
            assert_eq!(sha256_hex(&std::fs::read(&output).expect("the file")), want);
        });
        pulls
    }
}

/// A daemon with a passed socket for everything that it listens on.
fn with_sockets(plan: DaemonPlan) -> DaemonPlan {
    let mut sockets = Sockets::default();
    let mut plan = plan;
    for (name, key) in [
        // The names are those of a unit with several sockets: the addresses tell them apart.
        ("dfdaemon.socket", "proxy.server.port"),
        ("dfdaemon.socket", "health.server.port"),
        ("dfdaemon.socket", "upload.server.port"),
        ("dfdaemon.socket", "storage.server.tcpPort"),
        ("dfdaemon.socket", "proxy.transparent.port"),
        // This one is configured with port 0.
        ("mirror", ""),
    ] {
        let port = sockets.tcp(name).port();
        if !key.is_empty() {
            plan = plan.set(key, port);
        }
    }
    sockets.unix("dfdaemon.socket", &plan.data().join("dfdaemon.sock"));
    plan.sockets(sockets)
}

#[test]
fn a_restart_on_sockets_that_stay_fails_no_request() {
    let load = Load::new(900);
    let mut daemon = with_sockets(load.plan()).start();
    let (proxy, mirror) = (daemon.proxy(), daemon.mirror(&load.origin.url("")));
    let before = daemon.addresses().clone();
    let pulls = load.pull(proxy, mirror, daemon.socket());
    for _ in 0..2 {
        pulls.wait_for_more(1);
        assert_eq!(daemon.stop().code(), Some(0), "it has finished what it had in hand");
        daemon.start_again();
        assert_eq!(*daemon.addresses(), before);
        pulls.wait_for_more(1);
    }
    pulls.stop();
    for name in ["admin", "peer", "data", "transparent"] {
        let address = before[name].as_str().expect("an address");
        assert!(TcpStream::connect(address).is_ok(), "{name}");
    }
    assert_eq!(daemon.admin("/ready").body, "ready\n");
    let log = daemon.process.log();
    assert!(!log.contains("the grace is over") && !log.contains("an inherited socket"), "{log}");
    // They are the supervisor's, not the daemon's: its end closes none.
    let socket = daemon.socket();
    daemon.stop();
    assert!(TcpStream::connect(proxy).is_ok() && UnixStream::connect(socket).is_ok());
}

#[test]
fn a_successor_takes_over_under_pulls_and_fails_no_request() {
    let load = Load::new(910);
    let mut daemon = load.plan().start();
    let (proxy, mirror) = (daemon.proxy(), daemon.mirror(&load.origin.url("")));
    let pulls = load.pull(proxy, mirror, daemon.socket());
    for _ in 0..2 {
        pulls.wait_for_more(1);
        let mut before = daemon.take_over();
        assert_eq!(before.wait().code(), Some(0));
        assert!(!before.log().contains("the grace is over"), "{}", before.log());
        pulls.wait_for_more(1);
    }
    pulls.stop();
    wait_for("the store", || (daemon.admin("/ready").body == "ready\n").then_some(()));
    let sent = load.origin.sent("/big.bin");
    daemon.get(&load.origin.url("/big.bin")).assert_is(&load.file);
    assert!(load.origin.sent("/big.bin") < sent + PROBE, "what was stored before is stored");
    assert!(daemon.data("addresses.json").exists() && daemon.socket().exists());
    let (takeover, socket) = (daemon.data("takeover.sock"), daemon.socket());
    assert_eq!(daemon.stop().code(), Some(0));
    assert!(!takeover.exists() && !socket.exists() && !daemon.data("addresses.json").exists());
}

#[test]
fn a_running_download_keeps_the_store_and_the_successor_passes_through() {
    let origin = Origin::start();
    let mut daemon = Daemon::plan("h1").start();
    let file = random(13 * MIB, 920);
    let gate = Gate::at(5 * MIB);
    origin.put("/slow.bin", Page::file(file.clone()).gate(&gate));
    origin.put("/big.bin", Page::file(file.clone()));
    let slow = Ask::get(&origin.url("/slow.bin")).via(daemon.proxy());
    let mut open = slow.clone().open();
    let begun = open.read(MIB);
    let mut before = daemon.take_over();
    wait_for("the successor", || {
        String::from_utf8_lossy(&daemon.admin("/ready").body).contains("in use by another daemon").then_some(())
    });
    daemon.get(&origin.url("/big.bin")).assert_is(&file);
    assert_eq!(daemon.metric(&["storage_pieces_written"]), 0.0, "{}", daemon.process.log());
    assert!(before.is_running(), "it has not waited for the download");
    gate.open();
    let rest = open.rest();
    assert_eq!(rest.ending, Ending::Whole);
    rest.assert_body(&file[begun.len()..]);
    assert_eq!(before.wait().code(), Some(0));
    wait_for("the store", || (daemon.admin("/ready").body == "ready\n").then_some(()));
    let sent = origin.sent("/slow.bin");
    slow.send().assert_is(&file);
    assert!(origin.sent("/slow.bin") < sent + PROBE, "what was downloaded meanwhile is the successor's");
}

#[test]
fn a_download_that_the_grace_cut_off_is_resumed() {
    let origin = Origin::start();
    let mut daemon =
        with_sockets(Daemon::plan("h1").set("proxy.mirrors[]", serde_json::json!({ "registry": "a.example" })))
            .set("drain.grace", "1s")
            .start();
    let file = random(13 * MIB, 930);
    let gate = Gate::at(9 * MIB);
    origin.put("/big.bin", Page::file(file.clone()).gate(&gate));
    let ask = Ask::get(&origin.url("/big.bin")).via(daemon.proxy());
    let mut open = ask.clone().open();
    open.read(8 * MIB);
    daemon.stop();
    assert!(matches!(open.rest().ending, Ending::Broken(_)));
    gate.open();
    daemon.start_again();
    let sent = origin.sent("/big.bin");
    ask.send().assert_is(&file);
    let again = origin.sent("/big.bin") - sent;
    assert!(again <= 9 * MIB as u64, "the origin has sent {again} once more");
}

#[test]
fn a_successor_is_the_same_host_to_its_fleet() {
    let origin = Origin::start();
    let mut fleet = Fleet::start(2);
    let file = random(13 * MIB, 940);
    origin.put("/big.bin", Page::file(file.clone()));
    let url = origin.url("/big.bin");
    fleet.hosts[0].get(&url).assert_is(&file);
    let sent = origin.sent("/big.bin");
    let mut before = fleet.hosts[0].take_over();
    assert_eq!(before.wait().code(), Some(0));
    wait_for("the store", || (fleet.hosts[0].admin("/ready").body == "ready\n").then_some(()));
    fleet.hosts[1].get(&url).assert_is(&file);
    let late = origin.sent("/big.bin") - sent;
    // One piece is compared with the source when a host comes again.
    assert!(late < (MIB + (64 << 10)) as u64, "the origin has sent {late} although a host has it");
}

#[test]
fn who_takes_over_from_nobody_just_starts_and_a_broken_successor_changes_nothing() {
    let mut daemon = Daemon::plan("h1").start();
    let home = tempfile::tempdir().expect("a temporary directory");
    let wrong = home.path().join("wrong.yaml");
    std::fs::write(&wrong, format!("dataDir: {}\nproxy: {{server: {{ip: 192.0.2.1}}}}\n", daemon.data("").display()))
        .expect("a writable directory");
    let mut command = Process::command(binary("dfdaemon"));
    let done = run(command.arg("--take-over").arg("--config").arg(&wrong));
    assert!(!done.ok, "it listens at an address of another host");
    for socket in ["dfdaemon.sock", "takeover.sock"] {
        assert!(daemon.data(socket).exists(), "{socket} is still the running daemon's");
    }
    assert_eq!(daemon.admin("/ready").body, "ready\n");
    daemon.stop();
    let mut none = daemon.take_over();
    none.wait();
    assert_eq!(daemon.admin("/ready").body, "ready\n");
}

#[test]
fn a_second_signal_ends_also_who_was_taken_over() {
    let origin = Origin::start();
    let mut daemon = Daemon::plan("h1").start();
    origin.put("/big.bin", Page::file(random(13 * MIB, 950)).gate(&Gate::at(MIB)));
    let mut open = Ask::get(&origin.url("/big.bin")).via(daemon.proxy()).open();
    open.read(MIB / 2);
    let mut before = daemon.take_over();
    before.signal(Signal::TERM);
    assert!(before.is_running());
    wait_for("the second signal", || {
        before.signal(Signal::TERM);
        (!before.is_running()).then_some(())
    });
    assert!(matches!(open.rest().ending, Ending::Broken(_)));
}
