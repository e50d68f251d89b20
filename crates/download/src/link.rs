//! The conversation with the scheduler, and which resort comes next when nothing comes from anyone.
//!
//! The ladder: parents, other parents (reschedule), the source with the scheduler's grant (register again and say that
//! it is wanted), the source without, failure. Every step waits only so long, and every number of steps is bounded.
//!
//! A scheduler that answers the wish for the source with "wait" confirms that somebody gets on with it. That is worth
//! another wait: a slow source is slower still if everybody reads it. It is asked again after each wait, and not believed
//! for ever ([`Config::confirmed_waits`]).

use std::time::Duration;

use damselfly_core::Moment;

use super::Config;
use super::source::backoff;

/// How the conversation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// There is no scheduler.
    None,
    /// Registered, and not answered yet.
    Asked,
    /// Told to wait, or asked for other parents.
    Waiting,
    /// Given parents.
    Served,
    /// Given the source.
    Granted,
    /// Lost.
    Lost,
}

/// What to do next when nothing comes from anyone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resort {
    /// Ask the scheduler for other parents.
    Reschedule,
    /// Register again, and say that the source is wanted.
    Want,
    /// Read the source without a grant.
    Enter,
    /// There is none: the download has failed.
    GiveUp,
}

/// What a resort depends on beside the conversation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outlook {
    /// The source may still be of use.
    pub(super) source_usable: bool,
    /// The source was never to be used.
    pub(super) source_forbidden: bool,
    /// The source may be read now.
    pub(super) source_permitted: bool,
    /// Some parent may still be asked.
    pub(super) parents: bool,
}

/// The conversation.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) phase: Phase,
    /// Registered with the wish for the source.
    pub(super) wanted: bool,
    /// How often it answered the wish for the source with "wait" since the last progress.
    confirmed: u32,
    /// Lost since it last answered.
    after_loss: bool,
    /// The geometry that an opened source gave was reported in this conversation.
    pub(super) opened: bool,
    /// Reschedules since the last progress.
    reschedules: u32,
    /// Resorts of any kind since the last progress: whatever the answers are called, there are only so many.
    rounds: u32,
    /// Losses since the last answer.
    losses: u32,
    /// When to register again.
    pub(super) again: Option<Moment>,
    /// This download's share of the fleet's jitter.
    jitter: Duration,
}

impl Link {
    pub(super) fn new(scheduler: bool, jitter: Duration) -> Self {
        let phase = if scheduler { Phase::Asked } else { Phase::None };
        Self {
            phase,
            wanted: false,
            confirmed: 0,
            after_loss: false,
            opened: false,
            reschedules: 0,
            rounds: 0,
            losses: 0,
            again: None,
            jitter,
        }
    }

    /// Whether there is somebody to report to.
    pub(super) fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Asked | Phase::Waiting | Phase::Served | Phase::Granted)
    }

    pub(super) fn registered(&mut self, wanted: bool) {
        self.phase = Phase::Asked;
        self.wanted = wanted;
        self.opened = false;
        self.again = None;
    }

    pub(super) fn answered(&mut self, phase: Phase) {
        self.confirmed += u32::from(self.wanted && self.phase == Phase::Asked && phase == Phase::Waiting);
        self.phase = phase;
        self.wanted &= phase == Phase::Waiting;
        self.after_loss = false;
        self.losses = 0;
    }

    /// The scheduler is gone; it is tried again some times. Says whether it had been there.
    pub(super) fn lost(&mut self, now: Moment, config: &Config) -> bool {
        let was_there = self.is_up() && !self.after_loss;
        self.phase = Phase::Lost;
        self.after_loss = true;
        self.losses += 1;
        let wait = backoff(config.backoff, self.losses) + self.jitter / 8;
        self.again = (self.losses <= config.reregistrations).then(|| now + wait);
        was_there
    }

    pub(super) fn rescheduled(&mut self, parents: bool) {
        self.reschedules += 1;
        if !parents {
            self.phase = Phase::Waiting;
        }
    }

    /// A resort was taken.
    pub(super) fn resorted(&mut self) {
        self.rounds += 1;
    }

    pub(super) fn progress(&mut self) {
        self.reschedules = 0;
        self.rounds = 0;
        self.confirmed = 0;
    }

    /// The next resort, and how long nothing must have come from anyone before it is taken.
    pub(super) fn resort(&self, config: &Config, outlook: Outlook) -> (Resort, Duration) {
        let Outlook { source_usable: usable, source_forbidden, source_permitted, parents } = outlook;
        let last = if usable { Resort::Enter } else { Resort::GiveUp };
        let without_source = if source_forbidden { config.forbidden_patience } else { config.patience };
        match self.phase {
            Phase::None if usable => (Resort::Enter, Duration::ZERO),
            _ if usable && !source_permitted && self.rounds >= config.rounds => (Resort::Enter, config.lost_grace),
            Phase::None => (Resort::GiveUp, if parents { config.patience } else { Duration::ZERO }),
            Phase::Lost | Phase::Asked if self.after_loss && usable => (last, config.lost_grace + self.jitter),
            Phase::Lost | Phase::Asked | Phase::Waiting | Phase::Granted if !usable => (last, without_source),
            // What the source may bring is asked of it at once; what is left can only come from parents.
            Phase::Granted | Phase::Asked | Phase::Waiting if source_permitted => (Resort::Reschedule, config.patience),
            Phase::Asked if self.wanted => (last, config.wanted_grace),
            Phase::Waiting if self.wanted && self.confirmed > config.confirmed_waits => (last, config.wanted_grace),
            Phase::Asked => (last, config.scheduler_grace),
            Phase::Waiting => (Resort::Want, config.first_byte_budget + self.jitter),
            Phase::Served if self.reschedules < config.reschedules && parents => (Resort::Reschedule, config.patience),
            Phase::Served if self.reschedules == 0 => (Resort::Reschedule, Duration::ZERO),
            Phase::Served if self.reschedules < config.reschedules => {
                (Resort::Reschedule, backoff(config.backoff, self.reschedules))
            }
            Phase::Served if usable => (Resort::Want, if parents { config.patience } else { Duration::ZERO }),
            Phase::Served => (Resort::GiveUp, without_source),
            Phase::Lost | Phase::Granted => (last, config.lost_grace),
        }
    }
}
