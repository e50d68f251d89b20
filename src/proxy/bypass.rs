//! Why a request is not answered from a task: a label of the access log and the metrics, each with its remedy in
//! docs/clients.md.

/// Why a request bypasses the tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Bypass {
    /// Its method is not GET.
    Method,
    /// It has a body.
    Body,
    /// It carries credentials, and no rule names its URL.
    Credentials,
    /// `proxy.privateContent` is `off`.
    PrivateContent,
    /// Its query has what looks like a secret.
    SecretQuery,
    /// It is a signed URL of a registry's blob: who may read it is the signer's to say.
    SignedUrl,
    /// It has preconditions, which the origin has to judge.
    Conditional,
    /// It asks for a range of a URL that does not look like a large file, or for several ranges.
    RangeForm,
    /// The client does not want it: `X-Dragonfly-Use-P2P: false`.
    Disabled,
    /// It asks to change the protocol.
    Upgrade,
    /// It names another host than the one that it was sent to.
    Host,
    /// It, or its answer, forbids that it is stored.
    CacheControl,
    /// Its answer sets a cookie.
    SetCookie,
    /// Its answer is not a 200 (or the 206 of a probe).
    Status,
    /// Its answer does not say its length.
    NoLength,
    /// Its answer is smaller than `proxy.p2p.minSize`.
    Small,
    /// Its answer has neither `ETag` nor `Last-Modified`.
    NoValidator,
    /// Its answer was modified so lately that its date does not tell it from the next version.
    JustModified,
    /// Its answer depends on request headers that are secret or too many.
    Vary,
    /// There was no room for one more download, or on the disk.
    NoRoom,
    /// The task failed before its first byte.
    TaskFailed,
    /// It is a manifest, which is small: identical requests are one, and those by digest are kept.
    Manifest,
    /// It is a question for a registry's token.
    Token,
    /// A tunnel that is not looked into.
    Tunnel,
}

impl Bypass {
    /// The label.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Body => "body",
            Self::Credentials => "credentials",
            Self::PrivateContent => "private-content",
            Self::SecretQuery => "secret-query",
            Self::SignedUrl => "signed-url",
            Self::Conditional => "conditional",
            Self::RangeForm => "range-form",
            Self::Disabled => "disabled",
            Self::Upgrade => "upgrade",
            Self::Host => "host",
            Self::CacheControl => "cache-control",
            Self::SetCookie => "set-cookie",
            Self::Status => "status",
            Self::NoLength => "no-length",
            Self::Small => "small",
            Self::NoValidator => "no-validator",
            Self::JustModified => "just-modified",
            Self::Vary => "vary",
            Self::NoRoom => "no-room",
            Self::TaskFailed => "task-failed",
            Self::Manifest => "manifest",
            Self::Token => "token",
            Self::Tunnel => "tunnel",
        }
    }
}

#[cfg(test)]
mod tests {
    use regex::Regex;

    #[test]
    fn each_label_is_explained_to_operators() {
        let docs = include_str!("../../docs/clients.md");
        let labels = Regex::new(r#"Self::\w+ => "([a-z-]+)""#).unwrap();
        let labels: Vec<_> = labels.captures_iter(include_str!("bypass.rs")).map(|found| found[1].to_owned()).collect();
        assert!(labels.len() > 20, "{labels:?}");
        for label in labels {
            assert!(docs.contains(&format!("\n| `{label}` | ")), "docs/clients.md does not explain {label}");
        }
    }
}
