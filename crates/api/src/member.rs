//! Mutual TLS between the members of a fleet, on the ports of hosts and schedulers (docs/adr/0015).
//!
//! A member has a certificate that the fleet's authority signed, and takes whoever has one for a member. The name in the
//! certificate says which; addresses prove nothing.
//!
//! One port serves both: the first two bytes of a TLS handshake begin neither HTTP/2 nor a request for a piece. Who comes without a certificate is let
//! through to the first call, which [`DemandMember`] refuses in words where members are demanded.
//!
//! **The files are looked at again** before a handshake, at most once a second. Files that cannot be used, as while they
//! are being replaced, change nothing.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt as _};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CipherSuite, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tonic::service::Interceptor;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// How long a handshake, or the first byte of a connection, may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The most connections that are greeted at a time; more wait in the kernel's queue.
const MAX_HANDSHAKES: usize = 256;
/// How often it is looked whether the files have changed.
const LOOK: Duration = Duration::from_secs(1);
/// The longest file that is read.
const MAX_FILE: u64 = 1 << 20;
/// What those are told who are no members where only members are heard.
pub const STRANGER: &str =
    "only members of this fleet are heard here, over TLS: set security.caCert, security.cert and security.key";
/// The type of a TLS record that begins a handshake (RFC 8446, 5.1).
const TLS_HANDSHAKE: [u8; 2] = [22, 3];
/// How soon the second byte of a connection is looked for, where only the first came.
const SECOND_BYTE: Duration = Duration::from_millis(5);

/// Why there is no certificate to show: the file at fault, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", .path.display())]
pub struct MemberError {
    /// Which file.
    pub path: PathBuf,
    /// What is wrong.
    pub why: String,
}

impl MemberError {
    fn new(path: &Path, why: impl ToString) -> Self {
        Self { path: path.to_owned(), why: why.to_string() }
    }
}

/// A member's certificate and key, and the fleet's authority. Clones are the same.
#[derive(Clone)]
pub struct Membership(Arc<Shared>);

struct Shared {
    ca_cert: PathBuf,
    cert: PathBuf,
    key: PathBuf,
    state: Mutex<State>,
}

struct State {
    stamps: Vec<Stamp>,
    looked: Instant,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// What tells that a file is another one than before: device, inode, length and time of change.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

fn stamp(path: &Path) -> Stamp {
    let found = std::fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.len(), found.ctime(), found.ctime_nsec()))
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership").field("cert", &self.0.cert).finish_non_exhaustive()
    }
}

impl PartialEq for Membership {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Membership {}

impl Membership {
    /// Reads the files: PEM all three, the key for its owner alone.
    ///
    /// # Errors
    /// The file at fault.
    pub fn load(ca_cert: PathBuf, cert: PathBuf, key: PathBuf) -> Result<Self, MemberError> {
        let stamps = [&ca_cert, &cert, &key].map(|path| stamp(path)).to_vec();
        let (server, client) = read(&ca_cert, &cert, &key)?;
        let state = Mutex::new(State { stamps, looked: Instant::now(), server, client });
        Ok(Self(Arc::new(Shared { ca_cert, cert, key, state })))
    }

    fn now(&self) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
        let Shared { ca_cert, cert, key, state } = &*self.0;
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= LOOK {
            state.looked = Instant::now();
            let stamps = [ca_cert, cert, key].map(|path| stamp(path)).to_vec();
            if stamps != state.stamps {
                match read(ca_cert, cert, key) {
                    Ok((server, client)) => {
                        (state.server, state.client) = (server, client);
                        tracing::info!(cert = %cert.display(), "this member's certificate was read again");
                    }
                    Err(error) => tracing::warn!(%error, "the certificate of before is used on"),
                }
                state.stamps = stamps;
            }
        }
        (Arc::clone(&state.server), Arc::clone(&state.client))
    }

    async fn accept(&self, stream: TcpStream) -> io::Result<MemberStream> {
        let (server, _) = self.now();
        let stream = timeout(HANDSHAKE, TlsAcceptor::from(server).accept(stream)).await??;
        Ok(MemberStream::Tls(Box::new(stream.into())))
    }

    /// Shows itself to the one at the other end of a connection, who has to be a member too.
    ///
    /// # Errors
    /// Where it is none, or speaks no TLS.
    pub async fn connect(&self, stream: TcpStream) -> io::Result<MemberStream> {
        let (_, client) = self.now();
        let connecting = TlsConnector::from(client).connect(any_name(), stream);
        Ok(MemberStream::Tls(Box::new(timeout(HANDSHAKE, connecting).await??.into())))
    }
}

/// A name that says nothing: members are known by what their certificates say.
fn any_name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::IpAddr::from([0, 0, 0, 0]).into())
}

