//! Slots for work that only so much of is done at a time, such as writing to the disk: the most urgent has the next one.
//!
//! While slots are free everybody has one at once. When they are not, the highest priority that waits is next, of equal
//! ones who came first; after [`RESERVE`] of them one of those that they passed. What goes on for long asks now and then
//! whether somebody as urgent waits ([`Slot::is_wanted`]), gives its slot up, and comes again.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::Priority;

/// For so many slots of those with the highest priority, one goes to those that they pass.
const RESERVE: u32 = 16;

/// Slots of equal worth. Clones are the same slots.
#[derive(Clone, Debug)]
pub struct Slots(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    /// In the order in which they are served.
    waiting: BTreeMap<(Reverse<Priority>, u64), oneshot::Sender<Slot>>,
    arrivals: u64,
    /// How many in a row passed somebody.
    passed: u32,
}

/// A slot. The next has it when this is dropped.
#[derive(Debug)]
pub struct Slot {
    /// `None` once it was taken back.
    slots: Option<Slots>,
    priority: Priority,
}

impl Slots {
    /// So many slots.
    pub fn new(count: usize) -> Self {
        let state = State { free: count, waiting: BTreeMap::new(), arrivals: 0, passed: 0 };
        Self(Arc::new(Mutex::new(state)))
    }

    /// A slot, if one is free.
    pub fn try_take(&self, priority: Priority) -> Option<Slot> {
        let mut state = self.state();
        state.free = state.free.checked_sub(1)?;
        drop(state);
        Some(self.slot(priority))
    }

    fn slot(&self, priority: Priority) -> Slot {
        Slot { slots: Some(self.clone()), priority }
    }

    /// Waits for a slot. A caller that leaves before takes none along.
    pub async fn take(&self, priority: Priority) -> Slot {
        loop {
            if let Some(slot) = self.try_take(priority) {
                return slot;
            }
            let given = {
                let mut state = self.state();
                if state.free > 0 {
                    continue;
                }
                let (give, given) = oneshot::channel();
                let place = (Reverse(priority), state.arrivals);
                state.arrivals += 1;
                state.waiting.insert(place, give);
                given
            };
            if let Ok(slot) = given.await {
                return slot;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes out who is next.
    fn next(&mut self) -> Option<(Priority, oneshot::Sender<Slot>)> {
        let (first, _) = self.waiting.first_key_value()?;
        let (Reverse(highest), _) = *first;
        let below = (Reverse(highest), u64::MAX);
        // Of those that are passed, who has waited longest.
        let passed = self.waiting.range(below..).map(|(place, _)| *place).min_by_key(|(_, arrival)| *arrival);
        let place = match passed {
            Some(passed) if self.passed >= RESERVE => passed,
            _ => *first,
        };
        self.passed = if passed.is_some() && place.0 == Reverse(highest) { self.passed + 1 } else { 0 };
        let give = self.waiting.remove(&place)?;
        Some((place.0.0, give))
    }
}

impl Slot {
    /// How many wait for one.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.slots.as_ref().map_or(0, |slots| slots.state().waiting.len())
    }

    /// Whether somebody waits who is as urgent, or more.
    pub fn is_wanted(&self) -> bool {
        let state = self.slots.as_ref().map(Slots::state);
        let first = state.as_ref().and_then(|state| state.waiting.first_key_value());
        first.is_some_and(|((Reverse(highest), _), _)| *highest >= self.priority)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Some(slots) = self.slots.take() else { return };
        loop {
            let next = {
                let mut state = slots.state();
                let next = state.next();
                state.free += usize::from(next.is_none());
                next
            };
            let Some((priority, give)) = next else { return };
            match give.send(slots.slot(priority)) {
                Ok(()) => return,
                // It has left: the one behind is next.
                Err(mut slot) => slot.slots = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn level(level: u8) -> Priority {
        Priority::new(level).unwrap()
    }

    /// Has these wait for the only slot, in their order; tells in which order they had it.
    async fn order(levels: &[u8]) -> Vec<u8> {
        let slots = Slots::new(1);
        let held = slots.try_take(level(6)).unwrap();
        assert!(slots.try_take(level(6)).is_none());
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiting = Vec::new();
        for &number in levels {
            let (slots, order) = (slots.clone(), Arc::clone(&order));
            waiting.push(tokio::spawn(async move {
                let _slot = slots.take(level(number)).await;
                order.lock().unwrap().push(number);
            }));
            tokio::task::yield_now().await;
        }
        assert!(held.is_wanted() == levels.contains(&6));
        drop(held);
        for waiting in waiting {
            waiting.await.unwrap();
        }
        assert!(slots.try_take(level(0)).is_some(), "nobody has taken it along");
        Arc::try_unwrap(order).unwrap().into_inner().unwrap()
    }

    #[tokio::test]
    async fn the_most_urgent_has_the_next_slot() {
        assert_eq!(order(&[3, 0, 6, 3, 6]).await, [6, 6, 3, 3, 0]);
    }

    #[tokio::test]
    async fn who_is_passed_has_one_in_seventeen() {
        let mut levels = vec![1];
        levels.extend([6; 40]);
        let order = order(&levels).await;
        assert_eq!(order.iter().position(|&number| number == 1), Some(RESERVE as usize));
    }

    #[tokio::test]
    async fn who_leaves_takes_no_slot_along() {
        let slots = Slots::new(1);
        let held = slots.try_take(level(3)).unwrap();
        let leaves = tokio::spawn({
            let slots = slots.clone();
            async move { slots.take(level(6)).await }
        });
        tokio::task::yield_now().await;
        assert!(held.is_wanted());
        let stays = tokio::spawn({
            let slots = slots.clone();
            async move { drop(slots.take(level(0)).await) }
        });
        tokio::task::yield_now().await;
        leaves.abort();
        assert!(leaves.await.is_err());
        drop(held);
        stays.await.unwrap();
        assert!(slots.try_take(level(0)).is_some());
    }
}
