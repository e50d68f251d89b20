//! Whether the tests' own registry is one: each kind of access, asked without anything in between.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::harness::{
    Access, Answer, Ask, Asked, Authority, Ending, Gate, Image, MIB, SECRET, TestRegistry, TokenEndpoint, basic,
    random, token_of,
};

const REPOSITORY: &str = "team/app";
const USER: &str = "alice";

fn start(access: Access, image: &Image) -> TestRegistry {
    let registry = TestRegistry::plan(access).start();
    registry.publish(image, REPOSITORY, "1");
    registry.allow(USER, SECRET);
    registry
}

#[test]
fn an_open_one_has_what_was_put_there() {
    let image = Image::new(MIB, 800);
    let registry = start(Access::Open, &image);
    assert_eq!(Ask::get(&registry.url("/v2/")).send().status, 200);
    let blob = registry.url(&image.layer_path(REPOSITORY));
    Ask::get(&blob).send().assert_is(&image.layer);
    let range = Ask::get(&blob).header("Range", "bytes=7-8").send();
    assert_eq!((range.status, &range.body[..]), (206, &image.layer[7..9]));
    assert_eq!(Ask::get(&blob).header("Range", "bytes=99999999-").send().status, 416);
    let head = Ask::new("HEAD", &blob).send();
    assert_eq!((head.status, head.line("content-length")), (200, image.layer.len().to_string().as_str()));
    let manifest = Ask::get(&registry.url(&format!("/v2/{REPOSITORY}/manifests/1")));
    let answer = manifest.clone().send();
    answer.assert_is(&image.manifest);
    let by_digest = format!("/v2/{REPOSITORY}/manifests/{}", answer.line("docker-content-digest"));
    Ask::get(&registry.url(&by_digest)).send().assert_is(&image.manifest);
    assert_eq!(manifest.header("Accept", "application/vnd.docker.other").send().status, 404);
    for (missing, code) in [("manifests/2", "MANIFEST_UNKNOWN"), ("blobs/sha256:00", "BLOB_UNKNOWN")] {
        let answer = Ask::get(&registry.url(&format!("/v2/{REPOSITORY}/{missing}"))).send();
        assert_eq!(answer.status, 404);
        assert!(String::from_utf8_lossy(&answer.body).contains(code), "{missing}");
    }
    assert_eq!(registry.blob_bytes(), image.layer.len() as u64 + 2);
    assert_eq!(registry.count(&[Asked::BlobGet]), 4);
    assert_eq!(registry.count(&[Asked::BlobHead, Asked::Ping]), 2);
    let first = &registry.seen()[0];
    assert_eq!((first.method.as_str(), first.target.as_str(), first.status()), ("GET", "/v2/", 200));
    assert_eq!(first.all("host"), [registry.authority()]);
    registry.forget();
    assert_eq!(registry.blob_bytes(), 0);
}

#[test]
fn it_takes_pushes_in_one_and_in_pieces() {
    for relative in [false, true] {
        let plan = TestRegistry::plan(Access::Open);
        let registry = if relative { plan.relative() } else { plan }.start();
        let image = Image::new(MIB, 801);
        image.push(&registry.url(""), REPOSITORY, "2");
        let manifest = Ask::get(&registry.url(&format!("/v2/{REPOSITORY}/manifests/2"))).send();
        manifest.assert_is(&image.manifest);
        let place = |answer: &Answer| match answer.line("location") {
            path if relative => registry.url(path),
            url => url.to_owned(),
        };
        let begun = Ask::new("POST", &registry.url("/v2/other/blobs/uploads/?mount=sha256:00&from=x")).send();
        assert_eq!(begun.status, 202);
        assert_eq!(begun.line("location").starts_with('/'), relative);
        let blob = random(MIB, 802);
        let (first, second) = (blob.slice(..1000), blob.slice(1000..));
        let piece = Ask::new("PATCH", &place(&begun)).body(&first).send();
        assert_eq!((piece.status, piece.line("range")), (202, "0-999"));
        let out_of_order = Ask::new("PATCH", &place(&piece)).header("Content-Range", "7-9").body(&first).send();
        assert_eq!(out_of_order.status, 416);
        let piece = Ask::new("PATCH", &place(&piece)).header("Content-Range", "1000-1048575").body(&second).send();
        let digest = crate::harness::digest(&blob);
        let wrong = Ask::new("POST", &registry.url("/v2/other/blobs/uploads/?digest=sha256:00")).body(&blob).send();
        assert_eq!(wrong.status, 400);
        let done = Ask::new("PUT", &format!("{}&digest={digest}", place(&piece))).send();
        assert_eq!((done.status, done.line("docker-content-digest")), (201, digest.as_str()));
        let answer = Ask::get(&place(&done)).send();
        if relative {
            assert_eq!(answer.status, 307);
            Ask::get(&place(&answer)).send().assert_is(&blob);
        } else {
            answer.assert_is(&blob);
        }
        assert_eq!(registry.count(&[Asked::Upload]), 10);
        assert_eq!(registry.count(&[Asked::ManifestPut]), 1);
    }
}

