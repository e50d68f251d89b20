//! Content on disk: one preallocated file a task, metadata in redb with group commit.
