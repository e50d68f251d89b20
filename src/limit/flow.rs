//! Waiting for bytes that may move.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use damselfly_core::{Moment, TaskId};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

use super::machine::{FlowKey, Requested, Shaper, Ticket, step};
use super::metrics::{ClassMetrics, Metrics};
use super::{Class, Limit, Limits, Priority};

/// The limits of this host. Clones are the same limits.
#[derive(Clone, Debug)]
pub struct Limiter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    started: Instant,
    classes: [ClassState; Class::ALL.len()],
    flows: AtomicU64,
}

#[derive(Debug)]
struct ClassState {
    class: Class,
    /// How many bytes move at once; 0 without a limit.
    step: AtomicU64,
    state: Mutex<State>,
    /// Something happened that may be a reason to grant earlier.
    changed: Notify,
    metrics: ClassMetrics,
}

#[derive(Debug)]
struct State {
    shaper: Shaper,
    waiting: HashMap<Ticket, oneshot::Sender<()>>,
    /// Whether a task grants what becomes due.
    is_granted: bool,
}

/// How one class is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassReport {
    /// Which.
    pub class: Class,
    /// Its limits.
    pub limit: Limit,
    /// How many bytes moved a second, lately; `None` without a limit: then nobody counts.
    pub rate: Option<u64>,
    /// How many transfers wait.
    pub waiting: usize,
}

impl Default for Limiter {
    /// Without any limit.
    fn default() -> Self {
        Self::new(&Limits::default(), &Metrics::default())
    }
}

impl Limiter {
    /// These limits, which hold from now on.
    pub fn new(limits: &Limits, metrics: &Metrics) -> Self {
        let classes = Class::ALL.map(|class| ClassState {
            class,
            step: AtomicU64::new(0),
            state: Mutex::new(State {
                shaper: Shaper::new(Limit::default(), Moment::START),
                waiting: HashMap::new(),
                is_granted: false,
            }),
            changed: Notify::new(),
            metrics: metrics.of(class),
        });
        let limiter = Self(Arc::new(Shared { started: Instant::now(), classes, flows: AtomicU64::new(0) }));
        Class::ALL.into_iter().for_each(|class| limiter.set(class, limits.of(class)));
        limiter
    }

    /// Another limit for one class, for those who wait already too.
    pub fn set(&self, class: Class, limit: Limit) {
        let now = self.0.now();
        let class = self.0.class(class);
        let mut state = class.state();
        state.shaper.set_limit(now, limit);
        let rates = limit.total.into_iter().chain(limit.per_flow);
        class.step.store(rates.map(|rate| step(rate.get())).min().unwrap_or(0), Ordering::Relaxed);
        drop(state);
        class.metrics.limited(limit);
        class.changed.notify_one();
    }

    /// Other limits for all classes.
    pub fn set_all(&self, limits: &Limits) {
        for class in Class::ALL {
            if self.limit(class) != limits.of(class) {
                self.set(class, limits.of(class));
            }
        }
    }

    /// The limit of one class.
    pub fn limit(&self, class: Class) -> Limit {
        self.0.class(class).state().shaper.limit()
    }

    /// How all classes are doing.
    pub fn report(&self) -> Vec<ClassReport> {
        let now = self.0.now();
        let report = |class: &ClassState| {
            let mut state = class.state();
            let limit = state.shaper.limit();
            let rate = limit.is_some().then(|| state.shaper.rate(now));
            ClassReport { class: class.class, limit, rate, waiting: state.shaper.waiting() }
        };
        self.0.classes.iter().map(report).collect()
    }

    /// The flow of a task's bytes. Flows of the same task share what one flow has.
    pub fn task_flow(&self, task: &TaskId, priority: Priority) -> Flow {
        let key = task.as_bytes().first_chunk().map_or(0, |first| u64::from_be_bytes(*first));
        self.make_flow(FlowKey(key), priority)
    }

    /// A flow of its own.
    pub fn flow(&self, priority: Priority) -> Flow {
        let key = self.0.flows.fetch_add(1, Ordering::Relaxed);
        self.make_flow(FlowKey(key), priority)
    }

    fn make_flow(&self, key: FlowKey, priority: Priority) -> Flow {
        let priority = AtomicU8::new(priority.level());
        Flow(Arc::new(FlowState { shared: Arc::clone(&self.0), key, priority, waits: WaitMeter::default() }))
    }
}

impl Shared {
    fn now(&self) -> Moment {
        Moment::after_start(self.started.elapsed())
    }

    fn class(&self, class: Class) -> &ClassState {
        &self.classes[class as usize]
    }

    /// Grants what becomes due in a class, until nobody waits there.
    async fn grant(self: Arc<Self>, class: Class) {
        let class = self.class(class);
        loop {
            // Before looking: what changes meanwhile wakes us.
            let changed = class.changed.notified();
            let deadline = {
                let mut state = class.state();
                let now = self.now();
                while let Some(ticket) = state.shaper.poll(now) {
                    // One that has left gives its bytes back itself.
                    let _ = state.waiting.remove(&ticket).map(|waiting| waiting.send(()));
                }
                let Some(deadline) = state.shaper.deadline() else {
                    state.is_granted = false;
                    return;
                };
                deadline
            };
            tokio::select! {
                () = sleep_until(self.started + deadline.since_start()) => {}
                () = changed => {}
            }
        }
    }
}

