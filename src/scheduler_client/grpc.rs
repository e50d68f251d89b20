//! Schedulers over gRPC.

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use damselfly_api::convert::{self, MAX_MESSAGE, Voice};
use damselfly_api::ours::holdings_client::HoldingsClient;
use damselfly_api::scheduler::DeleteHostRequest;
use damselfly_api::scheduler::scheduler_client::SchedulerClient as SchedulerStub;
use damselfly_core::HostId;
use damselfly_core::swarm::{Holding, HostInfo, Registration};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::pump::{End, Pump};
use super::scheduler::Scheduler;
use super::{Config, Conversation, Metrics, QUEUE, SchedulerClient, SchedulerLost, ring};

/// The most characters of a scheduler's own words that are repeated.
const MAX_WORDS: usize = 200;

/// One or several schedulers, found by their addresses. Clones are the same.
///
/// A task registers at the scheduler that [`ring`] names; at the next one if that does not answer. Hosts and what they
/// hold are announced to all of them.
#[derive(Clone)]
pub struct GrpcSchedulers(Arc<Shared>);

struct Shared {
    schedulers: Vec<Scheduler>,
    config: Config,
    metrics: Metrics,
    forgotten: watch::Sender<u64>,
}

/// A failed call as one bounded sentence.
pub(super) fn sentence(status: &Status) -> String {
    let words: String = status.message().chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect();
    format!("{}: {words}", status.code().description())
}

impl GrpcSchedulers {
    /// Schedulers at these addresses, `HOST:PORT` each. They are connected to when they are first needed.
    ///
    /// # Errors
    /// For no address at all, and for what is none.
    pub fn new(addrs: &[String], config: Config, metrics: Metrics) -> Result<Self, SchedulerLost> {
        let schedulers =
            addrs.iter().map(|addr| Scheduler::new(addr.clone(), &config)).collect::<Result<Vec<_>, _>>()?;
        if schedulers.is_empty() {
            return Err(SchedulerLost("none is configured".into()));
        }
        Ok(Self(Arc::new(Shared { schedulers, config, metrics, forgotten: watch::Sender::new(0) })))
    }

    async fn register_at(&self, index: usize, registration: &Registration) -> Result<Conversation, SchedulerLost> {
        let scheduler = &self.0.schedulers[index];
        let (outbound, requests) = mpsc::channel(QUEUE);
        // The queue is empty.
        let _ = outbound.try_send(convert::registration_to_wire(registration));
        let mut stub = stub(&scheduler.channel);
        let call = stub.announce_peer(ReceiverStream::new(requests));
        let response = self.answer_of(scheduler, call).await?;
        let voice = Voice::new(registration, convert::is_extended(response.metadata()));
        let (reports, take_reports) = mpsc::channel(QUEUE);
        let (give_answers, answers) = mpsc::channel(QUEUE);
        let pump =
            Pump { voice, inbound: response.into_inner(), outbound, reports: take_reports, answers: give_answers };
        self.0.metrics.registered.inc();
        let (this, task) = (self.clone(), registration.task);
        tokio::spawn(async move {
            if let End::Lost(why) = pump.run().await {
                let scheduler = &this.0.schedulers[index];
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

    async fn announce_to(&self, scheduler: &Scheduler, host: &HostInfo) -> Result<(), SchedulerLost> {
        let request = convert::host_to_wire(host, self.0.config.announce_interval);
        let answer = self.answer_of(scheduler, stub(&scheduler.channel).announce_host(request)).await?;
        if scheduler.announced(convert::run_of(answer.metadata())) {
            self.0.forgotten.send_modify(|count| *count += 1);
        }
        Ok(())
    }

    async fn hold_at(&self, scheduler: &Scheduler, host: &HostId, holdings: &[Holding]) -> Result<(), SchedulerLost> {
        for request in convert::holdings_to_wire(host, holdings) {
            let mut stub = HoldingsClient::new(scheduler.channel.clone()).max_encoding_message_size(MAX_MESSAGE);
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

    /// Calls every scheduler at once; well if one of them answered.
    async fn every<'a, F>(&'a self, call: impl Fn(&'a Scheduler) -> F) -> Result<(), SchedulerLost>
    where
        F: Future<Output = Result<(), SchedulerLost>>,
    {
        let results = futures_util::future::join_all(self.0.schedulers.iter().map(call)).await;
        let mut last = Err(SchedulerLost("none is configured".into()));
        for result in results {
            match result {
                Ok(()) => return Ok(()),
                lost => last = lost,
            }
        }
        last
    }
}

fn stub(channel: &Channel) -> SchedulerStub<Channel> {
    SchedulerStub::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE)
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
        let order = ring::order(&registration.task, self.0.schedulers.iter().map(|scheduler| scheduler.addr.as_str()));
        let mut lost = SchedulerLost("all that are configured failed a moment ago".into());
        for index in order {
            if !self.0.schedulers[index].is_open() {
                continue;
            }
            match self.register_at(index, &registration).await {
                Ok(conversation) => return Ok(conversation),
                Err(error) => lost = error,
            }
        }
        Err(lost)
    }

    async fn announce_host(&self, host: &HostInfo) -> Result<(), SchedulerLost> {
        self.every(|scheduler| self.announce_to(scheduler, host)).await
    }

    async fn announce_holdings(&self, host: &HostId, holdings: Vec<Holding>) -> Result<(), SchedulerLost> {
        self.every(|scheduler| self.hold_at(scheduler, host, &holdings)).await
    }

    async fn leave(&self, host: &HostId) -> Result<(), SchedulerLost> {
        self.every(|scheduler| async {
            let request = DeleteHostRequest { host_id: host.to_string() };
            self.answer_of(scheduler, stub(&scheduler.channel).delete_host(request)).await.map(|_| ())
        })
        .await
    }

    fn forgotten(&self) -> watch::Receiver<u64> {
        self.0.forgotten.subscribe()
    }
}
