use std::fmt;
use std::str::FromStr;

use crate::id::{parse_hex32, write_hex};

/// The digest of a whole content, as the content's own naming gives it (an OCI blob's `sha256:<hex>`).
///
/// Only sha256 is known; a content named by another algorithm is not a task with a digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

/// A digest text that is not of a known algorithm and exact length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected sha256:<64 hex digits>, blake3:<64 hex digits> or crc32:<decimal>")]
pub struct DigestError;

impl Digest {
    /// The sha256 digest with these bytes.
    pub const fn sha256(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The sha256's bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The hex digits alone, without the algorithm.
    pub fn hex(&self) -> String {
        self.to_string().split_off("sha256:".len())
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let hex = text.strip_prefix("sha256:").ok_or(DigestError)?;
        parse_hex32(hex).map(Self).ok_or(DigestError)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The BLAKE3 hash of a piece: the check that holds against a peer that lies. Written `blake3:<64 hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blake3(pub [u8; 32]);

impl FromStr for Blake3 {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let hex = text.strip_prefix("blake3:").ok_or(DigestError)?;
        parse_hex32(hex).map(Self).ok_or(DigestError)
    }
}

impl fmt::Display for Blake3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("blake3:")?;
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for Blake3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Both checks of one piece's bytes: the CRC-32 that Dragonfly's wire carries, and the BLAKE3 that we compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PieceDigest {
    /// CRC-32 (IEEE), as the piece framing's `crc32:<decimal>`.
    pub crc32: u32,
    /// BLAKE3 of the same bytes.
    pub blake3: Blake3,
}

impl PieceDigest {
    /// The digests of `bytes`, all at once.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = PieceHasher::default();
        hasher.update(bytes);
        hasher.finish()
    }
}

/// Computes a [`PieceDigest`] over bytes that come in order, in any cut.
#[derive(Clone, Default)]
pub struct PieceHasher {
    crc32: crc32fast::Hasher,
    blake3: blake3::Hasher,
}

impl PieceHasher {
    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.crc32.update(bytes);
        self.blake3.update(bytes);
    }

    /// The digests of all bytes so far; the hasher starts afresh.
    pub fn finish(&mut self) -> PieceDigest {
        let crc32 = std::mem::take(&mut self.crc32).finalize();
        let blake3 = Blake3(*self.blake3.finalize().as_bytes());
        self.blake3.reset();
        PieceDigest { crc32, blake3 }
    }
}

impl fmt::Debug for PieceHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PieceHasher").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_read_what_they_write_and_refuse_the_rest() {
        let hex = "a".repeat(64);
        let text = format!("sha256:{hex}");
        assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
        assert_eq!(text.parse::<Digest>().unwrap().hex(), hex);
        for bad in ["", "sha256:", "sha512:aa", &hex, &format!("sha256:{hex}a"), &format!("md5:{hex}")] {
            assert_eq!(bad.parse::<Digest>(), Err(DigestError), "{bad}");
        }
        let text = format!("blake3:{hex}");
        assert_eq!(text.parse::<Blake3>().unwrap().to_string(), text);
    }

    #[test]
    fn the_cut_of_the_bytes_does_not_matter() {
        let mut hasher = PieceHasher::default();
        hasher.update(b"ab");
        hasher.update(b"c");
        let digest = hasher.finish();
        assert_eq!(digest, PieceDigest::of(b"abc"));
        assert_eq!(digest.crc32, 0x3524_41c2);
        assert_eq!(hasher.finish(), PieceDigest::of(b""), "finish starts afresh");
    }
}
