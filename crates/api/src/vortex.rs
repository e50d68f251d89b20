//! The framing of piece data on a host's data port (Vortex, as Dragonfly's client speaks it over TCP).
//!
//! Pure: bytes in, frames out. A frame starts with a 6-byte header (an id that nobody looks at, a tag, a length); a
//! child sends one request frame and reads one answer, then may send the next on the same connection. The header of a
//! piece's answer counts the metadata only; the piece's bytes follow behind it.
//!
//! Between our own hosts there are turns besides: a child asks for one and names the pieces that it could use, the parent
//! says when it has room to send one and which of them it has sent least, and the child asks for one of them or passes.
//!
//! **Nothing that is read is unbounded**: a request has exactly [`REQUEST_PAYLOAD`] bytes, an answer's metadata at most
//! [`MAX_METADATA`], an error at most [`MAX_ERROR`]. Where a piece belongs follows from its number; the offset in an
//! answer is read and never used.

use damselfly_core::{MAX_PIECES, PieceNumber, PieceSet, TaskId};

/// Bytes of a frame's header.
pub const HEADER: usize = 6;
/// Bytes of a request behind its header: the task id in hex digits, and the piece's number.
pub const REQUEST_PAYLOAD: usize = 68;
/// Bytes of a whole request.
pub const REQUEST: usize = HEADER + REQUEST_PAYLOAD;
/// The most bytes of a request for a turn behind its header.
const MAX_ASK: usize = REQUEST_PAYLOAD + bitmap_length(MAX_PIECES);
/// The most bytes of an answer's metadata.
pub const MAX_METADATA: usize = 4096;
/// The most bytes of an error, its code included.
pub const MAX_ERROR: usize = 1024;
/// The most bytes that [`decode_answer`] ever needs.
pub const MAX_ANSWER: usize = HEADER + 4 + MAX_METADATA;

/// The most pieces that a parent names with a turn.
pub const MAX_NAMED: usize = 64;

const TAG_REQUEST: u8 = 0;
const TAG_PIECE: u8 = 1;
/// Ours.
const TAG_ASK: u8 = 64;
/// Ours.
const TAG_TURN: u8 = 65;
/// Ours.
const TAG_PASS: u8 = 66;
const TAG_CLOSE: u8 = 254;
const TAG_ERROR: u8 = 255;

/// Bytes that are not a frame which may come here. The connection is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A tag that means nothing here.
    #[error("unexpected frame tag {0}")]
    Tag(u8),
    /// A length that the tag can't have.
    #[error("frame tag {tag} with length {length}")]
    Length {
        /// The frame's tag.
        tag: u8,
        /// The length that its header or metadata gives.
        length: u32,
    },
    /// A request whose task id is not 64 hex digits.
    #[error("the task id is not 64 hex digits")]
    TaskId,
    /// Metadata that ends within a field, or whose digest is no text.
    #[error("the piece's metadata cannot be read")]
    Metadata,
}

/// What a child asks a parent's data port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Send this piece.
    Piece {
        /// Of which task.
        task: TaskId,
        /// Which piece.
        piece: PieceNumber,
    },
    /// Give me a turn. Behind the frame that is read come so many bits, one a piece from the first on, the lowest bit of
    /// a byte first: the pieces that can be used.
    Turn {
        /// Of which task.
        task: TaskId,
        /// How many bits follow; see [`bitmap_length`].
        count: u32,
    },
    /// The turn is not used.
    Pass,
    /// No further request will come.
    Close,
}

/// What a parent says of the piece whose bytes follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceHead {
    /// Which piece.
    pub number: u32,
    /// Where it belongs, as the parent thinks: not to be trusted.
    pub offset: u64,
    /// How many bytes follow.
    pub length: u64,
    /// The CRC-32 of the bytes, if the parent gives one.
    pub crc32: Option<u32>,
    /// From which peer the parent has it, or empty.
    pub parent: String,
    /// From what kind of origin the parent has it, in the numbers of `common.v2.TrafficType`.
    pub traffic: u8,
    /// How long the parent took to fetch it, in seconds.
    pub cost: u64,
    /// When it did, in seconds since 1970.
    pub created_at: i64,
}

