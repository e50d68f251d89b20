//! The CA's files: read with care for who else could read the key, written so that a crash leaves both or none in use.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// No file of ours is near as large; a larger one is a mistake.
const MAX_LENGTH: u64 = 1 << 20;

/// Why there is no certificate authority.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file cannot be read or written.
    #[error("the file {path} of the certificate authority: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Others could read the key.
    #[error("the key {path} has mode {mode:04o}, so others can read or change it: chmod 600 it")]
    Mode {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// There is one already, which somebody may trust.
    #[error("{path} is there already: remove it, or name another directory")]
    Exists {
        /// Which file.
        path: PathBuf,
    },
    /// The certificate is there without its key.
    #[error("{cert} is there, but its key {key} is not: put the key back, or remove the certificate to get a new pair")]
    KeyMissing {
        /// The certificate.
        cert: PathBuf,
        /// Where the key should be.
        key: PathBuf,
    },
    /// What is in a file is of no use.
    #[error("{path}: {why}")]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A key or certificate cannot be made.
    #[error("cannot make a key or certificate: {0}")]
    Make(String),
}

impl CaError {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |source| Self::File { path: path.into(), source }
    }
}

/// A text file; a key must be readable by its owner only.
pub(super) fn read(path: &Path, secret: bool) -> Result<String, CaError> {
    let fail = || CaError::file(path);
    let file = File::open(path).map_err(fail())?;
    let meta = file.metadata().map_err(fail())?;
    let mode = meta.mode() & 0o7777;
    if secret && mode & 0o077 != 0 {
        return Err(CaError::Mode { path: path.into(), mode });
    }
    if meta.len() > MAX_LENGTH {
        return Err(CaError::Invalid { path: path.into(), why: "it is too large for a key or certificate".into() });
    }
    io::read_to_string(file).map_err(fail())
}

/// Writes a whole new file, durably, and puts it in the place of `path` at once.
pub(super) fn write(path: &Path, mode: u32, text: &str) -> Result<(), CaError> {
    let fail = || CaError::file(path);
    let fresh = path.with_extension("new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail()(error)),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh).map_err(fail())?;
    file.write_all(text.as_bytes()).map_err(fail())?;
    file.sync_all().map_err(fail())?;
    fs::rename(&fresh, path).map_err(fail())?;
    let dir = path.parent().map(File::open).transpose().map_err(fail())?;
    dir.map_or(Ok(()), |dir| dir.sync_all()).map_err(fail())
}

/// Makes the directory, for its owner only, if it is not there.
pub(super) fn make_dir(dir: &Path) -> Result<(), CaError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(CaError::file(dir))
}
