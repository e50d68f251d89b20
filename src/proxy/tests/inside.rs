//! Tunnels that are looked into.

use http::uri::Scheme;
use hyper::client::conn::{http1, http2};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::source::Source;
use super::*;
use crate::net::{self, Upstream};

const LENGTH: usize = 3 << 20;

/// A world that intercepts 127.0.0.1, whose origins speak plain HTTP behind our back.
async fn world(config: Config) -> World {
    let plain = Upstream { host: "127.0.0.1".into(), scheme: Some(Scheme::HTTP), ..Upstream::default() };
    let client = net::ClientConfig { upstreams: vec![plain], ..net::ClientConfig::default() };
    World::built(Config { min_size: 1 << 20, ..config }, client, &["127.0.0.1"]).await
}

/// Opens a tunnel to the origin.
async fn tunnel(world: &World, origin: SocketAddr, headers: &str) -> TcpStream {
    let mut client = TcpStream::connect(world.proxy).await.unwrap();
    client.write_all(format!("CONNECT {origin} HTTP/1.1\r\nHost: {origin}\r\n{headers}\r\n").as_bytes()).await.unwrap();
    let head = read_head(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    client
}

/// Speaks TLS in a tunnel, trusting the proxy's CA and nothing else.
async fn tls(world: &World, stream: TcpStream, alpn: &str) -> TlsStream<TcpStream> {
    let name = ServerName::try_from("127.0.0.1").unwrap();
    tokio::time::timeout(HANG, connector(world, alpn).connect(name, stream)).await.unwrap().unwrap()
}

/// Without a protocol where there is no name of one.
fn connector(world: &World, alpn: &str) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(world.ca_pem.as_bytes()).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.split_terminator(' ').map(|name| name.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

#[tokio::test]
async fn downloads_inside_tls_become_tasks_in_both_versions_of_http() {
    let (origin, source) = Source::new(LENGTH, &[("etag", "\"1\"")]).start().await;
    let world = world(Config::default()).await;
    let path = "/a.bin";
    let inner = tls(&world, tunnel(&world, origin, "").await, "http/1.1").await;
    let (mut send, connection) = http1::handshake(TokioIo::new(inner)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(path).header("host", origin.to_string()).body(Empty::<Bytes>::new()).unwrap();
    let first = send.send_request(request).await.unwrap();
    let task = first.headers()["x-dragonfly-task-id"].clone();
    assert_eq!(first.into_body().collect().await.unwrap().to_bytes(), source.content);

    let inner = tls(&world, tunnel(&world, origin, "").await, "h2").await;
    let (mut send, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(inner)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(format!("https://{origin}{path}")).header("range", "bytes=5-9");
    let second = send.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    assert_eq!((second.status(), &second.headers()["x-dragonfly-task-id"]), (StatusCode::PARTIAL_CONTENT, &task));
    assert_eq!(second.into_body().collect().await.unwrap().to_bytes(), source.content.slice(5..10));
}

#[tokio::test]
async fn a_websocket_works_inside_tls_and_the_password_was_named_outside() {
    let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let (origin, _) = origin(Answer::Echo(answer)).await;
    let world = world(Config { basic_auth: Some(BasicAuth::new("ann", "pw")), ..Config::default() }).await;
    let outer = tunnel(&world, origin, "Proxy-Authorization: Basic YW5uOnB3\r\n").await;
    let mut inner = tls(&world, outer, "http/1.1").await;
    let head = format!("GET /ws HTTP/1.1\r\nHost: {origin}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    inner.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(tokio::time::timeout(HANG, inner.read_u8()).await.unwrap().unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    inner.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    tokio::time::timeout(HANG, inner.read_exact(&mut echo)).await.unwrap().unwrap();
    assert_eq!(&echo, b"ping");
}

#[tokio::test]
async fn a_cut_answer_inside_tls_has_no_clean_end() {
    let (origin, _) = origin(Answer::Cut("HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\nhello")).await;
    let world = world(Config::default()).await;
    let mut inner = tls(&world, tunnel(&world, origin, "").await, "http/1.1").await;
    inner.write_all(format!("GET / HTTP/1.0\r\nHost: {origin}\r\n\r\n").as_bytes()).await.unwrap();
    let mut got = Vec::new();
    let end = tokio::time::timeout(HANG, inner.read_to_end(&mut got)).await.unwrap();
    assert!(end.is_err(), "{}", String::from_utf8_lossy(&got));
}

#[tokio::test]
async fn plain_http_and_anything_else_go_through_an_intercepted_tunnel_too() {
    let world = world(Config { detect_timeout: Duration::from_millis(100), ..Config::default() }).await;
    let (whole, seen) = origin(Answer::Whole("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")).await;
    let mut client = tunnel(&world, whole, "").await;
    client
        .write_all(format!("GET /p HTTP/1.1\r\nHost: {whole}\r\nConnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    tokio::time::timeout(HANG, client.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("Via: 1.1 test"), "{answer}");
    assert!(seen.lock().unwrap().concat().starts_with("GET /p HTTP/1.1\r\n"));

    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for first in ["", "SSH-2.0-x\r\n"] {
        let mut client = tunnel(&world, server.local_addr().unwrap(), "").await;
        client.write_all(first.as_bytes()).await.unwrap();
        let (mut stream, _) = tokio::time::timeout(HANG, server.accept()).await.unwrap().unwrap();
        stream.write_all(b"SSH-2.0-y\r\n").await.unwrap();
        let mut hello = [0; 11];
        tokio::time::timeout(HANG, client.read_exact(&mut hello)).await.unwrap().unwrap();
        let mut got = vec![0; first.len()];
        stream.read_exact(&mut got).await.unwrap();
        assert_eq!((&hello, got), (b"SSH-2.0-y\r\n", first.as_bytes().to_vec()));
    }
}

#[tokio::test]
async fn tls_that_is_not_ours_to_answer_reaches_the_server_as_it_is() {
    let world = world(Config::default()).await;
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for (name, alpn) in [
        ("127.0.0.1", "acme-tls/1"),
        ("127.0.0.1", "http/1.0"),
        ("other.example", ""),
        ("other.example", "h2 http/1.1"),
    ] {
        let stream = tunnel(&world, server.local_addr().unwrap(), "").await;
        let connector = connector(&world, alpn);
        let name = ServerName::try_from(name).unwrap();
        let client = tokio::spawn(async move { connector.connect(name, stream).await.map(drop) });
        let (mut stream, _) = tokio::time::timeout(HANG, server.accept()).await.unwrap().unwrap();
        let (hello, _) = crate::mitm::ClientHello::read(&mut stream, Vec::new()).await.unwrap();
        let hello = hello.unwrap();
        let protocols: Vec<_> = hello.protocols.iter().map(|name| String::from_utf8_lossy(name)).collect();
        assert_eq!(protocols.join(" "), alpn);
        // The server's own answer goes back: an alert that it knows no such name.
        stream.write_all(b"\x15\x03\x03\x00\x02\x02\x70").await.unwrap();
        let error = tokio::time::timeout(HANG, client).await.unwrap().unwrap().unwrap_err();
        assert!(error.to_string().contains("UnrecognisedName"), "{error}");
    }
}

#[tokio::test]
async fn other_protocols_inside_tls_get_a_pipe() {
    let world = world(Config { detect_timeout: Duration::from_millis(100), ..Config::default() }).await;
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for first in ["", "\0\x01binary", "EHLO a\r\n"] {
        let mut client = tls(&world, tunnel(&world, server.local_addr().unwrap(), "").await, "").await;
        client.write_all(first.as_bytes()).await.unwrap();
        let (mut stream, _) = tokio::time::timeout(HANG, server.accept()).await.unwrap().unwrap();
        stream.write_all(b"220 hello\r\n").await.unwrap();
        let mut hello = [0; 11];
        tokio::time::timeout(HANG, client.read_exact(&mut hello)).await.unwrap().unwrap();
        let mut got = vec![0; first.len()];
        tokio::time::timeout(HANG, stream.read_exact(&mut got)).await.unwrap().unwrap();
        assert_eq!((&hello, got), (b"220 hello\r\n", first.as_bytes().to_vec()));
    }
}

#[tokio::test]
async fn a_client_that_agreed_on_http2_and_says_nothing_is_given_up() {
    let patience = Duration::from_millis(200);
    let world = world(Config { first_byte_from_client: patience, head_timeout: patience, ..Config::default() }).await;
    let (origin, _) = origin(Answer::Whole("HTTP/1.1 200 OK\r\n\r\n")).await;
    for said in [&b""[..], b"PRI * HTTP/2.0\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"nonsense"] {
        let mut client = tls(&world, tunnel(&world, origin, "").await, "h2").await;
        client.write_all(said).await.unwrap();
        let end = tokio::time::timeout(HANG, client.read_to_end(&mut Vec::new())).await;
        assert!(end.is_ok(), "{said:?}: it is still connected");
    }
}
