# `just` lists what there is.
default:
    @just --list

# Everything that has to hold before a change is taken.
ci:
    .ci/run

# All tests: unit, simulation, and black-box on real processes.
test *arguments:
    cargo test --workspace {{ arguments }}

# Format, clippy, and the rules of the house.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    cargo run --quiet -p xtask -- tidy

# Bring the sources into form.
format:
    cargo fmt --all

# The figures: piece transfer, pass-through, memory.
bench:
    cargo bench

# A fuzz target (`just fuzz` lists them) with libFuzzer for so many seconds; without cargo-fuzz by the stable driver's mutations.
fuzz target="" seconds="60":
    #!/usr/bin/env bash
    set -euo pipefail
    [ -n "{{ target }}" ] || { ls fuzz/corpus; exit; }
    if cargo +nightly fuzz --version >/dev/null 2>&1; then
        mkdir -p target/fuzz-corpus/{{ target }}
        exec cargo +nightly fuzz run -s none --features libfuzzer {{ target }} \
            target/fuzz-corpus/{{ target }} fuzz/corpus/{{ target }} -- -max_total_time={{ seconds }} -max_len=4096
    fi
    FUZZ_TARGET={{ target }} FUZZ_SECONDS={{ seconds }} cargo test --release -p damselfly-fuzz -- --nocapture

# Real daemons in network namespaces with shaped links (as root): `just lab headline`, `just lab chaos --list`.
lab *arguments:
    cargo build --release -p damselfly -p damselfly-scheduler
    cargo run --release -p damselfly-lab -- {{ arguments }}

# Licences, banned crates and sources of what we depend on (wants cargo-deny).
deny:
    cargo deny --all-features check bans licenses sources

# A release build of every executable.
build:
    cargo build --release --workspace --bins
