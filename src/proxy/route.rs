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
use url::form_urlencoded;

use super::bypass::Bypass;
use super::conditional::{has_several_ranges, is_conditional, wish};
use super::config::{Config, PrivateContent};
use super::fault::Fault;
use super::headers::{has_credentials, has_passed, is_no_store, upgrade};
use super::page;
use super::rules::{Filter, Rule, has_secret, has_suffix, is_signed};
use crate::mitm::Policy;
use crate::net::{Upstream, presents_certificate};
use crate::registry::{self, Mirror, MirrorError, Mirrored, Naming, Registry, Resource};
use damselfly_core::RangeWish;

const USE_P2P: HeaderName = HeaderName::from_static("x-dragonfly-use-p2p");
const TAG: HeaderName = HeaderName::from_static("x-dragonfly-tag");
const APPLICATION: HeaderName = HeaderName::from_static("x-dragonfly-application");
const FILTERED: HeaderName = HeaderName::from_static("x-dragonfly-filtered-query-params");
/// Where clients of the mirror ask us for tokens.
pub(super) const TOKEN_PATH: &str = "/token";
/// Our name in the challenge that sends them there.
pub(super) const SERVICE: &str = "damselfly";
const PIECE_LENGTH: HeaderName = HeaderName::from_static("x-dragonfly-piece-length");

/// The smallest and the largest piece length that a client may ask for, in bytes.
const PIECE_LENGTHS: std::ops::RangeInclusive<u64> = 64 * 1024..=64 * 1024 * 1024;
/// The most bytes of a tag or an application.
const MAX_LABEL: usize = 256;

/// What a page that was meant for us is told.
const HELP: &str = "This is a Damselfly proxy: name it as the HTTP proxy of your tool (curl -x), or as a registry mirror \
                    (paths under /v2/). http://damselfly.local/ through it says more.";

/// How a request came in.
#[derive(Clone, Debug, Default)]
pub(super) struct Ingress {
    /// The scheme and authority of the tunnel that the request came through, if it did.
    pub through: Option<(Scheme, Authority)>,
    /// Our own address on which the client connected: what is addressed to it is meant for us.
    pub local: Option<SocketAddr>,
    /// The registry of a mirror port: what is addressed to us there is meant for it.
    pub registry: Option<Arc<Registry>>,
    /// Where the firewall has taken the connection from on its way here, if it has.
    pub redirected: Option<SocketAddr>,
    /// Who asks at the socket for tools on this host, where the connection came by that.
    pub socket: Option<SocketCaller>,
}

/// Somebody at the socket for tools on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SocketCaller {
    /// Whether it is root or the daemon's own user, who may change how the daemon works.
    pub operates: bool,
}

impl Ingress {
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
    /// How the client named the registry that it takes us for, if it does: then we never answer 429, and what the
    /// registry points to leads back to us.
    pub mirror: Option<Naming>,
    /// Whether the client, speaking to the origin itself, named another `Host` than the URL's: it is passed on, and
    /// the answer is that host's and no task.
    pub keep_host: bool,
    /// Whether the request carries what only its sender may know.
    pub with_credentials: bool,
    /// The repository of a registry that a GET or HEAD is about, as the registry knows it.
    pub repository: Option<Box<str>>,
}

impl Target {
    /// A URL, and how the client named its registry, if it takes us for one. What a request says besides is not known.
    pub(super) fn new(uri: Uri, mirror: Option<Naming>) -> Self {
        Self { uri, mirror, keep_host: false, with_credentials: false, repository: None }
    }

    /// Whether its sender has nothing to show, and takes us for the registry: then we may show what anybody may have.
    pub(super) const fn serves_anybody(&self) -> bool {
        self.mirror.is_some() && !self.with_credentials
    }

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
    /// Likewise, and it has no token yet: it is told where it gets one for every registry.
    Challenge,
    /// A question for a token to ourselves, as [`Route::Challenge`] told; on a mirror port, and where the challenge named
    /// it, it is for this registry.
    Token(Option<Arc<Registry>>),
    /// Our own page, for those who ask through us ([`page::HOST`]).
    Page,
    /// Carried blind.
    Tunnel(Endpoint),
    /// A tunnel that we look into.
    Intercept(Endpoint),
    /// Passed on, the answer too.
    Forward(Target, Bypass),
    /// Passed on; the answer becomes a task if it is large and may be shared.
    Inspect(Target, DownloadOptions),
    /// The origin is asked for one byte first: it looks like a large file.
    Probe(Target, DownloadOptions),
    /// A content that is named by its digest.
    Blob(Target, DownloadOptions, Digest),
    /// A manifest, by its digest or by a tag.
    Manifest(Target, Option<Digest>),
}

impl Route {
    /// Where the request goes, unless it ends with us or in a tunnel.
    pub(super) const fn target(&self) -> Option<&Target> {
        match self {
            Self::Forward(target, _)
            | Self::Inspect(target, _)
            | Self::Probe(target, _)
            | Self::Blob(target, ..)
            | Self::Manifest(target, _) => Some(target),
            Self::Reject(_)
            | Self::Ping
            | Self::Challenge
            | Self::Token(_)
            | Self::Page
            | Self::Tunnel(_)
            | Self::Intercept(_) => None,
        }
    }
}

