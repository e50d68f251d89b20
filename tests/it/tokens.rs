//! The mirror as the place where clients of registries log in, and token endpoints that are left in peace.

use std::time::Duration;

use crate::harness::{
    Access, Ask, Asked, Daemon, Fleet, Gate, Image, MIB, Puller, SECRET, TestRegistry, all, ask_for_token, basic,
    challenge_parameter, digest, token_of, wait_for,
};

pub(crate) const REPOSITORY: &str = "team/app";
pub(crate) const USER: &str = "alice";

pub(crate) fn registry(access: Access, image: &Image) -> TestRegistry {
    let registry = TestRegistry::plan(access).start();
    registry.publish(image, REPOSITORY, "1");
    registry.allow(USER, SECRET);
    registry
}

/// The repository as it is named at the mirror.
pub(crate) fn by_path(registry: &TestRegistry) -> String {
    format!("{}/{REPOSITORY}", registry.authority())
}

pub(crate) fn base(daemon: &Daemon) -> String {
    format!("http://{}", daemon.proxy())
}

/// A client of the mirror, with the credentials that this registry wants.
fn puller(daemon: &Daemon, registry: &TestRegistry, access: Access) -> Puller {
    let puller = Puller::new(&base(daemon), &by_path(registry));
    if matches!(access, Access::Basic | Access::UserToken) { puller.user(USER, SECRET) } else { puller }
}

const ALL: [Access; 4] = [Access::Open, Access::AnonymousToken, Access::Basic, Access::UserToken];

#[test]
fn the_ping_sends_to_our_own_token_endpoint() {
    let daemon = Daemon::plan("h1").start();
    for host in [daemon.proxy().to_string(), format!("localhost:{}", daemon.proxy().port())] {
        for path in ["/v2/", "/v2"] {
            let ping = Ask::get(&format!("{}{path}", base(&daemon))).header("Host", &host).send();
            assert_eq!(ping.status, 401);
            let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"damselfly\"");
            assert_eq!(ping.line("www-authenticate"), challenge);
            assert_eq!(ping.line("docker-distribution-api-version"), "registry/2.0");
        }
    }
}

/// Clients trust a mirror on their own host without TLS, and carry that over to wherever its challenge sends them: what
/// they bring there must come to us.
#[test]
fn the_mirror_of_one_registry_sends_to_our_own_token_endpoint_too() {
    for access in [Access::Basic, Access::UserToken] {
        let registry = registry(access, &Image::new(MIB, 859));
        let mirror = serde_json::json!({ "port": 0, "registry": registry.url("") });
        let daemon =
            Daemon::plan("h1").set("proxy.mirrors[]", mirror).set("proxy.registryMirror.addr", registry.url(""));
        let daemon = daemon.start();
        for (address, checks_passwords) in [(daemon.mirror(&registry.url("")), true), (daemon.proxy(), false)] {
            let ping = Ask::get(&format!("http://{address}/v2/"));
            let refused = ping.clone().send();
            assert_eq!(refused.status, 401);
            let challenge = format!("Bearer realm=\"http://{address}/token\",service=\"damselfly\"");
            assert_eq!(refused.line("www-authenticate"), challenge);
            let log_in = |password: &str| {
                let token = Ask::get(&format!("http://{address}/token?account={USER}&service=damselfly"));
                let token = token.header("Authorization", &basic(USER, password)).send();
                if token.status != 200 {
                    return token.status;
                }
                ping.clone().header("Authorization", &token_of(&token)).send().status
            };
            assert_eq!(log_in(SECRET), 200);
            assert_eq!(log_in("wrong"), if checks_passwords { 401 } else { 200 });
        }
    }
}

#[test]
fn logging_in_at_the_mirror_succeeds() {
    let daemon = Daemon::plan("h1").start();
    let ping = Ask::get(&format!("{}/v2/", base(&daemon)));
    for query in ["account=alice&service=damselfly", "account=a&client_id=docker&offline_token=true&service=damselfly"]
    {
        // No registry is named yet: what the credentials are worth is seen later.
        let token = Ask::get(&format!("{}/token?{query}", base(&daemon)));
        let token = token_of(&token.header("Authorization", &basic(USER, SECRET)).send());
        assert_eq!(ping.clone().header("Authorization", &token).send().status, 200);
    }
}

