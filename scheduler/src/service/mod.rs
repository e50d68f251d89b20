//! What daemons talk to: `scheduler.v2.Scheduler` as far as a scheduler without a manager needs it, our own
//! `damselfly.v1.Holdings`, and gRPC health.
//!
//! The way of a message: [`damselfly_api::convert`] makes nouns of it or refuses it (INVALID_ARGUMENT); the nouns go to
//! the [`Handle`]. **No wire type goes further than this module.** What is not here answers UNIMPLEMENTED.

mod announce;
mod holdings;
mod scheduler;

use damselfly_api::convert::MAX_MESSAGE;
pub use damselfly_api::member::{DemandMember, Membership, incoming};
use damselfly_api::ours::holdings_server::HoldingsServer;
use damselfly_api::scheduler::scheduler_server::SchedulerServer;
pub use damselfly_api::token::DemandToken;
use damselfly_runtime::Watch;
use tonic::Status;
use tonic::service::{Routes, RoutesBuilder};

use crate::driver::{Handle, Stopped};

/// All of the service.
pub async fn routes(handle: Handle, drain: Watch) -> Routes {
    let (health, health_server) = tonic_health::server::health_reporter();
    // What Dragonfly's client asks for before anything else.
    health.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let holdings = holdings::Service { handle: handle.clone(), drain: drain.clone() };
    let scheduler = scheduler::Service::new(handle, drain);
    let mut routes = RoutesBuilder::default();
    routes
        .add_service(health_server)
        .add_service(SchedulerServer::new(scheduler).max_decoding_message_size(MAX_MESSAGE))
        .add_service(HoldingsServer::new(holdings).max_decoding_message_size(MAX_MESSAGE));
    routes.routes()
}

fn stopped(error: Stopped) -> Status {
    Status::unavailable(error.to_string())
}
