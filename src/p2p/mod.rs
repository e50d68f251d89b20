//! Tasks and how their pieces come and go.
//!
//! [`Tasks::open`] gives a reader; behind it, at most one download a task: a pure machine (`download`) that decides, and
//! a driver that does what it says. Producers (the source's stream, parents) write into the task's content file, readers
//! follow it in their own order; the store is where they meet, and neither knows the other.
//!
//! ```text
//!  open ─> flight ─> driver ── events ──> machine
//!            │          │ <── actions ──────┘
//!          seats        ├─ source ──> PieceWriter ─┐
//!            │          └─ parents ─> PieceWriter ─┴─> content file ──> readers, children
//!            └──────────────── stream <────────────────────┘
//! ```

mod acts;
mod driver;
mod flight;
mod metrics;
pub mod piece_sync;
mod rescue;
mod source;
mod stream;
mod tasks;
pub mod transport;
mod verify;

pub use damselfly_download as download;
pub use flight::Traffic;
pub use metrics::Metrics;
pub use stream::{Broken, ContentStream, HELD_TAIL};
pub use tasks::{Admission, Config, Known, OpenError, Opened, Parts, TaskSpec, Tasks};

#[cfg(test)]
mod tests;
