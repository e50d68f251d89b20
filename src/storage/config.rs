use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Where content is kept, how much of it, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The storage's own directory; made if it is missing.
    pub dir: PathBuf,
    /// The most bytes that all pieces together may take. `u64::MAX`: only the disk bounds them.
    pub quota: u64,
    /// Bytes of the file system that are always left free.
    pub keep_free: u64,
    /// A task that nobody has used for this long is removed by [`super::Storage::sweep`].
    pub ttl: Duration,
    /// A piece whose last check is longer ago is checked before it is read.
    pub check_interval: Duration,
    /// Above this use of the file system a sweep evicts tasks …
    pub high_percent: u8,
    /// … until its use is at most this.
    pub low_percent: u8,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dir: PathBuf::from("/var/lib/damselfly/storage"),
            quota: u64::MAX,
            keep_free: 256 << 20,
            ttl: Duration::from_secs(7 * 24 * 3600),
            check_interval: Duration::from_secs(600),
            high_percent: 90,
            low_percent: 80,
        }
    }
}

/// Why content cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Neither quota nor disk has room, and nothing may be evicted. Go on without storing.
    #[error("no room for {needed} bytes: {room} are left and nothing more may be evicted")]
    Full {
        /// What is wanted of the task.
        needed: u64,
        /// What there is, after everything that may go is gone.
        room: u64,
    },
    /// There is no store for now. Go on without storing.
    #[error("there is no store: {0}")]
    Unavailable(String),
    /// Another process uses the directory.
    #[error("the storage directory {} is in use by another daemon (--take-over takes over from it)", .0.display())]
    InUse(PathBuf),
    /// The task exists with another geometry and is in use.
    #[error("the task is stored with another length or piece length and is in use")]
    Conflict,
    /// The task's origin and headers are too long to be kept.
    #[error("the task's record would have {0} bytes, which is too long")]
    RecordTooLong(usize),
    /// The directory or file cannot be used.
    #[error("cannot {doing} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The metadata store cannot be used.
    #[error("the metadata store {} cannot be used: {reason}", .path.display())]
    Ledger {
        /// Its file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl StorageError {
    pub(super) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}
