//! Server and client against each other, and each against somebody who misbehaves.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use damselfly_api::vortex::{self, Answer, ErrorCode, PieceHead, REQUEST};
use damselfly_core::swarm::Origin;
use damselfly_core::{Audience, Geometry, PieceDigest, PieceNumber, TaskId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

use super::{ClientConfig, DataClient, DataServer, FetchError, Metrics, ServerConfig};
use crate::limit::Limiter;
use crate::storage::{Config, NewTask, PieceWriter, Storage, StoredTask};

const PIECE: u64 = 1 << 20;
const LENGTH: u64 = 3 * PIECE + 4321;
/// Longer than any test: only a test of stalling waits for less.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);

fn id(number: u8) -> TaskId {
    TaskId::from_bytes([number; 32])
}

fn content() -> Bytes {
    (0..LENGTH).map(|at| (at * 7 % 253) as u8).collect::<Vec<_>>().into()
}

fn piece_bytes(number: u32) -> Bytes {
    let span = Geometry::new(LENGTH, PIECE).unwrap().span(PieceNumber(number)).unwrap();
    content().slice(span.start() as usize..span.end() as usize)
}

fn empty_task(storage: &Storage) -> StoredTask {
    let geometry = Geometry::new(LENGTH, PIECE).unwrap();
    storage
        .create(NewTask {
            id: id(1),
            geometry,
            digest: None,
            origin: Origin::default(),
            headers: vec![],
            audience: Audience::Public,
        })
        .unwrap()
}

fn writer(task: &StoredTask, piece: u32) -> PieceWriter {
    task.claim(PieceNumber(piece)).unwrap()
}

async fn full_task(storage: &Storage) -> StoredTask {
    let task = empty_task(storage);
    for number in 0..4 {
        let mut writer = writer(&task, number);
        writer.write(piece_bytes(number)).await.unwrap();
        writer.finish().unwrap();
    }
    task
}

struct Parent {
    addr: SocketAddr,
    metrics: Metrics,
    drain: Option<oneshot::Sender<()>>,
    serving: tokio::task::JoinHandle<()>,
}

async fn serve(storage: &Storage, config: ServerConfig) -> Parent {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (drain, drained) = oneshot::channel::<()>();
    let metrics = Metrics::default();
    let server = DataServer::new(storage.clone(), config, Limiter::default(), metrics.clone());
    let serving = tokio::spawn(async move { server.serve(listener, async { drop(drained.await) }).await });
    Parent { addr, metrics, drain: Some(drain), serving }
}

/// Storage on disk with its directory, and one in memory.
fn storages() -> [(Storage, Option<tempfile::TempDir>); 2] {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { dir: dir.path().to_owned(), keep_free: 0, ..Config::default() };
    [(Storage::open(config).unwrap(), Some(dir)), (Storage::in_memory(1 << 30), None)]
}

#[tokio::test]
async fn pieces_go_from_host_to_host_over_one_connection() {
    for (parent_storage, _parent_dir) in storages() {
        full_task(&parent_storage).await;
        for (child_storage, _child_dir) in storages() {
            let parent = serve(&parent_storage, ServerConfig::default()).await;
            let child = empty_task(&child_storage);
            let client = DataClient::default();
            for number in [3, 0, 2, 1] {
                let mut writer = writer(&child, number);
                let crc32 = client.fetch(parent.addr, &id(1), &mut writer, LONG).await.unwrap();
                let digest = PieceDigest::of(&piece_bytes(number));
                assert_eq!((crc32, writer.digest()), (Some(digest.crc32), Some(digest)));
                writer.finish().unwrap();
                assert_eq!(parent.metrics.connections.get(), 1);
            }
            assert!(child.is_complete());
            assert_eq!((parent.metrics.pieces.get(), parent.metrics.bytes.get()), (4, LENGTH));
            for piece in child.geometry().pieces() {
                let span = child.geometry().span(piece).unwrap();
                assert_eq!(child.read(span).await.unwrap(), piece_bytes(piece.0));
            }
        }
    }
}

#[tokio::test]
async fn only_pieces_that_are_there_are_served() {
    let storage = Storage::in_memory(1 << 30);
    let task = empty_task(&storage);
    let mut half = writer(&task, 2);
    half.write(piece_bytes(2).slice(..1000)).await.unwrap();
    half.publish();
    let parent = serve(&storage, ServerConfig::default()).await;
    let child_storage = Storage::in_memory(1 << 30);
    let child = empty_task(&child_storage);
    let client = DataClient::default();
    for (task, number) in [(id(1), 0), (id(1), 2), (id(2), 0)] {
        let mut writer = writer(&child, number);
        let error = client.fetch(parent.addr, &task, &mut writer, LONG).await.unwrap_err();
        assert!(matches!(error, FetchError::Missing), "{task} {number}: {error}");
        assert_eq!(client.pooled(), 1, "a refusal leaves the connection in order");
    }
}

#[tokio::test]
async fn garbage_closes_its_own_connection_only() {
    let storage = Storage::in_memory(1 << 30);
    full_task(&storage).await;
    let parent = serve(&storage, ServerConfig::default()).await;
    let mut good = TcpStream::connect(parent.addr).await.unwrap();
    let request = vortex::encode_request(0, &id(1), PieceNumber(3));
    good.write_all(&request[..40]).await.unwrap();
    let mut bad_id = request;
    bad_id[10] = b'.';
    let frames: [&[u8]; 4] = [b"GET / HTTP/1.1\r\n\r\n", &[0, 0, 0xff, 0xff, 0xff, 0xff], &[0, 7, 0, 0, 0, 0], &bad_id];
    for garbage in frames {
        let mut bad = TcpStream::connect(parent.addr).await.unwrap();
        bad.write_all(garbage).await.unwrap();
        let mut answer = Vec::new();
        // What the server had not read makes the system reset the connection behind the answer, or before it.
        let _ = bad.read_to_end(&mut answer).await;
        if let Ok(Some((answer, _))) = vortex::decode_answer(&answer) {
            assert!(matches!(answer, Answer::Error { code: ErrorCode::Invalid, .. }), "{answer:?}");
        }
    }
    while parent.metrics.garbage.get() < 4 {
        tokio::task::yield_now().await;
    }
    good.write_all(&request[40..]).await.unwrap();
    let mut answer = vec![0; 4096];
    let len = good.read(&mut answer).await.unwrap();
    assert!(matches!(vortex::decode_answer(&answer[..len]), Ok(Some((Answer::Piece(_), _)))));
}

#[tokio::test]
async fn what_is_for_this_host_alone_is_served_to_nobody() {
    let storage = Storage::in_memory(1 << 30);
    let task = full_task(&storage).await;
    let parent = serve(&storage, ServerConfig::default()).await;
    let child_storage = Storage::in_memory(1 << 30);
    let child = empty_task(&child_storage);
    for (audience, served) in [(Audience::Private, true), (Audience::Host, false), (Audience::Public, true)] {
        task.set_audience(audience);
        let mut writer = writer(&child, 0);
        let fetched = DataClient::default().fetch(parent.addr, &id(1), &mut writer, LONG).await;
        assert_eq!(fetched.is_ok(), served, "{audience:?}");
    }
}

#[tokio::test]
async fn silent_and_slow_children_are_cut_off() {
    let storage = Storage::in_memory(1 << 30);
    let geometry = Geometry::new(64 << 20, 64 << 20).unwrap();
    let new = NewTask {
        id: id(2),
        geometry,
        digest: None,
        origin: Origin::default(),
        headers: vec![],
        audience: Audience::Public,
    };
    let big = storage.create(new).unwrap();
    let mut writer = writer(&big, 0);
    writer.write(vec![1; 64 << 20].into()).await.unwrap();
    writer.finish().unwrap();
    let config =
        ServerConfig { idle_timeout: SHORT, request_timeout: SHORT, write_stall: SHORT, ..ServerConfig::default() };
    let parent = serve(&storage, config).await;
    let request = vortex::encode_request(0, &id(2), PieceNumber(0));
    for sent in [&request[..0], &request[..10]] {
        let mut child = TcpStream::connect(parent.addr).await.unwrap();
        child.write_all(sent).await.unwrap();
        assert_eq!(child.read(&mut [0]).await.unwrap_or(0), 0, "closed after {} bytes", sent.len());
    }
    let mut child = TcpStream::connect(parent.addr).await.unwrap();
    child.write_all(&request).await.unwrap();
    while parent.metrics.failures.get() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!((parent.metrics.sending.get(), parent.metrics.pieces.get()), (0, 0));
}

#[tokio::test]
async fn slots_and_connections_are_bounded() {
    let storage = Storage::in_memory(1 << 30);
    full_task(&storage).await;
    let child_storage = Storage::in_memory(1 << 30);
    let child = empty_task(&child_storage);
    let none = ServerConfig { upload_slots: 0, slot_wait: SHORT, ..ServerConfig::default() };
    let parent = serve(&storage, none).await;
    let error = DataClient::default().fetch(parent.addr, &id(1), &mut writer(&child, 0), LONG).await.unwrap_err();
    assert!(matches!(error, FetchError::Gone), "{error}");

    let one = ServerConfig { max_connections: 1, ..ServerConfig::default() };
    let parent = serve(&storage, one).await;
    let client = DataClient::default();
    client.fetch(parent.addr, &id(1), &mut writer(&child, 1), LONG).await.unwrap();
    let error = DataClient::default().fetch(parent.addr, &id(1), &mut writer(&child, 0), LONG).await.unwrap_err();
    assert!(matches!(error, FetchError::Gone), "{error}");
    client.fetch(parent.addr, &id(1), &mut writer(&child, 2), LONG).await.unwrap();
}

#[tokio::test]
async fn a_draining_server_closes_what_is_idle_and_ends() {
    let storage = Storage::in_memory(1 << 30);
    full_task(&storage).await;
    let mut parent = serve(&storage, ServerConfig::default()).await;
    let child_storage = Storage::in_memory(1 << 30);
    let child = empty_task(&child_storage);
    let client = DataClient::default();
    client.fetch(parent.addr, &id(1), &mut writer(&child, 0), LONG).await.unwrap();
    parent.drain.take().unwrap().send(()).unwrap();
    parent.serving.await.unwrap();
    let error = client.fetch(parent.addr, &id(1), &mut writer(&child, 1), LONG).await.unwrap_err();
    assert!(matches!(error, FetchError::Gone), "{error}");
}

#[tokio::test]
async fn the_pool_is_bounded_and_forgets() {
    let storage = Storage::in_memory(1 << 30);
    full_task(&storage).await;
    let parent = serve(&storage, ServerConfig::default()).await;
    let child_storage = Storage::in_memory(1 << 30);
    let child = empty_task(&child_storage);
    let fetch_three = async |client: &DataClient| {
        let mut writers = [0, 1, 2].map(|number| writer(&child, number));
        let [a, b, c] = &mut writers;
        let id = id(1);
        let all = tokio::join!(
            client.fetch(parent.addr, &id, a, LONG),
            client.fetch(parent.addr, &id, b, LONG),
            client.fetch(parent.addr, &id, c, LONG)
        );
        assert!(all.0.is_ok() && all.1.is_ok() && all.2.is_ok());
    };
    for (config, want) in [
        (ClientConfig { idle_per_host: 2, ..ClientConfig::default() }, 2),
        (ClientConfig { idle_total: 1, ..ClientConfig::default() }, 1),
        (ClientConfig { idle_timeout: Duration::ZERO, ..ClientConfig::default() }, 1),
    ] {
        let client = DataClient::new(&config);
        fetch_three(&client).await;
        assert_eq!(client.pooled(), want, "{config:?}");
    }
}

/// What a parent of the test does with the connections it gets.
type Script = fn(u32) -> Act;

/// What it does on one connection, after one request.
enum Act {
    /// Sends these bytes, and keeps the connection.
    Send(Vec<u8>),
    /// Sends these bytes, and closes.
    SendAndClose(Vec<u8>),
    /// Closes at once, having read the request.
    Close,
}

/// A parent that answers its n-th request by script. Tells the number of every connection it accepts.
async fn misbehaving(script: Script) -> (SocketAddr, mpsc::UnboundedReceiver<u32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (accepts, accepted) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        let mut requests = 0;
        for connection in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            accepts.send(connection).unwrap();
            let mut request = [0; REQUEST];
            while stream.read_exact(&mut request).await.is_ok() {
                requests += 1;
                match script(requests) {
                    Act::Send(bytes) => stream.write_all(&bytes).await.unwrap(),
                    Act::SendAndClose(bytes) => {
                        stream.write_all(&bytes).await.unwrap();
                        break;
                    }
                    Act::Close => break,
                }
            }
            // Closed with a FIN, after everything that was sent.
            let _ = stream.shutdown().await;
            kept.push(stream);
        }
    });
    (addr, accepted)
}

