//! See `damselfly_fuzz::TARGETS`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| damselfly_fuzz::identity(bytes));
