//! What the metadata store is asked for: commit a batch, durably or not at all.
//!
//! The real one is [`super::redb_ledger`]. A ledger that fails does not stop the daemon: the pieces stay usable in this
//! process, the batch is kept and tried again on a reopened store (see [`super::recorder`]).

use damselfly_core::{PieceDigest, PieceNumber, TaskId};

use super::record::{StateRecord, TaskRecord};

/// One change of the metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// A task begins. Whatever was kept under its id is replaced.
    Task(TaskId, Box<TaskRecord>, StateRecord),
    /// A piece's bytes are in the content file.
    Piece(TaskId, PieceNumber, PieceDigest),
    /// A piece's bytes are not what was recorded.
    Forget(TaskId, PieceNumber),
    /// Verified, or used.
    State(TaskId, StateRecord),
    /// The task is gone.
    Remove(TaskId),
}

/// Why a batch was not committed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct LedgerError(pub(super) String);

/// A task as the store has it.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) id: TaskId,
    pub(super) record: TaskRecord,
    pub(super) state: StateRecord,
    pub(super) pieces: Vec<(PieceNumber, PieceDigest)>,
}

/// A durable, atomic store of [`Op`]s. Called from one thread only.
pub(super) trait Ledger: Send {
    /// When this returns `Ok` the whole batch survives a crash; else none of it is there.
    fn commit(&mut self, batch: &[Op]) -> Result<(), LedgerError>;

    /// Tries to get a store that failed into use again.
    fn reopen(&mut self) -> Result<(), LedgerError>;
}
