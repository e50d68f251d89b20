use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256, Sha512};

use crate::id::{parse_hex, write_hex};

/// The digest of a whole content, as the content's own naming gives it (an OCI blob's `sha256:<hex>` or `sha512:<hex>`).
///
/// A content that is named by another algorithm is not a task with a digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Digest {
    /// SHA-256, as nearly all content is named.
    Sha256([u8; 32]),
    /// SHA-512.
    Sha512([u8; 64]),
}

/// A digest text that is not of a known algorithm and exact length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected sha256:<64 hex digits>, sha512:<128 hex digits>, blake3:<64 hex digits> or crc32:<decimal>")]
pub struct DigestError;

impl Digest {
    /// The SHA-256 digest with these bytes.
    pub const fn sha256(bytes: [u8; 32]) -> Self {
        Self::Sha256(bytes)
    }

    /// The digest with these bytes, whose number says of which algorithm it is.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let sha256 = || bytes.try_into().map(Self::Sha256);
        bytes.try_into().map(Self::Sha512).or_else(|_| sha256()).ok()
    }

    /// The digest's bytes.
    pub const fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha512(bytes) => bytes,
        }
    }

    /// The name of the algorithm, as it stands in front of the hex digits.
    pub const fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "sha256",
            Self::Sha512(_) => "sha512",
        }
    }

    /// The hex digits alone, without the algorithm.
    pub fn hex(&self) -> String {
        self.to_string().split_off(self.algorithm().len() + 1)
    }

    /// Computes the digest of a content, to be compared with this one.
    pub fn check(&self) -> DigestCheck {
        let hasher = match self {
            Self::Sha256(_) => ContentHasher::Sha256(Sha256::new()),
            Self::Sha512(_) => ContentHasher::Sha512(Sha512::new()),
        };
        DigestCheck { digest: *self, hasher }
    }

    /// Whether `bytes` have this digest.
    pub fn is_of(&self, bytes: &[u8]) -> bool {
        let mut check = self.check();
        check.update(bytes);
        check.agrees()
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, hex) = text.split_once(':').ok_or(DigestError)?;
        match algorithm {
            "sha256" => parse_hex(hex).map(Self::Sha256),
            "sha512" => parse_hex(hex).map(Self::Sha512),
            _ => None,
        }
        .ok_or(DigestError)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.algorithm())?;
        f.write_str(":")?;
        write_hex(f, self.as_bytes())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Compares a content that comes in order, in any cut, with a digest.
#[derive(Clone)]
pub struct DigestCheck {
    digest: Digest,
    hasher: ContentHasher,
}

#[derive(Clone)]
enum ContentHasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl DigestCheck {
    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.hasher {
            ContentHasher::Sha256(hasher) => hasher.update(bytes),
            ContentHasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// Whether all bytes together have the digest.
    pub fn agrees(self) -> bool {
        match self.hasher {
            ContentHasher::Sha256(hasher) => hasher.finalize().as_slice() == self.digest.as_bytes(),
            ContentHasher::Sha512(hasher) => hasher.finalize().as_slice() == self.digest.as_bytes(),
        }
    }
}

impl fmt::Debug for DigestCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DigestCheck").field("digest", &self.digest).finish_non_exhaustive()
    }
}

/// The BLAKE3 hash of a piece: the check that holds against a peer that lies. Written `blake3:<64 hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blake3(pub [u8; 32]);

impl FromStr for Blake3 {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let hex = text.strip_prefix("blake3:").ok_or(DigestError)?;
        parse_hex(hex).map(Self).ok_or(DigestError)
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
        let long = format!("sha512:{hex}{hex}");
        assert_eq!(long.parse::<Digest>().unwrap().to_string(), long);
        assert_eq!(long.parse::<Digest>().unwrap().hex(), hex.repeat(2));
        for digest in [&text, &long].map(|text| text.parse::<Digest>().unwrap()) {
            assert_eq!(Digest::from_bytes(digest.as_bytes()), Some(digest));
        }
        assert_eq!(Digest::from_bytes(&[0; 33]), None);
        for bad in [
            "",
            "sha256:",
            "sha512:aa",
            &format!("sha512:{hex}"),
            &format!("sha256:{hex}{hex}"),
            &hex,
            &format!("sha256:{hex}a"),
            &format!("md5:{hex}"),
        ] {
            assert_eq!(bad.parse::<Digest>(), Err(DigestError), "{bad}");
        }
        let text = format!("blake3:{hex}");
        assert_eq!(text.parse::<Blake3>().unwrap().to_string(), text);
    }

    #[test]
    fn a_content_is_compared_with_the_digest_of_its_own_algorithm() {
        // The digests of "abc" (FIPS 180-4).
        for known in [
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
             2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        ] {
            let digest: Digest = known.parse().unwrap();
            let mut check = digest.check();
            check.update(b"a");
            check.update(b"bc");
            assert!(check.agrees() && digest.is_of(b"abc") && !digest.is_of(b"abd"), "{known}");
        }
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
