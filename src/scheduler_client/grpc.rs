//! Schedulers over gRPC.

use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use async_trait::async_trait;
use damselfly_api::convert::{self, MAX_MESSAGE, Voice};
use damselfly_api::ours::WatchRequest;
use damselfly_api::ours::holdings_client::HoldingsClient;
use damselfly_api::scheduler::DeleteHostRequest;
use damselfly_api::scheduler::scheduler_client::SchedulerClient as SchedulerStub;
use damselfly_api::token::ShowToken;
use damselfly_core::HostId;
use damselfly_core::swarm::{Holdings, HostInfo, Registration};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::pump::{End, Pump};
use super::scheduler::Scheduler;
use super::{Config, Conversation, Metrics, QUEUE, SchedulerClient, SchedulerLost, ring};

/// After how long a broken watch is opened again, at first; the wait doubles.
const WATCH_AGAIN: Duration = Duration::from_millis(250);

/// The most characters of a scheduler's own words that are repeated.
const MAX_WORDS: usize = 200;

/// After how long without an answer the next scheduler is asked too.
const NEXT_AFTER: Duration = Duration::from_secs(1);

/// One or several schedulers, found by their addresses. Clones are the same.
///
/// A task registers at the scheduler that [`ring`] names; at the next one if that does not answer, or not soon. Hosts
/// and what they hold are announced to all of them. Each of our own schedulers is watched, so that one that is gone is
/// known before anybody asks it, and one that comes back is told at once what is here.
#[derive(Clone)]
pub struct GrpcSchedulers(Arc<Shared>);

struct Shared {
    schedulers: RwLock<Vec<Watched>>,
    config: Config,
    metrics: Metrics,
    forgotten: watch::Sender<u64>,
}

/// A scheduler, and the task that watches it for as long as it is one of ours.
struct Watched {
    scheduler: Arc<Scheduler>,
    watch: AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// A failed call as one bounded sentence.
pub(super) fn sentence(status: &Status) -> String {
    let words: String = status.message().chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect();
    format!("{}: {words}", status.code().description())
}

impl GrpcSchedulers {
    /// Schedulers at these addresses, `HOST:PORT` each; others may be found later. Must run on a tokio runtime.
    ///
    /// # Errors
    /// For what is no address.
    pub fn new(addrs: &[String], config: Config, metrics: Metrics) -> Result<Self, SchedulerLost> {
        let forgotten = watch::Sender::new(0);
        let this = Self(Arc::new(Shared { schedulers: RwLock::default(), config, metrics, forgotten }));
        let watched = addrs.iter().map(|addr| this.watched(addr)).collect::<Result<Vec<_>, _>>()?;
        *this.0.schedulers.write().unwrap_or_else(PoisonError::into_inner) = watched;
        Ok(this)
    }

    /// Makes the schedulers those at these addresses; says whether that changed anything. Conversations with one that is
    /// no longer among them go on to their end. What is no address is left out.
    pub fn replace(&self, addrs: &[String]) -> bool {
        let mut schedulers = self.0.schedulers.write().unwrap_or_else(PoisonError::into_inner);
        let before = schedulers.len();
        schedulers.retain(|watched| addrs.contains(&watched.scheduler.addr));
        let mut changed = schedulers.len() != before;
        for addr in addrs {
            if schedulers.iter().any(|watched| watched.scheduler.addr == *addr) {
                continue;
            }
            match self.watched(addr) {
                Ok(watched) => {
                    schedulers.push(watched);
                    changed = true;
                }
                Err(why) => tracing::debug!(addr, %why, "a scheduler's address is none"),
            }
        }
        drop(schedulers);
        if changed {
            // The new ones know nothing of this host.
            self.0.forgotten.send_modify(|count| *count += 1);
        }
        changed
    }

    fn watched(&self, addr: &str) -> Result<Watched, SchedulerLost> {
        let scheduler = Arc::new(Scheduler::new(addr.to_owned(), &self.0.config)?);
        let watch = tokio::spawn(keep_watch(Arc::downgrade(&self.0), Arc::clone(&scheduler))).abort_handle();
        Ok(Watched { scheduler, watch })
    }

    fn schedulers(&self) -> Vec<Arc<Scheduler>> {
        let schedulers = self.0.schedulers.read().unwrap_or_else(PoisonError::into_inner);
        schedulers.iter().map(|watched| Arc::clone(&watched.scheduler)).collect()
    }

