//! Wire messages to nouns and back.
//!
//! To the wire nothing fails; what a message cannot hold in one piece comes as several messages. From the wire
//! everything is checked against the limits below, and what fails is a [`WireError`], which a server answers as
//! INVALID_ARGUMENT and a client takes for a broken conversation.

mod answer;
mod hold;
mod host;
mod peer;
mod piece;
mod register;
mod report;
mod seed;

#[cfg(test)]
mod strategies;
#[cfg(test)]
mod tests;

use damselfly_core::{HostId, PeerId, TaskId};
use tonic::metadata::{MetadataMap, MetadataValue};

pub use answer::{Listener, answer_from_wire, metadata_only};
pub use hold::{holdings_from_wire, holdings_to_wire};
pub use host::{host_from_wire, host_to_wire, list_hosts};
pub use peer::{Heard, Voice};
pub use piece::{
    ParentPiece, PiecesWanted, all_pieces_to_wire, parent_piece_from_wire, parent_piece_to_wire,
    pieces_wanted_from_wire,
};
pub use register::{registration_from_wire, registration_to_wire};
pub use report::{PeerSays, peer_says};
pub use seed::{SeedWish, seed_started, seed_wish_from_wire, seed_wish_to_wire};

/// The most bytes of a host's, task's or peer's id, a host's name, or a digest's text.
pub const MAX_NAME: usize = 512;

/// The most bytes of a URL.
pub const MAX_URL: usize = 16 * 1024;

/// The most bytes of a tag, an application, a data centre or a location.
pub const MAX_LABEL: usize = 4 * 1024;

/// The most bytes of the text whose hash is a task's id.
pub const MAX_IDENTITY: usize = 64 * 1024;

/// The most pieces that one message lists. With their digests they stay well under [`MAX_MESSAGE`].
pub const MAX_LISTED: usize = 65_536;

/// The most parents that one message lists.
pub const MAX_PARENTS: usize = 256;

/// The most tasks that one announcement of holdings lists.
pub const MAX_HOLDINGS: usize = 1_024;

/// The most bytes of one message, in either direction.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// The header of a scheduler's answer to `AnnouncePeer` that says that it knows our extensions.
const EXTENSIONS: &str = "damselfly-extensions";

/// The header of our scheduler's answer to `AnnounceHost` that tells one run of it from the next.
const RUN: &str = "damselfly-run";

/// The header of our answer to `SyncPieces` that says that pieces can be asked for by turns.
const TURNS: &str = "damselfly-turns";

/// A message that makes no sense, or more of it than we take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A field that is needed is not there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field has a value that it cannot have.
    #[error("{0} is not valid")]
    Invalid(&'static str),
    /// A text or list is longer than we take.
    #[error("{0} is too long")]
    TooLong(&'static str),
}

impl From<WireError> for tonic::Status {
    fn from(error: WireError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

/// Says, in the headers of an `AnnouncePeer` answer, that this scheduler knows our extensions.
pub fn mark_extended(headers: &mut MetadataMap) {
    headers.insert(EXTENSIONS, MetadataValue::from_static("1"));
}

/// Whether the headers of an `AnnouncePeer` answer say that the scheduler knows our extensions.
pub fn is_extended(headers: &MetadataMap) -> bool {
    headers.get(EXTENSIONS).is_some_and(|value| value.as_bytes() == b"1")
}

/// Says, in the headers of a `SyncPieces` answer, that this parent serves by turns ([`crate::vortex`]).
pub fn mark_turns(headers: &mut MetadataMap) {
    headers.insert(TURNS, MetadataValue::from_static("1"));
}

/// Whether the headers of a `SyncPieces` answer say that the parent serves by turns.
pub fn gives_turns(headers: &MetadataMap) -> bool {
    headers.get(TURNS).is_some_and(|value| value.as_bytes() == b"1")
}

/// Names this run of the scheduler in the headers of an `AnnounceHost` answer. A host that sees another run than before
/// announces again what it holds, because a scheduler that starts knows nothing.
pub fn mark_run(headers: &mut MetadataMap, run: u64) {
    headers.insert(RUN, MetadataValue::from(run));
}

/// Which run of the scheduler answered `AnnounceHost`, if it says.
pub fn run_of(headers: &MetadataMap) -> Option<u64> {
    headers.get(RUN)?.to_str().ok()?.parse().ok()
}

fn bounded(text: String, most: usize, field: &'static str) -> Result<String, WireError> {
    if text.len() > most { Err(WireError::TooLong(field)) } else { Ok(text) }
}

/// A text whose emptiness means that it is not there.
fn optional(text: Option<String>, most: usize, field: &'static str) -> Result<Option<String>, WireError> {
    text.filter(|text| !text.is_empty()).map(|text| bounded(text, most, field)).transpose()
}

fn name(text: String, field: &'static str) -> Result<String, WireError> {
    if text.is_empty() { Err(WireError::Missing(field)) } else { bounded(text, MAX_NAME, field) }
}

/// A task's id from the wire.
///
/// # Errors
/// For any text but 64 hex digits.
pub fn task_id(text: &str) -> Result<TaskId, WireError> {
    text.parse().map_err(|_| WireError::Invalid("task_id"))
}

/// A host's id from the wire.
///
/// # Errors
/// For an empty or overlong text.
pub fn host_id(text: String) -> Result<HostId, WireError> {
    name(text, "host_id").map(HostId::from)
}

/// A peer's id from the wire.
///
/// # Errors
/// For an empty or overlong text.
pub fn peer_id(text: String) -> Result<PeerId, WireError> {
    name(text, "peer_id").map(PeerId::from)
}
