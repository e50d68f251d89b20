//! Limits of bandwidth. A busy machine makes transfers slower and never faster, so what is looked at is that no more than
//! the limit moved, who had how much of it, and that nobody was blamed for it.

use std::fs;
use std::time::Instant;

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{
    Ask, Daemon, DaemonPlan, Done, Fleet, MIB, Origin, Page, Process, all, binary, random, run, wait_for,
};

/// Bytes a second of most limits here.
const RATE: u64 = 4_000_000;

/// What may move at once besides.
const BURST: u64 = 300_000;

/// Panics if so many bytes have come faster than the limit allows, give or take three in a hundred.
#[track_caller]
fn assert_limited(bytes: u64, begun: Instant, rate: u64) {
    let most = rate as f64 * 1.03 * begun.elapsed().as_secs_f64() + BURST as f64;
    assert!(bytes as f64 <= most, "{bytes} bytes came in {:?} at {rate} bytes a second", begun.elapsed());
}

fn dfctl(daemon: &Daemon, arguments: &[&str]) -> Done {
    let mut command = Process::command(binary("dfctl"));
    command.arg("limit").args(arguments).arg("-e").arg(daemon.socket());
    run(&mut command)
}

/// Sets a limit of a running daemon.
#[track_caller]
fn set(daemon: &Daemon, class: &str, rate: &str) {
    let done = dfctl(daemon, &[class, rate]);
    assert!(done.ok, "{}", done.errors);
}

/// Hosts that take no parent for stalled because this machine is busy.
fn patient(hosts: usize) -> Fleet {
    Fleet::start_with(hosts, |plan| plan.set("download.stallTimeout", "1m"))
}

/// A download in pieces of which each takes seconds at the limits here: longer than parents are given for one that no
/// limit of ours slows.
fn large_pieces(host: &Daemon, url: &str) -> Ask {
    Ask::get(url).via(host.proxy()).header("X-Dragonfly-Piece-Length", "4194304")
}

fn limited(key: &str, rate: u64) -> DaemonPlan {
    Daemon::plan("h1").set(key, rate)
}

#[test]
fn what_is_downloaded_from_the_source_is_limited_by_either_limit() {
    let origin = Origin::start();
    let file = random(9 * MIB, 900);
    for key in ["download.bandwidthLimit", "download.backToSourceBandwidthLimit", "download.bandwidthLimitPerTask"] {
        let daemon = limited(key, RATE).start();
        origin.put("/big.bin", Page::file(file.clone()));
        let begun = Instant::now();
        daemon.get(&origin.url("/big.bin")).assert_is(&file);
        assert_limited(file.len() as u64, begun, RATE);
        assert!(daemon.metric(&["bandwidth_waited_bytes"]) > 0.0, "{key}");
        // What is here already is not downloaded.
        let begun = Instant::now();
        daemon.get(&origin.url("/big.bin")).assert_is(&file);
        let waited = daemon.metric(&["bandwidth_waited_bytes"]);
        assert!(waited <= 2.0 * file.len() as f64, "{key}: {waited} in {:?}", begun.elapsed());
    }
}

#[test]
fn two_tasks_together_have_no_more_than_one() {
    let origin = Origin::start();
    let daemon = limited("download.bandwidthLimit", RATE).start();
    let files = [random(9 * MIB, 901), random(9 * MIB, 902)];
    for (file, path) in files.iter().zip(["/a.bin", "/b.bin"]) {
        origin.put(path, Page::file(file.clone()));
    }
    let begun = Instant::now();
    let answers = all(["/a.bin", "/b.bin"].map(|path| Ask::get(&origin.url(path)).via(daemon.proxy())));
    answers[0].assert_is(&files[0]);
    answers[1].assert_is(&files[1]);
    assert_limited(18 * MIB as u64, begun, RATE);
}

