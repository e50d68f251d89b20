//! The gate between a connection and the HTTP/1 library: it hands over one request at a time, and only one whose head
//! and framing are beyond doubt (see `framing`).
//!
//! Way of a byte: connection -> gate -> library. A head is held back until it is whole and judged; a body passes as it
//! comes, but never a byte of the next head with it. A head that is refused is replaced by a request which carries the
//! gate's secret number, so that the answer to it is made where all answers are made, and comes in its turn.
//!
//! **Invariants.** The library never reads two requests in one piece. Behind a refused head nothing is handed over any
//! more. A connection that is told to break ends with a reset, never with a clean end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{HeaderMap, HeaderName, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Sleep, sleep};

use super::fault::Fault;
use super::framing::{Chunks, Framing, Malformed, head_end, inspect};

/// How many bytes are asked of the connection at once while a head is gathered.
const READ: usize = 8 * 1024;
/// How much of what a refused client goes on sending is read, so that it sees the answer before the connection ends.
const MAX_DISCARDED: usize = 1024 * 1024;
/// The header by which a refused request is known.
const VERDICT: HeaderName = HeaderName::from_static("x-damselfly-verdict");

/// A connection that bytes come and go on.
pub(super) trait Wire: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// Makes the connection end with a reset when it is dropped, where its kind knows resets.
    fn abort(&self);
}

impl Wire for TcpStream {
    fn abort(&self) {
        // If it fails, the other end is gone already.
        let _ = self.set_zero_linger();
    }
}

impl Wire for UnixStream {
    fn abort(&self) {}
}

/// What is left of a gate whose connection was taken out.
impl Wire for tokio::io::Empty {
    fn abort(&self) {}
}

impl Wire for Box<dyn Wire> {
    fn abort(&self) {
        self.as_ref().abort();
    }
}

/// What a connection and the answers on it share.
#[derive(Debug)]
pub(super) struct Bond {
    /// Known to nobody outside: no client can pretend that the gate refused it, or that it did not.
    secret: u128,
    broken: AtomicBool,
}

impl Bond {
    /// A new connection's.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { secret: fastrand::u128(..), broken: AtomicBool::new(false) })
    }

    /// Has the connection end with a reset as soon as the library lets go of it.
    pub(super) fn break_off(&self) {
        self.broken.store(true, Ordering::Release);
    }

    /// Whether it was broken off.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Why the gate refused this request, if it did.
    pub(super) fn verdict(&self, headers: &HeaderMap) -> Option<Fault> {
        let (secret, reason) = headers.get(VERDICT)?.to_str().ok()?.split_once(' ')?;
        if secret != self.secret.to_string() {
            return None;
        }
        Some(match reason {
            TOO_LARGE => Fault::client(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "The request's head is larger than this proxy takes.",
            ),
            reason => Fault::malformed(reason),
        })
    }

    fn refusal(&self, malformed: Malformed) -> Vec<u8> {
        let reason = match malformed {
            Malformed::TooLarge => TOO_LARGE,
            Malformed::Because(reason) => reason,
        };
        let secret = self.secret;
        format!("GET / HTTP/1.1\r\nHost: refused\r\nConnection: close\r\n{VERDICT}: {secret} {reason}\r\n\r\n")
            .into_bytes()
    }
}

const TOO_LARGE: &str = "too large";

#[derive(Debug)]
enum State {
    /// Bytes of a head in `held`, which was searched for its end up to here.
    Gathering { seen: usize },
    /// This many bytes of `held` may go; then what follows the head.
    Handing { left: usize, then: Framing },
    /// In a body of so many more bytes.
    Sized(u64),
    /// In a chunked body.
    Chunked(Chunks),
    /// Everything passes.
    Open,
    /// The refusal in `held` is handed over; what else comes is thrown away, so many bytes more.
    Refused { handed: usize, discard: usize },
}

/// A connection as the HTTP/1 library sees it.
pub(super) struct Gate {
    wire: Box<dyn Wire>,
    bond: Arc<Bond>,
    held: Vec<u8>,
    state: State,
    idle: Duration,
    /// When a client that takes nothing is given up; runs while bytes wait for it.
    unread: Option<Pin<Box<Sleep>>>,
}

impl Gate {
    /// A gate before `wire`, of which `read` was read already. A client that takes nothing of an answer for `idle` is
    /// given up.
    pub(super) fn new(wire: Box<dyn Wire>, read: Vec<u8>, bond: Arc<Bond>, idle: Duration) -> Self {
        Self { wire, bond, held: read, state: State::Gathering { seen: 0 }, idle, unread: None }
    }

