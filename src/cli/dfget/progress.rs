//! What a waiting person sees: a bar on a terminal, nothing elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

const KNOWN: &str = "{bytes:>11} / {total_bytes:<11} [{bar:30}] {bytes_per_sec:>13}  {eta} left";
const UNKNOWN: &str = "{bytes:>11} {spinner} {bytes_per_sec:>13}";

/// The progress of one download.
pub(super) struct Progress {
    bar: ProgressBar,
    verbose: bool,
    begun: Instant,
}

impl Progress {
    pub(super) fn new(quiet: bool, verbose: bool) -> Self {
        let shown = !quiet && std::io::stderr().is_terminal();
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { bar: ProgressBar::with_draw_target(None, target), verbose, begun: Instant::now() }
    }

    /// An attempt begins; `total` bytes are expected, if that is known.
    pub(super) fn begin(&self, total: Option<u64>) {
        self.bar.reset();
        let template = if total.is_some() { KNOWN } else { UNKNOWN };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        match total {
            Some(total) => self.bar.set_length(total),
            None => self.bar.unset_length(),
        }
    }

    pub(super) fn at(&self, bytes: u64) {
        self.bar.set_position(bytes);
    }

    /// Says something, above the bar if there is one.
    pub(super) fn say(&self, text: &str) {
        self.bar.suspend(|| eprintln!("dfget: {text}"));
    }

    /// Says something to those who want to know.
    pub(super) fn detail(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            self.say(&text());
        }
    }

    pub(super) fn done(&self, bytes: u64) {
        self.bar.finish_and_clear();
        let took = self.begun.elapsed().max(Duration::from_millis(1));
        let rate = bytes as f64 / took.as_secs_f64();
        self.detail(|| {
            format!("{} in {:.1} s, {}/s", BinaryBytes(bytes), took.as_secs_f64(), BinaryBytes(rate as u64))
        });
    }
}
