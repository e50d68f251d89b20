//! Ranged reads: what they cost the origin, what they take on the disk, and what is kept of them.

use crate::harness::{Access, Answer, Ask, Daemon, Image, MIB, Origin, Page, TestRegistry, all, random};

const REPOSITORY: &str = "team/app";

/// What recognising a file may cost at its origin, besides the content.
const PROBE: u64 = 1;

/// A span of bytes, the end not included.
type Span = std::ops::Range<usize>;

fn ranged(url: &str, daemon: &Daemon, span: &Span) -> Ask {
    Ask::get(url).via(daemon.proxy()).header("Range", &format!("bytes={}-{}", span.start, span.end - 1))
}

#[track_caller]
fn assert_span(answer: &Answer, span: &Span, content: &[u8]) {
    assert_eq!(answer.status, 206, "{span:?}");
    answer.assert_body(&content[span.clone()]);
}

/// `count` spans of `length` bytes, anywhere, the same for the same seed.
fn anywhere(count: usize, length: usize, content: usize, seed: u64) -> Vec<Span> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let starts = (0..count).map(|_| rng.usize(..content - length));
    starts.map(|start| start..start + length).collect()
}

#[test]
fn a_range_takes_room_for_its_pieces_and_nothing_goes_for_the_rest() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").set("gc.policy.diskThreshold", "32MiB").start();
    let complete: Vec<_> = (0..3).map(|seed| random(9 * MIB, 300 + seed)).collect();
    for (number, file) in complete.iter().enumerate() {
        origin.put(&format!("/{number}.bin"), Page::file(file.clone()));
        daemon.get(&origin.url(&format!("/{number}.bin"))).assert_is(file);
    }
    let long = random(90 * MIB, 310);
    origin.put("/long.bin", Page::file(long.clone()));
    let span = 40 * MIB + 5..40 * MIB + 105;
    for _ in 0..2 {
        assert_span(&ranged(&origin.url("/long.bin"), &daemon, &span).send(), &span, &long);
    }
    let sent = origin.sent("/long.bin");
    assert!(sent <= MIB as u64 + 2 * PROBE, "100 bytes cost {sent}");
    assert_eq!(daemon.metric(&["storage_evictions"]), 0.0);
    assert_eq!(daemon.metric(&["storage_bytes"]), 28.0 * MIB as f64);
    for (number, file) in complete.iter().enumerate() {
        let path = format!("/{number}.bin");
        let before = origin.sent(&path);
        daemon.get(&origin.url(&path)).assert_is(file);
        assert!(origin.sent(&path) - before <= PROBE, "{path} was not held any more");
    }
    // More than there can be room for is passed through, and nothing goes for it either.
    daemon.get(&origin.url("/long.bin")).assert_is(&long);
    assert_eq!(daemon.metric(&["storage_evictions"]), 0.0);
}

#[test]
fn what_is_held_of_a_blob_is_served_whatever_else_is_missing() {
    const PIECE: usize = 4 * MIB;
    let registry = TestRegistry::plan(Access::Open).start();
    let image = Image::new(8 * PIECE, 320);
    registry.publish(&image, REPOSITORY, "1");
    let daemon = Daemon::plan("h1").start();
    let url = registry.url(&image.layer_path(REPOSITORY));
    // All but the piece in the middle.
    for span in [0..4 * PIECE, 5 * PIECE..image.layer.len()] {
        assert_span(&ranged(&url, &daemon, &span).send(), &span, &image.layer);
    }
    let before = registry.blob_bytes();
    let held = |span: &Span| span.end <= 4 * PIECE || span.start >= 5 * PIECE;
    let spans = anywhere(200, 32 << 10, image.layer.len(), 321);
    let (held, others): (Vec<_>, Vec<_>) = spans.into_iter().partition(held);
    assert!(held.len() > 100 && others.len() > 5);
    for span in &held[..10] {
        assert_span(&ranged(&url, &daemon, span).send(), span, &image.layer);
    }
    for some in held.chunks(50) {
        let answers = all(some.iter().map(|span| ranged(&url, &daemon, span)));
        some.iter().zip(&answers).for_each(|(span, answer)| assert_span(answer, span, &image.layer));
    }
    assert_eq!(registry.blob_bytes() - before, 0, "what is held was asked for again");
    let mut mixed = others.clone();
    mixed.extend_from_slice(&held);
    let answers = all(mixed.iter().map(|span| ranged(&url, &daemon, span)));
    mixed.iter().zip(&answers).for_each(|(span, answer)| assert_span(answer, span, &image.layer));
    assert!(registry.blob_bytes() - before <= PIECE as u64, "cost {}", registry.blob_bytes() - before);
    daemon.get(&url).assert_is(&image.layer);
    assert!(registry.blob_bytes() - before <= PIECE as u64, "the whole is here by now");
}
