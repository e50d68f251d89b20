//! Answers that are no yes, though they may look like one: nobody gets what is held here because of them.

use crate::harness::{Access, Ask, Daemon, Image, Kind, MIB, Origin, Page, SECRET, TestRegistry, random};

const REPOSITORY: &str = "team/app";
const USER: &str = "alice";

#[test]
fn a_page_to_sign_in_at_is_no_yes() {
    for (status, seed) in [(302, 860), (307, 861), (200, 862), (203, 863)] {
        let registry = TestRegistry::plan(Access::UserToken).start();
        let image = Image::new(9 * MIB, seed);
        registry.publish(&image, REPOSITORY, "1");
        registry.allow(USER, SECRET);
        registry.turn(|knobs| knobs.sign_in = Some(status));
        let daemon = Daemon::plan("h1").plain_upstream(registry.authority()).start();
        let credential = format!("Bearer {}", registry.token(Some(USER), REPOSITORY));
        let manifest = format!("/v2/{REPOSITORY}/manifests/{}", crate::harness::digest(&image.manifest));
        let contents = [(image.layer_path(REPOSITORY), &image.layer), (manifest, &image.manifest)];
        let check = |when: &str| {
            for (path, _) in &contents {
                let ask = Ask::get(&registry.url(path));
                let asks = [ask.clone(), ask.clone().header("Authorization", "Bearer other")];
                let asks =
                    asks.into_iter().chain([ask.clone().header("Cookie", "a=b"), ask.header("Range", "bytes=0-0")]);
                for ask in asks {
                    let theirs = ask.clone().send();
                    assert_eq!(theirs.status, status);
                    let ours = ask.via(daemon.proxy()).send();
                    assert_eq!((ours.status, &ours.body), (status, &theirs.body), "{when}: {path}");
                }
            }
        };
        check("nothing is held");
        for (path, content) in &contents {
            let ask = Ask::get(&registry.url(path)).via(daemon.proxy()).header("Authorization", &credential);
            ask.send().assert_is(content);
        }
        check("all is held");
    }
}

#[test]
fn what_is_another_content_for_each_caller_is_not_mixed_up() {
    let origin = Origin::start();
    let files = [865, 866].map(|seed| random(9 * MIB, seed));
    let credentials = ["Bearer a", "Bearer b"];
    // Of the same length and date: nothing but the credential tells them apart.
    let page = Page::plain("").with_ranges().header("Last-Modified", "Wed, 01 Jan 2020 00:00:00 GMT");
    let page = page.by_header("Authorization", &[(credentials[0], &files[0]), (credentials[1], &files[1])]);
    origin.put("/ruled/x.tar", page);
    let daemon = Daemon::plan("h1").set("proxy.rules[]", serde_json::json!({ "regex": "/ruled/" })).start();
    for _ in 0..2 {
        for (file, credential) in files.iter().zip(credentials) {
            let ask = Ask::get(&origin.url("/ruled/x.tar")).via(daemon.proxy());
            ask.header("Authorization", credential).send().assert_is(file);
        }
    }
}

#[test]
fn a_cookie_of_a_token_service_is_for_the_first_client_alone() {
    let registry = TestRegistry::plan(Access::AnonymousToken).start();
    registry.turn(|knobs| knobs.headers = vec![("Set-Cookie".into(), "session=of-the-first".into())]);
    let daemon = Daemon::plan("h1").plain_upstream(registry.authority()).start();
    let ask = Ask::get(&registry.token_url_for("repository:team/app:pull")).via(daemon.proxy());
    let (first, second) = (ask.clone().send(), ask.send());
    assert_eq!(registry.token_requests(), 1);
    assert_eq!(first.line("set-cookie"), "session=of-the-first");
    assert_eq!((second.status, second.line("set-cookie")), (200, ""));
}

