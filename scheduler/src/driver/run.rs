//! The driver's loop.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use damselfly_core::swarm::{Answer, Registration, Report};
use damselfly_core::{Moment, PeerId};
use damselfly_scheduler_core::{Core, Event, Notice, Output};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Clock, Config, Metrics, SeedRequest, SeedTrigger};

/// How many commands are taken from the mailbox at once.
const BATCH: usize = 64;

/// How long after an event the gauges are brought up to date; not again before that.
const COUNT_AFTER: Duration = Duration::from_millis(500);

/// The two ends of a conversation that its peer gets.
type Ends = (mpsc::Receiver<Answer>, mpsc::Sender<Report>);

/// Looks at the machine.
type Look = Box<dyn FnOnce(&Core, Moment) + Send>;

/// What the driver is asked.
pub(super) enum Command {
    Event(Box<Event>),
    Register {
        registration: Box<Registration>,
        reply: oneshot::Sender<Ends>,
    },
    /// A report in a conversation.
    Report(PeerId, u64, Report),
    /// A conversation's peer has gone.
    Gone(PeerId, u64),
    Look(Look),
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Command")
    }
}

/// The driver's side of a conversation.
struct Conversation {
    number: u64,
    answers: mpsc::Sender<Answer>,
    /// Dropped with the conversation: ends its pump.
    _stop: oneshot::Sender<()>,
}

/// Owns the machine.
pub(super) struct Driver {
    core: Core,
    config: Config,
    clock: Box<dyn Clock>,
    seeds: Box<dyn SeedTrigger>,
    metrics: Metrics,
    mailbox: mpsc::WeakSender<Command>,
    talking: HashMap<PeerId, Conversation>,
    triggered: JoinSet<Option<Event>>,
    conversations: u64,
    /// When the gauges are brought up to date, if anything happened since they were.
    count_at: Option<Instant>,
}

