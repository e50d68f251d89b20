//! Bytes on bare sockets: an origin whose every answer is written out by the test, and a client that sends what it likes.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::PATIENCE;

/// What is done about a request.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// These bytes; the connection stays open.
    Send(Vec<u8>),
    /// These bytes, then the end.
    Last(Vec<u8>),
    /// These bytes after a pause, then on.
    Late(Duration, Vec<u8>),
}

impl Reply {
    pub(crate) fn send(text: impl AsRef<[u8]>) -> Self {
        Self::Send(text.as_ref().to_vec())
    }

    pub(crate) fn last(text: impl AsRef<[u8]>) -> Self {
        Self::Last(text.as_ref().to_vec())
    }
}

/// A request as it came: the number of its connection, and its bytes up to the end of the head.
type Seen = Arc<Mutex<Vec<(usize, String)>>>;

/// A running origin. Its threads end with the test's process.
pub(crate) struct RawOrigin {
    address: SocketAddr,
    seen: Seen,
}

impl RawOrigin {
    /// Answers each request with what `script` says to its head and the number of its connection.
    pub(crate) fn start(script: impl Fn(&str, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (script, seen) = (Arc::new(script), Seen::default());
        let log = Arc::clone(&seen);
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let (Ok(stream), script, log) = (stream, Arc::clone(&script), Arc::clone(&log)) else { return };
                std::thread::spawn(move || converse(stream, number, &*script, &log));
            }
        });
        Self { address, seen }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The heads of the requests so far, with the numbers of their connections.
    pub(crate) fn seen(&self) -> Vec<(usize, String)> {
        self.seen.lock().expect("no panic with the lock").clone()
    }
}

/// A connection that ends in an error has simply ended.
fn converse(mut stream: TcpStream, number: usize, script: &dyn Fn(&str, usize) -> Reply, log: &Seen) -> Option<()> {
    loop {
        let head = read_head(&mut stream);
        if !head.ends_with("\r\n\r\n") {
            return None;
        }
        log.lock().ok()?.push((number, head.clone()));
        match script(&head, number) {
            Reply::Send(bytes) => stream.write_all(&bytes).ok()?,
            Reply::Last(bytes) => {
                stream.write_all(&bytes).ok()?;
                return stream.shutdown(std::net::Shutdown::Write).ok();
            }
            Reply::Late(pause, bytes) => {
                std::thread::sleep(pause);
                stream.write_all(&bytes).ok()?;
            }
        }
        // A body is of no interest here, but it is no head either.
        let length = head.to_lowercase().split("content-length: ").nth(1).and_then(|l| l.lines().next()?.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        if !head.contains("100-continue") {
            stream.read_exact(&mut body).ok()?;
        }
    }
}

/// A connection on which nothing is waited for longer than the patience lasts.
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a live socket");
    stream.set_nodelay(true).expect("a live socket");
    stream
}

/// Reads up to and with the end of a head, or to the end of the connection.
pub(crate) fn read_head(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    let mut byte = [0];
    while !read.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
        read.push(byte[0]);
    }
    String::from_utf8_lossy(&read).into_owned()
}

/// Sends these bytes and reads to the end of the connection, which may be a reset.
pub(crate) fn exchange(address: SocketAddr, request: impl AsRef<[u8]>) -> (Vec<u8>, io::Result<usize>) {
    let mut stream = connect(address);
    stream.write_all(request.as_ref()).expect("written");
    let mut answer = Vec::new();
    let end = stream.read_to_end(&mut answer);
    (answer, end)
}
