//! Writing one piece.
//!
//! [`PieceWriter::write`] puts bytes into a short queue and returns; a drain on a blocking thread takes what has
//! gathered, hashes it and writes it with one positional write, again and again until the queue is empty. So the socket
//! is read while the bytes before are hashed, and how much goes into one write follows from how fast they come. The
//! last `write` of a piece returns when all is settled, so that the digest is there and `finish` has nothing to wait for.
//!
//! Only so many drains write at a time ([`WRITES`]). While more want to, those of the most urgent tasks go first, and a
//! drain that goes on gives way after each write.
//!
//! **The claim belongs to whoever may still write**: it moves into the drain and back, and is released where it is
//! dropped. A dropped writer, or a dropped `write` future, can't leave a late write behind that another writer races.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use damselfly_core::{ByteRange, PieceDigest, PieceHasher, PieceNumber};
use tokio::sync::Notify;

use super::task::StoredTask;
use crate::limit::Slot;

/// The most bytes that wait in a writer's queue (and at most one buffer more): a writer holds about twice that.
pub(super) const MAX_QUEUED: usize = 1 << 20;

/// A drain is started when this much waits, unless the bytes are published: then at once.
const BATCH: usize = 256 << 10;

/// How many drains write at a time. More only wait for each other in the file system and at the disk.
pub(super) const WRITES: usize = 8;

/// Fewer bytes were written than the piece has, or a write failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the piece has {want} bytes, {written} of them were written")]
pub struct ShortPiece {
    /// The piece's bytes.
    pub want: u64,
    /// Those that are in the content.
    pub written: u64,
}

/// The exclusive right to write one piece, in order. Dropping it unfinished releases the piece and hides what was
/// published of it, as soon as a write under way has settled.
pub struct PieceWriter {
    task: StoredTask,
    piece: PieceNumber,
    span: ByteRange,
    accepted: u64,
    publishing: bool,
    inbox: Arc<Inbox>,
}

struct Inbox {
    state: Mutex<InboxState>,
    /// The drain took something, ended, or failed. One waiter: the writer.
    moved: Notify,
}

struct InboxState {
    queue: Vec<Bytes>,
    queued: usize,
    pen: Pen,
    /// The writer was dropped.
    abandoned: bool,
}

/// Who may write.
enum Pen {
    /// Nobody does: the next drain takes it.
    Idle(Box<Core>),
    /// A drain does.
    Draining,
    /// The piece is complete.
    Full(Box<Core>, PieceDigest),
    /// A write failed; the claim is released.
    Failed(io::ErrorKind),
}

/// The claim and what goes with it.
struct Core {
    claim: Claim,
    hasher: PieceHasher,
    written: u64,
    has_room: bool,
    span: ByteRange,
}

/// Released when dropped. (After [`super::task::TaskState::finish`] there is nothing left to release.)
struct Claim {
    task: StoredTask,
    piece: PieceNumber,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.task.state.release(self.piece);
    }
}

impl Core {
    /// Hashes and writes; blocking. The piece takes its room in the storage with its first byte.
    fn write(&mut self, batch: &[Bytes]) -> io::Result<()> {
        if !self.has_room {
            self.claim.task.take_room(self.claim.piece)?;
            self.has_room = true;
        }
        for bytes in batch {
            self.hasher.update(bytes);
        }
        let (task, at) = (&self.claim.task, self.span.start() + self.written);
        task.state.change_file(&task.content, || task.content.write_at(batch, at))?;
        self.written += batch.iter().map(|bytes| bytes.len() as u64).sum::<u64>();
        self.claim.task.state.progress(self.claim.piece, self.written);
        Ok(())
    }
}

impl Inbox {
    fn state(&self) -> MutexGuard<'_, InboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has what waits written by a blocking thread, in its turn.
    fn start(self: &Arc<Self>, core: Box<Core>) {
        let inbox = Arc::clone(self);
        let (slots, priority) = (core.claim.task.state.shared.writes.clone(), core.claim.task.priority());
        if let Some(slot) = slots.try_take(priority) {
            tokio::task::spawn_blocking(move || inbox.write(core, slot));
            return;
        }
        tokio::spawn(async move {
            let slot = slots.take(priority).await;
            tokio::task::spawn_blocking(move || inbox.write(core, slot));
        });
    }

