//! Whether the bytes on the disk are still those that were recorded.
//!
//! **Nothing is read by anybody that may have changed since it was last compared with its digests.** A piece is read again
//! and compared first
//! - when an earlier process recorded it;
//! - when its last check is longer ago than [`super::Config::check_interval`];
//! - when somebody else has touched its file: inode, length or time of change are not those after our own last write.
//!
//! Until then it is `unchecked`, like one of an earlier process. A piece that disagrees is forgotten, which
//! [`StoredTask::losses`] tells, and comes again from wherever pieces come.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use damselfly_core::{ByteRange, PieceDigest, PieceHasher, PieceNumber};

use super::Storage;
use super::content::Content;
use super::ledger::Op;
use super::task::{MAX_READ, Pieces, StoredTask, TaskState};

/// What a file looks like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { inode: metadata.ino(), length: metadata.len(), changed: (metadata.ctime(), metadata.ctime_nsec()) })
    }
}

/// Our own changes of a content file, and what it looked like after the last of them.
#[derive(Debug, Default)]
pub(super) struct OwnChanges {
    under_way: u32,
    begun: u64,
    /// The stamp, and how many changes had begun before it.
    last: Option<(u64, Stamp)>,
}

impl TaskState {
    /// Changes the content file. Blocking.
    pub(super) fn change_file<T>(&self, content: &Content, change: impl FnOnce() -> T) -> T {
        self.look_for_changes(content);
        self.change_file_unlooked(content, change)
    }

    fn change_file_unlooked<T>(&self, content: &Content, change: impl FnOnce() -> T) -> T {
        {
            let mut own = self.own_changes();
            own.under_way += 1;
            own.begun += 1;
        }
        let changed = change();
        let begun = {
            let mut own = self.own_changes();
            own.under_way -= 1;
            if own.under_way > 0 {
                return changed;
            }
            own.begun
        };
        let stamp = content.file().and_then(|file| Stamp::of(&file).ok());
        let mut own = self.own_changes();
        if own.under_way == 0 && own.begun == begun {
            own.last = stamp.map(|stamp| (begun, stamp));
        }
        changed
    }

    /// Looks whether somebody else has touched the content file; then all pieces are to be checked. While we write to it
    /// ourselves nothing can be told.
    pub(super) fn look_for_changes(&self, content: &Content) {
        let Some(file) = content.file() else { return };
        let begun = {
            let own = self.own_changes();
            if own.under_way > 0 {
                return;
            }
            own.begun
        };
        let Ok(now) = Stamp::of(&file) else { return self.doubt_all() };
        let length = self.record.geometry.length();
        let touched = {
            let mut own = self.own_changes();
            if own.under_way > 0 || own.begun != begun {
                return;
            }
            let known = own.last.replace((begun, now));
            known.is_some_and(|(at, known)| at == begun && known != now) || now.length != length
        };
        if touched {
            tracing::warn!(task = %self.id, "a content file was changed by another program: its pieces are checked again");
            if now.length != length {
                // What is cut off reads as zeros, which no check takes for a piece.
                let mended = self.change_file_unlooked(content, || file.set_len(length));
                if let Err(error) = mended {
                    tracing::warn!(task = %self.id, %error, "a content file cannot be given its length again");
                }
            }
            self.doubt_all();
        }
    }

    fn own_changes(&self) -> MutexGuard<'_, OwnChanges> {
        self.own_changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All pieces are to be checked before they are read again.
    fn doubt_all(&self) {
        let mut pieces = self.pieces();
        let all: Vec<_> = pieces.have.iter().collect();
        all.into_iter().for_each(|piece| pieces.doubt(piece));
        drop(pieces);
        self.bump_pieces();
    }

    /// Bytes of this range could not be read.
    pub(super) fn doubt(&self, range: ByteRange) {
        let mut pieces = self.pieces();
        self.record.geometry.covering(range).for_each(|piece| pieces.doubt(piece));
        drop(pieces);
        self.bump_pieces();
    }

    /// Whether the last check of a piece is too long ago.
    fn is_old(&self, pieces: &Pieces, piece: PieceNumber, age: Duration) -> bool {
        // Memory does not rot.
        self.shared.files.is_some() && pieces.checked.get(&piece).is_none_or(|checked| checked.elapsed() >= age)
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

    /// The pieces that are to be checked: unchecked ones, and those whose last check is longer ago than this.
    pub(super) fn due(&self, age: Duration) -> Vec<PieceNumber> {
        let pieces = self.pieces();
        let old = pieces.have.iter().filter(|&piece| self.is_old(&pieces, piece, age));
        pieces.unchecked.iter().chain(old).collect()
    }

    fn settle_check(&self, piece: PieceNumber, good: bool) {
        let mut pieces = self.pieces();
        pieces.checks.remove(&piece);
        if !pieces.unchecked.contains(piece) {
            return;
        }
        self.change(&mut pieces, piece, |pieces| {
            pieces.unchecked.remove(piece);
            if good {
                pieces.have.insert(piece);
                pieces.checked.insert(piece, Instant::now());
            } else {
                pieces.digests.remove(&piece);
                pieces.checked.remove(&piece);
            }
        });
        if good {
            self.shared.metrics.pieces_rechecked.inc();
        } else {
            pieces.state.verified = false;
            if !pieces.removed {
                self.shared.record(Op::Forget(self.id, piece));
            }
            self.record_state(&pieces);
            self.shared.metrics.pieces_damaged.inc();
            tracing::warn!(task = %self.id, %piece, "a stored piece is damaged: forgotten, to be fetched again");
        }
        drop(pieces);
        if !good {
            self.losses.send_modify(|count| *count += 1);
        }
        self.bump_pieces();
    }
}

impl Pieces {
    /// A piece that is there is to be checked before it is read again.
    fn doubt(&mut self, piece: PieceNumber) {
        if self.have.remove(piece) {
            self.unchecked.insert(piece);
            self.checked.remove(&piece);
            // Who is reading it looks again.
            self.withdrawals += 1;
        }
    }
}

impl StoredTask {
    /// Makes sure of one piece: true if it may be read now. One that is unchecked, or was last checked too long ago, is read
    /// again and compared with its recorded digests, and forgotten where it disagrees. Concurrent calls for one piece are
    /// one check.
    pub async fn check(&self, piece: PieceNumber) -> bool {
        self.check_if_older(piece, self.state.shared.check_interval).await
    }

    async fn check_if_older(&self, piece: PieceNumber, age: Duration) -> bool {
        self.state.look_for_changes(&self.content);
        let (cell, digest) = {
            let mut pieces = self.state.pieces();
            if pieces.have.contains(piece) {
                if !self.state.is_old(&pieces, piece, age) {
                    return true;
                }
                pieces.doubt(piece);
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
}

impl Storage {
    /// Checks every piece that is unchecked, or was last checked longer ago than `age`, at most `rate` bytes a second. The
    /// most recently used tasks first. Readers who come meanwhile have their own pieces checked at once.
    pub async fn scrub(&self, rate: u64, age: Duration) {
        for id in self.recently_used() {
            for piece in self.due(&id, age) {
                // It is held only for one piece at a time: it may be evicted in between.
                let Some(task) = self.peek(&id) else { break };
                task.check_if_older(piece, age).await;
                let length = task.geometry().span(piece).map_or(0, ByteRange::len);
                drop(task);
                let nanos = u128::from(length) * 1_000_000_000 / u128::from(rate.max(1));
                tokio::time::sleep(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))).await;
            }
        }
    }
}
