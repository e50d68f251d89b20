//! What every scheduler client does, in this process or over gRPC. Both run against a real scheduler.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use damselfly_api::convert::{self, Listener, PeerSays};
use damselfly_api::ours::holdings_server::{self, HoldingsServer};
use damselfly_api::ours::{AnnounceHoldingsRequest, AnnounceHoldingsResponse, WatchRequest, WatchResponse};
use damselfly_api::scheduler::scheduler_server::{Scheduler, SchedulerServer};
use damselfly_api::scheduler::{AnnounceHostRequest, AnnouncePeerRequest, AnnouncePeerResponse, DeleteHostRequest};
use damselfly_core::swarm::{Answer, Held, Holding, Holdings, HostInfo, Origin, Registration, Report, SourceWish};
use damselfly_core::{Geometry, PeerId, PieceDigest, PieceNumber, TaskId};
use damselfly_runtime::Drain;
use damselfly_scheduler::{Handle, NoSeeds, SinceStart};
use futures_util::StreamExt;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::codegen::BoxStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::announcer::Fixed;
use super::{Announcer, Config, Conversation, Embedded, GrpcSchedulers, Metrics, SchedulerClient};

const TASK: TaskId = TaskId::from_bytes([5; 32]);

/// A test that takes longer hangs.
const SOON: Duration = Duration::from_secs(20);

fn scheduler() -> Handle {
    Handle::spawn(damselfly_scheduler::Config::default(), SinceStart::new(), NoSeeds)
}

/// The wire around a scheduler, as thin as it can be.
#[derive(Clone)]
struct Wire {
    handle: Handle,
    run: u64,
    /// Speaks as a plain scheduler does.
    plain: bool,
    announced: Arc<AtomicU64>,
    held: Arc<AtomicU64>,
}

impl Wire {
    fn new(handle: Handle, run: u64) -> Self {
        Self { handle, run, plain: false, announced: Arc::default(), held: Arc::default() }
    }

    async fn serve(self, listener: TcpListener) {
        Server::builder()
            .add_service(SchedulerServer::new(self.clone()))
            .add_service(HoldingsServer::new(self))
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await
            .unwrap();
    }
}

#[async_trait::async_trait]
impl Scheduler for Wire {
    async fn announce_peer(
        &self,
        request: Request<Streaming<AnnouncePeerRequest>>,
    ) -> Result<Response<BoxStream<AnnouncePeerResponse>>, Status> {
        let mut said = request.into_inner();
        let first = said.message().await?.ok_or_else(|| Status::invalid_argument("nothing was said"))?;
        let PeerSays::Register { mut registration, .. } = convert::peer_says(first)? else {
            return Err(Status::failed_precondition("a registration comes first"));
        };
        registration.extended &= !self.plain;
        let listener = Listener::of(&registration);
        let (mut answers, reports) = self.handle.register(*registration).await.map_err(|_| Status::unavailable(""))?;
        tokio::spawn(async move {
            while let Ok(Some(message)) = said.message().await {
                if let Ok(PeerSays::Report(report)) = convert::peer_says(message) {
                    let _ = reports.send(report).await;
                }
            }
        });
        let (give, take) = mpsc::channel(4);
        tokio::spawn(async move {
            while let Some(answer) = answers.recv().await {
                for message in listener.messages(answer) {
                    let _ = give.send(Ok(message)).await;
                }
            }
        });
        let mut response = Response::new(ReceiverStream::new(take).boxed());
        if !self.plain {
            convert::mark_extended(response.metadata_mut());
        }
        Ok(response)
    }

    async fn announce_host(&self, request: Request<AnnounceHostRequest>) -> Result<Response<()>, Status> {
        let (host, _) = convert::host_from_wire(request.into_inner())?;
        self.handle.announce_host(host).await.map_err(|_| Status::unavailable(""))?;
        self.announced.fetch_add(1, Ordering::SeqCst);
        let mut response = Response::new(());
        convert::mark_run(response.metadata_mut(), self.run);
        Ok(response)
    }

    async fn delete_host(&self, request: Request<DeleteHostRequest>) -> Result<Response<()>, Status> {
        let host = convert::host_id(request.into_inner().host_id)?;
        self.handle.leave_host(&host).await.map_err(|_| Status::unavailable(""))?;
        Ok(Response::new(()))
    }
}

