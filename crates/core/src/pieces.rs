use std::fmt;

use crate::geometry::PieceNumber;

/// A set of piece numbers below a fixed count: which pieces a peer has, a reader wants, or a download still needs.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PieceSet {
    words: Vec<u64>,
    count: u32,
    held: u32,
}

impl PieceSet {
    /// None of `count` pieces.
    pub fn empty(count: u32) -> Self {
        Self { words: vec![0; (count as usize).div_ceil(64)], count, held: 0 }
    }

    /// All of `count` pieces.
    pub fn full(count: u32) -> Self {
        let mut set = Self::empty(count);
        for number in 0..count {
            set.insert(PieceNumber(number));
        }
        set
    }

    /// How many pieces the task has: the bound of every number in the set.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// How many pieces are in the set.
    pub const fn len(&self) -> u32 {
        self.held
    }

    /// Whether no piece is in the set.
    pub const fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Whether every piece of the task is in the set.
    pub const fn is_full(&self) -> bool {
        self.held == self.count
    }

    /// Whether `piece` is in the set.
    pub fn contains(&self, piece: PieceNumber) -> bool {
        self.words.get(piece.index() / 64).is_some_and(|word| word & bit(piece) != 0)
    }

    /// Adds `piece`; says whether it is new. A number that the task does not have is not added.
    pub fn insert(&mut self, piece: PieceNumber) -> bool {
        if piece.0 >= self.count || self.contains(piece) {
            return false;
        }
        self.words[piece.index() / 64] |= bit(piece);
        self.held += 1;
        true
    }

    /// Takes `piece` out; says whether it was in.
    pub fn remove(&mut self, piece: PieceNumber) -> bool {
        if !self.contains(piece) {
            return false;
        }
        self.words[piece.index() / 64] &= !bit(piece);
        self.held -= 1;
        true
    }

    /// Whether some piece is in both sets.
    pub fn meets(&self, other: &Self) -> bool {
        self.words.iter().zip(&other.words).any(|(a, b)| a & b != 0)
    }

    /// The pieces that are in both sets, in order.
    pub fn common<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = PieceNumber> + 'a {
        self.words.iter().zip(&other.words).enumerate().flat_map(|(index, (a, b))| {
            std::iter::successors((a & b != 0).then_some(a & b), |&rest| {
                let rest = rest & (rest - 1);
                (rest != 0).then_some(rest)
            })
            .map(move |rest| PieceNumber(index as u32 * 64 + rest.trailing_zeros()))
        })
    }

    /// The pieces in the set, in order.
    pub fn iter(&self) -> impl Iterator<Item = PieceNumber> + '_ {
        self.words.iter().enumerate().flat_map(|(index, &word)| {
            std::iter::successors((word != 0).then_some(word), |&rest| {
                let rest = rest & (rest - 1);
                (rest != 0).then_some(rest)
            })
            .map(move |rest| PieceNumber(index as u32 * 64 + rest.trailing_zeros()))
        })
    }
}

impl Extend<PieceNumber> for PieceSet {
    fn extend<I: IntoIterator<Item = PieceNumber>>(&mut self, pieces: I) {
        for piece in pieces {
            self.insert(piece);
        }
    }
}

impl fmt::Debug for PieceSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} pieces", self.held, self.count)
    }
}

const fn bit(piece: PieceNumber) -> u64 {
    1 << (piece.0 % 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_as_a_set(count in 0u32..200, steps in prop::collection::vec((0u32..220, any::<bool>()), 0..200)) {
            let mut set = PieceSet::empty(count);
            let mut model = BTreeSet::new();
            for (number, add) in steps {
                let piece = PieceNumber(number);
                if add {
                    prop_assert_eq!(set.insert(piece), number < count && model.insert(piece));
                } else {
                    prop_assert_eq!(set.remove(piece), model.remove(&piece));
                }
                prop_assert_eq!(set.contains(piece), model.contains(&piece));
            }
            prop_assert_eq!(set.len() as usize, model.len());
            let mut even = PieceSet::empty(count);
            even.extend((0..count).step_by(2).map(PieceNumber));
            let both: Vec<_> = model.iter().copied().filter(|piece| piece.0 % 2 == 0).collect();
            prop_assert_eq!(set.meets(&even), !both.is_empty());
            prop_assert_eq!(set.common(&even).collect::<Vec<_>>(), both);
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), model.into_iter().collect::<Vec<_>>());
            prop_assert!(PieceSet::full(count).is_full());
        }
    }
}
