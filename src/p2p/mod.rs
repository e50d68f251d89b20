//! Tasks and how their pieces come and go.

pub mod download;
pub mod piece_sync;
pub mod transport;