#[async_trait::async_trait]
impl holdings_server::Holdings for Wire {
    async fn announce(
        &self,
        request: Request<AnnounceHoldingsRequest>,
    ) -> Result<Response<AnnounceHoldingsResponse>, Status> {
        let holdings = convert::holdings_from_wire(request.into_inner())?;
        self.held.fetch_add(holdings.list.len() as u64, Ordering::SeqCst);
        self.handle.announce_holdings(holdings).await.map_err(|_| Status::unavailable(""))?;
        Ok(Response::new(AnnounceHoldingsResponse {}))
    }

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<BoxStream<WatchResponse>>, Status> {
        if self.plain {
            return Err(Status::unimplemented("a plain scheduler"));
        }
        let here = futures_util::stream::once(async { Ok(WatchResponse {}) }).chain(futures_util::stream::pending());
        Ok(Response::new(Box::pin(here)))
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

fn over_grpc(addrs: &[SocketAddr]) -> GrpcSchedulers {
    let addrs: Vec<_> = addrs.iter().map(SocketAddr::to_string).collect();
    GrpcSchedulers::new(&addrs, Config::default(), Metrics::default()).unwrap()
}

/// Every kind of client, each with a fresh scheduler.
async fn clients() -> BTreeMap<&'static str, Arc<dyn SchedulerClient>> {
    let (listener, addr) = listen().await;
    tokio::spawn(Wire::new(scheduler(), 1).serve(listener));
    let embedded: Arc<dyn SchedulerClient> = Arc::new(Embedded::new(scheduler()));
    BTreeMap::from([("embedded", embedded), ("grpc", Arc::new(over_grpc(&[addr])))])
}

fn host(n: u8) -> HostInfo {
    HostInfo {
        id: format!("host{n}").as_str().into(),
        seed: false,
        hostname: format!("host{n}"),
        ip: [10, 0, 0, n].into(),
        rpc_port: 4000,
        data_port: 4005,
        proxy_port: None,
        upload_slots: 10,
        idc: String::new(),
        location: String::new(),
        tls: false,
    }
}

fn registration(n: u8) -> Registration {
    Registration {
        host: host(n).id,
        task: TASK,
        peer: format!("peer{n}").as_str().into(),
        origin: Origin { url: "http://o/x".into(), ..Origin::default() },
        geometry: None,
        held: None,
        source: SourceWish::Allowed,
        extended: true,
    }
}

async fn join(client: &dyn SchedulerClient, n: u8) -> Conversation {
    client.announce_host(&host(n)).await.unwrap();
    client.register(registration(n)).await.unwrap()
}

/// The next answer that satisfies `wanted`; what comes before is skipped.
async fn heard(conversation: &mut Conversation, wanted: impl Fn(&Answer) -> bool) -> Answer {
    let listen = async {
        loop {
            let answer = conversation.answers.recv().await.expect("the scheduler is there");
            if wanted(&answer) {
                return answer;
            }
        }
    };
    tokio::time::timeout(SOON, listen).await.expect("an answer in time")
}

fn parents(answer: &Answer) -> Vec<&str> {
    match answer {
        Answer::Parents { offers, .. } => offers.iter().map(|offer| offer.peer.as_str()).collect(),
        _ => Vec::new(),
    }
}

async fn ends(conversation: &mut Conversation) {
    let end = async { while conversation.answers.recv().await.is_some() {} };
    tokio::time::timeout(SOON, end).await.expect("the scheduler ends the conversation");
}

#[tokio::test]
async fn one_goes_to_the_source_and_the_next_gets_it_from_there_with_proofs() {
    for (kind, client) in clients().await {
        let mut first = join(&*client, 1).await;
        heard(&mut first, |answer| matches!(answer, Answer::GoToSource { .. })).await;
        let geometry = Geometry::new(10, 4).unwrap();
        let digest = PieceDigest::of(b"abcd");
        let piece = PieceNumber(0);
        for report in [Report::SourceOpened(geometry), Report::PieceFinished { piece, parent: None, digest }] {
            first.reports.send(report).await.unwrap();
        }
        let mut second = join(&*client, 2).await;
        // Parents and proofs come in any order.
        let (mut offered, mut proofs) = (None, None);
        while offered.is_none() || proofs.is_none() {
            match heard(&mut second, |answer| *answer != Answer::Wait).await {
                Answer::Parents { offers, geometry, proven } => offered = Some((offers, geometry, proven)),
                Answer::Proofs(list) => proofs = Some(list),
                other => panic!("{kind}: {other:?}"),
            }
        }
        let (offers, told, proven) = offered.unwrap();
        assert_eq!(offers[0].peer, PeerId::from("peer1"), "{kind}");
        assert_eq!((offers[0].rpc, told, proven), (([10, 0, 0, 1], 4000).into(), Some(geometry), true), "{kind}");
        assert_eq!(proofs, Some(vec![(piece, digest.blake3)]), "{kind}");
        for conversation in [&mut first, &mut second] {
            conversation.reports.send(Report::Finished).await.unwrap();
            ends(conversation).await;
        }
    }
}

#[tokio::test]
async fn a_peer_that_drops_its_conversation_is_gone() {
    for (_, client) in clients().await {
        let mut first = join(&*client, 1).await;
        heard(&mut first, |answer| matches!(answer, Answer::GoToSource { .. })).await;
        let mut second = join(&*client, 2).await;
        drop(first);
        heard(&mut second, |answer| matches!(answer, Answer::GoToSource { .. })).await;
    }
}

fn holding(n: u8) -> Holding {
    let geometry = Geometry::new(10, 4).unwrap();
    let pieces = geometry.pieces().map(|piece| (piece, PieceDigest::of(&[n]).blake3)).collect();
    Holding {
        task: TASK,
        peer: format!("holder{n}").as_str().into(),
        origin: registration(n).origin,
        held: Held { geometry, pieces },
    }
}

#[tokio::test]
async fn what_a_host_holds_is_offered_until_it_leaves() {
    for (kind, client) in clients().await {
        client.announce_host(&host(1)).await.unwrap();
        client.announce_holdings(Holdings { host: host(1).id, all: true, list: vec![holding(1)] }).await.unwrap();
        let mut child = join(&*client, 2).await;
        let answer = heard(&mut child, |answer| !parents(answer).is_empty()).await;
        assert_eq!(parents(&answer), ["holder1"], "{kind}");
        client.leave(&host(1).id).await.unwrap();
        drop(child);
        let mut late = join(&*client, 3).await;
        let answer = heard(&mut late, |answer| *answer != Answer::Wait).await;
        assert!(matches!(answer, Answer::GoToSource { .. }), "{kind}: nobody has it any more");
    }
}

#[tokio::test]
async fn a_plain_scheduler_leads_to_the_source_and_to_parents() {
    let (listener, addr) = listen().await;
    tokio::spawn(Wire { plain: true, ..Wire::new(scheduler(), 1) }.serve(listener));
    let client = over_grpc(&[addr]);
    let mut first = join(&client, 1).await;
    heard(&mut first, |answer| matches!(answer, Answer::GoToSource { .. })).await;
    first.reports.send(Report::SourceOpened(Geometry::new(10, 4).unwrap())).await.unwrap();
    let digest = PieceDigest::of(b"abcd");
    first.reports.send(Report::PieceFinished { piece: PieceNumber(0), parent: None, digest }).await.unwrap();
    let mut second = join(&client, 2).await;
    let answer = heard(&mut second, |answer| !parents(answer).is_empty()).await;
    assert!(matches!(answer, Answer::Parents { proven: false, .. }), "{answer:?}");
    first.reports.send(Report::Finished).await.unwrap();
    ends(&mut first).await;
}

#[tokio::test]
async fn the_next_scheduler_serves_where_one_does_not_answer() {
    let (dead, dead_addr) = listen().await;
    drop(dead);
    let (listener, addr) = listen().await;
    tokio::spawn(Wire::new(scheduler(), 1).serve(listener));
    let client = over_grpc(&[dead_addr, addr]);
    for n in 1..9 {
        let mut registration = registration(n);
        registration.task = TaskId::from_bytes([n; 32]);
        client.announce_host(&host(n)).await.unwrap();
        let mut conversation = client.register(registration).await.unwrap();
        heard(&mut conversation, |answer| matches!(answer, Answer::GoToSource { .. })).await;
    }
    let alone = over_grpc(&[dead_addr]);
    assert!(alone.register(registration(1)).await.is_err());
    assert!(alone.announce_host(&host(1)).await.is_err());
}

#[tokio::test]
async fn a_scheduler_that_dies_is_lost_and_learns_everything_again() {
    // A process of its own, as far as its sockets go.
    let process = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (before, addr) = process
        .spawn(async {
            let (listener, addr) = listen().await;
            let wire = Wire::new(scheduler(), 1);
            tokio::spawn(wire.clone().serve(listener));
            (wire, addr)
        })
        .await
        .unwrap();
    let config = Config { backoff_least: Duration::from_millis(20), ..Config::default() };
    let client = Arc::new(GrpcSchedulers::new(&[addr.to_string()], config.clone(), Metrics::default()).unwrap());
    let drain = Drain::new();
    let announcer =
        Announcer::new(client.clone(), host(1), || Some(host(1).ip), Arc::new(Fixed::new(vec![holding(1)])), config);
    tokio::spawn(announcer.run(drain.watch()));
    reaches(&before.held, 1).await;
    let mut conversation = client.register(registration(2)).await.unwrap();
    heard(&mut conversation, |answer| !parents(answer).is_empty()).await;

    process.shutdown_background();
    ends(&mut conversation).await;
    let after = Wire::new(scheduler(), 2);
    let listener = tokio::time::timeout(SOON, freed(addr)).await.expect("its port in time");
    tokio::spawn(after.clone().serve(listener));
    reaches(&after.held, 1).await;
    assert!(after.announced.load(Ordering::SeqCst) >= 1);

    let hosts = async || after.handle.snapshot(|core| core.deadline().is_some()).await;
    assert_eq!(hosts().await, Ok(true), "a known host has a deadline");
    drain.wait(SOON).await;
    assert_eq!(hosts().await, Ok(false), "the drain took leave");
}

#[tokio::test]
async fn an_idle_host_notices_at_once_that_its_scheduler_began_anew() {
    let process = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (before, addr) = process
        .spawn(async {
            let (listener, addr) = listen().await;
            let wire = Wire::new(scheduler(), 1);
            tokio::spawn(wire.clone().serve(listener));
            (wire, addr)
        })
        .await
        .unwrap();
    // Nobody would announce anything for an hour.
    let config = Config { announce_interval: Duration::from_secs(3600), ..Config::default() };
    let client = Arc::new(GrpcSchedulers::new(&[addr.to_string()], config.clone(), Metrics::default()).unwrap());
    let drain = Drain::new();
    let here = Some(host(1).ip);
    let announcer =
        Announcer::new(client.clone(), host(1), move || here, Arc::new(Fixed::new(vec![holding(1)])), config);
    tokio::spawn(announcer.run(drain.watch()));
    reaches(&before.held, 1).await;

    process.shutdown_background();
    let after = Wire::new(scheduler(), 2);
    let listener = tokio::time::timeout(SOON, freed(addr)).await.expect("its port in time");
    tokio::spawn(after.clone().serve(listener));
    reaches(&after.held, 1).await;
}

#[tokio::test]
async fn what_is_dropped_is_told_and_what_is_held_is_told_once() {
    let (listener, addr) = listen().await;
    let wire = Wire::new(scheduler(), 1);
    tokio::spawn(wire.clone().serve(listener));
    let config = Config { announce_interval: Duration::from_secs(3600), ..Config::default() };
    let client = Arc::new(GrpcSchedulers::new(&[addr.to_string()], config.clone(), Metrics::default()).unwrap());
    let inventory = Arc::new(Fixed::new(vec![holding(1)]));
    let here = Some(host(1).ip);
    let announcer = Announcer::new(client.clone(), host(1), move || here, Arc::clone(&inventory), config);
    let drain = Drain::new();
    tokio::spawn(announcer.run(drain.watch()));
    reaches(&wire.held, 1).await;

    // The conversation breaks off, and the scheduler is the same as before.
    let mut conversation = client.register(registration(2)).await.unwrap();
    heard(&mut conversation, |answer| !parents(answer).is_empty()).await;
    wire.handle.delete_task(TASK).await.unwrap();
    ends(&mut conversation).await;
    reaches(&wire.announced, 2).await;

    let Holding { held: Held { geometry, .. }, .. } = holding(1);
    let dropped = Holding { held: Held { geometry, pieces: Vec::new() }, ..holding(1) };
    inventory.dropped.lock().unwrap().push(dropped);
    inventory.drops.send_modify(|count| *count += 1);
    reaches(&wire.held, 2).await;
    assert_eq!(wire.held.load(Ordering::SeqCst), 2, "what is held was not said again");
}

#[tokio::test]
async fn one_that_is_gone_is_not_asked_and_one_that_is_silent_is_not_waited_for() {
    let (dead, dead_addr) = listen().await;
    drop(dead);
    let gone = over_grpc(&[dead_addr]);
    // The watch finds out by itself.
    let known = async {
        while gone.register(registration(1)).await.is_err_and(|lost| !lost.0.starts_with("none is known")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, known).await.expect("it is known to be gone");

    // It accepts, and never says a word.
    let (_silent, silent_addr) = listen().await;
    let (listener, addr) = listen().await;
    tokio::spawn(Wire::new(scheduler(), 1).serve(listener));
    let client = over_grpc(&[silent_addr, addr]);
    client.announce_host(&host(1)).await.unwrap();
    for n in 1..9 {
        let mut registration = registration(n);
        registration.task = TaskId::from_bytes([n; 32]);
        let mut conversation = client.register(registration).await.unwrap();
        heard(&mut conversation, |answer| matches!(answer, Answer::GoToSource { .. })).await;
    }
}

/// A listener at an address that another one is about to give up.
async fn freed(addr: SocketAddr) -> TcpListener {
    loop {
        match TcpListener::bind(addr).await {
            Ok(listener) => return listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

async fn reaches(count: &AtomicU64, least: u64) {
    let reached = async {
        while count.load(Ordering::SeqCst) < least {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, reached).await.expect("in time");
}
