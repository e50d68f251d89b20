//! Where the proxy meets the tasks: what an origin's answer says about sharing, and a task's bytes as an answer.
//!
//! - `inspect`: the request is sent as it is; a large sharable answer becomes the task's source stream.
//! - `probe`: one byte is asked for first, with the client's own preconditions, so that a host which comes late costs
//!   the origin next to nothing.
//! - `blob`: the name is the digest. What its registry says of this caller is the answer that the download reads, or,
//!   where the bytes are here or come from neighbours, that of a question of its own (`authorize`).
//!
//! **Whatever is not shareable, and whatever fails on our side before the first byte, is forwarded as it came.**

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use damselfly_core::swarm::SourceWish;
use damselfly_core::{Audience, Digest, Identity, RangeWish};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version, header, request};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument as _;

use super::access::Record;
use super::authorize::{CONTENT_DIGEST, Denied, Held};
use super::bypass::Bypass;
use super::conditional::{PRECONDITIONS, wish, wish_of};
use super::config::PrivateContent;
use super::fault::Fault;
use super::forward::{Answer, outbound};
use super::handler::Inner;
use super::headers::{add_via, is_just_modified, kept, priority, strip_sums, varies_by_caller, vary};
use super::route::{DownloadOptions, Label, Target};
use super::rules::identity_url;
use super::token::is_remote;
use crate::backend::{SourceRequest, SourceResponse};
use crate::net::{Body, BoxError, empty_body};
use crate::p2p::{Admission, Broken, ContentStream, Known, OpenError, Opened, TaskSpec};
use crate::storage::StoredTask;

const TASK_ID: HeaderName = HeaderName::from_static("x-dragonfly-task-id");
const FINISHED: HeaderName = HeaderName::from_static("x-dragonfly-task-download-finished");

/// How often a registry's challenge for a blob is answered with a new token: one that was remembered may be too old.
const MAX_CHALLENGES: u32 = 2;

/// How often a URL is probed when its content changes under our hands.
const PROBES: u32 = 2;

/// One request on its way to a task.
struct TaskRequest<'a> {
    parts: &'a request::Parts,
    target: &'a Target,
    options: &'a DownloadOptions,
    /// When the first byte of the answer is due.
    deadline: Instant,
}

/// How an attempt to answer from a task ends, when it doesn't with an answer.
enum Fallback {
    /// The origin is to be asked directly.
    Direct(Bypass),
    /// The registry asks a caller without credentials for a token: its answer.
    Challenged(SourceResponse),
    /// The registry, asked whether a caller without credentials may have what is held, asks for a token.
    Denied(Box<HeaderMap>),
    /// The content changed: what is known of it is wrong.
    Changed,
    /// The client is told.
    Fault(Fault),
}

impl Fallback {
    /// Why the request is not answered from a task.
    const fn why(&self) -> Bypass {
        match self {
            Self::Direct(why) => *why,
            Self::Challenged(_) => Bypass::Status,
            Self::Denied(_) => Bypass::Credentials,
            Self::Changed | Self::Fault(_) => Bypass::TaskFailed,
        }
    }
}

/// Notes why a request is not answered from a task.
fn note(record: &mut Option<Record>, why: Bypass) {
    if let Some(record) = record {
        record.bypasses(why);
    }
}

