use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What the data port counts. Clones share their values.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(super) pieces: Counter,
    pub(super) failures: Counter,
    pub(super) refused: Counter,
    pub(super) bytes: Counter,
    pub(super) sending: Gauge,
    pub(super) connections: Gauge,
    pub(super) garbage: Counter,
}

impl Metrics {
    /// Adds everything to `registry`, under `dragonfly_client_…`.
    pub fn register(&self, registry: &mut Registry) {
        let mut add = |name: &str, help: &str, metric: &Counter| {
            registry.register(format!("dragonfly_client_{name}"), help, metric.clone());
        };
        add("upload_piece", "Pieces sent to children", &self.pieces);
        add("upload_piece_failure", "Pieces whose sending broke off", &self.failures);
        add(
            "upload_piece_refused",
            "Requests for pieces that are not here, or while all slots were taken",
            &self.refused,
        );
        add("upload_traffic", "Bytes of pieces sent to children", &self.bytes);
        add("upload_garbage", "Connections closed because of what came on them", &self.garbage);
        registry.register("dragonfly_client_concurrent_upload_piece", "Pieces being sent", self.sending.clone());
        registry.register("dragonfly_client_upload_connections", "Open data connections", self.connections.clone());
    }
}
