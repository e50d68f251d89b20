//! What the origin serves: bytes that follow from a version and an offset, so that any reader can check any range.
//!
//! A content is a random block repeated. The block's length is a prime, so that two pieces of a content, or the same
//! piece of two versions, never look alike: a piece in the wrong place is a wrong byte.

use std::sync::OnceLock;

/// The block's length.
const PERIOD: u64 = 1_048_573;

fn block() -> &'static [u8] {
    static BLOCK: OnceLock<Vec<u8>> = OnceLock::new();
    BLOCK.get_or_init(|| {
        let mut bytes = vec![0; PERIOD as usize];
        fastrand::Rng::with_seed(4001).fill(&mut bytes);
        bytes
    })
}

/// One version of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) length: u64,
    /// Two versions differ in every piece.
    pub(crate) version: u64,
}

impl Content {
    /// Some of the bytes at `offset`: at least one, at most `most`, as many as lie together in memory.
    pub(crate) fn at(self, offset: u64, most: u64) -> &'static [u8] {
        let start = offset.wrapping_add(self.version.wrapping_mul(7919)) % PERIOD;
        let run = most.min(PERIOD - start).min(self.length.saturating_sub(offset));
        &block()[start as usize..(start + run) as usize]
    }

    /// Whether `bytes` are what stands at `offset`.
    pub(crate) fn agrees(self, mut offset: u64, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let expected = self.at(offset, bytes.len() as u64);
            if expected.is_empty() || expected != &bytes[..expected.len()] {
                return false;
            }
            offset += expected.len() as u64;
            bytes = &bytes[expected.len()..];
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(content: Content, mut offset: u64, end: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while offset < end {
            let run = content.at(offset, end - offset);
            bytes.extend_from_slice(run);
            offset += run.len() as u64;
        }
        bytes
    }

    #[test]
    fn a_content_agrees_with_itself_and_nothing_else() {
        let content = Content { length: 9 << 20, version: 1 };
        let piece = bytes(content, 4 << 20, 8 << 20);
        assert_eq!(piece.len(), 4 << 20);
        assert!(content.agrees(4 << 20, &piece));
        assert!(!content.agrees(0, &piece), "another piece of the same content");
        assert!(!Content { version: 2, ..content }.agrees(4 << 20, &piece), "the same piece of another version");
        assert!(!content.agrees(8 << 20, &piece), "bytes beyond the end");
        let mut flipped = piece;
        flipped[4_000_000] ^= 1;
        assert!(!content.agrees(4 << 20, &flipped), "one bit is wrong");
    }
}
