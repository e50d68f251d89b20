//! This host's part in the swarm: who it is, which scheduler it asks, its tasks, and what it serves to peers.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;

use damselfly_core::swarm::{Holding, HostInfo};
use damselfly_core::{HostId, TaskId};
use damselfly_runtime::{MemberFiles, Secret, UsageError, Watch};
use damselfly_scheduler::{Handle, NoSeeds, SinceStart};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::bound::Addresses;
use crate::backend::Backend;
use crate::config::{self, Config, Scheduler};
use crate::limit::Limiter;
use crate::net::HttpClient;
use crate::p2p::piece_sync::{self, PieceSync};
use crate::p2p::transport::{self, DataClient};
use crate::p2p::{self, Parts, Tasks};
use crate::rpc::peer::{self, DemandToken, Membership, PeerServer};
use crate::rpc::seeder::Seeder;
use crate::scheduler_client::{self, Announcer, Embedded, GrpcSchedulers, Inventory, SchedulerClient, ShowToken};
use crate::storage::Storage;

/// How many children the scheduler gives this host at a time, over all tasks. In one task it gives fewer.
const UPLOAD_SLOTS: u32 = 50;

/// Who this host is to others. Ports are those that are really listened on.
pub(super) fn host(config: &Config, addresses: &Addresses) -> HostInfo {
    let host = &config.host;
    HostInfo {
        id: HostId::new(host.ip, &host.hostname, host.seed),
        seed: host.seed,
        hostname: host.hostname.clone(),
        ip: host.ip,
        rpc_port: addresses.peer.port(),
        data_port: addresses.data.port(),
        proxy_port: Some(addresses.proxy)
            .filter(|proxy| !proxy.ip().is_loopback())
            .and_then(|proxy| NonZeroU16::new(proxy.port())),
        upload_slots: if config.share { UPLOAD_SLOTS } else { 0 },
        idc: host.idc.clone(),
        location: host.location.clone(),
        tls: config.member.is_some(),
    }
}

/// What this host shows to the members of its fleet.
pub(super) fn membership(config: &Config) -> anyhow::Result<Option<Membership>> {
    let Some(MemberFiles { ca_cert, cert, key }) = config.member.clone() else { return Ok(None) };
    let loaded = Membership::load(ca_cert, cert, key);
    Ok(Some(loaded.map_err(|error| UsageError::new(format!("security.caCert, cert and key: {error}")))?))
}

/// The scheduler that this host asks: its own, or those that are configured.
pub(super) fn scheduler(
    config: &Config,
    membership: &Option<Membership>,
    drain: Watch,
    registry: &mut Registry,
) -> anyhow::Result<Arc<dyn SchedulerClient>> {
    let discovery = match &config.scheduler {
        Scheduler::Remote { discovery, .. } => discovery,
        Scheduler::Embedded => {
            let handle = Handle::spawn(damselfly_scheduler::Config::default(), SinceStart::new(), NoSeeds);
            return Ok(Arc::new(Embedded::new(handle)));
        }
    };
    let metrics = scheduler_client::Metrics::default();
    metrics.register(registry);
    let schedulers = GrpcSchedulers::new(&discovery.fixed(), speaking(config, membership), metrics);
    let schedulers = schedulers.map_err(|error| UsageError::new(format!("scheduler.addrs: {error}")))?;
    tokio::spawn(discovery.clone().run(schedulers.clone(), drain));
    Ok(Arc::new(schedulers))
}

/// How this host speaks with schedulers.
fn speaking(config: &Config, membership: &Option<Membership>) -> scheduler_client::Config {
    let mut settings = scheduler_client::Config {
        token: shown(config),
        membership: membership.clone(),
        ..scheduler_client::Config::default()
    };
    if let Scheduler::Remote { announce_interval, .. } = config.scheduler {
        settings.announce_interval = announce_interval;
    }
    settings
}

fn shown(config: &Config) -> ShowToken {
    ShowToken::new(config.token.as_ref().map(Secret::reveal))
}

