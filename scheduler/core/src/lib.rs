//! The scheduler as a pure machine: who gets which pieces from whom, and who may ask the source.
//!
//! Its driver tells it what happened and when ([`Core::handle`]), does what it asks ([`Core::poll`], until that gives
//! `None`) and wakes it at [`Core::deadline`] with [`Event::Timer`]. It does no I/O, reads no clock, draws chance from a
//! seed and walks no hash map: the same events give the same outputs, in a service and in a simulation.
//!
//! The way of an event: [`Core`] takes it apart (`register`, `report`, `hosts`), changes peers and their edges (`graph`),
//! and then sees who can be served now (`place`: parents; `source`: leases and seeds; `proofs`: what pieces hash to).
//!
//! **A piece that somebody wants is held by somebody who can be reached, or leased to somebody who gets on. A host never has
//! more children than upload slots. Who waits is woken by what changes, never told to ask again. Nobody waits while a holder
//! with a free slot could serve them. A peer belongs to the host that made it.**
//!
//! All state is soft and bounded ([`Config`]): hosts say again what they hold, and what is idle longest is forgotten.

mod claims;
mod config;
mod event;
mod explain;
mod graph;
mod holders;
mod hosts;
mod machine;
mod pace;
mod peer;
mod pieces;
mod place;
mod proofs;
mod register;
mod report;
mod source;
mod task;
mod view;

#[cfg(test)]
mod tests;

pub use config::Config;
pub use event::{Event, Fact, LeaseLoss, Notice, Output};
pub use explain::{Explanation, LeaseView, NotOffered, ParentView, PeerExplanation};
pub use machine::Core;
pub use view::{Counts, HostView, PeerView, TaskView};
