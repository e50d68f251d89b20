//! Asking for a URL: through the daemon's Unix socket, or directly. Redirects are followed either way.
//!
//! **What the user gave for the origin goes to that origin alone**: a redirect to another one loses it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::timeout;
use url::Url;

use super::args::Order;
use crate::net::{BoxError, HttpClient, ResponseBody};

/// How long connecting to the daemon may take.
const CONNECT: Duration = Duration::from_secs(5);

/// How long the head of an answer may take; the daemon may be waiting for its peers.
const HEAD: Duration = Duration::from_secs(120);

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 10;

/// Says that an answer is the daemon's own, not the origin's.
const ERROR_TYPE: &str = "x-dragonfly-error-type";

const AGENT: HeaderValue = HeaderValue::from_static(concat!("dfget/", env!("CARGO_PKG_VERSION")));

/// Why an attempt failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// The daemon, or something on its way: going directly may help.
    Way(String),
    /// The origin's answer, or our own trouble: nothing else would help.
    Final(anyhow::Error),
}

impl Fault {
    pub(super) fn fatal(text: impl fmt::Display) -> Self {
        Self::Final(anyhow::anyhow!("{text}"))
    }
}

/// The way to the origin.
#[derive(Clone)]
pub(super) enum Via {
    /// Through the daemon that listens here.
    Daemon(PathBuf),
    /// Without a daemon.
    Direct(HttpClient),
}

impl Via {
    /// The first of the sockets on which a daemon answers.
    pub(super) async fn daemon(sockets: &[PathBuf]) -> Result<Self, String> {
        let mut why = String::from("no socket is configured");
        for path in sockets {
            match connect(path).await {
                Ok(_) => return Ok(Self::Daemon(path.clone())),
                Err(error) => why = format!("no daemon answers at {}: {error}", path.display()),
            }
        }
        Err(why)
    }

    /// The origin's answer to a GET of the order's URL, redirects followed: 200, or 206 where a range was asked for.
    pub(super) async fn get(&self, order: &Order) -> Result<Response<ResponseBody>, Fault> {
        let mut url = order.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.ask(order, &url).await?;
            let status = response.status();
            match redirect(&response, &url).map_err(Fault::fatal)? {
                Some(next) => url = next,
                None => return accept(order, response, status),
            }
        }
        Err(Fault::fatal(format_args!("more than {MAX_REDIRECTS} redirects")))
    }

    async fn ask(&self, order: &Order, url: &Url) -> Result<Response<ResponseBody>, Fault> {
        let request = self.request(order, url).map_err(Fault::fatal)?;
        let answer = async {
            match self {
                Self::Daemon(path) => {
                    let response = through(path, request).await.map_err(|error| Fault::Way(error.to_string()))?;
                    Ok(response.map(ResponseBody::from))
                }
                Self::Direct(client) => {
                    let request = request.map(|body| body.map_err(|never| match never {}).boxed_unsync());
                    client.send(request).await.map_err(Fault::fatal)
                }
            }
        };
        let late = || Fault::Way(format!("no answer for {} s", HEAD.as_secs()));
        timeout(HEAD, answer).await.map_err(|_| late())?
    }

    fn request(&self, order: &Order, url: &Url) -> Result<Request<Empty<Bytes>>, http::Error> {
        let mut plain = url.clone();
        plain.set_fragment(None);
        let uri: Uri = plain.as_str().parse()?;
        let mut request = Request::get(uri.clone()).body(Empty::new())?;
        let headers = request.headers_mut();
        headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
        headers.insert(header::USER_AGENT, AGENT);
        if same_origin(url, &order.url) {
            headers.extend(order.origin_headers.clone());
        }
        if let Some(range) = &order.range {
            headers.insert(header::RANGE, range.clone());
        }
        if let (Self::Daemon(_), Some(authority)) = (self, uri.authority()) {
            headers.extend(order.daemon_headers.clone());
            headers.insert(header::HOST, HeaderValue::from_str(authority.as_str())?);
        }
        Ok(request)
    }
}

