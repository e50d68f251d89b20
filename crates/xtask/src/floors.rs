//! Imports go down only. ARCHITECTURE.md draws the floors; this is the same table for the machine.

use crate::Finding;
use crate::lexer::Token;

/// Modules of the root package and their floors; a module may name only modules on lower floors.
const ROOMS: [(&str, u8); 14] = [
    ("bin", 8),
    ("daemon", 7),
    ("cli", 7),
    ("config", 6),
    ("proxy", 5),
    ("rpc", 5),
    ("mitm", 4),
    ("registry", 4),
    ("p2p", 4),
    ("scheduler_client", 3),
    ("storage", 3),
    ("backend", 3),
    ("net", 2),
    ("limit", 2),
];

/// The same for the scheduler's package.
const SCHEDULER_ROOMS: [(&str, u8); 5] = [("main", 8), ("config", 6), ("service", 5), ("http", 5), ("driver", 4)];

/// The same for the laboratory, which knows the executables from outside only.
const LAB_ROOMS: [(&str, u8); 11] = [
    ("main", 8),
    ("headline", 6),
    ("chaos", 6),
    ("fleet", 5),
    ("origin", 3),
    ("client", 3),
    ("program", 3),
    ("network", 2),
    ("slot", 1),
    ("content", 0),
    ("units", 0),
];

/// Crates of ours that only some places may name: the crate, and where it may stand.
const CRATES: [(&str, &[&str]); 6] = [
    (
        "damselfly_api",
        &[
            "src/rpc",
            "src/cli",
            "src/scheduler_client",
            "src/p2p/piece_sync",
            "src/p2p/transport",
            "scheduler/src/service",
            "scheduler/src/seed",
            "scheduler/tests/",
            "tests/",
            "benches/",
            "fuzz/",
        ],
    ),
    (
        "damselfly_scheduler",
        &["src/daemon", "src/config", "src/scheduler_client", "scheduler/src/main.rs", "tests/", "benches/"],
    ),
    ("damselfly_scheduler_core", &["scheduler/", "crates/sim/", "tests/", "benches/"]),
    ("damselfly_download", &["src/p2p", "crates/sim/", "tests/", "benches/", "fuzz/"]),
    ("damselfly_runtime", &["src/", "scheduler/src", "tests/", "benches/"]),
    ("damselfly", &["src/bin", "tests/", "benches/", "fuzz/"]),
];

/// Places where a machine decides without clock, I/O or chance: what they may name, and words that they may not.
const PURE: [&str; 4] = ["crates/download/src", "scheduler/core/src", "crates/core/src", "src/limit/machine"];
const PURE_CRATES: [&str; 12] = [
    "std",
    "core",
    "alloc",
    "self",
    "super",
    "crate",
    "damselfly_core",
    "fastrand",
    "thiserror",
    "blake3",
    "crc32fast",
    "sha2",
];
const IMPURE: [&str; 10] =
    ["tokio", "tracing", "Instant", "SystemTime", "HashMap", "HashSet", "TcpStream", "UdpSocket", "thread", "env"];
/// Test code of a pure machine may use these too.
const PURE_TESTS: [&str; 1] = ["proptest"];

/// Refuses every path in a file that climbs, or names a crate that has no business there.
pub(crate) fn check(path: &str, tokens: &[Token<'_>], findings: &mut Vec<Finding>) {
    let mut report = |line, what| findings.push(Finding { path: path.into(), line, what });
    let home = Home::of(path);
    for (line, room) in rooms_named(path, tokens) {
        if let Some(what) = home.climbs(room) {
            report(line, what);
        }
    }
    for (name, places) in CRATES {
        if places.iter().any(|place| path.starts_with(place)) {
            continue;
        }
        for token in path_heads(tokens).filter(|token| token.text == name) {
            report(token.line, format!("{name} may not be named here"));
        }
    }
    if PURE.iter().any(|place| path.starts_with(place)) {
        for (line, what) in impurities(path, tokens) {
            report(line, what);
        }
    }
}

/// Wants a pure package to depend on nothing impure at all.
pub(crate) fn check_manifest(path: &str, text: &str, findings: &mut Vec<Finding>) {
    if !PURE.iter().any(|place| path.strip_suffix("Cargo.toml").is_some_and(|own| *place == format!("{own}src"))) {
        return;
    }
    let mut inside = false;
    for (number, line) in text.lines().enumerate() {
        if line.starts_with('[') {
            inside = line.trim() == "[dependencies]";
            continue;
        }
        let name: String = line.chars().take_while(|c| !" .=".contains(*c)).collect();
        if inside && !name.is_empty() && !PURE_CRATES.contains(&name.replace('-', "_").as_str()) {
            findings.push(Finding {
                path: path.into(),
                line: number + 1,
                what: format!("a pure machine needs no {name}"),
            });
        }
    }
}

/// The module that a file belongs to, with its package's table.
struct Home<'a> {
    room: Option<&'a str>,
    table: &'static [(&'static str, u8)],
}

