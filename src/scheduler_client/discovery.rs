//! Where schedulers are found: at fixed addresses, behind a DNS name that has one address for each of them, and in a
//! file that somebody else keeps up to date.
//!
//! Names and the file are looked at again and again. **What cannot be looked up just now is as it was**: a name server
//! that is away takes no scheduler away.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use damselfly_runtime::Watch;
use serde::Deserialize;
use tokio::time::{sleep, timeout};

use super::GrpcSchedulers;

/// How often names and the file are looked at.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long a look-up may take.
const LOOKUP: Duration = Duration::from_secs(5);
/// The most bytes of the file.
const MAX_FILE: u64 = 1 << 20;
/// The most schedulers that are taken from one source.
const MAX_FOUND: usize = 64;

/// One source of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Fixed(String),
    /// Every address of this host, with this port.
    Name(String),
    File(PathBuf),
}

/// The sources of a configuration. An entry is `HOST:PORT`, `dns:HOST:PORT` or `file:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    sources: Vec<Source>,
}

/// The file: a list, or Dragonfly's `dynconfig.yaml`.
#[derive(Deserialize)]
#[serde(untagged)]
enum AddressFile {
    List(Vec<String>),
    Dynconfig { scheduler: Scheduler },
}

#[derive(Deserialize)]
struct Scheduler {
    addrs: Vec<String>,
}

impl Discovery {
    /// What these entries mean.
    ///
    /// # Errors
    /// The entry that means nothing.
    pub fn parse(entries: &[String]) -> Result<Self, String> {
        let source = |entry: &String| {
            let found = if let Some(path) = entry.strip_prefix("file:") {
                (!path.is_empty()).then(|| Source::File(path.into()))
            } else if let Some(name) = entry.strip_prefix("dns:") {
                let name = name.trim_start_matches('/');
                is_host_port(name).then(|| Source::Name(name.to_owned()))
            } else {
                is_host_port(entry).then(|| Source::Fixed(entry.clone()))
            };
            found.ok_or_else(|| format!("{entry:?} is not HOST:PORT, dns:HOST:PORT or file:PATH"))
        };
        Ok(Self { sources: entries.iter().map(source).collect::<Result<_, _>>()? })
    }

    /// The addresses that need no look-up.
    pub fn fixed(&self) -> Vec<String> {
        let fixed = self.sources.iter().filter_map(|source| match source {
            Source::Fixed(addr) => Some(addr.clone()),
            _ => None,
        });
        fixed.collect()
    }

    /// Keeps `schedulers` at what is found, until the drain begins.
    pub async fn run(self, schedulers: GrpcSchedulers, drain: Watch) {
        if self.sources.iter().all(|source| matches!(source, Source::Fixed(_))) {
            return;
        }
        let mut looked: Vec<Looked> = self.sources.into_iter().map(Looked::new).collect();
        loop {
            let mut found = BTreeSet::new();
            for source in &mut looked {
                source.look().await;
                found.extend(source.found.iter().cloned());
            }
            let found: Vec<String> = found.into_iter().collect();
            if schedulers.replace(&found) {
                tracing::info!(schedulers = found.join(", "), "the schedulers are");
            }
            tokio::select! {
                () = sleep(INTERVAL) => {}
                () = drain.draining() => return,
            }
        }
    }
}

/// A source and what was found there last.
struct Looked {
    source: Source,
    found: Vec<String>,
    /// The file's time of change when it was read.
    read: Option<SystemTime>,
    failing: bool,
}

impl Looked {
    const fn new(source: Source) -> Self {
        Self { source, found: Vec::new(), read: None, failing: false }
    }

    async fn look(&mut self) {
        let found = match &self.source {
            Source::Fixed(addr) => Ok(Some(vec![addr.clone()])),
            Source::Name(name) => resolve(name).await.map(Some),
            Source::File(path) => read(path, &mut self.read).await,
        };
        match found {
            Ok(found) => {
                self.failing = false;
                if let Some(mut found) = found {
                    found.truncate(MAX_FOUND);
                    self.found = found;
                }
            }
            Err(why) => {
                if !self.failing {
                    tracing::warn!(source = ?self.source, %why, "schedulers cannot be looked up: those known stay");
                }
                self.failing = true;
            }
        }
    }
}

