//! Where an HTTP/1 request ends, strictly: the rules that make request smuggling impossible (RFC 9112, 6.3 and 11.2).
//!
//! Pure. A head is judged as a whole, before the HTTP library sees any of it; of a body only its framing is followed.
//! The library is lenient in places where the standard allows it to be; this is where we are not.

use http::{Method, Uri, header};

/// The most bytes of one request head. Signed URLs and cookies of many KiB pass.
pub(super) const MAX_HEAD: usize = 128 * 1024;
/// The most header lines of one request.
pub(super) const MAX_HEADERS: usize = 256;
/// The most bytes of one chunk's size line, extensions included.
const MAX_SIZE_LINE: usize = 4096;
/// The most bytes of the trailers behind a chunked body.
const MAX_TRAILERS: usize = 64 * 1024;

/// Why a head is refused: one sentence for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Malformed {
    /// Larger than [`MAX_HEAD`] or with more than [`MAX_HEADERS`] lines.
    TooLarge,
    /// Anything else that is wrong with it.
    Because(&'static str),
}

/// What follows a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// This many bytes of body, then the next head.
    Sized(u64),
    /// A chunked body, then the next head.
    Chunked,
    /// Whatever the two ends agree on: `CONNECT`, an upgrade, or HTTP/2.
    Open,
}

/// The end of the head in `bytes` (the offset behind its empty line); `None` while it is not there. A line that ends
/// without CR, a NUL, or too many bytes are refused as soon as they are there.
///
/// `seen` bytes were looked at before and found to hold no end.
pub(super) fn head_end(bytes: &[u8], seen: usize) -> Result<Option<usize>, Malformed> {
    for at in seen..bytes.len() {
        match bytes[at] {
            b'\n' if at == 0 || bytes[at - 1] != b'\r' => return Err(Malformed::Because(BARE)),
            b'\n' if at >= 3 && bytes[at - 3..at] == *b"\r\n\r" => return Ok(Some(at + 1)),
            0 => return Err(Malformed::Because("The request's head has a NUL byte in it.")),
            byte if at > 0 && bytes[at - 1] == b'\r' && byte != b'\n' => return Err(Malformed::Because(BARE)),
            _ => {}
        }
    }
    if bytes.len() > MAX_HEAD { Err(Malformed::TooLarge) } else { Ok(None) }
}

const BARE: &str = "A line of the request's head does not end in CR LF.";

/// What follows this head, which is whole (its empty line included); or why it is refused.
pub(super) fn inspect(head: &[u8]) -> Result<Framing, Malformed> {
    if head == b"PRI * HTTP/2.0\r\n\r\n" {
        return Ok(Framing::Open);
    }
    if head.windows(3).any(|three| three[..2] == *b"\r\n" && matches!(three[2], b' ' | b'\t')) {
        return Err(Malformed::Because("A header of the request is continued on a second line."));
    }
    let mut lines = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut lines);
    match request.parse(head) {
        Ok(httparse::Status::Complete(end)) if end == head.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(Malformed::TooLarge),
        Err(httparse::Error::Version) => {
            return Err(Malformed::Because("The request speaks no known version of HTTP."));
        }
        _ => return Err(Malformed::Because("The request's head is not HTTP.")),
    }
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(Malformed::Because("The request has no request line."));
    };
    let method =
        Method::from_bytes(method.as_bytes()).map_err(|_| Malformed::Because("The request's method is no word."))?;
    if target.parse::<Uri>().is_err() {
        return Err(Malformed::Because("The request's target is not a valid URL."));
    }
    body(&method, version, request.headers)
}

fn body(method: &Method, version: u8, lines: &[httparse::Header<'_>]) -> Result<Framing, Malformed> {
    let all = |name: http::HeaderName| {
        let lines = lines.iter().filter(move |line| line.name.eq_ignore_ascii_case(name.as_str()));
        lines.map(|line| line.value.trim_ascii())
    };
    let hosts = all(header::HOST).count();
    if hosts > 1 || (hosts == 0 && version == 1) {
        return Err(Malformed::Because("The request needs exactly one Host header."));
    }
    let mut length = None;
    for value in all(header::CONTENT_LENGTH) {
        let digits = std::str::from_utf8(value).ok().filter(|v| v.bytes().all(|b| b.is_ascii_digit()));
        let Some(number) = digits.and_then(|digits| digits.parse::<u64>().ok()) else {
            return Err(Malformed::Because("The request's Content-Length is not a number."));
        };
        if length.is_some_and(|other| other != number) {
            return Err(Malformed::Because("The request has two different lengths."));
        }
        length = Some(number);
    }
    let mut encodings = all(header::TRANSFER_ENCODING);
    if let Some(encoding) = encodings.next() {
        if length.is_some() {
            return Err(Malformed::Because("The request has both a Content-Length and a Transfer-Encoding."));
        }
        if version == 0 {
            return Err(Malformed::Because("HTTP/1.0 has no Transfer-Encoding."));
        }
        if encodings.next().is_some() || !encoding.eq_ignore_ascii_case(b"chunked") {
            return Err(Malformed::Because("The request's Transfer-Encoding is not chunked."));
        }
    }
    let chunked = all(header::TRANSFER_ENCODING).next().is_some();
    if *method == Method::CONNECT || all(header::UPGRADE).next().is_some() {
        return Ok(Framing::Open);
    }
    Ok(if chunked { Framing::Chunked } else { Framing::Sized(length.unwrap_or(0)) })
}

/// Follows a chunked body to its end.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    state: ChunkState,
}

