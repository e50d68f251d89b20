//! Every task of this host: opening one joins the download under way, reads what is here, or starts a download.
//!
//! **One download per task and host**: the table of flights has one entry a task, made and removed under its lock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use damselfly_core::swarm::{Held, Holding, HostInfo, Origin, SourceWish};
use damselfly_core::{
    Audience, ByteRange, Geometry, Identity, Moment, PeerId, PieceSet, RangeWish, TaskId, default_piece_length,
    short_piece_length,
};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::download;
use super::driver::Driver;
use super::flight::{Flight, Outcome, Phase, Seat};
use super::metrics::Metrics;
use super::piece_sync::PieceSync;
use super::rescue::Rescue;
use super::source::Expected;
use super::stream::ContentStream;
use super::transport::DataClient;
use crate::backend::{Backend, SourceRequest, SourceResponse};
use crate::limit::{Limiter, Priority};
use crate::net::NetError;
use crate::scheduler_client::SchedulerClient;
use crate::storage::{DroppedTask, NewTask, Storage, StoredTask};

/// A reader so many pieces ahead of the source stream gets a stream of its own.
const FAR: u32 = 8;

/// How many pieces come in turns at a time. More than the machine's own number, which fills links on which every transfer
/// runs at full speed from its first byte: a piece is short beside what TCP needs to get up to speed (docs/performance.md).
const TURNS: u32 = 8;

/// How often an opener joins again when the download that it joined had just ended.
const JOIN_TRIES: u32 = 4;

/// What says how a request is sent or which bytes of which host are wanted, rather than what a content is like: no task
/// of ours varies by these, and nobody else may make us send them.
const NEVER_ASKED: [HeaderName; 14] = [
    header::AUTHORIZATION,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::COOKIE,
    header::EXPECT,
    header::HOST,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_RANGE,
    header::PROXY_AUTHORIZATION,
    header::RANGE,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What a task needs to be downloaded, and what makes it this task and no other.
#[derive(Clone, Debug)]
pub struct TaskSpec {
    /// What it is.
    pub identity: Identity,
    /// How its source is asked.
    pub source: SourceRequest,
    /// Its length and answer headers, where a probe or an answer under way has told them. Always, save for tasks named
    /// by their digest.
    pub known: Option<Known>,
    /// The user's tag, or empty.
    pub tag: String,
    /// The user's application, or empty.
    pub application: String,
    /// Whether this host may fetch it from the source at all, or is asked to.
    pub source_wish: SourceWish,
    /// Whether its source is asked with credentials, be they the caller's or this host's certificate.
    pub with_credentials: bool,
    /// Whom the content may be given to, as long as nothing better is known.
    pub audience: Audience,
    /// Told when the source answers this request with the content.
    pub admission: Admission,
    /// How urgent it is to the caller.
    pub priority: Priority,
}

/// Whether the source has answered the request of one [`TaskSpec`] with the content: then its sender may have it.
///
/// Clones are the same. Only the request that the source was really asked with is admitted, not others that joined its
/// download.
#[derive(Clone, Debug, Default)]
pub struct Admission(Arc<OnceLock<Vec<HeaderValue>>>);

impl Admission {
    /// Notes that the source answered, with these headers.
    pub(crate) fn grant(&self, answer: &HeaderMap) {
        self.0.get_or_init(|| answer.get_all(header::SET_COOKIE).iter().cloned().collect());
    }

    /// The cookies that the source's answer set for the sender of the request; `None` if it was not asked, or said no.
    pub fn cookies(&self) -> Option<&[HeaderValue]> {
        self.0.get().map(Vec::as_slice)
    }
}

/// What is known of a content before it is downloaded.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its length in bytes.
    pub length: u64,
    /// The origin's answer headers that are worth keeping with it.
    pub headers: HeaderMap,
}

impl TaskSpec {
    /// The task that another host has named, to be fetched from its source on behalf of the others; `None` where that
    /// needs more than a plain GET of its URL.
    pub fn on_behalf(origin: &Origin) -> Option<Self> {
        let digest = origin.digest.as_deref().and_then(|digest| digest.parse().ok()).map(Identity::Digest);
        let identity = match &origin.content {
            Some(content) => Identity::from_content(content)?,
            None => digest?,
        };
        let audience = if identity.digest().is_some() { Audience::Private } else { Audience::Public };
        let mut headers = HeaderMap::new();
        let mut known = None;
        if let Identity::Version { url, length, vary, .. } = &identity {
            // Nobody may have one URL's content fetched in the name of another's.
            if *url != origin.url {
                return None;
            }
            known = Some(Known { length: *length, headers: HeaderMap::new() });
            for (name, value) in vary {
                let name = HeaderName::try_from(name).ok().filter(|name| !NEVER_ASKED.contains(name))?;
                headers.append(name, HeaderValue::try_from(value).ok()?);
            }
        }
        Some(Self {
            identity,
            source: SourceRequest::new(origin.url.parse().ok()?, headers).following_redirects().for_others(),
            known,
            tag: origin.tag.clone(),
            application: origin.application.clone(),
            source_wish: SourceWish::Wanted,
            with_credentials: false,
            // A digest's content is given to this host's own callers when their registry says so.
            audience,
            admission: Admission::default(),
            priority: Priority::default(),
        })
    }

