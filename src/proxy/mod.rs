//! The proxy: from an accepted connection to the answer.
