//! The proxies that are measured, each with the plainest configuration that does the same: no cache, no log.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::origin::Origin;
use crate::{MIB, Result};

const PATIENCE: Duration = Duration::from_secs(60);

/// A running proxy.
pub(crate) struct Proxy {
    pub(crate) name: String,
    pub(crate) at: SocketAddr,
    /// Whether it knows `CONNECT`.
    pub(crate) tunnels: bool,
    /// Who signs for hosts that it intercepts, in PEM.
    pub(crate) authority: String,
    process: Child,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Its children end with it, or are told by it; it may have ended by itself.
        let id = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        let began = Instant::now();
        while matches!(self.process.try_wait(), Ok(None)) && began.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Proxy {
    fn start(name: &str, at: SocketAddr, tunnels: bool, mut command: Command) -> Result<Self> {
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut proxy = Self { name: name.to_owned(), at, tunnels, authority: String::new(), process };
        let began = Instant::now();
        while TcpStream::connect(at).is_err() {
            if let Some(status) = proxy.process.try_wait()? {
                return Err(format!("{name} ended with {status}").into());
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("{name} does not listen").into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(proxy)
    }

    /// The CPU-seconds of the process and its children that `work` costs.
    pub(crate) fn cpu(&self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        let before = self.nanoseconds()?;
        work().map_err(|error| format!("{}: {error}", self.name))?;
        Ok(self.nanoseconds()?.saturating_sub(before).max(1) as f64 / 1e9)
    }

    /// Nanoseconds on a processor, of all threads that are there.
    fn nanoseconds(&self) -> Result<u64> {
        let mut family = vec![u64::from(self.process.id())];
        let mut total = 0;
        let all: Vec<Vec<String>> = std::fs::read_dir("/proc")?
            .flatten()
            .filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok())
            .filter_map(|text| {
                let (head, rest) = text.rsplit_once(") ")?;
                let id = head.split(' ').next()?.to_owned();
                Some(std::iter::once(id).chain(rest.split(' ').map(str::to_owned)).collect())
            })
            .collect();
        while let Some(parent) = family.pop() {
            for fields in &all {
                let number = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
                if number(0) == parent {
                    // Threads that have ended are in the coarse figure only.
                    total += threads(parent).max((number(12) + number(13)) * TICK);
                }
                if number(2) == parent {
                    family.push(number(0));
                }
            }
        }
        Ok(total)
    }

    /// Its resident memory in bytes.
    pub(crate) fn memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS")).ok_or("no such figure")?;
        Ok(line.split_whitespace().nth(1).ok_or("no number")?.parse::<u64>()? << 10)
    }
}

/// The kernel's clock ticks, in nanoseconds.
const TICK: u64 = 10_000_000;

/// What the threads of a process have run, in nanoseconds; the kernel's clock ticks are too coarse.
fn threads(process: u64) -> u64 {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{process}/task")) else { return 0 };
    let run = |stat: String| stat.split(' ').next().and_then(|text| text.parse::<u64>().ok());
    tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok().and_then(run)).sum()
}

/// A port that was free a moment ago.
fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn installed(name: &str) -> Option<PathBuf> {
    let places = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&places)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|place| place.join(name))
        .find(|path| path.is_file());
    if found.is_none() {
        println!("skipped: {name}");
    }
    found
}

