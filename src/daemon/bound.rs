//! Every listener of the daemon, and where they are.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use damselfly_runtime::listen::{self, UnixSocket};
use serde::Serialize;
use tokio::net::TcpListener;

use crate::config::Config;

/// The Unix socket is for the daemon's user and group.
const SOCKET_MODE: u32 = 0o660;

/// Everything that listens.
pub(super) struct Bound {
    pub(super) proxy: TcpListener,
    pub(super) transparent: Option<TcpListener>,
    /// Those of `proxy.mirrors`, in its order.
    pub(super) mirrors: Vec<TcpListener>,
    pub(super) admin: TcpListener,
    pub(super) peer: TcpListener,
    pub(super) data: TcpListener,
    /// `None` where there is no place for it.
    pub(super) socket: Option<UnixSocket>,
}

/// What `addresses.json` and `/addresses` say.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Addresses {
    pub(super) proxy: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) transparent: Option<SocketAddr>,
    /// By registry, as it is configured.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) mirrors: BTreeMap<String, SocketAddr>,
    pub(super) admin: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) data: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) socket: Option<PathBuf>,
}

async fn unix(path: &Path) -> anyhow::Result<UnixSocket> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    Ok(listen::unix(path, SOCKET_MODE, "download.server.socketPath").await?)
}

impl Bound {
    /// Listens everywhere, or says where it cannot and which key changes that.
    ///
    /// `no_store` says that the data directory may be unusable: then the socket for tools, which is there as a rule, may be
    /// missing.
    pub(super) async fn all(config: &Config, no_store: bool) -> anyhow::Result<Self> {
        let at = &config.listen;
        let socket = match unix(&at.socket).await {
            Ok(socket) => Some(socket),
            Err(error) if no_store => {
                tracing::warn!(%error, "there is no socket for tools on this host");
                None
            }
            Err(error) => return Err(error),
        };
        Ok(Self {
            mirrors: config
                .mirror_ports
                .iter()
                .map(|mirror| listen::tcp(mirror.at, "proxy.server.ip and proxy.mirrors[].port"))
                .collect::<Result<_, _>>()?,
            proxy: listen::tcp(at.proxy, "proxy.server.ip and proxy.server.port, or --proxy-addr")?,
            transparent: at
                .transparent
                .map(|at| listen::tcp(at, "proxy.transparent.ip and proxy.transparent.port"))
                .transpose()?,
            admin: listen::tcp(at.admin, "health.server.ip and health.server.port")?,
            peer: listen::tcp(at.peer, "upload.server.ip and upload.server.port")?,
            data: listen::tcp(at.data, "storage.server.ip and storage.server.tcpPort")?,
            socket,
        })
    }

    /// Where everything listens, with the ports that the system chose.
    pub(super) fn addresses(&self, config: &Config) -> std::io::Result<Addresses> {
        let registries = config.mirror_ports.iter().map(|mirror| mirror.name.clone());
        let mirrors = registries.zip(&self.mirrors).map(|(registry, listener)| Ok((registry, listener.local_addr()?)));
        Ok(Addresses {
            proxy: self.proxy.local_addr()?,
            transparent: self.transparent.as_ref().map(TcpListener::local_addr).transpose()?,
            mirrors: mirrors.collect::<std::io::Result<_>>()?,
            admin: self.admin.local_addr()?,
            peer: self.peer.local_addr()?,
            data: self.data.local_addr()?,
            socket: self.socket.as_ref().map(|socket| socket.path.as_path().to_owned()),
        })
    }
}