#[derive(Debug, Default)]
enum ChunkState {
    /// In a size line: its bytes so far, the digits' value, and whether they go on.
    #[default]
    Start,
    Size {
        line: usize,
        size: u64,
        digits: bool,
        cr: bool,
    },
    Data(u64),
    /// The CR LF behind a chunk's data.
    DataEnd {
        cr: bool,
    },
    /// In the trailers: bytes so far, bytes of the current line, and whether a CR came.
    Trailers {
        bytes: usize,
        line: usize,
        cr: bool,
    },
}

/// A body whose chunks are not framed as they must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadChunk;

impl Chunks {
    /// Takes the next bytes: how many of them belong to the body, and whether it ends with them.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<(usize, bool), BadChunk> {
        let mut at = 0;
        while at < bytes.len() {
            if let ChunkState::Data(left) = &mut self.state {
                let step = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - at);
                *left -= step as u64;
                at += step;
                if *left == 0 {
                    self.state = ChunkState::DataEnd { cr: false };
                }
                continue;
            }
            let byte = bytes[at];
            at += 1;
            if self.step(byte)? {
                self.state = ChunkState::Start;
                return Ok((at, true));
            }
        }
        Ok((at, false))
    }

    /// Takes one byte that is not data; true behind the very last one.
    fn step(&mut self, byte: u8) -> Result<bool, BadChunk> {
        match &mut self.state {
            ChunkState::Start => {
                let size = hex(byte).ok_or(BadChunk)?;
                self.state = ChunkState::Size { line: 1, size, digits: true, cr: false };
            }
            ChunkState::Size { line, size, digits, cr } => {
                *line += 1;
                match byte {
                    _ if *line > MAX_SIZE_LINE => return Err(BadChunk),
                    b'\n' if *cr => {
                        self.state = match *size {
                            0 => ChunkState::Trailers { bytes: 0, line: 0, cr: false },
                            size => ChunkState::Data(size),
                        };
                    }
                    _ if *cr => return Err(BadChunk),
                    b'\r' => *cr = true,
                    b'\n' | 0 => return Err(BadChunk),
                    byte if *digits => match hex(byte) {
                        Some(_) if *size >> 60 != 0 => return Err(BadChunk),
                        Some(digit) => *size = *size << 4 | digit,
                        None if matches!(byte, b';' | b' ' | b'\t') => *digits = false,
                        None => return Err(BadChunk),
                    },
                    _ => {}
                }
            }
            ChunkState::Data(_) => return Err(BadChunk),
            ChunkState::DataEnd { cr } => match (byte, *cr) {
                (b'\r', false) => *cr = true,
                (b'\n', true) => self.state = ChunkState::Start,
                _ => return Err(BadChunk),
            },
            ChunkState::Trailers { bytes, line, cr } => {
                *bytes += 1;
                match (byte, *cr) {
                    _ if *bytes > MAX_TRAILERS => return Err(BadChunk),
                    (b'\n', true) if *line == 0 => return Ok(true),
                    (b'\n', true) => (*line, *cr) = (0, false),
                    (b'\r', false) => *cr = true,
                    (b'\n' | 0, _) | (_, true) => return Err(BadChunk),
                    _ => *line += 1,
                }
            }
        }
        Ok(false)
    }
}

