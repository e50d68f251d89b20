use std::fmt;

use crate::range::ByteRange;

/// The most pieces that a task may have: bounds every bitmap and list that a peer can make us keep.
pub const MAX_PIECES: u32 = 1 << 20;

const MIB: u64 = 1 << 20;
const LEAST_PIECE: u64 = 4 * MIB;
const MOST_PIECE: u64 = 64 * MIB;
const AIM_PIECES: u64 = 500;

/// Which piece of a task, counted from 0. Checked against a [`Geometry`] before it names bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceNumber(pub u32);

impl PieceNumber {
    /// As an index into a table of the task's pieces.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for PieceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for PieceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// How a content is cut: its length and the length of every piece but the last.
///
/// **A piece's place follows from its number alone**; an offset that a peer sends is never used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    length: u64,
    piece_length: u64,
}

/// A length and piece length that make no sensible task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// The piece length is 0.
    #[error("the piece length is 0")]
    NoPieceLength,
    /// More than [`MAX_PIECES`] pieces.
    #[error("more than {MAX_PIECES} pieces")]
    TooManyPieces,
}

/// The piece length in bytes for a content of `length` bytes: the next power of two of a 500th of it, rounded down, at
/// least 4 MiB and at most 64 MiB, as Dragonfly's client computes it. A task of both is cut alike, or not shared.
pub const fn default_piece_length(length: u64) -> u64 {
    let wanted = length / AIM_PIECES;
    if wanted <= LEAST_PIECE {
        LEAST_PIECE
    } else if wanted >= MOST_PIECE {
        MOST_PIECE
    } else {
        wanted.next_power_of_two()
    }
}

/// The piece length in bytes for a content that only our own hosts share: small pieces are passed on sooner. 1 MiB up to
/// 512 MiB, and then the next power of two of a 512th of the length, at most 64 MiB.
pub const fn short_piece_length(length: u64) -> u64 {
    let wanted = length.div_ceil(512);
    if wanted <= MIB {
        MIB
    } else if wanted >= MOST_PIECE {
        MOST_PIECE
    } else {
        wanted.next_power_of_two()
    }
}

impl Geometry {
    /// A content of `length` bytes in pieces of `piece_length` bytes.
    pub const fn new(length: u64, piece_length: u64) -> Result<Self, GeometryError> {
        if piece_length == 0 {
            return Err(GeometryError::NoPieceLength);
        }
        if length.div_ceil(piece_length) > MAX_PIECES as u64 {
            return Err(GeometryError::TooManyPieces);
        }
        Ok(Self { length, piece_length })
    }

    /// A content of `length` bytes in pieces of the default length.
    ///
    /// # Errors
    /// Above 64 TiB, where even the longest pieces would be too many.
    pub const fn of_length(length: u64) -> Result<Self, GeometryError> {
        Self::new(length, default_piece_length(length))
    }

    /// The content's length in bytes.
    pub const fn length(self) -> u64 {
        self.length
    }

    /// The length in bytes of every piece but the last.
    pub const fn piece_length(self) -> u64 {
        self.piece_length
    }

    /// How many pieces; 0 for an empty content.
    pub const fn count(self) -> u32 {
        // At most MAX_PIECES, by construction.
        self.length.div_ceil(self.piece_length) as u32
    }

    /// The piece with this number, if the task has it.
    pub const fn piece(self, number: u32) -> Option<PieceNumber> {
        if number < self.count() { Some(PieceNumber(number)) } else { None }
    }

    /// All piece numbers, in order.
    pub fn pieces(self) -> impl DoubleEndedIterator<Item = PieceNumber> + ExactSizeIterator {
        (0..self.count()).map(PieceNumber)
    }

    /// The bytes of a piece; `None` if the task has no such piece.
    pub fn span(self, piece: PieceNumber) -> Option<ByteRange> {
        self.piece(piece.0)?;
        let start = u64::from(piece.0) * self.piece_length;
        ByteRange::new(start, self.length.min(start + self.piece_length))
    }

    /// The piece that holds the byte at `offset`; `None` at and behind the end.
    pub const fn piece_at(self, offset: u64) -> Option<PieceNumber> {
        if offset < self.length { Some(PieceNumber((offset / self.piece_length) as u32)) } else { None }
    }

    /// The pieces that hold the bytes of `range`, in order. What lies behind the content's end is left out.
    pub fn covering(self, range: ByteRange) -> impl DoubleEndedIterator<Item = PieceNumber> + ExactSizeIterator {
        let end = range.end().min(self.length);
        let (first, behind) = if range.start() >= end {
            (0, 0)
        } else {
            ((range.start() / self.piece_length) as u32, end.div_ceil(self.piece_length) as u32)
        };
        (first..behind).map(PieceNumber)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn default_piece_length_is_dragonflys() {
        for (length, want) in [
            (0, 4 * MIB),
            (1024 * MIB, 4 * MIB),
            (2000 * MIB, 4 * MIB),
            (2000 * MIB + 1, 4 * MIB),
            (2000 * MIB + 499, 4 * MIB),
            (2000 * MIB + 500, 8 * MIB),
            (4000 * MIB + 499, 8 * MIB),
            (4000 * MIB + 500, 16 * MIB),
            (16_000 * MIB + 499, 32 * MIB),
            (16_000 * MIB + 500, 64 * MIB),
            (10 * 1024 * MIB, 32 * MIB),
            (u64::MAX, 64 * MIB),
        ] {
            assert_eq!(default_piece_length(length), want, "{length}");
        }
    }

    #[test]
    fn pieces_that_only_we_share_are_short() {
        for (length, want) in
            [(0, MIB), (512 * MIB, MIB), (512 * MIB + 1, 2 * MIB), (10 * 1024 * MIB, 32 * MIB), (u64::MAX, 64 * MIB)]
        {
            assert_eq!(short_piece_length(length), want, "{length}");
        }
    }

    #[test]
    fn senseless_geometries_are_refused() {
        assert_eq!(Geometry::new(1, 0), Err(GeometryError::NoPieceLength));
        assert_eq!(Geometry::new(u64::MAX, 1), Err(GeometryError::TooManyPieces));
        assert!(Geometry::new(u64::from(MAX_PIECES), 1).is_ok());
        assert_eq!(Geometry::new(0, 1).unwrap().count(), 0);
    }

    proptest! {
        #[test]
        fn pieces_tile_the_content(length in 0u64..10_000, piece in 1u64..500) {
            let geometry = Geometry::new(length, piece).unwrap();
            let mut next = 0;
            for number in geometry.pieces() {
                let span = geometry.span(number).unwrap();
                prop_assert_eq!(span.start(), next);
                prop_assert!(!span.is_empty());
                prop_assert_eq!(geometry.piece_at(span.start()), Some(number));
                prop_assert_eq!(geometry.piece_at(span.end() - 1), Some(number));
                next = span.end();
            }
            prop_assert_eq!(next, length);
            prop_assert_eq!(geometry.span(PieceNumber(geometry.count())), None);
            prop_assert_eq!(geometry.piece_at(length), None);
        }

        #[test]
        fn covering_is_every_piece_that_meets_the_range(
            length in 0u64..1000, piece in 1u64..100, start in 0u64..1100, len in 0u64..1100,
        ) {
            let geometry = Geometry::new(length, piece).unwrap();
            let range = ByteRange::new(start, start + len).unwrap();
            let want: Vec<_> = geometry
                .pieces()
                .filter(|&number| geometry.span(number).unwrap().intersection(range).is_some())
                .collect();
            prop_assert_eq!(geometry.covering(range).collect::<Vec<_>>(), want);
        }
    }
}
