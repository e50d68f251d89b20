//! What comes from the source: its opening, its pieces, its end; and what is believed when it contradicts the proofs.

use std::time::Duration;

use damselfly_core::swarm::Report;
use damselfly_core::{Geometry, Moment, PieceDigest, PieceNumber, PieceSet};

use super::link::Phase;
use super::pieces::State;
use super::source::Stage;
use super::{Download, End, Failure};

/// How often the scheduler is told at most that a stream lives whose piece takes long.
const TELL: Duration = Duration::from_secs(1);

impl Download {
    pub(super) fn source_opened(&mut self, now: Moment, geometry: Geometry) {
        self.source.lives(now, 0);
        match self.geometry() {
            Some(known) if known.length() != geometry.length() => return self.fail(Failure::Changed),
            Some(_) => {}
            None => self.learn(geometry, &PieceSet::empty(geometry.count())),
        }
        if let (false, Some(geometry)) = (self.link.opened, self.geometry()) {
            self.link.opened = true;
            self.report(Report::SourceOpened(geometry));
        }
    }

    /// Bytes came: the stream lives, and so does the lease.
    pub(super) fn source_progress(&mut self, now: Moment, bytes: u64) {
        self.source.lives(now, bytes);
        if bytes > 0 && now.since(self.source.told) >= TELL && self.source.is_reading() {
            self.source.told = now;
            self.report(Report::SourceProgress);
        }
    }

    pub(super) fn source_piece(&mut self, now: Moment, piece: PieceNumber, digest: PieceDigest) {
        self.source.lives(now, 0);
        self.link.progress();
        if self.proofs.known.get(&piece).is_some_and(|proof| *proof != digest.blake3) {
            if self.from_parents {
                // Either the source has changed, or what was vouched for is not the source's: in both cases what is
                // here may be a mixture.
                return self.fail(Failure::Changed);
            }
            self.distrust(now);
        }
        self.held(piece);
        self.report(Report::PieceFinished { piece, parent: None, digest });
        if let Stage::Reading { run: Some(run), .. } = &mut self.source.stage
            && run.contains(&piece.0)
        {
            run.start = piece.0 + 1;
            self.source.at_boundary = true;
        }
        self.source.told = now;
    }

    /// The source contradicts what is vouched for: from now on only the source is believed.
    fn distrust(&mut self, now: Moment) {
        self.alone = true;
        self.source.permitted = true;
        self.proofs.required = true;
        self.proofs.known.clear();
        for peer in self.parents.followed.keys().cloned().collect::<Vec<_>>() {
            self.leave(now, &peer, true);
        }
        if let Some(pieces) = &mut self.pieces {
            pieces.refresh_all(&self.proofs);
        }
    }

    pub(super) fn source_ended(&mut self, now: Moment, end: End) {
        let Stage::Reading { run, .. } = &self.source.stage else { return };
        // What is left of its run may have been put here by somebody else.
        let here = |number| self.pieces.as_ref().and_then(|pieces| pieces.state(PieceNumber(number)));
        let whole = run.as_ref().is_some_and(|run| run.clone().all(|number| here(number) == Some(State::Have)));
        match end {
            End::Complete if whole => self.source.stage = Stage::Idle,
            End::Complete | End::Cut => return self.source_cut(now),
            End::Changed => return self.fail(Failure::Changed),
            End::Refused => self.source.stage = Stage::Dead(Failure::Refused),
            End::Unsized => self.source.stage = Stage::Dead(Failure::Unsized),
        }
        self.source_left(now);
    }

    /// The stream broke off, or fell silent.
    pub(super) fn source_cut(&mut self, now: Moment) {
        self.source.cut(now, &self.config);
        self.source_left(now);
    }

    /// The stream is over; its pieces are anybody's again.
    pub(super) fn source_left(&mut self, now: Moment) {
        self.source.under_way = false;
        if let Some(pieces) = &mut self.pieces {
            pieces.release_source(&self.wanted, &self.proofs);
        }
        if let Stage::Dead(_) = self.source.stage {
            self.source.forbid();
            self.quiet = now;
            self.report(Report::SourceFailed);
            if self.link.phase == Phase::Granted {
                self.link.phase = Phase::Waiting;
            }
        }
    }
}
