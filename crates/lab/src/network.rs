//! A small network on one machine: a hub (a bridge in a namespace) and places around it, each a namespace with one
//! link. A link is shaped both ways: what a place sends by its own end, what it receives by the hub's end. The round
//! trip takes no time; queues hold 50 ms.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::slot::Slot;
use crate::units::Rate;

/// How long a full queue of a link takes to drain.
const QUEUE_SECONDS: f64 = 0.05;
/// A queue always has room for a few of the largest packets that the kernel builds.
const LEAST_QUEUE: f64 = 262_144.0;
/// Below this rate packets are not joined, so that a trickle trickles.
const COARSE: Rate = Rate::mbit(2.0);

pub(crate) struct Network {
    slot: Slot,
    hub: String,
    places: u8,
}

impl Network {
    pub(crate) fn new(slot: &Slot) -> Result<Self> {
        let hub = format!("{}hub", slot.prefix());
        slot.create(|| {
            run("ip", &["netns", "add", &hub])?;
            run("ip", &["-n", &hub, "link", "add", "bridge", "type", "bridge"])?;
            run("ip", &["-n", &hub, "link", "set", "bridge", "up"])
        })?;
        Ok(Self { slot: slot.clone(), hub, places: 0 })
    }

    /// Adds a namespace with one link to the hub.
    pub(crate) fn add(&mut self, name: &str, rate: Rate) -> Result<Place> {
        self.places = self.places.checked_add(1).filter(|n| *n < 255).context("254 places are the most")?;
        let place = Place {
            name: name.to_owned(),
            slot: self.slot.clone(),
            namespace: format!("{}{name}", self.slot.prefix()),
            hub: self.hub.clone(),
            ip: Ipv4Addr::new(10, 77, self.slot.number(), self.places),
        };
        let Place { namespace, hub, ip, .. } = &place;
        self.slot.create(|| {
            run("ip", &["netns", "add", namespace])?;
            batch(
                "ip",
                None,
                &format!(
                    "link add name {name} netns {hub} type veth peer name eth0 netns {namespace}\n\
                     netns exec {hub} ip link set dev {name} master bridge up\n\
                     netns exec {namespace} ip addr add {ip}/24 dev eth0\n\
                     netns exec {namespace} ip link set lo up\n\
                     netns exec {namespace} ip link set eth0 up\n"
                ),
            )
        })?;
        for way in [Way::Up, Way::Down] {
            let (namespace, device) = place.end(way);
            run(
                "tc",
                &["-n", namespace, "qdisc", "add", "dev", device, "root", "handle", "1:", "htb", "default", "1"],
            )?;
            place.shape(way, rate)?;
        }
        Ok(place)
    }

    /// What went through each place's link since it was made.
    pub(crate) fn counters(&self) -> Result<BTreeMap<String, Counter>> {
        let table = enter(&self.hub, || fs::read_to_string("/proc/thread-self/net/dev"))??;
        // Interface: received bytes, seven more figures, sent bytes. The hub receives what a place sends.
        let rows = table.lines().filter_map(|line| {
            let (name, figures) = line.split_once(':')?;
            let figures: Vec<u64> = figures.split_whitespace().filter_map(|figure| figure.parse().ok()).collect();
            Some((name.trim().to_owned(), Counter { up: *figures.first()?, down: *figures.get(8)? }))
        });
        Ok(rows.collect())
    }
}

/// Bytes on a link, headers included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counter {
    pub(crate) up: u64,
    pub(crate) down: u64,
}

impl std::ops::Sub for Counter {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { up: self.up - before.up, down: self.down - before.down }
    }
}

/// A direction, seen from the place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Up,
    Down,
}

/// A namespace with one link.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) ip: Ipv4Addr,
    slot: Slot,
    namespace: String,
    hub: String,
}

impl Place {
    pub(crate) fn slot(&self) -> &Slot {
        &self.slot
    }

