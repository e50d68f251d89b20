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