#[test]
fn what_a_stranger_names_as_its_token_service_gets_all_that_is_sent_there() {
    let registry = TestRegistry::plan(Access::AnonymousToken).start();
    let shop = Origin::start();
    shop.put("/order", Page::plain("").kind(Kind::Echo));
    registry.turn(|knobs| knobs.realm = Some(shop.url("/order")));
    let daemon = Daemon::plan("h1").plain_upstream(registry.authority()).start();
    assert_eq!(Ask::get(&registry.url("/v2/")).via(daemon.proxy()).send().status, 401);
    let long = random(MIB, 867);
    let bodies = [&b"service=s&order=1"[..], b"service=s&order=1", b"{\"order\":1}", b"{\"order\":1}", &long];
    for (kind, body) in
        ["application/x-www-form-urlencoded", "text/plain"].iter().flat_map(|kind| bodies.map(|b| (kind, b)))
    {
        let ask = Ask::new("POST", &shop.url("/order")).body(&body.to_vec().into()).header("Content-Type", kind);
        ask.via(daemon.proxy()).send().assert_is(body);
    }
    assert_eq!(shop.seen("/order").len(), 2 * bodies.len());
}

#[test]
fn a_token_of_ours_opens_nothing_that_there_is_not() {
    let daemon = Daemon::plan("h1").start();
    let ask = Ask::get(&format!("http://{}/token?service=damselfly", daemon.proxy()));
    let token = crate::harness::token_of(&ask.send());
    for (path, status) in [("/v2/", 200), ("/v2/no_host.-/a/manifests/1", 400), ("/nothing", 404)] {
        let ask = Ask::get(&format!("http://{}{path}", daemon.proxy())).header("Authorization", &token);
        assert_eq!(ask.send().status, status, "{path}");
    }
}

#[test]
fn what_came_for_a_token_is_given_from_here_to_those_whom_we_get_one() {
    let registry = TestRegistry::plan(Access::AnonymousToken).start();
    let image = Image::new(9 * MIB, 868);
    registry.publish(&image, REPOSITORY, "1");
    let daemon = Daemon::plan("h1").plain_upstream(registry.authority()).start();
    let path = image.layer_path(REPOSITORY);
    let token = format!("Bearer {}", registry.token(None, REPOSITORY));
    Ask::get(&registry.url(&path)).via(daemon.proxy()).header("Authorization", &token).send().assert_is(&image.layer);
    let by_path = path.replacen("/v2/", &format!("/v2/{}/", registry.authority().replace(':', "%3A")), 1);
    for _ in 0..2 {
        Ask::get(&format!("http://{}{by_path}", daemon.proxy())).send().assert_is(&image.layer);
    }
    assert_eq!(registry.blob_bytes(), image.layer.len() as u64);
}

#[test]
fn a_manifest_comes_in_no_encoding_that_only_another_client_takes() {
    let origin = Origin::start();
    let (zipped, plain) = (random(500, 869), random(900, 870));
    let page = Page::plain("").header("ETag", "\"1\"");
    origin.put("/v2/a/b/manifests/1", page.by_header("Accept-Encoding", &[("gzip", &zipped), ("identity", &plain)]));
    let daemon = Daemon::plan("h1").start();
    for encoding in ["gzip", "identity"] {
        let ask = Ask::get(&origin.url("/v2/a/b/manifests/1")).header("Accept-Encoding", encoding);
        ask.via(daemon.proxy()).send().assert_is(&plain);
    }
}

#[test]
fn a_manifest_that_a_query_opened_is_given_to_nobody_else() {
    let origin = Origin::start();
    let manifest = br#"{"schemaVersion":2,"layers":[]}"#;
    let digest = crate::harness::digest(manifest);
    let path = format!("/v2/{REPOSITORY}/manifests/{digest}");
    let page = Page::plain(&manifest[..]).header("docker-content-digest", &digest);
    let page = page.header("content-type", "application/vnd.oci.image.manifest.v1+json");
    origin.put(&path, page);
    let daemon = Daemon::plan("h1").plain_upstream(&origin.authority()).start();
    let ask = |query: &str| Ask::get(&origin.url(&format!("{path}{query}"))).via(daemon.proxy()).send();
    ask(&format!("?token={SECRET}")).assert_is(manifest);
    // Who does not have that query is refused.
    origin.put(&path, Page::plain("no").status(403));
    for query in ["", "?token=other"] {
        assert_eq!(ask(query).status, 403, "{query}");
    }
}
