//! The peer service and its clients, over loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use damselfly_api::convert::{SeedWish, seed_wish_to_wire};
use damselfly_api::dfdaemon::dfdaemon_upload_client::DfdaemonUploadClient;
use damselfly_api::dfdaemon::dfdaemon_upload_server::{DfdaemonUpload, DfdaemonUploadServer};
use damselfly_api::dfdaemon::download_task_response::Response as Said;
use damselfly_api::dfdaemon::{SyncHostRequest, SyncPiecesRequest, SyncPiecesResponse};
use damselfly_core::swarm::Origin;
use damselfly_core::{Audience, Geometry, PieceNumber, TaskId};
use damselfly_runtime::drain::{Drain, Drained};
use futures_util::StreamExt;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Code;
use tonic::codegen::BoxStream;
use tonic::transport::{Channel, Endpoint, Server};

use super::peer::{Config, Metrics, PeerServer, SeedRefused, SeedTrigger, Seeding};
use crate::p2p::piece_sync::{self, PieceSync, SyncError};
use crate::storage::{NewTask, Storage, StoredTask};

const TASK: TaskId = TaskId::from_bytes([3; 32]);

/// A test that takes longer hangs.
const SOON: Duration = Duration::from_secs(20);

struct Peer {
    addr: SocketAddr,
    storage: Storage,
    /// Whether the task is being downloaded, as the service is told.
    downloading: Arc<AtomicBool>,
    drain: Drain,
}

impl Peer {
    async fn start(seed: Option<Arc<dyn SeedTrigger>>, change: impl FnOnce(&mut Config)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (storage, drain) = (Storage::in_memory(1 << 20), Drain::new());
        let mut config = Config::new("127.0.0.1:4005".parse().unwrap());
        change(&mut config);
        let metrics = Metrics::default();
        let downloading = Arc::new(AtomicBool::new(true));
        let told = Arc::clone(&downloading);
        let told = Arc::new(move |_: &TaskId| told.load(Ordering::Relaxed));
        let server = PeerServer::new("h".into(), storage.clone(), told, seed, config, metrics, drain.watch());
        tokio::spawn(server.serve(listener));
        Self { addr, storage, downloading, drain }
    }

    /// A task of three pieces.
    fn task(&self) -> StoredTask {
        let geometry = Geometry::new(10, 4).unwrap();
        let new = NewTask {
            id: TASK,
            geometry,
            digest: None,
            origin: Origin::default(),
            headers: Vec::new(),
            audience: Audience::Public,
        };
        self.storage.create(new).unwrap()
    }

    fn stub(&self) -> DfdaemonUploadClient<Channel> {
        DfdaemonUploadClient::new(Endpoint::from_shared(format!("http://{}", self.addr)).unwrap().connect_lazy())
    }
}

async fn write(stored: &StoredTask, piece: u32) {
    let span = stored.geometry().span(PieceNumber(piece)).unwrap();
    let mut writer = stored.claim(PieceNumber(piece)).unwrap();
    writer.write(vec![piece as u8; span.len() as usize].into()).await.unwrap();
    writer.finish().unwrap();
}

#[tokio::test]
async fn a_child_is_told_of_every_piece_as_it_comes_and_then_the_stream_ends() {
    let peer = Peer::start(None, |_| {}).await;
    let stored = peer.task();
    write(&stored, 1).await;
    let follow = async {
        let (turns, mut said) =
            PieceSync::default().follow((peer.addr, false), &"child".into(), &TASK, Some(3)).await.unwrap();
        assert!(turns, "our own hosts serve by turns");
        let mut numbers = Vec::new();
        while let Some(next) = said.next().await {
            let next = next.unwrap();
            assert_eq!(next.data_addr, "127.0.0.1:4005".parse().unwrap());
            numbers.push(next.number.0);
            match numbers.len() {
                1 => write(&stored, 2).await,
                2 => write(&stored, 0).await,
                _ => {}
            }
        }
        numbers
    };
    assert_eq!(tokio::time::timeout(SOON, follow).await.unwrap(), [1, 2, 0]);
}

