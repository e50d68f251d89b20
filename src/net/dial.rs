//! Opening a TCP connection: resolve, check every address, connect to one that was checked.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tower_service::Service;

use super::egress::{self, Egress, EgressProxy};
use super::error::{NetError, innermost};
use super::policy::{DestinationPolicy, bare};
use super::resolve::Resolver;

/// How long a connection may be silent before the kernel asks whether the other side still lives.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// No more addresses of a name are tried.
const MAX_ADDRESSES: usize = 16;

/// Our own listening addresses: a connection to one of them would come back to us for ever. Filled once the daemon
/// listens; clones share the same set.
#[derive(Clone, Debug, Default)]
pub struct OwnAddresses(Arc<RwLock<Vec<SocketAddr>>>);

impl OwnAddresses {
    /// Replaces the set. An unspecified address stands for every address of this machine.
    pub fn set(&self, addresses: Vec<SocketAddr>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    /// Whether `remote` is one of ours; `local` is our side of a connection to it, once there is one: the kernel takes
    /// the address itself when a machine connects to itself.
    fn has(&self, remote: SocketAddr, local: Option<IpAddr>) -> bool {
        let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        let here = remote.ip().is_loopback() || local.is_some_and(|ip| ip.to_canonical() == remote.ip());
        let own = self.0.read().unwrap_or_else(PoisonError::into_inner);
        own.iter().any(|own| {
            own.port() == remote.port() && (own.ip().to_canonical() == remote.ip() || own.ip().is_unspecified() && here)
        })
    }
}

/// Opens connections to where clients want to.
#[derive(Clone, Debug)]
pub(super) struct Dialer {
    pub(super) policy: Arc<DestinationPolicy>,
    pub(super) own: OwnAddresses,
    pub(super) timeout: Duration,
    pub(super) resolver: Resolver,
    pub(super) egress: Arc<Egress>,
}

/// A connection on which plain HTTP is spoken.
pub(super) struct Plain {
    pub(super) stream: TcpStream,
    /// The proxy at its other end, if it is not the origin.
    pub(super) proxy: Option<EgressProxy>,
}

impl Dialer {
    /// A connection to `host:port`, be it through the proxy that leads out.
    pub(super) async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, NetError> {
        let Some((proxy, mut stream)) = self.dial_egress(host, port, false).await? else {
            return self.dial_directly(host, port).await;
        };
        match timeout(self.timeout, egress::open_tunnel(&mut stream, &proxy, host, port)).await {
            Ok(result) => result.map(|()| stream),
            Err(_) => Err(NetError::ConnectTimeout { to: format!("{host}:{port}") }),
        }
    }

    /// A connection for plain HTTP to `host:port`; to the proxy that leads out, where there is one.
    pub(super) async fn dial_plain(&self, host: &str, port: u16) -> Result<Plain, NetError> {
        match self.dial_egress(host, port, true).await? {
            Some((proxy, stream)) => Ok(Plain { stream, proxy: Some(proxy) }),
            None => Ok(Plain { stream: self.dial_directly(host, port).await?, proxy: None }),
        }
    }

    /// A connection to the proxy that leads to `host:port`, if one does.
    async fn dial_egress(
        &self,
        host: &str,
        port: u16,
        plain: bool,
    ) -> Result<Option<(EgressProxy, TcpStream)>, NetError> {
        let Some(proxy) = self.egress.find(host, port, plain) else { return Ok(None) };
        let to = format!("{host}:{port}");
        self.policy.check_name(bare(host), port).map_err(|why| NetError::Denied { to, why })?;
        let at = format!("{}:{}", proxy.host, proxy.port);
        let trusting = Self { policy: Arc::default(), ..self.clone() };
        match trusting.dial_directly(&proxy.host, proxy.port).await {
            Ok(stream) => Ok(Some((proxy.clone(), stream))),
            // A daemon whose own environment names itself.
            Err(NetError::Denied { .. }) => Ok(None),
            Err(error) => Err(NetError::Egress { proxy: at, to: format!("{host}:{port}"), why: error.to_string() }),
        }
    }

    async fn dial_directly(&self, host: &str, port: u16) -> Result<TcpStream, NetError> {
        let to = format!("{host}:{port}");
        let deadline = Instant::now() + self.timeout;
        let addresses = match timeout_at(deadline, self.resolve(bare(host), port, &to)).await {
            Ok(addresses) => self.check(bare(host), addresses?, &to)?,
            Err(_) => return Err(NetError::ResolveTimeout { to }),
        };
        match timeout_at(deadline, self.connect(addresses, port, &to)).await {
            Ok(result) => result,
            Err(_) => Err(NetError::ConnectTimeout { to }),
        }
    }

