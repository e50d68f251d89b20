//! Ranged reads: what they cost the origin, what they take on the disk, and what is kept of them.

use crate::harness::{
    Access, Answer, Ask, Daemon, Fleet, Gate, Image, MIB, Origin, Page, TestRegistry, all, random, wait_for,
};

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

/// The bytes of the pieces that these spans touch.
fn touched(spans: &[Span], piece: usize, length: usize) -> u64 {
    let pieces: std::collections::BTreeSet<usize> =
        spans.iter().flat_map(|span| span.start / piece..span.end.div_ceil(piece)).collect();
    pieces.into_iter().map(|number| ((number + 1) * piece).min(length) - number * piece).sum::<usize>() as u64
}

#[test]
fn scattered_reads_cost_the_pieces_that_they_touch_once_and_the_next_host_nothing() {
    let origin = Origin::start();
    let registry = TestRegistry::plan(Access::Open).start();
    let fleet = Fleet::start(2);
    let image = Image::new(28 * MIB, 330);
    registry.publish(&image, REPOSITORY, "1");
    let file = random(64 * MIB, 331);
    origin.put("/big.bin", Page::plain(file.clone()).header("ETag", "\"1\"").with_ranges());
    let (blob_url, url) = (registry.url(&image.layer_path(REPOSITORY)), origin.url("/big.bin"));
    type Sent<'a> = &'a dyn Fn() -> u64;
    let cases: [(&str, usize, &[u8], Sent<'_>); 2] = [
        (&url, MIB, &file, &|| origin.sent("/big.bin")),
        (&blob_url, 4 * MIB, &image.layer, &|| registry.blob_bytes()),
    ];
    for (url, piece, content, sent) in cases {
        // Few enough that some pieces are not touched.
        let spans = anywhere(7, 32 << 10, content.len(), 332);
        let most = touched(&spans, piece, content.len());
        assert!(most < content.len() as u64, "{most}");
        for (host, daemon) in fleet.hosts.iter().enumerate() {
            for round in 0..2 {
                let before = sent();
                for some in spans.chunks(3) {
                    let answers = all(some.iter().map(|span| ranged(url, daemon, span)));
                    some.iter().zip(&answers).for_each(|(span, answer)| assert_span(answer, span, content));
                }
                let cost = sent() - before;
                // Of a content without a digest the next host compares one piece with the source.
                let compared = if url.ends_with(".bin") { piece as u64 } else { 0 };
                let most = match (host, round) {
                    (0, 0) => most + most / 10,
                    (_, 0) => compared + spans.len() as u64 * PROBE,
                    _ => spans.len() as u64 * PROBE,
                };
                assert!(cost <= most, "round {round} at host {host} cost {cost}, at most {most}: {url}");
            }
        }
    }
}

#[test]
fn what_was_under_way_when_a_reader_left_is_kept() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    let file = random(16 * MIB, 340);
    let gate = Gate::at(MIB / 2);
    origin.put("/big.bin", Page::file(file.clone()).gate(&gate));
    let span = 0..3 * MIB;
    let mut open = ranged(&origin.url("/big.bin"), &daemon, &span).open();
    assert!(open.read(MIB / 2)[..MIB / 2] == file[..MIB / 2]);
    drop(open);
    gate.open();
    wait_for("the piece under way", || (daemon.metric(&["storage_pieces_written"]) >= 1.0).then_some(()));
    wait_for("the end of the download", || (daemon.metric(&["concurrent_download_task"]) == 0.0).then_some(()));
    let before = origin.sent("/big.bin");
    let span = MIB / 2..MIB;
    assert_span(&ranged(&origin.url("/big.bin"), &daemon, &span).send(), &span, &file);
    assert!(origin.sent("/big.bin") - before <= PROBE, "the piece was not kept");
}

#[test]
fn the_end_of_a_file_does_not_wait_for_its_beginning() {
    let origin = Origin::start();
    let daemon = Daemon::plan("h1").start();
    let file = random(40 * MIB, 345);
    // Of each answer only the beginning comes.
    let gate = Gate::at(2 * MIB);
    origin.put("/big.bin", Page::file(file.clone()).gate(&gate));
    let mut whole = Ask::get(&origin.url("/big.bin")).via(daemon.proxy()).open();
    let begun = whole.read(MIB);
    let end = file.len() - 1000..file.len();
    assert_span(&ranged(&origin.url("/big.bin"), &daemon, &end).send(), &end, &file);
    let middle = 20 * MIB + 7..20 * MIB + 9;
    assert_span(&ranged(&origin.url("/big.bin"), &daemon, &middle).send(), &middle, &file);
    gate.open();
    whole.rest().assert_body(&file[begun.len()..]);
    // Where a stream is broken off, what the sockets had swallowed by then is lost.
    let sent = origin.sent("/big.bin");
    assert!(sent < 64 * MIB as u64, "sent {sent}");
    let before = origin.sent("/big.bin");
    daemon.get(&origin.url("/big.bin")).assert_is(&file);
    assert!(origin.sent("/big.bin") - before <= PROBE);
}