    /// Writes what waits, or as much of it as the others leave time for; blocking.
    fn write(self: Arc<Self>, core: Box<Core>, slot: Slot) {
        if let Some(core) = self.drain(core, &slot) {
            drop(slot);
            self.start(core);
        }
    }

    /// Writes what waits until nothing does, or somebody else wants the slot: then there is more to do. Blocking.
    fn drain(&self, mut core: Box<Core>, slot: &Slot) -> Option<Box<Core>> {
        if let Some(recorder) = &core.claim.task.state.shared.recorder {
            recorder.wait_for_room();
        }
        let mut has_written = false;
        loop {
            let mut state = self.state();
            if state.abandoned {
                return None;
            }
            if state.queue.is_empty() {
                state.pen = if core.written == core.span.len() {
                    let digest = core.hasher.finish();
                    Pen::Full(core, digest)
                } else {
                    Pen::Idle(core)
                };
                break;
            }
            if has_written && slot.is_wanted() {
                return Some(core);
            }
            let batch = std::mem::take(&mut state.queue);
            state.queued = 0;
            drop(state);
            self.moved.notify_one();
            if let Err(error) = core.write(&batch) {
                self.state().pen = Pen::Failed(error.kind());
                break;
            }
            has_written = true;
        }
        self.moved.notify_one();
        None
    }
}

impl PieceWriter {
    pub(super) fn new(task: StoredTask, piece: PieceNumber, span: ByteRange) -> Self {
        let claim = Claim { task: task.clone(), piece };
        let core = Core { claim, hasher: PieceHasher::default(), written: 0, has_room: false, span };
        let state = InboxState { queue: Vec::new(), queued: 0, pen: Pen::Idle(Box::new(core)), abandoned: false };
        let inbox = Arc::new(Inbox { state: Mutex::new(state), moved: Notify::new() });
        Self { task, piece, span, accepted: 0, publishing: false, inbox }
    }

    /// Which piece.
    pub fn piece(&self) -> PieceNumber {
        self.piece
    }

    /// The task that it belongs to.
    pub fn task(&self) -> &StoredTask {
        &self.task
    }

    /// The piece's bytes in the content.
    pub fn span(&self) -> ByteRange {
        self.span
    }

    /// How many bytes were handed over so far.
    pub fn written(&self) -> u64 {
        self.accepted
    }

