//! How a task, a piece and a task's state are written into the metadata store.
//!
//! Every value starts with the version of its encoding. A version that this program does not know is left alone as
//! unreadable: the task is dropped with its file, which costs a download and never a wrong byte. Integers are
//! big-endian; a text or byte string is its length (u32) and its bytes; an optional one has a presence byte before it.
//!
//! | value | encoding |
//! | --- | --- |
//! | task | version, length u64, piece length u64, created u64 (unix s), digest (optional, 32 bytes of SHA-256 or 64 of SHA-512), origin: url, content (optional), digest (optional), tag, application; number of headers u32, each name and value |
//! | piece (key: task id, number u32) | version, crc32 u32, blake3 32 bytes |
//! | state | version, flags u8 (1: whole digest verified, 2: private, 4: for this host alone), last access u64 (unix s) |

use damselfly_core::swarm::Origin;
use damselfly_core::{Audience, Blake3, Digest, Geometry, PieceDigest, PieceNumber, TaskId};

const VERSION: u8 = 1;
const VERIFIED: u8 = 1;
const PRIVATE: u8 = 2;
const HOST_ONLY: u8 = 4;

/// The most bytes of a task's record.
pub(super) const MAX_RECORD: usize = 256 << 10;

/// The bytes of a piece's key and value, and of a state.
pub(super) const PIECE_KEY: usize = 36;
pub(super) const PIECE_VALUE: usize = 37;
pub(super) const STATE_VALUE: usize = 10;

/// What is kept of a task for as long as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TaskRecord {
    pub(super) geometry: Geometry,
    pub(super) created: u64,
    pub(super) digest: Option<Digest>,
    pub(super) origin: Origin,
    pub(super) headers: Vec<(String, Vec<u8>)>,
}

/// What changes of a task while it is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StateRecord {
    pub(super) verified: bool,
    pub(super) audience: Audience,
    pub(super) last_access: u64,
}

impl TaskRecord {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend(self.geometry.length().to_be_bytes());
        out.extend(self.geometry.piece_length().to_be_bytes());
        out.extend(self.created.to_be_bytes());
        put_optional(&mut out, self.digest.as_ref().map(Digest::as_bytes));
        put(&mut out, self.origin.url.as_bytes());
        put_optional(&mut out, self.origin.content.as_deref().map(str::as_bytes));
        put_optional(&mut out, self.origin.digest.as_deref().map(str::as_bytes));
        put(&mut out, self.origin.tag.as_bytes());
        put(&mut out, self.origin.application.as_bytes());
        out.extend((self.headers.len() as u32).to_be_bytes());
        for (name, value) in &self.headers {
            put(&mut out, name.as_bytes());
            put(&mut out, value);
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader(bytes);
        if bytes.len() > MAX_RECORD || from.byte()? != VERSION {
            return None;
        }
        let geometry = Geometry::new(from.u64()?, from.u64()?).ok()?;
        let created = from.u64()?;
        let digest = match from.optional(Reader::string)? {
            Some(bytes) => Some(Digest::from_bytes(bytes)?),
            None => None,
        };
        let origin = Origin {
            url: from.text()?,
            content: from.optional(Reader::text)?,
            digest: from.optional(Reader::text)?,
            tag: from.text()?,
            application: from.text()?,
            private: false,
            plain: None,
        };
        let headers =
            (0..from.u32()?).map(|_| Some((from.text()?, from.string()?.to_vec()))).collect::<Option<Vec<_>>>()?;
        from.0.is_empty().then_some(Self { geometry, created, digest, origin, headers })
    }
}

impl StateRecord {
    pub(super) fn encode(self) -> [u8; STATE_VALUE] {
        let mut out = [0; STATE_VALUE];
        out[0] = VERSION;
        out[1] = if self.verified { VERIFIED } else { 0 }
            | match self.audience {
                Audience::Public => 0,
                Audience::Private => PRIVATE,
                Audience::Host => PRIVATE | HOST_ONLY,
            };
        out[2..].copy_from_slice(&self.last_access.to_be_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8; STATE_VALUE]) -> Option<Self> {
        let mut from = Reader(bytes);
        if from.byte()? != VERSION {
            return None;
        }
        let flags = from.byte()?;
        let audience = match (flags & PRIVATE != 0, flags & HOST_ONLY != 0) {
            (_, true) => Audience::Host,
            (true, false) => Audience::Private,
            (false, false) => Audience::Public,
        };
        Some(Self { verified: flags & VERIFIED != 0, audience, last_access: from.u64()? })
    }
}

