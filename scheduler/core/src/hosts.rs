//! Hosts: announced, silent, isolated, gone.

use std::collections::BTreeSet;
use std::sync::Arc;

use damselfly_core::swarm::HostInfo;
use damselfly_core::{HostId, Moment, PeerId, TaskId};

use crate::machine::{Core, Wake};
use crate::{Fact, Notice, Output};

/// One machine's daemon. Known without an announcement while a peer of it is.
#[derive(Debug)]
pub(crate) struct Host {
    /// What it said of itself; `None` until it did, and again once it stopped.
    pub(crate) info: Option<HostInfo>,
    pub(crate) idc: Arc<str>,
    /// When it last announced itself.
    pub(crate) seen: Moment,
    /// Tells this time that it is known from every other: it changes when the host was forgotten meanwhile.
    pub(crate) number: u64,
    /// Its peers, by task.
    pub(crate) peers: BTreeSet<(TaskId, PeerId)>,
    /// Upload slots in use.
    pub(crate) children: u32,
    /// Leases that its peers hold.
    pub(crate) leases: u32,
    /// Whether that is all of them, as its peers' places know it.
    pub(crate) full: bool,
    /// Served wrong bytes: not offered until then.
    pub(crate) isolated: Option<Moment>,
    /// Could not be reached: not offered until it is heard of.
    pub(crate) silent: bool,
    /// Hosts that had wrong bytes from it.
    pub(crate) accusers: BTreeSet<HostId>,
    /// Hosts that could not reach it since it was last heard of.
    pub(crate) missed_by: BTreeSet<HostId>,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            info: None,
            idc: Arc::from(""),
            seen: Moment::START,
            number: 0,
            peers: BTreeSet::new(),
            children: 0,
            leases: 0,
            full: true,
            isolated: None,
            silent: false,
            accusers: BTreeSet::new(),
            missed_by: BTreeSet::new(),
        }
    }
}

impl Host {
    /// What is to be known to offer it, if it may be offered.
    pub(crate) fn offered(&self) -> Option<&HostInfo> {
        self.info.as_ref().filter(|_| !self.silent && self.isolated.is_none())
    }

    /// Whether nothing would be lost with it.
    pub(crate) fn is_unneeded(&self) -> bool {
        self.info.is_none() && self.peers.is_empty() && self.isolated.is_none()
    }
}

impl Core {
    pub(crate) fn host_announced(&mut self, now: Moment, info: HostInfo) {
        let id = info.id.clone();
        let is_new = self.hosts.get(&id).is_none_or(|host| host.info.is_none());
        while is_new && self.hosts_by_age.len() >= self.config.max_hosts {
            let Some((_, oldest)) = self.hosts_by_age.first().cloned() else { break };
            self.drop_host(&oldest);
        }
        if info.seed {
            self.seeds.insert(id.clone());
        } else {
            self.seeds.remove(&id);
        }
        let host_time = self.config.host_time();
        self.host_number += u64::from(is_new);
        let number = self.host_number;
        let host = self.hosts.entry(id.clone()).or_default();
        if is_new {
            host.number = number;
        }
        let seen = std::mem::replace(&mut host.seen, now);
        if *host.idc != *info.idc {
            host.idc = Arc::from(info.idc.as_str());
        }
        host.info = Some(info);
        host.silent = false;
        host.missed_by.clear();
        self.hosts_by_age.remove(&(seen, id.clone()));
        self.hosts_by_age.insert((now, id.clone()));
        self.cancel_wake(seen + host_time, Wake::Host(id.clone()));
        self.wake_at(now + host_time, Wake::Host(id.clone()));
        self.reindex_host(&id);
    }

    /// What was known that a host holds is forgotten: it is about to say all that it does.
    pub(crate) fn holds_nothing(&mut self, id: &HostId) {
        let Some(host) = self.hosts.get(id) else { return };
        for (_, peer) in host.peers.clone() {
            if self.peers.get(&peer).is_some_and(|peer| !peer.open) {
                self.remove_peer(&peer);
            }
        }
    }

    /// A host says goodbye: its peers are gone with it.
    pub(crate) fn host_left(&mut self, id: &HostId) {
        let Some(host) = self.hosts.get(id) else { return };
        for (_, peer) in host.peers.clone() {
            if self.peers.get(&peer).is_some_and(|peer| peer.open) {
                self.output(Output::End(peer.clone()));
            }
            self.remove_peer(&peer);
        }
        self.forget_announcement(id);
    }

    pub(crate) fn host_may_be_gone(&mut self, now: Moment, id: &HostId) {
        if self.hosts.get(id).is_some_and(|host| host.info.is_some() && host.seen + self.config.host_time() <= now) {
            self.drop_host(id);
            self.fact(Fact::HostDropped);
        }
    }

