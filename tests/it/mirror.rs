//! The proxy's port as a registry mirror, on a registry of the test's own.

use crate::harness::{Ask, Daemon, Ending, Fleet, Image, MIB, Origin, Page, all, random};

const REPOSITORY: &str = "library/app";

fn registry(image: &Image) -> Origin {
    let origin = Origin::start();
    image.publish(&origin, REPOSITORY, "1");
    origin
}

#[test]
fn the_registry_is_named_in_four_ways() {
    let image = Image::new(9 * MIB, 400);
    let origin = registry(&image);
    let authority = origin.authority();
    let named = Daemon::plan("h1").plain_upstream(&authority).start();
    let mirror = |daemon: &Daemon, path: &str| Ask::get(&format!("http://{}{path}", daemon.proxy()));
    let path = image.layer_path(REPOSITORY);
    let by_segment = path.replacen("/v2/", &format!("/v2/{authority}/"), 1);

    mirror(&named, &format!("{path}?ns={authority}")).send().assert_is(&image.layer);
    mirror(&named, &path).header("X-Dragonfly-Registry", &format!("http://{authority}")).send().assert_is(&image.layer);
    mirror(&named, &by_segment).send().assert_is(&image.layer);
    let configured = Daemon::plan("h2").set("proxy.registryMirror.addr", origin.url("")).start();
    mirror(&configured, &path).send().assert_is(&image.layer);

    let sent = origin.sent(&path);
    let (once, twice) = (image.layer.len() as u64, 2 * image.layer.len() as u64);
    assert!(sent >= once && sent < twice + (64 << 10), "two hosts and four ways cost {sent}");
    for seen in origin.seen(&path) {
        assert!(!seen.target.contains("ns="), "{}", seen.target);
    }
}

#[test]
fn a_manifest_by_digest_is_there_only_where_the_registry_has_it() {
    let image = Image::new(MIB, 404);
    let origin = registry(&image);
    let daemon = Daemon::plan("h1").plain_upstream(&origin.authority()).start();
    let digest = crate::harness::digest(&image.manifest);
    let path = |repository: &str| format!("/v2/{repository}/manifests/{digest}");
    let ask = |method: &str, repository: &str| Ask::new(method, &origin.url(&path(repository))).via(daemon.proxy());
    let asked = || origin.seen(&path(REPOSITORY)).len();
    ask("GET", REPOSITORY).send().assert_is(&image.manifest);
    ask("GET", REPOSITORY).send().assert_is(&image.manifest);
    assert_eq!(asked(), 1, "it is held");

    // Whoever pushes there asks so whether it has to.
    for method in ["HEAD", "GET"] {
        assert_eq!(ask(method, "team/other").send().status, 404, "{method}");
    }
    image.publish(&origin, "team/other", "1");
    ask("GET", "team/other").send().assert_is(&image.manifest);
    assert_eq!(ask("HEAD", REPOSITORY).send().status, 200);
    assert_eq!(asked(), 2, "a HEAD is the registry's to answer");
    ask("GET", REPOSITORY).header("X-Dragonfly-Use-P2P", "false").send().assert_is(&image.manifest);
    assert_eq!(asked(), 3, "who wants nothing held gets nothing held");
}

