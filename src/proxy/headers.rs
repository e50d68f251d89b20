//! Header fields: what belongs to one connection only, what is ours, and what says that an answer is not to be shared.
//!
//! Pure. Repeated lines are never merged nor reordered: fields are removed or appended, nothing else.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};

use crate::limit::Priority;

/// The prefix of our own request headers, which never reach an origin.
const OURS: &str = "x-dragonfly-";
/// How urgent a request is.
const PRIORITY: HeaderName = HeaderName::from_static("x-dragonfly-priority");
/// Fields that belong to one connection, whether or not `Connection` names them (RFC 9110, 7.6.1). `Trailer` is left
/// alone: we keep trailers, and it announces them.
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHORIZATION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
/// Headers that nearly every request has, and that are no credentials: nothing has to be searched in their names.
const ORDINARY: [HeaderName; 12] = [
    header::ACCEPT,
    header::ACCEPT_ENCODING,
    header::ACCEPT_LANGUAGE,
    header::CACHE_CONTROL,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::HOST,
    header::RANGE,
    header::TE,
    header::USER_AGENT,
    header::VIA,
];
/// What in a request header's name betrays that its value is a credential of some kind.
const SECRET_NAMES: [&str; 17] = [
    "authorization",
    "x-auth",
    "cookie",
    "token",
    "secret",
    "password",
    "credential",
    "api-key",
    "apikey",
    "art-api",
    "session",
    "signature",
    "-key",
    "assertion",
    "jwt",
    "forwarded-user",
    "remote-user",
];
/// What a task's source is asked in our own way: the range, the version, and the way there.
const ASKED_OTHERWISE: [HeaderName; 9] = [
    header::HOST,
    header::IF_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_NONE_MATCH,
    header::IF_RANGE,
    header::IF_UNMODIFIED_SINCE,
    header::RANGE,
    header::TE,
    header::VIA,
];
/// Sums and signatures of a message, rather than of the whole content.
const MESSAGE_SUMS: [&str; 7] =
    ["content-md5", "content-digest", "content-crc", "digest", "signature", "signature-input", "x-ms-content-crc64"];
/// How much older than the answer a content has to be for its date to tell it from the next one. Dates are whole
/// seconds, and not every clock that writes them ticks at the same moment.
const DATE_STEP: Duration = Duration::from_secs(2);
/// How many headers an answer may vary by, and how long their values may be together, and still be shared.
const MAX_VARY: (usize, usize) = (16, 4096);

/// Removes what belongs to the connection that a message came by. `TE: trailers` stays, as trailers are passed on.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers, &header::CONNECTION)
        .filter_map(|name| name.parse().ok())
        // Nobody may make us drop the framing or the host of a message.
        .filter(|name| *name != header::CONTENT_LENGTH && *name != header::HOST && *name != header::TE)
        .collect();
    let trailers = tokens(headers, &header::TE).any(|te| te.eq_ignore_ascii_case("trailers"));
    retain(headers, |name| (*name != header::TE || trailers) && !HOP_BY_HOP.contains(name) && !named.contains(name));
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// The same for an origin's answer. What its status or its body cannot be understood without is said anew: to what
/// protocol a client has to change, and how the body is encoded besides its chunks.
pub(super) fn strip_answer(headers: &mut HeaderMap, status: StatusCode) {
    let protocols = headers.get(header::UPGRADE).filter(|_| status == StatusCode::UPGRADE_REQUIRED).cloned();
    let codings: Vec<&str> = tokens(headers, &header::TRANSFER_ENCODING)
        .filter(|coding| !coding.eq_ignore_ascii_case("chunked") && !coding.eq_ignore_ascii_case("identity"))
        .collect();
    let codings = (!codings.is_empty()).then(|| HeaderValue::try_from(codings.join(", ") + ", chunked"));
    strip_hop_by_hop(headers);
    if let Some(protocols) = protocols {
        headers.insert(header::UPGRADE, protocols);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    if let Some(Ok(codings)) = codings {
        headers.insert(header::TRANSFER_ENCODING, codings);
    }
}

/// How urgent a request is. A value that is none is no reason to refuse it.
pub(super) fn priority(headers: &HeaderMap) -> Priority {
    let value = headers.get(PRIORITY).and_then(|value| value.to_str().ok());
    value.and_then(|value| value.parse().ok()).unwrap_or_default()
}

/// Removes our own request headers.
pub(super) fn strip_ours(headers: &mut HeaderMap) {
    retain(headers, |name| !name.as_str().starts_with(OURS));
}

/// Leaves the fields whose names are wanted, in their order. (`HeaderMap::remove` puts the last one in the gap.)
fn retain(headers: &mut HeaderMap, wanted: impl Fn(&HeaderName) -> bool) {
    if headers.keys().all(&wanted) {
        return;
    }
    let all = std::mem::take(headers);
    headers.reserve(all.keys_len());
    let mut current = None;
    for (name, value) in all {
        // A further line of the same name comes without it.
        current = name.or(current);
        if let Some(name) = current.as_ref().filter(|name| wanted(name)) {
            headers.append(name, value);
        }
    }
}

/// Notes in `Via` that a message came through the proxy called `id`.
pub(super) fn add_via(headers: &mut HeaderMap, version: Version, id: &str) {
    let protocol = match version {
        Version::HTTP_09 => "0.9",
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2.0",
        _ => "1.1",
    };
    if let Ok(value) = HeaderValue::try_from(format!("{protocol} {id}")) {
        headers.append(header::VIA, value);
    }
}

/// Whether a message has been through the proxy called `id` before.
pub(super) fn has_passed(headers: &HeaderMap, id: &str) -> bool {
    tokens(headers, &header::VIA).any(|hop| hop.split_ascii_whitespace().nth(1) == Some(id))
}

/// The protocols that a request asks to change to; `None` where it asks for none, or only for HTTP/2 on this connection,
/// which nobody has to grant.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asks = tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let only_h2c = tokens(headers, &header::UPGRADE).all(|protocol| protocol.eq_ignore_ascii_case("h2c"));
    headers.get(header::UPGRADE).filter(|_| asks && !only_h2c).cloned()
}

