//! A fleet: an origin, schedulers and hosts around one hub. What a scenario does is said here in its words: start
//! clients, wait until so much has come, kill that host.

mod crowd;
mod meter;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::client::{Client, Request};
use crate::content::Content;
use crate::network::{Network, Place, run};
use crate::origin::Origin;
use crate::program::{Binaries, Program, set};
use crate::slot::Slot;
use crate::units::Rate;

pub(crate) use crowd::Crowd;
pub(crate) use meter::{Meter, Reading};

/// How long a client waits for a byte.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long hosts may take until the schedulers know them.
const SETTLING: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);
const GRPC: u16 = 8002;
const PROXY: u16 = 4001;

/// What a fleet is made of.
pub(crate) struct Plan {
    pub(crate) hosts: usize,
    pub(crate) schedulers: usize,
    pub(crate) link: Rate,
    pub(crate) origin: Rate,
    /// Keys of every daemon's configuration beside the usual.
    pub(crate) config: Vec<(&'static str, Value)>,
}

/// How a laboratory is run, whatever is run in it.
#[derive(Clone)]
pub(crate) struct Bench {
    pub(crate) slot: Slot,
    pub(crate) binaries: Binaries,
    pub(crate) log_level: String,
}

pub(crate) struct Fleet {
    // Programs are dropped before the network that they are in.
    pub(crate) hosts: Vec<Host>,
    pub(crate) schedulers: Vec<Scheduler>,
    pub(crate) origin: Origin,
    pub(crate) network: Network,
    bench: Bench,
    files: u64,
}

pub(crate) struct Scheduler {
    pub(crate) place: Place,
    program: Option<Program>,
}

pub(crate) struct Host {
    pub(crate) place: Place,
    program: Option<Program>,
    config: Value,
    data: PathBuf,
}

/// A file at the origin.
#[derive(Debug, Clone)]
pub(crate) struct File {
    pub(crate) name: String,
    pub(crate) content: Content,
}

impl Fleet {
    /// Makes the network and starts the schedulers; hosts are there, their daemons not yet.
    pub(crate) fn build(bench: &Bench, plan: &Plan) -> Result<Self> {
        bench.slot.clear();
        fs::create_dir_all(bench.slot.work())?;
        let mut network = Network::new(&bench.slot)?;
        let origin = Origin::start(network.add("origin", plan.origin)?)?;
        let schedulers = (0..plan.schedulers)
            .map(|n| Ok(Scheduler { place: network.add(&format!("s{n}"), plan.origin)?, program: None }))
            .collect::<Result<Vec<_>>>()?;
        let addresses: Vec<String> = schedulers.iter().map(|s| format!("{}:{GRPC}", s.place.ip)).collect();
        let hosts = (0..plan.hosts)
            .map(|n| {
                let place = network.add(&format!("h{n}"), plan.link)?;
                let mut config = json!({
                    "host": { "hostname": place.name, "ip": place.ip.to_string() },
                    "scheduler": { "addrs": addresses },
                });
                for (path, value) in &plan.config {
                    set(&mut config, path, value.clone());
                }
                let data = bench.slot.work().join(&place.name);
                Ok(Host { place, program: None, config, data })
            })
            .collect::<Result<_>>()?;
        let mut fleet = Self { hosts, schedulers, origin, network, bench: bench.clone(), files: 0 };
        for n in 0..plan.schedulers {
            fleet.start_scheduler(n)?;
        }
        Ok(fleet)
    }

    /// The same with all daemons running and known to the schedulers.
    pub(crate) fn start(bench: &Bench, plan: &Plan) -> Result<Self> {
        let mut fleet = Self::build(bench, plan)?;
        for n in 0..plan.hosts {
            fleet.start_host(n)?;
        }
        fleet.settle(plan.hosts)?;
        Ok(fleet)
    }

    pub(crate) fn start_scheduler(&mut self, n: usize) -> Result<()> {
        let Bench { slot, binaries, log_level, .. } = &self.bench;
        let scheduler = &mut self.schedulers[n];
        let data = slot.work().join(&scheduler.place.name);
        let arguments = [
            "--listen",
            &format!("0.0.0.0:{GRPC}"),
            "--http",
            "0.0.0.0:8080",
            "--log-level",
            log_level,
            "--data-dir",
            &data.to_string_lossy(),
        ]
        .map(str::to_owned);
        let log = slot.work().join(format!("{}.log", scheduler.place.name));
        scheduler.program = Some(Program::start(&scheduler.place, &binaries.scheduler, &arguments, &data, &log)?);
        Ok(())
    }

    pub(crate) fn start_host(&mut self, n: usize) -> Result<()> {
        let Bench { slot, binaries, log_level, .. } = &self.bench;
        let host = &mut self.hosts[n];
        let file = slot.work().join(format!("{}.yaml", host.place.name));
        // JSON is YAML.
        fs::write(&file, host.config.to_string())?;
        let arguments =
            ["--config", &file.to_string_lossy(), "--data-dir", &host.data.to_string_lossy(), "--log-level", log_level]
                .map(str::to_owned);
        let log = slot.work().join(format!("{}.log", host.place.name));
        host.program = Some(Program::start(&host.place, &binaries.dfdaemon, &arguments, &host.data, &log)?);
        Ok(())
    }

