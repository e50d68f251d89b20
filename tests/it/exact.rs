//! Answers arrive as the origin means them: not a byte less, not another's, with all that is said of them.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use crate::harness::{
    Ask, Daemon, Ending, MIB, Origin, Page, RawOrigin, Reply, connect, exchange, random, read_head, sha256_hex,
};

const DATE: &str = "Sat, 01 Jan 2000 00:00:00 GMT";

fn get(daemon: &Daemon, url: &str, lines: &str) -> String {
    let request = format!("GET {url} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lines}\r\n");
    String::from_utf8_lossy(&exchange(daemon.proxy(), request).0).into_owned()
}

#[test]
fn a_chunked_answer_is_not_cut_to_a_length_that_it_names_too() {
    let body = "0123456789".repeat(10);
    let chunked = format!("64\r\n{body}\r\n0\r\n\r\n");
    let origin = RawOrigin::start(move |head, _| {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let lines = if path.contains("first") {
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"
        } else {
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"
        };
        Reply::send(format!("HTTP/1.1 200 OK\r\n{lines}\r\n{chunked}"))
    });
    let daemon = Daemon::plan("h1").start();
    for path in ["/first", "/second", "/first.bin", "/second.bin"] {
        daemon.get(&origin.url(path)).assert_is(body.as_bytes());
    }
    let file = random(10 * MIB, 700);
    let large = [format!("{:x}\r\n", file.len()).as_bytes(), &file, b"\r\n0\r\n\r\n"].concat();
    let head = "HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Length: 9000000\r\nTransfer-Encoding: chunked\r\n\r\n";
    let answer = [head.as_bytes(), &large].concat();
    let origin = RawOrigin::start(move |_, _| Reply::send(&answer));
    for path in ["/large", "/large.bin"] {
        for _ in 0..2 {
            daemon.get(&origin.url(path)).assert_is(&file);
        }
    }
}

#[test]
fn an_origin_that_answers_one_byte_for_everything_is_asked_again() {
    let file = random(9 * MIB, 701);
    let whole = file.clone();
    let origin = RawOrigin::start(move |head, _| {
        let kind = head.split(' ').nth(1).unwrap_or_default().to_owned();
        if !head.to_lowercase().contains("\r\nrange: ") {
            let head = format!("HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Length: {}\r\n\r\n", whole.len());
            return Reply::Send([head.as_bytes(), &whole].concat());
        }
        let one = &whole[..1];
        let (lines, body) = match kind.trim_start_matches('/') {
            "sized.bin" => ("200 OK\r\nETag: \"a\"\r\nContent-Length: 1", one.to_vec()),
            "chunked.bin" => {
                ("200 OK\r\nETag: \"a\"\r\nTransfer-Encoding: chunked", [b"1\r\n", one, b"\r\n0\r\n\r\n"].concat())
            }
            "closed.bin" => ("200 OK\r\nETag: \"a\"", one.to_vec()),
            "both.bin" => {
                ("200 OK\r\nETag: \"a\"\r\nContent-Range: bytes 0-0/9437184\r\nContent-Length: 1", one.to_vec())
            }
            "unnamed.bin" => ("206 Partial Content\r\nETag: \"a\"\r\nContent-Length: 1", one.to_vec()),
            "other.bin" => (
                "206 Partial Content\r\nETag: \"a\"\r\nContent-Range: bytes 5-5/9437184\r\nContent-Length: 1",
                one.to_vec(),
            ),
            _ => ("400 Bad Request\r\nContent-Length: 0", Vec::new()),
        };
        Reply::Last([format!("HTTP/1.1 {lines}\r\n\r\n").as_bytes(), &body].concat())
    });
    let fleet_of_one = Daemon::plan("h1").start();
    for path in ["/sized.bin", "/chunked.bin", "/closed.bin", "/both.bin", "/unnamed.bin", "/other.bin", "/refused.bin"]
    {
        for _ in 0..2 {
            let answer = Ask::get(&origin.url(path)).via(fleet_of_one.proxy()).header("X-Dragonfly-Use-P2P", "true");
            answer.send().assert_is(&file);
        }
    }
}

