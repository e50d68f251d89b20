//! skopeo, podman and buildah: three programs that pull with the same library, and are told of mirrors in
//! registries.conf.

use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::super::digest;
use super::super::tools::{Tool, run};
use super::{Pull, Runtime, Way, clean, write};

/// One of the three.
pub(crate) struct Containers {
    name: &'static str,
    tool: Tool,
}

impl Containers {
    pub(crate) fn find(name: &'static str) -> Option<Self> {
        Some(Self { name, tool: Tool::find(name)? })
    }
}

/// Neither signatures nor any registry of the machine.
const POLICY: &str = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;

/// The registry's mirror, as registries.conf wants it.
fn registries_conf(pull: &Pull<'_>) -> String {
    if matches!(pull.way, Way::Proxy | Way::Direct) {
        return "unqualified-search-registries = []\n".into();
    }
    format!(
        "unqualified-search-registries = []\n[[registry]]\nprefix = \"{registry}\"\nlocation = \"{registry}\"\n\
         [[registry.mirror]]\nlocation = \"{mirror}\"\ninsecure = true\n",
        registry = pull.registry,
        mirror = pull.mirror_name()
    )
}

/// What `podman login` leaves behind, for the registry and for its mirror.
fn auth_json(pull: &Pull<'_>) -> String {
    let auths = pull.user.into_iter().flat_map(|(user, password)| {
        let entry = json!({ "auth": STANDARD.encode(format!("{user}:{password}")) });
        let mirror = matches!(pull.way, Way::Mirror | Way::Port).then(|| (pull.mirror_name(), entry.clone()));
        mirror.into_iter().chain([(pull.registry.to_owned(), entry)])
    });
    json!({ "auths": auths.collect::<serde_json::Map<_, _>>() }).to_string()
}

impl Containers {
    /// A command that is told of the mirror, or of the proxy.
    fn begin(&self, home: &Path, pull: &Pull<'_>) -> Command {
        let path = |name: &str| home.join(name);
        write(&path("policy.json"), POLICY);
        write(&path("registries.conf"), &registries_conf(pull));
        write(&path("auth.json"), &auth_json(pull));
        let mut command: Command = self.tool.command();
        clean(&mut command, home);
        pull.environment(&mut command);
        command.env("CONTAINERS_REGISTRIES_CONF", path("registries.conf")).env("REGISTRY_AUTH_FILE", path("auth.json"));
        if self.name == "skopeo" {
            // Unlike its siblings it does not look at the environment for this file.
            command.arg("--registries-conf").arg(path("registries.conf")).arg("--policy").arg(path("policy.json"));
        } else {
            command.arg("--root").arg(path("root")).arg("--runroot").arg(path("runroot"));
            command.args(["--storage-driver", "vfs"]);
        }
        command
    }

    fn fetch(&self, home: &Path, pull: &Pull<'_>) -> Result<(), String> {
        let mut command = self.begin(home, pull);
        match self.name {
            "skopeo" => command.args(["copy", &format!("docker://{}", pull.name())]).arg(directory(home)),
            _ => command.args(["pull", "--signature-policy"]).arg(home.join("policy.json")).arg(pull.name()),
        };
        let done = run(&mut command);
        done.ok.then_some(()).ok_or(done.errors)
    }
}

/// Where skopeo puts an image.
fn directory(home: &Path) -> String {
    format!("dir:{}", home.join("image").display())
}

impl Runtime for Containers {
    fn pull(&mut self, pull: &Pull<'_>) -> Result<(), String> {
        let home = tempfile::tempdir().expect("a temporary directory");
        self.fetch(home.path(), pull)?;
        if self.name == "skopeo" {
            let layer = std::fs::read(home.path().join("image").join(&digest(&pull.image.layer)[7..]));
            return layer.is_ok_and(|layer| layer == pull.image.layer).then_some(()).ok_or("the layer differs".into());
        }
        let images = run(self.begin(home.path(), pull).args(["images", "--quiet", "--no-trunc"]));
        let found = String::from_utf8_lossy(&images.output).contains(&digest(&pull.image.config)[7..]);
        found.then_some(()).ok_or(format!("the image is not there: {}", images.errors))
    }

    fn push(&mut self, pull: &Pull<'_>, to: &str) -> Result<(), String> {
        let home = tempfile::tempdir().expect("a temporary directory");
        self.fetch(home.path(), pull)?;
        let is_mirror = matches!(pull.way, Way::Mirror | Way::Port);
        let to = format!("docker://{}/{to}", pull.pushed_to());
        let mut command = self.begin(home.path(), pull);
        match self.name {
            "skopeo" => {
                command.args(["copy", "--preserve-digests", &format!("--dest-tls-verify={}", !is_mirror)]);
                command.args([directory(home.path()), to]);
            }
            _ => {
                command.args(["push", &format!("--tls-verify={}", !is_mirror), &pull.name(), &to]);
            }
        }
        let done = run(&mut command);
        done.ok.then_some(()).ok_or(done.errors)
    }
}
