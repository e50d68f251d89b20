//! How the processes start, refuse to start, and end.

use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::harness::{
    Ask, Daemon, Done, Ending, Gate, MIB, Origin, Page, Process, Scheduler, Tool, binary, random, run, wait_for,
};

fn code(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().expect("the executable starts");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn a_wrong_configuration_is_named_and_exits_64() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let file = home.path().join("wrong.yaml");
    for (text, key) in [
        ("proxy:\n  sever:\n    port: 1\n", "sever"),
        ("proxy:\n  server:\n    port: seventy\n", "proxy.server.port"),
        ("proxy:\n  rules:\n    - regex: '('\n", "proxy.rules"),
        ("proxy:\n  p2p:\n    minSize: lots\n", "proxy.p2p.minSize"),
        ("scheduler:\n  addrs: ['not an address']\n", "scheduler.addrs"),
        ("proxy: [\n", "wrong.yaml"),
    ] {
        std::fs::write(&file, text).expect("a writable directory");
        let mut command = Process::command(binary("dfdaemon"));
        command.arg("--config").arg(&file).arg("--data-dir").arg(home.path().join("data"));
        let (code, said) = code(&mut command);
        assert_eq!(code, Some(64), "{text}: {said}");
        assert!(said.contains("wrong.yaml") && said.contains(key), "{text}: {said}");
        assert!(said.trim().lines().count() <= 3, "more than a few lines: {said}");
    }
}

#[test]
fn a_missing_file_and_a_wrong_flag_exit_64() {
    let (no_file, said) = code(Process::command(binary("dfdaemon")).args(["--config", "/nonexistent/a.yaml"]));
    assert_eq!(no_file, Some(64), "{said}");
    assert!(said.contains("/nonexistent/a.yaml"), "{said}");
    for name in ["dfdaemon", "dfget", "scheduler"] {
        let (wrong, said) = code(Process::command(binary(name)).arg("--no-such-flag"));
        assert_eq!(wrong, Some(64), "{name}: {said}");
        let (help, said) = code(Process::command(binary(name)).arg("--help"));
        assert_eq!(help, Some(0), "{name}: {said}");
        assert!(said.contains("Usage"), "{name}: {said}");
    }
}

#[test]
fn the_effective_configuration_can_be_printed() {
    for name in ["dfdaemon", "scheduler"] {
        let (code, said) = code(Process::command(binary(name)).arg("config"));
        assert_eq!(code, Some(0), "{name}: {said}");
        assert!(said.contains("port") || said.contains("listen"), "{name}: {said}");
    }
}

#[test]
fn the_administration_answers() {
    let daemon = Daemon::plan("h1").start();
    for path in ["/healthy", "/ready", "/metrics", "/addresses", "/tasks"] {
        assert_eq!(daemon.admin(path).status, 200, "{path}");
    }
    assert!(String::from_utf8_lossy(&daemon.admin("/metrics").body).contains("dragonfly_client_"));
    assert!(String::from_utf8_lossy(&daemon.admin("/addresses").body).contains(&daemon.proxy().to_string()));
    let scheduler = Scheduler::start();
    for path in ["/healthy", "/metrics"] {
        assert_eq!(scheduler.admin(path).status, 200, "{path}");
    }
}

/// Waits until the daemon says that it is ending.
fn wait_until_draining(daemon: &Daemon) {
    wait_for("the drain", || (daemon.admin("/ready").status == 503).then_some(()));
}

#[test]
fn sigterm_lets_a_download_finish_and_serves_who_comes_meanwhile() {
    let origin = Origin::start();
    let mut daemon = Daemon::plan("h1").set("drain.grace", "10m").start();
    let file = random(13 * MIB, 500);
    let gate = Gate::at(5 * MIB);
    origin.put("/big.bin", Page::file(file.clone()).gate(&gate));
    origin.put("/page", Page::plain("a page"));
    origin.put("/other.bin", Page::file(file.clone()));
    let mut open = Ask::get(&origin.url("/big.bin")).via(daemon.proxy()).open();
    let begun = open.read(MIB);
    daemon.process.signal(Signal::TERM);
    wait_until_draining(&daemon);
    for _ in 0..3 {
        let page = daemon.get(&origin.url("/page"));
        page.assert_is(b"a page");
        assert_eq!(page.line("connection"), "close");
    }
    let written = daemon.metric(&["storage_pieces_written"]);
    daemon.get(&origin.url("/other.bin")).assert_is(&file);
    assert_eq!(daemon.metric(&["storage_pieces_written"]), written, "a download was begun");
    assert!(daemon.process.is_running(), "it has not waited for the download");
    gate.open();
    let rest = open.rest();
    assert_eq!(rest.ending, Ending::Whole);
    rest.assert_body(&file[begun.len()..]);
    assert_eq!(daemon.process.wait().code(), Some(0));
    assert!(std::net::TcpStream::connect(daemon.proxy()).is_err());
    assert!(!daemon.data("addresses.json").exists(), "addresses.json was left behind");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let origin = Origin::start();
    let mut daemon = Daemon::plan("h1").set("drain.grace", "10m").start();
    origin.put("/big.bin", Page::file(random(13 * MIB, 501)).gate(&Gate::at(MIB)));
    let mut open = Ask::get(&origin.url("/big.bin")).via(daemon.proxy()).open();
    open.read(MIB / 2);
    daemon.process.signal(Signal::TERM);
    wait_until_draining(&daemon);
    daemon.process.signal(Signal::TERM);
    daemon.process.wait();
    assert!(matches!(open.rest().ending, Ending::Broken(_)));
}

