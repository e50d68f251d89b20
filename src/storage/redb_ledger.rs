//! The metadata store on redb: four small tables in one file.
//!
//! A file that cannot be read as one of ours (damaged, of another program, of a later format) is renamed to
//! `tasks.redb.unreadable`, replacing an earlier one, and an empty store takes its place: content that nobody vouches
//! for is fetched again. Only a lack of rights or space, which a new file would meet as well, is an error.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use damselfly_core::TaskId;
use redb::{Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use super::config::StorageError;
use super::ledger::{Kept, Ledger, LedgerError, Op};
use super::record::{self, PIECE_KEY, PIECE_VALUE, STATE_VALUE, StateRecord, TaskRecord};

const TASKS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("tasks");
const PIECES: TableDefinition<'_, &[u8; PIECE_KEY], &[u8; PIECE_VALUE]> = TableDefinition::new("pieces");
const STATES: TableDefinition<'_, &[u8; 32], &[u8; STATE_VALUE]> = TableDefinition::new("states");
const FORMAT: TableDefinition<'_, &str, u32> = TableDefinition::new("format");

/// Key and value that mark a store as ours.
const FORMAT_KEY: &str = "damselfly storage";
const FORMAT_VERSION: u32 = 1;

/// The pages that redb keeps in memory: metadata is small and read once.
const CACHE: usize = 4 << 20;

pub(super) struct RedbLedger {
    path: PathBuf,
    /// `None` between a failed commit and the next successful opening.
    database: Option<Database>,
}

/// What opening a file came to.
enum Fault {
    /// A new file would fail too.
    Hard(String),
    /// The file is not one of ours, or damaged.
    Unreadable(String),
}

impl RedbLedger {
    /// Opens or makes the store, and reads everything in it.
    pub(super) fn open(path: &Path) -> Result<(Self, Vec<Kept>), StorageError> {
        let hard = |reason| StorageError::Ledger { path: path.to_owned(), reason };
        let (database, kept) = match open_and_load(path) {
            Ok(opened) => opened,
            Err(Fault::Hard(reason)) => return Err(hard(reason)),
            Err(Fault::Unreadable(reason)) => {
                let aside = set_aside(path).map_err(StorageError::io("set aside", path))?;
                tracing::warn!(file = %path.display(), aside = %aside.display(), %reason,
                    "the metadata store is unreadable: set aside, starting with an empty one");
                open_and_load(path).map_err(|(Fault::Hard(reason) | Fault::Unreadable(reason))| hard(reason))?
            }
        };
        Ok((Self { path: path.to_owned(), database: Some(database) }, kept))
    }

    fn try_commit(&self, batch: &[Op]) -> Result<(), redb::Error> {
        let Some(database) = &self.database else { return Err(redb::Error::DatabaseClosed) };
        let mut transaction = database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        {
            let mut tables = Tables {
                tasks: transaction.open_table(TASKS)?,
                pieces: transaction.open_table(PIECES)?,
                states: transaction.open_table(STATES)?,
            };
            for op in batch {
                tables.apply(op)?;
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

impl Ledger for RedbLedger {
    fn commit(&mut self, batch: &[Op]) -> Result<(), LedgerError> {
        let result = catch_unwind(AssertUnwindSafe(|| self.try_commit(batch)));
        let error = match result {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the store failed on its own data".to_owned(),
        };
        self.database = None;
        Err(LedgerError(error))
    }

    fn reopen(&mut self) -> Result<(), LedgerError> {
        self.database = None;
        match open_and_load(&self.path) {
            Ok((database, _)) => {
                self.database = Some(database);
                Ok(())
            }
            Err(Fault::Hard(reason) | Fault::Unreadable(reason)) => Err(LedgerError(reason)),
        }
    }
}

struct Tables<'txn> {
    tasks: redb::Table<'txn, &'static [u8; 32], &'static [u8]>,
    pieces: redb::Table<'txn, &'static [u8; PIECE_KEY], &'static [u8; PIECE_VALUE]>,
    states: redb::Table<'txn, &'static [u8; 32], &'static [u8; STATE_VALUE]>,
}

impl Tables<'_> {
    fn apply(&mut self, op: &Op) -> Result<(), redb::Error> {
        match op {
            Op::Task(id, task, state) => {
                self.remove(id)?;
                self.tasks.insert(id.as_bytes(), task.encode().as_slice())?;
                self.states.insert(id.as_bytes(), &state.encode())?;
            }
            Op::Piece(id, piece, digest) => {
                self.pieces.insert(&record::piece_key(id, *piece), &record::encode_piece(digest))?;
            }
            Op::Forget(id, piece) => {
                self.pieces.remove(&record::piece_key(id, *piece))?;
            }
            Op::State(id, state) => {
                self.states.insert(id.as_bytes(), &state.encode())?;
            }
            Op::Remove(id) => self.remove(id)?,
        }
        Ok(())
    }

    fn remove(&mut self, id: &TaskId) -> Result<(), redb::Error> {
        self.tasks.remove(id.as_bytes())?;
        self.states.remove(id.as_bytes())?;
        let first = record::piece_key(id, damselfly_core::PieceNumber(0));
        let last = record::piece_key(id, damselfly_core::PieceNumber(u32::MAX));
        self.pieces.retain_in::<&[u8; PIECE_KEY], _>(&first..=&last, |_, _| false)?;
        Ok(())
    }
}

fn open_and_load(path: &Path) -> Result<(Database, Vec<Kept>), Fault> {
    // redb asserts here and there on data that only a damaged file can hold.
    catch_unwind(AssertUnwindSafe(|| {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = file.map_err(|error| io_fault(&error))?;
        let database = Database::builder().set_cache_size(CACHE).create_file(file).map_err(database_fault)?;
        let kept = prepare(&database).and_then(|()| load(&database))?;
        Ok((database, kept))
    }))
    .unwrap_or_else(|_| Err(Fault::Unreadable("the store is damaged".to_owned())))
}

fn io_fault(error: &io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::PermissionDenied
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::StorageFull
        | io::ErrorKind::QuotaExceeded
        | io::ErrorKind::NotFound => Fault::Hard(error.to_string()),
        _ => Fault::Unreadable(error.to_string()),
    }
}

fn database_fault(error: DatabaseError) -> Fault {
    match &error {
        DatabaseError::DatabaseAlreadyOpen => Fault::Hard(error.to_string()),
        DatabaseError::Storage(redb::StorageError::Io(io)) => io_fault(io),
        _ => Fault::Unreadable(error.to_string()),
    }
}

/// Room and rights are lacking for a new file as well; anything else is the file's own fault.
fn fault(error: redb::Error) -> Fault {
    match error {
        redb::Error::Io(io) => io_fault(&io),
        error => Fault::Unreadable(error.to_string()),
    }
}

fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = path.with_extension("redb.unreadable");
    let earlier = if aside.is_dir() { fs::remove_dir_all(&aside) } else { fs::remove_file(&aside) };
    match earlier {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => fs::rename(path, &aside)?,
    }
    Ok(aside)
}

/// Marks a new store as ours, or makes sure that an old one is.
fn prepare(database: &Database) -> Result<(), Fault> {
    let transaction = database.begin_write().map_err(|error| fault(error.into()))?;
    let empty = transaction.list_tables().map_err(|error| fault(error.into()))?.next().is_none();
    let version = (|| {
        let mut table = transaction.open_table(FORMAT)?;
        if empty {
            table.insert(FORMAT_KEY, FORMAT_VERSION)?;
        }
        transaction.open_table(TASKS)?;
        transaction.open_table(PIECES)?;
        transaction.open_table(STATES)?;
        let version = table.get(FORMAT_KEY)?.map(|version| version.value());
        Ok::<_, redb::Error>(version)
    })()
    .map_err(fault)?;
    match version {
        Some(FORMAT_VERSION) if empty => transaction.commit().map_err(|error| fault(error.into())),
        Some(FORMAT_VERSION) => transaction.abort().map_err(|error| fault(error.into())),
        Some(other) => Err(Fault::Unreadable(format!("it has format {other}, this program knows {FORMAT_VERSION}"))),
        None => Err(Fault::Unreadable("it is another program's".to_owned())),
    }
}

/// Reads everything. A record that does not decode is left out, and with it the task's content.
fn load(database: &Database) -> Result<Vec<Kept>, Fault> {
    let read = || {
        let transaction = database.begin_read()?;
        let mut tasks = HashMap::new();
        for entry in transaction.open_table(TASKS)?.iter()? {
            let (key, value) = entry?;
            if let Some(record) = TaskRecord::decode(value.value()) {
                let id = TaskId::from_bytes(*key.value());
                tasks.insert(id, Kept { id, record, state: StateRecord::default(), pieces: Vec::new() });
            }
        }
        for entry in transaction.open_table(STATES)?.iter()? {
            let (key, value) = entry?;
            if let Some(kept) = tasks.get_mut(&TaskId::from_bytes(*key.value())) {
                kept.state = StateRecord::decode(value.value()).unwrap_or_default();
            }
        }
        for entry in transaction.open_table(PIECES)?.iter()? {
            let (key, value) = entry?;
            let Some((id, piece)) = record::read_piece_key(key.value()) else { continue };
            if let (Some(kept), Some(digest)) = (tasks.get_mut(&id), record::decode_piece(value.value())) {
                kept.pieces.push((piece, digest));
            }
        }
        Ok::<_, redb::Error>(tasks.into_values().collect())
    };
    read().map_err(fault)
}

#[cfg(test)]
mod tests {
    use super::*;
    use damselfly_core::{Geometry, PieceDigest, PieceNumber, swarm::Origin};

    fn task(id: u8, length: u64) -> Op {
        let record = TaskRecord {
            geometry: Geometry::new(length, 10).unwrap(),
            created: 1,
            digest: None,
            origin: Origin::default(),
            headers: Vec::new(),
        };
        Op::Task(
            TaskId::from_bytes([id; 32]),
            Box::new(record),
            StateRecord { last_access: 5, ..StateRecord::default() },
        )
    }

    #[test]
    fn what_was_committed_is_loaded_and_what_was_removed_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tasks.redb");
        let (mut ledger, kept) = RedbLedger::open(&path).unwrap();
        assert!(kept.is_empty());
        let [one, two, three] = [1, 2, 3].map(|id| TaskId::from_bytes([id; 32]));
        let digest = PieceDigest::of(b"x");
        ledger.commit(&[task(1, 100), task(2, 100), task(3, 100)]).unwrap();
        let pieces = [one, two, three].map(|id| Op::Piece(id, PieceNumber(4), digest));
        ledger.commit(&pieces).unwrap();
        let verified = StateRecord { verified: true, last_access: 9, ..StateRecord::default() };
        ledger.commit(&[Op::Remove(two), Op::Forget(three, PieceNumber(4)), Op::State(one, verified)]).unwrap();
        ledger.commit(&[Op::Piece(one, PieceNumber(5), digest), task(3, 50)]).unwrap();
        drop(ledger);
        let (_, mut kept) = RedbLedger::open(&path).unwrap();
        kept.sort_by_key(|kept| kept.id);
        let [first, third] = kept.as_slice() else { panic!("{kept:?}") };
        assert_eq!((first.id, first.state), (one, verified));
        assert_eq!(first.pieces, [(PieceNumber(4), digest), (PieceNumber(5), digest)]);
        assert_eq!((third.id, third.record.geometry.length(), third.pieces.len()), (three, 50, 0));
    }

    #[test]
    fn an_unreadable_store_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tasks.redb");
        let foreign = |path: &Path| {
            let database = Database::create(path).unwrap();
            let transaction = database.begin_write().unwrap();
            transaction.open_table(TableDefinition::<u64, u64>::new("theirs")).unwrap();
            transaction.commit().unwrap();
        };
        let damaged = |path: &Path| {
            let (mut ledger, _) = RedbLedger::open(path).unwrap();
            ledger.commit(&[task(1, 100)]).unwrap();
            drop(ledger);
            let mut bytes = fs::read(path).unwrap();
            bytes[8..].fill(0xa5);
            fs::write(path, bytes).unwrap();
        };
        type Make<'a> = (&'a str, &'a dyn Fn(&Path));
        let makes: [Make<'_>; 5] = [
            ("garbage", &|path| fs::write(path, b"not a database at all").unwrap()),
            ("another program's", &foreign),
            ("damaged", &damaged),
            ("a directory", &|path| fs::create_dir(path).unwrap()),
            ("cut short", &|path| {
                damaged(path);
                OpenOptions::new().write(true).open(path).unwrap().set_len(5000).unwrap();
            }),
        ];
        for (name, make) in makes {
            let _ = fs::remove_file(&path);
            make(&path);
            let (mut ledger, kept) = RedbLedger::open(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(kept.is_empty(), "{name}");
            let aside = dir.path().join("tasks.redb.unreadable");
            assert!(aside.exists(), "{name}");
            ledger.commit(&[task(7, 10)]).unwrap();
            drop(ledger);
        }
    }

    #[test]
    fn a_store_that_failed_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tasks.redb");
        let (mut ledger, _) = RedbLedger::open(&path).unwrap();
        ledger.database = None;
        assert!(ledger.commit(&[task(1, 10)]).is_err());
        ledger.reopen().unwrap();
        ledger.commit(&[task(1, 10)]).unwrap();
        drop(ledger);
        assert_eq!(RedbLedger::open(&path).unwrap().1.len(), 1);
    }
}
