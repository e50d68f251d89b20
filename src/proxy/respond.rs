//! The body of every answer on its way to the client: counted, bounded in time, and never ended cleanly when it is not
//! whole.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::Response;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep};

use super::access::{End, Record};
use super::gate::ConnControl;
use crate::limit::{Class, Flow, LimitedBody};
use crate::net::{Body, BoxError};

/// Nothing moved for longer than we wait.
#[derive(Debug, thiserror::Error)]
#[error("nothing came for {} s", .0.as_secs())]
pub(super) struct Quiet(Duration);

/// Has `record` follow `response` to its end. Where the body fails, `control` (an HTTP/1 connection's) resets it at its end; on
/// HTTP/2 the library resets the stream. What it holds counts as `connection`'s. It comes as fast as `limit` allows.
pub(super) fn follow(
    response: Response<Body>,
    mut record: Record,
    (control, connection): (Option<Arc<ConnControl>>, &Arc<ConnControl>),
    limit: Option<(Flow, Class)>,
    idle: Duration,
) -> Response<Body> {
    record.answered(response.status());
    response.map(|body| {
        let length = body.size_hint().exact();
        let connection = connection.clone();
        let body = IdleTimeout::new(LimitedBody::new(body, limit), idle);
        Counted { body, record, control, connection, length, sent: 0, pause: None }.boxed_unsync()
    })
}

/// A body that fails when nothing comes for too long.
pub(super) struct IdleTimeout<B> {
    body: B,
    idle: Duration,
    deadline: Pin<Box<Sleep>>,
    /// Whether the deadline runs. It does not while nobody asks for the next frame.
    running: bool,
}

impl<B> IdleTimeout<B> {
    /// `body`, every frame of which comes within `idle` of the one before.
    pub(super) fn new(body: B, idle: Duration) -> Self {
        Self { body, idle, deadline: Box::pin(sleep(idle)), running: false }
    }
}

