//! What a registered peer tells, as its scheduler hears it.

use damselfly_core::PeerId;
use damselfly_core::swarm::{PieceFault, Registration, Report};

use super::register::{geometry, registration_from_wire};
use super::{MAX_PARENTS, WireError, peer_id, piece};
use crate::common::{Peer, Piece};
use crate::scheduler::announce_peer_request::Request;
use crate::scheduler::{self, AnnouncePeerRequest, DownloadPieceFailedRequest};

/// A message of a peer's conversation with its scheduler.
#[derive(Clone, Debug, PartialEq)]
pub enum PeerSays {
    /// It registers: the first message of every conversation.
    Register {
        /// What it wants.
        registration: Box<Registration>,
        /// It wants only to be known: the answer is [`super::metadata_only`] and nothing else.
        metadata_only: bool,
    },
    /// It reports. [`Report::Finished`] and [`Report::Failed`] end the conversation, and it is the scheduler who closes
    /// the stream.
    Report(Report),
    /// It follows the plain protocol's ceremony, which tells nothing that is not told otherwise.
    Nothing,
}

/// Reads a peer's message.
///
/// # Errors
/// For malformed ids, overlong texts and lists, and values that make no sense.
pub fn peer_says(message: AnnouncePeerRequest) -> Result<PeerSays, WireError> {
    let report = match message.request.ok_or(WireError::Missing("request"))? {
        Request::RegisterPeerRequest(register) => {
            let (registration, metadata_only) =
                registration_from_wire(message.host_id, &message.task_id, message.peer_id, register)?;
            return Ok(PeerSays::Register { registration: Box::new(registration), metadata_only });
        }
        // A piece that the source refused is followed by word of the peer as a whole.
        Request::DownloadPeerStartedRequest(_)
        | Request::DownloadPeerBackToSourceStartedRequest(_)
        | Request::DownloadPieceBackToSourceFailedRequest(_) => return Ok(PeerSays::Nothing),
        Request::ReschedulePeerRequest(request) => Report::Reschedule { failed: failed(request.candidate_parents)? },
        Request::DownloadPeerFinishedRequest(_) | Request::DownloadPeerBackToSourceFinishedRequest(_) => {
            Report::Finished
        }
        Request::DownloadPeerFailedRequest(_) | Request::DownloadPeerBackToSourceFailedRequest(_) => Report::Failed,
        Request::DownloadPieceFinishedRequest(request) => finished(request.piece, true)?,
        Request::DownloadPieceBackToSourceFinishedRequest(request) => finished(request.piece, false)?,
        Request::DownloadPieceFailedRequest(request) => piece_failed(request)?,
        Request::SourceOpened(opened) => {
            let cut = geometry(Some(opened.content_length), Some(opened.piece_length))?;
            Report::SourceOpened(cut.ok_or(WireError::Missing("piece_length"))?)
        }
        Request::SourceFailed(_) => Report::SourceFailed,
        Request::SourceProgress(_) => Report::SourceProgress,
        Request::PieceLate(late) => Report::Late { piece: piece::number(late.piece_number)? },
        Request::LeaseDeclined(declined) => Report::Declined { piece: piece::number(declined.piece_number)? },
    };
    Ok(PeerSays::Report(report))
}

fn failed(parents: Vec<Peer>) -> Result<Vec<PeerId>, WireError> {
    if parents.len() > MAX_PARENTS {
        return Err(WireError::TooLong("candidate_parents"));
    }
    parents.into_iter().map(|parent| peer_id(parent.id)).collect()
}

fn finished(said: Option<Piece>, from_parent: bool) -> Result<Report, WireError> {
    let said = said.ok_or(WireError::Missing("piece"))?;
    let (number, digest) = (piece::number(said.number)?, piece::digest(&said)?);
    // A plain peer names no parent of a piece that it had already.
    let parent = said.parent_id.filter(|id| from_parent && !id.is_empty()).map(peer_id).transpose()?;
    Ok(Report::PieceFinished { piece: number, parent, digest })
}

fn piece_failed(said: DownloadPieceFailedRequest) -> Result<Report, WireError> {
    let fault = match said.fault() {
        scheduler::PieceFault::Bad => PieceFault::Bad,
        scheduler::PieceFault::Stalled => PieceFault::Stalled,
        scheduler::PieceFault::Missing => PieceFault::Missing,
        scheduler::PieceFault::Slow => PieceFault::Slow,
        // A plain peer does not say.
        scheduler::PieceFault::Gone | scheduler::PieceFault::Unsaid => PieceFault::Gone,
    };
    // Where no piece is named the parent is what counts.
    let number = piece::number(said.piece_number.unwrap_or(0))?;
    Ok(Report::PieceFailed { piece: number, parent: peer_id(said.parent_id)?, fault })
}

/// The other way.
pub(super) const fn fault_to_wire(fault: PieceFault) -> scheduler::PieceFault {
    match fault {
        PieceFault::Bad => scheduler::PieceFault::Bad,
        PieceFault::Stalled => scheduler::PieceFault::Stalled,
        PieceFault::Gone => scheduler::PieceFault::Gone,
        PieceFault::Missing => scheduler::PieceFault::Missing,
        PieceFault::Slow => scheduler::PieceFault::Slow,
    }
}