#[test]
fn a_host_that_its_own_limit_slows_gives_up_no_peer_and_asks_the_source_for_nothing() {
    let origin = Origin::start();
    let fleet = patient(2);
    let file = random(9 * MIB, 903);
    origin.put("/big.bin", Page::file(file.clone()));
    let url = origin.url("/big.bin");
    large_pieces(&fleet.hosts[0], &url).send().assert_is(&file);
    let sent = origin.sent("/big.bin");
    let slow = &fleet.hosts[1];
    set(slow, "download", "1MB");
    let begun = Instant::now();
    large_pieces(slow, &url).send().assert_is(&file);
    assert_limited(file.len() as u64, begun, 1_000_000);
    let late = origin.sent("/big.bin") - sent;
    assert!(late < 64 << 10, "the slow host cost the source {late}\n{}", slow.process.log());
    assert_eq!(slow.metric(&["piece_failure_total"]), 0.0, "{}", slow.process.log());
}

#[test]
fn two_hosts_that_their_limits_slow_cost_the_source_one_file() {
    let origin = Origin::start();
    let fleet = patient(2);
    fleet.hosts.iter().for_each(|host| set(host, "download", "2MB"));
    let file = random(9 * MIB, 904);
    origin.put("/big.bin", Page::file(file.clone()));
    let begun = Instant::now();
    let url = origin.url("/big.bin");
    for answer in all(fleet.hosts.iter().map(|host| large_pieces(host, &url))) {
        answer.assert_is(&file);
    }
    assert_limited(file.len() as u64, begun, 2_000_000);
    let sent = origin.sent("/big.bin");
    let log = || fleet.hosts.iter().map(|host| host.process.log()).collect::<String>();
    assert!(sent <= (file.len() + file.len() / 20) as u64, "the source sent {sent}\n{}", log());
    for host in &fleet.hosts {
        assert_eq!(host.metric(&["piece_failure_total"]), 0.0, "{}", log());
    }
}

#[test]
fn many_tasks_at_a_slow_limit_give_up_nobody() {
    let origin = Origin::start();
    let fleet = patient(2);
    let files: Vec<_> = (0..5).map(|number| random(9 * MIB, 920 + number)).collect();
    let urls: Vec<_> = (0..5).map(|number| origin.url(&format!("/{number}.bin"))).collect();
    for (number, file) in files.iter().enumerate() {
        origin.put(&format!("/{number}.bin"), Page::file(file.clone()));
        large_pieces(&fleet.hosts[0], &urls[number]).send().assert_is(file);
    }
    let sent = |number: usize| origin.sent(&format!("/{number}.bin"));
    let before: u64 = (0..5).map(sent).sum();
    let slow = &fleet.hosts[1];
    set(slow, "download", "5MB");
    let begun = Instant::now();
    let ask = |(number, url): (usize, &String)| {
        large_pieces(slow, url).header("X-Dragonfly-Priority", if number == 0 { "0" } else { "6" })
    };
    let answers = all(urls.iter().enumerate().map(ask));
    for (answer, file) in answers.iter().zip(&files) {
        answer.assert_is(file);
    }
    assert_limited(5 * 9 * MIB as u64, begun, 5_000_000);
    let late = (0..5).map(sent).sum::<u64>() - before;
    assert!(late < 5 * (64 << 10), "the slow host cost the source {late}\n{}", slow.process.log());
    assert_eq!(slow.metric(&["piece_failure_total"]), 0.0, "{}", slow.process.log());
    assert_eq!(fleet.hosts[0].metric(&["upload_piece_failure_total"]), 0.0, "{}", fleet.hosts[0].process.log());
}

#[test]
fn what_is_sent_to_other_hosts_is_limited() {
    let origin = Origin::start();
    let fleet = Fleet::start(3);
    let file = random(9 * MIB, 905);
    origin.put("/big.bin", Page::file(file.clone()));
    let url = origin.url("/big.bin");
    fleet.hosts[0].get(&url).assert_is(&file);
    set(&fleet.hosts[0], "upload", "2MB");
    let begun = Instant::now();
    for answer in all(fleet.hosts[1..].iter().map(|host| Ask::get(&url).via(host.proxy()))) {
        answer.assert_is(&file);
    }
    let sent = fleet.hosts[0].metric(&["upload_traffic_total"]);
    assert!(sent > MIB as f64, "it sent {sent}");
    assert_limited(sent as u64, begun, 2_000_000);
}

