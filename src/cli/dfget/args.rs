//! `dfget`'s arguments, and what they mean.

use std::path::PathBuf;

use damselfly_core::Digest;
use damselfly_runtime::UsageError;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use url::Url;

use crate::config::{SOCKET, default_data_dir};
use crate::limit::Priority;

/// Where a daemon of the system has its data.
const SYSTEM_DATA_DIR: &str = "/var/lib/damselfly";

/// Download a URL through this host's daemon, which gets it from neighbouring hosts where it can.
///
/// Without a daemon the download goes directly to the origin, and dfget says so. The file appears under its name once
/// it is whole.
#[derive(Debug, clap::Parser)]
#[command(name = "dfget", version)]
pub struct Args {
    /// What to download: an http or https URL
    #[arg(value_name = "URL")]
    pub url: String,

    /// Where to write it; - is the standard output
    #[arg(short = 'O', long, value_name = "FILE")]
    pub output: PathBuf,

    /// The daemon's Unix socket [default: dfdaemon.sock in its data directory]
    #[arg(short = 'e', long, alias = "endpoint", env = "DFGET_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// Fail rather than go directly to the origin
    #[arg(long)]
    pub no_fallback: bool,

    /// Only these bytes, such as 0-99, 100- or -50
    #[arg(long, value_name = "FIRST-LAST", allow_hyphen_values = true)]
    pub range: Option<String>,

    /// The digest that the content must have, such as sha256:<64 hex digits>
    #[arg(long, value_name = "DIGEST")]
    pub digest: Option<String>,

    /// A header for the origin, such as 'Authorization: Bearer …'; may be given several times
    #[arg(short = 'H', long, value_name = "NAME: VALUE")]
    pub header: Vec<String>,

    /// Downloads with different tags are different tasks
    #[arg(long, value_name = "TAG")]
    pub tag: Option<String>,

    /// Downloads of different applications are different tasks
    #[arg(long, value_name = "NAME")]
    pub application: Option<String>,

    /// How urgent it is, from 0 to 6: under a limit of bandwidth what is more urgent goes first
    #[arg(long, default_value_t = Priority::HIGHEST.level(), value_name = "LEVEL",
          value_parser = clap::value_parser!(u8).range(0..Priority::LEVELS as i64))]
    pub priority: u8,

    /// Say nothing but errors
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Say what happens
    #[arg(short, long)]
    pub verbose: bool,
}

/// What to download, checked.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) url: Url,
    /// For the origin alone: `Range`, and what the user gave.
    pub(super) range: Option<HeaderValue>,
    pub(super) origin_headers: HeaderMap,
    /// For the daemon alone.
    pub(super) daemon_headers: HeaderMap,
    pub(super) digest: Option<Digest>,
    /// Where a daemon may be, in the order of trying.
    pub(super) sockets: Vec<PathBuf>,
}

impl Order {
    pub(super) fn of(args: &Args) -> Result<Self, UsageError> {
        let digest = args
            .digest
            .as_ref()
            .map(|text| text.parse().map_err(|error| UsageError::new(format!("--digest {text:?}: {error}"))));
        Ok(Self {
            url: url(&args.url)?,
            range: args.range.as_deref().map(range).transpose()?,
            origin_headers: args.header.iter().map(|text| header(text)).collect::<Result<_, _>>()?,
            daemon_headers: daemon_headers(args)?,
            digest: digest.transpose()?,
            sockets: sockets(args.socket.clone()),
        })
    }
}

fn url(text: &str) -> Result<Url, UsageError> {
    let url = Url::parse(text).map_err(|error| UsageError::new(format!("the URL is not understood: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(UsageError::new(format!("{} URLs are not supported, only http and https", url.scheme())));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(UsageError::new(
            "the URL contains credentials: give them with --header 'Authorization: …' instead",
        ));
    }
    Ok(url)
}

fn range(text: &str) -> Result<HeaderValue, UsageError> {
    let wrong = || UsageError::new(format!("--range {text:?} is not FIRST-LAST, FIRST- or -LENGTH"));
    let bounds = text.strip_prefix("bytes=").unwrap_or(text);
    let (first, last) = bounds.split_once('-').ok_or_else(wrong)?;
    let number = |text: &str| match text {
        "" => Ok(None),
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse::<u64>().map(Some).map_err(|_| wrong())
        }
        _ => Err(wrong()),
    };
    match (number(first)?, number(last)?) {
        (None, None) => return Err(wrong()),
        (Some(first), Some(last)) if last < first => return Err(wrong()),
        _ => {}
    }
    HeaderValue::try_from(format!("bytes={bounds}")).map_err(|_| wrong())
}

