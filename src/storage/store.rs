//! All stored tasks: creation with room made for it, least-recently-used eviction, expiry, and what the last process
//! left.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use damselfly_core::swarm::Origin;
use damselfly_core::{Audience, Digest, Geometry, PieceNumber, PieceSet, TaskId};
use tokio::sync::watch;

use super::config::{Config, StorageError};
use super::content::Content;
use super::dropped::{Dropped, DroppedTask};
use super::files::{self, Files};
use super::ledger::{Kept, Ledger, Op};
use super::metrics::Metrics;
use super::record::{MAX_RECORD, TaskRecord};
use super::recorder::Recorder;
use super::redb_ledger::RedbLedger;
use super::room::Totals;
use super::table::{Table, in_use};
use super::task::{Place, Shared, StoredTask, TaskState};
use super::writer::WRITES;
use crate::limit::Slots;

/// A task to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTask {
    /// Its id.
    pub id: TaskId,
    /// How its content is cut.
    pub geometry: Geometry,
    /// The content's own digest, where it has one.
    pub digest: Option<Digest>,
    /// Where the content comes from, without credentials.
    pub origin: Origin,
    /// The answer headers worth keeping; no credentials.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Whom the content may be given to.
    pub audience: Audience,
}

/// What is told of one stored task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskSummary {
    /// Its id.
    pub id: TaskId,
    /// How its content is cut.
    pub geometry: Geometry,
    /// Pieces that are there and checked.
    pub have: u32,
    /// Pieces of an earlier process that are still to be checked.
    pub unchecked: u32,
    /// Bytes of the pieces that are there, checked or not, or that are being written.
    pub held: u64,
    /// Whether the whole content agreed with its own digest.
    pub verified: bool,
    /// Whom the content may be given to.
    pub audience: Audience,
    /// Whether somebody holds it.
    pub in_use: bool,
    /// Where the content comes from.
    pub origin: Origin,
    /// When it was created.
    pub created: SystemTime,
    /// When it was last asked for.
    pub last_access: SystemTime,
}

/// How full the storage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Stored tasks.
    pub tasks: usize,
    /// Bytes of their pieces.
    pub bytes: u64,
    /// The most that they may.
    pub quota: u64,
    /// Bytes left on the file system; `None` in memory or where it doesn't say.
    pub disk_available: Option<u64>,
}

/// What a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Tasks that nobody had used for the time to live.
    pub expired: usize,
    /// Tasks removed because quota or disk were too full.
    pub evicted: usize,
}

/// A task that holds nothing and that nobody has used for so many seconds is removed by a sweep.
const EMPTY_TTL: u64 = 600;

/// All stored tasks. Clones are handles on the same storage; the last one dropped waits for the last commit.
///
/// [`Self::create`], [`Self::remove`] and [`Self::sweep`] make and remove files, which takes milliseconds, for very
/// large files more: prefer a blocking thread.
///
/// It may be without a store, for as long as its directory cannot be used: then nothing is stored and nothing is found, and
/// [`Self::look_after`] opens it as soon as it can be.
#[derive(Clone)]
pub struct Storage {
    slot: Arc<Slot>,
}

struct Slot {
    /// Held by what opens, closes or tidies the store. Whether the directory was given to another process.
    upkeep: Mutex<bool>,
    config: Config,
    metrics: Metrics,
    dropped: Arc<Dropped>,
    /// The store, or why there is none.
    inner: RwLock<Result<Arc<Inner>, String>>,
}

pub(super) struct Inner {
    pub(super) config: Config,
    tasks: Mutex<Table>,
    /// Held while tasks begin or end, and while pieces take room, so that quota and files agree with the table.
    order: Mutex<()>,
    pub(super) shared: Arc<Shared>,
    dropped: Arc<Dropped>,
    /// The directory is another process's: nothing in it is made, removed or recorded any more. Set under the order.
    released: AtomicBool,
}

impl std::fmt::Debug for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Storage").field("usage", &self.usage()).finish_non_exhaustive()
    }
}

impl Storage {
    /// Opens the directory, and takes over what an earlier process left in it.
    ///
    /// # Errors
    /// [`StorageError::InUse`] when another process has it; otherwise only what also a new directory would meet. A
    /// damaged metadata store is set aside, see the module's head.
    pub fn open(config: Config) -> Result<Self, StorageError> {
        Self::open_with(config, |ledger| ledger)
    }

