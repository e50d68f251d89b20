//! The gate between a connection and the HTTP/1 library: it hands over one request at a time, and only one whose head
//! and framing are beyond doubt (see `framing`).
//!
//! Way of a byte: connection -> gate -> library. A head is held back until it is whole and judged; a body passes as it
//! comes, but never a byte of the next head with it. A head that is refused is replaced by a request which carries the
//! gate's secret number, so that the answer to it is made where all answers are made, and comes in its turn. Behind a
//! request that may change the protocol nothing is read before the answer has decided.
//!
//! Back from the library bytes pass as they are. Between two answers the gate puts in the interim ones (1xx) of the
//! origin, for which the library has no way.
//!
//! **Invariants.** The library never reads two requests in one piece. Behind a refused head, or a body that is framed
//! wrongly, nothing is handed over any more. A connection that is told to break ends with a reset, never with a clean
//! end.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::{HeaderMap, HeaderName, Request, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep, sleep};

use super::budget::{Budget, Share};
use super::fault::Fault;
use super::framing::{Chunks, Framing, Head, Malformed, head_end, inspect};
use super::headers::strip_hop_by_hop;
use crate::net::WholeServer;

/// How many bytes are asked of the connection at once while a head is gathered.
const READ: usize = 8 * 1024;
/// How many empty lines before a request are forgiven (RFC 9112, 2.2).
const MAX_EMPTY_LINES: u8 = 2;
/// How much of what a refused client goes on sending is read, so that it sees the answer before the connection ends.
const MAX_DISCARDED: usize = 1024 * 1024;
/// How long a client that has closed its side is waited with for something to send it.
const HALF_CLOSED: Duration = Duration::from_secs(60);
/// After how much silence between two requests a connection is taken from the library, whose buffers cost more than
/// making them again.
const PARK_AFTER: Duration = Duration::from_secs(5);
/// The most bytes of interim answers that wait for the client.
const MAX_INTERIM: usize = 64 * 1024;
/// The header by which the gate speaks to what is behind the library.
const VERDICT: HeaderName = HeaderName::from_static("x-damselfly-verdict");

/// A connection that bytes come and go on.
pub(super) trait IoStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// Makes the connection end with a reset when it is dropped, where its kind knows resets.
    fn abort(&self);

    /// The plain TCP connection that this is, with nothing of it in memory; `None` for any other.
    fn tcp(&self) -> Option<&TcpStream> {
        None
    }
}

impl IoStream for TcpStream {
    fn abort(&self) {
        // If it fails, the other end is gone already.
        let _ = self.set_zero_linger();
    }

    fn tcp(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

impl IoStream for UnixStream {
    fn abort(&self) {}
}

/// What is left of a gate whose connection was taken out.
impl IoStream for tokio::io::Empty {
    fn abort(&self) {}
}

impl IoStream for Box<dyn IoStream> {
    fn abort(&self) {
        self.as_ref().abort();
    }

    fn tcp(&self) -> Option<&TcpStream> {
        self.as_ref().tcp()
    }
}

/// What a connection and the answers on it share.
#[derive(Debug)]
pub(super) struct ConnControl {
    /// Known to nobody outside: no client can pretend that the gate refused it, or that it did not.
    secret: u128,
    broken: AtomicBool,
    /// How many requests have their answer's head, and how many of those answers have ended.
    answered: AtomicU64,
    ended: AtomicU64,
    /// Whether an answer has changed the protocol.
    switched: AtomicBool,
    /// Interim answers that are to go to the client.
    interim: Mutex<Vec<u8>>,
    /// Of the task that drives the connection.
    driver: AtomicWaker,
    /// What it holds of the bodies in flight.
    share: Share,
    /// The connection, where it was taken from the library between two requests.
    parked: Mutex<Option<Parked>>,
}

struct Parked(Box<dyn IoStream>);

impl std::fmt::Debug for Parked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Parked")
    }
}

impl ConnControl {
    /// A new connection's.
    pub(super) fn new(budget: Arc<Budget>) -> Arc<Self> {
        Arc::new(Self {
            secret: fastrand::u128(..),
            broken: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            switched: AtomicBool::new(false),
            interim: Mutex::default(),
            driver: AtomicWaker::new(),
            share: Share::new(budget),
            parked: Mutex::default(),
        })
    }

    /// The head of the answer to the current request is made; it does (or does not) change the protocol.
    pub(super) fn answered(&self, switches: bool) {
        self.switched.store(switches, Ordering::Release);
        self.answered.fetch_add(1, Ordering::AcqRel);
        self.driver.wake();
    }

    /// The answer to the current request has ended.
    pub(super) fn ended(&self) {
        self.ended.fetch_add(1, Ordering::AcqRel);
        self.driver.wake();
    }

