//! A connection of which something was read already, given back as if it had not been.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::gate::IoStream;

/// A connection whose first bytes are in memory.
pub(super) struct PrefixedIo {
    read: Vec<u8>,
    /// How many of them were given out.
    given: usize,
    inner: Box<dyn IoStream>,
}

impl PrefixedIo {
    /// `inner`, of which `read` was read.
    pub(super) const fn new(inner: Box<dyn IoStream>, read: Vec<u8>) -> Self {
        Self { read, given: 0, inner }
    }
}

impl IoStream for PrefixedIo {
    fn abort(&self) {
        self.inner.abort();
    }

    fn tcp(&self) -> Option<&TcpStream> {
        self.inner.tcp().filter(|_| self.given == self.read.len())
    }
}

impl AsyncRead for PrefixedIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let rest = &self.read[self.given..];
        if rest.is_empty() {
            self.read = Vec::new();
            self.given = 0;
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let step = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..step]);
        self.given += step;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PrefixedIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
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
        let mut rewound = PrefixedIo::new(Box::new(near), b"hello ".to_vec());
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