    /// Offers a host no more. Peers of it that still talk go on as children.
    fn drop_host(&mut self, id: &HostId) {
        self.holds_nothing(id);
        self.forget_announcement(id);
    }

    fn forget_announcement(&mut self, id: &HostId) {
        if self.seeds.remove(id) {
            self.seed_gone(id);
        }
        let Some(host) = self.hosts.get_mut(id) else { return };
        let seen = host.seen;
        host.info = None;
        host.silent = false;
        let peers = host.peers.clone();
        let unneeded = host.is_unneeded();
        self.hosts_by_age.remove(&(seen, id.clone()));
        self.cancel_wake(seen + self.config.host_time(), Wake::Host(id.clone()));
        self.reindex_host(id);
        for (_, peer) in peers {
            self.unlink_children(&peer);
        }
        if unneeded {
            self.hosts.remove(id);
        }
    }

    /// Something came from a host: it lives.
    pub(crate) fn heard_of(&mut self, id: &HostId) {
        let Some(host) = self.hosts.get_mut(id) else { return };
        host.missed_by.clear();
        if std::mem::take(&mut host.silent) {
            self.reindex_host(id);
        }
    }

    /// `by` could not reach a host.
    pub(crate) fn missed(&mut self, id: &HostId, by: &HostId) {
        let limit = self.config.silent_after;
        let Some(host) = self.hosts.get_mut(id) else { return };
        host.missed_by.insert(by.clone());
        if host.silent || host.missed_by.len() < limit {
            return;
        }
        host.silent = true;
        let missed_by = std::mem::take(&mut host.missed_by).len();
        self.reindex_host(id);
        self.fact(Fact::Silent);
        self.notice(Notice::Silent { host: id.clone(), missed_by });
    }

    /// `by` had wrong bytes from a host: it is not offered for this task any more, and not at all once several say so.
    pub(crate) fn accused(&mut self, now: Moment, id: &HostId, by: &HostId, task: &TaskId) {
        self.isolate_for_task(now, id, by, task);
        let (limit, time) = (self.config.isolate_after, self.config.isolation);
        let until = now + time;
        let Some(host) = self.hosts.get_mut(id) else { return };
        host.accusers.insert(by.clone());
        if host.isolated.is_some() || host.accusers.len() < limit {
            return;
        }
        let accusers = std::mem::take(&mut host.accusers).len();
        host.isolated = Some(until);
        self.isolated += 1;
        let peers = host.peers.clone();
        self.wake_at(until, Wake::Isolation(id.clone()));
        self.fact(Fact::Isolated);
        self.notice(Notice::Isolated { host: id.clone(), accusers, time });
        self.reindex_host(id);
        for (_, peer) in peers {
            self.unlink_children(&peer);
        }
    }

    fn isolate_for_task(&mut self, now: Moment, id: &HostId, by: &HostId, task: &TaskId) {
        let until = now + self.config.isolation;
        let Some(state) = self.tasks.get_mut(task) else { return };
        if state.isolated.contains_key(id) {
            return;
        }
        state.isolated.insert(id.clone(), until);
        self.wake_at(until, Wake::TaskIsolation(*task, id.clone()));
        self.fact(Fact::IsolatedForTask);
        self.notice(Notice::IsolatedForTask { task: *task, host: id.clone(), accuser: by.clone() });
        for peer in self.peers_of(id, task) {
            self.reindex(&peer);
            self.unlink_children(&peer);
        }
    }

    pub(crate) fn isolation_may_be_over(&mut self, now: Moment, id: &HostId) {
        let Some(host) = self.hosts.get_mut(id) else { return };
        if host.isolated.is_some_and(|until| until <= now) {
            host.isolated = None;
            self.isolated -= 1;
            if host.is_unneeded() {
                self.hosts.remove(id);
            } else {
                self.reindex_host(id);
            }
        }
    }

    pub(crate) fn task_isolation_may_be_over(&mut self, now: Moment, task: &TaskId, id: &HostId) {
        let Some(state) = self.tasks.get_mut(task) else { return };
        if state.isolated.get(id).is_some_and(|until| *until <= now) {
            state.isolated.remove(id);
            for peer in self.peers_of(id, task) {
                self.reindex(&peer);
            }
        }
    }

    /// A host's peers in one task.
    pub(crate) fn peers_of(&self, host: &HostId, task: &TaskId) -> Vec<PeerId> {
        let Some(host) = self.hosts.get(host) else { return Vec::new() };
        let from = (*task, PeerId::from(""));
        host.peers.range(from..).take_while(|(of, _)| of == task).map(|(_, peer)| peer.clone()).collect()
    }
}
