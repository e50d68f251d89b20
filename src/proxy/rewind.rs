//! A connection of which something was read already, given back as if it had not been.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::gate::Wire;

/// A connection whose first bytes are in memory.
pub(super) struct Rewound {
    read: Vec<u8>,
    /// How many of them were given out.
    given: usize,
    wire: Box<dyn Wire>,
}

impl Rewound {
    /// `wire`, of which `read` was read.
    pub(super) const fn new(wire: Box<dyn Wire>, read: Vec<u8>) -> Self {
        Self { read, given: 0, wire }
    }
}

impl Wire for Rewound {
    fn abort(&self) {
        self.wire.abort();
    }

    fn tcp(&self) -> Option<&TcpStream> {
        self.wire.tcp().filter(|_| self.given == self.read.len())
    }
}

impl AsyncRead for Rewound {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let rest = &self.read[self.given..];
        if rest.is_empty() {
            self.read = Vec::new();
            self.given = 0;
            return Pin::new(&mut self.wire).poll_read(cx, buf);
        }
        let step = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..step]);
        self.given += step;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    #[tokio::test]
    async fn what_was_read_comes_first() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut rewound = Rewound::new(Box::new(near), b"hello ".to_vec());
        far.write_all(b"world").await.unwrap();
        far.shutdown().await.unwrap();
        let mut few = [0; 2];
        rewound.read_exact(&mut few).await.unwrap();
        assert_eq!(&few, b"he");
        let mut rest = String::new();
        rewound.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "llo world");
        rewound.write_all(b"back").await.unwrap();
        drop(rewound);
        let mut back = String::new();
        far.read_to_string(&mut back).await.unwrap();
        assert_eq!(back, "back");
    }
}
