//! Connections that the firewall has taken from where they were going and given to us (`REDIRECT` and `TPROXY`): their
//! clients know nothing of a proxy.
//!
//! Where a connection was going is asked of the kernel. Plain HTTP is served as if its `Host` had been the URL's; TLS of
//! a host that is intercepted is ended in the name that its hello says; everything else goes on to the address that it
//! was going to. A connection that was made to this port itself was taken from nowhere, and is closed.

use std::net::SocketAddr;
use std::sync::Arc;

use http::uri::PathAndQuery;
use http::{Method, Request, Uri, header};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};

use super::access::Record;
use super::detect::{Protocol, detect};
use super::gate::IoStream as _;
use super::handler::Inner;
use super::listener::{ConnectionPermit, keep_alive};
use super::route::{Endpoint, Ingress, Label};
use crate::mitm::ClientHello;
use crate::net::WholeServer;

impl Inner {
    /// Serves every connection that is redirected to `listener` until the drain closes.
    pub(super) async fn serve_transparent(self: Arc<Self>, listener: TcpListener) {
        let Ok(own) = listener.local_addr() else { return };
        let socket = SockRef::from(&listener);
        // TPROXY needs it, REDIRECT does not; it takes a capability.
        let allowed =
            if own.is_ipv4() { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) };
        if let Err(error) = allowed {
            tracing::info!(%error, "TPROXY is not possible (it needs CAP_NET_ADMIN); REDIRECT is");
        }
        let _door = self.drain.door();
        while let Some((stream, permit)) = self.next(&listener).await {
            match original_destination(&stream, own) {
                Some(to) => drop(tokio::spawn(self.clone().redirected(stream, to, permit))),
                None => tracing::debug!("a connection to the transparent port itself was closed"),
            }
        }
    }

    async fn redirected(self: Arc<Self>, mut stream: TcpStream, to: SocketAddr, permit: Arc<ConnectionPermit>) {
        keep_alive(&stream);
        match detect(&mut stream, Vec::new(), self.config().detect_timeout).await {
            (Protocol::Closed, _) => {}
            (protocol @ (Protocol::Http1 | Protocol::Http2), read) => {
                let ingress = Ingress { redirected: Some(to), ..Ingress::default() };
                self.serve(Box::new(stream), read, protocol, ingress, true, permit).await;
            }
            (Protocol::Tls, read) => self.redirected_tls(stream, read, to, permit).await,
            (Protocol::Opaque | Protocol::Silent, read) => self.pass_on(stream, read, to, &permit).await,
        }
    }

    async fn redirected_tls(
        self: Arc<Self>,
        mut stream: TcpStream,
        read: Vec<u8>,
        to: SocketAddr,
        permit: Arc<ConnectionPermit>,
    ) {
        let Ok((hello, read)) = ClientHello::read(&mut stream, read).await else { return };
        let name = hello.and_then(|hello| hello.server_name);
        let host = name.unwrap_or_else(|| to.ip().to_string());
        if !self.routes.policy.intercepts(&host, to.port()) {
            return self.pass_on(stream, read, to, &permit).await;
        }
        let record = self.record(&host, to.port(), Label::Intercept);
        self.end_tls(Box::new(stream), read, Endpoint { host, port: to.port() }, permit, record).await;
    }

    /// Carries a connection to where it was going.
    async fn pass_on(&self, stream: TcpStream, read: Vec<u8>, to: SocketAddr, permit: &ConnectionPermit) {
        let mut record = self.record(&to.ip().to_string(), to.port(), Label::Tunnel);
        match self.http_for(permit).dial(&to.ip().to_string(), to.port()).await {
            Ok(server) => self.carry(Box::new(stream), read, server, &mut record).await,
            Err(error) => {
                tracing::debug!(%error, "a redirected connection cannot go on");
                stream.abort();
            }
        }
    }

    fn record(&self, host: &str, port: u16, label: Label) -> Option<Record> {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let uri: Uri = format!("{host}:{port}").parse().ok()?;
        let mut record = Record::begin(&self.metrics, &Method::CONNECT, &uri);
        record.route(label);
        Some(record)
    }
}

