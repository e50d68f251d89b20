//! What SIGHUP changes of a running daemon.

use damselfly_runtime::{Hangups, telemetry};

use crate::config::{self, File, Flags};
use crate::limit::Limiter;

/// Reads the configuration again at each SIGHUP, and takes over what can be taken over: what is logged, and the limits of
/// bandwidth, also where they were set otherwise meanwhile. A configuration with a mistake changes nothing.
pub(super) async fn at_hangup(mut hangups: Hangups, flags: Flags, mut running: File, limiter: Limiter) {
    loop {
        hangups.next().await;
        match config::load(&flags) {
            Ok(loaded) => {
                limiter.set_all(&loaded.config.limits);
                running.take_limits(&loaded.effective);
                take_over(&mut running, &loaded.effective);
            }
            Err(error) => tracing::error!(%error, "SIGHUP: the configuration has a mistake, nothing is changed"),
        }
    }
}

fn take_over(running: &mut File, read: &File) {
    if running.log.level != read.log.level {
        match telemetry::set_filter(&read.log.level) {
            Ok(()) => running.log.level.clone_from(&read.log.level),
            Err(error) => tracing::error!(%error, "SIGHUP: log.level cannot be changed"),
        }
    }
    if running == read {
        tracing::info!(log_level = running.log.level, "SIGHUP: the configuration was read again");
    } else {
        tracing::warn!(
            "SIGHUP: keys other than log.level and the limits of bandwidth have changed: they need a restart"
        );
    }
}
