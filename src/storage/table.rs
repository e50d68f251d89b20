//! Which tasks are stored: by id, and in the order of their last use.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use damselfly_core::TaskId;

use super::task::TaskState;

/// All stored tasks. **Every task stands once in each of the two indexes.**
#[derive(Default)]
pub(super) struct Table {
    tasks: HashMap<TaskId, Entry>,
    /// The tasks by the number of their last use: the first one is the least recently used.
    by_use: BTreeMap<u64, TaskId>,
    uses: u64,
}

struct Entry {
    task: Arc<TaskState>,
    used: u64,
}

impl Table {
    /// The task, if it is stored.
    pub(super) fn get(&self, id: &TaskId) -> Option<&Arc<TaskState>> {
        self.tasks.get(id).map(|entry| &entry.task)
    }

    /// Whether the task is stored.
    pub(super) fn contains(&self, id: &TaskId) -> bool {
        self.tasks.contains_key(id)
    }

    /// Adds a task as the most recently used one, in place of one with its id.
    pub(super) fn insert(&mut self, task: Arc<TaskState>) {
        self.remove(&task.id);
        self.uses += 1;
        self.by_use.insert(self.uses, task.id);
        self.tasks.insert(task.id, Entry { used: self.uses, task });
    }

    /// Makes a task the most recently used one.
    pub(super) fn use_now(&mut self, id: &TaskId) {
        let Some(entry) = self.tasks.get_mut(id) else { return };
        self.by_use.remove(&entry.used);
        self.uses += 1;
        entry.used = self.uses;
        self.by_use.insert(self.uses, *id);
    }

    /// Takes a task out.
    pub(super) fn remove(&mut self, id: &TaskId) -> Option<Arc<TaskState>> {
        let entry = self.tasks.remove(id)?;
        self.by_use.remove(&entry.used);
        Some(entry.task)
    }

    /// How many tasks are stored.
    pub(super) fn len(&self) -> usize {
        self.tasks.len()
    }

    /// All tasks, in no order.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<TaskState>> {
        self.tasks.values().map(|entry| &entry.task)
    }

    /// The ids of all tasks, the most recently used first.
    pub(super) fn recently_used(&self) -> impl Iterator<Item = TaskId> {
        self.by_use.values().rev().copied()
    }

    /// The tasks that nobody holds, the least recently used first.
    pub(super) fn idle(&self) -> impl Iterator<Item = &Arc<TaskState>> {
        self.by_use.values().filter_map(|id| self.get(id)).filter(|task| !in_use(task))
    }
}

/// Somebody but the table has it. Under the table's lock a `false` stays false: handles come from there or from handles.
pub(super) fn in_use(task: &Arc<TaskState>) -> bool {
    Arc::strong_count(task) > 1
}
