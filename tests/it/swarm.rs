//! Several hosts and a scheduler: the origin sends a file about once, whatever dies on the way.

use crate::harness::{Ask, Daemon, Fleet, Gate, MIB, Origin, PATIENCE, Page, Scheduler, all, random, wait_for};

/// A twentieth more than the file, as the promise says.
fn about_once(length: usize) -> u64 {
    (length + length / 20) as u64
}

#[test]
fn three_hosts_at_once_cost_the_origin_one_file() {
    let origin = Origin::start();
    let fleet = Fleet::start(3);
    let file = random(40 * MIB + 5, 100);
    origin.put("/big.bin", Page::file(file.clone()));
    for answer in fleet.get_everywhere(&origin.url("/big.bin")) {
        answer.assert_is(&file);
    }
    let sent = origin.sent("/big.bin");
    assert!(sent <= about_once(file.len()), "the origin sent {sent} of {}", file.len());
}

#[test]
fn three_hosts_at_once_on_an_address_without_a_telling_name() {
    let origin = Origin::start();
    let fleet = Fleet::start_with(3, |plan| plan.set("proxy.rules[]", serde_json::json!({ "regex": "nameless" })));
    let file = random(40 * MIB, 101);
    origin.put("/nameless", Page::file(file.clone()));
    for answer in fleet.get_everywhere(&origin.url("/nameless")) {
        answer.assert_is(&file);
    }
    let sent = origin.sent("/nameless");
    assert!(sent <= about_once(file.len()), "the origin sent {sent} of {}", file.len());
}

#[test]
fn a_late_host_costs_the_origin_next_to_nothing() {
    let origin = Origin::start();
    let fleet = Fleet::start(2);
    let file = random(21 * MIB, 102);
    origin.put("/big.bin", Page::file(file.clone()));
    let url = origin.url("/big.bin");
    fleet.hosts[0].get(&url).assert_is(&file);
    let sent = origin.sent("/big.bin");
    fleet.hosts[1].get(&url).assert_is(&file);
    let late = origin.sent("/big.bin") - sent;
    assert!(late < 64 << 10, "the late host cost {late}");
    assert!(fleet.hosts[1].metric(&["traffic", "remote_peer"]) > 0.0, "{}", fleet.hosts[1].process.log());
}

#[test]
fn a_host_takes_pieces_from_one_that_is_still_pulling() {
    let origin = Origin::start();
    let fleet = Fleet::start(2);
    let file = random(20 * MIB, 103);
    let gate = Gate::at(9 * MIB);
    origin.put("/big.bin", Page::file(file.clone()).gate(&gate));
    let ask = |host: usize| Ask::get(&origin.url("/big.bin")).via(fleet.hosts[host].proxy());
    let mut first = ask(0).open();
    first.read(8 * MIB);
    let mut second = ask(1).open();
    let begun = second.read(8 * MIB);
    assert!(begun[..] == file[..begun.len()], "the neighbour's bytes differ");
    gate.open();
    second.rest().assert_body(&file[begun.len()..]);
    first.rest();
    let sent = origin.sent("/big.bin");
    assert!(sent <= about_once(file.len()), "the origin sent {sent}");
}

#[test]
fn the_parent_is_killed_in_the_middle() {
    let origin = Origin::start();
    let mut fleet = Fleet::start(2);
    let file = random(20 * MIB, 104);
    let gate = Gate::at(9 * MIB);
    origin.put("/big.bin", Page::file(file.clone()).gate(&gate));
    let ask = |host: &Daemon| Ask::get(&origin.url("/big.bin")).via(host.proxy());
    let mut first = ask(&fleet.hosts[0]).open();
    first.read(8 * MIB);
    let mut second = ask(&fleet.hosts[1]).open();
    let begun = second.read(4 * MIB);
    fleet.hosts[0].process.kill();
    gate.open();
    let rest = second.rest();
    assert_eq!(rest.ending, crate::harness::Ending::Whole);
    rest.assert_body(&file[begun.len()..]);
    assert!(begun[..] == file[..begun.len()]);
}

