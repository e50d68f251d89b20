//! Requests that cannot be answered well, and connections that are more than requests.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use crate::harness::{Ask, Authority, Daemon, Kind, Origin, PATIENCE, Page};

fn raw(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a live socket");
    stream
}

/// Reads up to and with the end of a head.
fn head(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    let mut byte = [0];
    while !read.ends_with(b"\r\n\r\n") && stream.read(&mut byte).expect("an answer") == 1 {
        read.push(byte[0]);
    }
    String::from_utf8_lossy(&read).into_owned()
}

#[test]
fn a_malformed_request_is_400() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    let url = origin.url("/x");
    for request in [
        "GARBAGE\r\n\r\n".to_string(),
        format!("GET {url} HTTP/1.1\r\nHost: a b\r\nBad Header\r\n\r\n"),
        format!("POST {url} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc"),
        format!("POST {url} HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n"),
        "GET relative/path HTTP/1.1\r\nHost: x\r\n\r\n".to_string(),
    ] {
        let mut stream = raw(daemon.proxy());
        stream.write_all(request.as_bytes()).expect("written");
        let answer = head(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 400"), "{request:?}: {answer:?}");
        assert_eq!(origin.seen("/x").len(), 0, "{request:?}");
    }
    assert_eq!(daemon.admin("/healthy").status, 200);
}

#[test]
fn an_origin_that_is_not_there_is_502() {
    let daemon = Daemon::plan("h1").start();
    let closed = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
    for path in ["/page", "/big.bin"] {
        let answer = daemon.get(&format!("http://{closed}{path}?token=nothing"));
        assert_eq!(answer.status, 502, "{path}");
        assert_ne!(answer.line("x-dragonfly-error-type"), "", "{path}: {:?}", answer.headers);
        let said = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(said.trim().lines().count() == 1 && !said.contains("token"), "{said:?}");
    }
    let tunnel = Ask::get(&format!("https://{closed}/")).via(daemon.proxy()).send();
    assert_eq!(tunnel.status, 502);
    assert_eq!(daemon.get("http://no-such-host.invalid/").status, 502);
}

#[test]
fn the_metadata_address_is_denied() {
    let daemon = Daemon::plan("h1").start();
    let answer = daemon.get("http://169.254.169.254/latest/meta-data/");
    assert_eq!(answer.status, 403, "{answer:?}");
    assert_ne!(answer.line("x-dragonfly-error-type"), "");
}

#[test]
fn a_silent_origin_is_504() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").set("proxy.headTimeout", "1s").start();
    for path in ["/page", "/big.bin"] {
        origin.put(path, Page::plain("").kind(Kind::Silent));
        let answer = daemon.get(&origin.url(path));
        assert_eq!(answer.status, 504, "{path}");
        assert_ne!(answer.line("x-dragonfly-error-type"), "", "{path}");
    }
}

fn handshake(target: &str, host: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

fn assert_echoes(stream: &mut TcpStream) {
    for message in ["\u{81}\u{5}hello", "and once more"] {
        stream.write_all(message.as_bytes()).expect("written");
        let mut back = vec![0; message.len()];
        stream.read_exact(&mut back).expect("an echo");
        assert_eq!(back, message.as_bytes());
    }
}

#[test]
fn a_websocket_passes_forwarded_and_tunnelled() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    origin.put("/ws", Page::plain("").kind(Kind::Upgrade));

    let mut forwarded = raw(daemon.proxy());
    forwarded.write_all(handshake(&origin.url("/ws"), &origin.authority()).as_bytes()).expect("written");
    let answer = head(&mut forwarded);
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    assert!(answer.to_lowercase().contains("sec-websocket-accept"), "{answer}");
    assert_echoes(&mut forwarded);

    let mut tunnelled = raw(daemon.proxy());
    let authority = origin.authority();
    let connect = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    tunnelled.write_all(connect.as_bytes()).expect("written");
    assert!(head(&mut tunnelled).starts_with("HTTP/1.1 200"));
    tunnelled.write_all(handshake("/ws", &authority).as_bytes()).expect("written");
    assert!(head(&mut tunnelled).starts_with("HTTP/1.1 101"));
    assert_echoes(&mut tunnelled);
}

#[test]
fn a_server_that_speaks_first_is_heard() {
    let daemon = Daemon::plan("h1").start();
    let server = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = server.local_addr().expect("an address");
    let speaker = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().expect("a connection");
        stream.write_all(b"SSH-2.0-test\r\n\r\n").expect("written");
        let mut back = [0; 5];
        stream.read_exact(&mut back).expect("an answer");
        back
    });
    let mut stream = raw(daemon.proxy());
    let connect = format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    stream.write_all(connect.as_bytes()).expect("written");
    assert!(head(&mut stream).starts_with("HTTP/1.1 200"));
    assert_eq!(head(&mut stream), "SSH-2.0-test\r\n\r\n");
    stream.write_all(b"hello").expect("written");
    assert_eq!(speaker.join().expect("the server's end"), *b"hello");
}

#[test]
fn several_requests_pass_on_one_connection() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    origin.put("/page", Page::plain("hello"));
    let mut stream = raw(daemon.proxy());
    for _ in 0..3 {
        let request = format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", origin.url("/page"), origin.authority());
        stream.write_all(request.as_bytes()).expect("written");
        assert!(head(&mut stream).starts_with("HTTP/1.1 200"));
        let mut body = [0; 5];
        stream.read_exact(&mut body).expect("a body");
        assert_eq!(&body, b"hello");
    }
}

#[test]
fn a_websocket_passes_where_tls_is_intercepted() {
    let authority = Authority::new();
    let origin = Origin::start_tls(&authority);
    let plan = Daemon::plan("h1").intercept("127.0.0.1").trusted_upstream(&origin.authority(), authority.pem());
    let daemon = plan.start();
    origin.put("/ws", Page::plain("").kind(Kind::Upgrade));
    let ask = Ask::get(&origin.url("/ws")).via(daemon.proxy()).trust(&daemon.ca());
    let ask = ask.header("Connection", "Upgrade").header("Upgrade", "websocket");
    let echoed = ask.header("Sec-WebSocket-Version", "13").header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
    assert_eq!(echoed.upgrade(b"hello"), b"hello");
}
