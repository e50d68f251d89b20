//! A peer's side of its conversation with a scheduler: which messages say what the download machine means.
//!
//! The machine says no more than it must; the plain protocol has a ceremony around it (a peer says that it starts, from
//! parents or from the source, and ends by the word that fits). [`Voice`] adds the ceremony, and keeps our own messages
//! from a scheduler that does not know them.

use std::collections::BTreeMap;

use damselfly_core::swarm::{Answer, PieceFault, Registration, Report};
use damselfly_core::{Geometry, PeerId};

use super::{MAX_PARENTS, WireError, answer_from_wire, piece, report};
use crate::common::Peer;
use crate::scheduler::announce_peer_request::Request;
use crate::scheduler::announce_peer_response::Response;
use crate::scheduler::{
    AnnouncePeerRequest, AnnouncePeerResponse, DownloadPeerBackToSourceFailedRequest,
    DownloadPeerBackToSourceFinishedRequest, DownloadPeerBackToSourceStartedRequest, DownloadPeerFailedRequest,
    DownloadPeerFinishedRequest, DownloadPeerStartedRequest, DownloadPieceBackToSourceFinishedRequest,
    DownloadPieceFailedRequest, DownloadPieceFinishedRequest, LeaseDeclined, PieceLate, ReschedulePeerRequest,
    SourceFailed, SourceOpened, SourceProgress,
};

/// What a scheduler's message means, and what the ceremony wants to be said in return.
#[derive(Debug, PartialEq)]
pub struct Heard {
    /// For the machine.
    pub answer: Option<Answer>,
    /// For the scheduler.
    pub reply: Option<AnnouncePeerRequest>,
}

/// One registered peer's way of speaking to one scheduler.
#[derive(Debug)]
pub struct Voice {
    host: String,
    task: String,
    peer: String,
    /// The scheduler knows our extensions.
    extended: bool,
    geometry: Option<Geometry>,
    /// The scheduler was told that this peer reads the source.
    sourcing: bool,
    /// Parents as a plain scheduler described them: it wants its own words back. At most the last answers'
    /// [`MAX_PARENTS`].
    offered: BTreeMap<PeerId, Peer>,
}

impl Voice {
    /// The voice of the peer that registers so. `extended` says whether the scheduler knows our extensions, as the
    /// headers of its answer [tell](super::is_extended).
    pub fn new(registration: &Registration, extended: bool) -> Self {
        Self {
            host: registration.host.to_string(),
            task: registration.task.to_string(),
            peer: registration.peer.to_string(),
            extended,
            geometry: registration.geometry,
            sourcing: false,
            offered: BTreeMap::new(),
        }
    }

    /// Takes in what the scheduler says.
    ///
    /// # Errors
    /// For messages that make no sense, which end the conversation.
    pub fn hear(&mut self, message: AnnouncePeerResponse) -> Result<Heard, WireError> {
        if let Some(Response::NormalTaskResponse(parents)) = &message.response
            && !self.extended
        {
            self.remember(&parents.candidate_parents);
        }
        let answer = answer_from_wire(message)?;
        let reply = match &answer {
            Some(Answer::Parents { geometry, .. }) => {
                self.geometry = self.geometry.or(*geometry);
                Some(self.wrap(Request::DownloadPeerStartedRequest(DownloadPeerStartedRequest {})))
            }
            Some(Answer::GoToSource { .. }) => self.start_sourcing(),
            _ => None,
        };
        Ok(Heard { answer, reply })
    }

