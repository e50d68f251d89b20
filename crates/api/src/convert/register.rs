//! A peer's request to take part in a task.

use std::sync::Arc;

use damselfly_core::Geometry;
use damselfly_core::swarm::{Held, Origin, Registration, SourceWish};
use prost::Message as _;

use super::hold::{held_from_wire, held_to_wire};
use super::{MAX_IDENTITY, MAX_LABEL, MAX_LISTED, MAX_NAME, MAX_URL, WireError, bounded, optional, piece};
use crate::common::Download;
use crate::scheduler::announce_peer_request::Request;
use crate::scheduler::{AnnouncePeerRequest, RegisterPeerRequest};

/// What is needed to fetch a content, as others are told. There are no credentials in it.
pub(super) fn download_to_wire(origin: &Origin) -> Download {
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    Download {
        url: origin.url.clone(),
        digest: origin.digest.clone(),
        tag: text(&origin.tag),
        application: text(&origin.application),
        content_for_calculating_task_id: origin.content.clone(),
        private: origin.private,
        ..Download::default()
    }
}

/// What a plain peer says of its task beyond what a task of ours has: all that its seeds make the task's id of, or need
/// to find the content. Credentials are not among it.
fn plain_from_wire(download: &Download) -> Result<Vec<u8>, WireError> {
    let words = Download {
        r#type: download.r#type,
        priority: download.priority,
        filtered_query_params: download.filtered_query_params.clone(),
        piece_length: download.piece_length,
        enable_task_id_based_blob_digest: download.enable_task_id_based_blob_digest,
        object_storage: download.object_storage.clone(),
        hdfs: download.hdfs.clone(),
        hugging_face: download.hugging_face.clone(),
        model_scope: download.model_scope.clone(),
        open_csg: download.open_csg.clone(),
        scheduling_policy: download.scheduling_policy,
        ..Download::default()
    };
    if words.encoded_len() > MAX_IDENTITY {
        return Err(WireError::TooLong("download"));
    }
    Ok(words.encode_to_vec())
}

/// Whether the source is asked with something that must not leave its host.
fn needs_credentials(download: &Download) -> bool {
    let is_set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let store = download.object_storage.as_ref().is_some_and(|store| {
        [
            &store.access_key_id,
            &store.access_key_secret,
            &store.session_token,
            &store.security_token,
            &store.credential_path,
        ]
        .into_iter()
        .any(is_set)
    });
    let hubs = [
        download.hdfs.as_ref().map(|hdfs| &hdfs.delegation_token),
        download.hugging_face.as_ref().map(|hub| &hub.token),
        download.model_scope.as_ref().map(|hub| &hub.token),
        download.open_csg.as_ref().map(|hub| &hub.token),
    ];
    store
        || hubs.into_iter().flatten().any(is_set)
        || !download.certificate_chain.is_empty()
        || download.request_header.keys().any(|name| is_secret(name))
}

/// Whether a request header looks like a credential.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["auth", "cookie", "token", "secret", "signature", "credential", "api-key", "apikey", "x-amz-", "x-ms-", "x-goog-"]
        .iter()
        .any(|part| name.contains(part))
}

/// What a seed is asked to fetch, in the words of the peer that wants it.
pub(super) fn wanted_to_wire(origin: &Origin) -> Download {
    let ours = download_to_wire(origin);
    let Some(words) = &origin.plain else {
        return Download { enable_task_id_based_blob_digest: true, ..ours };
    };
    // They were encoded here.
    let words = Download::decode(words.as_slice()).unwrap_or_default();
    Download {
        url: ours.url,
        digest: ours.digest,
        tag: ours.tag,
        application: ours.application,
        content_for_calculating_task_id: ours.content_for_calculating_task_id,
        ..words
    }
}

/// The same from the wire. Headers, and with them credentials, are left behind.
pub(super) fn origin_from_wire(download: Download) -> Result<Origin, WireError> {
    let private = download.private;
    let (content, digest) = (download.content_for_calculating_task_id, download.digest);
    Ok(Origin { private, ..origin(download.url, content, digest, download.tag, download.application)? })
}

