//! A reader's next piece does not come: who is asked for it.
//!
//! First the scheduler: it knows who has the piece or reads it, and gives the lease of it to somebody who gets on. If it
//! says "wait", somebody does, and that is believed a few times. If it says nothing, the source is read for just that
//! piece, after a moment drawn by chance: of a herd that waits for one piece few read it, and the others have it from
//! them.

use std::time::Duration;

use damselfly_core::swarm::Report;
use damselfly_core::{Moment, PieceNumber};

use super::pieces::{Producer, State};
use super::source::Stage;
use super::{Action, Config, Download};

/// The longest that a usual piece adds to the patience with one.
const MOST_USUAL: Duration = Duration::from_secs(8);

/// Since when a reader waits for its next piece, and what was done about it.
#[derive(Debug)]
pub(super) struct Late {
    /// Where the readers stood, together.
    place: u64,
    /// When something is done next.
    pub(super) at: Moment,
    /// The scheduler was asked, and has not answered.
    asked: bool,
    /// How often it answered that one should wait, since the readers last got on.
    confirmed: u32,
    /// This download's share of the fleet's jitter.
    jitter: Duration,
}

impl Late {
    pub(super) fn new(now: Moment, jitter: Duration) -> Self {
        Self { place: u64::MAX, at: now, asked: false, confirmed: 0, jitter: jitter / 2 }
    }

    /// The scheduler says that one should wait: somebody brings it.
    pub(super) fn confirmed(&mut self, now: Moment, config: &Config) {
        if std::mem::take(&mut self.asked) {
            self.confirmed += 1;
            self.at = now + config.late;
        }
    }
}

impl Download {
    /// Where the readers' next pieces are, and what that adds up to.
    fn next_pieces(&mut self) -> Option<(u64, Vec<PieceNumber>)> {
        let pieces = self.pieces.as_ref()?;
        let windows: Vec<_> = self.readers.windows(pieces, 1).collect();
        let place = windows.iter().map(|next| u64::from(next.start) + 1).sum();
        Some((place, windows.into_iter().filter(|next| !next.is_empty()).map(|next| PieceNumber(next.start)).collect()))
    }

    fn patience(&self) -> Duration {
        self.config.late + self.took.unwrap_or_default().min(MOST_USUAL)
    }

    /// When [`Self::look_after_the_late`] has something to do; `None` where no reader waits.
    pub(super) fn late_deadline(&self) -> Option<Moment> {
        let waits = self.pieces.is_some() && self.readers.any_reader() && self.source.is_usable();
        waits.then_some(self.late.at)
    }

    /// Sees to it that no reader waits long for its next piece.
    pub(super) fn look_after_the_late(&mut self, now: Moment) {
        let Some((place, next)) = self.next_pieces() else { return };
        if next.is_empty() {
            self.late.at = now + self.patience();
            return;
        }
        if place != self.late.place {
            let jitter = self.late.jitter;
            self.late = Late { place, at: now + self.patience(), asked: false, confirmed: 0, jitter };
            self.source.urgent = None;
            return;
        }
        if self.late.at > now {
            return;
        }
        let Some(piece) = next.into_iter().find(|&piece| !self.comes(piece)) else {
            self.late.at = now + self.config.late;
            return;
        };
        let believes = self.late.confirmed <= self.config.confirmed_waits;
        if self.link.is_up() && !self.late.asked && believes && self.source.urgent.is_none() {
            self.late.asked = true;
            self.late.at = now + self.config.late_grace + self.late.jitter;
            return self.report(Report::Late { piece });
        }
        self.late.asked = false;
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
        self.go_over_to_the_urgent(piece);
    }

    /// The stream under way is left for the piece that a reader waits for.
    fn go_over_to_the_urgent(&mut self, piece: PieceNumber) {
        let Stage::Reading { run: Some(run), .. } = &self.source.stage else { return };
        if self.source.urgent == Some(piece) && !run.contains(&piece.0) {
            self.source.stage = Stage::Idle;
            self.actions.push_back(Action::StopSource);
            if let Some(pieces) = &mut self.pieces {
                pieces.release_source(&self.wanted, &self.proofs);
            }
        }
    }

    /// Whether a piece is on its way and will be here soon, as far as anyone can tell.
    fn comes(&self, piece: PieceNumber) -> bool {
        let Some(pieces) = &self.pieces else { return false };
        match pieces.state(piece) {
            Some(State::InFlight(Producer::Parent)) => pieces.fetches.get(&piece).is_some_and(|fetch| !fetch.slow),
            Some(State::InFlight(Producer::Source)) => true,
            _ => false,
        }
    }
}
