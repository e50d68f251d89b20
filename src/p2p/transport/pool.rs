//! Connections to parents that are kept open between two pieces.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use damselfly_api::member::MemberStream;
use futures_util::FutureExt as _;
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

use super::client::DataAddr;

/// Idle connections: a stack per address, the last one used on top.
pub(super) struct Pool {
    idle: Mutex<HashMap<DataAddr, Vec<Idle>>>,
    per_host: usize,
    total: usize,
    timeout: Duration,
}

struct Idle {
    stream: MemberStream,
    since: Instant,
}

impl Pool {
    pub(super) fn new(per_host: usize, total: usize, timeout: Duration) -> Self {
        Self { idle: Mutex::default(), per_host, total, timeout }
    }

    /// A connection on which nothing has come, neither an end nor a byte that nobody asked for.
    pub(super) fn take(&self, addr: DataAddr) -> Option<MemberStream> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let stack = idle.get_mut(&addr)?;
        let found = loop {
            match stack.pop() {
                Some(mut one) => {
                    if one.since.elapsed() < self.timeout && is_quiet(&mut one.stream) {
                        break Some(one.stream);
                    }
                }
                None => break None,
            }
        };
        if stack.is_empty() {
            idle.remove(&addr);
        }
        found
    }

    /// Keeps a connection, if there is room after those that are too old have gone.
    pub(super) fn put(&self, addr: DataAddr, stream: MemberStream) {
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

fn is_quiet(stream: &mut MemberStream) -> bool {
    match stream {
        MemberStream::Plain(stream) => {
            matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
        }
        // What TLS itself says in between is read, and is none of ours.
        MemberStream::Tls(stream) => stream.read(&mut [0]).now_or_never().is_none(),
    }
}
