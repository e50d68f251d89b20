//! What the proxy counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Labels by name.
pub(super) type Labels<const N: usize> = [(&'static str, &'static str); N];

/// What the proxy counts. Clones share their values.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(super) requests: Family<Labels<2>, Counter>,
    pub(super) broken: Counter,
    pub(super) traffic: Family<Labels<1>, Counter>,
    pub(super) forwarded: Counter,
    pub(super) seconds: Family<Labels<1>, Histogram>,
    pub(super) in_flight: Gauge,
    pub(super) connections: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            broken: Counter::default(),
            traffic: Family::default(),
            forwarded: Counter::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 4.0, 10))),
            in_flight: Gauge::default(),
            connections: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Adds everything to `registry`, under `dragonfly_client_proxy_…`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("dragonfly_client_proxy");
        registry.register("request", "Requests answered, by route and class of status", self.requests.clone());
        registry.register("request_broken", "Answers that broke after their head was sent", self.broken.clone());
        registry.register("traffic", "Bytes of tasks sent to clients, by where they came from", self.traffic.clone());
        registry.register("forwarded", "Bytes of upstreams' answers sent to clients", self.forwarded.clone());
        registry.register("request_seconds", "From a request's head to the end of its answer", self.seconds.clone());
        registry.register("concurrent_request", "Requests that are being answered", self.in_flight.clone());
        registry.register(
            "connection",
            "Client connections, those inside tunnels not counted",
            self.connections.clone(),
        );
    }
}
