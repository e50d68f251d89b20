//! Every piece of the task in exactly one state, and the list of those that a parent could give now.
//!
//! **One state a piece; `ready` holds exactly the needed pieces that somebody has and whose proof, where one is asked
//! for, is known.** [`Pieces::check`] says so in debug builds and tests.

use std::collections::BTreeMap;

use damselfly_core::{Blake3, Geometry, Moment, PeerId, PieceNumber, PieceSet};

/// Where a piece comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Producer {
    /// A parent; which one is in [`Pieces::fetches`].
    Parent,
    /// The source stream, now or when it gets there.
    Source,
    /// The second source stream, of a reader that is far ahead.
    Aside,
}

/// The state of one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    NotNeeded,
    Needed,
    InFlight(Producer),
    Have,
}

/// A fetch under way.
#[derive(Clone, Debug)]
pub(super) struct Fetch {
    pub(super) parent: PeerId,
    pub(super) since: Moment,
    /// It takes long beside what others give: another parent may take it over.
    pub(super) slow: bool,
    /// It came in a turn that was asked for. Only the invariants look at it.
    #[cfg(any(test, debug_assertions))]
    pub(super) by_turn: bool,
}

/// Which proofs are known, and whether they are asked for. They may come before the geometry does.
#[derive(Debug, Default)]
pub(super) struct Proofs {
    /// Whether nothing may be taken from a parent without one. Never taken back.
    pub(super) required: bool,
    pub(super) known: BTreeMap<PieceNumber, Blake3>,
}

impl Proofs {
    pub(super) fn allow(&self, piece: PieceNumber) -> bool {
        !self.required || self.known.contains_key(&piece)
    }
}

/// The table of pieces.
#[derive(Debug)]
pub(super) struct Pieces {
    geometry: Geometry,
    states: Vec<State>,
    /// How many followed parents have it.
    held_by: Vec<u16>,
    ready: Ready,
    needed: u32,
    /// What is wanted, and how much of that is not here.
    wanted: PieceSet,
    missing: u32,
    from_source: u32,
    pub(super) fetches: BTreeMap<PieceNumber, Fetch>,
}

