//! What the scheduler counts.

use std::time::Duration;

use damselfly_scheduler_core::{Counts, Fact};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

type State = [(&'static str, &'static str); 1];

/// Every fact, its metric's name and what it says.
const FACTS: [(Fact, &str, &str); 16] = [
    (Fact::Registered, "register_peer", "Peers that registered"),
    (Fact::Refused, "register_peer_failure", "Peers that could not register because every known task is in use"),
    (Fact::Offered, "offers", "Offers of parents"),
    (Fact::SourceGranted, "back_to_source_granted", "Peers sent to the source"),
    (Fact::LeaseLost, "leases_lost", "Leases taken from peers that left, failed or fell silent"),
    (Fact::SeedTriggered, "seeds_triggered", "Seeds asked to fetch a task"),
    (Fact::SeedFailed, "seeds_failed", "Seeds that did not take a task"),
    (Fact::IsolatedForTask, "task_isolations", "Hosts not offered for a task because of wrong bytes"),
    (Fact::Isolated, "isolations", "Hosts not offered at all because of wrong bytes"),
    (Fact::Silent, "unreachable_hosts", "Hosts not offered because several peers could not reach them"),
    (Fact::HostDropped, "dropped_hosts", "Hosts that stopped announcing themselves"),
    (Fact::ProofConflict, "proof_conflicts", "Pieces of which two peers reported different hashes"),
    (Fact::GeometryConflict, "geometry_conflicts", "Peers that cut a content differently from others"),
    (Fact::TaskForgotten, "tasks_forgotten", "Idle tasks forgotten for newer ones"),
    (Fact::Finished, "download_peer_finished", "Peers that finished"),
    (Fact::Failed, "download_peer_failure", "Peers that failed or broke off"),
];

/// The scheduler's metrics. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    facts: Vec<Counter>,
    decision: Histogram,
    peers: Family<State, Gauge>,
    hosts: Gauge,
    seeds: Gauge,
    isolated: Gauge,
    tasks: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            facts: FACTS.map(|_| Counter::default()).to_vec(),
            // 1 microsecond to a quarter of a second.
            decision: Histogram::new(exponential_buckets(1e-6, 4.0, 10)),
            peers: Family::default(),
            hosts: Gauge::default(),
            seeds: Gauge::default(),
            isolated: Gauge::default(),
            tasks: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Adds everything to a registry.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("dragonfly_scheduler");
        for ((_, name, help), counter) in FACTS.iter().zip(&self.facts) {
            registry.register(*name, *help, counter.clone());
        }
        let help = "How long the machine takes for one event";
        registry.register("decision_duration_seconds", help, self.decision.clone());
        registry.register("peers", "Known peers by what they do", self.peers.clone());
        registry.register("hosts", "Announced hosts", self.hosts.clone());
        registry.register("seed_hosts", "Announced hosts that are seeds", self.seeds.clone());
        let help = "Hosts that are not offered at all now because of wrong bytes";
        registry.register("isolated_hosts", help, self.isolated.clone());
        registry.register("tasks", "Known tasks", self.tasks.clone());
    }

    pub(super) fn fact(&self, fact: Fact) {
        let counters = FACTS.iter().zip(&self.facts);
        if let Some((_, counter)) = counters.into_iter().find(|((counted, _, _), _)| *counted == fact) {
            counter.inc();
        }
    }

    pub(super) fn decided(&self, took: Duration) {
        self.decision.observe(took.as_secs_f64());
    }

    pub(super) fn count(&self, counts: &Counts) {
        let busy = counts.waiting + counts.fetching + counts.sourcing;
        let peers = [
            ("waiting", counts.waiting),
            ("fetching", counts.fetching),
            ("source", counts.sourcing),
            ("idle", counts.peers.saturating_sub(busy)),
        ];
        for (state, count) in peers {
            self.peers.get_or_create(&[("state", state)]).set(gauge(count));
        }
        self.hosts.set(gauge(counts.hosts));
        self.seeds.set(gauge(counts.seeds));
        self.isolated.set(gauge(counts.isolated));
        self.tasks.set(gauge(counts.tasks));
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_and_counts_are_written() {
        let metrics = Metrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        for (fact, _, _) in FACTS {
            metrics.fact(fact);
        }
        metrics.fact(Fact::SourceGranted);
        metrics.count(&Counts { peers: 5, waiting: 2, hosts: 3, seeds: 1, tasks: 4, ..Counts::default() });
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "dragonfly_scheduler_back_to_source_granted_total 2",
            "dragonfly_scheduler_register_peer_total 1",
            "dragonfly_scheduler_peers{state=\"waiting\"} 2",
            "dragonfly_scheduler_peers{state=\"idle\"} 3",
            "dragonfly_scheduler_hosts 3",
            "dragonfly_scheduler_tasks 4",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert_eq!(text.matches("_total 1\n").count(), FACTS.len() - 1, "every fact has its own counter");
    }
}
