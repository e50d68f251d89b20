//! The daemon's configuration as values that are valid by type, made of the modules' own.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use damselfly_runtime::{MemberFiles, Secret, UsageError, telemetry};

use super::file::File;
use super::proxying::{self, CaFiles, MirrorPort};
use super::{Place, traffic};
use crate::limit::Limits;
use crate::registry::Mirror;
use crate::scheduler_client::Discovery;
use crate::{net, p2p, proxy, storage};

/// The longest path that a Unix socket can have on Linux.
const MAX_SOCKET_PATH: usize = 107;

/// More pieces in flight than this help no link.
const MAX_CONCURRENT_PIECES: u32 = 256;

/// Everything that the daemon is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who this host is to others.
    pub host: Host,
    /// Content, CA, socket and addresses.json are under here.
    pub data_dir: PathBuf,
    /// What is logged, and how.
    pub log: Log,
    /// How long running transfers may take to finish once the daemon is told to stop.
    pub grace: Duration,
    /// Where it listens.
    pub listen: Listen,
    /// Which scheduler it asks.
    pub scheduler: Scheduler,
    /// Content on disk.
    pub storage: storage::Config,
    /// Whether content of an earlier run is kept.
    pub keep: bool,
    /// Whether other hosts get what this one holds.
    pub share: bool,
    /// How often storage is swept.
    pub gc_interval: Duration,
    /// How many bytes a second are checked while nobody reads them.
    pub scrub_rate: u64,
    /// Downloads.
    pub tasks: p2p::Config,
    /// How origins and registries are reached.
    pub client: net::ClientConfig,
    /// How requests are treated.
    pub proxy: proxy::Config,
    /// Which registry a mirror request means.
    pub mirror: Mirror,
    /// Ports that are mirrors of one registry each.
    pub mirror_ports: Vec<MirrorPort>,
    /// Whose TLS is intercepted.
    pub intercept: Vec<net::Pattern>,
    /// The operator's own CA; without it one is made in the data directory.
    pub ca: Option<CaFiles>,
    /// How fast bytes may move.
    pub limits: Limits,
    /// What this fleet's members show each other.
    pub token: Option<Secret>,
    /// This host's certificate as a member of its fleet.
    pub member: Option<MemberFiles>,
    /// Whether only members are heard.
    pub members_only: bool,
}

/// Who this host is to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Where others reach it.
    pub ip: IpAddr,
    /// Whether that was looked for, with [`own_ip`](super::own_ip), rather than configured: it may change, and is loopback
    /// where there was no network yet.
    pub looked_for: bool,
    /// Its name.
    pub hostname: String,
    /// Its data centre, or empty.
    pub idc: String,
    /// Where it stands, or empty.
    pub location: String,
    /// Whether it is a seed peer.
    pub seed: bool,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A level or `tracing` directives.
    pub filter: String,
    /// Text or JSON.
    pub format: telemetry::Format,
}

/// Where the daemon listens. Port 0 lets the system choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Proxy and mirror.
    pub proxy: SocketAddr,
    /// Connections that the firewall redirects.
    pub transparent: Option<SocketAddr>,
    /// Admin HTTP.
    pub admin: SocketAddr,
    /// Peer gRPC.
    pub peer: SocketAddr,
    /// Piece data.
    pub data: SocketAddr,
    /// The Unix socket for tools on this host.
    pub socket: PathBuf,
}

/// Which scheduler the daemon asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scheduler {
    /// Its own, in this process.
    Embedded,
    /// Those that are found here.
    Remote {
        /// At least one entry: `HOST:PORT`, `dns:HOST:PORT` or `file:PATH`.
        addrs: Vec<String>,
        /// What they mean.
        discovery: Discovery,
        /// How often the host announces itself.
        announce_interval: Duration,
    },
}

