//! What people look at: tasks and hosts as JSON, beside the admin routes that every process has. Nothing here changes
//! state. URLs are shown without their query, which may carry a signature.

use std::ops::Range;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use damselfly_core::{PeerId, TaskId};
use damselfly_scheduler_core::{Core, HostView, PeerView, TaskView};
use serde::{Deserialize, Serialize};

use crate::driver::Handle;
use crate::explain::{Explained, text};

/// How many tasks or hosts are listed where the request does not say.
const DEFAULT_LIMIT: usize = 1000;

/// How many peers are explained where the request does not say.
const EXPLAINED: usize = 100;

/// How many it can ask for.
const MOST: usize = 10_000;

#[derive(Debug, Deserialize)]
struct Page {
    limit: Option<usize>,
    /// Only tasks of this URL, whose query does not count.
    url: Option<String>,
}

impl Page {
    fn limit(&self) -> usize {
        self.limit.unwrap_or(DEFAULT_LIMIT).min(MOST)
    }
}

/// The scheduler's own routes.
pub fn router(handle: Handle) -> Router {
    Router::new()
        .route("/api/v1/tasks", get(tasks))
        .route("/api/v1/tasks/{id}", get(task))
        .route("/api/v1/tasks/{id}/explain", get(explain))
        .route("/api/v1/hosts", get(hosts))
        .with_state(handle)
}

async fn tasks(State(handle): State<Handle>, Query(page): Query<Page>) -> Response {
    let limit = page.limit();
    let url = page.url.as_deref().map(|url| without_query(url).to_owned());
    let list = move |core: &Core| match &url {
        Some(url) => core.tasks_where(|origin| without_query(&origin.url) == url).take(limit).collect::<Vec<_>>(),
        None => core.tasks().take(limit).collect(),
    };
    let tasks = handle.snapshot(list).await;
    tasks.map_or_else(stopped, |tasks| Json(tasks.iter().map(Task::summary).collect::<Vec<_>>()).into_response())
}

async fn task(State(handle): State<Handle>, Path(id): Path<String>) -> Response {
    let Ok(id) = id.parse::<TaskId>() else {
        return (StatusCode::BAD_REQUEST, "a task id is 64 hex digits\n").into_response();
    };
    match handle.snapshot(move |core| core.task(&id)).await {
        Ok(Some(task)) => Json(Task::from(&task)).into_response(),
        Ok(None) => (StatusCode::NOT_FOUND, "no such task\n").into_response(),
        Err(error) => stopped(error),
    }
}

#[derive(Debug, Deserialize)]
struct Explain {
    limit: Option<usize>,
    /// `text` for people; JSON otherwise.
    format: Option<String>,
}

async fn explain(State(handle): State<Handle>, Path(id): Path<String>, Query(wish): Query<Explain>) -> Response {
    let Ok(id) = id.parse::<TaskId>() else {
        return (StatusCode::BAD_REQUEST, "a task id is 64 hex digits\n").into_response();
    };
    let most = wish.limit.unwrap_or(EXPLAINED).min(DEFAULT_LIMIT);
    match handle.explain(id, most).await {
        Ok(Some(why)) if wish.format.as_deref() == Some("text") => text(&why).into_response(),
        Ok(Some(why)) => Json(Explained::from(&why)).into_response(),
        Ok(None) => (StatusCode::NOT_FOUND, "no such task\n").into_response(),
        Err(error) => stopped(error),
    }
}

async fn hosts(State(handle): State<Handle>, Query(page): Query<Page>) -> Response {
    let limit = page.limit();
    let hosts = handle.snapshot(move |core| core.hosts().take(limit).collect::<Vec<_>>()).await;
    hosts.map_or_else(stopped, |hosts| Json(hosts.iter().map(Host::from).collect::<Vec<_>>()).into_response())
}

/// What may be shown of a URL: its query may be a signature.
pub(crate) fn without_query(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or_default()
}

fn stopped(error: crate::driver::Stopped) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Task {
    id: String,
    url: String,
    length: Option<u64>,
    piece_length: Option<u64>,
    pieces: Option<u32>,
    leases: Vec<Lease>,
    seed: Option<String>,
    proofs: usize,
    holders: usize,
    peer_count: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    peers: Option<Vec<Peer>>,
}

/// Pieces that a peer reads from the source for everybody, those that are still to come.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Lease {
    peer: String,
    first_piece: u32,
    /// Not there while nobody knows how many pieces there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    end_piece: Option<u32>,
}

impl From<&(PeerId, Range<u32>)> for Lease {
    fn from((peer, pieces): &(PeerId, Range<u32>)) -> Self {
        Self {
            peer: peer.to_string(),
            first_piece: pieces.start,
            end_piece: Some(pieces.end).filter(|end| *end != u32::MAX),
        }
    }
}

impl Task {
    /// Without its peers.
    pub(crate) fn summary(task: &TaskView) -> Self {
        Self { peers: None, ..Self::from(task) }
    }
}

impl From<&TaskView> for Task {
    fn from(task: &TaskView) -> Self {
        let url = without_query(&task.origin.url);
        Self {
            id: task.id.to_string(),
            url: url.to_owned(),
            length: task.geometry.map(|geometry| geometry.length()),
            piece_length: task.geometry.map(|geometry| geometry.piece_length()),
            pieces: task.geometry.map(|geometry| geometry.count()),
            leases: task.leases.iter().map(Lease::from).collect(),
            seed: task.seed.as_ref().map(ToString::to_string),
            proofs: task.proofs,
            holders: task.holders,
            peer_count: task.peer_count,
            peers: Some(task.peers.iter().map(Peer::from).collect()),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Peer {
    id: String,
    host: String,
    state: &'static str,
    pieces: u32,
    parents: Vec<String>,
    children: usize,
}

impl From<&PeerView> for Peer {
    fn from(peer: &PeerView) -> Self {
        Self {
            id: peer.id.to_string(),
            host: peer.host.to_string(),
            state: peer.state,
            pieces: peer.pieces,
            parents: peer.parents.iter().map(ToString::to_string).collect(),
            children: peer.children,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Host {
    id: String,
    hostname: String,
    ip: String,
    rpc_port: u16,
    data_port: u16,
    seed: bool,
    idc: String,
    location: String,
    upload_slots: u32,
    children: u32,
    peers: usize,
    isolated: bool,
    silent: bool,
}

impl From<&HostView> for Host {
    fn from(host: &HostView) -> Self {
        let info = &host.info;
        Self {
            id: info.id.to_string(),
            hostname: info.hostname.clone(),
            ip: info.ip.to_string(),
            rpc_port: info.rpc_port,
            data_port: info.data_port,
            seed: info.seed,
            idc: info.idc.clone(),
            location: info.location.clone(),
            upload_slots: info.upload_slots,
            children: host.children,
            peers: host.peers,
            isolated: host.isolated,
            silent: host.silent,
        }
    }
}
