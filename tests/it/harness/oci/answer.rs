//! Answers, and bodies that count what is sent of them.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::stream;
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};

use super::super::Gate;

/// Bodies are sent in slices of this size.
const SLICE: usize = 64 << 10;

pub(super) type Answer = Response<Bytes>;

/// An answer of JSON.
pub(super) fn of_json(status: StatusCode, value: &Value) -> Answer {
    let mut answer = empty(status);
    set(&mut answer, "content-type", "application/json");
    *answer.body_mut() = value.to_string().into();
    answer
}

/// An error as a registry words it.
pub(super) fn error(status: StatusCode, code: &str, message: &str) -> Answer {
    of_json(status, &json!({ "errors": [{ "code": code, "message": message, "detail": null }] }))
}

pub(super) fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Bytes::new());
    *answer.status_mut() = status;
    answer
}

/// Sets a header, in place of one that was there.
pub(super) fn set(answer: &mut Answer, name: &'static str, value: &str) {
    answer.headers_mut().insert(name, value.parse().expect("a valid value"));
}

/// A body that counts what is taken of it, and waits at a gate.
pub(super) fn counted(bytes: Bytes, gate: Option<Gate>, sent: Arc<AtomicU64>) -> UnsyncBoxBody<Bytes, Infallible> {
    let slices = stream::unfold((bytes, 0), move |(mut left, at)| {
        let (gate, sent) = (gate.clone(), Arc::clone(&sent));
        async move {
            if left.is_empty() {
                return None;
            }
            let allowed = match gate {
                Some(gate) => gate.pass(at).await - at,
                None => usize::MAX,
            };
            let slice = left.split_to(SLICE.min(left.len()).min(allowed));
            sent.fetch_add(slice.len() as u64, Ordering::SeqCst);
            let at = at + slice.len();
            Some((Ok(Frame::data(slice)), (left, at)))
        }
    });
    StreamBody::new(slices).boxed_unsync()
}
