//! The data port: what parents serve.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use damselfly_api::member::{self, MemberStream, Membership, STRANGER};
use damselfly_api::vortex::{self, ErrorCode, MAX_NAMED, PieceHead, REQUEST, Request};
use damselfly_core::{Audience, ByteRange, PieceNumber, PieceSet, TaskId};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::metrics::Metrics;
use super::send::{send_all, send_file};
use super::uplink::{Turn, Uplink, UplinkConfig};
use crate::limit::{Class, Flow, Limiter, Priority};
use crate::storage::{MAX_READ, Storage, StoredTask};

/// `common.v2.TrafficType.REMOTE_PEER`: what an answer says of where its bytes are from; no child acts on it.
const REMOTE_PEER: u8 = 1;

/// How long accepting pauses after the system refused, for want of descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The bounds of the data port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Open connections; further ones are closed at once.
    pub max_connections: usize,
    /// Pieces being sent at the same time, over all connections.
    pub upload_slots: usize,
    /// How long a request waits for a slot before it is refused.
    pub slot_wait: Duration,
    /// How long a connection may be silent between two requests.
    pub idle_timeout: Duration,
    /// How long a request may take from its first byte to its last.
    pub request_timeout: Duration,
    /// How long a child may take no byte of a piece.
    pub write_stall: Duration,
    /// How long one piece may take in all.
    pub piece_timeout: Duration,
    /// The turns of children that ask for them.
    pub uplink: UplinkConfig,
    /// What is shown to children that speak TLS.
    pub membership: Option<Membership>,
    /// Whether only members are served.
    pub members_only: bool,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            max_connections: 2048,
            upload_slots: 128,
            slot_wait: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(5),
            write_stall: Duration::from_secs(10),
            piece_timeout: Duration::from_secs(900),
            uplink: UplinkConfig::default(),
            membership: None,
            members_only: false,
        }
    }
}

/// Serves pieces to children.
#[derive(Clone)]
pub struct DataServer {
    inner: Arc<Inner>,
}

struct Inner {
    storage: Storage,
    config: ServerConfig,
    metrics: Metrics,
    limiter: Limiter,
    slots: Semaphore,
    uplink: Arc<Uplink>,
}

