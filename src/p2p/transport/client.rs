//! Fetching pieces from parents' data ports.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use damselfly_api::member::{MemberStream, Membership};
use damselfly_api::vortex::{self, Answer, ErrorCode, MAX_ANSWER, PieceHead};
use damselfly_core::swarm::PieceFault;
use damselfly_core::{PieceNumber, PieceSet, TaskId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::pool::Pool;
use crate::limit::{Class, Flow, Limiter, Priority};
use crate::storage::PieceWriter;

/// The buffer that one read from a parent may fill. Measured: see docs/performance.md.
const READ_BUFFER: usize = 256 << 10;

/// Less room than this in the buffer, and a new one is taken.
const LEAST_ROOM: usize = 64 << 10;

/// The bounds of the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// How long connecting may take, if the stall time is not shorter.
    pub connect_timeout: Duration,
    /// Idle connections kept for one parent.
    pub idle_per_host: usize,
    /// Idle connections kept in all.
    pub idle_total: usize,
    /// How long an idle connection is kept: shorter than servers keep theirs.
    pub idle_timeout: Duration,
    /// What is shown to parents that speak TLS.
    pub membership: Option<Membership>,
    /// Whether parents that do not are left alone.
    pub members_only: bool,
}

/// Where a parent serves pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DataAddr {
    /// The address.
    pub at: SocketAddr,
    /// Whether it speaks TLS there with members of its fleet.
    pub tls: bool,
}

impl From<SocketAddr> for DataAddr {
    fn from(at: SocketAddr) -> Self {
        Self { at, tls: false }
    }
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            idle_per_host: 8,
            idle_total: 256,
            idle_timeout: Duration::from_secs(30),
            membership: None,
            members_only: false,
        }
    }
}

/// Why a piece did not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No byte for the stall time.
    #[error("the parent stalled")]
    Stalled,
    /// The parent can't be reached, broke off, or refused for the moment.
    #[error("the parent is gone")]
    Gone,
    /// The parent doesn't have the piece.
    #[error("the parent does not have the piece")]
    Missing,
    /// What came is not the piece: another length or number, a wrong checksum, or no frame at all.
    #[error("the parent sent something else")]
    Bad,
    /// Our own storage failed; the parent is not to blame.
    #[error("the piece cannot be stored: {0}")]
    Local(#[source] io::Error),
}

impl FetchError {
    /// What the download machine is told; `None` where the parent is not to blame.
    pub fn fault(&self) -> Option<PieceFault> {
        match self {
            Self::Stalled => Some(PieceFault::Stalled),
            Self::Gone => Some(PieceFault::Gone),
            Self::Missing => Some(PieceFault::Missing),
            Self::Bad => Some(PieceFault::Bad),
            Self::Local(_) => None,
        }
    }
}

/// Leave to fetch one piece now. The parent keeps room for it until it is used, given back or dropped.
#[derive(Debug)]
pub struct GivenTurn {
    addr: DataAddr,
    stream: MemberStream,
    least_sent: Vec<PieceNumber>,
}

impl GivenTurn {
    /// Pieces that the parent would send, those first that it has sent least.
    pub fn least_sent(&self) -> &[PieceNumber] {
        &self.least_sent
    }
}

/// Why a parent gives no turn.
#[derive(Debug, thiserror::Error)]
pub enum TurnError {
    /// It has none to give at the moment.
    #[error("the parent is busy")]
    Busy,
    /// Something is the matter with it.
    #[error(transparent)]
    Failed(#[from] FetchError),
}

/// Fetches pieces over kept-open connections. Clones share them.
#[derive(Clone)]
pub struct DataClient {
    inner: Arc<Inner>,
    flow: Flow,
}

struct Inner {
    pool: Pool,
    config: ClientConfig,
}

/// A connection's answer so far: its head, and the piece's bytes that came with it.
struct Begun {
    stream: MemberStream,
    answer: Answer,
    rest: BytesMut,
}

/// Whether an exchange on a kept connection may be tried again on a fresh one.
enum ExchangeError {
    /// The connection ended before a byte of the answer.
    Unanswered,
    Failed(FetchError),
}

impl From<FetchError> for ExchangeError {
    fn from(error: FetchError) -> Self {
        Self::Failed(error)
    }
}

impl Default for DataClient {
    fn default() -> Self {
        Self::new(&ClientConfig::default())
    }
}

impl DataClient {
    /// A client without connections, and without a limit.
    pub fn new(config: &ClientConfig) -> Self {
        let pool = Pool::new(config.idle_per_host, config.idle_total, config.idle_timeout);
        let flow = Limiter::default().flow(Priority::default());
        Self { inner: Arc::new(Inner { pool, config: config.clone() }), flow }
    }

    /// The same connections; what is fetched by this client are bytes of `flow`.
    #[must_use]
    pub fn limited_by(&self, flow: &Flow) -> Self {
        Self { inner: Arc::clone(&self.inner), flow: flow.clone() }
    }

