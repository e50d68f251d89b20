//! What a storage must do, run on the disk and on its double in memory.

use std::io::ErrorKind;
use std::time::Duration;

use bytes::Bytes;
use damselfly_core::swarm::Origin;
use damselfly_core::{Audience, ByteRange, Geometry, PieceDigest, PieceNumber, PieceSet, TaskId};

use super::{Config, DroppedTask, MAX_READ, NewTask, Storage, StorageError, StoredTask, Swept};

const PIECE: u64 = 600_000;
const LENGTH: u64 = 2 * PIECE + 1234;

/// A storage for 10 contents of [`LENGTH`] bytes, and what must live as long.
struct Setup {
    storage: Storage,
    _dir: Option<tempfile::TempDir>,
}

fn on_disk() -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(config(&dir)).unwrap();
    Setup { storage, _dir: Some(dir) }
}

fn in_memory() -> Setup {
    Setup { storage: Storage::in_memory(10 * LENGTH), _dir: None }
}

pub(super) fn config(dir: &tempfile::TempDir) -> Config {
    Config {
        dir: dir.path().to_owned(),
        quota: 10 * LENGTH,
        keep_free: 0,
        ttl: Duration::from_secs(100),
        high_percent: 100,
        low_percent: 100,
        ..Config::default()
    }
}

pub(super) fn id(number: u8) -> TaskId {
    TaskId::from_bytes([number; 32])
}

pub(super) fn new_task(number: u8) -> NewTask {
    NewTask {
        id: id(number),
        geometry: Geometry::new(LENGTH, PIECE).unwrap(),
        digest: None,
        origin: Origin { url: "http://origin/file".into(), ..Origin::default() },
        headers: vec![("etag".into(), b"\"1\"".to_vec())],
        audience: Audience::Private,
    }
}

pub(super) fn content() -> Bytes {
    (0..LENGTH).map(|at| (at * 31 % 251) as u8).collect::<Vec<_>>().into()
}

pub(super) fn bytes_of(range: ByteRange) -> Bytes {
    content().slice(range.start() as usize..range.end() as usize)
}

pub(super) fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end).unwrap()
}

pub(super) async fn fill(task: &StoredTask, piece: u32) -> PieceDigest {
    let mut writer = task.claim(PieceNumber(piece)).expect("the piece is free");
    let span = writer.span();
    writer.write(bytes_of(span)).await.unwrap();
    writer.finish().unwrap()
}

pub(super) fn whole() -> PieceSet {
    PieceSet::full(3)
}

/// A task that is there as a whole.
pub(super) async fn filled(storage: &Storage, number: u8) -> StoredTask {
    let task = storage.create_for(new_task(number), &whole()).unwrap();
    for piece in 0..3 {
        fill(&task, piece).await;
    }
    task
}

