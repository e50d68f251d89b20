//! Content that wants credentials: shared, but only with those whom the registry lets have it.

use std::net::IpAddr;
use std::sync::Arc;

use crate::harness::{
    Access, Answer, Ask, Asked, Authority, Daemon, Fleet, Gate, Image, MIB, Origin, Page, SECRET, Seen, Tap,
    TestRegistry, all, assert_nowhere, basic, token_of, wait_for,
};

const REPOSITORY: &str = "team/app";
const USER: &str = "alice";

/// A registry with one image, and its user's credential.
struct Scene {
    registry: TestRegistry,
    image: Image,
    path: String,
}

impl Scene {
    fn new(access: Access, seed: u64) -> Self {
        Self::of(TestRegistry::plan(access).start(), seed)
    }

    fn of(registry: TestRegistry, seed: u64) -> Self {
        let image = Image::new(9 * MIB, seed);
        registry.publish(&image, REPOSITORY, "1");
        registry.allow(USER, SECRET);
        let path = image.layer_path(REPOSITORY);
        Self { registry, image, path }
    }

    fn fleet(&self) -> Fleet {
        Fleet::start_with(2, |plan| plan.plain_upstream(self.registry.authority()))
    }

    /// What a client that is let in puts into `Authorization`.
    fn credential(&self, access: Access) -> String {
        match access {
            Access::Basic => basic(USER, SECRET),
            Access::AnonymousToken => format!("Bearer {}", self.registry.token(None, REPOSITORY)),
            _ => format!("Bearer {}", self.registry.token(Some(USER), REPOSITORY)),
        }
    }

    /// A request for the layer, straight to the registry.
    fn ask(&self) -> Ask {
        Ask::get(&self.registry.url(&self.path))
    }

    fn pull(&self, host: &Daemon, credential: &str) -> Answer {
        self.ask().via(host.proxy()).header("Authorization", credential).send()
    }

    /// The layer's length.
    fn once(&self) -> u64 {
        self.image.layer.len() as u64
    }
}

/// Panics unless a refusal is the registry's own, to the letter.
#[track_caller]
fn assert_same_no(ours: &Answer, theirs: &Answer) {
    assert_eq!(ours.status, theirs.status);
    assert_eq!(ours.body, theirs.body);
    for name in ["www-authenticate", "content-type"] {
        let lines = |answer: &Answer| answer.headers.get_all(name).iter().cloned().collect::<Vec<_>>();
        assert_eq!(lines(ours), lines(theirs), "{name}");
    }
}

#[test]
fn an_authorised_blob_is_one_request_and_then_none() {
    for (access, seed) in [(Access::AnonymousToken, 820), (Access::Basic, 821), (Access::UserToken, 822)] {
        let scene = Scene::new(access, seed);
        let fleet = scene.fleet();
        let credential = scene.credential(access);
        let requests = || scene.registry.seen().iter().map(|seen| seen.kind).collect::<Vec<_>>();

        scene.pull(&fleet.hosts[0], &credential).assert_is(&scene.image.layer);
        assert_eq!(requests(), [Asked::BlobGet], "{access:?}: the caller's own GET is the question and the source");
        assert_eq!(scene.registry.blob_bytes(), scene.once());

        scene.pull(&fleet.hosts[0], &credential).assert_is(&scene.image.layer);
        assert_eq!(scene.registry.blob_bytes(), scene.once(), "{access:?}: again");

        scene.registry.forget();
        scene.pull(&fleet.hosts[1], &credential).assert_is(&scene.image.layer);
        assert_eq!(requests(), [Asked::BlobHead], "{access:?}: the second host asks whether its client may");
        scene.pull(&fleet.hosts[1], &credential).assert_is(&scene.image.layer);
        assert_eq!(requests(), [Asked::BlobHead], "{access:?}: the registry's yes is kept for a while");
    }
}

#[test]
fn an_authorised_range_is_a_range() {
    let scene = Scene::new(Access::UserToken, 823);
    let fleet = scene.fleet();
    let credential = scene.credential(Access::UserToken);
    for host in &fleet.hosts {
        for from in [0, 5_000_000] {
            let ask = scene.ask().via(host.proxy()).header("Authorization", &credential);
            let answer = ask.header("Range", &format!("bytes={from}-")).send();
            assert_eq!(answer.status, 206);
            answer.assert_body(&scene.image.layer[from..]);
        }
    }
    let sent = scene.registry.blob_bytes();
    assert!(sent <= scene.once() + scene.once() / 20, "the registry sent {sent}");
}