impl Inner {
    fn request<'a>(
        &self,
        parts: &'a request::Parts,
        target: &'a Target,
        options: &'a DownloadOptions,
    ) -> TaskRequest<'a> {
        TaskRequest { parts, target, options, deadline: Instant::now() + self.config().first_byte }
    }

    /// Forwards a GET; an answer that is worth it becomes a task.
    pub(super) async fn inspect(
        &self,
        parts: request::Parts,
        target: Target,
        options: DownloadOptions,
        record: &mut Option<Record>,
    ) -> Result<Response<Body>, Fault> {
        let request = self.request(&parts, &target, &options);
        let answer = self.fetch_for_anybody(&parts, &target).await?;
        self.adopt(&request, source(answer), record).await
    }

    /// Asks for one byte, then for the task that the answer describes.
    pub(super) async fn probe(
        &self,
        parts: request::Parts,
        target: Target,
        options: DownloadOptions,
        record: &mut Option<Record>,
    ) -> Result<Response<Body>, Fault> {
        let request = self.request(&parts, &target, &options);
        let url = identity_url(&target.uri, options.filter());
        let first = match self.tasks.may_have(&url) {
            true => None,
            false => self.first_requests.enter(url, request.deadline).await,
        };
        if first.is_some() && wish(&parts.headers) == RangeWish::Whole {
            // A probe could only tell what the client's own request tells as well.
            return self.inspect(parts, target, options, record).await;
        }
        for _ in 0..PROBES {
            let mut headers = outbound(&parts, &target, &self.config().id);
            headers.insert(header::RANGE, HeaderValue::from_static("bytes=0-0"));
            headers.remove(header::IF_RANGE);
            let mut answer = source(self.fetch(&parts, headers, &target).await?);
            note(record, Bypass::Status);
            let status = answer.status;
            match status {
                StatusCode::PARTIAL_CONTENT => {}
                StatusCode::OK if answer.is_whole().await => return self.adopt(&request, answer, record).await,
                // It does not fit the question, or says that the question was wrong: the client's own is asked.
                StatusCode::OK
                | StatusCode::BAD_REQUEST
                | StatusCode::RANGE_NOT_SATISFIABLE
                | StatusCode::NOT_IMPLEMENTED => break,
                // The registry may give a token to anybody.
                StatusCode::UNAUTHORIZED if target.mirror.is_some() => break,
                // What the origin says to one byte it says to all.
                _ => return Ok(self.untouched(answer, &target)),
            }
            let spec = match self.spec_of(&request, &answer) {
                Ok(spec) => spec,
                Err(why) => {
                    note(record, why);
                    break;
                }
            };
            let wish = wish_of(&parts.headers, validators(&spec.identity));
            match Box::pin(self.serve_task(&request, spec, wish, None, record)).await {
                Ok(response) => return Ok(response),
                Err(Fallback::Changed) => note(record, Bypass::TaskFailed),
                Err(Fallback::Fault(fault)) => return Err(fault),
                Err(fallback) => {
                    note(record, fallback.why());
                    break;
                }
            }
        }
        self.direct(&request).await
    }

    /// A content that is named by its digest.
    pub(super) async fn blob(
        &self,
        parts: request::Parts,
        target: Target,
        options: DownloadOptions,
        digest: Digest,
        record: &mut Option<Record>,
    ) -> Result<Response<Body>, Fault> {
        let request = self.request(&parts, &target, &options);
        // The entity tag of a blob is its quoted digest.
        let tag = format!("\"{digest}\"");
        let named = parts.headers.get(header::IF_RANGE).is_none_or(|named| named.as_bytes() == tag.as_bytes());
        let wish = if named { wish(&parts.headers) } else { RangeWish::Whole };
        let mut token = self.token_for_anybody(&parts, &target).await;
        let mut challenged = 0;
        loop {
            let spec = self.blob_spec(&request, digest, token.clone());
            match Box::pin(self.serve_task(&request, spec, wish, None, record)).await {
                Ok(response) => return Ok(response),
                Err(Fallback::Fault(fault)) => return Err(fault),
                Err(Fallback::Challenged(answer)) => {
                    let new = self.token_by_challenge(&parts, &target, &answer.headers, token.as_ref()).await;
                    if new.is_none() || challenged == MAX_CHALLENGES {
                        note(record, Bypass::Status);
                        return Ok(self.untouched(answer, &target));
                    }
                    challenged += 1;
                    token = new;
                }
                Err(Fallback::Denied(challenge)) if challenged < MAX_CHALLENGES => {
                    let new = self.token_by_challenge(&parts, &target, &challenge, token.as_ref()).await;
                    if new.is_none() {
                        note(record, Bypass::Credentials);
                        return self.direct(&request).await;
                    }
                    challenged += 1;
                    token = new;
                }
                Err(fallback) => {
                    note(record, fallback.why());
                    return self.direct(&request).await;
                }
            }
        }
    }

    /// The task of a blob. `token` is one that the registry gives to anybody.
    fn blob_spec(&self, request: &TaskRequest<'_>, digest: Digest, token: Option<HeaderValue>) -> TaskSpec {
        let mut source = self.source_request(request).following_redirects();
        // The digest is that of the content as it is.
        source.headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(token) = token {
            source.headers.insert(header::AUTHORIZATION, token);
        }
        TaskSpec {
            // Until the registry has said that it is public. What a caller without credentials gets is.
            audience: if self.is_private(request) { self.private_audience() } else { Audience::Private },
            ..self.spec(request, Identity::Digest(digest), source, None)
        }
    }

    /// Makes the answer under way a task's source if it is worth it; else passes it on.
    async fn adopt(
        &self,
        request: &TaskRequest<'_>,
        answer: SourceResponse,
        record: &mut Option<Record>,
    ) -> Result<Response<Body>, Fault> {
        let spec = match answer.status {
            StatusCode::OK => self.spec_of(request, &answer),
            _ => Err(Bypass::Status),
        };
        let spec = match spec {
            Ok(spec) => spec,
            Err(why) => {
                note(record, why);
                return Ok(self.untouched(answer, request.target));
            }
        };
        let wish = wish_of(&request.parts.headers, validators(&spec.identity));
        match Box::pin(self.serve_task(request, spec, wish, Some(answer), record)).await {
            Ok(response) => Ok(response),
            Err(Fallback::Fault(fault)) => Err(fault),
            Err(fallback) => {
                note(record, fallback.why());
                self.direct(request).await
            }
        }
    }

    /// Asks the origin as if we were not there.
    async fn direct(&self, request: &TaskRequest<'_>) -> Result<Response<Body>, Fault> {
        let answer = self.fetch_for_anybody(request.parts, request.target).await?;
        Ok(self.pass(answer, request.target))
    }

    /// The task that this answer (a 200, or the 206 of a probe) describes, or why it is not to be shared.
    fn spec_of(&self, request: &TaskRequest<'_>, answer: &SourceResponse) -> Result<TaskSpec, Bypass> {
        let span = answer.span().filter(|span| span.start == 0).ok_or(Bypass::NoLength)?;
        let validators = answer.validators();
        if span.total < request.options.least {
            return Err(Bypass::Small);
        }
        if !answer.may_be_stored() {
            return Err(Bypass::CacheControl);
        }
        if answer.headers.contains_key(header::SET_COOKIE) {
            return Err(Bypass::SetCookie);
        }
        if !validators.is_strong() {
            return Err(Bypass::NoValidator);
        }
        if validators.strong_etag().is_none() && is_just_modified(&answer.headers, SystemTime::now()) {
            return Err(Bypass::JustModified);
        }
        // What is another content for every caller has a tag for each, but may have one date for all.
        if validators.strong_etag().is_none() && varies_by_caller(&answer.headers) {
            return Err(Bypass::Vary);
        }
        let identity = Identity::Version {
            url: identity_url(&request.target.uri, request.options.filter()),
            validators,
            length: span.total,
            vary: vary(&answer.headers, &request.parts.headers).ok_or(Bypass::Vary)?,
            tag: request.options.tag.clone(),
            application: request.options.application.clone(),
            piece_length: request.options.piece_length,
        };
        let mut headers = kept(&answer.headers);
        if answer.status == StatusCode::PARTIAL_CONTENT {
            strip_sums(&mut headers);
        }
        let known = Known { length: span.total, headers };
        Ok(self.spec(request, identity, self.source_request(request), Some(known)))
    }

    fn spec(
        &self,
        request: &TaskRequest<'_>,
        identity: Identity,
        source: SourceRequest,
        known: Option<Known>,
    ) -> TaskSpec {
        let with_credentials = self.is_private(request);
        TaskSpec {
            identity,
            source,
            known,
            tag: request.options.tag.clone(),
            application: request.options.application.clone(),
            source_wish: if self.config().use_source { SourceWish::Allowed } else { SourceWish::Forbidden },
            with_credentials,
            audience: if with_credentials { self.private_audience() } else { Audience::Public },
            admission: Admission::default(),
            priority: priority(&request.parts.headers),
        }
    }

    /// How the origin is asked for the content on this client's behalf.
    fn source_request(&self, request: &TaskRequest<'_>) -> SourceRequest {
        let mut headers = outbound(request.parts, request.target, &self.config().id);
        for name in PRECONDITIONS.iter().chain(&[header::RANGE, header::IF_RANGE, header::TE]) {
            headers.remove(name);
        }
        let source = SourceRequest::new(request.target.uri.clone(), headers);
        if is_remote(request.parts) { source.for_others() } else { source }
    }

    /// Whether what this request gets is for its sender, as far as anybody knows.
    fn is_private(&self, request: &TaskRequest<'_>) -> bool {
        request.target.with_credentials || self.routes.has_certificate(&request.target.uri)
    }

    /// Whom private content is kept for.
    const fn private_audience(&self) -> Audience {
        match self.config().private_content {
            // With `off` nothing that is known to be private comes here.
            PrivateContent::Share | PrivateContent::Off => Audience::Private,
            PrivateContent::Host => Audience::Host,
        }
    }

    /// Opens the task and waits for its first byte, so that whatever fails before can still be answered otherwise.
    async fn serve_task(
        &self,
        request: &TaskRequest<'_>,
        spec: TaskSpec,
        wish: RangeWish,
        under_way: Option<SourceResponse>,
        record: &mut Option<Record>,
    ) -> Result<Response<Body>, Fallback> {
        let digest = spec.identity.digest();
        let task = spec.identity.task_id();
        let (admission, asked_with) = (spec.admission.clone(), spec.source.headers.clone());
        let span = tracing::info_span!("task", %task);
        let opening = self.tasks.open(spec, wish, under_way).instrument(span.clone());
        let opened = match timeout_at(request.deadline, opening).await {
            Ok(opened) => opened.map_err(|error| self.missed(&error))?,
            Err(_) => return Err(self.late()),
        };
        let mut stream = match opened {
            Opened::Content(stream) => stream,
            // How long a blob is, is for those who may have it.
            Opened::Unsatisfiable { length }
                if digest.is_none() || self.tasks.audience(&task) == Some(Audience::Public) =>
            {
                return Ok(self.unsatisfiable(length));
            }
            Opened::Unsatisfiable { .. } => return Err(Fallback::Direct(Bypass::RangeForm)),
            Opened::Origin(answer) if self.wants_token(request, &answer) => return Err(Fallback::Challenged(answer)),
            // It is, or may be, where a redirect led to: the client is to see the redirect.
            Opened::Origin(answer) if digest.is_some() && (answer.is_page() || asks_elsewhere(&answer)) => {
                return Err(Fallback::Direct(Bypass::Status));
            }
            Opened::Origin(answer) => {
                note(record, Bypass::Status);
                return Ok(self.untouched(answer, request.target));
            }
        };
        let (content, length) = (stream.stored().clone(), stream.length());
        let first = async {
            match first_frame(&mut stream, request.deadline).instrument(span).await {
                Ok(Some(Ok(frame))) => Ok(Some(frame)),
                Ok(None) => Ok(None),
                Ok(Some(Err(broken))) => Err(self.broke(&broken)),
                Err(_) => Err(self.late()),
            }
        };
        let allowed = async {
            let Some(digest) = digest else {
                // The probe, or the request itself, was the question.
                return Ok(());
            };
            let asking = self.may_have(request, Held { digest, length }, &content, &admission, asked_with);
            match timeout_at(request.deadline, asking).await {
                Ok(allowed) => allowed,
                Err(_) => Err(self.late()),
            }
        };
        let (first, ()) = tokio::try_join!(first, allowed)?;
        if let Some(record) = record {
            record.route(Label::Task);
            record.serves(task, stream.traffic());
        }
        let mut response = self.content(stream, first, wish, digest);
        for cookie in admission.cookies().unwrap_or_default() {
            response.headers_mut().append(header::SET_COOKIE, cookie.clone());
        }
        Ok(response)
    }

    /// Whether the sender of this request may have the blob that is in the store, or on its way there.
    async fn may_have(
        &self,
        request: &TaskRequest<'_>,
        held: Held,
        content: &StoredTask,
        admission: &Admission,
        asked_with: HeaderMap,
    ) -> Result<(), Fallback> {
        if content.audience() == Audience::Public {
            return Ok(());
        }
        let key = self.authorizer.key(request.parts, request.target, held.length);
        if admission.cookies().is_some() {
            self.authorizer.admit(key).await;
        } else {
            match self.authorizer.ask(self.client_for(request.parts), key, request.target, asked_with, held).await {
                Ok(()) => {}
                Err(Denied::Registry(Some(challenge))) if request.target.serves_anybody() => {
                    return Err(Fallback::Denied(challenge));
                }
                Err(Denied::Registry(_)) => return Err(Fallback::Direct(Bypass::Credentials)),
                Err(Denied::Unreachable(error)) => return Err(Fallback::Fault(Fault::from(&error))),
            }
        }
        // What stands in a query may be what opened it.
        let by_name_alone = !self.is_private(request) && request.target.uri.query().is_none();
        // What is kept for this host alone stays so.
        if by_name_alone && content.audience() == Audience::Private {
            content.set_audience(Audience::Public);
        }
        Ok(())
    }

    /// Whether a mirrored registry asks a caller without credentials for a token. What another host asks for, to which a
    /// redirect led, is nothing of the registry's: no token is fetched for it, and nobody's password sent there.
    fn wants_token(&self, request: &TaskRequest<'_>, answer: &SourceResponse) -> bool {
        answer.status == StatusCode::UNAUTHORIZED && !answer.elsewhere && request.target.serves_anybody()
    }

    fn missed(&self, error: &OpenError) -> Fallback {
        match error {
            OpenError::Changed => Fallback::Changed,
            OpenError::Source(error) => Fallback::Fault(Fault::from(&**error)),
            OpenError::NoDownload(_) if self.config().use_source => Fallback::Direct(Bypass::NoRoom),
            OpenError::Local(why) if self.config().use_source => {
                tracing::warn!(%why, "a task could not be opened: its origin is asked directly");
                Fallback::Direct(Bypass::NoRoom)
            }
            OpenError::Local(why) | OpenError::NoDownload(why) => Fallback::Fault(Fault::unavailable(why.clone())),
        }
    }

    fn broke(&self, broken: &Broken) -> Fallback {
        tracing::warn!(%broken, "a task broke before its first byte");
        match broken {
            Broken::Changed => Fallback::Changed,
            _ if self.config().use_source => Fallback::Direct(Bypass::TaskFailed),
            broken => Fallback::Fault(Fault::unavailable(broken.to_string())),
        }
    }

    fn late(&self) -> Fallback {
        if self.config().use_source {
            tracing::warn!("a task gave no first byte in time: its origin is asked directly");
            return Fallback::Direct(Bypass::TaskFailed);
        }
        Fallback::Fault(Fault::timeout("No peer gave the first byte of this content in time."))
    }

    /// The origin's own answer.
    fn untouched(&self, answer: SourceResponse, target: &Target) -> Response<Body> {
        let mut response = Response::new(());
        *response.status_mut() = answer.status;
        *response.version_mut() = answer.version;
        *response.headers_mut() = answer.headers;
        *response.extensions_mut() = answer.extensions;
        self.passed(response.into_parts().0, answer.body, target)
    }

    fn unsatisfiable(&self, length: u64) -> Response<Body> {
        let mut response = Response::new(empty_body());
        *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
        let headers = response.headers_mut();
        set(headers, header::CONTENT_RANGE, &format!("bytes */{length}"));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(0));
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        add_via(headers, Version::HTTP_11, &self.config().id);
        response
    }

    /// A task's bytes as the answer to a GET.
    fn content(
        &self,
        stream: ContentStream,
        first: Option<Frame<Bytes>>,
        wish: RangeWish,
        digest: Option<Digest>,
    ) -> Response<Body> {
        let (range, length) = (stream.range(), stream.length());
        let mut headers = kept(stream.headers());
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(range.len()));
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        if let Some(digest) = digest {
            // They may be of an answer with a part of it.
            strip_sums(&mut headers);
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            set(&mut headers, CONTENT_DIGEST, &digest.to_string());
            set(&mut headers, header::ETAG, &format!("\"{digest}\""));
        }
        set(&mut headers, TASK_ID, &stream.task_id().to_string());
        set(&mut headers, FINISHED, if stream.was_complete() { "true" } else { "false" });
        add_via(&mut headers, Version::HTTP_11, &self.config().id);
        let mut status = StatusCode::OK;
        // A range that was asked for is answered as one, even where it is everything: clients take it as a promise.
        if wish != RangeWish::Whole && !range.is_empty() {
            status = StatusCode::PARTIAL_CONTENT;
            let last = range.end() - 1;
            if range.len() < length {
                strip_sums(&mut headers);
            }
            set(&mut headers, header::CONTENT_RANGE, &format!("bytes {}-{last}/{length}", range.start()));
        }
        let mut response = Response::new(PeekedBody { first, rest: stream }.map_err(BoxError::from).boxed_unsync());
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }
}

