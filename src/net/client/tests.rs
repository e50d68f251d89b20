//! Against origins on this machine, plain and with TLS of a CA that is made here.

use std::convert::Infallible;
use std::net::SocketAddr;

use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
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

async fn text(response: Response<Incoming>) -> String {
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
