//! Who of those that wait may move how many bytes, and when: one class of traffic. Pure: it is told the moment.
//!
//! A token bucket for the whole class, and beneath it one for each flow (the transfers of one task). Whose turn it is, is
//! decided when the bytes are there, not when they are asked for:
//!
//! - The highest priority that waits goes first. For [`RESERVE`] bytes of its own, one goes to those that it passes, so
//!   that their connections live.
//! - Flows of equal priority share by start-time fair queueing: each has as many bytes, however many transfers it has.
//! - The requests of one flow are served in their order.
//!
//! **In any span of time no more moves than the rate times the span, and one burst.** Bytes are counted in whole
//! byte-nanoseconds, so nothing is ever rounded and nothing drifts.

mod bucket;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use damselfly_core::Moment;

use self::bucket::{Bucket, RateMeter, bytes_in};
use super::{Limit, Priority};

/// For so many bytes of those with the highest priority, one goes to those that they pass.
const RESERVE: u64 = 16;

/// How many bytes those may be owed at most.
const MAX_OWED: u64 = 1 << 20;

/// The span of time whose bytes are moved at once.
const STEP: Duration = Duration::from_millis(10);

/// The least and the most bytes that are moved at once.
const STEPS: (u64, u64) = (16 << 10, 1 << 20);

/// States of flows that are kept before those that make no difference are forgotten.
const MANY_FLOWS: usize = 64;

/// The flow of one task's, or one connection's, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FlowKey(pub(super) u64);

/// One request that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Ticket(u64);

/// What a request comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Requested {
    /// The bytes may move now.
    Granted,
    /// They may when the ticket is granted.
    Queued(Ticket),
}

/// How many bytes are moved at once under a limit of so many bytes a second.
pub(super) fn step(rate: u64) -> u64 {
    bytes_in(rate, STEP).clamp(STEPS.0, STEPS.1)
}

#[derive(Clone, Copy, Debug)]
struct Request {
    ticket: Ticket,
    bytes: u64,
}

#[derive(Debug)]
struct FlowState {
    priority: Priority,
    /// Where its last bytes end in the virtual time of its priority.
    finish: u64,
    /// Its own, where every flow has one.
    bucket: Option<Bucket>,
    waiting: VecDeque<Request>,
    /// When it was last served, in grants.
    served: u64,
}

/// One class of traffic.
#[derive(Debug)]
pub(super) struct Shaper {
    limit: Limit,
    bucket: Option<Bucket>,
    flows: BTreeMap<FlowKey, FlowState>,
    /// Requests that wait, over all flows.
    waiting: usize,
    /// The virtual time of each priority: where the bytes begin that were granted last.
    virtual_time: [u64; Priority::LEVELS],
    /// In bytes times [`RESERVE`]: what those are owed that others pass.
    owed: u64,
    tickets: u64,
    grants: u64,
    moved: RateMeter,
}

impl Shaper {
    pub(super) fn new(limit: Limit, now: Moment) -> Self {
        Self {
            limit,
            bucket: limit.total.map(|rate| Bucket::new(rate.get(), now)),
            flows: BTreeMap::new(),
            waiting: 0,
            virtual_time: [0; Priority::LEVELS],
            owed: 0,
            tickets: 0,
            grants: 0,
            moved: RateMeter::default(),
        }
    }

    pub(super) const fn limit(&self) -> Limit {
        self.limit
    }

    /// How many requests wait.
    pub(super) const fn waiting(&self) -> usize {
        self.waiting
    }

    /// How many bytes moved a second, lately.
    pub(super) fn rate(&mut self, now: Moment) -> u64 {
        self.moved.rate(now)
    }

    /// Another limit holds from now on, for those who wait too: grants may be due.
    pub(super) fn set_limit(&mut self, now: Moment, limit: Limit) {
        self.limit = limit;
        change(&mut self.bucket, limit.total.map(|rate| rate.get()), now);
        for flow in self.flows.values_mut() {
            change(&mut flow.bucket, limit.per_flow.map(|rate| rate.get()), now);
        }
    }

