//! Turns at this host's uplink: a few pieces are sent at a time, so that each is soon whole somewhere and can be passed
//! on, and whoever comes meanwhile waits for its turn or is told that this host is busy.
//!
//! **The next turn is for the host that has fewest**, so no host takes them all; among equals for one that lacks a single
//! piece and is done with it, else for the one that lacks most of its task, so that all of a crowd get on alike and no
//! straggler is left at the end; and for whoever has waited long before any of these. A child that takes its piece very slowly
//! gives its turn to the next while its piece goes on: one slow reader, or many, hold nobody up.
//!
//! Under a limit of what this host sends there are fewer turns, so that each piece is still soon whole somewhere.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use damselfly_core::{PieceNumber, PieceSet, TaskId};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use crate::limit::{Class, Limiter};

/// For so many bytes a second that this host may send there is one turn.
const RATE_OF_TURN: u64 = 4 << 20;

/// How many tasks it is remembered for how often their pieces were sent.
const TASKS: usize = 256;

/// The bounds of the uplink's turns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkConfig {
    /// How many pieces are sent at a time to children that ask for turns.
    pub turns: usize,
    /// How many children wait for one at most, and how many of them from one host.
    pub waiting: usize,
    /// How many of these from one host.
    pub waiting_of_host: usize,
    /// How long one waits before it is told that this host is busy.
    pub wait: Duration,
    /// Who has waited so long is not passed any more by those who lack more.
    pub patience: Duration,
    /// How long a child may take to say which piece it wants in its turn.
    pub choice: Duration,
    /// After so long a turn is looked at: a child that has not taken [`Self::least`] bytes gives it up.
    pub look: Duration,
    /// See [`Self::look`].
    pub least: u64,
}

impl Default for UplinkConfig {
    fn default() -> Self {
        Self {
            turns: 4,
            waiting: 1024,
            waiting_of_host: 64,
            wait: Duration::from_secs(2),
            patience: Duration::from_millis(500),
            choice: Duration::from_secs(1),
            look: Duration::from_secs(2),
            least: 128 << 10,
        }
    }
}

/// The turns, and who waits for one.
#[derive(Debug)]
pub(super) struct Uplink {
    pub(super) config: UplinkConfig,
    limiter: Limiter,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    of_host: HashMap<IpAddr, usize>,
    waiting: VecDeque<Waiting>,
    sent: HashMap<TaskId, Sent>,
    uses: u64,
}

#[derive(Debug)]
struct Waiting {
    host: IpAddr,
    task: TaskId,
    /// How many pieces it lacks.
    lacks: usize,
    since: Instant,
    give: oneshot::Sender<Turn>,
}

/// How often the pieces of one task were sent.
#[derive(Debug, Default)]
struct Sent {
    pieces: Vec<u16>,
    used: u64,
}

/// Room to send one piece. The next has it when this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    /// `None` once it was taken back.
    uplink: Option<Arc<Uplink>>,
    host: IpAddr,
}

impl State {
    fn give_back(&mut self, host: IpAddr) {
        self.taken = self.taken.saturating_sub(1);
        if let Some(taken) = self.of_host.get_mut(&host) {
            *taken -= 1;
            if *taken == 0 {
                self.of_host.remove(&host);
            }
        }
    }

    /// Whose turn it is. Of the hosts that have fewest turns: the one that came first, if it has been patient enough; else one
    /// that lacks but one piece; else the one that lacks most of the task that the first waits for.
    fn next(&self, patience: Duration) -> Option<usize> {
        let has = |waiting: &Waiting| self.of_host.get(&waiting.host).copied().unwrap_or(0);
        let waiting = || self.waiting.iter().enumerate().filter(|(_, waiting)| !waiting.give.is_closed());
        let (at, first) = waiting().min_by_key(|(at, waiting)| (has(waiting), *at))?;
        if first.since.elapsed() >= patience {
            return Some(at);
        }
        let equals = waiting().filter(|(_, one)| has(one) == has(first));
        let others = equals.filter(|(_, one)| one.lacks <= 1 || one.task == first.task);
        others.max_by_key(|(at, one)| (one.lacks <= 1, one.lacks, Reverse(*at))).map(|(at, _)| at)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(uplink) = self.uplink.take() else { return };
        let mut state = uplink.state();
        state.give_back(self.host);
        Uplink::give(&uplink, &mut state);
    }
}

