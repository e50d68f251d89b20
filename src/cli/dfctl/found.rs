//! Where this host's daemon is, and the certificate of its authority.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::http;
use crate::config::{SOCKET, default_data_dir};
use crate::mitm::Certificate;
use crate::proxy::PAGE_HOST;

/// Where a daemon of the system has its data.
const SYSTEM_DATA_DIR: &str = "/var/lib/damselfly";
const DEFAULT_PROXY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 4001);

/// The daemon that is asked.
pub(super) struct Daemon {
    /// Where its data may be, in the order of looking.
    data_dirs: Vec<PathBuf>,
    proxy: Option<SocketAddr>,
}

impl Daemon {
    pub(super) fn new(data_dir: Option<PathBuf>, proxy: Option<SocketAddr>) -> Self {
        let mut data_dirs: Vec<PathBuf> =
            data_dir.map_or_else(|| vec![default_data_dir(), PathBuf::from(SYSTEM_DATA_DIR)], |dir| vec![dir]);
        data_dirs.dedup();
        Self { data_dirs, proxy }
    }

    /// Its own directory, for what is written.
    pub(super) fn data_dir(&self) -> &Path {
        &self.data_dirs[0]
    }

    /// Where its proxy listens, as far as anybody says.
    pub(super) fn proxy(&self) -> SocketAddr {
        let written = |dir: &PathBuf| addresses(dir)?["proxy"].as_str()?.parse().ok();
        let mut at = self.proxy.or_else(|| self.data_dirs.iter().find_map(written)).unwrap_or(DEFAULT_PROXY);
        if at.ip().is_unspecified() {
            at.set_ip(if at.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
        }
        at
    }

    /// The sockets at which it may answer, in the order of trying.
    pub(super) fn sockets(&self) -> Vec<PathBuf> {
        let written = |dir: &PathBuf| addresses(dir)?["socket"].as_str().map(PathBuf::from);
        self.data_dirs.iter().map(|dir| written(dir).unwrap_or_else(|| dir.join(SOCKET))).collect()
    }

    /// The certificate that clients have to trust: of this file, or the running daemon's, or the one in its directory.
    pub(super) fn certificate(&self, file: Option<&Path>) -> anyhow::Result<(Certificate, String)> {
        if let Some(file) = file {
            return read(file);
        }
        let asked = match self.ask("/ca.pem") {
            Ok(pem) => {
                let from = format!("the daemon at {}", self.proxy());
                let certificate = Certificate::of_pem(&pem).map_err(|why| anyhow::anyhow!("{from}: {why}"))?;
                return Ok((certificate, from));
            }
            Err(error) => error,
        };
        match self.data_dirs.iter().map(|dir| dir.join("ca.pem")).find(|file| file.exists()) {
            Some(file) => read(&file),
            None => Err(asked.context(format!(
                "there is no certificate: {} has none, and no daemon gives one; name it with --cert FILE",
                self.data_dir().display()
            ))),
        }
    }

    /// What the daemon's own page says at `path`.
    fn ask(&self, path: &str) -> anyhow::Result<String> {
        let at = self.proxy();
        let answer = http::get(at, PAGE_HOST, &format!("http://{PAGE_HOST}{path}")).and_then(http::Answer::ok);
        answer.with_context(|| format!("asking the daemon at {at}"))
    }
}

/// What the daemon that runs in a directory has written of its addresses.
fn addresses(dir: &Path) -> Option<serde_json::Value> {
    serde_json::from_str(&std::fs::read_to_string(dir.join("addresses.json")).ok()?).ok()
}

fn read(file: &Path) -> anyhow::Result<(Certificate, String)> {
    let pem = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let certificate = Certificate::of_pem(&pem).map_err(|why| anyhow::anyhow!("{}: {why}", file.display()))?;
    Ok((certificate, file.display().to_string()))
}
