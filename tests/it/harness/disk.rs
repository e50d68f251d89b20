//! Disks that are too small, and disks that rot.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::tools::skipped;
use super::{Tool, contains};

/// A small file system of its own, unmounted when it is dropped.
pub(crate) struct Mount {
    place: PathBuf,
    tool: Tool,
}

impl Mount {
    /// Mounts `bytes` of memory at a place. Only root may; others are told that nothing was proved.
    pub(crate) fn small(place: &Path, bytes: usize) -> Option<Self> {
        let (mount, tool) = (Tool::find("mount")?, Tool::find("umount")?);
        fs::create_dir_all(place).expect("a writable directory");
        let size = format!("size={bytes}");
        let done = mount.run(&["-t", "tmpfs", "-o", &size, "none", &place.to_string_lossy()]);
        if !done.ok {
            skipped(&format!("mount ({})", done.errors.trim()));
            return None;
        }
        Some(Self { place: place.into(), tool })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.tool.run(&["-l", &self.place.to_string_lossy()]);
    }
}

/// Flips a bit, at an offset, of every file of exactly `length` bytes below a directory; there must be one.
pub(crate) fn rot(directory: &Path, length: usize, offset: usize) {
    for file in files_of(directory, length) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset as u64).expect("the content is there");
        file.write_all_at(&[byte[0] ^ 0x10], offset as u64).expect("the content can be written");
    }
}

/// Cuts every file of exactly `length` bytes below a directory short; there must be one.
pub(crate) fn cut_short(directory: &Path, length: usize, left: usize) {
    for file in files_of(directory, length) {
        file.set_len(left as u64).expect("the content can be cut");
    }
}

/// The files of exactly `length` bytes below a directory.
fn files_of(directory: &Path, length: usize) -> Vec<File> {
    let has_length = |path: &PathBuf| fs::metadata(path).is_ok_and(|metadata| metadata.size() == length as u64);
    let paths = files_below(directory).into_iter().filter(has_length);
    let open = |path| File::options().read(true).write(true).open(path).expect("the content file");
    let files: Vec<_> = paths.map(open).collect();
    assert!(!files.is_empty(), "no content of {length} bytes is stored");
    files
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

/// Panics if any file below a directory contains these bytes.
#[track_caller]
pub(crate) fn assert_nowhere(needle: impl AsRef<[u8]>, directory: &Path) {
    assert_no_file(directory, |bytes| contains(bytes, needle.as_ref()));
}

/// Panics if any file below a directory looks like this.
#[track_caller]
pub(crate) fn assert_no_file(directory: &Path, look: impl Fn(&[u8]) -> bool) {
    let files = files_below(directory);
    assert!(!files.is_empty(), "nothing is below {}", directory.display());
    for path in files {
        // A socket or a file that has gone meanwhile holds nothing.
        let bytes = fs::read(&path).unwrap_or_default();
        assert!(!look(&bytes), "{} has it", path.display());
    }
}