    /// Sends the client an interim answer to the current request, unless too many wait already.
    pub(super) fn inform(&self, status: StatusCode, headers: &HeaderMap) {
        let mut headers = headers.clone();
        strip_hop_by_hop(&mut headers);
        let reason = status.canonical_reason().unwrap_or_default();
        let mut head = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).into_bytes();
        for (name, value) in &headers {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                head.extend_from_slice(part);
            }
        }
        head.extend_from_slice(b"\r\n");
        let mut interim = self.interim.lock().unwrap_or_else(PoisonError::into_inner);
        if interim.len() + head.len() <= MAX_INTERIM {
            interim.append(&mut head);
        }
        drop(interim);
        self.driver.wake();
    }

    /// What the connection holds of the bodies in flight.
    pub(super) const fn share(&self) -> &Share {
        &self.share
    }

    /// The connection, if the gate has given it up only because nothing was asked for a while.
    pub(super) fn take_parked(&self) -> Option<Box<dyn IoStream>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner).take().map(|parked| parked.0)
    }

    fn take_interim(&self) -> Vec<u8> {
        std::mem::take(&mut *self.interim.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Has the connection end with a reset as soon as the library lets go of it.
    pub(super) fn reset_on_close(&self) {
        self.broken.store(true, Ordering::Release);
    }

    /// Whether it was broken off.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Takes out of a request what the gate has noted in it: why it is refused, if it is.
    pub(super) fn read_notes<B>(&self, request: &mut Request<B>) -> Option<Fault> {
        let note = request.headers().get(VERDICT)?.to_str().ok()?;
        let (secret, reason) = note.split_once(' ')?;
        if secret != self.secret.to_string() {
            return None;
        }
        let fault = match reason {
            WHOLE_SERVER => {
                request.headers_mut().remove(VERDICT);
                request.extensions_mut().insert(WholeServer);
                return None;
            }
            TOO_LARGE => Fault::client(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "The request's head is larger than this proxy takes.",
            ),
            TOO_LONG => Fault::client(
                StatusCode::URI_TOO_LONG,
                "The request's URL is longer than the 65534 bytes of this proxy.",
            ),
            reason => Fault::malformed(reason),
        };
        Some(fault)
    }

    fn note(&self, note: &str) -> String {
        format!("{VERDICT}: {} {note}\r\n", self.secret)
    }

    fn refusal(&self, malformed: Malformed) -> Vec<u8> {
        let reason = match malformed {
            Malformed::TooLarge => TOO_LARGE,
            Malformed::TargetTooLong => TOO_LONG,
            Malformed::Because(reason) => reason,
        };
        format!("GET / HTTP/1.1\r\nHost: refused\r\nConnection: close\r\n{}\r\n", self.note(reason)).into_bytes()
    }
}

const TOO_LARGE: &str = "too large";
const TOO_LONG: &str = "too long";
const WHOLE_SERVER: &str = "whole server";

#[derive(Debug)]
enum State {
    /// Bytes of a head in `held`, which was searched for its end up to here; so many empty lines came before it.
    Gathering { seen: usize, empty: u8 },
    /// This many bytes of `held` may go; then what follows the head.
    Handing { left: usize, then: Framing },
    /// In a body of so many more bytes.
    Sized(u64),
    /// In a chunked body.
    Chunked(Chunks),
    /// Behind a body whose chunks are framed wrongly.
    Broken,
    /// Behind a request whose answer decides what comes next.
    Waiting,
    /// Everything passes: it is not HTTP/1.
    Open,
    /// The refusal in `held` is handed over; what else comes is thrown away, so many bytes more.
    Refused { handed: usize, discard: usize },
}

const NEXT: State = State::Gathering { seen: 0, empty: 0 };

/// A connection as the HTTP library sees it.
pub(super) struct Gate {
    inner: Box<dyn IoStream>,
    control: Arc<ConnControl>,
    held: Vec<u8>,
    state: State,
    /// How many requests were handed over.
    requests: u64,
    /// Whether the last of them may change the protocol.
    may_switch: bool,
    /// Since the client has closed its side: when it is given up if it is sent nothing.
    half_closed: Option<Pin<Box<Sleep>>>,
    /// Interim answers on their way to the client.
    outgoing: Bytes,
    /// Whether all that the library has written has gone: one answer has ended, and the next has not begun.
    between: bool,
    idle: Duration,
    /// When a client that takes nothing is given up; runs while bytes wait for it.
    unread: Option<Pin<Box<Sleep>>>,
    /// When something was asked last, and what looks whether that is long ago.
    asked: Instant,
    quiet: Option<Pin<Box<Sleep>>>,
    /// Whether it is: the library is told that the client has closed.
    parked: bool,
}

impl Gate {
    /// A gate before `inner`, of which `read` was read already. A client that takes nothing of an answer for `idle` is
    /// given up.
    pub(super) fn new(inner: Box<dyn IoStream>, read: Vec<u8>, control: Arc<ConnControl>, idle: Duration) -> Self {
        Self {
            inner,
            control,
            held: read,
            state: NEXT,
            requests: 0,
            may_switch: false,
            half_closed: None,
            outgoing: Bytes::new(),
            between: true,
            idle,
            unread: None,
            asked: Instant::now(),
            quiet: None,
            parked: false,
        }
    }

    /// The same for HTTP/2: everything passes.
    pub(super) fn open(inner: Box<dyn IoStream>, read: Vec<u8>, control: Arc<ConnControl>, idle: Duration) -> Self {
        let mut gate = Self::new(inner, read, control, idle);
        gate.state = State::Open;
        gate
    }

    /// What the library has written: it has gone, or it has waited for the client for too long.
    fn wrote(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.control.share.give_back(*bytes);
        }
        self.watch_unread(cx, written)
    }

    /// Whether bytes have waited for the client for too long.
    fn watch_unread<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.unread = None;
            if let Some(due) = &mut self.half_closed {
                due.as_mut().reset(Instant::now() + HALF_CLOSED);
            }
            return written;
        }
        let idle = self.idle;
        let deadline = self.unread.get_or_insert_with(|| Box::pin(sleep(idle)));
        ready!(deadline.as_mut().poll(cx));
        self.control.reset_on_close();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// The connection, and what was read of it but not handed over.
    pub(super) fn into_parts(mut self) -> (Box<dyn IoStream>, Vec<u8>) {
        (std::mem::replace(&mut self.inner, Box::new(tokio::io::empty())), std::mem::take(&mut self.held))
    }

    /// Judges what is held of a head; true when there is something to hand over now.
    fn judge(&mut self, seen: usize, mut empty: u8) -> bool {
        if seen == 0 {
            let lines = self.held.chunks_exact(2).take_while(|two| two == b"\r\n").count();
            let room = MAX_EMPTY_LINES - empty;
            let forgiven = u8::try_from(lines).unwrap_or(u8::MAX).min(room);
            empty += forgiven;
            self.held.drain(..2 * usize::from(forgiven));
        }
        let verdict = match head_end(&self.held, seen) {
            Ok(None) => {
                // The first byte of an empty line waits for its second.
                let seen = if self.held == b"\r" { 0 } else { self.held.len() };
                self.state = State::Gathering { seen, empty };
                return false;
            }
            Ok(Some(end)) => inspect(&self.held[..end]).map(|head| (end, head)),
            Err(malformed) => Err(malformed),
        };
        match verdict {
            Ok((end, head)) => self.accept(end, head),
            Err(malformed) => {
                self.held = self.control.refusal(malformed);
                self.state = State::Refused { handed: 0, discard: MAX_DISCARDED };
            }
        }
        true
    }

    /// Lets the head in the first `end` bytes go, written as the library can read it.
    fn accept(&mut self, mut end: usize, head: Head) {
        if head.whole_server {
            let note = self.control.note(WHOLE_SERVER);
            self.held.splice(end - 2..end - 2, note.bytes());
            end += note.len();
        }
        if let Some((at, target)) = head.target {
            end = end + target.len() - at.len();
            self.held.splice(at, target);
        }
        self.may_switch = head.may_switch;
        self.requests += 1;
        self.state = State::Handing { left: end, then: head.framing };
    }

    /// What comes behind a request that was handed over.
    fn behind(&self) -> State {
        if self.may_switch { State::Waiting } else { NEXT }
    }

    /// Tells the library that the client has closed its side once its last answer has ended: told before, it would give
    /// the answer up.
    fn poll_half_closed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.control.driver.register(cx.waker());
        let due = self.half_closed.as_mut().is_none_or(|due| due.as_mut().poll(cx).is_ready());
        if self.control.ended.load(Ordering::Acquire) >= self.requests {
            return Poll::Ready(Ok(()));
        }
        // Most likely it has closed both sides.
        if due { Poll::Ready(Err(io::ErrorKind::TimedOut.into())) } else { Poll::Pending }
    }

    /// Whether nothing was asked for [`PARK_AFTER`], and nothing is under way either way.
    fn poll_quiet(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.control.driver.register(cx.waker());
        let answered = self.control.ended.load(Ordering::Acquire) >= self.requests;
        if !self.held.is_empty() || !answered || !self.between || !self.outgoing.is_empty() {
            return Poll::Pending;
        }
        let due = self.quiet.get_or_insert_with(|| Box::pin(sleep(PARK_AFTER)));
        loop {
            ready!(due.as_mut().poll(cx));
            let until = self.asked + PARK_AFTER;
            if until <= Instant::now() {
                return Poll::Ready(());
            }
            due.as_mut().reset(until);
        }
    }

    /// Whether the answer has decided that HTTP goes on.
    fn poll_decision(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.control.driver.register(cx.waker());
        if self.control.answered.load(Ordering::Acquire) < self.requests
            || self.control.switched.load(Ordering::Acquire)
        {
            return Poll::Pending;
        }
        self.state = NEXT;
        Poll::Ready(())
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
                        Framing::Sized(0) => self.behind(),
                        Framing::Sized(length) => State::Sized(length),
                        Framing::Chunked => State::Chunked(Chunks::default()),
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
            State::Gathering { .. } | State::Waiting | State::Broken => false,
            State::Sized(_) | State::Chunked(_) | State::Open => {
                let held = std::mem::take(&mut self.held);
                let taken = self.body_share(&held[..step]);
                buf.put_slice(&held[..taken]);
                self.held = held;
                self.held.drain(..taken);
                taken > 0
            }
        }
    }

    /// How many of `bytes` belong to the body that is handed over; moves on to what is behind it where it ends.
    fn body_share(&mut self, bytes: &[u8]) -> usize {
        let (taken, ends) = match &mut self.state {
            State::Sized(left) => {
                let step = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= step as u64;
                (step, *left == 0)
            }
            State::Chunked(chunks) => match chunks.advance(bytes) {
                Ok(step) => step,
                Err(_) => {
                    self.state = State::Broken;
                    (0, false)
                }
            },
            _ => (bytes.len(), false),
        };
        if ends {
            self.state = self.behind();
        }
        taken
    }

    /// Reads more of a head, or what a refused client still sends.
    fn poll_gather(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut room = [const { MaybeUninit::uninit() }; READ];
        let mut read = ReadBuf::uninit(&mut room);
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut read))?;
        if matches!(self.state, State::Gathering { .. }) {
            self.held.extend_from_slice(read.filled());
        }
        Poll::Ready(Ok(read.filled().len()))
    }
}

