//! Damselfly: a per-host HTTP(S) proxy and registry mirror that gets large downloads from a peer-to-peer network of
//! the hosts themselves, and passes everything else straight through.
//!
//! ARCHITECTURE.md draws the way of a request; the modules below stand on the floors that it names, and import only
//! downwards.

pub mod backend;
pub mod cli;
pub mod config;
pub mod daemon;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod limit;
pub mod mitm;
pub mod net;
pub mod p2p;
pub mod proxy;
pub mod registry;
pub mod rpc;
pub mod scheduler_client;
pub mod storage;
