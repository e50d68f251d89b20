//! The programs that pull images, the ways in which they are pointed at us, and the kinds of registries: whether each of
//! them works, and what it costs the registry.
//!
//! The tables of docs/clients.md are what these tests have seen: with `WRITE_DOCS=1` in the environment they write
//! their rows there.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::harness::{
    Access, Addresses, Asked, Authority, Containerd, Containers, Cri, Curl, Daemon, Docker, Fleet, HostView, Image,
    MIB, Pull, Runtime, SECRET, Seen, TestRegistry, Way,
};

const USER: &str = "alice";
const LAYER: usize = 9 * MIB;
const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/clients.md");

/// The kinds of registries. What they are is said in docs/clients.md.
const KINDS: [char; 7] = ['a', 'b', 'c', 'd', 'e', 'f', 'g'];

/// The programs, with the ways that each of them can be pointed at us.
const PROGRAMS: [(&str, &[Way]); 7] = [
    ("curl", &[Way::Mirror, Way::Proxy]),
    ("skopeo", &[Way::Mirror, Way::Port, Way::Proxy]),
    ("podman", &[Way::Mirror, Way::Port, Way::Proxy]),
    ("buildah", &[Way::Mirror, Way::Proxy]),
    ("ctr", &[Way::Mirror, Way::Proxy]),
    ("CRI", &[Way::Mirror, Way::Port]),
    ("docker", &[Way::Mirror, Way::Port, Way::Proxy]),
];

/// The ways in which a program can be made to push through us.
fn ways_to_push(name: &str) -> &'static [Way] {
    match name {
        "curl" | "CRI" => &[],
        // When it pushes, containerd 1.6 does not say which registry it means.
        "ctr" => &[Way::Port, Way::Proxy],
        _ => PROGRAMS.iter().find(|(own, _)| *own == name).map_or(&[], |(_, ways)| ways),
    }
}

/// A way, as the table calls it.
fn called(way: Way) -> &'static str {
    match way {
        Way::Mirror => "mirror",
        Way::Port => "mirror port",
        Way::Proxy => "proxy",
        Way::Direct => "direct",
    }
}

fn find(name: &'static str) -> Option<Box<dyn Runtime>> {
    match name {
        "curl" => Curl::find().map(|found| Box::new(found) as Box<dyn Runtime>),
        "CRI" => Cri::start().map(|found| Box::new(found) as Box<dyn Runtime>),
        "ctr" => Containerd::start().map(|found| Box::new(found) as Box<dyn Runtime>),
        "docker" => Docker::find().map(|found| Box::new(found) as Box<dyn Runtime>),
        _ => Containers::find(name).map(|found| Box::new(found) as Box<dyn Runtime>),
    }
}

/// A registry of one kind.
struct Kind {
    letter: char,
    registry: TestRegistry,
    needs_user: bool,
}

/// Registries of all kinds, on addresses for which programs written in Go do ask a proxy, and on the port that needs no
/// mention: a name with a port cannot stand in the path of an image. They speak TLS, and only we trust their authority:
/// what goes around us ends in the handshake.
struct Registries {
    addresses: Addresses,
    authority: Arc<Authority>,
    home: tempfile::TempDir,
    kinds: Vec<Kind>,
}

impl Registries {
    fn start() -> Option<Self> {
        let addresses = Addresses::take(KINDS.len() + 1)?;
        let authority = Arc::new(Authority::new());
        let home = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(home.path().join("registry-ca.pem"), authority.pem()).expect("a writable directory");
        let mut registries = Self { addresses, authority, home, kinds: Vec::new() };
        registries.kinds = (0..KINDS.len()).map(|number| registries.kind(number)).collect();
        Some(registries)
    }

