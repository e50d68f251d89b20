//! Group commit: one thread writes down what all others hand it.
//!
//! [`Recorder::push`] never blocks: it appends to a list. The thread takes the whole list, at most [`MAX_BATCH`]
//! operations and after [`GATHER`] for company, and commits it in one durable transaction; while that waits for the
//! disk the next batch gathers. The list is bounded by [`Recorder::wait_for_room`], which writers call on blocking
//! threads, and by [`MAX_PENDING`], above which a store that keeps failing costs records (a download after the next
//! restart), never memory.
//!
//! A batch that fails is kept, in front, and tried again on a reopened store every [`RETRY`]. Order is never changed:
//! a task's removal can't overtake its pieces.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::ledger::{Ledger, Op};
use super::metrics::Metrics;

/// The most operations that wait; further ones are dropped. Only a failing store lets so many gather.
pub(super) const MAX_PENDING: usize = 1 << 16;

/// Above this many waiting operations writers wait.
const HIGH_WATER: usize = 1 << 12;

/// The most operations of one transaction.
const MAX_BATCH: usize = 1 << 12;

/// How long the first operation of a batch waits for others: many pieces share one disk flush.
const GATHER: Duration = Duration::from_millis(20);

/// How long after a failed commit the next try is.
const RETRY: Duration = Duration::from_secs(1);

/// The longest that a writer waits for room.
const ROOM_WAIT: Duration = Duration::from_secs(10);

pub(super) struct Recorder {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// Something is to do.
    work: Condvar,
    /// The queue became shorter.
    room: Condvar,
    metrics: Metrics,
}

#[derive(Default)]
struct Queue {
    ops: Vec<Op>,
    flushes: Vec<oneshot::Sender<()>>,
    failing: bool,
    closing: bool,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recorder {
    /// Starts the thread.
    pub(super) fn start(ledger: Box<dyn Ledger>, metrics: Metrics) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::default(), work: Condvar::new(), room: Condvar::new(), metrics });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("storage-recorder".into()).spawn(move || run(&theirs, ledger))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Hands over one change. Changes are committed in the order in which they are pushed.
    pub(super) fn push(&self, op: Op) {
        let mut queue = self.shared.queue();
        // The store is another process's.
        if queue.closing {
            return;
        }
        if queue.ops.len() >= MAX_PENDING {
            self.shared.metrics.records_dropped.inc();
            return;
        }
        queue.ops.push(op);
        self.shared.metrics.pending.set(queue.ops.len() as u64);
        self.shared.work.notify_one();
    }

    /// Waits until fewer than [`HIGH_WATER`] operations wait. Blocks its thread; not while the store is failing.
    pub(super) fn wait_for_room(&self) {
        let queue = self.shared.queue();
        let full = |queue: &mut Queue| queue.ops.len() >= HIGH_WATER && !queue.failing;
        drop(self.shared.room.wait_timeout_while(queue, ROOM_WAIT, full));
    }

    /// Waits until everything pushed so far is committed, or has failed once.
    pub(super) async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        {
            let mut queue = self.shared.queue();
            if queue.closing {
                return;
            }
            queue.flushes.push(done);
        }
        self.shared.work.notify_one();
        // An error means that the thread has ended, after its last commit.
        let _ = wait.await;
    }
}

impl Recorder {
    /// Takes nothing more, waits for the last commit, and closes the store. Blocking.
    pub(super) fn close(&self) {
        self.shared.queue().closing = true;
        self.shared.work.notify_one();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the storage's recorder thread failed");
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.close();
    }
}

fn run(shared: &Shared, mut ledger: Box<dyn Ledger>) {
    loop {
        let (batch, flushes, closing) = gather(shared);
        if batch.is_empty() && flushes.is_empty() && closing {
            return;
        }
        let failed = !batch.is_empty() && !commit(shared, ledger.as_mut(), batch);
        for flush in flushes {
            // The one who asked may be gone.
            let _ = flush.send(());
        }
        if failed {
            let queue = shared.queue();
            if queue.closing {
                return;
            }
            drop(shared.work.wait_timeout_while(queue, RETRY, |queue| !queue.closing));
            if let Err(error) = ledger.reopen() {
                tracing::warn!(%error, "the metadata store still fails");
            }
        }
    }
}

