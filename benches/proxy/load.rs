//! What clients do, with as little of their own as can be.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};

use crate::Result;

const PATIENCE: Duration = Duration::from_secs(60);

fn connect(at: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(at)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn request(url: &str) -> String {
    let host = url.split('/').nth(2).unwrap_or_default();
    format!("GET {url} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
}

/// Reads one answer with a length; says how long its body was.
fn read_answer(stream: &mut impl Read, buffer: &mut [u8]) -> Result<u64> {
    let mut filled = 0;
    let head = loop {
        match stream.read(&mut buffer[filled..])? {
            0 => return Err(format!("the answer ended after {filled} bytes").into()),
            read => filled += read,
        }
        if let Some(at) = buffer[..filled].windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
    };
    let text = String::from_utf8_lossy(&buffer[..head]).to_ascii_lowercase();
    let length = text.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.trim().parse::<u64>().ok());
    let length = length.filter(|_| text.starts_with("http/1.1 200") || text.starts_with("http/1.0 200"));
    let length = length.ok_or_else(|| format!("not the answer that was meant: {text}"))?;
    let mut got = (filled - head) as u64;
    while got < length {
        match stream.read(buffer)? {
            0 => return Err(format!("{got} bytes of {length} came").into()),
            read => got += read as u64,
        }
    }
    Ok(length)
}

/// So many connections over which small answers are asked for together.
const CONNECTIONS: u64 = 8;

/// So many small answers over a few connections.
pub(crate) fn small(at: SocketAddr, url: &str, requests: u64) -> Result<()> {
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(|| ask(at, url, requests / CONNECTIONS))).collect();
        all.into_iter().try_for_each(|one| one.join().map_err(|_| "a client panicked")?.map(drop))
    })
}

/// Asks so often over one connection, or a new one where the proxy closes it; says how long each took.
fn ask(at: SocketAddr, url: &str, requests: u64) -> Result<Vec<Duration>> {
    let (request, mut buffer) = (request(url), vec![0; 64 << 10]);
    let mut stream = connect(at)?;
    let mut taken = Vec::new();
    for _ in 0..requests {
        let began = Instant::now();
        let answered = stream.write_all(request.as_bytes()).map_err(Into::into);
        if answered.and_then(|()| read_answer(&mut stream, &mut buffer)).is_err() {
            stream = connect(at)?;
            stream.write_all(request.as_bytes())?;
            read_answer(&mut stream, &mut buffer)?;
        }
        taken.push(began.elapsed());
    }
    Ok(taken)
}

/// The median of one connection's waits, in microseconds.
pub(crate) fn latency(at: SocketAddr, url: &str, requests: u64) -> Result<f64> {
    let mut taken = ask(at, url, requests)?;
    taken.sort();
    Ok(taken[taken.len() / 2].as_secs_f64() * 1e6)
}

/// One large answer.
pub(crate) fn get(at: SocketAddr, url: &str, length: u64) -> Result<()> {
    let mut stream = connect(at)?;
    stream.write_all(request(url).as_bytes())?;
    whole(read_answer(&mut stream, &mut vec![0; 512 << 10])?, length)
}

fn whole(got: u64, length: u64) -> Result<()> {
    if got == length { Ok(()) } else { Err(format!("{got} bytes came of {length}").into()) }
}

fn tunnel(at: SocketAddr, to: &str) -> Result<TcpStream> {
    let mut stream = connect(at)?;
    stream.write_all(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").as_bytes())?;
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    if head.split(' ').nth(1) == Some("200") { Ok(stream) } else { Err(format!("no tunnel: {head}").into()) }
}

/// The same through a tunnel.
pub(crate) fn tunnelled(at: SocketAddr, to: SocketAddr, length: u64) -> Result<()> {
    let mut stream = tunnel(at, &to.to_string())?;
    stream.write_all(request("http://origin/large").replace("http://origin/", "/").as_bytes())?;
    whole(read_answer(&mut stream, &mut vec![0; 512 << 10])?, length)
}

/// A client that trusts one authority, and resumes nothing.
pub(crate) struct Tls(Arc<ClientConfig>);

impl Tls {
    pub(crate) fn new(authority: &str) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(authority.as_bytes()) {
            roots.add(certificate?)?;
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Self(Arc::new(config)))
    }

    fn open(&self, at: SocketAddr, to: SocketAddr) -> Result<StreamOwned<ClientConnection, TcpStream>> {
        // Not every proxy signs for addresses.
        let (name, to) = (ServerName::try_from("localhost")?, format!("localhost:{}", to.port()));
        let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(&self.0), name)?, tunnel(at, &to)?);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(stream)
    }

    /// So many connections, each with one small request; says how long they took.
    pub(crate) fn handshakes(&self, at: SocketAddr, to: SocketAddr, times: u32) -> Result<Duration> {
        let (began, request) = (Instant::now(), request("http://localhost/small").replace("http://localhost", ""));
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        (0..times / 4).try_for_each(|_| {
                            let mut stream = self.open(at, to)?;
                            stream.write_all(
                                request.replace("localhost", &format!("localhost:{}", to.port())).as_bytes(),
                            )?;
                            read_answer(&mut stream, &mut vec![0; 64 << 10]).map(drop)
                        })
                    })
                })
                .collect();
            all.into_iter().try_for_each(|one| -> Result<()> { one.join().map_err(|_| "a client panicked")? })
        })?;
        Ok(began.elapsed())
    }

    /// One large answer.
    pub(crate) fn get(&self, at: SocketAddr, to: SocketAddr, length: u64) -> Result<()> {
        let mut stream = self.open(at, to)?;
        let request = format!("GET /large HTTP/1.1\r\nHost: localhost:{}\r\nAccept: */*\r\n\r\n", to.port());
        stream.write_all(request.as_bytes())?;
        let mut buffer = vec![0; 512 << 10];
        let got = read_answer(&mut stream, &mut buffer[..])?;
        whole(got, length)
    }
}

/// Connections on which one small request was answered, and nothing more is said.
pub(crate) fn idle(at: SocketAddr, url: &str, connections: usize) -> Result<Vec<TcpStream>> {
    let (request, mut buffer) = (request(url), vec![0; 64 << 10]);
    (0..connections)
        .map(|_| {
            let mut stream = connect(at)?;
            stream.write_all(request.as_bytes())?;
            read_answer(&mut stream, &mut buffer)?;
            Ok(stream)
        })
        .collect()
}

/// So many requests at once, each answered to its end.
pub(crate) fn at_once(at: SocketAddr, url: &str, requests: usize) -> Result<()> {
    let mut open = unread(at, url, requests)?;
    let mut buffer = vec![0; 64 << 10];
    open.iter_mut().try_for_each(|stream| read_answer(stream, &mut buffer).map(drop))
}

/// So many requests of whose answers nothing is read.
pub(crate) fn unread(at: SocketAddr, url: &str, requests: usize) -> Result<Vec<TcpStream>> {
    let request = request(url);
    let open = (0..requests).map(|_| {
        let mut stream = connect(at)?;
        stream.write_all(request.as_bytes())?;
        Ok(stream)
    });
    let open = open.collect();
    settle();
    open
}

/// Gives a process the time to do what it does by itself.
pub(crate) fn settle() {
    std::thread::sleep(Duration::from_secs(10));
}