    /// How a content of `length` bytes is cut; `None` where that makes no sensible task.
    pub(crate) fn geometry(&self, length: u64) -> Option<Geometry> {
        let piece_length = match &self.identity {
            // Nobody but our own hosts has such a task.
            Identity::Version { piece_length, .. } => piece_length.unwrap_or_else(|| short_piece_length(length)),
            // Nobody's wish is in a digest, so nobody's wish may cut it: all hosts have to agree on its pieces.
            Identity::Digest(_) => default_piece_length(length),
        };
        Geometry::new(length, piece_length).ok()
    }

    pub(crate) fn expected(&self) -> Expected {
        let validators = match &self.identity {
            Identity::Version { validators, .. } => validators.clone(),
            Identity::Digest(_) => Default::default(),
        };
        let by_digest = self.identity.digest().is_some();
        Expected { validators, length: self.known.as_ref().map(|known| known.length), by_digest }
    }

    pub(crate) fn origin(&self) -> Origin {
        let url = match &self.identity {
            Identity::Version { url, .. } => url.clone(),
            Identity::Digest(_) => without_query(&self.source.uri),
        };
        Origin {
            url,
            content: self.identity.content(),
            digest: self.identity.digest().map(|digest| digest.to_string()),
            tag: self.tag.clone(),
            application: self.application.clone(),
            private: self.with_credentials,
            plain: None,
        }
    }

    pub(crate) fn new_task(&self, geometry: Geometry, headers: &HeaderMap) -> NewTask {
        NewTask {
            id: self.identity.task_id(),
            geometry,
            digest: self.identity.digest(),
            origin: self.origin(),
            headers: headers
                .iter()
                // A cookie is for whom it was set, and for nobody else.
                .filter(|(name, _)| *name != header::SET_COOKIE)
                .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
                .collect(),
            audience: self.audience,
        }
    }
}

fn without_query(uri: &http::Uri) -> String {
    let scheme = uri.scheme_str().unwrap_or("http");
    let host = uri.host().unwrap_or_default();
    let port = uri.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{scheme}://{host}{port}{}", uri.path())
}

/// What opening a task comes to.
#[derive(Debug)]
pub enum Opened {
    /// The bytes, as they come.
    Content(ContentStream),
    /// The content is known, and the range asked for lies outside.
    Unsatisfiable {
        /// The content's length in bytes.
        length: u64,
    },
    /// The origin's own answer, which is no content to share: pass it on untouched.
    Origin(SourceResponse),
}

/// Why a task could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The source could not be reached, and nobody else could help.
    #[error("{0}")]
    Source(Arc<NetError>),
    /// The source serves another version than the one that this task means: ask again what it serves.
    #[error("the content changed at its source")]
    Changed,
    /// Our own trouble: go to the origin without us.
    #[error("{0}")]
    Local(String),
    /// No download is begun for now, which was said once: likewise.
    #[error("no download is begun: {0}")]
    NoDownload(String),
}

/// The limits of this module.
#[derive(Clone, Debug)]
pub struct Config {
    /// The download machine's own limits and waits.
    pub download: download::Config,
    /// How many downloads may be under way at once; one more goes directly to its origin.
    pub max_downloads: usize,
    /// How long a parent may give no byte of a piece.
    pub stall: Duration,
    /// How long the source may give no byte.
    pub source_silence: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            download: download::Config { far: FAR, turns_at_once: TURNS, ..download::Config::default() },
            max_downloads: 512,
            stall: Duration::from_secs(3),
            source_silence: Duration::from_secs(60),
        }
    }
}

