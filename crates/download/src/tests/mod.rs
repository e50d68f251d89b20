//! The machine's rules by name, every state with every event, and random events against the invariants.

mod aside;
mod parents;
mod random;
mod readers;
mod scheduler;
mod source;
mod table;
mod turns;

use std::time::Duration;

use damselfly_core::swarm::{Answer, Report, SourceWish};
use damselfly_core::{Blake3, ByteRange, Moment, PeerId, PieceDigest, PieceNumber, PieceSet, RangeWish};

use super::model::{PIECE, digest, geometry, offer, peer, setup};
use super::{Action, Config, Download, End, Event, Failure, ReaderId, Setup};

fn fetch(parent: &str, piece: u32) -> Action {
    Action::Fetch { parent: peer(parent), piece: PieceNumber(piece), proof: None }
}

fn read(first: u64, end: u64) -> Action {
    Action::ReadSource { range: ByteRange::new(first * PIECE, end * PIECE) }
}

/// A download in a clock that the test moves.
struct Bench {
    download: Download,
    now: Moment,
}

impl Bench {
    fn new(setup: Setup) -> Self {
        Self { download: Download::new(setup, Moment::START), now: Moment::START }
    }

    /// A registered download of so many pieces, with one reader of the whole.
    fn whole(pieces: u64) -> Self {
        let mut bench = Self::new(setup(Some(pieces)));
        assert_eq!(bench.wants(1, RangeWish::Whole), [Action::Register { source: SourceWish::Allowed }]);
        bench
    }

    /// A download that has the source, which is opened.
    fn granted(pieces: u64) -> Self {
        let mut bench = Self::whole(pieces);
        assert_eq!(bench.answer(Answer::GoToSource { pieces: None }), [read(0, pieces)]);
        let opened = bench.tell(Event::SourceOpened { geometry: geometry(pieces) });
        assert_eq!(opened, [Action::Report(Report::SourceOpened(geometry(pieces)))]);
        bench
    }

    fn tell(&mut self, event: Event) -> Vec<Action> {
        self.download.handle(self.now, event);
        std::iter::from_fn(|| self.download.poll()).collect()
    }

    fn answer(&mut self, answer: Answer) -> Vec<Action> {
        self.tell(Event::Answer(answer))
    }

    fn wants(&mut self, reader: u64, wish: RangeWish) -> Vec<Action> {
        self.tell(Event::ReaderWants { reader: ReaderId(reader), wish })
    }

    fn lease(&mut self, first: u32, end: u32) -> Vec<Action> {
        self.answer(Answer::GoToSource { pieces: Some(first..end) })
    }

    fn parents(&mut self, names: &[&str], proven: bool) -> Vec<Action> {
        let offers = names.iter().map(|name| offer(name)).collect();
        self.answer(Answer::Parents { offers, geometry: None, proven })
    }

    fn has(&mut self, parent: &str, piece: u32) -> Vec<Action> {
        self.tell(Event::ParentHas { parent: peer(parent), piece: PieceNumber(piece) })
    }

    fn arrives(&mut self, parent: &str, piece: u32) -> Vec<Action> {
        self.tell(Event::PieceArrived { parent: peer(parent), piece: PieceNumber(piece), digest: digest(piece) })
    }

    fn sourced(&mut self, piece: u32) -> Vec<Action> {
        self.tell(Event::SourcePiece { piece: PieceNumber(piece), digest: digest(piece) })
    }

    fn proof(&mut self, piece: u32, of: u32) -> Vec<Action> {
        self.answer(Answer::Proofs(vec![(PieceNumber(piece), digest(of).blake3)]))
    }

    /// Lets the time come that the machine waits for; says how long that was.
    fn wait(&mut self) -> (Duration, Vec<Action>) {
        let deadline = self.download.deadline().unwrap();
        let waited = deadline.since(self.now);
        self.now = self.now.max(deadline);
        (waited, self.tell(Event::Timer))
    }
}

fn finished(piece: u32, parent: Option<&str>) -> Action {
    Action::Report(Report::PieceFinished { piece: PieceNumber(piece), parent: parent.map(peer), digest: digest(piece) })
}

fn kept(piece: u32, parent: &str) -> [Action; 2] {
    [Action::Keep { piece: PieceNumber(piece) }, finished(piece, Some(parent))]
}

const fn proof_of(digest: PieceDigest) -> Option<Blake3> {
    Some(digest.blake3)
}
