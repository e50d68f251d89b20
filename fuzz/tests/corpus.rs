//! Every target with every file of its corpus, and for a second each with mutations of these.
//!
//! `FUZZ_SECONDS` and `FUZZ_SEED` in the environment make it longer, or another run.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs};

use damselfly_fuzz::{TARGETS, Target};

/// The longest input that mutations make.
const MAX_INPUT: usize = 4096;
/// Mutations of each target where no time is set.
const MUTATIONS: u32 = 3_000;

fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|file| (file.clone(), fs::read(file).unwrap())).collect()
}

/// Says which input it was when a target panics.
struct Blame<'a>(&'a str, &'a [u8], u64);

impl Drop for Blame<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("target {}, seed {}, input \"{}\"", self.0, self.2, self.1.escape_ascii());
        }
    }
}

fn mutate(random: &mut fastrand::Rng, seeds: &[(PathBuf, Vec<u8>)]) -> Vec<u8> {
    let mut input = random.choice(seeds).map(|(_, seed)| seed.clone()).unwrap_or_default();
    for _ in 0..random.usize(1..6) {
        let at = random.usize(0..=input.len());
        let end = random.usize(at..=input.len().min(at + 16));
        let other = random.choice(seeds).map(|(_, seed)| seed.as_slice()).unwrap_or_default();
        match random.u8(0..7) {
            0 => drop(input.drain(at..end)),
            1 => input.insert(at, random.u8(..)),
            2 => input.splice(at..at, other[random.usize(0..=other.len())..].iter().copied()).for_each(drop),
            3 => input.extend_from_within(at..end),
            4 => input.insert(at, *random.choice(b"\0\r\n :,;/@[]%0\xff").unwrap_or(&0)),
            5 => input[at..end].fill_with(|| random.u8(..)),
            _ => input[at..end].iter_mut().for_each(|byte| *byte ^= 1 << random.u8(0..8)),
        }
    }
    input.truncate(MAX_INPUT);
    input
}

fn run(name: &str, target: Target, seed: u64, time: Option<Duration>) -> u32 {
    let seeds = corpus(name);
    assert!(!seeds.is_empty(), "{name} has no corpus");
    for (_, input) in &seeds {
        let _blame = Blame(name, input, seed);
        target(input);
    }
    let mut random = fastrand::Rng::with_seed(seed);
    let (began, mut done) = (Instant::now(), 0);
    while time.map_or(done < MUTATIONS, |time| began.elapsed() < time) {
        let input = mutate(&mut random, &seeds);
        let _blame = Blame(name, &input, seed);
        target(&input);
        done += 1;
    }
    done
}

#[test]
fn no_input_breaks_what_has_to_hold() {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = number("FUZZ_SEED").unwrap_or(1);
    let time = number("FUZZ_SECONDS").map(Duration::from_secs);
    let only = env::var("FUZZ_TARGET").ok();
    println!("seed {seed}");
    for (name, target) in TARGETS.into_iter().filter(|(name, _)| only.as_deref().is_none_or(|only| only == *name)) {
        println!("{name}: {} executions", run(name, target, seed, time));
    }
}