/// What tasks stand on.
#[derive(Clone)]
pub struct Parts {
    /// Who this host is.
    pub host: HostInfo,
    /// Where content is kept.
    pub storage: Storage,
    /// How sources are asked.
    pub backend: Backend,
    /// How the scheduler is asked.
    pub scheduler: Arc<dyn SchedulerClient>,
    /// How parents are asked which pieces they have.
    pub pieces: PieceSync,
    /// How parents are asked for pieces.
    pub data: DataClient,
    /// How fast content may come.
    pub limiter: Limiter,
    /// What is counted.
    pub metrics: Metrics,
}

/// The tasks of this host. Clones are the same tasks.
#[derive(Clone)]
pub struct Tasks(Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) parts: Parts,
    started: Instant,
    flights: Mutex<HashMap<TaskId, Arc<Flight>>>,
    /// Changes when a download has ended.
    ended: watch::Sender<()>,
    /// No further download is begun.
    closed: AtomicBool,
}

impl Tasks {
    /// No download is under way yet.
    pub fn new(config: Config, parts: Parts) -> Self {
        Self(Arc::new(Shared {
            config,
            parts,
            started: Instant::now(),
            flights: Mutex::default(),
            ended: watch::Sender::new(()),
            closed: AtomicBool::new(false),
        }))
    }

    /// Whether this host holds the whole task, or is downloading it.
    pub fn holds(&self, id: &TaskId) -> bool {
        self.0.flights().contains_key(id) || self.0.parts.storage.get(id).is_some_and(|stored| stored.is_held())
    }

    /// Whom the stored content of a task may be given to; `None` where nothing is stored.
    pub fn audience(&self, id: &TaskId) -> Option<Audience> {
        self.0.parts.storage.peek(id).map(|stored| stored.audience())
    }

    /// Whether this host is downloading the task.
    pub fn is_downloading(&self, id: &TaskId) -> bool {
        self.0.flights().contains_key(id)
    }

    /// Whether some of this URL's content may be nearer than its origin: here, or with another host.
    pub fn may_have(&self, url: &str) -> bool {
        self.0.parts.scheduler.is_shared() || self.0.parts.storage.has_url(url)
    }

    /// How many downloads are under way.
    pub fn in_flight(&self) -> usize {
        self.0.flights().len()
    }

    /// Begins no further download. What is here is read, and downloads that are under way can be joined; everything else
    /// is the origin's to answer.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
    }

    /// Resolves when no download is under way.
    pub async fn at_rest(&self) {
        // The sender is ours, so it is there.
        let _ = self.0.ended.subscribe().wait_for(|()| self.in_flight() == 0).await;
    }

    /// The part that this host takes in the task that `stream` reads.
    pub fn peer_of(&self, stream: &ContentStream) -> PeerId {
        let flight = self.0.flights().get(&stream.task_id()).map(|flight| flight.peer.clone());
        flight.unwrap_or_else(|| peer_id(&self.0.parts.host, &stream.task_id()))
    }

    /// What this host holds, for a scheduler that does not know it.
    pub fn holdings(&self) -> Vec<Holding> {
        let parts = &self.0.parts;
        let stored = parts.storage.list().into_iter().filter(|task| task.audience != Audience::Host);
        let stored = stored.filter_map(|task| parts.storage.peek(&task.id));
        let holdings = stored.map(|stored| Holding {
            task: stored.id(),
            peer: peer_id(&parts.host, &stored.id()),
            origin: Origin { private: stored.audience() != Audience::Public, ..stored.origin().clone() },
            held: stored.held(),
        });
        holdings.filter(|holding| !holding.held.pieces.is_empty()).collect()
    }

    /// What this host holds no longer, as holdings without pieces; `None` if it was too much to remember.
    pub fn dropped(&self) -> Option<Vec<Holding>> {
        let parts = &self.0.parts;
        let holding = |DroppedTask { id, geometry, origin }| Holding {
            task: id,
            peer: peer_id(&parts.host, &id),
            origin,
            held: Held { geometry, pieces: Vec::new() },
        };
        Some(parts.storage.take_dropped()?.into_iter().map(holding).collect())
    }

    /// Changes when this host holds something no longer.
    pub fn drops(&self) -> watch::Receiver<u64> {
        self.0.parts.storage.drops()
    }

    #[cfg(test)]
    pub(crate) fn parts_for_tests(&self) -> Parts {
        self.0.parts.clone()
    }

    /// A driver that does not run.
    #[cfg(test)]
    pub(crate) fn driver_for_tests(&self, spec: &TaskSpec) -> Driver {
        let flight = {
            let id = spec.identity.task_id();
            self.0.new_flight(id, spec)
        };
        Driver::new(Arc::clone(&self.0), flight, spec.clone(), None, oneshot::channel().0)
    }

    /// A reader of the range of a task that `wish` means.
    ///
    /// `under_way` is the answer of the source to a GET for everything, if somebody already has it: it becomes the
    /// download's source stream, or is dropped if the bytes are to be had nearer.
    ///
    /// # Errors
    /// See [`OpenError`]. Once a stream is returned, trouble is the stream's.
    pub async fn open(
        &self,
        spec: TaskSpec,
        wish: RangeWish,
        mut under_way: Option<SourceResponse>,
    ) -> Result<Opened, OpenError> {
        if let Some(why) = self.0.parts.storage.missing() {
            return under_way.map_or(Err(OpenError::NoDownload(why)), |response| Ok(Opened::Origin(response)));
        }
        let id = spec.identity.task_id();
        for _ in 0..JOIN_TRIES {
            if let Some(stored) = self.0.parts.storage.get(&id).filter(|stored| can_read(stored, wish)) {
                return Ok(self.0.content(stored, wish, &spec, None));
            }
            let opened = match self.0.join_or_start(&spec, wish, &mut under_way) {
                Ok((seat, origin)) => self.0.settle(seat, origin, wish, &spec).await,
                Err(error) => Err(error),
            };
            match (opened, under_way.take()) {
                (Ok(Some(opened)), _) => return Ok(opened),
                // The one that joined still has an answer of its own that nobody has read from.
                (Err(OpenError::Local(_) | OpenError::NoDownload(_) | OpenError::Source(_)), Some(response)) => {
                    return Ok(Opened::Origin(response));
                }
                (Err(error), _) => return Err(error),
                (Ok(None), response) => under_way = response,
            }
        }
        Err(OpenError::Local("the download kept ending before it could be joined".into()))
    }
}

