//! An orderly end: stop accepting, finish what runs, leave.
//!
//! One [`Drain`] belongs to the composition root. Everything that accepts or runs work holds a [`Watch`]: it stops
//! accepting when [`Watch::draining`] resolves, and holds a [`Guard`] for as long as it has work in hand that deserves
//! to be finished. [`Drain::wait`] returns when the last guard is gone or the grace is over, whichever comes first.
//!
//! **Draining never turns back.** **A guard taken late still counts.**

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Starts the drain and waits for its end.
#[derive(Debug)]
pub struct Drain {
    draining: watch::Sender<bool>,
    guards: TaskTracker,
}

/// Work in hand; the drain waits until it is dropped.
#[derive(Clone, Debug)]
pub struct Guard {
    _token: TaskTrackerToken,
}

/// Says when to stop accepting, and hands out guards.
#[derive(Clone, Debug)]
pub struct Watch {
    draining: watch::Receiver<bool>,
    guards: TaskTracker,
}

/// How the drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// All work in hand was finished.
    Clean,
    /// The grace was over first; so many guards were still held.
    GraceOver {
        /// Guards that were still held.
        left: usize,
    },
}

impl Drain {
    /// A process that is not draining.
    pub fn new() -> Self {
        Self { draining: watch::Sender::new(false), guards: TaskTracker::new() }
    }

    /// A watch on this drain.
    pub fn watch(&self) -> Watch {
        Watch { draining: self.draining.subscribe(), guards: self.guards.clone() }
    }

    /// Begins to drain: every [`Watch::draining`] resolves.
    pub fn start(&self) {
        self.draining.send_replace(true);
    }

    /// Begins to drain if that has not been done, and waits until all guards are gone, at most `grace`.
    pub async fn wait(&self, grace: Duration) -> Drained {
        self.start();
        self.guards.close();
        match tokio::time::timeout(grace, self.guards.wait()).await {
            Ok(()) => Drained::Clean,
            Err(_) => Drained::GraceOver { left: self.guards.len() },
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Watch {
    /// A watch that never drains, for tests and tools that have no end to arrange.
    pub fn never() -> Self {
        Drain::new().watch()
    }

    /// Resolves when the drain begins; never when the [`Drain`] is gone without having begun.
    pub async fn draining(&self) {
        let mut draining = self.draining.clone();
        if draining.wait_for(|draining| *draining).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether the drain has begun.
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Holds the drain up until the guard is dropped.
    pub fn guard(&self) -> Guard {
        Guard { _token: self.guards.token() }
    }
}

/// SIGTERM, SIGINT and SIGHUP, caught from the moment this is made.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Option<Hangups>,
}

/// SIGHUP, which asks for the configuration to be read again, and ends no process that has caught it.
#[derive(Debug)]
pub struct Hangups(Signal);

impl Hangups {
    /// Waits for the next one.
    pub async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

impl Signals {
    /// Catches the signals from now on. Needs a tokio runtime.
    pub fn catch() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: Some(Hangups(signal(SignalKind::hangup())?)),
        })
    }

    /// SIGHUP, for the one who reads the configuration again; `None` if somebody has it.
    pub fn hangups(&mut self) -> Option<Hangups> {
        self.hangup.take()
    }

    /// Waits for one; returns its name and the code of a process that it ends.
    async fn next(&mut self) -> (&'static str, u8) {
        tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", 128 + 15),
            _ = self.interrupt.recv() => ("SIGINT", 128 + 2),
        }
    }

    /// Waits for the first signal and returns its name. From then on a second one ends the process at once, with
    /// 128 + its number as a shell reports it.
    pub async fn first(mut self) -> &'static str {
        let (name, _) = self.next().await;
        tokio::spawn(async move {
            let (name, code) = self.next().await;
            tracing::warn!("{name} while draining: ending at once");
            std::process::exit(code.into());
        });
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn without_work_the_drain_ends_at_once() {
        let drain = Drain::new();
        let begun = tokio::time::Instant::now();
        assert_eq!(drain.wait(GRACE).await, Drained::Clean);
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn waits_for_guards_also_those_taken_late() {
        let drain = Drain::new();
        let watch = drain.watch();
        let first = watch.guard();
        let late = tokio::spawn(async move {
            watch.draining().await;
            let guard = watch.guard();
            drop(first);
            tokio::time::sleep(Duration::from_secs(5)).await;
            drop(guard);
        });
        let begun = tokio::time::Instant::now();
        assert_eq!(drain.wait(GRACE).await, Drained::Clean);
        assert_eq!(begun.elapsed(), Duration::from_secs(5));
        late.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn gives_up_after_the_grace_and_says_how_much_was_left() {
        let drain = Drain::new();
        let watch = drain.watch();
        let _held = (watch.guard(), watch.guard());
        let begun = tokio::time::Instant::now();
        assert_eq!(drain.wait(GRACE).await, Drained::GraceOver { left: 2 });
        assert_eq!(begun.elapsed(), GRACE);
        assert!(watch.is_draining());
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_whose_drain_is_gone_never_drains() {
        let watch = Watch::never();
        assert!(tokio::time::timeout(GRACE, watch.draining()).await.is_err());
        assert!(!watch.is_draining());
    }
}
