//! The source as one download sees it: may it be read, is it being read, how often did it fail.

use std::ops::Range;
use std::time::Duration;

use damselfly_core::swarm::SourceWish;
use damselfly_core::{Moment, PieceNumber};

use super::aside::Aside;
use super::{Config, Failure};

/// A cut stream that brought at least so many bytes since the last cut has made progress, and its retries are counted
/// afresh: a source that breaks off every few bytes must not be asked for ever.
const PROGRESS: u64 = 1 << 20;

/// What the source stream is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing.
    Idle,
    /// Bringing pieces.
    Reading {
        /// The pieces from the next one to the one behind the last; `None` while the geometry is not known.
        run: Option<Range<u32>>,
        /// When it last showed a sign of life.
        lived: Moment,
    },
    /// Cut, and to be taken up again.
    Backoff {
        /// When.
        until: Moment,
    },
    /// Not to be asked any more.
    Dead(Failure),
}

/// The source.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) stage: Stage,
    /// Granted as a whole by the scheduler: everything that is needed may be read.
    pub(super) granted: bool,
    /// Entered without the scheduler: likewise, until parents serve.
    pub(super) permitted: bool,
    /// Entered because the scheduler says nothing any more, until it does.
    pub(super) unanswered: bool,
    /// The pieces that the scheduler has leased to this download.
    pub(super) lease: Option<Range<u32>>,
    /// The lease is of pieces that a parent has: the scheduler knows that it does not give them.
    pub(super) insists: bool,
    /// A piece that a reader waits for and nobody brings: it may be read, whatever else.
    pub(super) urgent: Option<PieceNumber>,
    /// A silent stream was left for another piece, and nothing has come since: it is the source that is silent.
    pub(super) moved: bool,
    /// Since when it was silent, for the stream that is opened next.
    pub(super) silent: Option<Moment>,
    /// When the scheduler was last told that the stream lives.
    pub(super) told: Moment,
    /// The stream of a reader that is far ahead.
    pub(super) aside: Option<Aside>,
    /// One has ended without its pieces: there is no other one.
    pub(super) aside_failed: bool,
    /// The pieces that an answer brings which was asked for before the geometry was known, if not all.
    pub(super) gives: Option<Range<u32>>,
    /// An answer from offset 0 on is open, and not yet used.
    pub(super) under_way: bool,
    forbidden: bool,
    tries: u32,
    since_cut: u64,
    /// The piece in which the stream was cut: its bytes are still held.
    pub(super) resume: Option<PieceNumber>,
    /// The stream has just finished a piece: it may be left without loss.
    pub(super) at_boundary: bool,
}

impl Source {
    pub(super) fn new(wish: SourceWish, under_way: bool) -> Self {
        Self {
            stage: Stage::Idle,
            granted: false,
            permitted: false,
            unanswered: false,
            lease: None,
            insists: false,
            urgent: None,
            moved: false,
            silent: None,
            told: Moment::START,
            aside: None,
            aside_failed: false,
            gives: None,
            under_way,
            forbidden: wish == SourceWish::Forbidden,
            tries: 0,
            since_cut: 0,
            resume: None,
            at_boundary: false,
        }
    }

    /// Whether it may be of use, now or later.
    pub(super) fn is_usable(&self) -> bool {
        !self.forbidden && !matches!(self.stage, Stage::Dead(_))
    }

    /// Whether everything that is needed may be read.
    pub(super) fn is_open(&self) -> bool {
        self.granted || self.permitted || self.unanswered
    }

    /// Whether this piece may be read.
    pub(super) fn may_read(&self, piece: PieceNumber) -> bool {
        self.is_open()
            || self.urgent == Some(piece)
            || self.lease.as_ref().is_some_and(|lease| lease.contains(&piece.0))
    }

    /// Whether this piece is to be read although a parent has it.
    pub(super) fn must_read(&self, piece: PieceNumber) -> bool {
        let insists = self.insists && self.lease.as_ref().is_some_and(|lease| lease.contains(&piece.0));
        insists || self.urgent == Some(piece)
    }

    /// Nothing may be read any more.
    pub(super) fn forbid(&mut self) {
        self.granted = false;
        self.permitted = false;
        self.unanswered = false;
        self.lease = None;
        self.urgent = None;
    }

    /// Whether it was never to be used at all.
    pub(super) fn is_forbidden(&self) -> bool {
        self.forbidden
    }

    /// Why it is of no use.
    pub(super) fn failure(&self) -> Failure {
        match self.stage {
            Stage::Dead(failure) => failure,
            _ => Failure::NoPeers,
        }
    }

    /// Whether it is bringing pieces or will be soon.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self.stage, Stage::Reading { .. } | Stage::Backoff { .. })
    }

    pub(super) fn is_reading(&self) -> bool {
        matches!(self.stage, Stage::Reading { .. })
    }

    /// Whether the piece is ahead in the stream under way.
    pub(super) fn will_bring(&self, piece: PieceNumber) -> bool {
        matches!(&self.stage, Stage::Reading { run: Some(run), .. } if run.contains(&piece.0))
    }

    /// A sign of life.
    pub(super) fn lives(&mut self, now: Moment, bytes: u64) {
        // The head of an answer is no more than that.
        self.moved &= bytes == 0;
        if let Stage::Reading { lived, .. } = &mut self.stage {
            *lived = now;
        }
        self.at_boundary &= bytes == 0;
        self.since_cut = self.since_cut.saturating_add(bytes);
    }

    /// The stream broke off.
    pub(super) fn cut(&mut self, now: Moment, config: &Config) {
        self.resume = match &self.stage {
            Stage::Reading { run: Some(run), .. } => Some(PieceNumber(run.start)),
            _ => None,
        };
        if self.since_cut >= PROGRESS {
            self.tries = 0;
        }
        self.since_cut = 0;
        (self.moved, self.silent) = (false, None);
        self.tries += 1;
        self.stage = if self.tries > config.source_retries {
            Stage::Dead(Failure::Cut)
        } else {
            Stage::Backoff { until: now + backoff(config.backoff, self.tries) }
        };
    }

    /// When it must be looked at again.
    pub(super) fn deadline(&self, config: &Config) -> Option<Moment> {
        match self.stage {
            Stage::Reading { lived, .. } => Some(lived + config.source_stall),
            Stage::Backoff { until } => Some(until),
            Stage::Idle | Stage::Dead(_) => None,
        }
    }
}

/// The wait before try number `tries` (from 1): doubled each time, and at most 64 times the first.
pub(super) fn backoff(first: Duration, tries: u32) -> Duration {
    first.saturating_mul(1 << tries.saturating_sub(1).min(6))
}