#[test]
fn what_is_passed_on_is_limited() {
    let origin = Origin::start();
    let daemon = limited("proxy.passThroughBandwidthLimit", 2_000_000).start();
    let file = random(3 * MIB, 906);
    origin.put("/page", Page::plain(file.clone()));
    let begun = Instant::now();
    daemon.get(&origin.url("/page")).assert_is(&file);
    assert_limited(file.len() as u64, begun, 2_000_000);
    // What is small takes part, and so do tunnels; the tasks do not.
    let begun = Instant::now();
    origin.put("/small", Page::plain(file.slice(..100_000)));
    for _ in 0..20 {
        daemon.get(&origin.url("/small")).assert_is(&file[..100_000]);
    }
    assert_limited(2_000_000, begun, 2_000_000);
    let before = daemon.metric(&["bandwidth_waited_bytes"]);
    let big = random(9 * MIB, 907);
    origin.put("/big.bin", Page::file(big.clone()));
    daemon.get(&origin.url("/big.bin")).assert_is(&big);
    assert_eq!(daemon.metric(&["bandwidth_waited_bytes"]), before, "a task is not passed on");
}

/// How many bytes a daemon holds of the content of this length.
fn held(daemon: &Daemon, length: usize) -> u64 {
    let tasks: Value = serde_json::from_slice(&daemon.admin("/tasks").body).expect("JSON");
    let tasks = tasks["tasks"].as_array().expect("tasks");
    tasks.iter().find(|task| task["length"] == length).map_or(0, |task| task["held"].as_u64().expect("bytes"))
}

#[test]
fn an_urgent_download_passes_one_that_nobody_waits_for() {
    let origin = Origin::start();
    let daemon = limited("download.bandwidthLimit", 1_000_000).start();
    let (late, urgent) = (random(40 * MIB, 908), random(9 * MIB, 909));
    origin.put("/late.bin", Page::file(late.clone()));
    origin.put("/urgent.bin", Page::file(urgent.clone()));
    let prefetch = Ask::get(&origin.url("/late.bin")).via(daemon.proxy()).header("X-Dragonfly-Priority", "3");
    let _reads_on = prefetch.open();
    let home = tempfile::tempdir().expect("a temporary directory");
    let output = home.path().join("urgent.bin");
    let mut dfget = Process::command(binary("dfget"));
    dfget.arg(origin.url("/urgent.bin")).arg("-O").arg(&output).args(["--priority", "6"]);
    dfget.arg("--endpoint").arg(daemon.socket());
    let dfget = std::thread::spawn(move || run(&mut dfget));
    // From here on both want more than there is.
    wait_for("the urgent one to begin", || (held(&daemon, urgent.len()) >= MIB as u64).then_some(()));
    let before = held(&daemon, late.len());
    let done = dfget.join().expect("dfget runs");
    let passed = held(&daemon, late.len()) - before;
    assert!(done.ok && fs::read(&output).expect("the file") == urgent, "{}", done.errors);
    // A sixteenth of what the other had, what was under way, and a piece that was nearly whole.
    assert!(passed < urgent.len() as u64 / 3, "{passed} bytes of the prefetch came meanwhile");
    for header in origin.seen("/late.bin").iter().flat_map(|seen| &seen.headers) {
        assert!(!header.0.to_ascii_lowercase().starts_with("x-dragonfly"), "{header:?} reached the origin");
    }
}

