//! The storage's directory: its lock, the content files, and the room on the file system.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use damselfly_core::{ByteRange, TaskId};
use rustix::fs::FallocateFlags;

use super::config::StorageError;

const CONTENT: &str = "content";
const LEDGER: &str = "tasks.redb";
const LOCK: &str = "lock";

/// A directory that this process alone uses, for as long as the value lives.
pub(super) struct Files {
    dir: PathBuf,
    content: PathBuf,
    /// Which directory that was, by device and inode: another one may come to be at its path.
    opened: (u64, u64),
    lock: File,
}

/// The room on the file system, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disk {
    pub(super) total: u64,
    pub(super) available: u64,
}

impl Disk {
    /// How much of what users may use is used, rounded up.
    pub(super) fn used_percent(self) -> u64 {
        let used = u128::from(self.total.saturating_sub(self.available));
        (used * 100).div_ceil(u128::from(self.total.max(1))) as u64
    }
}

impl Files {
    pub(super) fn open(dir: &Path) -> Result<Self, StorageError> {
        let content = dir.join(CONTENT);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&content);
        made.map_err(StorageError::io("make", &content))?;
        let path = dir.join(LOCK);
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let lock = lock.map_err(StorageError::io("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {
                let opened = identity(&content).map_err(StorageError::io("look at", &content))?;
                Ok(Self { dir: dir.to_owned(), content, opened, lock })
            }
            Err(TryLockError::WouldBlock) => Err(StorageError::InUse(dir.to_owned())),
            Err(TryLockError::Error(source)) => Err(StorageError::Io { doing: "lock", path, source }),
        }
    }

    /// Lets another process have the directory.
    pub(super) fn unlock(&self) {
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(dir = %self.dir.display(), %error, "the storage directory stays locked until this process ends");
        }
    }

    /// What has become of the directory if it is not there any more.
    pub(super) fn missing(&self) -> Option<StorageError> {
        let vanished = match identity(&self.content) {
            Ok(found) if found == self.opened => return None,
            Ok(_) => io::Error::other("another directory has taken its place"),
            Err(error) => error,
        };
        Some(StorageError::io("look at", &self.content)(vanished))
    }

    pub(super) fn ledger(&self) -> PathBuf {
        self.dir.join(LEDGER)
    }

    /// Where a task's content is.
    pub(super) fn path(&self, id: &TaskId) -> PathBuf {
        self.content.join(id.to_string())
    }

    /// Makes the content file. It is sparse: the file system gives space as it is written.
    pub(super) fn create(&self, id: &TaskId, length: u64) -> io::Result<(PathBuf, File)> {
        let path = self.path(id);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        match file.set_len(length) {
            Ok(()) => Ok((path, file)),
            Err(error) => {
                drop(file);
                remove(&path);
                Err(error)
            }
        }
    }

    pub(super) fn disk(&self) -> io::Result<Disk> {
        let stat = rustix::fs::statvfs(&self.content)?;
        // Blocks reserved for root are neither used nor available: leave them out.
        let reserved = stat.f_bfree.saturating_sub(stat.f_bavail);
        Ok(Disk {
            total: stat.f_blocks.saturating_sub(reserved).saturating_mul(stat.f_frsize),
            available: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    /// Removes the content files that `keep` doesn't know. Files with other names are not ours to touch.
    pub(super) fn remove_strays(&self, keep: impl Fn(&TaskId) -> bool) -> io::Result<usize> {
        let mut removed = 0;
        for entry in fs::read_dir(&self.content)? {
            let entry = entry?;
            let id = entry.file_name().to_str().and_then(|name| name.parse::<TaskId>().ok());
            if id.is_some_and(|id| !keep(&id)) && remove(&entry.path()) {
                removed += 1;
            }
        }
        Ok(removed)
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Gives back the space of these parts of a file; they read as zeros then.
pub(super) fn punch(file: &File, spans: impl Iterator<Item = ByteRange>) -> io::Result<()> {
    for span in spans {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(file, flags, span.start(), span.len())?;
    }
    Ok(())
}

/// Opens a content file of an earlier time.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32).open(path)
}

/// Removes a file; says whether it is gone. Failing to costs space, and is said.
pub(super) fn remove(path: &Path) -> bool {
    match fs::remove_file(path) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => {
            tracing::warn!(file = %path.display(), %error, "a content file cannot be removed");
            false
        }
    }
}

/// A regular file's length and the bytes that it occupies.
pub(super) fn size(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok((metadata.len(), metadata.blocks().saturating_mul(512)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn one_process_one_directory_and_nobody_else_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("new");
        let files = Files::open(&dir).unwrap();
        assert!(matches!(Files::open(&dir), Err(StorageError::InUse(_))));
        let id = TaskId::from_bytes([7; 32]);
        let (made, _) = files.create(&id, 10_000).unwrap();
        assert!(files.create(&id, 10_000).is_err(), "a file that is there is never reused");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&made)), (0o700, 0o600));
        assert_eq!(size(&made).unwrap(), (10_000, 0), "its length, and no space yet");
        drop(files);
        Files::open(&dir).unwrap();
    }

    #[test]
    fn strays_go_and_what_is_not_ours_stays() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path()).unwrap();
        let [kept, stray] = [1, 2].map(|id| TaskId::from_bytes([id; 32]));
        for id in [kept, stray] {
            files.create(&id, 5).unwrap();
        }
        let other = dir.path().join(CONTENT).join("notes.txt");
        fs::write(&other, "x").unwrap();
        assert_eq!(files.remove_strays(|id| *id == kept).unwrap(), 1);
        assert!(files.path(&kept).exists() && !files.path(&stray).exists() && other.exists());
    }

    #[test]
    fn use_is_rounded_up() {
        assert_eq!(Disk { total: 1000, available: 1000 }.used_percent(), 0);
        assert_eq!(Disk { total: 1000, available: 999 }.used_percent(), 1);
        assert_eq!(Disk { total: 0, available: 0 }.used_percent(), 0);
    }
}
