//! Registries: which one a `/v2/…` request means, what its path names, what a challenge asks for, and the tokens that
//! authorisation services hand out.
//!
//! A runtime says which registry it means in one of four ways, tried in this order: `?ns=` (containerd),
//! `X-Dragonfly-Registry` (set by the operator in the runtime's mirror settings), a first path component that can only be
//! a host (`/v2/quay.io/…`: podman, CRI-O, skopeo), and last the configured `proxy.registryMirror.addr`, or Docker's
//! registry (Docker). A port of `proxy.mirrors` means one registry whatever the request says. What says so is not
//! forwarded. The registry is spoken to in https; net's upstream settings may change that.
//!
//! All but [`Tokens`] is pure: values in, values out. **Where a client names the registry, it can name a host and a
//! port, nothing else.** **A token is given to nobody but callers with the credentials that it was given for.**

mod challenge;
mod mirror;
mod own_token;
mod path;
mod realm;
mod tokens;

use http::{HeaderMap, HeaderName, Method, Uri, header};
use sha2::{Digest as _, Sha256};

pub use challenge::{Bearer, Challenge, with_realm};
pub use mirror::{Mirror, MirrorError, Mirrored, Naming, Registry};
pub use own_token::OwnToken;
pub use path::{Resource, is_ping, is_reference, is_registry_path};
pub use tokens::{MAX_QUESTION, Metrics, TokenAnswer, TokenConfig, TokenError, TokenRequest, Tokens, is_token_form};

/// What of a request says nothing about the answer, so that other values make no other request.
const INDIFFERENT: [HeaderName; 4] =
    [header::USER_AGENT, header::VIA, header::ACCEPT_ENCODING, header::ACCEPT_LANGUAGE];

/// A key that is equal for requests with the same answer: method, URL, body and headers, the order of headers of
/// different names aside, and whether the client is on another host. Credentials are in it as part of a hash.
pub fn request_key(method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8], remote: bool) -> [u8; 32] {
    let mut hasher = Sha256::new();
    let mut add = |part: &[u8]| {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    };
    // Clients on other hosts may not ask every server.
    add(&[u8::from(remote)]);
    add(method.as_str().as_bytes());
    add(uri.to_string().as_bytes());
    add(body);
    let mut lines: Vec<_> = headers.iter().filter(|(name, _)| !INDIFFERENT.contains(name)).collect();
    lines.sort_by(|a, b| (a.0.as_str(), a.1.as_bytes()).cmp(&(b.0.as_str(), b.1.as_bytes())));
    for (name, value) in lines {
        add(name.as_str().as_bytes());
        add(value.as_bytes());
    }
    hasher.finalize().into()
}

/// Header that says that the distribution protocol is spoken, with [`API_VERSION`]: a runtime looks for it at `/v2/`.
pub const API_VERSION_HEADER: &str = "docker-distribution-api-version";

/// Its value.
pub const API_VERSION: &str = "registry/2.0";
