//! Realms: the authorisation services that registries name, in trouble, in want of peace, or where nobody may be sent.

use std::time::Duration;

use crate::harness::{
    Access, Addresses, Answer, Ask, Daemon, Gate, Image, MIB, Origin, Page, SECRET, TestRegistry, TokenEndpoint, all,
    basic, challenge_parameter, wait_for,
};
use crate::tokens::{REPOSITORY, USER, base, by_path, registry, token_asks};

/// A password that comes over a network must not come to a port without TLS because we said so.
#[test]
fn clients_on_other_hosts_are_told_of_the_registrys_own_service() {
    let Some(addresses) = Addresses::take(2) else { return };
    let image = Image::new(MIB, 877);
    let registry = registry(Access::UserToken, &image);
    let daemon = daemon_for_others(&addresses, &registry);
    let url = format!("{}/v2/{REPOSITORY}/manifests/1?ns={}", base(&daemon), registry.authority());
    let theirs = Ask::get(&registry.url("/v2/team/app/manifests/1")).send();
    let ours = Ask::get(&url).from(addresses.all[1].into()).send();
    assert_eq!(ours.status, 401);
    // Ours has been asked with the token of anybody, which is not enough.
    for parameter in ["realm", "service", "scope"] {
        let of = |answer: &Answer| challenge_parameter(answer.line("www-authenticate"), parameter);
        assert_eq!(of(&ours), of(&theirs), "{parameter}");
    }
    let here = Ask::get(&url).from(addresses.all[0].into()).send();
    assert!(challenge_parameter(here.line("www-authenticate"), "realm").is_some_and(|realm| realm.contains("?ns=")));
}

/// A daemon whose proxy listens at an address of this machine that is not its loopback, and may use this registry there.
fn daemon_for_others(addresses: &Addresses, registry: &TestRegistry) -> Daemon {
    let plan = Daemon::plan("h1").plain_upstream(registry.authority()).set("proxy.allow[]", registry.authority());
    let plan = plan.set("proxy.server.ip", addresses.all[0].to_string());
    plan.set("proxy.server.allowUnauthenticated", true).set("proxy.headTimeout", "2s").start()
}

/// Panics unless an answer is the registry's challenge or a failure of one sentence.
#[track_caller]
fn assert_says_why(answer: &Answer, what: &str) {
    if answer.status == 401 {
        assert_ne!(answer.line("www-authenticate"), "", "{what}");
        return;
    }
    assert!(matches!(answer.status, 502 | 504), "{what}: {}", answer.status);
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(text.len() < 400 && text.trim_end().ends_with('.') && text.lines().count() == 1, "{what}: {text}");
}

/// Every way in which a client of the mirror makes us follow the realm that a registry names.
fn asks_that_follow_the_realm(daemon: &Daemon, registry: &TestRegistry) -> Vec<Ask> {
    let (base, authority) = (base(daemon), registry.authority());
    let scope = format!("repository%3A{}%3Apull", by_path(registry).replace(':', "%3A").replace('/', "%2F"));
    let token =
        Ask::get(&format!("{base}/token?service=damselfly&ns={authority}&scope=repository%3Ateam%2Fapp%3Apull"));
    let form = Ask::new("POST", &format!("{base}/token?ns={authority}"));
    let form = form.header("Content-Type", "application/x-www-form-urlencoded");
    vec![
        Ask::get(&format!("{base}/v2/{}/manifests/1", by_path(registry))),
        Ask::get(&format!("{base}/v2/{REPOSITORY}/manifests/1?ns={authority}")),
        Ask::get(&format!("{base}/v2/{REPOSITORY}/blobs/sha256:{}?ns={authority}", "ab".repeat(32))),
        Ask::get(&format!("{base}/token?service=damselfly&scope={scope}"))
            .header("Authorization", &basic(USER, SECRET)),
        token.clone(),
        token.header("Authorization", &basic(USER, SECRET)),
        form.body(&format!("grant_type=password&service=damselfly&username={USER}&password={SECRET}").into()),
    ]
}

