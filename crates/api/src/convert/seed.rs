//! Making a seed fetch a task.

use damselfly_core::swarm::Origin;
use damselfly_core::{Geometry, HostId, PeerId, TaskId};

use super::{WireError, register};
use crate::common::Download;
use crate::dfdaemon::download_task_response::Response;
use crate::dfdaemon::{DownloadTaskRequest, DownloadTaskResponse, DownloadTaskStartedResponse};

/// What a seed is asked to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeedWish {
    /// From where; also what the task's id follows from.
    pub origin: Origin,
    /// How it is cut, if whoever asks knows.
    pub geometry: Option<Geometry>,
}

/// Asks a seed to fetch a task from its source.
pub fn seed_wish_to_wire(wish: &SeedWish) -> DownloadTaskRequest {
    let download = Download {
        need_back_to_source: true,
        actual_content_length: wish.geometry.map(Geometry::length),
        actual_piece_length: wish.geometry.map(Geometry::piece_length),
        ..register::wanted_to_wire(&wish.origin)
    };
    DownloadTaskRequest { download: Some(download) }
}

/// Reads what a seed is asked to fetch.
///
/// # Errors
/// For overlong texts, a missing URL, and a geometry that makes no sense.
pub fn seed_wish_from_wire(request: DownloadTaskRequest) -> Result<SeedWish, WireError> {
    let download = request.download.ok_or(WireError::Missing("download"))?;
    if download.url.is_empty() {
        return Err(WireError::Missing("url"));
    }
    let geometry = register::geometry(download.actual_content_length, download.actual_piece_length)?;
    // The plain client gives a blob's URL and leaves it to the seed to find the digest there, in the task's id too.
    let named = Some(&download).filter(|download| {
        download.enable_task_id_based_blob_digest && download.content_for_calculating_task_id.is_none()
    });
    let named = named.and_then(|download| blob_digest(&download.url));
    let mut origin = register::origin_from_wire(download)?;
    origin.digest = origin.digest.or(named);
    Ok(SeedWish { origin, geometry })
}

/// The digest in the URL of a registry's blob: `…/v2/NAME/blobs/sha256:HEX`.
fn blob_digest(url: &str) -> Option<String> {
    let path = url.split(['?', '#']).next()?;
    let (name, digest) = path.split_once("/v2/")?.1.rsplit_once("/blobs/")?;
    let hex = digest.strip_prefix("sha256:")?;
    let is_hex = hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (is_hex && !name.is_empty()).then(|| digest.to_owned())
}

/// The first thing that a seed answers, once it knows how long the content is.
pub fn seed_started(
    host: &HostId,
    task: &TaskId,
    peer: &PeerId,
    content_length: u64,
    is_finished: bool,
) -> DownloadTaskResponse {
    let started = DownloadTaskStartedResponse { content_length, is_finished, ..Default::default() };
    DownloadTaskResponse {
        host_id: host.to_string(),
        task_id: task.to_string(),
        peer_id: peer.to_string(),
        response: Some(Response::DownloadTaskStartedResponse(started)),
    }
}
