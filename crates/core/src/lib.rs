//! The nouns of Damselfly: identifiers, digests, byte ranges, pieces, tasks, and the words that a peer and its
//! scheduler exchange.
//!
//! Floor 0 of the house: no tokio, no clock, no I/O, no wire types. Everything here is a value that is valid by
//! construction; what comes from outside is parsed by `FromStr` or a fallible constructor and is never trusted again
//! after that.

mod digest;
mod geometry;
mod id;
mod moment;
mod pieces;
mod range;
pub mod swarm;
mod task;

pub use digest::{Blake3, Digest, DigestCheck, DigestError, PieceDigest, PieceHasher};
pub use geometry::{Geometry, GeometryError, MAX_PIECES, PieceNumber, default_piece_length, short_piece_length};
pub use id::{HostId, PeerId, TaskId, TaskIdError};
pub use moment::Moment;
pub use pieces::PieceSet;
pub use range::{ByteRange, RangeWish};
pub use task::{Audience, Identity, Validators};
