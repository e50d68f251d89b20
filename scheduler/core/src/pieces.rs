//! Which pieces a peer has, also while nobody knows how many there are.

use damselfly_core::{MAX_PIECES, PieceNumber};

/// Piece numbers; grows with the highest one, up to what any task may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pieces {
    words: Vec<u64>,
    held: u32,
}

impl Pieces {
    /// How many pieces are in the set.
    pub(crate) const fn len(&self) -> u32 {
        self.held
    }

    /// Whether none is.
    pub(crate) const fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Adds a piece; says whether it is new. A number that no task has is not added.
    pub(crate) fn insert(&mut self, piece: PieceNumber) -> bool {
        if piece.0 >= MAX_PIECES || self.contains(piece) {
            return false;
        }
        let word = piece.index() / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (piece.0 % 64);
        self.held += 1;
        true
    }

    /// The pieces in the set, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = PieceNumber> + '_ {
        self.words.iter().enumerate().flat_map(|(index, &word)| {
            std::iter::successors((word != 0).then_some(word), |&rest| {
                let rest = rest & (rest - 1);
                (rest != 0).then_some(rest)
            })
            .map(move |rest| PieceNumber(index as u32 * 64 + rest.trailing_zeros()))
        })
    }

    /// Takes a piece out; says whether it was in.
    pub(crate) fn remove(&mut self, piece: PieceNumber) -> bool {
        if !self.contains(piece) {
            return false;
        }
        self.words[piece.index() / 64] &= !(1 << (piece.0 % 64));
        self.held -= 1;
        true
    }

    /// Whether a piece is in the set.
    pub(crate) fn contains(&self, piece: PieceNumber) -> bool {
        self.words.get(piece.index() / 64).is_some_and(|word| word >> (piece.0 % 64) & 1 == 1)
    }

    /// Drops the numbers from `count` on.
    pub(crate) fn truncate(&mut self, count: u32) {
        let words = (count as usize).div_ceil(64);
        self.words.truncate(words);
        if let Some(last) = self.words.get_mut((count / 64) as usize) {
            *last &= (1 << (count % 64)) - 1;
        }
        self.held = self.words.iter().map(|word| word.count_ones()).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_and_is_cut() {
        let mut pieces = Pieces::default();
        for number in [0, 63, 64, 200] {
            assert!(pieces.insert(PieceNumber(number)));
            assert!(!pieces.insert(PieceNumber(number)), "{number} is not new");
        }
        assert!(!pieces.insert(PieceNumber(MAX_PIECES)));
        assert_eq!(pieces.len(), 4);
        assert!(pieces.remove(PieceNumber(64)) && !pieces.remove(PieceNumber(64)) && !pieces.remove(PieceNumber(999)));
        pieces.insert(PieceNumber(5));
        assert_eq!(pieces.iter().map(|piece| piece.0).collect::<Vec<_>>(), [0, 5, 63, 200]);
        pieces.remove(PieceNumber(5));
        pieces.truncate(63);
        assert_eq!(pieces.len(), 1);
        assert!(pieces.contains(PieceNumber(0)) && !pieces.contains(PieceNumber(63)));
        pieces.insert(PieceNumber(64));
        pieces.truncate(64);
        assert_eq!(pieces.len(), 1);
        pieces.truncate(0);
        assert!(pieces.is_empty());
    }
}
