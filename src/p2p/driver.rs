//! The driver of one download: it does what the machine says, and tells it what came of it.
//!
//! One tokio task a download. Everything that waits (registering, asking the source, copying its body, following a
//! parent, fetching a piece, hashing the whole) is work of its own in a [`JoinSet`] that dies with the driver; what it
//! comes to is an event of the machine. Nothing here decides.
//!
//! **The machine is the only one that says when a piece is had**: a fetched piece waits, written but not finished, for
//! the machine's word.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::{Future, pending};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use damselfly_core::swarm::{Answer, PieceFault, Report};
use damselfly_core::{Audience, ByteRange, Geometry, Moment, PeerId, PieceNumber, PieceSet, RangeWish};
use http::HeaderMap;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{Instrument as _, debug, info_span, warn};

use super::download::{Action, Download, Event, Failure, ReaderId, Setup};
use super::flight::{Flight, News, Outcome};
use super::source::{self, Step, Trouble};
use super::tasks::{Shared, TaskSpec};
use super::transport::{DataAddr, FetchError, GivenTurn, TurnError};
use super::verify;
use crate::backend::SourceResponse;
use crate::net::NetError;
use crate::scheduler_client::{Conversation, SchedulerLost};
use crate::storage::{PieceWriter, StorageError, StoredTask};

/// How many words of work under way may wait for the driver; more make the work wait.
const WORDS: usize = 256;
/// Being held up for less than this is told together with what follows.
const HELD_UP: Duration = Duration::from_millis(5);
/// How long the last reports may take on their way out.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What work came to.
pub(crate) enum Done {
    Nothing,
    Registered {
        round: u64,
        result: Result<Conversation, SchedulerLost>,
    },
    SourceOpened {
        run: u64,
        result: Result<source::Opened, Trouble>,
    },
    /// `None` where the piece was there already.
    Fetched {
        parent: PeerId,
        piece: PieceNumber,
        result: Result<Option<PieceWriter>, FetchError>,
    },
    Turn {
        parent: PeerId,
        ask: u64,
        result: Result<GivenTurn, TurnError>,
    },
    Unfollowed {
        parent: PeerId,
        turn: u64,
        /// `None` where it has said all that it has.
        fault: Option<PieceFault>,
    },
    Verified(std::io::Result<bool>),
}

/// What work says while it goes on.
pub(crate) enum Word {
    Source {
        run: u64,
        step: Step,
    },
    SourceEnded {
        run: u64,
        end: source::End,
    },
    /// The stream for a reader that is far ahead has ended, well or not.
    AsideEnded {
        run: u64,
    },
    Queues {
        parent: PeerId,
    },
    Has {
        parent: PeerId,
        piece: PieceNumber,
        data: DataAddr,
    },
}

/// The driver of one download. Made by [`super::Tasks`], it runs until the download has ended.
pub(crate) struct Driver {
    pub(super) shared: Arc<Shared>,
    pub(super) flight: Arc<Flight>,
    pub(super) spec: TaskSpec,
    pub(super) stored: Option<StoredTask>,
    pub(super) headers: HeaderMap,
    pub(super) under_way: Option<SourceResponse>,
    leader: Option<oneshot::Sender<SourceResponse>>,
    pub(super) work: JoinSet<Done>,
    pub(super) words: (mpsc::Sender<Word>, mpsc::Receiver<Word>),
    pub(super) conversation: Option<Conversation>,
    /// Counts registrations, so that what an abandoned one still says is told from the present one's.
    pub(super) round: u64,
    /// Counts source streams, likewise.
    pub(super) runs: u64,
    pub(super) outbox: VecDeque<Report>,
    /// Turns that are asked for, each with its number, and those that were given and not used yet.
    pub(super) asks: HashMap<PeerId, (u64, AbortHandle)>,
    pub(super) given: HashMap<PeerId, GivenTurn>,
    pub(super) source: Option<(u64, AbortHandle)>,
    /// The stream for a reader that is far ahead, with its number.
    pub(super) aside: Option<(u64, AbortHandle)>,
    /// Where the source stream under way is to end.
    pub(super) source_end: Arc<AtomicU64>,
    pub(super) asked: Option<ByteRange>,
    /// Whether the scheduler has sent this host to the source, in the conversation under way.
    pub(super) sent: bool,
    /// The piece that a source stream broke off in, for the next one to go on with.
    pub(super) begun: Option<PieceWriter>,
    /// Whom it follows, with the turn at which that began: a parent may be left and followed again.
    pub(super) follows: HashMap<PeerId, (u64, AbortHandle)>,
    pub(super) turns: u64,
    pub(super) data: HashMap<PeerId, DataAddr>,
    pub(super) fetches: HashMap<(PeerId, PieceNumber), AbortHandle>,
    pub(super) arrived: BTreeMap<PieceNumber, PieceWriter>,
    /// Some reader wants all of it.
    whole_is_wanted: bool,
    verifying: bool,
    /// How long our own limit has held the download up, as far as the machine was told.
    held_up: Duration,
    /// The machine has reported that it finished, and the whole's digest is still being computed.
    pub(super) finish_unsaid: bool,
    pub(super) source_error: Option<Arc<NetError>>,
}