fn read(ca_cert: &Path, cert: &Path, key: &Path) -> Result<(Arc<ServerConfig>, Arc<ClientConfig>), MemberError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(ca_cert)? {
        roots.add(authority).map_err(|error| MemberError::new(ca_cert, error))?;
    }
    let roots = Arc::new(roots);
    let chain = certificates(cert)?;
    if chain.first().and_then(name_of).is_none() {
        return Err(MemberError::new(cert, "it names no member: it needs a DNS name"));
    }
    let mode = std::fs::metadata(key).map_err(|error| MemberError::new(key, error))?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        let why = format!("it has mode {mode:04o}, so others can read or change it: chmod 600 it");
        return Err(MemberError::new(key, why));
    }
    let private = || {
        PrivateKeyDer::from_pem_slice(&file(key)?).map_err(|_| MemberError::new(key, "it holds no private key in PEM"))
    };
    let provider = Arc::new(provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|error| MemberError::new(ca_cert, error))?;
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| MemberError::new(cert, error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), private()?)
        .map_err(|error| MemberError::new(cert, error))?;
    let server_verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
        .build()
        .map_err(|error| MemberError::new(ca_cert, error))?;
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| MemberError::new(cert, error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyMember(server_verifier)))
        .with_client_auth_cert(chain, private()?)
        .map_err(|error| MemberError::new(cert, error))?;
    // A session that is resumed shows no certificate again, so an expired one would be good for ever.
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    client.resumption = Resumption::disabled();
    Ok((Arc::new(server), Arc::new(client)))
}

fn file(path: &Path) -> Result<Vec<u8>, MemberError> {
    let length = std::fs::metadata(path).map_err(|error| MemberError::new(path, error))?.len();
    if length > MAX_FILE {
        return Err(MemberError::new(path, "it is too large for a key or certificate"));
    }
    std::fs::read(path).map_err(|error| MemberError::new(path, error))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, MemberError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&file(path)?).collect();
    match read {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(MemberError::new(path, "it holds no certificate in PEM")),
    }
}

/// The usual algorithms, AES-128-GCM before all others: it is the cheapest where the processor has AES.
fn provider() -> CryptoProvider {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    let cheap = [CipherSuite::TLS13_AES_128_GCM_SHA256];
    provider.cipher_suites.sort_by_key(|suite| !cheap.contains(&suite.suite()));
    provider
}

/// The member's name: the first DNS name of its certificate.
fn name_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    })
}

/// Takes any member of the fleet, whatever its name.
#[derive(Debug)]
struct AnyMember(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyMember {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        stapled: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // All else is verified as usual: the authority, the dates, the purpose.
        let named = name_of(certificate).and_then(|name| ServerName::try_from(name).ok());
        let named = named.ok_or(rustls::CertificateError::ApplicationVerificationFailure)?;
        self.0.verify_server_cert(certificate, chain, &named, stapled, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// A connection, encrypted or not.
#[derive(Debug)]
pub enum MemberStream {
    /// In clear.
    Plain(TcpStream),
    /// With a member of the fleet, or, on the server's side, with one that showed no certificate.
    Tls(Box<TlsStream<TcpStream>>),
}

impl MemberStream {
    /// The socket.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    /// The name of the member at the other end, if it showed a certificate of the fleet.
    pub fn member(&self) -> Option<String> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.get_ref().1.peer_certificates().and_then(<[_]>::first).and_then(name_of),
        }
    }
}

macro_rules! either {
    ($self:ident, $stream:ident => $result:expr) => {
        match $self.get_mut() {
            Self::Plain($stream) => {
                let $stream = Pin::new($stream);
                $result
            }
            Self::Tls($stream) => {
                let $stream = Pin::new(&mut **$stream);
                $result
            }
        }
    };
}

impl AsyncRead for MemberStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for MemberStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_shutdown(cx))
    }
}

/// Who is at the other end of a connection; stands in the extensions of each of its calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Where the connection ends here.
    pub local: Option<SocketAddr>,
    /// The member's name, if it showed a certificate of the fleet.
    pub member: Option<Arc<str>>,
}

impl Connected for MemberStream {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        Caller { local: self.tcp().local_addr().ok(), member: self.member().map(Arc::from) }
    }
}

/// The connections that come to `listener`, members' and others'. One that fails is left out.
pub fn incoming(
    listener: TcpListener,
    membership: Option<Membership>,
) -> impl Stream<Item = io::Result<MemberStream>> + Send {
    let accepting = futures_util::stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        if accepted.is_err() {
            // For want of descriptors, as a rule.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Some((accepted, listener))
    });
    let greeted = accepting.map(move |accepted| {
        let membership = membership.clone();
        async move { greet(accepted?, membership.as_ref()).await }
    });
    greeted.buffer_unordered(MAX_HANDSHAKES).filter_map(async |greeted| {
        greeted.inspect_err(|error| tracing::debug!(%error, "a connection came to nothing")).ok().map(Ok)
    })
}