    async fn resolve(&self, host: &str, port: u16, to: &str) -> Result<Vec<SocketAddr>, NetError> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        match self.resolver.resolve(host).await {
            Ok(found) => Ok(found.iter().map(|ip| SocketAddr::new(*ip, port)).collect()),
            Err(why) => Err(NetError::Resolve { to: to.into(), why: why.to_string() }),
        }
    }

    async fn connect(&self, addresses: Vec<SocketAddr>, port: u16, to: &str) -> Result<TcpStream, NetError> {
        let mut connector = HttpConnector::new_with_resolver(Checked(addresses));
        connector.set_nodelay(true);
        connector.set_keepalive(Some(KEEPALIVE));
        connector.set_connect_timeout(Some(self.timeout));
        // The connector looks at the port only: `Checked` answers for any name.
        let uri = format!("http://checked:{port}").parse::<Uri>().map_err(|e| connect_error(to, &e))?;
        let stream = connector.call(uri).await.map_err(|error| connect_error(to, &error))?.into_inner();
        if let (Ok(remote), Ok(local)) = (stream.peer_addr(), stream.local_addr())
            && self.own.has(remote, Some(local.ip()))
        {
            return Err(loops(to));
        }
        Ok(stream)
    }

    /// The addresses that may be connected to; an error if there are none.
    fn check(&self, host: &str, mut addresses: Vec<SocketAddr>, to: &str) -> Result<Vec<SocketAddr>, NetError> {
        let mut refused = NetError::Resolve { to: to.into(), why: "it has no address".into() };
        addresses.retain(|address| {
            let verdict = match self.policy.check(host, *address) {
                Err(why) => Err(NetError::Denied { to: to.into(), why }),
                Ok(()) if self.own.has(*address, None) => Err(loops(to)),
                Ok(()) => Ok(()),
            };
            verdict.map_err(|error| refused = error).is_ok()
        });
        addresses.truncate(MAX_ADDRESSES);
        if addresses.is_empty() { Err(refused) } else { Ok(addresses) }
    }
}

fn loops(to: &str) -> NetError {
    NetError::Denied { to: to.into(), why: "it is this proxy itself".into() }
}

fn connect_error(to: &str, error: &(dyn std::error::Error + 'static)) -> NetError {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::TimedOut) {
            return NetError::ConnectTimeout { to: to.into() };
        }
        cause = error.source();
    }
    NetError::Connect { to: to.into(), why: innermost(error) }
}

/// A resolver that knows one answer: the addresses that were checked.
#[derive(Clone)]
struct Checked(Vec<SocketAddr>);

impl Service<Name> for Checked {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Name) -> Self::Future {
        ready(Ok(self.0.clone().into_iter()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn dialer() -> Dialer {
        Dialer {
            policy: Arc::default(),
            own: OwnAddresses::default(),
            timeout: Duration::from_secs(10),
            resolver: Resolver::default(),
            egress: Arc::default(),
        }
    }

    #[tokio::test]
    async fn a_literal_and_a_name_are_connected_to() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
            dialer().dial(host, port).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_denied_address_is_not_connected_to() {
        for host in ["169.254.169.254", "[fe80::1]", "0.0.0.0", "[::ffff:169.254.169.254]"] {
            let error = dialer().dial(host, 80).await.unwrap_err();
            assert!(matches!(error, NetError::Denied { .. }), "{host} {error:?}");
        }
    }

    #[tokio::test]
    async fn a_name_that_resolves_to_a_denied_address_is_denied() {
        let mut dialer = dialer();
        let deny = ["127.0.0.0/8", "::1"].map(|text| text.parse().unwrap()).into();
        dialer.policy = Arc::new(DestinationPolicy::new(Vec::new(), deny));
        let error = dialer.dial("localhost", 80).await.unwrap_err();
        assert!(matches!(error, NetError::Denied { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn our_own_addresses_are_refused_before_and_after_connecting() {
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let dialer = dialer();
        dialer.dial("127.0.0.1", port).await.unwrap();
        dialer.own.set(vec![listener.local_addr().unwrap()]);
        let error = dialer.dial("127.0.0.1", port).await.unwrap_err();
        assert!(matches!(error, NetError::Denied { .. }), "{error:?}");
        let outer = "192.0.2.7:80".parse().unwrap();
        dialer.own.set(vec!["0.0.0.0:80".parse().unwrap()]);
        assert!(!dialer.own.has(outer, Some("192.0.2.8".parse().unwrap())));
        assert!(dialer.own.has(outer, Some("192.0.2.7".parse().unwrap())));
    }

    #[tokio::test]
    async fn a_closed_port_and_an_unknown_name_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = dialer().dial("127.0.0.1", port).await.unwrap_err();
        assert!(matches!(error, NetError::Connect { .. }) && !error.is_timeout(), "{error:?}");
        let error = dialer().dial("no-such-host.invalid", 80).await.unwrap_err();
        assert!(matches!(error, NetError::Resolve { .. } | NetError::ResolveTimeout { .. }), "{error:?}");
    }
}
