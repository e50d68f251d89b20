//! Which URLs are large immutable downloads by what they look like, and what of a URL says which content is meant.
//!
//! Pure. The origin is always asked for the whole URL; what is left out here is left out of the task's identity only.

use http::Uri;
use http::uri::{Authority, Scheme};
use percent_encoding::percent_decode_str;
use regex::Regex;

/// One entry of `proxy.rules`: URLs that the operator knows to be worth sharing.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Matched anywhere in the URL, query included.
    pub regex: Regex,
    /// Ask the origin over TLS, whatever the URL's scheme.
    pub use_tls: bool,
    /// Ask this `HOST[:PORT]` instead of the URL's own.
    pub redirect: Option<Authority>,
    /// Query parameters that don't say which content is meant; empty: the signatures that we know.
    pub filtered_query_params: Vec<String>,
}

impl Rule {
    /// Where a request for `uri` goes under this rule.
    pub fn rewrite(&self, uri: &Uri) -> Uri {
        let mut parts = uri.clone().into_parts();
        if self.use_tls {
            parts.scheme = Some(Scheme::HTTPS);
        }
        if let Some(redirect) = &self.redirect {
            parts.authority = Some(redirect.clone());
        }
        Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
    }
}

/// The endings of file names that are usually large and rarely change.
pub const SUFFIXES: &[&str] = &[
    ".7z",
    ".apk",
    ".bin",
    ".box",
    ".bz2",
    ".ckpt",
    ".crate",
    ".deb",
    ".dmg",
    ".exe",
    ".gguf",
    ".gz",
    ".h5",
    ".img",
    ".iso",
    ".jar",
    ".msi",
    ".onnx",
    ".ova",
    ".parquet",
    ".pkg",
    ".pt",
    ".pth",
    ".qcow2",
    ".raw",
    ".rpm",
    ".run",
    ".safetensors",
    ".squashfs",
    ".tar",
    ".tbz2",
    ".tgz",
    ".txz",
    ".vhd",
    ".vhdx",
    ".vmdk",
    ".war",
    ".whl",
    ".xz",
    ".zip",
    ".zst",
];

/// Whether the last name of a URL's path ends like a large file, whatever the case.
pub(super) fn has_suffix(uri: &Uri, suffixes: &[String]) -> bool {
    let path = uri.path().as_bytes();
    suffixes.iter().any(|suffix| {
        let suffix = suffix.as_bytes();
        path.len() > suffix.len() && path[path.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
    })
}

/// One scheme of signed URLs: its parameters say who may read and until when, not what.
struct Signature {
    /// The parameters that must all be there for the others to be a signature's; a plain `version=2` is no signature.
    marks: &'static [&'static str],
    /// What to leave out: exact names, or everything that begins so where it ends in `*`.
    drops: &'static [&'static str],
}

const SIGNATURES: &[Signature] = &[
    Signature { marks: &["X-Amz-Signature"], drops: &["X-Amz-*"] },
    Signature { marks: &["X-Goog-Signature"], drops: &["X-Goog-*"] },
    Signature { marks: &["GoogleAccessId", "Signature"], drops: &["GoogleAccessId", "Expires", "Signature"] },
    Signature {
        marks: &["AWSAccessKeyId", "Signature"],
        drops: &["AWSAccessKeyId", "Expires", "Signature", "x-amz-security-token"],
    },
    Signature {
        marks: &["OSSAccessKeyId", "Signature"],
        drops: &["OSSAccessKeyId", "Expires", "Signature", "SecurityToken"],
    },
    Signature { marks: &["x-oss-signature"], drops: &["x-oss-*"] },
    Signature {
        marks: &["AccessKeyId", "Signature"],
        drops: &["AccessKeyId", "Expires", "Signature", "X-Obs-Date", "X-Obs-Security-Token", "x-obs-security-token"],
    },
    Signature { marks: &["X-Obs-Signature"], drops: &["X-Obs-*"] },
    Signature {
        marks: &["q-signature"],
        drops: &[
            "q-sign-algorithm",
            "q-ak",
            "q-sign-time",
            "q-key-time",
            "q-header-list",
            "q-url-param-list",
            "q-signature",
            "x-cos-security-token",
        ],
    },
    Signature { marks: &["Key-Pair-Id", "Signature"], drops: &["Expires", "Key-Pair-Id", "Policy", "Signature"] },
    Signature {
        marks: &["sig", "sv"],
        drops: &[
            "se", "ses", "sig", "sip", "skdutid", "ske", "skoid", "sks", "skt", "sktid", "skv", "sp", "spr", "sr",
            "st", "sv", "saoid", "scid", "sdd", "si", "ss", "srt", "suoid",
        ],
    },
    Signature { marks: &["expires", "signature"], drops: &["expires", "signature", "version"] },
];

