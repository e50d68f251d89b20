//! How one registry or origin is to be reached, where that differs from what its URL says. Pure.

use std::fmt;

use http::Uri;
use http::uri::{Authority, Scheme};

use super::policy::bare;

/// Settings for the authority `HOST[:PORT]`; without a port, for every port of the host that has no settings of its own.
#[derive(Clone, Default)]
pub struct Upstream {
    /// `HOST[:PORT]`.
    pub host: String,
    /// Spoken instead of the URL's scheme.
    pub scheme: Option<Scheme>,
    /// Certificates (PEM) that are trusted besides the machine's.
    pub ca_pem: Option<Vec<u8>>,
    /// Our certificate and those between it and its CA (PEM); together with `key_pem`.
    pub cert_pem: Option<Vec<u8>>,
    /// Its private key (PEM).
    pub key_pem: Option<Vec<u8>>,
}

impl Upstream {
    /// Whether these settings are for the host with this port, and whether they name the port.
    fn meant(&self, host: &str, port: u16) -> Option<bool> {
        let (own, named) = match self.host.parse::<Authority>() {
            Ok(authority) => (authority.host().to_owned(), authority.port_u16()),
            Err(_) => (self.host.clone(), None),
        };
        (bare(&own).eq_ignore_ascii_case(bare(host)) && named.is_none_or(|named| named == port))
            .then_some(named.is_some())
    }

    /// Whether a TLS configuration of its own is needed.
    pub(super) const fn has_tls(&self) -> bool {
        self.ca_pem.is_some() || self.cert_pem.is_some()
    }

    /// `uri` in this upstream's scheme. A default port goes with its scheme, unless the settings name it.
    pub(super) fn apply(&self, uri: &Uri) -> Option<Uri> {
        let scheme = self.scheme.as_ref().filter(|scheme| Some(*scheme) != uri.scheme())?;
        let authority = uri.authority()?;
        let named = self.meant(uri.host()?, port_of(uri)?)?;
        let mut parts = uri.clone().into_parts();
        if !named && authority.port_u16() == default_port(uri.scheme()?) {
            parts.authority = Some(uri.host()?.parse().ok()?);
        }
        parts.scheme = Some(scheme.clone());
        Uri::from_parts(parts).ok()
    }
}

/// Index of the settings for `uri`: those that name its port come first.
pub(super) fn find(upstreams: &[Upstream], uri: &Uri) -> Option<usize> {
    let (host, port) = (uri.host()?, port_of(uri)?);
    let mut found = None;
    for (index, upstream) in upstreams.iter().enumerate() {
        match upstream.meant(host, port) {
            Some(true) => return Some(index),
            Some(false) if found.is_none() => found = Some(index),
            _ => {}
        }
    }
    found
}

/// Whether `uri` is reached with a client certificate of ours.
pub fn presents_certificate(upstreams: &[Upstream], uri: &Uri) -> bool {
    find(upstreams, uri).is_some_and(|index| upstreams[index].cert_pem.is_some())
}

/// The scheme in which `uri` is really asked for.
pub fn spoken_scheme<'a>(upstreams: &'a [Upstream], uri: &'a Uri) -> Option<&'a Scheme> {
    find(upstreams, uri).and_then(|index| upstreams[index].scheme.as_ref()).or(uri.scheme())
}

/// The port that `uri` means.
pub(super) fn port_of(uri: &Uri) -> Option<u16> {
    uri.port_u16().or_else(|| default_port(uri.scheme()?))
}

/// The port of a scheme's URLs that name none.
pub(super) fn default_port(scheme: &Scheme) -> Option<u16> {
    match scheme.as_str() {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("host", &self.host)
            .field("scheme", &self.scheme)
            .field("ca", &self.ca_pem.is_some())
            .field("client_certificate", &self.cert_pem.is_some())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(host: &str, scheme: Scheme) -> Upstream {
        Upstream { host: host.into(), scheme: Some(scheme), ..Upstream::default() }
    }

    #[test]
    fn the_scheme_of_an_upstream_replaces_the_urls() {
        let all = [
            upstream("plain.example", Scheme::HTTP),
            upstream("plain.example:5443", Scheme::HTTPS),
            upstream("fixed.example:443", Scheme::HTTP),
            upstream("10.0.0.1:5000", Scheme::HTTP),
            upstream("[::1]", Scheme::HTTP),
            upstream("up.example", Scheme::HTTPS),
        ];
        for (uri, becomes) in [
            ("https://plain.example/v2/?a=b", Some("http://plain.example/v2/?a=b")),
            ("https://PLAIN.example:443/", Some("http://PLAIN.example/")),
            ("https://plain.example:5000/", Some("http://plain.example:5000/")),
            ("https://plain.example:5443/", None),
            ("http://plain.example:5443/", Some("https://plain.example:5443/")),
            ("https://fixed.example/", Some("http://fixed.example/")),
            ("https://fixed.example:443/", Some("http://fixed.example:443/")),
            ("https://10.0.0.1:5000/", Some("http://10.0.0.1:5000/")),
            ("https://10.0.0.1:5001/", None),
            ("https://[::1]:5000/", Some("http://[::1]:5000/")),
            ("http://up.example/x", Some("https://up.example/x")),
            ("https://other.example/", None),
        ] {
            let uri: Uri = uri.parse().unwrap();
            let got = find(&all, &uri).and_then(|index| all[index].apply(&uri)).map(|uri| uri.to_string());
            assert_eq!(got.as_deref(), becomes, "{uri}");
        }
    }
}