impl ClassState {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bytes of one task, or of one request that is passed on. Clones are the same flow.
#[derive(Clone, Debug)]
pub struct Flow(Arc<FlowState>);

#[derive(Debug)]
struct FlowState {
    shared: Arc<Shared>,
    key: FlowKey,
    priority: AtomicU8,
    waits: WaitMeter,
}

impl Flow {
    /// How many bytes to move at once, of `most` that could be: few where they have to wait for each other.
    pub fn at_most(&self, classes: &[Class], most: u64) -> u64 {
        let steps = classes.iter().map(|class| self.0.shared.class(*class).step.load(Ordering::Relaxed));
        steps.filter(|step| *step > 0).fold(most, u64::min)
    }

    /// Waits until so many bytes may move. A caller that leaves before has moved none.
    pub async fn take(&self, class: Class, bytes: u64) {
        if let Some(wait) = self.ask(class, bytes) {
            wait.await;
        }
    }

    /// Waits until as many bytes as have just come may have. They count, also if the caller leaves before.
    pub async fn settle(&self, class: Class, bytes: u64) {
        if let Some(wait) = self.owe(class, bytes) {
            wait.await;
        }
    }

    /// As [`Self::take`]; `None` where they may move now.
    pub fn ask(&self, class: Class, bytes: u64) -> Option<Wait> {
        self.request(class, bytes, false)
    }

    /// As [`Self::settle`]; `None` where there is nothing to wait for.
    pub fn owe(&self, class: Class, bytes: u64) -> Option<Wait> {
        self.request(class, bytes, true)
    }

    fn request(&self, class: Class, bytes: u64, moved: bool) -> Option<Wait> {
        let shared = &self.0.shared;
        let state = shared.class(class);
        if bytes == 0 || state.step.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let now = shared.now();
        let mut locked = state.state();
        let Requested::Queued(ticket) = locked.shaper.request(now, self.0.key, self.priority(), bytes) else {
            return None;
        };
        let (grant, granted) = oneshot::channel();
        locked.waiting.insert(ticket, grant);
        let begins = !std::mem::replace(&mut locked.is_granted, true);
        drop(locked);
        if begins {
            tokio::spawn(Arc::clone(shared).grant(class));
        } else {
            state.changed.notify_one();
        }
        state.metrics.waits(bytes);
        self.0.waits.begin();
        Some(Wait { flow: self.clone(), class, ticket, bytes, moved, since: Instant::now(), granted: Some(granted) })
    }

    /// How urgent it is.
    pub fn priority(&self) -> Priority {
        Priority::new(self.0.priority.load(Ordering::Relaxed)).unwrap_or_default()
    }

    /// It is more or less urgent from now on, also what of it waits already.
    pub fn set_priority(&self, priority: Priority) {
        if self.0.priority.swap(priority.level(), Ordering::Relaxed) == priority.level() {
            return;
        }
        for class in &self.0.shared.classes {
            class.state().shaper.set_priority(self.0.key, priority);
            class.changed.notify_one();
        }
    }

    /// For how long some of its transfers waited for a limit: the time, not the sum over the transfers.
    pub fn held_up(&self) -> Duration {
        self.0.waits.total()
    }
}

/// Bytes that wait for a limit; resolves when they may move. Dropping it gives them up.
#[derive(Debug)]
pub struct Wait {
    flow: Flow,
    class: Class,
    ticket: Ticket,
    bytes: u64,
    moved: bool,
    since: Instant,
    granted: Option<oneshot::Receiver<()>>,
}

impl Future for Wait {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(granted) = &mut self.granted {
            // Nobody but us drops the other half unsent.
            let _ = ready!(Pin::new(granted).poll(cx));
            self.granted = None;
        }
        Poll::Ready(())
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let shared = &self.flow.0.shared;
        let class = shared.class(self.class);
        class.metrics.waited(self.since.elapsed());
        self.flow.0.waits.end();
        if self.granted.is_none() {
            return;
        }
        let mut state = class.state();
        let waited = state.shaper.cancel(shared.now(), self.flow.0.key, self.ticket, self.moved);
        state.waiting.remove(&self.ticket);
        if !waited && !self.moved {
            state.shaper.give_back(self.flow.0.key, self.bytes);
        }
        drop(state);
        class.changed.notify_one();
    }
}

/// Measures over how much of the time somebody waits.
#[derive(Debug, Default)]
struct WaitMeter(Mutex<Waits>);

#[derive(Debug, Default)]
struct Waits {
    waiting: usize,
    since: Option<Instant>,
    total: Duration,
}

impl WaitMeter {
    fn begin(&self) {
        let mut waits = self.waits();
        waits.waiting += 1;
        waits.since.get_or_insert_with(Instant::now);
    }

    fn end(&self) {
        let mut waits = self.waits();
        waits.waiting -= 1;
        if waits.waiting == 0
            && let Some(since) = waits.since.take()
        {
            waits.total += since.elapsed();
        }
    }

    fn total(&self) -> Duration {
        let waits = self.waits();
        waits.total + waits.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
