//! A forwarder of gRPC that remembers what it carried, as the other side understands it.
//!
//! On the wire a header is compressed ([HPACK](https://www.rfc-editor.org/rfc/rfc7541)), mostly with a Huffman code, so
//! the bytes that go by say nothing about metadata. This one speaks HTTP/2 on both sides, and notes header fields and
//! messages in plain text.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http2 as client;
use hyper::server::conn::http2 as server;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::tap::Carried;

/// Carries one connection. Where it cannot it ends, and both sides hear of it.
pub(super) async fn carry(stream: TcpStream, target: SocketAddr, carried: Carried) {
    let Ok(onwards) = TcpStream::connect(target).await else { return };
    let handshake = client::handshake(TokioExecutor::new(), TokioIo::new(onwards));
    let Ok((sender, connection)) = handshake.await else { return };
    let service = service_fn(move |request| forward(request, sender.clone(), Arc::clone(&carried)));
    let serving = server::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        _ = connection => {}
        _ = serving => {}
    }
}

async fn forward(
    request: Request<Incoming>,
    mut sender: client::SendRequest<Noted>,
    carried: Carried,
) -> hyper::Result<Response<Noted>> {
    let (head, body) = request.into_parts();
    let body = Noted::begin(&carried, &format!("{} {}\n", head.method, head.uri), &head.headers, body);
    let (head, body) = sender.send_request(Request::from_parts(head, body)).await?.into_parts();
    let body = Noted::begin(&carried, &format!("{}\n", head.status), &head.headers, body);
    Ok(Response::from_parts(head, body))
}

/// A body that is noted as it goes by.
struct Noted {
    body: Incoming,
    carried: Carried,
    place: usize,
}

impl Noted {
    fn begin(carried: &Carried, first_line: &str, headers: &HeaderMap, body: Incoming) -> Self {
        let mut all = carried.lock().expect("no panic with the lock");
        all.push(first_line.as_bytes().to_vec());
        let place = all.len() - 1;
        drop(all);
        let noted = Self { body, carried: Arc::clone(carried), place };
        noted.note_headers(headers);
        noted
    }

    fn note(&self, bytes: &[u8]) {
        self.carried.lock().expect("no panic with the lock")[self.place].extend_from_slice(bytes);
    }

    fn note_headers(&self, headers: &HeaderMap) {
        for (name, value) in headers {
            // Messages that are compressed could hide anything.
            assert!(*name != "grpc-encoding" || value == "identity", "compressed messages cannot be looked into");
            self.note(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\n"].concat());
        }
    }
}

impl Body for Noted {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            match (frame.data_ref(), frame.trailers_ref()) {
                (Some(data), _) => self.note(data),
                (_, Some(trailers)) => self.note_headers(trailers),
                _ => {}
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
