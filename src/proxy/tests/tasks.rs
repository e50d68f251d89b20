//! Downloads that become tasks, and those that must not.

use std::num::NonZeroU64;

use http::{HeaderMap, Response};
use hyper::body::Incoming;
use regex::Regex;

use super::source::Source;
use super::*;
use crate::limit::{Class, Limit, Limiter};
use crate::net::ClientConfig;
use crate::proxy::Rule;

const LENGTH: usize = 5 << 20;
const MIB: u64 = 1 << 20;

/// A world in which one MiB is large.
async fn world() -> World {
    let rule = Rule {
        regex: Regex::new("/ruled/").unwrap(),
        use_tls: false,
        redirect: None,
        filtered_query_params: vec!["session".into()],
    };
    World::with(Config { min_size: MIB, rules: vec![rule], ..Config::default() }).await
}

async fn send(world: &World, origin: SocketAddr, path: &str, lines: &[(&str, &str)]) -> Response<Incoming> {
    let stream = TcpStream::connect(world.proxy).await.unwrap();
    let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::get(format!("http://{origin}{path}")).header("host", origin.to_string());
    for (name, value) in lines {
        request = request.header(*name, *value);
    }
    tokio::time::timeout(HANG, send.send_request(request.body(Empty::<Bytes>::new()).unwrap())).await.unwrap().unwrap()
}

async fn fetch(
    world: &World,
    origin: SocketAddr,
    path: &str,
    lines: &[(&str, &str)],
) -> (StatusCode, HeaderMap, Bytes) {
    let (head, body) = send(world, origin, path, lines).await.into_parts();
    let body = tokio::time::timeout(HANG, body.collect()).await.unwrap().unwrap().to_bytes();
    (head.status, head.headers, body)
}

/// Header values as text.
fn text<'a, const N: usize>(headers: &'a HeaderMap, names: [&str; N]) -> [&'a str; N] {
    names.map(|name| headers[name].to_str().unwrap())
}

#[tokio::test]
async fn a_large_answer_becomes_a_task_whose_bytes_are_not_asked_for_again() {
    let (origin, source) =
        Source::new(LENGTH, &[("etag", "\"1\""), ("content-type", "a/b"), ("x-own", "kept")]).start().await;
    let world = world().await;
    let (status, headers, body) = fetch(&world, origin, "/file", &[]).await;
    assert_eq!((status, body), (StatusCode::OK, source.content.clone()));
    assert_eq!(text(&headers, ["content-type", "x-own", "etag"]), ["a/b", "kept", "\"1\""]);
    assert_eq!(headers["content-length"], LENGTH.to_string());
    assert!(headers.contains_key("x-dragonfly-task-id"));
    assert_eq!(headers["x-dragonfly-task-download-finished"], "false");
    assert_eq!(source.cost(), (1, LENGTH as u64), "the answer under way was the source");

    let (status, headers, body) = fetch(&world, origin, "/file", &[]).await;
    assert_eq!((status, body), (StatusCode::OK, source.content.clone()));
    assert_eq!(headers["x-dragonfly-task-download-finished"], "true");
    assert_eq!(text(&headers, ["content-type", "x-own"]), ["a/b", "kept"]);
    assert_eq!(source.cost().0, 1, "asked once for the head");
}

#[tokio::test]
async fn what_looks_large_is_asked_for_one_byte_first() {
    let (origin, source) = Source::new(LENGTH, &[("etag", "\"1\"")]).start().await;
    let world = world().await;
    for (path, lines) in [("/a.bin", &[][..]), ("/ruled/b", &[]), ("/c", &[("x-dragonfly-use-p2p", "true")])] {
        assert_eq!(fetch(&world, origin, path, lines).await.2, source.content);
        let (_, bytes) = source.cost();
        assert_eq!(bytes, LENGTH as u64 + 1, "{path}: each byte once, and one to ask");
        assert_eq!(fetch(&world, origin, path, lines).await.2, source.content);
        assert_eq!(source.cost(), (1, 1), "{path}: a late request costs one byte");
    }
    fetch(&world, origin, "/ruled/b?session=9", &[]).await;
    assert_eq!(source.cost(), (1, 1), "a filtered parameter is no part of the identity");
    assert_eq!(fetch(&world, origin, "/a.bin", &[("x-dragonfly-use-p2p", "false")]).await.2, source.content);
    assert_eq!(source.cost(), (1, LENGTH as u64), "a request that does not want it is passed on");
}

