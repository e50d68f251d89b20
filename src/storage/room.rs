//! Room for content: what is held, what is promised to running downloads, and what has to go for it.
//!
//! **A content file is sparse, and a task takes room piece by piece**, when the first byte of a piece is written. The quota
//! bounds the pieces that are held, whatever the length of their contents.
//!
//! **Nothing is evicted for a task that writes nothing.** A download is admitted when the pieces that its readers want
//! would fit beside what is in use and what other running downloads were promised ([`Storage::create_for`],
//! [`StoredTask::admit`]); the least recently used tasks go only as the pieces come.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use damselfly_core::{PieceNumber, PieceSet};

use super::config::StorageError;
use super::files::{Disk, Files};
use super::store::Inner;
use super::table::in_use;
use super::task::{StoredTask, TaskState};

/// Bytes of one task, or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Weight {
    /// Of pieces that are there, checked or not, or that are being written.
    pub(super) held: u64,
    /// Of pieces that a running download was promised room for and that are not held yet.
    pub(super) promised: u64,
    /// Of pieces that are being written: what is not in the file yet.
    pub(super) unwritten: u64,
}

impl Weight {
    /// Replaces `before`, a part of this, by `after`.
    pub(super) fn change(&mut self, before: Self, after: Self) {
        self.held = self.held - before.held + after.held;
        self.promised = self.promised - before.promised + after.promised;
        self.unwritten = self.unwritten - before.unwritten + after.unwritten;
    }
}

/// The weight of all stored tasks together.
#[derive(Debug, Default)]
pub(super) struct Totals {
    held: AtomicU64,
    promised: AtomicU64,
    unwritten: AtomicU64,
}

impl Totals {
    /// Replaces `before`, a part of this, by `after`.
    pub(super) fn change(&self, before: Weight, after: Weight) {
        let change = |total: &AtomicU64, before: u64, after: u64| {
            // Wrapping, as atomics do: the sum is right once all have spoken.
            total.fetch_add(after.wrapping_sub(before), Ordering::AcqRel);
        };
        change(&self.held, before.held, after.held);
        change(&self.promised, before.promised, after.promised);
        change(&self.unwritten, before.unwritten, after.unwritten);
    }

    pub(super) fn get(&self) -> Weight {
        Weight {
            held: self.held.load(Ordering::Acquire),
            promised: self.promised.load(Ordering::Acquire),
            unwritten: self.unwritten.load(Ordering::Acquire),
        }
    }
}

impl Inner {
    /// Promises room for the pieces of `wanted` that a task does not hold. The caller holds the order.
    pub(super) fn promise(&self, task: &Arc<TaskState>, wanted: &PieceSet) -> Result<(), StorageError> {
        self.would_fit(task, wanted)?;
        task.expect(wanted);
        Ok(())
    }

    /// Makes sure that the pieces of `wanted` that a task does not hold would fit, once everything is gone that may go.
    /// Evicts nothing. The caller holds the order.
    fn would_fit(&self, task: &Arc<TaskState>, wanted: &PieceSet) -> Result<(), StorageError> {
        let needed = task.unpromised(wanted);
        if needed == 0 {
            return Ok(());
        }
        let Weight { held, promised, unwritten } = self.shared.totals.get();
        let disk = self.disk()?;
        let taken = promised.saturating_add(unwritten).saturating_add(self.config.keep_free);
        let room = |held: u64, evictable: u64| {
            let by_quota = self.config.quota.saturating_sub(held.saturating_add(promised));
            let by_disk = disk.map_or(u64::MAX, |disk| disk.available.saturating_add(evictable).saturating_sub(taken));
            by_quota.min(by_disk)
        };
        // All tasks are looked at only where something would have to go.
        if needed > room(held, 0) {
            let evictable = self.evictable();
            let room = room(held.saturating_sub(evictable), evictable);
            if needed > room {
                return Err(StorageError::Full { needed, room });
            }
        }
        Ok(())
    }

