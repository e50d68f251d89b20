//! One scheduler: its channel, and how long it is left alone after it failed.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use damselfly_api::member;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

use super::{Config, SchedulerLost};

pub(super) struct Scheduler {
    pub(super) addr: String,
    pub(super) channel: Channel,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Not to be asked before then.
    closed_until: Option<Instant>,
    /// The last wait.
    wait: Duration,
    /// Which run of it answered last.
    run: Option<u64>,
    /// It was told in that run what this host holds.
    told: bool,
    /// It is not one of ours: it knows only the plain protocol.
    plain: bool,
    /// The watch on it broke, and has not been opened again.
    gone: bool,
}

impl Scheduler {
    pub(super) fn new(addr: String, config: &Config) -> Result<Self, SchedulerLost> {
        let endpoint = Endpoint::from_shared(format!("http://{addr}"))
            .map_err(|_| SchedulerLost(format!("{addr} is no address; write HOST:PORT")))?
            .connect_timeout(config.connect_timeout)
            .http2_keep_alive_interval(config.keepalive_interval)
            .keep_alive_timeout(config.keepalive_timeout)
            .tcp_nodelay(true);
        Ok(Self { addr, channel: member::channel(&endpoint, config.membership.as_ref()), state: Mutex::default() })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it may be asked now.
    pub(super) fn is_open(&self) -> bool {
        let state = self.state();
        !state.gone && state.closed_until.is_none_or(|until| Instant::now() >= until)
    }

    /// Whoever watches it sees that it is there, or that it is not.
    pub(super) fn seen(&self, here: bool) {
        let mut state = self.state();
        state.gone = !here;
        if here {
            (state.closed_until, state.wait) = (None, Duration::ZERO);
        }
    }

    /// It says that it is not one of ours.
    pub(super) fn is_plain(&self) -> bool {
        self.state().plain
    }

    /// It does, or does not, know what only our own schedulers do.
    pub(super) fn speaks(&self, plain: bool) {
        self.state().plain = plain;
    }

    /// It did not answer.
    pub(super) fn failed(&self, config: &Config) {
        let mut state = self.state();
        // Many downloads fail at once where one scheduler does: that is one failure.
        if state.closed_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        state.wait = (state.wait * 2).clamp(config.backoff_least, config.backoff_most);
        state.closed_until = Some(Instant::now() + state.wait);
    }

    /// It answered.
    pub(super) fn answered(&self) {
        let mut state = self.state();
        (state.closed_until, state.wait, state.gone) = (None, Duration::ZERO, false);
    }

    /// It took an announcement, in this run. In another one than before it knows nothing any more.
    pub(super) fn announced(&self, run: Option<u64>) {
        self.answered();
        let mut state = self.state();
        state.told &= state.run == run;
        state.run = run;
    }

    /// The run in which it was last announced to.
    pub(super) fn run(&self) -> Option<u64> {
        self.state().run
    }

    /// Whether it knows all that this host holds.
    pub(super) fn is_told(&self) -> bool {
        self.state().told
    }

    /// It was told in `run` what this host holds, or could not be told what changed.
    pub(super) fn was_told(&self, run: Option<u64>, well: bool) {
        let mut state = self.state();
        state.told = well && state.run == run;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failures_double_the_wait_up_to_the_most_and_an_answer_ends_it() {
        let config = Config::default();
        let scheduler = Scheduler::new("127.0.0.1:1".into(), &config).unwrap();
        for seconds in [1, 2, 4, 8, 10, 10] {
            assert!(scheduler.is_open());
            scheduler.failed(&config);
            scheduler.failed(&config);
            tokio::time::advance(Duration::from_secs(seconds) - Duration::from_millis(1)).await;
            assert!(!scheduler.is_open(), "{seconds}");
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        scheduler.failed(&config);
        scheduler.answered();
        assert!(scheduler.is_open());
    }

    #[tokio::test]
    async fn it_knows_what_it_was_told_until_another_run_begins() {
        let config = Config::default();
        let scheduler = Scheduler::new("[::1]:1".into(), &config).unwrap();
        scheduler.announced(Some(1));
        assert!(!scheduler.is_told());
        scheduler.was_told(Some(1), true);
        scheduler.failed(&config);
        scheduler.announced(Some(1));
        assert!(scheduler.is_told(), "a failure is no new run");
        scheduler.announced(Some(2));
        assert!(!scheduler.is_told());
        scheduler.was_told(Some(1), true);
        assert!(!scheduler.is_told(), "another run began while it was told");
        scheduler.was_told(Some(2), true);
        scheduler.was_told(Some(2), false);
        assert!(!scheduler.is_told(), "it does not know what changed");
    }

    #[tokio::test]
    async fn senseless_addresses_are_refused() {
        assert!(Scheduler::new("a b".into(), &Config::default()).is_err());
    }
}
