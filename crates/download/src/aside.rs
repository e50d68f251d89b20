//! A reader far from where the source stream is: it gets a stream of its own for its next pieces, beside the other.
//!
//! The stream under way would bring them only after everything before, or not at all. It is shortened to end where the
//! other one begins, so no byte comes twice. **One such stream at a time**, and only where this download reads the whole from the source:
//! under leases runs are short, and what is late is asked of the scheduler.

use damselfly_core::{ByteRange, Moment, PieceNumber};

use super::pieces::{Producer, State};
use super::source::Stage;
use super::{Action, Download};

/// The stream beside the one under way: the pieces from the next one to the one behind the last, and when it last brought
/// one.
#[derive(Debug)]
pub(super) struct Aside {
    pub(super) next: u32,
    pub(super) end: u32,
    pub(super) lived: Moment,
}

impl Aside {
    /// Whether it has yet to come to this piece.
    pub(super) fn will_bring(&self, piece: PieceNumber) -> bool {
        (self.next..self.end).contains(&piece.0)
    }
}

impl Download {
    /// Opens a second stream for a reader whose next piece is far from where the one under way is.
    pub(super) fn read_aside(&mut self, now: Moment) {
        let far = self.config.far;
        let wanted = far > 0 && self.source.aside.is_none() && !self.source.aside_failed;
        if !wanted || !self.source.is_open() || self.source.lease.is_some() {
            return;
        }
        let (Stage::Reading { run: Some(run), .. }, Some(pieces)) = (&mut self.source.stage, &mut self.pieces) else {
            return;
        };
        let is_free = |piece: u32| match pieces.state(PieceNumber(piece)) {
            Some(State::InFlight(Producer::Source)) => true,
            Some(State::Needed) => !pieces.is_ready(PieceNumber(piece)),
            _ => false,
        };
        let is_near = |piece: u32| (run.start..run.start.saturating_add(far)).contains(&piece);
        let windows: Vec<_> = self.readers.windows(pieces, far).collect();
        let far_ones =
            windows.into_iter().filter(|window| !window.is_empty() && !is_near(window.start) && is_free(window.start));
        let Some(window) = far_ones.min_by_key(|window| window.start) else { return };
        let first = window.start;
        let shortened = run.contains(&first);
        // What the stream under way brings is taken from it only where that one is made to end before it.
        let may_take = |piece: u32| is_free(piece) && (shortened || !run.contains(&piece));
        let end = window.take_while(|&piece| may_take(piece)).last().map_or(first, |last| last + 1);
        let geometry = pieces.geometry();
        let offset = |piece: u32| (u64::from(piece) * geometry.piece_length()).min(geometry.length());
        let Some(range) = ByteRange::new(offset(first), offset(end)) else { return };
        if shortened {
            run.end = first;
            self.actions.push_back(Action::ShortenSource { end: offset(first) });
        }
        for piece in first..end {
            pieces.set(PieceNumber(piece), State::InFlight(Producer::Aside), &self.proofs);
        }
        if shortened {
            pieces.release_source_from(end, &self.wanted, &self.proofs);
        }
        self.source.aside = Some(Aside { next: first, end, lived: now });
        self.actions.push_back(Action::ReadAside { range });
    }

    /// The store has a piece: the second stream may have brought it, and may be at its end.
    pub(super) fn aside_got_on(&mut self, now: Moment) {
        let (Some(aside), Some(pieces)) = (&mut self.source.aside, &self.pieces) else { return };
        while aside.next < aside.end && pieces.state(PieceNumber(aside.next)) == Some(State::Have) {
            (aside.next, aside.lived) = (aside.next + 1, now);
        }
        if aside.next == aside.end {
            self.source.aside = None;
            self.actions.push_back(Action::StopAside);
        }
    }

    /// The second stream has ended by itself, well or not. There is no other one where it did not bring its pieces.
    pub(super) fn aside_ended(&mut self, now: Moment) {
        self.aside_got_on(now);
        if self.source.aside.is_some() {
            self.source.aside_failed = true;
            self.leave_aside();
        }
    }

    /// Leaves the second stream where nobody wants its pieces any more, or it brings nothing.
    pub(super) fn expire_aside(&mut self, now: Moment) {
        let Some(aside) = &self.source.aside else { return };
        let stalled = aside.lived + self.config.piece_timeout <= now;
        if stalled || (aside.next..aside.end).all(|piece| !self.wanted.contains(PieceNumber(piece))) {
            self.source.aside_failed |= stalled;
            self.leave_aside();
        }
    }

    /// When [`Self::expire_aside`] has something to do.
    pub(super) fn aside_deadline(&self) -> Option<Moment> {
        Some(self.source.aside.as_ref()?.lived + self.config.piece_timeout)
    }

    pub(super) fn leave_aside(&mut self) {
        let Some(aside) = self.source.aside.take() else { return };
        self.actions.push_back(Action::StopAside);
        let Some(pieces) = &mut self.pieces else { return };
        for piece in (aside.next..aside.end).map(PieceNumber) {
            if pieces.state(piece) == Some(State::InFlight(Producer::Aside)) {
                pieces.release(piece, &self.wanted, &self.proofs);
            }
        }
    }
}
