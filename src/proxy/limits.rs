//! The limits of bandwidth, for `dfctl limit`: at the socket for tools on this host, and nowhere else.
//!
//! `GET http://damselfly.local/limits` shows them; `PUT http://damselfly.local/limits/CLASS?total=BYTES&perTask=BYTES` sets
//! what it names, 0 being none, until the configuration is read again. **Only root and the daemon's own user set them:**
//! who else may use the socket, or the proxy, may not slow this host down, or load its links.

use std::num::NonZeroU64;

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, Uri, header, request};
use http_body_util::{BodyExt as _, Full};
use serde::{Deserialize, Serialize};
use url::form_urlencoded;

use super::fault::Fault;
use super::route::SocketCaller;
use crate::limit::{Class, Limit, Limiter};
use crate::net::Body;

/// Where they are, at the page's host.
pub const PATH: &str = "/limits";

/// What is shown of one class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShownLimit {
    /// Its name.
    pub class: String,
    /// The whole host's limit in bytes a second, if there is one.
    pub total: Option<u64>,
    /// The limit of each task, or of each request that is passed on, if there is one.
    pub per_task: Option<u64>,
    /// How many bytes moved a second, lately; not known without a limit.
    pub rate: Option<u64>,
    /// How many transfers wait.
    pub waiting: usize,
}

/// Whether a URL of the page's host is one of these.
pub(super) fn is_meant(uri: &Uri) -> bool {
    uri.path().strip_prefix(PATH).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Shows or sets limits, as the request says.
pub(super) fn answer(parts: &request::Parts, limiter: &Limiter, caller: Option<SocketCaller>) -> Response<Body> {
    respond(parts, limiter, caller).unwrap_or_else(Fault::into_response)
}

fn respond(parts: &request::Parts, limiter: &Limiter, caller: Option<SocketCaller>) -> Result<Response<Body>, Fault> {
    let refuse = |why: &'static str| Err(Fault::client(StatusCode::FORBIDDEN, why));
    let Some(caller) = caller else {
        return refuse("The limits are shown and set at the daemon's socket only.");
    };
    let class = parts.uri.path().strip_prefix(PATH).unwrap_or_default().trim_start_matches('/');
    match (&parts.method, class) {
        (&Method::GET | &Method::HEAD, "") => {}
        (&Method::PUT, _) if !caller.operates => {
            return refuse("Only root and the daemon's own user set the limits.");
        }
        (&Method::PUT, class) => {
            let class = class.parse().map_err(|why: String| Fault::client(StatusCode::NOT_FOUND, why))?;
            let limit = changed(limiter.limit(class), parts.uri.query().unwrap_or_default());
            set(limiter, class, limit.map_err(|why| Fault::client(StatusCode::BAD_REQUEST, why))?);
        }
        _ => return Err(Fault::client(StatusCode::METHOD_NOT_ALLOWED, "GET shows the limits, PUT sets one class's.")),
    }
    Ok(shown(parts, limiter))
}

fn set(limiter: &Limiter, class: Class, limit: Limit) {
    limiter.set(class, limit);
    let bytes = |rate: Option<NonZeroU64>| rate.map_or_else(|| "none".to_owned(), |rate| rate.to_string());
    tracing::info!(
        class = class.name(),
        total = bytes(limit.total),
        per_task = bytes(limit.per_flow),
        "a limit of bandwidth was set at the socket: it holds until the configuration is read again"
    );
}

/// The limit with what the query names.
fn changed(mut limit: Limit, query: &str) -> Result<Limit, String> {
    let mut named = false;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let place = match &*name {
            "total" => &mut limit.total,
            "perTask" => &mut limit.per_flow,
            _ => return Err(format!("{name:?} is neither total nor perTask.")),
        };
        let rate = value.parse().map_err(|_| format!("{name} is no number of bytes."))?;
        *place = Limit::rate(rate).map_err(|why| format!("{name} {why}."))?;
        named = true;
    }
    if named { Ok(limit) } else { Err("Neither total nor perTask is named.".into()) }
}

fn shown(parts: &request::Parts, limiter: &Limiter) -> Response<Body> {
    let classes = limiter.report().into_iter().map(|report| ShownLimit {
        class: report.class.name().to_owned(),
        total: report.limit.total.map(NonZeroU64::get),
        per_task: report.limit.per_flow.map(NonZeroU64::get),
        rate: report.rate,
        waiting: report.waiting,
    });
    let text = serde_json::to_vec(&classes.collect::<Vec<_>>()).unwrap_or_default();
    let body = if parts.method == Method::HEAD { Bytes::new() } else { Bytes::from(text) };
    let mut response = Response::new(Full::new(body).map_err(|never| match never {}).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(limiter: &Limiter, method: Method, path: &str, caller: Option<bool>) -> (u16, String) {
        let mut request = http::Request::get(format!("http://damselfly.local{path}"));
        request = request.method(method);
        let parts = request.body(()).unwrap().into_parts().0;
        assert!(is_meant(&parts.uri), "{path}");
        let response = answer(&parts, limiter, caller.map(|operates| SocketCaller { operates }));
        let (head, body) = response.into_parts();
        let body = futures_util::FutureExt::now_or_never(body.collect()).unwrap().unwrap().to_bytes();
        (head.status.as_u16(), String::from_utf8(body.to_vec()).unwrap())
    }

    #[test]
    fn limits_are_set_by_those_who_operate_the_daemon_and_shown_at_the_socket() {
        let limiter = Limiter::default();
        let put = |path: &str, caller| ask(&limiter, Method::PUT, path, caller).0;
        assert_eq!(put("/limits/download?total=1000000", None), 403);
        assert_eq!(put("/limits/download?total=1000000", Some(false)), 403);
        assert!(!limiter.limit(Class::Download).is_some());
        assert_eq!(put("/limits/download?total=1000000", Some(true)), 200);
        assert_eq!(put("/limits/download?perTask=500000", Some(true)), 200);
        let limit = limiter.limit(Class::Download);
        assert_eq!((limit.total, limit.per_flow), (NonZeroU64::new(1_000_000), NonZeroU64::new(500_000)));
        for (path, status) in [
            ("/limits/downloads?total=1000000", 404),
            ("/limits/download?total=9", 400),
            ("/limits/download?total=much", 400),
            ("/limits/download?most=1000000", 400),
            ("/limits/download", 400),
            ("/limits?total=1000000", 404),
        ] {
            assert_eq!(put(path, Some(true)), status, "{path}");
        }
        assert_eq!(ask(&limiter, Method::GET, "/limits", None).0, 403);
        assert_eq!(ask(&limiter, Method::POST, "/limits", Some(true)).0, 405);
        let (status, text) = ask(&limiter, Method::GET, "/limits", Some(false));
        let shown: Vec<ShownLimit> = serde_json::from_str(&text).unwrap();
        assert_eq!((status, shown.len()), (200, Class::ALL.len()));
        assert_eq!((&*shown[0].class, shown[0].total, shown[0].rate), ("download", Some(1_000_000), Some(0)));
        assert_eq!((&*shown[1].class, shown[1].total, shown[1].rate), ("back-to-source", None, None));
        assert_eq!(put("/limits/download?total=0&perTask=0", Some(true)), 200);
        assert!(!limiter.limit(Class::Download).is_some());
    }
}
