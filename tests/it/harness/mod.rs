//! What the black-box tests stand on: an origin that does as it is told, the built executables as child processes,
//! and a client that sees how a transfer ends.
//!
//! Tests are plain functions; everything asynchronous runs on one runtime that they share ([`block_on`]). Nothing here
//! sleeps to let something happen: it waits for a file, a counter or an end, with a deadline ([`wait_for`]).

mod addresses;
mod client;
mod content;
mod daemon;
mod disk;
mod fleet;
mod image;
mod liar;
mod oci;
mod origin;
mod pages;
mod planted;
mod process;
mod pulls;
mod raw;
mod registry;
mod rpc_tap;
mod runtimes;
mod sockets;
mod tap;
mod tls;
mod tools;

pub(crate) use addresses::Addresses;
pub(crate) use client::{Answer, Ask, Ending};
pub(crate) use content::{contains, random, sha256_hex};
pub(crate) use daemon::{Daemon, DaemonPlan, Scheduler, binary};
pub(crate) use disk::{Mount, assert_no_file, assert_nowhere, cut_short, rot};
pub(crate) use fleet::{Fleet, all};
pub(crate) use image::{Image, digest};
pub(crate) use liar::Liar;
pub(crate) use oci::{
    Access, Kind as Asked, Puller, Seen, TestRegistry, TokenEndpoint, ask_for_token, basic, challenge_parameter,
    token_of,
};
pub(crate) use origin::Origin;
pub(crate) use pages::{Framing, Gate, Kind, Page};
pub(crate) use planted::Planted;
pub(crate) use process::Process;
pub(crate) use pulls::Pulls;
pub(crate) use raw::{RawOrigin, Reply, connect, exchange, read_head};
pub(crate) use registry::Registry;
pub(crate) use runtimes::{Containerd, Containers, Cri, Curl, Docker, HostView, Pull, Runtime, Way};
pub(crate) use sockets::Sockets;
pub(crate) use tap::Tap;
pub(crate) use tls::{Authority, client_config};
pub(crate) use tools::{Done, Tool, curl, run, skipped};

use std::future::Future;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// How long anything that should happen may take before a test fails. Generous: the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A value that the tests use wherever a credential goes. It may stand in no log; each [`Process`] looks.
pub(crate) const SECRET: &str = "planted-credential-7f3a";

/// Bytes in a MiB.
pub(crate) const MIB: usize = 1 << 20;

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().expect("a runtime for the tests")
});

/// Runs a future to its end, at most [`PATIENCE`] long.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    RUNTIME.block_on(async { tokio::time::timeout(PATIENCE, future).await }).expect("done before the patience ends")
}

/// Lets a future run beside the test.
pub(crate) fn spawn<F>(future: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    RUNTIME.spawn(future)
}

/// Asks again and again until there is an answer; panics with `what` when [`PATIENCE`] ends first.
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what} did not come in time");
        std::thread::sleep(Duration::from_millis(10));
    }
}
