//! The proxy as its clients and origins see it, on real sockets.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use damselfly_runtime::{Drain, drain::Drained};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{BasicAuth, Config, Metrics, Parts, Proxy};

/// Nothing here takes so long unless it hangs.
const HANG: Duration = Duration::from_secs(20);

mod inside;
mod mirror;
mod source;
mod tasks;
mod world;
use world::{Answer, World, ask, get, origin, read_head};

#[tokio::test]
async fn a_request_is_passed_on_without_what_belongs_to_the_connection() {
    let (origin, seen) =
        origin(Answer::Whole("HTTP/1.1 200 Fine\r\nX-A: 1\r\nX-A: 2\r\nContent-Length: 2\r\nKeep-Alive: 5\r\n\r\nok"))
            .await;
    let world = World::new().await;
    let answer = ask(
        world.proxy,
        &format!(
            "GET http://u:p@{origin}/a?b=c HTTP/1.1\r\nHost: elsewhere\r\nAccept: x\r\nAccept: y\r\nProxy-Connection: keep-alive\r\n\
             X-Dragonfly-Tag: t\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\n\r\n"
        ),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200 Fine\r\n"), "{answer}");
    assert!(answer.contains("X-A: 1\r\nX-A: 2\r\n"), "{answer}");
    assert!(
        !answer.contains("Keep-Alive") && answer.contains("Via: 1.1 test") && answer.ends_with("\r\n\r\nok"),
        "{answer}"
    );
    let seen = seen.lock().unwrap().concat().to_lowercase();
    assert!(seen.starts_with("get /a?b=c http/1.1\r\n"), "{seen}");
    assert!(seen.contains(&format!("host: {origin}\r\n")) && seen.contains("accept: x\r\naccept: y\r\n"), "{seen}");
    assert!(seen.contains("via: 1.1 test\r\n"), "{seen}");
    for gone in ["x-dragonfly", "proxy-", "x-mine", "u:p"] {
        assert!(!seen.contains(gone), "{gone} in {seen}");
    }
}

#[tokio::test]
async fn what_cannot_be_done_is_said_in_one_sentence() {
    let world = World::new().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 404),
        (format!("GET http://{}/x HTTP/1.1\r\nHost: a\r\n\r\n", world.proxy), 404),
        ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
        (format!("GET http://{closed}/ HTTP/1.1\r\nHost: a\r\n\r\n"), 502),
        (format!("CONNECT {closed} HTTP/1.1\r\nHost: a\r\n\r\n"), 502),
        ("CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
        ("CONNECT a:25 HTTP/1.1\r\nHost: a\r\n\r\n".into(), 403),
        ("GET http://a/ HTTP/1.1\r\nHost: a\r\nVia: 1.1 b, 1.1 test\r\n\r\n".into(), 508),
        (
            "POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                .into(),
            400,
        ),
        ("POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n".into(), 400),
        ("GET http://a/ HTTP/1.1\nHost: a\n\n".into(), 400),
        ("nonsense\r\n\r\n".into(), 400),
        (format!("GET http://a/ HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(200_000)), 431),
    ] {
        let shown = request[..request.len().min(80)].to_owned();
        let answer = ask(world.proxy, &request.replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{shown}: {answer}");
        assert!(answer.contains("X-Dragonfly-Error-Type: ") && answer.ends_with(".\n"), "{shown}: {answer}");
    }
}

#[tokio::test]
async fn nothing_is_read_behind_a_malformed_request() {
    let (origin, seen) = origin(Answer::Whole("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")).await;
    let world = World::new().await;
    let good = format!("GET http://{origin}/ HTTP/1.1\r\nHost: {origin}\r\n\r\n");
    let bad = format!(
        "POST http://{origin}/ HTTP/1.1\r\nHost: {origin}\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    );
    let answers = ask(world.proxy, &format!("{good}{bad}{good}")).await;
    let statuses: Vec<_> = answers.match_indices("HTTP/1.1 ").map(|(at, _)| &answers[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "400"], "{answers}");
    assert_eq!(seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn answers_of_every_framing_arrive_whole() {
    for raw in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\nhello",
        "HTTP/1.0 200 OK\r\n\r\nhello",
        "HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length : 5\r\nX-Old: a\r\n b\r\n\r\nhello",
    ] {
        let (origin, _) = origin(Answer::Whole(raw)).await;
        let world = World::new().await;
        for version in ["1.0", "1.1"] {
            let answer = ask(
                world.proxy,
                &format!("GET http://{origin}/ HTTP/{version}\r\nHost: a\r\nConnection: close\r\n\r\n"),
            )
            .await;
            let body = answer.split_once("\r\n\r\n").unwrap().1;
            assert!(
                body == "hello" || body == "5\r\nhello\r\n0\r\n\r\n" || body == "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
                "{answer}"
            );
        }
    }
}

#[tokio::test]
async fn a_head_request_keeps_its_length_and_has_no_body() {
    let (origin, _) = origin(Answer::Whole("HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n")).await;
    let world = World::new().await;
    let answer =
        ask(world.proxy, &format!("HEAD http://{origin}/x.bin HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await;
    assert!(answer.contains("Content-Length: 12345\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn an_answer_that_is_cut_short_never_ends_cleanly() {
    for raw in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ] {
        let (origin, _) = origin(Answer::Cut(raw)).await;
        let world = World::new().await;
        for version in ["1.0", "1.1"] {
            let mut client = TcpStream::connect(world.proxy).await.unwrap();
            client
                .write_all(format!("GET http://{origin}/ HTTP/{version}\r\nHost: a\r\n\r\n").as_bytes())
                .await
                .unwrap();
            let mut got = Vec::new();
            let end = tokio::time::timeout(HANG, client.read_to_end(&mut got)).await.unwrap();
            let got = String::from_utf8_lossy(&got);
            assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "{version} {raw}: {got}");
            assert!(!got.contains("\r\n0\r\n"), "{got}");
        }
    }
}

#[tokio::test]
async fn bytes_come_as_the_origin_sends_them() {
    let (origin, _) = origin(Answer::Stalled("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")).await;
    let world = World::new().await;
    let mut client = TcpStream::connect(world.proxy).await.unwrap();
    client.write_all(format!("GET http://{origin}/ HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
    let head = read_head(&mut client).await;
    assert!(head.contains("Content-Length: 10\r\n"), "{head}");
    let mut first = [0; 5];
    tokio::time::timeout(HANG, client.read_exact(&mut first)).await.unwrap().unwrap();
    assert_eq!(&first, b"hello");
}

#[tokio::test]
async fn a_client_that_waits_for_100_gets_it_at_once() {
    let (origin, seen) = origin(Answer::Whole("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")).await;
    let world = World::new().await;
    let mut client = TcpStream::connect(world.proxy).await.unwrap();
    let head = format!(
        "PUT http://{origin}/ HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\nConnection: close\r\n\r\n"
    );
    client.write_all(head.as_bytes()).await.unwrap();
    let go_on = read_head(&mut client).await;
    assert!(go_on.starts_with("HTTP/1.1 100"), "{go_on}");
    client.write_all(b"hello").await.unwrap();
    let answer = read_head(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    assert!(seen.lock().unwrap().concat().ends_with("hello"));
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let raw = "HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n";
    let (origin, seen) = origin(Answer::Whole(raw)).await;
    let world = World::new().await;
    let request = format!(
        "POST http://{origin}/ HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: x-up\r\nTransfer-Encoding: chunked\r\n\
         Connection: close, TE\r\n\r\n2\r\nhi\r\n0\r\nx-up: 8\r\n\r\n"
    );
    let answer = ask(world.proxy, &request).await;
    assert!(answer.to_lowercase().ends_with("0\r\nx-sum: 7\r\n\r\n"), "{answer}");
    let seen = seen.lock().unwrap().concat();
    assert!(seen.to_lowercase().contains("x-up: 8\r\n") && seen.contains("TE: trailers"), "{seen}");
}

#[tokio::test]
async fn a_websocket_becomes_a_pipe() {
    let (origin, seen) = origin(Answer::Echo(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Key: k\r\n\r\n",
    ))
    .await;
    let world = World::new().await;
    let mut client = TcpStream::connect(world.proxy).await.unwrap();
    let head =
        format!("GET http://{origin}/ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    let answer = read_head(&mut client).await.to_lowercase();
    assert!(answer.starts_with("http/1.1 101") && answer.contains("x-key: k"), "{answer}");
    assert!(answer.contains("upgrade: websocket") && answer.contains("connection: upgrade"), "{answer}");
    client.write_all(b"\x81\x02hi").await.unwrap();
    let mut echo = [0; 4];
    tokio::time::timeout(HANG, client.read_exact(&mut echo)).await.unwrap().unwrap();
    assert_eq!(&echo, b"\x81\x02hi");
    assert!(seen.lock().unwrap().concat().to_lowercase().contains("upgrade: websocket"));
}

#[tokio::test]
async fn a_tunnel_carries_anything_and_each_end_closes_by_itself() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = server.local_addr().unwrap();
    let echo = tokio::spawn(async move {
        let (mut stream, _) = server.accept().await.unwrap();
        stream.write_all(b"220 hello\r\n").await.unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await.unwrap();
        stream.write_all(&got).await.unwrap();
    });
    let world = World::new().await;
    let mut client = TcpStream::connect(world.proxy).await.unwrap();
    // Bytes that come with the request belong to the tunnel.
    client.write_all(format!("CONNECT {addr} HTTP/1.1\r\nHost: {addr}\r\n\r\nearly ").as_bytes()).await.unwrap();
    let head = read_head(&mut client).await;
    assert!(
        head.starts_with("HTTP/1.1 200")
            && !head.to_lowercase().contains("content-length")
            && !head.to_lowercase().contains("transfer-"),
        "{head}"
    );
    client.write_all(b"GET / nonsense\0\n").await.unwrap();
    client.shutdown().await.unwrap();
    let mut got = String::new();
    tokio::time::timeout(HANG, client.read_to_string(&mut got)).await.unwrap().unwrap();
    assert_eq!(got, "220 hello\r\nearly GET / nonsense\0\n");
    echo.await.unwrap();
}

#[tokio::test]
async fn a_reset_goes_through_a_tunnel() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = server.local_addr().unwrap();
    let world = World::new().await;
    let mut client = TcpStream::connect(world.proxy).await.unwrap();
    client.write_all(format!("CONNECT {addr} HTTP/1.1\r\nHost: {addr}\r\n\r\n").as_bytes()).await.unwrap();
    read_head(&mut client).await;
    let (stream, _) = server.accept().await.unwrap();
    stream.set_zero_linger().unwrap();
    drop(stream);
    let end = tokio::time::timeout(HANG, client.read_to_end(&mut Vec::new())).await.unwrap();
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn the_proxys_password_is_asked_for_once_at_the_door() {
    let (origin, seen) = origin(Answer::Whole("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")).await;
    let world = World::with(Config { basic_auth: Some(BasicAuth::new("ann", "pw")), ..Config::default() }).await;
    for request in [format!("GET http://{origin}/"), format!("CONNECT {origin}")] {
        let answer = ask(world.proxy, &format!("{request} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 407") && answer.contains("Proxy-Authenticate: Basic"), "{answer}");
    }
    assert!(seen.lock().unwrap().is_empty());
    let authorised = "Proxy-Authorization: Basic YW5uOnB3\r\nAuthorization: Bearer b\r\nConnection: close\r\n";
    let answer = ask(world.proxy, &format!("GET http://{origin}/ HTTP/1.1\r\nHost: a\r\n{authorised}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let seen = seen.lock().unwrap().concat().to_lowercase();
    assert!(seen.contains("authorization: bearer b") && !seen.contains("proxy-authorization"), "{seen}");
}

#[tokio::test]
async fn a_tls_handshake_on_the_plain_port_is_answered_in_words_at_once() {
    let world = World::new().await;
    let mut client = TcpStream::connect(world.proxy).await.unwrap();
    client.write_all(b"\x16\x03\x01\x00\x05hello").await.unwrap();
    let mut answer = Vec::new();
    // Unread bytes of the handshake may make the end a reset; the answer comes before it.
    let _ = tokio::time::timeout(HANG, client.read_to_end(&mut answer)).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{answer}");
}

#[tokio::test]
async fn http2_works_with_prior_knowledge_and_a_cut_answer_resets_its_stream() {
    let world = World::new().await;
    let stream = TcpStream::connect(world.proxy).await.unwrap();
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let (whole, seen) = origin(Answer::Whole("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")).await;
    let (cut, _) = origin(Answer::Cut("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")).await;
    let request = |origin: SocketAddr| Request::get(format!("http://{origin}/")).body(Empty::<Bytes>::new()).unwrap();
    let answer = send.send_request(request(cut)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(answer.into_body().collect().await.is_err(), "a cut answer has no end");
    let answer = send.send_request(request(whole)).await.unwrap();
    assert_eq!(answer.headers()[header::VIA], "1.1 test");
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
    assert!(seen.lock().unwrap().concat().contains("Via: 2.0 test"));
}

#[tokio::test]
async fn a_drain_finishes_what_runs_and_closes_what_idles() {
    let (origin, _) = origin(Answer::Stalled("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")).await;
    let mut world = World::new().await;
    let mut idle = TcpStream::connect(world.proxy).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    read_head(&mut idle).await;
    let mut busy = TcpStream::connect(world.proxy).await.unwrap();
    busy.write_all(format!("GET http://{origin}/ HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
    read_head(&mut busy).await;
    let mut silent = TcpStream::connect(world.proxy).await.unwrap();
    world.drain.start();
    tokio::time::timeout(HANG, idle.read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    let mut late = TcpStream::connect(world.proxy).await.unwrap();
    for stream in [&mut silent, &mut late] {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(HANG, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 404") && answer.to_lowercase().contains("connection: close"), "{answer}");
    }
    assert_eq!(world.drain.wait(Duration::from_millis(200)).await, Drained::GraceOver { left: 1 });
    tokio::time::timeout(HANG, &mut world.serving).await.unwrap().unwrap();
    assert!(TcpStream::connect(world.proxy).await.is_err(), "nothing is accepted any more");
    drop(busy);
    assert_eq!(world.drain.wait(HANG).await, Drained::Clean);
}

#[tokio::test]
async fn small_and_private_answers_are_forwarded_untouched() {
    for (path, headers, raw) in [
        ("/index.html", "", "HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Length: 2\r\n\r\nok"),
        ("/x", "Authorization: Bearer t\r\n", "HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Length: 2\r\n\r\nok"),
        ("/x", "If-None-Match: \"a\"\r\n", "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n"),
        ("/x", "If-None-Match: \"a\"\r\n", "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"),
        ("/x", "", "HTTP/1.1 204 No Content\r\n\r\n"),
        ("/x?", "", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("/x", "", "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://a/b\r\nContent-Length: 0\r\n\r\n"),
        (
            "/x",
            "Range: bytes=0-1\r\n",
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-1/9\r\nContent-Length: 2\r\n\r\nok",
        ),
    ] {
        let (origin, seen) = origin(Answer::Whole(raw)).await;
        let world = World::new().await;
        let answer = get(world.proxy, origin, path, headers).await;
        assert_eq!(answer.lines().next(), raw.lines().next(), "{answer}");
        assert_eq!(seen.lock().unwrap().len(), 1, "asked once");
        assert!(seen.lock().unwrap().concat().to_lowercase().contains(&headers.to_lowercase()), "{headers}");
    }
}

#[tokio::test]
async fn answers_without_a_body_stay_without_one() {
    for (method, raw) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nX-A: 1\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("GET", "HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nX-A: 1\r\n\r\n"),
    ] {
        let (origin, _) = origin(Answer::Whole(raw)).await;
        let world = World::new().await;
        let head = format!("{method} http://{origin}/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let answer = ask(world.proxy, &head).await;
        assert!(
            answer.ends_with("\r\n\r\n") && !answer.to_lowercase().contains("content-length"),
            "{method} {raw}: {answer}"
        );
    }
}

#[tokio::test]
async fn a_get_with_a_body_reaches_the_origin_with_it() {
    let (origin, seen) = origin(Answer::Whole("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")).await;
    let world = World::new().await;
    let stream = TcpStream::connect(world.proxy).await.unwrap();
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let frames =
        futures_util::stream::iter([Ok::<_, std::convert::Infallible>(http_body::Frame::data(Bytes::from("query")))]);
    let body = http_body_util::StreamBody::new(frames);
    let answer = send.send_request(Request::get(format!("http://{origin}/_search")).body(body).unwrap()).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
    let chunked = format!(
        "GET http://{origin}/_search HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
         5\r\nquery\r\n0\r\n\r\n"
    );
    assert!(ask(world.proxy, &chunked).await.ends_with("\r\n\r\nok"));
    let seen = seen.lock().unwrap();
    assert!(seen.len() == 2 && seen.iter().all(|request| request.contains("5\r\nquery\r\n0\r\n")), "{seen:?}");
}
