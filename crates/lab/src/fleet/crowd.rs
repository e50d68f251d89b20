//! Clients of the same file, together.

use std::thread;

use anyhow::Result;

use super::POLL;
use crate::client::{Client, Outcome};

/// Clients of the same file.
pub(crate) struct Crowd {
    pub(super) clients: Vec<(usize, Client)>,
    pub(super) length: u64,
}

impl Crowd {
    /// Waits until every client has this share of the file, or is done.
    pub(crate) fn wait_for_share(&self, share: f64) {
        let bytes = (self.length as f64 * share) as u64;
        while self.clients.iter().any(|(_, client)| client.bytes() < bytes && !client.is_done()) {
            thread::sleep(POLL);
        }
    }

    /// Waits until any client has this share of the file, or is done.
    pub(crate) fn wait_for_any(&self, share: f64) {
        let bytes = (self.length as f64 * share) as u64;
        while !self.clients.iter().any(|(_, client)| client.bytes() >= bytes || client.is_done()) {
            thread::sleep(POLL);
        }
    }

    /// Takes the client of host `n` out of the crowd.
    pub(crate) fn remove(&mut self, n: usize) -> Option<Client> {
        let at = self.clients.iter().position(|(host, _)| *host == n)?;
        Some(self.clients.remove(at).1)
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.clients.extend(other.clients);
    }

    /// What all got, by host.
    pub(crate) fn outcomes(self) -> Result<Vec<(usize, Outcome)>> {
        self.clients.into_iter().map(|(n, client)| Ok((n, client.outcome()?))).collect()
    }
}
