//! One request, from its head to its answer: one `match` on its route.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::sync::Semaphore;

use damselfly_runtime::Watch;

use super::access::Record;
use super::authorize::Authorizer;
use super::budget::Budget;
use super::bypass::Bypass;
use super::config::Config;
use super::fault::Fault;
use super::first_request::FirstRequests;
use super::forward::{hops_left, last_hop};
use super::framing::is_host;
use super::headers::{priority, upgrade};
use super::limits;
use super::listener::Session;
use super::manifest::Manifests;
use super::metrics::Metrics;
use super::page;
use super::respond::follow;
use super::route::{Label, Route, Routes, Target, classify};
use super::token::SendsHere;
use crate::limit::{Class, Limiter};
use crate::mitm::Interceptor;
use crate::net::{Body, ClientConnection, HttpClient, empty_body};
use crate::p2p::Tasks;
use crate::registry::{API_VERSION, API_VERSION_HEADER, Challenge, OwnToken, Tokens};

/// What all connections share.
pub(super) struct Inner {
    pub(super) routes: Routes,
    pub(super) http: HttpClient,
    pub(super) tasks: Tasks,
    pub(super) authorizer: Authorizer,
    pub(super) first_requests: FirstRequests,
    pub(super) tokens: Tokens,
    pub(super) manifests: Manifests,
    /// What registries ask of their callers, by the URL of their ping and whether the caller is on another host.
    pub(super) challenges: moka::future::Cache<(String, bool), Option<Challenge>>,
    pub(super) interceptor: Interceptor,
    pub(super) drain: Watch,
    pub(super) limiter: Limiter,
    pub(super) metrics: Arc<Metrics>,
    pub(super) slots: Arc<Semaphore>,
    pub(super) budget: Arc<Budget>,
}

impl Inner {
    pub(super) const fn config(&self) -> &Config {
        &self.routes.config
    }

    /// The answer to a request, whatever happens.
    pub(super) async fn handle(self: Arc<Self>, session: Arc<Session>, request: Request<Incoming>) -> Response<Body> {
        let mut record = Some(Record::begin(&self.metrics, request.method(), request.uri()));
        let control = (request.version() < Version::HTTP_2).then(|| session.control.clone());
        let priority = priority(request.headers());
        let response = self.answer(&session, request, &mut record).await.unwrap_or_else(Fault::into_response);
        match record {
            Some(record) => {
                // What a task brings was limited on its way into the store.
                let limit = (!record.is_of_task()).then(|| (self.limiter.flow(priority), Class::PassThrough));
                follow(response, record, (control, &session.control), limit, self.config().idle)
            }
            // A tunnel's or an upgraded connection's record goes on with it.
            None => {
                if let Some(control) = control {
                    control.ended();
                }
                response
            }
        }
    }

    async fn answer(
        self: &Arc<Self>,
        session: &Arc<Session>,
        mut request: Request<Incoming>,
        record: &mut Option<Record>,
    ) -> Result<Response<Body>, Fault> {
        if let Some(fault) = session.control.read_notes(&mut request).or_else(|| misnamed(&request)) {
            return Err(fault);
        }
        self.admit(session, request.headers())?;
        let upgraded = hyper::upgrade::on(&mut request);
        let (mut parts, body) = request.into_parts();
        let own_token = OwnToken::find(&parts.headers);
        let has_own_token = own_token.is_some();
        if let Some(token) = own_token {
            let route = classify(&parts, &self.routes, &session.ingress);
            // A client that tries the token that it was given.
            if matches!(route, Route::Ping | Route::Challenge) {
                return Ok(pong(record));
            }
            parts.headers.remove(header::AUTHORIZATION);
            if let Some(target) = route.target() {
                let registry = target.uri.authority().map(ToString::to_string).unwrap_or_default();
                token.unwrap_into(&mut parts.headers, &registry);
            }
        }
        let route = match classify(&parts, &self.routes, &session.ingress) {
            // The token holds nothing, for a registry that wants nothing.
            Route::Challenge if has_own_token => Route::Ping,
            // HTTP/2 needs no header to announce a body. A GET with one is the origin's to understand.
            Route::Inspect(target, _)
            | Route::Probe(target, _)
            | Route::Blob(target, ..)
            | Route::Manifest(target, _)
                if !body.is_end_stream() =>
            {
                Route::Forward(target, Bypass::Body)
            }
            Route::Inspect(target, _)
            | Route::Probe(target, _)
            | Route::Blob(target, ..)
            | Route::Manifest(target, _)
                if is_authenticated(&parts) =>
            {
                Route::Forward(target, Bypass::Credentials)
            }
            route => route,
        };
        let sends_here = route.target().and_then(|target| SendsHere::find(&parts, target, &session.ingress));
        let answer = self.take(route, parts, body, upgraded, session, record).await;
        match (answer, sends_here) {
            (Ok(answer), Some(sends_here)) => Ok(self.send_here(answer, &sends_here).await),
            (answer, _) => answer,
        }
    }

