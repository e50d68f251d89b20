//! One request, from its head to its answer: one `match` on its route.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::sync::Semaphore;

use damselfly_runtime::Watch;

use super::access::Record;
use super::config::Config;
use super::fault::Fault;
use super::listener::Session;
use super::metrics::Metrics;
use super::respond::follow;
use super::route::{Label, Route, Routes, Target, classify};
use crate::mitm::Interceptor;
use crate::net::{Body, HttpClient, empty_body};
use crate::p2p::Tasks;
use crate::registry::{API_VERSION, API_VERSION_HEADER};

/// What all connections share.
pub(super) struct Inner {
    pub(super) routes: Routes,
    pub(super) http: HttpClient,
    pub(super) tasks: Tasks,
    pub(super) interceptor: Interceptor,
    pub(super) drain: Watch,
    pub(super) metrics: Metrics,
    pub(super) slots: Arc<Semaphore>,
}

impl Inner {
    pub(super) const fn config(&self) -> &Config {
        &self.routes.config
    }

    /// The answer to a request, whatever happens.
    pub(super) async fn handle(self: Arc<Self>, session: Arc<Session>, request: Request<Incoming>) -> Response<Body> {
        let mut record = Some(Record::begin(&self.metrics, request.method(), request.uri()));
        let bond = (request.version() < Version::HTTP_2).then(|| session.bond.clone());
        let response = self.answer(&session, request, &mut record).await.unwrap_or_else(Fault::into_response);
        match record {
            Some(record) => follow(response, record, bond, self.config().idle),
            // A tunnel's or an upgraded connection's record goes on with it.
            None => response,
        }
    }

    async fn answer(
        self: &Arc<Self>,
        session: &Arc<Session>,
        mut request: Request<Incoming>,
        record: &mut Option<Record>,
    ) -> Result<Response<Body>, Fault> {
        if let Some(fault) = session.bond.verdict(request.headers()) {
            return Err(fault);
        }
        self.admit(session, request.headers())?;
        let upgraded = hyper::upgrade::on(&mut request);
        let (parts, body) = request.into_parts();
        let route = match classify(&parts, &self.routes, &session.door) {
            // HTTP/2 needs no header to announce a body. A GET with one is the origin's to understand.
            Route::Inspect(target, _) | Route::Probe(target, _) | Route::Blob(target, ..) if !body.is_end_stream() => {
                Route::Forward(target)
            }
            route => route,
        };
        match route {
            Route::Reject(fault) => Err(fault),
            Route::Ping => Ok(pong(record)),
            Route::Tunnel(endpoint) => self.tunnel(endpoint, upgraded, session, record).await,
            Route::Intercept(endpoint) => Ok(self.intercept(endpoint, upgraded, session, record)),
            Route::Forward(target) => {
                note(record, &target);
                self.forward(parts, body, target, upgraded, record).await
            }
            Route::Inspect(target, options) => {
                note(record, &target);
                self.inspect(parts, target, options, record).await
            }
            Route::Probe(target, options) => {
                note(record, &target);
                self.probe(parts, target, options, record).await
            }
            Route::Blob(target, options, digest) => {
                note(record, &target);
                self.blob(parts, target, options, digest, record).await
            }
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
        let answer = self.exchange(&parts, body, &target).await?;
        Ok(self.switched(upgraded, answer, &target, record))
    }
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
        record.route(if target.mirror { Label::Mirror } else { Label::Forward });
    }
}