    /// Appends bytes. Returns when there is room for more, and after the piece's last byte when everything is in the
    /// content. Must run on a tokio runtime.
    ///
    /// # Errors
    /// More bytes than the piece has (`InvalidInput`, nothing of them is taken); the file's errors, of this write or of
    /// an earlier one. After an error of the file the writer is of no more use.
    pub async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        if bytes.len() as u64 > self.span.len() - self.accepted {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "more bytes than the piece has"));
        }
        if bytes.is_empty() {
            return Ok(());
        }
        self.accepted += bytes.len() as u64;
        {
            let mut state = self.inbox.state();
            state.queued += bytes.len();
            state.queue.push(bytes);
        }
        self.settle().await
    }

    /// Starts a drain if it is time for one, and waits while too much waits (or, at the piece's end, anything).
    async fn settle(&self) -> io::Result<()> {
        let last = self.accepted == self.span.len();
        loop {
            {
                let mut state = self.inbox.state();
                if let Pen::Failed(kind) = state.pen {
                    return Err(kind.into());
                }
                if state.queued >= BATCH || self.publishing || last {
                    self.start(&mut state);
                }
                let settled = if last { matches!(state.pen, Pen::Full(..)) } else { state.queued < MAX_QUEUED };
                if settled {
                    return Ok(());
                }
            }
            self.inbox.moved.notified().await;
        }
    }

    fn start(&self, state: &mut InboxState) {
        if state.queue.is_empty() || !matches!(state.pen, Pen::Idle(_)) {
            return;
        }
        if let Pen::Idle(core) = std::mem::replace(&mut state.pen, Pen::Draining) {
            self.inbox.start(core);
        }
    }

    /// From now on what is written becomes readable at once, before the piece is finished. Only for sources that are
    /// trusted. Must run on a tokio runtime.
    pub fn publish(&mut self) {
        if !self.publishing {
            self.publishing = true;
            self.task.state.publish(self.piece);
            self.start(&mut self.inbox.state());
        }
    }

    /// The digests of all bytes, once the last one is written.
    pub fn digest(&self) -> Option<PieceDigest> {
        match self.inbox.state().pen {
            Pen::Full(_, digest) => Some(digest),
            _ => None,
        }
    }

    /// Makes the complete piece readable and has it recorded. The caller has compared its digest where there was
    /// anything to compare it with.
    ///
    /// # Errors
    /// Where bytes are missing; the piece is released.
    pub fn finish(self) -> Result<PieceDigest, ShortPiece> {
        let state = self.inbox.state();
        let Pen::Full(core, digest) = &state.pen else {
            return Err(ShortPiece { want: self.span.len(), written: self.accepted });
        };
        core.claim.task.state.finish(self.piece, *digest);
        Ok(*digest)
    }
}

impl Drop for PieceWriter {
    fn drop(&mut self) {
        let mut state = self.inbox.state();
        state.abandoned = true;
        state.queue.clear();
        // A drain under way ends at its next look and releases the claim there.
        let pen = std::mem::replace(&mut state.pen, Pen::Failed(io::ErrorKind::BrokenPipe));
        drop(state);
        drop(pen);
    }
}

impl std::fmt::Debug for PieceWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PieceWriter")
            .field("task", &self.task.id())
            .field("piece", &self.piece)
            .field("written", &self.accepted)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use damselfly_core::swarm::Origin;
    use damselfly_core::{Audience, Geometry, TaskId};

    use super::*;
    use crate::limit::Priority;
    use crate::storage::{NewTask, Storage};

    fn task(storage: &Storage, number: u8, level: u8) -> StoredTask {
        let new = NewTask {
            id: TaskId::from_bytes([number; 32]),
            geometry: Geometry::new(8 << 20, 4 << 20).unwrap(),
            digest: None,
            origin: Origin::default(),
            headers: Vec::new(),
            audience: Audience::Public,
        };
        let task = storage.create(new).unwrap();
        task.set_priority(Priority::new(level).unwrap());
        task
    }

    /// While all slots are taken two downloads want to write, the urgent one last.
    #[tokio::test]
    async fn what_is_urgent_is_written_first() {
        let storage = Storage::in_memory(1 << 30);
        let (late, urgent) = (task(&storage, 1, 3), task(&storage, 2, 6));
        let slots = late.state.shared.writes.clone();
        let mut held: Vec<Slot> = (0..WRITES).map(|_| slots.try_take(Priority::HIGHEST).unwrap()).collect();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut writing = Vec::new();
        for (name, task) in [("late", &late), ("late too", &late), ("urgent", &urgent)] {
            let piece = PieceNumber(u32::from(name == "late too"));
            let mut writer = task.claim(piece).unwrap();
            let order = Arc::clone(&order);
            writing.push(tokio::spawn(async move {
                for _ in 0..4 {
                    writer.write(vec![7; 1 << 20].into()).await.unwrap();
                }
                order.lock().unwrap().push(name);
                writer.finish().unwrap();
            }));
            while held[0].waiting() < writing.len() {
                tokio::task::yield_now().await;
            }
        }
        held.pop();
        for writing in writing {
            writing.await.unwrap();
        }
        assert_eq!(order.lock().unwrap()[0], "urgent");
        assert!(urgent.has(PieceNumber(0)) && late.has(PieceNumber(0)) && late.has(PieceNumber(1)));
    }
}
