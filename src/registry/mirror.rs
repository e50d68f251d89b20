//! From a mirror request to the registry's own URL.

use std::net::Ipv6Addr;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, Uri};
use percent_encoding::percent_decode_str;

/// The header by which an operator names the registry in a runtime's mirror settings.
const REGISTRY: HeaderName = HeaderName::from_static("x-dragonfly-registry");
/// Docker's registry is not where its name says.
const DOCKER: &str = "registry-1.docker.io";
/// The longest host name there is.
const MAX_HOST: usize = 253;

/// Why a mirror request names no registry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MirrorError {
    /// Is there a registry? Which one is not said: the answer is 200 and [`super::API_VERSION`], from us.
    #[error("The registry to look at is not named.")]
    Ping,
    /// Nothing in the request or the configuration names a registry.
    #[error(
        "The registry is not named: use ?ns=, X-Dragonfly-Registry, /v2/<registry host>/<repository>/…, or configure \
         proxy.registryMirror.addr."
    )]
    Unnamed,
    /// What names the registry is not a host with a port.
    #[error("{from} must name a registry as HOST or HOST:PORT: {why}.")]
    Invalid {
        /// Where the name stands.
        from: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// Which registry is meant, where the request does not say.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    default: Option<Registry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Registry {
    scheme: Scheme,
    authority: Authority,
}

impl Mirror {
    /// With the configured `proxy.registryMirror.addr`: a host, or its URL without a path.
    ///
    /// # Errors
    /// It is neither.
    pub fn new(addr: Option<&str>) -> Result<Self, MirrorError> {
        let default = addr.map(|addr| Registry::from_url("proxy.registryMirror.addr", addr)).transpose()?;
        Ok(Self { default })
    }

    /// The registry's URL for an origin-form request below `/v2`.
    ///
    /// # Errors
    /// It cannot be told which registry is meant, or what names it is no host.
    pub fn resolve(&self, uri: &Uri, headers: &HeaderMap) -> Result<Uri, MirrorError> {
        let (query, namespace) = split_namespace(uri.query())?;
        let path = uri.path();
        if let Some(namespace) = namespace {
            return Registry::parse("The parameter ns", &namespace)?.url(path, query);
        }
        if let Some(registry) = named_by_header(headers)? {
            return registry.url(path, query);
        }
        if let Some((registry, rest)) = named_by_path(path)? {
            return registry.url(&rest, query);
        }
        match &self.default {
            Some(registry) => registry.clone().url(path, query),
            None if matches!(path, "/v2" | "/v2/") => Err(MirrorError::Ping),
            None => Err(MirrorError::Unnamed),
        }
    }
}

impl Registry {
    /// `HOST[:PORT]`, strictly.
    fn parse(from: &'static str, text: &str) -> Result<Self, MirrorError> {
        let fail = |why| MirrorError::Invalid { from, why };
        if text.contains("://") {
            return Err(fail("a scheme is not allowed here"));
        }
        if text.contains('@') {
            return Err(fail("credentials are not allowed here"));
        }
        if text.contains(['/', '?', '#', '\\']) {
            return Err(fail("a path is not allowed here"));
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !text.ends_with(']') => (host, Some(port)),
            _ => (text, None),
        };
        let number =
            |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse().is_ok_and(|port: u16| port > 0);
        if !port.is_none_or(number) {
            return Err(fail("the port is not a number from 1 to 65535"));
        }
        if !is_host(host) {
            return Err(fail("that is not a host name or an address"));
        }
        let docker = matches!(host.to_ascii_lowercase().as_str(), "docker.io" | "index.docker.io");
        let text = if docker && matches!(port, None | Some("443")) { DOCKER } else { text };
        let authority = text.parse().map_err(|_| fail("that is not a host name or an address"))?;
        Ok(Self { scheme: Scheme::HTTPS, authority })
    }

