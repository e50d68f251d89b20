//! What the driver does when the machine says so, and how what came of it is put to the machine.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use damselfly_core::swarm::{Offer, PieceFault, Registration, Report, SourceWish};
use damselfly_core::{
    ByteRange, Geometry, HostId, PeerId, PieceNumber, PieceSet, RangeWish, TaskId, default_piece_length,
};
use futures_util::StreamExt as _;
use http::StatusCode;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::download::{Action, End, Event};
use super::driver::{Done, Driver, Happened, Word, unverified};
use super::flight::Outcome;
use super::piece_sync::{PieceSync, SyncError};
use super::source::{self, Chunks, Expected, Step, Teller, Trouble};
use super::transport::{DataAddr, DataClient, FetchError, GivenTurn, TurnError};
use crate::storage::{PieceWriter, StoredTask};

/// How many reports may wait for the scheduler besides one a piece.
const SPARE_REPORTS: usize = 256;

impl Driver {
    pub(super) fn act(&mut self, action: Action) {
        match action {
            Action::Register { source } => self.register(source),
            Action::Report(report) => self.report(report),
            Action::Follow(offer) => self.follow(offer),
            Action::Unfollow(parent) => {
                self.data.remove(&parent);
                if let Some((_, work)) = self.follows.remove(&parent) {
                    work.abort();
                }
                if let Some((_, work)) = self.asks.remove(&parent) {
                    work.abort();
                }
                self.pass_turn(&parent);
            }
            Action::AskTurn { parent, wanted } => self.ask_turn(parent, wanted),
            Action::PassTurn { parent } => self.pass_turn(&parent),
            Action::Fetch { parent, piece, proof: _ } => self.fetch(parent, piece),
            Action::Cancel { parent, piece } => {
                if let Some(work) = self.fetches.remove(&(parent, piece)) {
                    work.abort();
                }
            }
            Action::Keep { piece } => self.keep(piece),
            Action::Discard { piece } => drop(self.arrived.remove(&piece)),
            Action::ReadSource { range } => self.read_source(range),
            Action::ShortenSource { end } => {
                self.source_end.fetch_min(end, Ordering::Relaxed);
            }
            Action::StopSource => {
                self.stop_source();
                self.begun = None;
            }
            Action::ReadAside { range } => self.read_aside(range),
            Action::StopAside => {
                if let Some((_, work)) = self.aside.take() {
                    work.abort();
                }
            }
            Action::Finish | Action::Fail(_) => {}
        }
    }

    // ---- The scheduler ----

    fn register(&mut self, source: SourceWish) {
        self.round += 1;
        self.sent = false;
        self.conversation = None;
        self.outbox.clear();
        let registration = Registration {
            host: self.shared.parts.host.id.clone(),
            task: self.flight.id,
            peer: self.flight.peer.clone(),
            origin: self.spec.origin(),
            geometry: self.stored.as_ref().map(StoredTask::geometry),
            held: self.stored.as_ref().map(StoredTask::held),
            source,
            extended: true,
        };
        let (round, scheduler) = (self.round, self.shared.parts.scheduler.clone());
        self.start(async move { Done::Registered { round, result: scheduler.register(registration).await } });
    }

    pub(super) fn report(&mut self, report: Report) {
        if report == Report::Finished && self.stored.as_ref().is_some_and(unverified) {
            self.finish_unsaid = true;
            return;
        }
        if let Report::PieceFailed { piece, parent, fault } = &report {
            self.shared.parts.metrics.piece_failed(*fault);
            match fault {
                PieceFault::Bad => warn!(%piece, %parent, "a parent sent a wrong piece: it is not asked any more"),
                PieceFault::Missing => debug!(%piece, %parent, "a parent does not have a piece"),
                PieceFault::Stalled | PieceFault::Gone | PieceFault::Slow => {
                    info!(%piece, %parent, ?fault, "a fetch is given up");
                }
            }
        }
        let pieces = self.stored.as_ref().map_or(0, |stored| stored.geometry().count() as usize);
        // More than that can only pile up behind a connection that is dead; it is found so when it is next waited for.
        if self.outbox.len() < pieces + SPARE_REPORTS {
            self.outbox.push_back(report);
        }
    }

    pub(super) fn lose_scheduler(&mut self) -> Event {
        self.conversation = None;
        self.outbox.clear();
        Event::SchedulerLost
    }

    // ---- Parents ----

