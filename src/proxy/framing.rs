//! Where an HTTP/1 request ends, strictly: the rules that make request smuggling impossible (RFC 9112, 6.3 and 11.2).
//!
//! Pure. A head is judged as a whole, before the HTTP library sees any of it; of a body only its framing is followed.
//! The library is lenient in places where the standard allows it to be; this is where we are not. It gets only what was
//! judged here, so the two cannot disagree (docs/adr/0007).

use std::net::Ipv6Addr;
use std::ops::Range;

use http::uri::Authority;
use http::{Method, Uri, header};

/// The most bytes of one request head. Signed URLs and cookies of many KiB pass.
pub(super) const MAX_HEAD: usize = 128 * 1024;
/// The most bytes of a target that the HTTP library can hold.
const MAX_TARGET: usize = 65_534;
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
    /// Its target is longer than [`MAX_TARGET`].
    TargetTooLong,
    /// Anything else that is wrong with it.
    Because(&'static str),
}

/// What follows a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// This many bytes of body.
    Sized(u64),
    /// A chunked body.
    Chunked,
}

/// A head that can be handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// What follows it.
    pub(super) framing: Framing,
    /// Whether the answer decides if what follows is HTTP: a `CONNECT`, or an upgrade.
    pub(super) may_switch: bool,
    /// What has to stand in its request line for the target, and where that is.
    pub(super) target: Option<(Range<usize>, Vec<u8>)>,
    /// Whether it is about the whole server: an absolute URL without a path, which the last proxy writes as `*`.
    pub(super) whole_server: bool,
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

const NO_LINE: &str = "The request has no request line.";
const NO_URL: &str = "The request's target is not a valid URL.";
const NOT_HTTP: &str = "The request's head is not HTTP.";

/// Judges this head, which is whole (its empty line included).
pub(super) fn inspect(head: &[u8]) -> Result<Head, Malformed> {
    let end = head.windows(2).position(|two| two == b"\r\n").ok_or(Malformed::Because(NO_LINE))?;
    let mut words = head[..end].split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Malformed::Because(NO_LINE));
    };
    let version = match version {
        b"HTTP/1.1" => 1,
        b"HTTP/1.0" => 0,
        _ => return Err(Malformed::Because("The request speaks no version of HTTP/1 that is known.")),
    };
    let name = Method::from_bytes(method).map_err(|_| Malformed::Because("The request's method is no word."))?;
    let replaced = target_of(&name, target)?;
    let mut lines = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let lines = match httparse::parse_headers(&head[end + 2..], &mut lines) {
        Ok(httparse::Status::Complete((read, lines))) if end + 2 + read == head.len() => lines,
        Err(httparse::Error::TooManyHeaders) => return Err(Malformed::TooLarge),
        _ => return Err(Malformed::Because(NOT_HTTP)),
    };
    let framing = body(version, lines)?;
    let upgrades = version == 1 && lines.iter().any(|line| line.name.eq_ignore_ascii_case("upgrade"));
    let at = method.len() + 1..method.len() + 1 + target.len();
    Ok(Head {
        framing,
        may_switch: name == Method::CONNECT || upgrades,
        target: replaced.map(|target| (at, target)),
        whole_server: name == Method::OPTIONS && is_bare_authority(target),
    })
}

/// Whether an absolute URL ends with its authority.
fn is_bare_authority(target: &[u8]) -> bool {
    authority_end(target) == Some(target.len())
}

/// Where the authority of an absolute URL ends.
fn authority_end(target: &[u8]) -> Option<usize> {
    let start = target.windows(3).position(|three| three == b"://")? + 3;
    let length = target[start..].iter().position(|byte| matches!(byte, b'/' | b'?' | b'#'));
    Some(length.map_or(target.len(), |length| start + length))
}

