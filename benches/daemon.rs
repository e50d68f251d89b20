//! The daemon as a whole, from outside: `cargo bench --bench daemon`.
//!
//! In one run, with the built executables on loopback:
//! - `idle`: resident memory of a daemon that has just started (at most 40 MiB is the aim);
//! - `pass-through`: a download that is not to be shared, through the proxy against direct, in turn;
//! - `warm`: a download that the daemon holds, against direct, in turn;
//! - `cold`: 1 GiB through the daemon, and the most memory that it had resident meanwhile (at most 150 MiB is the aim);
//! - `neighbour`: 512 MiB that one daemon holds, to a client of a daemon beside it, against a bare loop of sendfile and
//!   receive, in turn;
//! - `three hosts`: 1 GiB to three daemons at once, and how many bytes the origin sent for it.
//!
//! Settings: `BENCH_MIB` (content, default 1024), `BENCH_ROUNDS` (5).

mod bare;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const MIB: u64 = bare::MIB;
/// Pieces under way at a time in the bare loop: as many as a daemon asks one parent for.
const STREAMS: u64 = 4;
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let length = setting("BENCH_MIB", 1024) * MIB;
    let rounds = setting("BENCH_ROUNDS", 5);
    let dir = tempfile::tempdir()?;
    let origin = Origin::start(length)?;

    let daemon = Daemon::start(dir.path(), "a", None)?;
    std::thread::sleep(Duration::from_secs(2));
    println!("idle: {} MiB resident", daemon.memory("VmRSS")? / MIB);

    let direct = || origin.get(None, "/private");
    let [alone, through] = in_turn(rounds, [&direct, &|| origin.get(Some(daemon.proxy), "/private")])?;
    report("pass-through", length, alone, through);

    let cold = origin.get(Some(daemon.proxy), "/shared.bin?cold")?;
    println!(
        "cold: {:.2} GiB/s; {} MiB resident at most since the start",
        rate(length, cold),
        daemon.memory("VmHWM")? / MIB
    );
    let [alone, warm] = in_turn(rounds, [&direct, &|| origin.get(Some(daemon.proxy), "/shared.bin?cold")])?;
    report("warm", length, alone, warm);
    drop(daemon);

    neighbour(dir.path(), length / 2, rounds)?;
    three_hosts(dir.path(), &origin, length)
}

/// Both take the pieces out of the page cache, over loopback, into a file; the daemons also check them and hand them on
/// to a client.
fn neighbour(dir: &Path, length: u64, rounds: u64) -> Result<()> {
    let origin = Origin::start(length)?;
    let scheduler = Scheduler::start(&dir.join("between"))?;
    let first = Daemon::start(dir, "e", Some(scheduler.grpc))?;
    let second = Daemon::start(dir, "f", Some(scheduler.grpc))?;
    let source = dir.join("source");
    bare::fill(&source, length)?;
    let geometry = damselfly_core::Geometry::of_length(length)?;
    let round = std::cell::Cell::new(0);
    let before = origin.sent.load(Ordering::Relaxed);
    let [limit, ours] = in_turn(
        rounds,
        [
            &|| {
                let started = Instant::now();
                bare::transfer(dir, &source, geometry, STREAMS, false)?;
                Ok(started.elapsed())
            },
            &|| {
                round.set(round.get() + 1);
                let path = format!("/shared.bin?{}", round.get());
                origin.get(Some(first.proxy), &path)?;
                origin.get(Some(second.proxy), &path)
            },
        ],
    )?;
    let extra = origin.sent.load(Ordering::Relaxed) - before - rounds * length;
    report("neighbour", length, limit, ours);
    println!("  the origin sent {} KiB a round for the second host", extra / rounds / 1024);
    Ok(())
}

