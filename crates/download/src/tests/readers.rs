//! What is needed follows the readers, and so does the order.

use damselfly_core::swarm::PieceFault;

use super::*;

fn gone(bench: &mut Bench, reader: u64) -> Vec<Action> {
    bench.tell(Event::ReaderGone { reader: ReaderId(reader) })
}

fn range(first: u64, end: u64) -> RangeWish {
    RangeWish::Span(first * PIECE, end * PIECE - 1)
}

/// A download whose parent has everything and serves `slots` pieces at a time.
fn served(pieces: u32, seed: u64, wish: RangeWish) -> (Bench, Vec<u32>) {
    let config = Config { concurrent_pieces: 1, window: 4, ..setup(None).config };
    let mut bench = Bench::new(Setup { config, seed, ..setup(Some(pieces.into())) });
    bench.parents(&["a"], false);
    for piece in 0..pieces {
        assert_eq!(bench.has("a", piece), [], "nobody wants anything yet");
    }
    let first = bench.wants(1, wish);
    let mut order = Vec::new();
    let mut actions = first;
    while let Some(piece) = actions.iter().find_map(|action| match action {
        Action::Fetch { piece, .. } => Some(piece.0),
        _ => None,
    }) {
        order.push(piece);
        actions = bench.arrives("a", piece);
    }
    (bench, order)
}

#[test]
fn only_what_readers_want_is_fetched() {
    let (bench, mut order) = served(10, 1, range(2, 5));
    order.sort_unstable();
    assert_eq!(order, [2, 3, 4]);
    assert!(bench.download.has_ended(), "everything wanted is here");
}

#[test]
fn a_readers_next_piece_comes_first_and_its_window_before_the_rest() {
    for seed in 0..20 {
        let (_, order) = served(32, seed, RangeWish::Whole);
        assert_eq!((order.len(), order[0]), (32, 0));
        for (at, piece) in order.iter().enumerate() {
            let missing = (0..32).find(|next| !order[..at].contains(next)).unwrap();
            assert!(*piece < missing + 4, "seed {seed}: {piece} before {missing}");
        }
    }
}

#[test]
fn a_reader_that_waits_long_for_its_next_piece_gets_it() {
    for seed in 0..20 {
        let mut bench = served_slowly(seed);
        let mut actions = bench.wants(1, RangeWish::Whole);
        let mut missing: std::collections::BTreeSet<u32> = (0..32).collect();
        for turn in 0..16 {
            let Some(Action::Fetch { piece, .. }) = actions.pop() else { panic!("seed {seed}: nothing is fetched") };
            let next = missing.first().copied();
            let preferred = turn % Config::default().urgent_share == 0;
            assert!(!preferred || Some(piece.0) == next, "seed {seed}: {piece} is chosen and {next:?} is waited for");
            missing.remove(&piece.0);
            bench.now = bench.now + Config::default().urgent_interval;
            actions = bench.arrives("a", piece.0);
        }
    }
}

fn served_slowly(seed: u64) -> Bench {
    let config = Config { concurrent_pieces: 1, ..setup(None).config };
    let mut bench = Bench::new(Setup { config, seed, ..setup(Some(32)) });
    bench.parents(&["a"], false);
    (0..32).for_each(|piece| assert_eq!(bench.has("a", piece), []));
    bench
}

#[test]
fn beside_a_readers_next_piece_hosts_fetch_different_ones_of_its_window() {
    let second = |seed| {
        let config = Config { concurrent_pieces: 2, ..setup(None).config };
        let mut bench = Bench::new(Setup { config, seed, ..setup(Some(64)) });
        bench.parents(&["a"], false);
        (0..64).for_each(|piece| assert_eq!(bench.has("a", piece), []));
        match bench.wants(1, RangeWish::Whole)[..] {
            [Action::Fetch { piece: first, .. }, Action::Fetch { piece: second, .. }] => {
                assert_eq!(first.0, 0);
                second.0
            }
            ref actions => panic!("{actions:?}"),
        }
    };
    let seconds: std::collections::BTreeSet<_> = (0..40).map(second).collect();
    assert!(seconds.len() > 8, "{seconds:?}");
    assert!(seconds.iter().all(|&piece| piece < Config::default().window), "{seconds:?}");
}

#[test]
fn rarest_first_where_nobody_reads() {
    let config = Config { concurrent_pieces: 1, ..setup(None).config };
    let mut bench = Bench::new(Setup { config, ..setup(Some(8)) });
    bench.parents(&["a", "b", "c"], false);
    for piece in 0..8 {
        bench.has("a", piece);
        bench.has("b", piece);
        if piece != 5 {
            bench.has("c", piece);
        }
    }
    let actions = bench.tell(Event::WantWhole);
    assert!(matches!(actions[..], [Action::Fetch { piece: PieceNumber(5), .. }]), "{actions:?}");
}

#[test]
fn a_reader_that_leaves_takes_its_needs_with_it() {
    let mut bench = Bench::new(setup(Some(10)));
    bench.wants(1, range(0, 1));
    bench.wants(2, range(7, 9));
    bench.parents(&["a"], false);
    assert_eq!(bench.has("a", 8), [fetch("a", 8)]);
    assert_eq!(gone(&mut bench, 2), [], "what is under way is paid for");
    assert_eq!(bench.has("a", 7), [], "and nothing else is wanted any more");
    assert_eq!(bench.arrives("a", 8), kept(8, "a"));
    assert_eq!(bench.has("a", 0), [fetch("a", 0)]);
    assert_eq!(bench.arrives("a", 0)[..2], kept(0, "a"));
    assert!(bench.download.has_ended());
}

