//! Authentication that is of a connection rather than of a request: NTLM, and Negotiate as it is mostly spoken. Pure.

use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName, WWW_AUTHENTICATE};

/// Schemes after whose exchange the connection itself is authenticated (RFC 4559, 6).
const SCHEMES: [&[u8]; 3] = [b"ntlm", b"negotiate", b"kerberos"];

/// Whether a request authenticates the connection that it is sent on.
pub(super) fn is_by_connection(request: &HeaderMap) -> bool {
    request.get_all(AUTHORIZATION).iter().any(|value| names_scheme(value.as_bytes()).is_some())
}

/// Whether an answer says that its connection is authenticated, or in the middle of becoming so.
pub(super) fn is_session(answer: &HeaderMap) -> bool {
    let says = |name: &'static str, what: &[u8]| {
        let mut lines = answer.get_all(HeaderName::from_static(name)).iter();
        lines.any(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(what))
    };
    says("persistent-auth", b"true")
        || says("proxy-support", b"session-based-authentication")
        // A challenge with a token is for the client that asked; a bare one is for everybody.
        || answer.get_all(WWW_AUTHENTICATE).iter().any(|v| names_scheme(v.as_bytes()).is_some_and(|rest| !rest.is_empty()))
}

/// What follows the name of one of the [`SCHEMES`].
fn names_scheme(value: &[u8]) -> Option<&[u8]> {
    let value = value.trim_ascii();
    let end = value.iter().position(|byte| *byte == b' ' || *byte == b',').unwrap_or(value.len());
    let (scheme, rest) = value.split_at(end);
    SCHEMES.iter().any(|known| scheme.eq_ignore_ascii_case(known)).then(|| rest.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_of_connections_are_known() {
        for (value, want) in [
            ("NTLM TlRMTVNTUAAB", true),
            ("negotiate YII", true),
            ("Negotiate", true),
            ("Bearer ntlm", false),
            ("Basic YTpi", false),
            ("NTLMx y", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())]);
            assert_eq!(is_by_connection(&headers), want, "{value}");
        }
        for (name, value, want) in [
            ("www-authenticate", "NTLM", false),
            ("www-authenticate", "NTLM TlRMTVNTUAAC", true),
            ("www-authenticate", "Basic realm=x", false),
            ("persistent-auth", "true", true),
            ("persistent-auth", "false", false),
            ("proxy-support", "Session-Based-Authentication", true),
        ] {
            let headers = HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())]);
            assert_eq!(is_session(&headers), want, "{name}: {value}");
        }
    }
}