    async fn register_at(
        &self,
        scheduler: Arc<Scheduler>,
        registration: &Registration,
    ) -> Result<Conversation, SchedulerLost> {
        // Dragonfly's own scheduler takes no second registration of a peer that was done.
        let renamed = scheduler.is_plain().then(|| Registration {
            peer: registration.peer.renamed(u128::from(fastrand::u64(..)) << 64 | u128::from(fastrand::u64(..))),
            ..registration.clone()
        });
        let registration = renamed.as_ref().unwrap_or(registration);
        let (outbound, requests) = mpsc::channel(QUEUE);
        // The queue is empty.
        let _ = outbound.try_send(convert::registration_to_wire(registration));
        let mut stub = self.stub(&scheduler);
        let call = stub.announce_peer(ReceiverStream::new(requests));
        let response = self.answer_of(&scheduler, call).await?;
        let voice = Voice::new(registration, convert::is_extended(response.metadata()));
        let (reports, take_reports) = mpsc::channel(QUEUE);
        let (give_answers, answers) = mpsc::channel(QUEUE);
        let pump =
            Pump { voice, inbound: response.into_inner(), outbound, reports: take_reports, answers: give_answers };
        self.0.metrics.registered.inc();
        let (this, task) = (self.clone(), registration.task);
        tokio::spawn(async move {
            if let End::Lost(why) = pump.run().await {
                tracing::debug!(%task, scheduler = scheduler.addr, %why, "the scheduler is lost");
                this.0.metrics.lost.inc();
                this.0.forgotten.send_modify(|count| *count += 1);
            }
        });
        Ok(Conversation { reports, answers })
    }

    /// Awaits an answer, or only its head where it is a stream, and remembers whether the scheduler gave one.
    async fn answer_of<T>(
        &self,
        scheduler: &Scheduler,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<Response<T>, SchedulerLost> {
        let answer = match tokio::time::timeout(self.0.config.head_timeout, call).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::deadline_exceeded("no answer in time")),
        };
        match answer {
            Ok(answer) => {
                scheduler.answered();
                Ok(answer)
            }
            Err(status) => {
                self.0.metrics.failed.inc();
                if is_its_fault(&status) {
                    scheduler.failed(&self.0.config);
                }
                Err(SchedulerLost(format!("{}: {}", scheduler.addr, sentence(&status))))
            }
        }
    }

    async fn announce_to(&self, scheduler: Arc<Scheduler>, host: &HostInfo) -> Result<(), SchedulerLost> {
        let request = convert::host_to_wire(host, self.0.config.announce_interval);
        let answer = self.answer_of(&scheduler, self.stub(&scheduler).announce_host(request)).await?;
        scheduler.announced(convert::run_of(answer.metadata()));
        Ok(())
    }

    /// Tells one scheduler; from the first request on that fails, it is to be told everything again.
    async fn hold_at(&self, scheduler: Arc<Scheduler>, holdings: &Holdings) -> Result<(), SchedulerLost> {
        let run = scheduler.run();
        let told = self.send_holdings(&scheduler, holdings).await;
        scheduler.was_told(run, told.is_ok());
        told
    }

    async fn send_holdings(&self, scheduler: &Scheduler, holdings: &Holdings) -> Result<(), SchedulerLost> {
        for request in convert::holdings_to_wire(holdings) {
            let mut stub = holdings_stub(scheduler, &self.0.config).max_encoding_message_size(MAX_MESSAGE);
            let call = async {
                match stub.announce(request).await {
                    // A plain scheduler learns it from the peers' conversations.
                    Err(status) if status.code() == Code::Unimplemented => Ok(Response::new(Default::default())),
                    answer => answer,
                }
            };
            self.answer_of(scheduler, call).await?;
        }
        Ok(())
    }

