//! What comes at a steady rate, and at what rate it came.

use std::time::Duration;

use damselfly_core::Moment;

/// The span of time whose bytes an idle bucket keeps.
const BURST: Duration = Duration::from_millis(50);

/// The span of time whose bytes a bucket keeps while somebody waits for them: a timer may be late.
const LATENESS: Duration = Duration::from_millis(250);

/// The least that a bucket holds, in bytes.
const LEAST_BURST: u64 = 32 << 10;

/// Over how long the rate of what moved is taken.
const WINDOW: Duration = Duration::from_secs(1);

const NANOS: i128 = 1_000_000_000;

/// How many bytes come in a span of time.
pub(super) fn bytes_in(rate: u64, span: Duration) -> u64 {
    u64::try_from(u128::from(rate) * span.as_nanos() / NANOS.unsigned_abs()).unwrap_or(u64::MAX)
}

/// Bytes that may move, which come at a steady rate.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    rate: u64,
    /// In byte-nanoseconds. Negative where more moved than was there: that has to come first.
    level: i128,
    at: Moment,
}

impl Bucket {
    pub(super) const fn new(rate: u64, now: Moment) -> Self {
        Self { rate, level: 0, at: now }
    }

    pub(super) fn capacity(&self) -> u64 {
        bytes_in(self.rate, BURST).max(LEAST_BURST)
    }

    /// Takes in what has come since the last look. `waited_for` says that somebody waited for it.
    pub(super) fn refill(&mut self, now: Moment, waited_for: bool) {
        let came = i128::from(self.rate) * i128::try_from(now.since(self.at).as_nanos()).unwrap_or(i128::MAX >> 64);
        self.at = self.at.max(now);
        let most = if waited_for { self.capacity().max(bytes_in(self.rate, LATENESS)) } else { self.capacity() };
        // What is there already stays, also if it is more than comes together while nobody waits.
        self.level = (self.level + came).min((i128::from(most) * NANOS).max(self.level));
    }

    /// What has to be there before so many bytes may move. More than it holds never is.
    fn needed(&self, bytes: u64) -> i128 {
        i128::from(bytes.min(self.capacity())) * NANOS
    }

    pub(super) fn has(&self, bytes: u64) -> bool {
        self.level >= self.needed(bytes)
    }

    /// When it has them, if nothing is taken out before.
    pub(super) fn when(&self, bytes: u64) -> Moment {
        let missing = (self.needed(bytes) - self.level).max(0).unsigned_abs();
        let nanos = missing.div_ceil(u128::from(self.rate.max(1)));
        self.at + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    pub(super) fn take(&mut self, bytes: u64) {
        self.level -= i128::from(bytes) * NANOS;
    }

    pub(super) fn give_back(&mut self, bytes: u64) {
        self.level += i128::from(bytes) * NANOS;
    }

    pub(super) fn set_rate(&mut self, rate: u64, now: Moment) {
        self.refill(now, false);
        self.rate = rate;
        self.level = self.level.min(i128::from(self.capacity()) * NANOS);
    }
}

/// How many bytes moved a second, over the last whole window and the one under way.
#[derive(Debug, Default)]
pub(super) struct RateMeter {
    since: Moment,
    bytes: u64,
    before: u64,
}

impl RateMeter {
    pub(super) fn add(&mut self, now: Moment, bytes: u64) {
        self.turn(now);
        self.bytes += bytes;
    }

    pub(super) fn rate(&mut self, now: Moment) -> u64 {
        self.turn(now);
        let span = WINDOW + now.since(self.since);
        let bytes = u128::from(self.before) + u128::from(self.bytes);
        u64::try_from(bytes * NANOS.unsigned_abs() / span.as_nanos()).unwrap_or(u64::MAX)
    }

    fn turn(&mut self, now: Moment) {
        let elapsed = now.since(self.since);
        if elapsed >= WINDOW {
            self.before = if elapsed < 2 * WINDOW { self.bytes } else { 0 };
            self.bytes = 0;
            self.since = if elapsed < 2 * WINDOW { self.since + WINDOW } else { now };
        }
    }
}
