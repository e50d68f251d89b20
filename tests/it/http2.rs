//! An origin that speaks HTTP/2 and says that it has not done what it was asked.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::harness::{Authority, Daemon, exchange, wait_for};

/// What the origin does about the first request of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// GOAWAY: the last stream that was processed is none.
    GoAway,
    /// RST_STREAM with REFUSED_STREAM.
    Refused,
    /// RST_STREAM with INTERNAL_ERROR: it may have done something.
    Failed,
}

const PREFACE: usize = 24;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

type Tls = StreamOwned<ServerConnection, TcpStream>;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The kind, flags, stream and payload of the next frame.
fn read_frame(tls: &mut Tls) -> io::Result<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    tls.read_exact(&mut head)?;
    let [a, b, c, kind, flags, stream @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    tls.read_exact(&mut payload)?;
    Ok((kind, flags, u32::from_be_bytes(stream), payload))
}

/// Does this about each request, or answers it; notes the bodies of what it has
/// answered.
fn converse(stream: TcpStream, config: Arc<ServerConfig>, refusal: Option<Refusal>, done: &Done) -> io::Result<()> {
    let mut tls = StreamOwned::new(ServerConnection::new(config).map_err(io::Error::other)?, stream);
    tls.read_exact(&mut [0; PREFACE])?;
    tls.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    let mut body = Vec::new();
    loop {
        let (kind, flags, stream, payload) = read_frame(&mut tls)?;
        match kind {
            SETTINGS if flags == 0 => tls.write_all(&frame(SETTINGS, 1, 0, &[]))?,
            DATA => body.extend_from_slice(&payload),
            _ => {}
        }
        if !matches!(kind, HEADERS | DATA) || flags & END_STREAM == 0 {
            continue;
        }
        match refusal {
            Some(Refusal::GoAway) => {
                tls.write_all(&frame(GOAWAY, 0, 0, &[0; 8]))?;
                tls.flush()?;
                // Until the other end has closed.
                while read_frame(&mut tls).is_ok() {}
                return Ok(());
            }
            Some(Refusal::Refused) => tls.write_all(&frame(RST_STREAM, 0, stream, &7_u32.to_be_bytes()))?,
            Some(Refusal::Failed) => tls.write_all(&frame(RST_STREAM, 0, stream, &2_u32.to_be_bytes()))?,
            None => {
                done.lock().unwrap().push(std::mem::take(&mut body));
                // `:status: 200` is the eighth of the static table.
                tls.write_all(&frame(HEADERS, END_HEADERS, stream, &[0x88]))?;
                tls.write_all(&frame(DATA, END_STREAM, stream, b"hello"))?;
            }
        }
        tls.flush()?;
    }
}

type Done = Arc<Mutex<Vec<Vec<u8>>>>;

fn origin(authority: &Authority, refusal: Refusal, bad: usize) -> (SocketAddr, Done) {
    let mut config = ServerConfig::clone(&authority.server_config());
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (config, done) = (Arc::new(config), Done::default());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let log = done.clone();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().enumerate() {
            let (config, log) = (config.clone(), log.clone());
            let refusal = (number < bad).then_some(refusal);
            std::thread::spawn(move || converse(stream, config, refusal, &log));
        }
    });
    (address, done)
}

#[test]
fn what_an_origin_says_that_it_has_not_done_is_asked_again() {
    let authority = Authority::new();
    for refusal in [Refusal::GoAway, Refusal::Refused] {
        for (method, body) in [("GET", ""), ("POST", ""), ("POST", "a small body"), ("PUT", "another")] {
            let (address, done) = origin(&authority, refusal, 1);
            let plan = Daemon::plan("h1").trusted_upstream(&address.to_string(), authority.pem());
            let daemon = plan.start();
            let request = format!(
                "{method} https://{address}/x HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            let (answer, _) = exchange(daemon.proxy(), request);
            let answer = String::from_utf8_lossy(&answer).into_owned();
            let case = format!("{refusal:?} {method} {body:?}: {answer}");
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("hello"), "{case}");
            assert_eq!(*done.lock().unwrap(), [body.as_bytes()], "{case}");
            let line = wait_for("the access line", || {
                daemon.process.log().lines().find(|line| line.contains(" access: ")).map(str::to_owned)
            });
            assert!(line.contains("end=\"complete\""), "{case}: {line}");
        }
    }
}

#[test]
fn what_an_origin_may_have_done_is_not() {
    let authority = Authority::new();
    let (address, done) = origin(&authority, Refusal::Failed, 1);
    let daemon = Daemon::plan("h1").trusted_upstream(&address.to_string(), authority.pem()).start();
    let request = format!(
        "POST https://{address}/x HTTP/1.1\r\nHost: {address}\r\nContent-Length: 4\r\nConnection: close\r\n\r\npaid"
    );
    let (answer, _) = exchange(daemon.proxy(), request);
    assert!(answer.starts_with(b"HTTP/1.1 502 "), "{}", String::from_utf8_lossy(&answer));
    assert!(done.lock().unwrap().is_empty());
}

#[test]
fn an_origin_that_refuses_for_ever_is_not_asked_for_ever() {
    let authority = Authority::new();
    let (address, _) = origin(&authority, Refusal::Refused, usize::MAX);
    let daemon = Daemon::plan("h1").trusted_upstream(&address.to_string(), authority.pem()).start();
    let request = format!("GET https://{address}/x HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    assert!(exchange(daemon.proxy(), request).0.starts_with(b"HTTP/1.1 502 "));
}
