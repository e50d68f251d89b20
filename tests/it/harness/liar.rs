//! A host that joins the fleet by the book, offers a whole task, and sends pieces that are wrong by one bit, with a
//! checksum that fits the wrong bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use damselfly_api::common;
use damselfly_api::dfdaemon::dfdaemon_upload_server::{DfdaemonUpload, DfdaemonUploadServer};
use damselfly_api::dfdaemon::{SyncPiecesRequest, SyncPiecesResponse};
use damselfly_api::ours::holdings_client::HoldingsClient;
use damselfly_api::ours::{AnnounceHoldingsRequest, Holding};
use damselfly_api::scheduler::scheduler_client::SchedulerClient;
use damselfly_api::scheduler::{
    AnnounceHostRequest, AnnouncePeerRequest, HeldPieces, RegisterPeerRequest, announce_peer_request,
};
use damselfly_api::vortex::{self, PieceHead, Request};
use damselfly_core::{Geometry, PieceDigest, short_piece_length};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Status;
use tonic::transport::Endpoint;

use super::{block_on, spawn};

const ID: &str = "127.0.0.1-liar";

/// A running liar.
pub(crate) struct Liar {
    asked: Arc<AtomicUsize>,
    servers: [tokio::task::JoinHandle<()>; 2],
}

impl Liar {
    /// Joins the fleet of a scheduler and offers all of the task whose true content this is, with its true digests.
    pub(crate) fn join(scheduler: SocketAddr, task: &str, url: &str, content: &Bytes) -> Self {
        Self::start(scheduler, task, url, content, false)
    }

    /// The same with digests that fit its lies.
    pub(crate) fn invent(scheduler: SocketAddr, task: &str, url: &str, content: &Bytes) -> Self {
        Self::start(scheduler, task, url, content, true)
    }

    fn start(scheduler: SocketAddr, task: &str, url: &str, content: &Bytes, invents: bool) -> Self {
        block_on(async {
            let listen = || TcpListener::bind("127.0.0.1:0");
            let (rpc, data) = (listen().await.expect("a free port"), listen().await.expect("a free port"));
            let ports = [&rpc, &data].map(|listener| listener.local_addr().expect("an address").port());
            let length = content.len() as u64;
            let geometry = Geometry::new(length, short_piece_length(length)).expect("a geometry");
            let asked = Arc::new(AtomicUsize::new(0));
            let lists = Lists { geometry, data_port: ports[1] };
            let lists = tonic::transport::Server::builder()
                .add_service(DfdaemonUploadServer::new(lists))
                .serve_with_incoming(TcpListenerStream::new(rpc));
            let pieces = serve_pieces(data, geometry, content.clone(), Arc::clone(&asked));
            let servers = [spawn(async move { drop(lists.await) }), spawn(pieces)];
            let digests = geometry.pieces().flat_map(|piece| {
                let span = geometry.span(piece).expect("a piece of the task");
                let lie = lie_about(&content[span.start() as usize..span.end() as usize]);
                let said = if invents { &lie[..] } else { &content[span.start() as usize..span.end() as usize] };
                PieceDigest::of(said).blake3.0
            });
            announce(scheduler, ports, task, url, geometry, digests.collect()).await;
            Self { asked, servers }
        })
    }

    /// Says as itself that another host's peer holds nothing any more, and registers it.
    pub(crate) fn speak_for(scheduler: SocketAddr, task: &str, url: &str, peer: &str) {
        block_on(async {
            let endpoint = Endpoint::from_shared(format!("http://{scheduler}")).expect("a URL");
            let channel = endpoint.connect().await.expect("the scheduler");
            let geometry = Geometry::new(1, 1).expect("a geometry");
            let held = HeldPieces {
                content_length: geometry.length(),
                piece_length: geometry.piece_length(),
                ..HeldPieces::default()
            };
            let holding = Holding {
                task_id: task.into(),
                peer_id: peer.into(),
                url: url.into(),
                held: Some(held),
                ..Holding::default()
            };
            let request = AnnounceHoldingsRequest { host_id: ID.into(), holdings: vec![holding], all: true };
            HoldingsClient::new(channel.clone()).announce(request).await.expect("it is heard");
            let register = RegisterPeerRequest {
                download: Some(common::Download { url: url.into(), ..Default::default() }),
                ..Default::default()
            };
            let first = AnnouncePeerRequest {
                host_id: ID.into(),
                task_id: task.into(),
                peer_id: peer.into(),
                request: Some(announce_peer_request::Request::RegisterPeerRequest(register)),
            };
            let mut hosts = SchedulerClient::new(channel);
            let conversation = hosts.announce_peer(stream::iter([first])).await.expect("a conversation begins");
            let mut answers = conversation.into_inner();
            while let Ok(Some(_)) = answers.message().await {}
        });
    }