#[tokio::test]
async fn a_plain_child_is_told_only_of_what_it_asked_for() {
    let peer = Peer::start(None, |_| {}).await;
    let stored = peer.task();
    write(&stored, 0).await;
    write(&stored, 2).await;
    let request = SyncPiecesRequest {
        task_id: TASK.to_string(),
        interested_piece_numbers: vec![2, 77],
        ..SyncPiecesRequest::default()
    };
    let said: Vec<_> = peer.stub().sync_pieces(request).await.unwrap().into_inner().collect().await;
    assert_eq!(said.len(), 1, "{said:?}");
    let said = said[0].as_ref().unwrap();
    assert_eq!((said.number, said.offset, said.length, said.tcp_port), (2, 8, 2, Some(4005)));
}

#[tokio::test]
async fn a_quiet_task_is_all_there_is() {
    let peer = Peer::start(None, |config| config.quiet = Duration::from_millis(50)).await;
    let stored = peer.task();
    write(&stored, 0).await;
    let (_, said) = PieceSync::default().follow((peer.addr, false), &"child".into(), &TASK, Some(3)).await.unwrap();
    let said = tokio::time::timeout(SOON, said.collect::<Vec<_>>()).await.unwrap();
    assert_eq!(said.len(), 1);
}

#[tokio::test]
async fn a_host_that_holds_a_part_and_downloads_nothing_says_so_at_once() {
    // Nothing but the end of the download can end these streams: the task is never quiet for long enough.
    let peer = Peer::start(None, |config| config.quiet = Duration::from_secs(3600)).await;
    let stored = peer.task();
    write(&stored, 0).await;
    let follow =
        || async { PieceSync::default().follow((peer.addr, false), &"child".into(), &TASK, Some(3)).await.unwrap().1 };
    let mut while_it_grew = follow().await;
    assert_eq!(while_it_grew.next().await.unwrap().unwrap().number, PieceNumber(0));
    write(&stored, 2).await;
    peer.downloading.store(false, Ordering::Relaxed);
    let rest = tokio::time::timeout(SOON, while_it_grew.collect::<Vec<_>>()).await.expect("it ends with the download");
    assert_eq!(rest.len(), 1, "the last piece is told, and then the stream ends");
    let afterwards = tokio::time::timeout(SOON, follow().await.collect::<Vec<_>>()).await.expect("it ends");
    assert_eq!(afterwards.len(), 2);
}

/// A parent of the plain protocol, which notes the numbers that it is asked about.
struct PlainParent(tokio::sync::mpsc::UnboundedSender<SyncPiecesRequest>);

#[async_trait]
impl DfdaemonUpload for PlainParent {
    async fn sync_pieces(
        &self,
        request: tonic::Request<SyncPiecesRequest>,
    ) -> Result<tonic::Response<BoxStream<SyncPiecesResponse>>, tonic::Status> {
        self.0.send(request.into_inner()).unwrap();
        Ok(tonic::Response::new(Box::pin(futures_util::stream::empty())))
    }
}

#[tokio::test]
async fn a_parent_is_asked_only_about_pieces_that_the_task_has() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (asked, mut requests) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::builder().add_service(DfdaemonUploadServer::new(PlainParent(asked)));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let sync = PieceSync::default();
    for (count, numbers) in [(Some(3), 0..3), (Some(1), 0..1), (None, 0..1), (Some(1 << 20), 0..4096)] {
        let _none = sync.follow((addr, false), &"child".into(), &TASK, count).await.unwrap();
        let request = requests.recv().await.unwrap();
        assert_eq!(request.interested_piece_numbers, numbers.collect::<Vec<u32>>(), "{count:?}");
        assert!(request.all_pieces, "ours tells about all, whatever the numbers say");
    }
}

