//! The peers of one task that have something to give, in the order in which they are to be asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use damselfly_core::PeerId;

/// Fewest children first; the drawn number spreads the rest.
pub(crate) type Key = (usize, u64, PeerId);

/// Where a holder stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Its host has a free slot.
    Free(Key, Arc<str>),
    /// Its host has none.
    Full,
}

/// All holders of a task.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    free: BTreeSet<Key>,
    by_idc: BTreeMap<Arc<str>, BTreeSet<Key>>,
    full: BTreeSet<PeerId>,
}

impl Holders {
    pub(crate) fn add(&mut self, peer: &PeerId, place: &Place) {
        match place {
            Place::Full => {
                self.full.insert(peer.clone());
            }
            Place::Free(key, idc) => {
                self.free.insert(key.clone());
                if !idc.is_empty() {
                    self.by_idc.entry(idc.clone()).or_default().insert(key.clone());
                }
            }
        }
    }

    pub(crate) fn remove(&mut self, peer: &PeerId, place: &Place) {
        match place {
            Place::Full => {
                self.full.remove(peer);
            }
            Place::Free(key, idc) => {
                self.free.remove(key);
                if let Some(near) = self.by_idc.get_mut(idc) {
                    near.remove(key);
                    if near.is_empty() {
                        self.by_idc.remove(idc);
                    }
                }
            }
        }
    }

    /// Holders with a free slot.
    pub(crate) fn free(&self) -> impl Iterator<Item = &PeerId> {
        self.free.iter().map(|key| &key.2)
    }

    /// Those of them in one data centre.
    pub(crate) fn free_in(&self, idc: &str) -> impl Iterator<Item = &PeerId> {
        self.by_idc.get(idc).into_iter().flatten().map(|key| &key.2)
    }

    /// Holders without.
    pub(crate) fn full(&self) -> impl Iterator<Item = &PeerId> {
        self.full.iter()
    }

    pub(crate) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    pub(crate) fn free_len(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.free.len() + self.full.len()
    }
}
