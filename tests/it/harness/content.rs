//! Contents to download.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

/// `length` bytes that do not repeat, the same for the same seed.
pub(crate) fn random(length: usize, seed: u64) -> Bytes {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes.into()
}

/// The sha256 as OCI writes it, without its `sha256:`.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether these bytes stand somewhere in those.
pub(crate) fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    // The regex crate looks for literals with vector instructions, also in a test that is not optimised itself.
    let literal: String = needle.iter().map(|byte| format!("\\x{byte:02x}")).collect();
    regex::bytes::Regex::new(&format!("(?-u){literal}")).expect("a valid expression").is_match(haystack)
}
