//! Random events against the model of the driver.

use proptest::prelude::*;

use super::*;
use crate::model::{PIECES, Run, Step};

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let reader = 0u64..3;
    let step = prop_oneof![
        4 => Just(Step::Wait),
        3 => (prop::collection::vec(0usize..4, 0..4), prop::bool::weighted(0.3), prop::bool::weighted(0.9))
            .prop_map(|(who, proven, fits)| Step::Parents(who, proven, fits)),
        2 => Just(Step::Grant),
        1 => Just(Step::Hold),
        4 => (0u32..PIECES + 2, prop::bool::weighted(0.9)).prop_map(|(piece, good)| Step::Proof(piece, good)),
        1 => Just(Step::Lost),
        12 => (0usize..4, 0u32..PIECES + 2).prop_map(|(who, piece)| Step::Has(who, piece)),
        1 => (0usize..4).prop_map(Step::Gone),
        9 => (0usize..8, prop::bool::weighted(0.9)).prop_map(|(which, good)| Step::Arrive(which, good)),
        2 => (0usize..8, 0usize..4).prop_map(|(which, fault)| Step::Fault(which, fault)),
        2 => Just(Step::Open),
        6 => prop::bool::weighted(0.8).prop_map(Step::Source),
        2 => (0usize..5).prop_map(Step::End),
        2 => (reader.clone(), 0..PIECES as u64 * PIECE, 1..PIECES as u64 * PIECE)
            .prop_map(|(who, from, len)| Step::Reader(who, from, len)),
        2 => (reader.clone(), 0..PIECES as u64 * PIECE).prop_map(|(who, at)| Step::At(who, at)),
        1 => reader.prop_map(Step::Leave),
        1 => Just(Step::Whole),
        1 => Just(Step::Drain),
        1 => (0u32..PIECES + 2).prop_map(Step::Held),
        1 => (0u32..PIECES + 2).prop_map(Step::Missing),
        4 => (0usize..4).prop_map(Step::Queues),
        2 => (0u32..5000).prop_map(Step::HeldUp),
        9 => (0usize..4, prop::collection::vec(0u32..PIECES + 2, 0..4)).prop_map(|(which, named)| Step::Turn(which, named)),
        3 => (0usize..4, 0usize..5).prop_map(|(which, fault)| Step::NoTurn(which, fault)),
        3 => (0u32..PIECES, 1u32..6).prop_map(|(first, many)| Step::Lease(first, (first + many).min(PIECES))),
    ];
    prop::collection::vec(step, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_happens_the_invariants_hold_and_silence_ends_it(
        steps in steps(), known in any::<bool>(), scheduler in any::<bool>(), under_way in any::<bool>(),
        wish in 0usize..3, seed in any::<u64>(),
    ) {
        let mut run = Run::new(known, scheduler, under_way, wish, seed);
        steps.into_iter().for_each(|step| run.step(step));
        run.fall_silent();
    }
}

#[test]
fn a_reader_gets_on_when_a_parent_never_gives_its_turn_and_the_scheduler_is_silent() {
    Run::of_bytes(b"\x03\x02\x0d\0\0\0\0\x01\x06\x02\0\x01\x14\0\x14\x01\x06\0\x2a\x06\x01\x03\x15\0\x01\x07\0");
}
