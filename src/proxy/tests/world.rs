//! Origins that answer in raw bytes, and a proxy to ask them through.

use damselfly_core::HostId;
use damselfly_core::swarm::{Answer as Granted, Holdings, HostInfo, Registration};
use tokio::sync::mpsc;

use super::*;
use crate::backend::Backend;
use crate::limit::Limiter;
use crate::mitm::{CertificateAuthority, Interceptor, Policy};
use crate::net::{ClientConfig, HttpClient};
use crate::p2p::{self, Tasks};
use crate::registry::Mirror;
use crate::scheduler_client::{Conversation, SchedulerClient, SchedulerLost};
use crate::storage::Storage;

/// How an origin answers every request.
#[derive(Clone, Copy)]
pub(super) enum Answer {
    /// These bytes, then a clean end.
    Whole(&'static str),
    /// These bytes, then a reset.
    Cut(&'static str),
    /// These bytes, then nothing more.
    Stalled(&'static str),
    /// These bytes, then whatever comes.
    Echo(&'static str),
}

pub(super) type Seen = Arc<Mutex<Vec<String>>>;

/// An origin, and the requests that it has got.
pub(super) async fn origin(answer: Answer) -> (SocketAddr, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let seen = Seen::default();
    let log = seen.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream, answer, log.clone()));
        }
    });
    (addr, seen)
}

async fn serve(mut stream: TcpStream, answer: Answer, log: Seen) {
    let mut request = read_head(&mut stream).await;
    let lower = request.to_lowercase();
    let body_end = if lower.contains("transfer-encoding: chunked") { "\r\n0\r\n" } else { "" };
    let length = lower.split("content-length: ").nth(1).and_then(|l| l.lines().next()?.parse().ok()).unwrap_or(0);
    let head = request.len();
    let mut byte = [0; 1];
    while request.len() < head + length
        || !(body_end.is_empty() || (request.contains(body_end) && request.ends_with("\r\n\r\n")))
    {
        if stream.read_exact(&mut byte).await.is_err() {
            return;
        }
        request.push(byte[0] as char);
    }
    log.lock().unwrap().push(request);
    let (Answer::Whole(raw) | Answer::Cut(raw) | Answer::Stalled(raw) | Answer::Echo(raw)) = answer;
    stream.write_all(raw.as_bytes()).await.unwrap();
    match answer {
        Answer::Whole(_) => stream.shutdown().await.unwrap(),
        // The bytes must be on their way before the reset overtakes them.
        Answer::Cut(_) => {
            tokio::time::sleep(Duration::from_millis(100)).await;
            stream.set_zero_linger().unwrap();
        }
        Answer::Stalled(_) => std::future::pending().await,
        Answer::Echo(_) => {
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.unwrap();
        }
    }
}

/// Grants the source to everyone.
struct Generous;

#[async_trait::async_trait]
impl SchedulerClient for Generous {
    async fn register(&self, _: Registration) -> Result<Conversation, SchedulerLost> {
        let (answers, from_scheduler) = mpsc::channel(1);
        let (reports, mut heard) = mpsc::channel(1);
        answers.send(Granted::GoToSource { pieces: None }).await.unwrap();
        tokio::spawn(async move {
            while heard.recv().await.is_some() {}
            drop(answers);
        });
        Ok(Conversation { reports, answers: from_scheduler })
    }

    async fn announce_host(&self, _: &HostInfo) -> Result<(), SchedulerLost> {
        Ok(())
    }

    async fn announce_holdings(&self, _: Holdings) -> Result<(), SchedulerLost> {
        Ok(())
    }

    fn wants_holdings(&self) -> bool {
        false
    }

    async fn leave(&self, _: &HostId) -> Result<(), SchedulerLost> {
        Ok(())
    }
}

fn tasks(http: HttpClient, limiter: Limiter) -> Tasks {
    let ip = [127, 0, 0, 1].into();
    let host = HostInfo {
        id: HostId::new(ip, "test", false),
        seed: false,
        hostname: "test".into(),
        ip,
        rpc_port: 0,
        data_port: 0,
        proxy_port: None,
        upload_slots: 1,
        idc: String::new(),
        location: String::new(),
        tls: false,
    };
    let parts = p2p::Parts {
        host,
        storage: Storage::in_memory(1 << 30),
        backend: Backend::new(http),
        scheduler: Arc::new(Generous),
        pieces: Default::default(),
        data: Default::default(),
        limiter,
        metrics: p2p::Metrics::default(),
    };
    Tasks::new(p2p::Config::default(), parts)
}

/// A proxy called `test` on a port of its own.
pub(super) struct World {
    pub(super) proxy: SocketAddr,
    pub(super) drain: Drain,
    pub(super) serving: tokio::task::JoinHandle<()>,
    /// The CA that its clients have to trust.
    pub(super) ca_pem: String,
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with(Config::default()).await
    }

    pub(super) async fn with(config: Config) -> Self {
        Self::built(config, ClientConfig::default(), &[]).await
    }

    /// Origins are reached as `client` says; these hosts are intercepted.
    pub(super) async fn built(config: Config, client: ClientConfig, intercepted: &[&str]) -> Self {
        Self::limited(config, client, intercepted, Limiter::default()).await
    }

    /// Bytes move as fast as `limiter` allows.
    pub(super) async fn limited(config: Config, client: ClientConfig, intercepted: &[&str], limiter: Limiter) -> Self {
        let home = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::load_or_create(home.path()).unwrap();
        let ca_pem = ca.pem().to_owned();
        let intercepted = intercepted.iter().map(|host| host.parse().unwrap()).collect();
        let drain = Drain::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = listener.local_addr().unwrap();
        let http = HttpClient::new(client).unwrap();
        let parts = Parts {
            tasks: tasks(http.clone(), limiter.clone()),
            http,
            policy: Policy::new(intercepted),
            interceptor: Interceptor::new(ca).unwrap(),
            mirror: Mirror::new(None).unwrap(),
            upstreams: Vec::new(),
            drain: drain.watch(),
            limiter,
            metrics: Metrics::default(),
        };
        let config = Config { id: "test".into(), ..config };
        let serving = tokio::spawn(Proxy::new(config, parts).serve(listener));
        Self { proxy, drain, serving, ca_pem }
    }
}

/// Sends raw bytes and returns all that comes back until the end.
pub(super) async fn ask(proxy: SocketAddr, request: &str) -> String {
    let mut client = TcpStream::connect(proxy).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(HANG, client.read_to_end(&mut answer)).await.expect("the connection ends").unwrap();
    String::from_utf8(answer).unwrap()
}

/// A GET by way of the proxy, with these header lines.
pub(super) async fn get(proxy: SocketAddr, origin: SocketAddr, path: &str, headers: &str) -> String {
    ask(proxy, &format!("GET http://{origin}{path} HTTP/1.1\r\nHost: {origin}\r\nConnection: close\r\n{headers}\r\n"))
        .await
}

/// Reads to the end of one head.
pub(super) async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = String::new();
    let mut byte = [0; 1];
    while !head.ends_with("\r\n\r\n") {
        match tokio::time::timeout(HANG, stream.read_exact(&mut byte)).await.expect("a head comes") {
            Ok(_) => head.push(byte[0] as char),
            Err(_) => break,
        }
    }
    head
}