#[test]
fn a_realm_where_clients_may_not_go_gets_nothing() {
    let Some(addresses) = Addresses::take(2) else { return };
    for access in [Access::AnonymousToken, Access::UserToken] {
        let registry = registry(access, &Image::new(MIB, 878));
        let daemon = daemon_for_others(&addresses, &registry);
        let trap = Origin::start();
        trap.put("/token", Page::plain("{\"token\":\"x\"}"));
        let port = trap.url("/").trim_end_matches('/').rsplit(':').next().expect("a port").to_owned();
        let hosts = ["127.0.0.1", "localhost", "127.1", "[::ffff:127.0.0.1]", "0.0.0.0", "[::1]", "127.0.0.2"];
        let realms = hosts.map(|host| format!("http://{host}:{port}/token"));
        let realms = realms.into_iter().chain([
            "http://169.254.169.254/token".to_owned(),
            "http://[fe80::1]/token".to_owned(),
            "http://[fd00:ec2::254]/token".to_owned(),
        ]);
        for realm in realms {
            registry.turn(|knobs| knobs.realm = Some(realm.clone()));
            // What a registry says is kept for a while: a daemon that has not heard it yet.
            let fresh = daemon_for_others(&addresses, &registry);
            for ask in asks_that_follow_the_realm(&fresh, &registry) {
                assert_says_why(&ask.from(addresses.all[1].into()).send(), &realm);
            }
        }
        assert_eq!(trap.seen("/token").len(), 0, "credentials, or a question, came where they may not");
        drop(daemon);
    }
}

#[test]
fn a_realm_that_is_ourselves_is_refused_at_once() {
    let registry = registry(Access::UserToken, &Image::new(MIB, 879));
    let mirror = serde_json::json!({ "port": 0, "registry": registry.url("") });
    let start = |name: &str| {
        let plan = Daemon::plan(name).plain_upstream(registry.authority()).set("proxy.mirrors[]", mirror.clone());
        plan.start()
    };
    let (daemon, other) = (start("h1"), start("h2"));
    let check = |realm: &str| {
        registry.turn(|knobs| knobs.realm = Some(realm.into()));
        for ask in asks_that_follow_the_realm(&daemon, &registry) {
            // A question that waits for itself waits for half a minute.
            let status = ask.status_within(Duration::from_secs(20));
            assert!(status.is_some_and(|status| matches!(status, 401 | 502 | 504)), "{realm}: {status:?}");
        }
    };
    let port = daemon.proxy().port();
    let mirror = daemon.mirror(&registry.url(""));
    for realm in [
        format!("http://127.0.0.1:{port}/token"),
        format!("http://localhost:{port}/token"),
        format!("http://127.0.0.1:{port}/token?ns={}", registry.authority()),
        format!("http://{mirror}/token"),
    ] {
        check(&realm);
    }
    // By way of a neighbour, whose own question would come back to us.
    let ours = format!("ns={}&service=damselfly", registry.authority());
    check(&format!("http://{}/token?{ours}", other.proxy()));
}

#[test]
fn an_endpoint_that_does_not_say_when_to_come_again_is_asked_less_and_less() {
    let registry = registry(Access::AnonymousToken, &Image::new(MIB, 882));
    let good = self::registry(Access::AnonymousToken, &Image::new(MIB, 883));
    let daemon = Daemon::plan("h1").plain_upstream(registry.authority()).plain_upstream(good.authority()).start();
    registry.turn(|knobs| knobs.token_endpoint = TokenEndpoint::TooManyUnsaid);
    let asks = token_asks(&registry, &daemon, 12);
    let answers = std::thread::spawn(move || all(asks));
    wait_for("the service to be held", || (daemon.metric(&["token_request", "held"]) >= 1.0).then_some(()));
    assert_eq!(token_asks(&good, &daemon, 1).remove(0).send().status, 200, "another service is not held");
    for answer in answers.join().expect("answers") {
        assert_eq!(answer.status, 429);
        assert_eq!((answer.line("retry-after"), answer.line("content-type")), ("", "application/json"));
    }
    // The first four, and one more after each of the waits of 1, 2 and 4 seconds.
    assert!(registry.token_requests() <= 8, "{} requests", registry.token_requests());
    registry.turn(|knobs| knobs.token_endpoint = TokenEndpoint::Good);
    let ask = token_asks(&registry, &daemon, 1).remove(0);
    wait_for("a token", || (ask.clone().send().status == 200).then_some(()));
}

