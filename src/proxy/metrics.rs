//! What the proxy counts.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::bypass::Bypass;
use crate::registry;

/// Labels by name.
pub(super) type Labels<const N: usize> = [(&'static str, &'static str); N];

/// What the proxy counts. Clones share their values.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(super) requests: Family<Labels<2>, Counter>,
    pub(super) broken: Counter,
    pub(super) traffic: Family<Labels<1>, Counter>,
    pub(super) forwarded: Counter,
    bypassed: Family<[(&'static str, String); 2], Counter>,
    bypassing: Family<Labels<1>, Counter>,
    /// The upstream hosts that have a label.
    upstreams: Arc<Mutex<BTreeSet<String>>>,
    authorized: Family<Labels<1>, Counter>,
    manifests: Family<Labels<1>, Counter>,
    pub(super) tokens: registry::Metrics,
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
            bypassed: Family::default(),
            bypassing: Family::default(),
            upstreams: Arc::default(),
            authorized: Family::default(),
            manifests: Family::default(),
            tokens: registry::Metrics::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 4.0, 10))),
            in_flight: Gauge::default(),
            connections: Gauge::default(),
        }
    }
}

/// How many upstream hosts have a label of their own; what goes to others is counted together.
const MAX_UPSTREAMS: usize = 64;

impl Metrics {
    /// Counts an answer of `bytes` bytes that was not shared, and why.
    pub(super) fn bypass(&self, why: Bypass, host: &str, bytes: u64) {
        self.bypassing.get_or_create(&[("why", why.as_str())]).inc();
        let mut upstreams = self.upstreams.lock().unwrap_or_else(PoisonError::into_inner);
        let known = upstreams.contains(host) || upstreams.len() < MAX_UPSTREAMS && upstreams.insert(host.to_owned());
        drop(upstreams);
        let upstream = if known { host } else { "other" };
        let labels = [("why", why.as_str().to_owned()), ("upstream", upstream.to_owned())];
        self.bypassed.get_or_create(&labels).inc_by(bytes);
    }

    /// Counts an answer to the question whether a caller may have what is held.
    pub(super) fn authorization(&self, result: &'static str) {
        self.authorized.get_or_create(&[("result", result)]).inc();
    }

    /// Counts what a manifest cost its registry.
    pub(super) fn manifest(&self, result: &'static str) {
        self.manifests.get_or_create(&[("result", result)]).inc();
    }

    /// Adds everything to `registry`, under `dragonfly_client_proxy_…`.
    pub fn register(&self, registry: &mut Registry) {
        self.tokens.register(registry);
        let registry = registry.sub_registry_with_prefix("dragonfly_client_proxy");
        registry.register("request", "Requests answered, by route and class of status", self.requests.clone());
        registry.register("request_broken", "Answers that broke after their head was sent", self.broken.clone());
        registry.register("traffic", "Bytes of tasks sent to clients, by where they came from", self.traffic.clone());
        registry.register("forwarded", "Bytes of upstreams' answers sent to clients", self.forwarded.clone());
        registry.register(
            "bypass",
            "Requests that were not answered from a task, by the reason why",
            self.bypassing.clone(),
        );
        registry.register(
            "bypass_bytes",
            "Bytes of answers that were not shared, by reason and upstream host (the first 64 hosts, then other)",
            self.bypassed.clone(),
        );
        registry.register(
            "authorization",
            "Whether callers may have content that is held: kept, granted, denied or unreachable",
            self.authorized.clone(),
        );
        registry.register(
            "manifest",
            "Manifests by what they cost the registry: asked, revalidated, shared, held or stale",
            self.manifests.clone(),
        );
        registry.register("request_seconds", "From a request's head to the end of its answer", self.seconds.clone());
        registry.register("concurrent_request", "Requests that are being answered", self.in_flight.clone());
        registry.register(
            "connection",
            "Client connections, those inside tunnels not counted",
            self.connections.clone(),
        );
    }
}
