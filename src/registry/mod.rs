//! Being a registry's mirror: which registry a `/v2/…` request means, and what its path names. Pure: values in, values out.
//!
//! A runtime says which registry it means in one of four ways, tried in this order: `?ns=` (containerd),
//! `X-Dragonfly-Registry` (set by the operator in the runtime's mirror settings), a first path component that can only be
//! a host (`/v2/quay.io/…`: podman, CRI-O, skopeo), and last the configured `proxy.registryMirror.addr` (Docker).
//! What says so is not forwarded. The registry is spoken to in https; net's upstream settings may change that.
//!
//! Answers pass as they are: `WWW-Authenticate` names the registry's own token service, which the runtime asks directly.
//! **Where a client names the registry, it can name a host and a port, nothing else.**

mod mirror;
mod path;

pub use mirror::{Mirror, MirrorError};
pub use path::{Resource, blob_digest, is_registry_path};

/// Header that says that the distribution protocol is spoken, with [`API_VERSION`]: a runtime looks for it at `/v2/`.
pub const API_VERSION_HEADER: &str = "docker-distribution-api-version";
/// Its value.
pub const API_VERSION: &str = "registry/2.0";