#[tokio::test]
async fn ranges_are_answered_as_the_rfc_says() {
    let (origin, source) = Source::new(LENGTH, &[("etag", "\"1\"")]).start().await;
    let world = world().await;
    for (lines, status, range) in [
        (&[("range", "bytes=0-")][..], 206, 0..LENGTH),
        (&[("range", "bytes=10-19")], 206, 10..20),
        (&[("range", "bytes=-5")], 206, LENGTH - 5..LENGTH),
        (&[("range", "bytes=5242870-9999999999")], 206, LENGTH - 10..LENGTH),
        (&[("range", "bytes=10-19"), ("if-range", "\"1\"")], 206, 10..20),
        (&[("range", "bytes=10-19"), ("if-range", "\"0\"")], 200, 0..LENGTH),
    ] {
        let (got, headers, body) = fetch(&world, origin, "/a.bin", lines).await;
        assert_eq!((got.as_u16(), &body), (status, &source.content.slice(range.clone())), "{lines:?}");
        assert_eq!(headers["content-length"], body.len().to_string());
        assert_eq!(headers["accept-ranges"], "bytes");
        let want = (status == 206).then(|| format!("bytes {}-{}/{LENGTH}", range.start, range.end - 1));
        assert_eq!(headers.get("content-range").map(|range| range.to_str().unwrap().to_owned()), want);
    }
    let (status, headers, body) = fetch(&world, origin, "/a.bin", &[("range", &format!("bytes={LENGTH}-"))]).await;
    assert_eq!((status.as_u16(), &headers["content-length"], body.len()), (416, &"0".parse().unwrap(), 0));
    assert_eq!(headers["content-range"], format!("bytes */{LENGTH}"));
    source.cost();
    let (status, headers, body) = fetch(&world, origin, "/a.bin", &[("range", "bytes=0-1,4-5")]).await;
    assert_eq!((status.as_u16(), headers.get("x-dragonfly-task-id"), body), (200, None, source.content.clone()));
    assert_eq!(source.cost(), (1, LENGTH as u64), "several ranges are the origin's to answer");
}

#[tokio::test]
async fn the_origin_judges_preconditions_and_changes_are_seen() {
    let (origin, source) = Source::new(LENGTH, &[("etag", "\"1\"")]).start().await;
    let world = world().await;
    fetch(&world, origin, "/a.bin", &[]).await;
    source.cost();
    let (status, headers, _) = fetch(&world, origin, "/a.bin", &[("if-none-match", "\"1\"")]).await;
    assert_eq!((status, &headers["etag"]), (StatusCode::NOT_MODIFIED, &"\"1\"".parse().unwrap()));
    let (status, _, body) = fetch(&world, origin, "/a.bin", &[("if-none-match", "\"0\"")]).await;
    assert_eq!((status, body), (StatusCode::OK, source.content.clone()));
    assert_eq!(source.cost(), (2, 1), "the bytes were here");
    source.headers.lock().unwrap()[0].1 = "\"2\"".into();
    let (_, headers, _) = fetch(&world, origin, "/a.bin", &[]).await;
    assert_eq!(headers["etag"], "\"2\"");
    assert!(source.cost().1 > LENGTH as u64, "a new version is another task");
}

