//! Ranges and preconditions of a request (RFC 9110, 13 and 14).
//!
//! Pure. Preconditions other than `If-Range` are the origin's to judge: a request that has them is asked of the origin
//! with them, and only an answer that has content is shared. So nothing here says 304 or 412.

use damselfly_core::{RangeWish, Validators};
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// The preconditions that a request may have, besides `If-Range`.
pub(super) const PRECONDITIONS: [HeaderName; 4] =
    [header::IF_MATCH, header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE, header::IF_UNMODIFIED_SINCE];

/// Whether a request has a precondition that the origin has to judge.
pub(super) fn is_conditional(headers: &HeaderMap) -> bool {
    PRECONDITIONS.iter().any(|name| headers.contains_key(name))
}

/// Whether a request asks for several ranges at once, which the origin answers in several parts.
pub(super) fn has_several_ranges(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::RANGE).iter().filter_map(|line| line.to_str().ok());
    let specs = lines.flat_map(|line| line.split_once('=').map_or("", |(_, set)| set).split(','));
    specs.filter(|spec| !spec.trim().is_empty()).count() > 1
}

/// Which bytes a request asks for. What is no range of bytes is answered with everything, as the standard allows.
pub(super) fn wish(headers: &HeaderMap) -> RangeWish {
    let mut lines = headers.get_all(header::RANGE).iter();
    match (lines.next(), lines.next()) {
        (Some(line), None) => line.to_str().ok().and_then(parse).unwrap_or(RangeWish::Whole),
        _ => RangeWish::Whole,
    }
}

fn parse(line: &str) -> Option<RangeWish> {
    let (unit, set) = line.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let mut specs = set.split(',').map(str::trim).filter(|spec| !spec.is_empty());
    let (spec, None) = (specs.next()?, specs.next()) else {
        return None;
    };
    let (first, last) = spec.split_once('-')?;
    match (first, last) {
        ("", last) => number(last).map(RangeWish::Suffix),
        (first, "") => number(first).map(RangeWish::From),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(RangeWish::Span(first, last))
        }
    }
}

/// A number of digits only; one too large for us is as good as the largest.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

/// Which bytes a request asks for of a content whose validators are known: `If-Range` makes it everything unless it
/// names this very version.
pub(super) fn wish_of(headers: &HeaderMap, validators: &Validators) -> RangeWish {
    match headers.get(header::IF_RANGE) {
        Some(named) if !names(named, validators) => RangeWish::Whole,
        _ => wish(headers),
    }
}

/// Whether an `If-Range` names this version. Weak entity tags never do.
fn names(if_range: &HeaderValue, validators: &Validators) -> bool {
    let Ok(text) = if_range.to_str() else { return false };
    let text = Some(text.trim());
    text == validators.strong_etag() || text == validators.last_modified.as_deref()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for &(name, value) in lines {
            map.append(name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn ranges_are_read_as_the_rfc_says() {
        for (line, want) in [
            ("bytes=0-", RangeWish::From(0)),
            ("Bytes = 5-9", RangeWish::Span(5, 9)),
            ("bytes=-7", RangeWish::Suffix(7)),
            ("bytes=-0", RangeWish::Suffix(0)),
            ("bytes=5-99999999999999999999999", RangeWish::Span(5, u64::MAX)),
            ("bytes= 1-2 ,", RangeWish::Span(1, 2)),
            ("bytes=1-2,4-5", RangeWish::Whole),
            ("bytes=5-2", RangeWish::Whole),
            ("bytes=+1-2", RangeWish::Whole),
            ("bytes=-", RangeWish::Whole),
            ("bytes=a-b", RangeWish::Whole),
            ("lines=1-2", RangeWish::Whole),
            ("bytes", RangeWish::Whole),
        ] {
            assert_eq!(wish(&headers(&[("range", line)])), want, "{line}");
        }
        assert_eq!(wish(&headers(&[])), RangeWish::Whole);
        assert_eq!(wish(&headers(&[("range", "bytes=1-2"), ("range", "bytes=1-2")])), RangeWish::Whole);
    }

    #[test]
    fn several_ranges_are_seen() {
        for (lines, want) in [
            (&[][..], false),
            (&[("range", "bytes=0-")], false),
            (&[("range", "bytes=0-1,")], false),
            (&[("range", "bytes=0-1, 3-4")], true),
            (&[("range", "bytes=0-1,-5")], true),
            (&[("range", "bytes=0-1"), ("range", "bytes=3-4")], true),
            (&[("range", "0-1,2-3")], false),
        ] {
            assert_eq!(has_several_ranges(&headers(lines)), want, "{lines:?}");
        }
    }

    #[test]
    fn if_range_must_name_this_very_version() {
        const DATE: &str = "Tue, 10 Nov 2026 10:00:00 GMT";
        let known = Validators { etag: Some("\"a\"".into()), last_modified: Some(DATE.into()) };
        for (named, want) in [
            ("\"a\"", RangeWish::From(1)),
            (DATE, RangeWish::From(1)),
            ("W/\"a\"", RangeWish::Whole),
            ("\"b\"", RangeWish::Whole),
            ("Tue, 10 Nov 2026 10:00:01 GMT", RangeWish::Whole),
        ] {
            assert_eq!(wish_of(&headers(&[("range", "bytes=1-"), ("if-range", named)]), &known), want, "{named}");
        }
        assert_eq!(wish_of(&headers(&[("range", "bytes=1-")]), &Validators::default()), RangeWish::From(1));
        let weak = Validators { etag: Some("W/\"a\"".into()), last_modified: None };
        let named = headers(&[("range", "bytes=1-"), ("if-range", "W/\"a\"")]);
        assert_eq!(wish_of(&named, &weak), RangeWish::Whole, "a weak tag names no bytes");
    }

    #[test]
    fn preconditions_are_seen() {
        assert!(is_conditional(&headers(&[("if-none-match", "*")])));
        assert!(!is_conditional(&headers(&[("if-range", "\"a\"")])));
    }
}