impl AsyncRead for Gate {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if let State::Gathering { seen, empty } = gate.state {
                if gate.held.len() > seen && gate.judge(seen, empty) {
                    continue;
                }
                if gate.half_closed.is_some() {
                    return gate.poll_half_closed(cx);
                }
                match gate.poll_gather(cx)? {
                    Poll::Ready(0) => gate.half_closed = Some(Box::pin(sleep(HALF_CLOSED))),
                    Poll::Ready(_) => gate.asked = Instant::now(),
                    Poll::Pending => {
                        ready!(gate.poll_quiet(cx));
                        gate.parked = true;
                        return Poll::Ready(Ok(()));
                    }
                }
                continue;
            }
            if let State::Waiting = gate.state {
                ready!(gate.poll_decision(cx));
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
            if let State::Broken = gate.state {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a chunk is framed wrongly")));
            }
            if gate.poll_body(cx, buf)?.is_ready() {
                // Unless it was all the next request's, or framed wrongly.
                if !matches!(gate.state, State::Broken) {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            return Poll::Pending;
        }
    }
}

impl Gate {
    /// Reads from the connection into the library's own buffer, and takes back what belongs to the next head.
    fn poll_body(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let taken = self.body_share(&buf.filled()[before..]);
        self.held.extend_from_slice(&buf.filled()[before + taken..]);
        buf.set_filled(before + taken);
        Poll::Ready(Ok(()))
    }