#[tokio::test]
async fn what_must_not_be_shared_is_asked_for_every_time() {
    let world = world().await;
    for (headers, lines) in [
        (&[("etag", "\"1\""), ("cache-control", "private")][..], &[][..]),
        (&[("etag", "\"1\""), ("set-cookie", "a=b")], &[]),
        (&[("etag", "\"1\""), ("vary", "*")], &[]),
        (&[("etag", "W/\"1\"")], &[]),
        (&[], &[]),
        (&[("etag", "\"1\"")], &[("authorization", "Bearer t")]),
        (&[("etag", "\"1\"")], &[("cookie", "c=d")]),
        (&[("etag", "\"1\"")], &[("cache-control", "no-store")]),
    ] {
        let (origin, source) = Source::new(LENGTH, headers).start().await;
        for path in ["/file", "/a.bin"] {
            for _ in 0..2 {
                let (status, got, body) = fetch(&world, origin, path, lines).await;
                assert_eq!((status, &body), (StatusCode::OK, &source.content), "{headers:?} {lines:?}");
                assert!(!got.contains_key("x-dragonfly-task-id"), "{headers:?} {lines:?}");
                assert!(source.cost().1 >= LENGTH as u64, "{headers:?} {lines:?}");
            }
        }
    }
}

#[tokio::test]
async fn an_answer_that_varies_is_shared_among_those_who_ask_alike() {
    let (origin, source) = Source::new(LENGTH, &[("etag", "\"1\""), ("vary", "x-flavour")]).start().await;
    let world = world().await;
    let mut tasks = Vec::new();
    for flavour in ["a", "b", "a"] {
        let (_, headers, body) = fetch(&world, origin, "/a.bin", &[("x-flavour", flavour)]).await;
        assert_eq!(body, source.content);
        tasks.push(headers["x-dragonfly-task-id"].clone());
    }
    assert_ne!(tasks[0], tasks[1]);
    assert_eq!(tasks[0], tasks[2]);
}

#[tokio::test]
async fn a_small_file_and_one_without_ranges_are_passed_on_in_one_piece() {
    let world = world().await;
    let (origin, source) = Source::new(1000, &[("etag", "\"1\"")]).start().await;
    let (_, headers, body) = fetch(&world, origin, "/a.bin", &[]).await;
    assert_eq!(body, source.content);
    assert!(!headers.contains_key("x-dragonfly-task-id"));
    assert_eq!(source.cost(), (2, 1001));

    let (origin, source) = Source { ranges: false, ..Source::new(LENGTH, &[("etag", "\"1\"")]) }.start().await;
    let (_, headers, body) = fetch(&world, origin, "/a.bin", &[]).await;
    assert_eq!(body, source.content);
    assert!(headers.contains_key("x-dragonfly-task-id"), "a 200 to the question is the source");
    assert_eq!(source.cost(), (1, LENGTH as u64));
}

#[tokio::test]
async fn the_origin_sees_none_of_our_headers() {
    let (origin, source) = Source::new(LENGTH, &[("etag", "\"1\"")]).start().await;
    let world = world().await;
    fetch(&world, origin, "/a.bin", &[("x-dragonfly-tag", "t"), ("accept", "a/b")]).await;
    for (_, headers) in source.asked.lock().unwrap().iter() {
        assert!(headers.keys().all(|name| !name.as_str().starts_with("x-dragonfly")), "{headers:?}");
        assert_eq!(text(headers, ["accept", "host"]), ["a/b", &origin.to_string()]);
    }
}

#[tokio::test]
async fn a_first_byte_that_our_own_limit_holds_up_is_waited_for() {
    let (origin, source) = Source::new(LENGTH, &[("etag", "\"1\"")]).start().await;
    let limiter = Limiter::default();
    // The first bytes are allowed after a second.
    let limit = Limit { total: NonZeroU64::new(Limit::LEAST), per_flow: None };
    limiter.set(Class::BackToSource, limit);
    let config = Config { min_size: MIB, first_byte: Duration::from_millis(200), ..Config::default() };
    let world = World::limited(config, ClientConfig::default(), &[], limiter).await;
    let response = send(&world, origin, "/file", &[]).await;
    assert!(response.headers().contains_key("x-dragonfly-task-id"), "it is no reason to go past the task");
    let first = tokio::time::timeout(HANG, response.into_body().frame()).await.unwrap().unwrap().unwrap();
    let first = first.into_data().unwrap();
    assert_eq!(first, source.content[..first.len()]);
}
