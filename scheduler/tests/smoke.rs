//! The executable as a user and a daemon meet it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use damselfly_api::convert;
use damselfly_api::dfdaemon::dfdaemon_upload_server::{DfdaemonUpload, DfdaemonUploadServer};
use damselfly_api::dfdaemon::{DownloadTaskRequest, DownloadTaskResponse};
use damselfly_api::ours::holdings_client::HoldingsClient;
use damselfly_api::scheduler::announce_peer_request::Request as Says;
use damselfly_api::scheduler::announce_peer_response::Response as Told;
use damselfly_api::scheduler::scheduler_client::SchedulerClient;
use damselfly_api::scheduler::{
    AnnouncePeerRequest, AnnouncePeerResponse, DeleteHostRequest, DownloadPeerFinishedRequest,
    DownloadPieceBackToSourceFinishedRequest, ListHostsRequest, StatPeerRequest, StatTaskRequest,
};
use damselfly_api::{common, scheduler};
use damselfly_core::swarm::{Held, Holding, Holdings, HostInfo, Origin, Registration, SourceWish};
use damselfly_core::{Geometry, HostId, PeerId, PieceDigest, PieceNumber, TaskId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming, async_trait};

const LONG: Duration = Duration::from_secs(20);

/// A running scheduler; killed when dropped.
struct Scheduler {
    child: Child,
    grpc: SocketAddr,
    http: SocketAddr,
    home: tempfile::TempDir,
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scheduler"));
    command.stdin(Stdio::null()).env_clear();
    command
}

fn run(arguments: &[&str]) -> Output {
    command().args(arguments).output().unwrap()
}

impl Scheduler {
    fn start(config: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("scheduler.yaml");
        std::fs::write(&file, config).unwrap();
        let child = command()
            .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data-dir"])
            .arg(home.path().join("data"))
            .arg("--config")
            .arg(&file)
            .spawn()
            .unwrap();
        let path = home.path().join("data/addresses.json");
        let text = wait_for("addresses.json", || std::fs::read_to_string(&path).ok());
        let addresses: serde_json::Value = serde_json::from_str(&text).unwrap();
        let address = |name: &str| addresses[name].as_str().unwrap().parse().unwrap();
        Self { child, grpc: address("grpc"), http: address("http"), home }
    }

    fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.http).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.grpc)).unwrap().connect().await.unwrap()
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < LONG, "{what} did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn task() -> TaskId {
    TaskId::from_bytes([3; 32])
}

fn host(name: &str, seed: bool, rpc_port: u16) -> HostInfo {
    HostInfo {
        id: HostId::from(name),
        seed,
        hostname: name.into(),
        ip: [127, 0, 0, 1].into(),
        rpc_port,
        data_port: 4005,
        proxy_port: None,
        upload_slots: 4,
        idc: String::new(),
        location: String::new(),
        tls: false,
    }
}

fn registration(name: &str, extended: bool) -> Registration {
    Registration {
        host: HostId::from(name),
        task: task(),
        peer: PeerId::from(format!("peer-{name}")),
        origin: Origin {
            url: "http://origin/a?signature=secret".into(),
            digest: Some(format!("sha256:{}", "0".repeat(64))),
            ..Origin::default()
        },
        geometry: None,
        held: None,
        source: SourceWish::Allowed,
        extended,
    }
}

/// One `AnnouncePeer` stream.
struct Talk {
    says: mpsc::Sender<AnnouncePeerRequest>,
    told: Streaming<AnnouncePeerResponse>,
}

impl Talk {
    async fn open(client: &mut SchedulerClient<Channel>, first: AnnouncePeerRequest) -> Self {
        let (says, messages) = mpsc::channel(8);
        // The headers come before the first message is even said.
        let opened = tokio::time::timeout(LONG, client.announce_peer(ReceiverStream::new(messages)));
        let response = opened.await.unwrap().unwrap();
        assert!(convert::is_extended(response.metadata()));
        says.send(first).await.unwrap();
        Self { says, told: response.into_inner() }
    }