    /// Takes a request the way that was found for it.
    async fn take(
        self: &Arc<Self>,
        route: Route,
        parts: http::request::Parts,
        body: Incoming,
        upgraded: OnUpgrade,
        session: &Arc<Session>,
        record: &mut Option<Record>,
    ) -> Result<Response<Body>, Fault> {
        if let Some(target) = route.target() {
            note(record, target);
            if self.tokens.is_question(&parts.method, &target.uri, &parts.headers) {
                return Box::pin(self.token_question(&parts, body, target, record)).await;
            }
        }
        match route {
            Route::Reject(fault) => Err(fault),
            Route::Ping => Ok(pong(record)),
            Route::Challenge => self.challenge(&parts),
            Route::Token(registry) => self.give_token(&parts, body, registry.as_deref()).await,
            Route::Page => {
                if let Some(record) = record {
                    record.route(Label::Page);
                }
                Ok(match limits::is_meant(&parts.uri) {
                    true => limits::answer(&parts, &self.limiter, session.ingress.socket),
                    false => page::answer(&parts, &self.interceptor),
                })
            }
            Route::Tunnel(endpoint) => {
                if let Some(record) = record {
                    record.bypasses(Bypass::Tunnel);
                }
                self.tunnel(endpoint, upgraded, session, record).await
            }
            Route::Intercept(endpoint) => Ok(self.intercept(endpoint, upgraded, session, record)),
            Route::Forward(target, why) => {
                if let Some(record) = record {
                    record.bypasses(why);
                }
                self.forward(parts, body, target, upgraded, record).await
            }
            Route::Inspect(target, options) => self.inspect(parts, target, options, record).await,
            // What follows is large; small answers need not carry it.
            Route::Probe(target, options) => Box::pin(self.probe(parts, target, options, record)).await,
            Route::Blob(target, options, digest) => Box::pin(self.blob(parts, target, options, digest, record)).await,
            Route::Manifest(target, digest) => Box::pin(self.manifest(parts, target, digest, record)).await,
        }
    }

    /// Asks for the proxy's own password, where it has one; inside a tunnel it was named already.
    fn admit(&self, session: &Session, headers: &HeaderMap) -> Result<(), Fault> {
        match &self.config().basic_auth {
            Some(auth) if !session.admitted && !auth.admits(headers) => Err(Fault::unauthorised()),
            _ => Ok(()),
        }
    }

    async fn forward(
        self: &Arc<Self>,
        parts: http::request::Parts,
        body: Incoming,
        target: Target,
        upgraded: OnUpgrade,
        record: &mut Option<Record>,
    ) -> Result<Response<Body>, Fault> {
        if hops_left(&parts) == Some(0) {
            return Ok(last_hop(&parts));
        }
        let without_body = matches!(parts.method, Method::GET | Method::HEAD) && body.is_end_stream();
        if target.mirror.is_some() && without_body && upgrade(&parts.headers).is_none() {
            return Ok(self.pass(self.fetch_for_anybody(&parts, &target).await?, &target));
        }
        let answer = self.exchange(&parts, body, &target).await?;
        self.learn(&target, &answer);
        Ok(self.switched(upgraded, answer, &target, record))
    }
}

/// Whether an origin may know the client by its connection, and answers what is for it alone.
fn is_authenticated(parts: &http::request::Parts) -> bool {
    parts.extensions.get::<ClientConnection>().is_some_and(ClientConnection::is_authenticated)
}

/// Refuses a request whose host cannot be one (the gate has looked at those of HTTP/1).
fn misnamed(request: &Request<Incoming>) -> Option<Fault> {
    let in_target = request.uri().authority().map(|authority| authority.as_str().as_bytes());
    let mut named = request.headers().get_all(header::HOST).iter();
    let good = (request.version() < Version::HTTP_2 || in_target.is_none_or(is_host))
        && named.next().is_none_or(|host| is_host(host.as_bytes()))
        && named.next().is_none();
    (!good).then(|| Fault::malformed("The request's Host is no host."))
}

/// Yes, there is a registry here.
fn pong(record: &mut Option<Record>) -> Response<Body> {
    if let Some(record) = record {
        record.route(Label::Mirror);
    }
    let mut response = Response::new(empty_body());
    let version = (HeaderName::from_static(API_VERSION_HEADER), HeaderValue::from_static(API_VERSION));
    response.headers_mut().extend([version]);
    response
}

/// Notes where a request goes; a task's record is told so later.
fn note(record: &mut Option<Record>, target: &Target) {
    if let Some(record) = record {
        record.aim(&target.uri);
        record.route(if target.mirror.is_some() { Label::Mirror } else { Label::Forward });
    }
}
