//! The download machine: decides how one host gets one task's content. Events in, actions out.
//!
//! It never does I/O and never reads a clock: its driver tells it what happened and when ([`Download::handle`]), does
//! what it asks ([`Download::poll`], until that gives `None`), and wakes it at [`Download::deadline`] with
//! [`Event::Timer`]. The same machine runs in the daemon and, a thousand at a time, in the simulations.
//!
//! What the driver promises:
//! - Every [`Action::Fetch`] is answered by one [`Event::PieceArrived`] or [`Event::PieceFailed`], unless it was
//!   cancelled. The arrived bytes wait in their writer for [`Action::Keep`] or [`Action::Discard`].
//! - A source stream goes through its pieces in order, keeps each by itself and tells of it with
//!   [`Event::SourcePiece`]. It ends with one [`Event::SourceEnded`], unless [`Action::StopSource`] or another
//!   [`Action::ReadSource`] came first.
//! - After a cut the unfinished piece's writer is held: if the next [`Action::ReadSource`] begins at that piece, the
//!   stream goes on behind the bytes that are there already; on anything else that touches the piece it is dropped.
//! - Actions are done in the order in which they are polled.
//! - The stream of an [`Action::ReadAside`] tells of its pieces with [`Event::PieceHeld`], and of its end with one
//!   [`Event::AsideEnded`], unless [`Action::StopAside`] came first.
//! - What this host's own limit of bandwidth held up is told with [`Event::HeldUp`] before anything else that happens.
//! - Every [`Action::AskTurn`] is answered by one [`Event::Turn`] or [`Event::TurnRefused`], unless the parent is left.
//!
//! Pieces come from several places at once. The scheduler leases runs of pieces to be read from the source; all others
//! come from parents. A parent of ours serves by turns: which piece is fetched from it is decided when it has room to send
//! one, so no piece waits in a queue behind others, and one that is slow to come from one parent goes to the next that has
//! a turn. Without the scheduler the source is read as a whole when it is silent or lost; parents that come then end that
//! at the end of a piece.
//!
//! **A piece has one producer at a time. A piece is held only once its bytes were compared with whatever is known of
//! them. Unless it has ended, the machine is always fetching, or waiting with a deadline.**

mod aside;
mod config;
mod event;
mod from_parents;
mod from_source;
mod held_up;
mod late;
mod link;
mod machine;
#[cfg(any(test, feature = "model"))]
pub mod model;
mod parents;
mod pieces;
mod plan;
mod readers;
mod source;
#[cfg(test)]
mod tests;
mod turns;

pub use config::{Config, Setup};
pub use event::{Action, End, Event, Failure, ReaderId};
pub use machine::Download;
