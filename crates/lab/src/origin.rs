//! The origin: a small HTTP/1.1 server with ranges and validators, that fails on command. It runs on a thread in a
//! place, and the laboratory talks to it as to any value.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::content::Content;
use crate::network::Place;

/// The most bytes that go to a socket at a time.
const CHUNK: u64 = 65_536;
/// The longest head that is read.
const HEAD: usize = 16_384;

/// How the origin behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Serving,
    /// Every request is answered with this status; bodies under way go on.
    Refusing(u16),
    /// Every connection is closed in the middle.
    Cutting,
    /// Nothing is sent, not even a head.
    Silent,
}

/// One request, as the origin saw it.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub(crate) at: Instant,
    pub(crate) from: IpAddr,
    pub(crate) name: String,
    pub(crate) status: u16,
    pub(crate) first: u64,
    pub(crate) asked: u64,
    pub(crate) sent: u64,
}

#[derive(Clone)]
pub(crate) struct Origin {
    pub(crate) place: Place,
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

struct State {
    files: Mutex<BTreeMap<String, Content>>,
    mood: watch::Sender<Mood>,
    sent: AtomicU64,
    accesses: Mutex<Vec<Access>>,
}

impl Origin {
    pub(crate) fn start(place: Place) -> Result<Self> {
        let address = SocketAddr::new(place.ip.into(), 80);
        let state = Arc::new(State {
            files: Mutex::default(),
            mood: watch::Sender::new(Mood::Serving),
            sent: AtomicU64::new(0),
            accesses: Mutex::default(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = place.run(|| {
            let _context = runtime.enter();
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        })?;
        let listener = listener.with_context(|| format!("the origin cannot listen at {address}"))?;
        let serving = Arc::downgrade(&state);
        std::thread::spawn(move || {
            runtime.block_on(async {
                while let Ok((stream, from)) = listener.accept().await {
                    let Some(state) = serving.upgrade() else { return };
                    // A client that leaves early is no trouble of the origin's.
                    tokio::spawn(async move { drop(state.serve(stream, from.ip()).await) });
                }
            });
        });
        Ok(Self { place, address, state })
    }

    /// Serves a file from now on, in place of its former version.
    pub(crate) fn publish(&self, name: &str, content: Content) {
        lock(&self.state.files).insert(name.to_owned(), content);
    }

    pub(crate) fn set(&self, mood: Mood) {
        self.state.mood.send_replace(mood);
    }

    /// Closes every connection that is sending, once.
    pub(crate) fn cut(&self) {
        self.set(Mood::Cutting);
        std::thread::sleep(Duration::from_millis(50));
        self.set(Mood::Serving);
    }

    /// Bytes of bodies handed to sockets so far.
    pub(crate) fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::Relaxed)
    }

    /// Every request so far.
    pub(crate) fn accesses(&self) -> Vec<Access> {
        lock(&self.state.accesses).clone()
    }

    /// How much of a file each address has been sent, most first.
    pub(crate) fn readers(&self, name: &str) -> Vec<(IpAddr, u64)> {
        let mut readers = BTreeMap::new();
        for access in lock(&self.state.accesses).iter().filter(|access| access.name == name) {
            *readers.entry(access.from).or_default() += access.sent;
        }
        let mut readers: Vec<_> = readers.into_iter().collect();
        readers.sort_by_key(|&(_, sent)| std::cmp::Reverse(sent));
        readers
    }
}

impl State {
    async fn serve(&self, mut stream: TcpStream, from: IpAddr) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut mood = self.mood.subscribe();
        let mut buffer = Vec::new();
        loop {
            let Some(request) = next_request(&mut stream, &mut buffer).await? else { return Ok(()) };
            while *mood.borrow_and_update() == Mood::Silent {
                mood.changed().await.map_err(std::io::Error::other)?;
            }
            let content = lock(&self.files).get(&request.name).copied();
            let answer = Answer::to(&request, content, *mood.borrow());
            stream.write_all(answer.head.as_bytes()).await?;
            let access = {
                let mut accesses = lock(&self.accesses);
                let asked = answer.end - answer.first;
                let name = request.name.clone();
                let (status, first) = (answer.status, answer.first);
                accesses.push(Access { at: Instant::now(), from, name, status, first, asked, sent: 0 });
                accesses.len() - 1
            };
            if let (Some(content), false) = (content, request.head_only) {
                self.send(&mut stream, content, &answer, access, &mut mood).await?;
            }
        }
    }