/// The comma-separated members of all lines of a field, trimmed, without empty ones. Quoted commas are not minded.
pub(super) fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter();
    lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|t| !t.is_empty())
}

/// Whether a request carries what only its sender may know, so that the answer is meant for nobody else.
pub(super) fn has_credentials(headers: &HeaderMap) -> bool {
    headers.keys().any(is_credential)
}

/// Whether the value of a request header is not to be shown to anybody.
pub(super) fn is_secret(name: &HeaderName) -> bool {
    *name == header::PROXY_AUTHORIZATION || is_credential(name)
}

/// Whether a request header of this name carries what only its sender may know.
pub(super) fn is_credential(name: &HeaderName) -> bool {
    if *name == header::AUTHORIZATION || *name == header::COOKIE {
        return true;
    }
    if *name == header::PROXY_AUTHORIZATION || ORDINARY.contains(name) {
        return false;
    }
    SECRET_NAMES.iter().any(|secret| name.as_str().contains(secret))
}

/// Whether a request forbids that its answer is stored.
pub(super) fn is_no_store(headers: &HeaderMap) -> bool {
    has_directive(headers, &["no-store"])
}

/// Whether an answer's date of modification is so near to its own that the content may change once more under the same
/// date (RFC 9110, 8.8.2.2). `now` stands in for an answer's date that is missing.
pub(super) fn is_just_modified(answer: &HeaderMap, now: SystemTime) -> bool {
    let date = |name| httpdate::parse_http_date(answer.get(name)?.to_str().ok()?).ok();
    let Some(modified) = date(header::LAST_MODIFIED) else { return false };
    date(header::DATE).unwrap_or(now) < modified + DATE_STEP
}

fn has_directive(headers: &HeaderMap, forbidden: &[&str]) -> bool {
    tokens(headers, &header::CACHE_CONTROL).any(|directive| {
        let name = directive.split('=').next().unwrap_or_default().trim();
        forbidden.iter().any(|&known| name.eq_ignore_ascii_case(known))
    })
}

/// Names and values of the request headers that `answer` varies by, sorted by name; a header that the request does not
/// have is left out. `None` where the answer is good for this one request only.
pub(super) fn vary(answer: &HeaderMap, request: &HeaderMap) -> Option<Vec<(String, String)>> {
    let mut names: Vec<HeaderName> = Vec::new();
    for name in tokens(answer, &header::VARY) {
        let name: HeaderName = name.parse().ok()?;
        if name == "*" {
            return None;
        }
        // What the origin is not sent, or not as the client wrote it, it cannot answer by; and some of it is secret.
        let ours = HOP_BY_HOP.contains(&name) || name.as_str().starts_with(OURS);
        if !ours && !ASKED_OTHERWISE.contains(&name) {
            names.push(name);
        }
    }
    // An encoded answer depends on what encodings were asked for, whether or not the origin remembers to say so.
    if answer.contains_key(header::CONTENT_ENCODING) {
        names.push(header::ACCEPT_ENCODING);
    }
    names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    let mut found = Vec::new();
    for name in names.iter().filter(|name| request.contains_key(*name)) {
        // Each caller asks with its own; what it is answered says by its validators which version that is.
        if is_credential(name) {
            continue;
        }
        let values: Option<Vec<&str>> = request.get_all(name).iter().map(|value| value.to_str().ok()).collect();
        found.push((name.as_str().to_owned(), values?.join(", ")));
    }
    let bytes: usize = found.iter().map(|(_, value)| value.len()).sum();
    (found.len() <= MAX_VARY.0 && bytes <= MAX_VARY.1).then_some(found)
}

