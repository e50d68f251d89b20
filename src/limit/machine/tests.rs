use std::num::NonZeroU64;

use super::*;

const MB: u64 = 1_000_000;

fn at(millis: u64) -> Moment {
    Moment::after_start(Duration::from_millis(millis))
}

fn limit(total: u64, per_flow: u64) -> Limit {
    Limit { total: NonZeroU64::new(total), per_flow: NonZeroU64::new(per_flow) }
}

/// Flows that always want more, each with so many requests of so many bytes at a time.
struct Hungry {
    shaper: Shaper,
    now: Moment,
    flows: Vec<(FlowKey, Priority, usize, u64)>,
    waiting: BTreeMap<Ticket, usize>,
    moved: Vec<u64>,
}

impl Hungry {
    fn new(limit: Limit, flows: &[(u8, usize, u64)]) -> Self {
        let flows = flows.iter().enumerate();
        let flows = flows
            .map(|(at, (level, streams, bytes))| (FlowKey(at as u64), Priority::new(*level).unwrap(), *streams, *bytes))
            .collect::<Vec<_>>();
        let moved = vec![0; flows.len()];
        let shaper = Shaper::new(limit, Moment::START);
        let mut hungry = Self { shaper, now: Moment::START, flows, waiting: BTreeMap::new(), moved };
        for flow in 0..hungry.flows.len() {
            for _ in 0..hungry.flows[flow].2 {
                hungry.ask(flow);
            }
        }
        hungry
    }

    fn ask(&mut self, flow: usize) {
        let (key, priority, _, bytes) = self.flows[flow];
        while self.shaper.request(self.now, key, priority, bytes) == Requested::Granted {
            self.moved[flow] += bytes;
        }
        self.waiting.insert(Ticket(self.shaper.tickets - 1), flow);
    }

    /// Runs until `end`; whoever has his bytes asks for more at once.
    fn run(&mut self, end: Moment) {
        while let Some(deadline) = self.shaper.deadline().filter(|deadline| *deadline <= end) {
            self.now = self.now.max(deadline);
            while let Some(ticket) = self.shaper.poll(self.now) {
                let flow = self.waiting.remove(&ticket).unwrap();
                self.moved[flow] += self.flows[flow].3;
                self.ask(flow);
            }
        }
        self.now = end;
    }

    fn total(&self) -> u64 {
        self.moved.iter().sum()
    }
}

fn within(value: u64, want: u64, percent: u64) -> bool {
    value.abs_diff(want) * 100 <= want * percent
}

#[test]
fn rates_are_kept_over_any_span() {
    for rate in [MB, 3 * MB + 7, 100 * MB, 2_000 * MB] {
        for bytes in [1, 1448, 16 << 10, 256 << 10, 1 << 20] {
            if bytes * 100_000 < rate {
                continue;
            }
            let mut hungry = Hungry::new(limit(rate, 0), &[(6, 1, bytes)]);
            let mut before = 0;
            for second in 1..=4 {
                hungry.run(at(second * 1000));
                let moved = hungry.total() - before;
                before = hungry.total();
                assert!(moved <= rate + rate / 20 + bytes, "{rate} {bytes}: {moved} in second {second}");
            }
            // Never more than the rate and what moves at once, and no rounding loses anything.
            assert!(before <= rate * 4 + bytes && before + 2 * bytes >= rate * 4, "{rate} {bytes}: {before}");
        }
    }
}

#[test]
fn an_idle_class_saves_no_more_than_a_burst() {
    let mut shaper = Shaper::new(limit(MB, 0), Moment::START);
    let mut moved = 0;
    while shaper.request(at(3_600_000), FlowKey(1), Priority::default(), 1000) == Requested::Granted {
        moved += 1000;
    }
    assert_eq!(moved, 50_000);
}

#[test]
fn flows_share_equally_however_many_transfers_they_have() {
    let mut hungry = Hungry::new(limit(10 * MB, 0), &[(6, 1, 16 << 10), (6, 8, 16 << 10), (6, 2, 64 << 10)]);
    hungry.run(at(3000));
    for moved in &hungry.moved {
        assert!(within(*moved, 10 * MB, 3), "{:?}", hungry.moved);
    }
}

#[test]
fn a_higher_priority_passes_and_starves_nobody() {
    let mut hungry = Hungry::new(limit(16 * MB, 0), &[(6, 2, 16 << 10), (3, 2, 16 << 10), (0, 2, 16 << 10)]);
    hungry.run(at(4000));
    assert!(within(hungry.moved[0], 60 * MB, 3), "{:?}", hungry.moved);
    assert!(within(hungry.moved[1], 2 * MB, 10) && within(hungry.moved[2], 2 * MB, 10), "{:?}", hungry.moved);
    // As soon as it is done the others have all of it.
    let (key, ..) = hungry.flows[0];
    let gone: Vec<Ticket> = hungry.waiting.iter().filter(|(_, flow)| **flow == 0).map(|(t, _)| *t).collect();
    for ticket in gone {
        assert!(hungry.shaper.cancel(hungry.now, key, ticket, false));
    }
    let before = hungry.moved.clone();
    hungry.run(at(8000));
    assert!(within(hungry.moved[1] - before[1], 60 * MB, 3), "{:?}", hungry.moved);
}