impl Config {
    /// Makes it of a resolved file; `looked_for` says whether the host's address comes from there.
    pub(super) fn check(
        file: &File,
        looked_for: bool,
        place: Place<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Self, UsageError> {
        let missing = |key| place.error(key, "has no value");
        let data_dir = file.data_dir.clone().ok_or_else(|| missing("dataDir"))?;
        let member = file.security.member_files().map_err(|(key, why)| place.error(key, why))?;
        if file.upload.server.require_tls && member.is_none() {
            let why = "needs security.caCert, security.cert and security.key";
            return Err(place.error("upload.server.requireTLS", why));
        }
        Ok(Self {
            host: host(file, looked_for, place)?,
            log: log(file, place)?,
            grace: file.drain.grace.0,
            listen: listen(file, place, warnings)?,
            scheduler: scheduler(file, place)?,
            storage: storage(file, place)?,
            keep: file.storage.keep,
            share: !file.upload.disable_shared,
            gc_interval: positive(file.gc.interval.0, "gc.interval", place)?,
            scrub_rate: file.storage.scrub_bandwidth.0,
            tasks: tasks(file, place)?,
            client: traffic::client(file, place)?,
            proxy: proxying::proxy(file, place)?,
            mirror: proxying::mirror(file, place)?,
            mirror_ports: proxying::mirror_ports(file, place)?,
            intercept: proxying::intercept(file, place, warnings)?,
            ca: proxying::ca(file, place)?,
            limits: traffic::limits(file, place)?,
            token: file.security.token().map_err(|(key, why)| place.error(key, why))?,
            member,
            members_only: file.security.require_tls || file.upload.server.require_tls,
            data_dir,
        })
    }
}

fn host(file: &File, looked_for: bool, place: Place<'_>) -> Result<Host, UsageError> {
    let ip = file.host.ip.ok_or_else(|| place.error("host.ip", "has no value"))?;
    if ip.is_unspecified() || ip.is_multicast() {
        return Err(place.error("host.ip", format!("{ip} is not an address at which others reach this host")));
    }
    if ip.is_loopback() && !looked_for && schedulers_are_elsewhere(file) {
        let reason = format!("other hosts of the schedulers in scheduler.addrs do not reach this one at {ip}");
        return Err(place.error("host.ip", reason));
    }
    let hostname = file.host.hostname.clone().unwrap_or_default();
    if hostname.is_empty() || hostname.len() > 253 || hostname.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(place.error("host.hostname", format!("{hostname:?} is not a host name")));
    }
    let (idc, location) = (file.host.idc.clone(), file.host.location.clone());
    Ok(Host { ip, looked_for, hostname, idc, location, seed: file.seed_peer.enable })
}

/// Whether there are schedulers, and none of them is on this host, as far as their addresses say. A name says nothing.
fn schedulers_are_elsewhere(file: &File) -> bool {
    let addrs = &file.scheduler.addrs;
    let elsewhere = |addr: &String| addr.parse::<SocketAddr>().is_ok_and(|addr| !addr.ip().is_loopback());
    !addrs.is_empty() && addrs.iter().all(elsewhere)
}

fn log(file: &File, place: Place<'_>) -> Result<Log, UsageError> {
    telemetry::check_filter(&file.log.level).map_err(|error| place.error("log.level", error))?;
    let format = file.log.format.parse().map_err(|error| place.error("log.format", error))?;
    Ok(Log { filter: file.log.level.clone(), format })
}

