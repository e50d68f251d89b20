//! Fuzz targets: functions that take any bytes and panic where something does not hold that has to.
//!
//! libFuzzer calls them from `fuzz_targets/` (`just fuzz TARGET SECONDS`). `tests/corpus.rs` calls them on the stable
//! toolchain with every file of `corpus/` and with mutations of these, drawn from a seed.

pub use damselfly::fuzzing::{answer_head, authority, client_hello, detection, request};
use damselfly_api::convert;
use damselfly_api::vortex::{self, Answer, Request};
use damselfly_core::{Blake3, Digest, Identity, PieceNumber, PieceSet, TaskId};
use damselfly_download::model::Run;
use prost::Message;

/// A target: a function of bytes.
pub type Target = fn(&[u8]);

/// Every target with its name, which is also that of its corpus.
pub const TARGETS: [(&str, Target); 9] = [
    ("detection", detection),
    ("request", request),
    ("authority", authority),
    ("client_hello", client_hello),
    ("answer_head", answer_head),
    ("vortex", vortex),
    ("messages", messages),
    ("identity", identity),
    ("download", download),
];

/// Frames of the data port: read however they come, within their bounds, and written as they were read.
pub fn vortex(bytes: &[u8]) {
    if let Ok(Some((request, length))) = vortex::decode_request(bytes) {
        assert!(length <= bytes.len());
        assert!(matches!(vortex::decode_request(&bytes[..length - 1]), Ok(None)), "a part of it is no request");
        let id = bytes[0];
        match request {
            Request::Piece { task, piece } => {
                assert!(same_but_for_case(&vortex::encode_request(id, &task, piece), &bytes[..length]));
            }
            Request::Turn { count, .. } => {
                let wanted = vortex::decode_wanted(count, &bytes[length..]);
                assert!(wanted.iter().all(|piece| piece.0 < count));
            }
            Request::Pass | Request::Close => {}
        }
    }
    if let Ok(Some((answer, length))) = vortex::decode_answer(bytes) {
        assert!(length <= bytes.len());
        assert!(matches!(vortex::decode_answer(&bytes[..length - 1]), Ok(None)), "a part of it is no answer");
        let written = match &answer {
            Answer::Piece(head) => vortex::encode_piece(bytes[0], head),
            Answer::Error { code, text } => vortex::encode_error(bytes[0], *code, text),
            Answer::Turn { least_sent } => vortex::encode_turn(bytes[0], least_sent),
            Answer::Close => return,
        };
        let again = vortex::decode_answer(&written).ok().flatten().map(|(answer, _)| answer);
        assert_eq!(again.as_ref().map(kind), Some(kind(&answer)));
    }
}

fn kind(answer: &Answer) -> std::mem::Discriminant<Answer> {
    std::mem::discriminant(answer)
}

/// A task id may be written in either case.
fn same_but_for_case(a: &[u8], b: &[u8]) -> bool {
    a.eq_ignore_ascii_case(b)
}

/// Messages of peers and schedulers: what makes no sense is refused, what does is within its bounds. The first byte
/// chooses the message.
pub fn messages(bytes: &[u8]) {
    use damselfly_api::{dfdaemon, ours, scheduler};

    fn with<M: Message + Default>(bytes: &[u8], judge: impl FnOnce(M)) {
        if let Ok(message) = M::decode(bytes) {
            judge(message);
        }
    }

    let Some((which, bytes)) = bytes.split_first() else { return };
    match which % 8 {
        0 => with(bytes, |said: dfdaemon::SyncPiecesResponse| {
            let _ = convert::parent_piece_from_wire(&said);
        }),
        1 => with(bytes, |request: dfdaemon::SyncPiecesRequest| {
            let _ = convert::pieces_wanted_from_wire(&request);
        }),
        2 => with(bytes, |request: ours::AnnounceHoldingsRequest| {
            let Ok(holdings) = convert::holdings_from_wire(request) else { return };
            for part in convert::holdings_to_wire(&holdings) {
                assert!(convert::holdings_from_wire(part).is_ok(), "what is read can be said");
            }
        }),
        3 => with(bytes, |message: scheduler::AnnouncePeerResponse| {
            let _ = convert::answer_from_wire(message);
        }),
        4 => with(bytes, |message: scheduler::AnnouncePeerRequest| {
            let _ = convert::peer_says(message);
        }),
        5 => with(bytes, |request: scheduler::AnnounceHostRequest| {
            let Ok((host, interval)) = convert::host_from_wire(request) else { return };
            let again = convert::host_to_wire(&host, interval.unwrap_or_default());
            assert!(convert::host_from_wire(again).is_ok(), "what is read can be said");
        }),
        6 => with(bytes, |request: dfdaemon::DownloadTaskRequest| {
            let Ok(wish) = convert::seed_wish_from_wire(request) else { return };
            let _ = convert::seed_wish_to_wire(&wish);
        }),
        _ => pieces(bytes),
    }
}

/// A set of pieces is what a plain set of numbers is.
fn pieces(bytes: &[u8]) {
    let Some((&count, operations)) = bytes.split_first() else { return };
    let count = u32::from(count) * 3;
    let (mut set, mut plain) = (PieceSet::empty(count), std::collections::BTreeSet::new());
    for two in operations.chunks_exact(2) {
        let piece = PieceNumber(u32::from(two[0]) * 3 + u32::from(two[1] >> 6));
        if two[1] & 1 == 0 {
            let inserted = piece.0 < count && plain.insert(piece);
            assert_eq!(set.insert(piece), inserted);
        } else {
            assert_eq!(set.remove(piece), plain.remove(&piece));
        }
        assert_eq!(set.contains(piece), plain.contains(&piece));
    }
    assert!(set.iter().eq(plain.iter().copied()));
    assert_eq!((set.len() as usize, set.is_empty()), (plain.len(), plain.is_empty()));
}

/// Names of contents and tasks: what is read is written the same.
pub fn identity(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(identity) = Identity::from_content(text) {
        assert_eq!(identity.content().as_deref(), Some(text));
        assert_eq!(Identity::from_content(text).map(|again| again.task_id()), Some(identity.task_id()));
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert!(text.eq_ignore_ascii_case(&digest.to_string()));
    }
    if let Ok(id) = text.parse::<TaskId>() {
        assert!(text.eq_ignore_ascii_case(&id.to_string()));
    }
    if let Ok(hash) = text.parse::<Blake3>() {
        assert!(text.to_ascii_lowercase().ends_with(&hash.to_string()));
    }
    let _ = convert::task_id(text);
    if let Some(resource) = damselfly::registry::Resource::parse(text)
        && let Some(repository) = resource.repository()
    {
        assert!(!repository.is_empty() && text.contains(repository));
    }
}

/// The download machine, by a list of operations.
pub fn download(bytes: &[u8]) {
    Run::of_bytes(bytes);
}
