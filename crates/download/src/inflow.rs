//! How much comes in, beside what has come at best.
//!
//! **A link that is full needs no more senders; one that is not may have too few.** A piece is short beside what a connection
//! needs to get up to speed, so a few at a time do not fill every link; and more than it takes only take turns from others.
//! Nobody knows what a link can carry, but what it has carried is known.

use std::collections::VecDeque;
use std::time::Duration;

use damselfly_core::Moment;

/// Over how many pieces it is measured: several arrive at a time, which must not look like a faster link.
const PIECES: usize = 32;
/// What came at best counts for less with every piece, by this part.
const FORGET: u32 = 1024;

/// When the last pieces came.
#[derive(Debug, Default)]
pub(super) struct Inflow {
    came: VecDeque<Moment>,
    /// The shortest time in which so many came.
    best: Option<Duration>,
}

impl Inflow {
    /// A piece came from a parent or from the source.
    pub(super) fn came(&mut self, now: Moment) {
        self.came.push_back(now);
        if self.came.len() > PIECES + 1 {
            self.came.pop_front();
        }
        if let Some(took) = self.span(now) {
            self.best = Some(self.best.map_or(took, |best| (best + best / FORGET).min(took)));
        }
    }

    /// How long the last pieces took, if there are enough.
    fn span(&self, now: Moment) -> Option<Duration> {
        self.came.front().filter(|_| self.came.len() > PIECES).map(|first| now.since(*first))
    }

    /// Whether clearly less comes than has come.
    pub(super) fn is_slack(&self, now: Moment) -> bool {
        let (Some(best), Some(span)) = (self.best, self.span(now)) else { return false };
        span.saturating_mul(7) > best.saturating_mul(8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces that come in groups of four, one group every so many milliseconds.
    fn groups(inflow: &mut Inflow, now: &mut Moment, count: u32, every: u64) {
        for _ in 0..count {
            *now = *now + Duration::from_millis(every);
            (0..4).for_each(|_| inflow.came(*now));
        }
    }

    #[test]
    fn a_link_has_room_while_clearly_less_comes_than_has_come() {
        let (mut inflow, mut now) = (Inflow::default(), Moment::START);
        groups(&mut inflow, &mut now, 8, 100);
        assert!(!inflow.is_slack(now), "nothing is known yet");
        for _ in 0..20 {
            groups(&mut inflow, &mut now, 1, 100);
            assert!(!inflow.is_slack(now), "as much comes as ever");
        }
        groups(&mut inflow, &mut now, 8, 80);
        assert!(!inflow.is_slack(now), "more comes than before");
        groups(&mut inflow, &mut now, 8, 100);
        assert!(inflow.is_slack(now), "it has carried more");
        groups(&mut inflow, &mut now, 100, 100);
        assert!(!inflow.is_slack(now), "that was long ago");
        assert!(inflow.is_slack(now + Duration::from_millis(500)), "and now nothing comes");
    }
}
