//! Manifests: small, asked for by every host at the start of every pull.
//!
//! - **Identical requests in flight are one**: the same URL, `Accept` and credentials.
//! - **By a tag the registry is asked each time**, with the validator of the manifest that it gave before; so nothing is
//!   older than its answer. An operator may allow an older one where the registry fails (`staleIfError`).
//! - **By a digest what is kept is given**, if it has that digest and the registry says that this caller may have it. What
//!   it gave to anybody needs no question, but in that repository only: in another one it may not be, and whoever pushes
//!   there asks by `HEAD`, which is always the registry's to answer.
//!
//! What is kept is in memory, within bounds.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use damselfly_core::Digest;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header, request};
use http_body_util::{BodyExt as _, Full, Limited};
use moka::future::Cache;
use tokio::time::{Instant, timeout};

use super::access::Record;
use super::authorize::{Denied, Held};
use super::bypass::Bypass;
use super::config::PrivateContent;
use super::fault::Fault;
use super::forward::outbound;
use super::handler::Inner;
use super::route::Target;
use super::token::is_remote;
use crate::backend::may_be_stored;
use crate::net::{Body, empty_body};
use crate::registry::request_key;

/// The most bytes of a manifest, as its clients have it.
const MAX_MANIFEST: usize = 4 << 20;
/// The most bytes of all manifests that are kept by digest; as many by tag.
const MAX_KEPT: u64 = 16 << 20;
/// How manifests are asked for.
const PLAIN: HeaderValue = HeaderValue::from_static("identity");
/// What a kept manifest takes besides its body.
const OVERHEAD: usize = 2048;

/// A registry's answer to a request for a manifest, whole.
struct Kept {
    status: StatusCode,
    version: http::Version,
    headers: HeaderMap,
    body: Bytes,
    came: Instant,
    /// The repository in which the registry gave it to a caller without credentials.
    public_in: Option<String>,
}

impl Kept {
    fn weight(&self) -> u32 {
        u32::try_from(self.body.len() + OVERHEAD).unwrap_or(u32::MAX)
    }
}

/// Why a manifest is not had.
#[derive(Clone)]
enum Missed {
    Fault(Fault),
    /// It is longer than a manifest may be, or comes slower: it is passed on as it comes.
    Direct,
}

/// What is kept of manifests, and the requests in flight.
pub(super) struct Manifests {
    by_digest: Cache<Digest, Arc<Kept>>,
    /// By the request, credentials included.
    by_tag: Cache<[u8; 32], Arc<Kept>>,
    /// Nothing stays in it: it makes identical requests in flight one.
    in_flight: Cache<[u8; 32], Arc<Kept>>,
}

impl Manifests {
    pub(super) fn new() -> Self {
        Self {
            by_digest: Cache::builder().weigher(|_, kept: &Arc<Kept>| kept.weight()).max_capacity(MAX_KEPT).build(),
            by_tag: Cache::builder().weigher(|_, kept: &Arc<Kept>| kept.weight()).max_capacity(MAX_KEPT).build(),
            in_flight: Cache::builder().time_to_live(Duration::ZERO).build(),
        }
    }
}

impl Inner {
    /// A manifest by its digest, or by a tag.
    pub(super) async fn manifest(
        &self,
        parts: request::Parts,
        target: Target,
        digest: Option<Digest>,
        record: &mut Option<Record>,
    ) -> Result<Response<Body>, Fault> {
        if let Some(record) = record {
            record.bypasses(Bypass::Manifest);
        }
        if let Some(digest) = digest.filter(|_| parts.method == Method::GET)
            && let Some(kept) = self.manifests.by_digest.get(&digest).await
            && self.may_have_manifest(&parts, &target, digest, &kept).await?
        {
            self.metrics.manifest("held");
            return Ok(self.respond(&parts.method, &kept, &target, false));
        }
        let key = request_key(&parts.method, &target.uri, &parts.headers, &[], is_remote(&parts));
        let mut asked = false;
        let ask = async {
            asked = true;
            self.ask_for_manifest(&parts, &target, key, digest).await.map(Arc::new)
        };
        match self.manifests.in_flight.try_get_with(key, ask).await.map_err(|missed| (*missed).clone()) {
            Ok(kept) => {
                if !asked {
                    self.metrics.manifest("shared");
                }
                Ok(self.respond(&parts.method, &kept, &target, asked))
            }
            Err(Missed::Fault(fault)) => Err(fault),
            Err(Missed::Direct) => Ok(self.pass(self.fetch_for_anybody(&parts, &target).await?, &target)),
        }
    }

    /// Whether this caller may have a manifest that is kept. A no is the registry's to tell.
    async fn may_have_manifest(
        &self,
        parts: &request::Parts,
        target: &Target,
        digest: Digest,
        kept: &Kept,
    ) -> Result<bool, Fault> {
        if kept.public_in.is_some() && kept.public_in == place(target) {
            return Ok(true);
        }
        let held = Held { digest, length: kept.body.len() as u64 };
        let key = self.authorizer.key(parts, target, held.length);
        let mut headers = outbound(parts, target, &self.config().id);
        headers.insert(header::ACCEPT_ENCODING, PLAIN);
        if let Some(token) = self.token_for_anybody(parts, target).await {
            headers.insert(header::AUTHORIZATION, token);
        }
        match self.authorizer.ask(self.client_for(parts), key, target, headers, held).await {
            Ok(()) => Ok(true),
            Err(Denied::Registry(_)) => Ok(false),
            Err(Denied::Unreachable(error)) => Err(Fault::from(&error)),
        }
    }