/// Judges a request's target. What clients write raw in a path or query though it has to be encoded comes back encoded.
fn target_of(method: &Method, target: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
    let bad = |is_good: bool| if is_good { Ok(()) } else { Err(Malformed::Because(NO_URL)) };
    if *method == Method::CONNECT {
        bad(is_endpoint(target))?;
        return Ok(None);
    }
    if target == b"*" {
        bad(*method == Method::OPTIONS)?;
        return Ok(None);
    }
    let path = match target {
        [b'/', ..] => 0,
        _ => authority_end(target).ok_or(Malformed::Because(NO_URL))?,
    };
    if target.len() > MAX_TARGET {
        return Err(Malformed::TargetTooLong);
    }
    // What the library takes stays as it is.
    if target.iter().all(u8::is_ascii_graphic) && Uri::try_from(target).is_ok() {
        return Ok(None);
    }
    let raw = |byte: &u8| !byte.is_ascii_graphic() || matches!(byte, b'<' | b'>' | b'`' | b'"');
    let mut encoded = target[..path].to_vec();
    for byte in &target[path..] {
        match byte {
            byte if raw(byte) => encoded.extend_from_slice(format!("%{byte:02X}").as_bytes()),
            byte => encoded.push(*byte),
        }
    }
    if encoded.len() > MAX_TARGET {
        return Err(Malformed::TargetTooLong);
    }
    bad(Uri::try_from(&encoded[..]).is_ok())?;
    Ok(Some(encoded))
}

/// Whether it is `HOST:PORT` and nothing else.
pub(super) fn is_endpoint(target: &[u8]) -> bool {
    let port = target.iter().rposition(|byte| *byte == b':').map(|at| &target[at + 1..]);
    // The library has to be able to hold it: it knows no `%` in a name.
    let is_authority = || Authority::try_from(target).is_ok();
    is_host(target)
        && port.is_some_and(|port| !port.is_empty() && port.iter().all(u8::is_ascii_digit))
        && is_authority()
}

/// Whether it is a host with or without a port, as `Host` and a `CONNECT` may name it; nothing at all is one too.
pub(super) fn is_host(value: &[u8]) -> bool {
    let of_host = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(byte);
    let is_name = |host: &[u8]| !host.is_empty() && host.iter().all(of_host);
    let is_ipv6 = |host: &[u8]| {
        let address = host.strip_prefix(b"[").and_then(|host| host.strip_suffix(b"]"));
        address.and_then(|text| std::str::from_utf8(text).ok()).is_some_and(|text| text.parse::<Ipv6Addr>().is_ok())
    };
    let (host, port) = match value.iter().rposition(|byte| matches!(byte, b':' | b']')) {
        Some(at) if value[at] == b':' => (&value[..at], &value[at + 1..]),
        _ => (value, &[][..]),
    };
    value.is_empty() || (port.iter().all(u8::is_ascii_digit) && (is_name(host) || is_ipv6(host)))
}