#[test]
fn a_no_is_the_registrys_own_whatever_is_held_here() {
    let scene = Scene::new(Access::UserToken, 824);
    scene.registry.allow("bob", "secret of bob");
    scene.registry.forbid("bob", REPOSITORY);
    scene.registry.publish(&Image::new(MIB, 825), "other", "1");
    let fleet = scene.fleet();
    let good = scene.credential(Access::UserToken);
    let bad = [
        None,
        Some("Bearer of-nobody".to_owned()),
        Some(basic(USER, "wrong")),
        Some(format!("Bearer {}", scene.registry.token(Some(USER), "other"))),
        Some(format!("Bearer {}", scene.registry.token(None, "other"))),
        Some(format!("Bearer {}", scene.registry.token(Some("bob"), REPOSITORY))),
    ];
    let check = |when: &str| {
        for (number, credential) in bad.iter().enumerate() {
            let with = |ask: Ask| match credential {
                Some(credential) => ask.header("Authorization", credential),
                None => ask,
            };
            let manifest = format!("/v2/{REPOSITORY}/manifests/{}", crate::harness::digest(&scene.image.manifest));
            for path in [&scene.path, &manifest] {
                for (method, range) in [("GET", None), ("HEAD", None), ("GET", Some("bytes=1-2"))] {
                    let ask = with(Ask::new(method, &scene.registry.url(path)));
                    let ask = range.into_iter().fold(ask, |ask, range| ask.header("Range", range));
                    let theirs = ask.clone().send();
                    assert!(matches!(theirs.status, 401 | 403), "{}", theirs.status);
                    for host in &fleet.hosts {
                        println!("{when}: {method} {path} {range:?} with credential {number}");
                        assert_same_no(&ask.clone().via(host.proxy()).send(), &theirs);
                    }
                }
            }
        }
    };
    check("held nowhere");
    scene.pull(&fleet.hosts[0], &good).assert_is(&scene.image.layer);
    check("held by the first host");
    scene.pull(&fleet.hosts[1], &good).assert_is(&scene.image.layer);
    check("held by both");
    assert_eq!(scene.registry.blob_bytes(), scene.once());
}

#[test]
fn a_yes_is_kept_only_so_long() {
    let scene = Scene::new(Access::UserToken, 826);
    let start = |name: &str, kept: &str| {
        let plan = Daemon::plan(name).plain_upstream(scene.registry.authority());
        plan.set("proxy.authorization.verdictTTL", kept).start()
    };
    let (long, short) = (start("h1", "1h"), start("h2", "100ms"));
    let credential = scene.credential(Access::UserToken);
    for host in [&long, &short] {
        scene.pull(host, &credential).assert_is(&scene.image.layer);
    }
    scene.registry.revoke(USER);
    scene.pull(&long, &credential).assert_is(&scene.image.layer);
    let theirs = scene.ask().header("Authorization", &credential).send();
    let ours = wait_for("the end of the yes", || Some(scene.pull(&short, &credential)).filter(|no| no.status != 200));
    assert_same_no(&ours, &theirs);
    assert_same_no(&scene.pull(&short, &credential), &theirs);
}

#[test]
fn a_kept_yes_outlives_the_registry_and_nothing_else_does() {
    let scene = Scene::new(Access::UserToken, 827);
    let fleet = scene.fleet();
    let credential = scene.credential(Access::UserToken);
    scene.pull(&fleet.hosts[0], &credential).assert_is(&scene.image.layer);
    scene.registry.turn(|knobs| knobs.down = true);
    scene.pull(&fleet.hosts[0], &credential).assert_is(&scene.image.layer);
    for (host, credential) in [(0, "Bearer other"), (1, credential.as_str())] {
        let answer = scene.pull(&fleet.hosts[host], credential);
        assert_eq!(answer.status, 502);
        assert!(answer.body.len() < 500, "one sentence");
    }
    let answer = scene.ask().via(fleet.hosts[0].proxy()).send();
    assert_eq!(answer.status, 502, "nobody may have it without asking");
}