async fn resolve(name: &str) -> Result<Vec<String>, String> {
    let found = timeout(LOOKUP, tokio::net::lookup_host(name)).await.map_err(|_| "no answer in time".to_owned())?;
    let found: BTreeSet<String> = found.map_err(|error| error.to_string())?.map(|addr| addr.to_string()).collect();
    if found.is_empty() { Err("the name has no address".into()) } else { Ok(found.into_iter().collect()) }
}

/// The addresses in the file; `None` where it has not changed.
async fn read(path: &std::path::Path, read: &mut Option<SystemTime>) -> Result<Option<Vec<String>>, String> {
    let metadata = tokio::fs::metadata(path).await.map_err(|error| error.to_string())?;
    if metadata.len() > MAX_FILE {
        return Err(format!("the file is larger than {MAX_FILE} bytes"));
    }
    let changed = metadata.modified().ok();
    if changed.is_some() && changed == *read {
        return Ok(None);
    }
    let text = tokio::fs::read_to_string(path).await.map_err(|error| error.to_string())?;
    let addrs = match serde_saphyr::from_str::<AddressFile>(&text).map_err(|error| error.to_string())? {
        AddressFile::List(addrs) => addrs,
        AddressFile::Dynconfig { scheduler } => scheduler.addrs,
    };
    if let Some(bad) = addrs.iter().find(|addr| !is_host_port(addr)) {
        return Err(format!("{bad:?} is not HOST:PORT"));
    }
    *read = changed;
    Ok(Some(addrs))
}

fn is_host_port(text: &str) -> bool {
    let authority = text.parse::<http::uri::Authority>();
    authority.is_ok_and(|authority| {
        authority.port_u16().is_some_and(|port| port > 0) && !authority.host().is_empty() && !text.contains('@')
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler_client::{Config, Metrics};

    #[test]
    fn entries_say_where_to_look() {
        for (entry, want) in [
            ("10.0.0.1:8002", Some(Source::Fixed("10.0.0.1:8002".into()))),
            ("[::1]:8002", Some(Source::Fixed("[::1]:8002".into()))),
            ("dns:schedulers.internal:8002", Some(Source::Name("schedulers.internal:8002".into()))),
            ("dns:///schedulers.internal:8002", Some(Source::Name("schedulers.internal:8002".into()))),
            ("file:/etc/schedulers.yaml", Some(Source::File("/etc/schedulers.yaml".into()))),
            ("10.0.0.1", None),
            ("10.0.0.1:0", None),
            ("u@h:1", None),
            ("dns:name", None),
            ("file:", None),
            ("", None),
        ] {
            let parsed = Discovery::parse(&[entry.to_owned()]).ok().map(|mut found| found.sources.remove(0));
            assert_eq!(parsed, want, "{entry}");
        }
    }

    #[tokio::test]
    async fn a_file_is_read_when_it_changes_and_what_is_broken_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("schedulers.yaml");
        let mut looked = Looked::new(Source::File(path.clone()));
        looked.look().await;
        assert!(looked.found.is_empty() && looked.failing, "no file yet");
        let mut second = 1;
        let mut write = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
            std::fs::File::options().write(true).open(&path).unwrap().set_modified(changed).unwrap();
            second += 1;
        };
        for (text, want) in [
            ("- a:1\n- b:2\n", &["a:1", "b:2"][..]),
            ("scheduler:\n  addrs: ['c:3']\n  other: 1\n", &["c:3"]),
            ("- nonsense\n", &["c:3"]),
            ("{", &["c:3"]),
            ("[]", &[]),
        ] {
            write(text);
            looked.look().await;
            assert_eq!(looked.found, want, "{text}");
        }
    }

    #[tokio::test]
    async fn every_address_of_a_name_is_a_scheduler() {
        assert_eq!(resolve("127.0.0.1:8002").await, Ok(vec!["127.0.0.1:8002".to_owned()]));
        assert!(resolve("no.such.name.invalid:8002").await.is_err());
    }

    #[tokio::test]
    async fn schedulers_come_and_go() {
        let one = ["127.0.0.1:1".to_owned()];
        let schedulers = GrpcSchedulers::new(&one, Config::default(), Metrics::default()).unwrap();
        assert!(!schedulers.replace(&one), "they are the same");
        assert!(schedulers.replace(&["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()]));
        assert!(schedulers.replace(&["127.0.0.1:2".to_owned()]));
        assert!(!schedulers.replace(&["127.0.0.1:2".to_owned(), "no address".to_owned()]), "what is none is left out");
    }
}