#[test]
fn a_registry_that_stands_in_the_query_has_clients_that_log_in_too() {
    for access in ALL {
        let image = Image::new(9 * MIB, 856);
        let registry = registry(access, &image);
        let daemon = Daemon::plan("h1").plain_upstream(registry.authority()).start();
        let what = [format!("manifests/{}", digest(&image.manifest)), format!("blobs/{}", digest(&image.layer))];
        for (what, body) in what.iter().zip([&image.manifest, &image.layer]) {
            let url = format!("{}/v2/{REPOSITORY}/{what}?ns={}", base(&daemon), registry.authority());
            let refused = Ask::get(&url).send();
            if matches!(access, Access::Open | Access::AnonymousToken) {
                refused.assert_is(body);
                continue;
            }
            assert_eq!(refused.status, 401);
            let challenge = refused.line("www-authenticate");
            let credential = if challenge.starts_with("Basic ") {
                basic(USER, SECRET)
            } else {
                let realm = format!("{}/token?ns={}", base(&daemon), registry.authority().replace(':', "%3A"));
                assert_eq!(challenge_parameter(challenge, "realm"), Some(realm), "all requests come through us");
                assert_eq!(challenge_parameter(challenge, "service").as_deref(), Some("damselfly"));
                // containerd makes the scope by itself, of the name without the registry.
                let ask = ask_for_token(challenge, &format!("repository:{REPOSITORY}:pull"));
                token_of(&ask.header("Authorization", &basic(USER, SECRET)).send())
            };
            Ask::get(&url).header("Authorization", &credential).send().assert_is(body);
        }
        assert_eq!(registry.blob_bytes(), image.layer.len() as u64);
        let for_anybody = usize::from(access != Access::Open && access != Access::Basic);
        let for_the_user = usize::from(access == Access::UserToken);
        assert_eq!(registry.token_requests(), for_anybody + for_the_user, "{access:?}: one for both authorizers");
    }
}

/// A client that was refused asks once more, with the scope that the registry's refusal named.
#[test]
fn a_scope_that_names_no_registry_is_of_the_one_that_another_names() {
    let registry = registry(Access::UserToken, &Image::new(MIB, 886));
    let daemon = Daemon::plan("h1").plain_upstream(registry.authority()).set("proxy.deny[]", "registry-1.docker.io");
    let daemon = daemon.start();
    let named = format!("repository:{}:pull", by_path(&registry));
    for scopes in [[named.as_str(), "repository:other/app:pull"], ["repository:other/app:pull", named.as_str()]] {
        let mut url = url::Url::parse(&format!("{}/token?service=damselfly", base(&daemon))).expect("a URL");
        url.query_pairs_mut().extend_pairs(scopes.map(|scope| ("scope", scope)));
        registry.forget();
        let answer = Ask::get(url.as_str()).header("Authorization", &basic(USER, SECRET)).send();
        assert_eq!(answer.status, 200, "{answer:?}");
        let asked = registry.seen().pop().expect("a question");
        for scope in ["repository%3Ateam%2Fapp%3Apull", "repository%3Aother%2Fapp%3Apull"] {
            assert!(asked.target.contains(scope), "{}", asked.target);
        }
    }
}

