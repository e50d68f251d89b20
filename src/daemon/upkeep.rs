//! What has to be done from time to time.

use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::storage::Storage;

/// Sweeps storage for ever.
pub(super) async fn sweep(storage: Storage, every: Duration) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let storage = storage.clone();
        match tokio::task::spawn_blocking(move || storage.sweep()).await {
            Ok(swept) if swept.expired + swept.evicted > 0 => {
                tracing::info!(expired = swept.expired, evicted = swept.evicted, "swept the storage");
            }
            Ok(_) => {}
            // The sweep panicked; the next one may not.
            Err(error) => tracing::error!(%error, "the storage could not be swept"),
        }
    }
}
