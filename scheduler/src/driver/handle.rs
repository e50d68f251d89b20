//! How everybody else talks to the driver.

use damselfly_core::swarm::{Answer, Holdings, HostInfo, Registration, Report};
use damselfly_core::{HostId, Moment, TaskId};
use damselfly_scheduler_core::{Core, Event, Explanation};
use tokio::sync::{mpsc, oneshot};

use super::run::{Command, Driver};
use super::{Clock, Config, Metrics, SeedTrigger};

/// A running scheduler, as its users hold it. Cheap to clone. The driver ends when the last handle and the last
/// conversation are gone.
#[derive(Clone, Debug)]
pub struct Handle {
    mailbox: mpsc::Sender<Command>,
    metrics: Metrics,
}

/// The scheduler has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the scheduler has stopped")]
pub struct Stopped;

impl Handle {
    /// Starts a scheduler as a task of the current tokio runtime.
    pub fn spawn(config: Config, clock: impl Clock, seeds: impl SeedTrigger) -> Self {
        let (mailbox, commands) = mpsc::channel(config.mailbox.max(1));
        let metrics = Metrics::default();
        let driver = Driver::new(config, Box::new(clock), Box::new(seeds), metrics.clone(), mailbox.downgrade());
        tokio::spawn(driver.run(commands));
        Self { mailbox, metrics }
    }

    /// What the scheduler counts.
    pub const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Opens a peer's conversation: what it is told, and where it reports. The scheduler ends it by closing the answers,
    /// after [`Report::Finished`] or [`Report::Failed`]; the peer ends it by dropping the reports.
    ///
    /// # Errors
    /// When the scheduler has stopped.
    pub async fn register(
        &self,
        registration: Registration,
    ) -> Result<(mpsc::Receiver<Answer>, mpsc::Sender<Report>), Stopped> {
        let (reply, opened) = oneshot::channel();
        self.send(Command::Register { registration: Box::new(registration), reply }).await?;
        opened.await.map_err(|_| Stopped)
    }

    /// A host says that it is there. Returns the number under which it is known, which changes when the host and what it
    /// holds was forgotten meanwhile.
    ///
    /// # Errors
    /// When the scheduler has stopped.
    pub async fn announce_host(&self, host: HostInfo) -> Result<u64, Stopped> {
        let id = host.id.clone();
        self.event(Event::HostAnnounced(host)).await?;
        self.snapshot(move |core| core.host_number(&id).unwrap_or_default()).await
    }

    /// A host says what it holds. It should have announced itself before: only then is it offered to others.
    ///
    /// # Errors
    /// When the scheduler has stopped.
    pub async fn announce_holdings(&self, holdings: Holdings) -> Result<(), Stopped> {
        let Holdings { host, all, list } = holdings;
        if all {
            self.event(Event::HoldsNothing(host.clone())).await?;
        }
        for holding in list {
            self.event(Event::Held(host.clone(), holding)).await?;
        }
        Ok(())
    }

    /// A host says goodbye.
    ///
    /// # Errors
    /// When the scheduler has stopped.
    pub async fn leave_host(&self, host: &HostId) -> Result<(), Stopped> {
        self.event(Event::HostLeft(host.clone())).await
    }

    /// Forgets a task and everybody who takes part in it.
    ///
    /// # Errors
    /// When the scheduler has stopped.
    pub async fn delete_task(&self, task: TaskId) -> Result<(), Stopped> {
        self.event(Event::TaskDeleted(task)).await
    }

    /// Looks at the machine: `look` runs in the driver, between two events, and should be quick.
    ///
    /// # Errors
    /// When the scheduler has stopped.
    pub async fn snapshot<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Core) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        self.look(move |core, _| look(core)).await
    }

    /// Why a task goes as it goes, with at most `most` of its peers; `None` for one that is not known.
    ///
    /// # Errors
    /// When the scheduler has stopped.
    pub async fn explain(&self, task: TaskId, most: usize) -> Result<Option<Explanation>, Stopped> {
        self.look(move |core, now| core.explain(now, &task, most)).await
    }

    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Core, Moment) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (reply, seen) = oneshot::channel();
        let look = Box::new(move |core: &Core, now| {
            // Who asked may have gone: then nobody wants to know.
            let _ = reply.send(look(core, now));
        });
        self.send(Command::Look(look)).await?;
        seen.await.map_err(|_| Stopped)
    }

    async fn event(&self, event: Event) -> Result<(), Stopped> {
        self.send(Command::Event(Box::new(event))).await
    }

    async fn send(&self, command: Command) -> Result<(), Stopped> {
        self.mailbox.send(command).await.map_err(|_| Stopped)
    }
}
