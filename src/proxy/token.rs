//! Tokens of registries: for clients that ask us for them, for callers without credentials whom a registry gives one,
//! and the clients' own questions on their way through.

use std::sync::Arc;

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, header, request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;
use url::form_urlencoded;

use super::access::Record;
use super::bypass::Bypass;
use super::fault::Fault;
use super::forward::{Answer, outbound};
use super::handler::Inner;
use super::headers::add_via;
use super::route::{Ingress, SERVICE, TOKEN_PATH, Target, named_host};
use crate::net::{Body, ClientConnection, HttpClient, spoken_scheme};
use crate::registry::{
    API_VERSION, API_VERSION_HEADER, Bearer, Challenge, MAX_QUESTION, Mirror, OwnToken, Registry, Resource,
    TokenAnswer, TokenError, TokenRequest, is_registry_path, is_token_form, with_realm,
};

/// How many scopes one question may have.
const MAX_SCOPES: usize = 16;
/// How long a token of ours is good for, as its client is told, in seconds.
const OWN_TOKEN_EXPIRES: u64 = 300;

/// That a mirrored registry's challenge for a token is to send its client to us.
///
/// It is for clients on this host. containerd, for one, asks for a token only when it is refused, and where the refusal
/// says: around us, and with the password. Clients on other hosts are told the registry's own service: a password that
/// comes over a network comes over TLS, or not at all.
pub(super) struct SendsHere {
    /// `HOST[:PORT]` as the client calls us.
    host: HeaderValue,
    /// What was asked of the registry.
    asked: Uri,
    /// The registry of the mirror port that the request came to, if it came to one.
    registry: Option<Arc<Registry>>,
}

impl SendsHere {
    /// Whether a refusal of this request would be such a challenge.
    pub(super) fn find(parts: &request::Parts, target: &Target, ingress: &Ingress) -> Option<Self> {
        if target.mirror.is_none() || is_remote(parts) || !is_registry_path(target.uri.path()) {
            return None;
        }
        let registry = ingress.registry.clone();
        Some(Self { host: named_host(parts)?, asked: target.uri.clone(), registry })
    }

    /// Where the client is sent, and the `/v2/` of the registry that is meant there. `None` where it would be another one.
    fn realm(&self, mirror: &Mirror) -> Option<(String, Uri)> {
        let host = self.host.to_str().ok().filter(|host| host.parse::<Authority>().is_ok())?;
        let namespace =
            form_urlencoded::byte_serialize(self.asked.authority()?.as_str().as_bytes()).collect::<String>();
        let query = format!("ns={namespace}");
        let ping = match &self.registry {
            Some(registry) => registry.url("/v2/", None),
            None => mirror.by_namespace(Some(&query)).ok()??.url("/v2/", None),
        };
        let same = |ping: &Uri| ping.scheme() == self.asked.scheme() && ping.authority() == self.asked.authority();
        Some((format!("http://{host}{TOKEN_PATH}?{query}"), ping.ok().filter(same)?))
    }
}

