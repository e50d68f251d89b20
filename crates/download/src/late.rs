//! A reader's next piece does not come: who is asked for it.
//!
//! First the scheduler: it knows who has the piece or reads it, and gives the lease of it to somebody who gets on. If it
//! says "wait", somebody does, and that is believed a few times. If it says nothing, the source is read for just that
//! piece, after a moment drawn by chance: of a herd that waits for one piece few read it, and the others have it from
//! them. If it then still says nothing, its connection is of no use, though it stands: the source is read until it speaks.

use std::time::Duration;

use damselfly_core::swarm::Report;
use damselfly_core::{Moment, PieceNumber};

use super::link::Phase;
use super::pieces::{Fetch, Producer, State};
use super::source::Stage;
use super::{Action, Config, Download};

/// The longest that a usual piece adds to the patience with one.
const MOST_USUAL: Duration = Duration::from_secs(8);

/// How long readers who read here and there wait before the scheduler is asked for what they wait for: parents that it has
/// just offered tell what they have in this time.
const HURRY: Duration = Duration::from_millis(50);

/// How often the patience doubles at most.
const DOUBLINGS: u32 = 4;

/// How many times as long a download without a reader waits.
const UNHURRIED: u32 = 4;

/// Since when a reader waits for its next piece, and what was done about it.
#[derive(Debug)]
pub(super) struct Late {
    /// Where the readers stood, together.
    place: u64,
    /// When something is done next.
    pub(super) at: Moment,
    /// The scheduler was asked, and has not answered.
    asked: bool,
    /// It did not answer when it was last asked, and has said nothing since.
    pub(super) silent: bool,
    /// For which piece.
    piece: Option<PieceNumber>,
    /// How often it answered that one should wait, since the readers last got on.
    confirmed: u32,
    /// How many pieces in a row were read from the source because nobody else brought them: the patience doubles with
    /// each, for a source that is slow is slower still if a herd asks it for single pieces.
    in_a_row: u32,
    /// When readers who read here and there have waited long enough.
    pub(super) hurry: Option<Moment>,
    /// This download's share of the fleet's jitter.
    jitter: Duration,
}

impl Late {
    pub(super) fn new(now: Moment, jitter: Duration) -> Self {
        Self {
            place: u64::MAX,
            at: now,
            asked: false,
            silent: false,
            piece: None,
            confirmed: 0,
            in_a_row: 0,
            hurry: None,
            jitter: jitter / 2,
        }
    }

    /// The scheduler has answered: somebody brings it, or here are those who have it. That is worth a wait, longer each
    /// time.
    pub(super) fn confirmed(&mut self, now: Moment, config: &Config) {
        if std::mem::take(&mut self.asked) {
            self.confirmed += 1;
            self.at = now + config.late.saturating_mul(1 + self.confirmed.min(16) / 4);
        }
    }
}

impl Download {
    /// Where the readers' next pieces are, and what that adds up to.
    fn next_pieces(&mut self) -> Option<(u64, Vec<PieceNumber>)> {
        let pieces = self.pieces.as_ref()?;
        if !self.readers.any_reader() {
            // Nobody reads, and the whole is wanted: any piece will do, and there is no hurry.
            let missing = pieces.geometry().pieces().filter(|&piece| pieces.state(piece) != Some(State::Have));
            let missing: Vec<PieceNumber> = missing.collect();
            return Some((missing.len() as u64, missing));
        }
        let windows: Vec<_> = self.readers.windows(pieces, 1).collect();
        let place = windows.iter().map(|next| u64::from(next.start) + 1).sum();
        Some((place, windows.into_iter().filter(|next| !next.is_empty()).map(|next| PieceNumber(next.start)).collect()))
    }

    /// How long a parent is given for a piece that a reader has waited for too long already.
    fn fair_time(&self) -> Duration {
        self.config.slow_margin + self.took.map_or(self.config.late, |took| took.min(MOST_USUAL).mul_f64(1.5))
    }

    /// Whether readers want little of the content, here and there.
    fn is_scattered(&self) -> bool {
        let wanted = self.wanted.len();
        wanted <= self.config.scattered && wanted.saturating_mul(2) <= self.wanted.count()
    }

    /// The scheduler has spoken for the first time. The runs that it leases by itself are not where readers read who read
    /// here and there, as a rule.
    pub(super) fn hurry(&mut self, now: Moment) {
        self.late.hurry = self.is_scattered().then_some(now + HURRY);
    }

    /// Whether the scheduler is there to be asked for what readers wait for, and no parent could give it.
    fn is_hurried(&self, next: &[PieceNumber]) -> bool {
        let answered = matches!(self.link.phase, Phase::Waiting | Phase::Served);
        let needed = |piece: &PieceNumber| {
            self.pieces.as_ref().is_some_and(|pieces| pieces.is_needed(*piece) && !pieces.is_ready(*piece))
        };
        answered && !self.late.asked && self.source.urgent.is_none() && next.iter().any(needed)
    }

    fn patience(&self) -> Duration {
        let hurry = if self.readers.any_reader() { 1 } else { UNHURRIED };
        let usual = self.config.late + self.took.unwrap_or_default().min(MOST_USUAL);
        usual.saturating_mul(hurry << self.late.in_a_row.min(DOUBLINGS))
    }

    /// When [`Self::look_after_the_late`] has something to do; `None` where no reader waits.
    pub(super) fn late_deadline(&self) -> Option<Moment> {
        let waits = self.pieces.is_some() && self.readers.any() && self.source.is_usable();
        waits.then(|| self.late.hurry.map_or(self.late.at, |hurry| hurry.min(self.late.at)))
    }

