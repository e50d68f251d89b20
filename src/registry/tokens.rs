//! Asking authorisation services for tokens, so that they are left in peace.
//!
//! - **Identical questions in flight are one**, and an answer is given again until shortly before its token expires.
//!   Identical means: the same URL, the same body, and the same credentials.
//! - **At most a few questions at a time** go to one realm; the others wait their turn.
//! - **A service that says "too many requests" is left alone** for as long as it says, within bounds, and longer each
//!   time where it does not say. Then one question tries whether it answers again. Who would have to wait long is told
//!   what the service said.
//!
//! A token service is any URL that a registry's challenge named as its realm ([`Tokens::learn`]), and whatever is asked
//! for a scope as only registries have it. So the clients' own questions, on their way through the proxy, are recognised
//! and treated alike.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::Entry;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use moka::Expiry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::challenge::Bearer;
use super::realm::{MAX_HOLD, Realm};
use super::request_key;
use crate::net::{HttpClient, NetError};

/// Answers that are kept, realms that are known, and repositories whose scope is remembered.
const MAX_KEPT: u64 = 4096;
/// The most bytes of a question that is POSTed.
pub const MAX_QUESTION: usize = 64 << 10;
/// The most bytes of an answer.
const MAX_ANSWER: usize = 1 << 20;
/// How long a token is good for where its answer does not say, as the distribution project has it.
const EXPIRES_IN: u64 = 60;
/// The limits of this module.
#[derive(Clone, Debug)]
pub struct TokenConfig {
    /// Questions at a time to one realm.
    pub per_realm: usize,
    /// How long an answer that was given for credentials is given again, at most.
    pub reuse: Duration,
    /// How long a question may take in all, waiting included.
    pub patience: Duration,
    /// How long a question may wait because its service wants to be left alone.
    pub held_patience: Duration,
}

impl Default for TokenConfig {
    fn default() -> Self {
        Self {
            per_realm: 4,
            reuse: Duration::from_secs(60),
            patience: Duration::from_secs(30),
            held_patience: Duration::from_secs(10),
        }
    }
}

/// A question to a token service. `Debug` shows neither the query nor header values.
#[derive(Clone)]
pub struct TokenRequest {
    /// GET, or the POST of OAuth 2.
    pub method: Method,
    /// The service's URL with the question in its query.
    pub uri: Uri,
    /// The request's headers as they go out.
    pub headers: HeaderMap,
    /// The question of a POST.
    pub body: Bytes,
    /// Whether a client on another host asks: it may not ask every service.
    pub remote: bool,
}

impl TokenRequest {
    /// A question without credentials.
    pub fn anonymous(uri: Uri, remote: bool) -> Self {
        let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static("application/json"))]);
        Self { method: Method::GET, uri, headers, body: Bytes::new(), remote }
    }

    fn key(&self) -> [u8; 32] {
        request_key(&self.method, &self.uri, &self.headers, &self.body, self.remote)
    }

    /// The same question, with this user and password or what else a caller showed.
    #[must_use]
    pub fn on_behalf_of(mut self, credentials: HeaderValue) -> Self {
        self.headers.insert(header::AUTHORIZATION, credentials);
        self
    }

    /// The question of OAuth 2: the same, with the rest of it in a form.
    #[must_use]
    pub fn with_form(mut self, form: Bytes) -> Self {
        self.method = Method::POST;
        self.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        self.body = form;
        self
    }

    /// Whether something is shown that only its sender may know.
    pub fn has_credentials(&self) -> bool {
        self.method != Method::GET
            || self.headers.contains_key(header::AUTHORIZATION)
            || self.headers.contains_key(header::COOKIE)
    }
}

impl std::fmt::Debug for TokenRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenRequest").field("host", &self.uri.host()).field("path", &self.uri.path()).finish()
    }
}

/// A token service's answer. `Debug` shows only the status.
#[derive(Clone)]
pub struct TokenAnswer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, as it came.
    pub body: Bytes,
    came: Instant,
    reuse: Duration,
}

