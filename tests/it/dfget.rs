//! `dfget`, with a daemon and without one.

use std::process::Command;

use crate::harness::{Daemon, MIB, Origin, Page, Process, binary, random, run};

fn dfget(arguments: &[&str]) -> Command {
    let mut command = Process::command(binary("dfget"));
    command.args(arguments);
    command
}

#[test]
fn it_downloads_through_the_daemon() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    let home = tempfile::tempdir().expect("a temporary directory");
    let file = random(13 * MIB, 800);
    origin.put("/big.bin", Page::file(file.clone()));
    let output = home.path().join("out");
    let socket = daemon.socket();
    for _ in 0..2 {
        let mut command = dfget(&[&origin.url("/big.bin"), "-O", &output.to_string_lossy()]);
        let done = run(command.arg("--endpoint").arg(&socket));
        assert!(done.ok, "{}", done.errors);
        assert!(std::fs::read(&output).expect("the file") == file, "the file differs");
        assert!(!done.errors.contains("direct"), "{}", done.errors);
    }
    let sent = origin.sent("/big.bin");
    assert!(sent < file.len() as u64 + (64 << 10), "two downloads cost {sent}");
}

#[test]
fn without_a_daemon_it_goes_direct_and_says_so() {
    let origin = Origin::start();
    let home = tempfile::tempdir().expect("a temporary directory");
    let file = random(MIB, 801);
    origin.put("/big.bin", Page::file(file.clone()));
    let output = home.path().join("out");
    let nobody = home.path().join("nobody.sock");
    let mut command = dfget(&[&origin.url("/big.bin"), "-O", &output.to_string_lossy()]);
    let done = run(command.arg("--endpoint").arg(&nobody));
    assert!(done.ok, "{}", done.errors);
    assert!(done.errors.contains("direct"), "{}", done.errors);
    assert!(std::fs::read(&output).expect("the file") == file, "the file differs");

    std::fs::remove_file(&output).expect("the file");
    let mut command = dfget(&[&origin.url("/big.bin"), "-O", &output.to_string_lossy(), "--no-fallback"]);
    let done = run(command.arg("--endpoint").arg(&nobody));
    assert!(!done.ok, "it went direct although that was forbidden");
    assert!(!output.exists());
}

#[test]
fn what_fails_leaves_no_file() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    let home = tempfile::tempdir().expect("a temporary directory");
    origin.put("/cut.bin", Page::plain(random(9 * MIB, 802)).cut_after(MIB));
    for path in ["/nothing.bin", "/cut.bin"] {
        let output = home.path().join("out");
        let mut command = dfget(&[&origin.url(path), "-O", &output.to_string_lossy()]);
        let done = run(command.arg("--endpoint").arg(daemon.socket()));
        assert!(!done.ok, "{path}: {}", done.errors);
        assert!(!output.exists(), "{path} left a file");
    }
}