/// Whether an answer may be another one for callers with other credentials.
pub(super) fn varies_by_caller(answer: &HeaderMap) -> bool {
    tokens(answer, &header::VARY).filter_map(|name| name.parse().ok()).any(|name| is_credential(&name))
}

/// Removes what is said of the bytes of one message only: in an answer with a part of the content it is said of the
/// part (RFC 9530, 2; RFC 1864; RFC 9421).
pub(super) fn strip_sums(headers: &mut HeaderMap) {
    retain(headers, |name| {
        let name = name.as_str();
        !MESSAGE_SUMS.contains(&name) && !name.starts_with("x-amz-checksum-")
    });
}

/// The headers of an origin's answer that every later answer with the same content carries too: all but those of one
/// exchange (connection, framing, date, range).
pub(super) fn kept(answer: &HeaderMap) -> HeaderMap {
    let mut headers = answer.clone();
    strip_hop_by_hop(&mut headers);
    for name in [
        header::AGE,
        header::CONTENT_LENGTH,
        header::CONTENT_RANGE,
        header::DATE,
        header::SET_COOKIE,
        header::TE,
        header::TRAILER,
        header::VIA,
        header::PROXY_AUTHENTICATE,
    ] {
        headers.remove(name);
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn what_belongs_to_the_connection_is_removed_and_nothing_else() {
        let mut headers = map(&[
            ("accept", "a"),
            ("connection", "close, X-Mine, content-length"),
            ("accept", "b"),
            ("x-mine", "1"),
            ("keep-alive", "5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic x"),
            ("te", "gzip, Trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("trailer", "x-sum"),
            ("content-length", "7"),
        ]);
        strip_hop_by_hop(&mut headers);
        let want =
            map(&[("accept", "a"), ("accept", "b"), ("te", "trailers"), ("trailer", "x-sum"), ("content-length", "7")]);
        assert_eq!(headers, want);
        assert_eq!(headers.get_all("accept").iter().collect::<Vec<_>>(), ["a", "b"], "lines keep their order");
    }

    #[test]
    fn our_own_headers_stay_here() {
        let mut headers = map(&[("x-dragonfly-tag", "t"), ("x-dragon", "kept"), ("X-Dragonfly-Use-P2P", "true")]);
        strip_ours(&mut headers);
        assert_eq!(headers, map(&[("x-dragon", "kept")]));
    }

    #[test]
    fn a_request_says_how_urgent_it_is() {
        for (value, level) in [("0", 0), (" 3 ", 3), ("6", 6), ("7", 6), ("-1", 6), ("soon", 6), ("", 6)] {
            assert_eq!(priority(&map(&[("X-Dragonfly-Priority", value)])).level(), level, "{value:?}");
        }
        assert_eq!(priority(&map(&[])), Priority::default());
    }

    #[test]
    fn a_loop_is_seen_in_via_by_whole_names() {
        let mut headers = map(&[("via", "1.0 squid, 1.1 damselfly-2 (x)"), ("via", "2.0 other")]);
        assert!(has_passed(&headers, "damselfly-2"));
        assert!(!has_passed(&headers, "damselfly"));
        add_via(&mut headers, Version::HTTP_11, "damselfly");
        assert!(has_passed(&headers, "damselfly"));
        assert_eq!(headers.get_all("via").iter().count(), 3);
    }

    #[test]
    fn an_upgrade_needs_both_headers() {
        assert!(upgrade(&map(&[("upgrade", "websocket")])).is_none());
        assert!(upgrade(&map(&[("connection", "upgrade")])).is_none());
        assert_eq!(upgrade(&map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "a")])).unwrap(), "a");
        assert!(upgrade(&map(&[("connection", "upgrade, http2-settings"), ("upgrade", "h2c")])).is_none());
    }

    #[test]
    fn credentials_are_known_by_their_names() {
        for (name, want) in [
            ("authorization", true),
            ("cookie", true),
            ("private-token", true),
            ("x-amz-security-token", true),
            ("x-jfrog-art-api", true),
            ("x-api-key", true),
            ("ocp-apim-subscription-key", true),
            ("x-forwarded-user", true),
            ("sec-fetch-user", false),
            ("x-dragonfly-tag", false),
            ("accept", false),
            ("range", false),
            ("proxy-authorization", false),
        ] {
            assert_eq!(has_credentials(&map(&[(name, "x")])), want, "{name}");
        }
    }

    #[test]
    fn an_answer_varies_by_what_the_request_says() {
        let request = map(&[
            ("accept", "a"),
            ("accept", "b"),
            ("accept-encoding", "gzip"),
            ("cookie", "c=d"),
            ("proxy-authorization", "Basic secret"),
            ("range", "bytes=1-"),
            ("x-dragonfly-tag", "t"),
        ]);
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        for (answer, want) in [
            (&[][..], Some(vec![])),
            (&[("vary", "*")], None),
            (&[("vary", "Accept, x-none")], Some(vec![pair("accept", "a, b")])),
            (
                &[("vary", "x"), ("vary", "accept-encoding, Accept")],
                Some(vec![pair("accept", "a, b"), pair("accept-encoding", "gzip")]),
            ),
            (&[("content-encoding", "gzip")], Some(vec![pair("accept-encoding", "gzip")])),
            (&[("vary", "cookie, Accept")], Some(vec![pair("accept", "a, b")])),
            (&[("vary", "Proxy-Authorization, Range, x-dragonfly-tag")], Some(vec![])),
            (&[("vary", "bad name")], None),
        ] {
            assert_eq!(vary(&map(answer), &request), want, "{answer:?}");
        }
        let long = "x".repeat(MAX_VARY.1 + 1);
        assert_eq!(vary(&map(&[("vary", "accept")]), &map(&[("accept", &long)])), None);
    }

    #[test]
    fn a_date_that_is_not_over_names_no_version() {
        const T: &str = "Tue, 10 Nov 2026 10:00:00 GMT";
        for (date, want) in [
            ("Tue, 10 Nov 2026 09:59:59 GMT", true),
            (T, true),
            ("Tue, 10 Nov 2026 10:00:01 GMT", true),
            ("Tue, 10 Nov 2026 10:00:02 GMT", false),
        ] {
            let now = httpdate::parse_http_date(date).unwrap();
            let long_after = now + Duration::from_secs(3600);
            assert_eq!(is_just_modified(&map(&[("last-modified", T), ("date", date)]), long_after), want, "{date}");
            assert_eq!(is_just_modified(&map(&[("last-modified", T)]), now), want, "{date}");
        }
        assert!(!is_just_modified(&map(&[("date", T)]), SystemTime::now()));
        assert!(!is_just_modified(&map(&[("last-modified", "then")]), SystemTime::now()));
    }

    #[test]
    fn sums_of_a_part_are_not_the_wholes() {
        let mut answer = map(&[
            ("etag", "\"x\""),
            ("content-md5", "a"),
            ("Content-Digest", "sha-256=:a:"),
            ("repr-digest", "sha-256=:b:"),
            ("x-amz-checksum-crc32c", "a"),
            ("x-amz-checksum-sha256", "a"),
            ("x-goog-hash", "md5=b"),
        ]);
        strip_sums(&mut answer);
        assert_eq!(
            answer,
            map(&[("etag", "\"x\""), ("repr-digest", "sha-256=:b:"), ("x-goog-hash", "md5=b")]),
            "those of the whole content stay"
        );
    }

    #[test]
    fn lines_keep_their_order() {
        let mut headers = map(&[("a", "1"), ("connection", "b"), ("b", "2"), ("c", "3"), ("d", "4"), ("c", "5")]);
        strip_hop_by_hop(&mut headers);
        let left: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(left, [("a", "1"), ("c", "3"), ("c", "5"), ("d", "4")]);
    }

    #[test]
    fn an_answer_says_how_to_understand_it() {
        let mut headers = map(&[("connection", "upgrade"), ("upgrade", "TLS/1.2")]);
        strip_answer(&mut headers, StatusCode::UPGRADE_REQUIRED);
        assert_eq!(headers, map(&[("upgrade", "TLS/1.2"), ("connection", "upgrade")]));
        let mut headers = map(&[("connection", "upgrade"), ("upgrade", "h2c"), ("transfer-encoding", "gzip, Chunked")]);
        strip_answer(&mut headers, StatusCode::OK);
        assert_eq!(headers, map(&[("transfer-encoding", "gzip, chunked")]));
        let mut headers = map(&[("transfer-encoding", "chunked")]);
        strip_answer(&mut headers, StatusCode::OK);
        assert!(headers.is_empty());
    }

    #[test]
    fn what_belongs_to_one_answer_is_not_kept() {
        let answer = map(&[
            ("content-type", "a/b"),
            ("content-length", "1"),
            ("content-range", "bytes 0-0/9"),
            ("date", "now"),
            ("age", "1"),
            ("via", "1.1 cdn"),
            ("etag", "\"x\""),
        ]);
        assert_eq!(kept(&answer), map(&[("content-type", "a/b"), ("etag", "\"x\"")]));
    }
}
