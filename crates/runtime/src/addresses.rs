//! `addresses.json`: where a process listens, for scripts and tests that started it with port 0.
//!
//! **It exists only while everything in it listens**: written whole by a rename once all listeners are there, removed
//! at the orderly end. A killed process leaves it behind; the next one on the same directory removes it first.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// The file's name in the data directory.
pub const NAME: &str = "addresses.json";

/// The file; removed when dropped.
#[derive(Debug)]
pub struct AddressesFile {
    path: PathBuf,
    stays: bool,
}

impl AddressesFile {
    /// Removes what a killed process left in `dir`.
    pub fn remove_stale(dir: &Path) -> io::Result<()> {
        match fs::remove_file(dir.join(NAME)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Writes the file into `dir`.
    pub fn write(dir: &Path, addresses: &impl Serialize) -> io::Result<Self> {
        let path = dir.join(NAME);
        let fresh = dir.join(".addresses.json.new");
        let mut text = serde_json::to_vec(addresses).map_err(io::Error::other)?;
        text.push(b'\n');
        fs::write(&fresh, text)?;
        fs::rename(&fresh, &path)?;
        Ok(Self { path, stays: false })
    }

    /// Leaves it to a process that listens in this one's place, and has written its own.
    pub fn leave(mut self) {
        self.stays = true;
    }
}

impl Drop for AddressesFile {
    fn drop(&mut self) {
        if !self.stays {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_there_while_it_lives() {
        let dir = tempfile::tempdir().unwrap();
        let file = AddressesFile::write(dir.path(), &serde_json::json!({"proxy": "127.0.0.1:1"})).unwrap();
        let names = || fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
        assert_eq!(names(), [NAME]);
        assert_eq!(fs::read_to_string(dir.path().join(NAME)).unwrap(), "{\"proxy\":\"127.0.0.1:1\"}\n");
        drop(file);
        assert!(names().is_empty());
    }

    #[test]
    fn what_a_killed_process_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        AddressesFile::remove_stale(dir.path()).unwrap();
        std::mem::forget(AddressesFile::write(dir.path(), &()).unwrap());
        AddressesFile::remove_stale(dir.path()).unwrap();
        assert!(!dir.path().join(NAME).exists());
    }
}