/// Which query parameters are not part of a content's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter<'a> {
    /// Those of signatures that we know.
    Signatures,
    /// Those with these names, as a rule or the client says.
    Named(&'a [String]),
}

/// The URL that stands for a content: without user, fragment, and filtered parameters, the scheme's own port left out.
pub(super) fn identity_url(uri: &Uri, filter: Filter<'_>) -> String {
    let mut url = String::new();
    if let Some(scheme) = uri.scheme_str() {
        url.push_str(scheme);
        url.push_str("://");
    }
    if let Some(host) = uri.host() {
        url.push_str(&host.to_ascii_lowercase());
    }
    match (uri.port_u16(), uri.scheme_str()) {
        (Some(80), Some("http")) | (Some(443), Some("https")) | (None, _) => {}
        (Some(port), _) => {
            url.push(':');
            url.push_str(&port.to_string());
        }
    }
    url.push_str(uri.path());
    let kept: Vec<&str> = kept(uri, filter).into_iter().map(|(_, pair)| pair).collect();
    if !kept.is_empty() {
        url.push('?');
        url.push_str(&kept.join("&"));
    }
    url
}

/// Whether what `filter` leaves of a URL's query looks like a secret: then the request has credentials in its URL, and
/// the URL is not to be told to anybody but its origin.
pub(super) fn has_secret(uri: &Uri, filter: Filter<'_>) -> bool {
    kept(uri, filter).iter().any(|(name, _)| {
        let name: String = name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
        SECRETS.contains(&name.as_str()) || SECRET_PARTS.iter().any(|part| name.contains(part))
    })
}

/// Whether a URL's query has anything in it that says who may read, be it a signature or a secret.
pub(super) fn is_signed(uri: &Uri) -> bool {
    has_secret(uri, Filter::Named(&[]))
}

/// Whether a URL's query has a signature of a kind that we know.
pub(super) fn bears_signature(uri: &Uri) -> bool {
    let query = uri.query().unwrap_or_default();
    unsigned(query).len() < pairs(query).count()
}

/// Names of parameters whose value is a secret; letters and digits only, in lower case, as those of [`SECRET_PARTS`].
const SECRETS: [&str; 9] = ["auth", "code", "hmac", "key", "pass", "pwd", "sig", "sign", "ticket"];
/// What in a parameter's name betrays the same.
const SECRET_PARTS: [&str; 11] = [
    "accesskey",
    "apikey",
    "authkey",
    "authorization",
    "credential",
    "jwt",
    "passw",
    "secret",
    "session",
    "signature",
    "token",
];

/// The parameters of a URL's query that `filter` leaves: decoded name, and as they stand.
fn kept<'u>(uri: &'u Uri, filter: Filter<'_>) -> Vec<(String, &'u str)> {
    let query = uri.query().unwrap_or_default();
    match filter {
        Filter::Named(names) => pairs(query).filter(|(name, _)| !names.iter().any(|n| n == name)).collect(),
        Filter::Signatures => unsigned(query),
    }
}

/// The parameters of a query that belong to no signature in it.
fn unsigned(query: &str) -> Vec<(String, &str)> {
    let pairs: Vec<(String, &str)> = pairs(query).collect();
    let present = |mark: &str| pairs.iter().any(|(name, _)| name == mark);
    let signatures: Vec<_> = SIGNATURES.iter().filter(|s| s.marks.iter().all(|mark| present(mark))).collect();
    let dropped = |name: &str| signatures.iter().flat_map(|s| s.drops).any(|drop| matches(drop, name));
    pairs.iter().filter(|(name, _)| !dropped(name)).cloned().collect()
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => {
            name.len() >= prefix.len() && name.as_bytes()[..prefix.len()].eq_ignore_ascii_case(prefix.as_bytes())
        }
        None => name == pattern,
    }
}

