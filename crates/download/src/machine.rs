//! The machine itself: what each event changes. What is done next is decided in [`super::plan`], after every event.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use damselfly_core::swarm::{Answer, Offer, Report, SourceWish};
use damselfly_core::{Blake3, Geometry, MAX_PIECES, Moment, PieceNumber, PieceSet};

use super::late::Late;
use super::link::{Link, Phase};
use super::parents::Parents;
use super::pieces::{Pieces, Producer, Proofs, State};
use super::readers::Readers;
use super::source::{Source, Stage};
use super::{Action, Config, Event, Failure, Setup};

/// One download: what is here, who has what, what is under way.
#[derive(Debug)]
pub struct Download {
    pub(super) config: Config,
    pub(super) rng: fastrand::Rng,
    wish: SourceWish,
    /// `None` while the geometry is not known.
    pub(super) pieces: Option<Pieces>,
    pub(super) wanted: PieceSet,
    pub(super) proofs: Proofs,
    pub(super) readers: Readers,
    pub(super) parents: Parents,
    pub(super) source: Source,
    pub(super) link: Link,
    pub(super) late: Late,
    /// How long a piece takes from a parent, smoothed over all of them.
    pub(super) took: Option<Duration>,
    /// Since when nothing came from anyone.
    pub(super) quiet: Moment,
    pub(super) was_busy: bool,
    /// When a reader's next piece may be preferred again.
    pub(super) urgent: Moment,
    /// How many others have been chosen since.
    pub(super) since_urgent: u32,
    /// Until then few pieces come at a time, because this host's own limit held them up.
    pub(super) few_until: Option<Moment>,
    pub(super) started: Moment,
    /// Whether a kept piece came from a parent.
    pub(super) from_parents: bool,
    /// The source contradicts the proofs: no parent is asked any more.
    pub(super) alone: bool,
    pub(super) ended: bool,
    pub(super) actions: VecDeque<Action>,
}

impl Download {
    /// A download that begins now: its first actions can be polled.
    pub fn new(setup: Setup, now: Moment) -> Self {
        let Setup { config, geometry, have, source, source_under_way, scheduler, seed } = setup;
        let mut rng = fastrand::Rng::with_seed(seed);
        let jitter = config.jitter.mul_f64(rng.f64());
        let mut download = Self {
            pieces: None,
            wanted: PieceSet::default(),
            proofs: Proofs::default(),
            readers: Readers::default(),
            parents: Parents::default(),
            source: Source::new(source, source_under_way),
            link: Link::new(scheduler, jitter),
            late: Late::new(now, jitter),
            took: None,
            quiet: now,
            was_busy: false,
            urgent: now,
            since_urgent: config.urgent_share,
            few_until: None,
            started: now,
            from_parents: false,
            alone: false,
            ended: false,
            actions: VecDeque::new(),
            wish: source,
            config,
            rng,
        };
        if let Some(geometry) = geometry {
            download.learn(geometry, &have);
        }
        if scheduler {
            download.register(source);
        }
        download
    }

    /// How the content is cut, once that is known.
    pub fn geometry(&self) -> Option<Geometry> {
        self.pieces.as_ref().map(Pieces::geometry)
    }