#[test]
fn where_head_is_refused_one_byte_is_asked_for() {
    let scene = Scene::new(Access::Basic, 828);
    scene.registry.turn(|knobs| knobs.refuses_head = true);
    let fleet = scene.fleet();
    let credential = scene.credential(Access::Basic);
    for host in &fleet.hosts {
        scene.pull(host, &credential).assert_is(&scene.image.layer);
    }
    let sent = scene.registry.blob_bytes();
    assert!(sent <= scene.once() + 1, "the registry sent {sent}");
    let theirs = scene.ask().header("Authorization", &basic(USER, "wrong")).send();
    assert_same_no(&scene.pull(&fleet.hosts[1], &basic(USER, "wrong")), &theirs);
}

#[test]
fn signed_urls_are_followed_without_the_credential() {
    let store = IpAddr::from([127, 0, 0, 3]);
    let scene = Scene::of(TestRegistry::plan(Access::UserToken).store(store).start(), 829);
    let plain = |plan: crate::harness::DaemonPlan| plan.plain_upstream(scene.registry.store_authority());
    let fleet = Fleet::start_with(2, |plan| plain(plan.plain_upstream(scene.registry.authority())));
    let credential = scene.credential(Access::UserToken);
    for round in 0..2 {
        for host in &fleet.hosts {
            scene.pull(host, &credential).assert_is(&scene.image.layer);
        }
        assert_eq!(scene.registry.blob_bytes(), scene.once(), "round {round}");
        // A signature is no part of the identity: the next one is as good.
        scene.registry.expire_signatures();
    }
    let at_store: Vec<Seen> = scene
        .registry
        .seen()
        .into_iter()
        .filter(|seen| matches!(seen.kind, Asked::StoreGet | Asked::StoreHead))
        .collect();
    assert_eq!(at_store.len(), 1, "{at_store:?}");
    assert!(at_store[0].all("authorization").is_empty());
}

#[test]
fn relative_redirects_of_blobs_are_followed() {
    let scene = Scene::of(TestRegistry::plan(Access::UserToken).relative().start(), 830);
    let fleet = scene.fleet();
    let credential = scene.credential(Access::UserToken);
    for host in &fleet.hosts {
        scene.pull(host, &credential).assert_is(&scene.image.layer);
        let url = format!("http://{}{}?ns={}", host.proxy(), scene.path, scene.registry.authority());
        Ask::get(&url).header("Authorization", &credential).send().assert_is(&scene.image.layer);
    }
    assert_eq!(scene.registry.blob_bytes(), scene.once());
}