    async fn say(&self, name: &str, request: Says) {
        let message = AnnouncePeerRequest {
            host_id: name.into(),
            task_id: task().to_string(),
            peer_id: format!("peer-{name}"),
            request: Some(request),
        };
        self.says.send(message).await.unwrap();
    }

    async fn next(&mut self) -> Result<Option<Told>, Status> {
        let message = tokio::time::timeout(LONG, self.told.message()).await.expect("an answer, and not silence")?;
        Ok(message.map(|message| message.response.unwrap()))
    }
}

fn piece(number: u32) -> common::Piece {
    let digest = PieceDigest::of(b"a");
    common::Piece {
        number,
        length: 10,
        digest: format!("crc32:{}", digest.crc32),
        blake3: Some(digest.blake3.0.to_vec().into()),
        ..common::Piece::default()
    }
}

async fn announce(client: &mut SchedulerClient<Channel>, host: &HostInfo) {
    client.announce_host(convert::host_to_wire(host, Duration::from_secs(300))).await.unwrap();
}

#[tokio::test]
async fn serves_its_pages() {
    let scheduler = Scheduler::start("");
    for (path, expected) in
        [("/healthy", "ok\n"), ("/ready", "ready\n"), ("/api/v1/tasks", "[]"), ("/api/v1/hosts", "[]")]
    {
        assert_eq!(scheduler.get(path), (200, expected.to_owned()), "{path}");
    }
    assert!(scheduler.get("/addresses").1.contains(&scheduler.grpc.to_string()));
    assert_eq!(scheduler.get("/api/v1/tasks/nonsense").0, 400);
    assert_eq!(scheduler.get(&format!("/api/v1/tasks/{}", task())).0, 404);

    let mut client = SchedulerClient::new(scheduler.channel().await);
    announce(&mut client, &host("a", false, 4000)).await;
    announce(&mut client, &host("s", true, 4000)).await;
    assert!(scheduler.get("/api/v1/hosts").1.contains("\"hostname\":\"a\""));
    wait_for("the gauge", || scheduler.get("/metrics").1.contains("dragonfly_scheduler_hosts 2\n").then_some(()));
    let listed = client.list_hosts(ListHostsRequest { r#type: Some(1) }).await.unwrap().into_inner().hosts;
    assert_eq!(listed.iter().map(|host| host.id.as_str()).collect::<Vec<_>>(), ["s"]);
    client.delete_host(DeleteHostRequest { host_id: "s".into() }).await.unwrap();
    assert_eq!(client.list_hosts(ListHostsRequest { r#type: None }).await.unwrap().into_inner().hosts.len(), 1);
    let stat = client.stat_peer(StatPeerRequest::default()).await.unwrap_err();
    assert_eq!(stat.code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_plain_peer_is_served_and_its_stream_is_ended() {
    let scheduler = Scheduler::start("");
    let mut client = SchedulerClient::new(scheduler.channel().await);
    for name in ["a", "b"] {
        announce(&mut client, &host(name, false, 4000)).await;
    }
    let register = |name| convert::registration_to_wire(&registration(name, false));
    let mut a = Talk::open(&mut client, register("a")).await;
    assert!(matches!(a.next().await, Ok(Some(Told::NeedBackToSourceResponse(_)))));
    // b is left waiting, without a word, until a has a piece.
    let mut b = Talk::open(&mut client, register("b")).await;
    let finished = DownloadPieceBackToSourceFinishedRequest { piece: Some(piece(0)) };
    a.say("a", Says::DownloadPieceBackToSourceFinishedRequest(finished)).await;
    let Ok(Some(Told::NormalTaskResponse(task))) = b.next().await else { panic!("no parents") };
    let parent = &task.candidate_parents[0];
    assert_eq!((parent.id.as_str(), parent.host.as_ref().unwrap().port), ("peer-a", 4000));
    assert!(!task.proven, "a plain peer vouches for nothing");
    a.say("a", Says::DownloadPeerBackToSourceFinishedRequest(Default::default())).await;
    assert!(matches!(a.next().await, Ok(None)), "the server ends the stream");

    let stat = client.stat_task(StatTaskRequest { task_id: self::task().to_string(), ..Default::default() }).await;
    assert!(stat.unwrap().into_inner().has_available_peer);
    let (_, text) = scheduler.get(&format!("/api/v1/tasks/{}", self::task()));
    assert!(text.contains("\"url\":\"http://origin/a\"") && !text.contains("secret"), "{text}");
}

#[tokio::test]
async fn our_own_peers_get_proofs_and_holdings_are_offered() {
    let scheduler = Scheduler::start("");
    let channel = scheduler.channel().await;
    let mut client = SchedulerClient::new(channel.clone());
    announce(&mut client, &host("a", false, 4000)).await;
    let held =
        Held { geometry: Geometry::new(10, 10).unwrap(), pieces: vec![(PieceNumber(0), PieceDigest::of(b"a").blake3)] };
    let holding = Holding { task: task(), peer: PeerId::from("peer-a"), origin: registration("a", true).origin, held };
    for request in convert::holdings_to_wire(&Holdings { host: "a".into(), all: true, list: vec![holding] }) {
        HoldingsClient::new(channel.clone()).announce(request).await.unwrap();
    }
    let mut b = Talk::open(&mut client, convert::registration_to_wire(&registration("b", true))).await;
    let Ok(Some(Told::Proofs(proofs))) = b.next().await else { panic!("proofs come first") };
    assert_eq!(proofs.numbers, [0]);
    let Ok(Some(Told::NormalTaskResponse(task))) = b.next().await else { panic!("no parents") };
    assert!(task.proven && task.content_length == Some(10));

    let path = format!("/api/v1/tasks/{}/explain", self::task());
    let (_, json) = scheduler.get(&path);
    assert!(json.contains(r#""from":[{"peer":"peer-a","pieces":0,"bytesPerSecond":0}]"#), "{json}");
    let (_, text) = scheduler.get(&format!("{path}?format=text"));
    assert!(text.contains("peer-b on b: fetching, 0 pieces, 0 children\n") && text.contains("from peer-a"), "{text}");
}

#[tokio::test]
async fn nonsense_ends_its_own_stream_only() {
    let scheduler = Scheduler::start("");
    let mut client = SchedulerClient::new(scheduler.channel().await);
    let says = |task_id: &str, request| AnnouncePeerRequest {
        host_id: "a".into(),
        task_id: task_id.into(),
        peer_id: "p".into(),
        request,
    };
    let finished = Says::DownloadPeerFinishedRequest(DownloadPeerFinishedRequest {});
    let register = scheduler::RegisterPeerRequest { download: Some(Default::default()), ..Default::default() };
    for (first, code) in [
        (says("", None), Code::InvalidArgument),
        (says("", Some(finished)), Code::FailedPrecondition),
        (says("nonsense", Some(Says::RegisterPeerRequest(register))), Code::InvalidArgument),
    ] {
        let mut talk = Talk::open(&mut client, first).await;
        assert_eq!(talk.next().await.unwrap_err().code(), code);
    }
    let mut talk = Talk::open(&mut client, convert::registration_to_wire(&registration("a", true))).await;
    assert!(matches!(talk.next().await, Ok(Some(Told::NeedBackToSourceResponse(_)))), "others are served");
}

/// A seed that tells what it is asked.
struct Seed(mpsc::Sender<String>);

#[async_trait]
impl DfdaemonUpload for Seed {
    async fn download_task(
        &self,
        request: Request<DownloadTaskRequest>,
    ) -> Result<Response<BoxStream<DownloadTaskResponse>>, Status> {
        self.0.send(request.into_inner().download.unwrap().url).await.unwrap();
        Ok(Response::new(Box::pin(tokio_stream::pending())))
    }
}

#[tokio::test]
async fn a_seed_is_triggered_first() {
    let scheduler = Scheduler::start("scheduling: {seedTime: 60s}\n");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, mut asks) = mpsc::channel(1);
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let seed = DfdaemonUploadServer::new(Seed(asked));
    tokio::spawn(tonic::transport::Server::builder().add_service(seed).serve_with_incoming(incoming));

    let mut client = SchedulerClient::new(scheduler.channel().await);
    announce(&mut client, &host("s", true, port)).await;
    let mut a = Talk::open(&mut client, convert::registration_to_wire(&registration("a", true))).await;
    assert!(matches!(a.next().await, Ok(Some(Told::Wait(_)))));
    assert_eq!(asks.recv().await.unwrap(), registration("a", true).origin.url);
    let wanted = Registration { source: SourceWish::Wanted, ..registration("s", true) };
    let mut s = Talk::open(&mut client, convert::registration_to_wire(&wanted)).await;
    assert!(matches!(s.next().await, Ok(Some(Told::NeedBackToSourceResponse(_)))));
}

#[tokio::test]
async fn health_is_serving_for_the_empty_service() {
    let scheduler = Scheduler::start("");
    let mut client = tonic_health::pb::health_client::HealthClient::new(scheduler.channel().await);
    let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
    let status = client.check(request).await.unwrap().into_inner().status();
    assert_eq!(status, tonic_health::pb::health_check_response::ServingStatus::Serving);
}

#[test]
fn sigterm_ends_it_cleanly() {
    let mut scheduler = Scheduler::start("");
    let addresses = scheduler.home.path().join("data/addresses.json");
    scheduler.signal("-TERM");
    assert_eq!(scheduler.child.wait().unwrap().code(), Some(0));
    assert!(!addresses.exists());
}

#[tokio::test]
async fn conversations_have_the_grace_and_a_second_signal_does_not_wait() {
    let mut scheduler = Scheduler::start("grace: 10m\n");
    let mut client = SchedulerClient::new(scheduler.channel().await);
    let mut a = Talk::open(&mut client, convert::registration_to_wire(&registration("a", true))).await;
    assert!(matches!(a.next().await, Ok(Some(Told::NeedBackToSourceResponse(_)))));
    scheduler.signal("-TERM");
    wait_for("the drain", || (scheduler.get("/ready").0 == 503).then_some(()));
    assert!(scheduler.child.try_wait().unwrap().is_none(), "it waits for the conversation");
    scheduler.signal("-TERM");
    let code = wait_for("the end", || scheduler.child.try_wait().unwrap()).code();
    assert_eq!(code, Some(128 + 15));
}

#[test]
fn configuration_is_printed_and_mistakes_exit_with_64() {
    let printed = run(&["config", "--listen", "127.0.0.1:1"]);
    assert!(printed.status.success());
    let text = String::from_utf8(printed.stdout).unwrap();
    assert!(text.contains("127.0.0.1:1") && text.contains("8080") && text.contains("leaseTime"), "{text}");

    let dir = tempfile::tempdir().unwrap();
    let write = |text: &str| {
        let path = dir.path().join("bad.yaml");
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    for (text, expected) in [("listn: 1\n", "listn: unknown key"), ("grace: soon\n", "grace: ")] {
        let output = run(&["--config", &write(text)]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{error}");
        assert!(error.contains("bad.yaml") && error.contains(expected), "{error}");
    }
    assert_eq!(run(&["--listen", "nowhere"]).status.code(), Some(64));
    assert_eq!(run(&["--config", Path::new("/does/not/exist").to_str().unwrap()]).status.code(), Some(64));
}

#[test]
fn the_environment_counts_as_flags() {
    let output = command().env("SCHEDULER_LISTEN", "127.0.0.1:7").arg("config").output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("127.0.0.1:7"));
}

#[test]
fn a_taken_port_is_said_plainly() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(&["--listen", &address, "--http", "127.0.0.1:0"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("address in use") && error.contains("--listen"), "{error}");
}