/// Why a parent doesn't send a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// It doesn't say, or is busy.
    Unknown,
    /// It can't make sense of the request.
    Invalid,
    /// It doesn't have the piece.
    NotFound,
    /// It failed.
    Internal,
    /// It has no turn to give at the moment. Ours: said to those who asked for a turn only.
    Busy,
}

/// What a parent answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The piece's bytes follow.
    Piece(PieceHead),
    /// The piece won't come.
    Error {
        /// Why.
        code: ErrorCode,
        /// In words.
        text: String,
    },
    /// A piece can be sent now.
    Turn {
        /// Pieces that were named, those first that the parent has sent least.
        least_sent: Vec<PieceNumber>,
    },
    /// The parent closes the connection.
    Close,
}

impl ErrorCode {
    const fn byte(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::Invalid => 1,
            Self::NotFound => 2,
            Self::Internal => 3,
            Self::Busy => 64,
        }
    }

    const fn of(byte: u8) -> Self {
        match byte {
            1 => Self::Invalid,
            2 => Self::NotFound,
            3 => Self::Internal,
            64 => Self::Busy,
            _ => Self::Unknown,
        }
    }
}

/// The request for a piece. `id` is any byte.
pub fn encode_request(id: u8, task: &TaskId, piece: PieceNumber) -> [u8; REQUEST] {
    let mut frame = [0; REQUEST];
    frame[..HEADER].copy_from_slice(&header(id, TAG_REQUEST, REQUEST_PAYLOAD as u32));
    frame[HEADER..REQUEST - 4].copy_from_slice(task.to_string().as_bytes());
    frame[REQUEST - 4..].copy_from_slice(&piece.0.to_be_bytes());
    frame
}

/// How many bytes the bits of so many pieces take.
pub const fn bitmap_length(count: u32) -> usize {
    count.div_ceil(8) as usize
}

/// The request for a turn, its bits behind it. `id` is any byte.
pub fn encode_ask(id: u8, task: &TaskId, wanted: &PieceSet) -> Vec<u8> {
    let bits = bitmap_length(wanted.count());
    let mut frame = Vec::with_capacity(REQUEST + bits);
    frame.extend(header(id, TAG_ASK, (REQUEST_PAYLOAD + bits) as u32));
    frame.extend(task.to_string().as_bytes());
    frame.extend(wanted.count().to_be_bytes());
    frame.resize(REQUEST + bits, 0);
    for piece in wanted.iter() {
        frame[REQUEST + piece.index() / 8] |= 1 << (piece.0 % 8);
    }
    frame
}

/// The pieces that the bits behind a request for a turn mean. Bits beyond `count` mean nothing.
pub fn decode_wanted(count: u32, bits: &[u8]) -> PieceSet {
    let mut wanted = PieceSet::empty(count.min(MAX_PIECES));
    for (at, byte) in bits.iter().enumerate() {
        wanted.extend((0..8).filter(|bit| byte >> bit & 1 == 1).map(|bit| PieceNumber((at * 8 + bit) as u32)));
    }
    wanted
}

/// The answer that gives a turn. At most [`MAX_NAMED`] pieces are named.
pub fn encode_turn(id: u8, least_sent: &[PieceNumber]) -> Vec<u8> {
    let named = &least_sent[..least_sent.len().min(MAX_NAMED)];
    let mut frame = Vec::with_capacity(HEADER + 4 * named.len());
    frame.extend(header(id, TAG_TURN, 4 * named.len() as u32));
    named.iter().for_each(|piece| frame.extend(piece.0.to_be_bytes()));
    frame
}

/// The request that gives a turn back: as long as every other, so that a reader of requests never reads into the next.
pub fn encode_pass(id: u8, task: &TaskId) -> [u8; REQUEST] {
    let mut frame = encode_request(id, task, PieceNumber(0));
    frame[1] = TAG_PASS;
    frame
}

