//! A client: one GET, through a proxy or direct, every byte checked, and when bytes came.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::content::Content;
use crate::network::Place;

/// The most that is read at a time.
const BUFFER: usize = 262_144;
/// How often a waiting client looks whether it should leave.
const TICK: Duration = Duration::from_millis(100);

/// What is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) origin: SocketAddr,
    pub(crate) proxy: Option<SocketAddr>,
    pub(crate) name: String,
    /// The versions that the answer may be, as a whole.
    pub(crate) versions: Vec<Content>,
    /// The first byte, and the one after the last.
    pub(crate) range: Option<(u64, u64)>,
    /// A client without a byte for so long gives up.
    pub(crate) patience: Duration,
}

/// What came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    pub(crate) bytes: u64,
    /// From the request to the first byte of the body.
    pub(crate) first_byte: Option<Duration>,
    /// From the request to the last byte that came.
    pub(crate) finished: Duration,
    /// The longest time without a byte after the first one, and when it began.
    pub(crate) gap: (Duration, Duration),
    /// A body whose bytes are of no version, and where.
    pub(crate) wrong: Option<u64>,
    /// Why the transfer failed.
    pub(crate) error: Option<String>,
    /// It was told to leave.
    pub(crate) left: bool,
    /// The task, as the proxy named it.
    pub(crate) task: Option<String>,
    /// When how many bytes had come.
    pub(crate) progress: Vec<(Duration, u64)>,
}

impl Outcome {
    /// The longest time without a byte, the first one's included.
    pub(crate) fn longest_gap(&self) -> Duration {
        self.first_byte.unwrap_or(self.finished).max(self.gap.0)
    }

    pub(crate) fn failed(&self) -> bool {
        self.error.is_some() && !self.left
    }
}

/// A client at work.
pub(crate) struct Client {
    thread: JoinHandle<Result<Outcome>>,
    bytes: Arc<AtomicU64>,
    leave: Arc<AtomicBool>,
}