impl std::fmt::Debug for TokenAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenAnswer").field("status", &self.status).finish_non_exhaustive()
    }
}

impl TokenAnswer {
    /// One that comes now.
    pub(super) fn new(status: StatusCode, headers: HeaderMap, body: Bytes) -> Self {
        Self { status, headers, body, came: Instant::now(), reuse: Duration::ZERO }
    }

    /// The token, if the answer has one.
    pub fn token(&self) -> Option<String> {
        let body: serde_json::Value = serde_json::from_slice(&self.body).ok().filter(|_| self.status.is_success())?;
        let named = |name: &&str| body.get(*name)?.as_str().filter(|token| !token.is_empty());
        ["token", "access_token"].iter().find_map(named).map(str::to_owned)
    }

    /// The `Authorization` of a request with this token.
    pub fn authorization(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::try_from(format!("Bearer {}", self.token()?)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// The body, saying how long the token is still good for.
    pub fn current_body(&self) -> Bytes {
        let age = self.came.elapsed().as_secs();
        if age == 0 {
            return self.body.clone();
        }
        let Ok(mut body) = serde_json::from_slice::<serde_json::Value>(&self.body) else { return self.body.clone() };
        // With a date of issue the client itself knows how old it is.
        if body.get("issued_at").is_some() {
            return self.body.clone();
        }
        let left = expires_in(&body).saturating_sub(age).max(1);
        if let Some(fields) = body.as_object_mut() {
            fields.insert("expires_in".into(), left.into());
        }
        body.to_string().into()
    }

    /// How long this answer may be given again to who asks the same.
    fn reusable(&self, with_credentials: bool, limit: Duration) -> Duration {
        if self.token().is_none() {
            return Duration::ZERO;
        }
        let Ok(body) = serde_json::from_slice::<serde_json::Value>(&self.body) else { return Duration::ZERO };
        let good = expires_in(&body).saturating_sub(self.age_at_first(&body));
        // Shortly before it expires, so that who gets it last can still use it.
        let reuse = Duration::from_secs(good.saturating_sub((good / 4).min(30)));
        if with_credentials { reuse.min(limit) } else { reuse }
    }
}

impl TokenAnswer {
    /// How many seconds the token was old when it came, by the service's own clock: services keep tokens, too.
    fn age_at_first(&self, body: &serde_json::Value) -> u64 {
        let issued = body.get("issued_at").and_then(|issued| humantime::parse_rfc3339_weak(issued.as_str()?).ok());
        let said = self.headers.get(header::DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        let age = issued.zip(said).and_then(|(issued, said)| said.duration_since(issued).ok());
        age.unwrap_or_default().as_secs()
    }
}

/// How many seconds a token is good for, however that is written. What makes no sense is no time at all.
fn expires_in(body: &serde_json::Value) -> u64 {
    let seconds = match body.get("expires_in") {
        None | Some(serde_json::Value::Null) => return EXPIRES_IN,
        Some(serde_json::Value::String(text)) => text.trim().parse().ok(),
        Some(value) => value.as_f64(),
    };
    // The conversion stays within the type's bounds.
    seconds.map_or(0, |seconds: f64| seconds as u64).min(MAX_HOLD.as_secs())
}

/// Why there is no token.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TokenError {
    /// The service was not reached.
    #[error("{0}")]
    Net(NetError),
    /// The service gave no answer in time.
    #[error("The authorisation service at {to} gave no token in time.")]
    Late {
        /// `HOST[:PORT]`.
        to: String,
    },
    /// The service's answer is no token: to be passed on as it is.
    #[error("the authorisation service answered {}", .0.status)]
    Answer(TokenAnswer),
    /// The answer broke off or is too long.
    #[error("The answer of the authorisation service at {to} is not complete.")]
    Broken {
        /// `HOST[:PORT]`.
        to: String,
    },
}

/// What is counted of tokens.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    asked: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Metrics {
    /// Adds everything to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "dragonfly_client_registry_token_request",
            "Questions for tokens, by what became of them: asked, shared with one in flight or kept, held back, failed",
            self.asked.clone(),
        );
    }

    fn count(&self, result: &'static str) {
        self.asked.get_or_create(&[("result", result)]).inc();
    }
}

