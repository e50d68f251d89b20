//! Addresses of this machine that are not in 127/8: programs written in Go never ask a proxy for those.

use std::net::Ipv4Addr;

use super::Tool;
use super::tools::{run, skipped};

/// Addresses on the loopback device, taken back when this is dropped.
pub(crate) struct Addresses {
    tool: Tool,
    pub(crate) all: Vec<Ipv4Addr>,
}

impl Addresses {
    /// Takes `count` addresses that nobody has. Only root may; others are told that nothing was proved.
    pub(crate) fn take(count: usize) -> Option<Self> {
        let mut taken = Self { tool: Tool::find("ip")?, all: Vec::new() };
        for _ in 0..10 {
            let network = fastrand::u8(1..255);
            for host in (1..).take(count) {
                let address = Ipv4Addr::new(10, 201, network, host);
                let mut command = taken.tool.command();
                let done = run(command.args(["address", "add", &format!("{address}/32"), "dev", "lo"]));
                if !done.ok && !done.errors.contains("exists") {
                    skipped(&format!("addresses beside 127/8 ({})", done.errors.trim()));
                    return None;
                }
                if done.ok {
                    taken.all.push(address);
                }
            }
            if taken.all.len() == count {
                return Some(taken);
            }
            taken.give_back();
        }
        skipped("addresses beside 127/8 (all are taken)");
        None
    }

    fn give_back(&mut self) {
        for address in self.all.drain(..) {
            run(self.tool.command().args(["address", "del", &format!("{address}/32"), "dev", "lo"]));
        }
    }
}

impl Drop for Addresses {
    fn drop(&mut self) {
        self.give_back();
    }
}