/// The request at the start of `bytes`, and how many bytes it has; `None` while bytes are missing.
///
/// # Errors
/// As soon as the bytes can't become a request any more.
pub fn decode_request(bytes: &[u8]) -> Result<Option<(Request, usize)>, FrameError> {
    let Some((tag, length, payload)) = split(bytes) else { return Ok(None) };
    match (tag, length as usize) {
        (TAG_CLOSE, 0) => return Ok(Some((Request::Close, HEADER))),
        (TAG_REQUEST | TAG_PASS, REQUEST_PAYLOAD) => {}
        (TAG_ASK, REQUEST_PAYLOAD..=MAX_ASK) => {}
        (TAG_REQUEST | TAG_CLOSE | TAG_ASK | TAG_PASS, _) => return Err(FrameError::Length { tag, length }),
        _ => return Err(FrameError::Tag(tag)),
    }
    let Some((id, number)) = payload.get(..REQUEST_PAYLOAD).and_then(|payload| payload.split_last_chunk::<4>()) else {
        return Ok(None);
    };
    let id = std::str::from_utf8(id).map_err(|_| FrameError::TaskId)?;
    let task = id.parse().map_err(|_| FrameError::TaskId)?;
    let number = u32::from_be_bytes(*number);
    if tag == TAG_PASS {
        return Ok(Some((Request::Pass, REQUEST)));
    }
    if tag != TAG_ASK {
        return Ok(Some((Request::Piece { task, piece: PieceNumber(number) }, REQUEST)));
    }
    if number > MAX_PIECES || length as usize != REQUEST_PAYLOAD + bitmap_length(number) {
        return Err(FrameError::Length { tag, length });
    }
    Ok(Some((Request::Turn { task, count: number }, REQUEST)))
}

/// The answer that goes before a piece's bytes. A parent id that would not fit into the metadata is left out.
pub fn encode_piece(id: u8, head: &PieceHead) -> Vec<u8> {
    let digest = head.crc32.map(|crc32| format!("crc32:{crc32}")).unwrap_or_default();
    let fixed = 4 + 8 + 8 + 4 + 4 + 1 + 8 + 8;
    let parent = if fixed + digest.len() + head.parent.len() > MAX_METADATA { "" } else { &head.parent };
    let metadata = fixed + digest.len() + parent.len();
    let mut frame = Vec::with_capacity(HEADER + 4 + metadata);
    frame.extend(header(id, TAG_PIECE, 4 + metadata as u32));
    frame.extend((metadata as u32).to_be_bytes());
    frame.extend(head.number.to_be_bytes());
    frame.extend(head.offset.to_be_bytes());
    frame.extend(head.length.to_be_bytes());
    frame.extend((digest.len() as u32).to_be_bytes());
    frame.extend(digest.as_bytes());
    frame.extend((parent.len() as u32).to_be_bytes());
    frame.extend(parent.as_bytes());
    frame.push(head.traffic);
    frame.extend(head.cost.to_be_bytes());
    frame.extend(head.created_at.to_be_bytes());
    frame
}

/// The answer that says why there is no piece. A text that is too long is cut.
pub fn encode_error(id: u8, code: ErrorCode, text: &str) -> Vec<u8> {
    let text = &text[..text.floor_char_boundary(MAX_ERROR - 1)];
    let mut frame = Vec::with_capacity(HEADER + 1 + text.len());
    frame.extend(header(id, TAG_ERROR, 1 + text.len() as u32));
    frame.push(code.byte());
    frame.extend(text.as_bytes());
    frame
}

/// The answer at the start of `bytes`, and how many bytes it has without the piece's; `None` while bytes are missing.
///
/// # Errors
/// As soon as the bytes can't become an answer any more.
pub fn decode_answer(bytes: &[u8]) -> Result<Option<(Answer, usize)>, FrameError> {
    let Some((tag, length, payload)) = split(bytes) else { return Ok(None) };
    let len = length as usize;
    let bad = FrameError::Length { tag, length };
    match tag {
        TAG_CLOSE if len == 0 => Ok(Some((Answer::Close, HEADER))),
        TAG_PIECE if (4..=4 + MAX_METADATA).contains(&len) => {
            let Some((metadata, payload)) = payload.split_first_chunk::<4>() else { return Ok(None) };
            if u32::from_be_bytes(*metadata) as usize != len - 4 {
                return Err(FrameError::Length { tag, length: u32::from_be_bytes(*metadata) });
            }
            let Some(metadata) = payload.get(..len - 4) else { return Ok(None) };
            let head = Fields(metadata).head().ok_or(FrameError::Metadata)?;
            Ok(Some((Answer::Piece(head), HEADER + len)))
        }
        TAG_ERROR if (1..=MAX_ERROR).contains(&len) => {
            let Some((code, text)) = payload.get(..len).and_then(<[u8]>::split_first) else { return Ok(None) };
            let (code, text) = (ErrorCode::of(*code), String::from_utf8_lossy(text).into_owned());
            Ok(Some((Answer::Error { code, text }, HEADER + len)))
        }
        TAG_TURN if len <= 4 * MAX_NAMED && len.is_multiple_of(4) => {
            let Some(named) = payload.get(..len) else { return Ok(None) };
            let (named, _) = named.as_chunks::<4>();
            let least_sent = named.iter().map(|number| PieceNumber(u32::from_be_bytes(*number))).collect();
            Ok(Some((Answer::Turn { least_sent }, HEADER + len)))
        }
        TAG_CLOSE | TAG_PIECE | TAG_ERROR | TAG_TURN => Err(bad),
        _ => Err(FrameError::Tag(tag)),
    }
}

