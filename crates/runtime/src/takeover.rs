//! Two processes side by side: the one that runs gives its listening sockets to its successor, and serves on until the
//! successor says that it does.
//!
//! # The conversation
//! The successor connects to a Unix socket of the one that runs, and sends [`HELLO`]. It is sent every listening socket
//! (`SCM_RIGHTS`), each with its name, then a message without one. Both accept on the same sockets from then on, so no
//! connection is lost between them. The successor says [`READY`] once it serves; then the other accepts no more, and says
//! [`RELEASED`] when it has let go of what only one of them can have. Its end closes the conversation, and says the same.
//!
//! A successor that goes away before it is ready has changed nothing.
//!
//! **Only a process of the same user, or of root, is given anything.**

use std::io::{self, IoSlice, IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::inherit::Inherited;

/// What a successor says first; a later version of this conversation has another one.
const HELLO: &[u8; 12] = b"take over 1\n";
const READY: u8 = b'R';
const RELEASED: u8 = b'S';

/// How long each step of handing sockets over may take.
const STEP: Duration = Duration::from_secs(20);
/// How long accepting pauses after the system refused.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How long a successor may take until it serves.
const START: Duration = Duration::from_secs(60);
/// The most sockets that are handed over.
const MAX_SOCKETS: usize = 1024;
/// A name is padded to so many bytes: a message is always read whole.
const NAME: usize = 32;

/// The process that has our sockets, and serves.
#[derive(Debug)]
pub struct Successor(UnixStream);

/// The process whose sockets we have, and that serves until we do.
#[derive(Debug)]
pub struct Predecessor(UnixStream);

/// Waits until another process serves on these sockets. One that fails to is forgotten.
pub async fn succeeded(listener: &UnixListener, sockets: &[(&str, BorrowedFd<'_>)]) -> Successor {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a successor could not be heard");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match hand_over(stream, sockets).await {
            Ok(successor) => return successor,
            Err(error) => tracing::warn!(%error, "a successor was not ready: this process goes on"),
        }
    }
}

async fn hand_over(mut stream: UnixStream, sockets: &[(&str, BorrowedFd<'_>)]) -> io::Result<Successor> {
    let (theirs, ours) = (stream.peer_cred()?.uid(), rustix::process::geteuid().as_raw());
    if theirs != ours && theirs != 0 {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to another user"));
    }
    let mut hello = [0; HELLO.len()];
    timeout(STEP, stream.read_exact(&mut hello)).await??;
    if hello != *HELLO {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it speaks another version"));
    }
    let sending = async {
        for (name, socket) in sockets {
            send(&stream, name, Some(*socket)).await?;
        }
        send(&stream, "", None).await
    };
    timeout(STEP, sending).await??;
    tracing::info!("a successor has the sockets");
    match timeout(START, stream.read_u8()).await?? {
        READY => Ok(Successor(stream)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// One message: a name, and its socket.
async fn send(stream: &UnixStream, name: &str, socket: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut padded = [0; NAME];
    let room = padded.get_mut(..name.len()).ok_or(io::ErrorKind::InvalidInput)?;
    room.copy_from_slice(name.as_bytes());
    let message = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if let Some(socket) = &socket {
            control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(socket)));
        }
        let sent = sendmsg(stream, &[IoSlice::new(&padded)], &mut control, SendFlags::NOSIGNAL)?;
        if sent == NAME { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    };
    stream.async_io(tokio::io::Interest::WRITABLE, message).await
}

impl Successor {
    /// Says that what only one process can have is free now.
    pub async fn released(mut self) {
        // Who is gone needs no word.
        let _ = self.0.write_all(&[RELEASED]).await;
    }
}

impl Predecessor {
    /// Asks the process that listens at `path` for its sockets. `None` if there is none. Blocking.
    ///
    /// # Errors
    /// Why it did not give them.
    pub fn ask(path: &Path) -> io::Result<Option<(Self, Inherited)>> {
        let mut stream = match BlockingStream::connect(path) {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        stream.set_read_timeout(Some(STEP))?;
        io::Write::write_all(&mut stream, HELLO)?;
        let mut inherited = Inherited::default();
        for _ in 0..MAX_SOCKETS {
            match receive(&mut stream)? {
                (name, Some(socket)) => inherited.add(name, socket)?,
                (_, None) => {
                    stream.set_nonblocking(true)?;
                    return Ok(Some((Self(UnixStream::from_std(stream)?), inherited)));
                }
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "it has too many sockets"))
    }

    /// Says that this process serves now, and waits until the other has released what only one of them can have, or has
    /// ended.
    pub async fn ready(mut self) {
        if self.0.write_all(&[READY]).await.is_ok() {
            let _ = self.0.read_u8().await;
        }
    }
}

fn receive(stream: &mut BlockingStream) -> io::Result<(String, Option<OwnedFd>)> {
    let mut name = [0; NAME];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(stream.as_fd(), &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
        _ => None,
    });
    let socket = rights.flatten().last();
    let rest = name.get_mut(received..).unwrap_or_default();
    if !rest.is_empty() {
        stream.read_exact(rest)?;
    }
    Ok((String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned(), socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{SocketAddr, TcpListener, TcpStream};

    async fn ask(path: &Path) -> io::Result<Option<(Predecessor, Inherited)>> {
        let path = path.to_owned();
        tokio::task::spawn_blocking(move || Predecessor::ask(&path)).await.unwrap()
    }

    fn listening() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        (listener, addr)
    }

    #[tokio::test]
    async fn the_sockets_change_hands_with_who_waits_in_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("takeover.sock");
        assert!(ask(&path).await.unwrap().is_none(), "there is nobody to succeed");
        let listener = UnixListener::bind(&path).unwrap();
        let [(one, at_one), (two, at_two)] = [listening(), listening()];
        let waiting = TcpStream::connect(at_two).unwrap();
        let old = tokio::spawn(async move {
            let successor = succeeded(&listener, &[("proxy", one.as_fd()), ("peer", two.as_fd())]).await;
            drop((one, two));
            successor.released().await;
        });
        let (predecessor, mut sockets) = ask(&path).await.unwrap().unwrap();
        let taken = sockets.tcp("peer", at_two).unwrap().unwrap();
        assert!(sockets.tcp("proxy", at_one).unwrap().is_some());
        assert!(sockets.left().is_empty());
        predecessor.ready().await;
        old.await.unwrap();
        taken.set_nonblocking(false).unwrap();
        assert_eq!(taken.accept().unwrap().1, waiting.local_addr().unwrap(), "it waited in the socket");
    }

    #[tokio::test]
    async fn who_goes_away_before_it_is_ready_has_changed_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("takeover.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (one, _) = listening();
        let old = tokio::spawn(async move {
            succeeded(&listener, &[("proxy", one.as_fd())]).await.released().await;
        });
        drop(ask(&path).await.unwrap().unwrap());
        // One that says something else is not heard either.
        let mut other = UnixStream::connect(&path).await.unwrap();
        other.write_all(b"GET / HTTP/1").await.unwrap();
        assert_eq!(other.read(&mut [0; 8]).await.unwrap(), 0);
        let (predecessor, _) = ask(&path).await.unwrap().unwrap();
        assert!(!old.is_finished());
        predecessor.ready().await;
        old.await.unwrap();
    }
}