#[test]
fn fifty_clients_with_one_credential_cost_one_image_and_a_stranger_gets_nothing() {
    const CLIENTS: usize = 50;
    let scene = Scene::of(TestRegistry::plan(Access::UserToken).token_port().start(), 831);
    let scheduler = crate::harness::Scheduler::start();
    let tap = Tap::decoding(([127, 0, 0, 1], 0).into(), scheduler.grpc);
    let token_authority = scene.registry.token_authority().to_owned();
    let hosts: Vec<Daemon> = ["h1", "h2"]
        .map(|name| {
            let plan = Daemon::plan(name).plain_upstream(scene.registry.authority()).plain_upstream(&token_authority);
            plan.set("scheduler.addrs[]", tap.address().to_string()).start()
        })
        .into();
    let host = |client: usize| &hosts[client % hosts.len()];

    // The token endpoint answers when all of them have asked: what is shared then is not a matter of luck.
    let gate = Gate::at(0);
    scene.registry.turn(|knobs| knobs.token_gate = Some(gate.clone()));
    let token = Ask::get(&scene.registry.token_url_for(&format!("repository:{REPOSITORY}:pull")));
    let token = token.header("Authorization", &basic(USER, SECRET));
    let asks = (0..CLIENTS).map(|client| token.clone().via(host(client).proxy())).collect::<Vec<_>>();
    let tokens = std::thread::spawn(move || all(asks));
    let asked = |host: &Daemon| host.metric(&["concurrent_request"]);
    wait_for("all to have asked", || (hosts.iter().map(asked).sum::<f64>() >= CLIENTS as f64).then_some(()));
    gate.open();
    let tokens = tokens.join().expect("answers");
    assert_eq!(scene.registry.token_requests(), hosts.len(), "identical requests in flight are one");

    let asks = tokens.iter().enumerate().map(|(client, token)| {
        assert_eq!(token.status, 200);
        scene.ask().via(host(client).proxy()).header("Authorization", &token_of(token))
    });
    for answer in all(asks) {
        answer.assert_is(&scene.image.layer);
    }
    let sent = scene.registry.blob_bytes();
    assert!(sent >= scene.once() && sent <= scene.once() + scene.once() / 20, "the registry sent {sent}");
    let questions = scene.registry.count(&[Asked::BlobHead, Asked::BlobGet]);
    assert!(questions <= 2 * hosts.len(), "identical questions in flight are one: {questions}");

    for host in &hosts {
        for stranger in ["Bearer of-nobody".to_owned(), basic(USER, "wrong")] {
            let theirs = scene.ask().header("Authorization", &stranger).send();
            assert_same_no(&scene.pull(host, &stranger), &theirs);
        }
        let wrong = Ask::get(&scene.registry.token_url_for("repository:x:pull")).via(host.proxy());
        assert_eq!(wrong.header("Authorization", &basic(USER, "wrong")).send().status, 401);
    }
    assert_eq!(scene.registry.blob_bytes(), sent);

    let coded = basic(USER, SECRET)["Basic ".len()..].to_owned();
    for planted in [SECRET, &coded] {
        for host in &hosts {
            assert_nowhere(planted, &host.data(""));
            assert!(!host.process.log().contains(planted), "a log has a credential");
            for page in ["/tasks", "/metrics", "/addresses"] {
                assert!(!String::from_utf8_lossy(&host.admin(page).body).contains(planted), "{page} has a credential");
            }
        }
        assert!(!tap.carried(planted.as_bytes()), "the scheduler was told a credential");
        assert!(!scheduler.process.log().contains(planted), "the scheduler's log has a credential");
    }
    assert!(tap.carried(b"sha256"), "the tap has heard nothing");
}

#[test]
fn private_content_goes_as_far_as_the_operator_says() {
    for (setting, again, second_host) in [("share", 1, 1), ("host", 1, 2), ("off", 2, 3)] {
        let scene = Scene::new(Access::UserToken, 832);
        let fleet = Fleet::start_with(2, |plan| {
            plan.plain_upstream(scene.registry.authority()).set("proxy.privateContent", setting)
        });
        let credential = scene.credential(Access::UserToken);
        let times = || scene.registry.blob_bytes() / scene.once();
        scene.pull(&fleet.hosts[0], &credential).assert_is(&scene.image.layer);
        scene.pull(&fleet.hosts[0], &credential).assert_is(&scene.image.layer);
        assert_eq!(times(), again, "{setting}: again");
        scene.pull(&fleet.hosts[1], &credential).assert_is(&scene.image.layer);
        assert_eq!(times(), second_host, "{setting}: the second host");
        let manifest = format!("/v2/{REPOSITORY}/manifests/{}", crate::harness::digest(&scene.image.manifest));
        let ask = Ask::get(&scene.registry.url(&manifest)).via(fleet.hosts[0].proxy());
        for _ in 0..2 {
            ask.clone().header("Authorization", &credential).send().assert_is(&scene.image.manifest);
        }
        let asked = scene.registry.count(&[Asked::ManifestGet]);
        assert_eq!(asked, if setting == "off" { 2 } else { 1 }, "{setting}: manifests");
    }
}

