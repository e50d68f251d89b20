//! What outlives this process unless it is removed: namespaces, programs in them, mounts, a work directory. All of it
//! hangs on a *slot*, and is removed when the slot is dropped, at Ctrl-C, and, where the process was killed, by the next
//! one that takes the slot.
//!
//! Invariant: nothing is created in a slot once its removal has begun ([`Slot::create`] holds the lock meanwhile).

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::{process, thread};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};

/// Laboratories that can run on one machine at a time.
const SLOTS: u8 = 8;

/// One laboratory's place on this machine.
#[derive(Clone)]
pub(crate) struct Slot {
    shared: Arc<Shared>,
}

struct Shared {
    number: u8,
    work: PathBuf,
    keep: bool,
    /// Whether things may still be created.
    open: Mutex<bool>,
    /// Held for as long as the process lives, and no longer, however it ends.
    _lock: File,
}

impl Slot {
    /// Takes a free slot, and removes what an earlier owner has left there. The slot's files are kept in `work` at the
    /// end if `keep` says so.
    pub(crate) fn take(work: Option<PathBuf>, keep: bool) -> Result<Self> {
        for number in 1..=SLOTS {
            let path = std::env::temp_dir().join(format!("dlab{number}.lock"));
            let lock = File::create(&path).with_context(|| format!("{} cannot be created", path.display()))?;
            if flock(lock.as_fd(), FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            let work = work.unwrap_or_else(|| std::env::temp_dir().join(format!("dlab{number}")));
            let shared = Arc::new(Shared { number, work, keep, open: Mutex::new(true), _lock: lock });
            shared.remove_namespaces();
            shared.remove_files(false);
            fs::create_dir_all(&shared.work).with_context(|| format!("no work directory {}", shared.work.display()))?;
            Self::remove_at_signals(Arc::downgrade(&shared))?;
            return Ok(Self { shared });
        }
        bail!("{SLOTS} laboratories run on this machine already")
    }

    /// How names of this slot begin.
    pub(crate) fn prefix(&self) -> String {
        self.shared.prefix()
    }

    pub(crate) fn number(&self) -> u8 {
        self.shared.number
    }

    /// The directory for logs and data.
    pub(crate) fn work(&self) -> &Path {
        &self.shared.work
    }

    /// Runs what creates something that has to be removed later.
    pub(crate) fn create<T>(&self, create: impl FnOnce() -> Result<T>) -> Result<T> {
        let open = self.shared.open();
        if !*open {
            bail!("the laboratory is being taken down")
        }
        create()
    }

    /// Removes the namespaces and ends the programs in them, so that the next run finds the slot empty.
    pub(crate) fn clear(&self) {
        let _open = self.shared.open();
        self.shared.remove_namespaces();
        self.shared.remove_files(self.shared.keep);
    }

    fn remove_at_signals(shared: Weak<Shared>) -> Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let (mut interrupt, mut terminate) = {
            let _context = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            });
            eprintln!("lab: interrupted; taking everything down");
            if let Some(shared) = shared.upgrade() {
                shared.close();
            }
            process::exit(130);
        });
        Ok(())
    }
}

impl Shared {
    fn prefix(&self) -> String {
        format!("dlab{}-", self.number)
    }

    fn open(&self) -> MutexGuard<'_, bool> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let mut open = self.open();
        if std::mem::replace(&mut *open, false) {
            self.remove_namespaces();
            self.remove_files(self.keep);
        }
    }

    /// Errors are not reported: what cannot be removed now is removed by the slot's next owner.
    fn remove_namespaces(&self) {
        let prefix = self.prefix();
        let list = output("ip", &["netns", "list"]);
        let namespaces: Vec<&str> =
            list.lines().filter_map(|line| line.split_whitespace().next()).filter(|n| n.starts_with(&prefix)).collect();
        for namespace in &namespaces {
            for pid in output("ip", &["netns", "pids", namespace]).split_whitespace() {
                if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
        }
        // Links first: a namespace lives on for as long as one of our threads is in it, and its links with it.
        let hub = format!("{prefix}hub");
        for line in output("ip", &["-n", &hub, "-o", "link", "show", "type", "veth"]).lines() {
            if let Some(name) = line.split_whitespace().nth(1).and_then(|name| name.split(['@', ':']).next()) {
                output("ip", &["-n", &hub, "link", "del", "dev", name]);
            }
        }
        for namespace in namespaces {
            output("ip", &["netns", "del", namespace]);
        }
    }

    fn remove_files(&self, keep: bool) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let work = self.work.to_string_lossy();
        for place in mounts.lines().filter_map(|line| line.split_whitespace().nth(1)).filter(|p| p.starts_with(&*work))
        {
            output("umount", &[place]);
        }
        if !keep {
            // The work directory may never have been made.
            let _ = fs::remove_dir_all(&self.work);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.close();
    }
}

/// What a program prints, or nothing where it fails.
fn output(program: &str, arguments: &[&str]) -> String {
    let run = Command::new(program).args(arguments).stderr(Stdio::null()).stdin(Stdio::null()).output();
    run.map(|run| String::from_utf8_lossy(&run.stdout).into_owned()).unwrap_or_default()
}