    /// A flow is worth more or less from now on.
    pub(super) fn set_priority(&mut self, key: FlowKey, priority: Priority) {
        if let Some(flow) = self.flows.get_mut(&key).filter(|flow| flow.priority != priority) {
            // Its place among its new equals is behind what they have had.
            flow.finish = self.virtual_time[priority.index()];
            flow.priority = priority;
        }
    }

    /// A flow wants to move so many bytes.
    pub(super) fn request(&mut self, now: Moment, key: FlowKey, priority: Priority, bytes: u64) -> Requested {
        self.refill(now);
        // It may be known from before, when it was less or more urgent.
        self.set_priority(key, priority);
        let per_flow = self.limit.per_flow;
        let virtual_time = self.virtual_time[priority.index()];
        let flow = self.flows.entry(key).or_insert_with(|| FlowState {
            priority,
            finish: virtual_time,
            bucket: per_flow.map(|rate| Bucket::new(rate.get(), now)),
            waiting: VecDeque::new(),
            served: 0,
        });
        let ticket = Ticket(self.tickets);
        self.tickets += 1;
        flow.waiting.push_back(Request { ticket, bytes });
        self.waiting += 1;
        // Who finds nobody waiting, and the bytes there, has them at once.
        if self.waiting == 1 && self.poll(now) == Some(ticket) { Requested::Granted } else { Requested::Queued(ticket) }
    }

    /// The next request whose bytes may move now.
    pub(super) fn poll(&mut self, now: Moment) -> Option<Ticket> {
        self.refill(now);
        let key = self.choose()?;
        let flow = self.flows.get_mut(&key)?;
        let bytes = flow.waiting.front()?.bytes;
        if self.bucket.as_ref().is_some_and(|bucket| !bucket.has(bytes)) {
            return None;
        }
        let request = flow.waiting.pop_front()?;
        let priority = flow.priority;
        let level = priority.index();
        let start = flow.finish.max(self.virtual_time[level]);
        self.virtual_time[level] = start;
        flow.finish = start.saturating_add(bytes);
        self.grants += 1;
        flow.served = self.grants;
        if let Some(bucket) = &mut flow.bucket {
            bucket.take(bytes);
        }
        if let Some(bucket) = &mut self.bucket {
            bucket.take(bytes);
        }
        self.waiting -= 1;
        self.moved.add(now, bytes);
        self.settle_reserve(priority, bytes);
        self.forget_idle();
        Some(request.ticket)
    }

    /// When [`Self::poll`], which has just given nothing, has something to give or to decide anew; `None` where nobody
    /// waits.
    pub(super) fn deadline(&self) -> Option<Moment> {
        let first = |flow: &FlowState| flow.waiting.front().map(|request| request.bytes);
        let chosen = self.choose().and_then(|key| self.flows.get(&key)).and_then(first);
        let chosen = chosen.map(|bytes| self.bucket.as_ref().map_or(Moment::START, |bucket| bucket.when(bytes)));
        let held_back = self.flows.values().filter_map(|flow| {
            let (bytes, bucket) = (first(flow)?, flow.bucket.as_ref()?);
            (!bucket.has(bytes)).then(|| bucket.when(bytes))
        });
        held_back.chain(chosen).min()
    }

    /// A request waits no more; says whether it still did. `moved`: its bytes have moved all the same, and count.
    pub(super) fn cancel(&mut self, now: Moment, key: FlowKey, ticket: Ticket, moved: bool) -> bool {
        let Some(flow) = self.flows.get_mut(&key) else { return false };
        let Some(at) = flow.waiting.iter().position(|request| request.ticket == ticket) else { return false };
        let Some(request) = flow.waiting.remove(at) else { return false };
        self.waiting -= 1;
        if moved {
            flow.finish = flow.finish.saturating_add(request.bytes);
            for bucket in flow.bucket.iter_mut().chain(&mut self.bucket) {
                bucket.take(request.bytes);
            }
            self.moved.add(now, request.bytes);
        }
        self.forget_idle();
        true
    }

