//! The proxy side by side with others, in one run: `cargo bench --bench proxy` (`just bench`).
//!
//! Every proxy that is installed (nginx, squid, tinyproxy, mitmproxy) is measured in turn with the same load against the
//! same origin on loopback; figures are medians of the rounds. What is counted is the processor time of the serving
//! process and its children, user and system:
//! - `small`: answers of 1 KiB over 8 kept connections, requests per CPU-second; and the median latency of one
//!   connection, against the origin itself;
//! - `large`: answers of 1 GiB, CPU-seconds per GiB;
//! - `tunnel`: the same through `CONNECT`;
//! - `intercept`: TLS handshakes per CPU-second and per second, and CPU-seconds per GiB inside;
//! - `memory`: 5,000 idle connections, 2,000 requests at once, and 500 clients that take nothing; ours alone.
//!
//! Settings: `BENCH_ROUNDS` (3), `BENCH_REQUESTS` (20000), `BENCH_MIB` (1024), `BENCH_ONLY` (the names above),
//! `BENCH_DFDAEMON` (another build), `BENCH_SQUID` and `BENCH_SQUID_LIB` (a squid with OpenSSL and its directory of helpers), `BENCH_MITMDUMP`.

mod load;
mod origin;
mod rivals;

use std::collections::BTreeMap;
use std::time::Duration;

use load::Tls;
use origin::Origin;
use rivals::Proxy;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const MIB: u64 = 1024 * 1024;

fn main() -> Result<()> {
    damselfly_runtime::limits::raise_open_files();
    let (rounds, requests, length) =
        (setting("BENCH_ROUNDS", 3), setting("BENCH_REQUESTS", 20_000), setting("BENCH_MIB", 1024) * MIB);
    let only = std::env::var("BENCH_ONLY").ok();
    let wants = |name: &str| only.as_deref().is_none_or(|only| only.split(',').any(|one| one == name));
    let dir = tempfile::tempdir()?;
    let origin = Origin::start(length)?;
    if ["small", "large", "tunnel"].into_iter().any(wants) {
        let proxies = rivals::plain(dir.path(), &origin)?;
        let mut table = Table::default();
        for _ in 0..rounds {
            for proxy in &proxies {
                plain(proxy, &origin, requests, length, &wants, &mut table)?;
            }
            if wants("small") {
                table.add("direct", "latency µs", load::latency(origin.plain, &origin.url("/small"), 2000)?);
            }
        }
        table.print();
    }
    if wants("intercept") {
        let proxies = rivals::intercepting(dir.path(), &origin)?;
        let mut table = Table::default();
        for _ in 0..rounds {
            for proxy in &proxies {
                intercept(proxy, &origin, length, &mut table)?;
            }
        }
        table.print();
    }
    if wants("memory") {
        memory(dir.path(), &origin)?;
    }
    Ok(())
}

fn plain(
    proxy: &Proxy,
    origin: &Origin,
    requests: u64,
    length: u64,
    wants: &dyn Fn(&str) -> bool,
    table: &mut Table,
) -> Result<()> {
    let gib = length as f64 / (1024 * MIB) as f64;
    if wants("small") {
        load::small(proxy.at, &origin.url("/small"), requests / 10)?;
        let cpu = proxy.cpu(|| load::small(proxy.at, &origin.url("/small"), requests))?;
        table.add(&proxy.name, "small per CPU-s", requests as f64 / cpu);
        table.add(&proxy.name, "latency µs", load::latency(proxy.at, &origin.url("/small"), 2000)?);
    }
    if wants("large") {
        let cpu = proxy.cpu(|| load::get(proxy.at, &origin.url("/large"), length))?;
        table.add(&proxy.name, "large CPU-s/GiB", cpu / gib);
    }
    if wants("tunnel") && proxy.tunnels {
        let cpu = proxy.cpu(|| load::tunnelled(proxy.at, origin.plain, length))?;
        table.add(&proxy.name, "tunnel CPU-s/GiB", cpu / gib);
    }
    Ok(())
}

fn intercept(proxy: &Proxy, origin: &Origin, length: u64, table: &mut Table) -> Result<()> {
    const HANDSHAKES: u32 = 200;
    let tls = Tls::new(&proxy.authority)?;
    tls.handshakes(proxy.at, origin.tls, 5)?;
    let mut taken = Duration::ZERO;
    let cpu = proxy.cpu(|| {
        taken = tls.handshakes(proxy.at, origin.tls, HANDSHAKES)?;
        Ok(())
    })?;
    table.add(&proxy.name, "handshakes/s", f64::from(HANDSHAKES) / taken.as_secs_f64());
    table.add(&proxy.name, "handshakes per CPU-s", f64::from(HANDSHAKES) / cpu);
    let cpu = proxy.cpu(|| tls.get(proxy.at, origin.tls, length))?;
    table.add(&proxy.name, "inside CPU-s/GiB", cpu * (1024 * MIB) as f64 / length as f64);
    Ok(())
}

fn memory(dir: &std::path::Path, origin: &Origin) -> Result<()> {
    let proxy = rivals::ours(dir, "memory", origin)?;
    let show = |what: &str| -> Result<()> {
        println!("memory, {what}: {} MiB resident", proxy.memory()? / MIB);
        Ok(())
    };
    show("idle")?;
    let idle = load::idle(proxy.at, &origin.url("/small"), 5_000)?;
    show("5,000 connections that have just been answered")?;
    load::settle();
    show("5,000 idle connections")?;
    drop(idle);
    load::settle();
    show("after them")?;
    load::at_once(proxy.at, &origin.url("/medium"), 2_000)?;
    show("2,000 requests at once, just done")?;
    load::settle();
    show("after them")?;
    load::small(proxy.at, &origin.url("/small"), 20_000)?;
    load::settle();
    show("and 20,000 small requests")?;
    let slow = load::unread(proxy.at, &origin.url("/large"), 500)?;
    show("500 clients that take nothing")?;
    drop(slow);
    load::settle();
    show("after them")
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Figures by what they are and whose.
#[derive(Default)]
struct Table(BTreeMap<String, BTreeMap<String, Vec<f64>>>);

impl Table {
    fn add(&mut self, who: &str, what: &str, figure: f64) {
        self.0.entry(what.to_owned()).or_default().entry(who.to_owned()).or_default().push(figure);
    }

    fn print(&mut self) {
        for (what, by_name) in &mut self.0 {
            let cells: Vec<String> = by_name
                .iter_mut()
                .map(|(who, figures)| {
                    figures.sort_by(f64::total_cmp);
                    let median = (figures[(figures.len() - 1) / 2] + figures[figures.len() / 2]) / 2.0;
                    let (least, most) = (figures[0], figures[figures.len() - 1]);
                    format!("{who} {median:.2} ({least:.2} to {most:.2})")
                })
                .collect();
            println!("{what}: {}", cells.join(" | "));
        }
    }
}
