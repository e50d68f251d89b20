//! `dfctl env`: the variables by which the programs of a shell use the proxy and trust its authority.
//!
//! No variable is understood by all programs (docs/clients.md), so all of them are set. Those that replace a program's
//! authorities name a bundle of the system's and ours: with ours alone every tunnelled host would fail.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use damselfly_runtime::UsageError;

use super::found::Daemon;
use super::stores::bundles;

/// Variables that name the proxy.
const PROXY: [&str; 4] = ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"];
/// Variables that say what goes without it.
const NO_PROXY: [&str; 2] = ["no_proxy", "NO_PROXY"];
/// Variables that replace a program's authorities.
const BUNDLE: [&str; 6] =
    ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT", "CARGO_HTTP_CAINFO", "GIT_SSL_CAINFO"];
/// What never leaves this host.
const LOCAL: &str = "localhost,127.0.0.1,::1";

/// What to print.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The certificate [default: the running daemon's]
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Where ca.pem and ca-bundle.pem are written for the variables to name [default: ~/.cache/damselfly]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print what takes all of it back
    #[arg(long)]
    unset: bool,
}

pub(super) fn run(args: &Args, daemon: &Daemon) -> anyhow::Result<()> {
    let node = ["NODE_EXTRA_CA_CERTS", "NODE_USE_ENV_PROXY"];
    if args.unset {
        let all: Vec<&str> = PROXY.into_iter().chain(NO_PROXY).chain(BUNDLE).chain(node).collect();
        println!("unset {}", all.join(" "));
        return Ok(());
    }
    let (certificate, _) = daemon.certificate(args.cert.as_deref())?;
    let dir = std::path::absolute(args.dir.clone().unwrap_or_else(cache_dir))?;
    let (own, bundle) = (dir.join("ca.pem"), dir.join("ca-bundle.pem"));
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    write(&own, &certificate.pem)?;
    write(&bundle, &format!("{}{}", certificate.pem, system_bundle()?))?;
    let proxy = format!("http://{}", daemon.proxy());
    let set = |name: &str, value: &str| println!("export {name}={}", quoted(value));
    PROXY.iter().for_each(|name| set(name, &proxy));
    NO_PROXY.iter().for_each(|name| set(name, LOCAL));
    BUNDLE.iter().for_each(|name| set(name, &bundle.to_string_lossy()));
    set(node[0], &own.to_string_lossy());
    set(node[1], "1");
    Ok(())
}

/// The user's own directory for what can be made again.
fn cache_dir() -> PathBuf {
    let var = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|home| home.join(".cache")));
    base.unwrap_or_else(std::env::temp_dir).join("damselfly")
}

fn system_bundle() -> anyhow::Result<String> {
    let none = || UsageError::new("this system has no bundle of authorities: install the package ca-certificates");
    let file = bundles().find(|file| file.is_file()).ok_or_else(none)?;
    fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}

/// Writes a whole file, of which a program never sees a half.
fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    let fresh = file.with_extension("new");
    fs::write(&fresh, text)
        .and_then(|()| fs::rename(&fresh, file))
        .with_context(|| format!("writing {}; --dir names another place", file.display()))
}

/// A word of the shell that means exactly `text`.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_what_was_meant() {
        assert_eq!(quoted("/a b/$x"), "'/a b/$x'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
