//! The limit that transfers between hosts are held against: `sendfile` on one side, `read` and `pwrite` on the other, over
//! loopback, in threads, with nothing around it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use damselfly_core::{Geometry, PieceHasher, PieceNumber};

pub(crate) const MIB: u64 = 1 << 20;

/// Makes a file of `length` bytes that are no pattern.
pub(crate) fn fill(path: &Path, length: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut buffer = vec![0; MIB as usize];
    for _ in 0..length / MIB {
        for word in buffer.chunks_exact_mut(8) {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&random.to_le_bytes());
        }
        file.write_all(&buffer)?;
    }
    Ok(())
}

/// The limit: as many threads each way as there are pieces under way.
pub(crate) fn transfer(dir: &Path, source: &Path, geometry: Geometry, streams: u64, hashes: bool) -> io::Result<()> {
    let target_path = dir.join("target");
    let target = File::create(&target_path)?;
    rustix::fs::fallocate(&target, rustix::fs::FallocateFlags::empty(), 0, geometry.length())?;
    let source = File::open(source)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    let to_send = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for _ in 0..streams {
            threads.push(scope.spawn(|| receive(TcpStream::connect(addr)?, &target, geometry, hashes)));
            let (stream, _) = listener.accept()?;
            let (source, to_send) = (&source, &to_send);
            threads.push(scope.spawn(move || send(&stream, source, geometry, to_send)));
        }
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| io::Error::other("a thread failed"))?)
    })?;
    std::fs::remove_file(target_path)?;
    Ok(())
}

/// Sends its share of the pieces: a number, then the bytes.
fn send(mut stream: &TcpStream, source: &File, geometry: Geometry, next: &AtomicU32) -> io::Result<()> {
    loop {
        let Some(span) = geometry.span(PieceNumber(next.fetch_add(1, Ordering::Relaxed))) else {
            return stream.shutdown(std::net::Shutdown::Write);
        };
        stream.write_all(&span.start().to_le_bytes())?;
        let mut at = span.start();
        while at < span.end() {
            let left = (span.end() - at) as usize;
            rustix::fs::sendfile(stream, source, Some(&mut at), left)?;
        }
    }
}

fn receive(mut stream: TcpStream, target: &File, geometry: Geometry, hashes: bool) -> io::Result<()> {
    let mut buffer = vec![0; MIB as usize];
    let mut start = [0; 8];
    while stream.read_exact(&mut start).is_ok() {
        let mut at = u64::from_le_bytes(start);
        let piece = geometry.piece_at(at).and_then(|piece| geometry.span(piece));
        let end = piece.map_or(at, |span| span.end());
        let mut hasher = PieceHasher::default();
        while at < end {
            let want = (end - at).min(MIB) as usize;
            let read = stream.read(&mut buffer[..want])?;
            if hashes {
                hasher.update(&buffer[..read]);
            }
            target.write_all_at(&buffer[..read], at)?;
            at += read as u64;
        }
        std::hint::black_box(hasher.finish());
    }
    Ok(())
}