#[test]
fn limits_are_shown_and_changed_while_a_download_runs() {
    let origin = Origin::start();
    let plan = Daemon::plan("h1").set("download.bandwidthLimit", "64KiB");
    let config = plan.data().with_file_name("dfdaemon.yaml");
    let daemon = plan.start();
    let file = random(9 * MIB, 910);
    origin.put("/big.bin", Page::file(file.clone()));
    let mut open = Ask::get(&origin.url("/big.bin")).via(daemon.proxy()).open();
    let begun = open.read(10_000);
    let shown = dfctl(&daemon, &["download", "-o", "json"]);
    let shown: Value = serde_json::from_slice(&shown.output).expect("JSON");
    assert_eq!((shown[0]["class"].as_str(), shown[0]["total"].as_u64()), (Some("download"), Some(64 << 10)), "{shown}");
    wait_for("a transfer that waits", || {
        let shown = dfctl(&daemon, &["download", "-o", "json"]);
        let shown: Value = serde_json::from_slice(&shown.output).expect("JSON");
        (shown[0]["waiting"].as_u64() > Some(0)).then_some(())
    });
    // At the limit that it began with this would take more than two minutes.
    set(&daemon, "download", "off");
    open.rest().assert_body(&file[begun.len()..]);
    let table = String::from_utf8(dfctl(&daemon, &[]).output).expect("text");
    assert!(table.contains("pass-through") && !table.contains("64KiB"), "{table}");

    // What is configured holds again after SIGHUP.
    let mut changed: Value = serde_json::from_slice(&fs::read(&config).expect("the configuration")).expect("JSON");
    changed["download"]["bandwidthLimit"] = "3MB".into();
    changed["upload"]["bandwidthLimit"] = "5MB".into();
    fs::write(&config, changed.to_string()).expect("a writable directory");
    daemon.process.signal(Signal::HUP);
    wait_for("the configured limits", || {
        let limit = |class: &str| daemon.metric(&["bandwidth_limit{", class]);
        (limit("\"download\"") == 3e6 && limit("upload") == 5e6).then_some(())
    });
    assert!(!daemon.process.log().contains("they need a restart"), "{}", daemon.process.log());
}

#[test]
fn limits_are_set_with_sense_and_at_the_socket_only() {
    let daemon = Daemon::plan("h1").start();
    for (arguments, says) in [
        (&["downloads", "1MB"][..], "back-to-source"),
        (&["download", "fast"], "is not a size"),
        (&["download", "1KiB"], "less than"),
    ] {
        let done = dfctl(&daemon, arguments);
        assert!(!done.ok && done.errors.contains(says), "{arguments:?}: {}", done.errors);
    }
    let done = dfctl(&daemon, &["upload", "2MiB", "--per-task"]);
    assert!(done.ok && String::from_utf8_lossy(&done.output).contains("2MiB/s"), "{}", done.errors);
    let url = "http://damselfly.local/limits";
    assert_eq!(daemon.get(url).status, 403);
    let put = Ask::new("PUT", &format!("{url}/upload?total=1000000")).via(daemon.proxy()).send();
    assert_eq!(put.status, 403);
    assert_eq!(daemon.metric(&["bandwidth_limit{", "upload"]), 0.0);
}

#[test]
fn a_slow_host_holds_up_no_other() {
    let origin = Origin::start();
    let fleet = Fleet::start(3);
    let file = random(40 * MIB, 930);
    origin.put("/big.bin", Page::file(file.clone()));
    let url = origin.url("/big.bin");
    set(&fleet.hosts[0], "download", "256KB");
    let mut slow = Ask::get(&url).via(fleet.hosts[0].proxy()).open();
    slow.read(100_000);
    for answer in all(fleet.hosts[1..].iter().map(|host| Ask::get(&url).via(host.proxy()))) {
        answer.assert_is(&file);
    }
    // It had the lease of everything. What it has brought of that meanwhile is no measure of what the others got.
    let held = held(&fleet.hosts[0], file.len());
    assert!(held < file.len() as u64 / 2, "the others waited until the slow host had {held} bytes");
    // What was on its way to the slow host when its lease was cut is lost: some mebibytes in the buffers of the kernel.
    let sent = origin.sent("/big.bin");
    assert!(sent < file.len() as u64 * 5 / 4, "the source sent {sent}");
}