#[test]
fn what_names_no_version_shares_nothing() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    let (old, new) = (random(9 * MIB, 702), random(9 * MIB, 703));
    type Lines<'a> = &'a [(&'a str, &'a str)];
    let cases: &[(&str, Lines<'_>, Lines<'_>)] = &[
        ("/weak.bin", &[("ETag", "W/\"1\""), ("Last-Modified", DATE)], &[("ETag", "W/\"2\""), ("Last-Modified", DATE)]),
        ("/bare.bin", &[("ETag", "1"), ("Last-Modified", DATE)], &[("ETag", "2"), ("Last-Modified", DATE)]),
        ("/only-weak.bin", &[("ETag", "W/\"1\"")], &[("ETag", "W/\"1\"")]),
        (
            "/epoch.bin",
            &[("Last-Modified", "Thu, 01 Jan 1970 00:00:01 GMT")],
            &[("Last-Modified", "Thu, 01 Jan 1970 00:00:01 GMT")],
        ),
        (
            "/dos.bin",
            &[("Last-Modified", "Tue, 01 Jan 1980 00:00:00 GMT")],
            &[("Last-Modified", "Tue, 01 Jan 1980 00:00:00 GMT")],
        ),
        ("/zero.bin", &[("Last-Modified", "0")], &[("Last-Modified", "0")]),
        ("/empty.bin", &[("ETag", "\"\"")], &[("ETag", "\"\"")]),
        ("/nothing.bin", &[("ETag", "")], &[("ETag", "")]),
    ];
    for (path, before, after) in cases {
        for page in [*before, *after].iter().zip([&old, &new]) {
            let lines = page.0.iter().fold(Page::plain(page.1.clone()).with_ranges(), |page, (n, v)| page.header(n, v));
            origin.put(path, lines);
            daemon.get(&origin.url(path)).assert_is(page.1);
        }
    }
}

#[test]
fn the_sums_of_a_part_are_not_said_of_the_whole() {
    let file = random(9 * MIB, 704);
    let whole = file.clone();
    let origin = RawOrigin::start(move |head, _| {
        let sums =
            "Content-MD5: x\r\nContent-Digest: sha-256=:x:\r\nX-Amz-Checksum-CRC32: x\r\nRepr-Digest: sha-256=:y:";
        let range = head.to_lowercase().split("\r\nrange: bytes=").nth(1).map(|r| r.lines().next().unwrap().to_owned());
        let Some(range) = range else {
            let head = format!("HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Length: {}\r\n\r\n", whole.len());
            return Reply::Send([head.as_bytes(), &whole].concat());
        };
        let (first, last) = range.split_once('-').unwrap();
        let first: usize = first.parse().unwrap();
        let last = last.parse().unwrap_or(whole.len() - 1);
        let part = &whole[first..=last];
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\nETag: \"a\"\r\n{sums}\r\nContent-Range: bytes {first}-{last}/{}\r\n\
             Content-Length: {}\r\n\r\n",
            whole.len(),
            part.len()
        );
        Reply::Send([head.as_bytes(), part].concat())
    });
    let daemon = Daemon::plan("h1").start();
    for _ in 0..2 {
        // A range makes it probe, whoever is alone.
        let part = Ask::get(&origin.url("/f.bin")).via(daemon.proxy()).header("Range", "bytes=5-").send();
        assert_eq!(part.status, 206);
        part.assert_body(&file[5..]);
        let answer = daemon.get(&origin.url("/f.bin"));
        answer.assert_is(&file);
        for name in ["content-md5", "content-digest", "x-amz-checksum-crc32"] {
            assert_eq!((part.line(name), answer.line(name)), ("", ""), "{name}");
        }
        assert_eq!(answer.line("repr-digest"), "sha-256=:y:");
    }
}

#[test]
fn what_one_client_has_authenticated_no_other_gets() {
    // A connection is somebody's once it has carried the third message of the handshake.
    let origin = RawOrigin::start(|head, number| {
        static OWNERS: std::sync::Mutex<Vec<usize>> = std::sync::Mutex::new(Vec::new());
        let mut owners = OWNERS.lock().unwrap();
        if head.contains("NTLM type3") {
            owners.push(number);
        }
        match head {
            head if head.contains("NTLM type1") => {
                Reply::send("HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM type2\r\nContent-Length: 0\r\n\r\n")
            }
            _ if owners.contains(&number) => Reply::send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret"),
            _ => Reply::send("HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n"),
        }
    });
    let daemon = Daemon::plan("h1").start();
    let url = origin.url("/private");
    let ask = |stream: &mut std::net::TcpStream, lines: &str| {
        stream.write_all(format!("GET {url} HTTP/1.1\r\nHost: x\r\n{lines}\r\n").as_bytes()).expect("written");
        let head = read_head(stream);
        if head.starts_with("HTTP/1.1 200") {
            let mut body = [0; 6];
            stream.read_exact(&mut body).expect("a body");
            assert_eq!(&body, b"secret");
        }
        head[9..12].to_owned()
    };
    let mut mine = connect(daemon.proxy());
    assert_eq!(ask(&mut mine, ""), "401");
    assert_eq!(ask(&mut mine, "Authorization: NTLM type1\r\n"), "401");
    assert_eq!(ask(&mut mine, "Authorization: NTLM type3\r\n"), "200");
    for _ in 0..6 {
        assert_eq!(ask(&mut connect(daemon.proxy()), ""), "401", "another client");
        assert_eq!(ask(&mut mine, ""), "200", "the one that has authenticated itself");
    }
}