pub(super) fn origin(
    url: String,
    content: Option<String>,
    digest: Option<String>,
    tag: Option<String>,
    application: Option<String>,
) -> Result<Origin, WireError> {
    Ok(Origin {
        url: bounded(url, MAX_URL, "url")?,
        content: optional(content, MAX_IDENTITY, "content_for_calculating_task_id")?,
        digest: optional(digest, MAX_NAME, "digest")?,
        tag: optional(tag, MAX_LABEL, "tag")?.unwrap_or_default(),
        application: optional(application, MAX_LABEL, "application")?.unwrap_or_default(),
        private: false,
        plain: None,
    })
}

/// The cut of a content, from what a message says of it. `None` where it does not say enough.
pub(super) fn geometry(length: Option<u64>, piece_length: Option<u64>) -> Result<Option<Geometry>, WireError> {
    match (length, piece_length) {
        (Some(length), Some(piece_length)) if piece_length > 0 => {
            Geometry::new(length, piece_length).map(Some).map_err(|_| WireError::Invalid("piece_length"))
        }
        _ => Ok(None),
    }
}

/// The first message of a conversation. What does not fit of a very long list of pieces is left out: it is announced
/// with the host's holdings.
pub fn registration_to_wire(registration: &Registration) -> AnnouncePeerRequest {
    let known = registration.geometry;
    let download = Download {
        need_back_to_source: registration.source == SourceWish::Wanted,
        disable_back_to_source: registration.source == SourceWish::Forbidden,
        actual_content_length: known.map(Geometry::length),
        actual_piece_length: known.map(Geometry::piece_length),
        actual_piece_count: known.map(|geometry| geometry.count().into()),
        ..download_to_wire(&registration.origin)
    };
    let held = registration.held.as_ref().map(|held| {
        let listed = held.pieces.len().min(MAX_LISTED);
        held_to_wire(held.geometry, &held.pieces[..listed])
    });
    let register = RegisterPeerRequest { download: Some(download), extended: registration.extended, held };
    AnnouncePeerRequest {
        host_id: registration.host.to_string(),
        task_id: registration.task.to_string(),
        peer_id: registration.peer.to_string(),
        request: Some(Request::RegisterPeerRequest(register)),
    }
}

/// The first message of a conversation, and whether the peer wants only to be known (`metadata_only`).
///
/// A peer of the plain protocol that wants only to be known has the whole content.
///
/// # Errors
/// For malformed ids, overlong texts and lists, and a geometry that makes no sense.
pub fn registration_from_wire(
    host: String,
    task: &str,
    peer: String,
    register: RegisterPeerRequest,
) -> Result<(Registration, bool), WireError> {
    let download = register.download.ok_or(WireError::Missing("download"))?;
    let geometry = geometry(download.actual_content_length, download.actual_piece_length)?;
    let metadata_only = download.metadata_only;
    let source = match (download.disable_back_to_source, download.need_back_to_source) {
        (true, _) => SourceWish::Forbidden,
        (false, true) => SourceWish::Wanted,
        (false, false) => SourceWish::Allowed,
    };
    let held = match register.held {
        Some(held) => Some(held_from_wire(held)?),
        None => geometry
            .filter(|_| metadata_only)
            .map(|geometry| Held { geometry, pieces: piece::all_without_digests(geometry) }),
    };
    let (private, plain) = match register.extended {
        true => (download.private, None),
        false if needs_credentials(&download) => (true, None),
        false => (false, Some(Arc::new(plain_from_wire(&download)?))),
    };
    let registration = Registration {
        host: super::host_id(host)?,
        task: super::task_id(task)?,
        peer: super::peer_id(peer)?,
        origin: Origin { private, plain, ..origin_from_wire(download)? },
        geometry,
        held,
        source,
        extended: register.extended,
    };
    Ok((registration, metadata_only))
}
