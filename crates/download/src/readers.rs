//! Who wants which bytes.

use std::collections::BTreeMap;

use std::time::Duration;

use damselfly_core::{Geometry, Moment, PieceNumber, PieceSet, RangeWish};

use super::ReaderId;
use super::pieces::{Pieces, State};

#[derive(Debug)]
struct Reader {
    wish: RangeWish,
    /// The next byte it wants; 0 until it said so.
    at: u64,
    /// The first piece from `at` on that may be missing: everything before is here.
    cursor: u32,
    /// Behind its last piece.
    end: u32,
    /// It has got every byte and left; what it read ahead of the finished pieces is still to be finished.
    served: bool,
    /// It left before it had every byte: what it leaves to be finished.
    leftover: Option<Leftover>,
}

/// The pieces that were under way when their reader left: they are paid for, and kept.
#[derive(Debug)]
struct Leftover {
    pieces: Vec<PieceNumber>,
    since: Moment,
}

/// The readers of one download, and whether the whole is wanted without any.
#[derive(Debug, Default)]
pub(super) struct Readers {
    readers: BTreeMap<ReaderId, Reader>,
    whole: bool,
    /// Whether there ever was somebody who wanted something.
    pub(super) ever: bool,
}

impl Readers {
    pub(super) fn want(&mut self, id: ReaderId, wish: RangeWish, geometry: Option<Geometry>) {
        self.ever = true;
        let mut reader = Reader { wish, at: 0, cursor: 0, end: 0, served: false, leftover: None };
        if let Some(geometry) = geometry {
            reader.resolve(geometry);
        }
        self.readers.insert(id, reader);
    }

    pub(super) fn want_whole(&mut self, whole: bool) {
        self.ever |= whole;
        self.whole = whole;
    }

    /// A reader has moved. It still needs all of its range: what it has got may be a piece that is not finished yet.
    pub(super) fn moved(&mut self, id: ReaderId, offset: u64, geometry: Option<Geometry>) {
        let Some(reader) = self.readers.get_mut(&id) else { return };
        reader.at = offset;
        if let Some(at) = geometry.and_then(|geometry| geometry.piece_at(offset)) {
            reader.cursor = reader.cursor.max(at.0).min(reader.end);
        }
    }

    /// A reader has left; says whether its need has changed. One that has got every byte leaves its need behind until
    /// [`Self::release`] finds the pieces finished: its last bytes came ahead of the end of their piece. Any other one
    /// leaves those of its pieces behind that are under way.
    pub(super) fn remove(
        &mut self,
        id: ReaderId,
        under_way: &[PieceNumber],
        now: Moment,
        geometry: Option<Geometry>,
    ) -> bool {
        let Some(reader) = self.readers.get_mut(&id) else { return false };
        let range = geometry.and_then(|geometry| reader.wish.resolve(geometry.length()));
        reader.served = range.is_some_and(|range| !range.is_empty() && reader.at >= range.end());
        if reader.served {
            return false;
        }
        let (first, end) = geometry.and_then(|geometry| reader.span(geometry)).unwrap_or((0, 0));
        let own = under_way.iter().copied().filter(|piece| (first..end).contains(&piece.0));
        let pieces: Vec<_> = own.collect();
        if pieces.is_empty() {
            self.readers.remove(&id);
        } else {
            reader.leftover = Some(Leftover { pieces, since: now });
        }
        true
    }

    /// Forgets the readers who were served and whose pieces are all here, if others are left; and those who left pieces
    /// under way that nobody brings any more, or not within `grace`. Says whether there were any. The last of those whose
    /// pieces are here stay: with them the download has finished, without anybody it would be abandoned.
    pub(super) fn release(&mut self, pieces: &Pieces, now: Moment, grace: Duration) -> bool {
        let before = self.readers.len();
        self.readers.retain(|_, reader| {
            let Some(leftover) = &reader.leftover else { return true };
            let comes = |piece| matches!(pieces.state(piece), Some(State::Have | State::InFlight(_)));
            now < leftover.since + grace && leftover.pieces.iter().all(|&piece| comes(piece))
        });
        if self.whole || self.any_reader() {
            let geometry = pieces.geometry();
            self.readers.retain(|_, reader| {
                let is_here = |piece: &PieceNumber| pieces.state(*piece) == Some(State::Have);
                !(reader.has_left() && reader.wanted(geometry).iter().all(is_here))
            });
        }
        self.readers.len() < before
    }

    /// When [`Self::release`] has something to do, whatever happens.
    pub(super) fn deadline(&self, grace: Duration) -> Option<Moment> {
        self.readers.values().filter_map(|reader| Some(reader.leftover.as_ref()?.since + grace)).min()
    }

    /// Whether anybody wants anything.
    pub(super) fn any(&self) -> bool {
        self.whole || !self.readers.is_empty()
    }

    /// Whether somebody reads.
    pub(super) fn any_reader(&self) -> bool {
        self.readers.values().any(|reader| !reader.has_left())
    }

    /// The pieces that are wanted.
    pub(super) fn wanted(&self, geometry: Geometry) -> PieceSet {
        if self.whole {
            return PieceSet::full(geometry.count());
        }
        let mut wanted = PieceSet::empty(geometry.count());
        for reader in self.readers.values() {
            wanted.extend(reader.wanted(geometry));
        }
        wanted
    }

    /// The geometry became known, or a piece was lost: looks again where every reader stands.
    pub(super) fn resolve(&mut self, geometry: Geometry) {
        for reader in self.readers.values_mut() {
            reader.resolve(geometry);
        }
    }

    /// Each reader's pieces that are not here yet, up to `window` pieces from the first of them on, in order.
    pub(super) fn windows(
        &mut self,
        pieces: &Pieces,
        window: u32,
    ) -> impl Iterator<Item = std::ops::Range<u32>> + use<'_> {
        let here: Vec<_> = self
            .readers
            .values_mut()
            .filter(|reader| reader.leftover.is_none())
            .map(|reader| {
                while reader.cursor < reader.end && pieces.state(PieceNumber(reader.cursor)) == Some(State::Have) {
                    reader.cursor += 1;
                }
                reader.cursor..reader.end.min(reader.cursor.saturating_add(window))
            })
            .collect();
        here.into_iter()
    }
}

impl Reader {
    fn resolve(&mut self, geometry: Geometry) {
        let (first, end) = self.span(geometry).unwrap_or((0, 0));
        let at = geometry.piece_at(self.at).map_or(first, |at| at.0);
        (self.cursor, self.end) = (first.max(at).min(end), end);
    }

    fn has_left(&self) -> bool {
        self.served || self.leftover.is_some()
    }

    /// The pieces that it wants, or that it left to be finished.
    fn wanted(&self, geometry: Geometry) -> Vec<PieceNumber> {
        match &self.leftover {
            Some(leftover) => leftover.pieces.clone(),
            None => self.span(geometry).map_or(Vec::new(), |(first, end)| (first..end).map(PieceNumber).collect()),
        }
    }

    /// The first piece that it wants, and the one behind its last.
    fn span(&self, geometry: Geometry) -> Option<(u32, u32)> {
        let range = self.wish.resolve(geometry.length())?;
        let mut pieces = geometry.covering(range);
        let first = pieces.next()?.0;
        let end = pieces.next_back().map_or(first, |last| last.0) + 1;
        Some((first, end))
    }
}