#[test]
fn after_a_restart_only_what_is_read_is_checked_first() {
    let origin = Origin::start();
    let mut daemon = Daemon::plan("h1").set("storage.scrubBandwidth", "0").start();
    let file = random(64 * MIB, 350);
    for path in ["/whole.bin", "/part.bin"] {
        origin.put(path, Page::plain(file.clone()).header("ETag", "\"1\"").with_ranges());
    }
    daemon.get(&origin.url("/whole.bin")).assert_is(&file);
    let half = 0..32 * MIB;
    assert_span(&ranged(&origin.url("/part.bin"), &daemon, &half).send(), &half, &file);
    daemon.wait_until_recorded(96);
    daemon.kill_and_start_again();
    let before = (origin.sent("/whole.bin"), origin.sent("/part.bin"));
    let end = file.len() - 1000..file.len();
    assert_span(&ranged(&origin.url("/whole.bin"), &daemon, &end).send(), &end, &file);
    assert_eq!(daemon.metric(&["storage_pieces_rechecked"]), 1.0);
    assert!(origin.sent("/whole.bin") - before.0 <= PROBE);
    // What was not held is kept, and nothing is checked for it.
    for _ in 0..2 {
        assert_span(&ranged(&origin.url("/part.bin"), &daemon, &end).send(), &end, &file);
    }
    assert_eq!(daemon.metric(&["storage_pieces_rechecked"]), 1.0);
    assert!(origin.sent("/part.bin") - before.1 <= MIB as u64 + 2 * PROBE);
    daemon.get(&origin.url("/whole.bin")).assert_is(&file);
    assert!(origin.sent("/whole.bin") - before.0 <= 2 * PROBE);
}

#[test]
fn after_a_restart_the_rest_is_checked_in_the_background() {
    let origin = Origin::start();
    let mut daemon = Daemon::plan("h1").start();
    let file = random(24 * MIB, 351);
    origin.put("/big.bin", Page::file(file.clone()));
    daemon.get(&origin.url("/big.bin")).assert_is(&file);
    daemon.wait_until_recorded(24);
    daemon.kill_and_start_again();
    wait_for("the checks", || (daemon.metric(&["storage_pieces_rechecked"]) == 24.0).then_some(()));
}

/// What becomes of stored content under the running daemon.
type Harm<'a> = &'a dyn Fn(&Daemon, usize);

#[test]
fn what_rots_or_is_cut_short_under_the_running_daemon_is_never_served() {
    let origin = Origin::start();
    let registry = TestRegistry::plan(Access::Open).start();
    let daemon = Daemon::plan("h1").start();
    let harms: [(&str, Harm<'_>); 2] = [
        ("rot", &|daemon, length| daemon.rot(length, 10 * MIB)),
        ("cut", &|daemon, length| daemon.cut_short(length, 9 * MIB)),
    ];
    for (number, (harm, harmed)) in harms.into_iter().enumerate() {
        let seed = 360 + number as u64;
        let image = Image::new(17 * MIB, seed);
        registry.publish(&image, REPOSITORY, harm);
        let path = format!("/{harm}.bin");
        let file = random(18 * MIB + number, seed);
        origin.put(&path, Page::file(file.clone()));
        let (url, blob_url) = (origin.url(&path), registry.url(&image.layer_path(REPOSITORY)));
        type Sent<'a> = &'a dyn Fn() -> u64;
        let cases: [(&str, &[u8], Sent<'_>); 2] =
            [(&url, &file, &|| origin.sent(&path)), (&blob_url, &image.layer, &|| registry.blob_bytes())];
        for (url, content, sent) in cases {
            daemon.get(url).assert_is(content);
            for _ in 0..2 {
                let before = sent();
                harmed(&daemon, content.len());
                daemon.get(url).assert_is(content);
                let cost = sent() - before;
                let whole = content.len() as u64;
                assert!(cost > MIB as u64 / 2 && cost < whole, "{harm}: {cost} bytes of {url}");
                let before = sent();
                daemon.get(url).assert_is(content);
                assert!(sent() - before <= PROBE, "{harm}: what was lost was not kept");
            }
        }
    }
}