    /// Fetches the writer's piece of `task` from the data port at `addr`, into the writer, which must be fresh. On
    /// success the writer is full but not finished: the caller may have more to compare. Returns the CRC-32 that the
    /// parent sent, which agreed, or `None` if it sent none. To cancel, drop the future, and the writer.
    ///
    /// # Errors
    /// See [`FetchError`]; the writer is then of no more use.
    pub async fn fetch(
        &self,
        addr: impl Into<DataAddr>,
        task: &TaskId,
        writer: &mut PieceWriter,
        stall: Duration,
    ) -> Result<Option<u32>, FetchError> {
        if writer.written() != 0 {
            return Err(FetchError::Local(io::Error::new(io::ErrorKind::InvalidInput, "the writer is not fresh")));
        }
        let addr = addr.into();
        let request = vortex::encode_request(fastrand::u8(..), task, writer.piece());
        let begun = self.begin(addr, &request, stall).await?;
        self.take_piece(addr, begun, writer, stall).await
    }

    /// Takes the piece that a connection was asked for.
    async fn take_piece(
        &self,
        addr: DataAddr,
        begun: Begun,
        writer: &mut PieceWriter,
        stall: Duration,
    ) -> Result<Option<u32>, FetchError> {
        let Begun { mut stream, answer, rest } = begun;
        let (clean, result) = match answer {
            Answer::Piece(head) => receive(&mut stream, &head, rest, writer, &self.flow, stall).await,
            Answer::Error { code, text } => {
                tracing::debug!(addr = %addr.at, ?code, %text, "a parent refused a piece");
                let error = if code == ErrorCode::NotFound { FetchError::Missing } else { FetchError::Gone };
                (rest.is_empty(), Err(error))
            }
            Answer::Close => (false, Err(FetchError::Gone)),
            Answer::Turn { .. } => (false, Err(FetchError::Bad)),
        };
        if clean {
            self.inner.pool.put(addr, stream);
        }
        result
    }

    /// Asks a parent for a turn: for leave to fetch one of the `wanted` pieces when it has room to send one. To cancel,
    /// drop the future.
    ///
    /// # Errors
    /// Where the parent has none to give, or something is the matter with it.
    pub async fn ask(
        &self,
        addr: impl Into<DataAddr>,
        task: &TaskId,
        wanted: &PieceSet,
        stall: Duration,
    ) -> Result<GivenTurn, TurnError> {
        let addr = addr.into();
        let request = vortex::encode_ask(fastrand::u8(..), task, wanted);
        let Begun { stream, answer, rest } = self.begin(addr, &request, stall).await?;
        match answer {
            Answer::Turn { least_sent } if rest.is_empty() => {
                let least_sent = least_sent.into_iter().filter(|piece| wanted.contains(*piece)).collect();
                Ok(GivenTurn { addr, stream, least_sent })
            }
            Answer::Error { code: ErrorCode::Busy, .. } if rest.is_empty() => {
                self.inner.pool.put(addr, stream);
                Err(TurnError::Busy)
            }
            Answer::Error { code: ErrorCode::NotFound, .. } if rest.is_empty() => {
                self.inner.pool.put(addr, stream);
                Err(FetchError::Missing.into())
            }
            Answer::Error { .. } | Answer::Close => Err(FetchError::Gone.into()),
            Answer::Turn { .. } | Answer::Piece(_) => Err(FetchError::Bad.into()),
        }
    }

    /// Fetches a piece in a turn; otherwise like [`Self::fetch`].
    ///
    /// # Errors
    /// See [`FetchError`].
    pub async fn fetch_in_turn(
        &self,
        turn: GivenTurn,
        task: &TaskId,
        writer: &mut PieceWriter,
        stall: Duration,
    ) -> Result<Option<u32>, FetchError> {
        let request = vortex::encode_request(fastrand::u8(..), task, writer.piece());
        let begun = exchange(turn.stream, &request, stall).await.map_err(|error| match error {
            ExchangeError::Unanswered => FetchError::Gone,
            ExchangeError::Failed(error) => error,
        })?;
        self.take_piece(turn.addr, begun, writer, stall).await
    }

    /// Gives a turn back.
    pub async fn pass(&self, mut turn: GivenTurn, task: &TaskId, stall: Duration) {
        let frame = vortex::encode_pass(fastrand::u8(..), task);
        let passing = async {
            turn.stream.write_all(&frame).await?;
            turn.stream.flush().await
        };
        let passed = timeout(stall, passing).await;
        if let Ok(Ok(())) = passed {
            self.inner.pool.put(turn.addr, turn.stream);
        }
    }

    /// How many idle connections are kept.
    #[cfg(test)]
    pub(super) fn pooled(&self) -> usize {
        self.inner.pool.len()
    }

