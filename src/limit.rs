//! Byte-rate limits: `download.bandwidthLimit`, `download.backToSourceBandwidthLimit`, `upload.bandwidthLimit`.
//!
//! Whoever is about to move bytes awaits [`Limiter::take`] first. All takers share one line in time: each take moves the
//! line's end by what its bytes cost at the rate, and waits until that end is no more than the burst ahead of now.
//! **Over any span the bytes taken are at most rate x span + one burst + the largest single take**; nobody is starved,
//! since the line is first come, first served. Dropping a waiting taker gives its bytes' time to nobody.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, sleep_until};

/// What may be moved at once after a pause, in time at full rate.
const BURST: Duration = Duration::from_millis(100);

/// Something that lets bytes through no faster than it should.
#[async_trait]
pub trait Limit: Send + Sync {
    /// Returns when `bytes` more may be moved.
    async fn take(&self, bytes: u64);
}

/// A rate, shared by its clones; or no limit.
#[derive(Clone, Debug, Default)]
pub struct Limiter(Option<Arc<Line>>);

#[derive(Debug)]
struct Line {
    /// Bytes a second.
    rate: NonZeroU64,
    /// When all bytes taken so far will have been paid for; `None` before the first.
    end: Mutex<Option<Instant>>,
}

impl Limiter {
    /// `rate` bytes a second; without a rate there is no limit.
    pub fn new(rate: Option<NonZeroU64>) -> Self {
        Self(rate.map(|rate| Arc::new(Line { rate, end: Mutex::new(None) })))
    }
}

impl Line {
    /// Takes a place in the line: when its bytes may be moved.
    fn enter(&self, bytes: u64, now: Instant) -> Instant {
        let cost = Duration::from_secs_f64(bytes as f64 / self.rate.get() as f64);
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let paid = end.map_or(now, |end| end.max(now)) + cost;
        *end = Some(paid);
        // The rate is kept in the long run; a take waits for those before it, less the burst.
        paid.checked_sub(cost.max(BURST)).unwrap_or(now)
    }
}

#[async_trait]
impl Limit for Limiter {
    async fn take(&self, bytes: u64) {
        if let Some(line) = &self.0 {
            let now = Instant::now();
            let when = line.enter(bytes, now);
            if when > now {
                sleep_until(when).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn limiter(rate: u64) -> Limiter {
        Limiter::new(NonZeroU64::new(rate))
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_rate_nothing_waits() {
        let begin = Instant::now();
        for _ in 0..1000 {
            limiter(0).take(1 << 40).await;
        }
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_kept_whatever_the_size_of_a_take() {
        for size in [1500, 64 << 10, MIB, 8 * MIB] {
            let (limiter, begin) = (limiter(10 * MIB), Instant::now());
            let mut moved = 0;
            while moved < 100 * MIB {
                limiter.take(size).await;
                moved += size;
            }
            let seconds = begin.elapsed().as_secs_f64();
            let least = (moved - size) as f64 / (10 * MIB) as f64 - BURST.as_secs_f64() - 0.01;
            assert!((least..=10.1).contains(&seconds), "{size}: {seconds} s, at least {least}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn clones_share_the_rate() {
        let (limiter, begin) = (limiter(MIB), Instant::now());
        let takers: Vec<_> = (0..4)
            .map(|_| {
                let limiter = limiter.clone();
                tokio::spawn(async move {
                    for _ in 0..16 {
                        limiter.take(MIB / 8).await;
                    }
                })
            })
            .collect();
        for taker in takers {
            taker.await.unwrap();
        }
        let seconds = begin.elapsed().as_secs_f64();
        assert!((7.7..=8.1).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_saves_up_no_more_than_a_burst() {
        let limiter = limiter(MIB);
        limiter.take(MIB).await;
        tokio::time::sleep(Duration::from_secs(100)).await;
        let begin = Instant::now();
        for _ in 0..64 {
            limiter.take(MIB / 16).await;
        }
        let seconds = begin.elapsed().as_secs_f64();
        assert!((3.7..=4.0).contains(&seconds), "{seconds}");
    }
}
