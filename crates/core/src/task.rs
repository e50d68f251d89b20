use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::id::TaskId;

/// What an origin says of the version of a mutable URL's content (RFC 9110, 8.8).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Validators {
    /// The `ETag` as sent, with its quotes; never a weak one.
    pub etag: Option<String>,
    /// The `Last-Modified` as sent.
    pub last_modified: Option<String>,
}

impl Validators {
    /// Whether there is anything to tell two versions apart by.
    pub const fn is_strong(&self) -> bool {
        self.etag.is_some() || self.last_modified.is_some()
    }

    /// Whether content with validators `other` is the same version as far as both say anything.
    pub fn agrees_with(&self, other: &Self) -> bool {
        let same = |a: &Option<String>, b: &Option<String>| match (a, b) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        same(&self.etag, &other.etag) && same(&self.last_modified, &other.last_modified)
    }
}

/// What makes two downloads the same task.
///
/// A content that is named by its digest is that digest, wherever it comes from. Everything else is its URL, the
/// version that the origin serves there now, and whatever request headers the origin says that the answer depends on.
/// The second kind is written out unambiguously ([`Identity::content`]) and hashed; the text also travels as Dragonfly's
/// `content_for_calculating_task_id`, so that any Dragonfly arrives at the same id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The content's own digest.
    Digest(Digest),
    /// A version of a URL.
    Version {
        /// The URL without credentials, fragment and filtered query parameters.
        url: String,
        /// What the origin says of the version.
        validators: Validators,
        /// The content's length in bytes.
        length: u64,
        /// Names (lower case) and values of the request headers that the answer varies by, sorted by name.
        vary: Vec<(String, String)>,
        /// The user's tag, or empty.
        tag: String,
        /// The user's application, or empty.
        application: String,
    },
}

impl Identity {
    /// The text that is hashed into the task id; `None` for a content with a digest, whose hex is the id itself.
    ///
    /// Each field stands with its length, so no two identities share a text.
    pub fn content(&self) -> Option<String> {
        let Self::Version { url, validators, length, vary, tag, application } = self else {
            return None;
        };
        let mut text = String::from("damselfly/1");
        let mut field = |name: &str, value: &str| {
            // Writing to a String cannot fail.
            let _ = write!(text, "\n{name} {} {value}", value.len());
        };
        field("url", url);
        field("length", &length.to_string());
        field("tag", tag);
        field("application", application);
        if let Some(etag) = &validators.etag {
            field("etag", etag);
        }
        if let Some(date) = &validators.last_modified {
            field("last-modified", date);
        }
        for (name, value) in vary {
            field(&format!("vary:{}:{name}", name.len()), value);
        }
        Some(text)
    }

    /// The task's id.
    pub fn task_id(&self) -> TaskId {
        match (self, self.content()) {
            (Self::Digest(digest), _) => TaskId::from_bytes(*digest.as_bytes()),
            (_, content) => TaskId::from_bytes(Sha256::digest(content.unwrap_or_default()).into()),
        }
    }

    /// The content's own digest, where it has one.
    pub const fn digest(&self) -> Option<Digest> {
        match self {
            Self::Digest(digest) => Some(*digest),
            Self::Version { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(url: &str, tag: &str, etag: Option<&str>, vary: &[(&str, &str)]) -> Identity {
        Identity::Version {
            url: url.into(),
            validators: Validators { etag: etag.map(Into::into), last_modified: None },
            length: 9,
            vary: vary.iter().map(|&(name, value)| (name.into(), value.into())).collect(),
            tag: tag.into(),
            application: String::new(),
        }
    }

    #[test]
    fn a_digest_is_its_own_id() {
        let digest: Digest = format!("sha256:{}", "ab".repeat(32)).parse().unwrap();
        assert_eq!(Identity::Digest(digest).task_id().to_string(), digest.hex());
    }

    #[test]
    fn different_versions_are_different_tasks() {
        let all = [
            version("http://a/b", "", None, &[]),
            version("http://a/", "b", None, &[]),
            version("http://a/b", "", Some("\"1\""), &[]),
            version("http://a/b", "", Some("\"2\""), &[]),
            version("http://a/b", "", None, &[("accept", "x")]),
            version("http://a/b", "", None, &[("accept", "x\nvary:1:b 1 c")]),
            version("http://a/b", "", None, &[("accept", "x"), ("b", "c")]),
            version("http://a/b\ntag 0 ", "", None, &[]),
        ];
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                assert_eq!(a.task_id() == b.task_id(), i == j, "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn validators_agree_where_both_speak() {
        let v = |etag: Option<&str>, date: Option<&str>| Validators {
            etag: etag.map(Into::into),
            last_modified: date.map(Into::into),
        };
        assert!(v(Some("a"), None).agrees_with(&v(Some("a"), Some("d"))));
        assert!(!v(Some("a"), Some("d")).agrees_with(&v(Some("b"), Some("d"))));
        assert!(!v(None, Some("d")).agrees_with(&v(None, Some("e"))));
        assert!(!v(None, None).is_strong());
    }
}
