//! An HTTP body whose bytes come no faster than a limit allows.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::{Class, Flow, Wait};

/// A body of a flow. It holds one frame at most; a large one comes in parts.
pub struct LimitedBody<B> {
    body: B,
    limit: Option<(Flow, Class)>,
    /// What is left of a frame.
    frame: Bytes,
    /// How many bytes of it wait.
    waiting: Option<(Wait, usize)>,
}

impl<B> LimitedBody<B> {
    /// `body`, as bytes of this flow and class, or without a limit.
    pub const fn new(body: B, limit: Option<(Flow, Class)>) -> Self {
        Self { body, limit, frame: Bytes::new(), waiting: None }
    }

    /// How many bytes of the frame may go on now.
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        if self.waiting.is_none()
            && let Some((flow, class)) = &self.limit
        {
            let part = flow.at_most(&[*class], self.frame.len() as u64);
            match flow.owe(*class, part) {
                Some(wait) => self.waiting = Some((wait, part as usize)),
                None => return Poll::Ready(part as usize),
            }
        }
        let Some((wait, part)) = &mut self.waiting else { return Poll::Ready(self.frame.len()) };
        ready!(Pin::new(wait).poll(cx));
        let part = *part;
        self.waiting = None;
        Poll::Ready(part)
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for LimitedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        if this.frame.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)).transpose()?.map(Frame::into_data) {
                Some(Ok(data)) if data.is_empty() => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Some(Ok(data)) => this.frame = data,
                Some(Err(frame)) => return Poll::Ready(Some(Ok(frame))),
                None => return Poll::Ready(None),
            }
        }
        let part = ready!(this.poll_part(cx));
        Poll::Ready(Some(Ok(Frame::data(this.frame.split_to(part)))))
    }

    fn is_end_stream(&self) -> bool {
        self.frame.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (held, mut hint) = (self.frame.len() as u64, self.body.size_hint());
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + held);
        }
        hint.set_lower(hint.lower() + held);
        hint
    }
}
