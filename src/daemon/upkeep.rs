//! What has to be done from time to time.

use std::time::Duration;

use damselfly_runtime::admin::Readiness;
use tokio::time::MissedTickBehavior;

use super::Inheritance;
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

/// How often it is looked whether the storage directory can be used.
const LOOK: Duration = Duration::from_secs(2);

/// Looks after the store for ever: it is given up when its directory vanishes, and opened as soon as that can be used.
pub(super) async fn look_after(storage: Storage, inheritance: Inheritance, readiness: Readiness) {
    let mut missing = storage.missing();
    loop {
        let lacking = missing.as_ref().map(|why| format!("no content is stored: {why}"));
        readiness.set_lacking(lacking);
        tokio::time::sleep(LOOK).await;
        open_again(&storage, inheritance).await;
        let now = storage.missing();
        if let (None, Some(why)) = (&missing, &now) {
            tracing::error!(%why, "no content is stored any more: this host is a proxy only until the storage directory \
                can be used");
        }
        missing = now;
    }
}

/// Gives the store up if its directory has vanished, and opens it if there is none.
pub(super) async fn open_again(storage: &Storage, inheritance: Inheritance) {
    let storage = storage.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let opened = storage.look_after();
        if opened {
            inheritance.accept(&storage);
        }
        opened
    });
    if matches!(opened.await, Ok(true)) {
        tracing::info!("the storage directory can be used: content is stored from now on");
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
