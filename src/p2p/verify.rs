//! The whole content's digest, computed in order while the pieces come in any order.
//!
//! Only finished pieces are hashed: bytes that are shown early may yet be dropped and come again.

use damselfly_core::{ByteRange, Digest, PieceNumber};

use crate::storage::StoredTask;

/// One read of the content file, in bytes.
const READ_LENGTH: u64 = 1 << 20;

/// Follows `stored` from its first piece to its last and says whether the whole has `digest`.
///
/// Waits for pieces that are not there yet for as long as it takes, and checks those of an earlier process; whoever no
/// longer wants to know drops the future.
///
/// # Errors
/// The content file cannot be read.
pub(crate) async fn agrees(stored: &StoredTask, digest: Digest) -> std::io::Result<bool> {
    let mut check = digest.check();
    for piece in stored.geometry().pieces() {
        wait_for(stored, piece).await?;
        let span = stored.geometry().span(piece).unwrap_or(ByteRange::whole(0));
        let mut at = span.start();
        while let Some(range) = ByteRange::new(at, span.end().min(at + READ_LENGTH)).filter(|range| !range.is_empty()) {
            let bytes = stored.read(range).await?;
            if bytes.len() as u64 != range.len() {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            at = range.end();
            // A MiB takes half a millisecond: too long for the threads that carry everybody's bytes.
            check = tokio::task::spawn_blocking(move || {
                check.update(&bytes);
                check
            })
            .await
            .map_err(std::io::Error::other)?;
        }
    }
    Ok(check.agrees())
}

async fn wait_for(stored: &StoredTask, piece: PieceNumber) -> std::io::Result<()> {
    let mut changed = stored.pieces_changed();
    loop {
        changed.borrow_and_update();
        if stored.check(piece).await {
            return Ok(());
        }
        changed.changed().await.map_err(std::io::Error::other)?;
    }
}