#[test]
fn an_endpoint_that_wants_peace_gets_it() {
    let registry = registry(Access::AnonymousToken, &Image::new(MIB, 851));
    let daemon = Daemon::plan("h1").plain_upstream(registry.authority()).start();
    registry.turn(|knobs| knobs.token_endpoint = TokenEndpoint::TooMany(3600));
    for round in 0..3 {
        for answer in all(token_asks(&registry, &daemon, 10)) {
            assert!(matches!(answer.status, 429 | 503), "{}", answer.status);
            let seconds: u64 = answer.line("retry-after").parse().expect("a number of seconds");
            assert!((3500..=3600).contains(&seconds), "{seconds}");
        }
        assert!(registry.token_requests() <= 4, "round {round}: {} requests", registry.token_requests());
    }
    let by_path = Ask::get(&format!("{}/v2/{}/manifests/1", base(&daemon), by_path(&registry))).send();
    assert!(matches!(by_path.status, 401 | 502 | 503), "a mirror never says 429, but {}", by_path.status);
    assert!(registry.token_requests() <= 4);
}

#[test]
fn peace_ends_when_the_endpoint_says() {
    let registry = registry(Access::AnonymousToken, &Image::new(MIB, 852));
    let daemon = Daemon::plan("h1").plain_upstream(registry.authority()).start();
    registry.turn(|knobs| knobs.token_endpoint = TokenEndpoint::TooMany(1));
    let ask = token_asks(&registry, &daemon, 1).remove(0);
    let held = ask.clone().send();
    assert!(matches!(held.status, 429 | 503), "{}", held.status);
    registry.turn(|knobs| knobs.token_endpoint = TokenEndpoint::Good);
    wait_for("a token", || (ask.clone().send().status == 200).then_some(()));
}

#[test]
fn a_token_endpoint_in_trouble_is_a_sentence_and_no_hang() {
    let image = Image::new(MIB, 853);
    let registry = registry(Access::AnonymousToken, &image);
    let daemon = Daemon::plan("h1").plain_upstream(registry.authority()).set("proxy.headTimeout", "1s").start();
    let url = format!("{}/v2/{}/manifests/1", base(&daemon), by_path(&registry));
    let check = |what: &str| {
        for ask in asks_that_follow_the_realm(&daemon, &registry) {
            assert_says_why(&ask.send(), what);
        }
    };
    for endpoint in [TokenEndpoint::Down, TokenEndpoint::Html] {
        registry.turn(|knobs| knobs.token_endpoint = endpoint);
        check(&format!("{endpoint:?}"));
    }
    registry.turn(|knobs| {
        knobs.token_endpoint = TokenEndpoint::Good;
        knobs.token_gate = Some(Gate::at(0));
    });
    check("silent");
    registry.turn(|knobs| knobs.token_gate = None);
    for realm in ["http://169.254.169.254/token", "http://[fe80::1]/token", "ftp://127.0.0.1/token", "token", ""] {
        registry.turn(|knobs| knobs.realm = Some(realm.into()));
        check(realm);
    }
    registry.turn(|knobs| knobs.realm = None);
    Ask::get(&url).send().assert_is(&image.manifest);
}

#[test]
fn what_a_store_asks_for_is_nothing_that_its_registry_does() {
    let (registry, store, trap) = (Origin::start(), Origin::start(), Origin::start());
    trap.put("/token", Page::plain("{\"token\":\"x\"}"));
    let path = format!("/v2/{REPOSITORY}/blobs/sha256:{}", "ab".repeat(32));
    let challenge = format!("Bearer realm=\"{}\",service=\"trap\"", trap.url("/token"));
    store.put("/blob", Page::plain("no").status(401).header("www-authenticate", &challenge));
    registry.put(&path, Page::plain("").status(307).header("location", &store.url("/blob")));
    let daemon = Daemon::plan("h1").plain_upstream(&registry.authority()).start();
    let mirrored = format!("{}{path}?ns={}", base(&daemon), registry.authority());
    for ask in [Ask::get(&mirrored), Ask::get(&registry.url(&path)).via(daemon.proxy())] {
        let answer = ask.send();
        // As direct: the client sees the registry's own answer, and goes there itself.
        assert_eq!((answer.status, answer.line("location")), (307, store.url("/blob").as_str()));
    }
    let token = format!("{}/token?ns={}&service=damselfly", base(&daemon), registry.authority());
    Ask::get(&token).header("Authorization", &basic(USER, SECRET)).send();
    assert_eq!(trap.seen("/token").len(), 0, "the store's challenge was taken for the registry's");
    assert!(!store.seen("/blob").is_empty(), "the redirect was not followed: this proves nothing");
}
