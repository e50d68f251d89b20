//! One authorisation service: how many questions it takes at a time, and whether it wants to be left alone.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::tokens::TokenAnswer;

/// How long a service may ask to be left alone; longer is taken for this.
pub(super) const MAX_HOLD: Duration = Duration::from_secs(24 * 3600);
/// How long it is left alone when it does not say, and twice as long each time that it says so again.
const HOLD: Duration = Duration::from_secs(1);
/// The longest of these.
const MAX_BACKOFF: Duration = Duration::from_secs(32);

/// One token service.
pub(super) struct Realm {
    pub(super) slots: Semaphore,
    hold: Mutex<Hold>,
}

impl Realm {
    /// Takes this many questions at a time.
    pub(super) fn new(slots: usize) -> Self {
        Self { slots: Semaphore::new(slots), hold: Mutex::default() }
    }

    pub(super) fn hold(&self) -> MutexGuard<'_, Hold> {
        self.hold.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a token service wants to be left alone.
#[derive(Default)]
pub(super) struct Hold {
    /// Until when, and how it said so.
    said: Option<(Instant, TokenAnswer)>,
    /// When it said so first since its last good answer.
    since: Option<Instant>,
    /// How often it said so since, without saying for how long.
    unsaid: u32,
}

impl Hold {
    /// Until when it is to be left alone, and what those are told who do not wait so long.
    pub(super) fn at(&self, now: Instant) -> Option<(Instant, TokenAnswer)> {
        self.said.as_ref().filter(|(until, _)| *until > now).cloned()
    }

    /// Whether its last answer was that it wants to be left alone.
    pub(super) const fn is_in_doubt(&self) -> bool {
        self.said.is_some()
    }

    /// Takes note of an answer to a question that was sent at `sent`.
    pub(super) fn note(&mut self, answer: &TokenAnswer, sent: Instant, now: Instant) {
        let until = match (answer.status, retry_after(&answer.headers)) {
            (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, Some(wait)) => {
                now + wait.clamp(HOLD, MAX_HOLD)
            }
            (StatusCode::TOO_MANY_REQUESTS, None) => {
                // What was sent before it said so the last time says nothing new.
                if self.said.as_ref().is_some_and(|_| self.since.is_some_and(|since| sent < since)) {
                    return;
                }
                let wait = HOLD.saturating_mul(1 << self.unsaid.min(16)).min(MAX_BACKOFF);
                self.unsaid += 1;
                now + wait
            }
            _ => {
                *self = Self::default();
                return;
            }
        };
        self.since = Some(now);
        self.said = Some((until, answer.clone()));
    }
}

/// What `Retry-After` says: a number of seconds, or a date, by the clock of the one who wrote it (RFC 9110, 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::trim);
    let date = |name| text(name).and_then(|text| httpdate::parse_http_date(text).ok());
    if let Ok(seconds) = text(header::RETRY_AFTER)?.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let now = date(header::DATE).unwrap_or_else(SystemTime::now);
    Some(date(header::RETRY_AFTER)?.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_says_in_seconds_or_by_a_date_when_to_come_again() {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        for (after, wait) in [
            ("120", Some(120)),
            ("Sun, 06 Nov 1994 08:59:37 GMT", Some(600)),
            ("Sun, 06 Nov 1994 08:39:37 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            let headers = [(header::RETRY_AFTER, after.parse().unwrap()), (header::DATE, date.parse().unwrap())];
            assert_eq!(retry_after(&HeaderMap::from_iter(headers)), wait.map(Duration::from_secs), "{after}");
        }
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    fn answer(status: u16, after: Option<&'static str>) -> TokenAnswer {
        let headers = after.map(|after| (header::RETRY_AFTER, HeaderValue::from_static(after)));
        TokenAnswer::new(StatusCode::from_u16(status).unwrap(), headers.into_iter().collect(), Default::default())
    }

    #[test]
    fn who_does_not_say_how_long_is_left_alone_longer_each_time() {
        let mut hold = Hold::default();
        let mut now = Instant::now();
        let waits: Vec<u64> = (0..8)
            .map(|_| {
                let sent = now;
                now += Duration::from_millis(10);
                hold.note(&answer(429, None), sent, now);
                // What was under way meanwhile changes nothing.
                hold.note(&answer(429, None), sent, now);
                let (until, _) = hold.at(now).unwrap();
                let wait = until - now;
                now = until;
                assert!(hold.at(now).is_none() && hold.is_in_doubt());
                wait.as_secs()
            })
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 32, 32]);
        hold.note(&answer(200, None), now, now);
        assert!(!hold.is_in_doubt());
        for (status, after, wait) in [(429, Some("7"), 7), (503, Some("9"), 9), (429, None, 1), (429, Some("0"), 1)] {
            hold.note(&answer(status, after), now, now);
            assert_eq!(
                hold.at(now).map(|(until, _)| until - now),
                Some(Duration::from_secs(wait)),
                "{status} {after:?}"
            );
        }
        hold.note(&answer(503, None), now, now);
        assert!(hold.at(now).is_none(), "it does not say that it wants to be left alone");
    }
}
