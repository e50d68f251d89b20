//! Connections, and which part of the registry answers a request.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

use super::answer::{Answer, counted, error, set};
use super::state::{Kind, Seen, State};
use super::{access, content};

/// A request with its body.
pub(super) struct Asked {
    pub(super) kind: Kind,
    pub(super) head: http::request::Parts,
    pub(super) body: Bytes,
}

impl Asked {
    /// The value of a header, where there is one.
    pub(super) fn line(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The value of a parameter of the query.
    pub(super) fn parameter(&self, name: &str) -> Option<String> {
        let query = self.head.uri.query().unwrap_or_default();
        url::form_urlencoded::parse(query.as_bytes()).find(|(own, _)| own == name).map(|(_, value)| value.into_owned())
    }
}

/// Answers on a port until it is aborted.
pub(super) async fn accept(listener: TcpListener, tls: Option<tokio_rustls::TlsAcceptor>, state: Arc<State>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, state) = (tls.clone(), Arc::clone(&state));
        connections.spawn(async move {
            let Some(tls) = tls else {
                return converse(stream, false, state).await;
            };
            match tls.accept(stream).await {
                Ok(stream) => {
                    let has_certificate = stream.get_ref().1.peer_certificates().is_some();
                    converse(stream, has_certificate, state).await;
                }
                Err(_) => _ = state.broken_handshakes.fetch_add(1, Ordering::SeqCst),
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn converse<S>(stream: S, has_certificate: bool, state: Arc<State>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| answer(request, has_certificate, Arc::clone(&state)));
    // A connection that ends in an error has simply ended.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(
    request: Request<Incoming>,
    has_certificate: bool,
    state: Arc<State>,
) -> io::Result<Response<UnsyncBoxBody<Bytes, Infallible>>> {
    let (head, body) = request.into_parts();
    let kind = kind(&head.method, head.uri.path());
    let seen = Seen {
        kind,
        method: head.method.to_string(),
        target: head.uri.to_string(),
        headers: head.headers.clone(),
        status: Arc::default(),
        sent: Arc::default(),
    };
    state.seen.lock().expect("no panic with the lock").push(seen.clone());
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let asked = Asked { kind, head, body };
    let is_token = matches!(kind, Kind::TokenGet | Kind::TokenPost);
    let knobs = state.knobs().clone();
    if knobs.down && !is_token {
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    let mut answer = if state.client_certificate && !has_certificate {
        error(StatusCode::FORBIDDEN, "DENIED", "no required certificate was sent")
    } else if is_token {
        let at_once = state.at_token.fetch_add(1, Ordering::SeqCst) + 1;
        state.most_at_token.fetch_max(at_once, Ordering::SeqCst);
        let answer = access::token_endpoint(&asked, &state, &knobs).await;
        state.at_token.fetch_sub(1, Ordering::SeqCst);
        answer?
    } else if let Some(status) = knobs.fails {
        error(StatusCode::from_u16(status).expect("a status"), "UNAVAILABLE", "out of order")
    } else {
        if let (Kind::ManifestGet | Kind::ManifestHead, Some(gate)) = (kind, &knobs.manifest_gate) {
            gate.pass(0).await;
        }
        content::answer(&asked, &state, &knobs)
    };
    for (name, value) in &knobs.headers {
        let name = http::HeaderName::try_from(name).expect("a valid name");
        answer.headers_mut().append(name, value.parse().expect("a valid value"));
    }
    seen.status.store(answer.status().as_u16(), Ordering::SeqCst);
    let is_blob = matches!(kind, Kind::BlobGet | Kind::StoreGet) && answer.status().is_success();
    let gate = knobs.blob_gate.filter(|_| is_blob);
    Ok(send(answer, asked.head.method == Method::HEAD, gate, &seen))
}

/// The answer with its length, and without its body where only the head was asked for.
fn send(
    mut answer: Answer,
    bare: bool,
    gate: Option<super::super::Gate>,
    seen: &Seen,
) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    let length = answer.body().len().to_string();
    set(&mut answer, "content-length", &length);
    answer.map(|body| counted(if bare { Bytes::new() } else { body }, gate, Arc::clone(&seen.sent)))
}

fn kind(method: &Method, path: &str) -> Kind {
    let is_get = *method == Method::GET;
    let of = |get, head| match *method {
        Method::GET => get,
        Method::HEAD => head,
        _ => Kind::Other,
    };
    match path {
        "/token" if is_get => Kind::TokenGet,
        "/token" => Kind::TokenPost,
        "/v2" | "/v2/" => Kind::Ping,
        _ if path.starts_with("/store/") => of(Kind::StoreGet, Kind::StoreHead),
        _ if path.contains("/blobs/uploads/") => Kind::Upload,
        _ if path.contains("/blobs/") => of(Kind::BlobGet, Kind::BlobHead),
        _ if path.contains("/manifests/") && *method == Method::PUT => Kind::ManifestPut,
        _ if path.contains("/manifests/") => of(Kind::ManifestGet, Kind::ManifestHead),
        _ if path.ends_with("/tags/list") => Kind::Tags,
        _ => Kind::Other,
    }
}
