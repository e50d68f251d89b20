//! One host: the first pull, the second, ranges, crowds, and what must not be shared.

use std::time::Duration;

use crate::harness::{Ask, Daemon, Ending, Framing, Gate, MIB, Origin, Page, all, curl, random};

/// What recognising a known file may cost at its origin.
const PROBE: u64 = 64 << 10;

#[test]
fn the_second_pull_costs_the_origin_nothing() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    let file = random(13 * MIB + 123, 1);
    origin.put("/big.bin", Page::file(file.clone()).header("X-Own", "a").header("X-Own", "b"));
    let url = origin.url("/big.bin");

    let cold = daemon.get(&url);
    cold.assert_is(&file);
    let sent = origin.sent("/big.bin");
    assert!(sent < file.len() as u64 + PROBE, "the cold pull cost {sent}");
    assert_eq!(cold.headers.get_all("x-own").iter().count(), 2, "{:?}", cold.headers);
    assert_eq!(cold.line("x-dragonfly-task-id").len(), 64, "{:?}", cold.headers);

    let warm = daemon.get(&url);
    warm.assert_is(&file);
    assert!(origin.sent("/big.bin") - sent <= 1, "the warm pull cost {}", origin.sent("/big.bin") - sent);
    for name in ["etag", "content-type", "content-length", "x-own"] {
        assert_eq!(warm.line(name), cold.line(name), "{name}");
    }
}

#[test]
fn a_large_answer_is_recognised_without_any_name() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    let file = random(24 * MIB, 2);
    origin.put("/download", Page::file(file.clone()));
    daemon.get(&origin.url("/download?id=7")).assert_is(&file);
    assert_eq!(origin.seen("/download").len(), 1, "the answer under way was thrown away");
    let sent = origin.sent("/download");
    daemon.get(&origin.url("/download?id=7")).assert_is(&file);
    // The second answer is given up at its head; what the sockets had swallowed by then is lost.
    let again = origin.sent("/download") - sent;
    assert!(again < 12 * MIB as u64, "the warm pull cost {again}");
}

#[test]
fn curl_through_the_proxy_gets_the_same_file() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    let file = random(9 * MIB, 3);
    origin.put("/big.iso", Page::file(file.clone()));
    let proxy = format!("http://{}", daemon.proxy());
    for _ in 0..2 {
        let Some(done) = curl(&["--proxy", &proxy, "--fail", &origin.url("/big.iso")]) else { return };
        assert!(done.ok, "{}", done.errors);
        assert!(done.output == file, "the file differs");
    }
    assert!(origin.sent("/big.iso") < 9 * MIB as u64 + PROBE);
}

#[test]
fn bytes_come_before_the_piece_is_whole_and_a_second_client_joins() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    let file = random(12 * MIB, 4);
    let gate = Gate::at(MIB);
    // The probe is one byte, and passes the gate.
    origin.put("/big.bin", Page::file(file.clone()).gate(&gate));
    let ask = Ask::get(&origin.url("/big.bin")).via(daemon.proxy());
    let mut first = ask.clone().open();
    assert_eq!(first.status(), 200);
    let begun = first.read(MIB);
    assert!(begun[..] == file[..MIB], "the first MiB differs");
    let mut second = ask.open();
    let also = second.read(MIB);
    gate.open();
    first.rest().assert_body(&file[begun.len()..]);
    second.rest().assert_body(&file[also.len()..]);
    assert!(origin.sent("/big.bin") < 12 * MIB as u64 + PROBE, "sent {}", origin.sent("/big.bin"));
}

#[test]
fn fifty_clients_on_a_cold_file_are_one_fetch() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    let file = random(10 * MIB + 1, 5);
    origin.put("/big.bin", Page::file(file.clone()));
    let ask = Ask::get(&origin.url("/big.bin")).via(daemon.proxy());
    for answer in all(vec![ask; 50]) {
        answer.assert_is(&file);
    }
    assert!(origin.sent("/big.bin") < file.len() as u64 + PROBE, "sent {}", origin.sent("/big.bin"));
}

