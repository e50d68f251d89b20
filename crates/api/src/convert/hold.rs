//! What a host holds.

use damselfly_core::swarm::{Held, Holding, Holdings, Origin};
use damselfly_core::{Blake3, Geometry, PieceNumber};
use prost::Message as _;

use super::{MAX_HOLDINGS, MAX_LISTED, MAX_MESSAGE, WireError, piece, register};
use crate::ours::{self, AnnounceHoldingsRequest};
use crate::scheduler::HeldPieces;

/// From here on another request is begun. One holding of [`MAX_LISTED`] pieces with the longest texts still fits behind
/// it.
const FULL: usize = MAX_MESSAGE / 4;

pub(super) fn held_to_wire(geometry: Geometry, pieces: &[(PieceNumber, Blake3)]) -> HeldPieces {
    let (numbers, blake3) = piece::list_to_wire(pieces);
    HeldPieces { content_length: geometry.length(), piece_length: geometry.piece_length(), numbers, blake3 }
}

pub(super) fn held_from_wire(held: HeldPieces) -> Result<Held, WireError> {
    let geometry =
        Geometry::new(held.content_length, held.piece_length).map_err(|_| WireError::Invalid("held.piece_length"))?;
    Ok(Held { geometry, pieces: piece::list_from_wire(&held.numbers, &held.blake3)? })
}

/// What a host holds, in as many requests as it takes.
pub fn holdings_to_wire(holdings: &Holdings) -> Vec<AnnounceHoldingsRequest> {
    let request = |all| AnnounceHoldingsRequest { host_id: holdings.host.to_string(), holdings: Vec::new(), all };
    let mut requests = vec![request(holdings.all)];
    let mut size = 0;
    for message in holdings.list.iter().flat_map(split) {
        if size >= FULL || requests.last().is_none_or(|request| request.holdings.len() >= MAX_HOLDINGS) {
            requests.push(request(false));
            size = 0;
        }
        size += message.encoded_len();
        if let Some(request) = requests.last_mut() {
            request.holdings.push(message);
        }
    }
    requests
}

/// One holding as messages of at most [`MAX_LISTED`] pieces; one message if there is no piece.
fn split(holding: &Holding) -> impl Iterator<Item = ours::Holding> + '_ {
    let pieces = &holding.held.pieces;
    let count = pieces.len().div_ceil(MAX_LISTED).max(1);
    (0..count).map(move |index| {
        let listed = &pieces[index * MAX_LISTED..pieces.len().min((index + 1) * MAX_LISTED)];
        ours::Holding {
            task_id: holding.task.to_string(),
            peer_id: holding.peer.to_string(),
            url: holding.origin.url.clone(),
            content_for_calculating_task_id: holding.origin.content.clone(),
            digest: holding.origin.digest.clone(),
            tag: holding.origin.tag.clone(),
            application: holding.origin.application.clone(),
            private: holding.origin.private,
            held: Some(held_to_wire(holding.held.geometry, listed)),
        }
    })
}

/// What a host says that it holds.
///
/// # Errors
/// For malformed ids, overlong texts and lists, and a geometry that makes no sense.
pub fn holdings_from_wire(request: AnnounceHoldingsRequest) -> Result<Holdings, WireError> {
    if request.holdings.len() > MAX_HOLDINGS {
        return Err(WireError::TooLong("holdings"));
    }
    let host = super::host_id(request.host_id)?;
    let list = request.holdings.into_iter().map(holding_from_wire).collect::<Result<_, _>>()?;
    Ok(Holdings { host, all: request.all, list })
}

fn holding_from_wire(holding: ours::Holding) -> Result<Holding, WireError> {
    let private = holding.private;
    let origin = register::origin(
        holding.url,
        holding.content_for_calculating_task_id,
        holding.digest,
        Some(holding.tag),
        Some(holding.application),
    )?;
    Ok(Holding {
        task: super::task_id(&holding.task_id)?,
        peer: super::peer_id(holding.peer_id)?,
        origin: Origin { private, ..origin },
        held: held_from_wire(holding.held.ok_or(WireError::Missing("held"))?)?,
    })
}
