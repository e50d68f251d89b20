//! What every Damselfly process needs, whatever it does: an orderly end ([`drain`]), logs ([`telemetry`]), a
//! configuration file read strictly ([`config`]), sockets to listen on with errors that name the key to change
//! ([`listen`]) or inherited from a supervisor or from the process before ([`inherit`], [`takeover`]), the file that says where it listens ([`addresses`]), its admin HTTP ([`admin`]), its limits
//! ([`limits`]), its secrets ([`secret`]), and its exit code ([`exit`]).
//!
//! Floor 1 of the house: knows no task, no piece and no peer. The daemon and the scheduler both stand on it.

pub mod addresses;
pub mod admin;
pub mod config;
pub mod drain;
pub mod exit;
pub mod inherit;
pub mod limits;
pub mod listen;
pub mod secret;
pub mod takeover;
pub mod telemetry;

pub use addresses::AddressesFile;
pub use drain::{Drain, Guard, Hangups, Signals, Watch};
pub use exit::UsageError;
pub use inherit::Inherited;
pub use secret::{MemberFiles, Secret, Security};
