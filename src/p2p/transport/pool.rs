//! Connections to parents that are kept open between two pieces.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

/// Idle connections: a stack per address, the last one used on top.
pub(super) struct Pool {
    idle: Mutex<HashMap<SocketAddr, Vec<Idle>>>,
    per_host: usize,
    total: usize,
    timeout: Duration,
}

struct Idle {
    stream: TcpStream,
    since: Instant,
}

impl Pool {
    pub(super) fn new(per_host: usize, total: usize, timeout: Duration) -> Self {
        Self { idle: Mutex::default(), per_host, total, timeout }
    }

    /// A connection on which nothing has come, neither an end nor a byte that nobody asked for.
    pub(super) fn take(&self, addr: SocketAddr) -> Option<TcpStream> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let stack = idle.get_mut(&addr)?;
        let found = loop {
            match stack.pop() {
                Some(one) if one.since.elapsed() < self.timeout && is_quiet(&one.stream) => break Some(one.stream),
                Some(_) => {}
                None => break None,
            }
        };
        if stack.is_empty() {
            idle.remove(&addr);
        }
        found
    }

    /// Keeps a connection, if there is room after those that are too old have gone.
    pub(super) fn put(&self, addr: SocketAddr, stream: TcpStream) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|_, stack| {
            stack.retain(|one| one.since.elapsed() < self.timeout);
            !stack.is_empty()
        });
        if idle.values().map(Vec::len).sum::<usize>() >= self.total {
            return;
        }
        let stack = idle.entry(addr).or_default();
        if stack.len() < self.per_host {
            stack.push(Idle { stream, since: Instant::now() });
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.idle.lock().unwrap().values().map(Vec::len).sum()
    }
}

fn is_quiet(stream: &TcpStream) -> bool {
    matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}