    /// Whether bytes have waited for the client for too long.
    fn watch_unread<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.unread = None;
            return written;
        }
        let idle = self.idle;
        let deadline = self.unread.get_or_insert_with(|| Box::pin(sleep(idle)));
        ready!(deadline.as_mut().poll(cx));
        self.bond.break_off();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// The connection, and what was read of it but not handed over.
    pub(super) fn into_parts(mut self) -> (Box<dyn Wire>, Vec<u8>) {
        (std::mem::replace(&mut self.wire, Box::new(tokio::io::empty())), std::mem::take(&mut self.held))
    }

    /// Judges what is held of a head; true when there is something to hand over now.
    fn judge(&mut self, seen: usize) -> bool {
        // An empty line or two before a request are forgiven (RFC 9112, 2.2).
        while seen == 0 && self.held.starts_with(b"\r\n") {
            self.held.drain(..2);
        }
        let verdict = match head_end(&self.held, seen) {
            Ok(None) => {
                self.state = State::Gathering { seen: self.held.len() };
                return false;
            }
            Ok(Some(end)) => inspect(&self.held[..end]).map(|framing| (end, framing)),
            Err(malformed) => Err(malformed),
        };
        self.state = match verdict {
            Ok((left, then)) => State::Handing { left, then },
            Err(malformed) => {
                self.held = self.bond.refusal(malformed);
                State::Refused { handed: 0, discard: MAX_DISCARDED }
            }
        };
        true
    }

    /// Hands over what is held, as far as the state allows; false when there is nothing to hand over.
    fn hand_over(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let step = self.held.len().min(buf.remaining());
        match &mut self.state {
            State::Handing { left, then } => {
                let step = step.min(*left);
                buf.put_slice(&self.held[..step]);
                self.held.drain(..step);
                *left -= step;
                if *left == 0 {
                    self.state = match *then {
                        Framing::Sized(0) => State::Gathering { seen: 0 },
                        Framing::Sized(length) => State::Sized(length),
                        Framing::Chunked => State::Chunked(Chunks::default()),
                        Framing::Open => State::Open,
                    };
                }
                true
            }
            State::Refused { handed, .. } => {
                let step = (self.held.len() - *handed).min(buf.remaining());
                buf.put_slice(&self.held[*handed..*handed + step]);
                *handed += step;
                step > 0
            }
            State::Gathering { .. } => false,
            State::Sized(_) | State::Chunked(_) | State::Open => {
                let taken = body_share(&mut self.state, &self.held[..step]);
                buf.put_slice(&self.held[..taken]);
                self.held.drain(..taken);
                taken > 0
            }
        }
    }

    /// Reads more of a head, or what a refused client still sends.
    fn poll_gather(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut room = [0; READ];
        let mut read = ReadBuf::new(&mut room);
        ready!(Pin::new(&mut self.wire).poll_read(cx, &mut read))?;
        if matches!(self.state, State::Gathering { .. }) {
            self.held.extend_from_slice(read.filled());
        }
        Poll::Ready(Ok(read.filled().len()))
    }
}

/// How many of `bytes` belong to the body that `state` is in; moves on to the next head where the body ends.
fn body_share(state: &mut State, bytes: &[u8]) -> usize {
    match state {
        State::Sized(left) => {
            let step = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
            *left -= step as u64;
            if *left == 0 {
                *state = State::Gathering { seen: 0 };
            }
            step
        }
        State::Chunked(chunks) => match chunks.advance(bytes) {
            Ok((taken, end)) => {
                if end {
                    *state = State::Gathering { seen: 0 };
                }
                taken
            }
            // The library sees the same and gives the body up; no request can follow it.
            Err(_) => {
                *state = State::Open;
                bytes.len()
            }
        },
        _ => bytes.len(),
    }
}

impl AsyncRead for Gate {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if let State::Gathering { seen } = gate.state {
                if gate.held.len() > seen && gate.judge(seen) {
                    continue;
                }
                if ready!(gate.poll_gather(cx))? == 0 {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            if gate.hand_over(buf) {
                return Poll::Ready(Ok(()));
            }
            if let State::Refused { discard, .. } = gate.state {
                // The library waits for a next request, which never comes: it closes behind its answer.
                match ready!(gate.poll_gather(cx))? {
                    0 => return Poll::Pending,
                    read if read >= discard => return Poll::Pending,
                    read => {
                        if let State::Refused { discard, .. } = &mut gate.state {
                            *discard -= read;
                        }
                    }
                }
                continue;
            }
            return gate.poll_body(cx, buf);
        }
    }
}