    /// As [`Self::open`], with the ledger behind whatever a test puts in front of it.
    pub(super) fn open_with(
        config: Config,
        wrap: impl FnOnce(Box<dyn Ledger>) -> Box<dyn Ledger>,
    ) -> Result<Self, StorageError> {
        let storage = Self::with(config, Err("it was not opened".into()));
        storage.open_store(wrap)?;
        Ok(storage)
    }

    /// A storage whose store could not be opened, for this reason.
    pub fn without(config: Config, reason: &StorageError) -> Self {
        Self::with(config, Err(reason.to_string()))
    }

    /// A storage whose content and metadata are in memory, at most `quota` bytes of content.
    pub fn in_memory(quota: u64) -> Self {
        let config = Config { quota, ..Config::default() };
        let (metrics, totals, check_interval) = (Metrics::default(), Totals::default(), config.check_interval);
        let writes = Slots::new(WRITES);
        let shared = Shared { recorder: None, files: None, metrics, totals, check_interval, writes };
        let inner = Inner::new(config.clone(), shared, Arc::default());
        Self::with(config, Ok(Arc::new(inner)))
    }

    fn with(config: Config, inner: Result<Arc<Inner>, String>) -> Self {
        let (metrics, dropped) = match &inner {
            Ok(inner) => (inner.shared.metrics.clone(), Arc::clone(&inner.dropped)),
            Err(_) => Default::default(),
        };
        metrics.available.set(i64::from(inner.is_ok()));
        let (upkeep, inner) = (Mutex::new(false), RwLock::new(inner));
        Self { slot: Arc::new(Slot { upkeep, config, metrics, dropped, inner }) }
    }

    fn open_store(&self, wrap: impl FnOnce(Box<dyn Ledger>) -> Box<dyn Ledger>) -> Result<(), StorageError> {
        let slot = &self.slot;
        let inner = Inner::open(slot.config.clone(), slot.metrics.clone(), Arc::clone(&slot.dropped), wrap)?;
        self.put(Ok(Arc::new(inner)));
        Ok(())
    }

    fn put(&self, inner: Result<Arc<Inner>, String>) {
        self.slot.metrics.available.set(i64::from(inner.is_ok()));
        if inner.is_err() {
            self.slot.metrics.tasks.set(0);
            self.slot.metrics.bytes.set(0);
        }
        *self.slot.inner.write().unwrap_or_else(PoisonError::into_inner) = inner;
    }

    /// The store, if there is one.
    fn inner(&self) -> Option<Arc<Inner>> {
        self.slot.inner.read().unwrap_or_else(PoisonError::into_inner).as_ref().ok().map(Arc::clone)
    }

    /// Why there is no store; `None` if there is one.
    pub fn missing(&self) -> Option<String> {
        self.slot.inner.read().unwrap_or_else(PoisonError::into_inner).as_ref().err().cloned()
    }

    fn upkeep(&self) -> MutexGuard<'_, bool> {
        self.slot.upkeep.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the directory to another process, for this reason: what is recorded is committed, and the lock is let go.
    /// Who reads a task goes on with it. Says whether that was done: not while a piece is being written. Blocking, and
    /// final.
    pub fn release(&self, why: &str) -> bool {
        let mut released = self.upkeep();
        let Some(inner) = self.inner() else {
            *released = true;
            return true;
        };
        let _order = inner.order();
        if inner.tasks().all().any(|task| task.is_written()) {
            return false;
        }
        *released = true;
        self.put(Err(why.to_owned()));
        inner.released.store(true, Ordering::Release);
        if let Some(recorder) = &inner.shared.recorder {
            recorder.close();
        }
        if let Some(files) = &inner.shared.files {
            files.unlock();
        }
        true
    }

    /// Gives the store up if its directory has vanished, and opens it if there is none. Says whether it was opened. Who
    /// holds a task of a store that was given up goes on with it. Blocking; to be called every few seconds.
    pub fn look_after(&self) -> bool {
        let released = self.upkeep();
        match self.inner() {
            _ if *released => false,
            Some(inner) => {
                let vanished = inner.shared.files.as_ref().and_then(|files| files.missing());
                if let Some(error) = vanished {
                    self.put(Err(error.to_string()));
                }
                false
            }
            None => match self.open_store(|ledger| ledger) {
                Ok(()) => true,
                Err(error) => {
                    self.put(Err(error.to_string()));
                    false
                }
            },
        }
    }

    /// The storage's metrics, to be registered.
    pub fn metrics(&self) -> &Metrics {
        &self.slot.metrics
    }