fn head(number: u32) -> PieceHead {
    PieceHead {
        number,
        offset: 999,
        length: piece_bytes(number).len() as u64,
        crc32: Some(PieceDigest::of(&piece_bytes(number)).crc32),
        parent: String::new(),
        traffic: 0,
        cost: 0,
        created_at: 0,
    }
}

fn answer(head: &PieceHead, bytes: &[u8]) -> Vec<u8> {
    [&vortex::encode_piece(0, head), bytes].concat()
}

fn good(number: u32) -> Vec<u8> {
    answer(&head(number), &piece_bytes(number))
}

#[tokio::test]
async fn lies_cuts_stalls_and_garbage_are_told_apart() {
    type Case = (&'static str, Script, Duration, fn(&FetchError) -> bool);
    let cases: [Case; 14] = [
        ("cut in the head", |_| Act::SendAndClose(good(3)[..30].into()), LONG, |e| matches!(e, FetchError::Gone)),
        ("cut in the piece", |_| Act::SendAndClose(good(3)[..3000].into()), LONG, |e| matches!(e, FetchError::Gone)),
        ("closed", |_| Act::Close, LONG, |e| matches!(e, FetchError::Gone)),
        ("silent", |_| Act::Send(vec![]), SHORT, |e| matches!(e, FetchError::Stalled)),
        ("stalls in the piece", |_| Act::Send(good(3)[..3000].into()), SHORT, |e| matches!(e, FetchError::Stalled)),
        ("garbage", |_| Act::Send(b"HTTP/1.1 200 OK\r\n\r\n".into()), LONG, |e| matches!(e, FetchError::Bad)),
        ("huge metadata", |_| Act::Send(vec![0, 1, 255, 255, 255, 255]), LONG, |e| matches!(e, FetchError::Bad)),
        (
            "a huge piece",
            |_| Act::Send(answer(&PieceHead { length: u64::MAX, ..head(3) }, &[])),
            LONG,
            |e| matches!(e, FetchError::Bad),
        ),
        (
            "a short piece",
            |_| Act::Send(answer(&PieceHead { length: 10, ..head(3) }, &[0; 10])),
            LONG,
            |e| matches!(e, FetchError::Bad),
        ),
        ("another piece", |_| Act::Send(good(2)), LONG, |e| matches!(e, FetchError::Bad)),
        (
            "a flipped bit",
            |_| {
                let mut bytes = good(3);
                *bytes.last_mut().unwrap() ^= 1;
                Act::Send(bytes)
            },
            LONG,
            |e| matches!(e, FetchError::Bad),
        ),
        (
            "not found",
            |_| Act::Send(vortex::encode_error(0, ErrorCode::NotFound, "")),
            LONG,
            |e| matches!(e, FetchError::Missing),
        ),
        (
            "failed",
            |_| Act::Send(vortex::encode_error(0, ErrorCode::Internal, "")),
            LONG,
            |e| matches!(e, FetchError::Gone),
        ),
        ("a close frame", |_| Act::Send(vec![0, 254, 0, 0, 0, 0]), LONG, |e| matches!(e, FetchError::Gone)),
    ];
    let storage = Storage::in_memory(1 << 30);
    let task = empty_task(&storage);
    for (name, script, stall, want) in cases {
        let (addr, _accepted) = misbehaving(script).await;
        let mut changed = task.changed();
        let mut writer = loop {
            match task.claim(PieceNumber(3)) {
                Some(writer) => break writer,
                None => changed.changed().await.unwrap(),
            }
        };
        let result = DataClient::default().fetch(addr, &id(1), &mut writer, stall).await;
        let error = result.err().unwrap_or_else(|| panic!("{name}: taken"));
        assert!(want(&error), "{name}: {error:?}");
        assert!(!task.have().contains(PieceNumber(3)), "{name}");
    }
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let result = DataClient::default().fetch(closed, &id(1), &mut writer(&task, 0), LONG).await;
    assert!(matches!(result, Err(FetchError::Gone)), "nobody listens");
}

#[tokio::test]
async fn servers_that_close_after_a_piece_are_survived() {
    let storage = Storage::in_memory(1 << 30);
    let task = empty_task(&storage);
    let client = DataClient::default();
    let (addr, mut accepted) = misbehaving(|request| Act::SendAndClose(good(request - 1))).await;
    for number in 0..4 {
        let mut writer = writer(&task, number);
        client.fetch(addr, &id(1), &mut writer, LONG).await.unwrap();
        writer.finish().unwrap();
    }
    assert!(task.is_complete());
    assert_eq!((0..4).map(|_| accepted.try_recv().unwrap()).max(), Some(3), "a fresh connection each");
}

#[tokio::test]
async fn a_kept_connection_that_dies_before_the_first_byte_is_replaced_once() {
    let storage = Storage::in_memory(1 << 30);
    let task = empty_task(&storage);
    let client = DataClient::default();
    // The second request comes on the kept connection, which then closes; the third on a fresh one.
    let (addr, mut accepted) = misbehaving(|request| match request {
        1 => Act::Send(good(0)),
        3 => Act::Send(good(1)),
        _ => Act::Close,
    })
    .await;
    for number in 0..2 {
        client.fetch(addr, &id(1), &mut writer(&task, number), LONG).await.unwrap();
    }
    let error = client.fetch(addr, &id(1), &mut writer(&task, 2), LONG).await.unwrap_err();
    assert!(matches!(error, FetchError::Gone), "the fresh connection's failure is final: {error}");
    assert_eq!(std::iter::from_fn(|| accepted.try_recv().ok()).count(), 3);
}

#[tokio::test]
async fn bytes_nobody_asked_for_end_a_kept_connection() {
    let storage = Storage::in_memory(1 << 30);
    let task = empty_task(&storage);
    let client = DataClient::default();
    let (addr, _accepted) = misbehaving(|request| match request {
        1 => Act::SendAndClose([good(3), vec![1; 100]].concat()),
        _ => Act::SendAndClose(good(2)),
    })
    .await;
    // The surplus comes with the last read or lies in the socket: either way it is nobody's piece.
    let _ = client.fetch(addr, &id(1), &mut writer(&task, 3), LONG).await;
    let mut two = writer(&task, 2);
    client.fetch(addr, &id(1), &mut two, LONG).await.unwrap();
    assert_eq!(two.digest(), Some(PieceDigest::of(&piece_bytes(2))));
}

#[tokio::test]
async fn a_peer_without_checksums_is_taken_as_it_is() {
    let storage = Storage::in_memory(1 << 30);
    let task = empty_task(&storage);
    let (addr, _accepted) =
        misbehaving(|_| Act::Send(answer(&PieceHead { crc32: None, ..head(0) }, &piece_bytes(0)))).await;
    let mut writer = writer(&task, 0);
    let crc32 = DataClient::default().fetch(addr, &id(1), &mut writer, LONG).await.unwrap();
    assert_eq!((crc32, writer.digest()), (None, Some(PieceDigest::of(&piece_bytes(0)))));
    assert!(DataClient::default().fetch(addr, &id(1), &mut writer, LONG).await.is_err(), "the writer is not fresh");
}

#[tokio::test]
async fn pieces_of_an_earlier_process_are_checked_before_they_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { dir: dir.path().to_owned(), keep_free: 0, ..Config::default() };
    let storage = Storage::open(config.clone()).unwrap();
    let task = full_task(&storage).await;
    let path = dir.path().join("content").join(id(1).to_string());
    drop((task, storage));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[PIECE as usize + 5] ^= 0x10;
    std::fs::write(&path, bytes).unwrap();

    let storage = Storage::open(config).unwrap();
    let parent = serve(&storage, ServerConfig::default()).await;
    let child_storage = Storage::in_memory(1 << 30);
    let child = empty_task(&child_storage);
    let client = DataClient::default();
    for number in 0..4 {
        let result = client.fetch(parent.addr, &id(1), &mut writer(&child, number), LONG).await;
        assert_eq!(matches!(result, Err(FetchError::Missing)), number == 1, "{number}: {result:?}");
    }
    assert_eq!(storage.get(&id(1)).unwrap().have().len(), 3);
}
