//! The files that the rules look at.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// Directories that hold nothing of ours.
const SKIPPED: [&str; 3] = ["target", ".git", "node_modules"];

/// What is read as text beside the Rust sources.
const TEXTS: [&str; 9] = ["toml", "md", "yaml", "yml", "proto", "service", "conf", "sh", "json"];

/// Files without an extension that are read as text too.
const BARE_TEXTS: [&str; 2] = ["justfile", "run"];

/// A text file of the tree.
pub(crate) struct File {
    /// From the root of the tree, with `/`.
    pub(crate) path: String,
    /// All of it.
    pub(crate) text: String,
}

/// The sources and the other texts, in the order of their paths.
pub(crate) struct Tree {
    /// Every `.rs` file.
    pub(crate) sources: Vec<File>,
    /// Manifests, documents, scripts, examples.
    pub(crate) texts: Vec<File>,
}

impl Tree {
    /// Reads everything below `root`.
    pub(crate) fn read(root: &Path) -> io::Result<Self> {
        let mut tree = Self { sources: Vec::new(), texts: Vec::new() };
        tree.visit(root, root)?;
        tree.sources.sort_by(|a, b| a.path.cmp(&b.path));
        tree.texts.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(tree)
    }

    /// The manifests of the workspace's packages.
    pub(crate) fn manifests(&self) -> impl Iterator<Item = &File> {
        self.texts.iter().filter(|file| file.path == "Cargo.toml" || file.path.ends_with("/Cargo.toml"))
    }

    fn visit(&mut self, root: &Path, directory: &Path) -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type()?.is_dir() {
                if !SKIPPED.contains(&name.as_str()) {
                    self.visit(root, &path)?;
                }
                continue;
            }
            let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
            let list = match extension {
                "rs" => &mut self.sources,
                e if TEXTS.contains(&e) || BARE_TEXTS.contains(&name.as_str()) => &mut self.texts,
                _ => continue,
            };
            let relative: PathBuf = path.strip_prefix(root).unwrap_or(&path).into();
            let relative = relative.to_string_lossy().replace('\\', "/");
            list.push(File { path: relative, text: fs::read_to_string(&path)? });
        }
        Ok(())
    }
}

/// The root of the workspace that this was compiled in.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
