//! The peers of one task that may be offered to others: those that have pieces, and those of ours that are getting them.
//!
//! Kept so that one can be drawn at random in constant time: a mesh whose edges are drawn at random is a few steps wide
//! however many hosts there are, one whose edges follow an order is a long chain.

use std::collections::BTreeMap;
use std::sync::Arc;

use damselfly_core::PeerId;

/// Where a holder stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It can take another child.
    Free(Arc<str>),
    /// It can't.
    Full,
}

/// A set of peers from which one can be drawn.
#[derive(Debug, Default)]
struct Pool {
    list: Vec<PeerId>,
    index: BTreeMap<PeerId, usize>,
}

impl Pool {
    fn add(&mut self, peer: &PeerId) {
        if !self.index.contains_key(peer) {
            self.index.insert(peer.clone(), self.list.len());
            self.list.push(peer.clone());
        }
    }

    fn remove(&mut self, peer: &PeerId) {
        let Some(at) = self.index.remove(peer) else { return };
        self.list.swap_remove(at);
        if let Some(moved) = self.list.get(at) {
            self.index.insert(moved.clone(), at);
        }
    }

    /// Up to `most` of them, none twice, beginning at a place drawn by chance and going on in steps drawn by chance.
    fn draw(&self, most: usize, rng: &mut fastrand::Rng) -> Vec<PeerId> {
        let len = self.list.len();
        if len <= most {
            let mut all = self.list.clone();
            rng.shuffle(&mut all);
            return all;
        }
        let mut drawn = std::collections::BTreeSet::new();
        while drawn.len() < most {
            drawn.insert(rng.usize(..len));
        }
        let mut drawn: Vec<PeerId> = drawn.into_iter().map(|at| self.list[at].clone()).collect();
        rng.shuffle(&mut drawn);
        drawn
    }
}

/// All holders of a task.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    free: Pool,
    by_idc: BTreeMap<Arc<str>, Pool>,
    full: Pool,
}

impl Holders {
    pub(crate) fn add(&mut self, peer: &PeerId, place: &Place) {
        match place {
            Place::Full => self.full.add(peer),
            Place::Free(idc) => {
                self.free.add(peer);
                if !idc.is_empty() {
                    self.by_idc.entry(idc.clone()).or_default().add(peer);
                }
            }
        }
    }

    pub(crate) fn remove(&mut self, peer: &PeerId, place: &Place) {
        match place {
            Place::Full => self.full.remove(peer),
            Place::Free(idc) => {
                self.free.remove(peer);
                if let Some(near) = self.by_idc.get_mut(idc) {
                    near.remove(peer);
                    if near.list.is_empty() {
                        self.by_idc.remove(idc);
                    }
                }
            }
        }
    }

    /// Some of those that can take another child, drawn by chance.
    pub(crate) fn draw_free(&self, most: usize, rng: &mut fastrand::Rng) -> Vec<PeerId> {
        self.free.draw(most, rng)
    }

    /// The same of one data centre.
    pub(crate) fn draw_free_in(&self, idc: &str, most: usize, rng: &mut fastrand::Rng) -> Vec<PeerId> {
        self.by_idc.get(idc).map(|near| near.draw(most, rng)).unwrap_or_default()
    }

    /// Some of those that can't.
    pub(crate) fn draw_full(&self, most: usize, rng: &mut fastrand::Rng) -> Vec<PeerId> {
        self.full.draw(most, rng)
    }

    pub(crate) fn has_free(&self) -> bool {
        !self.free.list.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.free.list.len() + self.full.list.len()
    }
}
