//! The daemon's configuration: from file, environment and flags to values that are valid by type.
