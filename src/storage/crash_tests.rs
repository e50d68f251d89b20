//! What is left after a process ended at any moment, after a disk lost what was not synced, and beside files that are
//! not ours.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use damselfly_core::{ByteRange, Geometry, PieceDigest, PieceNumber, PieceSet, TaskId};

use super::conformance::{bytes_of, config, content, fill, filled, id, new_task, whole};
use super::ledger::{Ledger, LedgerError, Op};
use super::{NewTask, Storage, StorageError, StoredTask};

/// The directory in which [`write_for_ever`] works; set only in the process that is killed.
const CHILD_DIR: &str = "DAMSELFLY_CRASH_TEST_DIR";

fn content_file(dir: &tempfile::TempDir, number: u8) -> PathBuf {
    dir.path().join("content").join(id(number).to_string())
}

fn span(task: &StoredTask, piece: PieceNumber) -> ByteRange {
    task.geometry().span(piece).unwrap()
}

/// What the killed process does: writes tasks for ever, saying which are durable.
async fn write_for_ever(dir: PathBuf) {
    let config = super::Config { dir, keep_free: 0, ..super::Config::default() };
    let storage = Storage::open(config).unwrap();
    for number in (1..=u8::MAX).cycle() {
        let task = begin_again(&storage, number).await;
        for piece in 0..3 {
            fill(&task, piece).await;
        }
        // The next task's pieces are in flight while this one is made durable.
        let next = number.wrapping_add(1);
        let ahead = begin_again(&storage, next).await;
        let (_, ()) = tokio::join!(fill(&ahead, 1), storage.flush());
        println!("durable {number}");
        std::io::stdout().flush().unwrap();
    }
}

/// A fresh task in place of the one that an earlier round left. Its removal is durable first: killed in between, the old
/// records would stand beside the new file. (Then the check finds them out; here every record is to be intact.)
async fn begin_again(storage: &Storage, number: u8) -> StoredTask {
    storage.remove(&id(number));
    storage.flush().await;
    storage.create(new_task(number)).unwrap()
}

fn kill_a_writer(dir: &Path, after: usize) -> Vec<u8> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "storage::crash_tests::what_was_durable_survives_a_kill", "--nocapture"])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let numbers = lines.filter_map(|line| line.split_once("durable ")?.1.parse().ok());
    let durable: Vec<u8> = numbers.take(after).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    durable
}

/// Starts itself as the process that is killed: there the variable is set.
#[tokio::test]
async fn what_was_durable_survives_a_kill() {
    if let Some(dir) = std::env::var_os(CHILD_DIR) {
        return write_for_ever(dir.into()).await;
    }
    let dir = tempfile::tempdir().unwrap();
    for after in [1, 2, 5, 9] {
        let durable = kill_a_writer(dir.path(), after);
        assert_eq!(durable.len(), after);
        let storage = Storage::open(super::Config { dir: dir.path().to_owned(), ..config(&dir) }).unwrap();
        for number in durable {
            let task = storage.get(&id(number)).unwrap_or_else(|| panic!("task {number} is lost"));
            assert!(task.have().is_empty(), "nothing is readable unchecked");
            assert!(task.unchecked().is_full(), "task {number} lost a piece");
        }
        for summary in storage.list() {
            let task = storage.get(&summary.id).unwrap();
            for piece in task.unchecked().iter() {
                assert!(task.check(piece).await, "what is recorded is intact");
                assert_eq!(task.read(span(&task, piece)).await.unwrap(), bytes_of(span(&task, piece)));
            }
        }
    }
}

/// A ledger that looks into the content file at every commit, and dies (for good) before the given one.
struct Watching {
    inner: Box<dyn Ledger>,
    dir: PathBuf,
    commits_left: usize,
    seen: Arc<AtomicUsize>,
}

impl Ledger for Watching {
    fn commit(&mut self, batch: &[Op]) -> Result<(), LedgerError> {
        for op in batch {
            let Op::Piece(id, piece, digest) = op else { continue };
            let span = Geometry::new(content().len() as u64, 600_000).unwrap().span(*piece).unwrap();
            let bytes = fs::read(self.dir.join("content").join(id.to_string())).unwrap();
            let written = &bytes[span.start() as usize..span.end() as usize];
            assert_eq!(PieceDigest::of(written), *digest, "recorded before it was written");
            self.seen.fetch_add(1, Ordering::Relaxed);
        }
        if self.commits_left == 0 {
            return Err(LedgerError("killed".into()));
        }
        self.commits_left -= 1;
        self.inner.commit(batch)
    }