    /// The task, if it is stored. Counts as a use.
    pub fn get(&self, id: &TaskId) -> Option<StoredTask> {
        let task = self.peek(id)?;
        task.store.tasks().use_now(id);
        task.state.touch(now());
        Some(task)
    }

    /// The task, if it is stored, without counting as a use.
    pub fn peek(&self, id: &TaskId) -> Option<StoredTask> {
        match self.inner()?.look(id)? {
            Ok(task) => Some(task),
            Err(error) => {
                tracing::warn!(task = %id, %error, "a content file cannot be opened");
                None
            }
        }
    }

    /// Begins a task, which takes room as its pieces come. Returns the stored one if there is one of this geometry; one
    /// of another geometry is replaced unless somebody holds it.
    ///
    /// # Errors
    /// What keeps the file from being made; nothing is left behind.
    pub fn create(&self, new: NewTask) -> Result<StoredTask, StorageError> {
        let inner = self.inner().ok_or_else(|| self.unavailable())?;
        let _order = inner.order();
        inner.ours()?;
        inner.begin(new)
    }

    fn unavailable(&self) -> StorageError {
        StorageError::Unavailable(self.missing().unwrap_or_default())
    }

    /// Begins a task of which these pieces are going to be downloaded, see [`StoredTask::admit`].
    ///
    /// # Errors
    /// [`StorageError::Full`] when they would not fit, and others; none of them leaves anything behind.
    pub fn create_for(&self, new: NewTask, wanted: &PieceSet) -> Result<StoredTask, StorageError> {
        let inner = self.inner().ok_or_else(|| self.unavailable())?;
        let _order = inner.order();
        inner.ours()?;
        let id = new.id;
        let task = inner.begin(new)?;
        match inner.promise(&task.state, wanted) {
            Ok(()) => Ok(task),
            Err(error) => {
                let is_empty = task.state.weight().held == 0;
                drop(task);
                if is_empty {
                    inner.take_out(&id);
                }
                Err(error)
            }
        }
    }

    /// Removes a task. Who holds it goes on with it; nothing of it is recorded any more.
    pub fn remove(&self, id: &TaskId) {
        let Some(inner) = self.inner() else { return };
        let _order = inner.order();
        if inner.ours().is_ok() {
            inner.drop_task(id);
        }
    }

    /// What was removed since this was last asked, and is not stored again; `None` if it was too much to remember.
    pub fn take_dropped(&self) -> Option<Vec<DroppedTask>> {
        let mut dropped = self.slot.dropped.take()?;
        if let Some(inner) = self.inner() {
            let tasks = inner.tasks();
            dropped.retain(|task| !tasks.contains(&task.id));
        }
        Some(dropped)
    }

    /// Changes when a task is removed.
    pub fn drops(&self) -> watch::Receiver<u64> {
        self.slot.dropped.changes()
    }

    /// All stored tasks, in no order.
    pub fn list(&self) -> Vec<TaskSummary> {
        let Some(inner) = self.inner() else { return Vec::new() };
        let tasks = inner.tasks();
        tasks.all().map(|task| summary(task, in_use(task))).collect()
    }

    /// The pieces of a task that are to be checked. Opens no file.
    pub(super) fn due(&self, id: &TaskId, age: Duration) -> Vec<PieceNumber> {
        let Some(inner) = self.inner() else { return Vec::new() };
        let task = inner.tasks().get(id).map(Arc::clone);
        task.map_or_else(Vec::new, |task| task.due(age))
    }

    /// The ids of all stored tasks, the most recently used first.
    pub(super) fn recently_used(&self) -> Vec<TaskId> {
        let Some(inner) = self.inner() else { return Vec::new() };
        let tasks = inner.tasks();
        tasks.recently_used().collect()
    }

    /// Whether there is anything of this URL, of whatever version.
    pub fn has_url(&self, url: &str) -> bool {
        self.inner().is_some_and(|inner| inner.tasks().all().any(|task| task.record.origin.url == url))
    }

    /// How full the storage is.
    pub fn usage(&self) -> Usage {
        let quota = self.slot.config.quota;
        let Some(inner) = self.inner() else { return Usage { tasks: 0, bytes: 0, quota, disk_available: None } };
        let disk = inner.shared.files.as_ref().and_then(|files| files.disk().ok());
        Usage {
            tasks: inner.tasks().len(),
            bytes: inner.shared.totals.get().held,
            quota,
            disk_available: disk.map(|disk| disk.available),
        }
    }

