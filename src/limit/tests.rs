//! Transfers that wait, in paused time.

use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;
use damselfly_core::TaskId;
use futures_util::stream;
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, Full, StreamBody};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::*;

const MB: u64 = 1_000_000;

fn limit(total: u64, per_flow: u64) -> Limit {
    Limit { total: NonZeroU64::new(total), per_flow: NonZeroU64::new(per_flow) }
}

fn limiter(class: Class, of: Limit) -> Limiter {
    let limiter = Limiter::default();
    limiter.set(class, of);
    limiter
}

/// Takes bytes for so long as time goes on; says how many.
fn taker(flow: &Flow, class: Class, streams: usize, until: Duration) -> Vec<JoinHandle<u64>> {
    let end = Instant::now() + until;
    let one = |_| {
        let flow = flow.clone();
        tokio::spawn(async move {
            let mut moved = 0;
            loop {
                let bytes = flow.at_most(&[class], 256 << 10);
                if tokio::time::timeout_at(end, flow.take(class, bytes)).await.is_err() || Instant::now() >= end {
                    return moved;
                }
                moved += bytes;
            }
        })
    };
    (0..streams).map(one).collect()
}

async fn sum(tasks: Vec<JoinHandle<u64>>) -> u64 {
    let mut sum = 0;
    for task in tasks {
        sum += task.await.unwrap();
    }
    sum
}

fn assert_within(value: u64, want: u64, percent: u64) {
    assert!(value.abs_diff(want) * 100 <= want * percent, "{value} is not {want} within {percent} %");
}

