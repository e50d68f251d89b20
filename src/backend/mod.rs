//! Back-to-source: reading a content, or a range of it, from its origin.
//!
//! A [`SourceRequest`] is what the client asked for without what is only between it and us; [`Backend::get`] adds the
//! range and the version that is expected, follows redirects where the request says so, and gives back the head of the
//! answer with the body still under way. Judging the answer (is it the range? the version?) is the caller's part.
//!
//! **Credentials go only to the origin they were given for**: a redirect to another one is followed without them. Each
//! hop is a request of [`HttpClient`], so the destination policy holds for each.

mod redirect;
mod response;

use std::fmt;

use http::header::{IF_RANGE, RANGE, SET_COOKIE};
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use http_body_util::BodyExt as _;

use damselfly_core::Validators;

use crate::net::{HttpClient, NetError, empty_body};

pub use response::{SourceResponse, SourceSpan, may_be_stored};

/// How many redirects of one request are followed; the next one is given back as the answer.
pub const MAX_REDIRECTS: usize = 5;

/// What to ask the source for. `Debug` shows neither header values nor the query.
#[derive(Clone, Default)]
pub struct SourceRequest {
    /// The absolute URL.
    pub uri: Uri,
    /// Without hop-by-hop lines, `Range`, conditionals and `X-Dragonfly-*`.
    pub headers: HeaderMap,
    /// Whether redirects are followed here (registry blobs behind a CDN) rather than given back.
    pub follow_redirects: bool,
    /// Whether another host has named the URL, rather than a client of this one.
    pub for_others: bool,
}

impl SourceRequest {
    /// A request whose redirects are given back as they are.
    pub const fn new(uri: Uri, headers: HeaderMap) -> Self {
        Self { uri, headers, follow_redirects: false, for_others: false }
    }

    /// The same request; redirects are followed.
    #[must_use]
    pub fn following_redirects(self) -> Self {
        Self { follow_redirects: true, ..self }
    }

    /// The same request, on behalf of another host.
    #[must_use]
    pub fn for_others(self) -> Self {
        Self { for_others: true, ..self }
    }
}

impl fmt::Debug for SourceRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers.keys().map(http::HeaderName::as_str).collect();
        f.debug_struct("SourceRequest")
            .field("host", &self.uri.host())
            .field("path", &self.uri.path())
            .field("headers", &names)
            .field("follow_redirects", &self.follow_redirects)
            .finish_non_exhaustive()
    }
}

/// Asks sources. Clones share the client's connections.
#[derive(Clone, Debug)]
pub struct Backend {
    client: HttpClient,
}

impl Backend {
    /// Over this client.
    pub const fn new(client: HttpClient) -> Self {
        Self { client }
    }

    /// Asks for everything, or for the bytes from `range.0` up to but without `range.1` (or the end); of the version
    /// `expect`, else for everything of the version there is.
    ///
    /// The source may ignore the range or answer another one: see [`SourceResponse::span`].
    ///
    /// # Errors
    /// There is no answer.
    pub async fn get(
        &self,
        request: &SourceRequest,
        range: Option<(u64, Option<u64>)>,
        expect: Option<&Validators>,
    ) -> Result<SourceResponse, NetError> {
        let mut uri = request.uri.clone();
        let mut headers = request.headers.clone();
        if let Some((start, end)) = range {
            headers.insert(RANGE, range_value(start, end));
            if let Some(version) = expect.and_then(version_value) {
                headers.insert(IF_RANGE, version);
            }
        }
        let client = if request.for_others { self.client.for_others() } else { &self.client };
        let mut followed = 0;
        loop {
            let mut response = ask(client, &uri, &headers).await?;
            if followed > 0 {
                // The client asked another server than the one that sets them.
                response.headers.remove(SET_COOKIE);
                response.elsewhere = !redirect::same_origin(&request.uri, &uri);
            }
            if !request.follow_redirects || followed == MAX_REDIRECTS {
                return Ok(response);
            }
            let Some(next) = redirect::target(&uri, response.status, &response.headers) else {
                return Ok(response);
            };
            redirect::forget_credentials(&uri, &next, &mut headers);
            uri = next;
            followed += 1;
        }
    }
}

async fn ask(client: &HttpClient, uri: &Uri, headers: &HeaderMap) -> Result<SourceResponse, NetError> {
    let mut request = Request::new(empty_body());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = uri.clone();
    *request.headers_mut() = headers.clone();
    let (head, body) = client.send(request).await?.into_parts();
    let body = body.map_err(Into::into).boxed_unsync();
    Ok(SourceResponse {
        status: head.status,
        version: head.version,
        headers: head.headers,
        extensions: head.extensions,
        body,
        elsewhere: false,
    })
}

/// `end` is exclusive here and inclusive in the header.
fn range_value(start: u64, end: Option<u64>) -> HeaderValue {
    let text = match end {
        Some(end) => format!("bytes={start}-{}", end.saturating_sub(1)),
        None => format!("bytes={start}-"),
    };
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("bytes=0-"))
}

/// The strong validator that `If-Range` takes: the tag, else the date.
fn version_value(version: &Validators) -> Option<HeaderValue> {
    version.strong_etag().or(version.last_modified.as_deref())?.parse().ok()
}

#[cfg(test)]
mod tests;