/// containerd asks with a form first. What such a token opens is the same.
#[test]
fn a_registry_that_stands_in_the_query_gives_tokens_for_forms() {
    let image = Image::new(MIB, 876);
    let registry = registry(Access::UserToken, &image);
    let daemon = Daemon::plan("h1").plain_upstream(registry.authority()).start();
    let url = format!("{}/v2/{REPOSITORY}/manifests/1?ns={}", base(&daemon), registry.authority());
    let refused = Ask::get(&url).send();
    let realm = challenge_parameter(refused.line("www-authenticate"), "realm").expect("a realm");
    let ask = |password: &str, extra: &str| {
        let scope = format!("repository%3Ateam%2Fapp%3Apull&username={USER}&password={password}{extra}");
        let form = format!("grant_type=password&service=damselfly&client_id=containerd-client&scope={scope}");
        let ask = Ask::new("POST", &realm).body(&form.into());
        ask.header("Content-Type", "application/x-www-form-urlencoded").send()
    };
    registry.forget();
    let token = token_of(&ask(SECRET, ""));
    assert_eq!(token_of(&ask(SECRET, "")), token);
    Ask::get(&url).header("Authorization", &token).send().assert_is(&image.manifest);
    assert_eq!(registry.count(&[Asked::TokenPost]), 1);
    assert_eq!(ask("wrong", "").status, 401);
    let long = ask(SECRET, &format!("&x={}", "x".repeat(MIB)));
    assert_eq!(long.status, 400);
    // A registry that wants passwords has no tokens to give: its client is told to bring the password as a header.
    let basic_registry = self::registry(Access::Basic, &image);
    let second = Daemon::plan("h2").plain_upstream(basic_registry.authority()).start();
    let url = format!("{}/token?ns={}", base(&second), basic_registry.authority());
    assert_eq!(Ask::new("POST", &url).body(&"grant_type=password".into()).send().status, 405);
}

#[test]
fn an_old_manifest_is_given_only_where_the_operator_allows_it() {
    let image = Image::new(MIB, 880);
    let registry = registry(Access::UserToken, &image);
    let start = |name: &str, allowed: &str| {
        let plan = Daemon::plan(name).plain_upstream(registry.authority());
        plan.set("proxy.authorization.staleIfError", allowed).start()
    };
    let daemons = [start("h1", "0s"), start("h2", "1h")];
    let bearer = format!("Bearer {}", registry.token(Some(USER), REPOSITORY));
    let ask = |daemon: &Daemon, credential: &str| {
        let ask = Ask::get(&format!("{}/v2/{}/manifests/1", base(daemon), by_path(&registry)));
        ask.header("Authorization", credential).send()
    };
    for daemon in &daemons {
        ask(daemon, &bearer).assert_is(&image.manifest);
    }
    let [strict, lenient] = &daemons;
    let check = |status: u16| {
        assert_eq!(ask(strict, &bearer).status, status, "it is not allowed");
        ask(lenient, &bearer).assert_is(&image.manifest);
        assert_eq!(ask(lenient, "Bearer other").status, status, "the registry has never said yes to this caller");
    };
    registry.turn(|knobs| knobs.down = true);
    check(502);
    registry.turn(|knobs| (knobs.down, knobs.fails) = (false, Some(503)));
    check(503);
    assert_eq!(lenient.metric(&["proxy_manifest", "stale"]), 2.0);
    // A no is an answer, and no failure.
    registry.turn(|knobs| knobs.fails = None);
    registry.revoke(USER);
    assert_eq!(ask(lenient, &bearer).status, 401);
    let moved = Image::new(MIB, 881);
    registry.publish(&moved, REPOSITORY, "1");
    registry.allow(USER, SECRET);
    let bearer = format!("Bearer {}", registry.token(Some(USER), REPOSITORY));
    ask(lenient, &bearer).assert_is(&moved.manifest);
}

#[test]
fn a_request_that_names_no_registry_means_the_configured_one_or_docker_io() {
    let image = Image::new(9 * MIB, 857);
    for access in ALL {
        let registry = registry(access, &image);
        let daemon = Daemon::plan("h1").set("proxy.registryMirror.addr", registry.url("")).start();
        for _ in 0..2 {
            Puller::new(&base(&daemon), REPOSITORY).user(USER, SECRET).pull(&image, "1");
        }
        assert_eq!(registry.blob_bytes(), (image.layer.len() + image.config.len()) as u64, "{access:?}");
    }
    // Whoever runs this test need not reach docker.io, and must not.
    let daemon = Daemon::plan("h1").set("proxy.deny[]", "registry-1.docker.io").start();
    let answer = Ask::get(&format!("{}/v2/library/app/manifests/1", base(&daemon))).send();
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(answer.status >= 400 && text.contains("registry-1.docker.io"), "{} {text}", answer.status);
}

