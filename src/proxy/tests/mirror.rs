//! The registry mirror: origin-form requests below `/v2/`.

use damselfly_core::Digest;
use http::uri::Scheme;
use sha2::{Digest as _, Sha256};

use super::source::Source;
use super::*;
use crate::net::{ClientConfig, Upstream};

const LENGTH: usize = 3 << 20;

/// A world whose registries, on 127.0.0.1, speak plain HTTP.
async fn world() -> World {
    let plain = Upstream { host: "127.0.0.1".into(), scheme: Some(Scheme::HTTP), ..Upstream::default() };
    World::built(Config::default(), ClientConfig { upstreams: vec![plain], ..ClientConfig::default() }, &[]).await
}

async fn send(world: &World, method: &str, target: &str, lines: &[(&str, &str)]) -> http::Response<Bytes> {
    let stream = TcpStream::connect(world.proxy).await.unwrap();
    let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(target).header("host", world.proxy.to_string());
    for (name, value) in lines {
        request = request.header(*name, *value);
    }
    let answer = send.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    let (head, body) = answer.into_parts();
    let body = tokio::time::timeout(HANG, body.collect()).await.unwrap().unwrap().to_bytes();
    http::Response::from_parts(head, body)
}

#[tokio::test]
async fn a_blob_is_served_under_its_digest_and_fetched_once() {
    let source = Source::new(LENGTH, &[("content-type", "text/odd")]);
    let digest = Digest::sha256(Sha256::digest(&source.content).into()).to_string();
    let (registry, source) = source.start().await;
    let world = world().await;
    let named = [
        format!("/v2/lib/x/blobs/{digest}?ns={registry}"),
        format!("/v2/{registry}/lib/x/blobs/{digest}"),
        format!("/v2/other/repository/blobs/{digest}?ns={registry}"),
    ];
    for target in &named {
        let answer = send(&world, "GET", target, &[]).await;
        assert_eq!((answer.status(), answer.body()), (StatusCode::OK, &source.content), "{target}");
        for (name, want) in [
            ("content-type", "application/octet-stream"),
            ("docker-content-digest", &digest),
            ("etag", &format!("\"{digest}\"")),
            ("accept-ranges", "bytes"),
            ("content-length", &LENGTH.to_string()),
        ] {
            assert_eq!(answer.headers()[name], want, "{name} of {target}");
        }
    }
    assert_eq!(source.cost(), (1, LENGTH as u64), "no other repository's name makes it another blob");
    let answer = send(&world, "GET", &named[0], &[("range", "bytes=0-")]).await;
    assert_eq!((answer.status(), answer.body()), (StatusCode::PARTIAL_CONTENT, &source.content));
    let head = send(&world, "HEAD", &named[0], &[]).await;
    assert_eq!(
        (head.headers()["content-length"].to_str().unwrap(), head.body().len()),
        (LENGTH.to_string().as_str(), 0)
    );
}

#[tokio::test]
async fn a_blob_that_does_not_have_its_digest_never_arrives_whole() {
    let source = Source::new(LENGTH, &[]);
    let digest = Digest::sha256(Sha256::digest(b"something else").into()).to_string();
    let (registry, _) = source.start().await;
    let world = world().await;
    let mut client = TcpStream::connect(world.proxy).await.unwrap();
    let head = format!("GET /v2/x/blobs/{digest}?ns={registry} HTTP/1.1\r\nHost: a\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    let head = read_head(&mut client).await;
    assert!(head.contains(&format!("Content-Length: {LENGTH}")), "{head}");
    let mut got = Vec::new();
    let end = tokio::time::timeout(HANG, client.read_to_end(&mut got)).await.unwrap();
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert!(got.len() < LENGTH, "{}", got.len());
}

#[tokio::test]
async fn a_registrys_answers_pass_but_never_429() {
    let (registry, seen) =
        origin(Answer::Whole("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nslow"))
            .await;
    let world = world().await;
    let lines = [
        ("accept", "a/b"),
        ("accept", "c/d"),
        ("authorization", "Bearer t"),
        ("x-dragonfly-registry", &registry.to_string()),
    ];
    let answer = send(&world, "GET", "/v2/x/manifests/1", &lines).await;
    assert_eq!((answer.status(), answer.body().as_ref()), (StatusCode::SERVICE_UNAVAILABLE, &b"slow"[..]));
    assert_eq!(answer.headers()["retry-after"], "7");
    let seen = seen.lock().unwrap().concat();
    assert!(seen.contains("accept: a/b\r\naccept: c/d\r\n") && seen.contains("authorization: Bearer t"), "{seen}");
    assert!(!seen.contains("x-dragonfly-registry"), "{seen}");
    let answer = get(world.proxy, registry, "/v2/x/manifests/1", "").await;
    assert!(answer.starts_with("HTTP/1.1 429"), "as a proxy it passes unchanged: {answer}");
}

#[tokio::test]
async fn a_ping_that_names_no_registry_is_told_of_our_tokens() {
    let world = world().await;
    let answer = send(&world, "GET", "/v2/", &[]).await;
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(answer.headers()["docker-distribution-api-version"], "registry/2.0");
    let challenge = format!("Bearer realm=\"http://{}/token\",service=\"damselfly\"", world.proxy);
    assert_eq!(answer.headers()["www-authenticate"], challenge);

    let answer = send(&world, "GET", "/token?service=damselfly", &[("authorization", "Basic dTpw")]).await;
    assert_eq!(answer.status(), StatusCode::OK, "a password for no registry is not judged");
    let body: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
    let token = format!("Bearer {}", body["token"].as_str().unwrap());
    let answer = send(&world, "GET", "/v2/", &[("authorization", &token)]).await;
    assert_eq!(answer.status(), StatusCode::OK);
}

/// A proxy that is not patient.
async fn impatient() -> World {
    World::with(Config { first_byte: Duration::from_millis(200), ..Config::default() }).await
}

#[tokio::test]
async fn a_manifest_that_stops_in_the_middle_is_passed_on_as_it_comes() {
    let (origin, seen) = origin(Answer::Stalled("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")).await;
    let mut client = TcpStream::connect(impatient().await.proxy).await.unwrap();
    let ask = format!("GET http://{origin}/v2/a/b/manifests/1 HTTP/1.1\r\nhost: {origin}\r\n\r\n");
    client.write_all(ask.as_bytes()).await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(seen.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_registry_that_is_silent_to_a_question_is_asked_for_the_content() {
    // The digest of `hello`.
    const BLOB: &str = "/v2/a/blobs/sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                if read_head(&mut stream).await.starts_with("HEAD ") {
                    std::future::pending::<()>().await;
                }
                let answer = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello";
                stream.write_all(answer.as_bytes()).await.unwrap();
            });
        }
    });
    let world = impatient().await;
    for who in ["a", "b"] {
        let answer = get(world.proxy, origin, BLOB, &format!("authorization: Bearer {who}\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nhello"), "{answer}");
    }
}