macro_rules! conformance {
    ($($name:ident),+ $(,)?) => {
        mod disk { $(#[tokio::test] async fn $name() { super::$name(super::on_disk()).await; })+ }
        mod memory { $(#[tokio::test] async fn $name() { super::$name(super::in_memory()).await; })+ }
    };
}

conformance!(
    what_is_written_can_be_read,
    one_writer_a_piece,
    too_many_and_too_few_bytes_are_refused,
    published_bytes_are_readable_and_hidden_again,
    a_dropped_write_releases_the_piece_once_it_has_settled,
    changes_are_told,
    the_cut_of_the_writes_does_not_matter,
    reads_are_bounded_and_only_of_what_is_there,
    the_least_recently_used_goes_first_and_the_held_stay,
    what_can_never_fit_evicts_nothing,
    a_task_takes_room_for_its_pieces_only,
    nothing_goes_for_a_task_that_writes_nothing,
    what_one_download_was_promised_no_other_gets,
    what_is_given_up_takes_no_room,
    creating_again_returns_the_same_or_replaces,
    removed_tasks_are_gone_for_others,
    what_is_removed_is_known_until_it_is_stored_again,
    an_empty_content_is_complete,
    a_sweep_removes_what_expired,
    records_are_bounded,
);

async fn what_is_written_can_be_read(setup: Setup) {
    let task = setup.storage.create(new_task(1)).unwrap();
    assert!(task.have().is_empty() && task.available(0) == 0 && !task.is_complete());
    for piece in [2, 0, 1] {
        let digest = fill(&task, piece).await;
        let number = PieceNumber(piece);
        assert_eq!(digest, PieceDigest::of(&bytes_of(task.geometry().span(number).unwrap())));
        assert_eq!(task.digest_of(number), Some(digest));
        assert!(task.check(number).await);
    }
    assert!(task.is_complete());
    assert!(task.available(0) >= MAX_READ, "as far as anybody can read at once");
    assert_eq!((task.available(PIECE + 1), task.available(LENGTH)), (LENGTH, LENGTH));
    for (start, end) in [(0, 10), (PIECE - 5, PIECE + 5), (LENGTH - 1, LENGTH), (5, 5), (0, MAX_READ)] {
        assert_eq!(task.read(range(start, end)).await.unwrap(), bytes_of(range(start, end)), "{start}..{end}");
    }
    let again = setup.storage.get(&id(1)).unwrap();
    assert_eq!(again.headers(), new_task(1).headers);
    assert_eq!(again.origin(), &new_task(1).origin);
    assert_eq!(again.held().pieces.len(), 3);
    assert!(!again.is_verified());
    task.set_verified();
    assert!(again.is_verified());
    let listed = setup.storage.list();
    assert_eq!((listed.len(), listed[0].have, listed[0].in_use, listed[0].verified), (1, 3, true, true));
    setup.storage.flush().await;
}

async fn one_writer_a_piece(setup: Setup) {
    let task = setup.storage.create(new_task(1)).unwrap();
    let writer = task.claim(PieceNumber(0)).unwrap();
    assert!(task.claim(PieceNumber(0)).is_none(), "under way");
    assert!(setup.storage.get(&id(1)).unwrap().claim(PieceNumber(0)).is_none(), "through another handle");
    assert!(task.claim(PieceNumber(1)).is_some(), "another piece is free");
    assert!(task.claim(PieceNumber(3)).is_none(), "the task has no such piece");
    drop(writer);
    fill(&task, 0).await;
    assert!(task.claim(PieceNumber(0)).is_none(), "it is there");
}

async fn too_many_and_too_few_bytes_are_refused(setup: Setup) {
    let task = setup.storage.create(new_task(1)).unwrap();
    let mut writer = task.claim(PieceNumber(2)).unwrap();
    assert_eq!(writer.write(Bytes::from(vec![0; 1235])).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    let span = writer.span();
    writer.write(bytes_of(range(span.start(), span.end() - 1))).await.unwrap();
    assert_eq!((writer.written(), writer.digest()), (1233, None));
    let short = writer.finish().unwrap_err();
    assert_eq!((short.want, short.written), (1234, 1233));
    assert!(!task.have().contains(PieceNumber(2)));
    assert_eq!(task.digest_of(PieceNumber(2)), None);
    let mut changed = task.changed();
    while task.claim(PieceNumber(2)).is_none() {
        changed.changed().await.unwrap();
    }
}

async fn published_bytes_are_readable_and_hidden_again(setup: Setup) {
    let task = setup.storage.create(new_task(1)).unwrap();
    fill(&task, 0).await;
    let mut changed = task.changed();
    let mut writer = task.claim(PieceNumber(1)).unwrap();
    writer.write(bytes_of(range(PIECE, PIECE + 100))).await.unwrap();
    assert_eq!(task.available(0), PIECE, "not published");
    writer.publish();
    while task.available(0) < PIECE + 100 {
        changed.changed().await.unwrap();
    }
    writer.write(bytes_of(range(PIECE + 100, PIECE + 150))).await.unwrap();
    writer.write(bytes_of(range(PIECE + 150, PIECE + 200))).await.unwrap();
    while task.available(0) < PIECE + 200 {
        changed.changed().await.unwrap();
    }
    assert_eq!(task.available(PIECE + 300), PIECE + 300, "nothing behind the published prefix");
    let both = range(PIECE - 10, PIECE + 200);
    assert_eq!(task.read(both).await.unwrap(), bytes_of(both));
    assert!(!task.have().contains(PieceNumber(1)), "published is not finished");
    drop(writer);
    while task.available(0) != PIECE {
        changed.changed().await.unwrap();
    }
    assert_eq!(task.read(both).await.unwrap_err().kind(), ErrorKind::NotFound);
}

async fn a_dropped_write_releases_the_piece_once_it_has_settled(setup: Setup) {
    let task = setup.storage.create(new_task(1)).unwrap();
    let mut changed = task.changed();
    for _ in 0..20 {
        let mut writer = loop {
            match task.claim(PieceNumber(0)) {
                Some(writer) => break writer,
                None => changed.changed().await.unwrap(),
            }
        };
        let wrong = Bytes::from(vec![0xee; PIECE as usize]);
        // The write's future is dropped at its first wait, with the bytes on their way to the content.
        tokio::select! { biased; result = writer.write(wrong) => result.unwrap(), () = std::future::ready(()) => {} }
        drop(writer);
    }
    while task.claim(PieceNumber(0)).is_none() {
        changed.changed().await.unwrap();
    }
    fill(&task, 0).await;
    tokio::task::yield_now().await;
    let all = range(0, PIECE);
    assert_eq!(task.read(all).await.unwrap(), bytes_of(all), "no late write of a dropped writer");
}

async fn changes_are_told(setup: Setup) {
    let task = setup.storage.create(new_task(1)).unwrap();
    let mut changed = task.changed();
    assert!(!changed.has_changed().unwrap());
    fill(&task, 0).await;
    assert!(changed.has_changed().unwrap());
    changed.mark_unchanged();
    drop(task.claim(PieceNumber(1)).unwrap());
    assert!(changed.has_changed().unwrap(), "who waits for a piece's claim hears that it is free");
}

async fn the_cut_of_the_writes_does_not_matter(setup: Setup) {
    let task = setup.storage.create(new_task(1)).unwrap();
    for (piece, step) in [(0, 999), (1, 300_000), (2, 1)] {
        let mut writer = task.claim(PieceNumber(piece)).unwrap();
        let bytes = bytes_of(writer.span());
        for some in bytes.chunks(step) {
            writer.write(bytes.slice_ref(some)).await.unwrap();
        }
        assert_eq!(writer.digest(), Some(PieceDigest::of(&bytes)));
        assert_eq!(writer.finish().unwrap(), PieceDigest::of(&bytes));
    }
    assert_eq!(task.read(range(0, MAX_READ)).await.unwrap(), bytes_of(range(0, MAX_READ)));
}

async fn reads_are_bounded_and_only_of_what_is_there(setup: Setup) {
    let task = setup.storage.create(new_task(1)).unwrap();
    fill(&task, 0).await;
    fill(&task, 2).await;
    for (start, end, want) in [
        (0, MAX_READ + 1, ErrorKind::InvalidInput),
        (PIECE - 1, PIECE + 1, ErrorKind::NotFound),
        (PIECE, PIECE + 1, ErrorKind::NotFound),
        (LENGTH - 1, LENGTH + 1, ErrorKind::NotFound),
        (LENGTH, LENGTH + 1, ErrorKind::NotFound),
    ] {
        assert_eq!(task.read(range(start, end)).await.unwrap_err().kind(), want, "{start}..{end}");
    }
}

async fn the_least_recently_used_goes_first_and_the_held_stay(setup: Setup) {
    let storage = &setup.storage;
    let held = filled(storage, 0).await;
    for number in 1..10 {
        drop(filled(storage, number).await);
    }
    assert_eq!(storage.usage().bytes, 10 * LENGTH);
    drop(storage.get(&id(1)).unwrap());
    assert!(storage.peek(&id(2)).is_some(), "a look is not a use");
    drop(filled(storage, 10).await);
    drop(filled(storage, 11).await);
    let there: Vec<u8> = (0..12).filter(|&number| storage.peek(&id(number)).is_some()).collect();
    assert_eq!(there, [0, 1, 4, 5, 6, 7, 8, 9, 10, 11]);
    assert_eq!(storage.metrics().evictions.get(), 2);
    let all: Vec<_> = there[1..].iter().map(|&number| storage.get(&id(number)).unwrap()).collect();
    assert!(matches!(storage.create_for(new_task(12), &whole()), Err(StorageError::Full { .. })), "all are held");
    assert!(storage.peek(&id(12)).is_none(), "nothing is left behind");
    let task = storage.create(new_task(12)).unwrap();
    let mut writer = task.claim(PieceNumber(0)).unwrap();
    assert_eq!(writer.write(bytes_of(writer.span())).await.unwrap_err().kind(), ErrorKind::StorageFull);
    drop((all, held, writer, task));
    drop(filled(storage, 12).await);
}

async fn what_can_never_fit_evicts_nothing(setup: Setup) {
    let storage = &setup.storage;
    drop(filled(storage, 1).await);
    let geometry = Geometry::new(10 * LENGTH + 1, LENGTH).unwrap();
    let wanted = PieceSet::full(geometry.count());
    let error = storage.create_for(NewTask { geometry, ..new_task(2) }, &wanted).unwrap_err();
    assert!(matches!(error, StorageError::Full { .. }), "{error}");
    assert!(storage.peek(&id(1)).is_some());
    assert!(storage.peek(&id(2)).is_none());
    let mut few = PieceSet::empty(geometry.count());
    few.extend([PieceNumber(0), PieceNumber(10)]);
    storage.create_for(NewTask { geometry, ..new_task(2) }, &few).unwrap();
    assert!(storage.peek(&id(1)).is_some());
}

async fn a_task_takes_room_for_its_pieces_only(setup: Setup) {
    let storage = &setup.storage;
    let geometry = Geometry::new(1 << 40, 1 << 30).unwrap();
    let long = storage.create(NewTask { geometry, ..new_task(1) });
    // Memory may not have so much of it to give.
    if let Ok(long) = long {
        assert_eq!((storage.usage().bytes, long.geometry().length()), (0, 1 << 40));
    }
    let task = storage.create(new_task(2)).unwrap();
    fill(&task, 2).await;
    assert_eq!(storage.usage().bytes, 1234);
    fill(&task, 0).await;
    assert_eq!(storage.usage().bytes, 1234 + PIECE);
    assert_eq!(storage.list().iter().find(|listed| listed.id == id(2)).unwrap().held, 1234 + PIECE);
    drop(task);
    storage.remove(&id(2));
    assert_eq!(storage.usage().bytes, 0);
}

async fn nothing_goes_for_a_task_that_writes_nothing(setup: Setup) {
    let storage = &setup.storage;
    for number in 0..10 {
        drop(filled(storage, number).await);
    }
    for number in 10..20 {
        drop(storage.create_for(new_task(number), &whole()).unwrap());
    }
    assert!((0..10).all(|number| storage.peek(&id(number)).is_some_and(|task| task.is_complete())));
    assert_eq!(storage.metrics().evictions.get(), 0);
    // One piece costs the oldest task, and no other.
    fill(&storage.get(&id(10)).unwrap(), 2).await;
    let there: Vec<u8> = (0..10).filter(|&number| storage.peek(&id(number)).is_some()).collect();
    assert_eq!(there, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
}

async fn what_one_download_was_promised_no_other_gets(setup: Setup) {
    let storage = &setup.storage;
    let geometry = Geometry::new(8 * LENGTH, LENGTH).unwrap();
    let wanted = PieceSet::full(8);
    let first = storage.create_for(NewTask { geometry, ..new_task(1) }, &wanted).unwrap();
    assert!(matches!(
        storage.create_for(NewTask { geometry, ..new_task(2) }, &wanted),
        Err(StorageError::Full { needed, room }) if (needed, room) == (8 * LENGTH, 2 * LENGTH)
    ));
    let second = storage.create_for(new_task(3), &whole()).unwrap();
    second.admit(&whole()).unwrap();
    assert!(second.would_fit(&whole()), "what was promised is not asked for again");
    let third = storage.create_for(new_task(4), &whole()).unwrap();
    assert!(!storage.create(new_task(5)).unwrap().would_fit(&whole()));
    first.expect_nothing();
    storage.create_for(NewTask { geometry, ..new_task(2) }, &wanted).unwrap();
    drop((second, third));
}

async fn what_is_given_up_takes_no_room(setup: Setup) {
    let storage = &setup.storage;
    let task = storage.create_for(new_task(1), &whole()).unwrap();
    let mut changed = task.changed();
    let mut writer = task.claim(PieceNumber(0)).unwrap();
    assert_eq!(storage.usage().bytes, 0, "a claim alone takes none");
    writer.write(bytes_of(range(0, PIECE - 1))).await.unwrap();
    writer.publish();
    while task.available(0) == 0 {
        changed.changed().await.unwrap();
    }
    assert_eq!(storage.usage().bytes, PIECE, "with its first byte the piece has all of its room");
    drop(writer);
    while storage.usage().bytes > 0 {
        changed.changed().await.unwrap();
    }
    assert_eq!(storage.usage().bytes, 0);
    fill(&task, 0).await;
    assert_eq!(storage.usage().bytes, PIECE);
}

async fn creating_again_returns_the_same_or_replaces(setup: Setup) {
    let storage = &setup.storage;
    let task = storage.create(new_task(1)).unwrap();
    fill(&task, 0).await;
    let again = storage.create(new_task(1)).unwrap();
    assert!(again.have().contains(PieceNumber(0)));
    let other = NewTask { geometry: Geometry::new(100, 10).unwrap(), ..new_task(1) };
    assert!(matches!(storage.create(other.clone()), Err(StorageError::Conflict)));
    drop((task, again));
    let task = storage.create(other).unwrap();
    assert_eq!((task.geometry().length(), task.have().len()), (100, 0));
    assert_eq!(storage.usage().bytes, 0);
}

async fn removed_tasks_are_gone_for_others(setup: Setup) {
    let storage = &setup.storage;
    let task = storage.create(new_task(1)).unwrap();
    fill(&task, 0).await;
    storage.remove(&id(1));
    storage.remove(&id(9));
    assert!(storage.get(&id(1)).is_none());
    assert_eq!((storage.usage().bytes, storage.list().len()), (0, 0));
    fill(&task, 1).await;
    let all = range(PIECE - 9, PIECE + 9);
    assert_eq!(task.read(all).await.unwrap(), bytes_of(all), "who holds it goes on");
    let anew = storage.create(new_task(1)).unwrap();
    assert!(anew.have().is_empty());
    fill(&anew, 0).await;
    drop(task);
    assert!(storage.get(&id(1)).unwrap().have().contains(PieceNumber(0)));
}

async fn what_is_removed_is_known_until_it_is_stored_again(setup: Setup) {
    let storage = &setup.storage;
    let NewTask { id, geometry, origin, .. } = new_task(1);
    let changes = storage.drops();
    drop(storage.create(new_task(1)).unwrap());
    assert!(!changes.has_changed().unwrap());
    storage.remove(&id);
    assert!(changes.has_changed().unwrap());
    assert_eq!(storage.take_dropped(), Some(vec![DroppedTask { id, geometry, origin }]));
    drop(storage.create(new_task(1)).unwrap());
    storage.remove(&id);
    drop(storage.create(new_task(1)).unwrap());
    assert_eq!(storage.take_dropped(), Some(vec![]), "it is here");
    drop(storage.create(NewTask { audience: Audience::Host, ..new_task(2) }).unwrap());
    storage.remove(&new_task(2).id);
    assert_eq!(storage.take_dropped(), Some(vec![]), "nobody was told of what is this host's alone");
}

async fn an_empty_content_is_complete(setup: Setup) {
    let geometry = Geometry::of_length(0).unwrap();
    let task = setup.storage.create(NewTask { geometry, ..new_task(1) }).unwrap();
    assert!(task.is_complete());
    assert_eq!(task.available(0), 0);
    assert_eq!(task.read(range(0, 0)).await.unwrap(), Bytes::new());
    assert!(task.claim(PieceNumber(0)).is_none());
}

async fn a_sweep_removes_what_expired(setup: Setup) {
    let storage = &setup.storage;
    let ttl = match &setup._dir {
        Some(dir) => config(dir).ttl,
        None => Config::default().ttl,
    };
    drop(filled(storage, 1).await);
    let held = filled(storage, 2).await;
    drop(storage.create(new_task(3)).unwrap());
    let created = storage.list()[0].last_access.duration_since(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(storage.sweep(), Swept::default());
    assert!(storage.peek(&id(3)).is_some(), "it is young");
    // The second task may have been created in the second after the first.
    let swept = storage.sweep_at((created + ttl).as_secs() + 2);
    assert_eq!(swept, Swept { expired: 2, evicted: 0 });
    assert!(storage.peek(&id(1)).is_none() && storage.peek(&id(2)).is_some(), "the held one stays");
    drop(held);
}

async fn records_are_bounded(setup: Setup) {
    let headers = vec![("x".to_owned(), vec![0; 300 << 10])];
    let error = setup.storage.create(NewTask { headers, ..new_task(1) }).unwrap_err();
    assert!(matches!(error, StorageError::RecordTooLong(_)), "{error}");
    assert_eq!(setup.storage.usage().tasks, 0);
}