/// The value is not repeated in the error: it may be a credential.
fn header(text: &str) -> Result<(HeaderName, HeaderValue), UsageError> {
    let (name, value) =
        text.split_once(':').ok_or_else(|| UsageError::new("a --header has no colon behind its name"))?;
    let wrong = || UsageError::new(format!("--header {:?} is no valid header", name.trim()));
    let name = HeaderName::try_from(name.trim()).map_err(|_| wrong())?;
    if name == header::HOST
        || name == header::RANGE
        || name == header::TRANSFER_ENCODING
        || name == header::CONTENT_LENGTH
    {
        return Err(UsageError::new(format!("--header {name} would change what the request means")));
    }
    let mut value = HeaderValue::try_from(value.trim()).map_err(|_| wrong())?;
    value.set_sensitive(true);
    Ok((name, value))
}

fn daemon_headers(args: &Args) -> Result<HeaderMap, UsageError> {
    let mut headers = HeaderMap::new();
    headers.insert("x-dragonfly-use-p2p", HeaderValue::from_static("true"));
    headers.insert("x-dragonfly-priority", HeaderValue::from(u16::from(args.priority)));
    for (name, flag, value) in
        [("x-dragonfly-tag", "--tag", &args.tag), ("x-dragonfly-application", "--application", &args.application)]
    {
        if let Some(text) = value {
            let value = HeaderValue::try_from(text)
                .map_err(|_| UsageError::new(format!("{flag} {text:?} cannot stand in a header")))?;
            headers.insert(name, value);
        }
    }
    Ok(headers)
}

fn sockets(set: Option<PathBuf>) -> Vec<PathBuf> {
    if let Some(path) = set {
        return vec![path];
    }
    if let Some(dir) = std::env::var_os("DFDAEMON_DATA_DIR").filter(|dir| !dir.is_empty()) {
        return vec![PathBuf::from(dir).join(SOCKET)];
    }
    let mut paths = vec![default_data_dir().join(SOCKET), PathBuf::from(SYSTEM_DATA_DIR).join(SOCKET)];
    paths.dedup();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    fn order(line: &[&str]) -> Result<Order, UsageError> {
        let line = ["dfget", "-O", "f"].iter().chain(line);
        Order::of(&Args::try_parse_from(line).unwrap())
    }

    #[test]
    fn arguments_are_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn what_is_for_whom() {
        let order =
            order(&["http://h/x", "-H", "Authorization: Bearer planted", "--tag", "t", "--endpoint", "/s"]).unwrap();
        assert_eq!(order.origin_headers.len(), 1);
        assert_eq!(order.daemon_headers["x-dragonfly-tag"], "t");
        assert_eq!(order.daemon_headers["x-dragonfly-use-p2p"], "true");
        assert!(!order.daemon_headers.contains_key("authorization"));
        assert_eq!(order.daemon_headers["x-dragonfly-priority"], "6");
        assert!(Args::try_parse_from(["dfget", "-O", "f", "http://h/x", "--priority", "7"]).is_err());
        assert_eq!(order.sockets, [PathBuf::from("/s")]);
        assert!(!format!("{order:?}").contains("planted"), "credentials do not show");
    }

    #[test]
    fn ranges() {
        for (text, value) in
            [("0-99", "bytes=0-99"), ("100-", "bytes=100-"), ("-50", "bytes=-50"), ("bytes=1-1", "bytes=1-1")]
        {
            assert_eq!(range(text).unwrap(), value);
        }
        for bad in ["", "-", "9-1", "a-b", "1", "0-1,2-3", "+1-2"] {
            assert!(range(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn mistakes_are_usage_errors_without_values() {
        for line in [
            &["ftp://h/x"][..],
            &["h/x"],
            &["http://u:planted@h/x"],
            &["http://h/x", "-H", "no colon planted"],
            &["http://h/x", "-H", "Bad Name: planted"],
            &["http://h/x", "-H", "X: plan\nted"],
            &["http://h/x", "-H", "Host: planted"],
            &["http://h/x", "--digest", "md5:1"],
            &["http://h/x", "--tag", "a\nb"],
        ] {
            let error = order(line).expect_err("a mistake").to_string();
            assert!(!error.contains("planted") && !error.contains("plan\nted"), "{error}");
        }
    }
}
