//! The bytes of one task: a sparse file, or its double in memory.

use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use damselfly_core::ByteRange;

/// The most buffers handed to one positional write.
const MAX_SLICES: usize = 256;

pub(super) enum Content {
    Disk(Arc<File>),
    Memory(RwLock<Vec<u8>>),
}

impl Content {
    /// Zeroed memory for `length` bytes, if there can be so much; the system hands out the pages as they are written.
    pub(super) fn memory(length: u64) -> Option<Self> {
        let length = usize::try_from(length).ok()?;
        // Asked for in a way that may fail, before it is in the way that can't.
        Vec::<u8>::new().try_reserve_exact(length).ok()?;
        Some(Self::Memory(RwLock::new(vec![0; length])))
    }

    /// The file, where there is one.
    pub(super) fn file(&self) -> Option<Arc<File>> {
        match self {
            Self::Disk(file) => Some(Arc::clone(file)),
            Self::Memory(_) => None,
        }
    }

    /// Writes all buffers, one after the other, from `offset` on.
    pub(super) fn write_at(&self, buffers: &[Bytes], mut offset: u64) -> io::Result<()> {
        match self {
            Self::Disk(file) => {
                for some in buffers.chunks(MAX_SLICES) {
                    offset = write_slices(file, some, offset)?;
                }
                Ok(())
            }
            Self::Memory(memory) => {
                let mut memory = memory.write().unwrap_or_else(PoisonError::into_inner);
                for bytes in buffers {
                    let start = usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
                    let place = memory.get_mut(start..start.saturating_add(bytes.len()));
                    place.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(bytes);
                    offset += bytes.len() as u64;
                }
                Ok(())
            }
        }
    }

    /// Reads exactly these bytes.
    pub(super) fn read_at(&self, range: ByteRange) -> io::Result<Bytes> {
        let len = usize::try_from(range.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        match self {
            Self::Disk(file) => read_file(file, range.start(), len),
            Self::Memory(memory) => {
                let memory = memory.read().unwrap_or_else(PoisonError::into_inner);
                let start = usize::try_from(range.start()).map_err(|_| io::ErrorKind::InvalidInput)?;
                let bytes = memory.get(start..start.saturating_add(len)).ok_or(io::ErrorKind::UnexpectedEof)?;
                Ok(Bytes::copy_from_slice(bytes))
            }
        }
    }
}

fn write_slices(file: &File, buffers: &[Bytes], mut offset: u64) -> io::Result<u64> {
    let mut slices: Vec<IoSlice<'_>> = buffers.iter().map(|bytes| IoSlice::new(bytes)).collect();
    let mut rest = slices.as_mut_slice();
    while !rest.is_empty() {
        let written = match rustix::io::pwritev(file, rest, offset) {
            Err(rustix::io::Errno::INTR) => continue,
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            written => written?,
        };
        offset += written as u64;
        IoSlice::advance_slices(&mut rest, written);
    }
    Ok(offset)
}

fn read_file(file: &File, start: u64, len: usize) -> io::Result<Bytes> {
    // Filled by the kernel without being zeroed first; the capacity may exceed `len`, so the limit is kept below.
    let mut buffer = Vec::with_capacity(len);
    while buffer.len() < len {
        let at = start + buffer.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut buffer), at) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => drop(read?),
        }
    }
    buffer.truncate(len);
    Ok(buffer.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_buffers_land_one_behind_the_other_in_both_kinds() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4000).unwrap();
        for content in [Content::Disk(Arc::new(file)), Content::memory(4000).unwrap()] {
            let buffers: Vec<Bytes> = (0..1000u32).map(|n| Bytes::copy_from_slice(&n.to_be_bytes()[1..])).collect();
            content.write_at(&buffers, 500).unwrap();
            let want: Vec<u8> = buffers.concat();
            assert_eq!(content.read_at(ByteRange::new(500, 3500).unwrap()).unwrap(), want);
            assert_eq!(content.read_at(ByteRange::new(503, 509).unwrap()).unwrap(), want[3..9]);
            assert!(content.read_at(ByteRange::new(3999, 4001).unwrap()).is_err(), "behind the end");
        }
    }
}