struct ByAnswer;

impl Expiry<[u8; 32], TokenAnswer> for ByAnswer {
    fn expire_after_create(&self, _: &[u8; 32], answer: &TokenAnswer, _: std::time::Instant) -> Option<Duration> {
        Some(answer.reuse)
    }
}

/// The token services that registries named, and what they answered. Clones share everything.
#[derive(Clone)]
pub struct Tokens(Arc<Inner>);

struct Inner {
    config: TokenConfig,
    metrics: Metrics,
    /// By scheme, authority and path.
    realms: moka::sync::Cache<String, Arc<Realm>>,
    answers: moka::future::Cache<[u8; 32], TokenAnswer>,
    /// Where a token for a repository (with its registry in front) is to be had without credentials.
    repositories: moka::sync::Cache<String, Uri>,
}

impl Tokens {
    /// No service is known yet.
    pub fn new(config: TokenConfig, metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            config,
            metrics,
            realms: moka::sync::Cache::new(MAX_KEPT),
            answers: moka::future::Cache::builder().max_capacity(MAX_KEPT).expire_after(ByAnswer).build(),
            repositories: moka::sync::Cache::new(MAX_KEPT),
        }))
    }

    /// Notes the token service that a registry's answer for `from` named.
    pub fn learn(&self, from: &Uri, bearer: &Bearer) {
        if let Some(url) = bearer.token_url(from, &[]) {
            self.realm(&url);
        }
    }

    /// Whether this is a question for a registry's token. Of a POST its [form](is_token_form) is still to be looked at.
    pub fn is_question(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> bool {
        let known = || self.0.realms.contains_key(&realm_of(uri));
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let is_form = || text(header::CONTENT_TYPE).split(';').next() == Some("application/x-www-form-urlencoded");
        let is_short = || text(header::CONTENT_LENGTH).parse().is_ok_and(|length: usize| length <= MAX_QUESTION);
        match *method {
            Method::POST => is_form() && is_short() && known(),
            Method::GET => {
                uri.query().is_some_and(|query| asks_for_scope(query) || query.contains("service=") && known())
            }
            _ => false,
        }
    }

    /// Forgets the answer to a question: the registry does not know its token any more.
    pub async fn forget(&self, request: &TokenRequest) {
        self.0.answers.invalidate(&request.key()).await;
    }

    /// Notes where a token for a repository is to be had by anybody.
    pub fn remember(&self, repository: String, token_url: Uri) {
        self.0.repositories.insert(repository, token_url);
    }

    /// Where a token for a repository is to be had by anybody, if that is known.
    pub fn remembered(&self, repository: &str) -> Option<Uri> {
        self.0.repositories.get(repository)
    }

    fn realm(&self, uri: &Uri) -> Arc<Realm> {
        self.0.realms.get_with(realm_of(uri), || Arc::new(Realm::new(self.slots())))
    }

    /// The answer to a question: a kept one, that of an identical question in flight, or the service's own.
    ///
    /// # Errors
    /// There is no token; see [`TokenError`].
    pub async fn fetch(&self, client: &HttpClient, request: TokenRequest) -> Result<TokenAnswer, TokenError> {
        let with_credentials = request.has_credentials();
        let (mut asked, mut cookies) = (false, Vec::new());
        let ask = async {
            asked = true;
            let mut answer = self.ask(client, &request).await?;
            // A cookie is for the caller whose question it was, and for nobody else.
            if let Entry::Occupied(lines) = answer.headers.entry(header::SET_COOKIE) {
                cookies.extend(lines.remove_entry_mult().1);
            }
            answer.reuse = answer.reusable(with_credentials, self.0.config.reuse);
            if answer.token().is_some() { Ok(answer) } else { Err(TokenError::Answer(answer)) }
        };
        // Large, and seldom wanted by those who have room for it in them.
        let answer = Box::pin(self.0.answers.try_get_with(request.key(), ask)).await;
        self.0.metrics.count(match (&answer, asked) {
            (_, false) => "shared",
            (Ok(_), true) => "asked",
            (Err(_), true) => "failed",
        });
        let mut answer = answer.map_err(Arc::unwrap_or_clone);
        if let Ok(answer) | Err(TokenError::Answer(answer)) = &mut answer {
            answer.headers.extend(cookies.into_iter().map(|cookie| (header::SET_COOKIE, cookie)));
        }
        answer
    }

    async fn ask(&self, client: &HttpClient, request: &TokenRequest) -> Result<TokenAnswer, TokenError> {
        let realm = self.realm(&request.uri);
        let to = request.uri.authority().map(ToString::to_string).unwrap_or_default();
        let begun = Instant::now();
        let deadline = begun + self.0.config.patience;
        let late = || TokenError::Late { to: to.clone() };
        loop {
            let held = realm.hold().at(Instant::now());
            if let Some((until, answer)) = held {
                self.0.metrics.count("held");
                if until >= begun + self.0.config.held_patience {
                    return Ok(come_again(answer, until));
                }
                sleep_until(until).await;
            }
            // Whether it answers again is for one question to find out.
            let slots = if realm.hold().is_in_doubt() { self.slots() } else { 1 };
            let slots = u32::try_from(slots).unwrap_or(u32::MAX);
            let Ok(Ok(_slots)) = timeout_at(deadline, realm.slots.acquire_many(slots)).await else {
                return Err(late());
            };
            if realm.hold().at(Instant::now()).is_some() {
                continue;
            }
            let sent = Instant::now();
            let answer = timeout_at(deadline, send(client, request, &to)).await.map_err(|_| late())??;
            let mut hold = realm.hold();
            hold.note(&answer, sent, Instant::now());
            if !hold.is_in_doubt() {
                return Ok(answer);
            }
        }
    }

    /// How many questions at a time go to one realm.
    fn slots(&self) -> usize {
        self.0.config.per_realm.clamp(1, Semaphore::MAX_PERMITS)
    }
}

