//! An origin of one large file, which serves ranges and counts what it is asked for.

use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderMap, HeaderName, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::server::conn::auto;

use super::*;
use crate::net::Body;

/// What is served, and what was asked.
pub(super) struct Source {
    pub(super) content: Bytes,
    /// Headers of every answer with content.
    pub(super) headers: Mutex<Vec<(&'static str, String)>>,
    /// Whether ranges are honoured.
    pub(super) ranges: bool,
    /// The heads of all requests.
    pub(super) asked: Mutex<Vec<(http::Method, HeaderMap)>>,
    /// Bytes of content sent.
    pub(super) sent: AtomicU64,
}

impl Source {
    pub(super) fn new(length: usize, headers: &[(&'static str, &str)]) -> Self {
        let headers = headers.iter().map(|&(name, value)| (name, value.to_owned())).collect();
        Self {
            content: (0..length).map(|at| ((at * 31) >> 3) as u8).collect::<Vec<u8>>().into(),
            headers: Mutex::new(headers),
            ranges: true,
            asked: Mutex::default(),
            sent: AtomicU64::new(0),
        }
    }

    pub(super) async fn start(self) -> (SocketAddr, Arc<Self>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let source = Arc::new(self);
        let shared = source.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let source = shared.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    let answer = source.answer(&request);
                    async move { Ok::<_, std::convert::Infallible>(answer) }
                });
                // A client that goes away is one of the tests.
                tokio::spawn(async move {
                    let _ =
                        auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        (addr, source)
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        self.asked.lock().unwrap().push((request.method().clone(), request.headers().clone()));
        let mut answer = Response::new(crate::net::empty_body());
        for (name, value) in self.headers.lock().unwrap().iter() {
            answer.headers_mut().append(HeaderName::from_static(name), value.parse().unwrap());
        }
        let tag = answer.headers().get("etag").cloned();
        if tag.is_some() && request.headers().get("if-none-match") == tag.as_ref() {
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
            return answer;
        }
        let mut content = self.content.clone();
        let range = request.headers().get("range").filter(|_| self.ranges);
        // Several at once are ignored, as they may be.
        let range = range.filter(|range| !range.as_bytes().contains(&b',')).map(|range| range.to_str().unwrap());
        if let Some(range) = range {
            let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
            let first: usize = first.parse().unwrap();
            let last = last.parse().unwrap_or(content.len() - 1).min(content.len() - 1);
            let named = format!("bytes {first}-{last}/{}", content.len());
            answer.headers_mut().insert("content-range", named.parse().unwrap());
            *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
            content = content.slice(first..=last);
        }
        self.sent.fetch_add(content.len() as u64, Ordering::Relaxed);
        *answer.body_mut() = Full::new(content).map_err(|never| match never {}).boxed_unsync();
        answer
    }

    /// How many requests have come, and how many bytes have gone, since this was last called.
    pub(super) fn cost(&self) -> (usize, u64) {
        (std::mem::take(&mut *self.asked.lock().unwrap()).len(), self.sent.swap(0, Ordering::Relaxed))
    }
}