impl<'a> Home<'a> {
    fn of(path: &'a str) -> Self {
        let (rest, table): (_, &'static [_]) = if let Some(rest) = path.strip_prefix("src/") {
            (rest, &ROOMS)
        } else if let Some(rest) = path.strip_prefix("scheduler/src/") {
            (rest, &SCHEDULER_ROOMS)
        } else if let Some(rest) = path.strip_prefix("crates/lab/src/") {
            (rest, &LAB_ROOMS)
        } else {
            ("", &[])
        };
        let room = rest.split('/').next().map(|name| name.trim_end_matches(".rs"));
        Self { room: room.filter(|room| *room != "lib" && !room.is_empty()), table }
    }

    fn floor(&self, room: &str) -> Option<u8> {
        self.table.iter().find(|(name, _)| *name == room).map(|(_, floor)| *floor)
    }

    /// What is wrong with naming `room` from here, if anything is.
    fn climbs(&self, room: &str) -> Option<String> {
        let here = self.room?;
        let (own, other) = (self.floor(here)?, self.floor(room)?);
        (room != here && other >= own).then(|| format!("{here} (floor {own}) names {room} (floor {other})"))
    }
}

/// Words that begin a path (`x::…`, not `y::x`), or a `use` or `extern crate`.
fn path_heads<'t, 'a>(tokens: &'t [Token<'a>]) -> impl Iterator<Item = &'t Token<'a>> {
    tokens.iter().enumerate().filter_map(|(at, token)| {
        let before = at.checked_sub(1).map_or("", |before| tokens[before].text);
        let after = tokens.get(at + 1).map_or("", |token| token.text);
        let begins = after == "::" || matches!(before, "use" | "crate");
        (begins && before != "::" && token.text != "{").then_some(token)
    })
}

/// Every room of this package that the file names, as `crate::room`, `crate::{room, …}` or from `super::` upwards.
fn rooms_named<'a>(path: &str, tokens: &[Token<'a>]) -> Vec<(usize, &'a str)> {
    let mut named = Vec::new();
    let mut inline = InlineModules::default();
    for (at, token) in tokens.iter().enumerate() {
        inline.step(tokens, at);
        let root = match token.text {
            "crate" | "damselfly" => Some(at + 1),
            "super" if at == 0 || tokens[at - 1].text != "::" => {
                let (supers, end) = chain_of_supers(tokens, at);
                (supers >= module_depth(path) + inline.depth()).then_some(end)
            }
            _ => None,
        };
        if let Some(end) = root.filter(|&end| tokens.get(end).is_some_and(|token| token.text == "::")) {
            named.extend(first_segments(&tokens[end + 1..]));
        }
    }
    named
}

/// How many `super` stand in a row, and where the path goes on.
fn chain_of_supers(tokens: &[Token<'_>], from: usize) -> (usize, usize) {
    let mut end = from + 1;
    while tokens.get(end).is_some_and(|t| t.text == "::") && tokens.get(end + 1).is_some_and(|t| t.text == "super") {
        end += 2;
    }
    ((end - from).div_ceil(2), end)
}

/// How many steps up from a file's own module its package's root is.
fn module_depth(path: &str) -> usize {
    let rest = path.rsplit_once("src/").map_or(path, |(_, rest)| rest);
    let rest = rest.trim_end_matches(".rs").trim_end_matches("/mod");
    rest.split('/').count()
}

/// The names that a path goes on with: one, or those of a group.
fn first_segments<'a>(tokens: &[Token<'a>]) -> Vec<(usize, &'a str)> {
    let mut segments = Vec::new();
    let mut depth = 0_usize;
    let mut expected = true;
    for token in tokens {
        match token.text {
            "{" => depth += 1,
            "}" => depth = depth.saturating_sub(1),
            "," if depth == 1 => expected = true,
            name => {
                if expected && depth <= 1 {
                    segments.push((token.line, name));
                }
                expected = false;
            }
        }
        if depth == 0 {
            break;
        }
    }
    segments
}