    async fn connect(&self, addr: DataAddr) -> io::Result<MemberStream> {
        let ClientConfig { membership, members_only, .. } = &self.inner.config;
        let membership = membership.as_ref().filter(|_| addr.tls);
        if membership.is_none() && *members_only {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it does not speak TLS, which is required"));
        }
        let stream = TcpStream::connect(addr.at).await?;
        stream.set_nodelay(true)?;
        match membership {
            Some(membership) => membership.connect(stream).await,
            None => Ok(MemberStream::Plain(stream)),
        }
    }

    /// Asks on a kept connection, or on a fresh one where there is none or it turns out to be closed.
    async fn begin(&self, addr: DataAddr, request: &[u8], stall: Duration) -> Result<Begun, FetchError> {
        if let Some(stream) = self.inner.pool.take(addr) {
            match exchange(stream, request, stall).await {
                Ok(begun) => return Ok(begun),
                Err(ExchangeError::Failed(error)) => return Err(error),
                Err(ExchangeError::Unanswered) => {}
            }
        }
        let connect = timeout(stall.min(self.inner.config.connect_timeout), self.connect(addr));
        let stream = connect.await.map_err(|_| FetchError::Stalled)?.map_err(|error| gone(&error))?;
        exchange(stream, request, stall).await.map_err(|error| match error {
            ExchangeError::Unanswered => FetchError::Gone,
            ExchangeError::Failed(error) => error,
        })
    }
}

/// Takes the piece's bytes. Says whether the connection can be used again, and what came of it.
async fn receive(
    stream: &mut MemberStream,
    head: &PieceHead,
    rest: BytesMut,
    writer: &mut PieceWriter,
    flow: &Flow,
    stall: Duration,
) -> (bool, Result<Option<u32>, FetchError>) {
    let length = writer.span().len();
    if head.number != writer.piece().0 || head.length != length || rest.len() as u64 > length {
        tracing::debug!(number = head.number, length = head.length, want = length, "a parent sent another piece");
        return (false, Err(FetchError::Bad));
    }
    if let Err(error) = copy(stream, rest, writer, flow, stall).await {
        return (false, Err(error));
    }
    let computed = writer.digest().map(|digest| digest.crc32);
    match head.crc32 {
        Some(sent) if computed != Some(sent) => (true, Err(FetchError::Bad)),
        sent => (true, Ok(sent)),
    }
}

fn gone(error: &io::Error) -> FetchError {
    tracing::debug!(%error, "a parent cannot be reached");
    FetchError::Gone
}

/// Sends the request and reads the answer's head.
async fn exchange(mut stream: MemberStream, request: &[u8], stall: Duration) -> Result<Begun, ExchangeError> {
    let asked = async {
        stream.write_all(request).await?;
        stream.flush().await
    };
    match timeout(stall, asked).await {
        Err(_) => return Err(FetchError::Stalled.into()),
        Ok(Err(_)) => return Err(ExchangeError::Unanswered),
        Ok(Ok(())) => {}
    }
    let mut buffer = BytesMut::with_capacity(READ_BUFFER);
    loop {
        let read = timeout(stall, stream.read_buf(&mut buffer)).await.map_err(|_| FetchError::Stalled)?;
        if !matches!(read, Ok(1..)) {
            let nothing = buffer.is_empty();
            return Err(if nothing { ExchangeError::Unanswered } else { FetchError::Gone.into() });
        }
        let head = buffer.get(..MAX_ANSWER).unwrap_or(&buffer);
        let decoded = vortex::decode_answer(head).map_err(|error| {
            tracing::debug!(%error, "garbage from a parent");
            FetchError::Bad
        })?;
        if let Some((answer, len)) = decoded {
            let rest = buffer.split_off(len);
            return Ok(Begun { stream, answer, rest });
        }
    }
}

/// The piece's bytes from the socket into the writer, beginning with those that came with the head. What waits for this
/// host's own limit is not read: the parent's stall is counted only while we want more of it.
async fn copy(
    stream: &mut MemberStream,
    mut buffer: BytesMut,
    writer: &mut PieceWriter,
    flow: &Flow,
    stall: Duration,
) -> Result<(), FetchError> {
    let length = writer.span().len();
    loop {
        flow.settle(Class::Download, buffer.len() as u64).await;
        writer.write(buffer.split().freeze()).await.map_err(FetchError::Local)?;
        let left = length - writer.written();
        if left == 0 {
            return Ok(());
        }
        if (buffer.capacity() as u64) < left.min(LEAST_ROOM as u64) {
            buffer.reserve(READ_BUFFER);
        }
        let most = flow.at_most(&[Class::Download], left);
        let mut room = (&mut buffer).limit(usize::try_from(most).unwrap_or(usize::MAX));
        match timeout(stall, stream.read_buf(&mut room)).await {
            Err(_) => return Err(FetchError::Stalled),
            Ok(Err(error)) => return Err(gone(&error)),
            Ok(Ok(0)) => return Err(FetchError::Gone),
            Ok(Ok(_)) => {}
        }
    }
}