pub(super) fn piece_key(task: &TaskId, piece: PieceNumber) -> [u8; PIECE_KEY] {
    let mut key = [0; PIECE_KEY];
    key[..32].copy_from_slice(task.as_bytes());
    key[32..].copy_from_slice(&piece.0.to_be_bytes());
    key
}

pub(super) fn read_piece_key(key: &[u8; PIECE_KEY]) -> Option<(TaskId, PieceNumber)> {
    let mut from = Reader(key);
    let task = TaskId::from_bytes(from.take(32)?.try_into().ok()?);
    Some((task, PieceNumber(from.u32()?)))
}

pub(super) fn encode_piece(digest: &PieceDigest) -> [u8; PIECE_VALUE] {
    let mut out = [0; PIECE_VALUE];
    out[0] = VERSION;
    out[1..5].copy_from_slice(&digest.crc32.to_be_bytes());
    out[5..].copy_from_slice(&digest.blake3.0);
    out
}

pub(super) fn decode_piece(bytes: &[u8; PIECE_VALUE]) -> Option<PieceDigest> {
    let mut from = Reader(bytes);
    if from.byte()? != VERSION {
        return None;
    }
    Some(PieceDigest { crc32: from.u32()?, blake3: Blake3(from.take(32)?.try_into().ok()?) })
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    // Nothing longer is ever kept: the caller refuses records above MAX_RECORD.
    out.extend((bytes.len() as u32).to_be_bytes());
    out.extend(bytes);
}

fn put_optional(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    out.push(u8::from(bytes.is_some()));
    if let Some(bytes) = bytes {
        put(out, bytes);
    }
}

/// What is left of the bytes to decode; every step says `None` when they end too early.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()? as usize;
        self.take(len)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.string()?.to_vec()).ok()
    }

    fn optional<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.byte()? {
            0 => Some(None),
            1 => read(self).map(Some),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record() -> TaskRecord {
        TaskRecord {
            geometry: Geometry::new(1000, 300).unwrap(),
            created: 7,
            digest: Some(Digest::sha256([9; 32])),
            origin: Origin {
                url: "http://a/b".into(),
                content: Some("c".into()),
                digest: None,
                tag: "t".into(),
                application: String::new(),
                private: false,
                plain: None,
            },
            headers: vec![("etag".into(), b"\"x\"".to_vec()), ("x".into(), vec![0xff, 0])],
        }
    }

    #[test]
    fn records_read_what_they_write() {
        let bytes = record().encode();
        assert_eq!(TaskRecord::decode(&bytes), Some(record()));
        for cut in 0..bytes.len() {
            assert_eq!(TaskRecord::decode(&bytes[..cut]), None, "cut at {cut}");
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert_eq!(TaskRecord::decode(&longer), None, "bytes left over");
        let mut newer = bytes;
        newer[0] = VERSION + 1;
        assert_eq!(TaskRecord::decode(&newer), None, "another version");

        for audience in [Audience::Public, Audience::Private, Audience::Host] {
            let state = StateRecord { verified: true, audience, last_access: 1 << 40 };
            assert_eq!(StateRecord::decode(&state.encode()), Some(state));
        }
        let digest = PieceDigest::of(b"abc");
        assert_eq!(decode_piece(&encode_piece(&digest)), Some(digest));
        let task = TaskId::from_bytes([3; 32]);
        assert_eq!(read_piece_key(&piece_key(&task, PieceNumber(77))), Some((task, PieceNumber(77))));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0usize..90, with: u8) {
            let _ = TaskRecord::decode(&bytes);
            let mut damaged = record().encode();
            let at = at % damaged.len();
            damaged[at] = with;
            let _ = TaskRecord::decode(&damaged);
        }
    }
}
