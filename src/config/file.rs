//! The shape of `dfdaemon.yaml`. Its defaults are the daemon's; `null` stands where the default depends on the host or
//! on other keys. docs/reference/configuration.md says what each key means, and a test holds the two together.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use damselfly_runtime::{Secret, Security};
use serde::{Deserialize, Serialize};

use super::units::{Size, Span};
use crate::p2p::download;
use crate::proxy::SUFFIXES;
use crate::{net, p2p, proxy, storage};

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

section! {
    /// The whole file.
    File {
        /// `host`.
        host: Host = Host::default(),
        /// `dataDir`.
        data_dir: Option<PathBuf> = None,
        /// `log`.
        log: Log = Log::default(),
        /// `drain`.
        drain: Drain = Drain::default(),
        /// `proxy`.
        proxy: Proxy = Proxy::default(),
        /// `scheduler`.
        scheduler: Scheduler = Scheduler::default(),
        /// `download`.
        download: Download = Download::default(),
        /// `upload`.
        upload: Upload = Upload::default(),
        /// `storage`.
        storage: Storage = Storage::default(),
        /// `gc`.
        gc: Gc = Gc::default(),
        /// `seedPeer`.
        seed_peer: SeedPeer = SeedPeer::default(),
        /// `health`.
        health: Health = Health::default(),
        /// `security`.
        security: Security = Security::default(),
    }
}

section! {
    /// `host`: who this host is to others.
    Host {
        /// `host.ip`.
        ip: Option<IpAddr> = None,
        /// `host.hostname`.
        hostname: Option<String> = None,
        /// `host.idc`.
        idc: String = String::new(),
        /// `host.location`.
        location: String = String::new(),
    }
}

section! {
    /// `log`.
    Log {
        /// `log.level`.
        level: String = "info".into(),
        /// `log.format`.
        format: String = "text".into(),
    }
}

section! {
    /// `drain`.
    Drain {
        /// `drain.grace`.
        grace: Span = Span(Duration::from_secs(30)),
    }
}

section! {
    /// `proxy`.
    Proxy {
        /// `proxy.server`.
        server: ProxyServer = ProxyServer::default(),
        /// `proxy.rules`.
        rules: Vec<Rule> = Vec::new(),
        /// `proxy.registryMirror`.
        registry_mirror: RegistryMirror = RegistryMirror::default(),
        /// `proxy.mirrors`.
        mirrors: Vec<MirrorPort> = Vec::new(),
        /// `proxy.privateContent`.
        private_content: String = "share".into(),
        /// `proxy.authorization`.
        authorization: Authorization = Authorization::default(),
        /// `proxy.disableBackToSource`.
        disable_back_to_source: bool = false,
        /// `proxy.intercept`.
        intercept: Intercept = Intercept::default(),
        /// `proxy.allow`.
        allow: Vec<String> = Vec::new(),
        /// `proxy.deny`.
        deny: Vec<String> = Vec::new(),
        /// `proxy.upstreams`.
        upstreams: Vec<Upstream> = Vec::new(),
        /// `proxy.headTimeout`.
        head_timeout: Span = Span(net::ClientConfig::default().head_timeout),
        /// `proxy.transparent`.
        transparent: Transparent = Transparent::default(),
        /// `proxy.egress`.
        egress: Egress = Egress::default(),
        /// `proxy.passThroughBandwidthLimit`.
        pass_through_bandwidth_limit: Size = Size(0),
        /// `proxy.passThroughBandwidthLimitPerRequest`.
        pass_through_bandwidth_limit_per_request: Size = Size(0),
        /// `proxy.tunnelTimeout`.
        tunnel_timeout: Option<Span> = None,
        /// `proxy.p2p`.
        p2p: P2p = P2p::default(),
    }
}

section! {
    /// `proxy.server`.
    ProxyServer {
        /// `proxy.server.ip`.
        ip: IpAddr = Ipv4Addr::LOCALHOST.into(),
        /// `proxy.server.port`.
        port: u16 = 4001,
        /// `proxy.server.caCert`.
        ca_cert: Option<PathBuf> = None,
        /// `proxy.server.caKey`.
        ca_key: Option<PathBuf> = None,
        /// `proxy.server.basicAuth`.
        basic_auth: Option<BasicAuth> = None,
        /// `proxy.server.allowUnauthenticated`.
        allow_unauthenticated: bool = false,
    }
}

