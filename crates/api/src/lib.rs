//! The wire: Dragonfly's v2 messages as far as we speak them, our extensions, and their translation to and from the
//! nouns.
//!
//! # The data's way
//! `proto/*.proto` becomes the generated modules below at build time. [`convert`] turns their messages into nouns and
//! back; nobody above the door (scheduler client, piece sync, peer and scheduler services) sees them. docs/protocol.md
//! is the contract in prose.
//!
//! # Invariants
//! - **Nothing that comes from the wire is trusted**: lists, texts and numbers are bounded before they become nouns.
//! - Our fields have numbers from 1000 on, and a peer that does not know them loses nothing that the plain contract
//!   gives. Our own messages inside a `oneof` go only to a peer that has said that it knows them.

pub mod convert;
pub mod member;
pub mod token;
pub mod vortex;

pub use generated::common::v2 as common;
pub use generated::damselfly::v1 as ours;
pub use generated::dfdaemon::v2 as dfdaemon;
pub use generated::errordetails::v2 as errordetails;
pub use generated::scheduler::v2 as scheduler;

/// The nesting is the one that generated code expects of its neighbours.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
mod generated {
    pub mod common {
        pub mod v2 {
            tonic::include_proto!("common.v2");
        }
    }
    pub mod errordetails {
        pub mod v2 {
            tonic::include_proto!("errordetails.v2");
        }
    }
    pub mod dfdaemon {
        pub mod v2 {
            tonic::include_proto!("dfdaemon.v2");
        }
    }
    pub mod scheduler {
        pub mod v2 {
            tonic::include_proto!("scheduler.v2");
        }
    }
    pub mod damselfly {
        pub mod v1 {
            tonic::include_proto!("damselfly.v1");
        }
    }
}
