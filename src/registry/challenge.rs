//! What a registry's 401 asks for (RFC 9110, 11.6.1; the token scheme of the distribution project). Pure.

use http::{HeaderMap, Uri, header};
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
        let base = url::Url::parse(&from.to_string()).ok()?;
        let mut url = base.join(&self.realm.to_string()).ok()?;
        if !matches!(url.scheme(), "http" | "https") || !url.username().is_empty() || url.password().is_some() {
            return None;
        }
        url.set_fragment(None);
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