impl Inner {
    /// Tells a client of the mirror where it gets its tokens: here, whatever registry it means.
    pub(super) fn challenge(&self, parts: &request::Parts) -> Result<Response<Body>, Fault> {
        let host = named_host(parts).and_then(|host| host.to_str().map(str::to_owned).ok()).unwrap_or_default();
        let challenge = format!("Bearer realm=\"http://{host}{TOKEN_PATH}\",service=\"{SERVICE}\"");
        let challenge = HeaderValue::try_from(challenge).ok().filter(|_| host.parse::<Authority>().is_ok());
        let challenge = challenge.ok_or_else(|| Fault::malformed("The Host header does not name this mirror."))?;
        let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"a token of the registry is needed"}]}"#;
        let mut response = json(StatusCode::UNAUTHORIZED, body);
        let headers = response.headers_mut();
        headers.insert(header::WWW_AUTHENTICATE, challenge);
        headers.insert(API_VERSION_HEADER, HeaderValue::from_static(API_VERSION));
        Ok(response)
    }

    /// Has a registry's challenge for a token send the client to us.
    pub(super) async fn send_here(&self, mut answer: Response<Body>, here: &SendsHere) -> Response<Body> {
        if answer.status() != StatusCode::UNAUTHORIZED {
            return answer;
        }
        let challenge = Challenge::find(answer.headers()).filter(|found| matches!(found, Challenge::Bearer(_)));
        if let (Some(challenge), Some((realm, ping))) = (challenge, here.realm(&self.routes.mirror))
            && let Some(ours) = with_realm(answer.headers(), &realm, SERVICE)
        {
            // What it asks for is known now; it may ask nothing at its `/v2/`.
            self.challenges.insert((ping.to_string(), false), Some(challenge)).await;
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, ours);
        }
        answer
    }

    /// A token for a client of the mirror: the registry's, or one of ours where the registry has none. The registry is
    /// the one that a mirror port is for, or that our challenge named, or else stands in the scope.
    pub(super) async fn give_token(
        &self,
        parts: &request::Parts,
        body: Incoming,
        registry: Option<&Registry>,
    ) -> Result<Response<Body>, Fault> {
        let form = match parts.method {
            Method::GET => None,
            Method::POST => Some(question_body(body).await?),
            _ => {
                let sentence = "Tokens are asked for by GET or POST here.";
                return Err(Fault::client(StatusCode::METHOD_NOT_ALLOWED, sentence));
            }
        };
        let credentials = parts.headers.get(header::AUTHORIZATION).cloned();
        let scopes = match &form {
            Some(form) => scopes(form),
            None => scopes(parts.uri.query().unwrap_or_default().as_bytes()),
        };
        let meant = match registry {
            Some(registry) => Some((registry.clone(), scopes)),
            None => self.registry_of(&scopes)?,
        };
        let Some((registry, scopes)) = meant else {
            // A client that only tries its password. Which registry it is for is not said.
            return own_token("", credentials, form.is_some());
        };
        let ping = registry.url("/v2/", None).map_err(|error| Fault::malformed(error.to_string()))?;
        let bearer = match self.challenge_of(parts, &ping).await? {
            None => return own_token(registry.authority(), None, form.is_some()),
            Some(Challenge::Basic) => return own_token(registry.authority(), credentials, form.is_some()),
            Some(Challenge::Bearer(bearer)) => bearer,
        };
        let nowhere = || Fault::upstream(StatusCode::BAD_GATEWAY, "The registry names no authorisation service.");
        let question = match form {
            None => {
                let url = bearer.token_url(&ping, &scopes).ok_or_else(nowhere)?;
                let question = self.question(parts, url);
                credentials.into_iter().fold(question, TokenRequest::on_behalf_of)
            }
            Some(form) => {
                let (url, fields) = bearer.token_form(&ping, &scopes).ok_or_else(nowhere)?;
                let asked = form_urlencoded::parse(&form);
                let asked = asked.filter(|(name, _)| name != "scope" && name != "service");
                let form =
                    form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).extend_pairs(asked).finish();
                self.question(parts, url).with_form(form.into())
            }
        };
        if question.has_credentials() {
            self.refuse_downgrade(&ping, &question.uri)?;
        }
        answered(self.tokens.fetch(self.client_for(parts), question).await)
    }

    /// A question for a token, asked in the name of this request: whoever it came through knows it again.
    fn question(&self, parts: &request::Parts, url: Uri) -> TokenRequest {
        let mut question = TokenRequest::anonymous(url, is_remote(parts));
        for hop in parts.headers.get_all(header::VIA) {
            question.headers.append(header::VIA, hop.clone());
        }
        add_via(&mut question.headers, parts.version, &self.config().id);
        question
    }

    /// The registry that scopes as clients of the mirror write them mean, and the scopes as the registry knows them.
    fn registry_of(&self, scopes: &[String]) -> Result<Option<(Registry, Vec<String>)>, Fault> {
        let mut named = Vec::new();
        for scope in scopes {
            let parts = scope.split_once(':').and_then(|(kind, rest)| Some((kind, rest.rsplit_once(':')?)));
            let Some((kind, (name, actions))) = parts else { continue };
            let (registry, repository) =
                Mirror::repository(name).map_err(|error| Fault::client(StatusCode::BAD_REQUEST, error.to_string()))?;
            named.push((registry, format!("{kind}:{repository}:{actions}")));
        }
        // One token is good for one registry. A client that was refused adds the scope that the registry named, which
        // knows nothing of us: what names no registry is of the one that another scope names.
        let meant = named.iter().find_map(|(registry, _)| registry.clone());
        let scopes = named.into_iter().filter(|(own, _)| own.is_none() || *own == meant);
        let scopes: Vec<_> = scopes.map(|(_, scope)| scope).collect();
        Ok((!scopes.is_empty()).then(|| (meant.unwrap_or_else(|| self.routes.mirror.unnamed()), scopes)))
    }

    /// What a registry asks of callers, as it says at `ping`. Its answer is kept for some minutes.
    async fn challenge_of(&self, asker: &request::Parts, ping: &Uri) -> Result<Option<Challenge>, Fault> {
        let ask = async {
            let (mut parts, ()) = http::Request::new(()).into_parts();
            parts.uri = ping.clone();
            parts.extensions = asker.extensions.clone();
            for hop in asker.headers.get_all(header::VIA) {
                parts.headers.append(header::VIA, hop.clone());
            }
            let target = Target::new(ping.clone(), None);
            let headers = outbound(&parts, &target, &self.config().id);
            let answer = timeout(self.config().first_byte, self.fetch(&parts, headers, &target)).await;
            let late = || Fault::timeout("The registry did not say in time what tokens it wants.");
            let answer = answer.unwrap_or_else(|_| Err(late()))?;
            match answer.status() {
                StatusCode::UNAUTHORIZED => Ok(Challenge::find(answer.headers())),
                status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => Err(Fault::upstream(
                    StatusCode::BAD_GATEWAY,
                    format!("The registry answered {status} when it was asked what tokens it wants."),
                )),
                _ => Ok(None),
            }
        };
        let challenge = self.challenges.try_get_with((ping.to_string(), is_remote(asker)), ask).await;
        challenge.map_err(|fault: Arc<Fault>| (*fault).clone())
    }

    /// Credentials that came for a registry behind TLS go nowhere without TLS.
    fn refuse_downgrade(&self, registry: &Uri, realm: &Uri) -> Result<(), Fault> {
        let upstreams = &self.routes.upstreams;
        let is_tls = |uri| spoken_scheme(upstreams, uri).is_some_and(|scheme| scheme.as_str() == "https");
        if is_tls(registry) && !is_tls(realm) {
            let sentence = "The registry names an authorisation service without TLS; no password is sent there.";
            return Err(Fault::upstream(StatusCode::BAD_GATEWAY, sentence));
        }
        Ok(())
    }

    /// Sends a GET or HEAD to its target. Where a mirrored registry asks a caller without credentials for a token that
    /// anybody may have, it is sent with one.
    pub(super) async fn fetch_for_anybody(&self, parts: &request::Parts, target: &Target) -> Result<Answer, Fault> {
        let mut headers = outbound(parts, target, &self.config().id);
        let token = self.token_for_anybody(parts, target).await;
        if let Some(token) = &token {
            headers.insert(header::AUTHORIZATION, token.clone());
        }
        let answer = self.fetch(parts, headers.clone(), target).await?;
        self.learn(target, &answer);
        let wants_token = answer.status() == StatusCode::UNAUTHORIZED && target.serves_anybody();
        if wants_token && let Some(new) = self.token_by_challenge(parts, target, answer.headers(), token.as_ref()).await
        {
            headers.insert(header::AUTHORIZATION, new);
            return self.fetch(parts, headers, target).await;
        }
        Ok(answer)
    }

    /// The HTTP client that reaches what this request's client may reach.
    pub(super) fn client_for(&self, parts: &request::Parts) -> &HttpClient {
        self.http.on_behalf_of(parts.extensions.get::<ClientConnection>())
    }

    /// Notes the authorisation service that a registry's answer names.
    pub(super) fn learn(&self, target: &Target, answer: &Answer) {
        if answer.status() == StatusCode::UNAUTHORIZED
            && Resource::parse(target.uri.path()).is_some()
            && let Some(Challenge::Bearer(bearer)) = Challenge::find(answer.headers())
        {
            self.tokens.learn(&target.uri, &bearer);
        }
    }

    /// The token for a mirrored registry that anybody may have, where one was needed before.
    pub(super) async fn token_for_anybody(&self, parts: &request::Parts, target: &Target) -> Option<HeaderValue> {
        if !target.serves_anybody() {
            return None;
        }
        let url = self.tokens.remembered(&repository(target)?)?;
        self.tokens.fetch(self.client_for(parts), self.question(parts, url)).await.ok()?.authorization()
    }

    /// The token that a registry's challenge says that anybody may have, and another one than was `tried`; `None` where
    /// there is none.
    pub(super) async fn token_by_challenge(
        &self,
        parts: &request::Parts,
        target: &Target,
        answer: &HeaderMap,
        tried: Option<&HeaderValue>,
    ) -> Option<HeaderValue> {
        let Some(Challenge::Bearer(bearer)) = Challenge::find(answer) else { return None };
        if tried.is_some() && bearer.insufficient {
            return None;
        }
        let own = match &bearer {
            Bearer { scope: Some(_), .. } => Vec::new(),
            _ => vec![format!("repository:{}:pull", target.repository.as_deref()?)],
        };
        let url = bearer.token_url(&target.uri, &own)?;
        let question = self.question(parts, url.clone());
        let mut answer = self.tokens.fetch(self.client_for(parts), question.clone()).await;
        if tried.is_some() && answer.as_ref().ok().and_then(TokenAnswer::authorization).as_ref() == tried {
            // The registry does not take it any more, whatever it said of its end.
            self.tokens.forget(&question).await;
            answer = self.tokens.fetch(self.client_for(parts), question).await;
        }
        if let Err(error) = &answer {
            tracing::info!(host = target.uri.host(), %error, "a registry's token for anybody could not be had");
        }
        let token = answer.ok()?.authorization().filter(|token| Some(token) != tried)?;
        if let Some(repository) = repository(target) {
            self.tokens.remember(repository, url);
        }
        Some(token)
    }

    /// A client's own question for a token, on its way through.
    pub(super) async fn token_question(
        &self,
        parts: &request::Parts,
        body: Incoming,
        target: &Target,
        record: &mut Option<Record>,
    ) -> Result<Response<Body>, Fault> {
        if let Some(record) = record {
            record.bypasses(Bypass::Token);
        }
        let body = question_body(body).await?;
        let mut headers = outbound(parts, target, &self.config().id);
        if parts.method == Method::POST && !is_token_form(&body) {
            let body = Full::new(body).map_err(|never| match never {}).boxed_unsync();
            let answer = self.send(parts, headers, body, target, None).await;
            return Ok(self.pass(answer.map_err(|error| Fault::from(&error))?, target));
        }
        headers.remove(header::CONTENT_LENGTH);
        let (method, uri) = (parts.method.clone(), target.uri.clone());
        let question = TokenRequest { method, uri, headers, body, remote: is_remote(parts) };
        match self.tokens.fetch(self.client_for(parts), question).await {
            Ok(answer) | Err(TokenError::Answer(answer)) => Ok(self.passed_token(&answer, target)),
            // The client itself has named the place.
            Err(TokenError::Net(error)) => Err(Fault::from(&error)),
            Err(error) => Err(fault(&error)),
        }
    }

    /// A token service's answer as the client gets it that asked through us.
    fn passed_token(&self, answer: &TokenAnswer, target: &Target) -> Response<Body> {
        let mut response = Response::new(());
        *response.status_mut() = answer.status;
        *response.headers_mut() = answer.headers.clone();
        let body = answer.current_body();
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        let body = Full::new(body).map_err(|never| match never {}).boxed_unsync();
        self.passed(response.into_parts().0, body, target)
    }
}

