//! `cargo run -p xtask -- tidy`: the rules of the house that the compiler does not check.
//!
//! The tree is read once ([`tree`]), each source file is cut into tokens without comments and strings ([`lexer`]), and
//! each rule is a function from there to findings ([`floors`], [`words`]). `cargo test` runs the same on this tree, and
//! shows for each rule a text which breaks it.

mod floors;
mod lexer;
mod tree;
mod words;

use std::fmt;
use std::process::ExitCode;

use anyhow::Context as _;

use tree::Tree;

/// Files longer than this many lines are listed (not refused): the aim is a file that is read in one sitting.
const LONG_FILE: usize = 400;

/// One place where a rule is broken.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    /// The file's path from the root of the tree.
    pub(crate) path: String,
    /// The line, counted from one; zero when the whole file is meant.
    pub(crate) line: usize,
    /// What is wrong, as a sentence without its full stop.
    pub(crate) what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// Every rule over the whole tree, in the order of paths.
fn tidy(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in &tree.sources {
        let tokens = lexer::tokens(&file.text);
        floors::check(&file.path, &tokens, &mut findings);
        words::check_source(&file.path, &tokens, &mut findings);
    }
    for file in tree.manifests() {
        words::check_manifest(&file.path, &file.text, &mut findings);
        floors::check_manifest(&file.path, &file.text, &mut findings);
    }
    for file in tree.sources.iter().chain(&tree.texts) {
        words::check_text(&file.path, &file.text, &mut findings);
    }
    findings.sort();
    findings
}

/// The source files that have grown long, longest first.
fn long_files(tree: &Tree) -> Vec<(usize, &str)> {
    let mut long: Vec<_> = tree
        .sources
        .iter()
        .map(|file| (file.text.lines().count(), file.path.as_str()))
        .filter(|&(lines, _)| lines > LONG_FILE)
        .collect();
    long.sort_by(|a, b| b.cmp(a));
    long
}

fn main() -> anyhow::Result<ExitCode> {
    let command = std::env::args().nth(1);
    if command.as_deref() != Some("tidy") {
        eprintln!("usage: cargo run -p xtask -- tidy");
        return Ok(ExitCode::from(64));
    }
    let tree = Tree::read(&tree::root()).context("the source tree cannot be read")?;
    for (lines, path) in long_files(&tree) {
        println!("long: {path} has {lines} lines");
    }
    let findings = tidy(&tree);
    for finding in &findings {
        println!("{finding}");
    }
    println!("tidy: {} source files, {} findings", tree.sources.len(), findings.len());
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_tree_is_tidy() {
        let tree = Tree::read(&tree::root()).unwrap();
        assert!(tree.sources.len() > 20, "the sources were not found: {}", tree.sources.len());
        assert!(tree.manifests().count() > 5, "the manifests were not found");
        let findings: Vec<String> = tidy(&tree).iter().map(ToString::to_string).collect();
        assert!(findings.is_empty(), "\n{}", findings.join("\n"));
    }
}