    /// Waits until every living scheduler knows so many hosts.
    pub(crate) fn settle(&self, hosts: usize) -> Result<()> {
        let started = Instant::now();
        for scheduler in self.schedulers.iter().filter(|scheduler| scheduler.program.is_some()) {
            while scheduler.hosts()? < hosts {
                ensure!(started.elapsed() < SETTLING, "{} does not know {hosts} hosts", scheduler.place.name);
                thread::sleep(POLL);
            }
        }
        Ok(())
    }

    /// A new file at the origin.
    pub(crate) fn publish(&mut self, length: u64) -> File {
        self.files += 1;
        let file =
            File { name: format!("file{}.bin", self.files), content: Content { length, version: self.files * 1000 } };
        self.origin.publish(&file.name, file.content);
        file
    }

    /// A client of host `n`'s daemon.
    pub(crate) fn client(&self, n: usize, file: &File) -> Client {
        Client::start(&self.hosts[n].place, self.request(file, true))
    }

    /// Clients of all these hosts, all at once.
    pub(crate) fn clients(&self, hosts: impl IntoIterator<Item = usize>, file: &File) -> Crowd {
        self.clients_with(hosts, &self.request(file, true))
    }

    /// Clients that all ask this.
    pub(crate) fn clients_with(&self, hosts: impl IntoIterator<Item = usize>, request: &Request) -> Crowd {
        let length = request.versions.first().map_or(0, |version| version.length);
        let clients = hosts.into_iter().map(|n| (n, Client::start(&self.hosts[n].place, request.clone())));
        Crowd { clients: clients.collect(), length }
    }

    /// Clients in the hosts' places that go to the origin themselves.
    pub(crate) fn direct_clients(&self, file: &File) -> Crowd {
        self.clients_with(0..self.hosts.len(), &self.request(file, false))
    }

    pub(crate) fn request(&self, file: &File, through_us: bool) -> Request {
        Request {
            origin: self.origin.address,
            proxy: through_us.then(|| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PROXY)),
            name: file.name.clone(),
            versions: vec![file.content],
            range: None,
            patience: PATIENCE,
        }
    }

    /// Lets these hosts hold a file, one after the other.
    pub(crate) fn warm(&self, hosts: impl IntoIterator<Item = usize>, file: &File) -> Result<()> {
        for n in hosts {
            let outcome = self.client(n, file).outcome()?;
            if let Some(error) = outcome.error {
                bail!("host {n} could not be given {}: {error}", file.name);
            }
        }
        Ok(())
    }

    /// The host that the origin has sent most of a file to.
    pub(crate) fn reader(&self, file: &File) -> Result<usize> {
        let readers = self.origin.readers(&file.name);
        let (ip, _) = readers.first().context("nobody reads the source")?;
        self.host_at(*ip).context("a stranger reads the source")
    }

    pub(crate) fn host_at(&self, ip: IpAddr) -> Option<usize> {
        self.hosts.iter().position(|host| IpAddr::V4(host.place.ip) == ip)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            host.program = None;
        }
        for scheduler in &mut self.schedulers {
            scheduler.program = None;
        }
        self.bench.slot.clear();
    }
}

impl Host {
    pub(crate) fn set(&mut self, path: &str, value: impl Into<Value>) {
        set(&mut self.config, path, value.into());
    }

    /// Puts the host's data onto a small file system. Before its daemon is started.
    pub(crate) fn small_disk(&self, bytes: u64) -> Result<()> {
        fs::create_dir_all(&self.data)?;
        let data = self.data.to_string_lossy();
        self.place.slot().create(|| run("mount", &["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs", &data]))
    }

    fn program(&self) -> Result<&Program> {
        self.program.as_ref().with_context(|| format!("{} does not run", self.place.name))
    }

    pub(crate) fn freeze(&self) -> Result<()> {
        self.program()?.freeze()
    }

    pub(crate) fn thaw(&self) -> Result<()> {
        self.program()?.thaw()
    }

    pub(crate) fn kill(&mut self) -> Result<()> {
        self.program.take().map_or(Ok(()), Program::kill)
    }

    pub(crate) fn stop(&mut self) -> Result<()> {
        self.program.take().map_or(Ok(()), Program::stop)
    }
}

impl Scheduler {
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.program.take().map_or(Ok(()), Program::kill)
    }

    pub(crate) fn freeze(&self) -> Result<()> {
        self.program.as_ref().map_or(Ok(()), Program::freeze)
    }

    /// How many hosts it knows.
    fn hosts(&self) -> Result<usize> {
        let body = self.place.run(|| http_get(SocketAddr::new(self.place.ip.into(), 8080), "/api/v1/hosts"))??;
        let hosts: Value = serde_json::from_slice(&body).context("the scheduler's list of hosts is no JSON")?;
        Ok(hosts.as_array().map_or(0, Vec::len))
    }
}

/// The body of a small answer. From within a place.
pub(crate) fn http_get(address: SocketAddr, path: &str) -> Result<Vec<u8>> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(16 << 20).read_to_end(&mut answer)?;
    let body = answer.windows(4).position(|window| window == b"\r\n\r\n").context("no HTTP answer")? + 4;
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "{path}: {}", String::from_utf8_lossy(&answer[..body]));
    Ok(answer.split_off(body))
}