section! {
    /// `proxy.egress`.
    Egress {
        /// `proxy.egress.addr`.
        addr: Option<String> = None,
        /// `proxy.egress.username`.
        username: String = String::new(),
        /// `proxy.egress.password`.
        password: Secret = Secret::default(),
        /// `proxy.egress.noProxy`.
        no_proxy: Vec<String> = Vec::new(),
    }
}

section! {
    /// `proxy.server.basicAuth`.
    BasicAuth {
        /// `proxy.server.basicAuth.username`.
        username: String = String::new(),
        /// `proxy.server.basicAuth.password`.
        password: Secret = Secret::default(),
    }
}

section! {
    /// One of `proxy.rules`.
    Rule {
        /// `proxy.rules[].regex`.
        regex: String = String::new(),
        /// `proxy.rules[].useTLS`.
        #[serde(rename = "useTLS")]
        use_tls: bool = false,
        /// `proxy.rules[].redirect`.
        redirect: Option<String> = None,
        /// `proxy.rules[].filteredQueryParams`.
        filtered_query_params: Vec<String> = Vec::new(),
    }
}

section! {
    /// `proxy.registryMirror`.
    RegistryMirror {
        /// `proxy.registryMirror.addr`.
        addr: Option<String> = None,
        /// `proxy.registryMirror.cert`.
        cert: Option<PathBuf> = None,
    }
}

section! {
    /// `proxy.transparent`.
    Transparent {
        /// `proxy.transparent.ip`.
        ip: IpAddr = Ipv4Addr::LOCALHOST.into(),
        /// `proxy.transparent.port`.
        port: Option<u16> = None,
    }
}

section! {
    /// One of `proxy.mirrors`.
    MirrorPort {
        /// `proxy.mirrors[].port`.
        port: u16 = 0,
        /// `proxy.mirrors[].registry`.
        registry: String = String::new(),
    }
}

section! {
    /// `proxy.authorization`: how registries are asked who may have what.
    Authorization {
        /// `proxy.authorization.verdictTTL`.
        #[serde(rename = "verdictTTL")]
        verdict_ttl: Span = Span(proxy::Config::default().verdict_ttl),
        /// `proxy.authorization.concurrentTokenRequests`.
        concurrent_token_requests: usize = proxy::Config::default().token_requests,
        /// `proxy.authorization.staleIfError`.
        stale_if_error: Span = Span(proxy::Config::default().stale_if_error),
    }
}

section! {
    /// `proxy.intercept`.
    Intercept {
        /// `proxy.intercept.hosts`.
        hosts: Vec<String> = Vec::new(),
    }
}

section! {
    /// One of `proxy.upstreams`.
    Upstream {
        /// `proxy.upstreams[].host`.
        host: String = String::new(),
        /// `proxy.upstreams[].scheme`.
        scheme: Option<String> = None,
        /// `proxy.upstreams[].caCert`.
        ca_cert: Option<PathBuf> = None,
        /// `proxy.upstreams[].cert`.
        cert: Option<PathBuf> = None,
        /// `proxy.upstreams[].key`.
        key: Option<PathBuf> = None,
    }
}

section! {
    /// `proxy.p2p`: what is large, without any rule.
    P2p {
        /// `proxy.p2p.minSize`.
        min_size: Size = Size(8 << 20),
        /// `proxy.p2p.suffixes`.
        suffixes: Vec<String> = SUFFIXES.iter().map(|&suffix| suffix.to_owned()).collect(),
    }
}

section! {
    /// `scheduler`.
    Scheduler {
        /// `scheduler.addrs`.
        addrs: Vec<String> = Vec::new(),
        /// `scheduler.embedded`.
        embedded: Option<bool> = None,
        /// `scheduler.announceInterval`.
        announce_interval: Span = Span(Duration::from_secs(60)),
    }
}

section! {
    /// `download`.
    Download {
        /// `download.server`.
        server: DownloadServer = DownloadServer::default(),
        /// `download.bandwidthLimit`.
        bandwidth_limit: Size = Size(0),
        /// `download.bandwidthLimitPerTask`.
        bandwidth_limit_per_task: Size = Size(0),
        /// `download.backToSourceBandwidthLimit`.
        back_to_source_bandwidth_limit: Size = Size(0),
        /// `download.backToSourceBandwidthLimitPerTask`.
        back_to_source_bandwidth_limit_per_task: Size = Size(0),
        /// `download.concurrentPieceCount`.
        concurrent_piece_count: u32 = download::Config::default().concurrent_pieces,
        /// `download.pieceTimeout`.
        piece_timeout: Span = Span(download::Config::default().piece_timeout),
        /// `download.stallTimeout`.
        stall_timeout: Span = Span(p2p::Config::default().stall),
    }
}

