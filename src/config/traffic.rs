//! How traffic is carried on: which destinations are open, how origins and registries are reached, and how fast bytes may
//! move.

use std::path::{Path, PathBuf};

use damselfly_runtime::UsageError;
use http::uri::{Authority, Scheme};

use super::Place;
use super::file::{File, Upstream};
use super::proxying::mirror_upstream;
use super::typed::positive;
use super::units::Size;
use crate::limit::{Limit, Limits};
use crate::net;

/// A PEM file is not larger than this.
const MAX_PEM: u64 = 1 << 20;

/// Settings of the one HTTP client.
pub(super) fn client(file: &File, place: Place<'_>) -> Result<net::ClientConfig, UsageError> {
    let allow = patterns(&file.proxy.allow, "proxy.allow", place)?;
    let deny = patterns(&file.proxy.deny, "proxy.deny", place)?;
    let mut upstreams = Vec::new();
    for (index, set) in file.proxy.upstreams.iter().enumerate() {
        upstreams.push(upstream(set, &format!("proxy.upstreams[{index}]"), place)?);
    }
    upstreams.extend(mirror_upstream(file, place)?);
    Ok(net::ClientConfig {
        head_timeout: positive(file.proxy.head_timeout.0, "proxy.headTimeout", place)?,
        policy: net::DestinationPolicy::new(allow, deny),
        upstreams,
        egress: egress(file, place)?,
        ..net::ClientConfig::default()
    })
}

/// The way out: as configured, else as the environment says.
fn egress(file: &File, place: Place<'_>) -> Result<net::Egress, UsageError> {
    let set = &file.proxy.egress;
    let Some(addr) = &set.addr else {
        let env = net::Egress::from_env(|name| std::env::var(name).ok());
        return env.map_err(|why| UsageError::new(format!("the environment's {why} (proxy.egress.addr replaces it)")));
    };
    if addr == "direct" {
        return Ok(net::Egress::default());
    }
    if addr.contains('@') {
        return Err(place.error("proxy.egress.addr", "has a password in it: use proxy.egress.username and password"));
    }
    let mut proxy = net::EgressProxy::parse(addr).map_err(|why| place.error("proxy.egress.addr", why))?;
    if !set.username.is_empty() {
        proxy = proxy.with_password(&set.username, set.password.reveal());
    }
    let mut direct = Vec::new();
    for (index, text) in set.no_proxy.iter().enumerate() {
        let key = format!("proxy.egress.noProxy[{index}]");
        direct.push(net::Direct::parse(text).ok_or_else(|| place.error(&key, format!("{text:?} names no host")))?);
    }
    Ok(net::Egress { http: Some(proxy.clone()), other: Some(proxy), direct })
}

/// How fast bytes may move.
pub(super) fn limits(file: &File, place: Place<'_>) -> Result<Limits, UsageError> {
    let rate = |size: Size, key: &str| Limit::rate(size.0).map_err(|why| place.error(key, why));
    let (download, upload, proxy) = (&file.download, &file.upload, &file.proxy);
    Ok(Limits {
        download: Limit {
            total: rate(download.bandwidth_limit, "download.bandwidthLimit")?,
            per_flow: rate(download.bandwidth_limit_per_task, "download.bandwidthLimitPerTask")?,
        },
        back_to_source: Limit {
            total: rate(download.back_to_source_bandwidth_limit, "download.backToSourceBandwidthLimit")?,
            per_flow: rate(
                download.back_to_source_bandwidth_limit_per_task,
                "download.backToSourceBandwidthLimitPerTask",
            )?,
        },
        upload: Limit {
            total: rate(upload.bandwidth_limit, "upload.bandwidthLimit")?,
            per_flow: rate(upload.bandwidth_limit_per_task, "upload.bandwidthLimitPerTask")?,
        },
        pass_through: Limit {
            total: rate(proxy.pass_through_bandwidth_limit, "proxy.passThroughBandwidthLimit")?,
            per_flow: rate(
                proxy.pass_through_bandwidth_limit_per_request,
                "proxy.passThroughBandwidthLimitPerRequest",
            )?,
        },
    })
}

/// A list of hosts and networks.
pub(super) fn patterns(texts: &[String], key: &str, place: Place<'_>) -> Result<Vec<net::Pattern>, UsageError> {
    let pattern =
        |(index, text): (usize, &String)| text.parse().map_err(|error| place.error(&format!("{key}[{index}]"), error));
    texts.iter().enumerate().map(pattern).collect()
}

fn upstream(set: &Upstream, key: &str, place: Place<'_>) -> Result<net::Upstream, UsageError> {
    let named = set.host.parse::<Authority>().is_ok_and(|authority| !authority.host().is_empty());
    if !named || set.host.contains('@') {
        return Err(place.error(&format!("{key}.host"), format!("{:?} is not HOST[:PORT]", set.host)));
    }
    let scheme = match set.scheme.as_deref() {
        None => None,
        Some("http") => Some(Scheme::HTTP),
        Some("https") => Some(Scheme::HTTPS),
        Some(other) => {
            return Err(place.error(&format!("{key}.scheme"), format!("{other:?} is neither http nor https")));
        }
    };
    if set.cert.is_some() != set.key.is_some() {
        return Err(place.error(key, "cert and key belong together: set both or neither"));
    }
    let read = |path: &Option<PathBuf>, name: &str| match path {
        Some(path) => pem(path, &format!("{key}.{name}"), place).map(Some),
        None => Ok(None),
    };
    Ok(net::Upstream {
        host: set.host.clone(),
        scheme,
        ca_pem: read(&set.ca_cert, "caCert")?,
        cert_pem: read(&set.cert, "cert")?,
        key_pem: read(&set.key, "key")?,
    })
}

/// The content of a PEM file.
pub(super) fn pem(path: &Path, key: &str, place: Place<'_>) -> Result<Vec<u8>, UsageError> {
    let fail = |reason: String| place.error(key, format!("{} {reason}", path.display()));
    let found = std::fs::metadata(path).map_err(|error| fail(format!("cannot be read: {error}")))?;
    if !found.is_file() || found.len() > MAX_PEM {
        return Err(fail("is not a PEM file".into()));
    }
    let text = std::fs::read(path).map_err(|error| fail(format!("cannot be read: {error}")))?;
    if text.windows(11).any(|window| window == b"-----BEGIN ") {
        Ok(text)
    } else {
        Err(fail("is not a PEM file".into()))
    }
}
