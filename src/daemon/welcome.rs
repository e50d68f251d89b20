//! What the daemon says to the person who started it.

use super::bound::Addresses;
use crate::config::{Config, Scheduler};

/// Says on the standard output where the proxy is, where its CA is, and one command to try.
pub(super) fn print(addresses: &Addresses, config: &Config) {
    let scheduler = match &config.scheduler {
        Scheduler::Embedded => "none, this host works alone (--scheduler HOST:PORT joins others)".to_owned(),
        Scheduler::Remote { addrs, .. } => addrs.join(", "),
    };
    let proxy = addresses.proxy;
    println!("damselfly is ready");
    println!("  proxy      http://{proxy}  (also a registry mirror)");
    println!("  CA         {}  (for hosts in proxy.intercept.hosts)", config.data_dir.join("ca.pem").display());
    println!("  scheduler  {scheduler}");
    println!("  admin      http://{}/metrics", addresses.admin);
    println!("  try        curl -x http://{proxy} -O http://HOST/big.bin");
}
