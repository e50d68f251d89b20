//! One stored task: which pieces are there, who writes which, and how readers learn of it.
//!
//! All that changes is in [`Pieces`], behind one short lock. A piece is in exactly one of `have`, `unchecked`, under a
//! claim, or absent.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use damselfly_core::swarm::{Held, Origin};
use damselfly_core::{Audience, ByteRange, Digest, Geometry, PieceDigest, PieceNumber, PieceSet, TaskId};
use tokio::sync::{OnceCell, watch};

use super::check::OwnChanges;
use super::content::Content;
use super::files::{self, Files};
use super::ledger::{Kept, Op};
use super::metrics::Metrics;
use super::record::{StateRecord, TaskRecord};
use super::recorder::Recorder;
use super::room::{Totals, Weight};
use super::store::Inner;
use super::writer::PieceWriter;
use crate::limit::{Priority, Slots};

/// The most bytes of one [`StoredTask::read`].
pub const MAX_READ: u64 = 1 << 20;

/// How old the recorded last access may become before a use is recorded anew, in seconds.
const ACCESS_GRAIN: u64 = 600;

/// How much a content file may occupy beyond its pieces before that is given back, in bytes.
const LEFTOVERS: u64 = 256 << 10;

/// How often a read starts over because bytes were withdrawn under it.
const READ_TRIES: usize = 3;

/// What the tasks of one storage share.
pub(super) struct Shared {
    /// `None` in memory: nothing outlives the process.
    pub(super) recorder: Option<Recorder>,
    /// `None` in memory. Dropped after the recorder: the directory's lock outlives the last commit.
    pub(super) files: Option<Files>,
    pub(super) metrics: Metrics,
    /// Of all tasks that are stored.
    pub(super) totals: Totals,
    /// See [`super::Config::check_interval`].
    pub(super) check_interval: Duration,
    /// For writers.
    pub(super) writes: Slots,
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
    Disk(PathBuf),
    Memory(Arc<Content>),
}

pub(super) struct TaskState {
    pub(super) id: TaskId,
    pub(super) record: TaskRecord,
    pub(super) place: Place,
    /// The open file, for as long as somebody uses it: idle tasks cost no descriptor.
    open: Mutex<Weak<Content>>,
    pieces: Mutex<Pieces>,
    pub(super) own_changes: Mutex<OwnChanges>,
    /// Bumped at every change, newly published bytes included.
    changed: watch::Sender<u64>,
    /// Bumped when the set of pieces changes.
    pieces_changed: watch::Sender<u64>,
    /// How many pieces were found damaged.
    pub(super) losses: watch::Sender<u64>,
    /// How urgent it is to whom it is written for.
    priority: AtomicU8,
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Pieces {
    pub(super) have: PieceSet,
    pub(super) unchecked: PieceSet,
    pub(super) digests: HashMap<PieceNumber, PieceDigest>,
    claims: HashMap<PieceNumber, Progress>,
    pub(super) checks: HashMap<PieceNumber, Arc<OnceCell<bool>>>,
    /// When those that are there were written, or last checked.
    pub(super) checked: HashMap<PieceNumber, Instant>,
    /// What a running download was promised room for.
    expected: PieceSet,
    /// What all of this adds up to.
    weight: Weight,
    /// How often bytes that could be read were withdrawn.
    pub(super) withdrawals: u64,
    /// The task was removed: nothing of it is recorded any more.
    pub(super) removed: bool,
    pub(super) state: StateRecord,
    /// The last access that was recorded.
    recorded_access: u64,
}

/// A piece under a claim.
#[derive(Clone, Copy, Default)]
struct Progress {
    written: u64,
    published: bool,
    /// Whether it has taken room.
    has_room: bool,
}

impl Progress {
    fn readable(self) -> u64 {
        if self.published { self.written } else { 0 }
    }
}

impl Pieces {
    /// What a piece of this length adds to the room that is taken.
    fn weight_of(&self, piece: PieceNumber, length: u64) -> Weight {
        let claim = self.claims.get(&piece).filter(|claim| claim.has_room);
        if claim.is_some() || self.have.contains(piece) || self.unchecked.contains(piece) {
            let unwritten = claim.map_or(0, |claim| length - claim.written);
            return Weight { held: length, promised: 0, unwritten };
        }
        Weight { promised: if self.expected.contains(piece) { length } else { 0 }, ..Weight::default() }
    }

