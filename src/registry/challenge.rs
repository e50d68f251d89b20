//! What a registry's 401 asks for (RFC 9110, 11.6.1; the token scheme of the distribution project). Pure.

use http::{HeaderMap, HeaderValue, Uri, header};
use http_auth::parse_challenges;

/// What a registry wants of a caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// A token of this service.
    Bearer(Bearer),
    /// A user name and a password with each request.
    Basic,
}

/// Where a token is to be had, and for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bearer {
    /// The token service's URL; it may have a query.
    pub realm: Uri,
    /// The service's name for the registry.
    pub service: Option<String>,
    /// What the token is to be good for.
    pub scope: Option<String>,
    /// The token that was brought is good, but not for this: another one for the same caller would be no better.
    pub insufficient: bool,
}

impl Challenge {
    /// What the answer with these headers asks for; the token where it leaves the choice. `None` where it asks for
    /// nothing that we understand.
    pub fn find(headers: &HeaderMap) -> Option<Self> {
        let mut basic = false;
        for line in headers.get_all(header::WWW_AUTHENTICATE) {
            let line = line.to_str().map(single_spaced).unwrap_or_default();
            let Ok(challenges) = parse_challenges(&line) else { continue };
            for challenge in challenges {
                if challenge.scheme.eq_ignore_ascii_case("basic") {
                    basic = true;
                    continue;
                }
                if !challenge.scheme.eq_ignore_ascii_case("bearer") {
                    continue;
                }
                let named = |name: &str| {
                    let found = challenge.params.iter().find(|(own, _)| own.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.to_unescaped())
                };
                let realm: Option<Uri> = named("realm").and_then(|realm| realm.parse().ok());
                if let Some(realm) = realm {
                    let insufficient = named("error").is_some_and(|error| error == "insufficient_scope");
                    let (service, scope) = (named("service"), named("scope"));
                    return Some(Self::Bearer(Bearer { realm, service, scope, insufficient }));
                }
            }
        }
        basic.then_some(Self::Basic)
    }
}

