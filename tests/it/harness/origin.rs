//! An HTTP/1.1 server that does as its [`Page`]s say, and counts what it was asked for and what it sent.
//!
//! Written on bare sockets, so that it can do what no well-behaved server does.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::pages::{Framing, Kind, Page};
use super::{Authority, block_on, spawn};

/// Bodies are written in slices of this size; cuts and gates are exact to the byte all the same.
const SLICE: usize = 64 << 10;

/// A request that came, and what was sent for it.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// With the query.
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    sent: Arc<AtomicU64>,
}

impl Seen {
    /// Every value of a header of the request.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let lines = self.headers.iter().filter(|(own, _)| own.eq_ignore_ascii_case(name));
        lines.map(|(_, value)| value.as_str()).collect()
    }

    fn line(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }
}

#[derive(Default)]
struct Site {
    pages: Mutex<BTreeMap<String, Page>>,
    seen: Mutex<Vec<Seen>>,
}

/// A running origin.
pub(crate) struct Origin {
    site: Arc<Site>,
    address: SocketAddr,
    scheme: &'static str,
    server: tokio::task::JoinHandle<()>,
}

impl Origin {
    pub(crate) fn start() -> Self {
        Self::serve(None)
    }

    /// Speaks TLS with a certificate for `localhost` and 127.0.0.1.
    pub(crate) fn start_tls(authority: &Authority) -> Self {
        Self::serve(Some(authority.server_config().into()))
    }

    fn serve(tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let site = Arc::new(Site::default());
        let listener = block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let server = spawn(accept(listener, tls, Arc::clone(&site)));
        Self { site, address, scheme, server }
    }

    /// Puts a page at a path, in place of the one that was there.
    pub(crate) fn put(&self, path: &str, page: Page) {
        self.site.pages.lock().expect("no panic with the lock").insert(path.into(), page);
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address)
    }

    /// The same under the name `localhost`.
    pub(crate) fn url_by_name(&self, path: &str) -> String {
        format!("{}://localhost:{}{path}", self.scheme, self.address.port())
    }

    /// `HOST:PORT`.
    pub(crate) fn authority(&self) -> String {
        self.address.to_string()
    }

    /// The requests for a path so far.
    pub(crate) fn seen(&self, path: &str) -> Vec<Seen> {
        let seen = self.site.seen.lock().expect("no panic with the lock");
        seen.iter().filter(|seen| seen.path() == path).cloned().collect()
    }

    /// The bytes of bodies that were sent for a path so far.
    pub(crate) fn sent(&self, path: &str) -> u64 {
        self.seen(path).iter().map(|seen| seen.sent.load(Ordering::SeqCst)).sum()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn accept(listener: TcpListener, tls: Option<tokio_rustls::TlsAcceptor>, site: Arc<Site>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, site) = (tls.clone(), Arc::clone(&site));
        connections.spawn(async move {
            // A connection that ends in an error has simply ended.
            let _ = match tls {
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => converse(stream, &site).await,
                    Err(error) => Err(error),
                },
                None => converse(stream, &site).await,
            };
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Answers requests on one connection until it is to be closed.
async fn converse<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, site: &Site) -> io::Result<()> {
    let mut unread = Vec::new();
    while let Some(head) = read_head(&mut stream, &mut unread).await? {
        let Some(seen) = parse(&head) else { return Ok(()) };
        site.seen.lock().expect("no panic with the lock").push(seen.clone());
        let page = site.pages.lock().expect("no panic with the lock").get(seen.path()).cloned();
        let page = page.unwrap_or_else(|| Page::plain("there is nothing here\n").status(404));
        let body = read_body(&mut stream, &mut unread, &seen).await?;
        match page.kind {
            Kind::Silent => return wait_for_the_end(&mut stream).await,
            Kind::Upgrade => return echo(&mut stream, unread).await,
            Kind::Echo => respond(&mut stream, &seen, Page { body, ..page }).await?,
            Kind::Content => respond(&mut stream, &seen, page.clone()).await?,
        }
        if page.framing == Framing::Close || page.cut_after.is_some() {
            break;
        }
    }
    stream.shutdown().await
}

async fn read_more<S: AsyncRead + Unpin>(stream: &mut S, unread: &mut Vec<u8>) -> io::Result<bool> {
    unread.reserve(SLICE);
    Ok(stream.read_buf(unread).await? > 0)
}

async fn read_head<S: AsyncRead + Unpin>(stream: &mut S, unread: &mut Vec<u8>) -> io::Result<Option<String>> {
    loop {
        if let Some(end) = unread.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = unread.drain(..end + 4).collect::<Vec<u8>>();
            return Ok(Some(String::from_utf8_lossy(&head).into_owned()));
        }
        if !read_more(stream, unread).await? {
            return Ok(None);
        }
    }
}

fn parse(head: &str) -> Option<Seen> {
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_string(), first.next()?.to_string());
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_string(), value.trim().to_string()))
        .collect();
    Some(Seen { method, target, headers, sent: Arc::default() })
}

