//! The scheduler around its pure machine: a driver that owns the machine, the gRPC service that daemons talk to, the
//! HTTP that people look at, and the configuration of both.
//!
//! A daemon embeds the [`driver`] alone ([`Handle`]) and talks to it without a wire. The binary `scheduler` puts the
//! [`service`] and the [`http`] in front of it ([`serve`]).

pub mod config;
pub mod driver;
mod explain;
pub mod http;
pub mod seed;
pub mod serve;
pub mod service;

pub use damselfly_scheduler_core as core;
pub use driver::{
    Clock, Config, Handle, NoSeeds, SeedRequest, SeedTrigger, SinceStart, Stopped, TriggerError, Triggered,
};
