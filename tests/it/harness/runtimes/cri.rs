//! containerd as kubelets use it: its CRI plugin, which is told of mirrors in `certs.d` and of passwords in each request.

use std::path::PathBuf;
use std::process::Command;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;

use super::super::tools::{Tool, run, skipped};
use super::super::{Process, block_on, digest, spawn, wait_for};
use super::{Pull, Runtime, Way, clean, write};

/// Namespace of what kubelets pull.
const NAMESPACE: &str = "k8s.io";

/// A running containerd with its CRI plugin.
pub(crate) struct Cri {
    _process: Process,
    ctr: Tool,
    home: tempfile::TempDir,
}

impl Cri {
    pub(crate) fn start() -> Option<Self> {
        let (containerd, ctr) = (Tool::find("containerd")?, Tool::find("ctr")?);
        if !rustix::process::geteuid().is_root() {
            skipped("containerd's CRI plugin (only root may run it)");
            return None;
        }
        let home = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| home.path().join(name).to_string_lossy().into_owned();
        let socket = path("containerd.sock");
        let cri = "plugins.'io.containerd.grpc.v1.cri'";
        let config = [
            "version = 2".to_owned(),
            format!("root = '{}'\nstate = '{}'", path("root"), path("state")),
            "disabled_plugins = ['io.containerd.internal.v1.opt']".to_owned(),
            format!("[grpc]\naddress = '{socket}'\n[ttrpc]\naddress = '{socket}.ttrpc'"),
            format!("[{cri}]\nstream_server_port = '0'"),
            format!("[{cri}.cni]\nconf_dir = '{}'\nbin_dir = '{}'", path("cni"), path("cni-bin")),
            format!("[{cri}.containerd]\nsnapshotter = 'native'"),
            format!("[{cri}.registry]\nconfig_path = '{}'", path("certs.d")),
        ];
        let file = home.path().join("containerd.toml");
        write(&file, &config.join("\n"));
        let mut command = containerd.command();
        clean(&mut command, home.path());
        let process = Process::start("containerd-cri", home.path(), command.arg("--config").arg(file));
        let running = Self { _process: process, ctr, home };
        wait_for("containerd", || run(running.ctr().arg("version")).ok.then_some(()));
        let plugins = run(running.ctr().args(["plugins", "ls", "id==cri"]));
        if !String::from_utf8_lossy(&plugins.output).contains(" ok") {
            skipped("containerd's CRI plugin (it is not built in)");
            return None;
        }
        Some(running)
    }

    fn socket(&self) -> PathBuf {
        self.home.path().join("containerd.sock")
    }

    fn ctr(&self) -> Command {
        let mut command = self.ctr.command();
        clean(&mut command, self.home.path());
        command.arg("--address").arg(self.socket()).args(["--namespace", NAMESPACE]);
        command
    }

    /// The call that kubelets make.
    async fn pull_image(&self, name: &str, user: Option<(&str, &str)>) -> Result<(), String> {
        let said = |error: hyper::Error| error.to_string();
        let stream = UnixStream::connect(self.socket()).await.map_err(|error| error.to_string())?;
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(said)?;
        spawn(connection);
        let image = field(1, &field(1, name.as_bytes()));
        let auth =
            user.map(|(user, password)| field(2, &[field(1, user.as_bytes()), field(2, password.as_bytes())].concat()));
        let message = [image, auth.unwrap_or_default()].concat();
        let length = u32::try_from(message.len()).expect("a short message").to_be_bytes();
        let request = Request::post("http://localhost/runtime.v1.ImageService/PullImage");
        let request = request.header("content-type", "application/grpc").header("te", "trailers");
        let body = Full::new(Bytes::from([&[0][..], &length, &message].concat()));
        let (head, body) = sender.send_request(request.body(body).expect("valid")).await.map_err(said)?.into_parts();
        let body = body.collect().await.map_err(said)?;
        let trailers = body.trailers().unwrap_or(&head.headers);
        match trailers.get("grpc-status").map(http::HeaderValue::as_bytes) {
            Some(b"0") => Ok(()),
            _ => Err(format!("{trailers:?}")),
        }
    }
}

/// A field of a protocol buffer whose value is a string or a message.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let mut coded = vec![number << 3 | 2];
    let mut length = value.len();
    while length > 0x7f {
        coded.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    coded.push(length as u8);
    coded.extend_from_slice(value);
    coded
}

impl Runtime for Cri {
    fn pull(&mut self, pull: &Pull<'_>) -> Result<(), String> {
        let mirror = match pull.way {
            Way::Mirror => pull.host.proxy,
            Way::Port => pull.mirror_port(),
            Way::Proxy | Way::Direct => return Err("only mirrors are told to a running daemon".into()),
        };
        let text = format!(
            "server = \"https://{}\"\n[host.\"http://{mirror}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
            pull.registry
        );
        write(&self.home.path().join("certs.d").join(pull.registry).join("hosts.toml"), &text);
        block_on(self.pull_image(&pull.name(), pull.user))?;
        let layer = run(self.ctr().args(["content", "get", &digest(&pull.image.layer)]));
        let names = run(self.ctr().args(["images", "ls", "--quiet"]));
        for name in String::from_utf8_lossy(&names.output).lines() {
            run(self.ctr().args(["images", "rm", "--sync", name]));
        }
        let left = run(self.ctr().args(["content", "get", &digest(&pull.image.layer)]));
        match layer.output == pull.image.layer {
            true if left.ok => Err("the layer is still there after its removal".into()),
            true => Ok(()),
            false => Err(format!("the layer differs: {}", layer.errors)),
        }
    }

    fn push(&mut self, _: &Pull<'_>, _: &str) -> Result<(), String> {
        Err("kubelets do not push".into())
    }
}