impl Driver {
    pub(crate) fn new(
        shared: Arc<Shared>,
        flight: Arc<Flight>,
        spec: TaskSpec,
        under_way: Option<SourceResponse>,
        leader: oneshot::Sender<SourceResponse>,
    ) -> Self {
        let headers = spec.known.as_ref().map(|known| known.headers.clone()).unwrap_or_default();
        Self {
            stored: None,
            headers,
            under_way,
            leader: Some(leader),
            work: JoinSet::new(),
            words: mpsc::channel(WORDS),
            conversation: None,
            round: 0,
            runs: 0,
            outbox: VecDeque::new(),
            asks: HashMap::new(),
            given: HashMap::new(),
            source: None,
            aside: None,
            source_end: Arc::default(),
            asked: None,
            sent: false,
            begun: None,
            follows: HashMap::new(),
            turns: 0,
            data: HashMap::new(),
            fetches: HashMap::new(),
            arrived: BTreeMap::new(),
            whole_is_wanted: false,
            verifying: false,
            held_up: Duration::ZERO,
            finish_unsaid: false,
            source_error: None,
            shared,
            flight,
            spec,
        }
    }

    /// Downloads what the readers want, and tells them how it ended.
    pub(crate) async fn run(mut self) {
        let span = info_span!("task", id = %self.flight.id);
        let started = Instant::now();
        self.shared.parts.metrics.started();
        let outcome = self.fly().instrument(span.clone()).await;
        let _in_span = span.enter();
        match &outcome {
            Outcome::Done | Outcome::Refused | Outcome::Abandoned => debug!(?outcome, "download ended"),
            _ => warn!(?outcome, "download failed"),
        }
        self.shared.parts.metrics.ended(&outcome, started.elapsed());
        self.shared.remove(&self.flight);
        self.flight.close_now();
        if let (Some(leader), Some(response)) = (self.leader.take(), self.under_way.take()) {
            // Nobody read from it: it is as good as new for whoever brought it, who may have left.
            let _ = leader.send(response);
        }
        self.say_goodbye();
        self.flight.end(outcome);
    }

    async fn fly(&mut self) -> Outcome {
        if let Err(outcome) = self.prepare().await {
            return outcome;
        }
        loop {
            let news = self.flight.news().await;
            if self.flight.readers() == 0 && self.flight.close() {
                return Outcome::Abandoned;
            }
            let outcome = if self.all_here() { Outcome::Done } else { self.download(news).await };
            // A reader may have come after the last piece that was wanted, or after the last reader left.
            if !matches!(outcome, Outcome::Done | Outcome::Abandoned) || self.flight.close() {
                return outcome;
            }
        }
    }

    /// Opens what the store has of the task already. What an earlier process wrote is checked when somebody reads it.
    async fn prepare(&mut self) -> Result<(), Outcome> {
        let geometry = self.spec.known.as_ref().map(|known| self.spec.geometry(known.length));
        if let Some(stored) = self.shared.parts.storage.get(&self.flight.id) {
            let wanted = self.flight.wanted(stored.geometry());
            let admitting = stored.clone();
            let admitted = tokio::task::spawn_blocking(move || admitting.admit(&wanted)).await;
            self.adopt(stored_or(admitted.map(|admitted| admitted.map(|()| stored)))?);
        } else if let Some(geometry) = geometry {
            let geometry = geometry.ok_or_else(|| Outcome::Local("the content is too large to share".into()))?;
            self.create(geometry).await?;
        }
        Ok(())
    }

    pub(super) async fn create(&mut self, geometry: Geometry) -> Result<(), Outcome> {
        let storage = self.shared.parts.storage.clone();
        let new = self.spec.new_task(geometry, &self.headers);
        let wanted = self.flight.wanted(geometry);
        let created = tokio::task::spawn_blocking(move || storage.create_for(new, &wanted)).await;
        self.adopt(stored_or(created)?);
        Ok(())
    }

