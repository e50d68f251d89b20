//! Piece transfer from host to host, against the limit: `cargo bench --bench piece_transfer`.
//!
//! In one run, on loopback and in temporary directories, alternating so that the machine's moods hit all alike:
//! - `bare`: threads that `sendfile` a file's pieces, threads that read into a 1 MiB buffer and `pwrite`;
//! - `bare + hashes`: the same, with CRC-32 and BLAKE3 of what was read, which Damselfly never goes without;
//! - `damselfly`: `DataServer` -> `DataClient` -> `Storage`, pieces claimed, checked, finished and recorded.
//!
//! Prints medians of throughput and processor time (both sides, system and user), and the ratio to `bare`. Settings:
//! `BENCH_MIB` (content, default 1024), `BENCH_ROUNDS` (7), `BENCH_STREAMS` (concurrent pieces, 4), `BENCH_DIR`,
//! `BENCH_ONLY` (one of the names above).

mod bare;

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use damselfly::limit::Limiter;
use damselfly::p2p::transport::{DataClient, DataServer, Metrics, ServerConfig};
use damselfly::storage::{Config, NewTask, Storage, StoredTask};
use damselfly_core::swarm::Origin;
use damselfly_core::{Audience, Geometry, TaskId};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MIB: u64 = bare::MIB;
const STALL: Duration = Duration::from_secs(30);

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

struct Settings {
    geometry: Geometry,
    rounds: u64,
    streams: u64,
    only: Option<String>,
}

#[derive(Clone, Copy)]
struct Sample {
    gib_per_second: f64,
    cpu_per_gib: f64,
}

fn main() -> Result<()> {
    let settings = Settings {
        geometry: Geometry::of_length(setting("BENCH_MIB", 1024) * MIB)?,
        rounds: setting("BENCH_ROUNDS", 7),
        streams: setting("BENCH_STREAMS", 4),
        only: std::env::var("BENCH_ONLY").ok(),
    };
    let dir = match std::env::var_os("BENCH_DIR") {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    let source = dir.path().join("source");
    bare::fill(&source, settings.geometry.length())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let parent = runtime.block_on(Parent::start(dir.path(), &source, settings.geometry))?;

    let mut samples: [Vec<Sample>; 3] = Default::default();
    // The first round warms up and is not counted.
    for round in 0..=settings.rounds {
        for (kind, name) in ["bare", "bare + hashes", "damselfly"].into_iter().enumerate() {
            if settings.only.as_deref().is_some_and(|only| only != name) {
                continue;
            }
            let (start, cpu) = (Instant::now(), cpu_seconds()?);
            match kind {
                0 | 1 => bare::transfer(dir.path(), &source, settings.geometry, settings.streams, kind == 1)?,
                _ => runtime.block_on(parent.transfer(dir.path(), settings.streams))?,
            }
            let gib = settings.geometry.length() as f64 / (1024 * MIB) as f64;
            if round > 0 {
                samples[kind].push(Sample {
                    gib_per_second: gib / start.elapsed().as_secs_f64(),
                    cpu_per_gib: (cpu_seconds()? - cpu) / gib,
                });
            }
        }
    }
    report(&settings, samples)
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn report(settings: &Settings, samples: [Vec<Sample>; 3]) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "piece transfer on loopback: {} MiB in pieces of {} MiB, {} at a time, median of {} rounds",
        settings.geometry.length() / MIB,
        settings.geometry.piece_length() / MIB,
        settings.streams,
        settings.rounds
    )?;
    let [bare, hashed, ours] = samples;
    let limit = median(bare.iter().map(|sample| sample.gib_per_second));
    for (name, samples) in [("bare", bare), ("bare + hashes", hashed), ("damselfly", ours)] {
        let Some(speed) = median(samples.iter().map(|sample| sample.gib_per_second)) else { continue };
        let cpu = median(samples.iter().map(|sample| sample.cpu_per_gib)).unwrap_or_default();
        let ratio = limit.map(|limit| format!("{:.2} of bare", speed / limit)).unwrap_or_default();
        writeln!(out, "  {name:<14} {speed:6.2} GiB/s   {cpu:5.2} cpu s/GiB   {ratio}")?;
    }
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Processor time of this process so far: fields 14 and 15 of its stat line, in hundredths of a second.
fn cpu_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: Vec<f64> = fields.skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

/// A host that has the whole content.
struct Parent {
    addr: std::net::SocketAddr,
    task: StoredTask,
}

impl Parent {
    async fn start(dir: &Path, source: &Path, geometry: Geometry) -> Result<Self> {
        let storage = Storage::open(Config { dir: dir.join("parent"), ..Config::default() })?;
        let task = storage.create(new_task(geometry))?;
        let source = File::open(source)?;
        for piece in geometry.pieces() {
            let mut writer = task.claim(piece).ok_or("the piece is taken")?;
            let mut bytes = vec![0; writer.span().len() as usize];
            source.read_exact_at(&mut bytes, writer.span().start())?;
            writer.write(bytes.into()).await?;
            writer.finish()?;
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let server = DataServer::new(storage, ServerConfig::default(), Limiter::default(), Metrics::default());
        tokio::spawn(async move { server.serve(listener, std::future::pending()).await });
        Ok(Self { addr, task })
    }

    /// A new host takes everything from this one.
    async fn transfer(&self, dir: &Path, streams: u64) -> Result<()> {
        let dir = dir.join("child");
        let storage = Storage::open(Config { dir: dir.clone(), ..Config::default() })?;
        let task = storage.create(new_task(self.task.geometry()))?;
        let client = DataClient::default();
        let next = Arc::new(AtomicU32::new(0));
        let mut fetchers = tokio::task::JoinSet::new();
        for _ in 0..streams {
            let (task, client, next, addr) = (task.clone(), client.clone(), Arc::clone(&next), self.addr);
            fetchers.spawn(async move {
                while let Some(piece) = task.geometry().piece(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut writer = task.claim(piece).ok_or("the piece is taken")?;
                    client.fetch(addr, &task.id(), &mut writer, STALL).await?;
                    writer.finish()?;
                }
                Result::Ok(())
            });
        }
        while let Some(fetcher) = fetchers.join_next().await {
            fetcher??;
        }
        if !task.is_complete() {
            return Err("pieces are missing".into());
        }
        storage.remove(&task.id());
        drop((task, storage));
        std::fs::remove_dir_all(dir)?;
        Ok(())
    }
}

fn new_task(geometry: Geometry) -> NewTask {
    NewTask {
        id: TaskId::from_bytes([1; 32]),
        geometry,
        digest: None,
        origin: Origin::default(),
        headers: Vec::new(),
        audience: Audience::Public,
    }
}
