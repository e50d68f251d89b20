//! The scheduler inside the daemon's own process: nouns handed over as they are.

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use damselfly_core::HostId;
use damselfly_core::swarm::{Holdings, HostInfo, Registration};
use damselfly_scheduler::{Handle, Stopped};

use super::{Conversation, SchedulerClient, SchedulerLost};

/// A scheduler in this process.
#[derive(Debug)]
pub struct Embedded {
    handle: Handle,
    /// It knows what this host holds.
    told: AtomicBool,
}

impl Embedded {
    /// The scheduler behind this handle.
    pub const fn new(handle: Handle) -> Self {
        Self { handle, told: AtomicBool::new(false) }
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
        let (answers, reports) = self.handle.register(registration).await?;
        Ok(Conversation { reports, answers })
    }

    async fn announce_host(&self, host: &HostInfo) -> Result<(), SchedulerLost> {
        self.handle.announce_host(host.clone()).await?;
        Ok(())
    }

    async fn announce_holdings(&self, holdings: Holdings) -> Result<(), SchedulerLost> {
        let all = holdings.all;
        self.handle.announce_holdings(holdings).await?;
        self.told.fetch_or(all, Ordering::Relaxed);
        Ok(())
    }

    fn wants_holdings(&self) -> bool {
        !self.told.load(Ordering::Relaxed)
    }

    fn is_shared(&self) -> bool {
        false
    }

    async fn leave(&self, host: &HostId) -> Result<(), SchedulerLost> {
        Ok(self.handle.leave_host(host).await?)
    }
}