/// The first frame of a task's bytes, by the deadline: later by as much as our own limit has held it up since.
async fn first_frame(
    stream: &mut ContentStream,
    deadline: Instant,
) -> Result<Option<Result<Frame<Bytes>, Broken>>, Elapsed> {
    let before = stream.held_up();
    loop {
        let until = deadline + stream.held_up().saturating_sub(before);
        match timeout_at(until, stream.frame()).await {
            Err(_) if deadline + stream.held_up().saturating_sub(before) > until => {}
            framed => return framed,
        }
    }
}

fn validators(identity: &Identity) -> &damselfly_core::Validators {
    const NONE: &damselfly_core::Validators = &damselfly_core::Validators { etag: None, last_modified: None };
    match identity {
        Identity::Version { validators, .. } => validators,
        Identity::Digest(_) => NONE,
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

/// Whether a host to which a redirect led wants credentials of its own.
fn asks_elsewhere(answer: &SourceResponse) -> bool {
    answer.elsewhere && answer.status == StatusCode::UNAUTHORIZED
}

fn source(answer: Answer) -> SourceResponse {
    let (parts, body) = answer.into_parts();
    SourceResponse {
        status: parts.status,
        version: parts.version,
        headers: parts.headers,
        extensions: parts.extensions,
        body: body.map_err(BoxError::from).boxed_unsync(),
        elsewhere: false,
    }
}

/// A task's stream whose first frame was waited for.
struct PeekedBody {
    first: Option<Frame<Bytes>>,
    rest: ContentStream,
}

impl http_body::Body for PeekedBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.first.take() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().and_then(Frame::data_ref).map_or(0, |data| data.len() as u64);
        match self.rest.size_hint().exact() {
            Some(rest) => SizeHint::with_exact(first + rest),
            None => SizeHint::default(),
        }
    }
}
