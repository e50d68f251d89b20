//! Reading a task's content from its source.
//!
//! Two steps, because between them the driver makes the content file: [`open`] asks and judges the head of the answer,
//! [`copy`] carries the body into the store, piece by piece. Bytes are published as they are written: the source is
//! trusted as far as its TLS is, so readers follow it without waiting for the piece.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use damselfly_core::{ByteRange, PieceDigest, PieceNumber, Validators};
use futures_util::FutureExt as _;
use http::StatusCode;
use http_body_util::BodyExt as _;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::driver::Word;
use super::flight::Flight;
use crate::backend::{Backend, SourceRequest, SourceResponse};
use crate::limit::{Class, Flow};
use crate::net::{Body, NetError};
use crate::storage::{PieceWriter, StoredTask};

/// How much of a body is gathered, while more is at hand without waiting, before it is written: one write a call.
const WRITE_LENGTH: usize = 1 << 20;

/// Why the source is of no use, as far as its answer's head tells.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// No answer.
    Net(NetError),
    /// An answer that is not the content (an error status, say).
    Refused(SourceResponse),
    /// The content, but of unknown length.
    Unsized(SourceResponse),
    /// Another version of the content.
    Changed,
}

/// An answer of the source that carries the content.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) response: SourceResponse,
    /// Where in the content the body starts.
    pub(crate) start: u64,
    /// The whole content's length in bytes.
    pub(crate) total: u64,
}

/// What the answer must agree with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expected {
    pub(crate) validators: Validators,
    pub(crate) length: Option<u64>,
    /// Whether it is a blob of a registry: then a page for people is not it.
    pub(crate) by_digest: bool,
}

/// Asks the source for `range` (everything, if there is none) and judges its answer.
pub(crate) async fn open(
    backend: &Backend,
    request: &SourceRequest,
    range: Option<ByteRange>,
    expected: &Expected,
) -> Result<Opened, Trouble> {
    // Everything is asked without a Range header: that is the plainest request there is.
    let asked = range.filter(|range| range.start() > 0 || expected.length.is_none_or(|length| range.end() < length));
    let span = asked.map(|range| {
        let open_ended = expected.length == Some(range.end()) || range.end() == u64::MAX;
        (range.start(), (!open_ended).then_some(range.end()))
    });
    let validators = expected.validators.is_strong().then_some(&expected.validators);
    let response = backend.get(request, span, validators).await.map_err(Trouble::Net)?;
    judge(response, asked, expected)
}

/// Whether `response`, to a request for `asked`, is the expected content.
#[expect(clippy::result_large_err, reason = "a refused answer goes on to the client, so it is as large either way")]
pub(crate) fn judge(
    response: SourceResponse,
    asked: Option<ByteRange>,
    expected: &Expected,
) -> Result<Opened, Trouble> {
    match response.status {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT if response.may_be_stored() => {}
        StatusCode::RANGE_NOT_SATISFIABLE if asked.is_some() && expected.length.is_some() => {
            return Err(Trouble::Changed);
        }
        _ => return Err(Trouble::Refused(response)),
    }
    if expected.by_digest && response.is_page() {
        return Err(Trouble::Refused(response));
    }
    if !expected.validators.agrees_with(&response.validators()) {
        return Err(Trouble::Changed);
    }
    let Some(span) = response.span() else {
        return Err(Trouble::Unsized(response));
    };
    if expected.length.is_some_and(|length| length != span.total) {
        return Err(Trouble::Changed);
    }
    if response.status == StatusCode::PARTIAL_CONTENT && asked.is_none_or(|asked| asked.start() != span.start) {
        return Err(Trouble::Refused(response));
    }
    Ok(Opened { response, start: span.start, total: span.total })
}

/// How a body ended.
#[derive(Debug)]
pub(crate) enum End {
    /// All that was asked for has come.
    Complete,
    /// It broke off, fell silent or was too short. The piece that it broke off in is there up to that place.
    Cut(String, Option<PieceWriter>),
    /// The store failed.
    Store(std::io::Error),
}

/// News of a body on its way into the store.
#[derive(Debug)]
pub(crate) enum Step {
    /// Bytes were read, so many of them new.
    Progress(u64),
    /// A piece is about to be written.
    Begun(PieceNumber),
    /// A piece is written.
    Piece(PieceNumber, PieceDigest),
}

/// Tells the driver, and the readers' accounts, how a stream gets on.
pub(crate) struct Teller {
    pub(crate) run: u64,
    pub(crate) words: mpsc::Sender<Word>,
    pub(crate) flight: Arc<Flight>,
}

impl Teller {
    async fn tell(&self, step: Step) {
        // Readers may be at this piece before the driver hears of it.
        if let Step::Begun(piece) = step {
            self.flight.provenance().mark_source(piece);
        }
        self.say(Word::Source { run: self.run, step }).await;
    }

    /// Tells how it ended, behind everything else.
    pub(crate) async fn end(&self, end: End) {
        self.say(Word::SourceEnded { run: self.run, end }).await;
    }

    /// Tells that a stream for a reader that is far ahead has ended.
    pub(crate) async fn aside_ended(&self) {
        self.say(Word::AsideEnded { run: self.run }).await;
    }

    async fn say(&self, word: Word) {
        // A driver that does not listen any more has ended, and this work with it.
        let _ = self.words.send(word).await;
    }
}

