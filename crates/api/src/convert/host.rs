//! Hosts and the parents on them.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use damselfly_core::swarm::{HostInfo, Offer};

use super::{MAX_LABEL, MAX_NAME, WireError, bounded, host_id, optional, peer_id};
use crate::common::{Build, Host, Network, Peer};
use crate::scheduler::AnnounceHostRequest;

/// How many children a host serves that does not say.
const PLAIN_UPLOAD_SLOTS: u32 = 50;

/// The type of a seed peer among hosts.
const SEED: u32 = 1;

/// A TCP port that somebody can listen on.
pub(super) fn port(number: i32, field: &'static str) -> Result<u16, WireError> {
    u16::try_from(number).ok().filter(|&port| port != 0).ok_or(WireError::Invalid(field))
}

/// A host's announcement of itself, to be repeated after `interval`.
pub fn host_to_wire(host: &HostInfo, interval: Duration) -> AnnounceHostRequest {
    let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let network = Network { location: text(&host.location), idc: text(&host.idc), ..Network::default() };
    let host = Host {
        id: host.id.to_string(),
        r#type: if host.seed { SEED } else { 0 },
        hostname: host.hostname.clone(),
        ip: host.ip.to_string(),
        port: host.rpc_port.into(),
        download_port: host.data_port.into(),
        os: std::env::consts::OS.into(),
        platform: std::env::consts::OS.into(),
        network: Some(network),
        build: Some(Build { git_version: env!("CARGO_PKG_VERSION").into(), ..Build::default() }),
        disable_shared: host.upload_slots == 0,
        proxy_port: host.proxy_port.map_or(0, |port| port.get().into()),
        name: host.hostname.clone(),
        upload_slots: Some(host.upload_slots),
        tls: host.tls,
        ..Host::default()
    };
    AnnounceHostRequest { host: Some(host), interval: prost_types::Duration::try_from(interval).ok() }
}

/// A host's announcement of itself, and after how long it will repeat it, if it says.
///
/// # Errors
/// Without an id, a literal address or a gRPC port, and for overlong texts.
pub fn host_from_wire(request: AnnounceHostRequest) -> Result<(HostInfo, Option<Duration>), WireError> {
    let host = request.host.ok_or(WireError::Missing("host"))?;
    let interval = request.interval.and_then(|interval| Duration::try_from(interval).ok());
    let network = host.network.unwrap_or_default();
    let label = |text, field| optional(text, MAX_LABEL, field).map(Option::unwrap_or_default);
    let slots = if host.disable_shared { 0 } else { host.upload_slots.unwrap_or(PLAIN_UPLOAD_SLOTS) };
    let info = HostInfo {
        id: host_id(host.id)?,
        seed: host.r#type != 0,
        hostname: bounded(host.hostname, MAX_NAME, "host.hostname")?,
        ip: host.ip.parse().map_err(|_| WireError::Invalid("host.ip"))?,
        rpc_port: port(host.port, "host.port")?,
        // Children learn it from the parent itself; a host that serves nothing has none.
        data_port: u16::try_from(host.download_port).map_err(|_| WireError::Invalid("host.download_port"))?,
        proxy_port: u16::try_from(host.proxy_port).ok().and_then(NonZeroU16::new),
        upload_slots: slots,
        idc: label(network.idc, "host.network.idc")?,
        location: label(network.location, "host.network.location")?,
        tls: host.tls,
    };
    Ok((info, interval))
}

/// Hosts as `ListHosts` shows them.
pub fn list_hosts<'a>(hosts: impl Iterator<Item = &'a HostInfo>) -> Vec<Host> {
    hosts.filter_map(|host| host_to_wire(host, Duration::ZERO).host).collect()
}

/// A candidate parent. The scheduler's idea of the task stands beside each.
pub(super) fn offer_to_wire(offer: Offer, task: &crate::common::Task) -> Peer {
    let host = Host {
        id: offer.host.to_string(),
        r#type: if offer.host.as_str().ends_with("-seed") { SEED } else { 0 },
        hostname: offer.host.to_string(),
        ip: offer.rpc.ip().to_string(),
        port: offer.rpc.port().into(),
        tls: offer.tls,
        ..Host::default()
    };
    Peer {
        id: offer.peer.to_string(),
        state: "Running".into(),
        task: Some(task.clone()),
        host: Some(host),
        cost: Some(prost_types::Duration::default()),
        created_at: Some(prost_types::Timestamp::default()),
        updated_at: Some(prost_types::Timestamp::default()),
        ..Peer::default()
    }
}

/// A candidate parent from the wire.
pub(super) fn offer_from_wire(peer: &Peer) -> Result<Offer, WireError> {
    let host = peer.host.as_ref().ok_or(WireError::Missing("candidate_parents.host"))?;
    let ip: IpAddr = host.ip.parse().map_err(|_| WireError::Invalid("candidate_parents.host.ip"))?;
    Ok(Offer {
        peer: peer_id(peer.id.clone())?,
        host: host_id(host.id.clone())?,
        rpc: SocketAddr::new(ip, port(host.port, "candidate_parents.host.port")?),
        tls: host.tls,
    })
}
