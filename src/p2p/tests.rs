//! Tasks on a real store in memory, a real origin on loopback, and a scheduler that says what the test wants.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use damselfly_core::swarm::{Answer, Holdings, HostInfo, PieceFault, Registration, Report, SourceWish};
use damselfly_core::{
    Audience, ByteRange, Digest, Geometry, HostId, Identity, PieceNumber, RangeWish, Validators, swarm,
};
use futures_util::StreamExt as _;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::flight::Outcome;
use super::rescue::Rescue;
use super::*;
use crate::backend::{Backend, SourceRequest};
use crate::limit::{Limiter, Priority};
use crate::net::{ClientConfig, HttpClient};
use crate::scheduler_client::{Conversation, SchedulerClient, SchedulerLost};
use crate::storage::Storage;

const LENGTH: usize = 9 << 20;

fn content() -> Bytes {
    (0..LENGTH).map(|index| ((index * 31) >> 3) as u8).collect::<Vec<u8>>().into()
}

/// Serves one content, whole or by range, and counts.
#[derive(Default)]
struct Origin {
    content: Mutex<Bytes>,
    etag: Mutex<String>,
    requests: AtomicU64,
    /// The bodies of the first so many answers break off after a third.
    cuts: AtomicU64,
}

impl Origin {
    async fn start(self: Arc<Self>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/file", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let origin = Arc::clone(&self);
                let service = service_fn(move |request| {
                    let answer = origin.answer(&request);
                    async move { Ok::<_, std::convert::Infallible>(answer) }
                });
                tokio::spawn(async move {
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    // A client that goes away is part of the tests.
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        url
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<crate::net::Body> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let content = self.content.lock().unwrap().clone();
        let range = request.headers().get("range").map(|range| {
            let (first, last) = range.to_str().unwrap().strip_prefix("bytes=").unwrap().split_once('-').unwrap();
            let last = if last.is_empty() { content.len() - 1 } else { last.parse().unwrap() };
            (first.parse::<usize>().unwrap(), last)
        });
        let mut answer = Response::builder().header("etag", self.etag.lock().unwrap().as_str());
        let body = match range {
            Some((first, last)) => {
                let range = format!("bytes {first}-{last}/{}", content.len());
                answer = answer.status(StatusCode::PARTIAL_CONTENT).header("content-range", range);
                content.slice(first..=last)
            }
            None => content,
        };
        answer = answer.header("content-length", body.len());
        let cut = self.cuts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |cuts| cuts.checked_sub(1)).is_ok();
        let body = if cut {
            let third = body.slice(..body.len() / 3);
            let frames = [Ok(http_body::Frame::data(third)), Err("cut".into())];
            http_body_util::StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
        } else {
            Full::new(body).map_err(|never| match never {}).boxed_unsync()
        };
        answer.body(body).unwrap()
    }
}

/// Grants the source to whoever registers, or is not there at all.
struct Scheduler {
    there: bool,
    reports: Mutex<Vec<Report>>,
}

#[async_trait::async_trait]
impl SchedulerClient for Arc<Scheduler> {
    async fn register(&self, _: Registration) -> Result<Conversation, SchedulerLost> {
        if !self.there {
            return Err(SchedulerLost("there is none".into()));
        }
        let (answers, from_scheduler) = mpsc::channel(4);
        let (reports, mut heard) = mpsc::channel(4);
        answers.send(Answer::GoToSource { pieces: None }).await.unwrap();
        let scheduler = Arc::clone(self);
        tokio::spawn(async move {
            while let Some(report) = heard.recv().await {
                scheduler.reports.lock().unwrap().push(report);
            }
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

struct House {
    origin: Arc<Origin>,
    scheduler: Arc<Scheduler>,
    tasks: Tasks,
    url: String,
}

impl House {
    async fn new(there: bool) -> Self {
        let origin = Arc::new(Origin::default());
        *origin.content.lock().unwrap() = content();
        *origin.etag.lock().unwrap() = "\"1\"".into();
        let url = Arc::clone(&origin).start().await;
        let scheduler = Arc::new(Scheduler { there, reports: Mutex::default() });
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
        let parts = Parts {
            host,
            storage: Storage::in_memory(1 << 30),
            backend: backend(),
            scheduler: Arc::new(Arc::clone(&scheduler)),
            pieces: Default::default(),
            data: Default::default(),
            limiter: Limiter::default(),
            metrics: Metrics::default(),
        };
        Self { origin, scheduler, tasks: Tasks::new(Config::default(), parts), url }
    }

    fn version(&self) -> TaskSpec {
        let validators = Validators { etag: Some("\"1\"".into()), last_modified: None };
        let identity = Identity::Version {
            url: self.url.clone(),
            validators,
            length: LENGTH as u64,
            vary: Vec::new(),
            tag: String::new(),
            application: String::new(),
            piece_length: None,
        };
        let known = Some(Known { length: LENGTH as u64, headers: HeaderMap::new() });
        TaskSpec { identity, known, ..self.blob(content().as_ref()) }
    }

    fn blob(&self, content: &[u8]) -> TaskSpec {
        TaskSpec {
            identity: Identity::Digest(Digest::sha256(Sha256::digest(content).into())),
            source: SourceRequest::new(self.url.parse().unwrap(), HeaderMap::new()),
            known: None,
            tag: String::new(),
            application: String::new(),
            source_wish: SourceWish::Allowed,
            with_credentials: false,
            audience: Audience::Public,
            admission: Admission::default(),
            priority: Priority::default(),
        }
    }

    async fn open(&self, spec: TaskSpec, wish: RangeWish) -> ContentStream {
        match self.tasks.open(spec, wish, None).await.unwrap() {
            Opened::Content(stream) => stream,
            other => panic!("{other:?}"),
        }
    }

    fn requests(&self) -> u64 {
        self.origin.requests.load(Ordering::Relaxed)
    }
}

fn backend() -> Backend {
    Backend::new(HttpClient::new(ClientConfig::default()).unwrap())
}

async fn all(stream: ContentStream) -> Result<Bytes, Broken> {
    Ok(stream.collect().await?.to_bytes())
}

#[tokio::test]
async fn a_cold_task_comes_from_the_source_and_a_warm_one_does_not() {
    let house = House::new(true).await;
    let stream = house.open(house.version(), RangeWish::Whole).await;
    let traffic = stream.traffic();
    assert_eq!(all(stream).await.unwrap(), content());
    assert_eq!(traffic.source.load(Ordering::Relaxed), LENGTH as u64);
    let stream = house.open(house.version(), RangeWish::Span(5, 5_000_000)).await;
    let traffic = stream.traffic();
    assert_eq!(all(stream).await.unwrap(), content().slice(5..=5_000_000));
    assert_eq!(traffic.local.load(Ordering::Relaxed), 4_999_996);
    assert_eq!(house.requests(), 1);
}

#[tokio::test]
async fn many_readers_are_one_download() {
    let house = House::new(true).await;
    let readers = (0..20u64).map(|reader| {
        let (tasks, spec) = (house.tasks.clone(), house.version());
        tokio::spawn(async move {
            let wish = if reader % 2 == 0 { RangeWish::Whole } else { RangeWish::From(reader * 100_000) };
            let Ok(Opened::Content(stream)) = tasks.open(spec, wish, None).await else { panic!("not opened") };
            let range = stream.range();
            let got = all(stream).await.unwrap();
            assert_eq!(got, content().slice(range.start() as usize..range.end() as usize));
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.await.unwrap();
    }
    assert_eq!(house.requests(), 1);
}

#[tokio::test]
async fn without_a_scheduler_the_source_serves() {
    let house = House::new(false).await;
    let stream = house.open(house.version(), RangeWish::Whole).await;
    assert_eq!(all(stream).await.unwrap(), content());
}

#[tokio::test]
async fn a_source_that_breaks_off_is_taken_up_where_it_broke() {
    let house = House::new(true).await;
    house.origin.cuts.store(2, Ordering::Relaxed);
    let stream = house.open(house.version(), RangeWish::Whole).await;
    assert_eq!(all(stream).await.unwrap(), content());
    assert_eq!(house.requests(), 3);
}

#[tokio::test]
async fn a_blob_of_unknown_length_is_verified() {
    let house = House::new(true).await;
    let stream = house.open(house.blob(&content()), RangeWish::Whole).await;
    assert_eq!(stream.length(), LENGTH as u64);
    assert_eq!(all(stream).await.unwrap(), content());
    let stream = house.open(house.blob(&content()), RangeWish::Suffix(9)).await;
    assert_eq!(all(stream).await.unwrap(), content().slice(LENGTH - 9..));
    assert_eq!(house.requests(), 1);
}

#[tokio::test]
async fn a_blob_without_its_digest_never_ends_well_and_is_not_kept() {
    let house = House::new(true).await;
    let spec = house.blob(b"something else");
    let mut stream = house.open(spec.clone(), RangeWish::Whole).await;
    let mut got = 0;
    let broken = loop {
        match stream.frame().await.unwrap() {
            Ok(frame) => got += frame.into_data().unwrap().len() as u64,
            Err(broken) => break broken,
        }
    };
    assert!(matches!(broken, Broken::Digest), "{broken}");
    assert_eq!(got, LENGTH as u64 - HELD_TAIL);
    assert!(!house.tasks.holds(&spec.identity.task_id()));
}

#[tokio::test]
async fn another_version_at_the_source_is_told() {
    let house = House::new(true).await;
    *house.origin.etag.lock().unwrap() = "\"2\"".into();
    let mut spec = house.version();
    // Whether the reader is told at once or in the middle depends on who is quicker.
    let told = async |opened: Result<Opened, OpenError>| match opened {
        Ok(Opened::Content(stream)) => matches!(all(stream).await, Err(Broken::Changed)),
        opened => matches!(opened, Err(OpenError::Changed)),
    };
    assert!(told(house.tasks.open(spec.clone(), RangeWish::Whole, None).await).await);
    // An answer that is already under way is judged like any other.
    spec.tag = "other".into();
    let answer = backend().get(&spec.source, None, None).await.unwrap();
    assert!(told(house.tasks.open(spec, RangeWish::Whole, Some(answer)).await).await);
}

#[tokio::test]
async fn an_answer_under_way_is_the_source() {
    let house = House::new(true).await;
    let spec = house.version();
    let answer = backend().get(&spec.source, None, None).await.unwrap();
    match house.tasks.open(spec, RangeWish::Whole, Some(answer)).await.unwrap() {
        Opened::Content(stream) => assert_eq!(all(stream).await.unwrap(), content()),
        other => panic!("{other:?}"),
    }
    assert_eq!(house.requests(), 1);
}

#[tokio::test]
async fn a_full_store_gives_the_answer_back() {
    let house = House::new(true).await;
    let spec = house.version();
    let parts = Parts { storage: Storage::in_memory(1 << 20), ..house.tasks.parts_for_tests() };
    let tasks = Tasks::new(Config::default(), parts);
    let answer = backend().get(&spec.source, None, None).await.unwrap();
    match tasks.open(spec.clone(), RangeWish::Whole, Some(answer)).await.unwrap() {
        Opened::Origin(answer) => assert_eq!(answer.body.collect().await.unwrap().to_bytes(), content()),
        other => panic!("{other:?}"),
    }
    assert!(matches!(tasks.open(spec, RangeWish::Whole, None).await, Err(OpenError::Local(_))));
}

#[tokio::test]
async fn whoever_cannot_be_served_gets_its_own_answer_back() {
    let house = House::new(true).await;
    let spec = house.version();
    let tasks = Tasks::new(Config { max_downloads: 0, ..Config::default() }, house.tasks.parts_for_tests());
    let answer = backend().get(&spec.source, None, None).await.unwrap();
    match tasks.open(spec, RangeWish::Whole, Some(answer)).await.unwrap() {
        Opened::Origin(answer) => assert_eq!(answer.body.collect().await.unwrap().to_bytes(), content()),
        other => panic!("{other:?}"),
    }
    assert_eq!(house.requests(), 1);
}

#[tokio::test]
async fn readers_that_leave_end_the_download() {
    let house = House::new(true).await;
    let stream = house.open(house.version(), RangeWish::Whole).await;
    drop(stream);
    while house.tasks.in_flight() > 0 {
        tokio::task::yield_now().await;
    }
    let stream = house.open(house.version(), RangeWish::Whole).await;
    assert_eq!(all(stream).await.unwrap(), content());
}

#[tokio::test]
async fn the_scheduler_hears_of_every_piece() {
    let house = House::new(true).await;
    let stream = house.open(house.version(), RangeWish::Whole).await;
    all(stream).await.unwrap();
    while !house.scheduler.reports.lock().unwrap().contains(&Report::Finished) {
        tokio::task::yield_now().await;
    }
    let reports = house.scheduler.reports.lock().unwrap();
    let pieces = reports.iter().filter(|report| matches!(report, Report::PieceFinished { parent: None, .. }));
    let count = house.version().geometry(content().len() as u64).unwrap().count() as usize;
    assert_eq!(pieces.count(), count);
    let holdings = house.tasks.holdings();
    assert_eq!(holdings[0].origin, house.version().origin());
    assert_eq!(holdings[0].held.pieces.len(), count);
}

#[tokio::test]
async fn a_task_named_by_another_host_is_the_same_task() {
    let house = House::new(true).await;
    for spec in [house.version(), house.blob(&content())] {
        let behalf = TaskSpec::on_behalf(&spec.origin()).unwrap();
        assert_eq!(behalf.identity, spec.identity);
        assert_eq!(behalf.source.uri, spec.source.uri);
    }
}

#[tokio::test]
async fn nobody_has_other_requests_sent_than_a_task_needs() {
    let house = House::new(true).await;
    let spec = house.version();
    let elsewhere = swarm::Origin { url: format!("{}x", house.url), ..spec.origin() };
    assert!(TaskSpec::on_behalf(&elsewhere).is_none(), "one URL's content in the name of another's");
    for (name, allowed) in [("accept", true), ("host", false), ("authorization", false), ("range", false)] {
        let mut spec = house.version();
        if let Identity::Version { vary, .. } = &mut spec.identity {
            vary.push((name.into(), "x".into()));
        }
        assert_eq!(TaskSpec::on_behalf(&spec.origin()).is_some(), allowed, "{name}");
    }
}

#[tokio::test]
async fn a_wish_for_a_piece_length_makes_another_task_and_never_cuts_a_digest() {
    let house = House::new(true).await;
    let mut spec = house.version();
    if let Identity::Version { piece_length, .. } = &mut spec.identity {
        *piece_length = Some(64 * 1024);
    }
    assert_ne!(spec.identity.task_id(), house.version().identity.task_id());
    assert_eq!(spec.geometry(LENGTH as u64).unwrap().piece_length(), 64 * 1024);
    let behalf = TaskSpec::on_behalf(&spec.origin()).unwrap();
    assert_eq!(behalf.geometry(LENGTH as u64), spec.geometry(LENGTH as u64), "the seed cuts alike");
    assert_eq!(house.blob(&content()).geometry(LENGTH as u64), Geometry::of_length(LENGTH as u64).ok());
}

/// A stored task of which only the first piece is there, and the way out for its readers.
async fn half_stored(house: &House, spec: &TaskSpec) -> (crate::storage::StoredTask, Rescue) {
    let geometry = spec.geometry(LENGTH as u64).unwrap();
    let storage = house.tasks.parts_for_tests().storage;
    let stored = storage.create(spec.new_task(geometry, &HeaderMap::new())).unwrap();
    let mut writer = stored.claim(PieceNumber(0)).unwrap();
    writer.write(content().slice(..geometry.piece_length() as usize)).await.unwrap();
    writer.finish().unwrap();
    let rescue = Rescue {
        backend: backend(),
        request: spec.source.clone(),
        expected: spec.expected(),
        silence: Duration::from_secs(9),
        flow: Limiter::default().flow(Priority::default()),
    };
    (stored, rescue)
}

async fn rest(house: &House, spec: &TaskSpec) -> (Vec<u8>, Option<Broken>) {
    let (stored, rescue) = half_stored(house, spec).await;
    let left = ByteRange::new(3 << 20, LENGTH as u64).unwrap();
    let mut rest = Box::pin(rescue.rest(&stored, left, true, &Broken::Local("the disk is full".into())).await.unwrap());
    let mut got = Vec::new();
    while let Some(bytes) = rest.next().await {
        match bytes {
            Ok(bytes) => got.extend_from_slice(&bytes),
            Err(broken) => return (got, Some(broken)),
        }
    }
    (got, None)
}

#[tokio::test]
async fn what_the_store_cannot_give_comes_straight_from_the_source() {
    let house = House::new(true).await;
    for spec in [house.version(), house.blob(&content())] {
        let (got, broken) = rest(&house, &spec).await;
        assert!(broken.is_none(), "{broken:?}");
        assert!(got == content()[3 << 20..]);
    }
}

#[tokio::test]
async fn the_rest_of_a_blob_without_its_digest_keeps_its_tail_back() {
    let house = House::new(true).await;
    let (got, broken) = rest(&house, &house.blob(b"something else")).await;
    assert!(matches!(broken, Some(Broken::Digest)), "{broken:?}");
    assert!(got.len() < LENGTH - (3 << 20), "the end was given away");
}

#[tokio::test]
async fn the_rest_is_of_the_same_version_or_not_at_all() {
    let house = House::new(true).await;
    let spec = house.version();
    let (stored, rescue) = half_stored(&house, &spec).await;
    *house.origin.etag.lock().unwrap() = "\"2\"".into();
    let left = ByteRange::new(9, LENGTH as u64).unwrap();
    let rest = rescue.rest(&stored, left, true, &Broken::Local("the disk is full".into())).await;
    assert!(matches!(rest.err(), Some(Broken::Changed)));
}

#[tokio::test]
async fn the_end_of_a_cold_blob_comes_without_the_whole() {
    let house = House::new(true).await;
    let blob = house.blob(&content());
    let stream = house.open(blob.clone(), RangeWish::Suffix(9)).await;
    assert_eq!(all(stream).await.unwrap(), content().slice(LENGTH - 9..));
    let stream = house.open(blob, RangeWish::From(5 << 20)).await;
    assert_eq!(all(stream).await.unwrap(), content().slice(5 << 20..));
    // By the first one the length was learned from an answer for everything, which was left.
    assert!(house.requests() <= 3, "{} requests", house.requests());
}

#[tokio::test]
async fn the_rest_of_a_range_of_a_blob_needs_nothing_of_what_is_before() {
    let house = House::new(true).await;
    let (stored, rescue) = half_stored(&house, &house.blob(&content())).await;
    let left = ByteRange::new(5 << 20, LENGTH as u64).unwrap();
    let rest = rescue.rest(&stored, left, false, &Broken::Local("the disk is full".into())).await.unwrap();
    let got: Vec<Bytes> = rest.map(Result::unwrap).collect().await;
    assert!(got.concat() == content()[5 << 20..]);
}

#[tokio::test]
async fn pieces_that_contradict_each_other_are_not_kept() {
    let house = House::new(true).await;
    let spec = house.version();
    let (stored, _) = half_stored(&house, &spec).await;
    drop(stored);
    let mut driver = house.tasks.driver_for_tests(&spec);
    driver.stored = house.tasks.parts_for_tests().storage.get(&spec.identity.task_id());
    assert!(matches!(driver.failed(&download::Failure::Changed), Outcome::Changed));
    assert!(house.tasks.parts_for_tests().storage.get(&spec.identity.task_id()).is_none());
}

mod driving {
    use super::super::acts::fetch;
    use super::super::download::Event;
    use super::super::driver::{Done, Driver, Happened, Word};
    use super::super::source::{self, Chunks, End, Step, Teller};
    use super::super::transport::DataClient;
    use super::*;
    use damselfly_core::{Geometry, PieceDigest};

    fn event(happened: Happened) -> Event {
        match happened {
            Happened::Event(event) => event,
            Happened::Opened { geometry, .. } => Event::SourceOpened { geometry },
            Happened::News(_) | Happened::Lost | Happened::Nothing => panic!("no event"),
        }
    }

    fn driver(house: &House) -> Driver {
        house.tasks.driver_for_tests(&house.blob(&content()))
    }

    #[tokio::test]
    async fn a_geometry_that_the_scheduler_gives_makes_the_content_file() {
        let house = House::new(true).await;
        let mut driver = driver(&house);
        let geometry = Geometry::of_length(LENGTH as u64).unwrap();
        let answer = Answer::Parents { offers: Vec::new(), geometry: Some(geometry), proven: true };
        driver.answered(answer).await.unwrap();
        assert_eq!(driver.stored.as_ref().unwrap().geometry(), geometry);
        assert!(driver.flight.phase().borrow().stored.is_some(), "readers may go on");
    }

    #[tokio::test]
    async fn a_registration_is_heard_though_the_source_was_opened_meanwhile() {
        let house = House::new(true).await;
        let mut driver = driver(&house);
        driver.act(download::Action::Register { source: SourceWish::Allowed });
        let round = driver.round;
        driver.act(download::Action::ReadSource { range: None });
        let result = Err(SchedulerLost("slowly".into()));
        let happened = driver.done(Done::Registered { round, result }).await.unwrap();
        assert_eq!(event(happened), Event::SchedulerLost);
    }

    #[tokio::test]
    async fn what_a_stopped_stream_has_brought_is_not_forgotten() {
        let house = House::new(true).await;
        let mut driver = driver(&house);
        let step = Step::Piece(PieceNumber(1), PieceDigest::of(b"x"));
        let happened = driver.hear_word(Word::Source { run: 7, step }).unwrap();
        assert_eq!(event(happened), Event::PieceHeld { piece: PieceNumber(1) });
    }

    #[tokio::test]
    async fn a_piece_that_is_here_is_not_fetched() {
        let house = House::new(true).await;
        let (stored, _) = half_stored(&house, &house.version()).await;
        let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], 1)).into();
        let fetched =
            fetch(&DataClient::default(), nobody, None, &stored, PieceNumber(0), Duration::from_secs(9)).await;
        assert!(matches!(fetched, Ok(None)), "{fetched:?}");
    }

    #[tokio::test]
    async fn a_stream_leaves_no_hole_where_a_cancelled_fetch_was_still_writing() {
        let house = House::new(true).await;
        let (stored, _) = half_stored(&house, &house.version()).await;
        let piece = stored.geometry().piece_length();
        let mut driver = driver(&house);
        let late = stored.claim(PieceNumber(1)).unwrap();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(late);
        });
        let body = Full::new(content().slice(piece as usize..)).map_err(|never| match never {}).boxed_unsync();
        let teller = Teller { run: 1, words: driver.words.0.clone(), flight: Arc::clone(&driver.flight) };
        let chunks = Chunks::new(body, Duration::from_secs(9), driver.flight.flow().clone());
        let end = source::copy(chunks, piece, &(LENGTH as u64).into(), piece, None, &stored, &teller).await;
        assert!(matches!(end, End::Complete), "{end:?}");
        assert!(stored.is_complete());
        driver.words.1.close();
    }

    #[tokio::test]
    async fn the_end_of_a_follow_that_was_given_up_says_nothing_of_the_next() {
        let house = House::new(true).await;
        let mut driver = driver(&house);
        let (parent, rpc) = (damselfly_core::PeerId::from("parent"), ([127, 0, 0, 1], 1).into());
        let offer = damselfly_core::swarm::Offer { peer: parent.clone(), host: "host".into(), rpc, tls: false };
        driver.act(download::Action::Follow(offer.clone()));
        driver.act(download::Action::Unfollow(parent.clone()));
        driver.act(download::Action::Follow(offer));
        let late = Done::Unfollowed { parent: parent.clone(), turn: 1, fault: Some(PieceFault::Gone) };
        assert!(matches!(driver.done(late).await.unwrap(), Happened::Nothing));
        let now = Done::Unfollowed { parent: parent.clone(), turn: 2, fault: Some(PieceFault::Gone) };
        assert_eq!(event(driver.done(now).await.unwrap()), Event::ParentGone { parent, fault: PieceFault::Gone });
    }

    #[tokio::test]
    async fn readers_of_a_driver_that_gave_way_are_told() {
        let house = House::new(true).await;
        let driver = driver(&house);
        let flight = Arc::clone(&driver.flight);
        drop(driver);
        assert!(flight.phase().borrow().outcome.is_some(), "nobody waits for ever");
        assert!(flight.sit(RangeWish::Whole, Priority::default()).is_none(), "nobody joins it");
    }
}