#[test]
fn requests_survive_an_origin_that_closes_behind_its_answers() {
    let origin = RawOrigin::start(|_, _| Reply::last("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"));
    let daemon = Daemon::plan("h1").start();
    let url = origin.url("/x");
    let mut stream = connect(daemon.proxy());
    for round in 0..200 {
        let (method, body) = if round % 2 == 0 { ("GET", "") } else { ("POST", "Content-Length: 0\r\n") };
        stream.write_all(format!("{method} {url} HTTP/1.1\r\nHost: x\r\n{body}\r\n").as_bytes()).expect("written");
        let head = read_head(&mut stream);
        assert!(head.starts_with("HTTP/1.1 200"), "{round} {head}");
        let mut body = [0; 2];
        stream.read_exact(&mut body).expect("a body");
    }
    assert_eq!(origin.seen().iter().filter(|(_, head)| head.starts_with("POST")).count(), 100);
}

#[test]
fn a_client_that_closes_its_side_gets_its_answer() {
    let origin = RawOrigin::start(|_, _| {
        Reply::Late(Duration::from_millis(300), b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec())
    });
    let daemon = Daemon::plan("h1").start();
    for close in ["Connection: close\r\n", ""] {
        let mut stream = connect(daemon.proxy());
        let request = format!("GET {} HTTP/1.1\r\nHost: x\r\n{close}\r\n", origin.url("/x"));
        stream.write_all(request.as_bytes()).expect("written");
        stream.shutdown(std::net::Shutdown::Write).expect("a live socket");
        let mut answer = String::new();
        let begun = Instant::now();
        stream.read_to_string(&mut answer).expect("an answer and a clean end");
        assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
        assert!(begun.elapsed() < Duration::from_secs(30), "the end comes with the answer");
    }
}

#[test]
fn a_body_is_held_back_until_the_origin_wants_it() {
    let origin = RawOrigin::start(|head, _| match head {
        head if head.contains("/no ") => Reply::send("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno"),
        _ => Reply::send("HTTP/1.1 100 Continue\r\n\r\n"),
    });
    let daemon = Daemon::plan("h1").start();
    let put = |path: &str| {
        let mut stream = connect(daemon.proxy());
        let head = format!(
            "PUT {} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
            origin.url(path)
        );
        stream.write_all(head.as_bytes()).expect("written");
        let answer = read_head(&mut stream);
        (stream, answer)
    };
    let (mut stream, refused) = put("/no");
    assert!(refused.starts_with("HTTP/1.1 417"), "{refused}");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("the connection ends: the body may or may not come");
    assert_eq!(rest, b"no");
    let (_stream, wanted) = put("/yes");
    assert!(wanted.starts_with("HTTP/1.1 100"), "{wanted}");
}

