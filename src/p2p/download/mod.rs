//! The download machine: pure, events in, actions out.