/// Looks how a connection begins, and accepts its TLS if it does with that.
///
/// # Errors
/// Where nothing comes in time, or no handshake comes about.
pub async fn greet(stream: TcpStream, membership: Option<&Membership>) -> io::Result<MemberStream> {
    // Nothing gains from small packets that wait.
    let _ = stream.set_nodelay(true);
    let Some(membership) = membership else { return Ok(MemberStream::Plain(stream)) };
    if timeout(HANDSHAKE, begins_with_tls(&stream)).await?? {
        membership.accept(stream).await
    } else {
        Ok(MemberStream::Plain(stream))
    }
}

/// Whether the first two bytes are those of a TLS handshake. One is not enough: a request for a piece may begin with any
/// byte, but no kind of request is a TLS version.
async fn begins_with_tls(stream: &TcpStream) -> io::Result<bool> {
    loop {
        let mut first = [0; 2];
        match stream.peek(&mut first).await? {
            1 if first[0] == TLS_HANDSHAKE[0] => tokio::time::sleep(SECOND_BYTE).await,
            _ => return Ok(first == TLS_HANDSHAKE),
        }
    }
}

/// The channel to one who is a member if there is a membership to show, made when it is first used.
pub fn channel(endpoint: &Endpoint, membership: Option<&Membership>) -> Channel {
    let Some(membership) = membership.cloned() else { return endpoint.connect_lazy() };
    endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: http::Uri| {
        let membership = membership.clone();
        async move {
            let (host, port) = (uri.host().unwrap_or_default(), uri.port_u16().unwrap_or_default());
            let stream = TcpStream::connect(format!("{host}:{port}")).await?;
            stream.set_nodelay(true)?;
            let connected = membership.connect(stream).await;
            connected.map(TokioIo::new).inspect_err(|error| {
                tracing::warn!(to = %uri, %error, "no mutual TLS with a member of the fleet");
            })
        }
    }))
}

/// Refuses calls of those that have shown no certificate of the fleet, where that is demanded.
#[derive(Clone, Copy, Debug, Default)]
pub struct DemandMember(pub bool);

impl Interceptor for DemandMember {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let is_member = request.extensions().get::<Caller>().is_some_and(|caller| caller.member.is_some());
        if self.0 && !is_member {
            return Err(Status::unauthenticated(STRANGER));
        }
        Ok(request)
    }
}

/// Whether this is the id of a host with this name: its address, a hyphen, and the name.
fn is_host_of(id: &str, name: &str) -> bool {
    let address = id.strip_suffix(name).and_then(|rest| rest.strip_suffix('-'));
    address.is_some_and(|address| address.parse::<IpAddr>().is_ok())
}

/// Refuses a member that speaks for another one's host. Hosts' ids end with their names, and a seed's with `-seed`.
///
/// # Errors
/// PERMISSION_DENIED, where the certificate says something else.
pub fn speaks_for(caller: Option<&Caller>, host: &str) -> Result<(), Status> {
    let Some(member) = caller.and_then(|caller| caller.member.as_deref()) else { return Ok(()) };
    let own = host.strip_suffix("-seed").unwrap_or(host);
    if [host, own].iter().any(|id| is_host_of(id, member)) {
        return Ok(());
    }
    Err(Status::permission_denied(format!("the certificate says {member}, which is not the host {host}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_speaks_for_its_own_host_alone() {
        let caller = |name: &str| Caller { local: None, member: Some(name.into()) };
        for (member, host, allowed) in [
            ("h1", "10.0.0.1-h1", true),
            ("h1", "10.0.0.1-h1-seed", true),
            ("h1", "10.0.0.1-h2", false),
            ("h1", "10.0.0.1-xh1", false),
            ("h1", "10.0.0.1-x-h1", false),
            ("h1", "fd00::1-h1", true),
            ("h1", "h1", false),
            ("a-seed", "10.0.0.1-a-seed", true),
        ] {
            assert_eq!(speaks_for(Some(&caller(member)), host).is_ok(), allowed, "{member} {host}");
        }
        assert!(speaks_for(None, "10.0.0.1-h1").is_ok() && speaks_for(Some(&Caller::default()), "x").is_ok());
    }

    #[test]
    fn who_has_shown_nothing_is_refused_where_members_are_demanded() {
        let call = |demands, caller: Option<Caller>| {
            let mut request = Request::new(());
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            DemandMember(demands).call(request).is_ok()
        };
        let member = Caller { local: None, member: Some("h1".into()) };
        assert!(call(true, Some(member)) && call(false, None) && call(false, Some(Caller::default())));
        assert!(!call(true, None) && !call(true, Some(Caller::default())));
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named() {
        let nowhere = |name: &str| Path::new("/nonexistent").join(name);
        let error = Membership::load(nowhere("ca.pem"), nowhere("a.pem"), nowhere("a.key")).unwrap_err();
        assert_eq!(error.path, nowhere("ca.pem"));
    }
}
