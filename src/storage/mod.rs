//! Content on disk: where the producers of a task's bytes and their readers meet.
//!
//! # The data's way
//! [`Storage::create`] makes ONE sparse content file for the task. A producer [claims](StoredTask::claim) a piece and
//! feeds its [`PieceWriter`]; hashing and the positional writes run on blocking threads, a batch at a time. With its first
//! byte a piece takes room, for which the least recently used tasks have to go if need be (see [`room`]).
//! [`PieceWriter::finish`] makes the piece readable and hands its digests to the recorder, whose thread commits what has
//! gathered to redb in one durable transaction (group commit). Readers follow with [`StoredTask::available`],
//! [`StoredTask::read`] and [`StoredTask::changed`].
//!
//! # Invariants
//! - **A piece is recorded only after all its bytes are in the file.** Content is never fsynced: a piece that an
//!   earlier process recorded is `unchecked` until it was read again and agreed with its recorded digests. That covers
//!   `kill -9` and power loss alike, and bytes which fail are forgotten, never served. So is one that was not checked for a
//!   while, or whose file another program has touched ([`check`]).
//! - **One writer a piece**, from the claim until the last byte of a write under way has settled, even when the future
//!   that wrote was dropped.
//! - **A task with a live [`StoredTask`] is never evicted.** The handle keeps the file open.
//! - A path follows from the task id's hex digits alone.
//! - No lock is held across an await or a disk access, except the one that orders creation and removal of files.
//!
//! # On disk
//! `lock` (held by the running daemon), `tasks.redb`, `content/<64 hex digits>`; directories 0700, files 0600.
//! The records' encoding is in [`record`]; what a damaged store does is in [`ledger`].
//!
//! # Limits
//! Pieces of a task: [`damselfly_core::MAX_PIECES`]. Bytes a read: [`MAX_READ`]. Bytes waiting in a writer:
//! [`writer::MAX_QUEUED`]. Writers that write at a time: [`writer::WRITES`]. Operations waiting for commit: [`recorder::MAX_PENDING`]. A task's record:
//! [`record::MAX_RECORD`]. Memory: about 100 bytes a piece held.

mod check;
mod config;
mod content;
mod dropped;
mod files;
mod ledger;
mod metrics;
mod record;
mod recorder;
mod redb_ledger;
mod room;
mod store;
mod table;
mod task;
mod writer;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod crash_tests;

pub use config::{Config, StorageError};
pub use dropped::DroppedTask;
pub use metrics::Metrics;
pub use store::{NewTask, Storage, Swept, TaskSummary, Usage};
pub use task::{MAX_READ, StoredTask};
pub use writer::{PieceWriter, ShortPiece};