#[test]
fn ranges_are_answered_as_the_origin_would_cold_and_warm() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    let length = 9 * MIB + 77;
    for (number, range) in
        ["bytes=0-", "bytes=0-0", "bytes=5000000-5000999", "bytes=9000000-", "bytes=-500", "bytes=9000000-99999999"]
            .into_iter()
            .enumerate()
    {
        let path = format!("/{number}.bin");
        origin.put(&path, Page::file(random(length, number as u64)));
        let direct = Ask::get(&origin.url(&path)).header("Range", range);
        let wanted = direct.clone().send();
        assert_eq!(wanted.status, 206);
        for state in ["cold", "warm"] {
            let answer = direct.clone().via(daemon.proxy()).send();
            assert_eq!((answer.status, &answer.ending), (206, &Ending::Whole), "{range} {state}");
            for name in ["content-range", "content-length", "etag"] {
                assert_eq!(answer.line(name), wanted.line(name), "{name} of {range} {state}");
            }
            answer.assert_body(&wanted.body);
            // Between the two the whole file is pulled.
            Ask::get(&origin.url(&path)).via(daemon.proxy()).send().assert_is(&random(length, number as u64));
        }
    }
}

#[test]
fn a_range_outside_the_file_is_416_with_its_length() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    let file = random(9 * MIB, 6);
    origin.put("/big.bin", Page::file(file.clone()));
    let url = origin.url("/big.bin");
    for state in ["cold", "warm"] {
        let answer = Ask::get(&url).via(daemon.proxy()).header("Range", "bytes=99999999-").send();
        assert_eq!(answer.status, 416, "{state}");
        assert_eq!(answer.line("content-range"), format!("bytes */{}", file.len()), "{state}");
        assert_eq!(answer.line("content-length"), answer.body.len().to_string(), "{state}");
        daemon.get(&url).assert_is(&file);
    }
}

#[test]
fn a_head_says_what_a_get_would() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    let file = random(9 * MIB, 7);
    origin.put("/big.bin", Page::file(file.clone()));
    let url = origin.url("/big.bin");
    for _ in 0..2 {
        let head = Ask::new("HEAD", &url).via(daemon.proxy()).send();
        assert_eq!((head.status, head.line("content-length"), head.body.len()), (200, "9437184", 0));
        daemon.get(&url).assert_is(&file);
    }
}

#[test]
fn a_changed_file_is_served_as_it_is_now() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    for (path, seed) in [("/big.bin", 10), ("/nameless", 20)] {
        for version in 0..3 {
            let file = random(9 * MIB, seed + version);
            origin.put(path, Page::file(file.clone()));
            daemon.get(&origin.url(path)).assert_is(&file);
        }
        let dated = random(9 * MIB, seed + 3);
        let page = Page::file(dated.clone()).without("ETag").header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT");
        origin.put(path, page);
        daemon.get(&origin.url(path)).assert_is(&dated);
    }
}

#[test]
fn answers_that_vary_are_kept_apart() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    let (red, blue) = (random(9 * MIB, 30), random(9 * MIB, 31));
    // The same validators for both: only `Vary` tells them apart.
    let page = Page::plain("")
        .header("ETag", "\"same\"")
        .with_ranges()
        .by_header("X-Colour", &[("red", &red), ("blue", &blue)]);
    for path in ["/big.bin", "/nameless"] {
        origin.put(path, page.clone());
        let ask = |colour: &str| Ask::get(&origin.url(path)).via(daemon.proxy()).header("X-Colour", colour).send();
        for _ in 0..2 {
            ask("red").assert_is(&red);
            ask("blue").assert_is(&blue);
        }
    }
}

#[test]
fn what_forbids_sharing_is_passed_through_each_time() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    let file = random(9 * MIB, 40);
    let whole = || Page::file(file.clone());
    for (name, page) in [
        ("no-store", whole().header("Cache-Control", "no-store")),
        ("private", whole().header("Cache-Control", "max-age=9, private")),
        ("vary-all", whole().header("Vary", "*")),
        ("cookie", whole().header("Set-Cookie", "a=b")),
        ("no-validator", whole().without("ETag")),
        ("weak", whole().without("ETag").header("ETag", "W/\"1\"")),
        ("chunked", whole().framing(Framing::Chunked)),
        ("close", whole().framing(Framing::Close)),
        ("gone", whole().status(404)),
        ("broken", whole().status(500)),
    ] {
        for suffix in ["", ".bin"] {
            let path = format!("/{name}{suffix}");
            origin.put(&path, page.clone());
            let direct = Ask::get(&origin.url(&path));
            let wanted = direct.clone().send();
            for _ in 0..2 {
                let before = origin.sent(&path);
                let answer = direct.clone().via(daemon.proxy()).send();
                assert_eq!((answer.status, &answer.ending), (wanted.status, &Ending::Whole), "{path}");
                answer.assert_body(&file);
                for header in ["etag", "cache-control", "vary", "set-cookie", "content-type"] {
                    assert_eq!(answer.line(header), wanted.line(header), "{header} of {path}");
                }
                assert!(origin.sent(&path) - before >= file.len() as u64, "{path} was kept");
            }
        }
    }
}

