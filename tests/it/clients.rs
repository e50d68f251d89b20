//! The clients that people use, against a real registry behind the mirror.

use std::path::Path;
use std::process::Command;

use crate::harness::{Daemon, Image, MIB, Process, Registry, Tool, digest, run, skipped};

const REPOSITORY: &str = "team/app";

/// A real registry with an image, and a daemon which knows that it speaks plain HTTP.
struct Scene {
    image: Image,
    registry: Registry,
    daemon: Daemon,
    home: tempfile::TempDir,
}

impl Scene {
    fn set(seed: u64) -> Option<Self> {
        let registry = Registry::start()?;
        let image = Image::new(12 * MIB, seed);
        image.push(&registry.url(), REPOSITORY, "1");
        // A port cannot stand in an image's name behind the first slash, so the mirror is told which registry it is.
        let daemon = Daemon::plan("h1").plain_upstream(registry.authority());
        let daemon = daemon.set("proxy.registryMirror.addr", registry.url()).start();
        Some(Self { image, registry, daemon, home: tempfile::tempdir().expect("a temporary directory") })
    }

    fn path(&self, name: &str) -> String {
        self.home.path().join(name).to_string_lossy().into_owned()
    }

    /// The image's name at the mirror.
    fn mirrored(&self, tag: &str) -> String {
        format!("{}/{REPOSITORY}:{tag}", self.daemon.proxy())
    }

    #[track_caller]
    fn assert_done(&self, what: &str, command: &mut Command) -> Vec<u8> {
        let done = run(command.env("HOME", self.home.path()).env("XDG_RUNTIME_DIR", self.home.path()));
        assert!(done.ok, "{what}: {}\n{}", done.errors, self.daemon.process.log());
        done.output
    }

    /// The layer came from this daemon's own disk or through it, not around it.
    #[track_caller]
    fn assert_layer_is_stored(&self) {
        let tasks = self.daemon.admin("/tasks");
        let id = &digest(&self.image.layer)[7..];
        assert!(String::from_utf8_lossy(&tasks.body).contains(id), "the layer is not a task: {:?}", tasks.body);
    }
}

fn write(path: &str, text: &str) {
    if let Some(parent) = Path::new(path).parent() {
        std::fs::create_dir_all(parent).expect("a writable directory");
    }
    std::fs::write(path, text).expect("a writable directory");
}

/// Neither signatures nor any registry of the machine.
const POLICY: &str = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;

#[test]
fn skopeo_copies_through_the_mirror() {
    let (Some(skopeo), Some(scene)) = (Tool::find("skopeo"), Scene::set(700)) else { return };
    write(&scene.path("policy.json"), POLICY);
    for round in ["cold", "warm"] {
        let target = scene.path(round);
        let mut command = skopeo.command();
        command.args(["--policy", &scene.path("policy.json"), "copy", "--src-tls-verify=false"]);
        command.args([format!("docker://{}", scene.mirrored("1")), format!("dir:{target}")]);
        scene.assert_done("skopeo copy", &mut command);
        let layer = std::fs::read(Path::new(&target).join(&digest(&scene.image.layer)[7..])).expect("the layer");
        assert!(layer == scene.image.layer, "{round}: the layer differs");
    }
    scene.assert_layer_is_stored();
}

#[test]
fn skopeo_uses_it_as_configured_mirror_and_pushes_through_it() {
    let (Some(skopeo), Some(scene)) = (Tool::find("skopeo"), Scene::set(701)) else { return };
    write(&scene.path("policy.json"), POLICY);
    let registry = scene.registry.authority();
    let conf = format!(
        "[[registry]]\nprefix = \"{registry}\"\nlocation = \"{registry}\"\ninsecure = true\n\
         [[registry.mirror]]\nlocation = \"{}\"\ninsecure = true\n",
        scene.daemon.proxy()
    );
    write(&scene.path("registries.conf"), &conf);
    let skopeo = |arguments: &[&str]| {
        let mut command = skopeo.command();
        command.args(["--registries-conf", &scene.path("registries.conf")]);
        command.args(["--policy", &scene.path("policy.json"), "copy"]).args(arguments);
        scene.assert_done("skopeo copy", &mut command);
    };
    let pulled = format!("dir:{}", scene.path("pulled"));
    skopeo(&[&format!("docker://{registry}/{REPOSITORY}:1"), &pulled]);
    scene.assert_layer_is_stored();

    let pushed = format!("docker://{}", scene.mirrored("pushed"));
    skopeo(&["--dest-tls-verify=false", &pulled, &pushed]);
    let again = format!("dir:{}", scene.path("again"));
    skopeo(&["--src-tls-verify=false", &format!("docker://{registry}/{REPOSITORY}:pushed"), &again]);
}

