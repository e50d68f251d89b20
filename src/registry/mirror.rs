//! From a mirror request to the registry's own URL.

use std::net::Ipv6Addr;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, Uri};
use percent_encoding::percent_decode_str;
use url::Url;

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

/// One registry: how it is spoken to, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    scheme: Scheme,
    authority: Authority,
}

/// A request at the registry that it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirrored {
    /// The registry's own URL.
    pub uri: Uri,
    /// How the client named the registry.
    pub naming: Naming,
}

/// How a client names the registry that it means, and therefore what a URL must look like that leads back through us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Naming {
    /// By `?ns=`, with this value.
    Namespace(String),
    /// By this first component of the path.
    Path(String),
    /// By what stays the same in every request: a header, the configuration, or a port of its own.
    Fixed,
}

impl Naming {
    /// What a `Location` or a link of the registry's answer for `from` becomes, so that the client comes back through
    /// the mirror with it, or finds the place that is meant. `None` where it is fine as it is.
    pub fn lead_back(&self, from: &Uri, location: &str) -> Option<String> {
        let from = Url::parse(&from.to_string()).ok()?;
        let to = from.join(location).ok()?;
        let absolute = Url::parse(location).is_ok();
        if !same_place(&from, &to) {
            return (!absolute).then(|| to.into());
        }
        let query = to.query();
        let target = |path: &str, query: Option<String>| {
            Some(query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}")))
        };
        match (self, super::is_registry_path(to.path())) {
            (Self::Fixed, _) => target(to.path(), query.map(str::to_owned)),
            // Below this path the mirror has nothing; the registry itself has.
            (_, false) => (!absolute).then(|| to.clone().into()),
            (Self::Namespace(namespace), true) => {
                let namespace = url::form_urlencoded::byte_serialize(namespace.as_bytes()).collect::<String>();
                let query = query.map_or_else(String::new, |query| format!("{query}&"));
                target(to.path(), Some(format!("{query}ns={namespace}")))
            }
            (Self::Path(registry), true) => {
                let rest = to.path().strip_prefix("/v2").unwrap_or_default();
                target(&format!("/v2/{registry}{rest}"), query.map(str::to_owned))
            }
        }
    }
}