    /// Bytes that were granted have not moved, and will not.
    pub(super) fn give_back(&mut self, key: FlowKey, bytes: u64) {
        let own = self.flows.get_mut(&key).and_then(|flow| flow.bucket.as_mut());
        for bucket in own.into_iter().chain(&mut self.bucket) {
            bucket.give_back(bytes);
        }
    }

    fn refill(&mut self, now: Moment) {
        let waited_for = self.waiting > 0;
        if let Some(bucket) = &mut self.bucket {
            bucket.refill(now, waited_for);
        }
        for flow in self.flows.values_mut() {
            let waited_for = !flow.waiting.is_empty();
            if let Some(bucket) = &mut flow.bucket {
                bucket.refill(now, waited_for);
            }
        }
    }

    /// Whose turn it is, of those whose own limit allows it.
    fn choose(&self) -> Option<FlowKey> {
        let ready = |flow: &FlowState| {
            let first = flow.waiting.front()?;
            flow.bucket.as_ref().is_none_or(|bucket| bucket.has(first.bytes)).then_some(first.bytes)
        };
        let ready = || self.flows.iter().filter_map(move |(key, flow)| Some((key, flow, ready(flow)?)));
        let highest = ready().map(|(_, flow, _)| flow.priority).max()?;
        let passed = ready().filter(|(_, flow, _)| flow.priority < highest).min_by_key(|(_, flow, _)| flow.served);
        if let Some((key, _, bytes)) = passed
            && self.owed / RESERVE >= bytes.min(MAX_OWED)
        {
            return Some(*key);
        }
        let now = self.virtual_time[highest.index()];
        let equals = ready().filter(|(_, flow, _)| flow.priority == highest);
        equals.min_by_key(|(key, flow, _)| (flow.finish.max(now), **key)).map(|(key, ..)| *key)
    }

    /// Keeps the account of what goes to the foremost, and what of it to those that they pass.
    fn settle_reserve(&mut self, served: Priority, bytes: u64) {
        let waits = |higher: bool| {
            let mut waiting = self.flows.values().filter(|flow| !flow.waiting.is_empty());
            waiting.any(|flow| if higher { flow.priority > served } else { flow.priority < served })
        };
        if waits(true) {
            self.owed = self.owed.saturating_sub(bytes.saturating_mul(RESERVE));
        } else if waits(false) {
            self.owed = self.owed.saturating_add(bytes).min(MAX_OWED * RESERVE);
        } else {
            self.owed = 0;
        }
    }

    /// Forgets flows that would be the same if they came anew.
    fn forget_idle(&mut self) {
        if self.waiting > 0 && self.flows.len() <= MANY_FLOWS {
            return;
        }
        if self.waiting == 0 {
            // Nobody is behind anybody.
            for flow in self.flows.values() {
                let level = &mut self.virtual_time[flow.priority.index()];
                *level = (*level).max(flow.finish);
            }
        }
        let virtual_time = &self.virtual_time;
        self.flows.retain(|_, flow| {
            let full = flow.bucket.as_ref().is_none_or(|bucket| bucket.has(bucket.capacity()));
            !flow.waiting.is_empty() || !full || flow.finish > virtual_time[flow.priority.index()]
        });
    }
}

/// Another rate for a bucket, or none.
fn change(bucket: &mut Option<Bucket>, rate: Option<u64>, now: Moment) {
    match (bucket.as_mut(), rate) {
        (Some(bucket), Some(rate)) => bucket.set_rate(rate, now),
        (_, rate) => *bucket = rate.map(|rate| Bucket::new(rate, now)),
    }
}

#[cfg(test)]
mod tests;
