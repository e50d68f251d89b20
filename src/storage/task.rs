//! One stored task: which pieces are there, who writes which, and how readers learn of it.
//!
//! All that changes is in [`Pieces`], behind one short lock. A piece is in exactly one of `have`, `unchecked`, under a
//! claim, or absent.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use damselfly_core::swarm::{Held, Origin};
use damselfly_core::{Audience, ByteRange, Digest, Geometry, PieceDigest, PieceHasher, PieceNumber, PieceSet, TaskId};
use tokio::sync::{OnceCell, watch};

use super::content::Content;
use super::files::{self, Files};
use super::ledger::{Kept, Op};
use super::metrics::Metrics;
use super::record::{StateRecord, TaskRecord};
use super::recorder::Recorder;
use super::writer::PieceWriter;

/// The most bytes of one [`StoredTask::read`].
pub const MAX_READ: u64 = 1 << 20;

/// How old the recorded last access may become before a use is recorded anew, in seconds.
const ACCESS_GRAIN: u64 = 600;

/// How often a read starts over because bytes were withdrawn under it.
const READ_TRIES: usize = 3;

/// What the tasks of one storage share.
pub(super) struct Shared {
    /// `None` in memory: nothing outlives the process.
    pub(super) recorder: Option<Recorder>,
    /// `None` in memory. Dropped after the recorder: the directory's lock outlives the last commit.
    pub(super) files: Option<Files>,
    pub(super) metrics: Metrics,
}

impl Shared {
    pub(super) fn record(&self, op: Op) {
        if let Some(recorder) = &self.recorder {
            recorder.push(op);
        }
    }
}

/// Where a task's bytes are.
pub(super) enum Place {
    Disk { path: PathBuf, sparse: bool },
    Memory(Arc<Content>),
}

pub(super) struct TaskState {
    pub(super) id: TaskId,
    pub(super) record: TaskRecord,
    pub(super) place: Place,
    /// The open file, for as long as somebody uses it: idle tasks cost no descriptor.
    open: Mutex<Weak<Content>>,
    pieces: Mutex<Pieces>,
    /// Bumped at every change, newly published bytes included.
    changed: watch::Sender<u64>,
    /// Bumped when the set of pieces changes.
    pieces_changed: watch::Sender<u64>,
    /// The place in the order of use: the greater, the more recent.
    pub(super) used: AtomicU64,
    pub(super) shared: Arc<Shared>,
}

struct Pieces {
    have: PieceSet,
    unchecked: PieceSet,
    digests: HashMap<PieceNumber, PieceDigest>,
    claims: HashMap<PieceNumber, Progress>,
    checks: HashMap<PieceNumber, Arc<OnceCell<bool>>>,
    /// How often bytes that could be read were withdrawn.
    withdrawals: u64,
    /// The task was removed: nothing of it is recorded any more.
    removed: bool,
    state: StateRecord,
    /// The last access that was recorded.
    recorded_access: u64,
}

/// A piece under a claim.
#[derive(Clone, Copy, Default)]
struct Progress {
    written: u64,
    published: bool,
}

impl Progress {
    fn readable(self) -> u64 {
        if self.published { self.written } else { 0 }
    }
}

impl TaskState {
    pub(super) fn new(
        id: TaskId,
        record: TaskRecord,
        place: Place,
        audience: Audience,
        now: u64,
        shared: Arc<Shared>,
    ) -> Self {
        let state = StateRecord { verified: false, audience, last_access: now };
        Self::build(id, record, place, state, shared)
    }

    /// A task of an earlier process: its pieces are to be checked.
    pub(super) fn restored(kept: Kept, place: Place, shared: Arc<Shared>) -> Self {
        let task = Self::build(kept.id, kept.record, place, kept.state, shared);
        let mut pieces = task.pieces();
        for (piece, digest) in kept.pieces {
            if pieces.unchecked.insert(piece) {
                pieces.digests.insert(piece, digest);
            }
        }
        drop(pieces);
        task
    }