    async fn send(
        &self,
        stream: &mut TcpStream,
        content: Content,
        answer: &Answer,
        access: usize,
        mood: &mut watch::Receiver<Mood>,
    ) -> std::io::Result<()> {
        let mut at = answer.first;
        while at < answer.end {
            loop {
                let now = *mood.borrow_and_update();
                match now {
                    Mood::Cutting => return Err(std::io::ErrorKind::ConnectionAborted.into()),
                    Mood::Silent => mood.changed().await.map_err(std::io::Error::other)?,
                    Mood::Serving | Mood::Refusing(_) => break,
                }
            }
            let run = content.at(at, CHUNK.min(answer.end - at));
            tokio::select! {
                written = stream.write_all(run) => written?,
                // What is left of this run is lost with the connection, or sent once the mood is better.
                () = cutting(mood.clone()) => return Err(std::io::ErrorKind::ConnectionAborted.into()),
            }
            at += run.len() as u64;
            self.sent.fetch_add(run.len() as u64, Ordering::Relaxed);
            lock(&self.accesses)[access].sent = at - answer.first;
        }
        Ok(())
    }
}

async fn cutting(mut mood: watch::Receiver<Mood>) {
    if mood.wait_for(|mood| *mood == Mood::Cutting).await.is_err() {
        std::future::pending().await
    }
}

struct Request {
    name: String,
    head_only: bool,
    range: Option<(u64, Option<u64>)>,
    if_range: Option<String>,
    if_match: Option<String>,
    if_none_match: Option<String>,
}

/// Reads one head; nothing where the client has closed the connection.
async fn next_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<Option<Request>> {
    loop {
        if let Some((request, length)) = parse(buffer)? {
            buffer.drain(..length);
            return Ok(Some(request));
        }
        if buffer.len() > HEAD || stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

fn parse(buffer: &[u8]) -> std::io::Result<Option<(Request, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = head.parse(buffer).map_err(std::io::Error::other)? else {
        return Ok(None);
    };
    let header = |name: &str| {
        let header = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        Some(String::from_utf8_lossy(header.value).into_owned())
    };
    let path = head.path.unwrap_or_default();
    let request = Request {
        name: path.split('?').next().unwrap_or_default().trim_start_matches('/').to_owned(),
        head_only: head.method == Some("HEAD"),
        range: header("range").and_then(|range| {
            let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
            Some((first.parse().ok()?, last.parse().ok()))
        }),
        if_range: header("if-range"),
        if_match: header("if-match"),
        if_none_match: header("if-none-match"),
    };
    Ok(Some((request, length)))
}

/// A head, and which bytes follow it.
struct Answer {
    head: String,
    status: u16,
    first: u64,
    end: u64,
}

impl Answer {
    fn to(request: &Request, content: Option<Content>, mood: Mood) -> Self {
        let refusal = |status: u16| {
            let head = format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n");
            Self { head, status, first: 0, end: 0 }
        };
        if let Mood::Refusing(status) = mood {
            return refusal(status);
        }
        let Some(Content { length, version }) = content else { return refusal(404) };
        let etag = format!("\"v{version}\"");
        let names = |condition: &str| condition == "*" || condition.split(',').any(|one| one.trim() == etag);
        if request.if_match.as_deref().is_some_and(|condition| !names(condition)) {
            return refusal(412);
        }
        if request.if_none_match.as_deref().is_some_and(names) {
            return refusal(304);
        }
        let common = format!("ETag: {etag}\r\nAccept-Ranges: bytes\r\nContent-Type: application/octet-stream\r\n");
        let range = request.range.filter(|_| request.if_range.as_deref().is_none_or(|condition| condition == etag));
        match range {
            Some((first, last)) if first < length => {
                let end = last.map_or(length, |last| last.saturating_add(1).min(length)).max(first);
                let head = format!(
                    "HTTP/1.1 206 Partial Content\r\n{common}Content-Range: bytes {first}-{}/{length}\r\nContent-Length: {}\r\n\r\n",
                    end.saturating_sub(1),
                    end - first
                );
                Self { head, status: 206, first, end }
            }
            Some(_) => refusal(416),
            None => {
                let head = format!("HTTP/1.1 200 OK\r\n{common}Content-Length: {length}\r\n\r\n");
                Self { head, status: 200, first: 0, end: length }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(request: &str, mood: Mood) -> (u16, u64, u64) {
        let (request, length) = parse(request.as_bytes()).unwrap().unwrap();
        assert!(length > 0);
        let answer = Answer::to(&request, Some(Content { length: 1000, version: 3 }), mood);
        (answer.status, answer.first, answer.end)
    }

    #[test]
    fn ranges_and_conditions_are_answered_as_rfc_9110_says() {
        for (headers, expected) in [
            ("", (200, 0, 1000)),
            ("Range: bytes=0-\r\n", (206, 0, 1000)),
            ("Range: bytes=10-19\r\n", (206, 10, 20)),
            ("Range: bytes=990-5000\r\n", (206, 990, 1000)),
            ("Range: bytes=1000-\r\n", (416, 0, 0)),
            ("Range: bytes=10-19\r\nIf-Range: \"v3\"\r\n", (206, 10, 20)),
            ("Range: bytes=10-19\r\nIf-Range: \"v2\"\r\n", (200, 0, 1000)),
            ("If-Match: \"v2\"\r\n", (412, 0, 0)),
            ("If-Match: \"v3\"\r\n", (200, 0, 1000)),
            ("If-None-Match: \"v1\", \"v3\"\r\n", (304, 0, 0)),
        ] {
            let request = format!("GET /a?b HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
            assert_eq!(answer(&request, Mood::Serving), expected, "{headers}");
        }
        assert_eq!(answer("GET /a HTTP/1.1\r\n\r\n", Mood::Refusing(503)).0, 503);
    }
}
