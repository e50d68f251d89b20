//! The programs that pull images, each driven as its users do: told of a mirror, or of a proxy.

mod containerd;
mod containers;
mod cri;
mod curl;
mod docker;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) use containerd::Containerd;
pub(crate) use containers::Containers;
pub(crate) use cri::Cri;
pub(crate) use curl::Curl;
pub(crate) use docker::Docker;

use super::Image;

/// How a client is pointed at a host's daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// As a mirror that is told in the request which registry is meant.
    Mirror,
    /// As the mirror of one registry, on a port of its own.
    Port,
    /// As a proxy that intercepts the registry's TLS.
    Proxy,
    /// Not at all.
    Direct,
}

/// What a client needs to know of a host's daemon.
#[derive(Clone)]
pub(crate) struct HostView {
    pub(crate) name: String,
    pub(crate) proxy: SocketAddr,
    /// Its mirror ports, by the kind of registry.
    pub(crate) mirrors: BTreeMap<char, SocketAddr>,
    /// The daemon's authority, as a file.
    pub(crate) ca: PathBuf,
}

impl HostView {
    /// For a client that goes its own way.
    pub(crate) fn nobody() -> Self {
        let unused = SocketAddr::from(([127, 0, 0, 1], 9));
        Self { name: "nobody".into(), proxy: unused, mirrors: BTreeMap::new(), ca: PathBuf::new() }
    }
}

/// One pull.
pub(crate) struct Pull<'a> {
    pub(crate) way: Way,
    pub(crate) host: &'a HostView,
    /// The daemon's mirror port for the registry.
    pub(crate) mirror: Option<SocketAddr>,
    /// The registry's name; it speaks TLS.
    pub(crate) registry: &'a str,
    /// The authority of the registry, as a file.
    pub(crate) registry_ca: &'a Path,
    pub(crate) repository: &'a str,
    pub(crate) tag: &'a str,
    pub(crate) user: Option<(&'a str, &'a str)>,
    pub(crate) image: &'a Image,
}

impl Pull<'_> {
    /// The daemon's mirror port for the registry.
    fn mirror_port(&self) -> SocketAddr {
        self.mirror.expect("a mirror port for this kind of registry")
    }

    /// `REGISTRY/REPOSITORY:TAG`.
    fn name(&self) -> String {
        format!("{}/{}:{}", self.registry, self.repository, self.tag)
    }

    /// What stands for the registry where its mirror is named.
    fn mirror_name(&self) -> String {
        match self.way {
            Way::Port => self.mirror_port().to_string(),
            _ => format!("{}/{}", self.host.proxy, self.registry),
        }
    }

    /// What stands for the registry in a name under which something is pushed.
    fn pushed_to(&self) -> String {
        match self.way {
            Way::Mirror | Way::Port => self.mirror_name(),
            Way::Proxy | Way::Direct => self.registry.to_owned(),
        }
    }

    /// The settings of a Go program for this way.
    fn environment(&self, command: &mut Command) {
        match self.way {
            Way::Mirror | Way::Port => {}
            Way::Proxy => {
                command.env("HTTPS_PROXY", format!("http://{}", self.host.proxy)).env("SSL_CERT_FILE", &self.host.ca);
            }
            Way::Direct => _ = command.env("SSL_CERT_FILE", self.registry_ca),
        }
    }
}

/// A program that pulls.
pub(crate) trait Runtime {
    /// Pulls the image into an empty store, looks whether it is the right one, and empties the store.
    fn pull(&mut self, pull: &Pull<'_>) -> Result<(), String>;

    /// Pulls the image, and pushes it to the same registry in the same way, to this `REPOSITORY:TAG`.
    fn push(&mut self, pull: &Pull<'_>, to: &str) -> Result<(), String>;
}

/// Writes a file, and the directories above it.
fn write(path: &Path, text: &str) {
    let parent = path.parent().expect("a path with a directory");
    std::fs::create_dir_all(parent).expect("a writable directory");
    std::fs::write(path, text).expect("a writable directory");
}

/// A command in an environment with nothing of this machine's but its `PATH`.
fn clean(command: &mut Command, home: &Path) {
    command.env_clear().env("HOME", home).env("XDG_RUNTIME_DIR", home).env("TMPDIR", home);
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
}