impl Pieces {
    pub(super) fn new(geometry: Geometry, have: &PieceSet) -> Self {
        let count = geometry.count() as usize;
        let state = |piece| if have.contains(piece) { State::Have } else { State::NotNeeded };
        Self {
            geometry,
            states: geometry.pieces().map(state).collect(),
            held_by: vec![0; count],
            ready: Ready { list: Vec::new(), place: vec![NOWHERE; count], set: PieceSet::empty(geometry.count()) },
            needed: 0,
            wanted: PieceSet::empty(geometry.count()),
            missing: 0,
            from_source: 0,
            fetches: BTreeMap::new(),
        }
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The state of a piece; `None` if the task has no such piece.
    pub(super) fn state(&self, piece: PieceNumber) -> Option<State> {
        self.states.get(piece.index()).copied()
    }

    pub(super) fn is_needed(&self, piece: PieceNumber) -> bool {
        self.state(piece) == Some(State::Needed)
    }

    /// Whether a parent could give it now.
    pub(super) fn is_ready(&self, piece: PieceNumber) -> bool {
        self.ready.place.get(piece.index()).is_some_and(|&place| place != NOWHERE)
    }

    /// The pieces that a parent could give now, in no order.
    pub(super) fn ready(&self) -> &[PieceNumber] {
        &self.ready.list
    }

    /// The same as a set.
    pub(super) fn ready_set(&self) -> &PieceSet {
        &self.ready.set
    }

    /// Gives back the pieces from `end` on that the source stream has claimed.
    pub(super) fn release_source_from(&mut self, end: u32, wanted: &PieceSet, proofs: &Proofs) {
        for number in end..self.geometry.count() {
            if self.state(PieceNumber(number)) == Some(State::InFlight(Producer::Source)) {
                self.release(PieceNumber(number), wanted, proofs);
            }
        }
    }

    /// How many followed parents have it.
    pub(super) fn held_by(&self, piece: PieceNumber) -> u16 {
        self.held_by.get(piece.index()).copied().unwrap_or(0)
    }

    /// Whether some piece is needed and nobody is fetching it.
    pub(super) fn any_needed(&self) -> bool {
        self.needed > 0
    }

    /// Whether nothing that is wanted is still missing. The source may be under way through pieces nobody wants.
    pub(super) fn is_done(&self) -> bool {
        self.missing == 0
    }

    pub(super) fn set(&mut self, piece: PieceNumber, state: State, proofs: &Proofs) {
        let Some(place) = self.states.get_mut(piece.index()) else { return };
        let old = std::mem::replace(place, state);
        self.needed -= u32::from(old == State::Needed);
        self.needed += u32::from(state == State::Needed);
        self.from_source -= u32::from(old == State::InFlight(Producer::Source));
        self.from_source += u32::from(state == State::InFlight(Producer::Source));
        if self.wanted.contains(piece) {
            self.missing -= u32::from(old != State::Have);
            self.missing += u32::from(state != State::Have);
        }
        if old == State::InFlight(Producer::Parent) {
            self.fetches.remove(&piece);
        }
        self.refresh(piece, proofs);
    }

    /// Claims a needed piece for a parent.
    pub(super) fn fetch(&mut self, piece: PieceNumber, fetch: Fetch, proofs: &Proofs) {
        debug_assert!(self.is_needed(piece), "one producer a piece: {piece} is {:?}", self.state(piece));
        self.set(piece, State::InFlight(Producer::Parent), proofs);
        self.fetches.insert(piece, fetch);
    }

    /// The parent that is fetching the piece, if it is this one.
    pub(super) fn fetch_from(&self, piece: PieceNumber, parent: &PeerId) -> Option<&Fetch> {
        self.fetches.get(&piece).filter(|fetch| fetch.parent == *parent)
    }

    /// Gives back every piece that the source stream has claimed.
    pub(super) fn release_source(&mut self, wanted: &PieceSet, proofs: &Proofs) {
        if self.from_source == 0 {
            return;
        }
        for piece in self.geometry.pieces() {
            if self.state(piece) == Some(State::InFlight(Producer::Source)) {
                self.release(piece, wanted, proofs);
            }
        }
    }

    /// Nobody is fetching the piece any more.
    pub(super) fn release(&mut self, piece: PieceNumber, wanted: &PieceSet, proofs: &Proofs) {
        let state = if wanted.contains(piece) { State::Needed } else { State::NotNeeded };
        self.set(piece, state, proofs);
    }

    /// Another set of pieces is wanted now. Returns the fetches that nobody needs any more, which are released.
    pub(super) fn want(&mut self, wanted: &PieceSet, proofs: &Proofs) -> Vec<(PieceNumber, PeerId)> {
        self.wanted = wanted.clone();
        self.missing = wanted.iter().filter(|&piece| self.state(piece) != Some(State::Have)).count() as u32;
        let mut unwanted = Vec::new();
        for piece in self.geometry.pieces() {
            match (self.states[piece.index()], wanted.contains(piece)) {
                (State::NotNeeded, true) => self.set(piece, State::Needed, proofs),
                (State::Needed, false) => self.set(piece, State::NotNeeded, proofs),
                (State::InFlight(Producer::Parent), false) => {
                    if let Some(fetch) = self.fetches.get(&piece) {
                        unwanted.push((piece, fetch.parent.clone()));
                    }
                    self.set(piece, State::NotNeeded, proofs);
                }
                _ => {}
            }
        }
        unwanted
    }

    /// A followed parent has got the piece.
    pub(super) fn add_holder(&mut self, piece: PieceNumber, proofs: &Proofs) {
        if let Some(held) = self.held_by.get_mut(piece.index()) {
            *held = held.saturating_add(1);
            self.refresh(piece, proofs);
        }
    }

    /// A parent that had the piece is not followed any more, or does not have it.
    pub(super) fn remove_holder(&mut self, piece: PieceNumber, proofs: &Proofs) {
        if let Some(held) = self.held_by.get_mut(piece.index()) {
            *held = held.saturating_sub(1);
            self.refresh(piece, proofs);
        }
    }

    /// Brings `ready` up to date for one piece.
    pub(super) fn refresh(&mut self, piece: PieceNumber, proofs: &Proofs) {
        let Some(&state) = self.states.get(piece.index()) else { return };
        let ready = state == State::Needed && self.held_by[piece.index()] > 0 && proofs.allow(piece);
        if ready {
            self.ready.insert(piece);
        } else {
            self.ready.remove(piece);
        }
    }

    /// Brings `ready` up to date for all pieces.
    pub(super) fn refresh_all(&mut self, proofs: &Proofs) {
        for piece in self.geometry.pieces() {
            self.refresh(piece, proofs);
        }
    }

    /// Panics where an invariant does not hold.
    #[cfg(any(test, debug_assertions))]
    pub(super) fn check(&self, proofs: &Proofs) {
        let count = |wanted| self.states.iter().filter(|&&state| state == wanted).count();
        assert_eq!(self.needed as usize, count(State::Needed));
        let missing = self.wanted.iter().filter(|piece| self.states[piece.index()] != State::Have);
        assert_eq!(self.missing as usize, missing.count());
        assert_eq!(self.from_source as usize, count(State::InFlight(Producer::Source)));
        assert_eq!(self.fetches.len(), count(State::InFlight(Producer::Parent)));
        for piece in self.geometry.pieces() {
            let state = self.states[piece.index()];
            assert_eq!(state == State::InFlight(Producer::Parent), self.fetches.contains_key(&piece), "{piece}");
            let ready = state == State::Needed && self.held_by[piece.index()] > 0 && proofs.allow(piece);
            assert_eq!(self.is_ready(piece), ready, "{piece}");
        }
    }
}

/// A set with O(1) insert, remove and choice at random.
#[derive(Debug)]
struct Ready {
    list: Vec<PieceNumber>,
    place: Vec<u32>,
    set: PieceSet,
}

const NOWHERE: u32 = u32::MAX;

impl Ready {
    fn insert(&mut self, piece: PieceNumber) {
        if self.place[piece.index()] == NOWHERE {
            self.place[piece.index()] = self.list.len() as u32;
            self.list.push(piece);
            self.set.insert(piece);
        }
    }

    fn remove(&mut self, piece: PieceNumber) {
        let place = std::mem::replace(&mut self.place[piece.index()], NOWHERE);
        if place != NOWHERE {
            self.set.remove(piece);
            self.list.swap_remove(place as usize);
            if let Some(moved) = self.list.get(place as usize) {
                self.place[moved.index()] = place;
            }
        }
    }
}
