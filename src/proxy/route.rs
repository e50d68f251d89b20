//! Which way a request goes. The only place where that is decided, and pure: a request's head and the settings in, a
//! [`Route`] out.
//!
//! What is decided here stands on names alone: the method, the URL, the headers. What the origin answers is judged later
//! by the same rules for every route (`task`), and whatever turns out not to be shareable is forwarded as it came.

use std::net::SocketAddr;
use std::sync::Arc;

use damselfly_core::Digest;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, request};

use super::conditional::{is_conditional, wish};
use super::config::Config;
use super::fault::Fault;
use super::headers::{has_credentials, has_passed, is_no_store, upgrade};
use super::rules::{Filter, Rule, has_secret, has_suffix, is_signed};
use crate::mitm::Policy;
use crate::registry::{self, Mirror, MirrorError};
use damselfly_core::RangeWish;

const USE_P2P: HeaderName = HeaderName::from_static("x-dragonfly-use-p2p");
const TAG: HeaderName = HeaderName::from_static("x-dragonfly-tag");
const APPLICATION: HeaderName = HeaderName::from_static("x-dragonfly-application");
const FILTERED: HeaderName = HeaderName::from_static("x-dragonfly-filtered-query-params");
const PIECE_LENGTH: HeaderName = HeaderName::from_static("x-dragonfly-piece-length");

/// The smallest and the largest piece length that a client may ask for, in bytes.
const PIECE_LENGTHS: std::ops::RangeInclusive<u64> = 64 * 1024..=64 * 1024 * 1024;
/// The most bytes of a tag or an application.
const MAX_LABEL: usize = 256;

/// What a page that was meant for us is told.
const HELP: &str = "This is a Damselfly proxy: name it as the HTTP proxy of your tool (curl -x), or as a registry mirror \
                    (paths under /v2/).";

/// By which door a request came in.
#[derive(Clone, Debug, Default)]
pub(super) struct Door {
    /// The scheme and authority of the tunnel that the request came through, if it did.
    pub through: Option<(Scheme, Authority)>,
    /// Our own address on which the client connected: what is addressed to it is meant for us.
    pub local: Option<SocketAddr>,
}

impl Door {
    fn is(&self, authority: &Authority) -> bool {
        let host = bare(authority.host());
        self.local.is_some_and(|local| {
            let ip = if host == "localhost" { Some(local.ip()) } else { host.parse().ok() };
            ip == Some(local.ip()) && authority.port_u16() == Some(local.port())
        })
    }
}

/// Where a tunnel goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// A name or an address, an IPv6 one without its brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// The absolute URL.
    pub uri: Uri,
    /// Whether the client takes us for the registry: then we never answer 429.
    pub mirror: bool,
    /// Whether the client, speaking to the origin itself, named another `Host` than the URL's: it is passed on, and
    /// the answer is that host's and no task.
    pub keep_host: bool,
}

impl Target {
    /// Whether a `Host` names the URL's place.
    pub(super) fn is_named(&self, host: &HeaderValue) -> bool {
        let Some(named) = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()) else { return false };
        let default = if self.uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
        self.uri.host().is_some_and(|own| own.eq_ignore_ascii_case(named.host()))
            && self.uri.port_u16().unwrap_or(default) == named.port_u16().unwrap_or(default)
    }
}

/// The host that a request names, in its `Host` or, in HTTP/2, in its target.
pub(super) fn named_host(parts: &request::Parts) -> Option<HeaderValue> {
    let in_target = || HeaderValue::try_from(parts.uri.authority()?.as_str()).ok();
    parts.headers.get(header::HOST).cloned().or_else(in_target)
}

/// What a client or a rule says of a download besides its URL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DownloadOptions {
    /// What is smaller is not shared.
    pub least: u64,
    /// Query parameters that are no part of the identity; `None`: the signatures that we know.
    pub filtered: Option<Arc<[String]>>,
    /// The user's tag, or empty.
    pub tag: String,
    /// The user's application, or empty.
    pub application: String,
    /// The piece length in bytes that the client asks for.
    pub piece_length: Option<u64>,
}

impl DownloadOptions {
    /// The filter to apply to the URL.
    pub(super) fn filter(&self) -> Filter<'_> {
        self.filtered.as_deref().map_or(Filter::Signatures, Filter::Named)
    }
}