    /// The messages that say this to the scheduler, in order.
    pub fn say(&mut self, report: Report) -> Vec<AnnouncePeerRequest> {
        let mut before = None;
        let request = match report {
            Report::SourceOpened(geometry) => {
                self.geometry = Some(geometry);
                before = self.start_sourcing();
                let opened = SourceOpened { content_length: geometry.length(), piece_length: geometry.piece_length() };
                self.extended.then_some(Request::SourceOpened(opened))
            }
            Report::PieceFinished { piece, parent: Some(parent), digest } => {
                let piece = piece::finished(piece, Some(parent.to_string()), digest, self.geometry);
                Some(Request::DownloadPieceFinishedRequest(DownloadPieceFinishedRequest { piece: Some(piece) }))
            }
            Report::PieceFinished { piece, parent: None, digest } => {
                before = self.start_sourcing();
                let piece = Some(piece::finished(piece, None, digest, self.geometry));
                let finished = DownloadPieceBackToSourceFinishedRequest { piece };
                Some(Request::DownloadPieceBackToSourceFinishedRequest(finished))
            }
            // A plain scheduler would take a slow parent for one that is gone.
            Report::PieceFailed { fault: PieceFault::Slow, .. } if !self.extended => None,
            Report::PieceFailed { piece, parent, fault } => {
                Some(Request::DownloadPieceFailedRequest(DownloadPieceFailedRequest {
                    piece_number: Some(piece.0),
                    parent_id: parent.to_string(),
                    temporary: true,
                    fault: report::fault_to_wire(fault).into(),
                }))
            }
            Report::Reschedule { failed } => Some(self.reschedule(&failed)),
            // Only our scheduler leases runs of pieces.
            Report::SourceProgress if self.extended => Some(Request::SourceProgress(SourceProgress {})),
            Report::Late { piece } if self.extended => Some(Request::PieceLate(PieceLate { piece_number: piece.0 })),
            Report::Declined { piece } if self.extended => {
                Some(Request::LeaseDeclined(LeaseDeclined { piece_number: piece.0 }))
            }
            Report::SourceProgress | Report::Late { .. } | Report::Declined { .. } => None,
            Report::SourceFailed if self.extended => Some(Request::SourceFailed(SourceFailed {})),
            // To a plain scheduler this is the end: it knows no way back from the source to parents.
            Report::SourceFailed => {
                before = self.start_sourcing();
                Some(self.failed())
            }
            Report::Finished => Some(self.finished()),
            Report::Failed => Some(self.failed()),
        };
        before.into_iter().chain(request.map(|request| self.wrap(request))).collect()
    }

    fn finished(&self) -> Request {
        if self.sourcing {
            Request::DownloadPeerBackToSourceFinishedRequest(DownloadPeerBackToSourceFinishedRequest {})
        } else {
            Request::DownloadPeerFinishedRequest(DownloadPeerFinishedRequest {})
        }
    }

    fn failed(&self) -> Request {
        if self.sourcing {
            Request::DownloadPeerBackToSourceFailedRequest(DownloadPeerBackToSourceFailedRequest::default())
        } else {
            Request::DownloadPeerFailedRequest(DownloadPeerFailedRequest::default())
        }
    }

    fn start_sourcing(&mut self) -> Option<AnnouncePeerRequest> {
        let started = DownloadPeerBackToSourceStartedRequest::default();
        (!std::mem::replace(&mut self.sourcing, true))
            .then(|| self.wrap(Request::DownloadPeerBackToSourceStartedRequest(started)))
    }

    fn reschedule(&self, failed: &[PeerId]) -> Request {
        let parents = failed.iter().take(MAX_PARENTS);
        let candidate_parents = if self.extended {
            parents.map(|parent| Peer { id: parent.to_string(), ..Peer::default() }).collect()
        } else {
            parents.filter_map(|parent| self.offered.get(parent).cloned()).collect()
        };
        Request::ReschedulePeerRequest(ReschedulePeerRequest { candidate_parents, description: None })
    }

    fn remember(&mut self, parents: &[Peer]) {
        if self.offered.len() + parents.len() > MAX_PARENTS {
            self.offered.clear();
        }
        let named = parents.iter().take(MAX_PARENTS).map(|parent| (PeerId::from(parent.id.as_str()), parent.clone()));
        self.offered.extend(named);
    }

    fn wrap(&self, request: Request) -> AnnouncePeerRequest {
        AnnouncePeerRequest {
            host_id: self.host.clone(),
            task_id: self.task.clone(),
            peer_id: self.peer.clone(),
            request: Some(request),
        }
    }
}
