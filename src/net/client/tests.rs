//! Against origins on this machine, plain and with TLS of a CA that is made here.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::net::empty_body;

/// Says how it was asked: protocol, `Host`, length of the body; at `/upgrade` it echoes what comes after a 101.
async fn describe(mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().path() == "/upgrade" {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            let mut word = [0; 5];
            io.read_exact(&mut word).await.unwrap();
            io.write_all(&word).await.unwrap();
        });
        let answer = Response::builder().status(101).header("connection", "upgrade").header("upgrade", "echo");
        return Ok(answer.body(Full::default()).unwrap());
    }
    let host = request.headers().get(HOST).map_or("-", |host| host.to_str().unwrap()).to_owned();
    let head = format!("{:?} {host}", request.version());
    let sent = request.into_body().collect().await.unwrap().to_bytes().len();
    Ok(Response::new(Full::new(Bytes::from(format!("{head} {sent}")))))
}

async fn origin(tls: Option<TlsAcceptor>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                let service = service_fn(describe);
                let _ = match tls {
                    None => server.serve_connection_with_upgrades(TokioIo::new(stream), service).await,
                    Some(tls) => match tls.accept(stream).await {
                        Ok(stream) => server.serve_connection_with_upgrades(TokioIo::new(stream), service).await,
                        Err(_) => return,
                    },
                };
            });
        }
    });
    address
}

/// A certificate for 127.0.0.1 that signs itself: in PEM, and as a server's settings.
fn identity(client_ca: Option<&str>) -> (String, String, TlsAcceptor) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let builder = ServerConfig::builder_with_provider(tls::provider()).with_safe_default_protocol_versions().unwrap();
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            use rustls_pki_types::pem::PemObject as _;
            let mut roots = RootCertStore::empty();
            roots.add(rustls_pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
            let verifier =
                rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), tls::provider());
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let mut config = builder.with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    (made.cert.pem(), made.signing_key.serialize_pem(), TlsAcceptor::from(Arc::new(config)))
}

fn get(url: String) -> Request<Body> {
    Request::get(url).body(empty_body()).unwrap()
}