#[test]
fn an_idle_daemon_and_scheduler_end_on_sigterm_with_0() {
    let mut daemon = Daemon::plan("h1").start();
    assert_eq!(daemon.stop().code(), Some(0));
    let mut scheduler = Scheduler::start();
    scheduler.process.signal(Signal::TERM);
    assert_eq!(scheduler.process.wait().code(), Some(0));
}

#[test]
fn it_starts_without_any_file_and_says_what_to_try() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let mut command = Process::command(binary("dfdaemon"));
    command.env("XDG_DATA_HOME", home.path()).env("HOME", home.path()).arg("--data-dir").arg(home.path().join("data"));
    command.args(["--proxy-addr", "127.0.0.1:0"]);
    let mut process = Process::start("dfdaemon", home.path(), &mut command);
    process.wait_for_file(&home.path().join("data/addresses.json"));
    let said = crate::harness::wait_for("what to try", || Some(process.log()).filter(|log| log.contains("curl")));
    assert!(said.contains("ca.pem"), "{said}");
}

#[test]
fn two_daemons_cannot_share_a_directory() {
    let daemon = Daemon::plan("h1").start();
    let mut command = Process::command(binary("dfdaemon"));
    command.arg("--data-dir").arg(daemon.data("")).args(["--proxy-addr", "127.0.0.1:0"]);
    let Done { ok, errors, .. } = run(&mut command);
    assert!(!ok, "{errors}");
    assert!(daemon.data("addresses.json").exists(), "the second has taken the first one's addresses");
}

#[test]
fn a_hangup_takes_over_what_is_logged_and_ends_nothing() {
    let origin = Origin::start();
    let plan = Daemon::plan("h1");
    let file = plan.data().with_file_name("dfdaemon.yaml");
    let daemon = plan.start();
    origin.put("/page", Page::plain("a page"));
    let change = |port: serde_json::Value| {
        let mut config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&file).expect("the configuration")).expect("JSON");
        config["health"]["server"]["port"] = port;
        std::fs::write(&file, config.to_string()).expect("a writable directory");
        daemon.process.signal(Signal::HUP);
    };
    let log = |what: &str| wait_for(what, || daemon.process.log().contains(what).then_some(()));
    change("seventy".into());
    log("the configuration has a mistake");
    change(1.into());
    log("need a restart");
    daemon.get(&origin.url("/page")).assert_is(b"a page");
    assert_eq!(daemon.admin("/ready").body, "ready\n");
}

#[test]
fn the_units_are_as_systemd_wants_them() {
    let Some(analyze) = Tool::find("systemd-analyze") else { return };
    let home = tempfile::tempdir().expect("a temporary directory");
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/systemd");
    std::fs::copy(units.join("dfdaemon.socket"), home.path().join("dfdaemon.socket")).expect("the unit");
    for (unit, program) in [("dfdaemon.service", "dfdaemon"), ("damselfly-scheduler.service", "scheduler")] {
        let text = std::fs::read_to_string(units.join(unit)).expect("the unit");
        let installed = format!("/usr/local/bin/{program}");
        assert!(text.contains(&installed), "{text}");
        let here = home.path().join(unit);
        std::fs::write(&here, text.replace(&installed, &binary(program).to_string_lossy()))
            .expect("a writable directory");
        let done = analyze.run(&["verify", &here.to_string_lossy()]);
        assert!(done.ok && done.errors.is_empty(), "{unit}: {}", done.errors);
    }
    let done = analyze.run(&["verify", &home.path().join("dfdaemon.socket").to_string_lossy()]);
    assert!(done.ok && done.errors.is_empty(), "dfdaemon.socket: {}", done.errors);
}
