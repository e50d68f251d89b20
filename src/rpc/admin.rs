//! The daemon's own admin route: `/tasks`, what is stored here and what is under way. Read only, and without the
//! queries of URLs, which may hold signatures.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::State;
use axum::response::Json;
use axum::routing::get;
use damselfly_core::Audience;
use serde::Serialize;

use crate::storage::{Storage, TaskSummary};

/// How many downloads are under way.
pub type InFlight = Arc<dyn Fn() -> usize + Send + Sync>;

/// The routes.
pub fn router(storage: Storage, in_flight: InFlight) -> Router {
    Router::new().route("/tasks", get(tasks)).with_state(Source { storage, in_flight })
}

#[derive(Clone)]
struct Source {
    storage: Storage,
    in_flight: InFlight,
}

/// The answer to `/tasks`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Tasks {
    /// Downloads under way.
    in_flight: usize,
    tasks: Vec<Task>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Task {
    id: String,
    url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    length: u64,
    piece_length: u64,
    pieces: u32,
    /// Pieces that are here and checked.
    have: u32,
    /// Pieces of an earlier run that are still to be checked.
    unchecked: u32,
    /// Bytes of the pieces that are here.
    held: u64,
    /// Whether the whole agreed with its digest.
    verified: bool,
    /// Whether every caller's own registry has to be asked before the content is given out.
    private: bool,
    in_use: bool,
    /// Seconds since 1970.
    created: u64,
    /// Seconds since 1970.
    last_access: u64,
}

async fn tasks(State(source): State<Source>) -> Json<Tasks> {
    let mut tasks: Vec<Task> = source.storage.list().into_iter().map(Task::of).collect();
    tasks.sort_unstable_by(|a, b| b.last_access.cmp(&a.last_access).then_with(|| a.id.cmp(&b.id)));
    Json(Tasks { in_flight: (source.in_flight)(), tasks })
}

impl Task {
    fn of(summary: TaskSummary) -> Self {
        let geometry = summary.geometry;
        Self {
            id: summary.id.to_string(),
            url: summary.origin.url.split(['?', '#']).next().unwrap_or_default().to_owned(),
            digest: summary.origin.digest,
            length: geometry.length(),
            piece_length: geometry.piece_length(),
            pieces: geometry.count(),
            have: summary.have,
            unchecked: summary.unchecked,
            held: summary.held,
            verified: summary.verified,
            private: summary.audience != Audience::Public,
            in_use: summary.in_use,
            created: seconds(summary.created),
            last_access: seconds(summary.last_access),
        }
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::NewTask;
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use damselfly_core::swarm::Origin;
    use damselfly_core::{Geometry, TaskId};
    use tower::ServiceExt as _;

    #[tokio::test]
    async fn tasks_are_listed_without_queries() {
        let storage = Storage::in_memory(1 << 30);
        let origin = Origin { url: "http://h/x.bin?sig=planted".into(), ..Origin::default() };
        let geometry = Geometry::new(10 << 20, 4 << 20).unwrap();
        let new = NewTask {
            id: TaskId::from_bytes([7; 32]),
            geometry,
            digest: None,
            origin,
            headers: Vec::new(),
            audience: Audience::Public,
        };
        let _held = storage.create(new).unwrap();
        let router = router(storage, Arc::new(|| 3));
        let response = router.oneshot(Request::get("/tasks").body(Body::empty()).unwrap()).await.unwrap();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert!(!text.contains("planted"), "{text}");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["inFlight"], 3);
        let task = &value["tasks"][0];
        assert_eq!(task["id"], "07".repeat(32));
        assert_eq!(task["url"], "http://h/x.bin");
        assert_eq!(task["length"], 10 << 20);
        assert_eq!(task["pieces"], 3);
        assert_eq!(task["have"], 0);
    }
}
