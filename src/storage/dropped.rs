//! Which tasks are stored no longer, for whoever told others that they are.

use std::sync::{Mutex, PoisonError};

use damselfly_core::swarm::Origin;
use damselfly_core::{Geometry, TaskId};
use tokio::sync::watch;

/// How many are remembered between two looks.
const MOST: usize = 4096;

/// A task that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DroppedTask {
    /// Its id.
    pub id: TaskId,
    /// How its content was cut.
    pub geometry: Geometry,
    /// Where its content came from.
    pub origin: Origin,
}

/// What was removed since somebody last looked.
pub(super) struct Dropped {
    /// `None` once it was more than [`MOST`].
    tasks: Mutex<Option<Vec<DroppedTask>>>,
    changed: watch::Sender<u64>,
}

impl Default for Dropped {
    fn default() -> Self {
        Self { tasks: Mutex::new(Some(Vec::new())), changed: watch::Sender::new(0) }
    }
}

impl Dropped {
    pub(super) fn add(&self, task: DroppedTask) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *tasks {
            Some(list) if list.len() < MOST => list.push(task),
            _ => *tasks = None,
        }
        drop(tasks);
        self.changed.send_modify(|count| *count += 1);
    }

    pub(super) fn take(&self) -> Option<Vec<DroppedTask>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).replace(Vec::new())
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_are_not_remembered_and_said_to_be_too_many_once() {
        let dropped = Dropped::default();
        let task = |byte| DroppedTask {
            id: TaskId::from_bytes([byte; 32]),
            geometry: Geometry::new(1, 1).unwrap(),
            origin: Origin::default(),
        };
        let changes = dropped.changes();
        dropped.add(task(1));
        assert!(changes.has_changed().unwrap());
        assert_eq!(dropped.take(), Some(vec![task(1)]));
        (0..=MOST).for_each(|_| dropped.add(task(2)));
        assert_eq!(dropped.take(), None);
        assert_eq!(dropped.take(), Some(vec![]));
    }
}
