//! What the command-line tools do.

pub mod dfctl;
pub mod dfget;
