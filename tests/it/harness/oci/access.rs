//! Who may do what: challenges, tokens, and the endpoint that gives them out.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, StatusCode};
use serde_json::json;

use super::answer::{Answer, error, of_json, set};
use super::serve::Asked;
use super::state::{Knobs, Scope, State, TokenEndpoint};
use super::{Access, SERVICE};

/// Why a request is refused, in the words of RFC 6750; empty: it has brought no credentials.
struct Refusal(&'static str);

/// The refusal of a request that may not do this with the repository. Without a repository it has only to come from
/// somebody who is let in at all.
pub(super) fn check(asked: &Asked, state: &State, knobs: &Knobs, wanted: Option<(&str, &str)>) -> Option<Answer> {
    let store = state.store();
    let user = match state.access {
        Access::Open => return None,
        Access::Basic => match basic(asked) {
            Some((user, password)) if store.knows(&user, &password) => Ok(Some(user)),
            Some(_) => Err(Refusal("invalid_credentials")),
            None => Err(Refusal("")),
        },
        Access::AnonymousToken | Access::UserToken => match asked.line("authorization") {
            None => Err(Refusal("")),
            Some(line) => match line.strip_prefix("Bearer ").and_then(|token| store.live_token(token)) {
                None => Err(Refusal("invalid_token")),
                Some(token) if wanted.is_none_or(|(name, action)| token.allows(name, action)) => Ok(token.user.clone()),
                Some(_) => Err(Refusal("insufficient_scope")),
            },
        },
    };
    match (user, wanted) {
        (Err(refusal), _) => Some(challenge(&refusal, state, knobs, wanted)),
        (Ok(Some(user)), Some((name, _))) if store.forbidden.contains(&(user.clone(), name.to_owned())) => {
            Some(error(StatusCode::FORBIDDEN, "DENIED", "requested access to the resource is denied"))
        }
        _ => None,
    }
}

fn challenge(refusal: &Refusal, state: &State, knobs: &Knobs, wanted: Option<(&str, &str)>) -> Answer {
    if let Some(status) = knobs.sign_in {
        let mut answer = sign_in();
        *answer.status_mut() = StatusCode::from_u16(status).expect("a status");
        if answer.status().is_redirection() {
            set(&mut answer, "location", "/sign-in?state=x&code_challenge=y");
        }
        return answer;
    }
    let mut answer = error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "authentication required");
    if state.access == Access::Basic {
        set(&mut answer, "www-authenticate", "Basic realm=\"the tests' own\"");
        return answer;
    }
    let realm = knobs.realm.clone().unwrap_or_else(|| state.token_url());
    let scope = wanted.map(|(name, action)| {
        let actions = if action == "push" { "pull,push" } else { action };
        format!("repository:{name}:{actions}")
    });
    if knobs.odd_challenge {
        let scope = scope.map(|scope| format!(" , SCOPE=\"{scope}\"")).unwrap_or_default();
        let odd = format!(
            "Negotiate,  Digest realm=\"a, \\\"b\\\"\", nonce=\"x\", bearer  Realm = \"{realm}\" ,service=\"{SERVICE}\"{scope}"
        );
        set(&mut answer, "www-authenticate", "NTLM");
        answer.headers_mut().append("www-authenticate", odd.parse().expect("a valid value"));
        return answer;
    }
    let mut line = format!("Bearer realm=\"{realm}\",service=\"{SERVICE}\"");
    if let Some(scope) = scope {
        line.push_str(&format!(",scope=\"{scope}\""));
    }
    if !refusal.0.is_empty() {
        line.push_str(&format!(",error=\"{}\"", refusal.0));
    }
    set(&mut answer, "www-authenticate", &line);
    answer
}

/// A page for people, as gateways show it to callers whom they do not know.
pub(super) fn sign_in() -> Answer {
    let mut answer = Answer::new("<html><body>Sign in!</body></html>".into());
    set(&mut answer, "content-type", "text/html");
    answer
}

