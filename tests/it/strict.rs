//! What no client may do: stop the daemon, or have two readings of one request.

use std::io::Write as _;
use std::time::{Duration, Instant};

use crate::harness::{Daemon, RawOrigin, Reply, connect, exchange, wait_for};

#[test]
fn endless_lines_before_a_request_stop_nothing() {
    let daemon = Daemon::plan("h1").start();
    for filler in ["\r\n", " ", "\n", "\r", "A"] {
        let floods: Vec<_> = (0..4)
            .map(|_| {
                let mut stream = connect(daemon.proxy());
                let bytes = filler.repeat((2 << 20) / filler.len());
                std::thread::spawn(move || {
                    // It may be cut off in the middle.
                    let _ = stream.write_all(bytes.as_bytes());
                    stream
                })
            })
            .collect();
        let begun = Instant::now();
        assert_eq!(daemon.admin("/healthy").status, 200, "{filler:?}");
        let (answer, _) = exchange(daemon.proxy(), "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert!(answer.starts_with(b"HTTP/1.1 404"), "{filler:?}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{filler:?}: {:?}", begun.elapsed());
        for flood in floods {
            drop(flood.join().expect("a flood"));
        }
    }
    wait_for("the connections to go", || (daemon.metric(&["proxy_connection"]) == 0.0).then_some(()));
}

#[test]
fn an_upgrade_header_switches_nothing_off() {
    let origin = RawOrigin::start(|_, _| Reply::send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"));
    let daemon = Daemon::plan("h1").start();
    let url = origin.url("/x");
    let first = format!("GET {url} HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    for second in [
        format!("POST {url} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("GET {url} HTTP/1.1\nHost: x\n\n"),
        format!("GET {url} HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"),
        format!("GET {url} HTTP/1.1\r\nHost: x, y\r\n\r\n"),
        "GET foo HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        "CONNECT http://x:443 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        "CONNECT u:p@x:443 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        format!("GET  {url} HTTP/1.1\r\nHost: x\r\n\r\n"),
    ] {
        let before = origin.seen().len();
        let (answer, _) = exchange(daemon.proxy(), format!("{first}{second}"));
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let statuses: Vec<_> = answer.match_indices("HTTP/1.1 ").map(|(at, _)| &answer[at + 9..at + 12]).collect();
        assert_eq!(statuses, ["200", "400"], "{second:?}: {answer}");
        assert_eq!(origin.seen().len() - before, 1, "{second:?}");
    }
}

#[test]
fn mail_is_refused_by_every_method() {
    let daemon = Daemon::plan("h1").start();
    for request in ["GET http://192.0.2.1:25/", "POST http://192.0.2.1:25/", "CONNECT 192.0.2.1:25"] {
        let (answer, _) =
            exchange(daemon.proxy(), format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
        assert!(answer.starts_with(b"HTTP/1.1 403"), "{request}: {}", String::from_utf8_lossy(&answer));
    }
}
