use std::fmt;

/// A non-empty or empty run of bytes `[start, end)` of a content. `start <= end` always.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// The bytes from `start` up to but without `end`; `None` where `start > end`.
    pub const fn new(start: u64, end: u64) -> Option<Self> {
        if start <= end { Some(Self { start, end }) } else { None }
    }

    /// All `length` bytes of a content.
    pub const fn whole(length: u64) -> Self {
        Self { start: 0, end: length }
    }

    /// The first byte's offset.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// The offset behind the last byte.
    pub const fn end(self) -> u64 {
        self.end
    }

    /// How many bytes.
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether there is no byte in it.
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// The bytes that both have; `None` where they share none.
    pub fn intersection(self, other: Self) -> Option<Self> {
        let shared = Self::new(self.start.max(other.start), self.end.min(other.end))?;
        (!shared.is_empty()).then_some(shared)
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// Which bytes a reader asks for before the content's length is known: the forms of RFC 9110, 14.1.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeWish {
    /// No range: everything, answered 200.
    Whole,
    /// `bytes=N-`.
    From(u64),
    /// `bytes=N-M`, both inclusive.
    Span(u64, u64),
    /// `bytes=-N`: the last N.
    Suffix(u64),
}

impl RangeWish {
    /// The bytes that are meant in a content of `length` bytes; `None` where the answer is 416.
    pub fn resolve(self, length: u64) -> Option<ByteRange> {
        match self {
            Self::Whole => Some(ByteRange::whole(length)),
            Self::From(first) if first < length => ByteRange::new(first, length),
            Self::Span(first, last) if first <= last && first < length => {
                ByteRange::new(first, last.saturating_add(1).min(length))
            }
            Self::Suffix(count) if count > 0 && length > 0 => ByteRange::new(length.saturating_sub(count), length),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_resolve_as_the_rfc_says() {
        for (wish, length, want) in [
            (RangeWish::Whole, 0, Some((0, 0))),
            (RangeWish::From(0), 10, Some((0, 10))),
            (RangeWish::From(9), 10, Some((9, 10))),
            (RangeWish::From(10), 10, None),
            (RangeWish::From(0), 0, None),
            (RangeWish::Span(2, 4), 10, Some((2, 5))),
            (RangeWish::Span(2, u64::MAX), 10, Some((2, 10))),
            (RangeWish::Span(4, 2), 10, None),
            (RangeWish::Span(10, 12), 10, None),
            (RangeWish::Suffix(3), 10, Some((7, 10))),
            (RangeWish::Suffix(30), 10, Some((0, 10))),
            (RangeWish::Suffix(0), 10, None),
            (RangeWish::Suffix(1), 0, None),
        ] {
            let want = want.map(|(start, end)| ByteRange::new(start, end).unwrap());
            assert_eq!(wish.resolve(length), want, "{wish:?} of {length}");
        }
    }

    #[test]
    fn ranges_are_ordered_and_meet() {
        assert_eq!(ByteRange::new(2, 1), None);
        let a = ByteRange::new(0, 10).unwrap();
        let b = ByteRange::new(5, 15).unwrap();
        assert_eq!(a.intersection(b), ByteRange::new(5, 10));
        assert_eq!(a.intersection(ByteRange::new(10, 11).unwrap()), None);
        assert_eq!((a.len(), a.is_empty()), (10, false));
    }
}
