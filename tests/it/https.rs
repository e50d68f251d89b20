//! HTTPS: intercepted where it is asked for, tunnelled blind everywhere else.

use std::os::unix::fs::PermissionsExt as _;

use crate::harness::{Answer, Ask, Authority, Daemon, MIB, Origin, Page, random};

fn issued_by_the_origins_authority(answer: &Answer) -> bool {
    let leaf = answer.leaf.as_deref().expect("a certificate");
    leaf.windows(Authority::NAME.len()).any(|window| window == Authority::NAME.as_bytes())
}

#[test]
fn a_listed_host_is_intercepted_and_shared() {
    let authority = Authority::new();
    let origin = Origin::start_tls(&authority);
    let plan = Daemon::plan("h1").intercept("127.0.0.1").intercept("localhost");
    let by_name = origin.url_by_name("/big.bin");
    let name = by_name.trim_start_matches("https://").trim_end_matches("/big.bin").to_string();
    let daemon =
        plan.trusted_upstream(&origin.authority(), authority.pem()).trusted_upstream(&name, authority.pem()).start();
    let file = random(9 * MIB, 300);
    origin.put("/big.bin", Page::file(file.clone()));
    for url in [origin.url("/big.bin"), by_name] {
        let before = origin.sent("/big.bin");
        for _ in 0..2 {
            let answer = Ask::get(&url).via(daemon.proxy()).trust(&daemon.ca()).send();
            answer.assert_is(&file);
            assert!(!issued_by_the_origins_authority(&answer), "{url} was not intercepted");
        }
        let sent = origin.sent("/big.bin") - before;
        assert!(sent < file.len() as u64 + (64 << 10), "{url} cost {sent}");
    }
}

#[test]
fn any_other_host_is_tunnelled_blind() {
    let authority = Authority::new();
    let origin = Origin::start_tls(&authority);
    let daemon = Daemon::plan("h1").intercept("example.org").start();
    let file = random(9 * MIB, 301);
    origin.put("/big.bin", Page::file(file.clone()));
    for url in [origin.url("/big.bin"), origin.url_by_name("/big.bin")] {
        let answer = Ask::get(&url).via(daemon.proxy()).trust(authority.pem()).send();
        answer.assert_is(&file);
        assert!(issued_by_the_origins_authority(&answer), "{url} was intercepted");
    }
}

#[test]
fn an_origin_that_cannot_be_verified_is_not_believed() {
    let origin = Origin::start_tls(&Authority::new());
    let daemon = Daemon::plan("h1").intercept("127.0.0.1").start();
    origin.put("/big.bin", Page::file(random(9 * MIB, 302)));
    origin.put("/page", Page::plain("hello"));
    for path in ["/big.bin", "/page"] {
        let answer = Ask::get(&origin.url(path)).via(daemon.proxy()).trust(&daemon.ca()).send();
        assert_eq!(answer.status, 502, "{answer:?}");
        assert_ne!(answer.line("x-dragonfly-error-type"), "");
        assert_eq!(origin.seen(path).len(), 0);
    }
}

#[test]
fn the_authoritys_key_is_nobody_elses_and_stays() {
    let mut daemon = Daemon::plan("h1").intercept("example.org").start();
    let ca = daemon.ca();
    assert!(ca.starts_with("-----BEGIN CERTIFICATE-----"), "{ca}");
    assert!(!ca.contains("PRIVATE KEY"));
    let mut keys = 0;
    for entry in std::fs::read_dir(daemon.data("")).expect("the data directory").flatten() {
        let text = std::fs::read(entry.path()).unwrap_or_default();
        if text.windows(11).any(|window| window == b"PRIVATE KEY") {
            keys += 1;
            let mode = entry.metadata().expect("the file").permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{:?}", entry.path());
        }
    }
    assert_eq!(keys, 1);
    daemon.kill_and_start_again();
    assert_eq!(daemon.ca(), ca, "a new authority was made");
}
