//! A request's body that can be sent a second time, as long as little of it was taken.
//!
//! The frames that the first attempt takes are kept, up to [`MAX_KEPT`] bytes; a later attempt gets them again and goes
//! on with what is left. Behind that the body can be sent only once.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::{Body, BoxError};

/// How many bytes of a body are kept to be sent again.
const MAX_KEPT: usize = 64 * 1024;

struct Shared {
    body: Body,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    /// Whether more was taken than is kept.
    lost: bool,
    /// Frames that were taken so far: an upload under way is told from silence.
    taken: u64,
    /// The attempt that may read; an earlier one's connection may still be polling.
    attempt: u64,
    /// Of whoever waits for the next frame.
    waker: Option<Waker>,
}

/// A body with its beginning, for as many attempts as it takes.
#[derive(Clone)]
pub(super) struct Replay(Arc<Mutex<Shared>>);

impl Replay {
    pub(super) fn new(body: Body) -> Self {
        let shared = Shared { body, kept: Vec::new(), kept_bytes: 0, lost: false, taken: 0, attempt: 0, waker: None };
        Self(Arc::new(Mutex::new(shared)))
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the body can be sent from its beginning.
    pub(super) fn is_whole(&self) -> bool {
        !self.lock().lost
    }

    /// How many frames were taken by any attempt.
    pub(super) fn taken(&self) -> u64 {
        self.lock().taken
    }

    /// Ends all attempts where no frame was taken though there are some: the answer is there without them. False where
    /// there is nothing to end.
    pub(super) fn abandon_untouched(&self) -> bool {
        let mut shared = self.lock();
        if shared.taken > 0 || http_body::Body::is_end_stream(&shared.body) {
            return false;
        }
        shared.attempt += 1;
        if let Some(waker) = shared.waker.take() {
            waker.wake();
        }
        true
    }

    /// The body from its beginning. Attempts before get nothing more.
    pub(super) fn attempt(&self) -> RequestBody {
        let mut shared = self.lock();
        shared.attempt += 1;
        let untouched = shared.taken == 0;
        RequestBody {
            number: shared.attempt,
            at: 0,
            empty: untouched && http_body::Body::is_end_stream(&shared.body),
            hint: if untouched { http_body::Body::size_hint(&shared.body) } else { shared.remaining() },
            replay: self.clone(),
        }
    }
}

impl Shared {
    /// The length of all that can be sent: what is kept and what is left.
    fn remaining(&self) -> SizeHint {
        match http_body::Body::size_hint(&self.body).exact() {
            Some(rest) => SizeHint::with_exact(rest + self.kept_bytes as u64),
            None => SizeHint::default(),
        }
    }
}

/// One attempt's body.
pub(super) struct RequestBody {
    replay: Replay,
    number: u64,
    /// How many of the kept frames were given.
    at: usize,
    empty: bool,
    hint: SizeHint,
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let mut shared = this.replay.0.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.attempt != this.number {
            return Poll::Ready(Some(Err("the request goes on elsewhere, or was answered without its body".into())));
        }
        if let Some(bytes) = shared.kept.get(this.at) {
            this.at += 1;
            return Poll::Ready(Some(Ok(Frame::data(bytes.clone()))));
        }
        let frame = Pin::new(&mut shared.body).poll_frame(cx);
        if frame.is_pending() {
            shared.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        shared.taken += 1;
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            match frame.data_ref() {
                Some(data) if !shared.lost && shared.kept_bytes + data.len() <= MAX_KEPT => {
                    shared.kept_bytes += data.len();
                    shared.kept.push(data.clone());
                    this.at += 1;
                }
                _ => {
                    shared.lost = true;
                    shared.kept.clear();
                    this.at = 0;
                }
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.empty
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use http_body_util::{BodyExt as _, StreamBody};

    fn body(parts: &[&[u8]]) -> Body {
        let frames: Vec<_> = parts.iter().map(|part| Ok(Frame::data(Bytes::copy_from_slice(part)))).collect();
        StreamBody::new(stream::iter(frames)).boxed_unsync()
    }

    #[tokio::test]
    async fn a_second_attempt_begins_at_the_beginning() {
        let replay = Replay::new(body(&[b"ab", b"cd"]));
        let mut first = replay.attempt();
        assert_eq!(first.frame().await.unwrap().unwrap().into_data().unwrap(), "ab");
        let second = replay.attempt();
        assert!(first.frame().await.unwrap().is_err(), "the first one is over");
        assert_eq!(second.collect().await.unwrap().to_bytes(), "abcd");
        assert!(replay.is_whole());
    }

    #[tokio::test]
    async fn a_long_body_is_sent_once() {
        let replay = Replay::new(body(&[&[0; MAX_KEPT], b"x", b"y"]));
        let mut first = replay.attempt();
        first.frame().await.unwrap().unwrap();
        assert!(replay.is_whole());
        first.frame().await.unwrap().unwrap();
        assert!(!replay.is_whole());
        assert_eq!(first.collect().await.unwrap().to_bytes(), "y", "and goes on as it came");
    }
}