/// Why a connection ends before the child closes it.
#[derive(Debug)]
enum End {
    /// It was idle, or the server drains, or the child closed it: all is well.
    Quiet,
    /// Something came that is no request.
    Garbage(vortex::FrameError),
    /// The child is gone or too slow.
    Broken(io::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

impl DataServer {
    /// A server of what is in `storage`.
    pub fn new(storage: Storage, config: ServerConfig, limiter: Limiter, metrics: Metrics) -> Self {
        let slots = Semaphore::new(config.upload_slots);
        let uplink = Uplink::new(config.uplink.clone(), limiter.clone());
        Self { inner: Arc::new(Inner { storage, config, metrics, limiter, slots, uplink }) }
    }

    /// Serves `listener` until `drain` is ready; then accepts no more, lets every connection finish the piece that it
    /// sends, and returns. Dropping the future ends all connections at once.
    pub async fn serve(&self, listener: TcpListener, drain: impl Future<Output = ()>) {
        let mut connections = JoinSet::new();
        let (draining, drained) = watch::channel(false);
        let mut drain = std::pin::pin!(drain);
        loop {
            tokio::select! {
                biased;
                () = &mut drain => break,
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok(_) if connections.len() >= self.inner.config.max_connections => {
                        self.inner.metrics.refused.inc();
                    }
                    Ok((stream, _)) => {
                        connections.spawn(connection(Arc::clone(&self.inner), stream, drained.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the data port cannot accept");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(listener);
        draining.send_replace(true);
        while connections.join_next().await.is_some() {}
    }
}

/// Counts down also when the connection's task is aborted.
struct Gauged(prometheus_client::metrics::gauge::Gauge);

impl Gauged {
    fn new(gauge: &prometheus_client::metrics::gauge::Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Gauged {
    fn drop(&mut self) {
        self.0.dec();
    }
}

async fn connection(server: Arc<Inner>, stream: TcpStream, mut draining: watch::Receiver<bool>) {
    let _open = Gauged::new(&server.metrics.connections);
    // Only the last packet of an answer gains from it.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY on a data connection");
    }
    let mut stream = match member::greet(stream, server.config.membership.as_ref()).await {
        Ok(stream) => stream,
        Err(error) => return tracing::debug!(%error, "a data connection came to nothing"),
    };
    if server.config.members_only && stream.member().is_none() {
        // The connection ends either way.
        let _ = server.refuse(&mut stream, ErrorCode::Invalid, STRANGER).await;
        return;
    }
    let end = loop {
        match server.next_request(&mut stream, &mut draining).await {
            Ok(Request::Piece { task, piece }) => {
                if let Err(end) = server.answer(&mut stream, task, piece).await {
                    break end;
                }
            }
            Ok(Request::Turn { task, count }) => {
                if let Err(end) = server.turn(&mut stream, task, count).await {
                    break end;
                }
            }
            // A turn that was taken back before the child had said so.
            Ok(Request::Pass) => {}
            Ok(Request::Close) => break End::Quiet,
            Err(end) => break end,
        }
    };
    match end {
        End::Quiet => {}
        End::Broken(error) => tracing::debug!(%error, "a data connection broke"),
        End::Garbage(error) => {
            server.metrics.garbage.inc();
            tracing::debug!(%error, "garbage on a data connection");
            let frame = vortex::encode_error(fastrand::u8(..), ErrorCode::Invalid, &error.to_string());
            // The connection ends either way.
            let _ = send_all(&mut stream, &frame, false, server.config.write_stall).await;
        }
    }
}

impl Inner {
    /// Reads one request; never a byte beyond it.
    async fn next_request(
        &self,
        stream: &mut MemberStream,
        draining: &mut watch::Receiver<bool>,
    ) -> Result<Request, End> {
        let mut frame = [0; REQUEST];
        let mut len = tokio::select! {
            biased;
            // An error means that the server was dropped.
            _ = draining.wait_for(|&draining| draining) => return Err(End::Quiet),
            read = timeout(self.config.idle_timeout, stream.read(&mut frame)) => match read {
                Ok(Ok(0)) | Err(_) => return Err(End::Quiet),
                Ok(read) => read?,
            },
        };
        self.rest_of_request(stream, &mut frame, &mut len).await
    }

    async fn rest_of_request(
        &self,
        stream: &mut MemberStream,
        frame: &mut [u8; REQUEST],
        len: &mut usize,
    ) -> Result<Request, End> {
        let deadline = Instant::now() + self.config.request_timeout;
        loop {
            let decoded = vortex::decode_request(frame.get(..*len).unwrap_or_default()).map_err(End::Garbage)?;
            if let Some((request, _)) = decoded {
                return Ok(request);
            }
            // A request that is not complete leaves room: nothing that is accepted is longer than the frame.
            let room = frame.get_mut(*len..).unwrap_or_default();
            let read =
                timeout_at(deadline, stream.read(room)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
            match read? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                read => *len += read,
            }
        }
    }

    /// Answers a request for a single piece.
    async fn answer(&self, stream: &mut MemberStream, id: TaskId, piece: PieceNumber) -> Result<(), End> {
        let Ok(Ok(_slot)) = timeout(self.config.slot_wait, self.slots.acquire()).await else {
            return self.refuse(stream, ErrorCode::Unknown, "all upload slots are taken").await;
        };
        self.send_piece(stream, id, piece, None).await
    }

    /// Gives a child a turn when there is room, and sends the piece that it chooses.
    async fn turn(&self, stream: &mut MemberStream, id: TaskId, count: u32) -> Result<(), End> {
        let wanted = self.wanted(stream, count).await?;
        let host = stream.tcp().peer_addr()?.ip();
        let Some(task) = self.shared_task(&id) else {
            return self.refuse(stream, ErrorCode::NotFound, "the task is not here").await;
        };
        let turn = tokio::select! {
            turn = self.uplink.turn(host, id, wanted.len() as usize) => turn,
            () = hung_up(stream.tcp()) => return Err(End::Quiet),
        };
        let Some(turn) = turn else {
            return self.refuse(stream, ErrorCode::Busy, "all turns are taken").await;
        };
        let here = task.have();
        let mut usable = PieceSet::empty(here.count());
        usable.extend(here.common(&wanted));
        usable.extend(task.unchecked().common(&wanted));
        if usable.is_empty() {
            return self.refuse(stream, ErrorCode::NotFound, "none of the pieces is here").await;
        }
        let least_sent = self.uplink.least_sent(&id, &usable, MAX_NAMED);
        let stall = self.config.write_stall;
        send_all(stream, &vortex::encode_turn(fastrand::u8(..), &least_sent), false, stall).await?;
        let (mut frame, mut len) = ([0; REQUEST], 0);
        let chosen = timeout(self.config.uplink.choice, self.rest_of_request(stream, &mut frame, &mut len)).await;
        match chosen {
            Ok(Ok(Request::Pass)) => Ok(()),
            Ok(Ok(Request::Piece { task, piece })) if task == id => {
                self.uplink.count(&id, piece);
                self.send_piece(stream, id, piece, Some(turn)).await
            }
            Ok(Ok(_)) => Err(io::Error::from(io::ErrorKind::InvalidData).into()),
            Ok(Err(end)) => Err(end),
            Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
        }
    }

    /// A task that other hosts may have.
    fn shared_task(&self, id: &TaskId) -> Option<StoredTask> {
        self.storage.get(id).filter(|task| task.audience() != Audience::Host)
    }

    /// The pieces that a child could use: the bits behind its request.
    async fn wanted(&self, stream: &mut MemberStream, count: u32) -> Result<PieceSet, End> {
        let mut bits = vec![0; vortex::bitmap_length(count)];
        let read = timeout(self.config.request_timeout, stream.read_exact(&mut bits)).await;
        read.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(vortex::decode_wanted(count, &bits))
    }

    async fn send_piece(
        &self,
        stream: &mut MemberStream,
        id: TaskId,
        piece: PieceNumber,
        turn: Option<Turn>,
    ) -> Result<(), End> {
        let found = match self.shared_task(&id) {
            Some(task) if task.check(piece).await => task.geometry().span(piece).map(|span| (task, span)),
            _ => None,
        };
        let Some((task, span)) = found else {
            return self.refuse(stream, ErrorCode::NotFound, "the piece is not here").await;
        };
        let _sending = Gauged::new(&self.metrics.sending);
        let sent = AtomicU64::new(0);
        let flow = self.limiter.task_flow(&id, Priority::default());
        let sending = timeout(self.config.piece_timeout, self.send(stream, &task, piece, span, (&flow, &sent)));
        let result = self.lend(turn, sending, (&flow, &sent)).await;
        match result.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(()) => {
                self.metrics.pieces.inc();
                self.metrics.bytes.inc_by(span.len());
                Ok(())
            }
            Err(error) => {
                self.metrics.failures.inc();
                Err(error.into())
            }
        }
    }

    /// Sends in a turn, and gives that to the next as soon as this child proves to be a slow reader. One that our own
    /// limit slows is none.
    async fn lend<T>(
        &self,
        mut turn: Option<Turn>,
        sending: impl Future<Output = T>,
        (flow, sent): (&Flow, &AtomicU64),
    ) -> T {
        let mut sending = std::pin::pin!(sending);
        let (mut before, mut held_up) = (0, flow.held_up());
        loop {
            tokio::select! {
                result = &mut sending => return result,
                () = tokio::time::sleep(self.config.uplink.look), if turn.is_some() => {
                    let now = sent.load(Ordering::Relaxed);
                    let by_us = flow.held_up() > held_up;
                    if now - before < self.config.uplink.least && !by_us {
                        turn = None;
                    }
                    (before, held_up) = (now, flow.held_up());
                }
            }
        }
    }

    async fn refuse(&self, stream: &mut MemberStream, code: ErrorCode, text: &str) -> Result<(), End> {
        self.metrics.refused.inc();
        let frame = vortex::encode_error(fastrand::u8(..), code, text);
        Ok(send_all(stream, &frame, false, self.config.write_stall).await?)
    }

    async fn send(
        &self,
        stream: &mut MemberStream,
        task: &StoredTask,
        piece: PieceNumber,
        span: ByteRange,
        (flow, sent): (&Flow, &AtomicU64),
    ) -> io::Result<()> {
        let head = PieceHead {
            number: piece.0,
            offset: span.start(),
            length: span.len(),
            crc32: task.digest_of(piece).map(|digest| digest.crc32),
            parent: String::new(),
            traffic: REMOTE_PEER,
            cost: 0,
            created_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64),
        };
        let stall = self.config.write_stall;
        send_all(stream, &vortex::encode_piece(fastrand::u8(..), &head), true, stall).await?;
        // The kernel encrypts nothing.
        if let (Some(file), MemberStream::Plain(stream)) = (task.file(), &*stream) {
            return send_file(stream, &file, span, flow, stall, sent).await;
        }
        let mut at = span.start();
        loop {
            let most = flow.at_most(&[Class::Upload], MAX_READ);
            let Some(some) = ByteRange::new(at, span.end().min(at + most)).filter(|some| !some.is_empty()) else {
                return Ok(());
            };
            flow.take(Class::Upload, some.len()).await;
            let bytes = task.read(some).await?;
            send_all(stream, &bytes, some.end() < span.end(), stall).await?;
            at = some.end();
            sent.fetch_add(some.len(), Ordering::Relaxed);
        }
    }
}

/// Waits until the child closes the connection. One that says something before it is answered is heard later.
async fn hung_up(stream: &TcpStream) {
    match stream.peek(&mut [0]).await {
        Ok(0) | Err(_) => {}
        Ok(_) => std::future::pending().await,
    }
}