#[test]
fn interim_answers_are_passed_on() {
    let origin = RawOrigin::start(|_, _| {
        Reply::send(
            "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n\
             HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        )
    });
    let daemon = Daemon::plan("h1").start();
    for version in ["1.1", "1.0"] {
        let request = format!("GET {} HTTP/{version}\r\nHost: x\r\nConnection: close\r\n\r\n", origin.url("/x"));
        let answer = String::from_utf8(exchange(daemon.proxy(), request).0).expect("text");
        let heads: Vec<_> = answer.matches("HTTP/1.").map(|_| ()).collect();
        if version == "1.0" {
            assert!(answer.starts_with("HTTP/1.0 200") && heads.len() == 1, "{answer}");
            continue;
        }
        assert!(answer.starts_with("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\n"), "{answer}");
        assert!(answer.contains("link: </a.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("ok") && heads.len() == 3, "{answer}");
    }
}

#[test]
fn a_head_is_written_as_its_author_wrote_it() {
    let origin = RawOrigin::start(|head, _| {
        let reason = if head.contains("/odd ") { " All Is Well" } else { "" };
        Reply::send(format!(
            "HTTP/1.1 200{reason}\r\nX-tRaCe-ID: 1\r\nSet-Cookie: a=b\r\nDate: {DATE}\r\nset-cookie: c=d\r\n\
             Server: s\r\nContent-LENGTH: 2\r\nX-Last: z\r\n\r\nok"
        ))
    });
    let daemon = Daemon::plan("h1").start();
    let answer = get(&daemon, &origin.url("/odd"), "X-First: 1\r\nuser-agent: u\r\nACCEPT: a\r\nX-lAsT: 2\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 All Is Well\r\n"), "{answer}");
    let want = format!(
        "X-tRaCe-ID: 1\r\nSet-Cookie: a=b\r\nset-cookie: c=d\r\nDate: {DATE}\r\nServer: s\r\nContent-LENGTH: 2\r\n\
         X-Last: z\r\n"
    );
    assert!(answer.contains(&want), "lines of one name stand together, all else is as it was: {answer}");
    let sent = origin.seen().remove(0).1;
    let want = format!("Host: {}\r\nX-First: 1\r\nuser-agent: u\r\nACCEPT: a\r\nX-lAsT: 2\r\n", origin.address());
    assert!(sent.contains(&want), "{sent}");
}

#[test]
fn odd_answers_that_clients_take_are_passed_on() {
    let many: String = (0..3000).map(|n| format!("X-{n}: {n}\r\n")).collect();
    let answers = [
        "HTTP/1.1 200 OK\r\nX-Ctl: a\u{1}b\r\nContent-Length: 2\r\n\r\nok".to_owned(),
        "HTTP/1.1 200 OK\r\nX Space: a\r\nContent-Length: 2\r\n\r\nok".into(),
        "HTTP/1.1 200 OK\r\nX-\u{e9}: a\r\nContent-Length: 2\r\n\r\nok".into(),
        "HTTP/1.1 200 OK\r\n: a\r\nContent-Length: 2\r\n\r\nok".into(),
        "HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 2\r\n\r\nok".into(),
        "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok".into(),
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok".into(),
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok".into(),
        "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok".into(),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok".into(),
        "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok".into(),
        "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok".into(),
        "HTTP/1.1 200 \u{e9}t\u{e9}\r\nContent-Length: 2\r\n\r\nok".into(),
        "HTTP/1.1 299 Odd\r\nContent-Length: 2\r\n\r\nok".into(),
        "HTTP/1.1 999 Odd\r\nContent-Length: 2\r\n\r\nok".into(),
        "HTTP/1.0 200 OK\r\n\r\nok".into(),
        format!("HTTP/1.1 200 OK\r\n{many}Content-Length: 2\r\n\r\nok"),
    ];
    let shared = answers.clone();
    let origin = RawOrigin::start(move |head, _| {
        let number: usize = head.split(' ').nth(1).and_then(|path| path[1..].parse().ok()).unwrap_or(0);
        Reply::last(&shared[number])
    });
    let daemon = Daemon::plan("h1").start();
    for (number, raw) in answers.iter().enumerate() {
        let answer = get(&daemon, &origin.url(&format!("/{number}")), "");
        let shown = &raw[..raw.len().min(80)];
        assert!(
            answer.ends_with("\r\n\r\nok") || answer.ends_with("\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
            "{shown:?}: {}",
            &answer[..answer.len().min(300)]
        );
        assert!(answer.to_lowercase().matches("content-length: 2\r\n").count() <= 1, "{shown:?}");
    }
}

#[test]
fn what_an_answer_cannot_be_understood_without_stays() {
    let origin = RawOrigin::start(|head, _| {
        Reply::last(match head.split(' ').nth(1).unwrap_or_default() {
            "/426" => {
                "HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.2\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n"
            }
            _ => "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        })
    });
    let daemon = Daemon::plan("h1").start();
    let answer = get(&daemon, &origin.url("/426"), "").to_lowercase();
    assert!(answer.contains("upgrade: tls/1.2\r\n") && answer.contains("connection: upgrade"), "{answer}");
    let answer = get(&daemon, &origin.url("/gzip"), "").to_lowercase();
    assert!(answer.contains("transfer-encoding: gzip, chunked\r\n"), "{answer}");
}

#[test]
fn targets_reach_the_origin_as_they_can() {
    let origin = RawOrigin::start(|_, _| Reply::send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"));
    let daemon = Daemon::plan("h1").start();
    let long = format!("/{}", "x".repeat(65_000));
    for (method, target, want) in [
        ("GET", "/a`b<c>d".as_bytes(), "/a%60b%3Cc%3Ed"),
        ("GET", b"/caf\xe9", "/caf%E9"),
        ("GET", b"/a|b^c{d}\"e\"?x=[1]", "/a|b^c{d}\"e\"?x=[1]"),
        ("GET", b"/%zz//../x", "/%zz//../x"),
        ("GET", long.as_bytes(), &long),
        ("GET", b"", "/"),
        ("OPTIONS", b"", "*"),
        ("OPTIONS", b"/", "/"),
    ] {
        let mut request = format!("{method} {}", origin.url("")).into_bytes();
        request.extend_from_slice(target);
        request.extend_from_slice(b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answer = String::from_utf8_lossy(&exchange(daemon.proxy(), request).0).into_owned();
        assert!(
            answer.starts_with("HTTP/1.1 200"),
            "{}: {answer}",
            String::from_utf8_lossy(&target[..target.len().min(40)])
        );
        let seen = origin.seen().pop().expect("a request").1;
        assert!(seen.starts_with(&format!("{method} {want} HTTP/1.1\r\n")), "{}", &seen[..seen.len().min(80)]);
    }
    let request = format!("GET {}/{} HTTP/1.1\r\nHost: x\r\n\r\n", origin.url(""), "x".repeat(70_000));
    let answer = String::from_utf8_lossy(&exchange(daemon.proxy(), request).0).into_owned();
    assert!(answer.starts_with("HTTP/1.1 414"), "{answer}");
}

#[test]
fn a_request_that_is_answered_before_its_body_is_not_held_up_by_it() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    let file = random(MIB, 705);
    origin.put("/up", Page::plain("").kind(crate::harness::Kind::Echo));
    let answer = Ask::new("PUT", &origin.url("/up")).via(daemon.proxy()).body(&file).send();
    assert_eq!((answer.status, answer.ending.clone()), (200, Ending::Whole));
    assert_eq!(sha256_hex(&answer.body), sha256_hex(&file));
}

#[test]
fn a_link_that_works_once_works() {
    let file = random(9 * MIB, 706);
    let whole = file.clone();
    let used = std::sync::atomic::AtomicBool::new(false);
    let origin = RawOrigin::start(move |_, _| {
        if used.swap(true, std::sync::atomic::Ordering::SeqCst) {
            return Reply::send("HTTP/1.1 410 Gone\r\nContent-Length: 4\r\n\r\ngone");
        }
        let head = format!("HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Length: {}\r\n\r\n", whole.len());
        Reply::Send([head.as_bytes(), &whole].concat())
    });
    let daemon = Daemon::plan("h1").start();
    daemon.get(&origin.url("/once.zip")).assert_is(&file);
    assert_eq!(origin.seen().len(), 1, "the client's own request was the only one");
    assert_eq!(daemon.get(&origin.url("/once.zip")).status, 410);
}

#[test]
fn an_answer_to_the_question_for_one_byte_is_an_answer_to_all() {
    let origin = RawOrigin::start(|head, _| match head.split(' ').nth(1).unwrap_or_default() {
        "/busy.zip" => {
            Reply::send("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 9\r\nContent-Length: 4\r\n\r\nbusy")
        }
        "/moved.zip" => Reply::send("HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n"),
        _ => Reply::send("HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno"),
    });
    let daemon = Daemon::plan("h1").start();
    for (path, status) in [("/busy.zip", 503), ("/moved.zip", 302), ("/none.zip", 404)] {
        let before = origin.seen().len();
        // With a range of its own it is probed even where nobody else could help.
        let answer = Ask::get(&origin.url(path)).via(daemon.proxy()).header("Range", "bytes=7-").send();
        assert_eq!((answer.status, origin.seen().len() - before), (status, 1), "{path}");
    }
}

#[test]
fn several_ranges_are_the_origins_to_answer() {
    let parts =
        "--b\r\nContent-Range: bytes 0-1/9\r\n\r\nab\r\n--b\r\nContent-Range: bytes 4-5/9\r\n\r\nef\r\n--b--\r\n";
    let origin = RawOrigin::start(move |head, _| {
        assert!(head.to_lowercase().contains("range: bytes=0-1,4-5\r\n"), "{head}");
        Reply::send(format!(
            "HTTP/1.1 206 Partial Content\r\nETag: \"a\"\r\nContent-Type: multipart/byteranges; boundary=b\r\n\
             Content-Length: {}\r\n\r\n{parts}",
            parts.len()
        ))
    });
    let daemon = Daemon::plan("h1").start();
    for path in ["/f", "/f.iso"] {
        let answer = Ask::get(&origin.url(path)).via(daemon.proxy()).header("Range", "bytes=0-1,4-5").send();
        assert_eq!((answer.status, &answer.body[..]), (206, parts.as_bytes()));
        assert_eq!(answer.line("content-type"), "multipart/byteranges; boundary=b");
    }
}

#[test]
fn a_name_may_end_with_the_dot_of_the_root() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    origin.put("/x", Page::plain("hello"));
    let url = origin.url_by_name("/x").replace("localhost:", "localhost.:");
    daemon.get(&url).assert_is(b"hello");
    let (answer, _) =
        exchange(daemon.proxy(), format!("GET {url} HTTP/1.1\r\nHost: localhost.\r\nConnection: close\r\n\r\n"));
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn a_limit_of_hops_is_kept() {
    let origin = RawOrigin::start(|_, _| Reply::send("HTTP/1.1 200 OK\r\nX-Origin: 1\r\nContent-Length: 0\r\n\r\n"));
    let daemon = Daemon::plan("h1").start();
    let ask = |method: &str, hops: u32| {
        let request = format!(
            "{method} {} HTTP/1.1\r\nHost: x\r\nMax-Forwards: {hops}\r\nAuthorization: secret\r\nConnection: close\r\n\r\n",
            origin.url("/x")
        );
        String::from_utf8_lossy(&exchange(daemon.proxy(), request).0).into_owned()
    };
    let traced = ask("TRACE", 0);
    assert!(
        traced.contains("message/http") && traced.contains("TRACE http://") && !traced.contains("secret"),
        "{traced}"
    );
    assert!(ask("OPTIONS", 0).contains("Allow: GET, HEAD"));
    assert_eq!(origin.seen().len(), 0);
    assert!(ask("OPTIONS", 2).contains("X-Origin: 1"));
    assert!(origin.seen()[0].1.contains("Max-Forwards: 1\r\n"));
}

#[test]
fn a_companys_proxy_leads_out() {
    let proxy = RawOrigin::start(|head, _| match head.split("\r\n").next().unwrap_or_default() {
        _ if !head.contains("Proxy-Authorization: Basic YW5uOnBhc3M=\r\n") => Reply::send(
            "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n",
        ),
        "GET http://far.invalid/x HTTP/1.1" => Reply::send("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nfar"),
        "CONNECT far.invalid:7 HTTP/1.1" => Reply::send("HTTP/1.1 200 Connection established\r\n\r\n220 hello\r\n\r\n"),
        _ => Reply::send("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"),
    });
    let plan = || Daemon::plan("h1").set("proxy.egress.addr", format!("http://{}", proxy.address()));
    let origin = Origin::start();
    origin.put("/near", Page::plain("near"));
    let daemon = plan().set("proxy.egress.username", "ann").set("proxy.egress.password", "pass").start();
    daemon.get("http://far.invalid/x").assert_is(b"far");
    daemon.get(&origin.url("/near")).assert_is(b"near");
    let mut tunnel = connect(daemon.proxy());
    tunnel.write_all(b"CONNECT far.invalid:7 HTTP/1.1\r\nHost: far.invalid:7\r\n\r\n").expect("written");
    assert!(read_head(&mut tunnel).starts_with("HTTP/1.1 200"));
    assert_eq!(read_head(&mut tunnel), "220 hello\r\n\r\n");
    assert_eq!(Ask::get("https://elsewhere.invalid:443/").via(daemon.proxy()).send().status, 502);
    let heads = proxy.seen();
    assert!(heads.iter().all(|(_, head)| !head.contains("near")), "loopback is reached directly");

    let daemon = plan().start();
    for url in ["http://far.invalid/x", "https://far.invalid:443/x"] {
        let answer = Ask::get(url).via(daemon.proxy()).send();
        let said = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(answer.status == 502 && said.contains("proxy.egress"), "{url}: {} {said}", answer.status);
        assert_eq!(answer.line("proxy-authenticate"), "");
    }
}