/// The tasks of this host.
pub(super) fn tasks(
    config: &Config,
    (host, membership): (&HostInfo, &Option<Membership>),
    storage: &Storage,
    http: &HttpClient,
    scheduler: &Arc<dyn SchedulerClient>,
    limiter: &Limiter,
    registry: &mut Registry,
) -> Tasks {
    let metrics = p2p::Metrics::default();
    metrics.register(registry);
    let parts = Parts {
        host: host.clone(),
        storage: storage.clone(),
        backend: Backend::new(http.clone()),
        scheduler: Arc::clone(scheduler),
        pieces: PieceSync::new(piece_sync::Config {
            token: shown(config),
            membership: membership.clone(),
            members_only: config.members_only,
            ..piece_sync::Config::default()
        }),
        data: DataClient::new(&transport::ClientConfig {
            membership: membership.clone(),
            members_only: config.members_only,
            ..transport::ClientConfig::default()
        }),
        limiter: limiter.clone(),
        metrics,
    };
    Tasks::new(config.tasks.clone(), parts)
}

/// What peers and schedulers may ask of this host.
pub(super) fn peer_server(
    config: &Config,
    membership: &Option<Membership>,
    (host, addresses): (&HostInfo, &Addresses),
    storage: &Storage,
    tasks: &Tasks,
    drain: Watch,
    registry: &mut Registry,
) -> PeerServer {
    let metrics = peer::Metrics::default();
    metrics.register(registry);
    // Where it listens may be any address of the host; others are told the one at which they reach it. A host that had no
    // network when it started does not know that one.
    let ip = if host.ip.is_loopback() { addresses.data.ip() } else { host.ip };
    if config.token.is_none() && !config.members_only && matches!(config.scheduler, Scheduler::Remote { .. }) {
        tracing::warn!(
            "neither security.token nor security.requireTLS is set: every host that can reach the peer port is treated as a member of the fleet"
        );
    }
    let token = DemandToken::new(config.token.as_ref().map(Secret::reveal));
    let config = peer::Config {
        token,
        membership: membership.clone(),
        members_only: config.members_only,
        ..peer::Config::new(SocketAddr::new(ip, addresses.data.port()))
    };
    let seed: Option<Arc<dyn peer::SeedTrigger>> =
        if host.seed { Some(Arc::new(Seeder::new(tasks.clone()))) } else { None };
    let tasks = tasks.clone();
    let downloading = Arc::new(move |id: &TaskId| tasks.is_downloading(id));
    PeerServer::new(host.id.clone(), storage.clone(), downloading, seed, config, metrics, drain)
}

/// Serves peers until the drain.
pub(super) async fn serve(server: PeerServer, listener: TcpListener) {
    if let Err(error) = server.serve(listener).await {
        tracing::error!(%error, "peers are not served any more");
    }
}

/// Tells the scheduler that this host is there, and what it holds.
pub(super) fn announcer(
    config: &Config,
    membership: &Option<Membership>,
    host: &HostInfo,
    tasks: &Tasks,
    scheduler: &Arc<dyn SchedulerClient>,
) -> Announcer {
    let inventory = Shared { tasks: tasks.clone(), share: config.share };
    let ip = config.host.ip;
    let locate: Box<dyn Fn() -> Option<IpAddr> + Send + Sync> = match &config.scheduler {
        Scheduler::Remote { addrs, .. } if config.host.looked_for => {
            let addrs = addrs.clone();
            Box::new(move || config::own_ip(&addrs))
        }
        _ => Box::new(move || Some(ip)),
    };
    Announcer::new(Arc::clone(scheduler), host.clone(), locate, inventory, speaking(config, membership))
}

/// What this host has to give, if it gives at all.
struct Shared {
    tasks: Tasks,
    share: bool,
}

impl Inventory for Shared {
    fn all(&self) -> Vec<Holding> {
        if self.share { self.tasks.holdings() } else { Vec::new() }
    }

    fn dropped(&self) -> Option<Vec<Holding>> {
        let dropped = self.tasks.dropped();
        if self.share { dropped } else { Some(Vec::new()) }
    }

    fn drops(&self) -> watch::Receiver<u64> {
        self.tasks.drops()
    }
}
