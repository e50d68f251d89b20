//! Against an origin on this machine.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, HOST};
use http::{Response, StatusCode, Version};
use http_body_util::{Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;

use super::*;
use crate::net::{Body, ClientConfig, DestinationPolicy};

type Seen = Arc<Mutex<Vec<(String, HeaderMap)>>>;

/// An origin that answers by `answer` and remembers what it was asked.
async fn origin(answer: impl Fn(&Request<Incoming>) -> Response<Body> + Send + Sync + 'static) -> (SocketAddr, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Seen::default();
    let (answer, log) = (Arc::new(answer), Arc::clone(&seen));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                log.lock().unwrap().push((request.uri().to_string(), request.headers().clone()));
                let response = answer(&request);
                async move {
                    if request.uri().path() == "/silent" {
                        std::future::pending::<()>().await;
                    }
                    Ok::<_, Infallible>(response)
                }
            });
            tokio::spawn(async move {
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (address, seen)
}

fn full(text: &'static str) -> Body {
    Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed_unsync()
}

fn backend(config: ClientConfig) -> Backend {
    Backend::new(HttpClient::new(config).unwrap())
}

fn request(address: SocketAddr, path: &str) -> SourceRequest {
    SourceRequest::new(format!("http://{address}{path}").parse().unwrap(), HeaderMap::new())
}

async fn text(response: SourceResponse) -> String {
    String::from_utf8(response.body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn the_range_and_the_version_go_with_the_request() {
    let (address, seen) = origin(|_| Response::new(full("0123456789"))).await;
    let backend = backend(ClientConfig::default());
    let tagged = Validators { etag: Some("\"a\"".into()), last_modified: Some("then".into()) };
    let dated = Validators { etag: Some("W/\"a\"".into()), last_modified: Some("then".into()) };
    for (range, expect, sent, version) in [
        (None, Some(&tagged), None, None),
        (Some((3, Some(7))), None, Some("bytes=3-6"), None),
        (Some((3, None)), Some(&tagged), Some("bytes=3-"), Some("\"a\"")),
        (Some((0, Some(1))), Some(&dated), Some("bytes=0-0"), Some("then")),
    ] {
        let response = backend.get(&request(address, "/f"), range, expect).await.unwrap();
        // This origin ignores ranges, and the answer says so.
        assert_eq!(response.span(), Some(SourceSpan { start: 0, end: 10, total: 10 }));
        let (_, headers) = seen.lock().unwrap().pop().unwrap();
        assert_eq!(headers.get(RANGE).map(|value| value.to_str().unwrap()), sent);
        assert_eq!(headers.get(IF_RANGE).map(|value| value.to_str().unwrap()), version);
        assert!(!headers.contains_key(ACCEPT_ENCODING));
    }
}

#[tokio::test]
async fn another_span_than_asked_for_is_told() {
    let (address, _) = origin(|_| {
        Response::builder().status(206).header("content-range", "bytes 5-9/10").body(full("56789")).unwrap()
    })
    .await;
    let response = backend(ClientConfig::default()).get(&request(address, "/"), Some((3, None)), None).await.unwrap();
    assert_eq!(response.span(), Some(SourceSpan { start: 5, end: 10, total: 10 }));
}

#[tokio::test]
async fn a_body_without_length_has_no_span_but_its_bytes() {
    let (address, _) = origin(|_| {
        let frames = futures_util::stream::iter(["ab", "cd"].map(|t| Ok(hyper::body::Frame::data(Bytes::from(t)))));
        Response::new(StreamBody::new(frames).boxed_unsync())
    })
    .await;
    let response = backend(ClientConfig::default()).get(&request(address, "/"), None, None).await.unwrap();
    assert_eq!(response.span(), None);
    assert_eq!(text(response).await, "abcd");
}

#[tokio::test(start_paused = true)]
async fn a_silent_origin_is_a_timeout() {
    let (address, _) = origin(|_| Response::new(full(""))).await;
    let error =
        backend(ClientConfig::default()).get(&request(address, "/silent?token=secret"), None, None).await.unwrap_err();
    assert!(matches!(error, NetError::HeadTimeout { .. }) && error.is_timeout(), "{error:?}");
    assert!(!error.to_string().contains("secret"));
}

fn redirecting(request: &Request<Incoming>, to: &str) -> Response<Body> {
    match request.uri().path() {
        "/end" => Response::new(full("here")),
        _ => Response::builder().status(307).header("location", to).body(full("there")).unwrap(),
    }
}

#[tokio::test]
async fn a_redirect_is_followed_only_when_asked_for_and_without_credentials() {
    let (cdn, at_cdn) = origin(|request| redirecting(request, "/end")).await;
    let (registry, _) = origin(move |request| redirecting(request, &format!("http://{cdn}/hop?sig=1"))).await;
    let backend = backend(ClientConfig::default());
    let mut asked = request(registry, "/v2/a");
    asked.headers.insert(AUTHORIZATION, "Bearer secret".parse().unwrap());
    asked.headers.insert(HOST, "registry.example".parse().unwrap());

    let passed = backend.get(&asked, None, None).await.unwrap();
    assert_eq!((passed.status, text(passed).await.as_str()), (StatusCode::TEMPORARY_REDIRECT, "there"));

    let followed = backend.get(&asked.following_redirects(), Some((1, None)), None).await.unwrap();
    assert_eq!(text(followed).await, "here");
    let seen = at_cdn.lock().unwrap();
    assert_eq!(seen.iter().map(|(uri, _)| uri.as_str()).collect::<Vec<_>>(), ["/hop?sig=1", "/end"]);
    for (_, headers) in seen.iter() {
        assert!(!headers.contains_key(AUTHORIZATION));
        assert_eq!(headers[HOST].to_str().unwrap(), cdn.to_string());
        assert_eq!(headers[RANGE], "bytes=1-");
    }
}

#[tokio::test]
async fn redirects_end_and_each_hop_is_checked() {
    let (address, seen) = origin(|request| redirecting(request, "/again")).await;
    let endless = request(address, "/again").following_redirects();
    let response = backend(ClientConfig::default()).get(&endless, None, None).await.unwrap();
    assert_eq!((response.status, seen.lock().unwrap().len()), (StatusCode::TEMPORARY_REDIRECT, MAX_REDIRECTS + 1));

    let (address, _) = origin(|request| redirecting(request, "http://169.254.169.254/latest/meta-data")).await;
    let error = backend(ClientConfig { policy: DestinationPolicy::default(), ..ClientConfig::default() })
        .get(&request(address, "/").following_redirects(), None, None)
        .await
        .unwrap_err();
    assert!(matches!(error, NetError::Denied { .. }), "{error:?}");
}

#[test]
fn debug_hides_values_and_queries() {
    let mut request = SourceRequest::new(Uri::from_static("https://a.example/f?sig=secret"), HeaderMap::new());
    request.headers.insert(AUTHORIZATION, "Bearer secret".parse().unwrap());
    let shown = format!("{request:?}");
    assert!(shown.contains("authorization") && !shown.contains("secret"), "{shown}");
    let response = SourceResponse {
        status: StatusCode::OK,
        version: Version::HTTP_2,
        headers: request.headers,
        extensions: Default::default(),
        body: full(""),
        elsewhere: false,
    };
    assert!(!format!("{response:?}").contains("secret"));
}

#[tokio::test]
async fn other_hosts_do_not_reach_our_loopback_by_us() {
    let (address, seen) = origin(|_| Response::new(full("secret"))).await;
    for named in [address.to_string(), format!("localhost:{}", address.port())] {
        let asked = SourceRequest::new(format!("http://{named}/").parse().unwrap(), HeaderMap::new());
        let error = backend(ClientConfig::default()).get(&asked.clone().for_others(), None, None).await.unwrap_err();
        assert!(matches!(error, NetError::Denied { .. }), "{error:?}");
        assert!(seen.lock().unwrap().is_empty());
    }
    backend(ClientConfig::default()).get(&request(address, "/"), None, None).await.unwrap();
}