    fn build(id: TaskId, record: TaskRecord, place: Place, state: StateRecord, shared: Arc<Shared>) -> Self {
        let count = record.geometry.count();
        let pieces = Pieces {
            have: PieceSet::empty(count),
            unchecked: PieceSet::empty(count),
            digests: HashMap::new(),
            claims: HashMap::new(),
            checks: HashMap::new(),
            withdrawals: 0,
            removed: false,
            state,
            recorded_access: state.last_access,
        };
        Self {
            id,
            record,
            place,
            open: Mutex::default(),
            pieces: Mutex::new(pieces),
            changed: watch::Sender::new(0),
            pieces_changed: watch::Sender::new(0),
            used: AtomicU64::new(0),
            shared,
        }
    }

    fn pieces(&self) -> MutexGuard<'_, Pieces> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bump(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    fn bump_pieces(&self) {
        self.pieces_changed.send_modify(|version| *version += 1);
        self.bump();
    }

    /// The task's content, opened unless it is.
    pub(super) fn content(&self) -> io::Result<Arc<Content>> {
        let path = match &self.place {
            Place::Memory(content) => return Ok(Arc::clone(content)),
            Place::Disk { path, .. } => path,
        };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(content) = open.upgrade() {
            return Ok(content);
        }
        let content = Arc::new(Content::Disk(Arc::new(files::open(path)?)));
        *open = Arc::downgrade(&content);
        Ok(content)
    }

    /// Keeps a file that is already open.
    pub(super) fn opened(&self, file: File) -> Arc<Content> {
        let content = Arc::new(Content::Disk(Arc::new(file)));
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&content);
        content
    }

    /// Notes a use. The order is kept exactly, the time is recorded once in a while.
    pub(super) fn touch(&self, order: u64, now: u64) {
        self.used.store(order, Ordering::Relaxed);
        let mut pieces = self.pieces();
        pieces.state.last_access = now;
        if now >= pieces.recorded_access.saturating_add(ACCESS_GRAIN) {
            pieces.recorded_access = now;
            self.record_state(&pieces);
        }
    }

    fn record_state(&self, pieces: &Pieces) {
        if !pieces.removed {
            self.shared.record(Op::State(self.id, pieces.state));
        }
    }

    pub(super) fn state(&self) -> StateRecord {
        self.pieces().state
    }

    /// Stops recording, as the last thing that is recorded of this task.
    pub(super) fn forget(&self) {
        let mut pieces = self.pieces();
        if !pieces.removed {
            pieces.removed = true;
            self.shared.record(Op::Remove(self.id));
        }
    }

    /// How many pieces are good, and how many are to be checked.
    pub(super) fn counts(&self) -> (u32, u32) {
        let pieces = self.pieces();
        (pieces.have.len(), pieces.unchecked.len())
    }

    /// Whether every piece was written at some time.
    pub(super) fn is_written(&self) -> bool {
        let (have, unchecked) = self.counts();
        have + unchecked == self.record.geometry.count()
    }

    /// Bytes of a claimed piece are in the content.
    pub(super) fn progress(&self, piece: PieceNumber, written: u64) {
        let mut pieces = self.pieces();
        let Some(progress) = pieces.claims.get_mut(&piece) else { return };
        progress.written = written;
        let readable = progress.published;
        drop(pieces);
        if readable {
            self.bump();
        }
    }

    pub(super) fn publish(&self, piece: PieceNumber) {
        let mut pieces = self.pieces();
        let Some(progress) = pieces.claims.get_mut(&piece) else { return };
        let news = !progress.published && progress.written > 0;
        progress.published = true;
        drop(pieces);
        if news {
            self.bump();
        }
    }

    /// The claimed piece is complete.
    pub(super) fn finish(&self, piece: PieceNumber, digest: PieceDigest) {
        let mut pieces = self.pieces();
        if pieces.claims.remove(&piece).is_none() {
            return;
        }
        pieces.have.insert(piece);
        pieces.digests.insert(piece, digest);
        if !pieces.removed {
            self.shared.record(Op::Piece(self.id, piece, digest));
        }
        drop(pieces);
        self.shared.metrics.pieces_written.inc();
        self.bump_pieces();
    }

    /// The claimed piece is given up.
    pub(super) fn release(&self, piece: PieceNumber) {
        let mut pieces = self.pieces();
        let Some(progress) = pieces.claims.remove(&piece) else { return };
        pieces.withdrawals += u64::from(progress.readable() > 0);
        drop(pieces);
        self.bump();
    }

    fn available(&self, pieces: &Pieces, offset: u64) -> u64 {
        let geometry = self.record.geometry;
        let mut end = offset;
        // Nobody reads more at once, and a long task has many pieces to walk over.
        while end - offset < MAX_READ
            && let Some((piece, span)) = geometry.piece_at(end).and_then(|piece| Some((piece, geometry.span(piece)?)))
        {
            if pieces.have.contains(piece) {
                end = span.end();
                continue;
            }
            let readable = pieces.claims.get(&piece).map_or(0, |progress| progress.readable());
            return end.max(span.start() + readable);
        }
        end
    }

    /// Reads a piece again; blocking.
    fn agrees(&self, content: &Content, piece: PieceNumber, digest: PieceDigest) -> bool {
        let Some(span) = self.record.geometry.span(piece) else { return false };
        let mut hasher = PieceHasher::default();
        let mut at = span.start();
        while at < span.end() {
            let Some(range) = ByteRange::new(at, span.end().min(at + MAX_READ)) else { return false };
            match content.read_at(range) {
                Ok(bytes) => hasher.update(&bytes),
                Err(_) => return false,
            }
            at = range.end();
        }
        hasher.finish() == digest
    }

    fn settle_check(&self, piece: PieceNumber, good: bool) {
        let mut pieces = self.pieces();
        pieces.checks.remove(&piece);
        if !pieces.unchecked.remove(piece) {
            return;
        }
        if good {
            pieces.have.insert(piece);
            self.shared.metrics.pieces_rechecked.inc();
        } else {
            pieces.digests.remove(&piece);
            pieces.state.verified = false;
            if !pieces.removed {
                self.shared.record(Op::Forget(self.id, piece));
            }
            self.record_state(&pieces);
            self.shared.metrics.pieces_damaged.inc();
            tracing::warn!(task = %self.id, %piece, "a stored piece is damaged: forgotten");
        }
        drop(pieces);
        self.bump_pieces();
    }
}