    /// Asks the registry, and keeps what it answers.
    async fn ask_for_manifest(
        &self,
        parts: &request::Parts,
        target: &Target,
        key: [u8; 32],
        digest: Option<Digest>,
    ) -> Result<Kept, Missed> {
        let before = self.manifests.by_tag.get(&key).await;
        let mut asking = parts.clone();
        // Those who share the answer may take other encodings, and the digest is that of the manifest as it is.
        asking.headers.insert(header::ACCEPT_ENCODING, PLAIN);
        if let Some(etag) = before.as_ref().and_then(|kept| kept.headers.get(header::ETAG)) {
            asking.headers.insert(header::IF_NONE_MATCH, etag.clone());
        }
        let answer = match (self.fetch_for_anybody(&asking, target).await, &before) {
            (Ok(answer), Some(kept)) if answer.status() == StatusCode::NOT_MODIFIED => {
                self.metrics.manifest("revalidated");
                return Ok(self.keep_again(key, kept).await);
            }
            (Ok(answer), Some(kept)) if answer.status().is_server_error() && self.is_fresh_enough(kept) => {
                self.metrics.manifest("stale");
                return Ok(kept.again(kept.came));
            }
            (Err(_), Some(kept)) if self.is_fresh_enough(kept) => {
                self.metrics.manifest("stale");
                return Ok(kept.again(kept.came));
            }
            (Ok(answer), _) => answer,
            (Err(fault), _) => return Err(Missed::Fault(fault)),
        };
        self.metrics.manifest("asked");
        let (head, body) = answer.into_parts();
        let length = head.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if length.is_some_and(|length: usize| length > MAX_MANIFEST) && parts.method == Method::GET {
            return Err(Missed::Direct);
        }
        let body = match timeout(self.config().first_byte, Limited::new(body, MAX_MANIFEST).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Err(_) => return Err(Missed::Direct),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => return Err(Missed::Direct),
            Ok(Err(error)) => {
                let sentence = format!("The registry's answer broke off: {error}.");
                return Err(Missed::Fault(Fault::upstream(StatusCode::BAD_GATEWAY, sentence)));
            }
        };
        // What stands in a query may be what opened it.
        let opened = target.with_credentials || target.uri.query().is_some();
        let public = !opened && !self.routes.has_certificate(&target.uri);
        let public_in = place(target).filter(|_| public);
        let kept = Kept {
            status: head.status,
            version: head.version,
            headers: head.headers,
            body,
            came: Instant::now(),
            public_in,
        };
        if kept.status == StatusCode::OK && parts.method == Method::GET {
            self.keep(parts, target, key, digest, &kept).await;
        }
        Ok(kept)
    }

    async fn keep(&self, parts: &request::Parts, target: &Target, key: [u8; 32], named: Option<Digest>, kept: &Kept) {
        if self.config().private_content == PrivateContent::Off && kept.public_in.is_none() {
            return;
        }
        if !may_be_stored(&kept.headers) {
            return;
        }
        let mut stored = kept.again(kept.came);
        stored.headers.remove(header::SET_COOKIE);
        let stored = Arc::new(stored);
        let said = || kept.headers.get("docker-content-digest")?.to_str().ok()?.parse().ok();
        if let Some(digest) = named.or_else(said).filter(|digest: &Digest| digest.is_of(&kept.body)) {
            self.manifests.by_digest.insert(digest, stored.clone()).await;
            if named.is_some() {
                let length = kept.body.len() as u64;
                self.authorizer.admit(self.authorizer.key(parts, target, length)).await;
            }
        }
        if named.is_none() {
            self.manifests.by_tag.insert(key, stored).await;
        }
    }

    async fn keep_again(&self, key: [u8; 32], kept: &Arc<Kept>) -> Kept {
        self.manifests.by_tag.insert(key, Arc::new(kept.again(Instant::now()))).await;
        kept.again(Instant::now())
    }

    fn is_fresh_enough(&self, kept: &Kept) -> bool {
        kept.came.elapsed() < self.config().stale_if_error
    }

    /// The answer to one of those who asked. Only `the_asker` is given what is for one client alone.
    fn respond(&self, method: &Method, kept: &Kept, target: &Target, the_asker: bool) -> Response<Body> {
        let mut response = Response::new(());
        *response.status_mut() = kept.status;
        *response.version_mut() = kept.version;
        *response.headers_mut() = kept.headers.clone();
        let headers = response.headers_mut();
        if !the_asker {
            headers.remove(header::SET_COOKIE);
        }
        let body = if *method == Method::HEAD {
            if !kept.body.is_empty() {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(kept.body.len()));
            }
            empty_body()
        } else {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(kept.body.len()));
            Full::new(kept.body.clone()).map_err(|never| match never {}).boxed_unsync()
        };
        self.passed(response.into_parts().0, body, target)
    }
}

/// The repository that a request is about, and where it is.
fn place(target: &Target) -> Option<String> {
    let (scheme, authority) = (target.uri.scheme_str()?, target.uri.authority()?);
    Some(format!("{scheme}://{authority}/{}", target.repository.as_deref()?))
}

impl Kept {
    /// The same, said by the registry at `came`.
    fn again(&self, came: Instant) -> Self {
        Self {
            status: self.status,
            version: self.version,
            headers: self.headers.clone(),
            body: self.body.clone(),
            came,
            public_in: self.public_in.clone(),
        }
    }
}