#[test]
fn a_flow_that_was_idle_has_saved_no_turns() {
    let mut hungry = Hungry::new(limit(MB, 0), &[(6, 1, 16 << 10), (6, 1, 16 << 10)]);
    let (key, ..) = hungry.flows[1];
    let ticket = *hungry.waiting.iter().find(|(_, flow)| **flow == 1).unwrap().0;
    hungry.shaper.cancel(hungry.now, key, ticket, false);
    hungry.waiting.remove(&ticket);
    hungry.run(at(10_000));
    let before = hungry.moved.clone();
    hungry.ask(1);
    hungry.run(at(20_000));
    assert!(within(hungry.moved[0] - before[0], 5 * MB, 3), "{:?}", hungry.moved);
}

#[test]
fn each_flow_has_its_own_limit_beneath_the_classes() {
    let mut hungry = Hungry::new(limit(10 * MB, 2 * MB), &[(6, 4, 16 << 10), (3, 1, 16 << 10)]);
    hungry.run(at(4000));
    for moved in &hungry.moved {
        assert!(within(*moved, 8 * MB, 3), "{:?}", hungry.moved);
    }
    let mut hungry = Hungry::new(limit(0, 2 * MB), &[(6, 4, 16 << 10), (6, 1, 16 << 10), (6, 1, 16 << 10)]);
    hungry.run(at(4000));
    assert!(hungry.moved.iter().all(|moved| within(*moved, 8 * MB, 3)), "{:?}", hungry.moved);
}

#[test]
fn another_limit_holds_at_once_for_those_who_wait() {
    let mut hungry = Hungry::new(limit(MB, 0), &[(6, 2, 16 << 10)]);
    hungry.run(at(2000));
    let slow = hungry.total();
    hungry.shaper.set_limit(hungry.now, limit(50 * MB, 0));
    hungry.run(at(4000));
    assert!(within(hungry.total() - slow, 100 * MB, 3), "{} {}", slow, hungry.total());
    hungry.shaper.set_limit(hungry.now, limit(0, 0));
    let mut given = 0;
    while hungry.shaper.poll(hungry.now).is_some() {
        given += 1;
    }
    assert_eq!((given, hungry.shaper.waiting()), (2, 0), "without a limit nobody waits");
}

#[test]
fn who_leaves_owes_what_has_moved_and_nothing_else() {
    let mut shaper = Shaper::new(limit(MB, 0), Moment::START);
    let ask = |shaper: &mut Shaper, bytes| {
        let Requested::Queued(ticket) = shaper.request(Moment::START, FlowKey(1), Priority::default(), bytes) else {
            panic!("the bucket is empty at first")
        };
        ticket
    };
    let first = ask(&mut shaper, 20_000);
    let second = ask(&mut shaper, 20_000);
    assert_eq!(shaper.deadline(), Some(at(20)));
    assert!(shaper.cancel(Moment::START, FlowKey(1), first, true));
    assert!(!shaper.cancel(Moment::START, FlowKey(1), first, true), "once");
    assert_eq!(shaper.deadline(), Some(at(40)), "the first one's bytes have moved");
    assert_eq!(shaper.poll(at(40)), Some(second));
    shaper.give_back(FlowKey(1), 20_000);
    assert_eq!(shaper.request(at(40), FlowKey(1), Priority::default(), 20_000), Requested::Granted);
    assert!(shaper.flows.len() <= 1 && shaper.waiting() == 0);
}

#[test]
fn more_than_a_bucket_holds_may_move_and_is_paid_for_afterwards() {
    let mut hungry = Hungry::new(limit(MB, 0), &[(6, 1, 400 << 10)]);
    hungry.run(at(20_000));
    assert!(hungry.total() <= 20 * MB + (400 << 10) && within(hungry.total(), 20 * MB, 3), "{}", hungry.total());
}

#[test]
fn a_late_timer_loses_nothing_while_somebody_waits() {
    let mut shaper = Shaper::new(limit(MB, 0), Moment::START);
    let (mut moved, mut now) = (0, 0);
    let mut ticket = shaper.request(at(0), FlowKey(1), Priority::default(), 16_000);
    while now < 10_000 {
        now += 200;
        while let Requested::Queued(waiting) = ticket {
            if shaper.poll(at(now)) != Some(waiting) {
                break;
            }
            moved += 16_000;
            ticket = shaper.request(at(now), FlowKey(1), Priority::default(), 16_000);
        }
        while ticket == Requested::Granted {
            moved += 16_000;
            ticket = shaper.request(at(now), FlowKey(1), Priority::default(), 16_000);
        }
    }
    assert!(within(moved, 10 * MB, 3), "{moved}");
}

#[test]
fn what_moves_is_measured() {
    let mut hungry = Hungry::new(limit(10 * MB, 0), &[(6, 1, 16 << 10)]);
    hungry.run(at(5500));
    assert!(within(hungry.shaper.rate(hungry.now), 10 * MB, 3));
    assert_eq!(hungry.shaper.rate(at(20_000)), 0);
}

#[test]
fn idle_flows_are_forgotten() {
    let mut shaper = Shaper::new(limit(1000 * MB, 0), Moment::START);
    for key in 1..10_000 {
        assert_eq!(shaper.request(at(key), FlowKey(key), Priority::default(), 1000), Requested::Granted);
        assert!(shaper.flows.len() <= MANY_FLOWS);
    }
}
