//! May this caller have what we hold? Its registry is asked, now, in the caller's own words.
//!
//! A content that is named by its digest may be here, or with a neighbour, because somebody else was allowed to have
//! it. So before a byte of it goes to a caller, one of these holds:
//! - the registry answered this very request with the content ([`crate::p2p::Admission`]);
//! - the registry gave it to a caller without credentials: then it is public;
//! - the registry said yes to a question with the caller's own headers, a moment ago or just now.
//!
//! The question is a `HEAD`, or one byte where that is refused. A redirect is a yes: registries sign the URLs that they
//! send callers to. A yes is kept for a while for the same credentials, registry, repository and digest; of the
//! credentials only a hash is kept. Identical questions in flight are one. **A no is never kept**, and the caller hears
//! it from the registry itself.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header, request};
use moka::future::Cache;
use sha2::{Digest as _, Sha256};

use super::headers::is_credential;
use super::metrics::Metrics;
use super::route::Target;
use crate::net::{ClientConnection, HttpClient, NetError, empty_body};

/// Answers that are kept; the least used goes first.
const MAX_VERDICTS: u64 = 65_536;

/// Who asks, for what: equal keys have equal answers. Of credentials there is only a hash, with a key of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct VerdictKey([u8; 32]);

/// Why a caller may not have a content.
#[derive(Clone, Debug)]
pub(super) enum Denied {
    /// The registry says no, or nothing that is an answer.
    Registry,
    /// The registry cannot be asked.
    Unreachable(NetError),
}

/// Asks registries and keeps their yes.
pub(super) struct Authorizer {
    kept: Cache<VerdictKey, ()>,
    secret: [u8; 16],
    metrics: Metrics,
}

impl Authorizer {
    /// A yes is kept for `ttl`.
    pub(super) fn new(ttl: Duration, metrics: Metrics) -> Self {
        let kept = Cache::builder().max_capacity(MAX_VERDICTS).time_to_live(ttl).build();
        let mut secret = [0; 16];
        fastrand::Rng::new().fill(&mut secret);
        Self { kept, secret, metrics }
    }

    /// The key of a question about what `target` names.
    pub(super) fn key(&self, parts: &request::Parts, target: &Target) -> VerdictKey {
        let mut hasher = Sha256::new();
        let mut add = |part: &[u8]| {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        };
        add(&self.secret);
        // Clients on other hosts may not ask every server.
        let remote = parts.extensions.get::<ClientConnection>().is_some_and(ClientConnection::is_remote);
        add(&[u8::from(remote)]);
        // The path has repository and digest in it.
        add(target.uri.scheme_str().unwrap_or_default().as_bytes());
        add(target.uri.authority().map_or("", |authority| authority.as_str()).to_ascii_lowercase().as_bytes());
        add(target.uri.path().as_bytes());
        add(target.uri.query().unwrap_or_default().as_bytes());
        let mut credentials: Vec<_> = parts.headers.iter().filter(|(name, _)| is_credential(name)).collect();
        credentials.sort_by(|a, b| (a.0.as_str(), a.1.as_bytes()).cmp(&(b.0.as_str(), b.1.as_bytes())));
        for (name, value) in credentials {
            add(name.as_str().as_bytes());
            add(value.as_bytes());
        }
        VerdictKey(hasher.finalize().into())
    }

    /// Notes that the registry has just given the content to this caller.
    pub(super) async fn admit(&self, key: VerdictKey) {
        self.kept.insert(key, ()).await;
    }

    /// Whether the caller may have the content: a kept yes, or the registry's word now.
    pub(super) async fn ask(
        &self,
        client: &HttpClient,
        key: VerdictKey,
        target: &Target,
        headers: HeaderMap,
    ) -> Result<(), Denied> {
        let mut asked = false;
        let question = async {
            asked = true;
            question(client, target, headers).await
        };
        let verdict = self.kept.try_get_with(key, question).await;
        self.metrics.authorization(match (&verdict, asked) {
            (Ok(()), false) => "kept",
            (Ok(()), true) => "granted",
            (Err(denied), _) => match &**denied {
                Denied::Registry => "denied",
                Denied::Unreachable(_) => "unreachable",
            },
        });
        verdict.map_err(Arc::unwrap_or_clone)
    }
}

async fn question(client: &HttpClient, target: &Target, mut headers: HeaderMap) -> Result<(), Denied> {
    let answer = send(client, Method::HEAD, target, headers.clone()).await?;
    if is_yes(answer) {
        return Ok(());
    }
    // A server that does not know HEAD, or not for this.
    if !matches!(answer, StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED) {
        return Err(Denied::Registry);
    }
    headers.insert(header::RANGE, HeaderValue::from_static("bytes=0-0"));
    let answer = send(client, Method::GET, target, headers).await?;
    if is_yes(answer) { Ok(()) } else { Err(Denied::Registry) }
}

fn is_yes(status: StatusCode) -> bool {
    status.is_success() || matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// The status of the answer. Its body, if there is one, is left unread and its connection with it.
async fn send(client: &HttpClient, method: Method, target: &Target, headers: HeaderMap) -> Result<StatusCode, Denied> {
    let mut request = Request::new(empty_body());
    *request.method_mut() = method;
    *request.uri_mut() = target.uri.clone();
    *request.headers_mut() = headers;
    Ok(client.send(request).await.map_err(Denied::Unreachable)?.status())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(uri: &str) -> Target {
        Target { uri: uri.parse().unwrap(), mirror: None, keep_host: false }
    }

    #[test]
    fn only_the_same_caller_for_the_same_content_has_the_same_key() {
        let authorizer = Authorizer::new(Duration::from_secs(60), Metrics::default());
        let key = |uri: &str, lines: &[(&'static str, &'static str)]| {
            let mut request = Request::new(());
            for &(name, value) in lines {
                request.headers_mut().append(name, HeaderValue::from_static(value));
            }
            authorizer.key(&request.into_parts().0, &target(uri))
        };
        let one = key("https://r/v2/a/blobs/x", &[("authorization", "Bearer 1"), ("cookie", "c")]);
        assert_eq!(
            one,
            key("https://R/v2/a/blobs/x", &[("cookie", "c"), ("authorization", "Bearer 1"), ("accept", "x")])
        );
        for other in [
            key("https://r/v2/a/blobs/x", &[("authorization", "Bearer 2"), ("cookie", "c")]),
            key("https://r/v2/a/blobs/x", &[("authorization", "Bearer 1")]),
            key("https://r/v2/a/blobs/x", &[("cookie", "Bearer 1"), ("authorization", "c")]),
            key("https://r/v2/a/blobs/x", &[("authorization", "Bearer 1"), ("cookie", "c"), ("x-api-key", "k")]),
            key("https://r/v2/a/blobs/x", &[]),
            key("https://r/v2/b/blobs/x", &[("authorization", "Bearer 1"), ("cookie", "c")]),
            key("https://q/v2/a/blobs/x", &[("authorization", "Bearer 1"), ("cookie", "c")]),
            key("https://r/v2/a/blobs/x?q", &[("authorization", "Bearer 1"), ("cookie", "c")]),
            key("http://r/v2/a/blobs/x", &[("authorization", "Bearer 1"), ("cookie", "c")]),
        ] {
            assert_ne!(one, other);
        }
    }
}
