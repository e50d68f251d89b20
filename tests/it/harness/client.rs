//! A client that shows exactly how a transfer went and how it ended.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{HeaderMap, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::{block_on, spawn, tls};

trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// How a body ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// As the protocol says that a body ends.
    Whole,
    /// The transfer broke; the client can tell.
    Broken(String),
}

/// A whole answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) ending: Ending,
    /// The certificate that the server showed, in DER.
    pub(crate) leaf: Option<Vec<u8>>,
}

impl Answer {
    /// The first line of a header; empty where there is none.
    pub(crate) fn line(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Panics unless this is a clean 200 with exactly this body.
    #[track_caller]
    pub(crate) fn assert_is(&self, body: &[u8]) {
        assert_eq!(self.status, 200, "{self:.0?}", self = Brief(self));
        assert_eq!(self.ending, Ending::Whole, "after {} of {} bytes", self.body.len(), body.len());
        self.assert_body(body);
    }

    /// Panics unless the body is exactly this one, without printing megabytes.
    #[track_caller]
    pub(crate) fn assert_body(&self, body: &[u8]) {
        assert_eq!(self.body.len(), body.len(), "the body's length");
        let differs = self.body.iter().zip(body).position(|(a, b)| a != b);
        assert_eq!(differs, None, "the first byte that differs");
    }
}

/// An answer without its bulk, for messages.
struct Brief<'a>(&'a Answer);

impl std::fmt::Debug for Brief<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = String::from_utf8_lossy(&self.0.body[..self.0.body.len().min(300)]);
        write!(f, "{} {:?} {text}", self.0.status, self.0.headers)
    }
}

/// A request to be made.
#[derive(Clone)]
pub(crate) struct Ask {
    method: String,
    url: String,
    proxy: Option<SocketAddr>,
    from: Option<IpAddr>,
    headers: Vec<(String, String)>,
    body: Bytes,
    trusted: Vec<u8>,
    identity: Option<(String, String)>,
}

impl Ask {
    pub(crate) fn get(url: &str) -> Self {
        Self::new("GET", url)
    }

    pub(crate) fn new(method: &str, url: &str) -> Self {
        Self {
            method: method.into(),
            url: url.into(),
            proxy: None,
            from: None,
            headers: Vec::new(),
            body: Bytes::new(),
            trusted: Vec::new(),
            identity: None,
        }
    }
    /// Goes through a proxy; with CONNECT when the URL is https.
    pub(crate) fn via(mut self, proxy: SocketAddr) -> Self {
        self.proxy = Some(proxy);
        self
    }

