//! What the command-line tools do.

pub mod dfget;
