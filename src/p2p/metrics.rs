use std::time::Duration;

use damselfly_core::swarm::PieceFault;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::flight::Outcome;

/// What the downloads of this host count.
#[derive(Clone, Debug)]
pub struct Metrics {
    downloads: Family<OutcomeLabel, Counter>,
    pieces_failed: Family<FaultLabel, Counter>,
    in_flight: Gauge,
    duration: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FaultLabel {
    blame: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            downloads: Family::default(),
            pieces_failed: Family::default(),
            in_flight: Gauge::default(),
            // 10 ms to about 3 hours.
            duration: Histogram::new(exponential_buckets(0.01, 4.0, 11)),
        }
    }
}

impl Metrics {
    /// Makes them part of `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("dragonfly_client_download_task", "Downloads that ended, by outcome", self.downloads.clone());
        registry.register(
            "dragonfly_client_piece_failure",
            "Pieces that could not be had from a parent, by what was the matter with it",
            self.pieces_failed.clone(),
        );
        registry.register("dragonfly_client_concurrent_download_task", "Downloads under way", self.in_flight.clone());
        registry.register_with_unit(
            "dragonfly_client_download_task_duration",
            "How long downloads took",
            Unit::Seconds,
            self.duration.clone(),
        );
    }

    pub(super) fn started(&self) {
        self.in_flight.inc();
    }

    pub(super) fn ended(&self, outcome: &Outcome, took: Duration) {
        self.in_flight.dec();
        self.duration.observe(took.as_secs_f64());
        let outcome = match outcome {
            Outcome::Done => "done",
            Outcome::Refused => "refused",
            Outcome::Source(_) => "source_failed",
            Outcome::Changed => "changed",
            Outcome::Digest => "digest_mismatch",
            Outcome::Abandoned => "abandoned",
            Outcome::Local(_) => "local",
        };
        self.downloads.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(super) fn piece_failed(&self, fault: PieceFault) {
        let blame = match fault {
            PieceFault::Bad => "bad",
            PieceFault::Stalled => "stalled",
            PieceFault::Gone => "gone",
            PieceFault::Missing => "missing",
            PieceFault::Slow => "slow",
        };
        self.pieces_failed.get_or_create(&FaultLabel { blame }).inc();
    }
}
