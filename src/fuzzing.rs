//! The fuzz targets of the parsers that are private to their modules (see `fuzz/`).

pub use crate::mitm::fuzz_client_hello as client_hello;
pub use crate::proxy::fuzzing::{answer_head, authority, detection, request};
