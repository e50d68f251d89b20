//! A reader of a task: an HTTP body that follows the content file in the reader's own order.
//!
//! The bytes come as soon as the store shows them: while the piece is arriving from the source, after its check when it
//! comes from a parent. A slow reader holds nothing up; what it has not taken is on disk.
//!
//! **Where the content's digest is known, the last [`HELD_TAIL`] bytes stay back until the digest of the whole agrees.**
//! Where only a range was wanted the whole never comes: then they stay back until the download has ended well.
//! Whatever goes wrong ends the body with an error, never cleanly.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use damselfly_core::{ByteRange, PieceNumber, TaskId};
use futures_util::{Stream, StreamExt as _, stream};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::watch;

use super::flight::{Outcome, Phase, Provenance, Seat, Traffic};
use super::tasks::Again;
use crate::limit::Flow;
use crate::storage::StoredTask;

/// The most bytes that one read of the content file takes. Measured: smaller reads cost more processor time a byte,
/// larger ones save none.
const READ_LENGTH: u64 = 256 << 10;

/// How often in a row a read of bytes that are there may fail before the reader leaves the store.
const MAX_MISSES: u32 = 16;

/// How often a reader has what is missing downloaded again before anything more came.
const AGAIN_TRIES: u32 = 3;

/// How many bytes at the end stay back until the content's digest agrees.
pub const HELD_TAIL: u64 = 16 << 10;

/// Why a body broke off. The client's connection must be reset, never ended cleanly.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Broken {
    /// The source failed in the middle and nobody else could help.
    #[error("the source failed: {0}")]
    Source(String),
    /// The source serves another version now.
    #[error("the content changed at its source during the transfer")]
    Changed,
    /// The content does not have the digest that names it.
    #[error("the content does not have the digest that names it")]
    Digest,
    /// Our own trouble.
    #[error("{0}")]
    Local(String),
}

type Bytestream = Pin<Box<dyn Stream<Item = Result<Bytes, Broken>> + Send>>;

/// The bytes of a range of a task's content, as they come.
pub struct ContentStream {
    stored: StoredTask,
    length: u64,
    range: ByteRange,
    left: u64,
    headers: HeaderMap,
    complete: bool,
    traffic: Arc<Traffic>,
    /// What its download brings, to the limits.
    flow: Option<Flow>,
    bytes: Bytestream,
}

impl ContentStream {
    /// A reader of `range` of what is, or comes to be, in `stored`.
    pub(super) fn new(
        stored: StoredTask,
        range: ByteRange,
        headers: HeaderMap,
        seat: Option<Seat>,
        again: Again,
    ) -> Self {
        let traffic = Arc::new(Traffic::default());
        let flow = seat.as_ref().map(|seat| seat.flight().flow().clone());
        let length = stored.geometry().length();
        let follower = Follower {
            at: range.start(),
            range,
            holds_tail: stored.digest().is_some() && range.end() == length,
            changed: stored.changed(),
            phase: seat.as_ref().map(|seat| seat.flight().phase()),
            traffic: Arc::clone(&traffic),
            seat,
            stored: stored.clone(),
            again,
            tries: AGAIN_TRIES,
            checked: None,
            misses: 0,
            rest: None,
        };
        let bytes = stream::unfold(Some(follower), |follower| async move {
            let mut follower = follower?;
            match follower.next().await? {
                Ok(bytes) => Some((Ok(bytes), Some(follower))),
                Err(broken) => Some((Err(broken), None)),
            }
        });
        Self {
            length,
            range,
            left: range.len(),
            headers,
            complete: stored.is_held(),
            stored,
            traffic,
            flow,
            bytes: Box::pin(bytes),
        }
    }

    /// The task's id.
    pub fn task_id(&self) -> TaskId {
        self.stored.id()
    }

    /// The content that it reads.
    pub const fn stored(&self) -> &StoredTask {
        &self.stored
    }

    /// The whole content's length in bytes.
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Which bytes of it this stream gives.
    pub const fn range(&self) -> ByteRange {
        self.range
    }

