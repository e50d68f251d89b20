//! A swarm in virtual time: one scheduler and many download machines, the real ones, on simulated links.
//!
//! A run is its plan and its seed. `cargo run --release -p damselfly-sim -- --hosts 1000` is one; `tests/sim` are many.

mod host;
mod net;
mod world;

pub use host::Want;
pub use world::{Fault, Outcome, Plan, World};

/// The least time in which all can be done, in seconds: one copy over one link, and a piece's way through a doubling
/// crowd.
pub fn least_time(plan: &Plan) -> f64 {
    let piece = plan.geometry.piece_length() as f64 / plan.link;
    plan.geometry.length() as f64 / plan.link.min(plan.origin) + (plan.hosts as f64).log2() * piece
}
