//! The token that the mirror itself gives to a client whose registry hands out none.
//!
//! Clients that are told of a token service at `/v2/` ask it for a token before anything else, and send that token with
//! every request. A registry that wants a user name and a password, or nothing, has no such token: then the client gets
//! one of ours, which holds what it asked with, and which we take apart again when it comes back. It is good for one
//! registry only.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue, header};

/// What all our tokens begin with. No registry's token does: a dot in front of the first part of a JSON web token would
/// be no JSON.
const PREFIX: &str = "damselfly.";

/// What one of our tokens holds.
#[derive(Clone, PartialEq, Eq)]
pub struct OwnToken {
    /// The registry that it is good for, as `HOST[:PORT]`; empty for none.
    pub registry: String,
    /// The `Authorization` that the client asked with, if it had one.
    pub credentials: Option<HeaderValue>,
}

impl OwnToken {
    /// The token's text.
    pub fn encode(&self) -> String {
        let credentials = self.credentials.as_ref().map_or(&b""[..], HeaderValue::as_bytes);
        let held = [self.registry.as_bytes(), b"\n", credentials].concat();
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(held))
    }

    /// Our token in a request's `Authorization`; `None` where there is none of ours.
    pub fn find(headers: &HeaderMap) -> Option<Self> {
        let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
        let held = token.trim().strip_prefix(PREFIX).filter(|_| scheme.eq_ignore_ascii_case("bearer"))?;
        let held = URL_SAFE_NO_PAD.decode(held).ok()?;
        let end = held.iter().position(|&byte| byte == b'\n')?;
        let registry = String::from_utf8(held[..end].to_vec()).ok()?;
        let credentials = match &held[end + 1..] {
            [] => None,
            credentials => {
                let mut value = HeaderValue::from_bytes(credentials).ok()?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Some(Self { registry, credentials })
    }

    /// Puts what the token holds in place of it, if it is good for this registry; else leaves nothing of it.
    pub fn unwrap_into(self, headers: &mut HeaderMap, registry: &str) {
        headers.remove(header::AUTHORIZATION);
        if let Some(credentials) = self.credentials.filter(|_| self.registry.eq_ignore_ascii_case(registry)) {
            headers.insert(header::AUTHORIZATION, credentials);
        }
    }
}

impl std::fmt::Debug for OwnToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnToken").field("registry", &self.registry).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())])
    }

    #[test]
    fn a_token_holds_what_was_asked_with_for_one_registry() {
        let basic = HeaderValue::from_static("Basic dTpw");
        for credentials in [None, Some(basic)] {
            let token = OwnToken { registry: "r.example:5000".into(), credentials };
            let mut headers = sent(&format!("Bearer {}", token.encode()));
            assert_eq!(OwnToken::find(&headers).as_ref(), Some(&token));
            token.clone().unwrap_into(&mut headers, "other.example");
            assert!(!headers.contains_key(header::AUTHORIZATION), "it is not given to another registry");
            token.clone().unwrap_into(&mut headers, "R.example:5000");
            assert_eq!(headers.get(header::AUTHORIZATION), token.credentials.as_ref());
        }
    }

    #[test]
    fn other_tokens_are_left_alone() {
        for value in
            ["Bearer eyJh.eyJp.x", "Basic damselfly.YQo", "Bearer damselfly.%%", "Bearer damselfly.YQ", "Bearer", ""]
        {
            assert_eq!(OwnToken::find(&sent(value)), None, "{value}");
        }
    }
}
