//! One budget for what the bodies in flight hold: bytes of answers that were handed to the HTTP library and have not gone
//! out to their clients.
//!
//! Below the budget the library's own limits hold, per connection. Above it a connection gets the next bytes only once
//! its earlier ones have gone, so many slow clients together cost the budget and one frame each. Nobody waits longer than
//! [`PAUSE`] for a frame: streams that were reset leave bytes behind that nobody counts back.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

/// The longest that a body waits for its connection's earlier bytes.
const PAUSE: Duration = Duration::from_millis(250);

/// What all connections hold together.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicUsize,
    limit: usize,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit })
    }

    fn is_spent(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.limit
    }
}

/// What one connection holds of it.
#[derive(Debug)]
pub(super) struct Share {
    all: Arc<Budget>,
    held: AtomicUsize,
    waiting: Mutex<Vec<Waker>>,
}

impl Share {
    pub(super) fn new(all: Arc<Budget>) -> Self {
        Self { all, held: AtomicUsize::new(0), waiting: Mutex::default() }
    }

    /// These bytes were handed to the library.
    pub(super) fn take(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::AcqRel);
        self.all.used.fetch_add(bytes, Ordering::AcqRel);
    }

    /// These bytes have gone out: of bodies, and of heads and frames, which nobody has taken.
    pub(super) fn give_back(&self, bytes: usize) {
        let less = |held: usize| Some(held.saturating_sub(bytes));
        let before = self.held.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).unwrap_or_default();
        self.all.used.fetch_sub(before.min(bytes), Ordering::AcqRel);
        if before > 0 && before <= bytes {
            let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    /// Whether the next frame of a body may be asked for. `pause` belongs to the body.
    pub(super) fn poll_room(&self, pause: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_short() {
            *pause = None;
            return Poll::Ready(());
        }
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(cx.waker().clone());
        // It may all have gone before the waker was there.
        let over = pause.get_or_insert_with(|| Box::pin(sleep(PAUSE))).as_mut().poll(cx).is_ready();
        if over || !self.is_short() {
            *pause = None;
            return Poll::Ready(());
        }
        Poll::Pending
    }

    fn is_short(&self) -> bool {
        self.all.is_spent() && self.held.load(Ordering::Acquire) > 0
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.all.used.fetch_sub(*self.held.get_mut(), Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use std::future::poll_fn;

    fn asks(share: &Share, pause: &mut Option<Pin<Box<Sleep>>>) -> bool {
        poll_fn(|cx| share.poll_room(pause, cx)).now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn above_the_budget_a_connection_has_one_frame_at_a_time() {
        let all = Budget::new(100);
        let (slow, other) = (Share::new(all.clone()), Share::new(all.clone()));
        let mut pause = None;
        slow.take(60);
        assert!(asks(&slow, &mut pause), "below the budget");
        slow.take(60);
        assert!(!asks(&slow, &mut pause), "above it, and its own bytes have not gone");
        assert!(asks(&other, &mut None), "one that holds nothing");
        other.take(1);
        assert!(!asks(&other, &mut None));
        other.give_back(500);
        assert_eq!(all.used.load(Ordering::Relaxed), 120, "heads were not taken");
        slow.give_back(119);
        assert!(asks(&slow, &mut pause), "below the budget again");
        drop(slow);
        assert_eq!(all.used.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_woken_when_its_connection_is_empty_and_waits_no_longer_than_a_pause() {
        let all = Budget::new(10);
        let share = Arc::new(Share::new(all.clone()));
        let other = Share::new(all);
        other.take(20);
        share.take(20);
        let (near, began) = (share.clone(), tokio::time::Instant::now());
        let waits = tokio::spawn(async move { poll_fn(|cx| near.poll_room(&mut None, cx)).await });
        tokio::task::yield_now().await;
        share.give_back(20);
        waits.await.unwrap();
        assert!(began.elapsed() < PAUSE, "it was woken");
        share.take(20);
        let mut pause = None;
        poll_fn(|cx| share.poll_room(&mut pause, cx)).await;
        assert_eq!(began.elapsed(), PAUSE);
    }
}
