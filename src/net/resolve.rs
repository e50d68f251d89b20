//! Names to addresses, by the system's resolver.
//!
//! It blocks, and with a dead name server for long. So it runs on threads of its own, a bounded number of them: what the
//! rest of the process blocks on never waits for a name. A name is looked up once for all who ask at the same time, and
//! its answer is good for a moment.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::{Semaphore, oneshot, watch};

/// Names that are looked up at the same time.
const MAX_LOOKUPS: usize = 16;
/// Names that are looked up or wait to be.
const MAX_WAITING: usize = 1024;
/// Names whose answers are kept, and for how long. The system's resolver does not tell for how long they are good.
const MAX_KEPT: u64 = 4096;
const KEPT_FOR: Duration = Duration::from_secs(5);

/// Addresses, or why there are none.
type Answer = Result<Arc<[IpAddr]>, Arc<str>>;

type Lookup = Arc<dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync>;

/// Looks names up. Clones share everything.
#[derive(Clone)]
pub(super) struct Resolver(Arc<Inner>);

struct Inner {
    lookup: Lookup,
    gate: Arc<Semaphore>,
    flights: Mutex<HashMap<String, watch::Receiver<Option<Answer>>>>,
    kept: Cache<String, Arc<[IpAddr]>>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self::new(Arc::new(|name| Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect())))
    }
}

impl Resolver {
    fn new(lookup: Lookup) -> Self {
        Self(Arc::new(Inner {
            lookup,
            gate: Arc::new(Semaphore::new(MAX_LOOKUPS)),
            flights: Mutex::default(),
            kept: Cache::builder().max_capacity(MAX_KEPT).time_to_live(KEPT_FOR).build(),
        }))
    }

    /// The addresses of a name.
    ///
    /// # Errors
    /// There are none; the text says why.
    pub(super) async fn resolve(&self, name: &str) -> Answer {
        let name = name.to_ascii_lowercase();
        if let Some(kept) = self.0.kept.get(&name) {
            return Ok(kept);
        }
        let mut flight = self.join(name)?;
        let answer = flight.wait_for(Option::is_some).await;
        // A flight always lands; what else may come is the end of the process.
        answer.ok().and_then(|answer| answer.clone()).unwrap_or_else(|| Err("the look-up was given up".into()))
    }

    /// The look-up under way for a name, or a new one, which goes on even if nobody waits for it any more.
    fn join(&self, name: String) -> Result<watch::Receiver<Option<Answer>>, Arc<str>> {
        let mut flights = self.0.flights();
        if let Some(flight) = flights.get(&name) {
            return Ok(flight.clone());
        }
        if flights.len() >= MAX_WAITING {
            return Err("too many names are being looked up".into());
        }
        let (land, flight) = watch::channel(None);
        flights.insert(name.clone(), flight.clone());
        let inner = Arc::clone(&self.0);
        tokio::spawn(async move {
            let answer = inner.look_up(&name).await;
            if let Ok(addresses) = &answer {
                inner.kept.insert(name.clone(), addresses.clone());
            }
            inner.flights().remove(&name);
            land.send_replace(Some(answer));
        });
        Ok(flight)
    }
}

impl Inner {
    fn flights(&self) -> MutexGuard<'_, HashMap<String, watch::Receiver<Option<Answer>>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn look_up(&self, name: &str) -> Answer {
        // The semaphore is never closed. The permit is the thread's: it may block for longer than anybody waits.
        let permit = Arc::clone(&self.gate).acquire_owned().await.map_err(|_| "the process is ending")?;
        let (done, found) = oneshot::channel();
        let (lookup, asked) = (Arc::clone(&self.lookup), name.to_owned());
        let thread = std::thread::Builder::new().name("look-up".into()).spawn(move || {
            let _permit = permit;
            let _ = done.send(lookup(&asked));
        });
        thread.map_err(|error| Arc::from(format!("no thread for it: {error}")))?;
        match found.await {
            Ok(Ok(addresses)) if addresses.is_empty() => Err("it has no address".into()),
            Ok(Ok(addresses)) => Ok(addresses.into()),
            Ok(Err(error)) => Err(reason(&error.to_string()).into()),
            Err(_) => Err("the look-up failed".into()),
        }
    }
}

/// What the system's words mean.
fn reason(text: &str) -> String {
    let text = text.trim_start_matches("failed to lookup address information: ");
    if text.contains("not known") {
        return "there is no such name (NXDOMAIN)".into();
    }
    if text.contains("Temporary failure") {
        return "the name servers do not answer".into();
    }
    text.trim_end_matches('.').to_owned()
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").field("looking_up", &self.0.flights().len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    #[tokio::test]
    async fn a_name_is_looked_up_once_for_all_and_kept() {
        let asked = Arc::new(AtomicUsize::new(0));
        let (count, (open, gate)) = (asked.clone(), std::sync::mpsc::channel::<()>());
        let gate = Mutex::new(gate);
        let resolver = Resolver::new(Arc::new(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            gate.lock().unwrap().recv().unwrap();
            Ok(vec![ADDRESS])
        }));
        let waiting: Vec<_> = (0..9)
            .map(|n| {
                let resolver = resolver.clone();
                tokio::spawn(async move { resolver.resolve(if n % 2 == 0 { "A.example" } else { "a.example" }).await })
            })
            .collect();
        open.send(()).unwrap();
        for answer in waiting {
            assert_eq!(answer.await.unwrap().unwrap()[..], [ADDRESS]);
        }
        assert_eq!(resolver.resolve("a.example").await.unwrap()[..], [ADDRESS]);
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn dead_name_servers_hold_a_few_threads_and_no_more() {
        let running = Arc::new(AtomicUsize::new(0));
        let count = running.clone();
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let resolver = Resolver::new(Arc::new(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            let _ = gate.lock().unwrap().recv();
            Err(io::Error::other("failed to lookup address information: Temporary failure in name resolution"))
        }));
        let flights: Vec<_> = (0..MAX_WAITING).map(|n| resolver.join(format!("{n}.example")).unwrap()).collect();
        assert!(resolver.join("more.example".into()).is_err());
        while running.load(Ordering::SeqCst) < MAX_LOOKUPS {
            tokio::task::yield_now().await;
        }
        assert_eq!(running.load(Ordering::SeqCst), MAX_LOOKUPS);
        drop(open);
        for mut flight in flights {
            let answer = flight.wait_for(Option::is_some).await.unwrap().clone();
            assert_eq!(answer, Some(Err("the name servers do not answer".into())));
        }
        assert!(resolver.0.flights().is_empty());
    }

    #[test]
    fn reasons_are_plain() {
        for (text, want) in [
            ("failed to lookup address information: Name or service not known", "there is no such name (NXDOMAIN)"),
            (
                "failed to lookup address information: Temporary failure in name resolution",
                "the name servers do not answer",
            ),
            ("no file descriptors.", "no file descriptors"),
        ] {
            assert_eq!(reason(text), want);
        }
    }
}