/// A route's name in metrics and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Label {
    /// Answered by us, with an error.
    Reject,
    /// Our own page.
    Page,
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
            Self::Page => "page",
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
    /// Origins that are reached in their own way, some of them with a certificate of this host.
    pub upstreams: Vec<Upstream>,
}

impl Routes {
    /// Whether what comes from this URL comes because of this host's own certificate.
    pub(super) fn has_certificate(&self, uri: &Uri) -> bool {
        presents_certificate(&self.upstreams, uri)
    }
}

/// The way of the request with this head, which came in this way.
pub(super) fn classify(parts: &request::Parts, routes: &Routes, ingress: &Ingress) -> Route {
    match decide(parts, routes, ingress) {
        Ok(route) => route,
        Err(Refusal::Ours(route)) => *route,
        Err(Refusal::Fault(fault)) => Route::Reject(fault),
    }
}

/// Why a request goes nowhere.
enum Refusal {
    Fault(Fault),
    /// It is answered by us.
    Ours(Box<Route>),
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

fn decide(parts: &request::Parts, routes: &Routes, ingress: &Ingress) -> Result<Route, Refusal> {
    if has_passed(&parts.headers, &routes.config.id) {
        let sentence = "The request came through this proxy before: there is a loop.";
        return Err(Fault::client(StatusCode::LOOP_DETECTED, sentence).into());
    }
    if parts.method == Method::CONNECT {
        return Ok(connect(&parts.uri, routes)?);
    }
    let mut target = resolve(parts, routes, ingress)?;
    if page::is_meant(&target.uri) {
        return Ok(Route::Page);
    }
    target.with_credentials = has_credentials(&parts.headers);
    if target.keep_host {
        return Ok(Route::Forward(target, Bypass::Host));
    }
    if upgrade(&parts.headers).is_some() {
        return Ok(Route::Forward(target, Bypass::Upgrade));
    }
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return Ok(Route::Forward(target, Bypass::Method));
    }
    let rule = rule(&target.uri, &routes.config.rules);
    if let Some(rule) = rule {
        target.uri = rule.rewrite(&target.uri);
    }
    let named = Named::by(&mut target);
    if let Some(bypass) = never_shared(parts) {
        return Ok(Route::Forward(target, bypass));
    }
    if use_p2p(&parts.headers) == Some(false) {
        return Ok(Route::Forward(target, Bypass::Disabled));
    }
    if let Some(Named::Manifest(digest)) = named
        && !is_private_and_off(&target, routes)
        && !is_conditional(&parts.headers)
        && !parts.headers.contains_key(header::RANGE)
    {
        return Ok(Route::Manifest(target, digest));
    }
    if parts.method != Method::GET {
        return Ok(Route::Forward(target, Bypass::Method));
    }
    let options = options(&parts.headers, rule, &routes.config)?;
    Ok(recognise(parts, target, named, options, rule.is_some(), routes))
}

/// The operator's rule for a URL.
fn rule<'a>(uri: &Uri, rules: &'a [Rule]) -> Option<&'a Rule> {
    if rules.is_empty() {
        return None;
    }
    let url = uri.to_string();
    rules.iter().find(|rule| rule.regex.is_match(&url))
}

/// What of a registry's repository a URL names. To parse it is dear, so it is done once for each request.
#[derive(Clone, Copy)]
enum Named {
    Blob(Digest),
    /// By its digest, or by a tag.
    Manifest(Option<Digest>),
}

impl Named {
    /// What the target's path names; notes the repository in the target.
    fn by(target: &mut Target) -> Option<Self> {
        let resource = Resource::parse(target.uri.path())?;
        let named = match resource {
            Resource::Blob { digest, .. } => digest.parse().ok().map(Self::Blob),
            Resource::Tagged { .. } => Some(Self::Manifest(None)),
            Resource::Manifest { digest, .. } => Some(Self::Manifest(digest.parse().ok())),
            Resource::Ping | Resource::Other { .. } => None,
        };
        target.repository = resource.repository().map(Into::into);
        named
    }
}

/// What the client itself says of sharing, if it does.
fn use_p2p(headers: &HeaderMap) -> Option<bool> {
    headers.get(USE_P2P).map(|value| value.as_bytes().eq_ignore_ascii_case(b"true"))
}

/// Whether the answer may not be for everybody, and nothing of that kind is to be shared or kept.
fn is_private_and_off(target: &Target, routes: &Routes) -> bool {
    routes.config.private_content == PrivateContent::Off
        && (target.with_credentials || routes.has_certificate(&target.uri))
}

