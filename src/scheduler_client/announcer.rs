//! Tells the schedulers, for as long as the daemon runs, that this host is there and what it holds.

use std::sync::Arc;
use std::time::Duration;

use damselfly_core::swarm::{Holding, HostInfo};
use damselfly_runtime::Watch;

use super::{Config, SchedulerClient};

/// How long after a scheduler was lost the host is announced anew; gathers what comes at once.
const SETTLE: Duration = Duration::from_millis(500);

/// How long the leave-taking may take.
const LEAVE_TIME: Duration = Duration::from_secs(3);

/// Announces a host at the configured interval, and all that it holds whenever a scheduler may not know it.
pub struct Announcer {
    client: Arc<dyn SchedulerClient>,
    host: HostInfo,
    holdings: Box<dyn Fn() -> Vec<Holding> + Send + Sync>,
    config: Config,
}

impl Announcer {
    /// Announces `host`; `holdings` says what it holds when it is asked.
    pub fn new(
        client: Arc<dyn SchedulerClient>,
        host: HostInfo,
        holdings: impl Fn() -> Vec<Holding> + Send + Sync + 'static,
        config: Config,
    ) -> Self {
        Self { client, host, holdings: Box::new(holdings), config }
    }

    /// Runs until the drain begins; then the host takes its leave.
    pub async fn run(self, drain: Watch) {
        let _guard = drain.guard();
        tokio::select! {
            () = self.announce() => {}
            () = drain.draining() => {}
        }
        let leave = tokio::time::timeout(LEAVE_TIME, self.client.leave(&self.host.id));
        if let Ok(Err(error)) = leave.await {
            tracing::debug!(%error, "could not take leave of the scheduler");
        }
    }

    async fn announce(&self) {
        let mut forgotten = self.client.forgotten();
        let (mut known, mut reachable) = (false, true);
        let mut wait = Duration::ZERO;
        loop {
            // Whoever forgets from here on is told in the next round.
            let _ = forgotten.borrow_and_update();
            let announced = self.client.announce_host(&self.host).await;
            // An announcement may be what shows that a scheduler forgot.
            known &= !forgotten.has_changed().unwrap_or(false);
            if announced.is_ok() && !known {
                let _ = forgotten.borrow_and_update();
                known = self.client.announce_holdings(&self.host.id, (self.holdings)()).await.is_ok();
            }
            match &announced {
                Ok(()) if !reachable => tracing::info!("a scheduler can be reached again"),
                Err(error) if reachable => tracing::warn!(%error, "downloads go on without"),
                _ => {}
            }
            reachable = announced.is_ok();
            wait = if reachable && known {
                self.config.announce_interval
            } else {
                (wait.min(self.config.backoff_most) * 2).clamp(self.config.backoff_least, self.config.backoff_most)
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                lost = forgotten.changed() => {
                    known = false;
                    // A client that is gone forgets nothing more.
                    tokio::time::sleep(if lost.is_ok() { SETTLE } else { wait }).await;
                }
            }
        }
    }
}