    fn kind(&self, number: usize) -> Kind {
        let letter = KINDS[number];
        let access = match letter {
            'a' | 'g' => Access::Open,
            'b' | 'f' => Access::AnonymousToken,
            'c' => Access::Basic,
            _ => Access::UserToken,
        };
        let address = |number: usize| IpAddr::V4(self.addresses.all[number]);
        let plan = TestRegistry::plan(access).host(address(number)).tls(&self.authority);
        let plan = match letter {
            'b' => plan.token_port(),
            'e' => plan.store(address(KINDS.len())),
            'f' => plan.relative(),
            'g' => plan.client_certificate(),
            _ => plan,
        };
        let registry = plan.start();
        registry.allow(USER, SECRET);
        Kind { letter, registry, needs_user: matches!(access, Access::Basic | Access::UserToken) }
    }

    /// Two hosts that know all of them.
    fn fleet(&self) -> (Fleet, Vec<HostView>) {
        let fleet = Fleet::start_with(2, |mut plan| {
            for host in &self.addresses.all {
                plan = plan.intercept(&host.to_string());
            }
            for kind in &self.kinds {
                let identity = (kind.letter == 'g').then(|| self.authority.client_certificate());
                plan = plan.upstream(kind.registry.authority(), self.authority.pem(), identity);
                for other in kind.registry.other_authorities() {
                    plan = plan.upstream(other, self.authority.pem(), None);
                }
                let mirror = serde_json::json!({ "port": 0, "registry": kind.registry.url("") });
                plan = plan.set("proxy.mirrors[]", mirror);
            }
            plan
        });
        let mirror = |host: &Daemon, kind: &Kind| (kind.letter, host.mirror(&kind.registry.url("")));
        let view = |(number, host): (usize, &Daemon)| HostView {
            name: format!("h{}", number + 1),
            proxy: host.proxy(),
            mirrors: self.kinds.iter().map(|kind| mirror(host, kind)).collect(),
            ca: host.data("ca.pem"),
        };
        let hosts = fleet.hosts.iter().enumerate().map(view).collect();
        (fleet, hosts)
    }

    /// Pulls once, and tells what was asked of the registry meanwhile.
    fn pull(&self, runtime: &mut dyn Runtime, kind: &Kind, way: Way, host: &HostView, what: &What) -> Stage {
        let registry = &kind.registry;
        registry.forget();
        let strangers = registry.broken_handshakes();
        let outcome = runtime.pull(&Pull {
            way,
            host,
            mirror: host.mirrors.get(&kind.letter).copied(),
            registry: registry.authority(),
            registry_ca: &self.home.path().join("registry-ca.pem"),
            repository: &what.repository,
            tag: "1",
            user: kind.needs_user.then_some((USER, SECRET)),
            image: &what.image,
        });
        Stage {
            outcome,
            blob_bytes: registry.blob_bytes(),
            tokens: registry.token_requests(),
            around_us: registry.broken_handshakes() - strangers,
            seen: registry.seen(),
        }
    }
}

/// What is pulled.
struct What {
    repository: String,
    image: Image,
}

/// One pull, and what it cost the registry.
struct Stage {
    outcome: Result<(), String>,
    blob_bytes: u64,
    tokens: usize,
    /// Connections that did not come from us.
    around_us: usize,
    seen: Vec<Seen>,
}

impl Stage {
    /// In multiples of the image.
    fn images(&self) -> f64 {
        self.blob_bytes as f64 / LAYER as f64
    }
}

/// A cold pull, the same again, and one on a second host.
type Cell = [Stage; 3];