section! {
    /// `download.server`.
    DownloadServer {
        /// `download.server.socketPath`.
        socket_path: Option<PathBuf> = None,
    }
}

section! {
    /// `upload`.
    Upload {
        /// `upload.server`.
        server: UploadServer = UploadServer::default(),
        /// `upload.bandwidthLimit`.
        bandwidth_limit: Size = Size(0),
        /// `upload.bandwidthLimitPerTask`.
        bandwidth_limit_per_task: Size = Size(0),
        /// `upload.disableShared`.
        disable_shared: bool = false,
    }
}

section! {
    /// `upload.server`: peer gRPC.
    UploadServer {
        /// `upload.server.ip`.
        ip: Option<IpAddr> = None,
        /// `upload.server.port`.
        port: u16 = 4000,
        /// `upload.server.requireTLS`.
        #[serde(rename = "requireTLS")]
        require_tls: bool = false,
    }
}

section! {
    /// `storage`.
    Storage {
        /// `storage.dir`.
        dir: Option<PathBuf> = None,
        /// `storage.keep`.
        keep: bool = true,
        /// `storage.checkInterval`.
        check_interval: Span = Span(storage::Config::default().check_interval),
        /// `storage.scrubBandwidth`.
        scrub_bandwidth: Size = Size(32 << 20),
        /// `storage.server`.
        server: StorageServer = StorageServer::default(),
    }
}

section! {
    /// `storage.server`: piece data.
    StorageServer {
        /// `storage.server.ip`.
        ip: Option<IpAddr> = None,
        /// `storage.server.tcpPort`.
        tcp_port: u16 = 4005,
    }
}

section! {
    /// `gc`.
    Gc {
        /// `gc.interval`.
        interval: Span = Span(Duration::from_secs(15 * 60)),
        /// `gc.policy`.
        policy: GcPolicy = GcPolicy::default(),
    }
}

section! {
    /// `gc.policy`.
    GcPolicy {
        /// `gc.policy.taskTTL`.
        #[serde(rename = "taskTTL")]
        task_ttl: Span = Span(storage::Config::default().ttl),
        /// `gc.policy.diskThreshold`.
        disk_threshold: Size = Size(0),
        /// `gc.policy.diskHighThresholdPercent`.
        #[serde(alias = "distHighThresholdPercent")]
        disk_high_threshold_percent: u8 = storage::Config::default().high_percent,
        /// `gc.policy.diskLowThresholdPercent`.
        #[serde(alias = "distLowThresholdPercent")]
        disk_low_threshold_percent: u8 = storage::Config::default().low_percent,
    }
}

section! {
    /// `seedPeer`.
    SeedPeer {
        /// `seedPeer.enable`.
        enable: bool = false,
    }
}

section! {
    /// `health`.
    Health {
        /// `health.server`.
        server: HealthServer = HealthServer::default(),
    }
}

section! {
    /// `health.server`: admin HTTP.
    HealthServer {
        /// `health.server.ip`.
        ip: IpAddr = Ipv4Addr::LOCALHOST.into(),
        /// `health.server.port`.
        port: u16 = 4003,
    }
}

impl File {
    /// Takes the limits of bandwidth over from another file.
    pub fn take_limits(&mut self, from: &Self) {
        self.download.bandwidth_limit = from.download.bandwidth_limit;
        self.download.bandwidth_limit_per_task = from.download.bandwidth_limit_per_task;
        self.download.back_to_source_bandwidth_limit = from.download.back_to_source_bandwidth_limit;
        self.download.back_to_source_bandwidth_limit_per_task = from.download.back_to_source_bandwidth_limit_per_task;
        self.upload.bandwidth_limit = from.upload.bandwidth_limit;
        self.upload.bandwidth_limit_per_task = from.upload.bandwidth_limit_per_task;
        self.proxy.pass_through_bandwidth_limit = from.proxy.pass_through_bandwidth_limit;
        self.proxy.pass_through_bandwidth_limit_per_request = from.proxy.pass_through_bandwidth_limit_per_request;
    }

    /// As YAML, without secrets.
    pub fn to_yaml(&self) -> Result<String, serde_saphyr::SerializeError> {
        serde_saphyr::to_string(self)
    }
}
