//! An orderly end: finish what runs, keep the door open meanwhile, leave.
//!
//! One [`Drain`] belongs to the composition root. Everything that accepts or runs work holds a [`Watch`], and a [`Guard`]
//! for as long as it has work in hand that deserves to be finished. A process ends in two steps:
//!
//! 1. [`Watch::draining`] resolves. Idle connections are closed, and who is known elsewhere takes leave. **New work is
//!    still accepted**: as a rule there is nobody else to do it.
//! 2. [`Watch::closed`] resolves: nothing is accepted any more. [`Drain::wait`] closes once the work is done that there
//!    was when the drain began, and early enough before the end of the grace for what came late. Who comes then is
//!    refused, or, where the socket outlives this process, waits in it for the next one. [`Drain::hand_over`] closes at
//!    once, because another process accepts on the same sockets.
//!
//! [`Drain::wait`] returns when the last guard is gone or the grace is over, whichever comes first.
//!
//! **Draining never turns back.** **A guard taken late still counts.**

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Which part of the grace is left to what came while draining: one in so many.
const LATE: u32 = 4;

/// How far a process has come towards its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Running,
    Draining,
    Closed,
    /// Closed, and another process accepts in its place.
    HandedOver,
}

/// What is waited for.
#[derive(Clone, Debug, Default)]
struct Work {
    /// Work that there was when the drain began.
    early: TaskTracker,
    /// Work that came later.
    late: TaskTracker,
    /// Who accepts work, and may just have accepted some that has no guard yet.
    doors: TaskTracker,
}

/// Starts the drain and waits for its end.
#[derive(Debug)]
pub struct Drain {
    stage: watch::Sender<Stage>,
    work: Work,
}

/// Work in hand; the drain waits until it is dropped.
#[derive(Clone, Debug)]
pub struct Guard {
    _token: TaskTrackerToken,
}

/// Says when to finish and when to stop accepting, and hands out guards.
#[derive(Clone, Debug)]
pub struct Watch {
    stage: watch::Receiver<Stage>,
    work: Work,
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
        Self { stage: watch::Sender::new(Stage::Running), work: Work::default() }
    }

    /// A watch on this drain.
    pub fn watch(&self) -> Watch {
        Watch { stage: self.stage.subscribe(), work: self.work.clone() }
    }

    fn advance(&self, to: Stage) {
        self.stage.send_if_modified(|stage| {
            let further = *stage < to;
            *stage = to.max(*stage);
            further
        });
    }

    /// Begins to drain: every [`Watch::draining`] resolves.
    pub fn start(&self) {
        self.advance(Stage::Draining);
    }

    /// Begins to drain and accepts nothing more, because another process does.
    pub fn hand_over(&self) {
        self.advance(Stage::HandedOver);
    }

    /// Begins to drain if that has not been done, and waits until all guards are gone, at most `grace`.
    pub async fn wait(&self, grace: Duration) -> Drained {
        self.start();
        let Work { early, late, doors } = &self.work;
        for tracker in [early, late, doors] {
            tracker.close();
        }
        let end = Instant::now() + grace;
        // Either is a reason to close.
        let _ = timeout_at(end - grace / LATE, early.wait()).await;
        self.advance(Stage::Closed);
        let all = async {
            doors.wait().await;
            tokio::join!(early.wait(), late.wait())
        };
        match timeout_at(end, all).await {
            Ok(_) => Drained::Clean,
            Err(_) => Drained::GraceOver { left: early.len() + late.len() },
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
        self.reached(Stage::Draining).await;
    }

    /// Resolves when nothing is to be accepted any more.
    pub async fn closed(&self) {
        self.reached(Stage::Closed).await;
    }

    async fn reached(&self, stage: Stage) {
        let mut now = self.stage.clone();
        if now.wait_for(|now| *now >= stage).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether the drain has begun.
    pub fn is_draining(&self) -> bool {
        *self.stage.borrow() >= Stage::Draining
    }

    /// Whether another process goes on in this one's place.
    pub fn is_handed_over(&self) -> bool {
        *self.stage.borrow() == Stage::HandedOver
    }

    /// Holds the drain up until the guard is dropped.
    pub fn guard(&self) -> Guard {
        let work = if self.is_draining() { &self.work.late } else { &self.work.early };
        Guard { _token: work.token() }
    }

    /// A guard for one who accepts work, to be held until after the last of it has a guard of its own.
    pub fn door(&self) -> Guard {
        Guard { _token: self.work.doors.token() }
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
    async fn the_door_is_open_while_the_work_of_before_is_done() {
        let drain = Drain::new();
        let watch = drain.watch();
        let early = watch.guard();
        let begun = tokio::time::Instant::now();
        let work = tokio::spawn(async move {
            watch.draining().await;
            let late = watch.guard();
            tokio::time::sleep(Duration::from_secs(5)).await;
            drop(early);
            watch.closed().await;
            assert_eq!(begun.elapsed(), Duration::from_secs(5));
            assert!(!watch.is_handed_over());
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(late);
        });
        assert_eq!(drain.wait(GRACE).await, Drained::Clean);
        assert_eq!(begun.elapsed(), Duration::from_secs(6));
        work.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_accepted_in_the_last_moment_is_waited_for() {
        let drain = Drain::new();
        let watch = drain.watch();
        let door = watch.door();
        let begun = tokio::time::Instant::now();
        tokio::spawn(async move {
            watch.closed().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            let last = watch.guard();
            drop(door);
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(last);
        });
        assert_eq!(drain.wait(GRACE).await, Drained::Clean);
        assert_eq!(begun.elapsed(), Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn the_door_is_closed_in_time_for_what_came_late() {
        let drain = Drain::new();
        let watch = drain.watch();
        let _early = watch.guard();
        let begun = tokio::time::Instant::now();
        let closed = tokio::spawn(async move {
            watch.closed().await;
            begun.elapsed()
        });
        drain.wait(GRACE).await;
        assert_eq!(closed.await.unwrap(), GRACE * 3 / 4);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_handed_over_is_closed_at_once_and_what_runs_is_finished() {
        let drain = Drain::new();
        let watch = drain.watch();
        let guard = watch.guard();
        drain.hand_over();
        watch.closed().await;
        assert!(watch.is_draining() && watch.is_handed_over());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(7)).await;
            drop(guard);
        });
        let begun = tokio::time::Instant::now();
        assert_eq!(drain.wait(GRACE).await, Drained::Clean);
        assert_eq!(begun.elapsed(), Duration::from_secs(7));
        assert!(watch.is_handed_over(), "waiting takes nothing back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_whose_drain_is_gone_never_drains() {
        let watch = Watch::never();
        assert!(tokio::time::timeout(GRACE, watch.draining()).await.is_err());
        assert!(!watch.is_draining());
    }
}