/// What a service said that wants to be left alone, with how long that still is where it said so.
fn come_again(mut answer: TokenAnswer, until: Instant) -> TokenAnswer {
    if let Entry::Occupied(mut said) = answer.headers.entry(header::RETRY_AFTER) {
        let seconds = until.saturating_duration_since(Instant::now()).as_secs_f64().ceil();
        said.insert(HeaderValue::from(seconds as u64));
    }
    answer
}

async fn send(client: &HttpClient, asked: &TokenRequest, to: &str) -> Result<TokenAnswer, TokenError> {
    let mut request = Request::new(Full::new(asked.body.clone()).map_err(|never| match never {}).boxed_unsync());
    *request.method_mut() = asked.method.clone();
    *request.uri_mut() = asked.uri.clone();
    *request.headers_mut() = asked.headers.clone();
    // The answer is read here, and given to others who may take other encodings.
    request.headers_mut().remove(header::ACCEPT_ENCODING);
    let (head, body) = client.send(request).await.map_err(TokenError::Net)?.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await;
    let body = body.map_err(|_| TokenError::Broken { to: to.to_owned() })?.to_bytes();
    Ok(TokenAnswer::new(head.status, head.headers, body))
}

/// Whether a POSTed form asks a token service for a token, for a password or a refresh token. Any registry may name any
/// URL as its token service, and what is asked of others has to come there as often as it is sent.
pub fn is_token_form(body: &[u8]) -> bool {
    let (mut service, mut grant) = (false, false);
    for (name, value) in url::form_urlencoded::parse(body) {
        service |= name == "service";
        grant |= name == "grant_type" && (value == "password" || value == "refresh_token");
    }
    service && grant
}