/// A handle on a stored task. While one is held the task is not evicted and its content stays open.
#[derive(Clone)]
pub struct StoredTask {
    pub(super) state: Arc<TaskState>,
    pub(super) content: Arc<Content>,
}

impl std::fmt::Debug for StoredTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredTask").field("id", &self.id()).field("have", &self.have()).finish_non_exhaustive()
    }
}

impl StoredTask {
    /// Which task.
    pub fn id(&self) -> TaskId {
        self.state.id
    }

    /// How its content is cut.
    pub fn geometry(&self) -> Geometry {
        self.state.record.geometry
    }

    /// The content's own digest, where it has one.
    pub fn digest(&self) -> Option<Digest> {
        self.state.record.digest
    }

    /// Where the content comes from.
    pub fn origin(&self) -> &Origin {
        &self.state.record.origin
    }

    /// The answer headers that were worth keeping.
    pub fn headers(&self) -> &[(String, Vec<u8>)] {
        &self.state.record.headers
    }

    /// The pieces that are written and checked: they may be read and served.
    pub fn have(&self) -> PieceSet {
        self.state.pieces().have.clone()
    }

    /// The pieces that an earlier process recorded and that have not been read again.
    pub fn unchecked(&self) -> PieceSet {
        self.state.pieces().unchecked.clone()
    }

    /// All recorded pieces with their BLAKE3, also those that are still to be [checked](Self::check) before they are
    /// served: what this host says that it holds.
    pub fn held(&self) -> Held {
        let pieces = self.state.pieces();
        let mut held: Vec<_> = pieces.digests.iter().map(|(&piece, digest)| (piece, digest.blake3)).collect();
        drop(pieces);
        held.sort_unstable_by_key(|&(piece, _)| piece);
        Held { geometry: self.geometry(), pieces: held }
    }

    /// Makes sure of one piece: true if it may be read. A piece of an earlier process is read again and compared with
    /// its recorded digests, and forgotten where it disagrees. Concurrent calls for one piece are one check.
    pub async fn check(&self, piece: PieceNumber) -> bool {
        let (cell, digest) = {
            let mut pieces = self.state.pieces();
            if pieces.have.contains(piece) {
                return true;
            }
            if !pieces.unchecked.contains(piece) {
                return false;
            }
            let Some(&digest) = pieces.digests.get(&piece) else { return false };
            (Arc::clone(pieces.checks.entry(piece).or_default()), digest)
        };
        *cell.get_or_init(|| self.recheck(piece, digest)).await
    }