#[test]
fn what_was_shared_before_stays_here_when_the_operator_says_so() {
    for (setting, again) in [("host", 1), ("off", 2)] {
        let scene = Scene::new(Access::UserToken, 884);
        let mut fleet = scene.fleet();
        let open = Scene::new(Access::Open, 885);
        let credential = scene.credential(Access::UserToken);
        let times = || scene.registry.blob_bytes() / scene.once();
        let first = scene.pull(&fleet.hosts[0], &credential);
        first.assert_is(&scene.image.layer);
        let task = first.line("x-dragonfly-task-id").to_owned();
        open.ask().via(fleet.hosts[0].proxy()).send().assert_is(&open.image.layer);
        wait_for("the scheduler to know", || (fleet.scheduler.holders(&task) == 1).then_some(()));

        fleet.hosts[0].start_again_with("proxy.privateContent", setting);
        scene.pull(&fleet.hosts[0], &credential).assert_is(&scene.image.layer);
        assert_eq!(times(), again, "{setting}: the host's own clients");
        // Public content is announced, so what is not announced is not meant to be.
        open.ask().via(fleet.hosts[1].proxy()).send().assert_is(&open.image.layer);
        assert_eq!(open.registry.blob_bytes(), open.once(), "{setting}: public content is shared");
        assert_eq!(fleet.scheduler.holders(&task), 0, "{setting}: it is still announced");
        scene.pull(&fleet.hosts[1], &credential).assert_is(&scene.image.layer);
        assert_eq!(times(), again + 1, "{setting}: the neighbour got it from there");
    }
}

#[test]
fn public_content_is_shared_whatever_is_said_of_private() {
    for setting in ["share", "host", "off"] {
        let scene = Scene::new(Access::Open, 833);
        let fleet = Fleet::start_with(2, |plan| {
            plan.plain_upstream(scene.registry.authority()).set("proxy.privateContent", setting)
        });
        for answer in fleet.get_everywhere(&scene.registry.url(&scene.path)) {
            answer.assert_is(&scene.image.layer);
        }
        let sent = scene.registry.blob_bytes();
        assert!(sent <= scene.once() + scene.once() / 20, "{setting}: the registry sent {sent}");
    }
}

#[test]
fn a_host_without_the_certificate_gets_the_registrys_no() {
    let authority = Arc::new(Authority::new());
    let registry = TestRegistry::plan(Access::Open).tls(&authority).client_certificate().start();
    let scene = Scene::of(registry, 834);
    let scheduler = crate::harness::Scheduler::start();
    let start = |name: &str, with_certificate: bool| {
        let plan = Daemon::plan(name).scheduler(&scheduler).intercept("127.0.0.1");
        let identity = with_certificate.then(|| authority.client_certificate());
        plan.upstream(scene.registry.authority(), authority.pem(), identity).start()
    };
    let (with, without, second) = (start("h1", true), start("h2", false), start("h3", true));
    let get = |host: &Daemon| scene.ask().via(host.proxy()).trust(&host.ca()).send();
    get(&with).assert_is(&scene.image.layer);
    let theirs = scene.ask().trust(authority.pem()).send();
    assert_eq!(theirs.status, 403);
    for _ in 0..2 {
        assert_same_no(&get(&without), &theirs);
    }
    get(&second).assert_is(&scene.image.layer);
    get(&with).assert_is(&scene.image.layer);
    assert_eq!(scene.registry.blob_bytes(), scene.once());
    assert_same_no(&get(&without), &theirs);
}

#[test]
fn what_the_registry_forbids_to_store_is_not_stored() {
    let cases = [
        ("private", Access::Open),
        ("no-store", Access::UserToken),
        ("max-age=60, private", Access::Open),
        ("private", Access::UserToken),
    ];
    for (word, access) in cases {
        let scene = Scene::new(access, 835);
        scene.registry.turn(|knobs| knobs.blob_headers = vec![("Cache-Control".into(), word.into())]);
        let fleet = scene.fleet();
        let ask = |host: &Daemon| {
            let ask = scene.ask().via(host.proxy());
            if access == Access::Open { ask } else { ask.header("Authorization", &scene.credential(access)) }
        };
        for (number, host) in fleet.hosts.iter().chain(&fleet.hosts[..1]).enumerate() {
            let answer = ask(host).send();
            answer.assert_is(&scene.image.layer);
            assert_eq!(answer.line("cache-control"), word);
            let times = scene.registry.blob_bytes() / scene.once();
            assert_eq!(times, number as u64 + 1, "{word}, {access:?}: it was stored");
        }
        let needle = &scene.image.layer[MIB..MIB + 64];
        for host in &fleet.hosts {
            assert_nowhere(needle, &host.data(""));
        }
    }
}

