//! The scheduler inside the daemon's own process: nouns handed over as they are.

use async_trait::async_trait;
use damselfly_core::HostId;
use damselfly_core::swarm::{Holding, HostInfo, Registration};
use damselfly_scheduler::{Handle, Stopped};

use super::{Conversation, SchedulerClient, SchedulerLost};

/// A scheduler in this process.
#[derive(Clone, Debug)]
pub struct Embedded(Handle);

impl Embedded {
    /// The scheduler behind this handle.
    pub const fn new(handle: Handle) -> Self {
        Self(handle)
    }
}

impl From<Stopped> for SchedulerLost {
    fn from(stopped: Stopped) -> Self {
        Self(stopped.to_string())
    }
}

#[async_trait]
impl SchedulerClient for Embedded {
    async fn register(&self, registration: Registration) -> Result<Conversation, SchedulerLost> {
        let (answers, reports) = self.0.register(registration).await?;
        Ok(Conversation { reports, answers })
    }

    async fn announce_host(&self, host: &HostInfo) -> Result<(), SchedulerLost> {
        Ok(self.0.announce_host(host.clone()).await?)
    }

    async fn announce_holdings(&self, host: &HostId, holdings: Vec<Holding>) -> Result<(), SchedulerLost> {
        Ok(self.0.announce_holdings(host, holdings).await?)
    }

    fn is_shared(&self) -> bool {
        false
    }

    async fn leave(&self, host: &HostId) -> Result<(), SchedulerLost> {
        Ok(self.0.leave_host(host).await?)
    }
}
