//! What a scheduler tells a registered peer.

use std::ops::Range;

use damselfly_core::swarm::{Answer, Origin, Registration};
use damselfly_core::{Geometry, MAX_PIECES, TaskId};

use super::{MAX_LISTED, MAX_PARENTS, WireError, host, piece, register};
use crate::common::Task;
use crate::scheduler::announce_peer_response::Response;
use crate::scheduler::{
    AnnouncePeerResponse, EmptyTaskResponse, MetadataOnlyResponse, NeedBackToSourceResponse, NormalTaskResponse,
    Proofs, Wait,
};

/// A registered peer, as far as its scheduler must know it to speak to it.
#[derive(Clone, Debug)]
pub struct Listener {
    task: TaskId,
    origin: Origin,
    extended: bool,
}

impl Listener {
    /// The peer that sent this registration.
    pub fn of(registration: &Registration) -> Self {
        Self { task: registration.task, origin: registration.origin.clone(), extended: registration.extended }
    }

    /// An answer as the messages that this peer understands: none where it does not know the like, several where one
    /// would be too long.
    pub fn messages(&self, answer: Answer) -> Vec<AnnouncePeerResponse> {
        match answer {
            Answer::Empty => one(Response::EmptyTaskResponse(EmptyTaskResponse {})),
            Answer::GoToSource { pieces } => {
                let pieces = pieces.filter(|_| self.extended);
                one(Response::NeedBackToSourceResponse(NeedBackToSourceResponse {
                    description: None,
                    first_piece: pieces.as_ref().map(|pieces| pieces.start),
                    end_piece: pieces.map(|pieces| pieces.end),
                }))
            }
            Answer::Parents { offers, geometry, proven } => {
                let task = self.task(geometry);
                let parents = offers.into_iter().take(MAX_PARENTS).map(|offer| host::offer_to_wire(offer, &task));
                one(Response::NormalTaskResponse(NormalTaskResponse {
                    candidate_parents: parents.collect(),
                    proven,
                    content_length: geometry.map(Geometry::length),
                    piece_length: geometry.map(Geometry::piece_length),
                }))
            }
            Answer::Wait | Answer::Proofs(_) if !self.extended => Vec::new(),
            Answer::Wait => one(Response::Wait(Wait {})),
            Answer::Proofs(proofs) => proofs
                .chunks(MAX_LISTED)
                .map(|listed| {
                    let (numbers, blake3) = piece::list_to_wire(listed);
                    AnnouncePeerResponse { response: Some(Response::Proofs(Proofs { numbers, blake3 })) }
                })
                .collect(),
        }
    }

    /// The task as a plain peer wants to see it.
    fn task(&self, geometry: Option<Geometry>) -> Task {
        let download = register::download_to_wire(&self.origin);
        Task {
            id: self.task.to_string(),
            url: download.url,
            digest: download.digest,
            tag: download.tag,
            application: download.application,
            content_length: geometry.map_or(0, Geometry::length),
            piece_count: geometry.map_or(0, Geometry::count),
            state: "Running".into(),
            has_available_peer: true,
            created_at: Some(prost_types::Timestamp::default()),
            updated_at: Some(prost_types::Timestamp::default()),
            ..Task::default()
        }
    }
}

fn one(response: Response) -> Vec<AnnouncePeerResponse> {
    vec![AnnouncePeerResponse { response: Some(response) }]
}

/// The answer to a peer that wants only to be known.
pub const fn metadata_only() -> AnnouncePeerResponse {
    AnnouncePeerResponse { response: Some(Response::MetadataOnlyResponse(MetadataOnlyResponse {})) }
}

/// Reads a scheduler's answer; `None` for one that tells nothing. Parents that cannot be reached, because they come
/// without a literal address or port, are left out.
///
/// # Errors
/// For an unknown message, overlong lists, and values that make no sense.
pub fn answer_from_wire(message: AnnouncePeerResponse) -> Result<Option<Answer>, WireError> {
    let answer = match message.response.ok_or(WireError::Missing("response"))? {
        Response::EmptyTaskResponse(_) => Answer::Empty,
        Response::NeedBackToSourceResponse(go) => Answer::GoToSource { pieces: leased(go)? },
        Response::MetadataOnlyResponse(_) => return Ok(None),
        Response::Wait(_) => Answer::Wait,
        Response::Proofs(proofs) => Answer::Proofs(piece::list_from_wire(&proofs.numbers, &proofs.blake3)?),
        Response::NormalTaskResponse(parents) => parents_from_wire(&parents)?,
    };
    Ok(Some(answer))
}

fn leased(go: NeedBackToSourceResponse) -> Result<Option<Range<u32>>, WireError> {
    match (go.first_piece, go.end_piece) {
        (None, None) => Ok(None),
        (Some(first), Some(end)) if first < end && end <= MAX_PIECES => Ok(Some(first..end)),
        _ => Err(WireError::Invalid("first_piece")),
    }
}

fn parents_from_wire(message: &NormalTaskResponse) -> Result<Answer, WireError> {
    if message.candidate_parents.len() > MAX_PARENTS {
        return Err(WireError::TooLong("candidate_parents"));
    }
    let geometry = match register::geometry(message.content_length, message.piece_length)? {
        Some(geometry) => Some(geometry),
        None => message.candidate_parents.iter().find_map(|parent| plain_geometry(parent.task.as_ref()?)),
    };
    let offers = message.candidate_parents.iter().filter_map(|parent| host::offer_from_wire(parent).ok()).collect();
    Ok(Answer::Parents { offers, geometry, proven: message.proven })
}

/// How a plain scheduler's task is cut. It names no piece length, but the default one shows itself by the count.
fn plain_geometry(task: &Task) -> Option<Geometry> {
    let geometry = Geometry::of_length(task.content_length).ok()?;
    (task.content_length > 0 && geometry.count() == task.piece_count).then_some(geometry)
}