async fn read_body<S: AsyncRead + Unpin>(stream: &mut S, unread: &mut Vec<u8>, seen: &Seen) -> io::Result<Bytes> {
    if seen.line("transfer-encoding").is_some() {
        return read_chunks(stream, unread).await;
    }
    let length = seen.line("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    take(stream, unread, length).await
}

async fn take<S: AsyncRead + Unpin>(stream: &mut S, unread: &mut Vec<u8>, length: usize) -> io::Result<Bytes> {
    while unread.len() < length {
        if !read_more(stream, unread).await? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(unread.drain(..length).collect::<Vec<u8>>().into())
}

async fn read_chunks<S: AsyncRead + Unpin>(stream: &mut S, unread: &mut Vec<u8>) -> io::Result<Bytes> {
    let mut body = Vec::new();
    loop {
        let end = loop {
            match unread.windows(2).position(|window| window == b"\r\n") {
                Some(end) => break end,
                None if !read_more(stream, unread).await? => return Err(io::ErrorKind::UnexpectedEof.into()),
                None => {}
            }
        };
        let size = String::from_utf8_lossy(&unread[..end]).into_owned();
        let size = usize::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
        unread.drain(..end + 2);
        body.extend_from_slice(&take(stream, unread, size).await?);
        take(stream, unread, 2).await?;
        if size == 0 {
            return Ok(body.into());
        }
    }
}

async fn wait_for_the_end<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<()> {
    let mut unread = Vec::new();
    while read_more(stream, &mut unread).await? {
        unread.clear();
    }
    Ok(())
}

async fn echo<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, mut unread: Vec<u8>) -> io::Result<()> {
    let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    loop {
        stream.write_all(&unread).await?;
        unread.clear();
        if !read_more(stream, &mut unread).await? {
            return stream.shutdown().await;
        }
    }
}

/// Sends the page as this request wants it.
async fn respond<S: AsyncWrite + Unpin>(stream: &mut S, seen: &Seen, mut page: Page) -> io::Result<()> {
    if let Some(wanted) = &page.authorization
        && seen.line("authorization") != Some(wanted)
    {
        page = Page::plain("who are you?\n").status(401).header("WWW-Authenticate", "Basic realm=\"test\"");
    }
    if let Some((name, bodies)) = &page.by_header {
        let value = seen.line(name).unwrap_or_default();
        page.body = bodies.iter().find(|(own, _)| own == value).map_or_else(Bytes::new, |(_, body)| body.clone());
    }
    select_range(seen, &mut page);
    let bare = seen.method == "HEAD" || matches!(page.status, 204 | 304);
    let mut head = format!("HTTP/1.1 {} Status\r\n", page.status);
    for (name, value) in &page.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    match page.framing {
        Framing::Length if page.status != 304 => head.push_str(&format!("Content-Length: {}\r\n", page.body.len())),
        Framing::Length => {}
        Framing::Chunked => head.push_str("Transfer-Encoding: chunked\r\n"),
        Framing::Close => head.push_str("Connection: close\r\n"),
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).await?;
    stream.flush().await?;
    if bare { Ok(()) } else { send_body(stream, &page, &seen.sent).await }
}

/// Makes a 206, 304 or 416 of a page where the request's headers ask for it.
fn select_range(seen: &Seen, page: &mut Page) {
    if page.status != 200 {
        return;
    }
    if seen.line("if-none-match").is_some_and(|etag| Some(etag) == page.line("etag")) {
        page.status = 304;
        return;
    }
    let fresh =
        seen.line("if-range").is_none_or(|v| [page.line("etag"), page.line("last-modified")].contains(&Some(v)));
    let Some(range) = seen.line("range").filter(|_| page.ranges && fresh) else { return };
    let length = page.body.len();
    match parse_range(range, length) {
        Some((start, end)) => {
            page.status = 206;
            page.headers.push(("Content-Range".into(), format!("bytes {start}-{}/{length}", end - 1)));
            page.body = page.body.slice(start..end);
        }
        None => {
            page.status = 416;
            page.headers.push(("Content-Range".into(), format!("bytes */{length}")));
            page.body = Bytes::new();
        }
    }
}

/// Start and end (exclusive) of the one range asked for.
pub(super) fn parse_range(text: &str, length: usize) -> Option<(usize, usize)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (start, end) = match (first.parse::<usize>(), last.parse::<usize>()) {
        (Ok(first), Ok(last)) => (first, (last + 1).min(length)),
        (Ok(first), Err(_)) => (first, length),
        (Err(_), Ok(suffix)) => (length.saturating_sub(suffix), length),
        (Err(_), Err(_)) => return None,
    };
    (start < end).then_some((start, end))
}

async fn send_body<S: AsyncWrite + Unpin>(stream: &mut S, page: &Page, sent: &AtomicU64) -> io::Result<()> {
    let length = page.body.len().min(page.cut_after.unwrap_or(usize::MAX));
    let slice = page.pace.map_or(SLICE, |(slice, _)| slice);
    let mut at = 0;
    while at < length {
        let allowed = match &page.gate {
            Some(gate) => gate.pass(at).await,
            None => usize::MAX,
        };
        let end = (at + slice).min(length).min(allowed);
        let bytes = &page.body[at..end];
        if page.framing == Framing::Chunked {
            stream.write_all(format!("{:x}\r\n", bytes.len()).as_bytes()).await?;
        }
        stream.write_all(bytes).await?;
        if page.framing == Framing::Chunked {
            stream.write_all(b"\r\n").await?;
        }
        stream.flush().await?;
        sent.fetch_add((end - at) as u64, Ordering::SeqCst);
        at = end;
        if let Some((_, pause)) = page.pace {
            tokio::time::sleep(pause).await;
        }
    }
    if page.framing == Framing::Chunked && page.cut_after.is_none() {
        stream.write_all(b"0\r\n\r\n").await?;
    }
    stream.flush().await
}
