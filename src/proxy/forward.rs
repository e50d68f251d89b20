//! Passing a request on and its answer back, unchanged but for what belongs to a connection.
//!
//! Bodies stream both ways and are never gathered. Trailers go with them. An upgrade that the origin accepts becomes a
//! pipe of bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::header::Entry;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, request, response};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::access::{End, Record};
use super::fault::Fault;
use super::gate::ConnControl;
use super::handler::Inner;
use super::headers::{add_via, is_secret, priority, strip_answer, strip_hop_by_hop, strip_ours, upgrade};
use super::pipe::pipe;
use super::prefixed::PrefixedIo;
use super::respond::{GoAhead, Upload};
use super::route::{Target, named_host};
use super::tunnel::taken_over;
use crate::limit::{Class, Priority};
use crate::net::{Body, BoxError, NetError, ResponseBody, empty_body};
use crate::registry::Naming;

/// The headers of a request as its origin gets them.
pub(super) fn outbound(parts: &request::Parts, target: &Target, id: &str) -> HeaderMap {
    let mut headers = parts.headers.clone();
    strip_hop_by_hop(&mut headers);
    strip_ours(&mut headers);
    add_via(&mut headers, parts.version, id);
    join_cookies(&mut headers);
    if let Some(hops) = hops_left(parts).and_then(|hops| hops.checked_sub(1)) {
        headers.insert(header::MAX_FORWARDS, HeaderValue::from(hops));
    }
    match host(parts, target).or_else(|| HeaderValue::try_from(target.uri.authority()?.as_str()).ok()) {
        Some(host) => drop(headers.insert(header::HOST, host)),
        None => drop(headers.remove(header::HOST)),
    }
    headers
}

/// Over how many more proxies a request may go; only these two methods ask for such a limit (RFC 9110, 7.6.2).
pub(super) fn hops_left(parts: &request::Parts) -> Option<u64> {
    let limited = parts.method == Method::OPTIONS || parts.method == Method::TRACE;
    let hops = parts.headers.get(header::MAX_FORWARDS).filter(|_| limited)?.to_str().ok()?;
    hops.trim().parse().ok()
}

/// Our own answer to a request that goes no further.
pub(super) fn last_hop(parts: &request::Parts) -> Response<Body> {
    let mut response = Response::new(empty_body());
    if parts.method == Method::OPTIONS {
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(METHODS));
        return response;
    }
    // A trace shows the request as it came, without what is secret in it.
    let mut seen = format!("{} {} {:?}\r\n", parts.method, parts.uri, parts.version);
    for (name, value) in parts.headers.iter().filter(|(name, _)| !is_secret(name)) {
        seen += &format!("{name}: {}\r\n", String::from_utf8_lossy(value.as_bytes()));
    }
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("message/http"));
    *response.body_mut() = Full::from(seen + "\r\n").map_err(|never| match never {}).boxed_unsync();
    response
}

/// The methods that are passed on, as far as they have names.
const METHODS: &str = "GET, HEAD, POST, PUT, DELETE, CONNECT, OPTIONS, TRACE, PATCH";

/// Makes the cookies one line. Only HTTP/2 has them in several, and the origin may speak HTTP/1 (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let lines: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if lines.len() > 1
        && let Ok(one) = HeaderValue::from_bytes(&lines.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, one);
    }
}

/// The `Host` to send; `None` for the one that follows from the URL.
fn host(parts: &request::Parts, target: &Target) -> Option<HeaderValue> {
    let given = named_host(parts)?;
    // As the client wrote it where it means the same place (signatures cover it), else only if it spoke to the origin.
    let own = target.uri.authority()?.as_str();
    (given != own && (target.keep_host || target.is_named(&given))).then_some(given)
}

/// Makes what a mirrored registry points to lead back through the mirror: the client resolves it against us.
fn lead_back(headers: &mut HeaderMap, naming: &Naming, from: &Uri) {
    let led = |location: &str| naming.lead_back(from, location);
    let location = headers.get(header::LOCATION).and_then(|value| led(value.to_str().ok()?));
    if let Some(location) = location.and_then(|location| HeaderValue::try_from(location).ok()) {
        headers.insert(header::LOCATION, location);
    }
    // The rest of a list, and what refers to a manifest.
    if let Entry::Occupied(mut links) = headers.entry(header::LINK) {
        for link in links.iter_mut() {
            let new = link.to_str().ok().and_then(|link| HeaderValue::try_from(lead_links(link, led)).ok());
            *link = new.unwrap_or_else(|| link.clone());
        }
    }
}

/// A `Link` field, `<URL>; rel="next", <URL>; …` (RFC 8288), with other URLs where `led` knows them.
fn lead_links(links: &str, led: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(links.len());
    let mut rest = links;
    while let Some((before, (url, after))) =
        rest.split_once('<').and_then(|(before, link)| Some((before, link.split_once('>')?)))
    {
        out += &format!("{before}<{}>", led(url).as_deref().unwrap_or(url));
        // Its parameters end at a comma that is not quoted.
        let mut quoted = false;
        let end = after.find(|c| {
            quoted ^= c == '"';
            c == ',' && !quoted
        });
        let (parameters, next) = after.split_at(end.unwrap_or(after.len()));
        out += parameters;
        rest = next;
    }
    out + rest
}

