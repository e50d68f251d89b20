//! What went wrong with a request, as its client is told.
//!
//! Every refusal or failure that the proxy itself answers is a [`Fault`]: whose doing it is, a status, and one plain
//! sentence. It becomes a response here and nowhere else. A failure after the head of an answer was sent is no fault:
//! the connection is broken then (see `respond`).

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};

use crate::net::{Body, NetError};

/// The response header that tells a client that this answer is the proxy's own, and whose fault it is.
pub(super) const ERROR_TYPE: HeaderName = HeaderName::from_static("x-dragonfly-error-type");

/// Whose doing a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    /// The client asked for something that cannot be done.
    Client,
    /// The origin, the registry, or the way there.
    Upstream,
    /// Ourselves.
    Us,
}

impl Blame {
    /// The value of [`ERROR_TYPE`], in Dragonfly's words.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "proxy",
            Self::Upstream => "backend",
            Self::Us => "dfdaemon",
        }
    }
}

/// A failure that is answered by the proxy itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    blame: Blame,
    status: StatusCode,
    sentence: String,
    close: bool,
    header: Option<(HeaderName, HeaderValue)>,
}

impl Fault {
    /// The client's fault: `status` and one sentence.
    pub(super) fn client(status: StatusCode, sentence: impl Into<String>) -> Self {
        Self { blame: Blame::Client, status, sentence: sentence.into(), close: false, header: None }
    }

    /// A request that cannot be understood: 400, and the connection is closed behind the answer, because where the next
    /// request would start is unknown.
    pub(super) fn malformed(sentence: impl Into<String>) -> Self {
        Self { close: true, ..Self::client(StatusCode::BAD_REQUEST, sentence) }
    }

    /// What was asked for cannot be had just now.
    pub(super) fn unavailable(sentence: impl Into<String>) -> Self {
        Self { blame: Blame::Us, ..Self::client(StatusCode::SERVICE_UNAVAILABLE, sentence) }
    }

    /// An upstream that gave an answer of no use.
    pub(super) fn upstream(status: StatusCode, sentence: impl Into<String>) -> Self {
        Self { blame: Blame::Upstream, ..Self::client(status, sentence) }
    }

    /// An upstream that gave no answer in time.
    pub(super) fn timeout(sentence: impl Into<String>) -> Self {
        Self { blame: Blame::Upstream, ..Self::client(StatusCode::GATEWAY_TIMEOUT, sentence) }
    }

    /// The client named no or wrong credentials for the proxy itself.
    pub(super) fn unauthorised() -> Self {
        Self {
            header: Some((header::PROXY_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"damselfly\""))),
            ..Self::client(StatusCode::PROXY_AUTHENTICATION_REQUIRED, "This proxy asks for a user name and a password.")
        }
    }

    /// The answer's status.
    pub(super) const fn status(&self) -> StatusCode {
        self.status
    }

    /// The answer.
    pub(super) fn into_response(self) -> Response<Body> {
        let text = Bytes::from(self.sentence + "\n");
        let mut response = Response::new(Full::new(text).map_err(|never| match never {}).boxed_unsync());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(ERROR_TYPE, HeaderValue::from_static(self.blame.as_str()));
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some((name, value)) = self.header {
            headers.insert(name, value);
        }
        response
    }
}

impl From<&NetError> for Fault {
    fn from(error: &NetError) -> Self {
        let (blame, status) = match error {
            NetError::Denied { .. } => (Blame::Client, StatusCode::FORBIDDEN),
            NetError::Target { .. } => (Blame::Client, StatusCode::BAD_REQUEST),
            error if error.is_timeout() => (Blame::Upstream, StatusCode::GATEWAY_TIMEOUT),
            _ => (Blame::Upstream, StatusCode::BAD_GATEWAY),
        };
        Self { blame, ..Self::client(status, error.to_string()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_fault_is_one_sentence_that_says_whose_it_is() {
        for (fault, status, blame, close) in [
            (Fault::malformed("No."), 400, "proxy", true),
            (Fault::timeout("Late."), 504, "backend", false),
            (Fault::unavailable("Oh."), 503, "dfdaemon", false),
        ] {
            let response = fault.into_response();
            assert_eq!(response.status().as_u16(), status);
            assert_eq!(response.headers()[ERROR_TYPE], blame);
            assert_eq!(response.headers().contains_key(header::CONNECTION), close);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert!(body.ends_with(b".\n"), "{body:?}");
        }
    }

    #[test]
    fn a_missing_password_is_asked_for_as_a_proxy_does() {
        let response = Fault::unauthorised().into_response();
        assert_eq!(response.status().as_u16(), 407);
        assert!(response.headers().contains_key(header::PROXY_AUTHENTICATE));
        assert!(!response.headers().contains_key(header::WWW_AUTHENTICATE));
    }

    #[test]
    fn what_the_network_says_is_the_upstreams_fault_unless_the_client_may_not_go_there() {
        let to = || "a:1".to_owned();
        let why = || "x".to_owned();
        for (error, status, blame) in [
            (NetError::Denied { to: to(), why: why() }, 403, "proxy"),
            (NetError::Target { why: why() }, 400, "proxy"),
            (NetError::Resolve { to: to(), why: why() }, 502, "backend"),
            (NetError::Broken { to: to(), why: why() }, 502, "backend"),
            (NetError::ConnectTimeout { to: to() }, 504, "backend"),
            (NetError::HeadTimeout { to: to() }, 504, "backend"),
        ] {
            let response = Fault::from(&error).into_response();
            assert_eq!(
                (response.status().as_u16(), &response.headers()[ERROR_TYPE]),
                (status, &HeaderValue::from_static(blame))
            );
        }
    }
}
