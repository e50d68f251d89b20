//! Damselfly.
fn main() {}