/// What comes back from [`Inner::exchange`].
pub(super) type Answer = Response<ResponseBody>;

impl Inner {
    /// Sends the request to its origin and returns the head of the answer, whose body is still to come.
    pub(super) async fn exchange(
        &self,
        parts: &request::Parts,
        body: Incoming,
        target: &Target,
    ) -> Result<Answer, Fault> {
        let mut headers = outbound(parts, target, &self.config().id);
        if !body.is_end_stream() && !headers.contains_key(header::CONTENT_LENGTH) {
            // The library leaves a GET's body of unknown length away where nothing says that there is one.
            headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        let expects = headers.get(header::EXPECT).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        let go = (expects && !body.is_end_stream()).then(GoAhead::default);
        let limit = (self.limiter.flow(priority(&parts.headers)), Class::PassThrough);
        let (upload, failed) = Upload::new(body, self.config().idle, limit, go.clone());
        let answer = self.send(parts, headers, upload.boxed_unsync(), target, go.clone()).await;
        if let Some(go) = go {
            go.answered();
        }
        answer.map_err(|error| {
            if failed.load(Ordering::Relaxed) {
                return Fault::malformed("The request's body ended before it was whole.");
            }
            Fault::from(&error)
        })
    }

    /// Sends a request that has no body.
    pub(super) async fn fetch(
        &self,
        parts: &request::Parts,
        headers: HeaderMap,
        target: &Target,
    ) -> Result<Answer, Fault> {
        self.send(parts, headers, empty_body(), target, None).await.map_err(|error| Fault::from(&error))
    }

    pub(super) async fn send(
        &self,
        parts: &request::Parts,
        headers: HeaderMap,
        body: Body,
        target: &Target,
        go: Option<GoAhead>,
    ) -> Result<Answer, NetError> {
        let mut request = Request::new(body);
        *request.method_mut() = parts.method.clone();
        *request.uri_mut() = target.uri.clone();
        *request.headers_mut() = headers;
        // How the client wrote its header names, and whose connection it is.
        *request.extensions_mut() = parts.extensions.clone();
        // The library knows no interim answers on the client's side; over HTTP/1 the gate does.
        let control = parts.extensions.get::<Arc<ConnControl>>().filter(|_| parts.version == Version::HTTP_11).cloned();
        hyper::ext::on_informational(&mut request, move |answer| match (&go, &control) {
            // The library says so itself as soon as the body is asked for.
            (Some(go), _) if answer.status() == StatusCode::CONTINUE => go.open(),
            (_, Some(control)) => control.inform(answer.status(), answer.headers()),
            _ => {}
        });
        let asks = upgrade(&parts.headers).filter(|_| parts.version == Version::HTTP_11);
        match asks {
            None => self.http.send(request).await,
            Some(protocol) => {
                request.headers_mut().insert(header::UPGRADE, protocol);
                request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                self.http.send_upgrade(request).await
            }
        }
    }

    /// The origin's answer as the client gets it.
    pub(super) fn pass(&self, answer: Answer, target: &Target) -> Response<Body> {
        let (parts, body) = answer.into_parts();
        self.passed(parts, body.map_err(BoxError::from).boxed_unsync(), target)
    }

    /// The same, of an answer in its two halves.
    pub(super) fn passed(&self, parts: response::Parts, body: Body, target: &Target) -> Response<Body> {
        let mut response = Response::new(body);
        *response.status_mut() = parts.status;
        *response.extensions_mut() = parts.extensions;
        // A registry's "too many requests" stalls its clients for a minute; they take 503 as "ask elsewhere".
        if target.mirror.is_some() && parts.status == StatusCode::TOO_MANY_REQUESTS {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response.extensions_mut().remove::<ReasonPhrase>();
        }
        *response.headers_mut() = parts.headers;
        strip_answer(response.headers_mut(), parts.status);
        if let Some(naming) = &target.mirror {
            lead_back(response.headers_mut(), naming, &target.uri);
        }
        add_via(response.headers_mut(), parts.version, &self.config().id);
        response
    }

    /// The answer to a request to change protocols: what the origin says, and a pipe if it says yes.
    pub(super) fn switched(
        self: &Arc<Self>,
        client: OnUpgrade,
        mut answer: Answer,
        target: &Target,
        record: &mut Option<Record>,
    ) -> Response<Body> {
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return self.pass(answer, target);
        }
        let server = hyper::upgrade::on(&mut answer);
        let protocol = answer.headers().get(header::UPGRADE).cloned();
        let mut response = self.pass(answer, target);
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(protocol) = protocol {
            response.headers_mut().insert(header::UPGRADE, protocol);
        }
        if let Some(mut record) = record.take() {
            record.answered(StatusCode::SWITCHING_PROTOCOLS);
            tokio::spawn(self.clone().join(client, server, record));
        }
        response
    }

