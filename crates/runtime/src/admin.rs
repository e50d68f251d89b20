//! The admin HTTP that every process has: `/healthy`, `/ready`, `/metrics`, `/addresses`. Each process merges its own
//! routes in. Nothing here changes state.

use std::future::Future;
use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::drain::Watch;

/// What prometheus-client writes (OpenMetrics 1.0); every Prometheus reads it.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether the process does its work now. Cheap to clone; starts as not ready.
#[derive(Clone, Debug)]
pub struct Readiness {
    ready: Arc<watch::Sender<bool>>,
    lacks: Arc<watch::Sender<Option<String>>>,
    drain: Watch,
}

impl Readiness {
    /// Not ready yet; not ready any more once `drain` begins.
    pub fn new(drain: Watch) -> Self {
        Self { ready: Arc::new(watch::Sender::new(false)), lacks: Arc::default(), drain }
    }

    /// Everything listens: ready from now on.
    pub fn set_ready(&self) {
        self.ready.send_replace(true);
    }

    /// What the process does its work without, until it is told otherwise: it is ready all the same, and says so.
    pub fn set_lacking(&self, what: Option<String>) {
        self.lacks.send_if_modified(|lacks| {
            let changed = *lacks != what;
            *lacks = what;
            changed
        });
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.drain.is_draining() {
            Err("draining")
        } else if *self.ready.borrow() {
            Ok(())
        } else {
            Err("starting")
        }
    }
}

/// What the common routes answer from.
#[derive(Clone, Debug)]
pub struct Admin {
    registry: Arc<Registry>,
    readiness: Readiness,
    addresses: Arc<serde_json::Value>,
}

impl Admin {
    /// `addresses` is what `addresses.json` says.
    pub fn new(registry: Registry, readiness: Readiness, addresses: serde_json::Value) -> Self {
        Self { registry: Arc::new(registry), readiness, addresses: Arc::new(addresses) }
    }

    /// The common routes.
    pub fn router(self) -> Router {
        Router::new()
            .route("/healthy", get(|| async { "ok\n" }))
            .route("/ready", get(ready))
            .route("/metrics", get(metrics))
            .route("/addresses", get(addresses))
            .with_state(self)
    }
}

async fn ready(State(admin): State<Admin>) -> Response {
    match admin.readiness.check() {
        Ok(()) => match &*admin.readiness.lacks.borrow() {
            None => "ready\n".into_response(),
            Some(what) => format!("ready, but {what}\n").into_response(),
        },
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &admin.registry) {
        Ok(()) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written\n").into_response(),
    }
}

async fn addresses(State(admin): State<Admin>) -> Json<serde_json::Value> {
    Json(serde_json::Value::clone(&admin.addresses))
}

/// Serves a router until `end` resolves. Let `end` be the end of the process rather than the drain's beginning: who
/// watches a drain asks here.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    end: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    axum::serve(listener, router).with_graceful_shutdown(end).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drain::Drain;
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use prometheus_client::metrics::counter::Counter;
    use tower::ServiceExt;

    async fn ask(router: &Router, path: &str) -> (StatusCode, String, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let kind = response.headers().get(CONTENT_TYPE).map_or("", |value| value.to_str().unwrap()).to_owned();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, kind, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn answers_the_common_routes() {
        let drain = Drain::new();
        let readiness = Readiness::new(drain.watch());
        let mut registry = Registry::default();
        let counter = Counter::<u64>::default();
        registry.register("dragonfly_client_thing", "Things", counter.clone());
        counter.inc();
        let addresses = serde_json::json!({"admin": "127.0.0.1:9"});
        let router = Admin::new(registry, readiness.clone(), addresses).router();

        assert_eq!(ask(&router, "/healthy").await.0, StatusCode::OK);
        assert_eq!(ask(&router, "/ready").await.0, StatusCode::SERVICE_UNAVAILABLE);
        readiness.set_ready();
        assert_eq!(ask(&router, "/ready").await.2, "ready\n");
        readiness.set_lacking(Some("without a store".into()));
        assert_eq!(
            ask(&router, "/ready").await,
            (StatusCode::OK, "text/plain; charset=utf-8".into(), "ready, but without a store\n".into())
        );
        readiness.set_lacking(None);
        assert_eq!(ask(&router, "/ready").await.2, "ready\n");
        let (status, kind, text) = ask(&router, "/metrics").await;
        assert_eq!((status, kind.as_str()), (StatusCode::OK, OPEN_METRICS));
        assert!(text.contains("dragonfly_client_thing_total 1"), "{text}");
        assert!(text.ends_with("# EOF\n"));
        assert_eq!(ask(&router, "/addresses").await.2, r#"{"admin":"127.0.0.1:9"}"#);
        assert_eq!(ask(&router, "/nothing").await.0, StatusCode::NOT_FOUND);
        drain.start();
        let (status, _, text) = ask(&router, "/ready").await;
        assert_eq!((status, text.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "draining\n"));
        assert_eq!(ask(&router, "/healthy").await.0, StatusCode::OK, "a draining process is alive");
    }
}