/// Whether the client is on another host.
pub(super) fn is_remote(parts: &request::Parts) -> bool {
    parts.extensions.get::<ClientConnection>().is_some_and(ClientConnection::is_remote)
}

/// The repository that a URL is in, with its registry in front.
pub(super) fn repository(target: &Target) -> Option<String> {
    let repository = target.repository.as_deref()?;
    Some(format!("{}/{repository}", target.uri.authority()?.as_str().to_ascii_lowercase()))
}

/// The body of a question for a token.
async fn question_body(body: Incoming) -> Result<Bytes, Fault> {
    let body = Limited::new(body, MAX_QUESTION).collect().await;
    let body = body.map_err(|_| Fault::malformed("The question for a token did not come whole, or is too long."))?;
    Ok(body.to_bytes())
}

/// The scopes of a question, in a query or a form; each field may hold several.
fn scopes(fields: &[u8]) -> Vec<String> {
    let scopes = form_urlencoded::parse(fields).filter(|(name, _)| name == "scope");
    let scopes = scopes.flat_map(|(_, scopes)| scopes.split(' ').map(str::to_owned).collect::<Vec<_>>());
    scopes.filter(|scope| !scope.is_empty()).take(MAX_SCOPES).collect()
}

/// A token of ours. It holds what came in `Authorization`: whoever asks with a form is told to ask so.
fn own_token(registry: &str, credentials: Option<HeaderValue>, by_form: bool) -> Result<Response<Body>, Fault> {
    if by_form {
        let sentence = "This registry gives no tokens for forms: ask by GET.";
        return Err(Fault::client(StatusCode::METHOD_NOT_ALLOWED, sentence));
    }
    let token = OwnToken { registry: registry.to_ascii_lowercase(), credentials }.encode();
    let body = serde_json::json!({ "token": token, "access_token": token, "expires_in": OWN_TOKEN_EXPIRES });
    Ok(json(StatusCode::OK, body.to_string()))
}