#[test]
fn podman_pulls_through_the_mirror() {
    let (Some(podman), Some(scene)) = (Tool::find("podman"), Scene::set(702)) else { return };
    write(&scene.path("policy.json"), POLICY);
    let registry = scene.registry.authority();
    let conf = format!(
        "[[registry]]\nprefix = \"{registry}\"\nlocation = \"{registry}\"\ninsecure = true\n\
         [[registry.mirror]]\nlocation = \"{}\"\ninsecure = true\n",
        scene.daemon.proxy()
    );
    write(&scene.path("registries.conf"), &conf);
    let podman = |arguments: &[&str]| {
        let mut command = podman.command();
        command.env("CONTAINERS_REGISTRIES_CONF", scene.path("registries.conf"));
        command.args(["--root", &scene.path("root"), "--runroot", &scene.path("runroot"), "--storage-driver=vfs"]);
        command.args(["--cgroup-manager=cgroupfs", "--events-backend=none"]).args(arguments);
        String::from_utf8_lossy(&scene.assert_done("podman", &mut command)).into_owned()
    };
    let name = format!("{registry}/{REPOSITORY}:1");
    podman(&["pull", "--signature-policy", &scene.path("policy.json"), &name]);
    assert!(podman(&["images", "--quiet", "--no-trunc"]).contains(&digest(&scene.image.config)));
    scene.assert_layer_is_stored();
}

#[test]
fn containerd_pulls_through_the_mirror() {
    let tools = (Tool::find("containerd"), Tool::find("ctr"), Scene::set(703));
    let (Some(containerd), Some(ctr), Some(scene)) = tools else { return };
    if !rustix::process::geteuid().is_root() {
        return skipped("containerd (only root may run it)");
    }
    let socket = scene.path("containerd.sock");
    let config = format!(
        "version = 2\nroot = '{}'\nstate = '{}'\ndisabled_plugins = ['io.containerd.grpc.v1.cri', \
         'io.containerd.internal.v1.opt']\n[grpc]\naddress = '{socket}'\n[ttrpc]\naddress = '{socket}.ttrpc'\n",
        scene.path("root"),
        scene.path("state"),
    );
    write(&scene.path("containerd.toml"), &config);
    let mut command = containerd.command();
    command.args(["--config", &scene.path("containerd.toml")]);
    let _containerd = Process::start("containerd", scene.home.path(), &mut command);
    let ctr = |arguments: &[&str]| run(ctr.command().args(["--address", &socket]).args(arguments));
    crate::harness::wait_for("containerd", || ctr(&["version"]).ok.then_some(()));

    let registry = scene.registry.authority();
    let hosts = format!(
        "server = \"http://{registry}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        scene.daemon.proxy()
    );
    write(&scene.path(&format!("certs.d/{registry}/hosts.toml")), &hosts);
    let name = format!("{registry}/{REPOSITORY}:1");
    let fetched = ctr(&["content", "fetch", "--hosts-dir", &scene.path("certs.d"), &name]);
    assert!(fetched.ok, "{}\n{}", fetched.errors, scene.daemon.process.log());
    scene.assert_layer_is_stored();
    let layer = ctr(&["content", "get", &digest(&scene.image.layer)]);
    assert!(layer.ok && layer.output == scene.image.layer, "{}", layer.errors);
    let pulled = ctr(&["images", "pull", "--snapshotter", "native", "--hosts-dir", &scene.path("certs.d"), &name]);
    assert!(pulled.ok, "{}\n{}", pulled.errors, scene.daemon.process.log());
}