#[test]
fn every_kind_of_registry_is_pulled_by_path() {
    for access in ALL {
        let image = Image::new(9 * MIB, 840);
        let registry = registry(access, &image);
        let fleet = Fleet::start_with(2, |plan| plan.plain_upstream(registry.authority()));
        for host in [&fleet.hosts[0], &fleet.hosts[0], &fleet.hosts[1]] {
            puller(host, &registry, access).pull(&image, "1");
        }
        let layer_and_config = (image.layer.len() + image.config.len()) as u64;
        // A config is small: it may be passed on each time.
        let at_most = layer_and_config + 2 * image.config.len() as u64;
        let sent = registry.blob_bytes();
        assert!(sent >= layer_and_config && sent <= at_most, "{access:?}: the registry sent {sent}");
        let tokens = registry.token_requests();
        assert!(tokens <= 3, "{access:?}: {tokens} requests for tokens");
    }
}

#[test]
fn every_kind_of_registry_is_pushed_to_by_path() {
    for access in ALL {
        for relative in [false, true] {
            let plan = TestRegistry::plan(access);
            let registry = if relative { plan.relative() } else { plan }.start();
            registry.allow(USER, SECRET);
            let daemon = Daemon::plan("h1").plain_upstream(registry.authority()).start();
            let image = Image::new(MIB, 841);
            let mut client = Puller::new(&base(&daemon), &by_path(&registry)).user(USER, SECRET);
            for place in client.push(&image, "2") {
                let through_us = format!("{}/v2/{}/", base(&daemon), by_path(&registry));
                assert!(place.starts_with(&through_us), "{access:?}, relative {relative}: {place}");
            }
            client.pull(&image, "2");
        }
    }
}

#[test]
fn a_wrong_password_opens_nothing() {
    for access in [Access::Basic, Access::UserToken] {
        let image = Image::new(9 * MIB, 842);
        let registry = registry(access, &image);
        let daemon = Daemon::plan("h1").plain_upstream(registry.authority()).start();
        puller(&daemon, &registry, access).pull(&image, "1");
        let sent = registry.blob_bytes();
        let strangers = [
            Puller::new(&base(&daemon), &by_path(&registry)),
            Puller::new(&base(&daemon), &by_path(&registry)).user(USER, "wrong"),
            Puller::new(&base(&daemon), &by_path(&registry)).user("mallory", SECRET),
        ];
        for mut stranger in strangers {
            for what in ["manifests/1", &format!("blobs/{}", digest(&image.layer))] {
                let answer = stranger.get(what);
                assert!(matches!(answer.status, 401 | 403), "{access:?} {what}: {}", answer.status);
                assert!(answer.body.len() < 1000, "{access:?} {what}");
            }
        }
        assert_eq!(registry.blob_bytes(), sent);
    }
}

#[test]
fn a_client_that_knows_no_tokens_pulls_public_images() {
    for odd in [false, true] {
        let image = Image::new(9 * MIB, 843);
        let registry = registry(Access::AnonymousToken, &image);
        registry.turn(|knobs| knobs.odd_challenge = odd);
        let daemon = Daemon::plan("h1").plain_upstream(registry.authority()).start();
        let layer = format!("blobs/{}", digest(&image.layer));
        for (what, body) in [("manifests/1", &image.manifest), (&layer, &image.layer), (&layer, &image.layer)] {
            Ask::get(&format!("{}/v2/{}/{what}", base(&daemon), by_path(&registry))).send().assert_is(body);
        }
        assert_eq!(registry.blob_bytes(), image.layer.len() as u64);
        assert_eq!(registry.token_requests(), 1, "an anonymous token is good for the next request too");
        // Tokens that the registry no longer knows are replaced.
        registry.expire_tokens();
        let tags = Ask::get(&format!("{}/v2/{}/tags/list", base(&daemon), by_path(&registry))).send();
        assert_eq!(tags.status, 200);
        assert_eq!(registry.token_requests(), 2);
    }
}

