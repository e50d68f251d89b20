//! Answers that are no yes, though they may look like one: nobody gets what is held here because of them.

use crate::harness::{Access, Ask, Daemon, Image, MIB, Origin, Page, SECRET, TestRegistry, random};

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