/// Whether a query names a service and the scope of a repository or of a registry, as no other protocol has it.
fn asks_for_scope(query: &str) -> bool {
    let (mut service, mut scope) = (false, false);
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        service |= name == "service";
        scope |= name == "scope" && (value.starts_with("repository:") || value.starts_with("registry:"));
    }
    service && scope
}

fn realm_of(uri: &Uri) -> String {
    let authority = uri.authority().map(|authority| authority.as_str().to_ascii_lowercase()).unwrap_or_default();
    format!("{}://{authority}{}", uri.scheme_str().unwrap_or("http"), uri.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_a_token_is_good_is_read_however_it_is_written() {
        for (written, seconds) in [
            (serde_json::json!(300), 300),
            (serde_json::json!("300"), 300),
            (serde_json::json!(" 300 "), 300),
            (serde_json::json!(300.9), 300),
            (serde_json::json!(0), 0),
            (serde_json::json!(-1), 0),
            (serde_json::json!("soon"), 0),
            (serde_json::json!([]), 0),
            (serde_json::json!(u64::MAX), MAX_HOLD.as_secs()),
            (serde_json::json!(1e300), MAX_HOLD.as_secs()),
            (serde_json::json!(null), EXPIRES_IN),
        ] {
            let body = serde_json::json!({ "expires_in": written });
            assert_eq!(expires_in(&body), seconds, "{body}");
        }
        assert_eq!(expires_in(&serde_json::json!({})), EXPIRES_IN);
    }

    #[test]
    fn a_token_is_found_under_either_name() {
        for (body, token) in [
            (r#"{"token":"a"}"#, Some("a")),
            (r#"{"access_token":"b"}"#, Some("b")),
            (r#"{"token":"a","access_token":"b"}"#, Some("a")),
            (r#"{"token":"","access_token":"b"}"#, Some("b")),
            (r#"{"token":null,"access_token":"b"}"#, Some("b")),
            (r#"{"token":7,"access_token":"b"}"#, Some("b")),
            (r#"{"token":"","access_token":""}"#, None),
            (r#"["token"]"#, None),
            ("<html>", None),
        ] {
            let answer = TokenAnswer::new(StatusCode::OK, HeaderMap::new(), Bytes::from_static(body.as_bytes()));
            assert_eq!(answer.token().as_deref(), token, "{body}");
        }
    }

    #[test]
    fn a_token_that_was_old_when_it_came_is_given_again_for_less_long() {
        for (issued, seconds) in [
            (None, 270),
            (Some("1994-11-06T08:49:37.5Z"), 270),
            (Some("1994-11-06T08:47:37Z"), 150),
            (Some("1994-11-06T08:00:00Z"), 0),
            (Some("1994-11-07T08:00:00Z"), 270),
            (Some("yesterday"), 270),
        ] {
            let answer = TokenAnswer {
                status: StatusCode::OK,
                headers: HeaderMap::from_iter([(header::DATE, "Sun, 06 Nov 1994 08:49:37 GMT".parse().unwrap())]),
                body: serde_json::json!({ "token": "t", "expires_in": 300, "issued_at": issued }).to_string().into(),
                came: Instant::now(),
                reuse: Duration::ZERO,
            };
            assert_eq!(answer.reusable(false, Duration::MAX), Duration::from_secs(seconds), "{issued:?}");
        }
    }

    #[test]
    fn only_forms_that_ask_for_a_token_are_questions() {
        for (form, is) in [
            ("grant_type=password&service=s&username=u&password=p", true),
            ("grant_type=refresh_token&service=s&refresh_token=r", true),
            ("grant_type=authorization_code&service=s&code=c", false),
            ("grant_type=password&username=u", false),
            ("service=s&order=1", false),
            ("", false),
        ] {
            assert_eq!(is_token_form(form.as_bytes()), is, "{form}");
        }
    }
}
