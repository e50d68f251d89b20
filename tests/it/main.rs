//! Black-box tests: the built executables as real processes, an origin that misbehaves on command, and the clients that
//! people use. Each test has a fresh directory and ports of its own; a client that is missing is named as skipped.

mod clients;
mod dfctl;
mod dfget;
mod exact;
mod faults;
mod harness;
mod http2;
mod https;
mod lies;
mod limit;
mod matrix;
mod members;
mod memory;
mod mirror;
mod origin_itself;
mod private;
mod pull;
mod ranges;
mod realms;
mod refusals;
mod registry_itself;
mod requests;
mod restart;
mod secrets;
mod startup;
mod strict;
mod swarm;
mod tokens;
mod transparent;