fn three_hosts(dir: &Path, origin: &Origin, length: u64) -> Result<()> {
    let scheduler = Scheduler::start(&dir.join("scheduler"))?;
    let daemons = ["b", "c", "d"]
        .iter()
        .map(|name| Daemon::start(dir, name, Some(scheduler.grpc)))
        .collect::<Result<Vec<_>>>()?;
    let before = origin.sent.load(Ordering::Relaxed);
    let started = Instant::now();
    std::thread::scope(|scope| {
        let downloads: Vec<_> =
            daemons.iter().map(|daemon| scope.spawn(|| origin.get(Some(daemon.proxy), "/shared.bin?three"))).collect();
        downloads.into_iter().try_for_each(|download| match download.join() {
            Ok(got) => got.map(drop),
            Err(_) => Err("a download panicked".into()),
        })
    })?;
    let sent = origin.sent.load(Ordering::Relaxed) - before;
    let most = daemons.iter().map(|daemon| daemon.memory("VmHWM")).collect::<Result<Vec<_>>>()?;
    println!(
        "three hosts: all done after {:.1} s; the origin sent {:.3} times the file; {} MiB resident at most",
        started.elapsed().as_secs_f64(),
        sent as f64 / length as f64,
        most.into_iter().max().unwrap_or(0) / MIB
    );
    Ok(())
}

fn report(name: &str, length: u64, mut direct: Vec<Duration>, mut other: Vec<Duration>) {
    direct.sort();
    other.sort();
    let (direct, other) = (direct[direct.len() / 2], other[other.len() / 2]);
    println!(
        "{name}: {:.2} GiB/s against {:.2} GiB/s without us (medians): {:.2} of it",
        rate(length, other),
        rate(length, direct),
        direct.as_secs_f64() / other.as_secs_f64()
    );
}

fn rate(length: u64, took: Duration) -> f64 {
    length as f64 / (1u64 << 30) as f64 / took.as_secs_f64()
}

/// Runs both again and again, one after the other, so that the machine's moods hit them alike.
fn in_turn(rounds: u64, runs: [&dyn Fn() -> Result<Duration>; 2]) -> Result<[Vec<Duration>; 2]> {
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (run, times) in runs.iter().zip(&mut times) {
            times.push(run()?);
        }
    }
    Ok(times)
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// An origin that serves one content under every path; `/private` says that it is not to be shared.
struct Origin {
    address: SocketAddr,
    length: u64,
    sent: Arc<AtomicU64>,
}

impl Origin {
    fn start(length: u64) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (address, sent) = (listener.local_addr()?, Arc::new(AtomicU64::new(0)));
        let counter = Arc::clone(&sent);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let counter = Arc::clone(&counter);
                // A client that leaves early is no trouble of the origin's.
                std::thread::spawn(move || drop(serve(stream, length, &counter)));
            }
        });
        Ok(Self { address, length, sent })
    }

    /// Downloads everything and throws it away; says how long it took.
    fn get(&self, proxy: Option<SocketAddr>, path: &str) -> Result<Duration> {
        let started = Instant::now();
        let mut stream = TcpStream::connect(proxy.unwrap_or(self.address))?;
        let prefix = if proxy.is_some() { format!("http://{}", self.address) } else { String::new() };
        write!(stream, "GET {prefix}{path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address)?;
        let mut buffer = vec![0; 1 << 20];
        let (mut head, mut got) = (Vec::new(), 0u64);
        let body = loop {
            let read = stream.read(&mut buffer)?;
            if read == 0 {
                return Err("no answer".into());
            }
            head.extend_from_slice(&buffer[..read]);
            if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
                break head.len() - end - 4;
            }
        };
        if !head.starts_with(b"HTTP/1.1 200") {
            return Err(String::from_utf8_lossy(&head[..head.len().min(300)]).into_owned().into());
        }
        got += body as u64;
        while got < self.length {
            match stream.read(&mut buffer)? {
                0 => return Err(format!("only {got} bytes came").into()),
                read => got += read as u64,
            }
        }
        Ok(started.elapsed())
    }
}