/// The way of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// Answered by us, with an error.
    Reject(Fault),
    /// A container runtime asks whether there is a registry here, without saying which: yes.
    Ping,
    /// Carried blind.
    Tunnel(Endpoint),
    /// A tunnel that we look into.
    Intercept(Endpoint),
    /// Passed on, the answer too.
    Forward(Target),
    /// Passed on; the answer becomes a task if it is large and may be shared.
    Inspect(Target, DownloadOptions),
    /// The origin is asked for one byte first: it looks like a large file.
    Probe(Target, DownloadOptions),
    /// A content that is named by its digest.
    Blob(Target, DownloadOptions, Digest),
}

/// A route's name in metrics and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Label {
    /// Answered by us, with an error.
    Reject,
    /// Carried blind.
    Tunnel,
    /// Looked into.
    Intercept,
    /// Passed on.
    Forward,
    /// Passed on to a registry whose mirror we are.
    Mirror,
    /// Served from a task.
    Task,
}

impl Label {
    /// The name.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Reject => "reject",
            Self::Tunnel => "tunnel",
            Self::Intercept => "intercept",
            Self::Forward => "forward",
            Self::Mirror => "mirror",
            Self::Task => "task",
        }
    }
}

/// All that a route is decided by, besides the request.
#[derive(Debug)]
pub(super) struct Routes {
    /// The proxy's settings.
    pub config: Config,
    /// Which hosts' TLS is intercepted.
    pub policy: Policy,
    /// Which registry a mirror request means.
    pub mirror: Mirror,
}

/// The way of the request with this head, which came in by this door.
pub(super) fn classify(parts: &request::Parts, routes: &Routes, door: &Door) -> Route {
    match decide(parts, routes, door) {
        Ok(route) => route,
        Err(Refusal::Ping) => Route::Ping,
        Err(Refusal::Fault(fault)) => Route::Reject(fault),
    }
}

