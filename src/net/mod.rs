//! The one HTTP client, and the one way to open a TCP connection to a destination that somebody else named.
//!
//! A request goes: [`Upstream`] settings of its authority (scheme, CA, client certificate) -> a pooled connection, or a
//! new one: resolve -> [`DestinationPolicy`] on every address -> connect (happy eyeballs) -> TLS -> the answer's head,
//! awaited as long as something moves -> its [`ResponseBody`], with whose end the connection goes back.
//!
//! **Every connection that is opened on behalf of a client is opened by [`HttpClient::send`],
//! [`HttpClient::send_upgrade`] or [`HttpClient::dial`]; the address connected to is the address that was checked.**
//! **Upstream TLS is always verified.** Errors and logs carry no header value and no query.

mod auth;
mod client;
mod connect;
mod dial;
mod egress;
mod error;
mod io;
mod policy;
mod pool;
mod replay;
mod resolve;
mod tls;
mod upstream;

use std::error::Error;

use bytes::Bytes;

pub use client::{ClientConfig, HttpClient, WholeServer};
pub use dial::OwnAddresses;
pub use egress::{Direct, Egress, EgressProxy};
pub use error::{ConfigError, NetError};
pub use io::OriginStream;
pub use policy::{DestinationPolicy, Pattern};
pub use pool::{ClientConnection, ResponseBody};
pub use upstream::{Upstream, presents_certificate, spoken_scheme};

/// Any error of a body.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// A body whose origin does not matter any more.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;

/// The body without a byte.
pub fn empty_body() -> Body {
    use http_body_util::{BodyExt as _, Empty};
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}
