//! What may go wrong between a request and the head of its answer, named for what the caller does next.

use std::error::Error;

use super::BoxError;

/// Why there is no answer. `to` is the authority, never a whole URL; `why` is the cause in words.
///
/// `Denied` is the client's fault (403), the timeouts are 504, all others 502.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// The request names no destination that can be reached by HTTP.
    #[error("The destination cannot be understood: {why}.")]
    Target {
        /// The cause.
        why: String,
    },
    /// The destination policy forbids it.
    #[error("The destination {to} is not allowed: {why}.")]
    Denied {
        /// The authority.
        to: String,
        /// Which rule.
        why: String,
    },
    /// Its name has no address.
    #[error("The name of {to} cannot be resolved: {why}.")]
    Resolve {
        /// The authority.
        to: String,
        /// The cause.
        why: String,
    },
    /// Nobody told its addresses in time.
    #[error("The name of {to} was not resolved in time: the name servers do not answer.")]
    ResolveTimeout {
        /// The authority.
        to: String,
    },
    /// No address of it accepts a connection.
    #[error("Cannot connect to {to}: {why}.")]
    Connect {
        /// The authority.
        to: String,
        /// The cause.
        why: String,
    },
    /// Connecting, or the TLS handshake, took too long.
    #[error("Connecting to {to} took too long.")]
    ConnectTimeout {
        /// The authority.
        to: String,
    },
    /// The proxy that leads out does not lead there.
    #[error("The proxy {proxy} does not connect to {to}: {why}.")]
    Egress {
        /// `HOST:PORT` of the proxy.
        proxy: String,
        /// The authority.
        to: String,
        /// The cause.
        why: String,
    },
    /// The TLS handshake failed, or the certificate is not trusted.
    #[error("No trusted TLS connection to {to}: {why}.")]
    Tls {
        /// The authority.
        to: String,
        /// The cause.
        why: String,
    },
    /// Connected, but no answer came in time.
    #[error("{to} did not answer in time.")]
    HeadTimeout {
        /// The authority.
        to: String,
    },
    /// The connection broke, or what came is not HTTP.
    #[error("The connection to {to} broke: {why}.")]
    Broken {
        /// The authority.
        to: String,
        /// The cause.
        why: String,
    },
}

impl NetError {
    /// Whether time ran out: 504 rather than 502.
    pub const fn is_timeout(&self) -> bool {
        matches!(self, Self::ResolveTimeout { .. } | Self::ConnectTimeout { .. } | Self::HeadTimeout { .. })
    }

    /// What `error`, as the client library gives it, means: our own error where one is inside, else a broken connection.
    pub(super) fn find(to: &str, error: &(dyn Error + 'static)) -> Self {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(own) = error.downcast_ref::<Self>() {
                return own.clone();
            }
            cause = error.source();
        }
        Self::Broken { to: to.into(), why: innermost(error) }
    }
}

/// The text of the innermost cause: the outer ones say only that there is one.
pub(super) fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string().trim_end_matches('.').to_owned()
}

/// Why the settings of the HTTP client are of no use.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A name, address or network that cannot be understood.
    #[error("{text:?} is neither a host name (`*.` in front for all below it), nor an IP address or network: {why}")]
    Pattern {
        /// What was given.
        text: String,
        /// The cause.
        why: &'static str,
    },
    /// An upstream's CA, certificate or key.
    #[error("upstream {host}: {why}")]
    Upstream {
        /// Which upstream.
        host: String,
        /// The cause.
        why: String,
    },
    /// The TLS library refuses its own defaults.
    #[error("TLS cannot be set up")]
    Tls(#[source] BoxError),
}