#[test]
fn the_scheduler_is_killed_in_the_middle() {
    let origin = Origin::start();
    let mut fleet = Fleet::start(2);
    let file = random(20 * MIB, 105);
    let gate = Gate::at(9 * MIB);
    origin.put("/big.bin", Page::file(file.clone()).gate(&gate));
    let ask = |host: &Daemon| Ask::get(&origin.url("/big.bin")).via(host.proxy());
    let mut first = ask(&fleet.hosts[0]).open();
    let one = first.read(8 * MIB);
    let mut second = ask(&fleet.hosts[1]).open();
    let two = second.read(4 * MIB);
    fleet.scheduler.process.kill();
    gate.open();
    first.rest().assert_body(&file[one.len()..]);
    second.rest().assert_body(&file[two.len()..]);

    let other = random(9 * MIB, 106);
    origin.put("/other.bin", Page::file(other.clone()));
    fleet.hosts[1].get(&origin.url("/other.bin")).assert_is(&other);
}

#[test]
fn without_a_scheduler_a_host_starts_and_serves() {
    let origin = Origin::start();
    let file = random(9 * MIB, 107);
    origin.put("/big.bin", Page::file(file.clone()));
    // Nobody listens on port 9 here.
    let daemon = Daemon::plan("h1").set("scheduler.addrs[]", "127.0.0.1:9").start();
    daemon.get(&origin.url("/big.bin")).assert_is(&file);
    assert_eq!(daemon.admin("/healthy").status, 200);
}

#[test]
fn a_restarted_scheduler_learns_again_what_hosts_hold() {
    let origin = Origin::start();
    let fleet = Fleet::start_with(2, |plan| plan.set("scheduler.announceInterval", "1s"));
    let file = random(13 * MIB, 108);
    origin.put("/big.bin", Page::file(file.clone()));
    let url = origin.url("/big.bin");
    let whole = fleet.hosts[0].get(&url);
    whole.assert_is(&file);
    let task = whole.line("x-dragonfly-task-id").to_string();
    let sent = origin.sent("/big.bin");
    let Fleet { hosts, scheduler } = fleet;
    let scheduler = scheduler.kill_and_start_again();
    wait_for("the host to say what it holds", || (scheduler.holders(&task) == 1).then_some(()));
    hosts[1].get(&url).assert_is(&file);
    let late = origin.sent("/big.bin") - sent;
    // One piece, to compare what the host says that it holds with the source.
    assert!(late < (MIB + (64 << 10)) as u64, "the origin was asked for {late} bytes again");
}

#[test]
fn a_restarted_host_offers_what_it_holds() {
    let origin = Origin::start();
    let mut fleet = Fleet::start(2);
    let file = random(13 * MIB, 109);
    origin.put("/big.bin", Page::file(file.clone()));
    let url = origin.url("/big.bin");
    let whole = fleet.hosts[0].get(&url);
    whole.assert_is(&file);
    let task = whole.line("x-dragonfly-task-id").to_string();
    assert!(fleet.hosts[0].stop().success());
    fleet.hosts[0].start_again();
    wait_for("the host to say what it holds", || (fleet.scheduler.holders(&task) == 1).then_some(()));
    let sent = origin.sent("/big.bin");
    fleet.hosts[1].get(&url).assert_is(&file);
    let late = origin.sent("/big.bin") - sent;
    // One piece, to compare what the host says that it holds with the source.
    assert!(late < (MIB + (64 << 10)) as u64, "the origin was asked for {late} bytes again");
}

#[test]
fn what_a_host_evicted_is_not_offered_by_the_scheduler() {
    let origin = Origin::start();
    // Room for one of the two files.
    let fleet = Fleet::start_with(1, |plan| plan.set("gc.policy.diskThreshold", "30MiB"));
    let get = |path: &str, seed| {
        origin.put(path, Page::file(random(20 * MIB, seed)));
        let answer = fleet.hosts[0].get(&origin.url(path));
        assert_eq!(answer.status, 200);
        let task = answer.line("x-dragonfly-task-id").to_string();
        wait_for("the host to say what it holds", || (fleet.scheduler.holders(&task) == 1).then_some(()));
        task
    };
    let first = get("/first.bin", 111);
    let second = get("/second.bin", 112);
    wait_for("the host to say what it evicted", || (fleet.scheduler.holders(&first) == 0).then_some(()));
    assert_eq!(fleet.scheduler.holders(&second), 1);
}

