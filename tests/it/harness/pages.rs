//! What an origin has at a path, and how it misbehaves there.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

/// How the end of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Length,
    Chunked,
    Close,
}

/// What is done with a request.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// The body is sent.
    Content,
    /// Nothing is answered, ever.
    Silent,
    /// The request's own body is sent back.
    Echo,
    /// A WebSocket handshake, then every byte is sent back.
    Upgrade,
}

/// A page of an origin.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    pub(crate) kind: Kind,
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
    pub(crate) framing: Framing,
    pub(crate) ranges: bool,
    pub(crate) gate: Option<Gate>,
    pub(crate) cut_after: Option<usize>,
    pub(crate) pace: Option<(usize, Duration)>,
    pub(crate) authorization: Option<String>,
    pub(crate) by_header: Option<(String, Vec<(String, Bytes)>)>,
}

impl Page {
    /// A file as any web server has it: length, ranges, an ETag made of the content.
    pub(crate) fn file(body: Bytes) -> Self {
        let etag = format!("\"{}\"", &super::sha256_hex(&body)[..16]);
        Self::plain(body).header("ETag", &etag).header("Content-Type", "application/octet-stream").with_ranges()
    }

    /// A body without validators and ranges.
    pub(crate) fn plain(body: impl Into<Bytes>) -> Self {
        Self {
            kind: Kind::Content,
            status: 200,
            headers: Vec::new(),
            body: body.into(),
            framing: Framing::Length,
            ranges: false,
            gate: None,
            cut_after: None,
            pace: None,
            authorization: None,
            by_header: None,
        }
    }

    pub(crate) fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    pub(crate) fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Adds a header line; the same name may come again.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Takes every line of a header away.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(own, _)| !own.eq_ignore_ascii_case(name));
        self
    }

    pub(crate) fn with_ranges(mut self) -> Self {
        self.ranges = true;
        self.header("Accept-Ranges", "bytes")
    }

    pub(crate) fn without_ranges(mut self) -> Self {
        self.ranges = false;
        self.without("Accept-Ranges")
    }

    pub(crate) fn framing(mut self, framing: Framing) -> Self {
        self.framing = framing;
        self
    }

    /// Sends of each body only as much as the gate lets through.
    pub(crate) fn gate(mut self, gate: &Gate) -> Self {
        self.gate = Some(gate.clone());
        self
    }

    /// Drops the connection after so many bytes of a body.
    pub(crate) fn cut_after(mut self, bytes: usize) -> Self {
        self.cut_after = Some(bytes);
        self
    }

    /// Sends slices of this size with a pause after each.
    pub(crate) fn pace(mut self, slice: usize, pause: Duration) -> Self {
        self.pace = Some((slice, pause));
        self
    }

    /// Answers 401 to whoever does not bring this `Authorization`.
    pub(crate) fn authorization(mut self, value: &str) -> Self {
        self.authorization = Some(value.into());
        self
    }

    /// Sends another body for each value of a request header, and says so in `Vary`.
    pub(crate) fn by_header(self, name: &str, bodies: &[(&str, &Bytes)]) -> Self {
        let mut page = self.header("Vary", name);
        let bodies = bodies.iter().map(|&(value, body)| (value.to_string(), body.clone())).collect();
        page.by_header = Some((name.into(), bodies));
        page
    }

    /// The first line of a header of the answer.
    pub(crate) fn line(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// Holds back the bytes of a body until the test lets them go.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    allowed: watch::Sender<usize>,
}

impl Gate {
    /// Lets the first `bytes` of each body through.
    pub(crate) fn at(bytes: usize) -> Self {
        Self { allowed: watch::Sender::new(bytes) }
    }

    /// Lets everything through from now on.
    pub(crate) fn open(&self) {
        self.allowed.send_replace(usize::MAX);
    }

    /// Waits until byte `at` may pass; tells up to which byte it may go on.
    pub(crate) async fn pass(&self, at: usize) -> usize {
        let mut allowed = self.allowed.subscribe();
        // The sender lives as long as this gate.
        allowed.wait_for(|&allowed| allowed > at).await.map_or(usize::MAX, |allowed| *allowed)
    }
}
