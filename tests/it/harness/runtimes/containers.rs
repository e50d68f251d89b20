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

/// What a copy needs to know: both ends are at the mirror.
pub(crate) struct Copying<'a> {
    /// What stands for the registry where its mirror is named.
    pub(crate) mirror: &'a str,
    /// `REPOSITORY:TAG` of both ends.
    pub(crate) from: &'a str,
    pub(crate) to: &'a str,
    pub(crate) user: (&'a str, &'a str),
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
    /// Pulls and pushes at a mirror, with skopeo.
    pub(crate) fn copy(&self, copying: &Copying<'_>) -> Result<(), String> {
        let home = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| home.path().join(name).to_string_lossy().into_owned();
        write(Path::new(&path("policy.json")), POLICY);
        let (user, password) = copying.user;
        let credentials = format!("{user}:{password}");
        let mut command: Command = self.tool.command();
        clean(&mut command, home.path());
        command.args([
            "--policy",
            &path("policy.json"),
            "copy",
            "--preserve-digests",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
        ]);
        command.args(["--src-creds", &credentials, "--dest-creds", &credentials]);
        command.args([copying.from, copying.to].map(|end| format!("docker://{}/{end}", copying.mirror)));
        let done = run(&mut command);
        done.ok.then_some(()).ok_or(done.errors)
    }
}

impl Runtime for Containers {
    fn pull(&mut self, pull: &Pull<'_>) -> Result<(), String> {
        let home = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| home.path().join(name).to_string_lossy().into_owned();
        write(Path::new(&path("policy.json")), POLICY);
        write(Path::new(&path("registries.conf")), &registries_conf(pull));
        write(Path::new(&path("auth.json")), &auth_json(pull));
        let begin = || {
            let mut command: Command = self.tool.command();
            clean(&mut command, home.path());
            pull.environment(&mut command);
            command
                .env("CONTAINERS_REGISTRIES_CONF", path("registries.conf"))
                .env("REGISTRY_AUTH_FILE", path("auth.json"));
            if self.name != "skopeo" {
                command.args(["--root", &path("root"), "--runroot", &path("runroot"), "--storage-driver", "vfs"]);
            }
            command
        };
        let mut command = begin();
        match self.name {
            // Unlike its siblings it does not look at the environment for this file.
            "skopeo" => command
                .args(["--registries-conf", &path("registries.conf"), "--policy", &path("policy.json"), "copy"])
                .args([format!("docker://{}", pull.name()), format!("dir:{}", path("image"))]),
            _ => command.args(["pull", "--signature-policy", &path("policy.json"), &pull.name()]),
        };
        let done = run(&mut command);
        if !done.ok {
            return Err(done.errors);
        }
        if self.name == "skopeo" {
            let layer = std::fs::read(home.path().join("image").join(&digest(&pull.image.layer)[7..]));
            return layer.is_ok_and(|layer| layer == pull.image.layer).then_some(()).ok_or("the layer differs".into());
        }
        let images = run(begin().args(["images", "--quiet", "--no-trunc"]));
        let found = String::from_utf8_lossy(&images.output).contains(&digest(&pull.image.config)[7..]);
        found.then_some(()).ok_or(format!("the image is not there: {}", images.errors))
    }
}