/// Why a request goes nowhere.
enum Refusal {
    Fault(Fault),
    Ping,
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<MirrorError> for Refusal {
    fn from(error: MirrorError) -> Self {
        match error {
            MirrorError::Ping => Self::Ping,
            error => Self::Fault(Fault::client(StatusCode::BAD_REQUEST, error.to_string())),
        }
    }
}

fn decide(parts: &request::Parts, routes: &Routes, door: &Door) -> Result<Route, Refusal> {
    if has_passed(&parts.headers, &routes.config.id) {
        let sentence = "The request came through this proxy before: there is a loop.";
        return Err(Fault::client(StatusCode::LOOP_DETECTED, sentence).into());
    }
    if parts.method == Method::CONNECT {
        return Ok(connect(&parts.uri, routes)?);
    }
    let target = resolve(parts, routes, door)?;
    if target.keep_host || upgrade(&parts.headers).is_some() || !matches!(parts.method, Method::GET | Method::HEAD) {
        return Ok(Route::Forward(target));
    }
    let url = target.uri.to_string();
    let rule = routes.config.rules.iter().find(|rule| rule.regex.is_match(&url));
    let target = match rule {
        Some(rule) => Target { uri: rule.rewrite(&target.uri), ..target },
        None => target,
    };
    if !is_plain_get(parts) {
        return Ok(Route::Forward(target));
    }
    let options = options(&parts.headers, rule, &routes.config)?;
    Ok(recognise(parts, target, options, rule.is_some(), &routes.config))
}

/// Which large download this GET is, if it is one.
fn recognise(
    parts: &request::Parts,
    target: Target,
    options: DownloadOptions,
    by_rule: bool,
    config: &Config,
) -> Route {
    let p2p = parts.headers.get(USE_P2P).map(|value| value.as_bytes().eq_ignore_ascii_case(b"true"));
    if p2p == Some(false) || has_secret(&target.uri, options.filter()) {
        return Route::Forward(target);
    }
    if let Some(digest) = registry::blob_digest(target.uri.path()) {
        // Whether the client's copy is still good is the origin's to say, and who may read what it signs for some.
        return if is_conditional(&parts.headers) || is_signed(&target.uri) {
            Route::Forward(target)
        } else {
            Route::Blob(target, options, digest)
        };
    }
    if by_rule || p2p == Some(true) {
        return Route::Probe(target, DownloadOptions { least: 1, ..options });
    }
    if has_suffix(&target.uri, &config.suffixes) {
        return Route::Probe(target, options);
    }
    match wish(&parts.headers) {
        RangeWish::Whole => Route::Inspect(target, options),
        _ => Route::Forward(target),
    }
}

/// Whether the request is a GET that anybody could have sent: no body, no credentials, and no word against storing.
fn is_plain_get(parts: &request::Parts) -> bool {
    let headers = &parts.headers;
    let has_body = headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    let has_user = parts.uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    parts.method == Method::GET && !has_body && !has_user && !has_credentials(headers) && !is_no_store(headers)
}

fn connect(uri: &Uri, routes: &Routes) -> Result<Route, Fault> {
    let port = uri.port_u16().filter(|&port| port != 0);
    let (Some(host), Some(port)) = (uri.host().filter(|host| !host.is_empty()), port) else {
        return Err(Fault::malformed("CONNECT needs a host and a port."));
    };
    if routes.config.denied_ports.contains(&port) {
        return Err(Fault::client(StatusCode::FORBIDDEN, format!("This proxy opens no tunnels to port {port}.")));
    }
    let endpoint = Endpoint { host: bare(host).to_owned(), port };
    let intercepts = routes.policy.intercepts(&endpoint.host, port);
    Ok(if intercepts { Route::Intercept(endpoint) } else { Route::Tunnel(endpoint) })
}

/// A host without the brackets of an IPv6 address.
fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// The absolute URL that a request means.
fn resolve(parts: &request::Parts, routes: &Routes, door: &Door) -> Result<Target, Refusal> {
    let target = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    if let Some((scheme, authority)) = &door.through {
        let uri = absolute(scheme.clone(), authority.clone(), target)?;
        let mut target = Target { uri, mirror: false, keep_host: false };
        target.keep_host = named_host(parts).is_some_and(|host| !target.is_named(&host));
        return Ok(target);
    }
    let (scheme, authority) = match (parts.uri.scheme(), parts.uri.authority()) {
        (Some(scheme), Some(authority)) if !door.is(authority) => (scheme, authority),
        _ => return mirrored(parts, &routes.mirror),
    };
    if *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS {
        return Err(Fault::client(StatusCode::BAD_REQUEST, "This proxy speaks http and https only.").into());
    }
    let uri = absolute(scheme.clone(), without_user(authority)?, target)?;
    Ok(Target { uri, mirror: false, keep_host: false })
}

fn mirrored(parts: &request::Parts, mirror: &Mirror) -> Result<Target, Refusal> {
    if !registry::is_registry_path(parts.uri.path()) {
        return Err(Fault::client(StatusCode::NOT_FOUND, HELP).into());
    }
    let uri = mirror.resolve(&parts.uri, &parts.headers)?;
    Ok(Target { uri, mirror: true, keep_host: false })
}

fn absolute(scheme: Scheme, authority: Authority, target: PathAndQuery) -> Result<Uri, Fault> {
    let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(target).build();
    uri.map_err(|_| Fault::malformed("The request's target is not a valid URL."))
}

fn without_user(authority: &Authority) -> Result<Authority, Fault> {
    match authority.as_str().rsplit_once('@') {
        None => Ok(authority.clone()),
        Some((_, host)) => host.parse().map_err(|_| Fault::malformed("The request's target is not a valid URL.")),
    }
}

/// What the client's headers, or else the rule, say of the download.
fn options(headers: &HeaderMap, rule: Option<&Rule>, config: &Config) -> Result<DownloadOptions, Fault> {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let label = |name: &HeaderName| {
        let label = text(name).unwrap_or_default();
        let long = || Fault::client(StatusCode::BAD_REQUEST, format!("{name} is longer than {MAX_LABEL} bytes."));
        if label.len() > MAX_LABEL { Err(long()) } else { Ok(label.to_owned()) }
    };
    let piece_length = match text(&PIECE_LENGTH) {
        None => None,
        Some(length) => {
            let length = length.parse().ok().filter(|length| PIECE_LENGTHS.contains(length));
            let Some(length) = length else {
                return Err(Fault::client(
                    StatusCode::BAD_REQUEST,
                    format!("{PIECE_LENGTH} must be a number of bytes from 64 KiB to 64 MiB."),
                ));
            };
            Some(length)
        }
    };
    let by_client = text(&FILTERED).map(|names| names.split(',').map(|name| name.trim().to_owned()).collect());
    let by_rule = || rule.map(|rule| rule.filtered_query_params.as_slice()).filter(|names| !names.is_empty());
    Ok(DownloadOptions {
        least: config.min_size.max(1),
        filtered: by_client.or_else(|| by_rule().map(Into::into)),
        tag: label(&TAG)?,
        application: label(&APPLICATION)?,
        piece_length,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use regex::Regex;

    const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    /// A world with one rule, one intercepted host and a default registry.
    fn routes() -> Routes {
        let rule = Rule {
            regex: Regex::new("/ruled/").unwrap(),
            use_tls: true,
            redirect: Some("mirror:81".parse().unwrap()),
            filtered_query_params: vec!["s".into()],
        };
        let config = Config { id: "me".into(), rules: vec![rule], ..Config::default() };
        let policy = Policy::new(vec!["looked.example".parse().unwrap()]);
        Routes { config, policy, mirror: Mirror::new(Some("https://registry.example")).unwrap() }
    }

    fn route_from(door: &Door, method: &str, uri: &str, lines: &[(&str, &str)]) -> Route {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        classify(&request.body(()).unwrap().into_parts().0, &routes(), door)
    }

    fn route(method: &str, uri: &str, lines: &[(&str, &str)]) -> Route {
        route_from(&Door::default(), method, uri, lines)
    }

    /// A route in short: its kind and where it goes.
    fn short(route: &Route) -> String {
        match route {
            Route::Reject(fault) => format!("reject {}", fault.status().as_u16()),
            Route::Ping => "ping".into(),
            Route::Tunnel(Endpoint { host, port }) => format!("tunnel {host} {port}"),
            Route::Intercept(Endpoint { host, port }) => format!("intercept {host} {port}"),
            Route::Forward(target) => format!("forward {}", target.uri),
            Route::Inspect(target, _) => format!("inspect {}", target.uri),
            Route::Probe(target, _) => format!("probe {}", target.uri),
            Route::Blob(target, _, _) => format!("blob {}", target.uri),
        }
    }

    #[test]
    fn every_kind_of_request_has_its_way() {
        let blob = format!("/v2/library/x/blobs/{DIGEST}");
        for (method, uri, lines, want) in [
            ("GET", "http://a/b", &[][..], "inspect http://a/b"),
            ("GET", "http://u:p@a/b", &[], "forward http://a/b"),
            ("HEAD", "http://a/b.iso", &[], "forward http://a/b.iso"),
            ("POST", "http://a/b.iso", &[], "forward http://a/b.iso"),
            ("GET", "http://a/b.iso?x", &[], "probe http://a/b.iso?x"),
            ("GET", "https://a/b.iso", &[("range", "bytes=1-")], "probe https://a/b.iso"),
            ("GET", "http://a/b", &[("range", "bytes=1-")], "forward http://a/b"),
            ("GET", "http://a/b", &[("x-dragonfly-use-p2p", "TRUE")], "probe http://a/b"),
            ("GET", "http://a/b.iso", &[("x-dragonfly-use-p2p", "false")], "forward http://a/b.iso"),
            ("GET", "http://a/b.iso", &[("authorization", "x")], "forward http://a/b.iso"),
            ("GET", "http://a/b.iso", &[("cache-control", "no-store")], "forward http://a/b.iso"),
            ("GET", "http://a/b.iso", &[("content-length", "1")], "forward http://a/b.iso"),
            ("GET", "http://a/b.iso", &[("content-length", "0")], "probe http://a/b.iso"),
            ("GET", "http://a/b.iso", &[("connection", "upgrade"), ("upgrade", "ws")], "forward http://a/b.iso"),
            ("GET", "http://a/ruled/b?s=1", &[], "probe https://mirror:81/ruled/b?s=1"),
            ("HEAD", "http://a/ruled/b", &[], "forward https://mirror:81/ruled/b"),
            ("PUT", "http://a/ruled/b", &[], "forward http://a/ruled/b"),
            ("GET", &format!("https://r{blob}"), &[], &format!("blob https://r{blob}")),
            ("GET", &format!("https://r{blob}"), &[("if-none-match", "x")], &format!("forward https://r{blob}")),
            ("GET", &format!("https://r{blob}"), &[("authorization", "x")], &format!("forward https://r{blob}")),
            ("GET", &format!("https://r{blob}?sig=x&sv=1"), &[], &format!("forward https://r{blob}?sig=x&sv=1")),
            ("GET", "http://a/b.iso?access_token=x", &[], "forward http://a/b.iso?access_token=x"),
            ("GET", "http://a/b.iso?X-Amz-Signature=x", &[], "probe http://a/b.iso?X-Amz-Signature=x"),
            ("GET", "http://a/ruled/b?token=1", &[], "forward https://mirror:81/ruled/b?token=1"),
            ("GET", &blob, &[], &format!("blob https://registry.example{blob}")),
            ("HEAD", &blob, &[], &format!("forward https://registry.example{blob}")),
            ("GET", "/v2/", &[], "inspect https://registry.example/v2/"),
            ("GET", "/", &[], "reject 404"),
            ("GET", "ftp://a/b", &[], "reject 400"),
            ("GET", "http://a/b", &[("via", "1.1 me")], "reject 508"),
            ("GET", "http://a/b.iso", &[("x-dragonfly-piece-length", "7")], "reject 400"),
            ("CONNECT", "a:443", &[], "tunnel a 443"),
            ("CONNECT", "a:22", &[], "tunnel a 22"),
            ("CONNECT", "[::1]:8443", &[], "tunnel ::1 8443"),
            ("CONNECT", "looked.example:443", &[], "intercept looked.example 443"),
            ("CONNECT", "a:25", &[], "reject 403"),
            ("CONNECT", "a", &[], "reject 400"),
            ("CONNECT", "a:0", &[], "reject 400"),
        ] {
            assert_eq!(short(&route(method, uri, lines)), want, "{method} {uri} {lines:?}");
        }
    }

    #[test]
    fn a_registry_is_there_even_if_nobody_says_which() {
        let routes = Routes { mirror: Mirror::default(), ..routes() };
        for (uri, want) in [
            ("/v2/", "ping"),
            ("/v2/x/manifests/1", "reject 400"),
            ("/v2/quay.io/x/tags/list", "inspect https://quay.io/v2/x/tags/list"),
        ] {
            let parts = Request::get(uri).body(()).unwrap().into_parts().0;
            assert_eq!(short(&classify(&parts, &routes, &Door::default())), want, "{uri}");
        }
    }

    #[test]
    fn inside_a_tunnel_the_host_is_the_tunnels() {
        let door = Door { through: Some((Scheme::HTTPS, "a:8443".parse().unwrap())), local: None };
        for (lines, uri, want) in [
            (&[("host", "a:8443")][..], "/b.iso", "probe https://a:8443/b.iso"),
            (&[], "https://a:8443/b.iso", "probe https://a:8443/b.iso"),
            (&[("host", "other")], "/b.iso", "forward https://a:8443/b.iso"),
            (&[("host", "a:8443")], "/v2/", "inspect https://a:8443/v2/"),
        ] {
            assert_eq!(short(&route_from(&door, "GET", uri, lines)), want, "{lines:?} {uri}");
        }
        let Route::Forward(target) = route_from(&door, "GET", "/b", &[("host", "other")]) else { panic!() };
        assert!(target.keep_host);
    }

    #[test]
    fn what_is_addressed_to_ourselves_is_meant_for_us() {
        let door = Door { through: None, local: Some("127.0.0.1:4001".parse().unwrap()) };
        for (uri, want) in [
            ("http://127.0.0.1:4001/v2/", "inspect https://registry.example/v2/"),
            ("http://localhost:4001/x", "reject 404"),
            ("http://127.0.0.1:4002/x", "inspect http://127.0.0.1:4002/x"),
            ("http://127.0.0.2:4001/x", "inspect http://127.0.0.2:4001/x"),
        ] {
            assert_eq!(short(&route_from(&door, "GET", uri, &[])), want, "{uri}");
        }
    }

    #[test]
    fn the_client_has_the_last_word_on_what_it_asks_for() {
        let lines =
            [("x-dragonfly-tag", " t "), ("x-dragonfly-application", "a"), ("x-dragonfly-piece-length", "4194304")];
        let Route::Probe(_, options) = route("GET", "http://a/ruled/b", &lines) else { panic!() };
        assert_eq!(
            (options.tag.as_str(), options.application.as_str(), options.piece_length),
            ("t", "a", Some(4 << 20))
        );
        assert_eq!((options.least, options.filter()), (1, Filter::Named(&["s".into()])));
        let lines = [("x-dragonfly-filtered-query-params", "x, y")];
        let Route::Probe(_, options) = route("GET", "http://a/ruled/b", &lines) else { panic!() };
        assert_eq!(options.filter(), Filter::Named(&["x".into(), "y".into()]));
        let Route::Inspect(_, options) = route("GET", "http://a/b", &[]) else { panic!() };
        assert_eq!((options.least, options.filter()), (8 << 20, Filter::Signatures));
        let long = "t".repeat(MAX_LABEL + 1);
        assert_eq!(short(&route("GET", "http://a/b", &[("x-dragonfly-tag", &long)])), "reject 400");
    }
}