fn serve(stream: TcpStream, length: u64, sent: &AtomicU64) -> Result<()> {
    let bytes: Vec<u8> = (0..MIB).map(|index| ((index * 31) >> 3) as u8).collect();
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    loop {
        let (mut private, mut range) = (false, None);
        let mut line = String::new();
        while reader.read_line(&mut line)? > 0 && line != "\r\n" {
            private |= line.starts_with("GET") && line.contains("private");
            if let Some(asked) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                let (first, last) = asked.trim().split_once('-').ok_or("a range of another kind")?;
                range = Some((first.parse::<u64>()?, last.parse::<u64>().unwrap_or(length - 1)));
            }
            line.clear();
        }
        if line.is_empty() {
            return Ok(());
        }
        let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
        let (first, last) = range.unwrap_or((0, length - 1));
        let cache = if private { "Cache-Control: private\r\n" } else { "" };
        write!(
            writer,
            "HTTP/1.1 {status}\r\nETag: \"1\"\r\nContent-Length: {}\r\nContent-Range: bytes {first}-{last}/{length}\r\n{cache}\r\n",
            last - first + 1
        )?;
        let mut at = first;
        while at <= last {
            let offset = at % MIB;
            let run = (MIB - offset).min(last + 1 - at);
            writer.write_all(&bytes[offset as usize..(offset + run) as usize])?;
            sent.fetch_add(run, Ordering::Relaxed);
            at += run;
        }
    }
}

/// A daemon of this build; ended with its guard.
struct Daemon {
    process: Process,
    proxy: SocketAddr,
}

impl Daemon {
    fn start(dir: &Path, name: &str, scheduler: Option<SocketAddr>) -> Result<Self> {
        let data = dir.join(name);
        std::fs::create_dir_all(&data)?;
        let config = data.join("dfdaemon.yaml");
        std::fs::write(
            &config,
            format!(
                "host: {{hostname: {name}, ip: 127.0.0.1}}\nproxy: {{server: {{ip: 127.0.0.1, port: 0}}}}\n\
                 upload: {{server: {{ip: 127.0.0.1, port: 0}}}}\nstorage: {{server: {{ip: 127.0.0.1, tcpPort: 0}}}}\n\
                 health: {{server: {{ip: 127.0.0.1, port: 0}}}}\n"
            ),
        )?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_dfdaemon"));
        command.arg("--config").arg(config).arg("--data-dir").arg(&data).args(["--log-level", "warn"]);
        if let Some(scheduler) = scheduler {
            command.args(["--scheduler", &scheduler.to_string()]);
        }
        let (process, addresses) = Process::start(command, &data)?;
        let proxy = addresses["proxy"].as_str().ok_or("no proxy address")?.parse()?;
        Ok(Self { process, proxy })
    }

    /// A figure of the process's status, in bytes.
    fn memory(&self, field: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.0.id()))?;
        let line = status.lines().find(|line| line.starts_with(field)).ok_or("no such figure")?;
        let kib: u64 = line.split_whitespace().nth(1).ok_or("no number")?.parse()?;
        Ok(kib << 10)
    }
}

struct Scheduler {
    _process: Process,
    grpc: SocketAddr,
}

impl Scheduler {
    fn start(data: &Path) -> Result<Self> {
        std::fs::create_dir_all(data)?;
        let mut command = Command::new(scheduler_executable()?);
        command
            .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log-level", "warn", "--data-dir"])
            .arg(data);
        let (process, addresses) = Process::start(command, data)?;
        Ok(Self { grpc: addresses["grpc"].as_str().ok_or("no gRPC address")?.parse()?, _process: process })
    }
}

/// The scheduler is built by another package: made sure of here, and found beside the daemon.
fn scheduler_executable() -> Result<PathBuf> {
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--package", "damselfly-scheduler", "--bin", "scheduler"])
        .status()?;
    if !built.success() {
        return Err("the scheduler does not build".into());
    }
    Ok(Path::new(env!("CARGO_BIN_EXE_dfdaemon")).with_file_name("scheduler"))
}

struct Process(Child);

impl Process {
    /// Starts it and waits until it has written where it listens.
    fn start(mut command: Command, data: &Path) -> Result<(Self, serde_json::Value)> {
        let mut process = Self(command.stdout(Stdio::null()).spawn()?);
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if let Ok(text) = std::fs::read(data.join("addresses.json")) {
                return Ok((process, serde_json::from_slice(&text)?));
            }
            if let Some(status) = process.0.try_wait()? {
                return Err(format!("it ended with {status}").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err("it did not start in time".into())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