    fn adopt(&mut self, stored: StoredTask) {
        self.flight.provenance().size(stored.geometry().count());
        self.flight.set_stored(stored.clone());
        self.stored = Some(stored);
    }

    /// Whether every piece is here and the whole has its digest.
    fn all_here(&self) -> bool {
        let whole = |stored: &StoredTask| stored.is_held() && (stored.digest().is_none() || stored.is_verified());
        self.stored.as_ref().is_some_and(whole)
    }
}

impl Drop for Driver {
    /// Whatever becomes of the driver, its readers are told, and whoever opens the task next starts afresh.
    fn drop(&mut self) {
        if let Some(stored) = &self.stored {
            stored.expect_nothing();
        }
        self.shared.remove(&self.flight);
        self.flight.close_now();
        self.flight.end(Outcome::Local("the download stopped: its task panicked or was dropped".into()));
    }
}

/// What the store gave, or why the download ends here.
fn stored_or(opened: Result<Result<StoredTask, StorageError>, JoinError>) -> Result<StoredTask, Outcome> {
    match opened {
        Ok(Ok(stored)) => Ok(stored),
        Ok(Err(error)) => Err(Outcome::Local(error.to_string())),
        Err(_) => Err(Outcome::Local("the content file was not opened: the store's thread panicked".into())),
    }
}

/// How the machine ended.
enum Ended {
    Finished,
    Failed(Failure),
}

impl Driver {
    /// Runs one machine from its first event to its end.
    async fn download(&mut self, news: BTreeMap<ReaderId, News>) -> Outcome {
        let mut losses = self.stored.as_ref().map(StoredTask::losses);
        let mut machine = Download::new(self.setup(), self.shared.now());
        self.held_up = self.flight.flow().held_up();
        self.hear(&mut machine, news).await;
        let mut ended = None;
        loop {
            while let Some(action) = machine.poll() {
                match action {
                    Action::Finish => ended = Some(Ended::Finished),
                    Action::Fail(failure) => ended = Some(Ended::Failed(failure)),
                    action => self.act(action),
                }
            }
            if let Some(outcome) = self.outcome(&ended).await {
                return outcome;
            }
            if losses.is_none() {
                losses = self.stored.as_ref().map(StoredTask::losses);
            }
            let event = match self.next(machine.deadline(), &mut losses).await {
                Ok(Happened::Event(event)) => event,
                Ok(Happened::Lost) => {
                    for piece in self.lost_pieces() {
                        self.tell(&mut machine, Event::PieceLost { piece });
                    }
                    continue;
                }
                Ok(Happened::News(news)) => {
                    self.hear(&mut machine, news).await;
                    continue;
                }
                Ok(Happened::Opened { geometry, gives }) => {
                    if let Some(pieces) = gives {
                        self.tell(&mut machine, Event::SourceGives { pieces });
                    }
                    Event::SourceOpened { geometry }
                }
                Ok(Happened::Nothing) => continue,
                Err(outcome) => return outcome,
            };
            self.tell(&mut machine, event);
        }
    }

    /// Tells the machine what happened, behind what our own limit has held up until then.
    fn tell(&mut self, machine: &mut Download, event: Event) {
        let now = self.shared.now();
        let held_up = self.flight.flow().held_up();
        let by = held_up.saturating_sub(self.held_up);
        if by >= HELD_UP {
            self.held_up = held_up;
            machine.handle(now, Event::HeldUp { by });
        }
        machine.handle(now, event);
    }

    /// Puts the readers' news to the machine.
    async fn hear(&mut self, machine: &mut Download, news: BTreeMap<ReaderId, News>) {
        if news.values().any(|news| news.wants.is_some()) {
            self.whole_is_wanted |= news.values().any(|news| matches!(news.wants, Some(wish) if is_whole(wish)));
            expect(self.stored.clone(), &self.flight).await;
        }
        for (reader, News { wants, at, gone }) in news {
            if let Some(wish) = wants {
                self.tell(machine, Event::ReaderWants { reader, wish });
            }
            if let Some(offset) = at {
                self.tell(machine, Event::ReaderAt { reader, offset });
            }
            if gone {
                self.tell(machine, Event::ReaderGone { reader });
            }
        }
    }

    /// The pieces that the store does not have; which of them it had is the machine's to know.
    fn lost_pieces(&self) -> Vec<PieceNumber> {
        let Some(stored) = &self.stored else { return Vec::new() };
        let held = stored.held_pieces();
        stored.geometry().pieces().filter(|&piece| !held.contains(piece)).collect()
    }