#[test]
fn a_cookie_is_for_the_first_client_alone() {
    let cookie = format!("session={SECRET}");
    for access in [Access::Open, Access::UserToken] {
        let scene = Scene::new(access, 836);
        scene.registry.turn(|knobs| knobs.headers = vec![("Set-Cookie".into(), cookie.clone())]);
        let fleet = scene.fleet();
        let credential = scene.credential(access);
        let ask = |host: usize| {
            let ask = scene.ask().via(fleet.hosts[host].proxy());
            if access == Access::Open { ask.send() } else { ask.header("Authorization", &credential).send() }
        };
        let first = ask(0);
        first.assert_is(&scene.image.layer);
        assert_eq!(first.line("set-cookie"), cookie, "{access:?}: the first client's answer is its own");
        for host in [0, 1] {
            let other = ask(host);
            other.assert_is(&scene.image.layer);
            assert_eq!(other.line("set-cookie"), "", "{access:?}: a second client got a cookie");
        }
        for host in &fleet.hosts {
            assert_nowhere(SECRET, &host.data(""));
        }
    }
}

#[test]
fn a_cookie_is_a_credential() {
    let scene = Scene::new(Access::Open, 837);
    let fleet = scene.fleet();
    let ask = |host: usize, cookie: &str| scene.ask().via(fleet.hosts[host].proxy()).header("Cookie", cookie).send();
    for (host, cookie) in [(0, "a=1"), (0, "a=1"), (0, "a=2"), (1, "a=1")] {
        ask(host, cookie).assert_is(&scene.image.layer);
    }
    assert_eq!(scene.registry.blob_bytes(), scene.once());
    let seen = scene.registry.seen();
    let cookies: Vec<_> = seen.iter().map(|seen| (seen.kind, seen.all("cookie"))).collect();
    assert_eq!(
        cookies,
        [(Asked::BlobGet, vec!["a=1"]), (Asked::BlobHead, vec!["a=2"]), (Asked::BlobHead, vec!["a=1"])],
        "each caller is asked for, with its own cookie"
    );
}

#[test]
fn a_seed_is_not_sent_for_private_content() {
    let scene = Scene::new(Access::UserToken, 838);
    let scheduler = crate::harness::Scheduler::start();
    let plan = |name: &str| Daemon::plan(name).scheduler(&scheduler).plain_upstream(scene.registry.authority());
    // What others ask of a seed reaches its loopback only where that is allowed.
    let seed = plan("s1").set("seedPeer.enable", true).set("proxy.allow[]", "127.0.0.1").start();
    let host = plan("h1").start();
    let credential = scene.credential(Access::UserToken);
    scene.pull(&host, &credential).assert_is(&scene.image.layer);
    assert_eq!(scene.registry.seen().len(), 1);
    assert_eq!(scene.registry.seen()[0].all("authorization"), [credential]);
    assert_eq!(seed.metric(&["seed_downloads"]), 0.0);
}

#[test]
fn an_artefact_server_with_passwords_is_shared_by_rule() {
    let origin = Origin::start();
    let file = crate::harness::random(9 * MIB, 839);
    let credential = basic(USER, SECRET);
    origin.put("/artefacts/app", Page::file(file.clone()).authorization(&credential));
    let rule = serde_json::json!({ "regex": "/artefacts/" });
    for (with_rule, copies) in [(true, 1), (false, 3)] {
        let fleet = Fleet::start_with(2, |plan| if with_rule { plan.set("proxy.rules[]", rule.clone()) } else { plan });
        let before = origin.sent("/artefacts/app");
        let ask = |host: usize| Ask::get(&origin.url("/artefacts/app")).via(fleet.hosts[host].proxy());
        for host in [0, 0, 1] {
            ask(host).header("Authorization", &credential).send().assert_is(&file);
        }
        let sent = origin.sent("/artefacts/app") - before;
        let once = file.len() as u64;
        assert!(sent >= copies * once && sent < copies * once + (64 << 10), "rule {with_rule}: {sent} bytes");
        for host in [0, 1] {
            for ask in [ask(host), ask(host).header("Authorization", &basic(USER, "wrong"))] {
                let no = ask.send();
                assert_eq!((no.status, &no.body[..]), (401, &b"who are you?\n"[..]), "rule {with_rule}");
                assert_eq!(no.line("www-authenticate"), "Basic realm=\"test\"");
            }
        }
    }
}