fn listen(file: &File, place: Place<'_>, warnings: &mut Vec<String>) -> Result<Listen, UsageError> {
    let missing = |key| place.error(key, "has no value");
    let server = &file.proxy.server;
    let proxy = SocketAddr::new(server.ip, server.port);
    if !server.ip.is_loopback() && server.basic_auth.is_none() {
        if !server.allow_unauthenticated {
            return Err(place.error(
                "proxy.server.ip",
                format!(
                    "{} is not loopback, and whoever reaches it could use this host as an open proxy: set \
                     proxy.server.basicAuth, or proxy.server.allowUnauthenticated: true where the network itself \
                     keeps strangers out",
                    server.ip
                ),
            ));
        }
        warnings.push(format!("the proxy listens on {proxy} for everyone: proxy.server.allowUnauthenticated is set"));
    }
    let socket = file.download.server.socket_path.clone().ok_or_else(|| missing("download.server.socketPath"))?;
    if socket.as_os_str().len() > MAX_SOCKET_PATH {
        return Err(place.error(
            "download.server.socketPath",
            format!("{} is longer than the {MAX_SOCKET_PATH} bytes that the system allows", socket.display()),
        ));
    }
    let peer_ip = file.upload.server.ip.ok_or_else(|| missing("upload.server.ip"))?;
    let data_ip = file.storage.server.ip.ok_or_else(|| missing("storage.server.ip"))?;
    let transparent = &file.proxy.transparent;
    Ok(Listen {
        proxy,
        transparent: transparent.port.map(|port| SocketAddr::new(transparent.ip, port)),
        admin: SocketAddr::new(file.health.server.ip, file.health.server.port),
        peer: SocketAddr::new(peer_ip, file.upload.server.port),
        data: SocketAddr::new(data_ip, file.storage.server.tcp_port),
        socket,
    })
}

fn scheduler(file: &File, place: Place<'_>) -> Result<Scheduler, UsageError> {
    let addrs = file.scheduler.addrs.clone();
    match (file.scheduler.embedded, addrs.is_empty()) {
        (Some(false), true) => {
            Err(place.error("scheduler.addrs", "is empty, and scheduler.embedded is false: no scheduler is left"))
        }
        (Some(true), false) => Err(place.error("scheduler.embedded", "is true, and scheduler.addrs is not empty")),
        (_, true) => Ok(Scheduler::Embedded),
        (_, false) => {
            let discovery = Discovery::parse(&addrs).map_err(|error| place.error("scheduler.addrs", error))?;
            let interval = file.scheduler.announce_interval.0;
            let announce_interval = positive(interval, "scheduler.announceInterval", place)?;
            Ok(Scheduler::Remote { addrs, discovery, announce_interval })
        }
    }
}

fn storage(file: &File, place: Place<'_>) -> Result<storage::Config, UsageError> {
    let policy = &file.gc.policy;
    let (high, low) = (policy.disk_high_threshold_percent, policy.disk_low_threshold_percent);
    for (key, percent) in [("diskHighThresholdPercent", high), ("diskLowThresholdPercent", low)] {
        if !(1..=99).contains(&percent) {
            return Err(place.error(&format!("gc.policy.{key}"), format!("{percent} is not between 1 and 99")));
        }
    }
    if low > high {
        let reason = format!("{low} is more than gc.policy.diskHighThresholdPercent, {high}");
        return Err(place.error("gc.policy.diskLowThresholdPercent", reason));
    }
    Ok(storage::Config {
        dir: file.storage.dir.clone().ok_or_else(|| place.error("storage.dir", "has no value"))?,
        quota: if policy.disk_threshold.0 == 0 { u64::MAX } else { policy.disk_threshold.0 },
        ttl: positive(policy.task_ttl.0, "gc.policy.taskTTL", place)?,
        high_percent: high,
        low_percent: low,
        check_interval: file.storage.check_interval.0,
        ..storage::Config::default()
    })
}

fn tasks(file: &File, place: Place<'_>) -> Result<p2p::Config, UsageError> {
    let pieces = file.download.concurrent_piece_count;
    if !(1..=MAX_CONCURRENT_PIECES).contains(&pieces) {
        let reason = format!("{pieces} is not between 1 and {MAX_CONCURRENT_PIECES}");
        return Err(place.error("download.concurrentPieceCount", reason));
    }
    let defaults = p2p::Config::default();
    let download = p2p::download::Config {
        concurrent_pieces: pieces,
        piece_timeout: positive(file.download.piece_timeout.0, "download.pieceTimeout", place)?,
        ..defaults.download
    };
    let stall = positive(file.download.stall_timeout.0, "download.stallTimeout", place)?;
    Ok(p2p::Config { download, stall, ..defaults })
}

pub(super) fn positive(span: Duration, key: &str, place: Place<'_>) -> Result<Duration, UsageError> {
    if span.is_zero() { Err(place.error(key, "must be more than nothing")) } else { Ok(span) }
}
