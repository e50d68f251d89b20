//! The task that owns the machine.
//!
//! The way of an event: a [`Handle`] or a conversation's pump puts a command into the one bounded mailbox; the driver
//! hands it to the machine with the clock's moment, then does what the machine says: answers go into the conversation's
//! own bounded channel, seeds are triggered by tasks whose failure comes back as a command.
//!
//! **Only the driver touches the machine. It never waits for a peer**: one that does not read its answers is hung up on.
//! A conversation has a number; what a former conversation of the same peer still says is not heard.

mod config;
mod handle;
mod metrics;
mod run;
mod seed;

#[cfg(test)]
mod tests;

pub use config::{Clock, Config, SinceStart};
pub use handle::{Handle, Stopped};
pub use metrics::Metrics;
pub use seed::{NoSeeds, SeedRequest, SeedTrigger, TriggerError, Triggered};