/// The user and the password that a request names.
fn basic(asked: &Asked) -> Option<(String, String)> {
    let coded = asked.line("authorization")?.strip_prefix("Basic ")?;
    let text = String::from_utf8(STANDARD.decode(coded).ok()?).ok()?;
    text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
}

/// Gives out a token, to GET with a password in `Authorization`, or to POST with one in a form (OAuth 2).
pub(super) async fn token_endpoint(asked: &Asked, state: &State, knobs: &Knobs) -> io::Result<Answer> {
    if let Some(gate) = &knobs.token_gate {
        gate.pass(0).await;
    }
    match knobs.token_endpoint {
        TokenEndpoint::Good => {}
        TokenEndpoint::Down => return Err(io::ErrorKind::ConnectionAborted.into()),
        TokenEndpoint::Html => return Ok(sign_in()),
        TokenEndpoint::TooMany(seconds) => {
            let mut answer = error(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "come back later");
            set(&mut answer, "retry-after", &seconds.to_string());
            return Ok(answer);
        }
        TokenEndpoint::TooManyUnsaid => {
            return Ok(error(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "come back later"));
        }
    }
    Ok(if asked.head.method == Method::GET {
        give_for_get(asked, state, knobs)
    } else {
        give_for_form(asked, state, knobs)
    })
}

fn give_for_get(asked: &Asked, state: &State, knobs: &Knobs) -> Answer {
    let query = asked.head.uri.query().unwrap_or_default();
    let fields = Fields(url::form_urlencoded::parse(query.as_bytes()).into_owned().collect());
    let user = match basic(asked) {
        None if asked.line("authorization").is_some() => return unauthorized(),
        None => None,
        Some((user, password)) if state.store().knows(&user, &password) => Some(user),
        Some(_) => return unauthorized(),
    };
    give(user, &fields, state, knobs, "token")
}

fn give_for_form(asked: &Asked, state: &State, knobs: &Knobs) -> Answer {
    let fields = Fields(url::form_urlencoded::parse(&asked.body).into_owned().collect());
    let user = match fields.first("grant_type") {
        "password" if state.store().knows(fields.first("username"), fields.first("password")) => {
            Some(fields.first("username").to_owned())
        }
        "refresh_token" => state.store().refresh.get(fields.first("refresh_token")).cloned(),
        _ => None,
    };
    match user {
        Some(user) => give(Some(user), &fields, state, knobs, "access_token"),
        None => unauthorized(),
    }
}

fn unauthorized() -> Answer {
    error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "incorrect username or password")
}

/// A token for as much of what is asked for as this user may do.
fn give(user: Option<String>, fields: &Fields, state: &State, knobs: &Knobs, name: &str) -> Answer {
    if fields.first("service") != SERVICE {
        return error(StatusCode::BAD_REQUEST, "UNSUPPORTED", "another service is meant");
    }
    let mut store = state.store();
    let mut granted = Vec::<Scope>::new();
    for scope in fields.all("scope").flat_map(str::split_whitespace) {
        let Some((repository, actions)) = scope.strip_prefix("repository:").and_then(|rest| rest.rsplit_once(':'))
        else {
            continue;
        };
        let may = |action: &str| match &user {
            Some(_) => true,
            None => state.access == Access::AnonymousToken && action == "pull",
        };
        let actions = actions.split(',').filter(|action| may(action)).map(Into::into).collect();
        granted.push((repository.into(), actions));
    }
    let token = store.issue(user.as_deref(), granted, knobs.token_lifetime);
    let mut answer = json!({ name: token, "expires_in": knobs.token_lifetime.as_secs() });
    let wants_refresh = fields.first("access_type") == "offline" || fields.first("offline_token") == "true";
    if let (Some(user), true) = (user, wants_refresh) {
        let refresh = format!("{}-refresh", super::super::SECRET);
        store.refresh.insert(refresh.clone(), user);
        answer["refresh_token"] = refresh.into();
    }
    of_json(StatusCode::OK, &answer)
}

/// The fields of a query or a form.
struct Fields(Vec<(String, String)>);

impl Fields {
    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    fn first<'a>(&'a self, name: &'a str) -> &'a str {
        self.all(name).next().unwrap_or_default()
    }
}
