//! What a path of the distribution protocol names, by its strict grammar.

use damselfly_core::Digest;

/// The longest repository name that runtimes accept.
const MAX_NAME: usize = 255;
/// The longest tag.
const MAX_TAG: usize = 128;

/// What a `/v2/…` path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource<'a> {
    /// `/v2/`: is this a registry, and does it want credentials?
    Ping,
    /// A blob by its digest, which names its bytes for ever.
    Blob {
        /// The repository.
        name: &'a str,
        /// As written: of any algorithm.
        digest: &'a str,
    },
    /// A manifest by a tag, which may name another one tomorrow.
    Tagged {
        /// The repository.
        name: &'a str,
        /// The tag.
        tag: &'a str,
    },
    /// A manifest by its digest.
    Manifest {
        /// The repository.
        name: &'a str,
        /// As written.
        digest: &'a str,
    },
    /// A push under way.
    Upload {
        /// The repository.
        name: &'a str,
    },
    /// The list of a repository's tags.
    Tags {
        /// The repository.
        name: &'a str,
    },
    /// What refers to a manifest.
    Referrers {
        /// The repository.
        name: &'a str,
        /// The manifest's digest.
        digest: &'a str,
    },
}

impl<'a> Resource<'a> {
    /// What `path` names; `None` where the grammar does not know it (it is passed on all the same).
    pub fn parse(path: &'a str) -> Option<Self> {
        let rest = path.strip_prefix("/v2")?;
        if matches!(rest, "" | "/") {
            return Some(Self::Ping);
        }
        let rest = rest.strip_prefix('/')?;
        if let Some((name, _)) = rest.split_once("/blobs/uploads") {
            return is_name(name).then_some(Self::Upload { name });
        }
        let (head, last) = rest.rsplit_once('/')?;
        let (name, kind) = head.rsplit_once('/')?;
        if !is_name(name) {
            return None;
        }
        match kind {
            "blobs" if is_digest(last) => Some(Self::Blob { name, digest: last }),
            "manifests" if is_digest(last) => Some(Self::Manifest { name, digest: last }),
            "manifests" if is_tag(last) => Some(Self::Tagged { name, tag: last }),
            "tags" if last == "list" => Some(Self::Tags { name }),
            "referrers" if is_digest(last) => Some(Self::Referrers { name, digest: last }),
            _ => None,
        }
    }
}

/// Whether the distribution protocol is spoken under this path.
pub fn is_registry_path(path: &str) -> bool {
    path == "/v2" || path.starts_with("/v2/")
}

/// The digest of the blob that a path names, where it is one that we can check.
pub fn blob_digest(path: &str) -> Option<Digest> {
    match Resource::parse(path)? {
        Resource::Blob { digest, .. } => digest.parse().ok(),
        _ => None,
    }
}

/// Components of lower case letters and digits, with single `.`, one or two `_`, or any number of `-` between them.
fn is_name(name: &str) -> bool {
    name.len() <= MAX_NAME && name.split('/').all(is_component)
}

fn is_component(text: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    let separated = |between: &[u8]| match between {
        [] | b"." | b"_" | b"__" => true,
        dashes => dashes.iter().all(|byte| *byte == b'-'),
    };
    alphanumeric(first) && alphanumeric(last) && bytes.split(alphanumeric).all(separated)
}

/// `[A-Za-z0-9_][A-Za-z0-9._-]{0,127}`
fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= MAX_TAG
        && text.bytes().enumerate().all(|(at, byte)| word(byte) || at > 0 && matches!(byte, b'.' | b'-'))
        && !text.is_empty()
}

/// `algorithm:hex`, with at least 32 digits.
fn is_digest(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else { return false };
    let lower = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    !algorithm.is_empty()
        && algorithm.bytes().all(|byte| lower(byte) || matches!(byte, b'+' | b'.' | b'_' | b'-'))
        && hex.len() >= 32
        && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_what_the_grammar_says() {
        let hex = "ab".repeat(32);
        let digest = format!("sha256:{hex}");
        let cases = [
            ("/v2".to_owned(), "Ping"),
            ("/v2/".into(), "Ping"),
            (format!("/v2/library/alpine/blobs/{digest}"), "Blob library/alpine"),
            (format!("/v2/a/b/c-d__e.f/blobs/{digest}"), "Blob a/b/c-d__e.f"),
            (format!("/v2/a/blobs/sha512:{hex}{hex}"), "Blob a"),
            (format!("/v2/a/manifests/{digest}"), "Manifest a"),
            ("/v2/a/manifests/latest".into(), "Tagged a"),
            ("/v2/a/manifests/V1.2_3-x".into(), "Tagged a"),
            ("/v2/a/blobs/uploads/".into(), "Upload a"),
            ("/v2/a/b/blobs/uploads/0e1c?x".into(), "Upload a/b"),
            ("/v2/a/tags/list".into(), "Tags a"),
            (format!("/v2/a/referrers/{digest}"), "Referrers a"),
            // A repository may be called like a part of the protocol.
            (format!("/v2/blobs/blobs/{digest}"), "Blob blobs"),
            (format!("/v2/blobs/{digest}"), ""),
            (format!("/v2/A/blobs/{digest}"), ""),
            (format!("/v2/a..b/blobs/{digest}"), ""),
            (format!("/v2/../blobs/{digest}"), ""),
            (format!("/v2/a___b/blobs/{digest}"), ""),
            (format!("/v2//a/blobs/{digest}"), ""),
            (format!("/v2/-a/blobs/{digest}"), ""),
            (format!("/v2/{}/blobs/{digest}", "a".repeat(256)), ""),
            ("/v2/a/blobs/sha256:abc".into(), ""),
            ("/v2/a/blobs/latest".into(), ""),
            ("/v2/a/manifests/.x".into(), ""),
            ("/v2/a/manifests/a%2fb".into(), ""),
            ("/v2/_catalog".into(), ""),
            ("/v1/a/blobs/x".into(), ""),
            ("/v2x".into(), ""),
        ];
        for (path, want) in cases {
            let short = match Resource::parse(&path) {
                None => String::new(),
                Some(Resource::Ping) => "Ping".into(),
                Some(Resource::Blob { name, .. }) => format!("Blob {name}"),
                Some(Resource::Tagged { name, .. }) => format!("Tagged {name}"),
                Some(Resource::Manifest { name, .. }) => format!("Manifest {name}"),
                Some(Resource::Upload { name }) => format!("Upload {name}"),
                Some(Resource::Tags { name }) => format!("Tags {name}"),
                Some(Resource::Referrers { name, .. }) => format!("Referrers {name}"),
            };
            assert_eq!(short, want, "{path}");
            let checked = want.starts_with("Blob") && path.contains("sha256");
            assert_eq!(blob_digest(&path).is_some(), checked, "{path}");
        }
    }

    #[test]
    fn the_protocol_lives_under_v2() {
        for (path, is) in [("/v2", true), ("/v2/", true), ("/v2/x", true), ("/v2x", false), ("/", false), ("", false)] {
            assert_eq!(is_registry_path(path), is, "{path}");
        }
    }
}
