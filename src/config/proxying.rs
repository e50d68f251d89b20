//! How the proxy treats requests: rules, what is large, who may use it, which registry a mirror request means, and whose
//! TLS is intercepted.

use std::net::SocketAddr;
use std::path::PathBuf;

use damselfly_runtime::UsageError;
use http::uri::Authority;
use regex::Regex;

use super::Place;
use super::file::{File, Rule};
use super::traffic::{patterns, pem};
use crate::registry::{Mirror, Registry};
use crate::{net, proxy};

/// The CA that the operator brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaFiles {
    /// Its certificate, PEM.
    pub cert: PathBuf,
    /// Its key, PEM, readable by the owner alone.
    pub key: PathBuf,
}

/// A port of its own for one registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorPort {
    /// Where it listens.
    pub at: SocketAddr,
    /// Whose mirror it is.
    pub registry: Registry,
    /// The registry as it is configured.
    pub name: String,
}

pub(super) fn proxy(file: &File, place: Place<'_>) -> Result<proxy::Config, UsageError> {
    let mut rules = Vec::new();
    for (index, set) in file.proxy.rules.iter().enumerate() {
        rules.push(rule(set, &format!("proxy.rules[{index}]"), place)?);
    }
    let suffixes = file.proxy.p2p.suffixes.clone();
    if let Some(index) = suffixes.iter().position(|suffix| suffix.is_empty()) {
        return Err(place.error(&format!("proxy.p2p.suffixes[{index}]"), "is empty, and would match everything"));
    }
    Ok(proxy::Config {
        rules,
        suffixes,
        min_size: file.proxy.p2p.min_size.0,
        private_content: private_content(file, place)?,
        verdict_ttl: file.proxy.authorization.verdict_ttl.0,
        token_requests: match file.proxy.authorization.concurrent_token_requests {
            0 => return Err(place.error("proxy.authorization.concurrentTokenRequests", "must be at least 1")),
            number => number,
        },
        stale_if_error: file.proxy.authorization.stale_if_error.0,
        use_source: !file.proxy.disable_back_to_source,
        basic_auth: basic_auth(file, place)?,
        tunnel_idle: file.proxy.tunnel_timeout.map(|span| span.0).filter(|span| !span.is_zero()),
        ..proxy::Config::default()
    })
}

fn private_content(file: &File, place: Place<'_>) -> Result<proxy::PrivateContent, UsageError> {
    match file.proxy.private_content.as_str() {
        "share" => Ok(proxy::PrivateContent::Share),
        "host" => Ok(proxy::PrivateContent::Host),
        "off" => Ok(proxy::PrivateContent::Off),
        other => Err(place.error("proxy.privateContent", format!("{other:?} is neither share nor host nor off"))),
    }
}

fn rule(set: &Rule, key: &str, place: Place<'_>) -> Result<proxy::Rule, UsageError> {
    if set.regex.is_empty() {
        return Err(place.error(&format!("{key}.regex"), "has no value"));
    }
    // The library draws its errors over several lines; the last one is the reason.
    let reason = |error: regex::Error| error.to_string().lines().last().unwrap_or_default().trim().to_owned();
    let regex = Regex::new(&set.regex).map_err(|error| place.error(&format!("{key}.regex"), reason(error)))?;
    let redirect = match &set.redirect {
        None => None,
        Some(text) => Some(
            text.parse::<Authority>()
                .ok()
                .filter(|_| !text.contains('@'))
                .ok_or_else(|| place.error(&format!("{key}.redirect"), format!("{text:?} is not HOST[:PORT]")))?,
        ),
    };
    let filtered_query_params = set.filtered_query_params.clone();
    Ok(proxy::Rule { regex, use_tls: set.use_tls, redirect, filtered_query_params })
}

fn basic_auth(file: &File, place: Place<'_>) -> Result<Option<proxy::BasicAuth>, UsageError> {
    let Some(set) = &file.proxy.server.basic_auth else { return Ok(None) };
    let password = set.password.reveal();
    if set.username.is_empty() || set.username.contains(':') {
        return Err(place.error("proxy.server.basicAuth.username", "is empty or contains a colon"));
    }
    if password.is_empty() {
        return Err(place.error("proxy.server.basicAuth.password", "has no value"));
    }
    Ok(Some(proxy::BasicAuth::new(&set.username, password)))
}

pub(super) fn mirror(file: &File, place: Place<'_>) -> Result<Mirror, UsageError> {
    let addr = file.proxy.registry_mirror.addr.as_deref();
    Mirror::new(addr).map_err(|error| place.error("proxy.registryMirror.addr", error))
}

/// The ports that are mirrors of one registry each.
pub(super) fn mirror_ports(file: &File, place: Place<'_>) -> Result<Vec<MirrorPort>, UsageError> {
    let mut ports = Vec::new();
    for (index, set) in file.proxy.mirrors.iter().enumerate() {
        let registry = Registry::configured("registry", &set.registry);
        let registry = registry.map_err(|error| place.error(&format!("proxy.mirrors[{index}].registry"), error))?;
        let at = SocketAddr::new(file.proxy.server.ip, set.port);
        ports.push(MirrorPort { at, registry, name: set.registry.clone() });
    }
    Ok(ports)
}

/// The mirrored registry's private CA, as an upstream of its own.
pub(super) fn mirror_upstream(file: &File, place: Place<'_>) -> Result<Option<net::Upstream>, UsageError> {
    let set = &file.proxy.registry_mirror;
    let Some(cert) = &set.cert else { return Ok(None) };
    let addr = set.addr.as_deref().unwrap_or_default();
    let authority = addr.split_once("://").map_or(addr, |(_, rest)| rest).trim_end_matches('/');
    if authority.is_empty() {
        return Err(place.error("proxy.registryMirror.cert", "is set, but proxy.registryMirror.addr names no registry"));
    }
    Ok(Some(net::Upstream {
        host: authority.to_owned(),
        scheme: None,
        ca_pem: Some(pem(cert, "proxy.registryMirror.cert", place)?),
        cert_pem: None,
        key_pem: None,
    }))
}

pub(super) fn intercept(
    file: &File,
    place: Place<'_>,
    warnings: &mut Vec<String>,
) -> Result<Vec<net::Pattern>, UsageError> {
    let hosts = patterns(&file.proxy.intercept.hosts, "proxy.intercept.hosts", place)?;
    warnings.extend(hosts.iter().find(|pattern| pattern.is_any_host()).map(|pattern| {
        format!(
            "proxy.intercept.hosts: {pattern} looks into the TLS of every host: clients that pin certificates fail, and \
             every client has to trust this daemon's CA; name the hosts that are to be shared"
        )
    }));
    Ok(hosts)
}

pub(super) fn ca(file: &File, place: Place<'_>) -> Result<Option<CaFiles>, UsageError> {
    match (file.proxy.server.ca_cert.clone(), file.proxy.server.ca_key.clone()) {
        (Some(cert), Some(key)) => Ok(Some(CaFiles { cert, key })),
        (None, None) => Ok(None),
        _ => Err(place.error("proxy.server", "caCert and caKey belong together: set both or neither")),
    }
}
