//! One line and a few counts for every request, written when its answer has ended, however it ended.
//!
//! **No credentials:** a line has the method, host and path; never a query, a user, or a header's value.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use damselfly_core::TaskId;
use http::uri::Authority;
use http::{Method, StatusCode, Uri};

use super::bypass::Bypass;
use super::metrics::Metrics;
use super::route::Label;
use crate::p2p::Traffic;

/// The most bytes of a path that are logged.
const MAX_PATH: usize = 1024;

/// What is noted of a request whose client left before it had an answer.
fn left() -> StatusCode {
    StatusCode::from_u16(499).unwrap_or(StatusCode::REQUEST_TIMEOUT)
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// All of it was handed to the connection.
    Complete,
    /// It broke off after its head.
    Broken,
    /// The client left before.
    Left,
}

/// What is known of one request. Dropping it writes the line.
#[derive(Debug)]
pub(super) struct Record {
    metrics: Arc<Metrics>,
    started: Instant,
    method: Method,
    host: String,
    path: String,
    route: Label,
    bypass: Option<Bypass>,
    status: StatusCode,
    bytes: u64,
    task: Option<(TaskId, Arc<Traffic>)>,
    end: End,
}

impl Record {
    /// A request that begins.
    pub(super) fn begin(metrics: &Arc<Metrics>, method: &Method, uri: &Uri) -> Self {
        metrics.in_flight.inc();
        let mut record = Self {
            metrics: metrics.clone(),
            started: Instant::now(),
            method: method.clone(),
            host: String::new(),
            path: String::new(),
            route: Label::Reject,
            bypass: None,
            status: left(),
            bytes: 0,
            task: None,
            end: End::Left,
        };
        record.aim(uri);
        record
    }

    /// Where the request really goes.
    pub(super) fn aim(&mut self, uri: &Uri) {
        let host = uri.authority().map_or("", Authority::as_str);
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        // A URI's path is ASCII save in rare cases; a cut inside a character must not panic.
        let path = String::from_utf8_lossy(&uri.path().as_bytes()[..uri.path().len().min(MAX_PATH)]);
        if self.host != host {
            host.clone_into(&mut self.host);
        }
        if self.path != path {
            self.path = path.into_owned();
        }
    }

    /// The way the request goes.
    pub(super) const fn route(&mut self, route: Label) {
        self.route = route;
    }

    /// Why the answer is not a task's.
    pub(super) const fn bypasses(&mut self, why: Bypass) {
        self.bypass = Some(why);
    }

    /// The answer's status.
    pub(super) const fn answered(&mut self, status: StatusCode) {
        self.status = status;
    }

    /// The answer is this task's.
    pub(super) fn serves(&mut self, task: TaskId, traffic: Arc<Traffic>) {
        self.task = Some((task, traffic));
        self.bypass = None;
    }

    /// Whether the answer is a task's.
    pub(super) const fn is_of_task(&self) -> bool {
        self.task.is_some()
    }

    /// So many more bytes of the answer were handed to the connection.
    pub(super) const fn sent(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// How the answer ended.
    pub(super) const fn ended(&mut self, end: End) {
        self.end = end;
    }

    const fn class(&self) -> &'static str {
        match self.status.as_u16() / 100 {
            1 => "1xx",
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        }
    }

    /// Bytes from source, from peers, and from this host's own disk.
    fn origins(&self) -> (u64, u64, u64) {
        match &self.task {
            Some((_, traffic)) => (
                traffic.source.load(Ordering::Relaxed),
                traffic.remote.load(Ordering::Relaxed),
                traffic.local.load(Ordering::Relaxed),
            ),
            None => (self.bytes, 0, 0),
        }
    }

    fn count(&self, source: u64, remote: u64, local: u64) {
        let metrics = &self.metrics;
        metrics.in_flight.dec();
        let route = ("route", self.route.as_str());
        metrics.requests.get_or_create(&[route, ("status", self.class())]).inc();
        metrics.seconds.get_or_create(&[route]).observe(self.started.elapsed().as_secs_f64());
        if self.end == End::Broken {
            metrics.broken.inc();
        }
        if self.task.is_none() {
            metrics.forwarded.inc_by(self.bytes);
            if let Some(why) = self.bypass {
                metrics.bypass(why, &self.host, self.bytes);
            }
            return;
        }
        for (origin, bytes) in [("back_to_source", source), ("remote_peer", remote), ("local_peer", local)] {
            metrics.traffic.get_or_create(&[("type", origin)]).inc_by(bytes);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let (source, remote, local) = self.origins();
        self.count(source, remote, local);
        let end = match self.end {
            End::Complete => "complete",
            End::Broken => "broken",
            End::Left => "left",
        };
        tracing::info!(
            target: "access",
            method = %self.method,
            host = %self.host,
            path = %self.path,
            route = self.route.as_str(),
            why = self.bypass.map(Bypass::as_str),
            status = self.status.as_u16(),
            bytes = self.bytes,
            source,
            remote,
            local,
            ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            task = self.task.as_ref().map(|(task, _)| tracing::field::display(task)),
            end,
        );
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Mutex;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What is logged meanwhile on this thread.
    pub(in crate::proxy) fn lines_of(act: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, act);
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_line_says_what_happened_and_nothing_secret() {
        let line = lines_of(|| {
            let uri = format!("http://user:secret@a:81/{}?token=secret", "p".repeat(2 * MAX_PATH)).parse().unwrap();
            let mut record = Record::begin(&Arc::default(), &Method::GET, &uri);
            record.route(Label::Task);
            record.answered(StatusCode::PARTIAL_CONTENT);
            record.sent(7);
            let traffic = Traffic::default();
            traffic.remote.fetch_add(5, Ordering::Relaxed);
            record.serves(TaskId::from_bytes([0xab; 32]), Arc::new(traffic));
            record.ended(End::Complete);
        });
        for want in [
            "access: method=GET host=a:81 path=/ppp",
            " route=\"task\" status=206 bytes=7 source=0 remote=5 local=0 ms=",
            &format!(" task={} end=\"complete\"", "ab".repeat(32)),
        ] {
            assert!(line.contains(want), "{want} in {line}");
        }
        assert!(!line.contains("secret") && !line.contains("user") && line.len() < 2 * MAX_PATH, "{line}");
    }
}
