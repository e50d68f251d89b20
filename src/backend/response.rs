//! The head of a source's answer, and what it says of the content. The body is still under way.

use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use damselfly_core::Validators;
use futures_util::{StreamExt as _, stream};
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, LAST_MODIFIED};
use http::{Extensions, HeaderMap, HeaderName, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use http_content_range::ContentRange;

use crate::net::{Body, empty_body};

/// The first date that says something of a content, counted from 1970: 1981. Nix, Bazel, buildpacks and reproducible
/// archives date everything 1970 or 1980.
const FIRST_DATE: Duration = Duration::from_secs((11 * 365 + 3) * 24 * 60 * 60);

/// A source's answer.
pub struct SourceResponse {
    /// Its status.
    pub status: StatusCode,
    /// The protocol it came by.
    pub version: Version,
    /// Its headers, as they came.
    pub headers: HeaderMap,
    /// What the HTTP library tells besides: the reason phrase, how header names were written.
    pub extensions: Extensions,
    /// Its body.
    pub body: Body,
    /// Whether a redirect led to another origin than was asked, which gave it: what it says of credentials is its own.
    pub elsewhere: bool,
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
    /// What tells this version of the content from others. What cannot be read as what it should be is none: a tag that
    /// has nothing in it, a date that is no date, and one of before [`FIRST_DATE`], which build systems give to all that
    /// they make.
    pub fn validators(&self) -> Validators {
        let text = |name: HeaderName| {
            let mut lines = self.headers.get_all(name).iter();
            // Two of them contradict each other.
            let (Some(line), None) = (lines.next(), lines.next()) else { return None };
            line.to_str().ok().map(str::trim)
        };
        Validators {
            etag: text(ETAG).and_then(entity_tag),
            last_modified: text(LAST_MODIFIED).filter(|date| names_version(date)).map(str::to_owned),
        }
    }

    /// Whether this 200, which answers a request for one byte, carries the whole content. An origin that mixes the two
    /// up sends the byte alone; so a body of unknown length is looked at until it has more.
    pub async fn is_whole(&mut self) -> bool {
        if self.headers.contains_key(CONTENT_RANGE) {
            return false;
        }
        if let Some(length) = self.length() {
            return length > 1;
        }
        let (mut begun, mut bytes) = (Vec::new(), 0);
        while bytes <= 1 {
            let Some(frame) = self.body.frame().await else { return false };
            let failed = frame.is_err();
            bytes += frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, |data| data.len());
            begun.push(frame);
            // It breaks off with or without us.
            if failed {
                break;
            }
        }
        let rest = BodyStream::new(std::mem::replace(&mut self.body, empty_body()));
        self.body = StreamBody::new(stream::iter(begun).chain(rest)).boxed_unsync();
        true
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

    /// Whether this is a page for people: what gateways show to callers whom they do not know.
    pub fn is_page(&self) -> bool {
        let kind = self.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("text/html")
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

/// An entity tag that has something in it, also one whose quotes were forgotten: that one is taken for weak.
fn entity_tag(text: &str) -> Option<String> {
    let (weak, opaque) = text.strip_prefix("W/").map_or((false, text), |opaque| (true, opaque));
    let quoted = opaque.strip_prefix('"').and_then(|inner| inner.strip_suffix('"'));
    match quoted {
        Some("") => None,
        Some(inner) if !inner.contains('"') => Some(text.to_owned()),
        _ if opaque.trim_matches('"').is_empty() => None,
        _ if weak => Some(text.to_owned()),
        _ => Some(format!("W/{text}")),
    }
}

/// Whether a `Last-Modified` is a date that can tell versions apart.
fn names_version(date: &str) -> bool {
    httpdate::parse_http_date(date).is_ok_and(|date| date >= UNIX_EPOCH + FIRST_DATE)
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
        SourceResponse {
            status,
            version: Version::HTTP_11,
            headers: map,
            extensions: Extensions::new(),
            body: empty_body(),
            elsewhere: false,
        }
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
    fn validators_are_what_can_be_read_as_such() {
        const DATE: &str = "Sat, 01 Jan 2000 00:00:00 GMT";
        for (lines, etag, date) in [
            (&[("etag", "\"a\"")][..], Some("\"a\""), None),
            (&[("etag", " W/\"a\" ")], Some("W/\"a\""), None),
            (&[("etag", "a")], Some("W/a"), None),
            (&[("etag", "\"a")], Some("W/\"a"), None),
            (&[("etag", "\"a\"b\"")], Some("W/\"a\"b\""), None),
            (&[("etag", "")], None, None),
            (&[("etag", "\"\"")], None, None),
            (&[("etag", "W/\"\"")], None, None),
            (&[("etag", "W/")], None, None),
            (&[("etag", "\"")], None, None),
            (&[("etag", "\"a\""), ("etag", "\"b\"")], None, None),
            (&[("last-modified", DATE)], None, Some(DATE)),
            (&[("last-modified", "0")], None, None),
            (&[("last-modified", "-1")], None, None),
            (&[("last-modified", "")], None, None),
            (&[("last-modified", "yesterday")], None, None),
            (&[("last-modified", "Thu, 01 Jan 1970 00:00:00 GMT")], None, None),
            (&[("last-modified", "Thu, 01 Jan 1970 00:00:01 GMT")], None, None),
            (&[("last-modified", "Tue, 01 Jan 1980 00:00:01 GMT")], None, None),
            (&[("last-modified", "Wed, 31 Dec 1980 23:59:59 GMT")], None, None),
            (&[("last-modified", "Thu, 01 Jan 1981 00:00:00 GMT")], None, Some("Thu, 01 Jan 1981 00:00:00 GMT")),
            (&[("last-modified", DATE), ("last-modified", DATE)], None, None),
        ] {
            let got = response(200, lines).validators();
            assert_eq!((got.etag.as_deref(), got.last_modified.as_deref()), (etag, date), "{lines:?}");
        }
    }

    #[tokio::test]
    async fn one_byte_is_not_the_whole_because_the_status_says_so() {
        let body = |parts: &[&'static str]| {
            let frames: Vec<_> =
                parts.iter().map(|part| Ok(Frame::data(bytes::Bytes::from_static(part.as_bytes())))).collect();
            StreamBody::new(stream::iter(frames)).boxed_unsync()
        };
        for (headers, parts, whole) in [
            (&[("content-length", "9")][..], &["012345678"][..], true),
            (&[("content-length", "1")], &["0"], false),
            (&[("content-length", "0")], &[], false),
            (&[("content-length", "9"), ("content-range", "bytes 0-0/9")], &["012345678"], false),
            (&[], &["0"], false),
            (&[], &[], false),
            (&[], &["0", "", "12"], true),
        ] {
            let mut response = response(200, headers);
            response.body = body(parts);
            assert_eq!(response.is_whole().await, whole, "{headers:?} {parts:?}");
            if whole {
                assert_eq!(response.body.collect().await.unwrap().to_bytes(), parts.concat());
            }
        }
    }
}
