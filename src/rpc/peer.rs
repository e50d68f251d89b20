//! The peer gRPC service (`dfdaemon.v2.DfdaemonUpload`): what other hosts and the scheduler ask of this daemon.
//!
//! SyncPieces tells children which pieces are here, from the storage; [`super::peer_pieces`] makes that stream.
//! DownloadTask makes a seed fetch a task, by way of [`SeedTrigger`]. The data itself goes over the piece data port.
//! RPCs that are not served answer UNIMPLEMENTED.
//!
//! **No stream outlives the drain's beginning.** Who asks for one after that is told so until the drain closes. **No client opens more of them than [`Config`] allows.**

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use damselfly_api::convert::{self, MAX_MESSAGE, SeedWish};
use damselfly_api::dfdaemon::dfdaemon_upload_server::{DfdaemonUpload, DfdaemonUploadServer};
use damselfly_api::dfdaemon::{DownloadTaskRequest, DownloadTaskResponse, SyncPiecesRequest, SyncPiecesResponse};
use damselfly_api::member::{self, Caller, DemandMember};
pub use damselfly_api::member::{MemberError, Membership};
pub use damselfly_api::token::DemandToken;
use damselfly_core::swarm::Origin;
use damselfly_core::{Audience, Geometry, HostId, PeerId, TaskId};
use damselfly_runtime::{Guard, Watch};
use futures_util::{Stream, StreamExt, stream};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::codegen::BoxStream;
use tonic::service::InterceptorLayer;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::peer_pieces;
use crate::storage::Storage;

/// The most bytes of a connection's request headers.
const MAX_HEADERS: u32 = 16 * 1024;

/// The peer service's limits.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where this host serves piece data, as children are told.
    pub data_addr: SocketAddr,
    /// The most streams open at once, over all connections.
    pub max_streams: usize,
    /// The most streams open at once on one connection.
    pub max_streams_of_one: u32,
    /// A child that was told nothing for so long is told that this is all.
    pub quiet: Duration,
    /// After so much silence a connection is asked for a sign of life.
    pub keepalive_interval: Duration,
    /// How long that sign may take.
    pub keepalive_timeout: Duration,
    /// The fleet's token, without which nobody is heard.
    pub token: DemandToken,
    /// What is shown to those who speak TLS.
    pub membership: Option<Membership>,
    /// Whether only members are heard.
    pub members_only: bool,
}

impl Config {
    /// The defaults of a host that serves piece data at `data_addr`.
    pub fn new(data_addr: SocketAddr) -> Self {
        Self {
            data_addr,
            max_streams: 4096,
            max_streams_of_one: 256,
            quiet: Duration::from_secs(60),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(10),
            token: DemandToken::default(),
            membership: None,
            members_only: false,
        }
    }
}

/// What the peer service counts. Clones share their values.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(super) streams: Gauge,
    pub(super) refused: Counter,
    pub(super) announced: Counter,
    pub(super) seeded: Counter,
}

impl Metrics {
    /// Makes them visible.
    pub fn register(&self, registry: &mut Registry) {
        let name = |name: &str| format!("dragonfly_client_{name}");
        registry.register(name("peer_streams"), "Streams open to children and schedulers", self.streams.clone());
        registry.register(name("peer_refused"), "Calls refused because of too many streams", self.refused.clone());
        registry.register(name("peer_pieces_announced"), "Pieces announced to children", self.announced.clone());
        registry.register(name("seed_downloads"), "Downloads asked of this seed", self.seeded.clone());
    }
}

/// Whether this host is downloading a task.
pub type Downloading = Arc<dyn Fn(&TaskId) -> bool + Send + Sync>;

/// A download that a seed was asked for.
pub struct Seeding {
    /// Which task it became.
    pub task: TaskId,
    /// The peer that downloads it.
    pub peer: PeerId,
    /// The content's length in bytes.
    pub length: u64,
    /// Resolves when the content is here, or with why not. Dropping it does not stop the download.
    pub done: Pin<Box<dyn Future<Output = Result<(), SeedRefused>> + Send>>,
}

/// Why a seed does not fetch a task, in one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeedRefused {
    /// It cannot be known which task is meant, or it needs more than a plain GET.
    #[error("the task cannot be fetched on behalf of others")]
    Unknown,
    /// It was tried and did not work.
    #[error("{0}")]
    Failed(String),
}

impl From<SeedRefused> for Status {
    fn from(refused: SeedRefused) -> Self {
        let sentence = refused.to_string();
        match refused {
            SeedRefused::Unknown => Self::invalid_argument(sentence),
            SeedRefused::Failed(_) => Self::aborted(sentence),
        }
    }
}

/// Begins downloads that others ask for. Only seeds have one.
#[async_trait]
pub trait SeedTrigger: Send + Sync + 'static {
    /// Begins to fetch a task from its source, or joins the download that runs. Returns once the content's length is
    /// known.
    async fn begin(&self, origin: Origin, geometry: Option<Geometry>) -> Result<Seeding, SeedRefused>;
}

/// The peer gRPC server.
pub struct PeerServer {
    service: Service,
    config: Config,
}

#[derive(Clone)]
struct Service {
    host: HostId,
    storage: Storage,
    downloading: Downloading,
    seed: Option<Arc<dyn SeedTrigger>>,
    config: Config,
    metrics: Metrics,
    streams: Arc<Semaphore>,
    drain: Watch,
}