    fn reopen(&mut self) -> Result<(), LedgerError> {
        Err(LedgerError("killed".into()))
    }
}

#[tokio::test]
async fn a_crash_between_write_and_commit_costs_that_piece_only() {
    for commits in 0..4 {
        let dir = tempfile::tempdir().unwrap();
        let seen = Arc::new(AtomicUsize::new(0));
        let watch = |inner| {
            let (dir, seen) = (dir.path().to_owned(), Arc::clone(&seen));
            Box::new(Watching { inner, dir, commits_left: commits, seen }) as Box<dyn Ledger>
        };
        let storage = Storage::open_with(config(&dir), watch).unwrap();
        let task = storage.create(new_task(1)).unwrap();
        storage.flush().await;
        for piece in 0..3 {
            fill(&task, piece).await;
            storage.flush().await;
        }
        assert!(task.is_complete(), "in this process the piece is of use all the same");
        assert!(seen.load(Ordering::Relaxed) >= 1);
        drop((task, storage));
        let storage = Storage::open(config(&dir)).unwrap();
        let left = storage.get(&id(1)).map(|task| task.unchecked().len());
        // The first commit is the task's own.
        assert_eq!(left, (commits as u32).checked_sub(1));
        if let Some(task) = storage.get(&id(1)) {
            for piece in task.unchecked().iter() {
                assert!(task.check(piece).await);
            }
            for piece in commits as u32 - 1..3 {
                fill(&task, piece).await;
            }
            assert!(task.is_complete());
        } else {
            assert!(!content_file(&dir, 1).exists(), "content without a record is removed");
        }
    }
}

#[tokio::test]
async fn damaged_pieces_are_forgotten_for_good_and_the_others_stay() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(config(&dir)).unwrap();
    let task = storage.create(new_task(1)).unwrap();
    for piece in 0..3 {
        fill(&task, piece).await;
    }
    task.set_verified();
    drop((task, storage));
    let mut bytes = fs::read(content_file(&dir, 1)).unwrap();
    bytes[700_000] ^= 1;
    fs::write(content_file(&dir, 1), bytes).unwrap();

    let storage = Storage::open(config(&dir)).unwrap();
    let task = storage.get(&id(1)).unwrap();
    assert!(task.is_verified(), "as it was recorded");
    assert_eq!(task.origin(), &new_task(1).origin);
    assert_eq!(task.headers(), new_task(1).headers);
    assert_eq!(task.held().pieces.len(), 3);
    assert_eq!(task.available(0), 0, "nothing is readable unchecked");
    assert!(task.claim(PieceNumber(0)).is_none(), "unchecked pieces are checked, not written");
    let checks = (0..10).map(|_| task.check(PieceNumber(0)));
    assert_eq!(futures_util::future::join_all(checks).await, [true; 10]);
    assert_eq!(storage.metrics().pieces_rechecked.get(), 1, "many ask, one reads");
    let mut changed = task.changed();
    assert!(!task.check(PieceNumber(1)).await);
    assert!(changed.has_changed().unwrap());
    changed.mark_unchanged();
    assert!(task.check(PieceNumber(2)).await);
    assert!(!task.is_verified());
    assert_eq!(task.digest_of(PieceNumber(1)), None);
    drop((task, storage));

    let storage = Storage::open(config(&dir)).unwrap();
    let task = storage.get(&id(1)).unwrap();
    assert_eq!((task.unchecked().len(), task.is_verified()), (2, false));
    fill(&task, 1).await;
    task.set_verified();
    drop((task, storage));
    let storage = Storage::open(config(&dir)).unwrap();
    let task = storage.get(&id(1)).unwrap();
    assert!(task.unchecked().is_full() && task.is_verified());
    for piece in task.geometry().pieces() {
        assert!(task.check(piece).await);
    }
    assert!(task.is_complete());
}

#[tokio::test]
async fn records_without_their_file_and_files_without_their_record_go() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(config(&dir)).unwrap();
    for number in 1..=4 {
        fill(&storage.create(new_task(number)).unwrap(), 0).await;
    }
    storage.remove(&id(4));
    drop(storage);
    assert!(!content_file(&dir, 4).exists());
    fs::remove_file(content_file(&dir, 1)).unwrap();
    fs::write(content_file(&dir, 2), "short").unwrap();
    fs::write(content_file(&dir, 9), "stray").unwrap();
    let storage = Storage::open(config(&dir)).unwrap();
    assert_eq!(storage.list().iter().map(|task| task.id).collect::<Vec<_>>(), [id(3)]);
    assert!(!content_file(&dir, 2).exists() && !content_file(&dir, 9).exists());
    drop(storage);
    let storage = Storage::open(config(&dir)).unwrap();
    assert_eq!(storage.list().len(), 1);
}