/// Where a connection was going; `None` if it was made to the port `own` itself.
fn original_destination(stream: &TcpStream, own: SocketAddr) -> Option<SocketAddr> {
    let local = stream.local_addr().ok()?;
    let socket = SockRef::from(stream);
    // Only REDIRECT leaves it there; TPROXY gives the connection that very address.
    // A socket for both families has IPv4 addresses in the clothes of IPv6.
    let left = if local.ip().to_canonical().is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    let to = left.ok().and_then(|address| address.as_socket()).unwrap_or(local);
    let to = SocketAddr::new(to.ip().to_canonical(), to.port());
    (to.port() != own.port() || !(own.ip().is_unspecified() || own.ip() == to.ip())).then_some(to)
}

/// Writes a request as a client would have that knows of the proxy.
pub(super) fn make_absolute<B>(request: &mut Request<B>, to: SocketAddr) {
    if request.uri().authority().is_some() || request.method() == Method::CONNECT {
        return;
    }
    let named = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let mut authority = named.filter(|host| !host.is_empty()).map_or_else(|| to.to_string(), str::to_owned);
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty() && !port.contains(']'));
    if !has_port && to.port() != 80 {
        authority = format!("{}:{}", authority.trim_end_matches(':'), to.port());
    }
    let path = match request.uri().path_and_query() {
        Some(path) if path == "*" => {
            request.extensions_mut().insert(WholeServer);
            PathAndQuery::from_static("/")
        }
        path => path.cloned().unwrap_or_else(|| PathAndQuery::from_static("/")),
    };
    // What does not make a URL is refused as it is.
    if let Ok(uri) = Uri::builder().scheme("http").authority(authority).path_and_query(path).build() {
        *request.uri_mut() = uri;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_the_urls() {
        for (target, host, to, want) in [
            ("/x?y", Some("a.example"), "192.0.2.1:80", "http://a.example/x?y"),
            ("/x", Some("a.example"), "192.0.2.1:8080", "http://a.example:8080/x"),
            ("/x", Some("a.example:81"), "192.0.2.1:8080", "http://a.example:81/x"),
            ("/x", Some("[2001:db8::1]"), "[2001:db8::1]:81", "http://[2001:db8::1]:81/x"),
            ("/x", None, "192.0.2.1:80", "http://192.0.2.1:80/x"),
            ("/x", Some(""), "[2001:db8::1]:80", "http://[2001:db8::1]:80/x"),
            ("http://b.example/x", Some("a.example"), "192.0.2.1:80", "http://b.example/x"),
            ("*", Some("a.example"), "192.0.2.1:80", "http://a.example/"),
        ] {
            let mut request = Request::get(target);
            if let Some(host) = host {
                request = request.header("host", host);
            }
            let mut request = request.body(()).unwrap();
            make_absolute(&mut request, to.parse().unwrap());
            assert_eq!(request.uri().to_string(), want, "{target} {host:?}");
            assert_eq!(request.extensions().get::<WholeServer>().is_some(), target == "*");
        }
    }

    #[tokio::test]
    async fn what_is_made_to_the_port_itself_was_taken_from_nowhere() {
        for bind in ["127.0.0.1:0", "0.0.0.0:0"] {
            let listener = TcpListener::bind(bind).await.unwrap();
            let own = listener.local_addr().unwrap();
            let _client = TcpStream::connect(("127.0.0.1", own.port())).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            assert_eq!(original_destination(&stream, own), None);
            let other = SocketAddr::new(own.ip(), own.port() ^ 1);
            assert_eq!(original_destination(&stream, other), stream.local_addr().ok(), "as TPROXY has it");
        }
    }
}
