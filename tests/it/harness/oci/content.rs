//! Manifests, blobs, uploads and tags.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::json;

use super::super::digest;
use super::super::origin::parse_range;
use super::access;
use super::answer::{Answer, empty, error, of_json, set};
use super::serve::Asked;
use super::state::{Kind, Knobs, State};

/// How long a signed URL is good.
const SIGNED_FOR: Duration = Duration::from_secs(600);

/// What the registry, or its store, answers.
pub(super) fn answer(asked: &Asked, state: &State, knobs: &Knobs) -> Answer {
    if matches!(asked.kind, Kind::StoreGet | Kind::StoreHead) {
        return stored(asked, state, knobs);
    }
    let path = asked.head.uri.path();
    if path == "/sign-in" {
        return access::sign_in();
    }
    let wanted = repository(path).map(|name| (name, action(&asked.head.method)));
    if let Some(refusal) = access::check(asked, state, knobs, wanted) {
        return refusal;
    }
    let Some((name, rest)) = wanted.map(|(name, _)| (name, &path["/v2/".len() + name.len()..])) else {
        let mut answer =
            if asked.kind == Kind::Ping { of_json(StatusCode::OK, &json!({})) } else { unknown("NAME_UNKNOWN") };
        set(&mut answer, "docker-distribution-api-version", "registry/2.0");
        return answer;
    };
    match asked.kind {
        Kind::ManifestHead | Kind::ManifestGet => manifest(asked, state, name, &rest["/manifests/".len()..]),
        Kind::ManifestPut => put_manifest(asked, state, name, &rest["/manifests/".len()..]),
        Kind::BlobHead | Kind::BlobGet => blob(asked, state, knobs, name, &rest["/blobs/".len()..]),
        Kind::Upload => upload(asked, state, name, &rest["/blobs/uploads/".len()..]),
        Kind::Tags => tags(asked, state, knobs, name),
        _ => error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "the operation is unsupported"),
    }
}

/// The repository that a path of the registry is about.
fn repository(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/v2/")?;
    let end = ["/manifests/", "/blobs/", "/tags/list"].iter().filter_map(|part| rest.find(part)).min()?;
    Some(&rest[..end])
}

fn action(method: &Method) -> &'static str {
    if matches!(*method, Method::GET | Method::HEAD) { "pull" } else { "push" }
}

fn unknown(code: &str) -> Answer {
    error(StatusCode::NOT_FOUND, code, "not known to the registry")
}

fn manifest(asked: &Asked, state: &State, name: &str, reference: &str) -> Answer {
    let Some((media_type, manifest)) = state.store().manifest(name, reference) else {
        return unknown("MANIFEST_UNKNOWN");
    };
    let accepted = asked.head.headers.get_all("accept").iter().filter_map(|line| line.to_str().ok());
    let mut accepted =
        accepted.flat_map(|line| line.split(',')).map(|kind| kind.split(';').next().unwrap_or(kind).trim());
    let mut any = asked.line("accept").is_none();
    any |= accepted.any(|kind| kind == media_type || kind == "*/*");
    if !any {
        return error(
            StatusCode::NOT_FOUND,
            "MANIFEST_UNKNOWN",
            "the Accept header does not name this kind of manifest",
        );
    }
    let mut answer = Answer::new(manifest.clone());
    set(&mut answer, "content-type", &media_type);
    named(&mut answer, &digest(&manifest));
    answer
}

/// Says by which digest a content is known.
fn named(answer: &mut Answer, digest: &str) {
    set(answer, "docker-content-digest", digest);
    set(answer, "etag", &format!("\"{digest}\""));
}

fn put_manifest(asked: &Asked, state: &State, name: &str, reference: &str) -> Answer {
    let real = digest(&asked.body);
    if reference.contains(':') && reference != real {
        return error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "the digest is not that of the manifest");
    }
    let media_type = asked.line("content-type").unwrap_or("application/octet-stream");
    state.store().put_manifest(name, reference, media_type, asked.body.clone());
    created(state, &format!("/v2/{name}/manifests/{real}"), &real)
}

fn created(state: &State, path: &str, digest: &str) -> Answer {
    let mut answer = empty(StatusCode::CREATED);
    set(&mut answer, "location", &own_url(state, path));
    set(&mut answer, "docker-content-digest", digest);
    answer
}

/// A URL of the registry, relative where it is one that likes these.
fn own_url(state: &State, path: &str) -> String {
    let places = &state.places;
    if state.relative { path.to_owned() } else { format!("{}://{}{path}", places.scheme, places.registry) }
}

fn blob(asked: &Asked, state: &State, knobs: &Knobs, name: &str, digest: &str) -> Answer {
    if knobs.refuses_head && asked.kind == Kind::BlobHead {
        return error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "the operation is unsupported");
    }
    let Some(blob) = state.store().blob(name, digest) else { return unknown("BLOB_UNKNOWN") };
    if state.places.store.is_none() && !state.relative {
        return send_blob(asked, knobs, blob, digest);
    }
    let expires = SystemTime::now() + SIGNED_FOR;
    let expires = expires.duration_since(UNIX_EPOCH).expect("a time after 1970").as_secs().to_string();
    let signature = state.store().signature(&asked.head.method, digest, &expires);
    let path = format!("/store/{digest}?Expires={expires}&Signature={signature}&Key-Pair-Id=K1");
    let mut answer = empty(StatusCode::TEMPORARY_REDIRECT);
    let url = match &state.places.store {
        Some(store) => format!("{}://{store}{path}", state.places.scheme),
        None => path,
    };
    set(&mut answer, "location", &url);
    answer
}