    fn setup(&self) -> Setup {
        let geometry = self.stored.as_ref().map(StoredTask::geometry);
        Setup {
            config: self.shared.config.download.clone(),
            geometry,
            have: self.stored.as_ref().map_or_else(|| PieceSet::empty(0), StoredTask::held_pieces),
            // What is for this host alone is nobody else's business.
            scheduler: self.spec.audience != Audience::Host,
            source: self.spec.source_wish,
            source_under_way: self.under_way.is_some(),
            seed: fastrand::u64(..),
        }
    }
}

/// What the driver has waited for.
pub(super) enum Happened {
    Event(Event),
    News(BTreeMap<ReaderId, News>),
    /// The store has a piece no longer that it had.
    Lost,
    /// The source has answered; with these pieces and no others, where that was asked for before the length was known.
    Opened {
        geometry: Geometry,
        gives: Option<Range<u32>>,
    },
    /// Something that the machine need not know.
    Nothing,
}

impl Driver {
    /// Waits for whatever happens next.
    ///
    /// # Errors
    /// The outcome, where what happened ends the download whatever the machine would say.
    async fn next(
        &mut self,
        deadline: Option<Moment>,
        losses: &mut Option<watch::Receiver<u64>>,
    ) -> Result<Happened, Outcome> {
        let deadline = deadline.map(|moment| self.shared.instant(moment));
        tokio::select! {
            Some(done) = self.work.join_next() => match done {
                Ok(done) => self.done(done).await,
                Err(gone) if gone.is_cancelled() => Ok(Happened::Nothing),
                Err(_) => Err(Outcome::Local("a part of the download panicked".into())),
            },
            Some(word) = self.words.1.recv() => self.hear_word(word),
            said = converse(&mut self.conversation, &mut self.outbox) => Ok(match said {
                Said::Answer(answer) => self.answered(answer).await?,
                Said::Sent => Happened::Nothing,
                Said::Gone => Happened::Event(self.lose_scheduler()),
            }),
            news = self.flight.news() => Ok(Happened::News(news)),
            () = next_loss(losses) => Ok(Happened::Lost),
            () = sleep(deadline) => Ok(Happened::Event(Event::Timer)),
        }
    }

    /// The scheduler has answered. What it says of the geometry makes the content file, if there is none.
    ///
    /// # Errors
    /// The outcome, where the store has no room.
    pub(super) async fn answered(&mut self, answer: Answer) -> Result<Happened, Outcome> {
        if let Answer::Parents { geometry: Some(geometry), .. } = &answer
            && self.stored.is_none()
        {
            self.create(*geometry).await?;
        }
        self.sent |= matches!(answer, Answer::GoToSource { .. });
        Ok(Happened::Event(Event::Answer(answer)))
    }

    pub(super) async fn done(&mut self, done: Done) -> Result<Happened, Outcome> {
        Ok(match done {
            Done::Registered { round, result } if round == self.round => match result {
                Ok(conversation) => {
                    self.conversation = Some(conversation);
                    Happened::Nothing
                }
                Err(lost) => {
                    debug!(%lost, "no scheduler");
                    Happened::Event(Event::SchedulerLost)
                }
            },
            Done::SourceOpened { run, result } if Some(run) == self.source_run() => self.source_opened(result).await?,
            Done::Nothing | Done::Registered { .. } | Done::SourceOpened { .. } => Happened::Nothing,
            Done::Fetched { parent, piece, result } => self.fetched(parent, piece, result)?,
            Done::Turn { parent, ask, result } => self.turn_given(parent, ask, result),
            Done::Unfollowed { parent, turn, .. } if self.follows.get(&parent).is_none_or(|(now, _)| *now != turn) => {
                Happened::Nothing
            }
            Done::Unfollowed { parent, fault, .. } => {
                self.follows.remove(&parent);
                // A parent that has said everything that it has is still a parent.
                fault.map_or(Happened::Nothing, |fault| Happened::Event(Event::ParentGone { parent, fault }))
            }
            Done::Verified(Ok(true)) => {
                if let Some(stored) = &self.stored {
                    stored.set_verified();
                }
                if std::mem::take(&mut self.finish_unsaid) {
                    self.report(Report::Finished);
                }
                Happened::Nothing
            }
            // The machine may have ended: then it is not for it to decide.
            Done::Verified(Ok(false)) if self.finish_unsaid => {
                self.report(Report::Failed);
                return Err(self.failed(&Failure::Digest));
            }
            Done::Verified(Ok(false)) => Happened::Event(Event::DigestMismatch),
            Done::Verified(Err(error)) => return Err(Outcome::Local(format!("cannot read the content file: {error}"))),
        })
    }
}

