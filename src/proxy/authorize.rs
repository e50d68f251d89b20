//! May this caller have what we hold? Its registry is asked, now, in the caller's own words.
//!
//! A content that is named by its digest may be here, or with a neighbour, because somebody else was allowed to have
//! it. So before a byte of it goes to a caller, one of these holds:
//! - the registry answered this very request with the content ([`crate::p2p::Admission`]);
//! - the registry gave it to a caller without credentials: then it is public;
//! - the registry said yes to a question with the caller's own headers, a moment ago or just now.
//!
//! The question is a `HEAD`. It is answered by a 200 that names the very content (its digest, or its length), and by a
//! redirect to a URL that is signed. **A status alone is no yes**: many a server sends those whom it does not know to a
//! page where they can log in, with a 200 or a redirect. Where the answer says less, or `HEAD` is refused, the first byte
//! is fetched as a download would fetch it, and the answer has to say how long the content is.
//!
//! A yes is kept for a while for the same credentials, registry, repository, digest and length; of the credentials only
//! a hash is kept. Identical questions in flight are one. **A no is never kept**, and the caller hears it from the
//! registry itself.

use std::sync::Arc;
use std::time::Duration;

use damselfly_core::Digest;
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, Uri, header, request};
use moka::future::Cache;
use sha2::{Digest as _, Sha256};

use super::headers::is_credential;
use super::metrics::Metrics;
use super::route::Target;
use super::rules::bears_signature;
use super::token::is_remote;
use crate::backend::{Backend, SourceRequest};
use crate::net::{HttpClient, NetError, ResponseBody, empty_body};

/// How a registry's answer says which content it is.
pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Answers that are kept; the least used goes first.
const MAX_VERDICTS: u64 = 65_536;

/// Who asks, for what: equal keys have equal answers. Of credentials there is only a hash, with a key of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct VerdictKey([u8; 32]);

/// The content that a caller asks for, as it is held here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) digest: Digest,
    /// In bytes.
    pub(super) length: u64,
}

/// Why a caller may not have a content.
#[derive(Clone, Debug)]
pub(super) enum Denied {
    /// The registry says no, or nothing that is an answer; with its challenge where it asks for credentials.
    Registry(Option<Box<HeaderMap>>),
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

    /// The key of a question about what `target` names. The length is in it because an answer of another length was not
    /// about this content, whatever it was.
    pub(super) fn key(&self, parts: &request::Parts, target: &Target, length: u64) -> VerdictKey {
        let mut hasher = Sha256::new();
        let mut add = |part: &[u8]| {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        };
        add(&self.secret);
        add(&length.to_be_bytes());
        // Clients on other hosts may not ask every server.
        add(&[u8::from(is_remote(parts))]);
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
        held: Held,
    ) -> Result<(), Denied> {
        let mut asked = false;
        let question = async {
            asked = true;
            question(client, target, headers, held).await
        };
        let verdict = Box::pin(self.kept.try_get_with(key, question)).await;
        self.metrics.authorization(match (&verdict, asked) {
            (Ok(()), false) => "kept",
            (Ok(()), true) => "granted",
            (Err(denied), _) => match &**denied {
                Denied::Registry(_) => "denied",
                Denied::Unreachable(_) => "unreachable",
            },
        });
        verdict.map_err(Arc::unwrap_or_clone)
    }
}

async fn question(client: &HttpClient, target: &Target, headers: HeaderMap, held: Held) -> Result<(), Denied> {
    let answer = head(client, target, headers.clone()).await.map_err(Denied::Unreachable)?;
    let unclear = match answer.status() {
        status if status.is_success() && held.is_named_by(answer.headers()) => return Ok(()),
        status if status.is_redirection() && leads_to_signed(answer.headers()) => return Ok(()),
        StatusCode::UNAUTHORIZED => return Err(Denied::Registry(Some(Box::new(answer.into_parts().0.headers)))),
        // A server that does not know HEAD, or not for this.
        StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => true,
        status => status.is_success() || status.is_redirection(),
    };
    if !unclear {
        return Err(Denied::Registry(None));
    }
    let request = SourceRequest::new(target.uri.clone(), headers).following_redirects();
    let answer = Backend::new(client.clone()).get(&request, Some((0, Some(1))), None).await;
    let span = answer.map_err(Denied::Unreachable)?.span();
    if span.is_some_and(|span| span.total == held.length) { Ok(()) } else { Err(Denied::Registry(None)) }
}