#[tokio::test]
async fn a_content_file_that_vanishes_under_us_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(config(&dir)).unwrap();
    fill(&storage.create(new_task(1)).unwrap(), 0).await;
    fs::remove_file(content_file(&dir, 1)).unwrap();
    assert!(storage.get(&id(1)).is_none());
    let task = storage.create(new_task(1)).unwrap();
    assert!(task.have().is_empty());
    fill(&task, 0).await;
    assert!(content_file(&dir, 1).exists());
}

#[tokio::test]
async fn an_unreadable_ledger_costs_the_content_not_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(config(&dir)).unwrap();
    fill(&storage.create(new_task(1)).unwrap(), 0).await;
    drop(storage);
    fs::write(dir.path().join("tasks.redb"), "not a database").unwrap();
    let storage = Storage::open(config(&dir)).unwrap();
    assert_eq!(storage.usage().tasks, 0);
    assert!(!content_file(&dir, 1).exists());
    assert_eq!(fs::read(dir.path().join("tasks.redb.unreadable")).unwrap(), b"not a database");
    fill(&storage.create(new_task(1)).unwrap(), 0).await;
}

#[test]
fn a_directory_in_use_is_said_so_for_as_long_as_a_task_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(config(&dir)).unwrap();
    let task = storage.create(new_task(1)).unwrap();
    drop(storage);
    let error = Storage::open(config(&dir)).unwrap_err();
    assert!(matches!(error, StorageError::InUse(_)), "{error}");
    assert!(error.to_string().contains(dir.path().to_str().unwrap()));
    drop(task);
    Storage::open(config(&dir)).unwrap();
}

#[test]
fn a_disk_without_room_is_full_and_nothing_is_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let roomless = super::Config { keep_free: u64::MAX / 2, ..config(&dir) };
    let storage = Storage::open(roomless).unwrap();
    let error = storage.create_for(new_task(1), &whole()).unwrap_err();
    assert!(matches!(error, StorageError::Full { .. }), "{error}");
    drop(storage);
    let storage = Storage::open(super::Config { quota: u64::MAX, ..config(&dir) }).unwrap();
    let geometry = Geometry::of_length(1 << 45).unwrap();
    let wanted = PieceSet::full(geometry.count());
    let error = storage.create_for(NewTask { geometry, ..new_task(1) }, &wanted).unwrap_err();
    assert!(matches!(error, StorageError::Full { .. }), "{error}");
    assert_eq!(fs::read_dir(dir.path().join("content")).unwrap().count(), 0);
    assert_eq!(storage.list(), []);
}

#[tokio::test]
async fn the_order_of_use_outlives_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(config(&dir)).unwrap();
    for number in 1..=3 {
        drop(filled(&storage, number).await);
    }
    // Used a day later than the others.
    let later = storage.list()[0].last_access.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 86_400;
    storage.peek(&id(1)).unwrap().state.touch(later);
    drop(storage);
    let small = super::Config { quota: content().len() as u64 * 3, ..config(&dir) };
    let storage = Storage::open(small).unwrap();
    drop(filled(&storage, 4).await);
    drop(filled(&storage, 5).await);
    let mut left: Vec<TaskId> = storage.list().iter().map(|task| task.id).collect();
    left.sort();
    assert_eq!(left, [id(1), id(4), id(5)]);
}

#[tokio::test]
async fn a_lowered_quota_is_met_by_the_next_sweep() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(config(&dir)).unwrap();
    for number in 1..=4 {
        drop(filled(&storage, number).await);
    }
    drop(storage);
    let small = super::Config { quota: content().len() as u64 * 2, ..config(&dir) };
    let storage = Storage::open(small).unwrap();
    assert_eq!(storage.usage().bytes, 4 * content().len() as u64);
    assert_eq!(storage.sweep(), super::Swept { expired: 0, evicted: 2 });
    drop(storage);
    let full = super::Config { high_percent: 0, low_percent: 0, ..config(&dir) };
    let storage = Storage::open(full).unwrap();
    assert_eq!(storage.sweep(), super::Swept { expired: 0, evicted: 2 });
}