#[test]
fn what_was_got_with_credentials_is_not_shared() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    let file = random(9 * MIB, 50);
    let value = format!("Bearer {}", crate::harness::SECRET);
    for path in ["/big.bin", "/nameless"] {
        origin.put(path, Page::file(file.clone()).authorization(&value));
        let ask = Ask::get(&origin.url(path)).via(daemon.proxy());
        for _ in 0..2 {
            let before = origin.sent(path);
            ask.clone().header("Authorization", &value).send().assert_is(&file);
            assert!(origin.sent(path) - before >= file.len() as u64, "{path} was kept");
            let stranger = ask.clone().send();
            assert_eq!(stranger.status, 401, "{path}");
            assert!(stranger.line("www-authenticate").contains("Basic"), "{:?}", stranger.headers);
        }
    }
}

#[test]
fn small_things_and_other_methods_pass() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    origin.put("/page", Page::plain("<html>").header("ETag", "\"1\""));
    origin.put("/echo", Page::plain("").kind(crate::harness::Kind::Echo));
    origin.put("/moved", Page::plain("").status(302).header("Location", "/elsewhere"));
    daemon.get(&origin.url("/page")).assert_is(b"<html>");
    let body = random(3 * MIB, 60);
    let url = origin.url("/echo");
    for method in ["POST", "PUT", "PATCH", "PROPFIND"] {
        let answer =
            Ask::new(method, &url).via(daemon.proxy()).header("X-Twice", "1").header("X-Twice", "2").body(&body);
        answer.send().assert_is(&body);
    }
    let seen = origin.seen("/echo");
    assert_eq!(seen.iter().map(|seen| seen.method.as_str()).collect::<Vec<_>>(), ["POST", "PUT", "PATCH", "PROPFIND"]);
    assert_eq!(seen[0].all("x-twice"), ["1", "2"], "a repeated line was lost");
    let moved = daemon.get(&origin.url("/moved"));
    assert_eq!((moved.status, moved.line("location")), (302, "/elsewhere"));
}

#[test]
fn our_own_headers_never_reach_the_origin() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    let file = random(9 * MIB, 70);
    for path in ["/big.bin", "/page"] {
        origin.put(path, Page::file(file.clone()));
        let ask = Ask::get(&origin.url(path)).via(daemon.proxy()).header("X-Dragonfly-Tag", "t");
        ask.header("X-Dragonfly-Application", "a").header("Proxy-Connection", "keep-alive").send().assert_is(&file);
        for seen in origin.seen(path) {
            let ours = |name: &str| name.starts_with("x-dragonfly") || name.starts_with("proxy-");
            let ours: Vec<_> = seen.headers.iter().filter(|(name, _)| ours(&name.to_lowercase())).collect();
            assert!(ours.is_empty(), "{ours:?}");
        }
    }
}

#[test]
fn slow_and_gone_clients_hurt_nobody() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    let file = random(40 * MIB, 80);
    origin.put("/big.bin", Page::file(file.clone()));
    let ask = Ask::get(&origin.url("/big.bin")).via(daemon.proxy());
    let mut slow = ask.clone().open();
    let begun = slow.read(1000);
    drop(ask.clone().open());
    ask.clone().send().assert_is(&file);
    drop(ask.clone().open());
    assert!(!slow.is_silent_for(Duration::from_secs(5)), "the slow client was forgotten");
    drop(slow);
    assert_eq!(begun[..], file[..begun.len()]);
    ask.send().assert_is(&file);
    assert!(origin.sent("/big.bin") < file.len() as u64 + PROBE, "sent {}", origin.sent("/big.bin"));
}
