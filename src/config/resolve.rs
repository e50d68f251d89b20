//! Fills in what depends on the host or on other keys, so that the effective configuration leaves nothing open.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use super::file::File;
use super::{SOCKET, host};

/// Replaces every `null` that stands for a derived default. Returns whether the host's address was looked for, and so may
/// be another one later.
pub(super) fn resolve(file: &mut File) -> bool {
    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let alone = *file.scheduler.embedded.get_or_insert(file.scheduler.addrs.is_empty());
    let looked_for = !alone && file.host.ip.is_none();
    let found = if looked_for { host::own_ip(&file.scheduler.addrs) } else { file.host.ip };
    let ip = *file.host.ip.insert(found.unwrap_or(LOOPBACK));
    file.host.hostname.get_or_insert_with(host::own_name);
    let peers_reach = match found {
        // Alone, nobody else has any business with the peer's ports, whatever the host's address.
        _ if alone => LOOPBACK,
        Some(_) => ip,
        // No network yet: when it comes, the host must be there.
        None => Ipv4Addr::UNSPECIFIED.into(),
    };
    file.upload.server.ip.get_or_insert(peers_reach);
    file.storage.server.ip.get_or_insert(peers_reach);

    let dir = absolute(file.data_dir.take().unwrap_or_else(host::data_dir));
    file.download.server.socket_path = Some(under(&dir, file.download.server.socket_path.take(), SOCKET));
    file.storage.dir = Some(under(&dir, file.storage.dir.take(), "storage"));
    file.data_dir = Some(dir);
    looked_for
}

fn under(dir: &Path, set: Option<PathBuf>, name: &str) -> PathBuf {
    set.map_or_else(|| dir.join(name), absolute)
}

/// Against the directory that the daemon was started in; it may be another one later.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}
