//! One scheduler: its channel, and how long it is left alone after it failed.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

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
    /// It failed, and has not been announced to since.
    failing: bool,
    /// Which run of it answered last.
    run: Option<u64>,
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
        Ok(Self { addr, channel: endpoint.connect_lazy(), state: Mutex::default() })
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

    /// It did not answer.
    pub(super) fn failed(&self, config: &Config) {
        let mut state = self.state();
        state.failing = true;
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

    /// It took an announcement, in this run; says whether it may have forgotten what it knew.
    pub(super) fn announced(&self, run: Option<u64>) -> bool {
        self.answered();
        let mut state = self.state();
        let another = state.run.is_some() && state.run != run;
        state.run = run;
        std::mem::take(&mut state.failing) || another
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
    async fn it_may_have_forgotten_after_a_failure_and_in_another_run() {
        let config = Config::default();
        let scheduler = Scheduler::new("[::1]:1".into(), &config).unwrap();
        assert!(!scheduler.announced(Some(1)));
        assert!(!scheduler.announced(Some(1)));
        assert!(scheduler.announced(Some(2)));
        scheduler.failed(&config);
        assert!(scheduler.announced(Some(2)));
        assert!(!scheduler.announced(Some(2)));
    }

    #[tokio::test]
    async fn senseless_addresses_are_refused() {
        assert!(Scheduler::new("a b".into(), &Config::default()).is_err());
    }
}