#[test]
fn what_a_token_does_not_open_is_not_tried_with_another_one() {
    let image = Image::new(MIB, 860);
    let registry = registry(Access::UserToken, &image);
    let daemon = Daemon::plan("h1").plain_upstream(registry.authority()).start();
    for what in ["manifests/1".to_owned(), format!("blobs/{}", digest(&image.layer)), "manifests/1".to_owned()] {
        let answer = Ask::get(&format!("{}/v2/{}/{what}", base(&daemon), by_path(&registry))).send();
        assert!(answer.line("www-authenticate").contains("insufficient_scope"), "{answer:?}");
    }
    assert_eq!(registry.token_requests(), 1);
}

#[test]
fn a_refusal_by_path_says_where_to_log_in() {
    let image = Image::new(MIB, 844);
    for access in [Access::Basic, Access::UserToken] {
        let registry = registry(access, &image);
        let daemon = Daemon::plan("h1").plain_upstream(registry.authority()).start();
        let ask = Ask::get(&format!("{}/v2/{}/manifests/1", base(&daemon), by_path(&registry)));
        let refused = ask.clone().send();
        assert_eq!(refused.status, 401);
        let challenge = refused.line("www-authenticate");
        let credential = if challenge.starts_with("Basic ") {
            basic(USER, SECRET)
        } else {
            let realm = challenge_parameter(challenge, "realm").expect("a realm");
            assert!(realm.starts_with(&format!("{}/token?ns=", base(&daemon))), "{realm}");
            let ask = ask_for_token(challenge, &format!("repository:{}:pull", by_path(&registry)));
            token_of(&ask.header("Authorization", &basic(USER, SECRET)).send())
        };
        ask.header("Authorization", &credential).send().assert_is(&image.manifest);
    }
}

#[test]
fn the_next_page_of_tags_leads_back_to_us() {
    let image = Image::new(MIB, 845);
    for relative in [false, true] {
        let plan = TestRegistry::plan(Access::AnonymousToken);
        let registry = if relative { plan.relative() } else { plan }.start();
        for tag in ["1", "2", "3"] {
            registry.publish(&image, REPOSITORY, tag);
        }
        let daemon = Daemon::plan("h1").plain_upstream(registry.authority()).start();
        let mut url = format!("{}/v2/{}/tags/list?n=1", base(&daemon), by_path(&registry));
        for tag in ["1", "2", "3"] {
            assert!(url.starts_with(&base(&daemon)), "{url}");
            let page = Ask::get(&url).send();
            assert!(String::from_utf8_lossy(&page.body).contains(&format!("\"tags\":[\"{tag}\"]")), "{url}: {page:?}");
            let link = page.line("link").to_owned();
            let next = link.strip_prefix('<').and_then(|link| link.split_once('>')).map(|(next, _)| next);
            match next {
                Some(next) => url = url::Url::parse(&url).and_then(|url| url.join(next)).expect("a URL").into(),
                None => assert_eq!(tag, "3"),
            }
        }
    }
}

