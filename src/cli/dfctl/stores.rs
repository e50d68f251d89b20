//! Where systems keep the authorities that they trust.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

/// How one kind of system does it.
#[derive(Debug)]
struct Layout {
    /// Where an administrator puts certificates; the kind is told by its being there.
    anchors: &'static str,
    /// Our file in there.
    file: &'static str,
    /// What has to be run when one was added, and when one was removed.
    refresh: &'static [&'static str],
    forget: &'static [&'static str],
    /// All trusted certificates in one file.
    bundle: &'static str,
}

const LAYOUTS: [Layout; 4] = [
    // RHEL, Fedora.
    Layout {
        anchors: "etc/pki/ca-trust/source/anchors",
        file: "damselfly.pem",
        refresh: &["update-ca-trust", "extract"],
        forget: &["update-ca-trust", "extract"],
        bundle: "/etc/pki/tls/certs/ca-bundle.crt",
    },
    // SUSE.
    Layout {
        anchors: "etc/pki/trust/anchors",
        file: "damselfly.pem",
        refresh: &["update-ca-certificates"],
        forget: &["update-ca-certificates"],
        bundle: "/etc/ssl/ca-bundle.pem",
    },
    // Arch.
    Layout {
        anchors: "etc/ca-certificates/trust-source/anchors",
        file: "damselfly.crt",
        refresh: &["update-ca-trust"],
        forget: &["update-ca-trust"],
        bundle: "/etc/ssl/cert.pem",
    },
    // Debian, Ubuntu, Alpine. On Alpine the tool knows no other form of being called.
    Layout {
        anchors: "usr/local/share/ca-certificates",
        file: "damselfly.crt",
        refresh: &["update-ca-certificates"],
        forget: &["update-ca-certificates", "--fresh"],
        bundle: "/etc/ssl/certs/ca-certificates.crt",
    },
];

/// The bundles of the systems above, in the order of looking.
pub(super) fn bundles() -> impl Iterator<Item = &'static Path> {
    LAYOUTS.iter().map(|layout| Path::new(layout.bundle))
}

/// The store of one system.
#[derive(Debug)]
pub(super) struct Store {
    root: PathBuf,
    layout: &'static Layout,
}

impl Store {
    /// The store of the system below `root`; `None` where none of those that we know is there.
    pub(super) fn find(root: &Path) -> Option<Self> {
        let layout = LAYOUTS.iter().find(|layout| root.join(layout.anchors).is_dir())?;
        Some(Self { root: root.into(), layout })
    }

    /// Where our certificate is kept.
    pub(super) fn file(&self) -> PathBuf {
        self.root.join(self.layout.anchors).join(self.layout.file)
    }

    pub(super) const fn bundle(&self) -> &'static str {
        self.layout.bundle
    }

    pub(super) const fn refresh_command(&self) -> &'static [&'static str] {
        self.layout.refresh
    }

    pub(super) fn forget_command(&self) -> &'static [&'static str] {
        if self.root.join("etc/alpine-release").exists() { self.layout.refresh } else { self.layout.forget }
    }

    /// Puts the certificate in. A reader never sees half of it.
    pub(super) fn add(&self, pem: &str, dry_run: bool) -> anyhow::Result<PathBuf> {
        let file = self.file();
        if !dry_run {
            let fresh = file.with_extension("new");
            fs::write(&fresh, pem)
                .and_then(|()| fs::rename(&fresh, &file))
                .with_context(|| format!("writing {} (are you root?)", file.display()))?;
        }
        Ok(file)
    }

    /// Takes it out; false where it was not in.
    pub(super) fn remove(&self, dry_run: bool) -> anyhow::Result<bool> {
        let file = self.file();
        if !file.exists() {
            return Ok(false);
        }
        if !dry_run {
            fs::remove_file(&file).with_context(|| format!("removing {} (are you root?)", file.display()))?;
        }
        Ok(true)
    }

    /// Runs what makes the change known; in another root only says so.
    pub(super) fn refresh(&self, command: &[&str], dry_run: bool) -> anyhow::Result<()> {
        let line = command.join(" ");
        if dry_run {
            println!("would run {line}");
            return Ok(());
        }
        if self.root != Path::new("/") {
            println!("run in there: {line}");
            return Ok(());
        }
        let (program, arguments) = command.split_first().context("a command has a name")?;
        let output = Command::new(program).args(arguments).output().with_context(|| format!("running {line}"))?;
        if !output.status.success() {
            bail!("{line} failed with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        println!("ran {line}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_system_is_known_by_its_directory() {
        for (anchors, release, file, forget) in [
            ("etc/pki/ca-trust/source/anchors", "etc/redhat-release", "damselfly.pem", "update-ca-trust extract"),
            (
                "usr/local/share/ca-certificates",
                "etc/debian_version",
                "damselfly.crt",
                "update-ca-certificates --fresh",
            ),
            ("usr/local/share/ca-certificates", "etc/alpine-release", "damselfly.crt", "update-ca-certificates"),
            ("etc/pki/trust/anchors", "etc/os-release", "damselfly.pem", "update-ca-certificates"),
        ] {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir_all(root.path().join(anchors)).unwrap();
            fs::create_dir_all(root.path().join("etc")).unwrap();
            fs::write(root.path().join(release), "").unwrap();
            let store = Store::find(root.path()).unwrap();
            assert_eq!(store.file(), root.path().join(anchors).join(file));
            assert_eq!(store.forget_command().join(" "), forget);
            assert!(!store.remove(false).unwrap());
            store.add("pem", true).unwrap();
            assert!(!store.file().exists(), "only said");
            store.add("pem", false).unwrap();
            store.add("newer", false).unwrap();
            assert_eq!(fs::read_to_string(store.file()).unwrap(), "newer");
            assert_eq!(fs::read_dir(root.path().join(anchors)).unwrap().count(), 1);
            assert!(store.remove(true).unwrap() && store.file().exists());
            assert!(store.remove(false).unwrap() && !store.file().exists());
        }
        assert!(Store::find(tempfile::tempdir().unwrap().path()).is_none());
    }
}