    /// Nothing of the piece is there, and nobody writes it.
    fn is_absent(&self, piece: PieceNumber) -> bool {
        !(self.have.contains(piece) || self.unchecked.contains(piece) || self.claims.contains_key(&piece))
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
            task.change(&mut pieces, piece, |pieces| {
                if pieces.unchecked.insert(piece) {
                    pieces.digests.insert(piece, digest);
                }
            });
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
            checked: HashMap::new(),
            expected: PieceSet::empty(count),
            weight: Weight::default(),
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
            own_changes: Mutex::default(),
            changed: watch::Sender::new(0),
            pieces_changed: watch::Sender::new(0),
            losses: watch::Sender::new(0),
            priority: AtomicU8::new(Priority::default().level()),
            shared,
        }
    }

    pub(super) fn pieces(&self) -> MutexGuard<'_, Pieces> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bump(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    pub(super) fn bump_pieces(&self) {
        self.pieces_changed.send_modify(|version| *version += 1);
        self.bump();
    }

    /// The task's content, opened unless it is.
    pub(super) fn content(&self) -> io::Result<Arc<Content>> {
        let path = match &self.place {
            Place::Memory(content) => return Ok(Arc::clone(content)),
            Place::Disk(path) => path,
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

    /// Notes a use. The time is recorded once in a while.
    pub(super) fn touch(&self, now: u64) {
        let mut pieces = self.pieces();
        pieces.state.last_access = now;
        if now >= pieces.recorded_access.saturating_add(ACCESS_GRAIN) {
            pieces.recorded_access = now;
            self.record_state(&pieces);
        }
    }

    pub(super) fn record_state(&self, pieces: &Pieces) {
        if !pieces.removed {
            self.shared.record(Op::State(self.id, pieces.state));
        }
    }

    pub(super) fn state(&self) -> StateRecord {
        self.pieces().state
    }

    /// Removes the file. Who holds the task goes on with it.
    pub(super) fn remove_file(&self) {
        let Place::Disk(path) = &self.place else { return };
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        match open {
            Some(content) => self.change_file(&content, || files::remove(path)),
            None => files::remove(path),
        };
    }

    /// Stops recording, as the last thing that is recorded of this task.
    pub(super) fn forget(&self) {
        let mut pieces = self.pieces();
        if !pieces.removed {
            pieces.removed = true;
            self.shared.totals.change(pieces.weight, Weight::default());
            self.gauge();
            self.shared.record(Op::Remove(self.id));
        }
    }

    /// Changes what there is of one piece, and what follows from it for the room that is taken.
    pub(super) fn change<T>(
        &self,
        pieces: &mut Pieces,
        piece: PieceNumber,
        change: impl FnOnce(&mut Pieces) -> T,
    ) -> T {
        let length = self.record.geometry.span(piece).map_or(0, ByteRange::len);
        let before = pieces.weight_of(piece, length);
        let changed = change(pieces);
        let after = pieces.weight_of(piece, length);
        pieces.weight.change(before, after);
        // What was removed takes the room of nobody else.
        if !pieces.removed && before != after {
            self.shared.totals.change(before, after);
            self.gauge();
        }
        changed
    }

    fn gauge(&self) {
        let held = self.shared.totals.get().held;
        self.shared.metrics.bytes.set(i64::try_from(held).unwrap_or(i64::MAX));
    }

    /// The room that the task takes.
    pub(super) fn weight(&self) -> Weight {
        self.pieces().weight
    }

    /// The bytes of those of these pieces that are neither held nor promised room.
    pub(super) fn unpromised(&self, wanted: &PieceSet) -> u64 {
        let pieces = self.pieces();
        let geometry = self.record.geometry;
        let lengths = wanted.iter().filter_map(|piece| {
            let length = geometry.span(piece)?.len();
            let Weight { held, promised, .. } = pieces.weight_of(piece, length);
            Some(length - held - promised)
        });
        lengths.sum()
    }

    /// Promises room for these pieces.
    pub(super) fn expect(&self, wanted: &PieceSet) {
        let mut pieces = self.pieces();
        for piece in wanted.iter() {
            self.change(&mut pieces, piece, |pieces| pieces.expected.insert(piece));
        }
    }

    /// Takes back what was promised.
    pub(super) fn expect_nothing(&self) {
        let mut pieces = self.pieces();
        let expected = pieces.expected.clone();
        for piece in expected.iter() {
            self.change(&mut pieces, piece, |pieces| pieces.expected.remove(piece));
        }
    }

    /// The claimed piece takes its room.
    pub(super) fn take_room(&self, piece: PieceNumber) {
        let mut pieces = self.pieces();
        self.change(&mut pieces, piece, |pieces| {
            if let Some(progress) = pieces.claims.get_mut(&piece) {
                progress.has_room = true;
            }
        });
    }

    /// Gives the file system back what the file occupies beyond its pieces; blocking. Nobody writes meanwhile what is
    /// given back: it is claimed.
    pub(super) fn give_back_leftovers(&self) {
        let Place::Disk(path) = &self.place else { return };
        let held = self.weight().held;
        match files::size(path) {
            Ok((_, occupied)) if occupied > held.saturating_add(LEFTOVERS) => {}
            _ => return,
        }
        let absent: Vec<_> = {
            let mut pieces = self.pieces();
            let absent = self.record.geometry.pieces().filter(|piece| pieces.is_absent(*piece));
            let absent: Vec<_> = absent.collect();
            pieces.claims.extend(absent.iter().map(|&piece| (piece, Progress::default())));
            absent
        };
        let spans = absent.iter().filter_map(|&piece| self.record.geometry.span(piece));
        let punched = self.content().and_then(|content| {
            let file = content.file().ok_or(io::ErrorKind::Unsupported)?;
            self.change_file(&content, || files::punch(&file, spans))
        });
        if let Err(error) = punched {
            tracing::debug!(task = %self.id, %error, "a content file's unused space cannot be given back");
        }
        absent.into_iter().for_each(|piece| self.release(piece));
    }

    /// Whether somebody writes a piece, or may still.
    pub(super) fn is_written(&self) -> bool {
        !self.pieces().claims.is_empty()
    }

    /// How many pieces are good, and how many are to be checked.
    pub(super) fn counts(&self) -> (u32, u32) {
        let pieces = self.pieces();
        (pieces.have.len(), pieces.unchecked.len())
    }

    /// Bytes of a claimed piece are in the content.
    pub(super) fn progress(&self, piece: PieceNumber, written: u64) {
        let mut pieces = self.pieces();
        let readable = self.change(&mut pieces, piece, |pieces| {
            let progress = pieces.claims.get_mut(&piece)?;
            progress.written = written;
            Some(progress.published)
        });
        drop(pieces);
        let Some(readable) = readable else { return };
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
        let finished = self.change(&mut pieces, piece, |pieces| {
            let claimed = pieces.claims.remove(&piece).is_some();
            if claimed {
                pieces.have.insert(piece);
                pieces.digests.insert(piece, digest);
                pieces.checked.insert(piece, Instant::now());
            }
            claimed
        });
        if !finished {
            return;
        }
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
        let released = self.change(&mut pieces, piece, |pieces| pieces.claims.remove(&piece));
        let Some(progress) = released else { return };
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
}

/// A handle on a stored task. While one is held the task is not evicted and its content stays open.
#[derive(Clone)]
pub struct StoredTask {
    pub(super) state: Arc<TaskState>,
    pub(super) content: Arc<Content>,
    pub(super) store: Arc<Inner>,
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

    /// The pieces that are there, [checked](Self::check) or not.
    pub fn held_pieces(&self) -> PieceSet {
        let pieces = self.state.pieces();
        let mut held = pieces.have.clone();
        held.extend(pieces.unchecked.iter());
        held
    }

    /// Whether every piece is there, [checked](Self::check) or not.
    pub fn is_held(&self) -> bool {
        let pieces = self.state.pieces();
        pieces.have.len() + pieces.unchecked.len() == pieces.have.count()
    }

    /// Whether all pieces are there that have bytes of this range, [checked](Self::check) or not.
    pub fn holds(&self, range: ByteRange) -> bool {
        let pieces = self.state.pieces();
        let mut covering = self.geometry().covering(range);
        covering.all(|piece| pieces.have.contains(piece) || pieces.unchecked.contains(piece))
    }

    /// Whether this piece is there and still to be [checked](Self::check) before it is read.
    pub fn is_unchecked(&self, piece: PieceNumber) -> bool {
        self.state.pieces().unchecked.contains(piece)
    }

    /// Changes when a piece was found damaged: it is not there any more.
    pub fn losses(&self) -> watch::Receiver<u64> {
        self.state.losses.subscribe()
    }

    /// Whether both are handles on the same stored task, and not on one that took its place.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
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
            if !pieces.is_absent(piece) {
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
    /// `InvalidInput` for more; `NotFound` where bytes are not available (any more): then what is left of them is to be
    /// [checked](Self::check).
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
            let read = self.content.read_at(range);
            self.state.look_for_changes(&self.content);
            let Ok(bytes) = read else {
                // A disk that does not give them, or a file that was cut short: the pieces' check finds out.
                self.state.doubt(range);
                return Err(io::Error::new(io::ErrorKind::NotFound, "the bytes cannot be read any more"));
            };
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

    /// How urgent what is written of it is, beside what is written of others.
    pub fn priority(&self) -> Priority {
        Priority::new(self.state.priority.load(Ordering::Relaxed)).unwrap_or_default()
    }

    /// Notes how urgent it is now.
    pub fn set_priority(&self, priority: Priority) {
        self.state.priority.store(priority.level(), Ordering::Relaxed);
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