#[test]
fn everything_but_blobs_is_passed_on() {
    let image = Image::new(MIB, 401);
    let origin = registry(&image);
    let daemon = Daemon::plan("h1").set("proxy.registryMirror.addr", origin.url("")).start();
    let mirror = |method: &str, path: &str| Ask::new(method, &format!("http://{}{path}", daemon.proxy()));
    let manifest = format!("/v2/{REPOSITORY}/manifests/1");

    let ask = mirror("GET", &manifest).header("Accept", "application/a").header("Accept", "application/b, */*");
    let answer = ask.send();
    answer.assert_is(&image.manifest);
    assert_eq!(answer.line("content-type"), "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(origin.seen(&manifest)[0].all("accept"), ["application/a", "application/b, */*"]);

    let head = mirror("HEAD", &manifest).send();
    assert_eq!(head.line("content-length"), image.manifest.len().to_string());
    assert!(head.line("docker-content-digest").starts_with("sha256:"));
    let head = mirror("HEAD", &image.layer_path(REPOSITORY)).send();
    assert_eq!((head.status, head.line("content-length")), (200, image.layer.len().to_string().as_str()));

    assert_eq!(mirror("GET", &format!("/v2/{REPOSITORY}/manifests/none")).send().status, 404);
    let challenge = "Bearer realm=\"https://auth.example/token\",service=\"s\"";
    origin.put("/v2/locked/manifests/1", Page::plain("{}").status(401).header("WWW-Authenticate", challenge));
    let locked = daemon.get(&origin.url("/v2/locked/manifests/1"));
    assert_eq!((locked.status, locked.line("www-authenticate")), (401, challenge));
    // As a mirror we get the token ourselves.
    let locked = mirror("GET", "/v2/locked/manifests/1").send();
    let namespace = origin.authority().replace(':', "%3A");
    let challenge = format!("Bearer realm=\"http://{}/token?ns={namespace}\",service=\"damselfly\"", daemon.proxy());
    assert_eq!((locked.status, locked.line("www-authenticate")), (401, challenge.as_str()));

    origin.put("/v2/push/blobs/uploads/1", Page::plain("").kind(crate::harness::Kind::Echo).status(201));
    let pushed = random(3 * MIB, 402);
    let answer = mirror("PUT", "/v2/push/blobs/uploads/1").body(&pushed).send();
    assert_eq!(answer.status, 201);
    answer.assert_body(&pushed);
}

#[test]
fn a_range_from_zero_is_206() {
    let image = Image::new(9 * MIB, 403);
    let origin = registry(&image);
    let daemon = Daemon::plan("h1").set("proxy.registryMirror.addr", origin.url("")).start();
    let url = format!("http://{}{}", daemon.proxy(), image.layer_path(REPOSITORY));
    for range in ["bytes=0-", "bytes=5000000-"] {
        let answer = Ask::get(&url).header("Range", range).send();
        assert_eq!((answer.status, answer.ending.clone()), (206, Ending::Whole), "{range}");
        let from = range[6..range.len() - 1].parse::<usize>().expect("a number");
        answer.assert_body(&image.layer[from..]);
    }
}

#[test]
fn a_fleet_pulls_a_layer_about_once() {
    let image = Image::new(30 * MIB, 404);
    let origin = registry(&image);
    let fleet = Fleet::start_with(3, |plan| plan.plain_upstream(&origin.authority()));
    let path = image.layer_path(REPOSITORY);
    let asks =
        fleet.hosts.iter().map(|host| Ask::get(&format!("http://{}{path}?ns={}", host.proxy(), origin.authority())));
    for answer in all(asks) {
        answer.assert_is(&image.layer);
    }
    let sent = origin.sent(&path);
    assert!(sent <= (image.layer.len() + image.layer.len() / 20) as u64, "the registry sent {sent}");
}

#[test]
fn a_layer_that_is_not_its_digest_never_ends_well() {
    let image = Image::new(9 * MIB, 405);
    let origin = registry(&image);
    let daemon = Daemon::plan("h1").set("proxy.registryMirror.addr", origin.url("")).start();
    let path = image.layer_path(REPOSITORY);
    let url = format!("http://{}{path}", daemon.proxy());
    let mut wrong = image.layer.to_vec();
    wrong[7 * MIB] ^= 1;
    origin.put(&path, Page::file(wrong.clone().into()));
    for _ in 0..2 {
        let answer = Ask::get(&url).send();
        assert!(matches!(answer.ending, Ending::Broken(_)), "{} bytes came and looked whole", answer.body.len());
        assert!(answer.body.len() < wrong.len(), "the last byte was sent");
    }
    origin.put(&path, Page::file(image.layer.clone()));
    Ask::get(&url).send().assert_is(&image.layer);
}

#[test]
fn trouble_is_never_429() {
    let daemon = Daemon::plan("h1").set("proxy.registryMirror.addr", "http://127.0.0.1:9").start();
    let image = Image::new(MIB, 406);
    for path in [image.layer_path(REPOSITORY), format!("/v2/{REPOSITORY}/manifests/1")] {
        let answer = Ask::get(&format!("http://{}{path}", daemon.proxy())).send();
        assert_eq!(answer.status, 502, "{path}");
        assert_ne!(answer.line("x-dragonfly-error-type"), "", "{path}");
    }
}