fn occupied(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// What an older version reserved, an aborted write left, and a damaged piece occupies.
#[tokio::test]
async fn a_sweep_gives_back_what_a_file_occupies_beyond_its_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(config(&dir)).unwrap();
    let path = content_file(&dir, 1);
    fill(&storage.create(new_task(1)).unwrap(), 1).await;
    assert!(occupied(&path) < 700_000, "{} bytes for a piece of 600,000", occupied(&path));
    drop(storage);
    let mut bytes = fs::read(&path).unwrap();
    bytes[..600_000].fill(7);
    bytes[1_200_000..].fill(7);
    fs::write(&path, bytes).unwrap();
    let storage = Storage::open(config(&dir)).unwrap();
    assert!(occupied(&path) >= 1_200_000);
    let held = storage.peek(&id(1)).unwrap();
    assert_eq!(storage.sweep(), super::Swept::default());
    assert!(occupied(&path) >= 1_200_000, "it is in use");
    drop(held);
    assert_eq!(storage.sweep(), super::Swept::default());
    assert!(occupied(&path) < 700_000, "{} bytes for a piece of 600,000", occupied(&path));
    let task = storage.peek(&id(1)).unwrap();
    assert!(task.check(PieceNumber(1)).await, "and the piece is as it was");
    for piece in [0, 2] {
        fill(&task, piece).await;
    }
    assert_eq!(task.read(task_range(&task)).await.unwrap(), bytes_of(task_range(&task)));
}

fn task_range(task: &StoredTask) -> ByteRange {
    ByteRange::new(550_000, task.geometry().length()).unwrap()
}

/// Changes the content file as another program would.
fn touch(dir: &tempfile::TempDir, change: impl FnOnce(&fs::File)) {
    let file = fs::File::options().read(true).write(true).open(content_file(dir, 1)).unwrap();
    change(&file);
}

fn rot(file: &fs::File, at: u64) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[tokio::test]
async fn what_another_program_has_touched_is_checked_before_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(config(&dir)).unwrap();
    let task = filled(&storage, 1).await;
    task.set_verified();
    let losses = task.losses();
    touch(&dir, |file| rot(file, 700_000));
    let second = span(&task, PieceNumber(1));
    let error = task.read(second).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
    assert!(task.is_held() && task.have().is_empty(), "nothing is given before it is checked");
    assert!(task.check(PieceNumber(0)).await && !losses.has_changed().unwrap());
    assert!(!task.check(PieceNumber(1)).await && losses.has_changed().unwrap());
    assert!(!task.is_verified());
    assert_eq!(storage.usage().bytes, content().len() as u64 - 600_000, "its room is given back");
    fill(&task, 1).await;
    assert!(task.check(PieceNumber(2)).await && task.is_complete());
    assert_eq!(task.read(second).await.unwrap(), bytes_of(second));
    assert_eq!(storage.metrics().pieces_damaged.get(), 1);
}

#[tokio::test]
async fn a_file_that_is_cut_short_under_us_loses_what_was_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(config(&dir)).unwrap();
    let task = filled(&storage, 1).await;
    touch(&dir, |file| file.set_len(700_000).unwrap());
    for (piece, good) in [(2, false), (0, true), (1, false)] {
        assert_eq!(task.check(PieceNumber(piece)).await, good, "{piece}");
    }
    assert_eq!(task.held_pieces().len(), 1);
    drop((task, storage));
    let storage = Storage::open(config(&dir)).unwrap();
    let task = storage.get(&id(1)).expect("it has its length again");
    assert!(task.check(PieceNumber(0)).await);
    for piece in [1, 2] {
        fill(&task, piece).await;
    }
    assert!(task.is_complete());
}

#[tokio::test]
async fn our_own_changes_of_a_file_are_no_reason_to_check_it() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(config(&dir)).unwrap();
    let task = storage.create(new_task(1)).unwrap();
    futures_util::future::join_all((0..3).map(|piece| fill(&task, piece))).await;
    let second = storage.create(new_task(2)).unwrap();
    fill(&second, 0).await;
    drop(second);
    storage.sweep();
    let second = storage.get(&id(2)).unwrap();
    assert!(second.check(PieceNumber(0)).await);
    for piece in 0..3 {
        assert!(task.check(PieceNumber(piece)).await);
        assert_eq!(
            task.read(span(&task, PieceNumber(piece))).await.unwrap(),
            bytes_of(span(&task, PieceNumber(piece)))
        );
    }
    storage.remove(&id(1));
    assert!(task.check(PieceNumber(0)).await);
    assert_eq!(storage.metrics().pieces_rechecked.get(), 0);
}

#[tokio::test]
async fn what_was_checked_too_long_ago_is_checked_again() {
    for (interval, checks) in [(std::time::Duration::ZERO, 2), (std::time::Duration::from_secs(3600), 0)] {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::open(super::Config { check_interval: interval, ..config(&dir) }).unwrap();
        let task = filled(&storage, 1).await;
        for _ in 0..2 {
            assert!(task.check(PieceNumber(0)).await);
        }
        assert_eq!(storage.metrics().pieces_rechecked.get(), checks);
    }
}

