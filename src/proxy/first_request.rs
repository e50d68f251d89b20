//! The first request for a URL of which nothing is held.
//!
//! Where nothing can be gained by a probe, the first request of a host is the client's own. Requests for the same URL
//! that come meanwhile must not be sent whole beside it: they wait for its answer, which may be a download to join.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// The first requests that are under way, by URL: as many as there are such requests.
#[derive(Clone, Default)]
pub(super) struct FirstRequests(Arc<Mutex<HashMap<String, watch::Receiver<()>>>>);

/// The first request for a URL, until it is dropped: its answer has become a task by then, or it has not.
pub(super) struct FirstRequest {
    all: FirstRequests,
    url: String,
    /// Dropped with it, which wakes those who wait.
    _under_way: watch::Sender<()>,
}

impl FirstRequests {
    /// Makes this the first request for `url`; or waits for the end of the one that is under way, at most until
    /// `deadline`, and gives `None`.
    pub(super) async fn enter(&self, url: String, deadline: Instant) -> Option<FirstRequest> {
        let mut other = {
            let mut all = self.all();
            match all.get(&url) {
                Some(other) => other.clone(),
                None => {
                    let (under_way, ended) = watch::channel(());
                    all.insert(url.clone(), ended);
                    return Some(FirstRequest { all: self.clone(), url, _under_way: under_way });
                }
            }
        };
        // Nothing is ever sent: it ends with its sender, or the time is over. Either way the caller goes on.
        let _ = timeout_at(deadline, other.changed()).await;
        None
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, watch::Receiver<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FirstRequest {
    fn drop(&mut self) {
        self.all.all().remove(&self.url);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_second_waits_for_the_end_of_the_first_and_no_longer_than_its_deadline() {
        let all = FirstRequests::default();
        let deadline = Instant::now() + Duration::from_secs(30);
        let first = all.enter("a".into(), deadline).await;
        assert!(first.is_some());
        assert!(all.enter("b".into(), deadline).await.is_some(), "another URL");

        let mut second = Box::pin(all.enter("a".into(), deadline));
        assert!(second.as_mut().now_or_never().is_none(), "the first is under way");
        drop(first);
        assert!(second.await.is_none());
        assert!(Instant::now() < deadline, "its end was noticed, not the deadline");
        assert!(all.enter("a".into(), deadline).await.is_some(), "the next one is a first one again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_request_without_an_answer_holds_nobody_for_ever() {
        let all = FirstRequests::default();
        let deadline = Instant::now() + Duration::from_secs(30);
        let _first = all.enter("a".into(), deadline).await;
        assert!(all.enter("a".into(), deadline).await.is_none());
        assert!(Instant::now() >= deadline);
    }
}