async fn text(response: Response<ResponseBody>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

fn client(upstreams: Vec<Upstream>) -> HttpClient {
    HttpClient::new(ClientConfig { upstreams, ..ClientConfig::default() }).unwrap()
}

#[tokio::test]
async fn a_private_ca_is_trusted_for_its_upstream_only() {
    let (pem, _, acceptor) = identity(None);
    let address = origin(Some(acceptor)).await;
    let url = || format!("https://{address}/");
    let error = client(Vec::new()).send(get(url())).await.unwrap_err();
    assert!(matches!(error, NetError::Tls { .. }), "{error:?}");

    let trusting = |host: String| Upstream { host, ca_pem: Some(pem.clone().into()), ..Upstream::default() };
    let error = client(vec![trusting("127.0.0.2".into())]).send(get(url())).await.unwrap_err();
    assert!(matches!(error, NetError::Tls { .. }), "{error:?}");

    let client = client(vec![trusting(address.to_string())]);
    assert_eq!(text(client.send(get(url())).await.unwrap()).await, "HTTP/2.0 - 0");
    // A Host of its own is possible in HTTP/1.1 only.
    let mut named = get(url());
    named.headers_mut().insert(HOST, "other.example".parse().unwrap());
    assert_eq!(text(client.send(named).await.unwrap()).await, "HTTP/1.1 other.example 0");
}

#[tokio::test]
async fn an_upstream_that_asks_gets_our_certificate() {
    let (ours, key, _) = identity(None);
    let (pem, _, acceptor) = identity(Some(&ours));
    let address = origin(Some(acceptor)).await;
    let mut upstream = Upstream { host: "127.0.0.1".into(), ca_pem: Some(pem.into()), ..Upstream::default() };
    assert!(client(vec![upstream.clone()]).send(get(format!("https://{address}/"))).await.is_err());
    upstream.cert_pem = Some(ours.into());
    assert!(HttpClient::new(ClientConfig { upstreams: vec![upstream.clone()], ..ClientConfig::default() }).is_err());
    upstream.key_pem = Some(key.into());
    let response = client(vec![upstream]).send(get(format!("https://{address}/"))).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_plain_upstream_is_spoken_to_in_plain_http() {
    let address = origin(None).await;
    let upstream = Upstream { host: address.to_string(), scheme: Some(Scheme::HTTP), ..Upstream::default() };
    let response = client(vec![upstream]).send(get(format!("https://{address}/v2/"))).await.unwrap();
    assert_eq!(text(response).await, format!("HTTP/1.1 {address} 0"));
    let error = client(Vec::new()).send(get(format!("https://{address}/v2/"))).await.unwrap_err();
    assert!(matches!(error, NetError::Tls { .. }), "{error:?}");
}

#[tokio::test]
async fn an_upgrade_is_a_pipe() {
    for tls in [false, true] {
        let (pem, _, acceptor) = identity(None);
        let address = origin(tls.then_some(acceptor)).await;
        let upstream = Upstream { host: "127.0.0.1".into(), ca_pem: Some(pem.into()), ..Upstream::default() };
        let mut request = get(format!("{}://{address}/upgrade", if tls { "https" } else { "http" }));
        request.headers_mut().insert("connection", "upgrade".parse().unwrap());
        request.headers_mut().insert("upgrade", "echo".parse().unwrap());
        let mut response = client(vec![upstream]).send_upgrade(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        let mut io = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
        io.write_all(b"hello").await.unwrap();
        let mut word = [0; 5];
        io.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"hello");
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_upload_is_no_silence() {
    let address = origin(None).await;
    let steps = futures_util::stream::unfold(0, |step| async move {
        tokio::time::sleep(Duration::from_secs(40)).await;
        (step < 5).then(|| (Ok(Frame::data(Bytes::from_static(b"0123456789"))), step + 1))
    });
    let body = StreamBody::new(steps).boxed_unsync();
    let request = Request::builder().method(Method::PUT).uri(format!("http://{address}/")).body(body).unwrap();
    let response = client(Vec::new()).send(request).await.unwrap();
    assert!(text(response).await.ends_with(" 50"));
}

#[tokio::test]
async fn a_kept_connection_that_died_is_not_the_clients_trouble() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    });
    let client = client(Vec::new());
    for _ in 0..20 {
        assert_eq!(text(client.send(get(format!("http://{address}/"))).await.unwrap()).await, "ok");
    }
}

#[tokio::test]
async fn what_is_no_http_destination_is_told_so() {
    for url in ["/relative", "ftp://a.example/", "http://user:secret@a.example/"] {
        let error = client(Vec::new()).send(get(url.into())).await.unwrap_err();
        assert!(matches!(error, NetError::Target { .. }) && !error.to_string().contains("secret"), "{url} {error:?}");
    }
}

#[test]
fn the_authority_is_written_as_the_host_writes_it() {
    for (uri, host, becomes) in [
        ("https://a.example:443/x", Some("a.example"), Some("https://a.example/x")),
        ("https://a.example/x", Some("A.example:443"), Some("https://A.example:443/x")),
        ("http://a.example:81/x", Some("a.example:81"), Some("http://a.example:81/x")),
        ("http://a.example/x", None, Some("http://a.example/x")),
        ("http://a.example:81/x", Some("a.example"), None),
        ("https://a.example/x", Some("a.example:80"), None),
        ("https://a.example/x", Some("b.example"), None),
        ("https://a.example/x", Some("a b"), None),
    ] {
        let mut request = Request::get(uri);
        if let Some(host) = host {
            request = request.header(HOST, host);
        }
        let mut parts = request.body(()).unwrap().into_parts().0;
        let agreed = agree(&mut parts).then(|| parts.uri.to_string());
        assert_eq!(agreed.as_deref(), becomes, "{uri} {host:?}");
    }
}

/// Reads one head off a connection; `None` at its end.
async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).await.ok()?;
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

