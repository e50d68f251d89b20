//! The head of a source's answer, and what it says of the content. The body is still under way.

use std::fmt;

use damselfly_core::Validators;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, ETAG, LAST_MODIFIED};
use http::{HeaderMap, HeaderName, StatusCode, Version};
use http_content_range::ContentRange;

use crate::net::Body;

/// A source's answer.
pub struct SourceResponse {
    /// Its status.
    pub status: StatusCode,
    /// The protocol it came by.
    pub version: Version,
    /// Its headers, as they came.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Body,
}

/// Which bytes of the content a body carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceSpan {
    /// The first byte's offset.
    pub start: u64,
    /// The offset behind the last byte.
    pub end: u64,
    /// The whole content's length.
    pub total: u64,
}

impl SourceResponse {
    /// What tells this version of the content from others. A weak `ETag` does not: its bytes may differ.
    pub fn validators(&self) -> Validators {
        let text = |name: HeaderName| self.headers.get(name)?.to_str().ok().map(str::to_owned);
        Validators { etag: text(ETAG).filter(|tag| !tag.starts_with("W/")), last_modified: text(LAST_MODIFIED) }
    }

    /// The bytes that the body carries: all for a 200 with a length, the `Content-Range` for a 206 that says the whole
    /// length; else `None`.
    pub fn span(&self) -> Option<SourceSpan> {
        let length = self.length();
        match self.status {
            StatusCode::OK => length.map(|total| SourceSpan { start: 0, end: total, total }),
            StatusCode::PARTIAL_CONTENT => {
                let value = self.headers.get(CONTENT_RANGE)?.to_str().ok()?;
                let Some(ContentRange::Bytes(range)) = ContentRange::parse(value) else { return None };
                let span = SourceSpan {
                    start: range.first_byte,
                    end: range.last_byte.checked_add(1)?,
                    total: range.complete_length,
                };
                let sound = span.start < span.end && span.end <= span.total;
                (sound && length.is_none_or(|length| length == span.end - span.start)).then_some(span)
            }
            _ => None,
        }
    }

    /// Whether the source lets others than the asker keep its answer.
    pub fn may_be_stored(&self) -> bool {
        may_be_stored(&self.headers)
    }

    fn length(&self) -> Option<u64> {
        let text = self.headers.get(CONTENT_LENGTH)?.to_str().ok()?;
        text.bytes().all(|digit| digit.is_ascii_digit()).then(|| text.parse().ok())?
    }
}

/// Whether an answer with these headers may be kept for others than the asker: neither `no-store` nor `private` (RFC 9111,
/// 3).
pub fn may_be_stored(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(CACHE_CONTROL).iter().filter_map(|line| line.to_str().ok());
    !lines.flat_map(|line| line.split(',')).any(|directive| {
        let name = directive.split('=').next().unwrap_or_default().trim();
        name.eq_ignore_ascii_case("no-store") || name.eq_ignore_ascii_case("private")
    })
}

impl fmt::Debug for SourceResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceResponse")
            .field("status", &self.status)
            .field("span", &self.span())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::empty_body;

    fn response(status: u16, headers: &[(&'static str, &'static str)]) -> SourceResponse {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let status = StatusCode::from_u16(status).unwrap();
        SourceResponse { status, version: Version::HTTP_11, headers: map, body: empty_body() }
    }

    #[test]
    fn a_span_is_known_only_where_the_head_is_sound() {
        for (status, range, length, span) in [
            (200, None, Some("9"), Some((0, 9, 9))),
            (200, None, Some("0"), Some((0, 0, 0))),
            (200, None, Some("+9"), None),
            (200, None, None, None),
            (206, Some("bytes 2-4/9"), Some("3"), Some((2, 5, 9))),
            (206, Some("bytes 2-4/9"), None, Some((2, 5, 9))),
            (206, Some("bytes 2-4/9"), Some("4"), None),
            (206, Some("bytes 2-4/*"), Some("3"), None),
            (206, Some("bytes 2-9/9"), Some("8"), None),
            (206, Some("bytes 0-18446744073709551615/9"), None, None),
            (206, None, Some("3"), None),
            (416, Some("bytes */9"), Some("0"), None),
            (404, None, Some("9"), None),
        ] {
            let mut headers = Vec::new();
            headers.extend(range.map(|range| ("content-range", range)));
            headers.extend(length.map(|length| ("content-length", length)));
            let want = span.map(|(start, end, total)| SourceSpan { start, end, total });
            assert_eq!(response(status, &headers).span(), want, "{status} {headers:?}");
        }
    }

    #[test]
    fn some_answers_are_for_one_client_only() {
        for (lines, want) in [
            (&["public, max-age=60"][..], true),
            (&["no-cache"], true),
            (&["max-age=1, Private"], false),
            (&["private=\"x\""], false),
            (&["public", "no-store"], false),
            (&[], true),
        ] {
            let lines: Vec<_> = lines.iter().map(|&line| ("cache-control", line)).collect();
            assert_eq!(response(200, &lines).may_be_stored(), want, "{lines:?}");
        }
    }

    #[test]
    fn a_weak_tag_is_no_validator() {
        let weak =
            response(200, &[("etag", "W/\"a\""), ("last-modified", "Sat, 01 Jan 2000 00:00:00 GMT")]).validators();
        assert_eq!((weak.etag, weak.last_modified.is_some()), (None, true));
        assert_eq!(response(200, &[("etag", "\"a\"")]).validators().etag.as_deref(), Some("\"a\""));
    }
}