#[tokio::test(start_paused = true)]
async fn each_rate_is_kept_within_three_percent() {
    for rate in [MB, 100 * MB, 2_000 * MB] {
        for streams in [1, 4] {
            let limiter = limiter(Class::Download, limit(rate, 0));
            let flow = limiter.flow(Priority::default());
            let moved = sum(taker(&flow, Class::Download, streams, Duration::from_secs(3))).await;
            assert_within(moved, 3 * rate, 3);
            assert!(moved <= 3 * rate + rate / 33, "{rate}: {moved}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_class_without_a_limit_makes_nobody_wait_and_counts_nothing() {
    let limiter = limiter(Class::Upload, limit(MB, 0));
    let flow = limiter.flow(Priority::default());
    let begun = Instant::now();
    flow.take(Class::Download, u64::MAX).await;
    assert!(flow.ask(Class::PassThrough, u64::MAX).is_none() && flow.owe(Class::BackToSource, 1 << 40).is_none());
    assert_eq!((begun.elapsed(), flow.held_up()), (Duration::ZERO, Duration::ZERO));
    assert_eq!(flow.at_most(&[Class::Download, Class::BackToSource], 1 << 20), 1 << 20);
    assert_eq!(flow.at_most(&[Class::Download, Class::Upload], 1 << 20), 16 << 10);
    assert_eq!(flow.at_most(&[Class::Upload], 100), 100);
}

#[tokio::test(start_paused = true)]
async fn tasks_share_equally_and_a_higher_priority_goes_first() {
    let limiter = limiter(Class::Download, limit(10 * MB, 0));
    let task = |number, level| limiter.task_flow(&TaskId::from_bytes([number; 32]), Priority::new(level).unwrap());
    let span = Duration::from_secs(4);
    let (one, many) = (task(1, 6), task(2, 6));
    let (one, many) = (taker(&one, Class::Download, 1, span), taker(&many, Class::Download, 8, span));
    assert_within(sum(one).await, 20 * MB, 3);
    assert_within(sum(many).await, 20 * MB, 3);
    let (prefetch, interactive) = (task(3, 3), task(4, 6));
    let prefetch = taker(&prefetch, Class::Download, 8, 2 * span);
    sleep(span).await;
    let interactive = taker(&interactive, Class::Download, 1, span);
    assert_within(sum(interactive).await, 37_600_000, 3);
    assert_within(sum(prefetch).await, 42_400_000, 3);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_becomes_urgent_passes_those_before_it() {
    let limiter = limiter(Class::Download, limit(10 * MB, 0));
    let (late, other) = (limiter.flow(Priority::new(0).unwrap()), limiter.flow(Priority::new(3).unwrap()));
    let span = Duration::from_secs(4);
    let (late_bytes, other) = (taker(&late, Class::Download, 2, span), taker(&other, Class::Download, 2, span));
    sleep(span / 2).await;
    late.set_priority(Priority::HIGHEST);
    assert_within(sum(late_bytes).await, 20 * MB, 3);
    assert_within(sum(other).await, 20 * MB, 3);
}

#[tokio::test(start_paused = true)]
async fn each_task_has_its_own_limit() {
    let limiter = limiter(Class::BackToSource, limit(10 * MB, 2 * MB));
    let (a, b) = (limiter.flow(Priority::default()), limiter.flow(Priority::new(1).unwrap()));
    let span = Duration::from_secs(3);
    let (a, b) = (taker(&a, Class::BackToSource, 3, span), taker(&b, Class::BackToSource, 1, span));
    assert_within(sum(a).await, 6 * MB, 3);
    assert_within(sum(b).await, 6 * MB, 3);
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_changes_holds_for_those_who_wait() {
    let limiter = limiter(Class::Upload, limit(Limit::LEAST, 0));
    let flow = limiter.flow(Priority::default());
    let begun = Instant::now();
    let waits = tokio::spawn(async move { flow.settle(Class::Upload, 10 * MB).await });
    let behind = limiter.flow(Priority::default());
    let behind = tokio::spawn(async move { behind.take(Class::Upload, MB).await });
    sleep(Duration::from_millis(100)).await;
    assert_eq!(limiter.report().iter().map(|report| report.waiting).sum::<usize>(), 2);
    limiter.set(Class::Upload, Limit::default());
    waits.await.unwrap();
    behind.await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(110), "{:?}", begun.elapsed());
    assert!(limiter.report().iter().all(|report| report.waiting == 0 && report.rate.is_none()));
}

#[tokio::test(start_paused = true)]
async fn who_leaves_takes_nothing_along_but_what_has_moved() {
    let limiter = limiter(Class::Download, limit(MB, 0));
    let flow = limiter.flow(Priority::default());
    for _ in 0..8 {
        assert!(timeout(Duration::from_millis(5), flow.take(Class::Download, 400_000)).await.is_err());
    }
    sleep(Duration::from_secs(1)).await;
    // What an idle bucket keeps is there, and nobody has taken any of it.
    assert!(flow.ask(Class::Download, 50_000).is_none());
    assert!(timeout(Duration::from_millis(5), flow.settle(Class::Download, 400_000)).await.is_err());
    let begun = Instant::now();
    flow.take(Class::Download, 10_000).await;
    assert!(begun.elapsed() > Duration::from_millis(390), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn time_that_several_transfers_wait_is_counted_once() {
    let limiter = limiter(Class::Download, limit(MB, 0));
    let flow = limiter.flow(Priority::default());
    sum(taker(&flow, Class::Download, 8, Duration::from_secs(1))).await;
    let held_up = flow.held_up();
    assert!(held_up <= Duration::from_secs(1) && held_up > Duration::from_millis(950), "{held_up:?}");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(flow.held_up(), held_up, "nobody waits");
}

#[tokio::test(start_paused = true)]
async fn bodies_come_in_their_time_and_whole() {
    let limiter = limiter(Class::PassThrough, limit(MB, 0));
    let content: Bytes = (0..3 * MB).map(|at| (at % 251) as u8).collect::<Vec<_>>().into();
    let body =
        LimitedBody::new(Full::new(content.clone()), Some((limiter.flow(Priority::default()), Class::PassThrough)));
    assert_eq!(body.size_hint().exact(), Some(3 * MB));
    let begun = Instant::now();
    assert_eq!(body.collect().await.unwrap().to_bytes(), content);
    assert_within(begun.elapsed().as_millis() as u64, 3000, 3);

    // Many small answers are limited like one large one.
    let begun = Instant::now();
    for _ in 0..200 {
        let flow = limiter.flow(Priority::default());
        let small = LimitedBody::new(Full::new(content.slice(..10_000)), Some((flow, Class::PassThrough)));
        assert_eq!(small.collect().await.unwrap().to_bytes().len(), 10_000);
    }
    assert_within(begun.elapsed().as_millis() as u64, 2000, 3);
}

#[tokio::test(start_paused = true)]
async fn a_body_passes_trailers_errors_and_its_end_on() {
    let limiter = limiter(Class::PassThrough, limit(MB, 0));
    let frames =
        [Ok(Frame::data(Bytes::from_static(&[7; 40_000]))), Ok(Frame::trailers(http::HeaderMap::new())), Err("broken")];
    let body = StreamBody::new(stream::iter(frames));
    let mut body = LimitedBody::new(body, Some((limiter.flow(Priority::default()), Class::PassThrough)));
    let mut lengths = Vec::new();
    let error = loop {
        match body.frame().await.unwrap() {
            Ok(frame) => lengths.push(frame.into_data().map(|data| data.len()).ok()),
            Err(error) => break error,
        }
    };
    assert_eq!((lengths, error), (vec![Some(16 << 10), Some(16 << 10), Some(40_000 - (32 << 10)), None], "broken"));

    let mut left = LimitedBody::new(Full::new(Bytes::from_static(b"x")), None);
    assert_eq!(left.frame().await.unwrap().unwrap().into_data().unwrap(), "x");
    assert!(left.is_end_stream() && left.frame().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn what_is_waited_for_is_counted_by_class() {
    let metrics = Metrics::default();
    let mut registry = prometheus_client::registry::Registry::default();
    metrics.register(&mut registry);
    let limits = Limits { upload: limit(MB, 0), ..Limits::default() };
    let limiter = Limiter::new(&limits, &metrics);
    limiter.flow(Priority::default()).take(Class::Upload, 20_000).await;
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        "dragonfly_client_bandwidth_limit{class=\"upload\"} 1000000",
        "dragonfly_client_bandwidth_limit{class=\"download\"} 0",
        "dragonfly_client_bandwidth_waited_bytes_total{class=\"upload\"} 20000",
        "dragonfly_client_bandwidth_waited_seconds_total{class=\"upload\"} 0.02",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

#[test]
fn names_and_priorities() {
    for class in Class::ALL {
        assert_eq!(class.name().parse(), Ok(class));
    }
    assert!("downloads".parse::<Class>().unwrap_err().contains("back-to-source"));
    assert_eq!("3".parse(), Ok(Priority::new(3).unwrap()));
    assert!(Priority::new(0).unwrap() < Priority::default());
    for bad in ["", "7", "-1", "high"] {
        assert!(bad.parse::<Priority>().is_err(), "{bad}");
    }
}