#[test]
fn registries_with_a_port_have_mirror_ports() {
    let image = Image::new(9 * MIB, 846);
    let registries = [Access::AnonymousToken, Access::UserToken].map(|access| registry(access, &image));
    let fleet = Fleet::start_with(2, |plan| {
        registries.iter().fold(plan, |plan, registry| {
            plan.set("proxy.mirrors[]", serde_json::json!({ "port": 0, "registry": registry.url("") }))
        })
    });
    for registry in &registries {
        for host in &fleet.hosts {
            let base = format!("http://{}", host.mirror(&registry.url("")));
            Puller::new(&base, REPOSITORY).user(USER, SECRET).pull(&image, "1");
            let pushed = Image::new(MIB, 847);
            for place in Puller::new(&base, REPOSITORY).user(USER, SECRET).push(&pushed, "2") {
                assert!(place.starts_with(&base), "{place}");
            }
        }
        let sent = registry.blob_bytes();
        assert!(sent < (image.layer.len() + image.layer.len() / 20) as u64, "the registry sent {sent}");
        // containerd does not ping, and follows whatever refusal it gets.
        let base = format!("http://{}", fleet.hosts[0].mirror(&registry.url("")));
        let refused = Ask::new("POST", &format!("{base}/v2/{REPOSITORY}/blobs/uploads/")).send();
        let realm = challenge_parameter(refused.line("www-authenticate"), "realm").expect("a realm");
        assert!(realm.starts_with(&format!("{base}/token?ns=")), "{realm}");
        let form =
            format!("grant_type=password&username={USER}&password={SECRET}&scope=repository%3Ateam%2Fapp%3Apush");
        let form = Ask::new("POST", &realm).body(&form.into());
        let token = token_of(&form.header("Content-Type", "application/x-www-form-urlencoded").send());
        let begun = Ask::new("POST", &format!("{base}/v2/{REPOSITORY}/blobs/uploads/")).header("Authorization", &token);
        assert_eq!(begun.send().status, 202);
        let stranger = Puller::new(&base, REPOSITORY);
        let mut stranger = stranger.user(USER, "wrong");
        assert_eq!(stranger.get(&format!("blobs/{}", digest(&image.layer))).status, 401);
    }
}

/// Requests for tokens of a registry, with a credential each.
pub(crate) fn token_asks(registry: &TestRegistry, host: &Daemon, count: usize) -> Vec<Ask> {
    let url = |number: usize| registry.token_url_for(&format!("repository:r{number}:pull"));
    (0..count).map(|number| Ask::get(&url(number)).via(host.proxy())).collect()
}

#[test]
fn a_token_endpoint_is_asked_four_things_at_a_time() {
    let registry = registry(Access::AnonymousToken, &Image::new(MIB, 848));
    let daemon = Daemon::plan("h1").plain_upstream(registry.authority()).start();
    let gate = Gate::at(0);
    registry.turn(|knobs| knobs.token_gate = Some(gate.clone()));
    let asks = token_asks(&registry, &daemon, 12);
    let answers = std::thread::spawn(move || all(asks));
    wait_for("all to have asked", || (daemon.metric(&["concurrent_request"]) >= 12.0).then_some(()));
    wait_for("the first four", || (registry.token_requests() >= 4).then_some(()));
    gate.open();
    for answer in answers.join().expect("answers") {
        assert_eq!(answer.status, 200);
    }
    assert_eq!(registry.token_requests(), 12);
    assert_eq!(registry.most_token_requests_at_once(), 4);
}

#[test]
fn a_token_goes_to_nobody_with_another_credential() {
    let image = Image::new(MIB, 849);
    let registry = registry(Access::UserToken, &image);
    registry.allow("bob", "secret of bob");
    let daemon = Daemon::plan("h1").plain_upstream(registry.authority()).start();
    let gate = Gate::at(0);
    registry.turn(|knobs| knobs.token_gate = Some(gate.clone()));
    let ask = Ask::get(&registry.token_url_for(&format!("repository:{REPOSITORY}:pull"))).via(daemon.proxy());
    let with = |credential: &str| ask.clone().header("Authorization", credential);
    let asks = vec![with(&basic(USER, SECRET)), with(&basic("bob", "secret of bob")), with(&basic(USER, "wrong")), ask];
    let answers = std::thread::spawn(move || all(asks));
    wait_for("all to have asked", || (daemon.metric(&["concurrent_request"]) >= 4.0).then_some(()));
    gate.open();
    let answers = answers.join().expect("answers");
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 200, 401, 200]);
    let tokens = [0, 1, 3].map(|number| token_of(&answers[number]));
    assert!(tokens[0] != tokens[1] && tokens[1] != tokens[2] && tokens[0] != tokens[2]);
    let pull =
        |token: &str| Ask::get(&registry.url(&image.layer_path(REPOSITORY))).header("Authorization", token).send();
    assert_eq!(tokens.map(|token| pull(&token).status), [200, 200, 401]);
}