impl Uplink {
    pub(super) fn new(config: UplinkConfig, limiter: Limiter) -> Arc<Self> {
        Arc::new(Self { config, limiter, state: Mutex::default() })
    }

    /// How many turns there are.
    fn turns(&self) -> usize {
        let within = |rate: u64| usize::try_from(rate / RATE_OF_TURN).unwrap_or(usize::MAX).clamp(1, self.config.turns);
        self.limiter.limit(Class::Upload).total.map_or(self.config.turns, |rate| within(rate.get()))
    }

    /// Waits for a turn for a host that lacks so many pieces of a task; `None` if this host is busy.
    pub(super) async fn turn(self: &Arc<Self>, host: IpAddr, task: TaskId, lacks: usize) -> Option<Turn> {
        let given = {
            let mut state = self.state();
            state.waiting.retain(|waiting| !waiting.give.is_closed());
            let of_host = state.waiting.iter().filter(|waiting| waiting.host == host).count();
            if state.waiting.len() >= self.config.waiting || of_host >= self.config.waiting_of_host {
                return None;
            }
            let (give, given) = oneshot::channel();
            state.waiting.push_back(Waiting { host, task, lacks, since: Instant::now(), give });
            Self::give(self, &mut state);
            given
        };
        timeout(self.config.wait, given).await.ok()?.ok()
    }

    /// Gives what turns are free to those who wait.
    fn give(this: &Arc<Self>, state: &mut State) {
        let turns = this.turns();
        while state.taken < turns {
            let Some(at) = state.next(this.config.patience) else { return };
            let Some(Waiting { host, give, .. }) = state.waiting.remove(at) else { return };
            state.taken += 1;
            *state.of_host.entry(host).or_default() += 1;
            if let Err(mut turn) = give.send(Turn { uplink: Some(Arc::clone(this)), host }) {
                // It left in this moment. Its turn is taken back here, where the lock is held already.
                state.give_back(host);
                turn.uplink = None;
            }
        }
    }

    /// The first `most` of these pieces that were sent least; of equal ones, any.
    pub(super) fn least_sent(&self, task: &TaskId, pieces: &PieceSet, most: usize) -> Vec<PieceNumber> {
        let state = self.state();
        let sent = state.sent.get(task);
        let times = |piece: PieceNumber| sent.and_then(|sent| sent.pieces.get(piece.index())).copied().unwrap_or(0);
        let mut named: Vec<_> = pieces.iter().map(|piece| (times(piece), fastrand::u32(..), piece)).collect();
        drop(state);
        if named.len() > most {
            named.select_nth_unstable(most);
            named.truncate(most);
        }
        named.sort_unstable();
        named.into_iter().map(|(_, _, piece)| piece).collect()
    }