impl Gate {
    /// Reads from the connection into the library's own buffer, and takes back what belongs to the next head.
    fn poll_body(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.wire).poll_read(cx, buf))?;
        let taken = body_share(&mut self.state, &buf.filled()[before..]);
        self.held.extend_from_slice(&buf.filled()[before + taken..]);
        buf.set_filled(before + taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Gate {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.wire).poll_write(cx, bytes);
        self.watch_unread(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.wire).poll_write_vectored(cx, bytes);
        self.watch_unread(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.wire).poll_flush(cx);
        self.watch_unread(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.bond.is_broken() {
            // A clean end would tell the client that it has everything.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if self.bond.is_broken() {
            self.wire.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    const IDLE: Duration = Duration::from_secs(60);

    /// A gate behind which the test is the library, and the client's end.
    fn gate(read: &[u8]) -> (Gate, UnixStream, Arc<Bond>) {
        let (near, client) = UnixStream::pair().unwrap();
        let bond = Bond::new();
        (Gate::new(Box::new(near), read.to_vec(), bond.clone(), IDLE), client, bond)
    }

    async fn read_once(gate: &mut Gate) -> String {
        let mut buf = vec![0; 4096];
        let read = gate.read(&mut buf).await.unwrap();
        String::from_utf8(buf[..read].to_vec()).unwrap()
    }

    #[tokio::test]
    async fn the_library_never_reads_two_requests_in_one() {
        let requests = [
            "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
            "hello",
            "POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            "2\r\nhi\r\n0\r\n\r\n",
            "GET /4 HTTP/1.1\r\nHost: a\r\n\r\n",
        ];
        let (mut all, mut client, _) = gate(requests.concat().as_bytes());
        for request in requests {
            assert_eq!(read_once(&mut all).await, request, "all at once");
        }
        client.shutdown().await.unwrap();
        assert_eq!(read_once(&mut all).await, "", "the end is seen");

        let (mut split, mut client, _) = gate(b"");
        for request in requests {
            for byte in request.bytes() {
                client.write_all(&[byte]).await.unwrap();
            }
            let mut got = String::new();
            while got.len() < request.len() {
                got += &read_once(&mut split).await;
            }
            assert_eq!(got, request, "byte by byte");
        }
    }

    #[tokio::test]
    async fn a_refused_head_becomes_a_request_that_says_so_and_the_last_one() {
        let (mut gate, mut client, bond) = gate(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        client
            .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await
            .unwrap();
        client.write_all(b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert!(read_once(&mut gate).await.starts_with("GET / HTTP/1.1\r\nHost: a\r\n"));
        let refusal = read_once(&mut gate).await;
        let value = refusal.lines().find_map(|line| line.strip_prefix("x-damselfly-verdict: ")).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(VERDICT, value.parse().unwrap());
        assert_eq!(bond.verdict(&headers).unwrap().status(), 400);
        assert_eq!(Bond::new().verdict(&headers), None, "another connection's");
        headers.insert(VERDICT, HeaderValue::from_static("0 too large"));
        assert_eq!(bond.verdict(&headers), None, "a client's invention");
        client.shutdown().await.unwrap();
        let mut nothing = [0; 9];
        let more = tokio::time::timeout(std::time::Duration::from_millis(50), gate.read(&mut nothing)).await;
        assert!(more.is_err(), "nothing of what follows is handed over");
    }

    #[tokio::test]
    async fn what_was_not_handed_over_comes_out_with_the_connection() {
        let (mut gate, mut client, _) = gate(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\nearly");
        assert!(read_once(&mut gate).await.ends_with("\r\n\r\n"));
        let (mut wire, held) = gate.into_parts();
        assert_eq!(held, b"early");
        client.write_all(b"later").await.unwrap();
        let mut later = [0; 5];
        wire.read_exact(&mut later).await.unwrap();
        assert_eq!(&later, b"later");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        let (mut gate, mut client, bond) = gate(b"");
        let begun = tokio::time::Instant::now();
        let late = tokio::spawn(async move {
            tokio::time::sleep(IDLE / 2).await;
            client.read_exact(&mut vec![0; 1 << 20]).await.unwrap();
            client
        });
        let error = gate.write_all(&vec![0; 8 << 20]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(
            begun.elapsed().as_secs(),
            (IDLE + IDLE / 2).as_secs(),
            "as long as it takes something it is served"
        );
        assert!(bond.is_broken());
        drop(late);
    }

    #[tokio::test]
    async fn a_broken_connection_ends_with_a_reset() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        for broken in [false, true] {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let bond = Bond::new();
            let mut gate = Gate::new(Box::new(listener.accept().await.unwrap().0), Vec::new(), bond.clone(), IDLE);
            gate.write_all(b"HTTP/1.0 200 OK\r\n\r\nhal").await.unwrap();
            if broken {
                bond.break_off();
            }
            gate.shutdown().await.unwrap();
            drop(gate);
            let end = client.read_to_end(&mut Vec::new()).await.map_err(|error| error.kind());
            assert_eq!(end.is_err_and(|kind| kind == io::ErrorKind::ConnectionReset), broken);
        }
    }
}
