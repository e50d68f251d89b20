//! Readers that are far from where the source stream is, and readers that read here and there.

use super::*;

const FAR: u32 = 4;

/// A download of so many pieces, all of which its stream reads, for one reader of the whole.
fn streaming(pieces: u64) -> Bench {
    let config = Config { far: FAR, ..setup(None).config };
    let mut bench = Bench::new(Setup { config, ..setup(Some(pieces)) });
    bench.wants(1, RangeWish::Whole);
    assert_eq!(bench.answer(Answer::GoToSource { pieces: None }), [read(0, pieces)]);
    bench.tell(Event::SourceOpened { geometry: geometry(pieces) });
    bench
}

fn range(first: u64, end: u64) -> RangeWish {
    RangeWish::Span(first * PIECE, end * PIECE - 1)
}

fn aside(first: u64, end: u64) -> [Action; 2] {
    let range = ByteRange::new(first * PIECE, end * PIECE).unwrap();
    [Action::ShortenSource { end: first * PIECE }, Action::ReadAside { range }]
}

fn held(bench: &mut Bench, piece: u32) -> Vec<Action> {
    bench.tell(Event::PieceHeld { piece: PieceNumber(piece) })
}

#[test]
fn a_reader_far_ahead_has_a_stream_of_its_own_and_no_piece_comes_twice() {
    let mut bench = streaming(32);
    assert_eq!(bench.wants(2, range(20, 22)), aside(20, 22));
    assert_eq!(bench.wants(3, range(28, 30)), [], "one at a time");
    assert_eq!(held(&mut bench, 20), []);
    let next = Action::ReadAside { range: ByteRange::new(28 * PIECE, 30 * PIECE).unwrap() };
    assert_eq!(held(&mut bench, 21)[..], [Action::StopAside, next], "then it is the turn of the next reader");
    (28..30).for_each(|piece| drop(held(&mut bench, piece)));
    (0..20).for_each(|piece| drop(bench.sourced(piece)));
    assert_eq!(bench.tell(Event::SourceEnded(End::Complete)), [read(22, 28)]);
    (22..28).for_each(|piece| drop(bench.sourced(piece)));
    assert_eq!(bench.tell(Event::SourceEnded(End::Complete)), [read(30, 32)]);
}

#[test]
fn a_long_range_far_ahead_comes_in_parts_while_the_stream_goes_on() {
    let mut bench = streaming(64);
    assert_eq!(bench.wants(2, range(40, 64)), aside(40, 44), "so many at a time");
    (40..43).for_each(|piece| assert_eq!(held(&mut bench, piece), []));
    let next = Action::ReadAside { range: ByteRange::new(44 * PIECE, 48 * PIECE).unwrap() };
    assert_eq!(held(&mut bench, 43)[..], [Action::StopAside, next]);
    assert_eq!(bench.sourced(0), [finished(0, None)], "and the stream goes on");
}

#[test]
fn a_reader_that_is_near_waits_for_the_stream() {
    let mut bench = streaming(32);
    assert_eq!(bench.wants(2, range(u64::from(FAR) - 1, 8)), []);
    (0..8).for_each(|piece| drop(bench.sourced(piece)));
    let behind = Action::ReadAside { range: ByteRange::new(0, PIECE).unwrap() };
    let lost = bench.tell(Event::PieceLost { piece: PieceNumber(0) });
    assert_eq!(lost, [behind], "the stream does not come there again");
    let mut off = Bench::granted(32);
    assert_eq!(off.wants(2, range(20, 22)), [], "where it is switched off nobody has one");
}

#[test]
fn a_stream_that_fails_gives_its_pieces_back_and_there_is_no_other_one() {
    let mut bench = streaming(32);
    bench.wants(2, range(20, 22));
    assert_eq!(bench.tell(Event::AsideEnded), [Action::StopAside]);
    assert_eq!(bench.wants(3, range(10, 12)), []);
    (0..20).for_each(|piece| drop(bench.sourced(piece)));
    assert_eq!(bench.tell(Event::SourceEnded(End::Complete)), [read(20, 32)]);
}

#[test]
fn a_stream_that_brings_nothing_is_left() {
    let mut bench = streaming(32);
    bench.wants(2, range(20, 22));
    let begun = bench.now;
    for _ in 0..1000 {
        bench.now = bench.now + Duration::from_secs(10);
        if bench.tell(Event::SourceProgress { bytes: 1 }).contains(&Action::StopAside) {
            return assert_eq!(bench.now.since(begun), Config::default().piece_timeout);
        }
    }
    panic!("it was waited for");
}

#[test]
fn the_end_stops_both_streams() {
    let mut bench = streaming(32);
    bench.wants(2, range(20, 22));
    let end = [Action::StopAside, Action::StopSource, Action::Report(Report::Failed), Action::Fail(Failure::Digest)];
    assert_eq!(bench.tell(Event::DigestMismatch), end);
}

#[test]
fn what_was_asked_for_by_its_range_before_the_length_was_known_is_used() {
    let mut bench = Bench::new(setup(None));
    bench.wants(1, range(4, 6));
    assert_eq!(bench.answer(Answer::GoToSource { pieces: None }), [Action::ReadSource { range: None }]);
    assert_eq!(bench.tell(Event::SourceGives { pieces: 4..6 }), []);
    let opened = bench.tell(Event::SourceOpened { geometry: geometry(12) });
    assert_eq!(opened, [Action::Report(Report::SourceOpened(geometry(12)))], "nothing is stopped");
    assert_eq!(bench.sourced(4), [finished(4, None)]);
    assert_eq!(bench.sourced(5)[0], finished(5, None));
    assert!(bench.download.has_ended());

    for pieces in [0..0, 3..5] {
        let mut bench = Bench::new(setup(None));
        bench.wants(1, range(4, 6));
        bench.answer(Answer::GoToSource { pieces: None });
        bench.tell(Event::SourceGives { pieces });
        let opened = bench.tell(Event::SourceOpened { geometry: geometry(12) });
        let opened_at = Action::Report(Report::SourceOpened(geometry(12)));
        assert_eq!(opened, [Action::StopSource, opened_at, read(4, 6)], "it is of no use");
    }
}

#[test]
fn what_a_reader_here_and_there_waits_for_is_asked_of_the_scheduler_at_once() {
    let config = Config { jitter: Duration::ZERO, ..Config::default() };
    let mut bench = Bench::new(Setup { config, ..setup(Some(40)) });
    bench.wants(1, range(5, 6));
    bench.wants(2, range(30, 31));
    let declined = Action::Report(Report::Declined { piece: PieceNumber(0) });
    assert!(bench.lease(0, 4).contains(&declined), "the scheduler does not know what is wanted");
    let late = |piece| Action::Report(Report::Late { piece: PieceNumber(piece) });
    let (waited, actions) = bench.wait();
    assert!(waited <= Duration::from_millis(100), "{waited:?}");
    assert_eq!(actions, [late(5)]);
    assert_eq!(bench.lease(5, 6), [read(5, 6)]);
    bench.tell(Event::SourceOpened { geometry: geometry(40) });
    bench.sourced(5);
    bench.tell(Event::SourceEnded(End::Complete));
    let (waited, actions) = bench.wait();
    assert!(waited <= Duration::from_millis(100), "{waited:?}");
    assert_eq!(actions, [late(30)]);
}
