use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::id::TaskId;

/// What an origin says of the version of a mutable URL's content (RFC 9110, 8.8).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Validators {
    /// The `ETag` as sent, with its quotes. A weak one tells versions apart, but does not name one: contents that share
    /// it may differ in their bytes.
    pub etag: Option<String>,
    /// The `Last-Modified` as sent.
    pub last_modified: Option<String>,
}

/// What a weak entity tag begins with.
const WEAK: &str = "W/";

impl Validators {
    /// The entity tag that names one version byte for byte.
    pub fn strong_etag(&self) -> Option<&str> {
        self.etag.as_deref().filter(|tag| !tag.starts_with(WEAK))
    }

    /// Whether they name one version.
    pub fn is_strong(&self) -> bool {
        self.strong_etag().is_some() || self.last_modified.is_some()
    }

    /// Whether content with validators `other` is the same version as far as both say anything. That a tag is weak for
    /// one and strong for the other makes no version (RFC 9110, 8.8.3.2).
    pub fn agrees_with(&self, other: &Self) -> bool {
        let same = |a: &Option<String>, b: &Option<String>| match (a, b) {
            (Some(a), Some(b)) => a.trim_start_matches(WEAK) == b.trim_start_matches(WEAK),
            _ => true,
        };
        same(&self.etag, &other.etag) && same(&self.last_modified, &other.last_modified)
    }
}

/// Whom a stored content may be given to.
///
/// Content that came with credentials is private: every host asks the registry for each of its own callers, whatever
/// its store or its neighbours hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Audience {
    /// Anybody: its source gave it to a caller without credentials.
    #[default]
    Public,
    /// Callers to whom the source says yes; other hosts of the fleet may hold it too.
    Private,
    /// Likewise, and it never leaves this host.
    Host,
}

/// What an identity's text begins with: the form's name and version.
const HEADING: &str = "damselfly/1";

/// Takes one `\nname length value` off the front: name, value, and what is behind.
fn field(text: &str) -> Option<(&str, &str, &str)> {
    let (name, rest) = text.strip_prefix('\n')?.split_once(' ')?;
    let (length, rest) = rest.split_once(' ')?;
    let (value, behind) = rest.split_at_checked(length.parse().ok()?)?;
    Some((name, value, behind))
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
        /// The piece length in bytes that the user asked for; `None` for the usual one. Part of the identity, because
        /// peers of one task have to agree on its pieces.
        piece_length: Option<u64>,
    },
}