    /// Waits until everything recorded so far is durable (or the metadata store has failed, which is logged).
    pub async fn flush(&self) {
        if let Some(inner) = self.inner()
            && let Some(recorder) = &inner.shared.recorder
        {
            recorder.flush().await;
        }
    }

    /// Removes what has expired, and the least recently used while quota or disk are too full. To be called every few
    /// minutes.
    pub fn sweep(&self) -> Swept {
        self.sweep_at(now())
    }

    pub(super) fn sweep_at(&self, now: u64) -> Swept {
        let _upkeep = self.upkeep();
        let Some(inner) = self.inner() else { return Swept::default() };
        // Looks at every file, which must not hold up who takes room.
        inner.give_back_leftovers();
        let _order = inner.order();
        let ttl = inner.config.ttl.as_secs();
        let mut swept = Swept::default();
        let over: Vec<_> = inner.tasks().idle().filter_map(|task| over(task, now, ttl)).collect();
        for (id, counts) in over {
            if inner.take_out(&id) && counts {
                swept.expired += 1;
            }
        }
        inner.shared.metrics.expired.inc_by(swept.expired as u64);
        let over_quota = inner.shared.totals.get().held.saturating_sub(inner.config.quota);
        swept.evicted = inner.evict(over_quota.max(inner.over_threshold()));
        swept
    }
}

/// Whether a task's time is over, and whether it is counted as expired: one that holds nothing is no loss.
fn over(task: &TaskState, now: u64, ttl: u64) -> Option<(TaskId, bool)> {
    let unused = now.saturating_sub(task.state().last_access);
    let is_empty = task.weight().held == 0 && task.record.geometry.count() > 0;
    match unused {
        _ if unused > ttl => Some((task.id, true)),
        _ if is_empty && unused > EMPTY_TTL => Some((task.id, false)),
        _ => None,
    }
}

impl Inner {
    fn new(config: Config, shared: Shared, dropped: Arc<Dropped>) -> Self {
        let (tasks, order, released) = (Mutex::default(), Mutex::default(), AtomicBool::new(false));
        Self { config, tasks, order, shared: Arc::new(shared), dropped, released }
    }

    /// Whether the directory is still ours; the caller holds the order.
    fn ours(&self) -> Result<(), StorageError> {
        match self.released.load(Ordering::Acquire) {
            false => Ok(()),
            true => Err(StorageError::Unavailable("another process has taken it over".into())),
        }
    }

    fn open(
        config: Config,
        metrics: Metrics,
        dropped: Arc<Dropped>,
        wrap: impl FnOnce(Box<dyn Ledger>) -> Box<dyn Ledger>,
    ) -> Result<Self, StorageError> {
        let files = Files::open(&config.dir)?;
        let (ledger, kept) = RedbLedger::open(&files.ledger())?;
        let recorder = Recorder::start(wrap(Box::new(ledger)), metrics.clone())
            .map_err(StorageError::io("start the recorder of", &config.dir))?;
        let (totals, check_interval) = (Totals::default(), config.check_interval);
        let writes = Slots::new(WRITES);
        let shared = Shared { recorder: Some(recorder), files: Some(files), metrics, totals, check_interval, writes };
        let inner = Self::new(config, shared, dropped);
        inner.restore(kept)?;
        Ok(inner)
    }

    /// Takes over every kept task whose content file has its length; removes the records and files of all others.
    fn restore(&self, mut kept: Vec<Kept>) -> Result<(), StorageError> {
        let Some(files) = &self.shared.files else { return Ok(()) };
        kept.sort_by_key(|kept| (kept.state.last_access, kept.id));
        let mut tasks = self.tasks();
        for kept in kept {
            let (id, geometry) = (kept.id, kept.record.geometry);
            let path = files.path(&id);
            match files::size(&path) {
                Ok((length, _)) if length == geometry.length() => {
                    let task = TaskState::restored(kept, Place::Disk(path), Arc::clone(&self.shared));
                    tasks.insert(Arc::new(task));
                }
                _ => {
                    tracing::warn!(task = %id, "a stored task's content file is missing or of another length: forgotten");
                    self.shared.record(Op::Remove(id));
                }
            }
        }
        let strays = files.remove_strays(|id| tasks.contains(id));
        let strays = strays.map_err(StorageError::io("read", &self.config.dir))?;
        if strays > 0 {
            tracing::info!(strays, "content files without a record removed");
        }
        self.gauge(&tasks);
        Ok(())
    }