    /// The same, with a scheme in front and a slash behind if somebody likes: only an operator writes it so.
    fn from_url(from: &'static str, text: &str) -> Result<Self, MirrorError> {
        let (scheme, rest) = match text.split_once("://") {
            None => (Scheme::HTTPS, text),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (Scheme::HTTPS, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (Scheme::HTTP, rest),
            Some(_) => return Err(MirrorError::Invalid { from, why: "its scheme is neither http nor https" }),
        };
        Ok(Self { scheme, ..Self::parse(from, rest.strip_suffix('/').unwrap_or(rest))? })
    }

    fn url(self, path: &str, query: Option<String>) -> Result<Uri, MirrorError> {
        let target = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
        let target = PathAndQuery::try_from(target);
        let built = target.map_err(http::Error::from).and_then(|target| {
            Uri::builder().scheme(self.scheme).authority(self.authority).path_and_query(target).build()
        });
        built.map_err(|_| MirrorError::Invalid { from: "The request", why: "its path is not valid" })
    }
}

fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return address.parse::<Ipv6Addr>().is_ok();
    }
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    host.len() <= MAX_HOST && host.split('.').all(label)
}

fn named_by_header(headers: &HeaderMap) -> Result<Option<Registry>, MirrorError> {
    let from = "X-Dragonfly-Registry";
    let mut lines = headers.get_all(REGISTRY).iter();
    match (lines.next(), lines.next()) {
        (None, _) => Ok(None),
        (Some(_), Some(_)) => Err(MirrorError::Invalid { from, why: "it is there more than once" }),
        (Some(line), None) => {
            let text = line.to_str().map_err(|_| MirrorError::Invalid { from, why: "it is not text" })?;
            Registry::from_url(from, text.trim()).map(Some)
        }
    }
}

/// The registry in front of the repository, and the path without it. A component is a host if it has a dot or a colon,
/// or is `localhost`, as in image references.
fn named_by_path(path: &str) -> Result<Option<(Registry, String)>, MirrorError> {
    let Some(rest) = path.strip_prefix("/v2/") else { return Ok(None) };
    let Some((first, rest)) = rest.split_once('/') else { return Ok(None) };
    let host = percent_decode_str(first).decode_utf8_lossy();
    if !(host.contains(['.', ':']) || host == "localhost") {
        return Ok(None);
    }
    let registry = Registry::parse("The first part of the path", &host)?;
    Ok(Some((registry, format!("/v2/{rest}"))))
}