impl Identity {
    /// The text that is hashed into the task id; `None` for a content with a SHA-256 digest, whose hex is the id itself.
    ///
    /// Each field stands with its length, so no two identities share a text.
    pub fn content(&self) -> Option<String> {
        let (url, validators, length, vary, tag, application, piece_length) = match self {
            Self::Digest(Digest::Sha256(_)) => return None,
            Self::Digest(digest) => return Some(digest.to_string()),
            Self::Version { url, validators, length, vary, tag, application, piece_length } => {
                (url, validators, length, vary, tag, application, piece_length)
            }
        };
        let mut text = String::from(HEADING);
        let mut field = |name: &str, value: &str| {
            // Writing to a String cannot fail.
            let _ = write!(text, "\n{name} {} {value}", value.len());
        };
        field("url", url);
        field("length", &length.to_string());
        field("tag", tag);
        field("application", application);
        if let Some(piece_length) = piece_length {
            field("piece-length", &piece_length.to_string());
        }
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

    /// Reads what [`Identity::content`] wrote: how a host that is asked to fetch a task for others learns what it is.
    /// `None` for any other text.
    pub fn from_content(text: &str) -> Option<Self> {
        if let Ok(digest @ Digest::Sha512(_)) = text.parse() {
            let identity = Self::Digest(digest);
            return (identity.content().as_deref() == Some(text)).then_some(identity);
        }
        let mut rest = text.strip_prefix(HEADING)?;
        let (mut url, mut length, mut piece_length, mut vary) = (None, None, None, Vec::new());
        let (mut tag, mut application) = (String::new(), String::new());
        let mut validators = Validators::default();
        while !rest.is_empty() {
            let (name, value, behind) = field(rest)?;
            rest = behind;
            match name {
                "url" => url = Some(value.to_owned()),
                "length" => length = value.parse().ok(),
                "tag" => tag = value.to_owned(),
                "application" => application = value.to_owned(),
                "piece-length" => piece_length = Some(value.parse().ok()?),
                "etag" => validators.etag = Some(value.to_owned()),
                "last-modified" => validators.last_modified = Some(value.to_owned()),
                name => vary.push((name.strip_prefix("vary:")?.split_once(':')?.1.to_owned(), value.to_owned())),
            }
        }
        let identity = Self::Version { url: url?, validators, length: length?, vary, tag, application, piece_length };
        // Whatever was read loosely above does not write the same text again.
        (identity.content().as_deref() == Some(text)).then_some(identity)
    }

    /// The task's id.
    pub fn task_id(&self) -> TaskId {
        match (self, self.content()) {
            (Self::Digest(Digest::Sha256(bytes)), _) => TaskId::from_bytes(*bytes),
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
    use proptest::prelude::*;

    fn version(url: &str, tag: &str, etag: Option<&str>, vary: &[(&str, &str)]) -> Identity {
        Identity::Version {
            url: url.into(),
            validators: Validators { etag: etag.map(Into::into), last_modified: None },
            length: 9,
            vary: vary.iter().map(|&(name, value)| (name.into(), value.into())).collect(),
            tag: tag.into(),
            application: String::new(),
            piece_length: None,
        }
    }

    fn cut(url: &str, asked: u64) -> Identity {
        let mut identity = version(url, "", None, &[]);
        if let Identity::Version { piece_length, .. } = &mut identity {
            *piece_length = Some(asked);
        }
        identity
    }

    #[test]
    fn a_digest_is_its_own_id() {
        let digest: Digest = format!("sha256:{}", "ab".repeat(32)).parse().unwrap();
        assert_eq!(Identity::Digest(digest).task_id().to_string(), digest.hex());
    }

    #[test]
    fn a_longer_digest_is_hashed_into_the_id_and_read_back() {
        let digest: Digest = format!("sha512:{}", "ab".repeat(64)).parse().unwrap();
        let identity = Identity::Digest(digest);
        let content = identity.content().unwrap();
        assert_eq!(Identity::from_content(&content), Some(identity.clone()));
        assert_eq!(identity.task_id(), TaskId::from_bytes(Sha256::digest(&content).into()));
        assert_eq!(Identity::from_content(&content.to_uppercase().replacen("SHA", "sha", 1)), None);
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
            cut("http://a/b", 1 << 20),
            cut("http://a/b", 4 << 20),
        ];
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                assert_eq!(a.task_id() == b.task_id(), i == j, "{a:?} {b:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn an_identity_reads_what_it_wrote(
            url in ".*", tag in ".*", etag in proptest::option::of(".*"), length: u64,
            piece_length in proptest::option::of(any::<u64>()),
            vary in prop::collection::vec(("[a-z-]{1,9}", ".*"), 0..3),
        ) {
            let identity = Identity::Version {
                url,
                validators: Validators { etag, last_modified: None },
                length,
                vary,
                tag,
                application: String::new(),
                piece_length,
            };
            prop_assert_eq!(Identity::from_content(&identity.content().unwrap()), Some(identity));
        }

        #[test]
        fn no_text_is_read_as_what_it_is_not(text in "(damselfly/1)?(\n[a-z]{1,6} [0-9]{1,3} .{0,9}){0,4}") {
            if let Some(identity) = Identity::from_content(&text) {
                prop_assert_eq!(identity.content(), Some(text));
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
        assert!(v(Some("W/\"a\""), None).agrees_with(&v(Some("\"a\""), None)));
        assert!(!v(Some("W/\"a\""), Some("d")).agrees_with(&v(Some("W/\"b\""), Some("d"))));
        assert!(!v(Some("W/\"a\""), None).is_strong());
        assert!(v(Some("W/\"a\""), Some("d")).is_strong());
        assert_eq!(v(Some("W/\"a\""), None).strong_etag(), None);
        assert_eq!(v(Some("\"a\""), None).strong_etag(), Some("\"a\""));
    }
}
