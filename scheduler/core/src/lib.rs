//! Damselfly.