/// The next batch. Those who wait for a flush are taken only with the last operation that was pushed before them.
fn gather(shared: &Shared) -> (Vec<Op>, Vec<oneshot::Sender<()>>, bool) {
    let idle = |queue: &mut Queue| queue.ops.is_empty() && queue.flushes.is_empty() && !queue.closing;
    let alone = |queue: &mut Queue| queue.ops.len() < MAX_BATCH && queue.flushes.is_empty() && !queue.closing;
    let queue = shared.work.wait_while(shared.queue(), idle).unwrap_or_else(PoisonError::into_inner);
    let (mut queue, _) = shared.work.wait_timeout_while(queue, GATHER, alone).unwrap_or_else(PoisonError::into_inner);
    let count = queue.ops.len().min(MAX_BATCH);
    let rest = queue.ops.split_off(count);
    let batch = std::mem::replace(&mut queue.ops, rest);
    let flushes = if queue.ops.is_empty() { std::mem::take(&mut queue.flushes) } else { Vec::new() };
    shared.metrics.pending.set(queue.ops.len() as u64);
    shared.room.notify_all();
    (batch, flushes, queue.closing)
}

/// Commits; puts a batch that failed back in front.
fn commit(shared: &Shared, ledger: &mut dyn Ledger, mut batch: Vec<Op>) -> bool {
    let start = Instant::now();
    let result = ledger.commit(&batch);
    let mut queue = shared.queue();
    queue.failing = result.is_err();
    match result {
        Ok(()) => {
            shared.metrics.commits.inc();
            shared.metrics.commit_seconds.observe(start.elapsed().as_secs_f64());
            true
        }
        Err(error) => {
            shared.metrics.commits_failed.inc();
            tracing::warn!(%error, records = batch.len(), "metadata could not be committed: trying again");
            batch.append(&mut queue.ops);
            queue.ops = batch;
            shared.room.notify_all();
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::ledger::LedgerError;
    use damselfly_core::{PieceDigest, PieceNumber, TaskId};
    use std::sync::mpsc;

    /// Says what it commits; fails as often as it is told.
    struct Double {
        batches: mpsc::Sender<Vec<Op>>,
        failures: usize,
        reopened: bool,
    }

    impl Ledger for Double {
        fn commit(&mut self, batch: &[Op]) -> Result<(), LedgerError> {
            if self.failures > 0 {
                self.failures -= 1;
                self.reopened = false;
                return Err(LedgerError("told to".into()));
            }
            assert!(self.reopened, "a failed store is reopened before it is used again");
            self.batches.send(batch.to_vec()).unwrap();
            Ok(())
        }

        fn reopen(&mut self) -> Result<(), LedgerError> {
            self.reopened = true;
            Ok(())
        }
    }

    fn start(failures: usize) -> (Recorder, mpsc::Receiver<Vec<Op>>) {
        let (batches, committed) = mpsc::channel();
        let double = Double { batches, failures, reopened: true };
        (Recorder::start(Box::new(double), Metrics::default()).unwrap(), committed)
    }

    fn op(number: u32) -> Op {
        Op::Piece(TaskId::from_bytes([1; 32]), PieceNumber(number), PieceDigest::of(b""))
    }

    #[tokio::test]
    async fn many_operations_share_few_commits_and_keep_their_order() {
        let (recorder, committed) = start(0);
        for number in 0..1000 {
            recorder.push(op(number));
        }
        recorder.flush().await;
        let batches: Vec<_> = committed.try_iter().collect();
        assert!(batches.len() < 100, "{} batches", batches.len());
        assert_eq!(batches.concat(), (0..1000).map(op).collect::<Vec<_>>());
    }

    #[test]
    fn dropping_commits_what_is_left() {
        let (recorder, committed) = start(0);
        recorder.push(op(1));
        drop(recorder);
        assert_eq!(committed.iter().collect::<Vec<_>>().concat(), [op(1)]);
    }

    #[tokio::test]
    async fn a_batch_that_failed_is_tried_again_in_order() {
        let (recorder, committed) = start(1);
        recorder.push(op(1));
        recorder.flush().await;
        assert_eq!(committed.try_iter().count(), 0, "a flush doesn't wait for a store that fails");
        recorder.push(op(2));
        let batches = tokio::task::spawn_blocking(move || committed.recv().unwrap()).await.unwrap();
        assert_eq!(batches, [op(1), op(2)]);
        drop(recorder);
    }

    #[test]
    fn what_waits_is_bounded_while_the_store_fails() {
        let (recorder, _committed) = start(usize::MAX);
        for number in 0..MAX_PENDING as u32 + 10 {
            recorder.push(op(number));
        }
        let waiting = recorder.shared.queue().ops.len();
        assert!(waiting <= MAX_PENDING, "{waiting}");
        let metrics = recorder.shared.metrics.clone();
        drop(recorder);
        assert!(metrics.commits_failed.get() >= 1);
    }
}
