//! The composition root: configuration in, running daemon out.
