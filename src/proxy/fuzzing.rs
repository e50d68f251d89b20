//! What has to hold for any bytes that a client or an origin sends first.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, Uri, Version};

use super::detect::{ENOUGH, judge};
use super::framing::{Chunks, Framing, head_end, inspect, is_endpoint, is_host};
use super::headers;
use crate::backend::SourceResponse;
use crate::net::{Pattern, empty_body};
use crate::registry::Challenge;

/// The protocol of a connection is known by its first bytes, however they come: what is decided stays so.
pub fn detection(bytes: &[u8]) {
    let mut decided = None;
    for length in 0..=bytes.len().min(ENOUGH) {
        let judged = judge(&bytes[..length]);
        if let Some(before) = decided {
            assert_eq!(judged, Some(before), "{length} bytes");
        }
        decided = judged;
    }
    assert!(decided.is_some() || bytes.len() < ENOUGH);
}

/// A head is found and judged however it comes; what is accepted the HTTP library can read, and it finds the same end.
pub fn request(bytes: &[u8]) {
    let end = head_end(bytes, 0);
    for cut in [1, bytes.len() / 2, bytes.len().saturating_sub(1)].map(|cut| cut.min(bytes.len())) {
        let first = head_end(&bytes[..cut], 0);
        let found = if first == Ok(None) { head_end(bytes, cut) } else { first };
        assert_eq!(found, end, "cut at {cut}");
    }
    let Ok(Some(end)) = end else { return };
    let Ok(head) = inspect(&bytes[..end]) else { return };
    let mut accepted = bytes[..end].to_vec();
    if let Some((at, target)) = head.target {
        accepted.splice(at, target);
    }
    let mut lines = [httparse::EMPTY_HEADER; super::framing::MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut lines);
    assert_eq!(parsed.parse(&accepted), Ok(httparse::Status::Complete(accepted.len())), "the library reads it");
    let target = parsed.path.unwrap_or_default();
    assert!(target.parse::<Uri>().is_ok(), "{target:?} is a target");
    let lengths = parsed.headers.iter().filter(|line| line.name.eq_ignore_ascii_case("content-length"));
    let lengths: Vec<_> = lengths.map(|line| line.value.trim_ascii()).collect();
    match head.framing {
        Framing::Sized(length) if lengths.is_empty() => assert_eq!(length, 0),
        Framing::Sized(length) => assert!(lengths.iter().all(|text| text == &lengths[0] && length_of(text) == length)),
        Framing::Chunked => {
            assert_eq!(lengths, [b""; 0], "two framings");
            chunks(&bytes[end..]);
        }
    }
}

fn length_of(text: &[u8]) -> u64 {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).expect("a length is a number")
}

/// The end of a chunked body is at the same place however it comes.
fn chunks(body: &[u8]) {
    let whole = Chunks::default().advance(body);
    for cut in [1, 2, body.len() / 2].map(|cut| cut.min(body.len())) {
        let mut parts = Chunks::default();
        let split = parts.advance(&body[..cut]).and_then(|(taken, ended)| {
            if ended {
                return Ok((taken, true));
            }
            assert_eq!(taken, cut, "all of it belongs to the body");
            parts.advance(&body[cut..]).map(|(more, ended)| (cut + more, ended))
        });
        assert_eq!(split, whole, "cut at {cut}");
    }
}

/// What is accepted as a host or as the target of a `CONNECT` is an authority without a user; patterns of hosts are
/// read, or refused, and match without a panic.
pub fn authority(bytes: &[u8]) {
    if is_host(bytes) && !bytes.is_empty() {
        assert!(!bytes.contains(&b'@') && !bytes.contains(&b'/') && !bytes.contains(&b','));
    }
    if is_endpoint(bytes) {
        let uri = Uri::try_from(bytes).expect("an endpoint is a target");
        assert!(uri.scheme().is_none() && uri.host().is_some_and(|host| !host.is_empty()));
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (pattern, host) = text.split_once('\n').unwrap_or((text, text));
    if let Ok(pattern) = pattern.parse::<Pattern>() {
        pattern.names(host, 443);
        pattern.names("192.0.2.1", 443);
    }
}

/// What an origin says of a content: nothing that it says panics, spans lie in the content, and nothing of the connection
/// is passed on.
pub fn answer_head(bytes: &[u8]) {
    let Some((first, lines)) = bytes.split_first_chunk::<2>() else { return };
    let status = StatusCode::from_u16(100 + u16::from_be_bytes(*first) % 900).unwrap_or_default();
    let mut headers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n').take(64) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(&line[colon + 1..]));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let answer = SourceResponse {
        status,
        version: Version::HTTP_11,
        headers: headers.clone(),
        extensions: http::Extensions::new(),
        body: empty_body(),
        elsewhere: false,
    };
    if let Some(span) = answer.span() {
        assert!(span.start <= span.end && span.end <= span.total);
    }
    let validators = answer.validators();
    assert!(validators.agrees_with(&validators));
    let _ = (answer.may_be_stored(), answer.is_page());
    if let Some(Challenge::Bearer(bearer)) = Challenge::find(&headers) {
        let from = Uri::from_static("https://registry.example/v2/");
        if let Some(url) = bearer.token_url(&from, &["repository:a/b:pull".to_owned()]) {
            assert!(url.host().is_some());
        }
    }
    if let Some(varied) = headers::vary(&headers, &headers) {
        assert!(varied.is_sorted_by_key(|(name, _)| name.clone()));
    }
    let _ = (headers::varies_by_caller(&headers), headers::is_no_store(&headers));
    let kept = headers::kept(&headers);
    assert!(!kept.contains_key(header::CONTENT_LENGTH) && !kept.contains_key(header::CONNECTION));
    headers::strip_answer(&mut headers, status);
    headers::add_via(&mut headers, Version::HTTP_11, "damselfly");
    assert!(headers::has_passed(&headers, "damselfly"));
    let connection = headers.get(header::CONNECTION);
    assert!(connection.is_none_or(|value| value == "upgrade" && status == StatusCode::UPGRADE_REQUIRED));
    assert!(!headers.contains_key("keep-alive") && !headers.contains_key(header::PROXY_AUTHENTICATE));
}
