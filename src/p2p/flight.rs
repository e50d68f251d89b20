//! What the one download of a task and its readers share.
//!
//! The driver (one tokio task) is the only one that changes the phase; readers take seats, say what they want and how
//! far they are, and leave. Neither waits for the other: readers follow the store, the driver takes the readers' news
//! when the bell rings.
//!
//! **A reader that has a seat is served or told the outcome**: the book of seats is closed under its lock, and only
//! when no news is left in it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use damselfly_core::{Geometry, PeerId, PieceNumber, PieceSet, RangeWish, TaskId};
use tokio::sync::{Notify, watch};

use super::download::ReaderId;
use crate::limit::{Flow, Priority};
use crate::net::NetError;
use crate::storage::StoredTask;

/// How far the download is, as its readers need to know it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Phase {
    /// The content, once its length is known: follow it. It stays when the download has ended.
    pub(crate) stored: Option<StoredTask>,
    /// How it ended; nothing more will come.
    pub(crate) outcome: Option<Outcome>,
}

/// How a download ended.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// Everything that was wanted is in the store, and checked.
    Done,
    /// The source gave an answer that is no content to share; whoever started the download has it.
    Refused,
    /// The source could not be reached or broke off, and no parent could help.
    Source(Arc<NetError>),
    /// The source serves another version now.
    Changed,
    /// The whole content does not have the digest that names it.
    Digest,
    /// Nobody wanted anything any more.
    Abandoned,
    /// Our own trouble: disk, limits, shutdown.
    Local(String),
}

/// What a reader has said since the driver last listened.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// The bytes that it wants, if it is new.
    pub(crate) wants: Option<RangeWish>,
    /// Where it is.
    pub(crate) at: Option<u64>,
    /// It left.
    pub(crate) gone: bool,
}

#[derive(Debug, Default)]
struct Seats {
    next: u64,
    /// What each reader wants that has not left, and how urgently.
    taken: BTreeMap<ReaderId, (RangeWish, Priority)>,
    news: BTreeMap<ReaderId, News>,
    closed: bool,
}

impl Seats {
    /// How urgently the most urgent reader wants it.
    fn highest(&self) -> Priority {
        self.taken.values().map(|(_, priority)| *priority).max().unwrap_or_default()
    }
}

/// The state that a download's driver and its readers share.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) id: TaskId,
    /// The part that this host takes in the task.
    pub(crate) peer: PeerId,
    phase: watch::Sender<Phase>,
    seats: Mutex<Seats>,
    bell: Notify,
    provenance: Provenance,
    /// What it downloads, to the limits. As urgent as its most urgent reader.
    flow: Flow,
}

impl Flight {
    pub(crate) fn new(id: TaskId, peer: PeerId, flow: Flow) -> Arc<Self> {
        Arc::new(Self {
            id,
            peer,
            flow,
            phase: watch::Sender::default(),
            seats: Mutex::default(),
            bell: Notify::new(),
            provenance: Provenance::default(),
        })
    }

    /// Takes a seat for a reader; `None` once the download has ended.
    pub(crate) fn sit(self: &Arc<Self>, wish: RangeWish, priority: Priority) -> Option<Seat> {
        let mut seats = self.seats();
        if seats.closed {
            return None;
        }
        let reader = ReaderId(seats.next);
        seats.next += 1;
        seats.taken.insert(reader, (wish, priority));
        seats.news.insert(reader, News { wants: Some(wish), ..News::default() });
        self.prioritise(seats.highest());
        drop(seats);
        self.bell.notify_one();
        Some(Seat { flight: Arc::clone(self), reader })
    }

    /// Waits until a reader has news.
    pub(crate) async fn news(&self) -> BTreeMap<ReaderId, News> {
        loop {
            // notify_one leaves a permit, so a bell between the look and the wait is not missed.
            let rung = self.bell.notified();
            let news = std::mem::take(&mut self.seats().news);
            if !news.is_empty() {
                return news;
            }
            rung.await;
        }
    }

    /// Closes the book if no reader has come unheard; says whether it is closed.
    pub(crate) fn close(&self) -> bool {
        let mut seats = self.seats();
        seats.closed = seats.news.values().all(|news| news.gone || news.wants.is_none());
        seats.closed
    }

    /// Closes the book, whatever anyone wants.
    pub(crate) fn close_now(&self) {
        self.seats().closed = true;
    }

    /// How many readers there are.
    pub(crate) fn readers(&self) -> usize {
        self.seats().taken.len()
    }

    /// What the first of them wants.
    pub(crate) fn first_wish(&self) -> Option<RangeWish> {
        self.seats().taken.values().next().map(|(wish, _)| *wish)
    }

    /// The pieces that they want, of a content that is cut like this.
    pub(crate) fn wanted(&self, geometry: Geometry) -> PieceSet {
        let mut wanted = PieceSet::empty(geometry.count());
        for (wish, _) in self.seats().taken.values() {
            if let Some(range) = wish.resolve(geometry.length()) {
                wanted.extend(geometry.covering(range));
            }
        }
        wanted
    }

    /// What it brings is this urgent, on its way here and to the disk.
    fn prioritise(&self, priority: Priority) {
        self.flow.set_priority(priority);
        if let Some(stored) = &self.phase.borrow().stored {
            stored.set_priority(priority);
        }
    }

    /// Readers can follow this content from now on.
    pub(crate) fn set_stored(&self, stored: StoredTask) {
        self.phase.send_modify(|phase| phase.stored = Some(stored.clone()));
        // Now whoever changes it finds the content too.
        stored.set_priority(self.flow.priority());
    }

