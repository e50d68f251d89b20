//! The daemon's side of the scheduler: finding it, announcing to it, conversing about a task.
