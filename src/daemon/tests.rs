use prometheus_client::registry::Registry;

use crate::{limit, p2p, proxy, rpc, scheduler_client, storage};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");

/// Metrics with labels appear in the text once they have a value, so they are not looked for here.
#[test]
fn every_metric_is_documented_with_its_kind() {
    let mut registry = Registry::default();
    storage::Metrics::default().register(&mut registry);
    limit::Metrics::default().register(&mut registry);
    p2p::Metrics::default().register(&mut registry);
    p2p::transport::Metrics::default().register(&mut registry);
    proxy::Metrics::default().register(&mut registry);
    rpc::peer::Metrics::default().register(&mut registry);
    scheduler_client::Metrics::default().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();

    let document = std::fs::read_to_string(DOCUMENT).unwrap();
    let kinds: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    assert!(kinds.len() > 25, "{text}");
    for (name, kind) in kinds {
        assert!(document.contains(&format!("| `{name}` | {kind} |")), "{name} ({kind}) is not in docs/metrics.md");
    }
}