    /// Sees to it that no reader waits long for its next piece.
    pub(super) fn look_after_the_late(&mut self, now: Moment) {
        let Some((place, next)) = self.next_pieces() else { return };
        if next.is_empty() {
            self.late.at = now + self.patience();
            self.late.hurry = None;
            return;
        }
        if place != self.late.place {
            let (jitter, before, silent) = (self.late.jitter, self.late.in_a_row, self.late.silent);
            let in_a_row = if self.source.urgent.take().is_some() && !silent { before + 1 } else { before / 2 };
            self.late.in_a_row = in_a_row;
            let at = now + self.patience();
            let hurry = self.is_scattered().then_some(now + HURRY);
            self.late = Late { place, at, asked: false, silent, piece: None, confirmed: 0, in_a_row, hurry, jitter };
            return;
        }
        let hurried = self.late.hurry.take_if(|at| *at <= now).is_some() && self.is_hurried(&next);
        if self.late.at > now && !hurried {
            return;
        }
        let Some(piece) = next.iter().copied().find(|&piece| !self.comes(now, piece)) else {
            // Not before the youngest of the fetches has had its time.
            let begun = next.iter().filter_map(|piece| self.fetch_of(*piece)).map(|fetch| fetch.since).min();
            let at = begun.unwrap_or(now) + self.fair_time();
            self.late.at = if at > now { at } else { now + self.config.late };
            return;
        };
        // Whoever is asked for it does not give it in time: another parent may take it over.
        let fair = self.fair_time();
        if let Some(fetch) = self.pieces.as_mut().and_then(|pieces| pieces.fetches.get_mut(&piece)) {
            fetch.slow |= fetch.since + fair <= now;
        }
        if self.link.is_up() && self.late.silent && self.source.is_usable() {
            // Twice in a row: nobody says who reads what any more.
            self.source.unanswered = true;
        } else if self.link.is_up() && !self.late.asked && self.believes(piece) && self.source.urgent.is_none() {
            self.late.asked = true;
            self.late.piece = Some(piece);
            self.late.at = now + self.config.late_grace + self.late.jitter;
            return self.report(Report::Late { piece });
        }
        self.late.silent |= std::mem::take(&mut self.late.asked);
        self.late.at = now + self.patience();
        if self.source.is_usable() && !self.source.may_read(piece) {
            self.source.urgent = Some(piece);
        }
        if self.source.may_read(piece)
            && let Some(fetch) = self.pieces.as_ref().and_then(|pieces| pieces.fetches.get(&piece))
        {
            let from = fetch.parent.clone();
            self.give_up(now, &from, piece);
        }
        self.go_over_to_the_urgent(now, piece);
    }

    /// Whether the scheduler says that what a reader waits for is on its way to somebody, and is believed.
    pub(super) fn is_promised(&self) -> bool {
        self.late.confirmed > 0 && self.late.piece.is_some_and(|piece| self.believes(piece))
    }

    /// Whether one more word of the scheduler's that somebody brings the piece is believed.
    fn believes(&self, piece: PieceNumber) -> bool {
        let held = self.pieces.as_ref().is_some_and(|pieces| pieces.held_by(piece) > 0);
        self.late.confirmed <= if held { self.config.late_confirmed } else { self.config.late_read }
    }

    /// A stream that brings nothing is left for the piece that a reader waits for; one that does brings its piece first.
    fn go_over_to_the_urgent(&mut self, now: Moment, piece: PieceNumber) {
        let Stage::Reading { run: Some(run), lived } = &self.source.stage else { return };
        let silent = now.since(*lived) >= self.config.late;
        // Once in a silence: that is not begun anew by another stream, and ends like that of any other.
        if self.source.urgent == Some(piece) && !run.contains(&piece.0) && silent && !self.source.moved {
            (self.source.moved, self.source.silent) = (true, Some(*lived));
            self.source.stage = Stage::Idle;
            self.actions.push_back(Action::StopSource);
            if let Some(pieces) = &mut self.pieces {
                pieces.release_source(&self.wanted, &self.proofs);
            }
        }
    }

    fn fetch_of(&self, piece: PieceNumber) -> Option<&Fetch> {
        self.pieces.as_ref()?.fetches.get(&piece)
    }

    /// What a slow parent is asked for and may be read from the source is read from there.
    pub(super) fn read_what_is_slow(&mut self, now: Moment) {
        let Some(pieces) = &self.pieces else { return };
        let waited_for = |piece| self.late.asked && self.late.piece == Some(piece);
        let slow = pieces.fetches.iter().filter(|(piece, fetch)| {
            (fetch.slow || waited_for(**piece)) && self.source.may_read(**piece) && self.source.is_usable()
        });
        for (piece, from) in slow.map(|(&piece, fetch)| (piece, fetch.parent.clone())).collect::<Vec<_>>() {
            // It must then really be read from there, one at a time: the same parent would be asked for it again.
            if !self.source.must_read(piece) {
                if self.source.urgent.is_some() {
                    continue;
                }
                self.source.urgent = Some(piece);
            }
            self.give_up(now, &from, piece);
        }
    }

    /// Whether a piece is on its way and will be here soon, as far as anyone can tell.
    fn comes(&self, now: Moment, piece: PieceNumber) -> bool {
        let Some(pieces) = &self.pieces else { return false };
        match pieces.state(piece) {
            Some(State::InFlight(Producer::Parent)) => {
                self.fetch_of(piece).is_some_and(|fetch| !fetch.slow && fetch.since + self.fair_time() > now)
            }
            Some(State::InFlight(Producer::Source | Producer::Aside)) => true,
            _ => false,
        }
    }
}