/// Each parameter's decoded name, with the parameter as it stands.
fn pairs(query: &str) -> impl Iterator<Item = (String, &str)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let name = pair.split('=').next().unwrap_or_default();
        (percent_decode_str(name).decode_utf8_lossy().into_owned(), pair)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(url: &str) -> String {
        identity_url(&url.parse().unwrap(), Filter::Signatures)
    }

    #[test]
    fn signatures_are_no_part_of_the_identity() {
        for (url, want) in [
            ("http://a/b?X-Amz-Signature=1&X-Amz-Date=2&x-amz-security-token=3&k=v", "http://a/b?k=v"),
            ("http://a/b?X-Goog-Signature=1&X-Goog-Expires=2", "http://a/b"),
            ("http://a/b?AWSAccessKeyId=1&Expires=2&Signature=3", "http://a/b"),
            ("http://a/b?OSSAccessKeyId=1&Expires=2&Signature=3&SecurityToken=4", "http://a/b"),
            ("http://a/b?AccessKeyId=1&Expires=2&Signature=3", "http://a/b"),
            ("http://a/b?q-sign-algorithm=sha1&q-ak=1&q-signature=2&z=1", "http://a/b?z=1"),
            ("http://a/b?Expires=1&Signature=2&Key-Pair-Id=3&Policy=4", "http://a/b"),
            ("http://a/b?sv=1&se=2&sr=b&sp=r&sig=3&skoid=4&comp=x", "http://a/b?comp=x"),
            ("http://a/b?expires=1&signature=2&version=3", "http://a/b"),
            // Not signed: the same names mean something.
            ("http://a/b?version=3", "http://a/b?version=3"),
            ("http://a/b?sv=1&sp=2", "http://a/b?sv=1&sp=2"),
            ("http://a/b?Expires=1", "http://a/b?Expires=1"),
            ("http://a/b?x=%26&&y", "http://a/b?x=%26&y"),
        ] {
            assert_eq!(identity(url), want, "{url}");
        }
    }

    #[test]
    fn secrets_are_known_by_their_names() {
        for (url, kept, signed) in [
            ("http://a/b", false, false),
            ("http://a/b?version=3&author=x&keyword=y", false, false),
            ("http://a/b?token=1", true, true),
            ("http://a/b?x=y&Private-Token=1", true, true),
            ("http://a/b?access%5Ftoken=1", true, true),
            ("http://a/b?api_key=1", true, true),
            ("http://a/b?key=1", true, true),
            ("http://a/b?sig=1", true, true),
            ("http://a/b?X-Amz-Signature=1&X-Amz-Credential=2", false, true),
            ("http://a/b?X-Amz-Signature=1&jwt=2", true, true),
            ("http://a/b?sv=1&sig=2", false, true),
        ] {
            let url = url.parse().unwrap();
            assert_eq!((has_secret(&url, Filter::Signatures), is_signed(&url)), (kept, signed), "{url}");
        }
        let names = ["token".to_owned()];
        assert!(!has_secret(&"http://a/b?token=1".parse().unwrap(), Filter::Named(&names)), "it is left out");
        assert!(has_secret(&"http://a/b?token=1&key=2".parse().unwrap(), Filter::Named(&names)));
    }

    #[test]
    fn one_place_has_one_name() {
        assert_eq!(identity("http://u:p@A.example:80/B"), "http://a.example/B");
        assert_eq!(identity("https://a:443/"), "https://a/");
        assert_eq!(identity("https://a:80/"), "https://a:80/");
        assert_eq!(identity("http://[::1]:8080/x"), "http://[::1]:8080/x");
    }

    #[test]
    fn named_parameters_are_left_out_as_they_are_named() {
        let names = ["a".to_owned(), "b c".to_owned()];
        let uri = "http://h/p?a=1&b%20c=2&A=3&X-Amz-Signature=4".parse().unwrap();
        assert_eq!(identity_url(&uri, Filter::Named(&names)), "http://h/p?A=3&X-Amz-Signature=4");
    }

    #[test]
    fn large_files_are_known_by_their_endings() {
        let suffixes: Vec<String> = SUFFIXES.iter().map(|&s| s.to_owned()).collect();
        for (url, want) in [
            ("http://a/b/c.iso", true),
            ("http://a/c.TAR", true),
            ("http://a/c.bin?x=y", true),
            ("http://a/c.html?x=y.bin", false),
            ("http://a/.bin/x", false),
            ("http://a/", false),
        ] {
            assert_eq!(has_suffix(&url.parse().unwrap(), &suffixes), want, "{url}");
        }
    }

    #[test]
    fn a_rule_sends_elsewhere() {
        let rule = Rule {
            regex: Regex::new("x").unwrap(),
            use_tls: true,
            redirect: Some("mirror:81".parse().unwrap()),
            filtered_query_params: Vec::new(),
        };
        assert_eq!(rule.rewrite(&"http://a/b?c".parse().unwrap()).to_string(), "https://mirror:81/b?c");
    }
}
