//! Making a seed fetch a task: how is the embedder's business.

use std::future::Future;
use std::pin::Pin;

use damselfly_core::TaskId;
use damselfly_core::swarm::{HostInfo, Origin};

/// What a seed is asked to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeedRequest {
    /// The seed.
    pub host: HostInfo,
    /// The task.
    pub task: TaskId,
    /// Where its content comes from.
    pub origin: Origin,
}

/// Why a seed does not fetch a task.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TriggerError(pub String);

/// A trigger under way. Resolves when the seed has refused or failed, or is done.
pub type Triggered = Pin<Box<dyn Future<Output = Result<(), TriggerError>> + Send>>;

/// Makes seeds fetch tasks.
pub trait SeedTrigger: Send + 'static {
    /// Asks the seed; follows it until it is done, if it says so.
    fn trigger(&self, request: SeedRequest) -> Triggered;
}

/// For a scheduler that reaches no seeds: one that is embedded and serves only its own daemon.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSeeds;

impl SeedTrigger for NoSeeds {
    fn trigger(&self, _request: SeedRequest) -> Triggered {
        Box::pin(async { Err(TriggerError("this scheduler reaches no seeds".into())) })
    }
}
