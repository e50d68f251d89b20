//! Where the bytes go: a file that appears whole or not at all, a device, or the standard output.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use damselfly_core::Digest;
use damselfly_runtime::UsageError;
use sha2::{Digest as _, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _, BufWriter};

/// Bytes that are gathered before they are written.
const BUFFER: usize = 1 << 20;

/// What a download is written to.
#[derive(Debug)]
pub(super) struct Target {
    sink: Sink,
    hash: Option<Sha256>,
    written: u64,
}

#[derive(Debug)]
enum Sink {
    /// The standard output, a device or a pipe: written in place.
    Special(BufWriter<File>),
    File(BufWriter<File>, Partial),
}

/// The file under its temporary name; removed when dropped, unless it was renamed.
#[derive(Debug)]
struct Partial {
    path: PathBuf,
    target: PathBuf,
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After the rename there is nothing of that name.
        let _ = fs::remove_file(&self.path);
    }
}

impl Sink {
    fn special(file: File) -> Self {
        Self::Special(BufWriter::with_capacity(BUFFER, file))
    }
}

/// Without std's line buffer.
fn stdout() -> io::Result<File> {
    let handle = io::stdout().as_fd().try_clone_to_owned()?;
    Ok(File::from_std(fs::File::from(handle)))
}

impl Target {
    /// Opens what `output` names. `hashed`: the digest of the whole will be asked for.
    pub(super) async fn open(output: &Path, hashed: bool) -> anyhow::Result<Self> {
        let sink = match fs::metadata(output) {
            _ if output.as_os_str() == "-" => Sink::special(stdout()?),
            Ok(found) if found.is_dir() => {
                return Err(UsageError::new(format!("-O {} is a directory", output.display())).into());
            }
            Ok(found) if !found.is_file() => Sink::special(File::options().write(true).open(output).await?),
            _ => Self::partial(output).await?,
        };
        Ok(Self { sink, hash: hashed.then(Sha256::new), written: 0 })
    }

    async fn partial(output: &Path) -> anyhow::Result<Sink> {
        let Some(name) = output.file_name() else {
            return Err(UsageError::new(format!("-O {} names no file", output.display())).into());
        };
        // Through a symbolic link, as if the file itself were written.
        let target = fs::canonicalize(output).unwrap_or_else(|_| output.to_owned());
        let path = target.with_file_name(format!(".{}.dfget-{}", name.to_string_lossy(), std::process::id()));
        let file = File::options().write(true).create_new(true).open(&path).await;
        let file = file.map_err(|error| anyhow::anyhow!("cannot write {}: {error}", path.display()))?;
        Ok(Sink::File(BufWriter::with_capacity(BUFFER, file), Partial { path, target }))
    }

    /// Bytes written so far.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    pub(super) async fn write(&mut self, bytes: &Bytes) -> io::Result<()> {
        match &mut self.sink {
            Sink::Special(out) | Sink::File(out, _) => out.write_all(bytes).await?,
        }
        if let Some(hash) = &mut self.hash {
            hash.update(bytes);
        }
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Forgets what was written, so that another attempt can begin. False where it has gone out of our hands.
    pub(super) async fn restart(&mut self) -> io::Result<bool> {
        if self.written == 0 {
            return Ok(true);
        }
        let Sink::File(out, _) = &mut self.sink else { return Ok(false) };
        out.flush().await?;
        out.get_ref().set_len(0).await?;
        out.rewind().await?;
        self.written = 0;
        if let Some(hash) = &mut self.hash {
            hash.reset();
        }
        Ok(true)
    }

    /// Whether what was written has this digest.
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.hash.as_ref().is_some_and(|hash| hash.clone().finalize()[..] == digest.as_bytes()[..])
    }

    /// All is there: gives the file its name.
    pub(super) async fn keep(mut self) -> io::Result<()> {
        match &mut self.sink {
            Sink::Special(out) => out.flush().await,
            Sink::File(out, partial) => {
                out.flush().await?;
                fs::rename(&partial.path, &partial.target)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    #[tokio::test]
    async fn a_file_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("f");
        fs::write(&output, "old and longer").unwrap();
        let mut target = Target::open(&output, true).await.unwrap();
        target.write(&Bytes::from_static(b"wrong")).await.unwrap();
        assert!(target.restart().await.unwrap());
        target.write(&Bytes::from_static(b"new")).await.unwrap();
        assert_eq!(target.written(), 3);
        assert_eq!(fs::read_to_string(&output).unwrap(), "old and longer");
        let digest = format!("sha256:{}", Sha256::digest("new").iter().map(|b| format!("{b:02x}")).collect::<String>());
        assert!(target.has(&digest.parse().unwrap()));
        target.keep().await.unwrap();
        assert_eq!(fs::read_to_string(&output).unwrap(), "new");
        assert_eq!(names(dir.path()), ["f"]);
    }

    #[tokio::test]
    async fn what_is_given_up_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut target = Target::open(&dir.path().join("f"), false).await.unwrap();
        target.write(&Bytes::from_static(b"half")).await.unwrap();
        drop(target);
        assert!(names(dir.path()).is_empty());
    }

    #[tokio::test]
    async fn a_directory_is_a_usage_error_and_a_device_is_written_in_place() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Target::open(dir.path(), false).await.unwrap_err().is::<UsageError>());
        let mut null = Target::open(Path::new("/dev/null"), false).await.unwrap();
        null.write(&Bytes::from_static(b"x")).await.unwrap();
        assert!(!null.restart().await.unwrap(), "a byte that went out cannot be taken back");
        null.keep().await.unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }
}
