//! A seed's part: what a scheduler asks it to fetch, it fetches from the source, as any reader would, and keeps.

use async_trait::async_trait;
use damselfly_core::swarm::Origin;
use damselfly_core::{Geometry, RangeWish};
use http_body_util::BodyExt as _;

use super::peer::{SeedRefused, SeedTrigger, Seeding};
use crate::p2p::{ContentStream, Opened, TaskSpec, Tasks};

/// Fetches tasks on behalf of others.
#[derive(Clone)]
pub struct Seeder(Tasks);

impl Seeder {
    /// Into these tasks' store.
    pub const fn new(tasks: Tasks) -> Self {
        Self(tasks)
    }
}

#[async_trait]
impl SeedTrigger for Seeder {
    async fn begin(&self, origin: Origin, geometry: Option<Geometry>) -> Result<Seeding, SeedRefused> {
        let spec = TaskSpec::on_behalf(&origin).ok_or(SeedRefused::Unknown)?;
        // Pieces cut otherwise than the task's identity says would be of no use to anybody.
        if geometry.is_some_and(|asked| spec.geometry(asked.length()) != Some(asked)) {
            return Err(SeedRefused::Unknown);
        }
        let stream = match self.0.open(spec, RangeWish::Whole, None).await {
            Ok(Opened::Content(stream)) => stream,
            Ok(Opened::Unsatisfiable { .. } | Opened::Origin(_)) => {
                return Err(SeedRefused::Failed("the source does not give the content".into()));
            }
            Err(error) => return Err(SeedRefused::Failed(error.to_string())),
        };
        let (task, peer, length) = (stream.task_id(), self.0.peer_of(&stream), stream.length());
        // The caller may leave; the children that it asks for must still get their pieces.
        let reading = tokio::spawn(read_to_the_end(stream));
        let done = Box::pin(async move {
            let read = reading.await.unwrap_or_else(|_| Err("the download stopped: its reader panicked".into()));
            read.map_err(SeedRefused::Failed)
        });
        Ok(Seeding { task, peer, length, done })
    }
}

async fn read_to_the_end(mut stream: ContentStream) -> Result<(), String> {
    while let Some(frame) = stream.frame().await {
        frame.map_err(|broken| broken.to_string())?;
    }
    Ok(())
}