    /// Takes room for a claimed piece, for which the least recently used tasks have to go if need be. Blocking.
    pub(super) fn take_room(&self, task: &Arc<TaskState>, piece: PieceNumber) -> Result<(), StorageError> {
        let _order = self.order();
        let needed = task.record.geometry.span(piece).map_or(0, |span| span.len());
        let Weight { held, unwritten, .. } = self.shared.totals.get();
        let over_quota = held.saturating_add(needed).saturating_sub(self.config.quota);
        let over_disk = self.disk()?.map_or(0, |disk| {
            let taken = unwritten.saturating_add(self.config.keep_free).saturating_add(needed);
            taken.saturating_sub(disk.available)
        });
        let short = over_quota.max(over_disk);
        if short > 0 {
            let evictable = self.evictable();
            if short > evictable {
                return Err(StorageError::Full { needed, room: needed.saturating_sub(short - evictable) });
            }
            self.evict(short);
        }
        task.take_room(piece);
        Ok(())
    }

    /// The bytes that would be free if every task were gone that nobody holds.
    fn evictable(&self) -> u64 {
        self.tasks().idle().map(|task| task.weight().held).fold(0, u64::saturating_add)
    }

    /// Evicts the least recently used tasks until at least `bytes` are freed; says how many. The caller holds the order.
    pub(super) fn evict(&self, bytes: u64) -> usize {
        let (mut freed, mut count) = (0u64, 0);
        while freed < bytes {
            let next = self.tasks().idle().next().map(|task| (task.id, task.weight().held));
            let Some((id, held)) = next else { break };
            // Where somebody has taken it meanwhile, the next look finds another one.
            if self.take_out(&id) {
                freed = freed.saturating_add(held);
                count += 1;
                self.shared.metrics.evictions.inc();
                tracing::info!(task = %id, bytes = held, "evicted");
            }
        }
        count
    }

    /// How many bytes a sweep should free on a file system that is used beyond the high threshold.
    pub(super) fn over_threshold(&self) -> u64 {
        let Ok(Some(disk)) = self.disk() else { return 0 };
        if disk.used_percent() <= u64::from(self.config.high_percent) {
            return 0;
        }
        let aim = u128::from(disk.total) * u128::from(self.config.low_percent.min(100)) / 100;
        disk.total.saturating_sub(disk.available).saturating_sub(aim as u64)
    }

    /// The file system's room; `None` in memory.
    fn disk(&self) -> Result<Option<Disk>, StorageError> {
        let disk = self.shared.files.as_ref().map(Files::disk).transpose();
        disk.map_err(StorageError::io("ask for the room of", &self.config.dir))
    }
}

impl StoredTask {
    /// Promises a running download room for these pieces. May wait for the disk.
    ///
    /// # Errors
    /// [`StorageError::Full`] if they would not fit even when everything is gone that may go; what was promised before
    /// stays so.
    pub fn admit(&self, wanted: &PieceSet) -> Result<(), StorageError> {
        let _order = self.store.order();
        self.store.promise(&self.state, wanted)
    }

    /// Whether the pieces of `wanted` that are not held or promised room would fit. May wait for the disk.
    pub fn would_fit(&self, wanted: &PieceSet) -> bool {
        self.state.unpromised(wanted) == 0 || {
            let _order = self.store.order();
            self.store.would_fit(&self.state, wanted).is_ok()
        }
    }

    /// The download has ended: nothing more is promised to this task.
    pub fn expect_nothing(&self) {
        self.state.expect_nothing();
    }

    /// Takes room for a claimed piece; blocking.
    pub(super) fn take_room(&self, piece: PieceNumber) -> io::Result<()> {
        self.store.take_room(&self.state, piece).map_err(|error| match error {
            StorageError::Full { .. } => io::Error::new(io::ErrorKind::StorageFull, error),
            error => io::Error::other(error),
        })
    }
}

impl Inner {
    /// Gives the file system back what files occupy beyond the pieces that are held: what an aborted write or a damaged
    /// piece has left, and what an older version had reserved. One task at a time is held for it, and so not evicted.
    pub(super) fn give_back_leftovers(&self) {
        let idle: Vec<_> = self.tasks().idle().map(|task| task.id).collect();
        for id in idle {
            let task = self.tasks().get(&id).filter(|task| !in_use(task)).map(Arc::clone);
            if let Some(task) = task {
                task.give_back_leftovers();
            }
        }
    }
}