fn body(version: u8, lines: &[httparse::Header<'_>]) -> Result<Framing, Malformed> {
    let all = |name: http::HeaderName| {
        let lines = lines.iter().filter(move |line| line.name.eq_ignore_ascii_case(name.as_str()));
        lines.map(|line| line.value.trim_ascii())
    };
    let hosts = all(header::HOST).count();
    if hosts > 1 || (hosts == 0 && version == 1) {
        return Err(Malformed::Because("The request needs exactly one Host header."));
    }
    if !all(header::HOST).all(is_host) {
        return Err(Malformed::Because("The request's Host is no host."));
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
    let Some(encoding) = encodings.next() else { return Ok(Framing::Sized(length.unwrap_or(0))) };
    if length.is_some() {
        return Err(Malformed::Because("The request has both a Content-Length and a Transfer-Encoding."));
    }
    if version == 0 {
        return Err(Malformed::Because("HTTP/1.0 has no Transfer-Encoding."));
    }
    if encodings.next().is_some() || !encoding.eq_ignore_ascii_case(b"chunked") {
        return Err(Malformed::Because("The request's Transfer-Encoding is not chunked."));
    }
    Ok(Framing::Chunked)
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

    fn judge(lines: &str) -> Result<Head, Malformed> {
        let head = lines.replace('\n', "\r\n") + "\r\n";
        assert_eq!(head_end(head.as_bytes(), 0), Ok(Some(head.len())), "{lines:?}");
        inspect(head.as_bytes())
    }

    #[test]
    fn good_heads_have_one_framing() {
        for (head, want, may_switch) in [
            ("GET http://a/ HTTP/1.1\nHost: a\n", Framing::Sized(0), false),
            ("GET http://a/ HTTP/1.0\n", Framing::Sized(0), false),
            ("GET /a?b={c} HTTP/1.1\nHost: a\n", Framing::Sized(0), false),
            ("GET / HTTP/1.1\nHost:\n", Framing::Sized(0), false),
            ("GET / HTTP/1.1\nHost: a_b.example:8443\n", Framing::Sized(0), false),
            ("GET / HTTP/1.1\nHost: [::1]:80\n", Framing::Sized(0), false),
            ("OPTIONS * HTTP/1.1\nHost: a\n", Framing::Sized(0), false),
            ("POST / HTTP/1.1\nHost: a\nContent-Length: 12\n", Framing::Sized(12), false),
            ("POST / HTTP/1.1\nHost: a\nContent-Length: 12\ncontent-length:12\n", Framing::Sized(12), false),
            ("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: Chunked\n", Framing::Chunked, false),
            ("CONNECT a:443 HTTP/1.1\nHost: a:443\n", Framing::Sized(0), true),
            ("CONNECT [::1]:443 HTTP/1.1\nHost: a:443\n", Framing::Sized(0), true),
            ("GET / HTTP/1.1\nHost: a\nConnection: upgrade\nUpgrade: websocket\n", Framing::Sized(0), true),
            ("POST / HTTP/1.1\nHost: a\nUpgrade: x\nTransfer-Encoding: chunked\n", Framing::Chunked, true),
            ("GET / HTTP/1.0\nUpgrade: websocket\n", Framing::Sized(0), false),
        ] {
            let got = judge(head).map(|head| (head.framing, head.may_switch, head.target));
            assert_eq!(got, Ok((want, may_switch, None)), "{head}");
        }
    }

    #[test]
    fn what_clients_write_raw_is_encoded() {
        for (target, want) in [
            ("/a`b<c>d", "/a%60b%3Cc%3Ed"),
            ("/q?x=\"y\"", "/q?x=%22y%22"),
            ("/^|\\", "/^|\\"),
            ("http://a/<", "http://a/%3C"),
            ("http://a#\u{1f}", "http://a#%1F"),
            ("http://a?<", "http://a?%3C"),
            ("/\u{e9}", "/%C3%A9"),
            ("/%zz{}[]", "/%zz{}[]"),
        ] {
            let head = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
            let (at, encoded) =
                inspect(head.as_bytes()).unwrap().target.unwrap_or((4..4 + target.len(), target.into()));
            assert_eq!((&head[at], String::from_utf8(encoded).unwrap().as_str()), (target, want));
        }
        let latin = b"GET /\xe9 HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(inspect(latin).unwrap().target, Some((4..6, b"/%E9".to_vec())));
    }

    #[test]
    fn a_url_without_a_path_may_mean_the_server() {
        for (line, want) in [
            ("OPTIONS http://a HTTP/1.1", true),
            ("OPTIONS http://a:81 HTTP/1.1", true),
            ("OPTIONS http://a/ HTTP/1.1", false),
            ("OPTIONS http://a? HTTP/1.1", false),
            ("GET http://a HTTP/1.1", false),
        ] {
            assert_eq!(judge(&format!("{line}\nHost: a\n")).unwrap().whole_server, want, "{line}");
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
            "POST / HTTP/1.1\nHost: a\nUpgrade: x\nContent-Length: 1\nTransfer-Encoding: chunked\n",
            "CONNECT a:1 HTTP/1.1\nHost: a\nContent-Length: 1\nTransfer-Encoding: chunked\n",
            "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: gzip, chunked\n",
            "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: xchunked\n",
            "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\nTransfer-Encoding: identity\n",
            "POST / HTTP/1.0\nHost: a\nTransfer-Encoding: chunked\n",
            "POST / HTTP/1.1\nHost: a\nTransfer-Encoding : chunked\n",
            "GET / HTTP/1.1\nHost: a\nX: a\n b\n",
            "GET / HTTP/1.1\n Host: a\n",
            "GET / HTTP/1.1\n",
            "GET / HTTP/1.1\nHost: a\nHost: a\n",
            "GET / HTTP/1.1\nHost: a, b\n",
            "GET / HTTP/1.1\nHost: a,b\n",
            "GET / HTTP/1.1\nHost: a b\n",
            "GET / HTTP/1.1\nHost: u@a\n",
            "GET / HTTP/1.1\nHost: u:p@a\n",
            "GET / HTTP/1.1\nHost: a/b\n",
            "GET / HTTP/1.1\nHost: http://a\n",
            "GET / HTTP/1.1\nHost: a:b\n",
            "GET / HTTP/1.1\nHost: a:1:2\n",
            "GET / HTTP/1.1\nHost: \u{e9}\n",
            "GET / HTTP/1.1\nHost: [::1\n",
            "GET / HTTP/1.1\nHost: [x]@a\n",
            "GET / HTTP/1.1\nHost: [u@a]:80\n",
            "GET / HTTP/1.1\nHost: [::1]a\n",
            "CONNECT [x]@a:443 HTTP/1.1\nHost: a\n",
            "GET / HTTP/3.1\nHost: a\n",
            "GET / HTTP/1.2\nHost: a\n",
            "GET / http/1.1\nHost: a\n",
            "GET /\n",
            "GET  / HTTP/1.1\nHost: a\n",
            "GET /  HTTP/1.1\nHost: a\n",
            "GET / HTTP/1.1 \nHost: a\n",
            "GET\t/ HTTP/1.1\nHost: a\n",
            " GET / HTTP/1.1\nHost: a\n",
            "GET /a b HTTP/1.1\nHost: a\n",
            "G@T / HTTP/1.1\nHost: a\n",
            "GET foo HTTP/1.1\nHost: a\n",
            "GET a:80 HTTP/1.1\nHost: a\n",
            "GET * HTTP/1.1\nHost: a\n",
            "GET http:// HTTP/1.1\nHost: a\n",
            "GET http://a<b/ HTTP/1.1\nHost: a\n",
            "CONNECT a HTTP/1.1\nHost: a\n",
            "CONNECT a: HTTP/1.1\nHost: a\n",
            "CONNECT a%2fb:443 HTTP/1.1\nHost: a\n",
            "CONNECT u:p@a:443 HTTP/1.1\nHost: a\n",
            "CONNECT http://a:443 HTTP/1.1\nHost: a\n",
            "CONNECT a:443/x HTTP/1.1\nHost: a\n",
            "CONNECT /a:443 HTTP/1.1\nHost: a\n",
            "CONNECT * HTTP/1.1\nHost: a\n",
            "PRI * HTTP/2.0\n",
            "GET / HTTP/1.1\nHost: a\nBad Name: x\n",
            "GET / HTTP/1.1\nHost: a\n: x\n",
            "GET / HTTP/1.1\nHost: a\nX: \u{1}\n",
        ] {
            assert!(matches!(judge(head), Err(Malformed::Because(_))), "{head}: {:?}", judge(head));
        }
    }

    #[test]
    fn too_much_is_refused() {
        let many = format!("GET / HTTP/1.1\nHost: a\n{}", "X: y\n".repeat(MAX_HEADERS));
        assert_eq!(judge(&many), Err(Malformed::TooLarge));
        let long = format!("GET /{} HTTP/1.1\nHost: a\n", "x".repeat(MAX_TARGET));
        assert_eq!(judge(&long), Err(Malformed::TargetTooLong));
        let long = format!("GET /{} HTTP/1.1\nHost: a\n", "<".repeat(MAX_TARGET / 2));
        assert_eq!(judge(&long), Err(Malformed::TargetTooLong), "encoded it is longer");
        let long = format!("GET /{} HTTP/1.1\nHost: a\n", "x".repeat(MAX_TARGET - 1));
        assert!(judge(&long).is_ok());
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