#[tokio::test]
async fn what_cannot_be_told_is_an_error() {
    let peer = Peer::start(None, |config| config.max_streams = 1).await;
    let sync = PieceSync::default();
    let missing = sync.follow((peer.addr, false), &"child".into(), &TASK, Some(3)).await.err();
    assert_eq!(missing, Some(SyncError::Missing));
    let stored = peer.task();
    stored.set_audience(Audience::Host);
    let kept = sync.follow((peer.addr, false), &"child".into(), &TASK, Some(3)).await.err();
    assert_eq!(kept, Some(SyncError::Missing), "what is for this host alone");
    stored.set_audience(Audience::Private);
    let _open = sync.follow((peer.addr, false), &"child".into(), &TASK, Some(3)).await.unwrap();
    let full = sync.follow((peer.addr, false), &"child".into(), &TASK, Some(3)).await.err();
    assert!(matches!(full, Some(SyncError::Gone(_))), "{full:?}");
    let request = SyncPiecesRequest { task_id: "short".into(), ..SyncPiecesRequest::default() };
    assert_eq!(peer.stub().sync_pieces(request).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(peer.stub().sync_host(SyncHostRequest::default()).await.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_parent_that_does_not_answer_is_left_in_time() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = piece_sync::Config { head_timeout: Duration::from_millis(50), ..piece_sync::Config::default() };
    let sync = PieceSync::new(config);
    let error = sync.follow((silent.local_addr().unwrap(), false), &"child".into(), &TASK, Some(3)).await.err();
    assert!(matches!(error, Some(SyncError::Gone(_))), "{error:?}");
}

#[tokio::test]
async fn the_drain_ends_the_streams() {
    let peer = Peer::start(None, |_| {}).await;
    let _stored = peer.task();
    let (_, said) = PieceSync::default().follow((peer.addr, false), &"child".into(), &TASK, Some(3)).await.unwrap();
    let (drained, said) = tokio::join!(peer.drain.wait(SOON), said.collect::<Vec<_>>());
    assert_eq!((drained, said.len()), (Drained::Clean, 0));
}

struct Seed(Result<(), SeedRefused>);

#[async_trait]
impl SeedTrigger for Seed {
    async fn begin(&self, origin: Origin, _: Option<Geometry>) -> Result<Seeding, SeedRefused> {
        if origin.url == "http://o/unknown" {
            return Err(SeedRefused::Unknown);
        }
        let result = self.0.clone();
        Ok(Seeding { task: TASK, peer: "p".into(), length: 10, done: Box::pin(async { result }) })
    }
}

#[tokio::test]
async fn a_seed_says_that_it_began_and_how_it_ended() {
    for (result, url, want) in [
        (Ok(()), "http://o/x", None),
        (Err(SeedRefused::Failed("the source is gone".into())), "http://o/x", Some(Code::Aborted)),
        (Ok(()), "http://o/unknown", Some(Code::InvalidArgument)),
    ] {
        let peer = Peer::start(Some(Arc::new(Seed(result))), |_| {}).await;
        let wish = SeedWish { origin: Origin { url: url.into(), ..Origin::default() }, geometry: None };
        let mut said = peer.stub().download_task(seed_wish_to_wire(&wish)).await.unwrap().into_inner();
        if url == "http://o/x" {
            let begun = said.message().await.unwrap().unwrap();
            assert_eq!(begun.task_id, TASK.to_string());
            let Some(Said::DownloadTaskStartedResponse(started)) = begun.response else { panic!("{begun:?}") };
            assert_eq!(started.content_length, 10);
        }
        let end = said.message().await;
        assert_eq!(end.as_ref().err().map(tonic::Status::code), want, "{end:?}");
    }
    let peer = Peer::start(None, |_| {}).await;
    let wish = SeedWish { origin: Origin { url: "http://o/x".into(), ..Origin::default() }, geometry: None };
    let refused = peer.stub().download_task(seed_wish_to_wire(&wish)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented, "no seed");
}