    fn follow(&mut self, offer: Offer) {
        let parent = offer.peer.clone();
        let (pieces, host, id) = (self.shared.parts.pieces.clone(), self.shared.parts.host.id.clone(), self.flight.id);
        let count = self.stored.as_ref().map(|stored| stored.geometry().count());
        let words = self.words.0.clone();
        let name = parent.clone();
        self.turns += 1;
        let turn = self.turns;
        let work = self.start(async move {
            let ended = watch_parent(&pieces, (offer.rpc, offer.tls), &host, &id, count, &name, &words).await;
            if let Err(error) = &ended {
                debug!(parent = %name, %error, "a parent cannot be followed");
            }
            let fault = ended.err().map(|error| match error {
                SyncError::Missing => PieceFault::Missing,
                SyncError::Gone(_) | SyncError::Stranger | SyncError::Senseless(_) => PieceFault::Gone,
            });
            Done::Unfollowed { parent: name, turn, fault }
        });
        if let Some((_, before)) = self.follows.insert(parent, (turn, work)) {
            before.abort();
        }
    }

    fn fetch(&mut self, parent: PeerId, piece: PieceNumber) {
        self.begun = self.begun.take().filter(|begun| begun.piece() != piece);
        let (Some(stored), Some(&data)) = (self.stored.clone(), self.data.get(&parent)) else {
            // The machine asks only parents that have spoken, for pieces of a known geometry.
            let result = Err(FetchError::Gone);
            self.start(async move { Done::Fetched { parent, piece, result } });
            return;
        };
        let client = self.shared.parts.data.limited_by(self.flight.flow());
        let stall = self.shared.config.stall;
        let given = self.given.remove(&parent);
        let key = (parent.clone(), piece);
        let work = self.start(async move {
            let fetched = fetch(&client, data, given, &stored, piece, stall).await;
            Done::Fetched { parent, piece, result: fetched }
        });
        self.fetches.insert(key, work);
    }

    fn ask_turn(&mut self, parent: PeerId, wanted: PieceSet) {
        self.turns += 1;
        let ask = self.turns;
        let (client, id, stall) = (self.shared.parts.data.clone(), self.flight.id, self.shared.config.stall);
        let data = self.data.get(&parent).copied();
        let name = parent.clone();
        let work = self.start(async move {
            let result = match data {
                Some(data) => client.ask(data, &id, &wanted, stall).await,
                // The machine asks only parents that have spoken.
                None => Err(FetchError::Gone.into()),
            };
            Done::Turn { parent: name, ask, result }
        });
        if let Some((_, before)) = self.asks.insert(parent, (ask, work)) {
            before.abort();
        }
    }

    /// A parent has answered the request for a turn.
    pub(super) fn turn_given(&mut self, parent: PeerId, ask: u64, result: Result<GivenTurn, TurnError>) -> Happened {
        if self.asks.get(&parent).is_none_or(|(now, _)| *now != ask) {
            // It was left meanwhile. What it gave is dropped, and so given to the next.
            return Happened::Nothing;
        }
        self.asks.remove(&parent);
        Happened::Event(match result {
            Ok(turn) => {
                let least_sent = turn.least_sent().to_vec();
                self.given.insert(parent.clone(), turn);
                Event::Turn { parent, least_sent }
            }
            Err(TurnError::Busy) => Event::TurnRefused { parent, fault: None },
            Err(TurnError::Failed(error)) => {
                debug!(%parent, %error, "a parent gives no turn");
                Event::TurnRefused { parent, fault: Some(error.fault().unwrap_or(PieceFault::Gone)) }
            }
        })
    }

    fn pass_turn(&mut self, parent: &PeerId) {
        let Some(turn) = self.given.remove(parent) else { return };
        let (client, id, stall) = (self.shared.parts.data.clone(), self.flight.id, self.shared.config.stall);
        self.start(async move {
            client.pass(turn, &id, stall).await;
            Done::Nothing
        });
    }

    /// A fetch has ended.
    ///
    /// # Errors
    /// The outcome, where it was the store that failed.
    pub(super) fn fetched(
        &mut self,
        parent: PeerId,
        piece: PieceNumber,
        result: Result<Option<PieceWriter>, FetchError>,
    ) -> Result<Happened, Outcome> {
        if self.fetches.remove(&(parent.clone(), piece)).is_none() {
            // Cancelled when it was as good as done.
            return Ok(Happened::Nothing);
        }
        Ok(Happened::Event(match result {
            Ok(None) => Event::PieceHeld { piece },
            Ok(Some(writer)) => match writer.digest() {
                Some(digest) => {
                    self.arrived.insert(piece, writer);
                    Event::PieceArrived { parent, piece, digest }
                }
                None => Event::PieceFailed { parent, piece, fault: PieceFault::Gone },
            },
            Err(error) => {
                debug!(%parent, %piece, %error, "a piece could not be had from a parent");
                let Some(fault) = error.fault() else { return Err(Outcome::Local(error.to_string())) };
                Event::PieceFailed { parent, piece, fault }
            }
        }))
    }

