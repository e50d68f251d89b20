//! Piece data between hosts: server and client of the Vortex TCP framing ([`damselfly_api::vortex`]).
//!
//! # The data's way
//! A child's [`DataClient::fetch`] takes a kept-open connection to the parent (or makes one), sends one request and
//! reads the answer's head; the piece's bytes go from the socket into large buffers and on into the task's
//! [`PieceWriter`](crate::storage::PieceWriter), which hashes and writes them on a blocking thread while the next buffer
//! fills. The parent's [`DataServer`] answers one request after the other on a connection: head, then `sendfile` from
//! the content file into the socket (a plain write where content is in memory).
//!
//! Between members of a fleet that have certificates the same goes over TLS ([`damselfly_api::member`]), without `sendfile`.
//!
//! Between our own hosts a child asks for a turn first ([`DataClient::ask`]) and names all pieces that it could use; the
//! parent's `uplink` gives few turns at a time. Hosts of the plain protocol ask for single pieces.
//!
//! # Invariants
//! - Only pieces that the task has, or that pass their check now, are served.
//! - A piece's place and length follow from its number and the task's geometry; what the parent says of them is compared
//!   or ignored, never used.
//! - Garbage closes the connection that it came on and nothing else.
//! - Every wait has a deadline, and every number of connections, slots and bytes a bound: [`ServerConfig`],
//!   [`ClientConfig`], and the codec's own.

mod client;
mod metrics;
mod pool;
mod send;
mod server;
mod uplink;

#[cfg(test)]
mod tests;

pub use client::{ClientConfig, DataAddr, DataClient, FetchError, GivenTurn, TurnError};
pub use metrics::Metrics;
pub use server::{DataServer, ServerConfig};
pub use uplink::UplinkConfig;