/// Counts an open stream for as long as it lives, and holds up the drain.
struct Open {
    _permit: OwnedSemaphorePermit,
    _guard: Guard,
    streams: Gauge,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.streams.dec();
    }
}

impl PeerServer {
    /// A server of what `storage` has and `downloading` knows to grow, for `host`. Without `seed` it takes no downloads.
    pub fn new(
        host: HostId,
        storage: Storage,
        downloading: Downloading,
        seed: Option<Arc<dyn SeedTrigger>>,
        config: Config,
        metrics: Metrics,
        drain: Watch,
    ) -> Self {
        let streams = Arc::new(Semaphore::new(config.max_streams));
        let service = Service { host, storage, downloading, seed, config: config.clone(), metrics, streams, drain };
        Self { service, config }
    }

    /// Serves until the drain closes, and then until its streams have ended.
    ///
    /// # Errors
    /// Where the listener fails for good.
    pub async fn serve(self, listener: TcpListener) -> Result<(), tonic::transport::Error> {
        let drain = self.service.drain.clone();
        let (_reporter, health) = tonic_health::server::health_reporter();
        let service = DfdaemonUploadServer::new(self.service)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let incoming = Box::pin(member::incoming(listener, self.config.membership));
        Server::builder()
            .max_concurrent_streams(self.config.max_streams_of_one)
            .http2_max_header_list_size(MAX_HEADERS)
            .http2_keepalive_interval(Some(self.config.keepalive_interval))
            .http2_keepalive_timeout(Some(self.config.keepalive_timeout))
            .layer(InterceptorLayer::new(DemandMember(self.config.members_only)))
            .layer(InterceptorLayer::new(self.config.token))
            .add_service(health)
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, async move { drain.closed().await })
            .await
    }
}

impl Service {
    fn open(&self) -> Result<Open, Status> {
        if self.drain.is_draining() {
            return Err(Status::unavailable("this host is leaving"));
        }
        let permit = Arc::clone(&self.streams).try_acquire_owned().map_err(|_| {
            self.metrics.refused.inc();
            Status::resource_exhausted("too many streams are open")
        })?;
        self.metrics.streams.inc();
        Ok(Open { _permit: permit, _guard: self.drain.guard(), streams: self.metrics.streams.clone() })
    }

    /// A stream that ends with the drain and is counted until then.
    fn kept<T: Send + 'static>(
        &self,
        open: Open,
        items: impl Stream<Item = Result<T, Status>> + Send + 'static,
    ) -> Response<BoxStream<T>> {
        let drain = self.drain.clone();
        let ended = async move { drain.draining().await };
        // `open` lives in the closure, and so as long as the stream.
        let counted = items.take_until(Box::pin(ended)).map(move |item| {
            let _ = &open;
            item
        });
        Response::new(Box::pin(counted))
    }
}

#[async_trait]
impl DfdaemonUpload for Service {
    async fn sync_pieces(
        &self,
        request: Request<SyncPiecesRequest>,
    ) -> Result<Response<BoxStream<SyncPiecesResponse>>, Status> {
        let wanted = convert::pieces_wanted_from_wire(request.get_ref())?;
        let here = request.extensions().get::<Caller>().and_then(|caller| caller.local);
        let open = self.open()?;
        let stored = self.storage.get(&wanted.task).filter(|stored| stored.audience() != Audience::Host);
        let stored = stored.ok_or_else(|| Status::not_found("this host does not have the task"))?;
        let Config { mut data_addr, quiet, .. } = self.config;
        // A host that does not know its own address was reached at this one.
        if let (true, Some(here)) = (data_addr.ip().is_unspecified(), here) {
            data_addr.set_ip(here.ip());
        }
        let downloading = Arc::clone(&self.downloading);
        let pieces = peer_pieces::announce(stored, wanted.pieces, data_addr, quiet, downloading);
        let announced = self.metrics.announced.clone();
        let messages = pieces.map(move |message| {
            announced.inc();
            Ok(message)
        });
        let mut response = self.kept(open, messages);
        convert::mark_turns(response.metadata_mut());
        Ok(response)
    }

    async fn download_task(
        &self,
        request: Request<DownloadTaskRequest>,
    ) -> Result<Response<BoxStream<DownloadTaskResponse>>, Status> {
        let Some(seed) = self.seed.clone() else {
            return Err(Status::unimplemented("this host is no seed"));
        };
        let SeedWish { origin, geometry } = convert::seed_wish_from_wire(request.into_inner())?;
        let open = self.open()?;
        self.metrics.seeded.inc();
        let host = self.host.clone();
        // The head of the answer must not wait for the source.
        let messages =
            stream::once(async move { seed.begin(origin, geometry).await }).flat_map(move |begun| match begun {
                Ok(Seeding { task, peer, length, done }) => {
                    let started = convert::seed_started(&host, &task, &peer, length, false);
                    let end = stream::once(done).filter_map(async |done| done.err().map(|why| Err(why.into())));
                    stream::iter([Ok(started)]).chain(end).boxed()
                }
                Err(why) => stream::iter([Err(why.into())]).boxed(),
            });
        Ok(self.kept(open, messages))
    }
}