    fn stub(&self, scheduler: &Scheduler) -> SchedulerStub<Line> {
        SchedulerStub::with_interceptor(scheduler.channel.clone(), self.0.config.token.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// Calls every scheduler at once; well if one of them answered.
    async fn every<F>(&self, call: impl Fn(Arc<Scheduler>) -> F) -> Result<(), SchedulerLost>
    where
        F: Future<Output = Result<(), SchedulerLost>>,
    {
        Self::each(self.schedulers(), call).await
    }

    async fn each<F>(schedulers: Vec<Arc<Scheduler>>, call: impl Fn(Arc<Scheduler>) -> F) -> Result<(), SchedulerLost>
    where
        F: Future<Output = Result<(), SchedulerLost>>,
    {
        let results = futures_util::future::join_all(schedulers.into_iter().map(call)).await;
        let mut last = Err(SchedulerLost("none is known".into()));
        for result in results {
            match result {
                Ok(()) => return Ok(()),
                lost => last = lost,
            }
        }
        last
    }
}

/// A connection on which every call shows the fleet's token.
type Line = InterceptedService<Channel, ShowToken>;

fn holdings_stub(scheduler: &Scheduler, config: &Config) -> HoldingsClient<Line> {
    HoldingsClient::with_interceptor(scheduler.channel.clone(), config.token.clone())
}

/// Holds a call open at a scheduler of our own, and notes when it breaks and when there is a scheduler again. One that
/// does not know the call is looked at again now and then: it may be replaced.
async fn keep_watch(shared: Weak<Shared>, scheduler: Arc<Scheduler>) {
    let mut wait = WATCH_AGAIN;
    // Its first answer is no news: the host announces itself when it starts.
    let mut was_away = false;
    loop {
        let Some(config) = shared.upgrade().map(|shared| shared.config.clone()) else { return };
        let mut stub = holdings_stub(&scheduler, &config);
        let opened = tokio::time::timeout(config.head_timeout, stub.watch(WatchRequest {})).await;
        match opened.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time"))) {
            Ok(response) => {
                scheduler.seen(true);
                scheduler.speaks(false);
                if std::mem::replace(&mut was_away, true)
                    && let Some(shared) = shared.upgrade()
                {
                    tracing::info!(scheduler = scheduler.addr, "a scheduler is there again");
                    shared.forgotten.send_modify(|count| *count += 1);
                }
                wait = WATCH_AGAIN;
                let mut here = response.into_inner();
                while let Ok(Some(_)) = here.message().await {}
                tracing::info!(scheduler = scheduler.addr, "a scheduler is gone");
                scheduler.seen(false);
            }
            Err(status) if status.code() == Code::Unimplemented => {
                scheduler.seen(true);
                scheduler.speaks(true);
                wait = config.announce_interval;
            }
            Err(_) => {
                was_away = true;
                scheduler.seen(false);
            }
        }
        // Not all hosts at the same moment.
        tokio::time::sleep(wait.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
        wait = (wait * 2).min(config.backoff_most);
    }
}

/// Whether the failure says something of the scheduler, not of the request.
fn is_its_fault(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Internal | Code::Cancelled
    )
}

#[async_trait]
impl SchedulerClient for GrpcSchedulers {
    async fn register(&self, registration: Registration) -> Result<Conversation, SchedulerLost> {
        let schedulers = self.schedulers();
        let order = ring::order(&registration.task, schedulers.iter().map(|scheduler| scheduler.addr.as_str()));
        let mut next = order.into_iter().map(|index| &schedulers[index]).filter(|scheduler| scheduler.is_open());
        let mut lost = SchedulerLost("none is known that did not fail a moment ago".into());
        let mut asked = FuturesUnordered::new();
        loop {
            let more = next.next();
            let last = more.is_none();
            if let Some(scheduler) = more {
                asked.push(self.register_at(Arc::clone(scheduler), &registration));
            }
            // The first that answers is taken; the calls to the others are dropped, which ends them there.
            let patience = async {
                match last {
                    true => std::future::pending().await,
                    false => tokio::time::sleep(NEXT_AFTER).await,
                }
            };
            tokio::select! {
                answer = asked.next() => match answer {
                    Some(Ok(conversation)) => return Ok(conversation),
                    Some(Err(error)) => lost = error,
                    None => return Err(lost),
                },
                () = patience => {}
            }
        }
    }

    async fn announce_host(&self, host: &HostInfo) -> Result<(), SchedulerLost> {
        self.every(|scheduler| self.announce_to(scheduler, host)).await
    }

    async fn announce_holdings(&self, holdings: Holdings) -> Result<(), SchedulerLost> {
        let (told, untold): (Vec<_>, Vec<_>) = self.schedulers().into_iter().partition(|scheduler| scheduler.is_told());
        let wanting = if holdings.all && !untold.is_empty() { untold } else { told };
        Self::each(wanting, |scheduler| self.hold_at(scheduler, &holdings)).await
    }

    fn wants_holdings(&self) -> bool {
        self.schedulers().iter().any(|scheduler| scheduler.is_open() && !scheduler.is_told())
    }

    async fn leave(&self, host: &HostId) -> Result<(), SchedulerLost> {
        self.every(|scheduler| async move {
            let request = DeleteHostRequest { host_id: host.to_string() };
            self.answer_of(&scheduler, self.stub(&scheduler).delete_host(request)).await.map(|_| ())
        })
        .await
    }

    fn forgotten(&self) -> watch::Receiver<u64> {
        self.0.forgotten.subscribe()
    }
}