#[test]
fn one_of_three_schedulers_is_killed_in_the_middle_of_fifty_downloads() {
    let origin = Origin::start();
    let mut schedulers = [Scheduler::start(), Scheduler::start(), Scheduler::start()];
    let plan = |number| schedulers.iter().fold(Daemon::plan(&format!("h{number}")), |plan, one| plan.scheduler(one));
    let hosts: Vec<Daemon> = (1..=5).map(|number| plan(number).start()).collect();
    let files: Vec<_> = (0..10).map(|number| (format!("/{number}.bin"), random(9 * MIB, 200 + number))).collect();
    let gate = Gate::at(3 * MIB);
    for (path, file) in &files {
        origin.put(path, Page::file(file.clone()).gate(&gate));
    }
    let asks: Vec<(Ask, _)> = files
        .iter()
        .flat_map(|(path, file)| hosts.iter().map(|host| (Ask::get(&origin.url(path)).via(host.proxy()), file.clone())))
        .collect();
    let (asks, wanted): (Vec<_>, Vec<_>) = asks.into_iter().unzip();
    assert_eq!(asks.len(), 50);
    let answers = std::thread::scope(|scope| {
        let running = scope.spawn(|| all(asks));
        // Every file is under way and held up at its gate.
        for (path, _) in &files {
            wait_for("the download to begin", || (origin.sent(path) >= 2 * MIB as u64).then_some(()));
        }
        schedulers[0].process.kill();
        gate.open();
        running.join().expect("the requests do not panic")
    });
    for (answer, file) in answers.iter().zip(&wanted) {
        answer.assert_is(file);
    }
    let sent: u64 = files.iter().map(|(path, _)| origin.sent(path)).sum();
    let whole: u64 = files.iter().map(|(_, file)| file.len() as u64).sum();
    // Without the swarm it would be five times. How much less it is depends on the machine: a source that is held up at
    // the gate counts as silent, and other hosts are sent to it. What it costs on links of known speed is the laboratory's
    // to say (docs/benchmarks/chaos.md, one-of-three-schedulers).
    assert!(sent <= whole * 4, "the origin sent {sent} of {whole}");
    eprintln!("the origin sent {:.2} times the files", sent as f64 / whole as f64);
}

#[test]
fn a_host_with_a_rotten_disk_is_found_out() {
    let origin = Origin::start();
    let fleet = Fleet::start(2);
    let file = random(20 * MIB, 110);
    origin.put("/big.bin", Page::file(file.clone()));
    let url = origin.url("/big.bin");
    fleet.hosts[0].get(&url).assert_is(&file);
    fleet.hosts[0].rot(file.len(), 6 * MIB);
    fleet.hosts[1].get(&url).assert_is(&file);
}

#[test]
fn garbage_at_the_data_port_closes_that_connection_only() {
    use std::io::{Read as _, Write as _};
    let origin = Origin::start();
    let fleet = Fleet::start(2);
    let file = random(9 * MIB, 111);
    origin.put("/big.bin", Page::file(file.clone()));
    let url = origin.url("/big.bin");
    fleet.hosts[0].get(&url).assert_is(&file);
    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[1, 0, 0xff, 0xff, 0xff, 0xff, 0, 0], &[7, 0, 0, 0, 0, 68, b'z']]
    {
        let mut stream = std::net::TcpStream::connect(fleet.hosts[0].data_address()).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a live socket");
        stream.write_all(garbage).expect("written");
        stream.shutdown(std::net::Shutdown::Write).expect("a live socket");
        let mut answer = Vec::new();
        // The end may come as a reset.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() < 1024, "{} bytes came back", answer.len());
    }
    let sent = origin.sent("/big.bin");
    fleet.hosts[1].get(&url).assert_is(&file);
    assert!(origin.sent("/big.bin") - sent < 64 << 10);
}