/// Follows `mod name { … }`, so that `super` in it is counted right.
#[derive(Default)]
struct InlineModules {
    braces: usize,
    opened_at: Vec<usize>,
}

impl InlineModules {
    fn step(&mut self, tokens: &[Token<'_>], at: usize) {
        match tokens[at].text {
            "{" => {
                if at >= 2 && tokens[at - 2].text == "mod" {
                    self.opened_at.push(self.braces);
                }
                self.braces += 1;
            }
            "}" => {
                self.braces = self.braces.saturating_sub(1);
                if self.opened_at.last() == Some(&self.braces) {
                    self.opened_at.pop();
                }
            }
            _ => {}
        }
    }

    fn depth(&self) -> usize {
        self.opened_at.len()
    }
}

/// What a pure machine names that it must not.
fn impurities(path: &str, tokens: &[Token<'_>]) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = tokens
        .iter()
        .filter(|token| IMPURE.contains(&token.text))
        .map(|token| (token.line, format!("a pure machine names {}", token.text)))
        .collect();
    let own: Vec<&str> = tokens.windows(2).filter(|w| w[0].text == "mod").map(|w| w[1].text).collect();
    let testing =
        path.contains("tests") || tokens.windows(3).any(|w| w.iter().map(|t| t.text).eq(["cfg", "(", "test"]));
    for (at, token) in tokens.iter().enumerate().skip(1) {
        let known = PURE_CRATES.contains(&token.text) || own.contains(&token.text);
        let known = known || (testing && PURE_TESTS.contains(&token.text));
        let is_crate = tokens.get(at + 1).is_some_and(|next| next.text == "::")
            && !token.text.starts_with(char::is_uppercase)
            && tokens[at - 1].text == "use";
        if is_crate && !known {
            found.push((token.line, format!("a pure machine imports {}", token.text)));
        }
    }
    for (line, room) in rooms_named(path, tokens).into_iter().filter(|_| path.starts_with("src/")) {
        if ROOMS.iter().any(|(name, _)| *name == room) && !only_itself(tokens, line) {
            found.push((line, format!("a pure machine reaches into {room}")));
        }
    }
    found
}

/// Whether a line of the download machine names nothing of the package but itself.
fn only_itself(tokens: &[Token<'_>], line: usize) -> bool {
    let on_line: Vec<&str> = tokens.iter().filter(|token| token.line == line).map(|token| token.text).collect();
    on_line.windows(5).any(|window| window == ["crate", "::", "p2p", "::", "download"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lexer;

    fn findings(path: &str, text: &str) -> Vec<String> {
        let mut findings = Vec::new();
        check(path, &lexer::tokens(text), &mut findings);
        findings.into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn climbing_is_found_however_it_is_written() {
        for (path, bad) in [
            ("src/storage/mod.rs", "use crate::proxy::Handler;"),
            ("src/storage/mod.rs", "use crate::{net::X, p2p};"),
            ("src/storage/mod.rs", "use crate::{\n    net::{A, B},\n    rpc::{C},\n};"),
            ("src/storage/mod.rs", "fn f() { crate::daemon::run() }"),
            ("src/storage/mod.rs", "use super::config::Config;"),
            ("src/storage/a/b.rs", "use super::super::super::config::Config;"),
            ("src/storage/a.rs", "mod tests { use super::super::super::config::Config; }"),
            ("src/limit.rs", "use crate::net::X;"),
            ("src/registry/mod.rs", "use crate::p2p::Tasks;"),
            ("src/mitm/mod.rs", "use crate::p2p::Tasks;"),
            ("src/proxy/mod.rs", "use crate::rpc::X;"),
            ("src/config/mod.rs", "use crate::daemon::X;"),
            ("scheduler/src/driver.rs", "use crate::service::X;"),
            ("scheduler/src/service/mod.rs", "use crate::config::X;"),
            ("crates/lab/src/network.rs", "use crate::fleet::Fleet;"),
            ("crates/lab/src/chaos/hosts.rs", "use crate::headline::X;"),
        ] {
            assert_eq!(findings(path, bad).len(), 1, "{path}: {bad} gives {:?}", findings(path, bad));
        }
    }

    #[test]
    fn going_down_is_fine() {
        for (path, good) in [
            ("src/proxy/mod.rs", "use crate::{mitm, p2p::Tasks, registry, net::{self, Body}};"),
            ("src/storage/mod.rs", "mod tests { use super::*; use super::config_of; use crate::net::X; }"),
            ("src/storage/a.rs", "use super::super::storage::X;"),
            ("src/config/mod.rs", "use crate::proxy::Config;"),
            ("src/lib.rs", "pub mod proxy; pub use crate::proxy::X;"),
            ("src/bin/dfdaemon.rs", "use damselfly::daemon;"),
            ("src/net/mod.rs", "// use crate::proxy::X;"),
            ("scheduler/src/service/mod.rs", "use crate::driver::Handle; use damselfly_api::X;"),
            ("crates/lab/src/chaos/mod.rs", "use crate::fleet::Fleet; use crate::report;"),
        ] {
            assert_eq!(findings(path, good), [""; 0], "{path}: {good}");
        }
    }

    #[test]
    fn wire_types_stay_at_the_door() {
        for (path, text, wanted) in [
            ("src/proxy/mod.rs", "use damselfly_api::scheduler::X;", 1),
            ("src/p2p/tasks.rs", "fn f(x: damselfly_api::X) {}", 1),
            ("src/p2p/piece_sync.rs", "use damselfly_api::dfdaemon;", 0),
            ("src/p2p/transport/mod.rs", "use damselfly_api::vortex;", 0),
            ("src/rpc/mod.rs", "use damselfly_api::dfdaemon;", 0),
            ("scheduler/src/driver.rs", "use damselfly_api::X;", 1),
            ("src/storage/mod.rs", "use damselfly_scheduler::Handle;", 1),
            ("src/scheduler_client/embedded.rs", "use damselfly_scheduler::Handle;", 0),
            ("crates/core/src/lib.rs", "use damselfly_runtime::Drain;", 1),
            ("crates/lab/src/fleet.rs", "use damselfly_runtime::Drain;", 1),
        ] {
            let found: Vec<_> = findings(path, text).into_iter().filter(|f| f.contains("may not be named")).collect();
            assert_eq!(found.len(), wanted, "{path}: {text} gives {found:?}");
        }
    }

    #[test]
    fn pure_machines_have_no_clock_no_io_and_no_chance() {
        for bad in [
            "use tokio::sync::mpsc;",
            "use std::time::Instant;",
            "let now = std::time::SystemTime::now();",
            "use std::collections::{BTreeMap, HashMap};",
            "use bytes::Bytes;",
        ] {
            assert!(!findings("crates/download/src/machine.rs", bad).is_empty(), "{bad}");
        }
        for good in [
            "use std::collections::BTreeMap; use std::time::Duration; use damselfly_core::Moment;",
            "use super::state::X; use crate::download::Y; #[cfg(test)] mod tests { use proptest::prelude::*; }",
            "use fastrand::Rng;",
            "mod state; pub use state::State;",
        ] {
            assert_eq!(findings("crates/download/src/machine.rs", good), [""; 0], "{good}");
        }
        assert!(!findings("scheduler/core/src/lib.rs", "use tokio::time;").is_empty());
        assert_eq!(findings("src/p2p/driver.rs", "use tokio::sync::mpsc; use std::time::Instant;"), [""; 0]);
    }

    #[test]
    fn pure_packages_depend_on_nothing_impure() {
        let manifest = |path: &str, text: &str| {
            let mut findings = Vec::new();
            check_manifest(path, text, &mut findings);
            findings.len()
        };
        let bad = "[dependencies]\ndamselfly-core.workspace = true\ntokio = \"1\"\n";
        assert_eq!(manifest("scheduler/core/Cargo.toml", bad), 1);
        assert_eq!(manifest("crates/download/Cargo.toml", bad), 1);
        assert_eq!(manifest("scheduler/Cargo.toml", bad), 0);
        let good = "[package]\nname = \"x\"\n[dependencies]\nfastrand = \"2\"\n[dev-dependencies]\nproptest = \"1\"\n";
        assert_eq!(manifest("scheduler/core/Cargo.toml", good), 0);
    }
}
