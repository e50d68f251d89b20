//! Which pieces a parent has: the child's side of SyncPieces.