    /// Says how the download ended, unless that was said.
    pub(crate) fn end(&self, outcome: Outcome) {
        self.phase.send_if_modified(|phase| {
            let ends = phase.outcome.is_none();
            if ends {
                phase.outcome = Some(outcome);
            }
            ends
        });
    }

    pub(crate) fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    pub(crate) fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    pub(crate) fn flow(&self) -> &Flow {
        &self.flow
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reader's place in a flight; leaving is dropping it.
#[derive(Debug)]
pub(crate) struct Seat {
    flight: Arc<Flight>,
    reader: ReaderId,
}

impl Seat {
    pub(crate) fn flight(&self) -> &Arc<Flight> {
        &self.flight
    }

    /// Says that the reader has got to `offset`.
    pub(crate) fn at(&self, offset: u64) {
        if tell(&mut self.flight.seats(), self.reader, |news| news.at = Some(offset)) {
            self.flight.bell.notify_one();
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.flight.seats();
        seats.taken.remove(&self.reader);
        if !seats.taken.is_empty() {
            self.flight.prioritise(seats.highest());
        }
        tell(&mut seats, self.reader, |news| news.gone = true);
        drop(seats);
        self.flight.bell.notify_one();
    }
}

/// Adds to a reader's news; `false` if the book is closed.
fn tell(seats: &mut Seats, reader: ReaderId, say: impl FnOnce(&mut News)) -> bool {
    if !seats.closed {
        say(seats.news.entry(reader).or_default());
    }
    !seats.closed
}

/// From where a piece's bytes came, as far as the download under way fetched them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Local,
    Source,
    Remote,
}

/// Which pieces came from the source and which from peers; all others were here before.
#[derive(Debug, Default)]
pub(crate) struct Provenance(Mutex<(PieceSet, PieceSet)>);

impl Provenance {
    pub(crate) fn size(&self, count: u32) {
        let mut sets = self.sets();
        if sets.0.count() != count {
            *sets = (PieceSet::empty(count), PieceSet::empty(count));
        }
    }

    pub(crate) fn mark_source(&self, piece: PieceNumber) {
        let mut sets = self.sets();
        sets.1.remove(piece);
        sets.0.insert(piece);
    }

    pub(crate) fn mark_remote(&self, piece: PieceNumber) {
        let mut sets = self.sets();
        sets.0.remove(piece);
        sets.1.insert(piece);
    }

    pub(crate) fn of(&self, piece: PieceNumber) -> From {
        let sets = self.sets();
        if sets.0.contains(piece) {
            From::Source
        } else if sets.1.contains(piece) {
            From::Remote
        } else {
            From::Local
        }
    }

    fn sets(&self) -> MutexGuard<'_, (PieceSet, PieceSet)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the bytes of one answer came from, in bytes; counted as they go to the client.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Fetched from the source by this host's download under way.
    pub source: AtomicU64,
    /// Fetched from peers by this host's download under way.
    pub remote: AtomicU64,
    /// On this host before.
    pub local: AtomicU64,
}

impl Traffic {
    pub(crate) fn add(&self, from: From, bytes: u64) {
        let counter = match from {
            From::Local => &self.local,
            From::Source => &self.source,
            From::Remote => &self.remote,
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::Limiter;

    const USUAL: Priority = Priority::HIGHEST;

    fn flight() -> Arc<Flight> {
        Flight::new(TaskId::from_bytes([0; 32]), "peer".into(), Limiter::default().flow(Priority::default()))
    }

    #[tokio::test]
    async fn the_driver_hears_what_readers_say() {
        let flight = flight();
        let seat = flight.sit(RangeWish::Whole, USUAL).unwrap();
        seat.at(4);
        let news = flight.news().await;
        assert_eq!(news[&ReaderId(0)].wants, Some(RangeWish::Whole));
        assert_eq!(news[&ReaderId(0)].at, Some(4));
        drop(seat);
        assert!(flight.news().await[&ReaderId(0)].gone);
        assert_eq!(flight.readers(), 0);
    }

    #[tokio::test]
    async fn the_book_does_not_close_over_an_unheard_reader() {
        let flight = flight();
        let seat = flight.sit(RangeWish::Whole, USUAL).unwrap();
        assert!(!flight.close(), "not heard");
        assert_eq!(flight.news().await.len(), 1);
        seat.at(3);
        assert!(flight.close(), "its place is nothing to wait for");
        assert!(flight.sit(RangeWish::Whole, USUAL).is_none());
    }

    #[test]
    fn a_download_is_as_urgent_as_its_most_urgent_reader() {
        let flight = flight();
        let level = |level| Priority::new(level).unwrap();
        let low = flight.sit(RangeWish::Whole, level(1)).unwrap();
        assert_eq!(flight.flow().priority(), level(1));
        let high = flight.sit(RangeWish::Whole, level(5)).unwrap();
        assert_eq!(flight.flow().priority(), level(5));
        drop(high);
        assert_eq!(flight.flow().priority(), level(1));
        drop(low);
        assert_eq!(flight.flow().priority(), level(1), "what is under way may be finished");
    }

    #[test]
    fn provenance_is_the_last_that_was_said() {
        let provenance = Provenance::default();
        provenance.size(2);
        assert_eq!(provenance.of(PieceNumber(0)), From::Local);
        provenance.mark_remote(PieceNumber(0));
        provenance.mark_source(PieceNumber(0));
        assert_eq!(provenance.of(PieceNumber(0)), From::Source);
        assert_eq!(provenance.of(PieceNumber(7)), From::Local);
    }
}
