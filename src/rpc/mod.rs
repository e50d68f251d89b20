//! What the daemon serves to peers and operators: peer gRPC, admin HTTP.

pub mod admin;
pub mod peer;
mod peer_pieces;
#[cfg(test)]
mod peer_tests;
pub mod seeder;