/// Ours, which intercepts the origin's TLS.
pub(crate) fn ours(dir: &Path, name: &str, origin: &Origin) -> Result<Proxy> {
    let data = dir.join(name);
    std::fs::create_dir_all(&data)?;
    let (config, authority) = (data.join("dfdaemon.yaml"), data.join("origin.pem"));
    std::fs::write(&authority, &origin.authority)?;
    std::fs::write(
        &config,
        format!(
            "host: {{hostname: {name}, ip: 127.0.0.1}}\nupload: {{server: {{ip: 127.0.0.1, port: 0}}}}\n\
             storage: {{server: {{ip: 127.0.0.1, tcpPort: 0}}}}\nhealth: {{server: {{ip: 127.0.0.1, port: 0}}}}\n\
             proxy:\n  server: {{ip: 127.0.0.1, port: 0}}\n  intercept: {{hosts: [\"localhost:{}\"]}}\n  \
             upstreams: [{{host: \"localhost:{}\", caCert: {}}}]\n",
            origin.tls.port(),
            origin.tls.port(),
            authority.display()
        ),
    )?;
    let built = PathBuf::from(env!("CARGO_BIN_EXE_dfdaemon"));
    let mut command = Command::new(std::env::var_os("BENCH_DFDAEMON").map_or(built, PathBuf::from));
    command.arg("--config").arg(config).arg("--data-dir").arg(&data).args(["--log-level", "warn"]);
    let process = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let began = Instant::now();
    let addresses = loop {
        if let Ok(text) = std::fs::read_to_string(data.join("addresses.json")) {
            break serde_json::from_str::<serde_json::Value>(&text)?;
        }
        if began.elapsed() > PATIENCE {
            return Err("dfdaemon did not start".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let at = addresses["proxy"].as_str().ok_or("no proxy address")?.parse()?;
    let authority = std::fs::read_to_string(data.join("ca.pem"))?;
    Ok(Proxy { name: "damselfly".to_owned(), at, tunnels: true, authority, process })
}

/// All that pass requests on.
pub(crate) fn plain(dir: &Path, origin: &Origin) -> Result<Vec<Proxy>> {
    let mut all = vec![ours(dir, "plain", origin)?];
    if let Some(nginx) = installed("nginx") {
        all.push(start_nginx(&nginx, dir, origin)?);
    }
    if let Some(squid) = squid() {
        all.push(start_squid(&squid, dir, "squid", "")?);
    }
    if let Some(tinyproxy) = installed("tinyproxy") {
        let (at, config) = (free()?, dir.join("tinyproxy.conf"));
        let text = format!(
            "Port {}\nListen 127.0.0.1\nTimeout 600\nMaxClients 100\nAllow 127.0.0.1\nLogLevel Critical\n",
            at.port()
        );
        std::fs::write(&config, text)?;
        let mut command = Command::new(tinyproxy);
        command.arg("-d").arg("-c").arg(config);
        all.push(Proxy::start("tinyproxy", at, true, command)?);
    }
    Ok(all)
}

/// nginx leads to one origin: with a name in its `proxy_pass` it keeps no connections.
fn start_nginx(nginx: &Path, dir: &Path, origin: &Origin) -> Result<Proxy> {
    let (at, prefix) = (free()?, dir.join("nginx"));
    std::fs::create_dir_all(&prefix)?;
    let config = prefix.join("nginx.conf");
    std::fs::write(
        &config,
        format!(
            "daemon off;\npid {0}/pid;\nerror_log stderr crit;\nworker_processes 1;\nevents {{ worker_connections 4096; }}\n\
             http {{\n  access_log off;\n  client_body_temp_path {0}/b;\n  proxy_temp_path {0}/p;\n  fastcgi_temp_path {0}/f;\n  \
             uwsgi_temp_path {0}/u;\n  scgi_temp_path {0}/s;\n  keepalive_requests 1000000;\n  \
             upstream origin {{ server {1}; keepalive 64; keepalive_requests 1000000; }}\n  server {{\n    listen {2};\n    \
             location / {{ proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection \"\"; \
             proxy_max_temp_file_size 0; }}\n  }}\n}}\n",
            prefix.display(),
            origin.plain,
            at
        ),
    )?;
    let mut command = Command::new(nginx);
    command.arg("-p").arg(&prefix).arg("-c").arg(&config);
    Proxy::start("nginx", at, false, command)
}

fn squid() -> Option<PathBuf> {
    std::env::var_os("BENCH_SQUID").map(PathBuf::from).or_else(|| installed("squid"))
}

fn start_squid(squid: &Path, dir: &Path, name: &str, more: &str) -> Result<Proxy> {
    let (at, home) = (free()?, dir.join(name));
    std::fs::create_dir_all(&home)?;
    // It gives its rights away, and has to write there all the same.
    std::fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let port = if more.is_empty() { format!("http_port {at}") } else { more.replace("PORT", &at.to_string()) };
    let config = home.join("squid.conf");
    std::fs::write(
        &config,
        format!(
            "{port}\nhttp_access allow all\ncache deny all\ncache_mem 8 MB\naccess_log none\ncache_store_log none\n\
             cache_log {0}/log\npid_filename {0}/pid\ncoredump_dir {0}\nshutdown_lifetime 1 seconds\n\
             acl CONNECT method CONNECT\npinger_enable off\n",
            home.display()
        ),
    )?;
    let mut command = Command::new(squid);
    command.arg("-N").arg("-f").arg(config).arg("-n").arg(format!("bench{}", at.port()));
    Proxy::start(name, at, true, command)
}

/// All that look into TLS.
pub(crate) fn intercepting(dir: &Path, origin: &Origin) -> Result<Vec<Proxy>> {
    let mut all = vec![ours(dir, "intercepting", origin)?];
    let authority = all[0].authority.clone();
    let both = dir.join("both.pem");
    let key = std::fs::read_to_string(dir.join("intercepting/ca.key"))?;
    std::fs::write(&both, format!("{key}{authority}"))?;
    if let (Some(squid), Some(lib)) = (std::env::var_os("BENCH_SQUID"), std::env::var_os("BENCH_SQUID_LIB")) {
        let certgen = Path::new(&lib).join("security_file_certgen");
        let store = dir.join("certificates");
        let made = Command::new(&certgen).arg("-c").arg("-s").arg(&store).args(["-M", "4MB"]).output()?;
        if !made.status.success() {
            return Err("squid's store of certificates cannot be made".into());
        }
        let owned = Command::new("chown").args(["-R", "proxy"]).arg(&store).status()?;
        std::fs::set_permissions(&both, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        if owned.success() {
            let more = format!(
                "http_port PORT ssl-bump generate-host-certificates=on tls-cert={}\nsslcrtd_program {} -s {} -M 4MB\n\
                 acl step1 at_step SslBump1\nssl_bump bump all\ntls_outgoing_options flags=DONT_VERIFY_PEER\n",
                both.display(),
                certgen.display(),
                store.display()
            );
            let mut proxy = start_squid(Path::new(&squid), dir, "squid-openssl", &more)?;
            proxy.authority.clone_from(&authority);
            all.push(proxy);
        }
    } else {
        println!("skipped: squid with OpenSSL (BENCH_SQUID, BENCH_SQUID_LIB)");
    }
    let mitmdump = std::env::var_os("BENCH_MITMDUMP").map(PathBuf::from).or_else(|| installed("mitmdump"));
    if let Some(mitmdump) = mitmdump {
        let (at, home) = (free()?, dir.join("mitmproxy"));
        std::fs::create_dir_all(&home)?;
        std::fs::copy(&both, home.join("mitmproxy-ca.pem"))?;
        let mut command = Command::new(mitmdump);
        command.args(["-q", "--listen-host", "127.0.0.1", "--listen-port", &at.port().to_string()]);
        for option in [
            format!("confdir={}", home.display()),
            // Neither it nor squid is asked to verify; ours always does.
            "ssl_insecure=true".to_owned(),
            format!("stream_large_bodies={MIB}"),
        ] {
            command.arg("--set").arg(option);
        }
        let mut proxy = Proxy::start("mitmproxy", at, true, command)?;
        proxy.authority = authority;
        all.push(proxy);
    }
    Ok(all)
}