#[tokio::test(start_paused = true)]
async fn a_scrub_checks_all_and_takes_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(config(&dir)).unwrap();
    for number in 1..=2 {
        drop(filled(&storage, number).await);
    }
    drop(storage);
    touch(&dir, |file| rot(file, 9));
    let storage = Storage::open(config(&dir)).unwrap();
    let (begun, age) = (tokio::time::Instant::now(), std::time::Duration::from_secs(3600));
    storage.scrub(100_000, age).await;
    let least = std::time::Duration::from_secs(2 * content().len() as u64 / 100_000);
    assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
    let metrics = storage.metrics();
    assert_eq!((metrics.pieces_rechecked.get(), metrics.pieces_damaged.get()), (5, 1));
    assert!(storage.list().iter().all(|task| task.unchecked == 0));
    let begun = tokio::time::Instant::now();
    storage.scrub(100_000, age).await;
    assert_eq!((begun.elapsed(), metrics.pieces_rechecked.get()), (std::time::Duration::ZERO, 5), "nothing is due");
}

#[tokio::test]
async fn a_storage_without_a_store_has_nothing_until_its_directory_can_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("place");
    fs::write(&place, "no directory").unwrap();
    let settings = super::Config { dir: place.clone(), ..config(&dir) };
    let error = Storage::open(settings.clone()).unwrap_err();
    let storage = Storage::without(settings, &error);
    assert_eq!(storage.missing(), Some(error.to_string()));
    assert!(matches!(storage.create(new_task(1)), Err(StorageError::Unavailable(_))));
    assert!(storage.get(&id(1)).is_none() && storage.list().is_empty() && !storage.has_url("http://origin/file"));
    assert_eq!((storage.usage().tasks, storage.sweep()), (0, super::Swept::default()));
    storage.remove(&id(1));
    storage.flush().await;
    assert!(!storage.look_after());
    fs::remove_file(&place).unwrap();
    let drops = storage.drops();
    assert!(storage.look_after() && storage.missing().is_none());
    drop(filled(&storage, 1).await);
    storage.remove(&id(1));
    assert!(drops.has_changed().unwrap(), "who listened before is told");
}

#[tokio::test]
async fn a_store_whose_directory_vanishes_is_given_up_and_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("place");
    let storage = Storage::open(super::Config { dir: place.clone(), ..config(&dir) }).unwrap();
    let task = filled(&storage, 1).await;
    assert!(!storage.look_after() && storage.missing().is_none(), "all is well");
    fs::rename(&place, dir.path().join("elsewhere")).unwrap();
    assert!(!storage.look_after() && storage.missing().is_some());
    assert_eq!(task.read(ByteRange::new(0, 9).unwrap()).await.unwrap(), bytes_of(ByteRange::new(0, 9).unwrap()));
    assert!(storage.look_after());
    assert_eq!(storage.list(), []);
    drop(filled(&storage, 1).await);
}

#[tokio::test]
async fn a_store_that_was_given_away_is_the_next_ones_alone() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(config(&dir)).unwrap();
    let task = storage.create(new_task(1)).unwrap();
    fill(&task, 0).await;
    let mut writer = task.claim(PieceNumber(1)).unwrap();
    assert!(!storage.release("told to"), "a piece is being written");
    assert!(storage.missing().is_none() && Storage::open(config(&dir)).is_err(), "and nothing has changed");
    writer.write(bytes_of(writer.span())).await.unwrap();
    writer.finish().unwrap();
    drop(storage.create(new_task(2)).unwrap());
    assert!(storage.release("told to"));

    let next = Storage::open(config(&dir)).unwrap();
    assert_eq!(next.list().len(), 2);
    assert_eq!(next.peek(&id(1)).unwrap().held_pieces().len(), 2, "all that was recorded is committed");
    assert_eq!(task.read(span(&task, PieceNumber(1))).await.unwrap(), bytes_of(span(&task, PieceNumber(1))));
    assert_eq!(storage.missing().as_deref(), Some("told to"));
    assert!(storage.get(&id(1)).is_none() && !storage.look_after());
    assert!(matches!(storage.create(new_task(3)), Err(StorageError::Unavailable(_))));
    storage.remove(&id(2));
    storage.sweep_at(u64::MAX);
    storage.flush().await;
    drop((task, storage));
    assert!(content_file(&dir, 1).exists() && content_file(&dir, 2).exists());
    drop(next);
    assert_eq!(Storage::open(config(&dir)).unwrap().list().len(), 2);
}
