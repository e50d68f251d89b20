//! What the daemon serves to peers and operators: peer gRPC, admin HTTP.

pub mod peer;
mod peer_pieces;
#[cfg(test)]
mod peer_tests;
pub mod seeder;
