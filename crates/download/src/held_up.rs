//! What is slow because of this host's own limit of bandwidth is nobody else's fault.
//!
//! While anything of a download waits for the limit, the limit is what it lacks: asking somebody else, or the source,
//! would bring nothing sooner. So that time does not count in any judgement of parents, source and late pieces. And few
//! pieces come at a time then: many would each take long, and their parents would wait with them.

use std::time::Duration;

use damselfly_core::Moment;

use super::Download;
use super::source::Stage;

/// How many pieces come at a time from parents while the limit holds them up.
const FEW: u32 = 2;

/// How long after it held them up last.
const LASTS: Duration = Duration::from_secs(1);

impl Download {
    /// Takes `by` out of all that was waited for.
    pub(super) fn held_up(&mut self, now: Moment, by: Duration) {
        let later = |since: &mut Moment| *since = (*since + by).min(now).max(*since);
        for fetch in self.pieces.iter_mut().flat_map(|pieces| pieces.fetches.values_mut()) {
            later(&mut fetch.since);
        }
        if let Stage::Reading { lived, .. } = &mut self.source.stage {
            later(lived);
        }
        if let Some(aside) = &mut self.source.aside {
            later(&mut aside.lived);
        }
        later(&mut self.quiet);
        // These are moments to come.
        self.late.at = self.late.at + by;
        self.late.hurry = self.late.hurry.map(|at| at + by);
        self.few_until = Some(now + LASTS);
    }

    /// Whether the limit holds this download up no more.
    pub(super) fn expire_held_up(&mut self, now: Moment) {
        self.few_until = self.few_until.filter(|until| *until > now);
    }

    /// How many pieces come at a time from parents that serve by turns.
    pub(super) fn turns_at_once(&self) -> usize {
        self.within(self.config.turns_at_once)
    }

    /// How many pieces come at a time from parents.
    pub(super) fn pieces_at_once(&self) -> usize {
        self.within(self.config.concurrent_pieces)
    }

    fn within(&self, most: u32) -> usize {
        (if self.few_until.is_some() { most.min(FEW) } else { most }) as usize
    }
}