/// An origin that answers on each connection as `script` says for its number and the number of the request on it; an
/// empty answer ends the connection. Tells which connection each request came on.
async fn scripted(
    script: fn(usize, usize) -> &'static str,
) -> (SocketAddr, Arc<std::sync::Mutex<Vec<(usize, String)>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = seen.clone();
    tokio::spawn(async move {
        for connection in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let log = log.clone();
            tokio::spawn(async move {
                for request in 0.. {
                    let Some(head) = read_head(&mut stream).await else { return };
                    log.lock().unwrap().push((connection, head));
                    match script(connection, request) {
                        "" => return,
                        answer => stream.write_all(answer.as_bytes()).await.unwrap(),
                    }
                }
            });
        }
    });
    (address, seen)
}

fn ask(method: Method, address: SocketAddr, body: &'static str) -> Request<Body> {
    let body = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync();
    Request::builder().method(method).uri(format!("http://{address}/")).body(body).unwrap()
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn a_kept_connection_that_ends_behind_the_request_costs_nothing() {
    // Every connection takes a second request and ends without a word.
    let (address, seen) = scripted(|_, request| if request == 0 { OK } else { "" }).await;
    let client = client(Vec::new());
    for _ in 0..5 {
        assert_eq!(text(client.send(get(format!("http://{address}/"))).await.unwrap()).await, "ok");
    }
    assert!(seen.lock().unwrap().len() > 5, "connections were tried again");
}

#[tokio::test]
async fn what_may_have_been_done_is_not_sent_again() {
    let (address, seen) = scripted(|_, request| if request == 0 { OK } else { "" }).await;
    let client = client(Vec::new());
    for (method, body) in [(Method::POST, "x"), (Method::POST, ""), (Method::PUT, "x"), (Method::PATCH, "")] {
        assert_eq!(text(client.send(get(format!("http://{address}/"))).await.unwrap()).await, "ok");
        let response = client.send(ask(method, address, body)).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        drop(response);
    }
    let seen = seen.lock().unwrap();
    let posts: Vec<usize> = seen.iter().filter(|(_, head)| !head.starts_with("GET")).map(|(on, _)| *on).collect();
    assert_eq!(posts.len(), 4, "each was sent once");
    for on in posts {
        assert_eq!(seen.iter().find(|(own, _)| *own == on).map(|(_, head)| head.starts_with("GET")), Some(false));
    }
}

#[tokio::test]
async fn a_fresh_connection_that_ends_is_an_error() {
    let (address, seen) = scripted(|_, _| "").await;
    client(Vec::new()).send(get(format!("http://{address}/"))).await.unwrap_err();
    assert_eq!(seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn bytes_behind_an_answer_are_nobodys_answer() {
    let evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    ] {
        for late in [0, 10] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(async move {
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(async move {
                        let Some(head) = read_head(&mut stream).await else { return };
                        if head.contains("x-bad") {
                            let now = if late == 0 { answer } else { answer.strip_suffix(evil).unwrap() };
                            stream.write_all(now.as_bytes()).await.unwrap();
                            tokio::time::sleep(Duration::from_millis(late)).await;
                            stream.write_all(&answer.as_bytes()[now.len()..]).await.unwrap();
                        } else {
                            stream.write_all(OK.as_bytes()).await.unwrap();
                        }
                        while read_head(&mut stream).await.is_some() {
                            stream.write_all(OK.as_bytes()).await.unwrap();
                        }
                    });
                }
            });
            let client = client(Vec::new());
            for _ in 0..20 {
                let method = if answer.starts_with("HTTP/1.1 200 OK\r\nContent-Length: 4") { "HEAD" } else { "GET" };
                let bad = Request::builder().method(method).uri(format!("http://{address}/")).header("x-bad", "1");
                let bad = client.send(bad.body(empty_body()).unwrap()).await.unwrap();
                let has_body = !bad.body().is_end_stream();
                let _ = bad.into_body().collect().await;
                if late > 0 && has_body {
                    // Too late to be told from an answer, were the next request on its way already.
                    tokio::time::sleep(Duration::from_millis(2 * late)).await;
                }
                assert_eq!(text(client.send(get(format!("http://{address}/"))).await.unwrap()).await, "ok");
            }
        }
    }
}

