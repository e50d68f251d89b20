//! Tests of the whole machine.

mod world;

mod claims;
mod crowd;
mod explain;
mod hosts;
mod limits;
mod parents;
mod plain;
mod proofs;
mod random;
mod source;