    /// How often it was asked for a piece.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.servers.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// What it sends for a piece.
fn lie_about(piece: &[u8]) -> Vec<u8> {
    let mut bytes = piece.to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    bytes
}

/// Says who it is and that it holds everything, with these digests: nothing that a scheduler could see through.
async fn announce(
    scheduler: SocketAddr,
    [rpc_port, data_port]: [u16; 2],
    task: &str,
    url: &str,
    geometry: Geometry,
    digests: Vec<u8>,
) {
    let endpoint = format!("http://{scheduler}");
    let host = common::Host {
        id: ID.into(),
        hostname: "liar".into(),
        ip: "127.0.0.1".into(),
        port: rpc_port.into(),
        download_port: data_port.into(),
        upload_slots: Some(100),
        ..common::Host::default()
    };
    let channel = Endpoint::from_shared(endpoint).expect("a URL").connect().await.expect("the scheduler");
    let mut hosts = SchedulerClient::new(channel.clone());
    let request = AnnounceHostRequest { host: Some(host), interval: None };
    hosts.announce_host(request).await.expect("the host is announced");

    let held = HeldPieces {
        content_length: geometry.length(),
        piece_length: geometry.piece_length(),
        numbers: geometry.pieces().map(|piece| piece.0).collect(),
        blake3: digests.into(),
    };
    let holding = Holding {
        task_id: task.into(),
        peer_id: format!("{ID}-00000000-0000-4000-8000-000000000000"),
        url: url.into(),
        held: Some(held),
        ..Holding::default()
    };
    let mut holdings = HoldingsClient::new(channel);
    let request = AnnounceHoldingsRequest { host_id: ID.into(), holdings: vec![holding], all: false };
    holdings.announce(request).await.expect("the holding is announced");
}

/// Its piece lists: everything, at once.
struct Lists {
    geometry: Geometry,
    data_port: u16,
}

type Answers<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl DfdaemonUpload for Lists {
    async fn sync_pieces(
        &self,
        _request: tonic::Request<SyncPiecesRequest>,
    ) -> Result<tonic::Response<Answers<SyncPiecesResponse>>, Status> {
        let (geometry, port) = (self.geometry, self.data_port);
        let all: Vec<_> = geometry
            .pieces()
            .filter_map(|piece| geometry.span(piece).map(|span| (piece, span)))
            .map(|(piece, span)| {
                Ok(SyncPiecesResponse {
                    number: piece.0,
                    offset: span.start(),
                    length: span.end() - span.start(),
                    ip: "127.0.0.1".into(),
                    tcp_port: Some(port.into()),
                    quic_port: None,
                })
            })
            .collect();
        Ok(tonic::Response::new(stream::iter(all).boxed()))
    }
}

async fn serve_pieces(listener: TcpListener, geometry: Geometry, content: Bytes, asked: Arc<AtomicUsize>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (content, asked) = (content.clone(), Arc::clone(&asked));
        spawn(async move { lie(stream, geometry, content, &asked).await });
    }
}

/// Answers requests on one connection until it ends.
async fn lie(mut stream: TcpStream, geometry: Geometry, content: Bytes, asked: &AtomicUsize) -> std::io::Result<()> {
    let mut frame = [0; vortex::REQUEST];
    loop {
        stream.read_exact(&mut frame).await?;
        let Ok(Some((Request::Piece { piece, .. }, _))) = vortex::decode_request(&frame) else { return Ok(()) };
        let Some(span) = geometry.span(piece) else { return Ok(()) };
        asked.fetch_add(1, Ordering::SeqCst);
        let bytes = lie_about(&content[span.start() as usize..span.end() as usize]);
        let head = PieceHead {
            number: piece.0,
            offset: span.start(),
            length: bytes.len() as u64,
            crc32: Some(PieceDigest::of(&bytes).crc32),
            parent: String::new(),
            traffic: 0,
            cost: 0,
            created_at: 0,
        };
        stream.write_all(&vortex::encode_piece(0, &head)).await?;
        stream.write_all(&bytes).await?;
    }
}
