//! What the daemon says to the person who started it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::bound::Addresses;
use crate::config::{Config, Scheduler};

/// Says on the standard output where the proxy is, where its CA is, and one command to try.
pub(super) fn print(addresses: &Addresses, config: &Config) {
    let scheduler = match &config.scheduler {
        Scheduler::Embedded => "none, this host works alone (--scheduler HOST:PORT joins others)".to_owned(),
        Scheduler::Remote { addrs, .. } => addrs.join(", "),
    };
    let proxy = addresses.proxy;
    let reached = reached_at(proxy);
    let made = config.data_dir.join("ca.pem");
    let ca = config.ca.as_ref().map_or(&made, |files| &files.cert);
    let user = if config.proxy.basic_auth.is_some() { "-U USER:PASSWORD " } else { "" };
    println!("damselfly is ready");
    println!("  proxy      http://{proxy}  (also a registry mirror)");
    for (registry, address) in &addresses.mirrors {
        println!("  mirror     http://{}  (of {registry})", reached_at(*address));
    }
    println!("  CA         {}  (for hosts in proxy.intercept.hosts)", ca.display());
    println!("  scheduler  {scheduler}");
    println!("  admin      http://{}/metrics", addresses.admin);
    println!("  try        curl -x http://{reached} {user}-O http://HOST/big.bin");
}

/// Where a client on this host reaches what listens at `listener`: no client can name "every address".
fn reached_at(listener: SocketAddr) -> SocketAddr {
    let ip = match listener.ip() {
        ip if !ip.is_unspecified() => ip,
        ip if ip.is_ipv4() => Ipv4Addr::LOCALHOST.into(),
        _ => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, listener.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_to_try_names_an_address_that_can_be_reached() {
        for (listener, reached) in [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("10.0.0.1:1", "10.0.0.1:1")] {
            assert_eq!(reached_at(listener.parse().unwrap()).to_string(), reached);
        }
    }
}