/// A blob behind a signed URL. As the large stores do, this one refuses a request with two kinds of credentials, and a
/// HEAD with a signature that was made for GET, or the other way round.
fn stored(asked: &Asked, state: &State, knobs: &Knobs) -> Answer {
    let digest = asked.head.uri.path().trim_start_matches("/store/");
    let (expires, signature) = (asked.parameter("Expires"), asked.parameter("Signature"));
    let (expires, signature) = (expires.unwrap_or_default(), signature.unwrap_or_default());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_secs();
    if asked.line("authorization").is_some() && state.places.store.is_some() {
        return error(StatusCode::BAD_REQUEST, "INVALID", "only one way of authentication is allowed");
    }
    let good = signature == state.store().signature(&asked.head.method, digest, &expires)
        && expires.parse().is_ok_and(|end: u64| end > now);
    if !good {
        return error(StatusCode::FORBIDDEN, "DENIED", "the signature is not good for this request");
    }
    match state.store().any_blob(digest) {
        Some(blob) => send_blob(asked, knobs, blob, digest),
        None => unknown("BLOB_UNKNOWN"),
    }
}

fn send_blob(asked: &Asked, knobs: &Knobs, blob: Bytes, digest: &str) -> Answer {
    let length = blob.len();
    let range = asked.line("range").filter(|range| range.starts_with("bytes=") && !range.contains(','));
    let mut answer = match range.map(|range| parse_range(range, length)) {
        None => Answer::new(blob),
        Some(Some((start, end))) => {
            let mut answer = empty(StatusCode::PARTIAL_CONTENT);
            set(&mut answer, "content-range", &format!("bytes {start}-{}/{length}", end - 1));
            *answer.body_mut() = blob.slice(start..end);
            answer
        }
        Some(None) => {
            let mut answer = empty(StatusCode::RANGE_NOT_SATISFIABLE);
            set(&mut answer, "content-range", &format!("bytes */{length}"));
            answer
        }
    };
    set(&mut answer, "content-type", "application/octet-stream");
    set(&mut answer, "accept-ranges", "bytes");
    named(&mut answer, digest);
    for (name, value) in &knobs.blob_headers {
        let name = http::HeaderName::try_from(name).expect("a valid name");
        answer.headers_mut().append(name, value.parse().expect("a valid value"));
    }
    answer
}

/// One step of an upload: POST begins it (and may end it at once), PATCH goes on, PUT ends it.
fn upload(asked: &Asked, state: &State, name: &str, session: &str) -> Answer {
    let ending = asked.parameter("digest");
    if asked.head.method == Method::POST {
        // A mount is answered as if the blob were not there: the client uploads it.
        let session = state.store().fresh_name();
        state.store().uploads.insert(session.clone(), asked.body.to_vec());
        return match ending {
            Some(digest) => finish(state, name, &session, &digest),
            None => under_way(state, name, &session, asked.body.len()),
        };
    }
    let mut store = state.store();
    let Some(content) = store.uploads.get_mut(session) else { return unknown("BLOB_UPLOAD_UNKNOWN") };
    match asked.head.method {
        Method::PATCH | Method::PUT => {
            let start = asked.line("content-range").and_then(|range| range.split('-').next()?.parse::<usize>().ok());
            if start.is_some_and(|start| start != content.len()) {
                return error(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", "the piece is out of order");
            }
            content.extend_from_slice(&asked.body);
            let length = content.len();
            drop(store);
            match ending {
                Some(digest) if asked.head.method == Method::PUT => finish(state, name, session, &digest),
                _ => under_way(state, name, session, length),
            }
        }
        Method::GET => {
            let length = content.len();
            drop(store);
            let mut answer = under_way(state, name, session, length);
            *answer.status_mut() = StatusCode::NO_CONTENT;
            answer
        }
        Method::DELETE => {
            store.uploads.remove(session);
            empty(StatusCode::NO_CONTENT)
        }
        _ => error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "the operation is unsupported"),
    }
}

fn under_way(state: &State, name: &str, session: &str, length: usize) -> Answer {
    let mut answer = empty(StatusCode::ACCEPTED);
    let state_of_upload = format!("/v2/{name}/blobs/uploads/{session}?_state=s1");
    set(&mut answer, "location", &own_url(state, &state_of_upload));
    set(&mut answer, "range", &format!("0-{}", length.saturating_sub(1)));
    set(&mut answer, "docker-upload-uuid", session);
    answer
}

fn finish(state: &State, name: &str, session: &str, wanted: &str) -> Answer {
    let content = state.store().uploads.remove(session).unwrap_or_default();
    if digest(&content) != wanted {
        return error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "the digest is not that of the content");
    }
    state.store().put_blob(name, content.into());
    created(state, &format!("/v2/{name}/blobs/{wanted}"), wanted)
}

fn tags(asked: &Asked, state: &State, knobs: &Knobs, name: &str) -> Answer {
    let last = asked.parameter("last").unwrap_or_default();
    let size = asked.parameter("n").and_then(|n| n.parse().ok()).unwrap_or(knobs.page_size);
    let mut tags = state.store().tags(name);
    tags.retain(|tag| *tag > last);
    let more = tags.len() > size;
    tags.truncate(size);
    let mut answer = of_json(StatusCode::OK, &json!({ "name": name, "tags": tags }));
    if let (true, Some(last)) = (more, tags.last()) {
        let next = own_url(state, &format!("/v2/{name}/tags/list?n={size}&last={last}"));
        set(&mut answer, "link", &format!("<{next}>; rel=\"next\""));
    }
    answer
}