#[test]
fn when_the_last_reader_leaves_the_piece_under_way_is_finished_and_everything_stops() {
    let mut bench = Bench::granted(3);
    bench.sourced(0);
    assert_eq!(gone(&mut bench, 1), []);
    let end = [finished(1, None), Action::StopSource, Action::Report(Report::Finished), Action::Finish];
    assert_eq!(bench.sourced(1), end);
    assert_eq!(bench.sourced(2), [], "nothing is heard after the end");
    assert_eq!((bench.download.deadline(), bench.download.has_ended()), (None, true));
}

#[test]
fn what_a_reader_left_is_not_asked_for_again() {
    let end = [Action::Report(Report::Failed), Action::Fail(Failure::Abandoned)];
    let mut bench = Bench::granted(3);
    assert_eq!(gone(&mut bench, 1), []);
    assert_eq!(bench.tell(Event::SourceEnded(End::Cut)), end);

    let mut bench = Bench::whole(2);
    bench.parents(&["a"], false);
    bench.has("a", 0);
    assert_eq!(gone(&mut bench, 1), []);
    let fault = PieceFault::Missing;
    let failed = bench.tell(Event::PieceFailed { parent: peer("a"), piece: PieceNumber(0), fault });
    assert_eq!(failed[failed.len() - 2..], end);
}

#[test]
fn what_a_reader_left_is_waited_for_only_so_long() {
    let mut bench = Bench::granted(2);
    assert_eq!(gone(&mut bench, 1), []);
    for second in 1.. {
        let actions = bench.tell(Event::SourceProgress { bytes: 1 });
        if bench.download.has_ended() {
            let end = [Action::StopSource, Action::Report(Report::Failed), Action::Fail(Failure::Abandoned)];
            assert_eq!(actions[actions.len() - 3..], end);
            return assert_eq!(Duration::from_secs(second - 1), Config::default().leftover_grace);
        }
        bench.now = bench.now + Duration::from_secs(1);
    }
}

#[test]
fn a_reader_that_got_every_byte_leaves_its_last_piece_to_be_finished() {
    let mut bench = Bench::granted(2);
    assert_eq!(bench.sourced(0), [finished(0, None)]);
    // The bytes of a piece are shown as they come from the source: the reader had them all before the piece was finished.
    assert_eq!(bench.tell(Event::ReaderAt { reader: ReaderId(1), offset: 2 * PIECE }), []);
    assert_eq!(gone(&mut bench, 1), [], "nothing is stopped");
    assert_eq!(
        bench.sourced(1),
        [finished(1, None), Action::StopSource, Action::Report(Report::Finished), Action::Finish]
    );
}

#[test]
fn a_reader_that_leaves_does_not_hurt_another() {
    let mut bench = Bench::granted(4);
    bench.wants(2, RangeWish::Whole);
    assert_eq!(gone(&mut bench, 1), []);
    assert_eq!(bench.sourced(0), [finished(0, None)]);
}

#[test]
fn a_prefetch_goes_on_without_readers_until_the_daemon_drains() {
    let mut bench = Bench::granted(4);
    bench.tell(Event::WantWhole);
    assert_eq!(gone(&mut bench, 1), []);
    assert_eq!(bench.sourced(0), [finished(0, None)]);
    let actions = bench.tell(Event::Drain);
    assert_eq!(actions[actions.len() - 1], Action::Fail(Failure::Abandoned));
}

#[test]
fn draining_finishes_what_readers_need() {
    let mut bench = Bench::new(setup(Some(8)));
    bench.tell(Event::WantWhole);
    bench.wants(1, range(0, 1));
    bench.answer(Answer::GoToSource { pieces: None });
    assert_eq!(bench.tell(Event::Drain), []);
    let actions = bench.sourced(0);
    assert_eq!(actions[actions.len() - 1], Action::Finish);
}

#[test]
fn the_source_reads_from_where_the_reader_stands() {
    let mut bench = Bench::new(setup(Some(10)));
    bench.wants(1, RangeWish::From(450));
    assert_eq!(bench.answer(Answer::GoToSource { pieces: None }), [read(4, 10)]);
}

#[test]
fn the_source_stream_is_left_when_the_rest_of_it_is_not_wanted_any_more() {
    let mut bench = Bench::new(setup(Some(10)));
    bench.wants(1, range(0, 10));
    bench.wants(2, range(9, 10));
    bench.answer(Answer::GoToSource { pieces: None });
    assert_eq!(gone(&mut bench, 1), [], "its tail is still wanted");
    assert_eq!(bench.sourced(0), [finished(0, None), Action::StopSource, read(9, 10)]);
}

#[test]
fn a_range_behind_the_end_needs_nothing() {
    let mut bench = Bench::new(setup(Some(2)));
    let actions = bench.wants(1, RangeWish::From(1000));
    assert_eq!(actions[actions.len() - 1], Action::Finish);
}

#[test]
fn pieces_that_are_here_already_are_not_fetched() {
    let mut have = PieceSet::empty(4);
    have.extend([0, 1, 3].map(PieceNumber));
    let mut bench = Bench::new(Setup { have, ..setup(Some(4)) });
    bench.wants(1, RangeWish::Whole);
    assert_eq!(bench.answer(Answer::GoToSource { pieces: None }), [read(2, 3)]);
}

#[test]
fn a_reader_that_follows_the_stream_closely_does_not_end_it_before_its_last_piece() {
    let mut bench = Bench::granted(1);
    let at = |offset| Event::ReaderAt { reader: ReaderId(1), offset };
    assert_eq!(bench.tell(at(50)), []);
    assert_eq!(bench.tell(at(PIECE)), [], "it has got all of it from memory; the piece is not finished");
    assert_eq!(bench.sourced(0)[0], finished(0, None));
}
