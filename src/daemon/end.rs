//! The end of a daemon: by a signal, or because another process has taken over from it (docs/adr/0014).
//!
//! Either way what clients have in hand may finish for the grace, and no download is begun any more: what is not here is
//! passed through. By a signal, new clients are served until there is nothing left of before, because nobody else can.
//! After a takeover the successor serves them, and the store is given to it as soon as no download writes there.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use damselfly_runtime::drain::Drained;
use damselfly_runtime::listen::UnixSocket;
use damselfly_runtime::takeover::{self, Predecessor, Successor};
use damselfly_runtime::{Drain, Inherited, Signals};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::bound::{Bound, TAKEOVER};
use super::{Inheritance, upkeep};
use crate::config::Config;
use crate::p2p::Tasks;
use crate::storage::Storage;

/// How long the last answers of what is served until the very end may take.
const LAST_ANSWERS: Duration = Duration::from_secs(3);
/// How often it is looked whether the last write has settled.
const SETTLE: Duration = Duration::from_millis(5);

/// How often and how soon a store is tried whose owner is ending. After that it is looked after as any store.
const OPEN_TRIES: u32 = 20;
const OPEN_PAUSE: Duration = Duration::from_millis(100);

/// Why a daemon ends.
pub(super) enum Cause {
    Signal(&'static str),
    Succeeded(Successor),
}

/// The process that runs on this data directory, if this one is to take over from it, with its sockets.
pub(super) async fn predecessor(config: &Config) -> anyhow::Result<Option<(Predecessor, Inherited)>> {
    let path = config.data_dir.join(TAKEOVER);
    let asked = tokio::task::spawn_blocking(move || Predecessor::ask(&path)).await?;
    asked.map_err(|error| anyhow::anyhow!("the running daemon does not hand over its sockets: {error}"))
}

/// Tells the predecessor that this process serves, and takes its store as soon as it is free. Peers are served from then
/// on: before that they are better off with the predecessor.
pub(super) async fn succeed(
    predecessor: Predecessor,
    storage: Storage,
    inheritance: Inheritance,
    shares: watch::Sender<bool>,
) {
    predecessor.ready().await;
    // One that has ended without a word has its lock for a moment longer.
    for _ in 0..OPEN_TRIES {
        upkeep::open_again(&storage, inheritance).await;
        if storage.missing().is_none() {
            break;
        }
        tokio::time::sleep(OPEN_PAUSE).await;
    }
    shares.send_replace(true);
}

/// Handles on all sockets, for a successor that asks.
pub(super) struct Heritage {
    at: Option<UnixSocket>,
    sockets: Vec<(&'static str, OwnedFd)>,
}

impl Heritage {
    /// Takes the socket at which successors ask out of `bound`.
    pub(super) fn of(bound: &mut Bound) -> std::io::Result<Self> {
        let sockets = bound.sockets().into_iter().map(|(name, socket)| Ok((name, socket.try_clone_to_owned()?)));
        let sockets = sockets.collect::<std::io::Result<_>>()?;
        Ok(Self { at: bound.takeover.take(), sockets })
    }

    /// Waits for a signal or a successor. From then on nothing is kept open here. A second signal ends the process at
    /// once, also after a takeover.
    pub(super) async fn wait(self, signals: Signals) -> Cause {
        let Some(UnixSocket { listener, path }) = self.at else { return Cause::Signal(signals.first().await) };
        let sockets: Vec<(&str, BorrowedFd<'_>)> =
            self.sockets.iter().map(|(name, socket)| (*name, socket.as_fd())).collect();
        let mut signal = tokio::spawn(signals.first());
        tokio::select! {
            signal = &mut signal => Cause::Signal(signal.unwrap_or("a broken signal handler")),
            successor = takeover::succeeded(&listener, &sockets) => {
                path.leave();
                Cause::Succeeded(successor)
            }
        }
    }
}

/// What ends in its turn.
pub(super) struct Running {
    pub(super) clients: Drain,
    pub(super) peers: Drain,
    pub(super) tasks: Tasks,
    pub(super) storage: Storage,
    /// Dropping them ends what they belong to.
    pub(super) data_port: oneshot::Sender<()>,
    pub(super) admin: oneshot::Sender<()>,
}

impl Running {
    /// Lets finish what runs, at most for the grace. What is left after it ends with the process.
    pub(super) async fn end(self, cause: Cause, grace: Duration) {
        let Self { clients, peers, tasks, storage, data_port, admin } = self;
        tasks.close();
        let (mut data_port, mut admin) = (Some(data_port), Some(admin));
        let drained = match cause {
            Cause::Signal(signal) => {
                tracing::info!(signal, ?grace, "draining");
                peers.start();
                clients.wait(grace).await
            }
            Cause::Succeeded(successor) => {
                tracing::info!(?grace, "another process has taken over: draining");
                clients.hand_over();
                drop(admin.take());
                let mut waiting = std::pin::pin!(clients.wait(grace));
                let mut released = std::pin::pin!(async {
                    tasks.at_rest().await;
                    peers.hand_over();
                    drop(data_port.take());
                    release(&storage).await;
                    successor.released().await;
                });
                tokio::select! {
                    drained = &mut waiting => {
                        // A download that no client waits for is the successor's to go on with.
                        let _ = timeout(LAST_ANSWERS, released).await;
                        drained
                    }
                    () = &mut released => waiting.await,
                }
            }
        };
        if clients.watch().is_handed_over() {
            peers.hand_over();
        }
        if let Drained::GraceOver { left } = drained {
            tracing::warn!(left, "the grace is over: what is left is cut off");
        }
        peers.wait(LAST_ANSWERS).await;
        drop(data_port);
        storage.flush().await;
        drop(admin);
    }
}

/// Gives the store to the successor.
async fn release(storage: &Storage) {
    loop {
        let given = storage.clone();
        let released = tokio::task::spawn_blocking(move || given.release("another process has taken over"));
        if !matches!(released.await, Ok(false)) {
            return;
        }
        tokio::time::sleep(SETTLE).await;
    }
}

/// Waits until peers are served by this process; says whether that has come to be before its end.
pub(super) async fn begins(mut shares: watch::Receiver<bool>, drain: damselfly_runtime::Watch) -> bool {
    tokio::select! {
        begun = shares.wait_for(|shares| *shares) => begun.is_ok(),
        () = drain.draining() => false,
    }
}

/// Waits for the last answers of a task that was told to end.
pub(super) async fn finish<T>(task: tokio::task::JoinHandle<T>, time: Duration) {
    let _ = timeout(time.max(LAST_ANSWERS), task).await;
}