/// Which large download this GET is, if it is one.
fn recognise(
    parts: &request::Parts,
    target: Target,
    named: Option<Named>,
    options: DownloadOptions,
    by_rule: bool,
    routes: &Routes,
) -> Route {
    if has_secret(&target.uri, options.filter()) {
        return Route::Forward(target, Bypass::SecretQuery);
    }
    if has_several_ranges(&parts.headers) {
        return Route::Forward(target, Bypass::RangeForm);
    }
    let passed_through = is_private_and_off(&target, routes);
    if let Some(Named::Blob(digest)) = named {
        // Whether the client's copy is still good is the origin's to say, and who may read what it signs for some.
        return match () {
            () if is_conditional(&parts.headers) => Route::Forward(target, Bypass::Conditional),
            () if is_signed(&target.uri) => Route::Forward(target, Bypass::SignedUrl),
            () if passed_through => Route::Forward(target, Bypass::PrivateContent),
            () => Route::Blob(target, options, digest),
        };
    }
    // Where a rule names the URL, the caller's own probe is the question whether it may have the content.
    if target.with_credentials && !by_rule {
        return Route::Forward(target, Bypass::Credentials);
    }
    if passed_through {
        return Route::Forward(target, Bypass::PrivateContent);
    }
    if by_rule || use_p2p(&parts.headers) == Some(true) {
        return Route::Probe(target, DownloadOptions { least: 1, ..options });
    }
    if has_suffix(&target.uri, &routes.config.suffixes) {
        return Route::Probe(target, options);
    }
    match wish(&parts.headers) {
        RangeWish::Whole => Route::Inspect(target, options),
        _ => Route::Forward(target, Bypass::RangeForm),
    }
}

/// What of a GET or HEAD alone forbids to share the answer: a body, a user in its URL, a word against storing.
fn never_shared(parts: &request::Parts) -> Option<Bypass> {
    let headers = &parts.headers;
    let has_body = headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    if has_body {
        Some(Bypass::Body)
    } else if parts.uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        Some(Bypass::Credentials)
    } else if is_no_store(headers) {
        Some(Bypass::CacheControl)
    } else {
        None
    }
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
fn resolve(parts: &request::Parts, routes: &Routes, ingress: &Ingress) -> Result<Target, Refusal> {
    let target = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    if let Some((scheme, authority)) = &ingress.through {
        let uri = absolute(scheme.clone(), authority.clone(), target)?;
        let mut target = Target::new(uri, None);
        target.keep_host = named_host(parts).is_some_and(|host| !target.is_named(&host));
        return Ok(target);
    }
    let (scheme, authority) = match (parts.uri.scheme(), parts.uri.authority()) {
        (Some(scheme), Some(authority)) if !ingress.is(authority) => (scheme, authority),
        _ => return mirrored(parts, &routes.mirror, ingress),
    };
    if *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS {
        return Err(Fault::client(StatusCode::BAD_REQUEST, "This proxy speaks http and https only.").into());
    }
    let uri = absolute(scheme.clone(), without_user(authority)?, target)?;
    Ok(Target::new(uri, None))
}

/// What a request that is addressed to ourselves means.
fn mirrored(parts: &request::Parts, mirror: &Mirror, ingress: &Ingress) -> Result<Target, Refusal> {
    let path = parts.uri.path();
    let has_credentials = parts.headers.contains_key(header::AUTHORIZATION);
    let resolved = match &ingress.registry {
        Some(registry) if is_our_token_question(&parts.uri, registry) => {
            return Err(Refusal::Ours(Box::new(Route::Token(Some(Arc::clone(registry))))));
        }
        // Clients speak to us without TLS, or do not verify it, and do the same where a challenge sends them: a password
        // must come to us, who verify whom we give it to.
        Some(_) if registry::is_ping(path) && !has_credentials => Err(MirrorError::Ping),
        // The whole port is the registry's, what is not below /v2 too: it may redirect to it.
        Some(registry) => registry.mirrored(path, parts.uri.query().map(str::to_owned)),
        None if path == TOKEN_PATH => {
            let registry = mirror.by_namespace(parts.uri.query());
            let registry = registry.map_err(|error| Fault::client(StatusCode::BAD_REQUEST, error.to_string()))?;
            return Err(Refusal::Ours(Box::new(Route::Token(registry.map(Arc::new)))));
        }
        None if !registry::is_registry_path(path) => return Err(Fault::client(StatusCode::NOT_FOUND, HELP).into()),
        None => mirror.resolve(&parts.uri, &parts.headers),
    };
    match resolved {
        Ok(Mirrored { uri, naming }) => Ok(Target::new(uri, Some(naming))),
        Err(MirrorError::Ping) if has_credentials => Err(Refusal::Ours(Box::new(Route::Ping))),
        Err(MirrorError::Ping) => Err(Refusal::Ours(Box::new(Route::Challenge))),
        Err(error) => Err(Fault::client(StatusCode::BAD_REQUEST, error.to_string()).into()),
    }
}

/// Whether a question for a token follows our own challenge: a registry may have something at this path too.
fn is_our_token_question(uri: &Uri, registry: &Registry) -> bool {
    let query = uri.query().unwrap_or_default();
    let mut fields = form_urlencoded::parse(query.as_bytes());
    uri.path() == TOKEN_PATH
        && fields.any(|(name, value)| match &*name {
            "service" => value == SERVICE,
            "ns" => value.eq_ignore_ascii_case(registry.authority()),
            _ => false,
        })
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
mod tests;
