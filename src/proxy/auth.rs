//! The proxy's own password (`proxy.server.basicAuth`): asked for with 407, never with 401, so that it cannot be mixed
//! up with an origin's.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, header};
use sha2::{Digest as _, Sha256};

/// A user name and password, kept as a hash only.
#[derive(Clone)]
pub struct BasicAuth {
    expected: [u8; 32],
}

impl std::fmt::Debug for BasicAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BasicAuth(***)")
    }
}

impl BasicAuth {
    /// Admits who names this user and password.
    pub fn new(username: &str, password: &str) -> Self {
        Self { expected: hash(BASE64_STANDARD.encode(format!("{username}:{password}")).as_bytes()) }
    }

    /// Whether the request's `Proxy-Authorization` is right. Takes as long for a wrong password as for the right one.
    pub fn admits(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::PROXY_AUTHORIZATION).map(|value| value.as_bytes()).unwrap_or_default();
        let (scheme, token) = given.split_at(given.len().min(6));
        let difference = hash(token.trim_ascii()).iter().zip(self.expected).fold(0, |sum, (a, b)| sum | (a ^ b));
        scheme.eq_ignore_ascii_case(b"basic ") && difference == 0
    }
}

/// Equal lengths to compare, whatever the client sends.
fn hash(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn only_the_right_password_is_admitted() {
        let auth = BasicAuth::new("ann", "s:e cret");
        for (value, want) in [
            ("Basic YW5uOnM6ZSBjcmV0", true),
            ("basic  YW5uOnM6ZSBjcmV0 ", true),
            ("Basic YW5uOnM6ZSBjcmV1", false),
            ("BasicYW5uOnM6ZSBjcmV0", false),
            ("Bearer YW5uOnM6ZSBjcmV0", false),
            ("Basic", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::PROXY_AUTHORIZATION, HeaderValue::from_static(value));
            assert_eq!(auth.admits(&headers), want, "{value}");
        }
        assert!(!auth.admits(&HeaderMap::new()));
        let mut origins = HeaderMap::new();
        origins.insert(header::AUTHORIZATION, HeaderValue::from_static("Basic YW5uOnM6ZSBjcmV0"));
        assert!(!auth.admits(&origins), "the origin's password is not the proxy's");
        assert!(!format!("{auth:?}").contains("ann"));
    }
}