impl Driver {
    pub(super) fn new(
        config: Config,
        clock: Box<dyn Clock>,
        seeds: Box<dyn SeedTrigger>,
        metrics: Metrics,
        mailbox: mpsc::WeakSender<Command>,
    ) -> Self {
        let seed = config.seed.unwrap_or_else(random_seed);
        Self {
            core: Core::new(config.core.clone(), seed),
            config,
            clock,
            seeds,
            metrics,
            mailbox,
            talking: HashMap::new(),
            triggered: JoinSet::new(),
            conversations: 0,
            count_at: None,
        }
    }

    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let (wake_in, count_in) = (self.wake_in(), self.count_in());
            tokio::select! {
                taken = commands.recv_many(&mut batch, BATCH) => {
                    if taken == 0 {
                        return;
                    }
                    for command in batch.drain(..) {
                        self.obey(command);
                    }
                }
                () = sleep_until(wake_in) => self.tell(Event::Timer),
                Some(ended) = self.triggered.join_next() => {
                    if let Ok(Some(refused)) = ended {
                        self.tell(refused);
                    }
                }
                () = sleep_until(count_in) => {
                    self.count_at = None;
                    self.metrics.count(&self.core.counts());
                }
            }
        }
    }

    fn count_in(&self) -> Option<Duration> {
        self.count_at.map(|at| at.saturating_duration_since(Instant::now()))
    }

    fn wake_in(&self) -> Option<Duration> {
        self.core.deadline().map(|at| at.since(self.clock.now()))
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Event(event) => self.tell(*event),
            Command::Register { registration, reply } => self.converse(*registration, reply),
            Command::Report(peer, number, report) => {
                if self.is_current(&peer, number) {
                    self.tell(Event::Report(peer, report));
                }
            }
            Command::Gone(peer, number) => {
                if self.is_current(&peer, number) {
                    self.talking.remove(&peer);
                    self.tell(Event::PeerGone(peer));
                }
            }
            Command::Look(look) => look(&self.core, self.clock.now()),
        }
    }

    fn is_current(&self, peer: &PeerId, number: u64) -> bool {
        self.talking.get(peer).is_some_and(|conversation| conversation.number == number)
    }

    fn converse(&mut self, registration: Registration, reply: oneshot::Sender<Ends>) {
        let Some(mailbox) = self.mailbox.upgrade() else { return };
        let peer = registration.peer.clone();
        self.conversations += 1;
        let number = self.conversations;
        let (answers, to_peer) = mpsc::channel(self.config.unread_answers.max(1));
        let (from_peer, reports) = mpsc::channel(self.config.waiting_reports.max(1));
        let (_stop, stopped) = oneshot::channel();
        if reply.send((to_peer, from_peer)).is_err() {
            return;
        }
        if !self.core.may_speak(&registration.host, &registration.task, &peer) {
            tracing::warn!(%peer, host = %registration.host, "a host registers another one's peer: refused");
            return self.tell(Event::Register(registration));
        }
        tokio::spawn(pump(mailbox, peer.clone(), number, reports, stopped));
        // One that is open under this peer id is over: its answers are closed and its reports are not heard.
        self.talking.insert(peer, Conversation { number, answers, _stop });
        self.tell(Event::Register(registration));
    }

    fn tell(&mut self, event: Event) {
        let begun = Instant::now();
        self.count_at.get_or_insert(begun + COUNT_AFTER);
        self.core.handle(self.clock.now(), event);
        self.metrics.decided(begun.elapsed());
        while let Some(gone) = self.act() {
            self.core.handle(self.clock.now(), Event::PeerGone(gone));
        }
    }

    /// Does what the machine says; breaks off with a peer that does not listen any more.
    fn act(&mut self) -> Option<PeerId> {
        while let Some(output) = self.core.poll() {
            match output {
                Output::Fact(fact) => self.metrics.fact(fact),
                Output::Notice(notice) => log(notice),
                Output::End(peer) => {
                    self.talking.remove(&peer);
                }
                Output::TriggerSeed { host, task, origin } => {
                    self.trigger(SeedRequest { host, task, origin: *origin });
                }
                Output::Answer(peer, answer) => {
                    let told = self.talking.get(&peer).map(|conversation| conversation.answers.try_send(answer));
                    if let Some(Err(error)) = told {
                        tracing::debug!(%peer, %error, "a peer does not listen");
                        self.talking.remove(&peer);
                        return Some(peer);
                    }
                }
            }
        }
        None
    }

    fn trigger(&mut self, request: SeedRequest) {
        let refused = Event::SeedRefused { task: request.task, host: request.host.id.clone() };
        if self.triggered.len() >= self.config.triggered_seeds {
            self.triggered.spawn(async { Some(refused) });
            return;
        }
        let (task, host) = (request.task, request.host.id.clone());
        let triggered = self.seeds.trigger(request);
        self.triggered.spawn(async move {
            let error = triggered.await.err()?;
            tracing::warn!(%task, %host, %error, "a seed does not fetch a task");
            Some(refused)
        });
    }
}

/// A line for an operator who asks why content did not come, or why it came from where it did.
fn log(notice: Notice) {
    match notice {
        Notice::WrongPiece { task, piece, child, parent } => {
            tracing::warn!(%task, piece = piece.0, %child, %parent, "a peer had wrong bytes from its parent");
        }
        Notice::IsolatedForTask { task, host, accuser } => {
            tracing::warn!(%task, %host, %accuser, "a host is not offered for this task: its bytes were wrong");
        }
        Notice::Isolated { host, accusers, time } => {
            tracing::warn!(%host, accusers, ?time, "a host is not offered at all: several hosts had wrong bytes from it");
        }
        Notice::Silent { host, missed_by } => {
            tracing::info!(%host, missed_by, "a host is not offered until it is heard of: others cannot reach it");
        }
        Notice::LeaseLost { task, peer, pieces, why } => {
            tracing::info!(%task, %peer, ?pieces, why = why.words(), "the source's pieces are given to another reader");
        }
    }
}

/// Brings one conversation's reports into the mailbox, in their order, as fast as the driver takes them.
async fn pump(
    mailbox: mpsc::Sender<Command>,
    peer: PeerId,
    number: u64,
    mut reports: mpsc::Receiver<Report>,
    mut stopped: oneshot::Receiver<()>,
) {
    loop {
        let report = tokio::select! {
            report = reports.recv() => report,
            _ = &mut stopped => return,
        };
        let (command, is_last) = match report {
            Some(report) => (Command::Report(peer.clone(), number, report), false),
            None => (Command::Gone(peer.clone(), number), true),
        };
        if mailbox.send(command).await.is_err() || is_last {
            return;
        }
    }
}

async fn sleep_until(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

/// From the process' hash keys, which the system seeds.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0)
}