impl<B> http_body::Body for IdleTimeout<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let idle = self.idle;
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.running = false;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        if !self.running {
            self.running = true;
            self.deadline.as_mut().reset(Instant::now() + idle);
        }
        self.deadline.as_mut().poll(cx).map(|()| Some(Err(Quiet(idle).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

struct Counted {
    body: IdleTimeout<LimitedBody<Body>>,
    record: Record,
    control: Option<Arc<ConnControl>>,
    connection: Arc<ConnControl>,
    /// How long the body is, where that is known from the start.
    length: Option<u64>,
    sent: u64,
    /// How long it waits for room at most.
    pause: Option<Pin<Box<Sleep>>>,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        ready!(this.connection.share().poll_room(&mut this.pause, cx));
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                let length = frame.data_ref().map_or(0, Bytes::len);
                self.connection.share().take(length);
                let bytes = length as u64;
                self.sent += bytes;
                self.record.sent(bytes);
                if frame.is_trailers() {
                    // Nobody asks for what comes behind them.
                    self.record.ended(End::Complete);
                }
            }
            Poll::Ready(Some(Err(_))) => {
                self.record.ended(End::Broken);
                if let Some(control) = &self.control {
                    control.reset_on_close();
                }
            }
            Poll::Ready(None) => self.record.ended(End::Complete),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // A body that knows its end is not always asked for it.
        if self.length == Some(self.sent) || self.body.is_end_stream() {
            self.record.ended(End::Complete);
        }
        if let Some(control) = &self.control {
            control.ended();
        }
    }
}

/// How long a body that waits for `100 (Continue)` is held back at most: as long as clients wait themselves.
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// Whether a body that its client holds back until it is wanted (`Expect: 100-continue`) is wanted. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct GoAhead(Arc<Wanted>);

#[derive(Debug, Default)]
struct Wanted {
    wanted: AtomicBool,
    answered: AtomicBool,
    waiting: AtomicWaker,
}

impl GoAhead {
    /// The origin wants the body.
    pub(super) fn open(&self) {
        self.0.wanted.store(true, Ordering::Release);
        self.0.waiting.wake();
    }

    /// The origin has answered. If it has not asked for the body, it does not want it.
    pub(super) fn answered(&self) {
        self.0.answered.store(true, Ordering::Release);
    }

    fn poll_wanted(&self, wait: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.waiting.register(cx.waker());
        let late = wait.poll(cx).is_ready() && !self.0.answered.load(Ordering::Acquire);
        if late || self.0.wanted.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// A request's body on its way to the origin, which remembers whether it was the client that failed.
pub(super) struct Upload {
    body: IdleTimeout<LimitedBody<Incoming>>,
    failed: Arc<AtomicBool>,
    held: Option<(GoAhead, Pin<Box<Sleep>>)>,
}

impl Upload {
    /// The body, and a flag that is set when the client does not send it to its end. With `held` nothing is asked of
    /// the client before the origin wants it: asking is what makes the library say `100 (Continue)`.
    pub(super) fn new(
        body: Incoming,
        idle: Duration,
        limit: (Flow, Class),
        held: Option<GoAhead>,
    ) -> (Self, Arc<AtomicBool>) {
        let failed = Arc::new(AtomicBool::new(false));
        let held = held.map(|go| (go, Box::pin(sleep(CONTINUE_WAIT))));
        let body = IdleTimeout::new(LimitedBody::new(body, Some(limit)), idle);
        (Self { body, failed: failed.clone(), held }, failed)
    }
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some((go, wait)) = &mut self.held {
            ready!(go.poll_wanted(wait.as_mut(), cx));
            self.held = None;
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(Some(Err(_)))) {
            self.failed.store(true, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::super::budget::Budget;
    use super::super::metrics::Metrics;
    use super::*;
    use futures_util::{StreamExt as _, stream};
    use http::{Method, StatusCode};
    use http_body_util::{Full, StreamBody};

    const IDLE: Duration = Duration::from_secs(60);

    fn connection() -> Arc<ConnControl> {
        ConnControl::new(Budget::new(usize::MAX))
    }

    fn record(metrics: &Metrics) -> Record {
        Record::begin(&Arc::new(metrics.clone()), &Method::GET, &"http://a/b?secret".parse().unwrap())
    }

    fn count(metrics: &Metrics, status: &'static str) -> u64 {
        metrics.requests.get_or_create(&[("route", "reject"), ("status", status)]).get()
    }

    #[tokio::test]
    async fn every_answer_is_counted_once_when_it_has_ended() {
        let metrics = Metrics::default();
        let body = Full::new(Bytes::from_static(b"hello")).map_err(|never| match never {}).boxed_unsync();
        let response = follow(Response::new(body), record(&metrics), (None, &connection()), None, IDLE);
        assert_eq!(response.body().size_hint().exact(), Some(5), "its length stays known");
        assert_eq!((count(&metrics, "2xx"), metrics.in_flight.get()), (0, 1));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
        assert_eq!((count(&metrics, "2xx"), metrics.in_flight.get()), (1, 0));
        assert_eq!((metrics.forwarded.get(), metrics.broken.get()), (5, 0));
    }

    #[tokio::test]
    async fn an_answer_with_trailers_ends_with_them() {
        let metrics = Metrics::default();
        let frames = stream::iter([
            Ok(Frame::data(Bytes::from_static(b"a"))),
            Ok(Frame::trailers(http::HeaderMap::new())),
            Err(BoxError::from("nobody asks")),
        ]);
        let mut body = follow(
            Response::new(StreamBody::new(frames).boxed_unsync()),
            record(&metrics),
            (None, &connection()),
            None,
            IDLE,
        );
        for _ in 0..2 {
            body.body_mut().frame().await.unwrap().unwrap();
        }
        let lines = crate::proxy::access::tests::lines_of(|| drop(body));
        assert!(lines.contains("end=\"complete\""), "{lines}");
    }

    #[tokio::test]
    async fn a_body_that_fails_breaks_the_connection_off() {
        let metrics = Metrics::default();
        let control = connection();
        let frames = stream::iter([Ok(Frame::data(Bytes::from_static(b"a"))), Err(BoxError::from("gone"))]);
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let response = follow(response, record(&metrics), (Some(control.clone()), &control), None, IDLE);
        assert!(!control.is_broken());
        response.into_body().collect().await.unwrap_err();
        assert!(control.is_broken());
        assert_eq!((count(&metrics, "2xx"), metrics.broken.get()), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_counted_only_while_somebody_listens() {
        let frames = stream::iter([Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"a")))]);
        let silent = frames.chain(stream::pending());
        let mut body = IdleTimeout::new(Box::pin(StreamBody::new(silent)), IDLE);
        tokio::time::sleep(2 * IDLE).await;
        body.frame().await.unwrap().unwrap();
        tokio::time::sleep(2 * IDLE).await;
        let begun = Instant::now();
        let error = body.frame().await.unwrap().unwrap_err();
        assert_eq!((begun.elapsed(), error.to_string()), (IDLE, "nothing came for 60 s".to_owned()));
    }
}