/// What is wrong with a cell of this column, if anything is.
fn complaint(letter: char, cell: &Cell) -> Option<String> {
    let images: f64 = cell.iter().map(Stage::images).sum();
    let errors = cell.iter().filter_map(|stage| stage.outcome.as_ref().err());
    let errors: Vec<_> = errors.map(|error| error.trim().to_owned()).collect();
    let around_us: usize = cell.iter().map(|stage| stage.around_us).sum();
    let tokens: usize = cell.iter().map(|stage| stage.tokens).sum();
    if !errors.is_empty() {
        return Some(errors.join("\n"));
    }
    if !(0.99..=1.05).contains(&images) {
        return Some(format!("the registry sent {images:.2} images"));
    }
    if around_us > 0 {
        return Some(format!("{around_us} connections went around us"));
    }
    // None where the registry hands out none. Else one for each host; containerd begins without a password, so that we ask
    // for a token for anybody first.
    let most = if matches!(letter, 'a' | 'c' | 'g') { 0 } else { 4 };
    (tokens > most).then(|| format!("{tokens} requests for tokens"))
}

/// A cell of the table: images sent, and requests for tokens.
fn in_words(cell: &Cell) -> String {
    if cell.iter().any(|stage| stage.outcome.is_err()) {
        return "fails".into();
    }
    let images = cell.each_ref().map(|stage| match stage.images() {
        few if few < 0.05 => "0".to_owned(),
        images => format!("{images:.1}"),
    });
    let tokens = cell.each_ref().map(|stage| stage.tokens.to_string());
    format!("{} ({})", images.join(", "), tokens.join(", "))
}