fn hex(byte: u8) -> Option<u64> {
    (byte as char).to_digit(16).map(u64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(lines: &str) -> Result<Framing, Malformed> {
        let head = lines.replace('\n', "\r\n") + "\r\n";
        assert_eq!(head_end(head.as_bytes(), 0), Ok(Some(head.len())), "{lines:?}");
        inspect(head.as_bytes())
    }

    #[test]
    fn good_heads_have_one_framing() {
        for (head, want) in [
            ("GET http://a/ HTTP/1.1\nHost: a\n", Framing::Sized(0)),
            ("GET http://a/ HTTP/1.0\n", Framing::Sized(0)),
            ("GET /a?b={c} HTTP/1.1\nHost: a\n", Framing::Sized(0)),
            ("POST / HTTP/1.1\nHost: a\nContent-Length: 12\n", Framing::Sized(12)),
            ("POST / HTTP/1.1\nHost: a\nContent-Length: 12\ncontent-length:12\n", Framing::Sized(12)),
            ("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: Chunked\n", Framing::Chunked),
            ("CONNECT a:443 HTTP/1.1\nHost: a:443\n", Framing::Open),
            ("GET / HTTP/1.1\nHost: a\nConnection: upgrade\nUpgrade: websocket\n", Framing::Open),
            ("PRI * HTTP/2.0\n", Framing::Open),
        ] {
            assert_eq!(judge(head), Ok(want), "{head}");
        }
    }

    #[test]
    fn ambiguous_heads_are_refused() {
        for head in [
            "POST / HTTP/1.1\nHost: a\nContent-Length: 1\nTransfer-Encoding: chunked\n",
            "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\nContent-Length: 1\n",
            "POST / HTTP/1.1\nHost: a\nContent-Length: 1\nContent-Length: 2\n",
            "POST / HTTP/1.1\nHost: a\nContent-Length: 1, 1\n",
            "POST / HTTP/1.1\nHost: a\nContent-Length: +1\n",
            "POST / HTTP/1.1\nHost: a\nContent-Length: \n",
            "POST / HTTP/1.1\nHost: a\nContent-Length: 0x1\n",
            "POST / HTTP/1.1\nHost: a\nContent-Length: 99999999999999999999999\n",
            "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: gzip, chunked\n",
            "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: xchunked\n",
            "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\nTransfer-Encoding: identity\n",
            "POST / HTTP/1.0\nHost: a\nTransfer-Encoding: chunked\n",
            "POST / HTTP/1.1\nHost: a\nTransfer-Encoding : chunked\n",
            "GET / HTTP/1.1\nHost: a\nX: a\n b\n",
            "GET / HTTP/1.1\n",
            "GET / HTTP/1.1\nHost: a\nHost: a\n",
            "GET / HTTP/3.1\nHost: a\n",
            "GET /\n",
            "G@T / HTTP/1.1\nHost: a\n",
            "GET http:// HTTP/1.1\nHost: a\n",
            "GET / HTTP/1.1\nHost: a\nBad Name: x\n",
        ] {
            assert!(matches!(judge(head), Err(Malformed::Because(_))), "{head}: {:?}", judge(head));
        }
    }

    #[test]
    fn too_much_is_refused() {
        let many = format!("GET / HTTP/1.1\nHost: a\n{}", "X: y\n".repeat(MAX_HEADERS));
        assert_eq!(judge(&many), Err(Malformed::TooLarge));
        assert_eq!(head_end(&vec![b'a'; MAX_HEAD + 1], 0), Err(Malformed::TooLarge));
        assert_eq!(head_end(&vec![b'a'; MAX_HEAD], 0), Ok(None));
    }

    #[test]
    fn the_end_is_found_however_the_bytes_come() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody";
        let end = head.len() - 4;
        for seen in 0..end {
            assert_eq!(head_end(&head[..seen], 0), Ok(None));
            assert_eq!(head_end(head, seen), Ok(Some(end)), "{seen}");
        }
        for bad in [&b"GET / HTTP/1.1\n"[..], b"A\rB", b"A\0", b"\n"] {
            assert!(matches!(head_end(bad, 0), Err(Malformed::Because(_))), "{bad:?}");
        }
    }

    #[test]
    fn chunked_bodies_end_where_they_end() {
        for body in
            ["0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n", "A;x=y\r\n0123456789\r\n1 \r\na\r\n00\r\nX-Sum: 1\r\nY: 2\r\n\r\n"]
        {
            let sent = format!("{body}GET /");
            for cut in 1..sent.len() {
                let mut chunks = Chunks::default();
                let (taken, mut end) = chunks.advance(&sent.as_bytes()[..cut]).unwrap();
                let mut total = taken;
                if !end {
                    assert_eq!(taken, cut);
                    let (more, ended) = chunks.advance(&sent.as_bytes()[cut..]).unwrap();
                    (total, end) = (total + more, ended);
                }
                assert_eq!((total, end), (body.len(), true), "{body:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn bad_chunks_are_refused() {
        for body in [
            "x",
            "\r\n",
            "5\nhello",
            "5\r\nhelloX",
            "-1\r\n",
            "5x\r\n",
            "11111111111111111\r\n",
            "0\r\nA\n",
            "0\r\n\rA",
            "5\rx",
        ] {
            assert_eq!(Chunks::default().advance(body.as_bytes()), Err(BadChunk), "{body:?}");
        }
        let long = format!("1;{}", "x".repeat(MAX_SIZE_LINE));
        assert_eq!(Chunks::default().advance(long.as_bytes()), Err(BadChunk));
        let long = format!("0\r\n{}", "x".repeat(MAX_TRAILERS + 1));
        assert_eq!(Chunks::default().advance(long.as_bytes()), Err(BadChunk));
    }
}
