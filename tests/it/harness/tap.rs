//! A TCP forwarder that remembers what it carried.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{block_on, contains, spawn};

/// A running tap.
pub(crate) struct Tap {
    address: SocketAddr,
    carried: Carried,
    server: tokio::task::JoinHandle<()>,
}

/// The bytes of each direction of each connection.
type Carried = Arc<Mutex<Vec<Vec<u8>>>>;

impl Tap {
    /// Listens at `listen`, and connects to `target` for each connection.
    pub(crate) fn start(listen: SocketAddr, target: SocketAddr) -> Self {
        let listener = block_on(TcpListener::bind(listen)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let carried = Carried::default();
        let server = spawn(accept(listener, target, Arc::clone(&carried)));
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

async fn accept(listener: TcpListener, target: SocketAddr, carried: Carried) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let Ok(server) = TcpStream::connect(target).await else { continue };
        let (client_read, client_write) = client.into_split();
        let (server_read, server_write) = server.into_split();
        connections.spawn(copy(client_read, server_write, Arc::clone(&carried)));
        connections.spawn(copy(server_read, client_write, Arc::clone(&carried)));
        while connections.try_join_next().is_some() {}
    }
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
