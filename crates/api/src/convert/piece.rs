//! Pieces: their digests, lists of them, and where a parent serves them.

use std::net::{IpAddr, SocketAddr};

use bytes::{BufMut, Bytes, BytesMut};
use damselfly_core::{Blake3, Geometry, HostId, MAX_PIECES, PieceDigest, PieceNumber, TaskId};

use super::{MAX_LISTED, WireError};
use crate::common::{Piece, TrafficType};
use crate::dfdaemon::{SyncPiecesRequest, SyncPiecesResponse};

/// What stands for the BLAKE3 that a peer of the plain protocol does not send. It vouches for nothing.
const NO_BLAKE3: Blake3 = Blake3([0; 32]);

/// A piece number that some task could have.
pub(super) fn number(number: u32) -> Result<PieceNumber, WireError> {
    if number < MAX_PIECES { Ok(PieceNumber(number)) } else { Err(WireError::Invalid("piece number")) }
}

/// A finished piece as it is reported. Where it lies is said only if the geometry is known.
pub(super) fn finished(
    piece: PieceNumber,
    parent: Option<String>,
    digest: PieceDigest,
    geometry: Option<Geometry>,
) -> Piece {
    let span = geometry.and_then(|geometry| geometry.span(piece));
    let traffic = if parent.is_some() { TrafficType::RemotePeer } else { TrafficType::BackToSource };
    Piece {
        number: piece.0,
        parent_id: parent,
        offset: span.map_or(0, |span| span.start()),
        length: span.map_or(0, |span| span.len()),
        digest: format!("crc32:{}", digest.crc32),
        content: None,
        traffic_type: Some(traffic.into()),
        cost: Some(prost_types::Duration::default()),
        created_at: Some(prost_types::Timestamp::default()),
        blake3: Some(Bytes::copy_from_slice(&digest.blake3.0)),
    }
}

/// The digests of a reported piece. A peer of the plain protocol sends no BLAKE3 and perhaps no CRC-32 either: what is
/// missing is zero, and means nothing.
pub(super) fn digest(piece: &Piece) -> Result<PieceDigest, WireError> {
    let crc32 = piece.digest.strip_prefix("crc32:").and_then(|digits| digits.parse().ok()).unwrap_or(0);
    let blake3 = match &piece.blake3 {
        Some(bytes) => Blake3(bytes.as_ref().try_into().map_err(|_| WireError::Invalid("blake3"))?),
        None => NO_BLAKE3,
    };
    Ok(PieceDigest { crc32, blake3 })
}

/// Piece numbers and their digests, in two fields.
pub(super) fn list_to_wire(pieces: &[(PieceNumber, Blake3)]) -> (Vec<u32>, Bytes) {
    let mut digests = BytesMut::with_capacity(pieces.len() * 32);
    for (_, digest) in pieces {
        digests.put_slice(&digest.0);
    }
    (pieces.iter().map(|(piece, _)| piece.0).collect(), digests.freeze())
}

/// The same from the wire. Without any digest they are all [`NO_BLAKE3`].
pub(super) fn list_from_wire(numbers: &[u32], blake3: &[u8]) -> Result<Vec<(PieceNumber, Blake3)>, WireError> {
    if numbers.len() > MAX_LISTED {
        return Err(WireError::TooLong("piece numbers"));
    }
    if blake3.is_empty() {
        return numbers.iter().map(|&piece| Ok((number(piece)?, NO_BLAKE3))).collect();
    }
    let (digests, rest) = blake3.as_chunks::<32>();
    if digests.len() != numbers.len() || !rest.is_empty() {
        return Err(WireError::Invalid("blake3"));
    }
    numbers.iter().zip(digests).map(|(&piece, &digest)| Ok((number(piece)?, Blake3(digest)))).collect()
}

/// All pieces of a content, without digests: what a peer of the plain protocol says when it has everything.
pub(super) fn all_without_digests(geometry: Geometry) -> Vec<(PieceNumber, Blake3)> {
    geometry.pieces().map(|piece| (piece, NO_BLAKE3)).collect()
}

/// A piece that a parent has, and where it serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParentPiece {
    /// Which piece.
    pub number: PieceNumber,
    /// The parent's piece data address.
    pub data_addr: SocketAddr,
}

/// What a parent says of one of its pieces. Its idea of offset and length is not used: a piece's place follows from its
/// number.
///
/// # Errors
/// For a number that no task has, a name instead of an address, or no TCP port.
pub fn parent_piece_from_wire(said: &SyncPiecesResponse) -> Result<ParentPiece, WireError> {
    let ip: IpAddr = said.ip.parse().map_err(|_| WireError::Invalid("ip"))?;
    let port = said.tcp_port.ok_or(WireError::Missing("tcp_port"))?;
    let port = super::host::port(port, "tcp_port")?;
    Ok(ParentPiece { number: number(said.number)?, data_addr: SocketAddr::new(ip, port) })
}

/// What we say of one of our pieces; `None` if the content has no such piece.
pub fn parent_piece_to_wire(piece: ParentPiece, geometry: Geometry) -> Option<SyncPiecesResponse> {
    let span = geometry.span(piece.number)?;
    Some(SyncPiecesResponse {
        number: piece.number.0,
        offset: span.start(),
        length: span.len(),
        ip: piece.data_addr.ip().to_string(),
        tcp_port: Some(piece.data_addr.port().into()),
        quic_port: None,
    })
}

/// The pieces of a task that a child asks a parent about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PiecesWanted {
    /// Which task.
    pub task: TaskId,
    /// Which pieces; `None` for all of them, whatever their number.
    pub pieces: Option<Vec<PieceNumber>>,
}

/// Reads what a child asks about.
///
/// # Errors
/// For more numbers than [`MAX_LISTED`], a number that no task has, or a malformed task id.
pub fn pieces_wanted_from_wire(request: &SyncPiecesRequest) -> Result<PiecesWanted, WireError> {
    let task = super::task_id(&request.task_id)?;
    if request.all_pieces {
        return Ok(PiecesWanted { task, pieces: None });
    }
    if request.interested_piece_numbers.len() > MAX_LISTED {
        return Err(WireError::TooLong("interested_piece_numbers"));
    }
    let numbers = request.interested_piece_numbers.iter().map(|&piece| number(piece));
    Ok(PiecesWanted { task, pieces: Some(numbers.collect::<Result<_, _>>()?) })
}

/// Asks a parent about all pieces of a task. A parent of the plain protocol understands only numbers: it is asked for
/// the first `count`, at most [`MAX_LISTED`].
pub fn all_pieces_to_wire(host: &HostId, task: &TaskId, count: u32) -> SyncPiecesRequest {
    let count = count.min(MAX_LISTED as u32);
    SyncPiecesRequest {
        host_id: host.to_string(),
        task_id: task.to_string(),
        interested_piece_numbers: (0..count).collect(),
        all_pieces: true,
    }
}