    /// Connects from this address of this machine, as if it were another host.
    pub(crate) fn from(mut self, address: IpAddr) -> Self {
        self.from = Some(address);
        self
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn body(mut self, body: &Bytes) -> Self {
        self.body = body.clone();
        self
    }

    /// Trusts only this authority for https.
    pub(crate) fn trust(mut self, pem: &str) -> Self {
        self.trusted = pem.as_bytes().to_vec();
        self
    }

    /// Shows this certificate, with its key, to a server that asks for one.
    pub(crate) fn identity(mut self, certificate: &str, key: &str) -> Self {
        self.identity = Some((certificate.into(), key.into()));
        self
    }

    /// Makes the request and reads the answer to its end.
    pub(crate) fn send(self) -> Answer {
        block_on(self.send_async())
    }

    pub(crate) async fn send_async(self) -> Answer {
        let mut open = self.open_async().await.expect("an answer");
        let mut body = BytesMut::new();
        let ending = open.read_more(&mut body, usize::MAX).await;
        open.answer(body.freeze(), ending.unwrap_or(Ending::Whole))
    }

    /// Makes the request and leaves the body to be read.
    pub(crate) fn open(self) -> Open {
        block_on(self.open_async()).expect("an answer")
    }

    /// Makes the request and waits at most so long for the head of an answer; tells its status.
    pub(crate) fn status_within(self, time: Duration) -> Option<u16> {
        let open = block_on(async { tokio::time::timeout(time, self.open_async()).await });
        open.ok()?.ok().map(|open| open.status())
    }

    /// Makes the request, which must be answered with 101, and gives back the echo of `message`.
    pub(crate) fn upgrade(self, message: &[u8]) -> Vec<u8> {
        block_on(async {
            let open = self.open_async().await.expect("an answer");
            assert_eq!(open.status(), 101, "{:?}", open.response.headers());
            let mut stream = TokioIo::new(hyper::upgrade::on(open.response).await.expect("an upgraded connection"));
            stream.write_all(message).await.expect("written");
            let mut back = vec![0; message.len()];
            stream.read_exact(&mut back).await.expect("an echo");
            back
        })
    }

    async fn open_async(self) -> hyper::Result<Open> {
        let uri: Uri = self.url.parse().expect("a URL");
        let tls = uri.scheme_str() == Some("https");
        let authority = uri.authority().expect("an absolute URL").to_string();
        let target: SocketAddr = match self.proxy {
            Some(proxy) => proxy,
            None => tokio::net::lookup_host(&authority).await.ok().and_then(|mut all| all.next()).expect("an address"),
        };
        let socket = if target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.expect("a socket");
        if let Some(address) = self.from {
            socket.bind(SocketAddr::new(address, 0)).expect("an address of this machine");
        }
        let stream = socket.connect(target).await.expect("a connection");
        stream.set_nodelay(true).expect("a live socket");
        if !tls {
            return self.talk(Box::new(stream), self.proxy.is_some(), &uri, None).await;
        }
        let stream: Box<dyn Wire> = match self.proxy {
            Some(_) => match connect(stream, &authority, &self.headers).await {
                Ok(stream) => stream,
                Err(refused) => return Ok(Open { response: refused, leaf: None }),
            },
            None => Box::new(stream),
        };
        let name = ServerName::try_from(uri.host().expect("a host").to_string()).expect("a server's name");
        let connector = tokio_rustls::TlsConnector::from(tls::client_config(&self.trusted, self.identity.as_ref()));
        let stream = connector.connect(name, stream).await.expect("a TLS session");
        let leaf = stream.get_ref().1.peer_certificates().and_then(|all| all.first()).map(|leaf| leaf.to_vec());
        self.talk(Box::new(stream), false, &uri, leaf).await
    }

    /// One request on a connection of its own.
    async fn talk(
        &self,
        stream: Box<dyn Wire>,
        absolute: bool,
        uri: &Uri,
        leaf: Option<Vec<u8>>,
    ) -> hyper::Result<Open> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("a connection");
        spawn(connection.with_upgrades());
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let target = if absolute { self.url.as_str() } else { path };
        let mut request = Request::builder().method(self.method.as_str()).uri(target);
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request = request.header("host", uri.authority().expect("an absolute URL").as_str());
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(self.body.clone())).expect("a valid request");
        let response = sender.send_request(request).await?;
        Ok(Open { response, leaf })
    }
}

/// Asks a proxy for a tunnel; an answer other than 200 is given back.
async fn connect(
    stream: TcpStream,
    authority: &str,
    headers: &[(String, String)],
) -> Result<Box<dyn Wire>, Response<Incoming>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("a connection");
    spawn(connection.with_upgrades());
    let mut request = Request::builder().method("CONNECT").uri(authority).header("host", authority);
    for (name, value) in headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("proxy-authorization")) {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<Bytes>::new()).expect("a valid request");
    let response = sender.send_request(request).await.expect("an answer to CONNECT");
    if response.status() != 200 {
        return Err(response);
    }
    let upgraded = hyper::upgrade::on(response).await.expect("a tunnel");
    Ok(Box::new(TokioIo::new(upgraded)))
}

/// An answer whose body is under way.
pub(crate) struct Open {
    response: Response<Incoming>,
    leaf: Option<Vec<u8>>,
}

impl Open {
    pub(crate) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// Reads at least `bytes` more of the body; panics when it ends before.
    pub(crate) fn read(&mut self, bytes: usize) -> Bytes {
        let mut read = BytesMut::new();
        let ending = block_on(self.read_more(&mut read, bytes));
        assert_eq!(ending, None, "ended after {} bytes", read.len());
        read.freeze()
    }

    /// Reads the body to its end; what was read before is not in the answer.
    pub(crate) fn rest(mut self) -> Answer {
        let mut body = BytesMut::new();
        let ending = block_on(self.read_more(&mut body, usize::MAX));
        self.answer(body.freeze(), ending.unwrap_or(Ending::Whole))
    }

    /// Whether not one more byte comes within this time.
    pub(crate) fn is_silent_for(&mut self, time: Duration) -> bool {
        block_on(async { tokio::time::timeout(time, self.response.body_mut().frame()).await.is_err() })
    }

    fn answer(self, body: Bytes, ending: Ending) -> Answer {
        let (head, _) = self.response.into_parts();
        Answer { status: head.status.as_u16(), headers: head.headers, body, ending, leaf: self.leaf }
    }

    /// Reads until there are `wanted` bytes or the body ends.
    async fn read_more(&mut self, read: &mut BytesMut, wanted: usize) -> Option<Ending> {
        while read.len() < wanted {
            match self.response.body_mut().frame().await {
                None => return Some(Ending::Whole),
                Some(Err(error)) => return Some(Ending::Broken(error.to_string())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        read.extend_from_slice(&data);
                    }
                }
            }
        }
        None
    }
}
