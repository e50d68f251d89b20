//! What a path of the distribution protocol names. The grammar of names, tags and digests is the `oci-spec` crate's.

use oci_spec::distribution::Reference;

/// The registry part of references that are only parsed for the rest: any host that has no special meaning.
const ANY_HOST: &str = "registry.example";

/// What a `/v2/…` path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource<'a> {
    /// `/v2/`: is this a registry, and does it want credentials?
    Ping,
    /// A blob by its digest, of any algorithm.
    Blob {
        /// The repository.
        repository: &'a str,
        /// The digest as written.
        digest: &'a str,
    },
    /// A manifest by a tag, which may name another one tomorrow.
    Tagged {
        /// The repository.
        repository: &'a str,
    },
    /// A manifest by its digest.
    Manifest {
        /// The repository.
        repository: &'a str,
        /// The digest as written.
        digest: &'a str,
    },
    /// Anything else that belongs to a repository: uploads, tags, referrers.
    Other {
        /// The repository.
        repository: &'a str,
    },
}

impl<'a> Resource<'a> {
    /// What `path` names; `None` where the grammar does not know it (it is passed on all the same).
    pub fn parse(path: &'a str) -> Option<Self> {
        if is_ping(path) {
            return Some(Self::Ping);
        }
        let rest = path.strip_prefix("/v2/")?;
        if let Some((repository, _)) = rest.split_once("/blobs/uploads") {
            return is_reference(repository, "").then_some(Self::Other { repository });
        }
        let (head, last) = rest.rsplit_once('/')?;
        let (repository, kind) = head.rsplit_once('/')?;
        let by_digest = || is_reference(repository, &format!("@{last}"));
        match kind {
            "blobs" if by_digest() => Some(Self::Blob { repository, digest: last }),
            "manifests" if by_digest() => Some(Self::Manifest { repository, digest: last }),
            "manifests" if is_reference(repository, &format!(":{last}")) => Some(Self::Tagged { repository }),
            "tags" if last == "list" && is_reference(repository, "") => Some(Self::Other { repository }),
            "referrers" if by_digest() => Some(Self::Other { repository }),
            _ => None,
        }
    }

    /// The repository, where the path names one.
    pub const fn repository(&self) -> Option<&'a str> {
        match self {
            Self::Ping => None,
            Self::Blob { repository, .. }
            | Self::Tagged { repository }
            | Self::Manifest { repository, .. }
            | Self::Other { repository } => Some(repository),
        }
    }
}

/// Whether a client asks at this path whether there is a registry, and what it wants of its callers.
pub fn is_ping(path: &str) -> bool {
    matches!(path, "/v2" | "/v2/")
}

/// Whether the distribution protocol is spoken under this path.
pub fn is_registry_path(path: &str) -> bool {
    path == "/v2" || path.starts_with("/v2/")
}

/// Whether `repository` with this tag or digest behind it is a reference as runtimes write them.
pub fn is_reference(repository: &str, behind: &str) -> bool {
    let parsed = Reference::try_from(format!("{ANY_HOST}/{repository}{behind}"));
    parsed.is_ok_and(|reference| reference.registry() == ANY_HOST && reference.repository() == repository)
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
            ("/v2/a/blobs/uploads/".into(), "Other a"),
            ("/v2/a/b/blobs/uploads/0e1c?x".into(), "Other a/b"),
            ("/v2/a/tags/list".into(), "Other a"),
            (format!("/v2/a/referrers/{digest}"), "Other a"),
            // A repository may be called like a part of the protocol.
            (format!("/v2/blobs/blobs/{digest}"), "Blob blobs"),
            (format!("/v2/blobs/{digest}"), ""),
            (format!("/v2/A/blobs/{digest}"), ""),
            (format!("/v2/a..b/blobs/{digest}"), ""),
            (format!("/v2/../blobs/{digest}"), ""),
            (format!("/v2/a___b/blobs/{digest}"), ""),
            (format!("/v2//a/blobs/{digest}"), ""),
            (format!("/v2/-a/blobs/{digest}"), ""),
            (format!("/v2/a@{digest}/blobs/{digest}"), ""),
            (format!("/v2/a:1/blobs/{digest}"), ""),
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
                Some(Resource::Blob { repository, .. }) => format!("Blob {repository}"),
                Some(Resource::Tagged { repository }) => format!("Tagged {repository}"),
                Some(Resource::Manifest { repository, .. }) => format!("Manifest {repository}"),
                Some(Resource::Other { repository }) => format!("Other {repository}"),
            };
            assert_eq!(short, want, "{path}");
        }
    }

    #[test]
    fn the_protocol_lives_under_v2() {
        for (path, is) in [("/v2", true), ("/v2/", true), ("/v2/x", true), ("/v2x", false), ("/", false), ("", false)] {
            assert_eq!(is_registry_path(path), is, "{path}");
        }
    }
}