/// The query without `ns`, its other parameters as they were written; and what `ns` says.
fn split_namespace(query: Option<&str>) -> Result<(Option<String>, Option<String>), MirrorError> {
    let Some(query) = query else { return Ok((None, None)) };
    let (mut kept, mut namespace) = (Vec::new(), None);
    for parameter in query.split('&') {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if name != "ns" {
            kept.push(parameter);
            continue;
        }
        let value = percent_decode_str(value).decode_utf8_lossy().into_owned();
        if namespace.replace(value.clone()).is_some_and(|other| other != value) {
            return Err(MirrorError::Invalid { from: "The parameter ns", why: "it is there more than once" });
        }
    }
    Ok(((!kept.is_empty()).then(|| kept.join("&")), namespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(addr: Option<&str>, uri: &str, registry: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in registry {
            headers.append(REGISTRY, line.parse().unwrap());
        }
        match Mirror::new(addr).unwrap().resolve(&uri.parse().unwrap(), &headers) {
            Ok(uri) => uri.to_string(),
            Err(MirrorError::Ping) => "ping".into(),
            Err(MirrorError::Unnamed) => "unnamed".into(),
            Err(MirrorError::Invalid { .. }) => "invalid".into(),
        }
    }

    #[test]
    fn the_registry_is_found_wherever_a_runtime_names_it() {
        for (uri, header, want) in [
            // containerd
            (
                "/v2/library/x/manifests/1?ns=docker.io",
                &[][..],
                "https://registry-1.docker.io/v2/library/x/manifests/1",
            ),
            ("/v2/x/tags/list?n=5&ns=quay.io&last=a%26b", &[], "https://quay.io/v2/x/tags/list?n=5&last=a%26b"),
            ("/v2/?ns=localhost%3A5000", &[], "https://localhost:5000/v2/"),
            ("/v2/x/blobs/y?ns=registry", &[], "https://registry/v2/x/blobs/y"),
            ("/v2/x/blobs/y?ns=[::1]:5000", &[], "https://[::1]:5000/v2/x/blobs/y"),
            ("/v2/x/blobs/y?ns=a.io&ns=a.io", &[], "https://a.io/v2/x/blobs/y"),
            // ns wins, and the path stays whole
            ("/v2/quay.io/x/blobs/y?ns=a.io", &["b.io"], "https://a.io/v2/quay.io/x/blobs/y"),
            // by header
            ("/v2/x/blobs/y", &["https://ghcr.io"], "https://ghcr.io/v2/x/blobs/y"),
            ("/v2/x/blobs/y", &["http://10.0.0.1:5000/"], "http://10.0.0.1:5000/v2/x/blobs/y"),
            ("/v2/", &["index.docker.io"], "https://registry-1.docker.io/v2/"),
            // podman, CRI-O, skopeo
            ("/v2/quay.io/a/b/manifests/1", &[], "https://quay.io/v2/a/b/manifests/1"),
            ("/v2/localhost:5000/a/blobs/x?q", &[], "https://localhost:5000/v2/a/blobs/x?q"),
            ("/v2/localhost/a/blobs/x", &[], "https://localhost/v2/a/blobs/x"),
            ("/v2/reg%3A5000/a/blobs/x", &[], "https://reg:5000/v2/a/blobs/x"),
            ("/v2/quay.io/", &[], "https://quay.io/v2/"),
            ("/v2/docker.io/library/x/manifests/1", &[], "https://registry-1.docker.io/v2/library/x/manifests/1"),
            // nobody says
            ("/v2/", &[], "ping"),
            ("/v2", &[], "ping"),
            ("/v2/a/b/manifests/1", &[], "unnamed"),
            // no host
            ("/v2/x/blobs/y?ns=https://a.io", &[], "invalid"),
            ("/v2/x/blobs/y?ns=u:p@a.io", &[], "invalid"),
            ("/v2/x/blobs/y?ns=a.io/path", &[], "invalid"),
            ("/v2/x/blobs/y?ns=", &[], "invalid"),
            ("/v2/x/blobs/y?ns=a.io:0", &[], "invalid"),
            ("/v2/x/blobs/y?ns=a.io:+1", &[], "invalid"),
            ("/v2/x/blobs/y?ns=a.io:", &[], "invalid"),
            ("/v2/x/blobs/y?ns=a%20b", &[], "invalid"),
            ("/v2/x/blobs/y?ns=..", &[], "invalid"),
            ("/v2/x/blobs/y?ns=a.io%23", &[], "invalid"),
            ("/v2/x/blobs/y?ns=a.io&ns=b.io", &[], "invalid"),
            ("/v2/x/blobs/y", &["ftp://a.io"], "invalid"),
            ("/v2/x/blobs/y", &["https://a.io/path"], "invalid"),
            ("/v2/x/blobs/y", &["a.io", "b.io"], "invalid"),
            ("/v2/../x/blobs/y", &[], "invalid"),
            ("/v2/a@b.io/x/blobs/y", &[], "invalid"),
        ] {
            assert_eq!(resolve(None, uri, header), want, "{uri} {header:?}");
        }
    }

    #[test]
    fn the_configured_registry_is_the_last_resort() {
        for (addr, uri, want) in [
            ("https://index.docker.io", "/v2/", "https://registry-1.docker.io/v2/"),
            ("harbor.corp:8443", "/v2/a/manifests/1", "https://harbor.corp:8443/v2/a/manifests/1"),
            ("http://127.0.0.1:5000/", "/v2/a/blobs/x", "http://127.0.0.1:5000/v2/a/blobs/x"),
            ("http://127.0.0.1:5000", "/v2/quay.io/a/blobs/x", "https://quay.io/v2/a/blobs/x"),
        ] {
            assert_eq!(resolve(Some(addr), uri, &[]), want, "{addr} {uri}");
        }
        for addr in ["", "https://", "https://a/b", "https://u@a", "a b"] {
            assert!(Mirror::new(Some(addr)).is_err(), "{addr}");
        }
    }
}