#[tokio::test]
async fn a_chunked_answer_has_no_length() {
    let (address, _) = scripted(
        |_, _| "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n\r\n",
    )
    .await;
    let response = client(Vec::new()).send(get(format!("http://{address}/"))).await.unwrap();
    assert!(!response.headers().contains_key(CONTENT_LENGTH));
    assert_eq!(text(response).await, "0123456789");
}

#[tokio::test]
async fn lengths_that_agree_are_one() {
    for lines in ["Content-Length: 2, 2", "Content-Length: 2\r\nContent-Length: 2"] {
        let answer: &'static str = format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\nok").leak();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_head(&mut stream).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let response = client(Vec::new()).send(get(format!("http://{address}/"))).await.unwrap();
        assert_eq!(response.headers().get_all(CONTENT_LENGTH).iter().collect::<Vec<_>>(), ["2"]);
        assert_eq!(text(response).await, "ok");
    }
}

#[tokio::test]
async fn an_authenticated_connection_is_its_clients() {
    let (address, seen) = scripted(|_, _| OK).await;
    let client = client(Vec::new());
    let mine = ClientConnection::default();
    let send = |own: Option<&ClientConnection>, authorization: Option<&str>| {
        let mut request = get(format!("http://{address}/"));
        if let Some(value) = authorization {
            request.headers_mut().insert("authorization", value.parse().unwrap());
        }
        if let Some(own) = own {
            request.extensions_mut().insert(own.clone());
        }
        let client = client.clone();
        async move { text(client.send(request).await.unwrap()).await }
    };
    for (own, authorization) in [
        (None, None),
        (Some(&mine), Some("NTLM TlRMTVNTUAAB")),
        (None, None),
        (Some(&ClientConnection::default()), None),
        (Some(&mine), None),
        (None, Some("Negotiate YII")),
        (None, None),
    ] {
        send(own, authorization).await;
        // The connection goes back in a task of its own.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(mine.is_authenticated());
    let on: Vec<usize> = seen.lock().unwrap().iter().map(|(on, _)| *on).collect();
    assert_eq!(on[1], on[4], "it goes on where it was authenticated");
    let others = [on[0], on[2], on[3], on[6]];
    assert!(!others[1..].contains(&on[1]) && on[6] != on[5], "nobody else does: {on:?}");
}

#[tokio::test]
async fn what_an_http2_origin_has_not_processed_is_sent_again_elsewhere() {
    let (pem, _, acceptor) = identity(None);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = seen.clone();
    tokio::spawn(async move {
        for number in 0.. {
            let stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
            let log = log.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                let mut first = true;
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    log.lock().unwrap().push((number, request.method().clone()));
                    // Every connection takes one request and refuses what comes after it.
                    if std::mem::take(&mut first) {
                        respond.send_response(Response::new(()), true).unwrap();
                    } else {
                        respond.send_reset(h2::Reason::REFUSED_STREAM);
                    }
                }
            });
        }
    });
    let client = client(vec![Upstream { host: "127.0.0.1".into(), ca_pem: Some(pem.into()), ..Upstream::default() }]);
    for method in [Method::GET, Method::POST, Method::GET, Method::POST] {
        let body = Full::new(Bytes::from_static(b"body")).map_err(|never| match never {}).boxed_unsync();
        let request = Request::builder().method(method).uri(format!("https://{address}/")).body(body).unwrap();
        assert_eq!(client.send(request).await.unwrap().status(), StatusCode::OK);
    }
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 7, "three of them were refused once: {seen:?}");
}
