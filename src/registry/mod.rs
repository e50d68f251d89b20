//! OCI registry paths and which upstream a mirror request means.
