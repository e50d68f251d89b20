//! One HTTP request to an address of the operator's own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};

/// How long an answer may take to begin, and to go on.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 16 * 1024 * 1024;

/// What was answered.
pub(super) struct Answer {
    /// The status line.
    pub(super) status: String,
    pub(super) body: String,
}

impl Answer {
    /// The body of a 200.
    pub(super) fn ok(self) -> anyhow::Result<String> {
        if self.status.split(' ').nth(1) != Some("200") {
            bail!("{}: {}", self.status, self.body.trim_end());
        }
        Ok(self.body)
    }
}

/// Asks `at` for `target`, as `host`.
pub(super) fn get(at: SocketAddr, host: &str, target: &str) -> anyhow::Result<Answer> {
    let stream = TcpStream::connect_timeout(&at, PATIENCE).with_context(|| format!("nobody listens at {at}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    exchange(stream, "GET", host, target).with_context(|| format!("asking {at}"))
}

/// The same by a Unix socket, and by this method, without a body.
pub(super) fn ask_socket(path: &Path, method: &str, host: &str, target: &str) -> anyhow::Result<Answer> {
    let at = path.display();
    let stream = UnixStream::connect(path).with_context(|| format!("no daemon answers at {at}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    exchange(stream, method, host, target).with_context(|| format!("asking the daemon at {at}"))
}

/// One exchange, in HTTP/1.0, in which no answer comes in chunks.
fn exchange(mut stream: impl Read + Write, method: &str, host: &str, target: &str) -> anyhow::Result<Answer> {
    let request = format!("{method} {target} HTTP/1.0\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer).context("reading the answer")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is no HTTP")?;
    let status = head.lines().next().unwrap_or_default().to_owned();
    Ok(Answer { status, body: body.to_owned() })
}