impl Shared {
    /// Now, on the clock that the machines of this process are told.
    pub(crate) fn now(&self) -> Moment {
        Moment::after_start(self.started.elapsed())
    }

    /// The instant that a machine's moment means.
    pub(crate) fn instant(&self, moment: Moment) -> Instant {
        self.started + moment.since_start()
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<TaskId, Arc<Flight>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new_flight(&self, id: TaskId, spec: &TaskSpec) -> Arc<Flight> {
        Flight::new(id, peer_id(&self.parts.host, &id), self.parts.limiter.task_flow(&id, spec.priority))
    }

    /// Takes `flight` out of the table, so that whoever opens the task next starts afresh.
    pub(crate) fn remove(&self, flight: &Arc<Flight>) {
        let mut flights = self.flights();
        if flights.get(&flight.id).is_some_and(|present| Arc::ptr_eq(present, flight)) {
            flights.remove(&flight.id);
            drop(flights);
            self.ended.send_replace(());
        }
    }

    fn join_or_start(
        self: &Arc<Self>,
        spec: &TaskSpec,
        wish: RangeWish,
        under_way: &mut Option<SourceResponse>,
    ) -> Result<(Seat, Option<oneshot::Receiver<SourceResponse>>), OpenError> {
        let id = spec.identity.task_id();
        let mut flights = self.flights();
        if let Some(seat) = flights.get(&id).and_then(|flight| flight.sit(wish, spec.priority)) {
            return Ok((seat, None));
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(OpenError::NoDownload("this process is ending".into()));
        }
        if flights.len() >= self.config.max_downloads {
            return Err(OpenError::Local("too many downloads are under way".into()));
        }
        let flight = self.new_flight(id, spec);
        let Some(seat) = flight.sit(wish, spec.priority) else {
            return Err(OpenError::Local("a new download was closed".into()));
        };
        flights.insert(id, Arc::clone(&flight));
        drop(flights);
        let (leader, origin) = oneshot::channel();
        let driver = Driver::new(Arc::clone(self), flight, spec.clone(), under_way.take(), leader);
        tokio::spawn(driver.run());
        Ok((seat, Some(origin)))
    }
}

/// How a reader gets what the store does not give: by a download of what is left of its range, or past the store.
pub(crate) struct Again {
    shared: Arc<Shared>,
    spec: TaskSpec,
}

impl Again {
    /// Joins the download under way, or starts one.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn join(&self, range: ByteRange) -> Result<Seat, OpenError> {
        let wish = RangeWish::Span(range.start(), range.end().saturating_sub(1));
        Ok(self.shared.join_or_start(&self.spec, wish, &mut None)?.0)
    }

