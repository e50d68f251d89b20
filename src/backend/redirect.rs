//! Following a redirect of a GET: where to, and with which of the request's headers. Pure.

use http::header::{ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, HOST, IF_RANGE, LOCATION, RANGE, USER_AGENT, VIA};
use http::{HeaderMap, HeaderName, StatusCode, Uri};
use url::Url;

/// What another origin may be sent of a request: it says which bytes are wanted and in which form. Everything else may
/// be a credential, under whatever name.
const FOR_ANYBODY: [HeaderName; 7] = [ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, IF_RANGE, RANGE, USER_AGENT, VIA];

/// Where the answer sends a GET for `from`; `None` where it is no redirect that can be followed.
pub(super) fn target(from: &Uri, status: StatusCode, headers: &HeaderMap) -> Option<Uri> {
    if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = std::str::from_utf8(headers.get(LOCATION)?.as_bytes()).ok()?;
    let mut next = Url::parse(&from.to_string()).ok()?.join(location).ok()?;
    next.set_fragment(None);
    let web = matches!(next.scheme(), "http" | "https");
    let credentials = !next.username().is_empty() || next.password().is_some();
    (web && !credentials).then(|| next.as_str().parse().ok())?
}

/// Takes out of `headers` what the origin of `next` must not see, because it was meant for the origin of `from`.
pub(super) fn forget_credentials(from: &Uri, next: &Uri, headers: &mut HeaderMap) {
    headers.remove(HOST);
    if !same_origin(from, next) {
        let foreign: Vec<HeaderName> = headers.keys().filter(|name| !FOR_ANYBODY.contains(name)).cloned().collect();
        for name in foreign {
            headers.remove(name);
        }
    }
}

/// Whether both are of one origin (RFC 6454); what has none is of none.
pub(super) fn same_origin(one: &Uri, other: &Uri) -> bool {
    origin(one).is_some_and(|origin_of_one| origin(other) == Some(origin_of_one))
}

fn origin(uri: &Uri) -> Option<(String, String, u16)> {
    let url = Url::parse(&uri.to_string()).ok()?;
    Some((url.scheme().to_owned(), url.host_str()?.to_owned(), url.port_or_known_default()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_leads_where_its_location_says() {
        let from: Uri = "https://a.example/v2/x?q=1".parse().unwrap();
        for (status, location, leads) in [
            (307, Some("https://cdn.example/b?sig=%2F&x"), Some("https://cdn.example/b?sig=%2F&x")),
            (302, Some("/other#top"), Some("https://a.example/other")),
            (301, Some("y"), Some("https://a.example/v2/y")),
            (308, Some("//b.example:8443/z"), Some("https://b.example:8443/z")),
            (303, Some("http://a.example/"), Some("http://a.example/")),
            (307, Some("ftp://a.example/"), None),
            (307, Some("https://user:secret@a.example/"), None),
            (307, Some("http://["), None),
            (307, None, None),
            (304, Some("/x"), None),
            (200, Some("/x"), None),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(location) = location {
                headers.insert(LOCATION, location.parse().unwrap());
            }
            let got = target(&from, StatusCode::from_u16(status).unwrap(), &headers).map(|uri| uri.to_string());
            assert_eq!(got.as_deref(), leads, "{status} {location:?}");
        }
    }

    #[test]
    fn credentials_stay_with_their_origin() {
        for (from, next, kept) in [
            ("https://a.example/x", "https://a.example/y", true),
            ("https://a.example/x", "https://A.example:443/y", true),
            ("https://a.example/x", "http://a.example/x", false),
            ("https://a.example/x", "https://a.example:8443/x", false),
            ("https://a.example/x", "https://b.a.example/x", false),
        ] {
            let mut headers = HeaderMap::new();
            let secret = ["authorization", "cookie", "x-api-key", "private-token", "x-anything"];
            for name in secret.into_iter().chain(["host", "range", "accept"]) {
                headers.insert(HeaderName::from_static(name), "x".parse().unwrap());
            }
            forget_credentials(&from.parse().unwrap(), &next.parse().unwrap(), &mut headers);
            for name in secret {
                assert_eq!(headers.contains_key(name), kept, "{name} to {next}");
            }
            assert!(headers.contains_key(RANGE) && headers.contains_key(ACCEPT) && !headers.contains_key(HOST));
        }
    }
}