    /// Whether [`Action::Finish`] or [`Action::Fail`] was given: nothing more will come.
    pub fn has_ended(&self) -> bool {
        self.ended
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
            Event::Answer(answer) => self.answer(now, answer),
            Event::SchedulerLost => self.scheduler_lost(now),
            Event::GeometryLearned { geometry } => {
                self.agree(geometry);
            }
            Event::ParentHas { parent, piece } => self.parent_has(&parent, piece),
            Event::ParentQueues { parent } => self.parent_queues(&parent),
            Event::Turn { parent, least_sent } => self.turn(now, &parent, &least_sent),
            Event::TurnRefused { parent, fault } => self.turn_refused(now, &parent, fault),
            Event::ParentGone { parent, fault } => self.parent_gone(now, &parent, fault),
            Event::PieceArrived { parent, piece, digest } => self.arrived(now, parent, piece, digest),
            Event::PieceFailed { parent, piece, fault } => self.failed(now, parent, piece, fault),
            Event::PieceHeld { piece } => {
                self.held(piece);
                self.aside_got_on(now);
            }
            Event::AsideEnded => self.aside_ended(now),
            Event::SourceGives { pieces } => self.source.gives = Some(pieces),
            Event::PieceLost { piece } => self.lost(piece),
            Event::SourceOpened { geometry } => self.source_opened(now, geometry),
            Event::SourcePiece { piece, digest } => self.source_piece(now, piece, digest),
            Event::SourceProgress { bytes } => self.source_progress(now, bytes),
            Event::SourceEnded(end) => self.source_ended(now, end),
            Event::ReaderWants { reader, wish } => {
                self.readers.want(reader, wish, self.geometry());
                self.want();
            }
            Event::ReaderAt { reader, offset } => self.readers.moved(reader, offset, self.geometry()),
            Event::ReaderGone { reader } => {
                if self.readers.remove(reader, &self.under_way(), now, self.geometry()) {
                    self.want();
                }
            }
            Event::WantWhole => {
                self.readers.want_whole(true);
                self.want();
            }
            Event::DigestMismatch => self.fail(Failure::Digest),
            Event::Drain => {
                self.readers.want_whole(false);
                self.readers.ever = true;
                self.want();
            }
            Event::HeldUp { by } => self.held_up(now, by),
            Event::Timer => {}
        }
        let grace = self.config.leftover_grace;
        if self.pieces.as_ref().is_some_and(|pieces| self.readers.release(pieces, now, grace)) {
            self.want();
        }
        self.settle(now);
        #[cfg(any(test, debug_assertions))]
        self.check();
    }

    fn answer(&mut self, now: Moment, answer: Answer) {
        if self.link.phase == Phase::Asked {
            self.hurry(now);
        }
        self.late.silent = false;
        self.source.unanswered = false;
        match answer {
            Answer::Wait => {
                self.late.confirmed(now, &self.config);
                let wanted = self.link.wanted && self.link.phase == Phase::Asked;
                if (wanted || !self.parents.any_useful()) && self.link.phase != Phase::Granted {
                    self.link.answered(Phase::Waiting);
                    self.quiet = now;
                }
            }
            Answer::Empty => {
                let agreed = Geometry::of_length(0).is_ok_and(|empty| self.agree(empty));
                // Whatever the geometry was: the conversation goes on as if the scheduler had no idea.
                self.link.answered(if agreed { Phase::Served } else { Phase::Waiting });
                self.quiet = now;
            }
            Answer::Parents { offers, geometry, proven } => self.offered(now, offers, geometry, proven),
            Answer::GoToSource { pieces } => self.leased(now, pieces),
            Answer::Proofs(proofs) => self.proved(proofs),
        }
    }

    /// The scheduler sends this download to the source, for these pieces or for all.
    fn leased(&mut self, now: Moment, pieces: Option<Range<u32>>) {
        self.quiet = now;
        if !self.source.is_usable() {
            self.link.answered(if self.parents.any_useful() { Phase::Served } else { Phase::Waiting });
            return self.report(Report::SourceFailed);
        }
        self.source.permitted &= self.alone;
        self.source.granted = pieces.is_none();
        self.link.answered(if pieces.is_none() { Phase::Granted } else { Phase::Served });
        let first = pieces.as_ref().map(|pieces| PieceNumber(pieces.start));
        self.source.insists = first.is_some_and(|first| self.parents_can_give(first));
        self.source.lease = pieces;
        self.cut_stream_short();
    }

    /// What the stream under way would bring beyond the lease is anybody's.
    fn cut_stream_short(&mut self) {
        let Some(lease) = self.source.lease.clone().filter(|_| !self.source.is_open()) else { return };
        let (Stage::Reading { run: Some(run), .. }, Some(pieces)) = (&mut self.source.stage, &mut self.pieces) else {
            return;
        };
        if lease.contains(&run.start) && run.end > lease.end {
            run.end = lease.end;
            let end = u64::from(lease.end) * pieces.geometry().piece_length();
            self.actions.push_back(Action::ShortenSource { end });
            pieces.release_source_from(lease.end, &self.wanted, &self.proofs);
        }
    }

    fn offered(&mut self, now: Moment, offers: Vec<Offer>, geometry: Option<Geometry>, proven: bool) {
        self.quiet = now;
        self.link.answered(Phase::Served);
        self.late.confirmed(now, &self.config);
        // What was entered without the scheduler is left for them.
        self.source.permitted &= self.alone;
        if geometry.is_some_and(|geometry| !self.agree(geometry)) || self.alone {
            offers.iter().for_each(|offer| self.parents.refuse(&offer.peer));
            return;
        }
        if proven && !self.proofs.required {
            self.proofs.required = true;
            if let Some(pieces) = &mut self.pieces {
                pieces.refresh_all(&self.proofs);
            }
        }
        for parent in self.parents.followed.values_mut() {
            parent.retired = true;
        }
        let count = self.geometry().map(Geometry::count);
        for offer in offers {
            if self.parents.offer(now, &offer, count, self.config.pieces_per_parent) {
                self.actions.push_back(Action::Follow(offer));
            }
        }
        let retired = self.parents.followed.iter().filter(|(_, parent)| parent.retired && parent.in_flight == 0);
        for peer in retired.map(|(peer, _)| peer.clone()).collect::<Vec<_>>() {
            self.unfollow(&peer);
        }
    }

    fn proved(&mut self, proofs: Vec<(PieceNumber, Blake3)>) {
        let count = self.geometry().map_or(MAX_PIECES, Geometry::count);
        for (piece, proof) in proofs {
            if piece.0 < count && !self.proofs.known.contains_key(&piece) {
                self.proofs.known.insert(piece, proof);
                if let Some(pieces) = &mut self.pieces {
                    pieces.refresh(piece, &self.proofs);
                }
            }
        }
    }

    fn scheduler_lost(&mut self, now: Moment) {
        if self.link.phase != Phase::None && self.link.lost(now, &self.config) {
            self.quiet = now;
        }
    }

    /// Takes the geometry if none is known; says whether it agrees with the one that is.
    fn agree(&mut self, geometry: Geometry) -> bool {
        match self.geometry() {
            Some(known) => known == geometry,
            None => {
                self.learn(geometry, &PieceSet::empty(geometry.count()));
                true
            }
        }
    }

    pub(super) fn learn(&mut self, geometry: Geometry, have: &PieceSet) {
        let mut pieces = Pieces::new(geometry, have);
        self.proofs.known.retain(|piece, _| piece.0 < geometry.count());
        for parent in self.parents.followed.values_mut() {
            let mut has = PieceSet::empty(geometry.count());
            has.extend(parent.has.iter());
            parent.has = has;
            parent.has.iter().for_each(|piece| pieces.add_holder(piece, &self.proofs));
        }
        self.pieces = Some(pieces);
        self.readers.resolve(geometry);
        self.want();
        self.claim_whole();
    }

    /// What is wanted has changed.
    fn want(&mut self) {
        let Some(pieces) = &mut self.pieces else { return };
        self.wanted = self.readers.wanted(pieces.geometry());
        for (piece, parent) in pieces.want(&self.wanted, &self.proofs) {
            self.actions.push_back(Action::Cancel { parent: parent.clone(), piece });
            self.one_less_in_flight(&parent);
        }
    }

    /// The pieces that are being brought at this moment.
    fn under_way(&self) -> Vec<PieceNumber> {
        let from_parents = self.pieces.iter().flat_map(|pieces| pieces.fetches.keys().copied());
        let from_source = match &self.source.stage {
            Stage::Reading { run: Some(run), .. } if !run.is_empty() => Some(PieceNumber(run.start)),
            _ => None,
        };
        let aside = self.source.aside.as_ref().map(|aside| PieceNumber(aside.next));
        from_parents.chain(from_source).chain(aside).collect()
    }

    /// The store has the piece, whoever put it there.
    pub(super) fn held(&mut self, piece: PieceNumber) {
        if let Some(fetch) = self.pieces.as_ref().and_then(|pieces| pieces.fetches.get(&piece)) {
            let parent = fetch.parent.clone();
            self.landed(&parent, piece);
            self.actions.push_back(Action::Cancel { parent, piece });
        }
        self.set(piece, State::Have);
    }

    fn lost(&mut self, piece: PieceNumber) {
        let Some(pieces) = &mut self.pieces else { return };
        let Some(State::Have) = pieces.state(piece) else { return };
        let producer = match () {
            () if self.source.will_bring(piece) => Some(Producer::Source),
            () if self.source.aside.as_ref().is_some_and(|aside| aside.will_bring(piece)) => Some(Producer::Aside),
            () => None,
        };
        if let Some(producer) = producer {
            pieces.set(piece, State::InFlight(producer), &self.proofs);
        } else {
            pieces.release(piece, &self.wanted, &self.proofs);
            self.readers.resolve(pieces.geometry());
            self.want();
        }
    }

    pub(super) fn set(&mut self, piece: PieceNumber, state: State) {
        if let Some(pieces) = &mut self.pieces {
            pieces.set(piece, state, &self.proofs);
        }
    }

    pub(super) fn register(&mut self, source: SourceWish) {
        let source = if self.wish == SourceWish::Allowed { source } else { self.wish };
        self.link.registered(source == SourceWish::Wanted);
        self.actions.push_back(Action::Register { source });
    }

    /// Tells the scheduler, if there is one.
    pub(super) fn report(&mut self, report: Report) {
        if self.link.is_up() {
            self.actions.push_back(Action::Report(report));
        }
    }

    /// Ends well: everything wanted is here.
    pub(super) fn finish(&mut self) {
        self.end(Report::Finished, Action::Finish);
    }

    /// Ends without everything that was wanted.
    pub(super) fn fail(&mut self, failure: Failure) {
        self.end(Report::Failed, Action::Fail(failure));
    }

    fn end(&mut self, report: Report, last: Action) {
        self.ended = true;
        if let Some(pieces) = &mut self.pieces {
            for (piece, fetch) in std::mem::take(&mut pieces.fetches) {
                self.actions.push_back(Action::Cancel { parent: fetch.parent, piece });
            }
        }
        if self.source.aside.take().is_some() {
            self.actions.push_back(Action::StopAside);
        }
        if self.source.is_reading() || self.source.under_way {
            self.actions.push_back(Action::StopSource);
        }
        self.report(report);
        self.actions.push_back(last);
    }

    /// Panics where an invariant does not hold.
    #[cfg(any(test, debug_assertions))]
    fn check(&self) {
        if self.ended {
            return;
        }
        if let Some(pieces) = &self.pieces {
            pieces.check(&self.proofs);
            assert!(pieces.fetches.len() <= self.config.concurrent_pieces as usize, "too much in flight");
            let quick = pieces.fetches.values().filter(|fetch| fetch.by_turn && !fetch.slow);
            // One of them may have been taken over for a reader.
            assert!(quick.count() <= self.config.turns_at_once as usize + 1, "too many turns");
            for (peer, parent) in &self.parents.followed {
                let in_flight = pieces.fetches.values().filter(|fetch| fetch.parent == *peer).count();
                assert_eq!(parent.in_flight as usize, in_flight, "{peer}");
                assert!(parent.in_flight <= self.config.pieces_per_parent, "too much in flight from {peer}");
            }
            for piece in pieces.geometry().pieces() {
                let claimed = self.source.will_bring(piece);
                let state = pieces.state(piece);
                assert_eq!(claimed && state != Some(State::Have), state == Some(State::InFlight(Producer::Source)));
            }
        }
        assert!(self.deadline().is_some(), "never waiting without a deadline: {self:?}");
    }
}