    /// What it takes to go on without the store; `None` where the source may not be used.
    pub(crate) fn rescue(&self) -> Option<Rescue> {
        (self.spec.source_wish != SourceWish::Forbidden).then(|| Rescue {
            backend: self.shared.parts.backend.clone(),
            request: self.spec.source.clone(),
            expected: self.spec.expected(),
            silence: self.shared.config.source_silence,
            flow: self.shared.parts.limiter.task_flow(&self.spec.identity.task_id(), self.spec.priority),
        })
    }
}

/// The part that this host takes in one task: always the same, so that a scheduler which hears of it twice knows it.
fn peer_id(host: &HostInfo, task: &TaskId) -> PeerId {
    let hash = blake3::keyed_hash(task.as_bytes(), host.id.as_str().as_bytes());
    let bits = hash.as_bytes().first_chunk().map_or(0, |bits| u128::from_be_bytes(*bits));
    PeerId::new(host.ip, &host.hostname, bits, host.seed)
}

/// Whether a reader needs no download: everything that it wants is here. A whole whose digest is known must have been
/// compared with it once.
fn can_read(stored: &StoredTask, wish: RangeWish) -> bool {
    let length = stored.geometry().length();
    match wish.resolve(length) {
        None => true,
        Some(range) if range.len() == length => stored.is_held() && (stored.digest().is_none() || stored.is_verified()),
        Some(range) => stored.holds(range),
    }
}

/// Whether the store has room for what a reader wants, who may have joined a download that wants less.
async fn fits(stored: &StoredTask, wish: RangeWish) -> bool {
    let geometry = stored.geometry();
    let Some(range) = wish.resolve(geometry.length()) else { return true };
    let mut wanted = PieceSet::empty(geometry.count());
    wanted.extend(geometry.covering(range));
    let stored = stored.clone();
    tokio::task::spawn_blocking(move || stored.would_fit(&wanted)).await.unwrap_or(false)
}

impl Shared {
    /// Waits until the download knows its length or has ended; `None` means: it is over, open again.
    async fn settle(
        self: &Arc<Self>,
        seat: Seat,
        origin: Option<oneshot::Receiver<SourceResponse>>,
        wish: RangeWish,
        spec: &TaskSpec,
    ) -> Result<Option<Opened>, OpenError> {
        let mut phase = seat.flight().phase();
        let settled = phase.wait_for(|phase| phase.stored.is_some() || phase.outcome.is_some()).await;
        let outcome = match settled.map(|phase| phase.clone()) {
            // What was asked of it is in the store, whether it goes on or has ended meanwhile.
            Ok(Phase { stored: Some(stored), outcome: None | Some(Outcome::Done) }) => {
                if !fits(&stored, wish).await {
                    return Err(OpenError::Local("the store has no room for what is wanted".into()));
                }
                return Ok(Some(self.content(stored, wish, spec, Some(seat))));
            }
            Ok(Phase { outcome: Some(outcome), .. }) => outcome,
            Ok(Phase { outcome: None, .. }) | Err(_) => {
                return Err(OpenError::Local("the download was given up".into()));
            }
        };
        // The starter gets the origin's own answer back, whatever else was the matter.
        if let Some(mut origin) = origin
            && let Ok(response) = origin.try_recv()
        {
            return Ok(Some(Opened::Origin(response)));
        }
        match outcome {
            // Who joined a download that its source refused may be one to whom it says yes.
            Outcome::Done | Outcome::Abandoned | Outcome::Refused => Ok(None),
            Outcome::Source(error) => Err(OpenError::Source(error)),
            Outcome::Changed => Err(OpenError::Changed),
            Outcome::Digest => Err(OpenError::Local("the content did not have its digest".into())),
            Outcome::Local(why) => Err(OpenError::Local(why)),
        }
    }

    fn content(self: &Arc<Self>, stored: StoredTask, wish: RangeWish, spec: &TaskSpec, seat: Option<Seat>) -> Opened {
        let length = stored.geometry().length();
        match wish.resolve(length) {
            None => Opened::Unsatisfiable { length },
            Some(range) => {
                let headers = match &spec.known {
                    Some(known) => known.headers.clone(),
                    None => kept_headers(&stored),
                };
                let again = Again { shared: Arc::clone(self), spec: spec.clone() };
                Opened::Content(ContentStream::new(stored, range, headers, seat, again))
            }
        }
    }
}

fn kept_headers(stored: &StoredTask) -> HeaderMap {
    let parsed = stored.headers().iter().filter_map(|(name, value)| {
        Some((HeaderName::try_from(name.as_str()).ok()?, HeaderValue::from_bytes(value).ok()?))
    });
    let mut headers = HeaderMap::new();
    for (name, value) in parsed {
        headers.append(name, value);
    }
    headers
}