async fn connect(path: &std::path::Path) -> std::io::Result<UnixStream> {
    timeout(CONNECT, UnixStream::connect(path)).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

/// One exchange with the daemon, on a connection of its own.
async fn through(path: &std::path::Path, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>, BoxError> {
    let stream = connect(path).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the answer's body, which also tells of its errors.
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}

fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme() && a.host() == b.host() && a.port_or_known_default() == b.port_or_known_default()
}

/// Where an answer sends us, if it does.
fn redirect<B>(response: &Response<B>, from: &Url) -> Result<Option<Url>, String> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let wrong = || format!("the origin answered {} without saying where to", response.status());
    let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok()).ok_or_else(wrong)?;
    let next = from.join(location).map_err(|_| wrong())?;
    match next.scheme() {
        "http" | "https" => Ok(Some(next)),
        other => Err(format!("the origin redirects to a URL of the kind {other}")),
    }
}

fn accept<B>(order: &Order, response: Response<B>, status: StatusCode) -> Result<Response<B>, Fault> {
    match (status, &order.range) {
        (StatusCode::OK, None) | (StatusCode::PARTIAL_CONTENT, Some(_)) => Ok(response),
        _ if response.headers().contains_key(ERROR_TYPE) => Err(Fault::Way(format!("the daemon answered {status}"))),
        (StatusCode::OK, Some(_)) => Err(Fault::fatal("the origin does not serve ranges")),
        _ => Err(Fault::fatal(format_args!("the origin answered {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::args::Args;
    use super::*;
    use clap::Parser as _;

    fn order(line: &[&str]) -> Order {
        let line = ["dfget", "-O", "f", "http://a.example/x#frag", "-H", "Authorization: b"].iter().chain(line);
        Order::of(&Args::try_parse_from(line).unwrap()).unwrap()
    }

    fn answer(status: u16, headers: &[(&str, &str)]) -> Response<()> {
        let mut builder = Response::builder().status(status);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    #[test]
    fn what_is_for_the_origin_stays_with_it() {
        let order = order(&["--tag", "t"]);
        let via = Via::Daemon("/s".into());
        for (url, trusted) in [
            ("http://a.example/y", true),
            ("http://a.example:80/y", true),
            ("http://a.example:81/y", false),
            ("https://a.example/y", false),
            ("http://b.example/y", false),
        ] {
            let request = via.request(&order, &Url::parse(url).unwrap()).unwrap();
            assert_eq!(request.headers().contains_key("authorization"), trusted, "{url}");
            assert_eq!(request.headers()["x-dragonfly-tag"], "t");
        }
    }

    #[test]
    fn the_daemon_is_asked_in_absolute_form() {
        let order = order(&["--range", "0-9"]);
        let request = Via::Daemon("/s".into()).request(&order, &order.url).unwrap();
        assert_eq!(request.uri().to_string(), "http://a.example/x");
        assert_eq!(request.headers()["host"], "a.example");
        assert_eq!(request.headers()["range"], "bytes=0-9");
        assert_eq!(request.headers()["x-dragonfly-use-p2p"], "true");
    }

    #[test]
    fn redirects() {
        let from = Url::parse("https://a.example/d/x?y").unwrap();
        for (location, to) in [
            ("/z", "https://a.example/z"),
            ("z", "https://a.example/d/z"),
            ("//b.example/z", "https://b.example/z"),
            ("http://b.example/z?q", "http://b.example/z?q"),
        ] {
            let next = redirect(&answer(302, &[("location", location)]), &from).unwrap();
            assert_eq!(next.unwrap().as_str(), to);
        }
        assert!(redirect(&answer(302, &[]), &from).is_err());
        assert!(redirect(&answer(302, &[("location", "file:///etc/passwd")]), &from).is_err());
        assert!(redirect(&answer(200, &[("location", "/z")]), &from).unwrap().is_none());
        assert!(redirect(&answer(304, &[("location", "/z")]), &from).unwrap().is_none());
    }

    #[test]
    fn answers_are_the_content_the_ways_fault_or_final() {
        let judge = |line: &[&str], status: u16, headers: &[(&str, &str)]| {
            let response = answer(status, headers);
            match accept(&order(line), response, StatusCode::from_u16(status).unwrap()) {
                Ok(_) => "content",
                Err(Fault::Way(_)) => "way",
                Err(Fault::Final(_)) => "final",
            }
        };
        assert_eq!(judge(&[], 200, &[]), "content");
        assert_eq!(judge(&["--range", "0-1"], 206, &[]), "content");
        assert_eq!(judge(&["--range", "0-1"], 200, &[]), "final");
        assert_eq!(judge(&[], 404, &[]), "final");
        assert_eq!(judge(&[], 206, &[]), "final");
        assert_eq!(judge(&[], 502, &[]), "final");
        assert_eq!(judge(&[], 502, &[(ERROR_TYPE, "backend")]), "way");
    }
}
