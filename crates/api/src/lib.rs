//! Damselfly.
pub mod vortex;
