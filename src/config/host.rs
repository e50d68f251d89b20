//! What the host says of itself where nobody has configured it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::PathBuf;

/// The name of a host that has none.
const NAMELESS: &str = "localhost";

/// A documentation address (RFC 5737): nothing is ever sent there, it only asks for the default route.
const ELSEWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);

/// The address by which this host reaches the first scheduler that has one; else the one of its default route; `None`
/// where it has neither, as before its network is up. Opens a UDP socket and sends nothing; names may have to be resolved.
pub fn own_ip(schedulers: &[String]) -> Option<IpAddr> {
    let towards = schedulers.iter().filter_map(|addr| without_scheme(addr).to_socket_addrs().ok()).flatten();
    towards.chain([ELSEWHERE]).find_map(route_to)
}

fn route_to(addr: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = if addr.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(addr).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
}

/// The name that the system gives this host.
pub(super) fn own_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { NAMELESS.into() } else { name }
}

/// Where data is kept by default: `/var/lib/damselfly` for root, the user's own data directory otherwise.
pub fn data_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/damselfly");
    }
    let var = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = var("XDG_DATA_HOME").or_else(|| var("HOME").map(|home| home.join(".local/share")));
    base.unwrap_or_else(std::env::temp_dir).join("damselfly")
}

/// The address in an entry of `scheduler.addrs`, which may say that it is a name for several schedulers.
fn without_scheme(entry: &str) -> &str {
    entry.strip_prefix("dns:").map_or(entry, |name| name.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_faces_the_scheduler() {
        assert_eq!(own_ip(&["127.0.0.1:8002".into()]), Some(IpAddr::from([127, 0, 0, 1])));
        assert_eq!(own_ip(&["no such name.invalid:1".into()]), own_ip(&[]), "the default route's, if there is one");
        assert!(own_ip(&[]).is_none_or(|ip| !ip.is_unspecified()));
    }

    #[test]
    fn a_host_has_a_name_and_a_place() {
        assert!(!own_name().is_empty());
        assert!(data_dir().is_absolute());
    }
}