    /// A piece is being sent.
    pub(super) fn count(&self, task: &TaskId, piece: PieceNumber) {
        let mut state = self.state();
        state.uses += 1;
        let now = state.uses;
        if state.sent.len() >= TASKS && !state.sent.contains_key(task) {
            let oldest = state.sent.iter().min_by_key(|(_, sent)| sent.used).map(|(task, _)| *task);
            oldest.and_then(|oldest| state.sent.remove(&oldest));
        }
        let sent = state.sent.entry(*task).or_default();
        sent.used = now;
        if sent.pieces.len() <= piece.index() {
            sent.pieces.resize(piece.index() + 1, 0);
        }
        sent.pieces[piece.index()] = sent.pieces[piece.index()].saturating_add(1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;
    use crate::limit::Limit;

    fn uplink(turns: usize, waiting: usize) -> Arc<Uplink> {
        Uplink::new(UplinkConfig { turns, waiting, ..UplinkConfig::default() }, Limiter::default())
    }

    fn host(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    const TASK: TaskId = TaskId::from_bytes([1; 32]);

    #[tokio::test(start_paused = true)]
    async fn the_next_turn_is_for_the_host_that_has_fewest() {
        let uplink = uplink(2, 16);
        let first = uplink.turn(host(1), TASK, 1).await.unwrap();
        let second = uplink.turn(host(1), TASK, 1).await.unwrap();
        let greedy = tokio::spawn({
            let uplink = Arc::clone(&uplink);
            async move { uplink.turn(host(1), TASK, 1).await.unwrap() }
        });
        tokio::task::yield_now().await;
        let other = tokio::spawn({
            let uplink = Arc::clone(&uplink);
            async move { uplink.turn(host(2), TASK, 1).await.unwrap() }
        });
        tokio::task::yield_now().await;
        drop(first);
        let turn = other.await.unwrap();
        assert_eq!(turn.host, host(2), "though the other came first");
        assert!(!greedy.is_finished());
        drop((turn, second));
        greedy.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn among_equals_it_is_for_the_last_piece_then_for_who_lacks_most_until_another_has_waited_long() {
        let uplink = uplink(1, 16);
        let other_task = TaskId::from_bytes([2; 32]);
        let (given, mut order) = tokio::sync::mpsc::unbounded_channel();
        let wait = |last: u8, task, lacks| {
            let (uplink, given) = (Arc::clone(&uplink), given.clone());
            tokio::spawn(async move {
                let turn = uplink.turn(host(last), task, lacks).await;
                let _ = given.send((last, turn));
            });
        };
        for (patience, expected) in [(Duration::ZERO, [5, 3, 1, 4]), (uplink.config.patience, [1, 3, 4, 5])] {
            let held = uplink.turn(host(9), TASK, 1).await;
            for (last, task, lacks) in [(1, TASK, 2), (3, TASK, 5), (4, other_task, 9), (5, TASK, 1)] {
                wait(last, task, lacks);
                tokio::task::yield_now().await;
            }
            tokio::time::advance(patience).await;
            drop(held);
            for expected in expected {
                let (last, turn) = order.recv().await.unwrap();
                assert_eq!(last, expected, "after {patience:?}");
                drop(turn);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_waits_too_long_or_finds_too_many_waiting_is_told_so() {
        let uplink = uplink(1, 1);
        let held = uplink.turn(host(1), TASK, 1).await.unwrap();
        let waits = tokio::spawn({
            let uplink = Arc::clone(&uplink);
            async move { uplink.turn(host(2), TASK, 1).await.is_some() }
        });
        tokio::task::yield_now().await;
        assert!(uplink.turn(host(3), TASK, 1).await.is_none(), "one waits already");
        assert!(!waits.await.unwrap());
        // Who left does not take the turn with it.
        drop(held);
        assert!(uplink.turn(host(3), TASK, 1).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn under_a_limit_there_are_fewer_turns() {
        let limiter = Limiter::default();
        let uplink = Uplink::new(UplinkConfig::default(), limiter.clone());
        for (rate, turns) in [(1_000_000, 1), (9 << 20, 2), (1 << 30, 4), (0, 4)] {
            limiter.set(Class::Upload, Limit { total: NonZeroU64::new(rate), per_flow: None });
            let mut given = Vec::new();
            while let Some(turn) = uplink.turn(host(given.len() as u8), TASK, 1).await {
                given.push(turn);
            }
            assert_eq!(given.len(), turns, "{rate} bytes a second");
        }
    }

    #[test]
    fn what_was_sent_least_is_named_first() {
        let uplink = uplink(1, 1);
        for piece in [0, 0, 1, 3] {
            uplink.count(&TASK, PieceNumber(piece));
        }
        let named = uplink.least_sent(&TASK, &PieceSet::full(4), 4);
        assert_eq!((named[0], named[3]), (PieceNumber(2), PieceNumber(0)));
        assert_eq!(uplink.least_sent(&TASK, &PieceSet::full(4), 1), [PieceNumber(2)]);
    }
}
