//! The daemon's configuration: from file, environment and flags to values that are valid by type.
//!
//! # The way
//! [`Args`] (flags and environment) name a file; the file becomes a [`file::File`], the flags go over it, [`resolve`]
//! fills in what depends on the host, and [`Config`] is made of that, once. Inside the daemon there is only [`Config`].
//!
//! **A key that is not understood is refused, with its path**; those of Dragonfly's keys that ask for nothing here are
//! listed in [`foreign`] and cost one warning line. **No secret is printed.**

mod args;
mod file;
mod foreign;
mod host;
mod proxying;
mod resolve;
mod traffic;
mod typed;
mod units;

use std::path::{Path, PathBuf};

use damselfly_runtime::{UsageError, config};

pub use args::{Args, Command, Flags};
pub use damselfly_runtime::Secret;
pub use file::File;
pub use host::{data_dir as default_data_dir, own_ip};
pub use proxying::{CaFiles, MirrorPort};
pub use typed::{Config, Host, Listen, Log, Scheduler};
pub use units::{Size, Span};

/// Read when no file is named, if it exists.
pub const DEFAULT_FILE: &str = "/etc/damselfly/dfdaemon.yaml";

/// The name of the daemon's Unix socket in its data directory.
pub const SOCKET: &str = "dfdaemon.sock";

/// The effective configuration and what there is to say about it.
#[derive(Debug)]
pub struct Loaded {
    /// What the daemon is made of.
    pub config: Config,
    /// The same in the file's shape, with nothing left open.
    pub effective: File,
    /// One line each, to be logged once there is a log.
    pub warnings: Vec<String>,
    /// What it was read with, to be read again.
    pub flags: Flags,
}

/// Reads the file that the flags or [`DEFAULT_FILE`] name, puts the flags over it, and checks the whole.
pub fn load(flags: &Flags) -> Result<Loaded, UsageError> {
    let named = flags.config.clone().filter(|path| !path.as_os_str().is_empty());
    let path = named.or_else(|| Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.is_file()));
    let mut warnings = Vec::new();
    let mut file = match &path {
        Some(path) => {
            let read = config::load_tolerant::<File>(path, &foreign::tolerated())?;
            warnings.extend(judge_foreign(path, &read.ignored)?);
            let mut file = read.value;
            // Dragonfly's client writes it with `false`, beside certificates that it does not use; anything else was refused.
            if read.ignored.iter().any(|key| key == "security.enable") {
                file.security.forget_certificates();
            }
            file
        }
        None => File::default(),
    };
    flags.apply(&mut file);
    let looked_for = resolve::resolve(&mut file);
    let place = Place(path.as_deref());
    let config = Config::check(&file, looked_for, place, &mut warnings)?;
    Ok(Loaded { config, effective: file, warnings, flags: flags.clone() })
}

/// One line about keys that mean nothing here; an error for those that promise a protection.
fn judge_foreign(path: &Path, met: &[String]) -> Result<Option<String>, UsageError> {
    let promises = |key: &&String| foreign::UNSUPPORTED.contains(&key.as_str()) && !is_switched_off(path, key);
    if let Some(key) = met.iter().find(promises) {
        let name = path.display();
        return Err(UsageError::new(format!("{name}: {key}: not supported by this version, which would ignore it")));
    }
    Ok((!met.is_empty()).then(|| format!("{}: these keys have no effect here: {}", path.display(), met.join(", "))))
}

/// Whether a key's section says that nothing is promised: `enable: false`, as Dragonfly's client writes it for `security`.
fn is_switched_off(path: &Path, key: &str) -> bool {
    let Ok(file) = config::load::<serde_json::Value>(path) else { return false };
    let section = key.split('.').next().unwrap_or(key);
    file.get(section).and_then(|section| section.get("enable")) == Some(&false.into())
}

/// Where the values came from, for errors.
#[derive(Clone, Copy, Debug)]
struct Place<'a>(Option<&'a Path>);

impl Place<'_> {
    fn error(self, key: &str, reason: impl std::fmt::Display) -> UsageError {
        match self.0 {
            Some(path) => UsageError::new(format!("{}: {key}: {reason}", path.display())),
            None => UsageError::new(format!("configuration: {key}: {reason}")),
        }
    }
}

#[cfg(test)]
mod tests;
