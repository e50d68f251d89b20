use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::{Class, Limit};

type Labels = [(&'static str, &'static str); 1];

/// What is counted of limits, by class. Clones share their values.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    limits: Family<Labels, Gauge>,
    waited_bytes: Family<Labels, Counter>,
    waited: Family<Labels, Counter<f64, AtomicU64>>,
}

impl Metrics {
    /// Adds everything to `registry`, under `dragonfly_client_bandwidth_…`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("dragonfly_client_bandwidth");
        registry.register("limit", "Bytes a second that may move, by class; 0: no limit", self.limits.clone());
        registry.register("waited_bytes", "Bytes that had to wait for a limit, by class", self.waited_bytes.clone());
        registry.register_with_unit(
            "waited",
            "How long transfers waited for a limit, together, by class",
            Unit::Seconds,
            self.waited.clone(),
        );
    }

    pub(super) fn of(&self, class: Class) -> ClassMetrics {
        let labels = [("class", class.name())];
        ClassMetrics {
            limit: self.limits.get_or_create(&labels).clone(),
            waited_bytes: self.waited_bytes.get_or_create(&labels).clone(),
            waited: self.waited.get_or_create(&labels).clone(),
        }
    }
}

/// Those of one class.
#[derive(Clone, Debug)]
pub(super) struct ClassMetrics {
    limit: Gauge,
    waited_bytes: Counter,
    waited: Counter<f64, AtomicU64>,
}

impl ClassMetrics {
    pub(super) fn limited(&self, limit: Limit) {
        self.limit.set(limit.total.map_or(0, |rate| i64::try_from(rate.get()).unwrap_or(i64::MAX)));
    }

    pub(super) fn waits(&self, bytes: u64) {
        self.waited_bytes.inc_by(bytes);
    }

    pub(super) fn waited(&self, time: Duration) {
        self.waited.inc_by(time.as_secs_f64());
    }
}
