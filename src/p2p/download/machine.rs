//! The machine itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use damselfly_core::swarm::{Answer, Report, SourceWish};
use damselfly_core::{ByteRange, Geometry, Moment, PeerId, PieceNumber, PieceSet, RangeWish};

use super::{Action, End, Event, Failure, ReaderId, Setup};

/// One download: what is here, who has what, what is under way.
#[derive(Debug)]
pub struct Download {
    setup: Setup,
    started: Moment,
    geometry: Option<Geometry>,
    have: PieceSet,
    parents: BTreeMap<PeerId, BTreeSet<PieceNumber>>,
    in_flight: BTreeMap<PieceNumber, PeerId>,
    readers: BTreeMap<ReaderId, RangeWish>,
    reading: bool,
    answered: bool,
    ended: bool,
    actions: VecDeque<Action>,
}

impl Download {
    /// A download that begins now: its first actions can be polled.
    pub fn new(setup: Setup, now: Moment) -> Self {
        let geometry = setup.geometry;
        let have = match geometry {
            Some(geometry) if setup.have.count() == geometry.count() => setup.have.clone(),
            _ => PieceSet::empty(geometry.map_or(0, Geometry::count)),
        };
        let mut download = Self {
            started: now,
            geometry,
            have,
            parents: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            readers: BTreeMap::new(),
            reading: false,
            answered: false,
            ended: false,
            actions: VecDeque::new(),
            setup,
        };
        if download.setup.scheduler {
            download.actions.push_back(Action::Register { source: download.setup.source });
        } else {
            download.read_source();
        }
        download
    }

    /// How the content is cut, once that is known.
    pub fn geometry(&self) -> Option<Geometry> {
        self.geometry
    }

    /// Whether [`Action::Finish`] or [`Action::Fail`] was given: nothing more will come.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// When the machine wants [`Event::Timer`], unless something else happens first.
    pub fn deadline(&self) -> Option<Moment> {
        (!self.ended && !self.answered).then(|| self.started + self.setup.config.scheduler_grace)
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Something happened.
    pub fn handle(&mut self, now: Moment, event: Event) {
        if self.ended {
            return;
        }
        match event {
            Event::Answer(Answer::Parents { offers, geometry, .. }) => {
                self.answered = true;
                self.learn(geometry);
                for offer in offers {
                    if self.parents.insert(offer.peer.clone(), BTreeSet::new()).is_none() {
                        self.actions.push_back(Action::Follow(offer));
                    }
                }
            }
            Event::Answer(Answer::Wait) => self.answered = true,
            Event::Answer(Answer::Proofs(_)) => {}
            Event::Answer(Answer::Empty) => self.learn(Geometry::of_length(0).ok()),
            Event::Answer(Answer::GoToSource) | Event::SchedulerLost => self.read_source(),
            Event::Timer if self.deadline().is_some_and(|at| at <= now) => self.read_source(),
            Event::GeometryLearned { geometry } => self.learn(Some(geometry)),
            Event::SourceOpened { geometry } => {
                self.learn(Some(geometry));
                self.actions.push_back(Action::Report(Report::SourceOpened(geometry)));
            }
            Event::ParentHas { parent, piece } => {
                self.parents.entry(parent).or_default().insert(piece);
            }
            Event::PieceArrived { parent, piece, digest } => {
                self.in_flight.remove(&piece);
                self.have.insert(piece);
                self.actions.push_back(Action::Keep { piece });
                let report = Report::PieceFinished { piece, parent: Some(parent), digest };
                self.actions.push_back(Action::Report(report));
            }
            Event::PieceFailed { parent, piece, .. } => {
                self.in_flight.remove(&piece);
                self.parents.remove(&parent);
                self.actions.push_back(Action::Unfollow(parent));
            }
            Event::SourcePiece { piece, digest } => {
                self.have.insert(piece);
                self.actions.push_back(Action::Report(Report::PieceFinished { piece, parent: None, digest }));
            }
            Event::PieceHeld { piece } => {
                self.have.insert(piece);
            }
            Event::SourceEnded(End::Complete) => self.reading = false,
            Event::SourceEnded(End::Changed) => self.fail(Failure::Changed),
            Event::SourceEnded(End::Cut) => self.fail(Failure::Cut),
            Event::SourceEnded(End::Refused) => self.fail(Failure::Refused),
            Event::SourceEnded(End::Unsized) => self.fail(Failure::Unsized),
            Event::DigestMismatch => self.fail(Failure::Digest),
            Event::ReaderWants { reader, wish } => {
                self.readers.insert(reader, wish);
            }
            Event::ReaderGone { reader } => {
                self.readers.remove(&reader);
                if self.readers.is_empty() {
                    self.fail(Failure::Abandoned);
                }
            }
            _ => {}
        }
        self.plan();
    }

    fn learn(&mut self, geometry: Option<Geometry>) {
        if let (None, Some(geometry)) = (self.geometry, geometry) {
            self.geometry = Some(geometry);
            self.have = PieceSet::empty(geometry.count());
        }
    }

    fn read_source(&mut self) {
        self.answered = true;
        if self.reading || self.setup.source == SourceWish::Forbidden {
            return;
        }
        self.reading = true;
        let range = self.geometry.map(|geometry| ByteRange::whole(geometry.length()));
        self.actions.push_back(Action::ReadSource { range });
    }

    fn plan(&mut self) {
        let (false, Some(geometry)) = (self.ended, self.geometry) else { return };
        if self.have.is_full() {
            self.ended = true;
            self.actions.extend([Action::Report(Report::Finished), Action::Finish]);
            return;
        }
        for piece in geometry.pieces() {
            if self.reading || self.in_flight.len() >= self.setup.config.concurrent_pieces as usize {
                return;
            }
            if self.have.contains(piece) || self.in_flight.contains_key(&piece) {
                continue;
            }
            if let Some((parent, _)) = self.parents.iter().find(|(_, has)| has.contains(&piece)) {
                self.in_flight.insert(piece, parent.clone());
                self.actions.push_back(Action::Fetch { parent: parent.clone(), piece, proof: None });
            }
        }
    }

    fn fail(&mut self, failure: Failure) {
        self.ended = true;
        self.actions.extend([Action::Report(Report::Failed), Action::Fail(failure)]);
    }
}