    fn keep(&mut self, piece: PieceNumber) {
        let Some(writer) = self.arrived.remove(&piece) else { return };
        match writer.finish() {
            Ok(_) => self.flight.provenance().mark_remote(piece),
            Err(error) => warn!(%piece, %error, "a piece was kept that is not whole"),
        }
    }

    // ---- The source ----

    fn read_source(&mut self, range: Option<ByteRange>) {
        let under_way = self.under_way.take().filter(|_| range.is_none_or(|range| range.start() == 0));
        self.stop_source();
        self.runs += 1;
        let range = self.resume(range).or_else(|| self.first_guess(under_way.is_some()));
        self.asked = range;
        self.source_end = Arc::new(AtomicU64::new(u64::MAX));
        let run = self.runs;
        let why = match (&under_way, self.sent) {
            (Some(_), _) => "its answer is open already",
            (None, true) => "the scheduler sent this host there",
            (None, false) => "nobody else brings what is wanted",
        };
        match (under_way.is_some() || self.sent, range) {
            (true, range) => debug!(?range, why, "reads the source"),
            (false, range) => info!(?range, why, "reads the source"),
        }
        let mut expected = self.spec.expected();
        if let Some(stored) = &self.stored {
            expected.length = Some(stored.geometry().length());
        }
        let started = match under_way {
            Some(response) => {
                let judged = source::judge(response, None, &expected);
                self.start(async move { Done::SourceOpened { run, result: judged } })
            }
            None => {
                let (backend, request) = (self.shared.parts.backend.clone(), self.spec.source.clone());
                self.start(async move {
                    Done::SourceOpened { run, result: source::open(&backend, &request, range, &expected).await }
                })
            }
        };
        self.source = Some((run, started));
    }

    /// What to ask for while nobody knows the length: what the first reader wants, in pieces of the least length.
    fn first_guess(&self, under_way: bool) -> Option<ByteRange> {
        if under_way || self.stored.is_some() {
            return None;
        }
        let least = default_piece_length(0);
        match self.flight.first_wish()? {
            RangeWish::Span(first, last) => {
                let end = last.checked_add(1)?.checked_next_multiple_of(least)?;
                ByteRange::new(first / least * least, end)
            }
            RangeWish::From(first) if first >= least => ByteRange::new(first / least * least, u64::MAX),
            _ => None,
        }
    }

    /// Reads a range beside the stream under way. What comes is kept piece by piece, like what a stopped stream has brought.
    fn read_aside(&mut self, range: ByteRange) {
        self.runs += 1;
        let run = self.runs;
        debug!(?range, "reads the source for a reader that is far ahead");
        let Some(stored) = self.stored.clone() else { return };
        let (backend, request) = (self.shared.parts.backend.clone(), self.spec.source.clone());
        let expected = Expected { length: Some(stored.geometry().length()), ..self.spec.expected() };
        let silence = self.shared.config.source_silence;
        let teller = Teller { run, words: self.words.0.clone(), flight: Arc::clone(&self.flight) };
        let flow = self.flight.flow().clone();
        let work = self.start(async move {
            match source::open(&backend, &request, Some(range), &expected).await {
                Ok(opened) if opened.start == range.start() => {
                    let (body, end) = (Chunks::new(opened.response.body, silence, flow), AtomicU64::new(range.end()));
                    let ended = source::copy(body, opened.start, &end, range.start(), None, &stored, &teller).await;
                    debug!(?ended, "the stream for a reader that is far ahead ended");
                }
                refused => debug!(?refused, "no stream for a reader that is far ahead"),
            }
            teller.aside_ended().await;
            Done::Nothing
        });
        self.aside = Some((run, work));
    }

    /// `range`, less what a stream that was cut has already brought of its first piece.
    fn resume(&mut self, range: Option<ByteRange>) -> Option<ByteRange> {
        let (range, geometry) = (range?, self.stored.as_ref()?.geometry());
        self.begun = self.begun.take().filter(|begun| geometry.piece_at(range.start()) == Some(begun.piece()));
        let written = self.begun.as_ref().map_or(0, PieceWriter::written);
        ByteRange::new(range.start() + written, range.end())
    }

