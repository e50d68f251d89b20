//! What breaks on one host, and what the client sees of it.

use std::time::Duration;

use crate::harness::{Ask, Daemon, Ending, Gate, MIB, Mount, Origin, Page, random};

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

#[test]
fn an_origin_that_pauses_is_waited_for() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    let file = random(9 * MIB, 207);
    origin.put("/big.bin", Page::file(file.clone()).pace(MIB, Duration::from_millis(100)));
    daemon.get(&origin.url("/big.bin")).assert_is(&file);
}
