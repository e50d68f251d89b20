//! `dfctl explain`: why a download goes as it goes, as its scheduler knows it.

use std::net::ToSocketAddrs as _;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use damselfly_core::{Digest, TaskId};
use damselfly_runtime::UsageError;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use url::Url;

use super::http;

/// How many tasks of one URL are explained.
const MOST_TASKS: usize = 10;

/// What to explain.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A task's id, a blob's digest (sha256:HEX), or a URL, of which every version that the scheduler knows is explained
    #[arg(value_name = "TASK|DIGEST|URL")]
    what: String,
    /// The HTTP address of the scheduler that knows it
    #[arg(long, env = "DFCTL_SCHEDULER_HTTP", default_value = "127.0.0.1:8080", value_name = "HOST:PORT")]
    scheduler: String,
    /// How to print it
    #[arg(short, long, default_value = "text")]
    output: Output,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// One JSON document a task
    Json,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let name = &args.scheduler;
    let at = name.to_socket_addrs().with_context(|| format!("--scheduler {name}"))?.next();
    let at = at.with_context(|| format!("--scheduler {name} has no address"))?;
    let ask = |target: &str| {
        let answer = http::get(at, name, target).and_then(http::Answer::ok);
        answer.with_context(|| format!("asking the scheduler at {name}; --scheduler names another"))
    };
    let tasks = match named(&args.what) {
        Some(task) => vec![task],
        None if args.what.contains("://") => {
            let url = without_secrets(&args.what)?;
            let url = utf8_percent_encode(&url, NON_ALPHANUMERIC);
            found(&ask(&format!("/api/v1/tasks?limit={MOST_TASKS}&url={url}"))?)?
        }
        None => return Err(UsageError::new("what to explain is a task's 64 hex digits, sha256:HEX, or a URL").into()),
    };
    if tasks.is_empty() {
        bail!("the scheduler at {name} knows no task of {}: it was not shared, or not with this scheduler", args.what);
    }
    let format = if args.output == Output::Text { "text" } else { "json" };
    for task in tasks {
        println!("{}", ask(&format!("/api/v1/tasks/{task}/explain?format={format}"))?.trim_end());
    }
    Ok(())
}

/// The task that is named by its id, or by the digest of its content.
fn named(what: &str) -> Option<TaskId> {
    // An image's layer may be named with its repository before it.
    let digest = what.rsplit_once('@').map_or(what, |(_, digest)| digest);
    let of_digest = || digest.parse::<Digest>().ok().map(|digest| damselfly_core::Identity::Digest(digest).task_id());
    what.parse().ok().or_else(of_digest)
}

/// A URL as the scheduler knows it. User, password and query stay here: what opens the content is nobody else's business.
fn without_secrets(url: &str) -> anyhow::Result<String> {
    let mut url = Url::parse(url).map_err(|error| UsageError::new(format!("this is no URL: {error}")))?;
    url.set_query(None);
    url.set_fragment(None);
    // Fails for URLs that cannot have either.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    Ok(url.into())
}

/// The tasks in the scheduler's list.
fn found(list: &str) -> anyhow::Result<Vec<TaskId>> {
    let list: Vec<serde_json::Value> = serde_json::from_str(list).context("the scheduler's list of tasks")?;
    Ok(list.iter().filter_map(|task| task["id"].as_str()?.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_opens_the_content_is_told_nobody() {
        for (url, told) in [
            ("https://u:p@Example.com/a/b?X-Amz-Signature=s#f", "https://example.com/a/b"),
            ("http://example.com:8080/a", "http://example.com:8080/a"),
        ] {
            assert_eq!(without_secrets(url).unwrap(), told);
        }
        assert!(without_secrets("http://").is_err());
    }

    #[test]
    fn tasks_are_named_by_id_and_by_digest() {
        let hex = "ab".repeat(32);
        let task: TaskId = hex.parse().unwrap();
        for what in [hex.clone(), format!("sha256:{hex}"), format!("registry.example.com/app@sha256:{hex}")] {
            assert_eq!(named(&what), Some(task), "{what}");
        }
        for what in ["", "app:latest", "sha256:ab", "http://example.com/big.bin"] {
            assert_eq!(named(what), None, "{what}");
        }
    }
}