    /// Runs `work` on a thread in this place: sockets that it opens and programs that it starts belong there.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        enter(&self.namespace, work)
    }

    /// Starts a thread in this place.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<Result<T>> {
        let namespace = self.namespace.clone();
        thread::spawn(move || {
            join(&namespace)?;
            Ok(work())
        })
    }

    /// Gives one direction of the link this rate.
    pub(crate) fn shape(&self, way: Way, rate: Rate) -> Result<()> {
        let (namespace, device) = self.end(way);
        let coarse = rate >= COARSE;
        let queue = if coarse { LEAST_QUEUE.max(rate.bytes_per_second() * QUEUE_SECONDS) } else { 30_000.0 };
        let (segments, burst) = if coarse { (64, 65_536) } else { (1, 1_600) };
        run("ip", &["-n", namespace, "link", "set", "dev", device, "gso_max_segs", &segments.to_string()])?;
        let (bits, queue) = (rate.0.ceil() as u64, queue as u64);
        batch(
            "tc",
            Some(namespace),
            &format!(
                "class replace dev {device} parent 1: classid 1:1 htb rate {bits}bit burst {burst} cburst {burst} quantum 60000\n\
                 qdisc replace dev {device} parent 1:1 handle 10: bfifo limit {queue}\n"
            ),
        )
    }

    /// The end of the link that sends what goes this way: its namespace and its name there.
    fn end(&self, way: Way) -> (&str, &str) {
        match way {
            Way::Up => (&self.namespace, "eth0"),
            Way::Down => (&self.hub, &self.name),
        }
    }

    /// Takes the place off the hub: packets are lost without a word, both ways.
    pub(crate) fn partition(&self) -> Result<()> {
        run("ip", &["-n", &self.hub, "link", "set", "dev", &self.name, "nomaster"])
    }

    /// Puts the place back onto the hub.
    pub(crate) fn heal(&self) -> Result<()> {
        run("ip", &["-n", &self.hub, "link", "set", "dev", &self.name, "master", "bridge"])
    }

    /// Takes the place's own interface down or up: connections learn of it.
    pub(crate) fn interface(&self, up: bool) -> Result<()> {
        run("ip", &["-n", &self.namespace, "link", "set", "eth0", if up { "up" } else { "down" }])
    }
}

fn enter<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            join(namespace)?;
            Ok(work())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Moves this thread, and nothing else of this process, into a namespace.
fn join(namespace: &str) -> Result<()> {
    let file = File::open(format!("/run/netns/{namespace}")).with_context(|| format!("no namespace {namespace}"))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("this thread cannot enter {namespace}"))
}

/// Runs a program, and reports what it says where it fails.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let run = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let run = run.with_context(|| format!("{program} cannot be started"))?;
    if !run.status.success() {
        bail!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&run.stderr).trim());
    }
    Ok(())
}

/// Gives `ip` or `tc` several commands at once.
fn batch(program: &str, namespace: Option<&str>, commands: &str) -> Result<()> {
    let mut command = Command::new(program);
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    let command = command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("{program} cannot be started"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(commands.as_bytes())?;
    }
    let run = child.wait_with_output()?;
    if !run.status.success() {
        bail!("{program} -batch: {}\n{commands}", String::from_utf8_lossy(&run.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use super::*;

    /// Two places, bytes from one to the other at the link's rate and no faster, and nothing left afterwards.
    #[test]
    fn a_link_carries_its_rate_and_a_network_leaves_nothing() {
        if !rustix::process::geteuid().is_root() || run("ip", &["-V"]).is_err() || run("tc", &["-V"]).is_err() {
            println!("skipped: root with iproute2");
            return;
        }
        const BYTES: usize = 1_000_000;
        let slot = Slot::take(None, false).expect("a free slot");
        let mut network = Network::new(&slot).expect("a hub");
        let a = network.add("a", Rate::mbit(8.0)).expect("a place");
        let b = network.add("b", Rate::mbit(80.0)).expect("a place");
        let listener = b.run(|| TcpListener::bind((b.ip, 4000))).expect("a namespace").expect("a listener");
        let ip = b.ip;
        let sender = a.spawn(move || TcpStream::connect((ip, 4000))?.write_all(&vec![7; BYTES]));
        let started = Instant::now();
        let (mut stream, from) = listener.accept().expect("a connection");
        let mut got = Vec::new();
        stream.read_to_end(&mut got).expect("bytes");
        let took = started.elapsed();
        sender.join().expect("no panic").expect("a namespace").expect("sent");
        assert_eq!((got.len(), from.ip()), (BYTES, a.ip.into()));
        // A megabyte at a megabyte a second, less what a link lets through at once.
        assert!(took > Duration::from_millis(800), "the link let {BYTES} bytes through in {took:?}");
        let up = network.counters().expect("counters")["a"].up;
        assert!((BYTES as u64..BYTES as u64 * 11 / 10).contains(&up), "{up} bytes went up for {BYTES}");
        let prefix = slot.prefix();
        drop((a, b, network, slot));
        let left: Vec<_> = fs::read_dir("/run/netns").expect("namespaces have a directory").flatten().collect();
        assert!(left.iter().all(|entry| !entry.file_name().to_string_lossy().starts_with(&prefix)), "{left:?}");
    }
}
