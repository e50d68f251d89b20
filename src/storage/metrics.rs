use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// What the storage counts. Clones share their values.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(super) available: Gauge,
    pub(super) tasks: Gauge,
    pub(super) bytes: Gauge,
    pub(super) evictions: Counter,
    pub(super) expired: Counter,
    pub(super) pieces_written: Counter,
    pub(super) pieces_rechecked: Counter,
    pub(super) pieces_damaged: Counter,
    pub(super) commits: Counter,
    pub(super) commits_failed: Counter,
    pub(super) records_dropped: Counter,
    pub(super) commit_seconds: Histogram,
    pub(super) pending: Gauge<u64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            available: Gauge::default(),
            tasks: Gauge::default(),
            bytes: Gauge::default(),
            evictions: Counter::default(),
            expired: Counter::default(),
            pieces_written: Counter::default(),
            pieces_rechecked: Counter::default(),
            pieces_damaged: Counter::default(),
            commits: Counter::default(),
            commits_failed: Counter::default(),
            records_dropped: Counter::default(),
            commit_seconds: Histogram::new(exponential_buckets(0.0005, 4.0, 8)),
            pending: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Adds everything to `registry`, under `dragonfly_client_storage_…`.
    pub fn register(&self, registry: &mut Registry) {
        let mut add = |name: &str, help: &str, metric: Counter| {
            registry.register(format!("dragonfly_client_storage_{name}"), help, metric);
        };
        add("evictions", "Tasks removed to make room", self.evictions.clone());
        add("expired", "Tasks removed because nobody used them", self.expired.clone());
        add("pieces_written", "Pieces written completely", self.pieces_written.clone());
        add("pieces_rechecked", "Pieces read again and found good", self.pieces_rechecked.clone());
        add("pieces_damaged", "Pieces read again and found damaged", self.pieces_damaged.clone());
        add("commits", "Batches of metadata committed", self.commits.clone());
        add("commits_failed", "Batches of metadata that failed and were kept", self.commits_failed.clone());
        add("records_dropped", "Records given up while the metadata store failed", self.records_dropped.clone());
        let available = self.available.clone();
        registry.register("dragonfly_client_storage_available", "Whether there is a store: 1 or 0", available);
        registry.register("dragonfly_client_storage_tasks", "Tasks stored", self.tasks.clone());
        registry.register("dragonfly_client_storage_bytes", "Bytes of stored pieces", self.bytes.clone());
        registry.register("dragonfly_client_storage_pending", "Records waiting for a commit", self.pending.clone());
        registry.register(
            "dragonfly_client_storage_commit_seconds",
            "How long a metadata commit takes",
            self.commit_seconds.clone(),
        );
    }
}