    /// The origin's answer headers that were kept with the content.
    pub const fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Whether the whole content was on this host when the stream was opened.
    pub const fn was_complete(&self) -> bool {
        self.complete
    }

    /// For how long this host's own limit of bandwidth has held up the download behind it.
    pub fn held_up(&self) -> Duration {
        self.flow.as_ref().map_or(Duration::ZERO, Flow::held_up)
    }

    /// Where the bytes came from, counted as they go out.
    pub fn traffic(&self) -> Arc<Traffic> {
        Arc::clone(&self.traffic)
    }
}

impl std::fmt::Debug for ContentStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContentStream").field("id", &self.task_id()).field("range", &self.range).finish_non_exhaustive()
    }
}

impl Body for ContentStream {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let next = ready!(self.bytes.as_mut().poll_next(cx));
        if let Some(Ok(bytes)) = &next {
            self.left -= bytes.len() as u64;
        }
        Poll::Ready(next.map(|bytes| bytes.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

struct Follower {
    stored: StoredTask,
    range: ByteRange,
    at: u64,
    holds_tail: bool,
    changed: watch::Receiver<u64>,
    phase: Option<watch::Receiver<Phase>>,
    seat: Option<Seat>,
    traffic: Arc<Traffic>,
    again: Again,
    /// How often it may still be used.
    tries: u32,
    /// The piece that it made sure of before it read from it.
    checked: Option<PieceNumber>,
    /// How often in a row bytes that were there could not be read.
    misses: u32,
    rest: Option<Bytestream>,
}

impl Follower {
    async fn next(&mut self) -> Option<Result<Bytes, Broken>> {
        if self.at >= self.range.end() {
            return None;
        }
        if self.rest.is_none() {
            match self.follow().await {
                Err(Broken::Local(why)) => match self.rescue(Broken::Local(why)).await {
                    Ok(()) => {}
                    Err(broken) => return Some(Err(broken)),
                },
                followed => return Some(followed),
            }
        }
        let bytes = self.rest.as_mut()?.next().await?;
        if let Ok(bytes) = &bytes {
            self.traffic.add(super::flight::From::Source, bytes.len() as u64);
            self.at += bytes.len() as u64;
        }
        Some(bytes)
    }

    /// The next bytes from the store.
    async fn follow(&mut self) -> Result<Bytes, Broken> {
        loop {
            let end = self.wait().await?;
            if let Some(bytes) = self.read(end).await? {
                return Ok(bytes);
            }
        }
    }

    /// Leaves the store for the source.
    async fn rescue(&mut self, why: Broken) -> Result<(), Broken> {
        let Some(rescue) = self.again.rescue() else { return Err(why) };
        let left = ByteRange::new(self.at, self.range.end()).ok_or_else(|| why.clone())?;
        self.seat = None;
        self.phase = None;
        let whole = self.range.start() == 0;
        self.rest = Some(Box::pin(rescue.rest(&self.stored, left, whole, &why).await?));
        Ok(())
    }

    /// Waits until there are bytes behind the reader's place; returns where they end.
    async fn wait(&mut self) -> Result<u64, Broken> {
        loop {
            // Both are looked at before the store, so that nothing that comes in between is missed.
            self.changed.borrow_and_update();
            let phase = self.phase.as_mut().map(|phase| phase.borrow_and_update().clone());
            // Without a download all that is wanted was here when the reader came.
            let done = phase.as_ref().is_none_or(|phase| matches!(phase.outcome, Some(Outcome::Done)));
            let end = self.readable_end(done);
            if end > self.at {
                return Ok(end);
            }
            let piece = self.stored.geometry().piece_at(self.at);
            if let Some(piece) = piece.filter(|&piece| self.stored.is_unchecked(piece)) {
                // Good or bad: the next look finds out.
                self.stored.check(piece).await;
                continue;
            }
            match phase {
                Some(Phase { outcome: Some(outcome), .. }) if !done => return Err(broken(&outcome)),
                Some(Phase { stored: Some(stored), .. }) if !stored.is_same(&self.stored) => {
                    return Err(Broken::Local("the stored content was replaced".into()));
                }
                Some(Phase { outcome: None, .. }) => {}
                _ => {
                    self.download_again()?;
                    continue;
                }
            }
            let Some(phase) = &mut self.phase else { continue };
            tokio::select! {
                _ = self.changed.changed() => {}
                gone = phase.changed() => if gone.is_err() {
                    return Err(Broken::Local("the download was given up".into()));
                },
            }
        }
    }

    /// Has what is left downloaded: the store has lost a piece that it had.
    fn download_again(&mut self) -> Result<(), Broken> {
        let left = ByteRange::new(self.at, self.range.end());
        let (Some(left), Some(tries)) = (left, self.tries.checked_sub(1)) else {
            return Err(Broken::Local("the stored content went away".into()));
        };
        self.tries = tries;
        let seat = self.again.join(left).map_err(|error| Broken::Local(error.to_string()))?;
        self.phase = Some(seat.flight().phase());
        self.seat = Some(seat);
        Ok(())
    }

    fn readable_end(&self, done: bool) -> u64 {
        let end = self.stored.available(self.at).min(self.range.end());
        // A download that ends well has compared the digest, if it has the whole.
        if self.holds_tail && !self.stored.is_verified() && !(done && self.range.start() > 0) {
            end.min(self.stored.geometry().length().saturating_sub(HELD_TAIL))
        } else {
            end
        }
    }

    /// Reads up to `end`; `None` if the bytes were withdrawn meanwhile (a source stream broke off) and come again.
    async fn read(&mut self, end: u64) -> Result<Option<Bytes>, Broken> {
        let geometry = self.stored.geometry();
        let piece = geometry.piece_at(self.at);
        if piece != self.checked
            && let Some(piece) = piece.filter(|&piece| self.stored.has(piece))
        {
            // What was good when it was written may not be any more.
            if !self.stored.check(piece).await {
                return Ok(None);
            }
            self.checked = Some(piece);
        }
        let piece_end = piece.and_then(|piece| geometry.span(piece)).map_or(end, ByteRange::end);
        let end = end.min(piece_end).min(self.at + READ_LENGTH);
        let range = ByteRange::new(self.at, end).ok_or_else(|| Broken::Local("a reader ran ahead".into()))?;
        let bytes = match self.stored.read(range).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && self.misses < MAX_MISSES => {
                (self.misses, self.checked) = (self.misses + 1, None);
                return Ok(None);
            }
            Err(error) => return Err(Broken::Local(format!("cannot read: {error}"))),
        };
        if bytes.len() as u64 != range.len() {
            return Err(Broken::Local("the content file is shorter than its content".into()));
        }
        self.count(bytes.len() as u64);
        self.at = end;
        (self.tries, self.misses) = (AGAIN_TRIES, 0);
        if let Some(seat) = &self.seat
            && end == piece_end
        {
            seat.at(end);
        }
        Ok(Some(bytes))
    }

    fn count(&self, bytes: u64) {
        let piece = self.stored.geometry().piece_at(self.at);
        let provenance = self.seat.as_ref().map(|seat| seat.flight().provenance());
        let from = match (piece, provenance) {
            (Some(piece), Some(provenance)) => Provenance::of(provenance, piece),
            _ => super::flight::From::Local,
        };
        self.traffic.add(from, bytes);
    }
}

fn broken(outcome: &Outcome) -> Broken {
    match outcome {
        Outcome::Done => Broken::Local("the download ended before this range of it was there".into()),
        Outcome::Refused => Broken::Source("it gave no content".into()),
        Outcome::Source(error) => Broken::Source(error.to_string()),
        Outcome::Changed => Broken::Changed,
        Outcome::Digest => Broken::Digest,
        Outcome::Abandoned => Broken::Local("the download was left before this range of it was there".into()),
        Outcome::Local(why) => Broken::Local(why.clone()),
    }
}
