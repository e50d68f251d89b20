//! A TCP forwarder that remembers what it carried.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{block_on, contains, rpc_tap, spawn};

/// A running tap.
pub(crate) struct Tap {
    address: SocketAddr,
    carried: Carried,
    server: tokio::task::JoinHandle<()>,
}

/// What went by: the bytes of each direction of each connection, or what each side of each call said.
pub(super) type Carried = Arc<Mutex<Vec<Vec<u8>>>>;

impl Tap {
    /// Listens at `listen`, and connects to `target` for each connection. Remembers the bytes of each direction.
    pub(crate) fn start(listen: SocketAddr, target: SocketAddr) -> Self {
        Self::with(listen, target, carry)
    }

    /// The same for gRPC: remembers what each side of each call said, its header fields as lines and its messages.
    pub(crate) fn decoding(listen: SocketAddr, target: SocketAddr) -> Self {
        Self::with(listen, target, rpc_tap::carry)
    }

    fn with<F>(listen: SocketAddr, target: SocketAddr, carry: fn(TcpStream, SocketAddr, Carried) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = block_on(TcpListener::bind(listen)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let carried = Carried::default();
        let server = spawn(accept(listener, target, Arc::clone(&carried), carry));
        Self { address, carried, server }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether these bytes went by, in either direction.
    pub(crate) fn carried(&self, needle: &[u8]) -> bool {
        self.any(|bytes| contains(bytes, needle))
    }

    /// Whether something that went by looks like this.
    pub(crate) fn any(&self, look: impl Fn(&[u8]) -> bool) -> bool {
        let carried = self.carried.lock().expect("no panic with the lock");
        carried.iter().any(|bytes| look(bytes))
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn accept<F>(
    listener: TcpListener,
    target: SocketAddr,
    carried: Carried,
    carry: fn(TcpStream, SocketAddr, Carried) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(carry(client, target, Arc::clone(&carried)));
        while connections.try_join_next().is_some() {}
    }
}

async fn carry(client: TcpStream, target: SocketAddr, carried: Carried) {
    let Ok(server) = TcpStream::connect(target).await else { return };
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let there = copy(client_read, server_write, Arc::clone(&carried));
    tokio::join!(there, copy(server_read, client_write, carried));
}

async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, carried: Carried) {
    let place = {
        let mut carried = carried.lock().expect("no panic with the lock");
        carried.push(Vec::new());
        carried.len() - 1
    };
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        carried.lock().expect("no panic with the lock")[place].extend_from_slice(&buffer[..read]);
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
    // The other side has gone already, or hears now that this one is done.
    let _ = to.shutdown().await;
}
