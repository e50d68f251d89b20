//! The stream of a task's pieces that a child follows: those that are here, then each as it is finished.
//!
//! Pieces of an earlier process are announced too; they are checked when they are served, and one that fails its check
//! is then missing. The stream ends when everything that was asked for was said, when this host has told all it has and
//! downloads no more of the task, or when nothing new has come for a while: a child that still wants something asks its
//! scheduler for somebody better. A plain child asks nobody else until then.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use damselfly_api::convert::{ParentPiece, parent_piece_to_wire};
use damselfly_api::dfdaemon::SyncPiecesResponse;
use damselfly_core::{PieceNumber, PieceSet};
use futures_util::{Stream, stream};
use tokio::sync::watch;

use super::peer::Downloading;
use crate::storage::StoredTask;

struct Announcing {
    stored: StoredTask,
    changed: watch::Receiver<u64>,
    /// What the child asked for and has not been told.
    untold: PieceSet,
    /// What it is about to be told.
    next: VecDeque<PieceNumber>,
    data_addr: SocketAddr,
    quiet: Duration,
    downloading: Downloading,
}

/// How often a stream that has nothing to tell looks whether the download has ended.
const LOOK: Duration = Duration::from_secs(1);

/// Announces the pieces of a task, all or some.
pub(super) fn announce(
    stored: StoredTask,
    pieces: Option<Vec<PieceNumber>>,
    data_addr: SocketAddr,
    quiet: Duration,
    downloading: Downloading,
) -> impl Stream<Item = SyncPiecesResponse> + Send + 'static {
    let count = stored.geometry().count();
    let untold = match pieces {
        None => PieceSet::full(count),
        Some(pieces) => {
            let mut some = PieceSet::empty(count);
            some.extend(pieces);
            some
        }
    };
    let announcing = Announcing {
        changed: stored.pieces_changed(),
        stored,
        untold,
        next: VecDeque::new(),
        data_addr,
        quiet,
        downloading,
    };
    stream::unfold(announcing, |mut announcing| async move {
        let message = announcing.next().await?;
        Some((message, announcing))
    })
}

impl Announcing {
    async fn next(&mut self) -> Option<SyncPiecesResponse> {
        let quiet_at = tokio::time::Instant::now() + self.quiet;
        loop {
            if let Some(number) = self.next.pop_front() {
                let piece = ParentPiece { number, data_addr: self.data_addr };
                return parent_piece_to_wire(piece, self.stored.geometry());
            }
            if self.untold.is_empty() {
                return None;
            }
            // Before looking, so that what comes while we look wakes us.
            self.changed.borrow_and_update();
            // And this too: the last pieces of a download are there before it is over.
            let goes_on = (self.downloading)(&self.stored.id());
            self.look();
            if self.next.is_empty() && (!goes_on || !self.wait(quiet_at).await) {
                return None;
            }
        }
    }

    fn look(&mut self) {
        // Only what is new is walked over: of a task of many pieces there is a change for each of them.
        let held = self.stored.held_pieces();
        self.next.extend(self.untold.common(&held));
        for piece in &self.next {
            self.untold.remove(*piece);
        }
    }

    /// Whether it is worth looking again: something may be new, or it is not `until` yet.
    async fn wait(&mut self, until: tokio::time::Instant) -> bool {
        let look_at = until.min(tokio::time::Instant::now() + LOOK);
        match tokio::time::timeout_at(look_at, self.changed.changed()).await {
            Ok(changed) => changed.is_ok(),
            Err(_) => look_at < until,
        }
    }
}