/// Whether both URLs are of the same host and port, be it over TLS or not: a registry behind a gateway may not know.
fn same_place(a: &Url, b: &Url) -> bool {
    a.host_str() == b.host_str() && a.port() == b.port()
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

    /// The registry's URL for an origin-form request below `/v2`. Where nothing says which registry is meant it is
    /// Docker's: its client knows mirrors of no other, and does not name it.
    ///
    /// # Errors
    /// It cannot be told which registry is meant, or what names it is no host.
    pub fn resolve(&self, uri: &Uri, headers: &HeaderMap) -> Result<Mirrored, MirrorError> {
        let (query, namespace) = split_namespace(uri.query())?;
        let path = uri.path();
        if let Some(namespace) = namespace {
            let uri = Registry::parse("The parameter ns", &namespace)?.url(path, query)?;
            return Ok(Mirrored { uri, naming: Naming::Namespace(namespace) });
        }
        if let Some(registry) = named_by_header(headers)? {
            return registry.mirrored(path, query);
        }
        if let Some((registry, first, rest)) = named_by_path(path)? {
            return Ok(Mirrored { uri: registry.url(&rest, query)?, naming: Naming::Path(first) });
        }
        match &self.default {
            _ if super::is_ping(path) => Err(MirrorError::Ping),
            Some(registry) => registry.mirrored(path, query),
            None => Registry::docker().mirrored(path, query),
        }
    }

    /// The registry that `ns` in a query names, if there is one.
    ///
    /// # Errors
    /// What stands there is no host.
    pub fn by_namespace(&self, query: Option<&str>) -> Result<Option<Registry>, MirrorError> {
        let (_, Some(namespace)) = split_namespace(query)? else { return Ok(None) };
        let named = Registry::parse("The parameter ns", &namespace)?;
        // As it is configured, which may be without TLS.
        let configured = self.default.as_ref().filter(|own| own.authority == named.authority);
        Ok(Some(configured.cloned().unwrap_or(named)))
    }

    /// The registry that is meant where nothing names one: the configured one, or Docker's.
    pub fn unnamed(&self) -> Registry {
        self.default.clone().unwrap_or_else(Registry::docker)
    }

    /// The registry, if there is one, and the repository that a name as clients of the mirror write it means.
    ///
    /// # Errors
    /// What names the registry is no host.
    pub fn repository(name: &str) -> Result<(Option<Registry>, String), MirrorError> {
        // As part of a path, which says the same of it.
        match named_by_path(&format!("/v2/{name}"))? {
            Some((registry, _, rest)) => Ok((Some(registry), rest.trim_start_matches("/v2/").to_owned())),
            None => Ok((None, name.to_owned())),
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

    fn docker() -> Self {
        Self { scheme: Scheme::HTTPS, authority: Authority::from_static(DOCKER) }
    }

    /// Where it is: `HOST[:PORT]`.
    pub fn authority(&self) -> &str {
        self.authority.as_str()
    }

    /// An operator's setting: `HOST[:PORT]`, or its URL without a path. `from` is the setting's name.
    ///
    /// # Errors
    /// It is neither.
    pub fn configured(from: &'static str, text: &str) -> Result<Self, MirrorError> {
        Self::from_url(from, text)
    }

    /// A request for this registry, whatever it names.
    ///
    /// # Errors
    /// The path and the query make no URL.
    pub fn mirrored(&self, path: &str, query: Option<String>) -> Result<Mirrored, MirrorError> {
        Ok(Mirrored { uri: self.url(path, query)?, naming: Naming::Fixed })
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

    /// The URL of a path at this registry.
    ///
    /// # Errors
    /// The path and the query make no URL.
    pub fn url(&self, path: &str, query: Option<String>) -> Result<Uri, MirrorError> {
        let target = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
        let target = PathAndQuery::try_from(target);
        let built = target.map_err(http::Error::from).and_then(|target| {
            Uri::builder().scheme(self.scheme.clone()).authority(self.authority.clone()).path_and_query(target).build()
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

/// The registry in front of the repository, as it is written there, and the path without it. A component is a host if
/// it has a dot or a colon, or is `localhost`, as in image references.
fn named_by_path(path: &str) -> Result<Option<(Registry, String, String)>, MirrorError> {
    let Some(rest) = path.strip_prefix("/v2/") else { return Ok(None) };
    let Some((first, rest)) = rest.split_once('/') else { return Ok(None) };
    let host = percent_decode_str(first).decode_utf8_lossy();
    if !(host.contains(['.', ':']) || host == "localhost") {
        return Ok(None);
    }
    let registry = Registry::parse("The first part of the path", &host)?;
    Ok(Some((registry, first.to_owned(), format!("/v2/{rest}"))))
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
            Ok(mirrored) => mirrored.uri.to_string(),
            Err(MirrorError::Ping) => "ping".into(),
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
            ("/v2/a/b/manifests/1", &[], "https://registry-1.docker.io/v2/a/b/manifests/1"),
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
            ("https://index.docker.io", "/v2/", "ping"),
            ("https://index.docker.io", "/v2/a/tags/list", "https://registry-1.docker.io/v2/a/tags/list"),
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

    #[test]
    fn a_repository_is_named_with_its_registry_in_front() {
        for (addr, name, want) in [
            (None, "quay.io/a/b", "quay.io a/b"),
            (None, "registry.internal:5000/a", "registry.internal:5000 a"),
            (None, "library/x", "registry-1.docker.io library/x"),
            (None, "docker.io/library/x", "registry-1.docker.io library/x"),
            (Some("harbor.corp"), "team/x", "harbor.corp team/x"),
            (Some("harbor.corp"), "quay.io/x", "quay.io x"),
            (None, "u@quay.io/x", "invalid"),
        ] {
            let mirror = Mirror::new(addr).unwrap();
            let named = match Mirror::repository(name) {
                Ok((registry, repository)) => {
                    format!("{} {repository}", registry.unwrap_or_else(|| mirror.unnamed()).authority())
                }
                Err(_) => "invalid".into(),
            };
            assert_eq!(named, want, "{addr:?} {name}");
        }
    }

    #[test]
    fn a_namespace_is_the_configured_registry_as_it_is_configured() {
        for (addr, query, want) in [
            (None, Some("ns=quay.io&service=x"), Ok(Some("https://quay.io/v2/"))),
            (None, Some("ns=docker.io"), Ok(Some("https://registry-1.docker.io/v2/"))),
            (Some("http://r.example:5000"), Some("ns=r.example%3A5000"), Ok(Some("http://r.example:5000/v2/"))),
            (Some("http://r.example:5000"), Some("ns=r.example"), Ok(Some("https://r.example/v2/"))),
            (None, Some("service=x"), Ok(None)),
            (None, None, Ok(None)),
            (None, Some("ns=http://r"), Err(())),
            (None, Some("ns=a&ns=b"), Err(())),
        ] {
            let found = Mirror::new(addr).unwrap().by_namespace(query);
            let found = found.map(|found| found.map(|found| found.url("/v2/", None).unwrap().to_string()));
            assert_eq!(found.as_ref().map(Option::as_deref).map_err(|_| ()), want, "{addr:?} {query:?}");
        }
    }

    #[test]
    fn what_a_registry_points_to_leads_back_through_the_mirror_or_to_the_registry() {
        const UPLOAD: &str = "https://r.example:5000/v2/a/blobs/uploads/";
        let (by_path, by_namespace) =
            (Naming::Path("r.example:5000".into()), Naming::Namespace("r.example:5000".into()));
        for (naming, location, want) in [
            (&by_path, "/v2/a/blobs/uploads/1?s=x", Some("/v2/r.example:5000/a/blobs/uploads/1?s=x")),
            (&by_path, "1", Some("/v2/r.example:5000/a/blobs/uploads/1")),
            (&by_path, "https://r.example:5000/v2/a/blobs/uploads/1", Some("/v2/r.example:5000/a/blobs/uploads/1")),
            (&by_path, "http://r.example:5000/v2/a/blobs/uploads/1", Some("/v2/r.example:5000/a/blobs/uploads/1")),
            (&by_path, "https://cdn.example/b?sig=1", None),
            (&by_path, "//cdn.example/b?sig=1", Some("https://cdn.example/b?sig=1")),
            (&by_path, "/files/b?sig=1", Some("https://r.example:5000/files/b?sig=1")),
            (&by_path, "https://r.example:5000/files/b", None),
            (&by_namespace, "/v2/a/blobs/uploads/1?s=x", Some("/v2/a/blobs/uploads/1?s=x&ns=r.example%3A5000")),
            (&by_namespace, "/v2/a/blobs/uploads/1", Some("/v2/a/blobs/uploads/1?ns=r.example%3A5000")),
            (&by_namespace, "/files/b", Some("https://r.example:5000/files/b")),
            (&Naming::Fixed, "/v2/a/blobs/uploads/1?s=x", Some("/v2/a/blobs/uploads/1?s=x")),
            (&Naming::Fixed, "https://r.example:5000/v2/x", Some("/v2/x")),
            (&Naming::Fixed, "https://r.example/v2/x", None),
        ] {
            let led = naming.lead_back(&UPLOAD.parse().unwrap(), location);
            assert_eq!(led.as_deref(), want, "{naming:?} {location}");
        }
    }
}