    fn look(self: &Arc<Self>, id: &TaskId) -> Option<io::Result<StoredTask>> {
        // Held from here on: it is not evicted while its file is opened.
        let state = Arc::clone(self.tasks().get(id)?);
        let store = Arc::clone(self);
        Some(state.content().map(|content| StoredTask { state, content, store }))
    }

    /// The caller holds the order.
    fn begin(self: &Arc<Self>, new: NewTask) -> Result<StoredTask, StorageError> {
        if let Some(task) = self.stored(&new)? {
            return Ok(task);
        }
        let now = now();
        let NewTask { id, geometry, digest, origin, headers, audience } = new;
        let record = TaskRecord { geometry, created: now, digest, origin, headers };
        let size = record.encode().len();
        if size > MAX_RECORD {
            return Err(StorageError::RecordTooLong(size));
        }
        let inner = self;
        let (place, file) = self.make_place(&id, geometry.length())?;
        let state = Arc::new(TaskState::new(id, record, place, audience, now, Arc::clone(&inner.shared)));
        let content = match file {
            Some(file) => state.opened(file),
            None => state.content().map_err(StorageError::io("open", &inner.config.dir))?,
        };
        inner.shared.record(Op::Task(id, Box::new(state.record.clone()), state.state()));
        let mut tasks = inner.tasks();
        tasks.insert(Arc::clone(&state));
        inner.gauge(&tasks);
        drop(tasks);
        Ok(StoredTask { state, content, store: Arc::clone(inner) })
    }

    /// The task, if it is stored as it is wanted; what is stored otherwise is removed.
    fn stored(self: &Arc<Self>, new: &NewTask) -> Result<Option<StoredTask>, StorageError> {
        match self.look(&new.id) {
            None => return Ok(None),
            Some(Ok(task)) if task.geometry() == new.geometry => {
                self.tasks().use_now(&new.id);
                task.state.touch(now());
                return Ok(Some(task));
            }
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StorageError::io("open the content in", &self.config.dir)(error));
            }
            Some(_) => {}
        }
        if self.take_out(&new.id) { Ok(None) } else { Err(StorageError::Conflict) }
    }

    fn make_place(&self, id: &TaskId, length: u64) -> Result<(Place, Option<std::fs::File>), StorageError> {
        let Some(files) = &self.shared.files else {
            let content = Content::memory(length).ok_or(StorageError::Full { needed: length, room: 0 })?;
            return Ok((Place::Memory(Arc::new(content)), None));
        };
        match files.create(id, length) {
            Ok((path, file)) => Ok((Place::Disk(path), Some(file))),
            Err(error) if is_full(&error) => Err(StorageError::Full { needed: length, room: 0 }),
            Err(error) => Err(StorageError::io("make", files.path(id))(error)),
        }
    }

    /// Removes a task that nobody holds; says whether it is gone. The caller holds the order.
    pub(super) fn take_out(&self, id: &TaskId) -> bool {
        let mut tasks = self.tasks();
        match tasks.get(id) {
            Some(task) if in_use(task) => return false,
            None => return true,
            Some(_) => {}
        }
        let task = tasks.remove(id);
        self.gauge(&tasks);
        drop(tasks);
        self.end(task);
        true
    }

    /// Removes a task, held or not. The caller holds the order.
    fn drop_task(&self, id: &TaskId) {
        let mut tasks = self.tasks();
        let task = tasks.remove(id);
        self.gauge(&tasks);
        drop(tasks);
        self.end(task);
    }

    fn end(&self, task: Option<Arc<TaskState>>) {
        let Some(task) = task else { return };
        task.forget();
        task.remove_file();
        // Nobody was told of what is this host's alone.
        if task.state().audience == Audience::Host {
            return;
        }
        let TaskRecord { geometry, origin, .. } = &task.record;
        self.dropped.add(DroppedTask { id: task.id, geometry: *geometry, origin: origin.clone() });
    }

    pub(super) fn tasks(&self) -> MutexGuard<'_, Table> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn order(&self) -> MutexGuard<'_, ()> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gauge(&self, tasks: &Table) {
        self.shared.metrics.tasks.set(tasks.len() as i64);
    }
}

fn summary(task: &TaskState, in_use: bool) -> TaskSummary {
    let (have, unchecked) = task.counts();
    let state = task.state();
    TaskSummary {
        id: task.id,
        geometry: task.record.geometry,
        have,
        unchecked,
        held: task.weight().held,
        verified: state.verified,
        audience: state.audience,
        in_use,
        origin: task.record.origin.clone(),
        created: time(task.record.created),
        last_access: time(state.last_access),
    }
}

fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

fn time(seconds: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH)
}