impl Held {
    /// Whether an answer with these headers is about this content: by its digest, else by its length.
    fn is_named_by(&self, answer: &HeaderMap) -> bool {
        let text = |name| answer.get(name)?.to_str().ok();
        match (text(&CONTENT_DIGEST), text(&header::CONTENT_LENGTH)) {
            (Some(digest), _) => digest.parse() == Ok(self.digest),
            (None, Some(length)) => length.parse() == Ok(self.length),
            (None, None) => false,
        }
    }
}

/// Whether a redirect leads to a URL that is signed for the caller.
fn leads_to_signed(answer: &HeaderMap) -> bool {
    let location = answer.get(header::LOCATION).and_then(|location| location.to_str().ok());
    location.and_then(|location| location.parse::<Uri>().ok()).is_some_and(|uri| bears_signature(&uri))
}

/// The head of what the registry says to a `HEAD`.
async fn head(client: &HttpClient, target: &Target, headers: HeaderMap) -> Result<Response<ResponseBody>, NetError> {
    let mut request = Request::new(empty_body());
    *request.method_mut() = Method::HEAD;
    *request.uri_mut() = target.uri.clone();
    *request.headers_mut() = headers;
    client.send(request).await
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn target(uri: &str) -> Target {
        Target::new(uri.parse().unwrap(), None)
    }

    #[test]
    fn only_the_same_caller_for_the_same_content_has_the_same_key() {
        let authorizer = Authorizer::new(Duration::from_secs(60), Metrics::default());
        let key = |uri: &str, lines: &[(&'static str, &'static str)]| {
            let mut request = Request::new(());
            for &(name, value) in lines {
                request.headers_mut().append(name, HeaderValue::from_static(value));
            }
            authorizer.key(&request.into_parts().0, &target(uri), 9)
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

    #[test]
    fn an_answer_names_the_content_by_its_digest_or_its_length() {
        let held = Held { digest: format!("sha256:{}", "ab".repeat(32)).parse().unwrap(), length: 9 };
        let (this, other) = (held.digest.to_string(), format!("sha256:{}", "cd".repeat(32)));
        for (digest, length, names) in [
            (Some(&this), Some("9"), true),
            // A manifest whose answer is compressed.
            (Some(&this), Some("5"), true),
            (Some(&other), Some("9"), false),
            (None, Some("9"), true),
            (None, Some("5"), false),
            (None, Some("many"), false),
            (None, None, false),
        ] {
            let mut headers = HeaderMap::new();
            headers.extend(digest.map(|digest| (CONTENT_DIGEST, digest.parse().unwrap())));
            headers.extend(length.map(|length| (header::CONTENT_LENGTH, length.parse().unwrap())));
            assert_eq!(held.is_named_by(&headers), names, "{headers:?}");
        }
    }

    #[test]
    fn a_redirect_is_a_yes_only_where_it_is_signed() {
        for (location, signed) in [
            ("https://s/x?X-Amz-Signature=a", true),
            ("/x?Expires=1&Signature=b&Key-Pair-Id=c", true),
            ("https://login/?rd=%2Fv2%2Fa&state=b&code_challenge=c&nonce=d&token=e", false),
            ("https://login/?SAMLRequest=a&SigAlg=b&Signature=c", false),
            ("/login", false),
            ("::", false),
        ] {
            let headers = HeaderMap::from_iter([(header::LOCATION, location.parse().unwrap())]);
            assert_eq!(leads_to_signed(&headers), signed, "{location}");
        }
        assert!(!leads_to_signed(&HeaderMap::new()));
    }
}
