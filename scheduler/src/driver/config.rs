//! The driver's limits, and its clock.

use damselfly_core::Moment;
use tokio::time::Instant;

/// The driver's limits, and those of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The machine's.
    pub core: damselfly_scheduler_core::Config,
    /// Where the machine's chance comes from; drawn at the start if not given.
    pub seed: Option<u64>,
    /// How many commands may wait for the driver; who sends more waits.
    pub mailbox: usize,
    /// How many answers a peer may leave unread before it is hung up on.
    pub unread_answers: usize,
    /// How many reports of one peer may wait.
    pub waiting_reports: usize,
    /// How many seeds may be fetching for us at a time; one more counts as refused.
    pub triggered_seeds: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            core: damselfly_scheduler_core::Config::default(),
            seed: None,
            mailbox: 4096,
            unread_answers: 256,
            waiting_reports: 64,
            triggered_seeds: 1024,
        }
    }
}

/// Tells the moment. The driver sleeps on tokio's clock, so this should run as fast as that.
pub trait Clock: Send + 'static {
    /// Now.
    fn now(&self) -> Moment;
}

/// The time since it was made, on tokio's clock.
#[derive(Clone, Copy, Debug)]
pub struct SinceStart(Instant);

impl SinceStart {
    /// A clock that starts now.
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Default for SinceStart {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SinceStart {
    fn now(&self) -> Moment {
        Moment::after_start(self.0.elapsed())
    }
}
