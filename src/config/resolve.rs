//! Fills in what depends on the host or on other keys, so that the effective configuration leaves nothing open.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use super::file::File;
use super::{SOCKET, host};

/// Replaces every `null` that stands for a derived default.
pub(super) fn resolve(file: &mut File) {
    let alone = *file.scheduler.embedded.get_or_insert(file.scheduler.addrs.is_empty());
    let own_ip = || if alone { Ipv4Addr::LOCALHOST.into() } else { host::own_ip(&file.scheduler.addrs) };
    let ip: IpAddr = *file.host.ip.get_or_insert_with(own_ip);
    file.host.hostname.get_or_insert_with(host::own_name);
    // Alone, nobody else has any business with the peer's ports, whatever the host's address.
    let peers_reach = if alone { Ipv4Addr::LOCALHOST.into() } else { ip };
    file.upload.server.ip.get_or_insert(peers_reach);
    file.storage.server.ip.get_or_insert(peers_reach);

    let dir = absolute(file.data_dir.take().unwrap_or_else(host::data_dir));
    file.download.server.socket_path = Some(under(&dir, file.download.server.socket_path.take(), SOCKET));
    file.storage.dir = Some(under(&dir, file.storage.dir.take(), "storage"));
    file.data_dir = Some(dir);
}

fn under(dir: &Path, set: Option<PathBuf>, name: &str) -> PathBuf {
    set.map_or_else(|| dir.join(name), absolute)
}

/// Against the directory that the daemon was started in; it may be another one later.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}
