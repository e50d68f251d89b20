//! What has to be done from time to time.

use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::storage::Storage;

/// How often memory that was freed is given back to the system.
const GIVE_BACK: Duration = Duration::from_secs(5);
/// So large an allocation that the allocator then looks at all that it holds.
const LARGE: usize = 1024 * 1024;

/// Gives memory back that was freed a while ago. The allocator does so only when it is asked for something large, and an
/// idle daemon asks for nothing.
pub(super) async fn give_back_memory() {
    let mut ticks = tokio::time::interval(GIVE_BACK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        drop(std::hint::black_box(Vec::<u8>::with_capacity(LARGE)));
    }
}

/// How long after a round of checks the next one begins.
const SCRUB_PAUSE: Duration = Duration::from_secs(60);
/// A piece that nobody reads is checked again after so long.
const SCRUB_AGE: Duration = Duration::from_secs(14 * 24 * 3600);

/// Checks what is stored for ever, at most `rate` bytes a second; with 0 nothing but what is read.
pub(super) async fn scrub(storage: Storage, rate: u64) {
    if rate == 0 {
        return;
    }
    loop {
        storage.scrub(rate, SCRUB_AGE).await;
        tokio::time::sleep(SCRUB_PAUSE).await;
    }
}

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
