//! Tells the schedulers, for as long as the daemon runs, that this host is there and what it holds.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use damselfly_core::swarm::{Holding, Holdings, HostInfo};
use damselfly_runtime::Watch;
use tokio::sync::watch;

use super::{Config, SchedulerClient, SchedulerLost};

/// How long after a scheduler was lost, or something was dropped, it is told; gathers what comes at once.
const SETTLE: Duration = Duration::from_millis(500);

/// How long the leave-taking may take.
const LEAVE_TIME: Duration = Duration::from_secs(3);

/// What a host holds, and what it does no longer.
pub trait Inventory: Send + Sync {
    /// All that it holds.
    fn all(&self) -> Vec<Holding>;

    /// What it dropped since this was last asked, as holdings without pieces; `None` if that was too much to remember.
    fn dropped(&self) -> Option<Vec<Holding>>;

    /// Changes when something is dropped.
    fn drops(&self) -> watch::Receiver<u64>;
}

/// Announces a host at the configured interval, all that it holds to each scheduler that does not know it, and what it
/// drops to those that do.
///
/// **A host without an address that others reach is not announced**: before its network is up it would be offered, and
/// cost everybody a try. Its address is looked at again each time.
pub struct Announcer {
    client: Arc<dyn SchedulerClient>,
    host: HostInfo,
    locate: Arc<dyn Fn() -> Option<IpAddr> + Send + Sync>,
    inventory: Box<dyn Inventory>,
    config: Config,
}

impl Announcer {
    /// Announces `host`; `locate` says where others reach it now, and may block for a while. It is asked each time.
    pub fn new(
        client: Arc<dyn SchedulerClient>,
        host: HostInfo,
        locate: impl Fn() -> Option<IpAddr> + Send + Sync + 'static,
        inventory: impl Inventory + 'static,
        config: Config,
    ) -> Self {
        Self { client, host, locate: Arc::new(locate), inventory: Box::new(inventory), config }
    }

    /// Runs until the drain begins; then the host takes its leave, unless another process goes on in its place.
    pub async fn run(self, drain: Watch) {
        let _guard = drain.guard();
        tokio::select! {
            () = self.announce() => {}
            () = drain.draining() => {}
        }
        if drain.is_handed_over() {
            return;
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
        let (mut forgotten, mut drops) = (self.client.forgotten(), self.inventory.drops());
        let mut reachable = true;
        let mut wait = Duration::ZERO;
        loop {
            // What happens from here on is told in the next round.
            let _ = forgotten.borrow_and_update();
            let _ = drops.borrow_and_update();
            let announced = match self.host_now().await {
                Some(host) => self.client.announce_host(&host).await,
                None => Err(SchedulerLost("this host has no address yet at which others reach it".into())),
            };
            match &announced {
                Ok(()) if !reachable => tracing::info!("a scheduler can be reached again"),
                Err(error) if reachable => tracing::warn!(%error, "downloads go on without"),
                _ => {}
            }
            reachable = announced.is_ok();
            if reachable {
                self.tell_holdings().await;
            }
            wait = if reachable && !self.client.wants_holdings() {
                self.config.announce_interval
            } else {
                (wait.min(self.config.backoff_most) * 2).clamp(self.config.backoff_least, self.config.backoff_most)
            };
            let changed = async {
                let known = tokio::select! {
                    forgotten = forgotten.changed() => forgotten,
                    dropped = drops.changed() => dropped,
                };
                // Who is gone changes nothing any more.
                tokio::time::sleep(if known.is_ok() { SETTLE } else { wait }).await;
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = changed => {}
            }
        }
    }

    /// Tells schedulers what they do not know. One that cannot be told wants to know everything the next time.
    async fn tell_holdings(&self) {
        let host = &self.host.id;
        let dropped = self.inventory.dropped();
        let too_much = dropped.is_none();
        if let Some(list) = dropped.filter(|list| !list.is_empty()) {
            let dropped = self.client.announce_holdings(Holdings { host: host.clone(), all: false, list }).await;
            if let Err(error) = dropped {
                tracing::debug!(%error, "a scheduler does not know what was dropped");
            }
        }
        if too_much || self.client.wants_holdings() {
            let list = self.inventory.all();
            let held = self.client.announce_holdings(Holdings { host: host.clone(), all: true, list }).await;
            if let Err(error) = held {
                tracing::debug!(%error, "a scheduler does not know what is held");
            }
        }
    }
}

/// For tests: always the same holdings.
#[cfg(test)]
pub(super) struct Fixed {
    pub(super) holdings: Vec<Holding>,
    pub(super) dropped: std::sync::Mutex<Vec<Holding>>,
    pub(super) drops: watch::Sender<u64>,
}

#[cfg(test)]
impl Fixed {
    pub(super) fn new(holdings: Vec<Holding>) -> Self {
        Self { holdings, dropped: std::sync::Mutex::default(), drops: watch::Sender::new(0) }
    }
}

#[cfg(test)]
impl Inventory for Arc<Fixed> {
    fn all(&self) -> Vec<Holding> {
        self.holdings.clone()
    }

    fn dropped(&self) -> Option<Vec<Holding>> {
        Some(std::mem::take(&mut *self.dropped.lock().unwrap()))
    }

    fn drops(&self) -> watch::Receiver<u64> {
        self.drops.subscribe()
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

        async fn announce_holdings(&self, _: Holdings) -> Result<(), SchedulerLost> {
            Ok(())
        }

        fn wants_holdings(&self) -> bool {
            false
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
            tls: false,
        };
        let (noting, mut noted) = mpsc::unbounded_channel();
        let drain = Drain::new();
        let announcer =
            Announcer::new(Arc::new(Noting(noting)), host, locate, Arc::new(Fixed::new(Vec::new())), Config::default());
        tokio::spawn(announcer.run(drain.watch()));
        let begun = tokio::time::Instant::now();
        assert_eq!(noted.recv().await, Some(first));
        assert!(begun.elapsed() < Duration::from_secs(10), "it is looked for soon: {:?}", begun.elapsed());
        assert_eq!(noted.recv().await, Some(second));
    }
}
