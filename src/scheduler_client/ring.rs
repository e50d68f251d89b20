//! Which scheduler a task belongs to, of several.
//!
//! Highest random weight: every scheduler's address is hashed together with the task's id, and the task goes to the
//! greatest hash, then to the next. Unlike a ring of points it needs no table and spreads the tasks of a scheduler that
//! fails evenly over the others. A mixed fleet disagrees with Dragonfly's own clients, which disagree among themselves.

use damselfly_core::TaskId;

/// The indices of `addrs` in the order in which a task tries them: the same on every host that has the same addresses,
/// in whatever order.
pub(super) fn order<'a>(task: &TaskId, addrs: impl Iterator<Item = &'a str>) -> Vec<usize> {
    let mut weighed: Vec<_> = addrs.enumerate().map(|(index, addr)| (weight(task, addr), addr, index)).collect();
    weighed.sort_unstable_by(|a, b| b.cmp(a));
    weighed.into_iter().map(|(_, _, index)| index).collect()
}

fn weight(task: &TaskId, addr: &str) -> [u8; 32] {
    *blake3::keyed_hash(task.as_bytes(), addr.as_bytes()).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(task: &TaskId, addrs: &[&'static str]) -> Vec<&'static str> {
        order(task, addrs.iter().copied()).into_iter().map(|index| addrs[index]).collect()
    }

    #[test]
    fn the_order_of_the_addresses_does_not_matter_and_tasks_spread() {
        let mut firsts = std::collections::BTreeMap::new();
        for n in 0..=255 {
            let task = TaskId::from_bytes([n; 32]);
            let there = names(&task, &["a:1", "b:1", "c:1"]);
            assert_eq!(there, names(&task, &["c:1", "a:1", "b:1"]));
            let left: Vec<_> = there.iter().copied().filter(|&addr| addr != "b:1").collect();
            assert_eq!(left, names(&task, &["a:1", "c:1"]), "one that is gone moves only its own tasks");
            *firsts.entry(there[0]).or_insert(0) += 1;
        }
        assert!(firsts.values().all(|&count| count > 50), "{firsts:?}");
    }
}