    fn stop_source(&mut self) {
        self.under_way = None;
        if let Some((_, work)) = self.source.take() {
            work.abort();
        }
    }

    /// The source has answered, or not.
    ///
    /// # Errors
    /// The outcome, where the answer is one to pass on as it is, or the store has no room.
    pub(super) async fn source_opened(&mut self, result: Result<source::Opened, Trouble>) -> Result<Happened, Outcome> {
        let opened = match result {
            Ok(opened) => opened,
            Err(trouble) => return self.source_refused(trouble),
        };
        let learned = self.stored.is_none();
        if learned {
            // Before readers can see the file, so that who was admitted by this answer is not asked again.
            self.spec.admission.grant(&opened.response.headers);
            self.headers = opened.response.headers.clone();
            let geometry = self.spec.geometry(opened.total);
            let created = match geometry {
                Some(geometry) => self.create(geometry).await,
                None => Err(Outcome::Local("the content is too large to share".into())),
            };
            if let Err(outcome) = created {
                self.under_way = Some(opened.response);
                return Err(outcome);
            }
        }
        let Some(stored) = self.stored.clone() else { return Ok(Happened::Nothing) };
        let geometry = stored.geometry();
        if geometry.length() != opened.total {
            self.source = None;
            return Ok(Happened::Event(Event::SourceEnded(End::Changed)));
        }
        self.spec.admission.grant(&opened.response.headers);
        let gives = self.asked.filter(|_| learned).map(|asked| pieces_of(geometry, &opened, asked));
        if gives.as_ref().is_some_and(|pieces| *pieces == (0..geometry.count())) {
            self.asked = None;
        }
        self.copy(opened, stored);
        Ok(Happened::Opened { geometry, gives })
    }

    fn copy(&mut self, opened: source::Opened, stored: StoredTask) {
        let run = self.runs;
        let end = self.asked.map_or(opened.total, |asked| asked.end().min(opened.total));
        // A stream that starts at another place than was asked for starts at the beginning of all.
        let asked = self.asked.map_or(0, ByteRange::start);
        let begun = self.begun.take().filter(|_| asked == opened.start);
        let silence = self.shared.config.source_silence;
        let body = Chunks::new(opened.response.body, silence, self.flight.flow().clone());
        self.source_end.fetch_min(end, Ordering::Relaxed);
        let end = Arc::clone(&self.source_end);
        let teller = Teller { run, words: self.words.0.clone(), flight: self.flight.clone() };
        let work = self.start(async move {
            let ended = source::copy(body, opened.start, &end, asked, begun, &stored, &teller).await;
            teller.end(ended).await;
            Done::Nothing
        });
        self.source = Some((run, work));
    }

    fn source_refused(&mut self, trouble: Trouble) -> Result<Happened, Outcome> {
        self.source = None;
        debug!(?trouble, "the source is of no use");
        let end = match trouble {
            Trouble::Changed => End::Changed,
            Trouble::Net(error) => {
                self.source_error = Some(error.into());
                End::Cut
            }
            // Before anything is known of the content, this answer is the answer.
            Trouble::Refused(response) | Trouble::Unsized(response) if self.stored.is_none() => {
                self.under_way = Some(response);
                return Err(Outcome::Refused);
            }
            Trouble::Refused(_) => End::Refused,
            Trouble::Unsized(_) => End::Unsized,
        };
        Ok(Happened::Event(Event::SourceEnded(end)))
    }

    /// The source's body has ended.
    ///
    /// # Errors
    /// The outcome, where it was the store that failed.
    fn source_ended(&mut self, end: source::End) -> Result<Happened, Outcome> {
        self.source = None;
        Ok(Happened::Event(Event::SourceEnded(match end {
            source::End::Complete => End::Complete,
            source::End::Cut(why, begun) => {
                debug!(why, "the source broke off");
                self.begun = begun;
                End::Cut
            }
            source::End::Store(error) => return Err(Outcome::Local(format!("cannot write: {error}"))),
        })))
    }

