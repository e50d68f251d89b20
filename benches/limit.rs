//! How exactly limits of bandwidth are kept on a real clock: four transfers of one task that do nothing but ask for bytes, at
//! three rates. Prints what moved against what may, and the processor time that the limit took.
//!
//!     cargo bench --bench limit

use std::num::NonZeroU64;
use std::time::Duration;

use damselfly::limit::{Class, Limit, Limiter, Priority};
use tokio::time::{Instant, timeout_at};

/// How long each rate is measured.
const SPAN: Duration = Duration::from_secs(5);

const TRANSFERS: usize = 4;

/// The most that one transfer moves at once, like the transport.
const BUFFER: u64 = 1 << 20;

#[tokio::main]
async fn main() {
    println!("bytes a second |       moved |  error | cpu");
    for rate in [1_000_000, 100_000_000, 2_000_000_000] {
        let limiter = Limiter::default();
        limiter.set(Class::Download, Limit { total: NonZeroU64::new(rate), per_flow: None });
        let flow = limiter.flow(Priority::default());
        let (before, begun) = (processor_time(), Instant::now());
        let transfer = |_| {
            let flow = flow.clone();
            tokio::spawn(async move {
                let mut moved = 0;
                loop {
                    let bytes = flow.at_most(&[Class::Download], BUFFER);
                    if timeout_at(begun + SPAN, flow.take(Class::Download, bytes)).await.is_err() {
                        return moved;
                    }
                    moved += bytes;
                }
            })
        };
        let mut moved = 0;
        for transfer in (0..TRANSFERS).map(transfer).collect::<Vec<_>>() {
            moved += transfer.await.unwrap_or_default();
        }
        let may = rate as f64 * begun.elapsed().as_secs_f64();
        let error = (moved as f64 / may - 1.0) * 100.0;
        let cpu = (processor_time() - before) / SPAN.as_secs_f64() * 100.0;
        println!("{rate:>14} | {moved:>11} | {error:>5.2}% | {cpu:.1}%");
    }
}

/// The processor time of this process in seconds.
fn processor_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}
