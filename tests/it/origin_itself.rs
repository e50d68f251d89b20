//! The origin of these tests does what it is told: otherwise the other tests would prove nothing.

use std::time::Duration;

use crate::harness::{Answer, Ask, Authority, Ending, Framing, Gate, Origin, Page, curl, random};

fn get(origin: &Origin, path: &str) -> Answer {
    Ask::get(&origin.url(path)).send()
}

#[test]
fn it_serves_and_counts() {
    let origin = Origin::start();
    let file = random(300_000, 1);
    origin.put("/f", Page::file(file.clone()));
    get(&origin, "/f?a=b").assert_is(&file);
    assert_eq!(origin.sent("/f"), 300_000);
    assert_eq!(origin.seen("/f")[0].target, "/f?a=b");
    assert_eq!(get(&origin, "/nothing").status, 404);

    let head = Ask::new("HEAD", &origin.url("/f")).send();
    assert_eq!((head.status, head.line("content-length"), head.body.len()), (200, "300000", 0));
    assert_eq!(origin.sent("/f"), 300_000, "a HEAD has no body");
}

#[test]
fn it_does_ranges_and_conditions() {
    let origin = Origin::start();
    let file = random(1000, 2);
    origin.put("/f", Page::file(file.clone()));
    let etag = get(&origin, "/f").line("etag").to_string();
    let ask = |name: &str, value: &str| Ask::get(&origin.url("/f")).header(name, value);
    for (range, status, part) in [
        ("bytes=0-", 206, &file[..]),
        ("bytes=10-19", 206, &file[10..20]),
        ("bytes=-5", 206, &file[995..]),
        ("bytes=990-5000", 206, &file[990..]),
        ("bytes=1000-", 416, &[]),
    ] {
        let answer = ask("Range", range).send();
        assert_eq!(answer.status, status, "{range}");
        answer.assert_body(part);
    }
    assert_eq!(ask("Range", "bytes=1-2").header("If-Range", &etag).send().status, 206);
    assert_eq!(ask("Range", "bytes=1-2").header("If-Range", "\"other\"").send().status, 200);
    assert_eq!(ask("If-None-Match", &etag).send().status, 304);
}

#[test]
fn it_frames_cuts_and_holds_back() {
    let origin = Origin::start();
    let file = random(500_000, 3);
    for framing in [Framing::Length, Framing::Chunked, Framing::Close] {
        origin.put("/whole", Page::file(file.clone()).framing(framing));
        get(&origin, "/whole").assert_is(&file);
        origin.put("/cut", Page::file(file.clone()).framing(framing).cut_after(123_456));
        let cut = get(&origin, "/cut");
        cut.assert_body(&file[..123_456]);
        assert_eq!(cut.ending == Ending::Whole, framing == Framing::Close, "{framing:?} {:?}", cut.ending);
    }
    let gate = Gate::at(1000);
    origin.put("/gated", Page::file(file.clone()).gate(&gate));
    let mut open = Ask::get(&origin.url("/gated")).open();
    assert_eq!(open.read(1000)[..], file[..1000]);
    assert!(open.is_silent_for(Duration::from_millis(50)));
    assert_eq!(origin.sent("/gated"), 1000);
    gate.open();
    open.rest().assert_body(&file[1000..]);
}

#[test]
fn it_speaks_tls_and_varies_and_wants_to_know_who_asks() {
    let authority = Authority::new();
    let origin = Origin::start_tls(&authority);
    let (one, two) = (random(10, 1), random(10, 2));
    origin.put("/f", Page::plain("").by_header("X-Kind", &[("one", &one), ("two", &two)]));
    let ask = || Ask::get(&origin.url_by_name("/f")).trust(authority.pem());
    ask().header("X-Kind", "one").send().assert_is(&one);
    let answer = ask().header("X-Kind", "two").send();
    answer.assert_is(&two);
    assert!(answer.leaf.is_some_and(|leaf| String::from_utf8_lossy(&leaf).contains(Authority::NAME)));

    origin.put("/private", Page::plain("secret").authorization("Basic abc"));
    let private = Ask::get(&origin.url("/private")).trust(authority.pem());
    assert_eq!(private.clone().send().status, 401);
    private.header("Authorization", "Basic abc").send().assert_is(b"secret");
}

#[test]
fn curl_agrees() {
    let origin = Origin::start();
    let file = random(2_000_000, 4);
    origin.put("/f", Page::file(file.clone()).framing(Framing::Chunked));
    let Some(done) = curl(&[&origin.url("/f")]) else { return };
    assert!(done.ok, "{}", done.errors);
    assert_eq!(done.output, file);
    origin.put("/f", Page::file(file).cut_after(1_000_000));
    assert!(curl(&[&origin.url("/f")]).is_some_and(|done| !done.ok), "curl has not seen the cut");
}