    async fn join(self: Arc<Self>, client: OnUpgrade, server: OnUpgrade, mut record: Record) {
        let _guard = self.drain.guard();
        let (Some((client, read)), Ok(server)) = tokio::join!(taken_over(client), server) else {
            return;
        };
        let down = AtomicU64::new(0);
        let (mut client, mut server) = (PrefixedIo::new(client, read), TokioIo::new(server));
        let flow = self.limiter.flow(Priority::default());
        let idle = self.config().tunnel_idle;
        let ended = pipe(&mut client, &mut server, idle, &flow, self.drain.draining(), &down).await;
        record.sent(down.into_inner());
        record.ended(if ended.is_ok() { End::Complete } else { End::Broken });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(uri: &str, lines: &[(&'static str, &'static str)]) -> request::Parts {
        let mut request = Request::builder().uri(uri);
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn target(uri: &str, keep_host: bool) -> Target {
        Target { keep_host, ..Target::new(uri.parse().unwrap(), None) }
    }

    #[test]
    fn the_host_is_the_urls_unless_the_client_spoke_to_the_origin() {
        for (uri, given, keep, want) in [
            ("http://a/", "a", false, Some("a")),
            ("http://a/", "b", false, Some("a")),
            ("http://a/", "A:80", false, Some("A:80")),
            ("http://a:80/", "a", false, Some("a")),
            ("https://a/", "a:443", false, Some("a:443")),
            ("https://a/", "a:80", false, Some("a")),
            ("https://1.2.3.4/", "name", true, Some("name")),
            ("https://a/", "a", true, Some("a")),
        ] {
            let headers = outbound(&parts("/", &[("host", given)]), &target(uri, keep), "me");
            assert_eq!(headers.get("host").map(|host| host.to_str().unwrap()), want, "{uri} {given} {keep}");
        }
        let headers = outbound(&parts("https://name/x", &[]), &target("https://1.2.3.4/x", true), "me");
        assert_eq!(headers["host"], "name", "HTTP/2 names the host in the target");
    }

    #[test]
    fn the_number_of_hops_goes_down() {
        for (method, given, left) in [
            ("OPTIONS", "3", Some("2")),
            ("TRACE", "1", Some("0")),
            ("OPTIONS", "0", Some("0")),
            ("GET", "3", Some("3")),
            ("OPTIONS", "x", Some("x")),
        ] {
            let mut sent = parts("http://a/", &[("max-forwards", given)]);
            sent.method = method.parse().unwrap();
            let headers = outbound(&sent, &target("http://a/", false), "me");
            assert_eq!(headers.get("max-forwards").map(|hops| hops.to_str().unwrap()), left, "{method} {given}");
        }
    }

    #[test]
    fn all_links_lead_back() {
        let mut headers = HeaderMap::new();
        for line in [
            r#"</v2/a/tags/list?n=1&last=b>; rel="next", <https://r/v2/a/tags/list>; title="x, <y>"; rel=first"#,
            "<//other/v2/a>",
            "no link, </v2/b>",
            "</v2/open",
        ] {
            headers.append("link", line.parse().unwrap());
        }
        lead_back(&mut headers, &Naming::Path("r".into()), &"https://r/v2/a/tags/list?n=1".parse().unwrap());
        assert_eq!(
            headers.get_all("link").iter().collect::<Vec<_>>(),
            [
                r#"</v2/r/a/tags/list?n=1&last=b>; rel="next", </v2/r/a/tags/list>; title="x, <y>"; rel=first"#,
                "<https://other/v2/a>",
                "no link, </v2/r/b>",
                "</v2/open",
            ]
        );
    }

    #[test]
    fn cookies_go_out_in_one_line() {
        let sent = parts("/", &[("cookie", "a=b"), ("accept", "x"), ("cookie", "c=d"), ("accept", "y")]);
        let headers = outbound(&sent, &target("http://a/", false), "me");
        assert_eq!(headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=b; c=d"]);
        assert_eq!(headers.get_all("accept").iter().count(), 2);
    }

    #[test]
    fn an_origin_sees_what_the_client_sent_and_our_name() {
        let sent = parts(
            "/",
            &[
                ("accept", "a"),
                ("accept", "b"),
                ("x-dragonfly-tag", "t"),
                ("proxy-authorization", "Basic x"),
                ("via", "1.0 other"),
            ],
        );
        let headers = outbound(&sent, &target("http://a/", false), "me");
        assert_eq!(headers.get_all("accept").iter().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(headers.get_all("via").iter().collect::<Vec<_>>(), ["1.0 other", "1.1 me"]);
        assert_eq!(headers.keys().map(http::HeaderName::as_str).collect::<Vec<_>>(), ["accept", "via", "host"]);
    }
}
