//! All stored tasks: creation with room made for it, least-recently-used eviction, expiry, and what the last process
//! left.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use damselfly_core::swarm::Origin;
use damselfly_core::{Audience, Digest, Geometry, TaskId};
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
use super::task::{Place, Shared, StoredTask, TaskState};

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
    /// Bytes that they reserve.
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

/// All stored tasks. Clones are handles on the same storage; the last one dropped waits for the last commit.
///
/// [`Self::create`], [`Self::remove`] and [`Self::sweep`] make and remove files, which takes milliseconds, for very
/// large files more: prefer a blocking thread.
#[derive(Clone)]
pub struct Storage {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    tasks: Mutex<HashMap<TaskId, Arc<TaskState>>>,
    /// Held while tasks begin or end, so that quota and files agree with the table.
    order: Mutex<()>,
    uses: AtomicU64,
    shared: Arc<Shared>,
    dropped: Dropped,
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
        let files = Files::open(&config.dir)?;
        let (ledger, kept) = RedbLedger::open(&files.ledger())?;
        let metrics = Metrics::default();
        let recorder = Recorder::start(wrap(Box::new(ledger)), metrics.clone())
            .map_err(StorageError::io("start the recorder of", &config.dir))?;
        let storage = Self::with(config, Shared { recorder: Some(recorder), files: Some(files), metrics });
        storage.restore(kept)?;
        Ok(storage)
    }

    /// A storage whose content and metadata are in memory, at most `quota` bytes of content.
    pub fn in_memory(quota: u64) -> Self {
        let shared = Shared { recorder: None, files: None, metrics: Metrics::default() };
        Self::with(Config { quota, ..Config::default() }, shared)
    }

    fn with(config: Config, shared: Shared) -> Self {
        let (tasks, order, shared) = (Mutex::default(), Mutex::default(), Arc::new(shared));
        Self {
            inner: Arc::new(Inner {
                config,
                tasks,
                order,
                uses: AtomicU64::new(1),
                shared,
                dropped: Dropped::default(),
            }),
        }
    }

    /// Takes over every kept task whose content file has its length; removes the records and files of all others.
    fn restore(&self, mut kept: Vec<Kept>) -> Result<(), StorageError> {
        let Some(files) = &self.inner.shared.files else { return Ok(()) };
        kept.sort_by_key(|kept| (kept.state.last_access, kept.id));
        let mut tasks = self.tasks();
        for kept in kept {
            let (id, geometry) = (kept.id, kept.record.geometry);
            let path = files.path(&id);
            match files::size(&path) {
                Ok((length, occupied)) if length == geometry.length() => {
                    let sparse = occupied < length;
                    let place = Place::Disk { path, sparse };
                    let task = TaskState::restored(kept, place, Arc::clone(&self.inner.shared));
                    task.used.store(self.next_use(), Ordering::Relaxed);
                    tasks.insert(id, Arc::new(task));
                }
                _ => {
                    tracing::warn!(task = %id, "a stored task's content file is missing or of another length: forgotten");
                    self.inner.shared.record(Op::Remove(id));
                }
            }
        }
        let strays = files.remove_strays(|id| tasks.contains_key(id));
        let strays = strays.map_err(StorageError::io("read", &self.inner.config.dir))?;
        if strays > 0 {
            tracing::info!(strays, "content files without a record removed");
        }
        self.gauge(&tasks);
        Ok(())
    }

    /// The storage's metrics, to be registered.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.shared.metrics
    }

    /// The task, if it is stored. Counts as a use.
    pub fn get(&self, id: &TaskId) -> Option<StoredTask> {
        let task = self.peek(id)?;
        task.state.touch(self.next_use(), now());
        Some(task)
    }

    /// The task, if it is stored, without counting as a use.
    pub fn peek(&self, id: &TaskId) -> Option<StoredTask> {
        match self.look(id)? {
            Ok(task) => Some(task),
            Err(error) => {
                tracing::warn!(task = %id, %error, "a content file cannot be opened");
                None
            }
        }
    }

    fn look(&self, id: &TaskId) -> Option<io::Result<StoredTask>> {
        // Held from here on: it is not evicted while its file is opened.
        let state = Arc::clone(self.tasks().get(id)?);
        Some(state.content().map(|content| StoredTask { state, content }))
    }

    /// Begins a task: makes room, and reserves its space. Returns the stored one if there is one of this geometry; one
    /// of another geometry is replaced unless somebody holds it.
    ///
    /// # Errors
    /// [`StorageError::Full`] when there is no room, and others; none of them leaves anything behind.
    pub fn create(&self, new: NewTask) -> Result<StoredTask, StorageError> {
        let _order = self.order();
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
        self.make_room(geometry.length())?;
        let (place, file) = self.allocate(&id, geometry.length())?;
        let state = Arc::new(TaskState::new(id, record, place, audience, now, Arc::clone(&self.inner.shared)));
        state.used.store(self.next_use(), Ordering::Relaxed);
        let content = match file {
            Some(file) => state.opened(file),
            None => state.content().map_err(StorageError::io("open", &self.inner.config.dir))?,
        };
        self.inner.shared.record(Op::Task(id, Box::new(state.record.clone()), state.state()));
        let mut tasks = self.tasks();
        tasks.insert(id, Arc::clone(&state));
        self.gauge(&tasks);
        drop(tasks);
        Ok(StoredTask { state, content })
    }

    /// The task, if it is stored as it is wanted; what is stored otherwise is removed.
    fn stored(&self, new: &NewTask) -> Result<Option<StoredTask>, StorageError> {
        match self.look(&new.id) {
            None => return Ok(None),
            Some(Ok(task)) if task.geometry() == new.geometry => {
                task.state.touch(self.next_use(), now());
                return Ok(Some(task));
            }
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StorageError::io("open the content in", &self.inner.config.dir)(error));
            }
            Some(_) => {}
        }
        if self.take_out(&new.id) { Ok(None) } else { Err(StorageError::Conflict) }
    }

    fn allocate(&self, id: &TaskId, length: u64) -> Result<(Place, Option<std::fs::File>), StorageError> {
        let Some(files) = &self.inner.shared.files else {
            let content = Content::memory(length).ok_or(StorageError::Full { needed: length, room: 0 })?;
            return Ok((Place::Memory(Arc::new(content)), None));
        };
        match files.create(id, length) {
            Ok(made) => Ok((Place::Disk { path: made.path, sparse: made.sparse }, Some(made.file))),
            Err(error) if is_full(&error) => Err(StorageError::Full { needed: length, room: 0 }),
            Err(error) => Err(StorageError::io("make", files.path(id))(error)),
        }
    }

    /// Removes a task. Who holds it goes on with it; nothing of it is recorded any more.
    pub fn remove(&self, id: &TaskId) {
        let _order = self.order();
        self.drop_task(id);
    }

    /// What was removed since this was last asked, and is not stored again; `None` if it was too much to remember.
    pub fn take_dropped(&self) -> Option<Vec<DroppedTask>> {
        let mut dropped = self.inner.dropped.take()?;
        let tasks = self.tasks();
        dropped.retain(|task| !tasks.contains_key(&task.id));
        Some(dropped)
    }

    /// Changes when a task is removed.
    pub fn drops(&self) -> watch::Receiver<u64> {
        self.inner.dropped.changes()
    }

    /// All stored tasks, in no order.
    pub fn list(&self) -> Vec<TaskSummary> {
        self.tasks().values().map(|task| summary(task, in_use(task))).collect()
    }

    /// Whether there is anything of this URL, of whatever version.
    pub fn has_url(&self, url: &str) -> bool {
        self.tasks().values().any(|task| task.record.origin.url == url)
    }

    /// How full the storage is.
    pub fn usage(&self) -> Usage {
        let tasks = self.tasks();
        let (tasks, bytes) = (tasks.len(), reserved(&tasks));
        let disk = self.inner.shared.files.as_ref().and_then(|files| files.disk().ok());
        let disk_available = disk.map(|disk| disk.available);
        Usage { tasks, bytes, quota: self.inner.config.quota, disk_available }
    }

    /// Waits until everything recorded so far is durable (or the metadata store has failed, which is logged).
    pub async fn flush(&self) {
        if let Some(recorder) = &self.inner.shared.recorder {
            recorder.flush().await;
        }
    }

    /// Removes what has expired, and the least recently used while quota or disk are too full. To be called every few
    /// minutes.
    pub fn sweep(&self) -> Swept {
        self.sweep_at(now())
    }

    pub(super) fn sweep_at(&self, now: u64) -> Swept {
        let _order = self.order();
        let ttl = self.inner.config.ttl.as_secs();
        let mut swept = Swept::default();
        for task in self.evictable() {
            if now.saturating_sub(task.last_access) > ttl && self.take_out(&task.id) {
                swept.expired += 1;
            }
        }
        let shared = &self.inner.shared;
        shared.metrics.expired.inc_by(swept.expired as u64);
        let over_quota = reserved(&self.tasks()).saturating_sub(self.inner.config.quota);
        swept.evicted = self.evict(over_quota.max(self.over_threshold()));
        swept
    }

    /// How many bytes a sweep should free on a file system that is used beyond the high threshold.
    fn over_threshold(&self) -> u64 {
        let Some(Ok(disk)) = self.inner.shared.files.as_ref().map(Files::disk) else { return 0 };
        if disk.used_percent() <= u64::from(self.inner.config.high_percent) {
            return 0;
        }
        let aim = u128::from(disk.total) * u128::from(self.inner.config.low_percent.min(100)) / 100;
        disk.total.saturating_sub(disk.available).saturating_sub(aim as u64)
    }

    /// Evicts as few tasks as make `length` bytes fit; none if even all that may go would not be enough.
    fn make_room(&self, length: u64) -> Result<(), StorageError> {
        let quota = self.inner.config.quota;
        let bytes = reserved(&self.tasks());
        let disk = match &self.inner.shared.files {
            Some(files) => Some(files.disk().map_err(StorageError::io("ask for the room of", &self.inner.config.dir))?),
            None => None,
        };
        let promised = self.unallocated().saturating_add(self.inner.config.keep_free);
        let room = disk.map_or(u64::MAX, |disk| disk.available.saturating_sub(promised));
        let short_disk = disk.map_or(0, |disk| length.saturating_add(promised).saturating_sub(disk.available));
        let short_quota = bytes.saturating_add(length).saturating_sub(quota);
        let short = if length > quota { u64::MAX } else { short_quota.max(short_disk) };
        let evictable = self.evictable().iter().map(|task| task.length).fold(0, u64::saturating_add);
        if short > evictable {
            let room = quota.saturating_sub(bytes).min(room).saturating_add(evictable);
            return Err(StorageError::Full { needed: length, room: room.min(quota) });
        }
        self.evict(short);
        Ok(())
    }

    /// Bytes that tasks were promised and that their sparse files don't occupy yet.
    fn unallocated(&self) -> u64 {
        let sparse = |task: &Arc<TaskState>| match &task.place {
            Place::Disk { path, sparse: true } if !task.is_written() => {
                Some((path.clone(), task.record.geometry.length()))
            }
            _ => None,
        };
        let paths: Vec<_> = self.tasks().values().filter_map(sparse).collect();
        let missing = |(path, length): &(std::path::PathBuf, u64)| {
            files::size(path).map_or(0, |(_, occupied)| length.saturating_sub(occupied))
        };
        paths.iter().map(missing).sum()
    }

    /// Evicts the least recently used tasks until at least `bytes` are freed; says how many.
    fn evict(&self, bytes: u64) -> usize {
        let (mut freed, mut count) = (0, 0);
        for task in self.evictable() {
            if freed >= bytes {
                break;
            }
            if self.take_out(&task.id) {
                freed += task.length;
                count += 1;
                self.inner.shared.metrics.evictions.inc();
                tracing::info!(task = %task.id, bytes = task.length, "evicted");
            }
        }
        count
    }

    /// The tasks that nobody holds, least recently used first.
    fn evictable(&self) -> Vec<Evictable> {
        let facts = |task: &Arc<TaskState>| Evictable {
            used: task.used.load(Ordering::Relaxed),
            id: task.id,
            length: task.record.geometry.length(),
            last_access: task.state().last_access,
        };
        let mut free: Vec<_> = self.tasks().values().filter(|task| !in_use(task)).map(facts).collect();
        free.sort_unstable_by_key(|task| task.used);
        free
    }

    /// Removes a task that nobody holds; says whether it is gone. The caller holds the order.
    fn take_out(&self, id: &TaskId) -> bool {
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
        if let Place::Disk { path, .. } = &task.place {
            files::remove(path);
        }
        // Nobody was told of what is this host's alone.
        if task.state().audience == Audience::Host {
            return;
        }
        let TaskRecord { geometry, origin, .. } = &task.record;
        self.inner.dropped.add(DroppedTask { id: task.id, geometry: *geometry, origin: origin.clone() });
    }

    fn tasks(&self) -> MutexGuard<'_, HashMap<TaskId, Arc<TaskState>>> {
        self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self) -> MutexGuard<'_, ()> {
        self.inner.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_use(&self) -> u64 {
        self.inner.uses.fetch_add(1, Ordering::Relaxed)
    }

    fn gauge(&self, tasks: &HashMap<TaskId, Arc<TaskState>>) {
        let metrics = &self.inner.shared.metrics;
        metrics.tasks.set(tasks.len() as i64);
        metrics.bytes.set(i64::try_from(reserved(tasks)).unwrap_or(i64::MAX));
    }
}

/// What decides about a task's eviction. Facts, not a reference, which would count as a use.
struct Evictable {
    used: u64,
    id: TaskId,
    length: u64,
    last_access: u64,
}

/// Somebody but the table has it. Under the table's lock a `false` stays false: handles come from there or from handles.
fn in_use(task: &Arc<TaskState>) -> bool {
    Arc::strong_count(task) > 1
}

fn reserved(tasks: &HashMap<TaskId, Arc<TaskState>>) -> u64 {
    tasks.values().map(|task| task.record.geometry.length()).fold(0, u64::saturating_add)
}

fn summary(task: &TaskState, in_use: bool) -> TaskSummary {
    let (have, unchecked) = task.counts();
    let state = task.state();
    TaskSummary {
        id: task.id,
        geometry: task.record.geometry,
        have,
        unchecked,
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
