//! Links in virtual time: each transfer gets the lesser of an equal share of its sender's uplink and an equal share of
//! its receiver's downlink, recomputed whenever a transfer begins or ends at either.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Where a transfer comes from or goes to; the origin is one too.
pub(crate) type Place = usize;

/// A transfer under way.
#[derive(Debug)]
struct Flow {
    from: Place,
    to: Place,
    left: f64,
    rate: f64,
    updated: Duration,
    version: u64,
}

/// A transfer's end as it looks now. It counts only if the version is still the same when the time comes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Due {
    pub(crate) flow: u64,
    pub(crate) version: u64,
    pub(crate) at: Duration,
}

#[derive(Debug)]
struct Link {
    up: f64,
    down: f64,
    /// The most that one transfer from here gets.
    each: f64,
    sending: BTreeSet<u64>,
    receiving: BTreeSet<u64>,
}

/// All links and what is on them.
#[derive(Debug, Default)]
pub(crate) struct Net {
    links: Vec<Link>,
    flows: BTreeMap<u64, Flow>,
    next: u64,
}

impl Net {
    pub(crate) fn add(&mut self, up: f64, down: f64) -> Place {
        let (sending, receiving) = (BTreeSet::new(), BTreeSet::new());
        self.links.push(Link { up, down, each: f64::INFINITY, sending, receiving });
        self.links.len() - 1
    }

    /// No transfer from here gets more than this, from now on.
    pub(crate) fn limit_each(&mut self, place: Place, each: f64) {
        self.links[place].each = each;
    }

    /// Begins a transfer. The ends of all transfers that this changes, its own among them, are in `due`.
    pub(crate) fn begin(&mut self, now: Duration, from: Place, to: Place, bytes: u64, due: &mut Vec<Due>) -> u64 {
        let id = self.next;
        self.next += 1;
        self.flows.insert(id, Flow { from, to, left: bytes as f64, rate: 0.0, updated: now, version: 0 });
        self.links[from].sending.insert(id);
        self.links[to].receiving.insert(id);
        self.share(now, from, to, due);
        id
    }

    /// Ends a transfer, done or not.
    pub(crate) fn end(&mut self, now: Duration, flow: u64, due: &mut Vec<Due>) {
        let Some(Flow { from, to, .. }) = self.flows.remove(&flow) else { return };
        self.links[from].sending.remove(&flow);
        self.links[to].receiving.remove(&flow);
        self.share(now, from, to, due);
    }

    /// A link is so fast from now on, up and down.
    pub(crate) fn change(&mut self, now: Duration, place: Place, (up, down): (f64, f64), due: &mut Vec<Due>) {
        (self.links[place].up, self.links[place].down) = (up, down);
        self.share(now, place, place, due);
    }

    /// Whether this is still how the transfer ends.
    pub(crate) fn is_due(&self, due: Due) -> bool {
        self.flows.get(&due.flow).is_some_and(|flow| flow.version == due.version)
    }

    fn share(&mut self, now: Duration, from: Place, to: Place, due: &mut Vec<Due>) {
        let touched: Vec<u64> = self.links[from].sending.union(&self.links[to].receiving).copied().collect();
        for id in touched {
            let Some(flow) = self.flows.get_mut(&id) else { continue };
            let (from, to) = (&self.links[flow.from], &self.links[flow.to]);
            let rate = (from.up / from.sending.len() as f64).min(to.down / to.receiving.len() as f64).min(from.each);
            flow.left = (flow.left - flow.rate * (now - flow.updated).as_secs_f64()).max(0.0);
            flow.updated = now;
            flow.rate = rate;
            flow.version += 1;
            due.push(Due { flow: id, version: flow.version, at: now + Duration::from_secs_f64(flow.left / rate) });
        }
    }
}
