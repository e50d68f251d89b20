//! Clients that pull without a pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use super::wait_for;

/// Clients, each of which pulls again and again. A pull that fails panics, and fails the test.
#[derive(Default)]
pub(crate) struct Pulls {
    clients: Vec<Client>,
    stop: Arc<AtomicBool>,
}

struct Client {
    thread: JoinHandle<()>,
    done: Arc<AtomicUsize>,
}

impl Pulls {
    /// Adds a client; `pull` is told how many there were before.
    pub(crate) fn add(&mut self, pull: impl Fn(usize) + Send + 'static) {
        let (done, stop) = (Arc::<AtomicUsize>::default(), Arc::clone(&self.stop));
        let count = Arc::clone(&done);
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                pull(count.load(Ordering::SeqCst));
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        self.clients.push(Client { thread, done });
    }

    /// Waits until every client has begun and finished at least so many more pulls.
    pub(crate) fn wait_for_more(&self, count: usize) {
        let before: Vec<_> = self.clients.iter().map(|client| client.done.load(Ordering::SeqCst)).collect();
        wait_for("more pulls", || {
            // One that has failed is found when its end is waited for.
            let enough = |(client, before): (&Client, &usize)| {
                client.thread.is_finished() || client.done.load(Ordering::SeqCst) > before + count
            };
            self.clients.iter().zip(&before).all(enough).then_some(())
        });
    }

    /// Lets every client finish its pull, and says how many there were in all.
    pub(crate) fn stop(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        let ended = self.clients.into_iter().map(|Client { thread, done }| {
            thread.join().expect("no pull fails");
            done.load(Ordering::SeqCst)
        });
        ended.sum()
    }
}