impl Client {
    pub(crate) fn start(place: &Place, request: Request) -> Self {
        let (bytes, leave) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, leaving) = (Arc::clone(&bytes), Arc::clone(&leave));
        let thread = place.spawn(move || get(&request, &counter, &leaving));
        Self { thread, bytes, leave }
    }

    /// Bytes of the body so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn is_done(&self) -> bool {
        self.thread.is_finished()
    }

    /// Makes the client close its connection.
    pub(crate) fn leave(&self) {
        self.leave.store(true, Ordering::Relaxed);
    }

    pub(crate) fn outcome(self) -> Result<Outcome> {
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Does one request to its end.
pub(crate) fn get(request: &Request, counter: &AtomicU64, leave: &AtomicBool) -> Outcome {
    let started = Instant::now();
    let mut transfer =
        Transfer { outcome: Outcome::default(), started, last: started, candidates: request.versions.clone() };
    if let Err(error) = transfer.run(request, counter, leave) {
        transfer.outcome.left = leave.load(Ordering::Relaxed);
        transfer.outcome.error = Some(error.to_string());
        // The wait that ended in the error is a gap too.
        transfer.note_gap();
        transfer.outcome.finished = started.elapsed();
    }
    transfer.outcome
}

struct Transfer {
    outcome: Outcome,
    started: Instant,
    /// When the last byte came.
    last: Instant,
    candidates: Vec<Content>,
}

impl Transfer {
    fn run(&mut self, request: &Request, counter: &AtomicU64, leave: &AtomicBool) -> io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&request.proxy.unwrap_or(request.origin), request.patience)?;
        stream.set_read_timeout(Some(TICK))?;
        stream.write_all(head_of(request).as_bytes())?;
        let mut buffer = vec![0; BUFFER];
        let (head, rest) = self.read_head(&mut stream, request, leave, &mut buffer)?;
        self.outcome.task = head.task;
        let (mut at, end) = head.body;
        if !rest.is_empty() {
            self.take(at, &rest, counter);
            at += rest.len() as u64;
        }
        while at < end {
            let most = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            match self.read(&mut stream, request, leave, &mut buffer[..most])? {
                0 => return Err(io::Error::other(format!("the connection was closed after {at} of {end} bytes"))),
                read => {
                    self.take(at, &buffer[..read], counter);
                    at += read as u64;
                }
            }
        }
        self.outcome.finished = self.started.elapsed();
        Ok(())
    }

    fn read_head(
        &mut self,
        stream: &mut TcpStream,
        request: &Request,
        leave: &AtomicBool,
        buffer: &mut [u8],
    ) -> io::Result<(Head, Vec<u8>)> {
        let mut bytes = Vec::new();
        loop {
            let read = self.read(stream, request, leave, buffer)?;
            if read == 0 {
                return Err(io::Error::other("the connection was closed without an answer"));
            }
            bytes.extend_from_slice(&buffer[..read]);
            if let Some((head, length)) = Head::parse(&bytes, request)? {
                bytes.drain(..length);
                return Ok((head, bytes));
            }
        }
    }

    /// Waits for bytes, but not longer than the client's patience.
    fn read(
        &self,
        stream: &mut TcpStream,
        request: &Request,
        leave: &AtomicBool,
        buffer: &mut [u8],
    ) -> io::Result<usize> {
        loop {
            if leave.load(Ordering::Relaxed) {
                return Err(io::Error::other("the client was told to leave"));
            }
            match stream.read(buffer) {
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if self.last.elapsed() > request.patience {
                        let patience = request.patience.as_secs();
                        return Err(io::Error::other(format!("no byte came for {patience} s")));
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    fn take(&mut self, offset: u64, bytes: &[u8], counter: &AtomicU64) {
        self.note_gap();
        self.outcome.first_byte.get_or_insert_with(|| self.started.elapsed());
        self.last = Instant::now();
        self.candidates.retain(|version| version.agrees(offset, bytes));
        if self.candidates.is_empty() {
            self.outcome.wrong.get_or_insert(offset);
        }
        self.outcome.bytes += bytes.len() as u64;
        counter.store(self.outcome.bytes, Ordering::Relaxed);
        let now = self.started.elapsed();
        if self.outcome.progress.last().is_none_or(|(at, _)| now - *at >= TICK) {
            self.outcome.progress.push((now, self.outcome.bytes));
        }
    }

    fn note_gap(&mut self) {
        let gap = self.last.elapsed();
        if self.outcome.first_byte.is_some() && gap > self.outcome.gap.0 {
            self.outcome.gap = (gap, self.last - self.started);
        }
    }
}

fn head_of(request: &Request) -> String {
    let Request { origin, name, .. } = request;
    let target = if request.proxy.is_some() { format!("http://{origin}/{name}") } else { format!("/{name}") };
    let range = request.range.map(|(first, end)| format!("Range: bytes={first}-{}\r\n", end - 1)).unwrap_or_default();
    format!("GET {target} HTTP/1.1\r\nHost: {origin}\r\nUser-Agent: lab\r\n{range}Connection: close\r\n\r\n")
}

struct Head {
    /// Offsets in the content of the body's first byte and of the byte after its last.
    body: (u64, u64),
    task: Option<String>,
}

impl Head {
    fn parse(bytes: &[u8], request: &Request) -> io::Result<Option<(Self, usize)>> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(length) = head.parse(bytes).map_err(io::Error::other)? else { return Ok(None) };
        let header = |name: &str| {
            let header = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
            Some(String::from_utf8_lossy(header.value).into_owned())
        };
        let code = head.code.unwrap_or_default();
        let expected = if request.range.is_some() { 206 } else { 200 };
        if code != expected {
            return Err(io::Error::other(format!("the answer was {code}")));
        }
        let content_length: Option<u64> = header("content-length").and_then(|text| text.parse().ok());
        let content_length = content_length.ok_or_else(|| io::Error::other("the answer has no length"))?;
        let first = request.range.map_or(0, |(first, _)| first);
        let end = request.range.map(|(_, end)| end).or(request.versions.first().map(|v| v.length)).unwrap_or_default();
        if first + content_length != end {
            return Err(io::Error::other(format!("the answer has {content_length} bytes, not {}", end - first)));
        }
        Ok(Some((Self { body: (first, end), task: header("x-dragonfly-task-id") }, length)))
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const LENGTH: u64 = 3_000_000;
    const OLD: Content = Content { length: LENGTH, version: 1 };
    const NEW: Content = Content { length: LENGTH, version: 2 };

    fn body(content: Content, range: std::ops::Range<u64>) -> Vec<u8> {
        let mut bytes = Vec::new();
        while range.start + (bytes.len() as u64) < range.end {
            let at = range.start + bytes.len() as u64;
            bytes.extend_from_slice(content.at(at, range.end - at));
        }
        bytes
    }

    /// What a client makes of this answer.
    fn outcome(head: &str, body: Vec<u8>, versions: &[Content], range: Option<(u64, u64)>) -> Outcome {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let origin = listener.local_addr().expect("an address");
        let answer = [format!("HTTP/1.1 {head}\r\n\r\n").into_bytes(), body].concat();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut asked = [0; 4096];
            let read = stream.read(&mut asked).expect("a request");
            assert!(asked[..read].ends_with(b"\r\n\r\n"));
            // A client that does not like the head closes early.
            let _ = stream.write_all(&answer);
        });
        let versions = versions.to_vec();
        let patience = Duration::from_secs(20);
        let request = Request { origin, proxy: None, name: "x".to_owned(), versions, range, patience };
        let outcome = get(&request, &AtomicU64::new(0), &AtomicBool::new(false));
        server.join().expect("no panic");
        outcome
    }

    #[test]
    fn right_bytes_are_right_and_wrong_ones_are_found() {
        let ok = format!("200 OK\r\nContent-Length: {LENGTH}\r\nX-Dragonfly-Task-ID: t");
        let whole = outcome(&ok, body(OLD, 0..LENGTH), &[OLD], None);
        assert_eq!((whole.bytes, whole.wrong, &whole.error), (LENGTH, None, &None));
        assert_eq!(whole.task.as_deref(), Some("t"));
        assert!(whole.first_byte.is_some() && !whole.failed());

        let mut flipped = body(OLD, 0..LENGTH);
        flipped[2_000_000] ^= 1;
        assert!(outcome(&ok, flipped, &[OLD], None).wrong.is_some());
        assert_eq!(outcome(&ok, body(NEW, 0..LENGTH), &[OLD, NEW], None).wrong, None, "either version is right");
        let mixture = [body(OLD, 0..1_000_000), body(NEW, 1_000_000..LENGTH)].concat();
        assert!(outcome(&ok, mixture, &[OLD, NEW], None).wrong.is_some(), "a mixture is not");

        let part = "206 Partial Content\r\nContent-Length: 500";
        assert_eq!(outcome(part, body(OLD, 1000..1500), &[OLD], Some((1000, 1500))).wrong, None);
        assert_eq!(outcome(part, body(OLD, 1001..1501), &[OLD], Some((1000, 1500))).wrong, Some(1000));
    }

    #[test]
    fn what_ends_early_or_is_another_answer_has_failed() {
        let ok = format!("200 OK\r\nContent-Length: {LENGTH}");
        let cut = outcome(&ok, body(OLD, 0..1_000_000), &[OLD], None);
        assert!(cut.failed() && cut.wrong.is_none() && cut.bytes == 1_000_000, "{:?}", cut.error);
        for head in
            ["503 No\r\nContent-Length: 0", "200 OK", "200 OK\r\nContent-Length: 7", "206 P\r\nContent-Length: 7"]
        {
            assert!(outcome(head, Vec::new(), &[OLD], None).failed(), "{head}");
        }
    }
}