#[test]
fn tokens_are_for_one_repository_and_end() {
    let image = Image::new(MIB, 803);
    for (access, elsewhere) in [(Access::AnonymousToken, false), (Access::UserToken, true)] {
        let plan = TestRegistry::plan(access);
        let registry = if elsewhere { plan.token_port() } else { plan }.start();
        registry.publish(&image, REPOSITORY, "1");
        registry.publish(&image, "other", "1");
        registry.allow(USER, SECRET);
        let ping = Ask::get(&registry.url("/v2/")).send();
        assert_eq!(ping.status, 401);
        let scope = format!("repository:{REPOSITORY}:pull");
        let blob = Ask::get(&registry.url(&image.layer_path(REPOSITORY)));
        let refused = blob.clone().send();
        let challenge = refused.line("www-authenticate").to_owned();
        assert_eq!(refused.status, 401);
        assert!(challenge.contains(&format!("scope=\"{scope}\"")), "{challenge}");
        assert!(challenge.starts_with(&format!("Bearer realm=\"{}\"", registry.token_url())), "{challenge}");

        let ask = Ask::get(&registry.token_url_for(&scope));
        let anonymous = token_of(&ask.clone().send());
        let users = token_of(&ask.clone().header("Authorization", &basic(USER, SECRET)).send());
        assert_eq!(ask.clone().header("Authorization", &basic(USER, "wrong")).send().status, 401);
        let with = |token: &str| blob.clone().header("Authorization", token).send();
        let is_public = access == Access::AnonymousToken;
        assert_eq!(with(&anonymous).status, if is_public { 200 } else { 401 });
        with(&users).assert_is(&image.layer);
        with(&format!("Bearer {}", registry.token(Some(USER), REPOSITORY))).assert_is(&image.layer);
        assert_eq!(with("Bearer nonsense").status, 401);
        let other = Ask::get(&registry.url(&image.layer_path("other"))).header("Authorization", &users).send();
        assert!(other.line("www-authenticate").contains("insufficient_scope"));
        let push = Ask::new("POST", &registry.url(&format!("/v2/{REPOSITORY}/blobs/uploads/")));
        assert_eq!(push.clone().header("Authorization", &users).send().status, 401);
        let wider = Ask::get(&registry.token_url_for(&format!("repository:{REPOSITORY}:pull,push")));
        let pusher = token_of(&wider.header("Authorization", &basic(USER, SECRET)).send());
        assert_eq!(push.header("Authorization", &pusher).send().status, 202);

        registry.forbid(USER, REPOSITORY);
        let denied = with(&users);
        assert_eq!((denied.status, denied.line("www-authenticate")), (403, ""));
        registry.expire_tokens();
        assert!(with(&users).line("www-authenticate").contains("invalid_token"));
        registry.turn(|knobs| knobs.token_lifetime = Duration::ZERO);
        assert_eq!(with(&token_of(&ask.send())).status, 401, "a token whose life is over");
        assert_eq!(registry.token_requests(), 5);
    }
}

#[test]
fn a_form_with_a_password_gets_a_token_too() {
    let image = Image::new(MIB, 804);
    let registry = start(Access::UserToken, &image);
    let form = |fields: &[(&str, &str)]| registry.token_form(fields).send();
    let scope = ("scope", "repository:team/app:pull");
    let password =
        [("grant_type", "password"), ("username", USER), ("password", SECRET), ("access_type", "offline"), scope];
    let given = form(&password);
    let refresh = serde_json::from_slice::<serde_json::Value>(&given.body).expect("JSON")["refresh_token"].clone();
    let refresh = refresh.as_str().expect("a refresh token");
    let again = form(&[("grant_type", "refresh_token"), ("refresh_token", refresh), scope]);
    for answer in [given, again] {
        let blob = Ask::get(&registry.url(&image.layer_path(REPOSITORY)));
        blob.header("Authorization", &token_of(&answer)).send().assert_is(&image.layer);
    }
    assert_eq!(form(&[("grant_type", "password"), ("username", USER), ("password", "no"), scope]).status, 401);
    registry.revoke(USER);
    assert_eq!(form(&password).status, 401);
    assert_eq!(registry.count(&[Asked::TokenPost]), 4);
}

#[test]
fn a_password_opens_the_one_with_basic() {
    let image = Image::new(MIB, 805);
    let registry = start(Access::Basic, &image);
    let blob = Ask::get(&registry.url(&image.layer_path(REPOSITORY)));
    assert!(blob.clone().send().line("www-authenticate").starts_with("Basic realm="));
    assert_eq!(blob.clone().header("Authorization", &basic(USER, "wrong")).send().status, 401);
    blob.header("Authorization", &basic(USER, SECRET)).send().assert_is(&image.layer);
}