/// Every kind of registry in every way: each works, costs one image for two hosts, and goes through us.
fn pull_everything(name: &'static str) {
    let (Some(registries), Some(mut runtime)) = (Registries::start(), find(name)) else { return };
    let (_fleet, hosts) = registries.fleet();
    let (_, ways) = PROGRAMS.iter().find(|(own, _)| *own == name).expect("a known program");
    let mut wrong = Vec::new();
    for (row, &way) in ways.iter().enumerate() {
        let mut cells = Vec::new();
        for (column, kind) in registries.kinds.iter().enumerate() {
            let image = Image::new(LAYER, 900 + (row * KINDS.len() + column) as u64);
            let what = What { repository: format!("team/app-{row}"), image };
            kind.registry.publish(&what.image, &what.repository, "1");
            let cell: Cell = [0, 0, 1].map(|host| registries.pull(runtime.as_mut(), kind, way, &hosts[host], &what));
            if let Some(complaint) = complaint(kind.letter, &cell) {
                let asked = cell.iter().flat_map(|stage| &stage.seen).map(in_a_line).collect::<Vec<_>>();
                wrong.push(format!("{name}, {}, {}: {complaint}\n  {}", called(way), kind.letter, asked.join("\n  ")));
            }
            cells.push(in_words(&cell));
        }
        write_row(&[name, called(way)], &cells);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn curl_pulls_from_every_kind_of_registry() {
    pull_everything("curl");
}

#[test]
fn skopeo_pulls_from_every_kind_of_registry() {
    pull_everything("skopeo");
}

#[test]
fn podman_pulls_from_every_kind_of_registry() {
    pull_everything("podman");
}

#[test]
fn buildah_pulls_from_every_kind_of_registry() {
    pull_everything("buildah");
}

#[test]
fn containerd_pulls_from_every_kind_of_registry() {
    pull_everything("ctr");
}

/// The plugin of containerd that kubelets talk to.
#[test]
fn cri_pulls_from_every_kind_of_registry() {
    pull_everything("CRI");
}

#[test]
fn docker_pulls_from_every_kind_of_registry() {
    pull_everything("docker");
}

/// With a mirror of docker.io, docker says nowhere which registry it means.
#[test]
fn docker_pulls_through_its_registry_mirror() {
    let (Some(registries), Some(mut docker)) = (Registries::start(), Docker::find()) else { return };
    for (number, kind) in registries.kinds.iter().enumerate().filter(|(_, kind)| matches!(kind.letter, 'a' | 'b' | 'd'))
    {
        let daemon = Daemon::plan("h1").trusted_upstream(kind.registry.authority(), registries.authority.pem());
        let others = kind.registry.other_authorities();
        let daemon = others.fold(daemon, |plan, other| plan.trusted_upstream(other, registries.authority.pem()));
        let daemon = daemon.set("proxy.registryMirror.addr", kind.registry.url("")).start();
        let image = Image::new(LAYER, 880 + number as u64);
        kind.registry.publish(&image, "team/hub", "1");
        for round in ["cold", "again"] {
            let user = kind.needs_user.then_some((USER, SECRET));
            let done = docker.pull_from_docker_io(daemon.proxy(), "team/hub:1", user, &image);
            assert_eq!(done, Ok(()), "{}, {round}: {}", kind.letter, daemon.process.log());
        }
        let images = kind.registry.blob_bytes() as f64 / LAYER as f64;
        assert!((0.99..1.05).contains(&images), "{}: the registry sent {images:.2} images", kind.letter);
        assert_eq!(kind.registry.broken_handshakes(), 0);
    }
}

/// Every kind of registry in every way: what is pushed is there, and went through us.
fn push_everything(name: &'static str) {
    let (Some(registries), Some(mut runtime)) = (Registries::start(), find(name)) else { return };
    let (_fleet, hosts) = registries.fleet();
    let mut wrong = Vec::new();
    for &way in ways_to_push(name) {
        let mut cells = Vec::new();
        for kind in &registries.kinds {
            let image = Image::new(MIB, 870);
            kind.registry.publish(&image, "team/app", "1");
            let strangers = kind.registry.broken_handshakes();
            let host = &hosts[0];
            let pull = Pull {
                way,
                host,
                mirror: host.mirrors.get(&kind.letter).copied(),
                registry: kind.registry.authority(),
                registry_ca: &registries.home.path().join("registry-ca.pem"),
                repository: "team/app",
                tag: "1",
                user: Some((USER, SECRET)),
                image: &image,
            };
            let to = format!("team/{}", called(way).replace(' ', "-"));
            let done = runtime.push(&pull, &format!("{to}:2"));
            let around_us = kind.registry.broken_handshakes() - strangers;
            let there = kind.registry.has_image(&to, "2", &image.config);
            if done != Ok(()) || around_us > 0 || !there {
                wrong.push(format!("{name}, {}, {}: {done:?}, around us: {around_us}", called(way), kind.letter));
            }
            cells.push(if there { "pushed".to_owned() } else { "fails".to_owned() });
        }
        write_row(&[name, "push", called(way)], &cells);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn skopeo_pushes_to_every_kind_of_registry() {
    push_everything("skopeo");
}

#[test]
fn podman_pushes_to_every_kind_of_registry() {
    push_everything("podman");
}

#[test]
fn buildah_pushes_to_every_kind_of_registry() {
    push_everything("buildah");
}

#[test]
fn containerd_pushes_to_every_kind_of_registry() {
    push_everything("ctr");
}

#[test]
fn docker_pushes_to_every_kind_of_registry() {
    push_everything("docker");
}

/// A request of a client, for a reader.
fn in_a_line(seen: &Seen) -> String {
    let path = seen.target.split('?').next().unwrap_or_default();
    let what = match seen.kind {
        Asked::ManifestHead | Asked::ManifestGet if path.contains("sha256:") => "manifest by digest",
        Asked::ManifestHead | Asked::ManifestGet => "manifest by tag",
        Asked::BlobHead | Asked::BlobGet => "blob",
        Asked::StoreHead | Asked::StoreGet => "signed URL",
        Asked::TokenGet | Asked::TokenPost => "/token",
        _ => path,
    };
    format!("{} {what} {}", seen.method, seen.status())
}

/// Nobody is in between: the clients find the tests' registries as good as any.
#[test]
fn real_clients_pull_from_the_registries_themselves() {
    let Some(registries) = Registries::start() else { return };
    let nobody = HostView::nobody();
    for (number, (name, _)) in PROGRAMS.into_iter().filter(|(name, _)| *name != "CRI").enumerate() {
        let Some(mut runtime) = find(name) else { continue };
        for kind in registries.kinds.iter().filter(|kind| kind.letter != 'g') {
            let what = What { repository: format!("team/{name}"), image: Image::new(LAYER, 890 + number as u64) };
            kind.registry.publish(&what.image, &what.repository, "1");
            let stage = registries.pull(runtime.as_mut(), kind, Way::Direct, &nobody, &what);
            assert_eq!(stage.outcome, Ok(()), "{name}, {}", kind.letter);
            assert!(stage.images() < 1.05, "{name}, {}: {} images", kind.letter, stage.images());
            if matches!(kind.letter, 'a' | 'd') {
                let mut asked: Vec<_> = stage.seen.iter().map(in_a_line).collect();
                asked.dedup();
                write_row(&[name, "asks of", &kind.letter.to_string()], &[asked.join(", ")]);
            }
        }
    }
}

/// Compares a row with the one in the table of docs/clients.md; or writes it there, where that is wanted.
fn write_row(key: &[&str], cells: &[String]) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let begin = format!("| {} |", key.join(" | "));
    let row = format!("{begin} {} |", cells.join(" | "));
    println!("{row}");
    if std::env::var_os("WRITE_DOCS").is_none() {
        // What programs ask in which order depends on them; how many tokens they want, on who comes first.
        if cells.len() == KINDS.len() {
            let docs = std::fs::read_to_string(DOCS).expect("docs/clients.md");
            let documented = docs.lines().find(|line| line.starts_with(&begin)).unwrap_or_default();
            let (said, seen) = (outcomes(documented), outcomes(&row));
            assert_eq!(said, seen, "docs/clients.md says otherwise: write it anew with WRITE_DOCS=1");
        }
        return;
    }
    let _guard = ONE_AT_A_TIME.lock().expect("no panic with the lock");
    let docs = std::fs::read_to_string(DOCS).expect("docs/clients.md");
    assert!(docs.contains(&begin), "docs/clients.md has no row {begin}");
    let lines = docs.lines().map(|line| if line.starts_with(&begin) { row.as_str() } else { line });
    let docs: String = lines.flat_map(|line| [line, "\n"]).collect();
    std::fs::write(Path::new(DOCS), docs).expect("a writable file");
}

/// The cells of a row without what stands in parentheses: how many tokens were asked for.
fn outcomes(row: &str) -> Vec<&str> {
    row.split('|').map(|cell| cell.split(" (").next().unwrap_or_default().trim()).collect()
}

#[test]
fn the_documented_table_has_the_rows_of_the_tests() {
    let docs = std::fs::read_to_string(DOCS).expect("docs/clients.md");
    let mut wanted = Vec::new();
    for (name, ways) in PROGRAMS {
        wanted.extend(ways.iter().map(|&way| (format!("| {name} | {} |", called(way)), KINDS.len())));
    }
    for (name, _) in PROGRAMS {
        wanted.extend(
            ways_to_push(name).iter().map(|&way| (format!("| {name} | push | {} |", called(way)), KINDS.len())),
        );
    }
    for (name, _) in PROGRAMS.into_iter().filter(|(name, _)| *name != "CRI") {
        wanted.extend(['a', 'd'].map(|letter| (format!("| {name} | asks of | {letter} |"), 1)));
    }
    let is_row = |line: &&str| wanted.iter().any(|(begin, _)| line.starts_with(begin.as_str()));
    let rows: Vec<&str> = docs.lines().filter(is_row).collect();
    assert_eq!(rows.len(), wanted.len(), "the rows are {rows:#?}");
    for (row, (begin, cells)) in rows.iter().zip(&wanted) {
        assert!(row.starts_with(begin), "{row} stands where {begin} should");
        let filled = row[begin.len()..].split('|').filter(|cell| !cell.trim().is_empty()).count();
        assert_eq!(filled, *cells, "{row}");
        assert!(!row.contains("fails") && !row.contains("not run"), "{row}");
    }
}
