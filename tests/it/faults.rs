//! What breaks on one host, and what the client sees of it.

use std::time::Duration;

use crate::harness::{Ask, Daemon, Ending, Gate, MIB, Mount, Origin, Page, random, wait_for};

#[test]
fn an_origin_that_is_cut_in_the_middle_never_makes_a_whole_file() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    let file = random(13 * MIB, 200);
    for path in ["/big.bin", "/nameless", "/stubborn.bin"] {
        let page = Page::file(file.clone()).cut_after(5 * MIB);
        origin.put(path, if path == "/stubborn.bin" { page.without_ranges() } else { page });
        let url = origin.url(path);
        let answer = daemon.get(&url);
        assert_eq!(answer.status, 200);
        // It may have been mended by asking again from where it broke; it may not end early and look whole.
        match answer.ending {
            Ending::Whole => answer.assert_body(&file),
            Ending::Broken(_) => answer.assert_body(&file[..answer.body.len()]),
        }
        origin.put(path, Page::file(file.clone()));
        daemon.get(&url).assert_is(&file);
    }
}

#[test]
fn an_origin_that_changes_while_it_is_cut_never_makes_a_mixture() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    let (old, new) = (random(13 * MIB, 201), random(13 * MIB, 202));
    let gate = Gate::at(4 * MIB);
    origin.put("/big.bin", Page::file(old.clone()).gate(&gate).cut_after(6 * MIB));
    let mut open = Ask::get(&origin.url("/big.bin")).via(daemon.proxy()).open();
    let begun = open.read(4 * MIB);
    origin.put("/big.bin", Page::file(new.clone()));
    gate.open();
    let rest = open.rest();
    assert!(matches!(rest.ending, Ending::Broken(_)), "the old file cannot be had any more");
    rest.assert_body(&old[begun.len()..begun.len() + rest.body.len()]);
    daemon.get(&origin.url("/big.bin")).assert_is(&new);
}

#[test]
fn after_kill_9_the_pieces_are_used_again() {
    let origin = Origin::start();
    let mut daemon = Daemon::plan("h1").start();
    let file = random(21 * MIB, 203);
    origin.put("/big.bin", Page::file(file.clone()));
    let url = origin.url("/big.bin");
    daemon.get(&url).assert_is(&file);
    daemon.wait_until_recorded(21);
    let sent = origin.sent("/big.bin");
    daemon.kill_and_start_again();
    daemon.get(&url).assert_is(&file);
    let again = origin.sent("/big.bin") - sent;
    assert!(again < MIB as u64, "the origin was asked for {again} bytes again: {}", daemon.process.log());
}

#[test]
fn kill_9_in_the_middle_never_serves_a_half_written_piece() {
    let origin = Origin::start();
    let mut daemon = Daemon::plan("h1").start();
    let file = random(21 * MIB, 204);
    for (number, at) in [MIB / 2, 5 * MIB, 10 * MIB, 20 * MIB].into_iter().enumerate() {
        let gate = Gate::at(at);
        let path = format!("/{number}.bin");
        origin.put(&path, Page::file(file.clone()).gate(&gate));
        let mut open = Ask::get(&origin.url(&path)).via(daemon.proxy()).open();
        open.read(at);
        daemon.kill_and_start_again();
        gate.open();
        assert!(matches!(open.rest().ending, Ending::Broken(_)));
        daemon.get(&origin.url(&path)).assert_is(&file);
    }
}

#[test]
fn rot_on_its_own_disk_is_found_after_a_restart() {
    let origin = Origin::start();
    let mut daemon = Daemon::plan("h1").start();
    let file = random(13 * MIB, 205);
    origin.put("/big.bin", Page::file(file.clone()));
    daemon.get(&origin.url("/big.bin")).assert_is(&file);
    assert!(daemon.stop().success());
    daemon.rot(file.len(), 5 * MIB);
    daemon.start_again();
    daemon.get(&origin.url("/big.bin")).assert_is(&file);
}

#[test]
fn a_full_disk_is_no_reason_to_fail() {
    let origin = Origin::start();
    let plan = Daemon::plan("h1");
    let Some(_mount) = Mount::small(&plan.data(), 16 * MIB) else { return };
    let daemon = plan.start();
    let file = random(40 * MIB, 206);
    for path in ["/big.bin", "/nameless"] {
        origin.put(path, Page::file(file.clone()));
        for _ in 0..2 {
            daemon.get(&origin.url(path)).assert_is(&file);
        }
    }
    assert_eq!(daemon.admin("/healthy").status, 200);
}

/// What a pull of a large file costs the origin, which is whole in any case.
fn cost(origin: &Origin, daemon: &Daemon, path: &str, file: &[u8]) -> u64 {
    let before = origin.sent(path);
    daemon.get(&origin.url(path)).assert_is(file);
    origin.sent(path) - before
}

#[track_caller]
fn assert_is_a_proxy_only(origin: &Origin, daemon: &Daemon, path: &str, file: &[u8]) {
    for _ in 0..2 {
        assert!(cost(origin, daemon, path, file) >= file.len() as u64);
    }
    let ready = daemon.admin("/ready");
    assert_eq!(ready.status, 200);
    assert!(String::from_utf8_lossy(&ready.body).contains("no content is stored"), "{ready:?}");
    assert_eq!(daemon.metric(&["storage_available"]), 0.0);
    let log = daemon.process.log();
    assert_eq!(log.lines().filter(|line| line.contains("no content is stored")).count(), 1, "{log}");
}

#[track_caller]
fn assert_comes_back(origin: &Origin, daemon: &Daemon, path: &str, file: &[u8]) {
    wait_for("the store", || (daemon.metric(&["storage_available"]) == 1.0).then_some(()));
    wait_for("content that is held", || (cost(origin, daemon, path, file) <= 1).then_some(()));
    wait_for("the word of it", || (daemon.admin("/ready").body == "ready\n").then_some(()));
}

#[test]
fn a_directory_that_cannot_be_used_at_the_start_makes_a_proxy_that_becomes_more() {
    let origin = Origin::start();
    let plan = Daemon::plan("h1");
    let file = random(9 * MIB, 208);
    origin.put("/big.bin", Page::file(file.clone()));
    let blocked = plan.data().with_file_name("blocked");
    std::fs::write(&blocked, "this is no directory").expect("a writable directory");
    let daemon = plan.set("storage.dir", blocked.join("storage").to_string_lossy()).start();
    assert_is_a_proxy_only(&origin, &daemon, "/big.bin", &file);
    std::fs::remove_file(&blocked).expect("the file can be removed");
    assert_comes_back(&origin, &daemon, "/big.bin", &file);
}

#[test]
fn a_directory_that_vanishes_is_made_again() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    let file = random(9 * MIB, 209);
    origin.put("/big.bin", Page::file(file.clone()));
    assert!(cost(&origin, &daemon, "/big.bin", &file) >= file.len() as u64);
    std::fs::remove_dir_all(daemon.data("storage")).expect("the directory can be removed");
    wait_for("content that is asked for again", || (cost(&origin, &daemon, "/big.bin", &file) > 1).then_some(()));
    assert_comes_back(&origin, &daemon, "/big.bin", &file);
}

#[test]
fn an_origin_that_pauses_is_waited_for() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    let file = random(9 * MIB, 207);
    origin.put("/big.bin", Page::file(file.clone()).pace(MIB, Duration::from_millis(100)));
    daemon.get(&origin.url("/big.bin")).assert_is(&file);
}