/// The challenge for a token in an answer with these headers, sending to another realm; what it says of scope and error
/// stays. `None` where it asks for no token.
pub fn with_realm(headers: &HeaderMap, realm: &str, service: &str) -> Option<HeaderValue> {
    let lines = headers.get_all(header::WWW_AUTHENTICATE).iter();
    for line in lines.filter_map(|line| line.to_str().ok()).map(single_spaced) {
        let challenges = parse_challenges(&line).unwrap_or_default();
        let Some(bearer) = challenges.into_iter().find(|own| own.scheme.eq_ignore_ascii_case("bearer")) else {
            continue;
        };
        let mut text = format!("Bearer realm={},service={}", quoted(realm), quoted(service));
        for (name, value) in bearer.params {
            if !["realm", "service"].iter().any(|ours| name.eq_ignore_ascii_case(ours)) {
                text += &format!(",{name}={}", quoted(&value.to_unescaped()));
            }
        }
        return HeaderValue::try_from(text).ok();
    }
    None
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A header line with single spaces outside of quoted text: the parser takes no others, registries write others.
fn single_spaced(line: &str) -> String {
    let (mut out, mut quoted, mut escaped) = (String::with_capacity(line.len()), false, false);
    for c in line.trim().chars() {
        match c {
            ' ' | '\t' if !quoted => {
                if !out.ends_with(' ') {
                    out.push(' ');
                }
                continue;
            }
            '"' if !escaped => quoted = !quoted,
            _ => {}
        }
        escaped = c == '\\' && quoted && !escaped;
        out.push(c);
    }
    out
}

impl Bearer {
    /// The URL that gives a token for these scopes, the challenge's own where there are none. A realm that is relative
    /// is one of the registry at `from`. `None` where the realm leads nowhere.
    pub fn token_url(&self, from: &Uri, scopes: &[String]) -> Option<Uri> {
        let mut url = self.service_url(from)?;
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = &self.service {
                query.append_pair("service", service);
            }
            let own = self.scope.as_slice().iter();
            for scope in if scopes.is_empty() { own } else { scopes.iter() } {
                query.append_pair("scope", scope);
            }
        }
        url.as_str().parse().ok()
    }

    /// Where a form with such a question goes, and the service and the scopes as fields of the form.
    pub fn token_form<'a>(&'a self, from: &Uri, scopes: &'a [String]) -> Option<(Uri, Vec<(&'static str, String)>)> {
        let service = self.service.clone().map(|service| ("service", service));
        let own = self.scope.clone().filter(|_| scopes.is_empty());
        let scope = own.or_else(|| (!scopes.is_empty()).then(|| scopes.join(" ")));
        let fields = service.into_iter().chain(scope.map(|scope| ("scope", scope))).collect();
        Some((self.service_url(from)?.as_str().parse().ok()?, fields))
    }

    fn service_url(&self, from: &Uri) -> Option<url::Url> {
        let base = url::Url::parse(&from.to_string()).ok()?;
        let mut url = base.join(&self.realm.to_string()).ok()?;
        if !matches!(url.scheme(), "http" | "https") || !url.username().is_empty() || url.password().is_some() {
            return None;
        }
        url.set_fragment(None);
        Some(url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(lines: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header::WWW_AUTHENTICATE, line.parse().unwrap());
        }
        match Challenge::find(&headers) {
            None => "none".into(),
            Some(Challenge::Basic) => "basic".into(),
            Some(Challenge::Bearer(bearer)) => format!(
                "{} {} {}",
                bearer.realm,
                bearer.service.as_deref().unwrap_or("-"),
                bearer.scope.as_deref().unwrap_or("-")
            ),
        }
    }

    #[test]
    fn challenges_are_read_however_they_are_written() {
        for (lines, want) in [
            (
                &[r#"Bearer realm="https://a.example/token",service="s",scope="repository:x:pull""#][..],
                "https://a.example/token s repository:x:pull",
            ),
            (&[r#"bearer   realm = "https://a.example/t" ,  service="a,b"  "#], "https://a.example/t a,b -"),
            (&[r#"Basic realm="x", Bearer realm="https://a.example/t""#], "https://a.example/t - -"),
            (
                &[r#"Basic realm="x, y""#, r#"Bearer realm="https://a.example/t",service="s""#],
                "https://a.example/t s -",
            ),
            (&[r#"Bearer realm="/token",service="s\"q""#], "/token s\"q -"),
            (&["Basic realm=x"], "basic"),
            (&["Basic"], "basic"),
            (&["Negotiate"], "none"),
            (&["Bearer service=\"s\""], "none"),
            (&["Bearer realm=\"\""], "none"),
            (&[], "none"),
        ] {
            assert_eq!(find(lines), want, "{lines:?}");
        }
    }

    #[test]
    fn a_challenge_that_sends_elsewhere_asks_for_the_same() {
        for (lines, want) in [
            (
                &[r#"Bearer realm="https://a.example/t",service="s",scope="repository:x:pull",error="invalid_token""#]
                    [..],
                Some(
                    r#"Bearer realm="http://m/token?ns=r",service="us",scope="repository:x:pull",error="invalid_token""#,
                ),
            ),
            (
                &["NTLM", r#"Basic realm="b", bearer  Realm = "/t" ,scope="a,\"b""#],
                Some(r#"Bearer realm="http://m/token?ns=r",service="us",scope="a,\"b""#),
            ),
            (&[r#"Basic realm="b""#], None),
            (&[], None),
        ] {
            let headers = lines.iter().map(|line| (header::WWW_AUTHENTICATE, line.parse().unwrap()));
            let mut all = HeaderMap::new();
            headers.for_each(|(name, value): (_, HeaderValue)| _ = all.append(name, value));
            let found = with_realm(&all, "http://m/token?ns=r", "us");
            assert_eq!(found.as_ref().map(|value| value.to_str().unwrap()), want, "{lines:?}");
        }
    }

    #[test]
    fn a_token_is_asked_for_where_the_realm_says() {
        let from: Uri = "https://registry.example/v2/".parse().unwrap();
        for (realm, scopes, want) in [
            ("https://a.example/t", &[][..], Some("https://a.example/t?service=s&scope=own")),
            (
                "https://a.example/t?x=1",
                &["repository:b:pull"],
                Some("https://a.example/t?x=1&service=s&scope=repository%3Ab%3Apull"),
            ),
            ("/t", &["a", "b"], Some("https://registry.example/t?service=s&scope=a&scope=b")),
            ("ftp://a.example/t", &[], None),
            ("https://u:p@a.example/t", &[], None),
        ] {
            let (service, scope) = (Some("s".into()), Some("own".into()));
            let bearer = Bearer { realm: realm.parse().unwrap(), service, scope, insufficient: false };
            let scopes: Vec<String> = scopes.iter().map(|&scope| scope.into()).collect();
            assert_eq!(bearer.token_url(&from, &scopes).map(|url| url.to_string()).as_deref(), want, "{realm}");
        }
    }
}
