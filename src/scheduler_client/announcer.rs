//! Tells the schedulers, for as long as the daemon runs, that this host is there and what it holds.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use damselfly_core::swarm::{Holding, HostInfo};
use damselfly_runtime::Watch;

use super::{Config, SchedulerClient, SchedulerLost};

/// How long after a scheduler was lost the host is announced anew; gathers what comes at once.
const SETTLE: Duration = Duration::from_millis(500);

/// How long the leave-taking may take.
const LEAVE_TIME: Duration = Duration::from_secs(3);

/// Announces a host at the configured interval, and all that it holds whenever a scheduler may not know it.
///
/// **A host without an address that others reach is not announced**: before its network is up it would be offered, and
/// cost everybody a try. Its address is looked at again each time.
pub struct Announcer {
    client: Arc<dyn SchedulerClient>,
    host: HostInfo,
    locate: Arc<dyn Fn() -> Option<IpAddr> + Send + Sync>,
    holdings: Box<dyn Fn() -> Vec<Holding> + Send + Sync>,
    config: Config,
}

impl Announcer {
    /// Announces `host`; `locate` says where others reach it now, `holdings` what it holds. Both are asked each time;
    /// `locate` may block for a while.
    pub fn new(
        client: Arc<dyn SchedulerClient>,
        host: HostInfo,
        locate: impl Fn() -> Option<IpAddr> + Send + Sync + 'static,
        holdings: impl Fn() -> Vec<Holding> + Send + Sync + 'static,
        config: Config,
    ) -> Self {
        Self { client, host, locate: Arc::new(locate), holdings: Box::new(holdings), config }
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

    /// The host, at the address that it has now.
    async fn host_now(&self) -> Option<HostInfo> {
        let locate = Arc::clone(&self.locate);
        let ip = tokio::task::spawn_blocking(move || locate()).await.ok().flatten()?;
        Some(HostInfo { ip, ..self.host.clone() })
    }

    async fn announce(&self) {
        let mut forgotten = self.client.forgotten();
        let (mut known, mut reachable) = (false, true);
        let mut wait = Duration::ZERO;
        loop {
            // Whoever forgets from here on is told in the next round.
            let _ = forgotten.borrow_and_update();
            let announced = match self.host_now().await {
                Some(host) => self.client.announce_host(&host).await,
                None => Err(SchedulerLost("this host has no address yet at which others reach it".into())),
            };
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use damselfly_core::HostId;
    use damselfly_core::swarm::Registration;
    use damselfly_runtime::Drain;
    use tokio::sync::mpsc;

    use super::super::Conversation;
    use super::*;

    /// Hands on where the host says it is.
    struct Noting(mpsc::UnboundedSender<IpAddr>);

    #[async_trait]
    impl SchedulerClient for Noting {
        async fn register(&self, _: Registration) -> Result<Conversation, SchedulerLost> {
            Err(SchedulerLost("not in this test".into()))
        }

        async fn announce_host(&self, host: &HostInfo) -> Result<(), SchedulerLost> {
            self.0.send(host.ip).map_err(|_| SchedulerLost("the test is over".into()))
        }

        async fn announce_holdings(&self, _: &HostId, _: Vec<Holding>) -> Result<(), SchedulerLost> {
            Ok(())
        }

        async fn leave(&self, _: &HostId) -> Result<(), SchedulerLost> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_is_announced_where_it_is_now_and_not_before_it_is_anywhere() {
        let (first, second) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        // No network for two looks; then an address, and later another one.
        let looks = Mutex::new(vec![second, first].into_iter().map(Some).collect::<Vec<_>>());
        looks.lock().unwrap().extend([None, None]);
        let locate = move || looks.lock().unwrap().pop().unwrap_or(Some(second));
        let host = HostInfo {
            id: "h".into(),
            seed: false,
            hostname: "h".into(),
            ip: IpAddr::from([127, 0, 0, 1]),
            rpc_port: 1,
            data_port: 2,
            proxy_port: None,
            upload_slots: 1,
            idc: String::new(),
            location: String::new(),
        };
        let (noting, mut noted) = mpsc::unbounded_channel();
        let drain = Drain::new();
        let announcer = Announcer::new(Arc::new(Noting(noting)), host, locate, Vec::new, Config::default());
        tokio::spawn(announcer.run(drain.watch()));
        let begun = tokio::time::Instant::now();
        assert_eq!(noted.recv().await, Some(first));
        assert!(begun.elapsed() < Duration::from_secs(10), "it is looked for soon: {:?}", begun.elapsed());
        assert_eq!(noted.recv().await, Some(second));
    }
}