    /// Sends the interim answers that wait, where the library is between two answers.
    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.control.driver.register(cx.waker());
        if self.outgoing.is_empty() {
            let waiting = self.control.take_interim();
            // Behind a half-sent answer there is no place for them.
            if self.between {
                self.outgoing = waiting.into();
            }
        }
        while !self.outgoing.is_empty() {
            match ready!(Pin::new(&mut self.inner).poll_write(cx, &self.outgoing))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => drop(self.outgoing.split_to(sent)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Gate {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = match self.poll_interim(cx) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.inner).poll_write(cx, bytes),
            held_up => held_up.map_ok(|()| 0),
        };
        self.between = false;
        self.wrote(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = match self.poll_interim(cx) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.inner).poll_write_vectored(cx, bytes),
            held_up => held_up.map_ok(|()| 0),
        };
        self.between = false;
        self.wrote(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The library flushes when it has nothing left to write.
        self.between = true;
        let flushed = match self.poll_interim(cx) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.inner).poll_flush(cx),
            held_up => held_up,
        };
        self.watch_unread(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.parked || self.control.is_broken() {
            // A clean end would tell the client that it has everything; and a parked connection goes on.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if self.control.is_broken() {
            self.inner.abort();
        } else if self.parked {
            let inner = std::mem::replace(&mut self.inner, Box::new(tokio::io::empty()));
            *self.control.parked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Parked(inner));
        }
    }
}

#[cfg(test)]
mod tests;