#[test]
fn tokens_for_a_form_are_told_apart_by_the_form() {
    let registry = registry(Access::UserToken, &Image::new(MIB, 858));
    registry.allow("bob", "secret of bob");
    let daemon = Daemon::plan("h1").plain_upstream(registry.authority()).start();
    // The registry says who hands out its tokens.
    assert_eq!(Ask::get(&registry.url("/v2/")).via(daemon.proxy()).send().status, 401);
    let gate = Gate::at(0);
    registry.turn(|knobs| knobs.token_gate = Some(gate.clone()));
    let form = |user: &str, password: &str| {
        let fields =
            [("grant_type", "password"), ("scope", "repository:team/app:pull"), ("client_id", "containerd-client")];
        let form = registry.token_form(&[&fields[..], &[("username", user), ("password", password)]].concat());
        form.via(daemon.proxy())
    };
    let asks = [(USER, SECRET), (USER, SECRET), (USER, SECRET), ("bob", "secret of bob"), (USER, "wrong")];
    let asks = asks.map(|(user, password)| form(user, password));
    let answers = std::thread::spawn(move || all(asks));
    wait_for("all to have asked", || (daemon.metric(&["concurrent_request"]) >= 5.0).then_some(()));
    gate.open();
    let answers = answers.join().expect("answers");
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 200, 200, 200, 401]);
    assert_ne!(token_of(&answers[0]), token_of(&answers[3]));
    assert_eq!(registry.count(&[Asked::TokenPost]), 3, "identical requests in flight are one");
}

#[test]
fn an_anonymous_token_is_given_again_until_it_is_about_to_end() {
    let registry = registry(Access::AnonymousToken, &Image::new(MIB, 850));
    let daemon = Daemon::plan("h1").plain_upstream(registry.authority()).start();
    let ask = Ask::get(&registry.token_url_for("repository:team/app:pull")).via(daemon.proxy());
    let first = token_of(&ask.clone().send());
    assert_eq!(token_of(&ask.clone().send()), first);
    assert_eq!(registry.token_requests(), 1);
    // What lives so short is about to end already.
    registry.turn(|knobs| knobs.token_lifetime = Duration::from_secs(1));
    let other = Ask::get(&registry.token_url_for("repository:other:pull")).via(daemon.proxy());
    let first = token_of(&other.clone().send());
    let second = wait_for("another token", || Some(token_of(&other.clone().send())).filter(|token| *token != first));
    assert_ne!(first, second);
}

#[test]
fn manifests_by_tag_are_always_fresh_and_asked_once_for_all_who_ask() {
    let image = Image::new(MIB, 854);
    let registry = registry(Access::AnonymousToken, &image);
    let daemon = Daemon::plan("h1").plain_upstream(registry.authority()).start();
    let ask = Ask::get(&format!("{}/v2/{}/manifests/1", base(&daemon), by_path(&registry)));
    ask.clone().send().assert_is(&image.manifest);
    let moved = Image::new(MIB, 855);
    registry.publish(&moved, REPOSITORY, "1");
    ask.clone().send().assert_is(&moved.manifest);
    registry.forget();
    let gate = Gate::at(0);
    registry.turn(|knobs| knobs.manifest_gate = Some(gate.clone()));
    let asks = vec![ask; 20];
    let answers = std::thread::spawn(move || all(asks));
    wait_for("all to have asked", || (daemon.metric(&["concurrent_request"]) >= 20.0).then_some(()));
    gate.open();
    for answer in answers.join().expect("answers") {
        answer.assert_is(&moved.manifest);
    }
    assert_eq!(registry.count(&[Asked::ManifestGet, Asked::ManifestHead]), 1);
}
