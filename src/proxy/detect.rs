//! What a client speaks on a fresh connection: one timed read, of which nothing is lost.

use std::time::Duration;

use tokio::io::AsyncReadExt as _;

use super::gate::IoStream;

/// What a connection's first bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/1, or something so near to it that the answer is a 400.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// A TLS handshake.
    Tls,
    /// None of them.
    Opaque,
    /// Nothing came in time: whoever connected waits for the server to speak first.
    Silent,
    /// The client closed without a word.
    Closed,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes that are enough to know every protocol by: the longest method, behind two empty lines.
pub(super) const ENOUGH: usize = 32;

/// Reads until it is known what the client speaks, a few bytes at most and no longer than `patience`. The bytes that
/// were read, and those that had been `read` before, are returned too.
pub(super) async fn detect(io: &mut dyn IoStream, mut read: Vec<u8>, patience: Duration) -> (Protocol, Vec<u8>) {
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        if let Some(protocol) = judge(&read) {
            return (protocol, read);
        }
        let mut few = [0; ENOUGH];
        let room = ENOUGH.saturating_sub(read.len()).max(1);
        match tokio::time::timeout_at(deadline, io.read(&mut few[..room])).await {
            Ok(Ok(count @ 1..)) => read.extend_from_slice(&few[..count]),
            Ok(_) if read.is_empty() => return (Protocol::Closed, read),
            Err(_) if read.is_empty() => return (Protocol::Silent, read),
            // What is there is all that we go by.
            _ => return (Protocol::Opaque, read),
        }
    }
}

/// The protocol that these first bytes are of; `None` while more are needed, never with [`ENOUGH`] of them.
pub(super) fn judge(read: &[u8]) -> Option<Protocol> {
    match read {
        [] | [0x16] => None,
        [0x16, 0x03, ..] => Some(Protocol::Tls),
        _ if read.starts_with(PREFACE) => Some(Protocol::Http2),
        _ if PREFACE.starts_with(read) => None,
        _ => is_request(read),
    }
}

/// Whether the bytes begin like a request line: a method of letters, a space, a target.
fn is_request(read: &[u8]) -> Option<Protocol> {
    // Two empty lines before it are forgiven.
    let line = (0..2).fold(read, |rest, _| rest.strip_prefix(b"\r\n").unwrap_or(rest));
    if line.is_empty() || (line == b"\r" && read.len() < 4) {
        return None;
    }
    let method = line.iter().take_while(|byte| byte.is_ascii_alphabetic() || **byte == b'-').count();
    let more = (read.len() < ENOUGH).then_some(());
    match line.get(method) {
        None if method > 0 => more.map_or(Some(Protocol::Opaque), |()| None),
        Some(b' ') if method > 0 => match &line[method + 1..] {
            [b'/' | b'*', ..] => Some(Protocol::Http1),
            target if target.starts_with(b"http") => Some(Protocol::Http1),
            target if b"http".starts_with(target) => more.map_or(Some(Protocol::Opaque), |()| None),
            // Mail and others have words and spaces too.
            _ => Some(Protocol::Opaque),
        },
        _ => Some(Protocol::Opaque),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::UnixStream;

    #[test]
    fn protocols_are_known_by_their_first_bytes() {
        for (bytes, want) in [
            (&b"GET / HTTP/1.1\r\n"[..], Some(Protocol::Http1)),
            (b"\r\nGET /", Some(Protocol::Http1)),
            (b"PROPFIND http://a/", Some(Protocol::Http1)),
            (b"PUT /", Some(Protocol::Http1)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Protocol::Http2)),
            (b"PRI * HTTP/2", None),
            (b"\x16\x03\x01", Some(Protocol::Tls)),
            (b"\x16", None),
            (b"\x16\x01", Some(Protocol::Opaque)),
            (b"SSH-2.0-x", Some(Protocol::Opaque)),
            (b"EHLO a.example\r\n", Some(Protocol::Opaque)),
            (b"NICK h", None),
            (b"NICK hugo", Some(Protocol::Opaque)),
            (b"OPTIONS * HTTP/1.1", Some(Protocol::Http1)),
            (b"\x00\x01", Some(Protocol::Opaque)),
            (b"GE", None),
            (b"\r", None),
            (b"\r\n", None),
            (b"\r\n\r\n", None),
            (b"\r\n\r\nGET /", Some(Protocol::Http1)),
            (b"\r\n\r\n\r\n", Some(Protocol::Opaque)),
            (b" GET /", Some(Protocol::Opaque)),
            (b" ", Some(Protocol::Opaque)),
            (b"\n", Some(Protocol::Opaque)),
            (&[b'A'; ENOUGH - 1], None),
            (&[b'A'; ENOUGH], Some(Protocol::Opaque)),
            (b"", None),
        ] {
            assert_eq!(judge(bytes), want, "{bytes:?}");
        }
    }

    #[test]
    fn a_few_bytes_are_enough() {
        for first in 0..=255 {
            for second in [0x03, b' ', b'\r', b'\n', b'A'] {
                for rest in [0, b' ', b'\r', b'\n', b'A'] {
                    let mut bytes = [rest; ENOUGH];
                    (bytes[0], bytes[1]) = (first, second);
                    assert!(judge(&bytes).is_some(), "{bytes:?}");
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn detection_takes_no_longer_than_it_may_and_loses_nothing() {
        const PATIENCE: Duration = Duration::from_secs(3);
        let (mut io, mut client) = UnixStream::pair().unwrap();
        assert_eq!(detect(&mut io, Vec::new(), PATIENCE).await, (Protocol::Silent, vec![]));
        client.write_all(b"GE").await.unwrap();
        let (protocol, read) = detect(&mut io, Vec::new(), PATIENCE).await;
        assert_eq!((protocol, &read[..]), (Protocol::Opaque, &b"GE"[..]));
        client.write_all(b"T /").await.unwrap();
        let (protocol, read) = detect(&mut io, read, PATIENCE).await;
        assert_eq!((protocol, &read[..]), (Protocol::Http1, &b"GET /"[..]));
        drop(client);
        assert_eq!(detect(&mut io, Vec::new(), PATIENCE).await.0, Protocol::Closed);
    }
}