    async fn recheck(&self, piece: PieceNumber, digest: PieceDigest) -> bool {
        let task = self.clone();
        let check = move || {
            let good = task.state.agrees(&task.content, piece, digest);
            task.state.settle_check(piece, good);
            good
        };
        // An error means that the process is ending.
        tokio::task::spawn_blocking(check).await.unwrap_or(false)
    }

    /// The digests of a piece that is there, checked or not.
    pub fn digest_of(&self, piece: PieceNumber) -> Option<PieceDigest> {
        self.state.pieces().digests.get(&piece).copied()
    }

    /// The exclusive right to write a piece. `None` while somebody else has it (until its last write has settled, which
    /// [`Self::changed`] tells), when the piece is there, and when it is still to be [checked](Self::check).
    pub fn claim(&self, piece: PieceNumber) -> Option<PieceWriter> {
        let span = self.geometry().span(piece)?;
        {
            let mut pieces = self.state.pieces();
            if pieces.have.contains(piece) || pieces.unchecked.contains(piece) || pieces.claims.contains_key(&piece) {
                return None;
            }
            pieces.claims.insert(piece, Progress::default());
        }
        Some(PieceWriter::new(self.clone(), piece, span))
    }

    /// The end of the contiguous run of readable bytes from `offset` on, or any place in it that is [`MAX_READ`] or more
    /// ahead; `offset` itself where there are none.
    pub fn available(&self, offset: u64) -> u64 {
        self.state.available(&self.state.pieces(), offset)
    }

    /// Reads bytes that are [available](Self::available), at most [`MAX_READ`].
    ///
    /// # Errors
    /// `InvalidInput` for more; `NotFound` where bytes are not available (any more); the file's own errors.
    pub async fn read(&self, range: ByteRange) -> io::Result<Bytes> {
        if range.len() > MAX_READ {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many bytes for one read"));
        }
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let task = self.clone();
        tokio::task::spawn_blocking(move || task.read_now(range)).await.map_err(io::Error::other)?
    }

    /// Blocking. What was withdrawn and written anew while it was read could be a mixture: such a read starts over.
    fn read_now(&self, range: ByteRange) -> io::Result<Bytes> {
        for _ in 0..READ_TRIES {
            let before = self.readable(range)?;
            let bytes = self.content.read_at(range)?;
            if self.state.pieces().withdrawals == before {
                return Ok(bytes);
            }
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "the bytes were withdrawn"))
    }

    /// The number of withdrawals so far, if the range can be read now.
    fn readable(&self, range: ByteRange) -> io::Result<u64> {
        let pieces = self.state.pieces();
        if self.state.available(&pieces, range.start()) < range.end() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the bytes are not there"));
        }
        Ok(pieces.withdrawals)
    }

    /// Changes at every new piece, at newly published bytes, and when a claim or a piece goes.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.state.changed.subscribe()
    }

    /// Changes at every new piece, and when a piece goes: for those who do not care for the bytes of pieces under way.
    pub fn pieces_changed(&self) -> watch::Receiver<u64> {
        self.state.pieces_changed.subscribe()
    }

    /// Whether a piece is there and checked.
    pub fn has(&self, piece: PieceNumber) -> bool {
        self.state.pieces().have.contains(piece)
    }

    /// The content file, for sendfile; `None` in memory. Only pieces that the task [has](Self::have) may be sent.
    pub fn file(&self) -> Option<Arc<File>> {
        self.content.file()
    }

    /// Whether every piece is there and checked.
    pub fn is_complete(&self) -> bool {
        self.state.pieces().have.is_full()
    }

    /// Notes, durably, that the whole content agreed with its own digest.
    pub fn set_verified(&self) {
        let mut pieces = self.state.pieces();
        if !pieces.state.verified {
            pieces.state.verified = true;
            self.state.record_state(&pieces);
        }
    }

    /// Whom the content may be given to.
    pub fn audience(&self) -> Audience {
        self.state.pieces().state.audience
    }

    /// Notes, durably, whom the content may be given to.
    pub fn set_audience(&self, audience: Audience) {
        let mut pieces = self.state.pieces();
        if pieces.state.audience != audience {
            pieces.state.audience = audience;
            self.state.record_state(&pieces);
        }
    }

    /// Whether the whole content once agreed with its own digest, and no piece has been found damaged since.
    pub fn is_verified(&self) -> bool {
        self.state.pieces().state.verified
    }
}
