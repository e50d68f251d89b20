//! Every listener of the daemon, and where they are.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use damselfly_runtime::Inherited;
use damselfly_runtime::listen::{self, Lent, UnixSocket};
use serde::Serialize;
use tokio::net::{TcpListener, UnixListener};

use crate::config::Config;

/// The Unix socket is for the daemon's user and group.
const SOCKET_MODE: u32 = 0o660;

/// Where a successor asks for all of them, in the data directory; for the daemon's user alone.
pub(super) const TAKEOVER: &str = "takeover.sock";
const TAKEOVER_MODE: u32 = 0o600;

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
    /// Likewise.
    pub(super) takeover: Option<UnixSocket>,
    /// The paths of Unix sockets that were inherited: they stay where this process ends before they are left to it.
    pub(super) lent: Lent,
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

/// An inherited socket, or one of our own. `name` is what a socket unit may call it.
fn tcp(inherited: &mut Inherited, name: &str, at: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    Ok(match inherited.tcp(name, at)? {
        Some(listener) => TcpListener::from_std(listener)?,
        None => listen::tcp(at, setting)?,
    })
}

async fn unix(
    (inherited, lent): (&mut Inherited, &Lent),
    path: &Path,
    mode: u32,
    setting: &str,
) -> anyhow::Result<UnixSocket> {
    if let Some(listener) = inherited.unix(path)? {
        return Ok(listen::inherited_unix(UnixListener::from_std(listener)?, path, lent.clone())?);
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    Ok(listen::unix(path, mode, setting).await?)
}

impl Bound {
    /// Listens everywhere, on the sockets that were inherited where there are any, or says where it cannot and which key
    /// changes that.
    ///
    /// `no_store` says that the data directory may be unusable: then the socket for tools, which is there as a rule, may be
    /// missing.
    pub(super) async fn all(config: &Config, no_store: bool, mut inherited: Inherited) -> anyhow::Result<Self> {
        let (at, from, lent) = (&config.listen, &mut inherited, Lent::new(true));
        let socket = match unix((from, &lent), &at.socket, SOCKET_MODE, "download.server.socketPath").await {
            Ok(socket) => Some(socket),
            Err(error) if no_store => {
                tracing::warn!(%error, "there is no socket for tools on this host");
                None
            }
            Err(error) => return Err(error),
        };
        let takeover = unix((from, &lent), &config.data_dir.join(TAKEOVER), TAKEOVER_MODE, "dataDir").await;
        let takeover = takeover.inspect_err(|error| tracing::warn!(%error, "no process can take over from this one"));
        let bound = Self {
            mirrors: config
                .mirror_ports
                .iter()
                .map(|mirror| tcp(from, "mirror", mirror.at, "proxy.server.ip and proxy.mirrors[].port"))
                .collect::<Result<_, _>>()?,
            proxy: tcp(from, "proxy", at.proxy, "proxy.server.ip and proxy.server.port, or --proxy-addr")?,
            transparent: at
                .transparent
                .map(|at| tcp(from, "transparent", at, "proxy.transparent.ip and proxy.transparent.port"))
                .transpose()?,
            admin: tcp(from, "admin", at.admin, "health.server.ip and health.server.port")?,
            peer: tcp(from, "peer", at.peer, "upload.server.ip and upload.server.port")?,
            data: tcp(from, "data", at.data, "storage.server.ip and storage.server.tcpPort")?,
            socket,
            takeover: takeover.ok(),
            lent,
        };
        for socket in inherited.left() {
            tracing::warn!(
                socket,
                "an inherited socket has the address of no configured listener: nobody answers there"
            );
        }
        Ok(bound)
    }

    /// All of them, with the names under which a successor finds them.
    pub(super) fn sockets(&self) -> Vec<(&'static str, BorrowedFd<'_>)> {
        let one = [
            ("proxy", self.proxy.as_fd()),
            ("admin", self.admin.as_fd()),
            ("peer", self.peer.as_fd()),
            ("data", self.data.as_fd()),
        ];
        let mirrors = self.mirrors.iter().map(|mirror| ("mirror", mirror.as_fd()));
        let transparent = self.transparent.iter().map(|listener| ("transparent", listener.as_fd()));
        let unix = self.socket.iter().chain(&self.takeover).map(|socket| ("unix", socket.listener.as_fd()));
        one.into_iter().chain(mirrors).chain(transparent).chain(unix).collect()
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