impl Driver {
    /// Starts a piece of work that dies with the driver.
    pub(super) fn start(&mut self, work: impl Future<Output = Done> + Send + 'static) -> AbortHandle {
        self.work.spawn(work.in_current_span())
    }

    /// Starts hashing the whole content, once there is a file and if its digest is known and all of it is here or comes.
    fn start_verifying(&mut self) {
        let Some(stored) = self.stored.clone().filter(|stored| !stored.is_verified()) else { return };
        let Some(digest) = stored.digest().filter(|_| !self.verifying) else { return };
        if !(self.whole_is_wanted || stored.is_held()) {
            return;
        }
        self.verifying = true;
        self.start(async move { Done::Verified(verify::agrees(&stored, digest).await) });
    }

    /// The download's outcome, once the machine has ended and the whole is verified.
    async fn outcome(&mut self, ended: &Option<Ended>) -> Option<Outcome> {
        self.start_verifying();
        match ended {
            None => None,
            Some(Ended::Finished) => self.finished().await,
            Some(Ended::Failed(failure)) => Some(self.failed(failure)),
        }
    }

    async fn finished(&mut self) -> Option<Outcome> {
        if self.stored.is_none() {
            // The scheduler says that the content is empty.
            let Ok(empty) = Geometry::of_length(0) else { return None };
            if let Err(outcome) = self.create(empty).await {
                return Some(outcome);
            }
            self.start_verifying();
        }
        let stored = self.stored.clone()?;
        (!unverified(&stored)).then_some(Outcome::Done)
    }

    pub(super) fn failed(&mut self, failure: &Failure) -> Outcome {
        self.finish_unsaid = false;
        match failure {
            Failure::Abandoned => Outcome::Abandoned,
            Failure::Changed => {
                // What is here may be of two versions: nobody is to go on with it.
                self.stored = None;
                self.shared.parts.storage.remove(&self.flight.id);
                Outcome::Changed
            }
            Failure::Digest => {
                // Whoever wrote what, none of it can be relied on.
                self.stored = None;
                self.shared.parts.storage.remove(&self.flight.id);
                Outcome::Digest
            }
            failure => match self.source_error.take() {
                Some(error) => Outcome::Source(error),
                None => Outcome::Local(failure.to_string()),
            },
        }
    }

    /// Lets what is left to report go out behind the driver's back, for a bounded time.
    fn say_goodbye(&mut self) {
        let Some(conversation) = self.conversation.take() else { return };
        let outbox = std::mem::take(&mut self.outbox);
        tokio::spawn(async move {
            let said = timeout(LAST_WORDS, async {
                for report in outbox {
                    if conversation.reports.send(report).await.is_err() {
                        break;
                    }
                }
            });
            if said.await.is_err() {
                debug!("the scheduler did not take the last reports");
            }
        });
    }
}

/// Whether everything is there but not known to have the digest that names it.
pub(super) fn unverified(stored: &StoredTask) -> bool {
    stored.is_held() && stored.digest().is_some() && !stored.is_verified()
}

/// Has room kept for what readers want who joined. Where there is none they were told so, or the store will.
async fn expect(stored: Option<StoredTask>, flight: &Flight) {
    let Some(stored) = stored else { return };
    let wanted = flight.wanted(stored.geometry());
    let _ = tokio::task::spawn_blocking(move || stored.admit(&wanted)).await;
}

/// Whether a reader wants every byte, whatever the length.
fn is_whole(wish: RangeWish) -> bool {
    matches!(wish, RangeWish::Whole | RangeWish::From(0))
}

/// What came of a moment's conversation with the scheduler.
enum Said {
    Answer(Answer),
    /// A report went out.
    Sent,
    /// It has hung up.
    Gone,
}

/// Waits for the scheduler's next answer, or until the first report that waits has gone out. Loses none when it is
/// dropped. Waits for ever while there is no conversation.
async fn converse(conversation: &mut Option<Conversation>, outbox: &mut VecDeque<Report>) -> Said {
    let Some(Conversation { reports, answers }) = conversation else { return pending().await };
    tokio::select! {
        answer = answers.recv() => answer.map_or(Said::Gone, Said::Answer),
        place = reports.reserve(), if !outbox.is_empty() => match (place, outbox.pop_front()) {
            (Ok(place), Some(report)) => {
                place.send(report);
                Said::Sent
            }
            _ => Said::Gone,
        },
    }
}

/// Waits until the store has lost a piece.
async fn next_loss(losses: &mut Option<watch::Receiver<u64>>) {
    if let Some(losses) = losses
        && losses.changed().await.is_ok()
    {
        return;
    }
    pending().await
}

async fn sleep(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}
