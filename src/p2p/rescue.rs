//! The last resort of a reader whose download failed for reasons of our own (a full disk, a bug): the rest of its range
//! straight from the source, past the store.
//!
//! The client has had bytes already, so the rest must be of the same version: the request says which, and where the
//! content's digest is known, the whole that the client got is hashed and its tail held back, as in the stream.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use damselfly_core::{ByteRange, Digest, DigestCheck};
use futures_util::{Stream, stream};
use tracing::warn;

use super::source::{self, Chunks, Expected, Trouble};
use super::stream::{Broken, HELD_TAIL};
use crate::backend::{Backend, SourceRequest};
use crate::limit::Flow;
use crate::storage::StoredTask;

/// One read of the content file, in bytes.
const READ_LENGTH: u64 = 1 << 20;

/// What it takes to go on without the store.
#[derive(Clone, Debug)]
pub(super) struct Rescue {
    pub(super) backend: Backend,
    pub(super) request: SourceRequest,
    pub(super) expected: Expected,
    pub(super) silence: Duration,
    pub(super) flow: Flow,
}

impl Rescue {
    /// The bytes of `range` from the source. `whole` says that the client has got everything before them.
    ///
    /// # Errors
    /// The source does not give exactly these bytes of this version.
    pub(super) async fn rest(
        mut self,
        stored: &StoredTask,
        range: ByteRange,
        whole: bool,
        why: &Broken,
    ) -> Result<impl Stream<Item = Result<Bytes, Broken>> + Send + use<>, Broken> {
        warn!(%why, at = range.start(), "the rest of an answer comes straight from the source");
        let length = stored.geometry().length();
        self.expected.length = Some(length);
        let check = match stored.digest().filter(|_| whole && range.end() == length) {
            Some(digest) => Some(check_after(stored, range.start(), digest).await?),
            None => None,
        };
        let opened = source::open(&self.backend, &self.request, Some(range), &self.expected).await.map_err(broken)?;
        if opened.start > range.start() {
            return Err(Broken::Source("it answered another range".into()));
        }
        let rest = Rest {
            skip: range.start() - opened.start,
            left: range.len(),
            chunks: Chunks::new(opened.response.body, self.silence, self.flow),
            check,
            out: VecDeque::new(),
        };
        Ok(stream::unfold(Some(rest), |rest| async move {
            let mut rest = rest?;
            match rest.next().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(rest))),
                Ok(None) => None,
                Err(broken) => Some((Err(broken), None)),
            }
        }))
    }
}

fn broken(trouble: Trouble) -> Broken {
    match trouble {
        Trouble::Net(error) => Broken::Source(error.to_string()),
        Trouble::Changed => Broken::Changed,
        Trouble::Refused(response) | Trouble::Unsized(response) => {
            Broken::Source(format!("it answered {}", response.status))
        }
    }
}

/// The check of a content whose first `sent` bytes the store gave; what comes behind them is held back until it agrees.
async fn check_after(stored: &StoredTask, sent: u64, digest: Digest) -> Result<DigestCheck, Broken> {
    let mut check = digest.check();
    let mut at = 0;
    while let Some(range) = ByteRange::new(at, sent.min(at + READ_LENGTH)).filter(|range| !range.is_empty()) {
        let bytes = stored.read(range).await.map_err(|error| Broken::Local(format!("cannot read: {error}")))?;
        if bytes.len() as u64 != range.len() {
            return Err(Broken::Local("the content file is shorter than its content".into()));
        }
        check.update(&bytes);
        at = range.end();
    }
    Ok(check)
}

struct Rest {
    skip: u64,
    left: u64,
    chunks: Chunks,
    check: Option<DigestCheck>,
    out: VecDeque<Bytes>,
}

impl Rest {
    async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        loop {
            if let Some(bytes) = self.ready()? {
                return Ok(Some(bytes));
            }
            if self.left == 0 {
                return Ok(None);
            }
            let mut bytes = match self.chunks.next().await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => return Err(Broken::Source("it ended too early".into())),
                Err(why) => return Err(Broken::Source(why)),
            };
            let skipped = bytes.split_to(bytes.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX)));
            self.skip -= skipped.len() as u64;
            bytes.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left -= bytes.len() as u64;
            if let Some(check) = &mut self.check {
                check.update(&bytes);
            }
            if !bytes.is_empty() {
                self.out.push_back(bytes);
            }
        }
    }

    /// The next bytes that may go out: all but a tail, until the digest agrees.
    fn ready(&mut self) -> Result<Option<Bytes>, Broken> {
        if self.left == 0 {
            if self.check.take().is_some_and(|check| !check.agrees()) {
                return Err(Broken::Digest);
            }
            return Ok(self.out.pop_front());
        }
        let waiting: u64 = self.out.iter().map(|bytes| bytes.len() as u64).sum();
        let first = self.out.front().map_or(0, |bytes| bytes.len() as u64);
        let may_go = self.check.is_none() || waiting.saturating_sub(first) + self.left >= HELD_TAIL;
        Ok(if may_go { self.out.pop_front() } else { None })
    }
}