#[test]
fn signed_urls_are_elsewhere_and_end() {
    let image = Image::new(MIB, 806);
    let registry = TestRegistry::plan(Access::UserToken).store(IpAddr::from([127, 0, 0, 3])).start();
    registry.publish(&image, REPOSITORY, "1");
    let token = format!("Bearer {}", registry.token(Some(USER), REPOSITORY));
    let ask = Ask::get(&registry.url(&image.layer_path(REPOSITORY)));
    assert_eq!(ask.clone().send().status, 401);
    let signed = ask.header("Authorization", &token).send();
    let url = signed.line("location").to_owned();
    assert_eq!(signed.status, 307);
    assert!(url.starts_with(&format!("http://{}/", registry.store_authority())), "{url}");
    Ask::get(&url).send().assert_is(&image.layer);
    assert_eq!(Ask::get(&url).header("Authorization", &token).send().status, 400);
    assert_eq!(Ask::new("HEAD", &url).send().status, 403);
    assert_eq!(Ask::get(&url.replace("sha256:", "sha256:0")).send().status, 403);
    registry.expire_signatures();
    assert_eq!(Ask::get(&url).send().status, 403);
    assert_eq!(registry.count(&[Asked::StoreGet, Asked::StoreHead]), 5);
}

#[test]
fn a_client_certificate_is_asked_for() {
    let image = Image::new(MIB, 807);
    let authority = Arc::new(Authority::new());
    let registry = TestRegistry::plan(Access::Open).tls(&authority).client_certificate().start();
    registry.publish(&image, REPOSITORY, "1");
    let url = registry.url(&image.layer_path(REPOSITORY));
    let refused = Ask::get(&url).trust(authority.pem()).send();
    assert_eq!(refused.status, 403);
    let (certificate, key) = authority.client_certificate();
    Ask::get(&url).trust(authority.pem()).identity(&certificate, &key).send().assert_is(&image.layer);
    assert_eq!(registry.broken_handshakes(), 0);
}

#[test]
fn it_misbehaves_on_command() {
    let image = Image::new(MIB, 808);
    let registry = start(Access::AnonymousToken, &image);
    let url = registry.token_url_for("repository:team/app:pull");
    registry.turn(|knobs| knobs.token_endpoint = TokenEndpoint::Html);
    assert_eq!(Ask::get(&url).send().line("content-type"), "text/html");
    registry.turn(|knobs| knobs.token_endpoint = TokenEndpoint::TooMany(7));
    let held = Ask::get(&url).send();
    assert_eq!((held.status, held.line("retry-after")), (429, "7"));
    registry.turn(|knobs| knobs.token_endpoint = TokenEndpoint::Down);
    assert_eq!(Ask::get(&url).status_within(Duration::from_secs(30)), None);
    registry.turn(|knobs| knobs.down = true);
    assert_eq!(Ask::get(&registry.url("/v2/")).status_within(Duration::from_secs(30)), None);
    registry.turn(|knobs| {
        knobs.down = false;
        knobs.token_endpoint = TokenEndpoint::Good;
        knobs.realm = Some("http://169.254.1.1/token".into());
        knobs.odd_challenge = true;
        knobs.refuses_head = true;
        knobs.headers = vec![("Set-Cookie".into(), "a=1".into())];
        knobs.blob_headers = vec![("Cache-Control".into(), "no-store".into())];
        knobs.page_size = 1;
    });
    let ping = Ask::get(&registry.url("/v2/")).send();
    let challenges: Vec<_> = ping.headers.get_all("www-authenticate").iter().collect();
    assert_eq!(challenges.len(), 2);
    assert!(challenges[1].to_str().expect("text").contains("Realm = \"http://169.254.1.1/token\" ,"));
    let token = format!("Bearer {}", registry.token(None, REPOSITORY));
    let ask = |method: &str, path: &str| Ask::new(method, &registry.url(path)).header("Authorization", &token);
    assert_eq!(ask("HEAD", &image.layer_path(REPOSITORY)).send().status, 405);
    let blob = ask("GET", &image.layer_path(REPOSITORY)).send();
    assert_eq!((blob.line("set-cookie"), blob.line("cache-control")), ("a=1", "no-store"));
    registry.publish(&image, REPOSITORY, "2");
    let page = ask("GET", &format!("/v2/{REPOSITORY}/tags/list")).send();
    assert!(page.line("link").ends_with("/tags/list?n=1&last=1>; rel=\"next\""), "{}", page.line("link"));
    let gate = Gate::at(1000);
    registry.turn(|knobs| knobs.blob_gate = Some(gate.clone()));
    let mut open = ask("GET", &image.layer_path(REPOSITORY)).open();
    assert_eq!(open.read(1000), image.layer[..1000]);
    gate.open();
    assert_eq!(open.rest().ending, Ending::Whole);
}
