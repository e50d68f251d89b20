//! Bytes into a socket without copying them through this process.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use damselfly_api::member::MemberStream;
use damselfly_core::ByteRange;
use rustix::io::{Errno, ReadWriteFlags};
use rustix::net::SendFlags;
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::limit::{Class, Flow};

/// The most bytes of one `sendfile`: how long one connection may keep a runtime thread to itself.
const MAX_SEND: u64 = 1 << 20;

/// How much is read ahead at a time from a file that is not in the page cache.
const WARM_STEP: usize = 1 << 20;

/// How much is encrypted between two looks whether the child takes anything.
const ENCRYPTED_STEP: usize = 64 << 10;

/// Sends all bytes; `more` says that others follow at once, so that they may share a packet.
pub(super) async fn send_all(stream: &mut MemberStream, bytes: &[u8], more: bool, stall: Duration) -> io::Result<()> {
    let stream = match stream {
        MemberStream::Plain(stream) => return send_plain(stream, bytes, more, stall).await,
        MemberStream::Tls(stream) => stream,
    };
    for step in bytes.chunks(ENCRYPTED_STEP) {
        timeout(stall, stream.write_all(step)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    }
    if !more {
        timeout(stall, stream.flush()).await.map_err(|_| io::ErrorKind::TimedOut)??;
    }
    Ok(())
}

async fn send_plain(stream: &TcpStream, mut bytes: &[u8], more: bool, stall: Duration) -> io::Result<()> {
    let flags = if more { SendFlags::MORE | SendFlags::NOSIGNAL } else { SendFlags::NOSIGNAL };
    while !bytes.is_empty() {
        let send = stream.async_io(Interest::WRITABLE, || retry(|| rustix::net::send(stream, bytes, flags)));
        let sent = timeout(stall, send).await.map_err(|_| io::ErrorKind::TimedOut)??;
        bytes = bytes.get(sent..).unwrap_or_default();
    }
    Ok(())
}

/// Sends a piece of a file, as fast as the limit allows: what it waits for that is not the child's stall.
pub(super) async fn send_file(
    stream: &TcpStream,
    file: &Arc<File>,
    range: ByteRange,
    flow: &Flow,
    stall: Duration,
    progress: &AtomicU64,
) -> io::Result<()> {
    warm(file, range).await?;
    let mut at = range.start();
    let mut allowed = at;
    while at < range.end() {
        if at == allowed {
            let step = flow.at_most(&[Class::Upload], (range.end() - at).min(MAX_SEND));
            flow.take(Class::Upload, step).await;
            allowed = at + step;
        }
        let count = (allowed - at) as usize;
        let send = stream.async_io(Interest::WRITABLE, || {
            retry(|| {
                // The kernel moves `offset`; the count that it returns is what is trusted.
                let mut offset = at;
                rustix::fs::sendfile(stream, file, Some(&mut offset), count)
            })
        });
        match timeout(stall, send).await.map_err(|_| io::ErrorKind::TimedOut)?? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            sent => {
                at += sent as u64;
                progress.fetch_add(sent as u64, Ordering::Relaxed);
            }
        }
    }
    Ok(())
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}

/// Brings a range into the page cache on a blocking thread, unless it seems to be there: `sendfile` would otherwise
/// hold up a runtime thread for as long as the disk takes.
async fn warm(file: &Arc<File>, range: ByteRange) -> io::Result<()> {
    let middle = range.start() + range.len() / 2;
    let probes = [range.start(), middle, range.end().saturating_sub(1)];
    if range.is_empty() || probes.into_iter().all(|at| is_cached(file, at)) {
        return Ok(());
    }
    let file = Arc::clone(file);
    let read = move || {
        let mut buffer = vec![0; WARM_STEP];
        let mut at = range.start();
        while at < range.end() {
            let want = (range.end() - at).min(WARM_STEP as u64) as usize;
            match retry(|| rustix::io::pread(&file, &mut buffer[..want], at))? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => at += read as u64,
            }
        }
        Ok(())
    };
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}

/// Whether reading this byte would not wait for the disk. Where the system can't say, it is taken to be so.
fn is_cached(file: &File, at: u64) -> bool {
    let mut byte = [0];
    let mut slices = [IoSliceMut::new(&mut byte)];
    !matches!(rustix::io::preadv2(file, &mut slices, at, ReadWriteFlags::NOWAIT), Err(Errno::AGAIN))
}