    /// Work under way has said something.
    ///
    /// # Errors
    /// As of [`Driver::source_ended`].
    pub(super) fn hear_word(&mut self, word: Word) -> Result<Happened, Outcome> {
        Ok(Happened::Event(match word {
            // The store has what a stream brought before it was stopped, whether the machine had heard of it or not.
            Word::Source { run, step: Step::Piece(piece, digest) } if Some(run) != self.source_run() => {
                self.report(Report::PieceFinished { piece, parent: None, digest });
                Event::PieceHeld { piece }
            }
            Word::Source { run, .. } | Word::SourceEnded { run, .. } if Some(run) != self.source_run() => {
                return Ok(Happened::Nothing);
            }
            Word::SourceEnded { end, .. } => return self.source_ended(end),
            Word::AsideEnded { run } if self.aside.as_ref().is_some_and(|(now, _)| *now == run) => {
                self.aside = None;
                Event::AsideEnded
            }
            Word::AsideEnded { .. } => return Ok(Happened::Nothing),
            Word::Source { step: Step::Begun(_), .. } => return Ok(Happened::Nothing),
            Word::Source { step: Step::Progress(bytes), .. } => Event::SourceProgress { bytes },
            Word::Source { step: Step::Piece(piece, digest), .. } => Event::SourcePiece { piece, digest },
            Word::Queues { parent } => Event::ParentQueues { parent },
            Word::Has { parent, piece, data } => {
                self.data.insert(parent.clone(), data);
                Event::ParentHas { parent, piece }
            }
        }))
    }

    pub(super) fn source_run(&self) -> Option<u64> {
        self.source.as_ref().map(|(run, _)| *run)
    }
}

/// The pieces that an answer brings as a whole of which this range was asked for.
fn pieces_of(geometry: Geometry, opened: &source::Opened, asked: ByteRange) -> Range<u32> {
    let (length, piece) = (geometry.length(), geometry.piece_length());
    if opened.response.status == StatusCode::OK {
        return 0..geometry.count();
    }
    let end = asked.end().min(length);
    if !opened.start.is_multiple_of(piece) || (end < length && !end.is_multiple_of(piece)) {
        return 0..0;
    }
    ((opened.start / piece) as u32)..(end.div_ceil(piece) as u32)
}

/// Fetches a piece into the store and leaves it unfinished, for the machine to decide on. `None` if it is there already.
pub(super) async fn fetch(
    client: &DataClient,
    data: DataAddr,
    given: Option<GivenTurn>,
    stored: &StoredTask,
    piece: PieceNumber,
    stall: Duration,
) -> Result<Option<PieceWriter>, FetchError> {
    let claimed = timeout(stall, source::claim(stored, piece)).await.map_err(|_| FetchError::Missing)?;
    let Some(mut writer) = claimed else { return Ok(None) };
    match given {
        Some(turn) => client.fetch_in_turn(turn, &stored.id(), &mut writer, stall).await?,
        None => client.fetch(data, &stored.id(), &mut writer, stall).await?,
    };
    Ok(Some(writer))
}

/// How long a parent that does not have the task yet is given to begin with it, and how often it is asked.
const BEGIN_TRIES: u32 = 20;
const BEGIN_WAIT: Duration = Duration::from_millis(150);

/// How long after a parent has said all that it has it is asked again, at first and at most.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(16));

/// Tells of each piece that a parent has, until it has told of all pieces of the task.
async fn watch_parent(
    pieces: &PieceSync,
    rpc: (SocketAddr, bool),
    host: &HostId,
    task: &TaskId,
    count: Option<u32>,
    parent: &PeerId,
    words: &mpsc::Sender<Word>,
) -> Result<(), SyncError> {
    let mut told = BTreeSet::new();
    let mut wait = ASK_AGAIN.0;
    let mut begin_tries = 0;
    loop {
        let (turns, mut said) = match pieces.follow(rpc, host, task, count).await {
            Ok(followed) => followed,
            // It was offered because it is about to download the task.
            Err(SyncError::Missing) if begin_tries < BEGIN_TRIES => {
                begin_tries += 1;
                sleep(BEGIN_WAIT).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        let before = told.len();
        if turns && told.is_empty() && words.send(Word::Queues { parent: parent.clone() }).await.is_err() {
            return Ok(());
        }
        while let Some(next) = said.next().await {
            let has = next?;
            let word = Word::Has {
                parent: parent.clone(),
                piece: has.number,
                data: DataAddr { at: has.data_addr, tls: rpc.1 },
            };
            if told.insert(has.number) && words.send(word).await.is_err() {
                return Ok(());
            }
        }
        // One that is still downloading has more later; the driver breaks this off when it needs nothing more.
        wait = if told.len() > before { ASK_AGAIN.0 } else { (wait * 2).min(ASK_AGAIN.1) };
        if !turns {
            return Ok(());
        }
        sleep(wait).await;
    }
}
