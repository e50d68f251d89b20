//! A configuration file, read strictly: YAML in, a serde value out; every mistake names the file, the key's path, the
//! reason and the place.
//!
//! **An unknown key is an error**, unless the caller tolerates it by name: then it is handed back, to be warned about.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::exit::UsageError;

/// Larger files are refused: a configuration is written by people.
pub const MAX_BYTES: u64 = 1024 * 1024;

/// What was read, and which tolerated keys were met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded<T> {
    /// The configuration.
    pub value: T,
    /// Paths of keys that were set and are known to have no meaning here.
    pub ignored: Vec<String>,
}

/// Reads a file in which every key must be known.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, UsageError> {
    load_tolerant(path, &[]).map(|loaded| loaded.value)
}

/// Reads a file in which every key must be known or be one of `tolerated`: paths such as `server.cacheDir`; a
/// tolerated key's value may be anything, and list items are written without their number (`proxy.rules.regexp`).
pub fn load_tolerant<T: DeserializeOwned>(path: &Path, tolerated: &[&str]) -> Result<Loaded<T>, UsageError> {
    let name = path.display();
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
    read.map_err(|error| UsageError::new(format!("{name}: cannot be read: {error}")))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(UsageError::new(format!("{name}: is larger than {MAX_BYTES} bytes")));
    }
    parse(&text, &name, tolerated)
}

/// As [`load_tolerant`], of a text; `name` stands for it in errors.
pub fn parse<T: DeserializeOwned>(
    text: &str,
    name: &dyn fmt::Display,
    tolerated: &[&str],
) -> Result<Loaded<T>, UsageError> {
    // A file in which everything is commented out is a file of defaults, not one without a mapping.
    let text = if is_blank(text) { "{}" } else { text };
    let mut unknown = Vec::new();
    let mut key = String::new();
    let options = serde_saphyr::options! { with_snippet: false };
    let value = serde_saphyr::with_deserializer_from_str_with_options(text, options, |yaml| {
        let mut track = serde_path_to_error::Track::new();
        let yaml = serde_path_to_error::Deserializer::new(yaml, &mut track);
        let value = serde_ignored::deserialize(yaml, |path| unknown.push(plain(&path.to_string())));
        value.inspect_err(|_| key = track.path().to_string())
    })
    .map_err(|error| match key.as_str() {
        "" | "." => UsageError::new(format!("{name}: {error}")),
        key => UsageError::new(format!("{name}: {key}: {error}")),
    })?;
    let (ignored, refused): (Vec<_>, Vec<_>) = unknown.into_iter().partition(|path| is_tolerated(path, tolerated));
    match refused.first() {
        Some(path) => Err(UsageError::new(format!("{name}: {path}: unknown key"))),
        None => Ok(Loaded { value, ignored }),
    }
}

fn is_blank(text: &str) -> bool {
    text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#') || line == "---")
}

/// A path without the marks that serde_ignored puts where an `Option` is.
fn plain(path: &str) -> String {
    path.split('.').filter(|step| *step != "?").collect::<Vec<_>>().join(".")
}

/// Compares without the numbers of list items.
fn is_tolerated(path: &str, tolerated: &[&str]) -> bool {
    let named: Vec<&str> = path.split('.').filter(|step| step.parse::<usize>().is_err()).collect();
    tolerated.contains(&named.join(".").as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Whole {
        proxy: Proxy,
        name: String,
    }

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Proxy {
        port: u16,
        rules: Option<Vec<Rule>>,
    }

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(default)]
    struct Rule {
        regex: String,
    }

    fn read(text: &str) -> Result<Loaded<Whole>, UsageError> {
        parse(text, &"a.yaml", &["server", "proxy.rules.useTLS"])
    }

    #[test]
    fn reads_what_is_there_and_defaults_the_rest() {
        let loaded = read("proxy:\n  port: 4001\n  rules:\n    - regex: blobs\nname: 1.10\n").unwrap();
        assert_eq!(loaded.value.proxy.port, 4001);
        assert_eq!(loaded.value.proxy.rules.unwrap()[0].regex, "blobs");
        assert_eq!(loaded.value.name, "1.10", "a text stays as it was written");
        for blank in ["", "\n", "# all\n  # commented out\n", "---\n"] {
            assert_eq!(read(blank).unwrap().value, Whole::default(), "{blank:?}");
        }
    }

    #[test]
    fn mistakes_name_file_key_and_reason() {
        for (text, expected) in [
            ("proxy:\n  prot: 1\n", "a.yaml: proxy.prot: unknown key"),
            ("proxies: {}\n", "a.yaml: proxies: unknown key"),
            ("proxy:\n  port: 70000\n", "a.yaml: proxy.port: "),
            ("proxy:\n  port: many\n", "a.yaml: proxy.port: "),
            ("proxy: 7\n", "a.yaml: proxy: "),
            ("proxy:\n  rules:\n    - regex: [a]\n", "a.yaml: proxy.rules[0].regex: "),
            ("proxy:\n  port: 1\n  port: 2\n", "a.yaml: "),
            ("proxy: [\n", "a.yaml: "),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{text:?}: {error}");
            assert!(!error.contains('\n'), "one line: {error:?}");
        }
    }

    #[test]
    fn tolerated_keys_are_handed_back() {
        let loaded = read("server:\n  cacheDir: /x\nproxy:\n  rules:\n    - useTLS: true\n      regex: a\n").unwrap();
        assert_eq!(loaded.ignored, ["server", "proxy.rules.0.useTLS"]);
        assert!(read("server2: 1\n").is_err());
        assert!(read("proxy:\n  server: 1\n").is_err(), "tolerated at its own place only");
    }

    #[test]
    fn a_file_that_is_missing_or_too_large_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none.yaml");
        let error = load::<Whole>(&path).unwrap_err().to_string();
        assert!(error.contains("none.yaml: cannot be read"), "{error}");
        std::fs::write(&path, vec![b'#'; MAX_BYTES as usize + 1]).unwrap();
        assert!(load::<Whole>(&path).unwrap_err().to_string().contains("larger"));
    }
}
