//! Words that must not be committed, and the lints that every package must have.

use crate::Finding;
use crate::lexer::Token;

/// Sequences of tokens that stand for unfinished or hidden work.
const UNFINISHED: [(&[&str], &str); 5] = [
    (&["todo", "!"], "unfinished: todo!"),
    (&["unimplemented", "!"], "unfinished: unimplemented!"),
    (&["dbg", "!"], "left over: dbg!"),
    (&["allow", "(", "dead_code"], "dead code is removed, not allowed"),
    (&["#", "[", "ignore"], "a test that does not run proves nothing: #[ignore]"),
];

/// Paths of a developer's machine, in two halves so that this file passes too.
const PLACES: [(&str, &str); 2] = [("/ho", "me/"), ("/ro", "ot/")];

/// Refuses unfinished work in a source file.
pub(crate) fn check_source(path: &str, tokens: &[Token<'_>], findings: &mut Vec<Finding>) {
    for (sequence, what) in UNFINISHED {
        for window in tokens.windows(sequence.len()) {
            if window.iter().map(|token| token.text).eq(sequence.iter().copied()) {
                findings.push(Finding { path: path.into(), line: window[0].line, what: what.into() });
            }
        }
    }
}

/// Refuses paths of a developer's machine in any text.
pub(crate) fn check_text(path: &str, text: &str, findings: &mut Vec<Finding>) {
    for (number, line) in text.lines().enumerate() {
        for (head, tail) in PLACES {
            let place = format!("{head}{tail}");
            if line.contains(&place) {
                findings.push(Finding { path: path.into(), line: number + 1, what: format!("names {place}") });
            }
        }
    }
}

/// Wants the workspace's lints, `unsafe_code = "forbid"` among them, in every package.
pub(crate) fn check_manifest(path: &str, text: &str, findings: &mut Vec<Finding>) {
    let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let mut want = |needle: &str, what: &str| {
        if !compact.contains(needle) {
            findings.push(Finding { path: path.into(), line: 0, what: what.into() });
        }
    };
    if compact.contains("[package]") {
        want("[lints]workspace=true", "does not take the workspace's lints");
    }
    if compact.contains("[workspace]") {
        want("[workspace.lints.rust]unsafe_code=\"forbid\"", "does not forbid unsafe code");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lexer;

    fn source(text: &str) -> usize {
        let mut findings = Vec::new();
        check_source("a.rs", &lexer::tokens(text), &mut findings);
        findings.len()
    }

    #[test]
    fn unfinished_work_is_found() {
        for bad in [
            "fn a() { todo!() }",
            "unimplemented!(\"x\")",
            "let b = dbg!(a);",
            "#[allow(dead_code)]",
            "#![allow(dead_code)]",
            "#[test] #[ignore = \"slow\"] fn a() {}",
        ] {
            assert_eq!(source(bad), 1, "{bad}");
        }
        for good in ["// todo!()", "let a = \"dbg!\";", "fn todo() {}", "#[allow(clippy::x)]", "ignore(a)"] {
            assert_eq!(source(good), 0, "{good}");
        }
    }

    #[test]
    fn places_are_found_in_any_text() {
        for (head, tail) in PLACES {
            let mut findings = Vec::new();
            check_text("a.md", &format!("first\nsee {head}{tail} there"), &mut findings);
            assert_eq!(findings.iter().map(|f| f.line).collect::<Vec<_>>(), [2]);
        }
        let mut findings = Vec::new();
        check_text("a.md", "docker.io, 127.0.0.1:5000, example.org", &mut findings);
        assert_eq!(findings, []);
    }

    #[test]
    fn a_package_without_the_lints_is_found() {
        let manifest = |text: &str| {
            let mut findings = Vec::new();
            check_manifest("Cargo.toml", text, &mut findings);
            findings.len()
        };
        assert_eq!(manifest("[package]\nname = \"a\"\n"), 1);
        assert_eq!(manifest("[package]\nname = \"a\"\n[lints]\nworkspace = true\n"), 0);
        assert_eq!(manifest("[workspace]\n[workspace.lints.rust]\nunsafe_code = \"warn\"\n"), 1);
        assert_eq!(manifest("[workspace]\n[workspace.lints.rust]\nunsafe_code = \"forbid\"\n"), 0);
    }
}