/// Copies `body`, which starts at `at`, into the store up to `end`, telling each step. The end may come nearer meanwhile.
///
/// `begun` is the writer of the piece that `at` lies in, if a stream before broke off there. A piece that is there
/// already, or that somebody else goes on writing, is skipped. What comes before `asked` is not new.
pub(crate) async fn copy(
    mut body: Chunks,
    at: u64,
    end: &AtomicU64,
    asked: u64,
    begun: Option<PieceWriter>,
    stored: &StoredTask,
    teller: &Teller,
) -> End {
    let mut run = Run { stored, at, asked, writer: begun };
    while run.at < end.load(Ordering::Relaxed) {
        let chunk = match body.next().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return End::Cut(format!("it ended at {} bytes", run.at), run.writer),
            Err(why) => return End::Cut(why, run.writer),
        };
        match run.take(chunk, end, teller).await {
            Ok(new) => teller.tell(Step::Progress(new)).await,
            Err(error) => return End::Store(error),
        }
    }
    End::Complete
}

/// How long a stream waits for a piece that somebody else is writing before it goes on without it.
const CLAIM_WAIT: Duration = Duration::from_secs(3);

/// Claims a piece; `None` if it is there. The machine has one producer a piece, but what it cancelled may still be
/// being written: that is waited for.
pub(super) async fn claim(stored: &StoredTask, piece: PieceNumber) -> Option<PieceWriter> {
    let mut changed = stored.changed();
    loop {
        changed.borrow_and_update();
        if let Some(writer) = stored.claim(piece) {
            return Some(writer);
        }
        // As long as the caller has the task, it changes at the end of every claim.
        if stored.check(piece).await || changed.changed().await.is_err() {
            return None;
        }
    }
}

struct Run<'a> {
    stored: &'a StoredTask,
    at: u64,
    asked: u64,
    writer: Option<PieceWriter>,
}

impl Run<'_> {
    /// Takes a run of bytes; says how many of them were new. A source that ignores ranges and is cut again and again
    /// brings many, and none that is new.
    async fn take(&mut self, mut chunk: Bytes, end: &AtomicU64, teller: &Teller) -> std::io::Result<u64> {
        let geometry = self.stored.geometry();
        let mut new = 0;
        while !chunk.is_empty() && self.at < end.load(Ordering::Relaxed) {
            let Some((piece, span)) = geometry.piece_at(self.at).and_then(|piece| Some((piece, geometry.span(piece)?)))
            else {
                break;
            };
            if self.at == span.start() {
                self.writer = timeout(CLAIM_WAIT, claim(self.stored, piece)).await.unwrap_or(None);
                if self.writer.is_some() {
                    teller.tell(Step::Begun(piece)).await;
                }
            }
            let room = usize::try_from(span.end() - self.at).unwrap_or(usize::MAX);
            let part = chunk.split_to(chunk.len().min(room));
            self.at += part.len() as u64;
            let Some(writer) = &mut self.writer else { continue };
            new += (self.at - self.asked.min(self.at)).min(part.len() as u64);
            writer.write(part).await?;
            writer.publish();
            if self.at == span.end()
                && let Some(writer) = self.writer.take()
                && let Ok(digest) = writer.finish()
            {
                teller.tell(Step::Piece(piece, digest)).await;
            }
        }
        Ok(new)
    }
}

/// What a source's bytes are to the limits.
const CLASSES: [Class; 2] = [Class::BackToSource, Class::Download];

/// A body's bytes in runs that are worth a write, as fast as the limits allow.
pub(super) struct Chunks {
    body: Body,
    silence: Duration,
    flow: Flow,
    /// What has come and has not been paid for.
    come: Bytes,
}

impl Chunks {
    /// `silence` is how long the body may give no byte while it is asked for more.
    pub(super) const fn new(body: Body, silence: Duration, flow: Flow) -> Self {
        Self { body, silence, flow, come: Bytes::new() }
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// The body breaks off or falls silent.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, String> {
        let most = self.flow.at_most(&CLASSES, WRITE_LENGTH as u64) as usize;
        if self.come.is_empty() {
            match self.gather(most).await? {
                Some(bytes) => self.come = bytes,
                None => return Ok(None),
            }
        }
        let limited = most < WRITE_LENGTH;
        let run = self.come.split_to(if limited { self.come.len().min(most) } else { self.come.len() });
        for class in CLASSES {
            self.flow.settle(class, run.len() as u64).await;
        }
        Ok(Some(run))
    }

    /// About `most` bytes, or what is at hand; `None` at the end.
    async fn gather(&mut self, most: usize) -> Result<Option<Bytes>, String> {
        let first = match timeout(self.silence, self.frame()).await {
            Ok(frame) => frame?,
            Err(_) => return Err(format!("no byte came for {} s", self.silence.as_secs())),
        };
        let Some(first) = first else { return Ok(None) };
        let mut gathered = BytesMut::new();
        let mut length = first.len();
        // An error met here is not lost: the next call finds the body ended too early, which is a cut as well.
        while length < most
            && let Some(Ok(Some(more))) = self.frame().now_or_never()
        {
            if gathered.is_empty() {
                gathered.reserve(most);
                gathered.extend_from_slice(&first);
            }
            gathered.extend_from_slice(&more);
            length = gathered.len();
        }
        Ok(Some(if gathered.is_empty() { first } else { gathered.freeze() }))
    }

    /// The next non-empty data frame; `None` at the end.
    async fn frame(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(root_cause(&*error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