const fn header(id: u8, tag: u8, length: u32) -> [u8; HEADER] {
    let [a, b, c, d] = length.to_be_bytes();
    [id, tag, a, b, c, d]
}

/// Tag, length, and whatever is there behind the header.
fn split(bytes: &[u8]) -> Option<(u8, u32, &[u8])> {
    let (&[_, tag, a, b, c, d], rest) = bytes.split_first_chunk::<HEADER>()?;
    Some((tag, u32::from_be_bytes([a, b, c, d]), rest))
}

/// What is left of the metadata to read.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn head(&mut self) -> Option<PieceHead> {
        Some(PieceHead {
            number: u32::from_be_bytes(self.array()?),
            offset: u64::from_be_bytes(self.array()?),
            length: u64::from_be_bytes(self.array()?),
            crc32: self.digest()?,
            parent: String::from_utf8_lossy(self.string()?).into_owned(),
            traffic: self.array::<1>()?[0],
            cost: u64::from_be_bytes(self.array()?),
            created_at: i64::from_be_bytes(self.array()?),
        })
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let len = u32::from_be_bytes(self.array()?) as usize;
        let (string, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(string)
    }

    /// A digest of another form is as good as none: what is compared beyond it is our own.
    fn digest(&mut self) -> Option<Option<u32>> {
        let text = std::str::from_utf8(self.string()?).ok()?;
        match text.strip_prefix("crc32:") {
            Some(decimal) => Some(decimal.parse().ok()),
            None => Some(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head() -> PieceHead {
        PieceHead {
            number: 7,
            offset: 7 << 22,
            length: 1 << 22,
            crc32: Some(2_253_507_593),
            parent: "10.0.0.1-a-x".into(),
            traffic: 2,
            cost: 3,
            created_at: -1,
        }
    }

    #[test]
    fn requests_are_dragonflys_bytes() {
        let task = TaskId::from_bytes([0xab; 32]);
        let frame = encode_request(9, &task, PieceNumber(258));
        let want = [&[9, 0, 0, 0, 0, 68], "ab".repeat(32).as_bytes(), &[0, 0, 1, 2]].concat();
        assert_eq!(frame.as_slice(), want);
        assert_eq!(decode_request(&frame), Ok(Some((Request::Piece { task, piece: PieceNumber(258) }, REQUEST))));
        for cut in 0..REQUEST {
            assert_eq!(decode_request(&frame[..cut]), Ok(None), "cut at {cut}");
        }
        assert_eq!(decode_request(&[1, 254, 0, 0, 0, 0]), Ok(Some((Request::Close, HEADER))));
    }

    #[test]
    fn turns_are_asked_for_and_given() {
        let task = TaskId::from_bytes([0xab; 32]);
        let mut wanted = PieceSet::empty(11);
        wanted.extend([0, 7, 10].map(PieceNumber));
        let frame = encode_ask(1, &task, &wanted);
        assert_eq!(frame[REQUEST..], [0b1000_0001, 0b100]);
        assert_eq!(decode_request(&frame), Ok(Some((Request::Turn { task, count: 11 }, REQUEST))));
        assert_eq!(decode_wanted(11, &frame[REQUEST..]), wanted);
        assert!(decode_wanted(3, &[0xff]).is_full(), "bits beyond the count mean nothing");
        for cut in 0..REQUEST {
            assert_eq!(decode_request(&frame[..cut]), Ok(None), "cut at {cut}");
        }
        let mut longer = frame.clone();
        longer[5] += 1;
        assert!(matches!(decode_request(&longer), Err(FrameError::Length { .. })), "more bits than pieces");
        assert_eq!(decode_request(&encode_pass(1, &task)), Ok(Some((Request::Pass, REQUEST))));
        let least_sent = vec![PieceNumber(10), PieceNumber(0)];
        let frame = encode_turn(1, &least_sent);
        for cut in 0..frame.len() {
            assert_eq!(decode_answer(&frame[..cut]), Ok(None), "cut at {cut}");
        }
        assert_eq!(decode_answer(&frame), Ok(Some((Answer::Turn { least_sent }, frame.len()))));
        assert!(encode_turn(1, &[PieceNumber(1); 99]).len() <= MAX_ANSWER);
    }

    #[test]
    fn other_requests_are_refused_at_their_header() {
        for (header, want) in [
            ([0, 0, 0, 0, 0, 67], FrameError::Length { tag: 0, length: 67 }),
            ([0, 0, 255, 255, 255, 255], FrameError::Length { tag: 0, length: u32::MAX }),
            ([0, 254, 0, 0, 0, 1], FrameError::Length { tag: 254, length: 1 }),
            ([0, 1, 0, 0, 0, 68], FrameError::Tag(1)),
            (*b"GET / ", FrameError::Tag(b'E')),
        ] {
            assert_eq!(decode_request(&header), Err(want), "{header:?}");
        }
        let mut frame = encode_request(0, &TaskId::from_bytes([0; 32]), PieceNumber(0));
        frame[20] = b'/';
        assert_eq!(decode_request(&frame), Err(FrameError::TaskId));
        frame[20] = 0xff;
        assert_eq!(decode_request(&frame), Err(FrameError::TaskId));
    }

    #[test]
    fn answers_are_dragonflys_bytes() {
        let frame = encode_piece(0, &PieceHead { parent: "p".into(), crc32: Some(5), ..head() });
        let metadata: &[&[u8]] = &[
            &[0, 0, 0, 7],
            &[0, 0, 0, 0, 1, 192, 0, 0],
            &[0, 0, 0, 0, 0, 64, 0, 0],
            &[0, 0, 0, 7],
            b"crc32:5",
            &[0, 0, 0, 1],
            b"p",
            &[2],
            &[0, 0, 0, 0, 0, 0, 0, 3],
            &[255; 8],
        ];
        let metadata = metadata.concat();
        let (counted, len) = ([4 + metadata.len() as u8], [metadata.len() as u8]);
        let want = [&[0, 1, 0, 0, 0], counted.as_slice(), &[0, 0, 0], &len, &metadata].concat();
        assert_eq!(frame, want);
        let error = encode_error(3, ErrorCode::NotFound, "no");
        assert_eq!(error, [3, 255, 0, 0, 0, 3, 2, b'n', b'o']);
    }

    #[test]
    fn answers_read_what_they_write_and_wait_for_the_rest() {
        let error = Answer::Error { code: ErrorCode::Internal, text: "é".into() };
        for (frame, want) in [
            (encode_piece(1, &head()), Answer::Piece(head())),
            (encode_piece(1, &PieceHead { crc32: None, ..head() }), Answer::Piece(PieceHead { crc32: None, ..head() })),
            (encode_error(1, ErrorCode::Internal, "é"), error),
            (vec![1, 254, 0, 0, 0, 0], Answer::Close),
        ] {
            for cut in 0..frame.len() {
                assert_eq!(decode_answer(&frame[..cut]), Ok(None), "{want:?} cut at {cut}");
            }
            let longer = [frame.as_slice(), b"content"].concat();
            assert_eq!(decode_answer(&longer), Ok(Some((want, frame.len()))));
        }
    }

    #[test]
    fn fields_behind_those_we_know_are_ignored() {
        let mut frame = encode_piece(1, &head());
        frame.extend([1, 2, 3]);
        frame[5] += 3;
        frame[9] += 3;
        assert_eq!(decode_answer(&frame), Ok(Some((Answer::Piece(head()), frame.len()))));
    }

    #[test]
    fn answers_out_of_bounds_are_refused_at_their_header() {
        let tag = |tag, length: u32| [&[0, tag][..], &length.to_be_bytes()].concat();
        for (tag_byte, length) in
            [(1, 3), (1, 4 + MAX_METADATA as u32 + 1), (1, u32::MAX), (254, 1), (255, 0), (255, 1025)]
        {
            let want = Err(FrameError::Length { tag: tag_byte, length });
            assert_eq!(decode_answer(&tag(tag_byte, length)), want, "{tag_byte} {length}");
        }
        assert_eq!(decode_answer(&tag(0, 68)), Err(FrameError::Tag(0)));
        let mut frame = encode_piece(1, &head());
        frame[9] ^= 1;
        assert!(matches!(decode_answer(&frame), Err(FrameError::Length { .. })), "two lengths that disagree");
        let mut frame = encode_piece(1, &head());
        frame[30] = 200;
        assert_eq!(decode_answer(&frame), Err(FrameError::Metadata), "a field that is longer than the rest");
    }

    #[test]
    fn a_digest_that_we_do_not_understand_is_none() {
        let frame = encode_piece(1, &head());
        let at = frame.windows(6).position(|window| window == b"crc32:").unwrap();
        for (offset, with) in [(0, b'x'), (6, b'x'), (6, b'9')] {
            let mut frame = frame.clone();
            frame[at + offset] = with;
            let Ok(Some((Answer::Piece(read), _))) = decode_answer(&frame) else { panic!("refused") };
            assert_eq!(read.crc32, None, "also one that is greater than 32 bits");
        }
    }

    #[test]
    fn what_we_send_is_within_our_own_bounds() {
        let frame = encode_error(0, ErrorCode::Unknown, &"é".repeat(2000));
        assert!(matches!(decode_answer(&frame), Ok(Some((Answer::Error { .. }, len))) if len == frame.len()));
        let frame = encode_piece(0, &PieceHead { parent: "x".repeat(9000), ..head() });
        assert!(frame.len() <= MAX_ANSWER);
        let want = Answer::Piece(PieceHead { parent: String::new(), ..head() });
        assert_eq!(decode_answer(&frame), Ok(Some((want, frame.len()))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_frame_or_refused_or_too_few(bytes in prop::collection::vec(any::<u8>(), 0..200), tag: u8) {
            for bytes in [bytes.clone(), [&[0, tag, 0, 0, 0][..], &bytes].concat()] {
                if let Ok(Some((_, len))) = decode_request(&bytes) {
                    prop_assert!(len <= bytes.len());
                }
                if let Ok(Some((_, len))) = decode_answer(&bytes) {
                    prop_assert!(len <= bytes.len());
                }
            }
        }

        #[test]
        fn damaged_frames_never_panic(at in 0usize..80, with: u8) {
            let mut frame = encode_piece(0, &head());
            let at = at % frame.len();
            frame[at] = with;
            let _ = decode_answer(&frame);
            let mut frame = encode_request(0, &TaskId::from_bytes([1; 32]), PieceNumber(1));
            frame[at % REQUEST] = with;
            let _ = decode_request(&frame);
        }

        #[test]
        fn the_decoder_never_waits_for_more_than_its_bound(bytes in prop::collection::vec(any::<u8>(), MAX_ANSWER..MAX_ANSWER + 9), tag in 0u8..3, len: u16) {
            let mut bytes = bytes;
            bytes[1] = if tag == 2 { 255 } else { tag };
            bytes[2..6].copy_from_slice(&u32::from(len).to_be_bytes());
            prop_assert!(!matches!(decode_answer(&bytes), Ok(None)));
            prop_assert!(!matches!(decode_request(&bytes), Ok(None)));
        }

        #[test]
        fn heads_round_trip(number: u32, offset: u64, length: u64, crc32: Option<u32>, parent in "[ -~]{0,60}", cost: u64, created_at: i64, traffic: u8) {
            let head = PieceHead { number, offset, length, crc32, parent, traffic, cost, created_at };
            let frame = encode_piece(0, &head);
            prop_assert_eq!(decode_answer(&frame), Ok(Some((Answer::Piece(head), frame.len()))));
        }
    }
}