fn answered(answer: Result<TokenAnswer, TokenError>) -> Result<Response<Body>, Fault> {
    match answer {
        Ok(answer) => Ok(json(StatusCode::OK, answer.current_body())),
        Err(TokenError::Answer(answer)) if answer.status.is_client_error() => {
            // A mirror's "too many requests" stalls its clients for a minute.
            let limited = answer.status == StatusCode::TOO_MANY_REQUESTS;
            let mut response = json(if limited { StatusCode::SERVICE_UNAVAILABLE } else { answer.status }, answer.body);
            for name in [header::CONTENT_TYPE, header::WWW_AUTHENTICATE, header::RETRY_AFTER] {
                if let Some(value) = answer.headers.get(&name) {
                    response.headers_mut().insert(name, value.clone());
                }
            }
            Ok(response)
        }
        Err(error) => Err(fault(&error)),
    }
}

/// Why a registry's authorisation service gave no token. Where it is, the registry has said, and not the client.
fn fault(error: &TokenError) -> Fault {
    match error {
        TokenError::Net(error) if error.is_timeout() => Fault::timeout(error.to_string()),
        TokenError::Late { .. } => Fault::timeout(error.to_string()),
        TokenError::Answer(answer) => Fault::upstream(
            StatusCode::BAD_GATEWAY,
            format!("The registry's authorisation service answered {} and no token.", answer.status),
        ),
        TokenError::Net(_) | TokenError::Broken { .. } => Fault::upstream(StatusCode::BAD_GATEWAY, error.to_string()),
    }
}

fn json(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
