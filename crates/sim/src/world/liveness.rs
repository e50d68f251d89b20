//! What keeps a swarm alive, checked while it runs and not only when it is over: **a host that lacks pieces, while others
//! that can be reached have them all and have nothing to do, has something on its way.**

use super::*;

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(250);

impl World {
    /// From now on, after the last fault, no host may be left without anything on its way for longer than `most` while
    /// complete hosts are idle. Panics with the seed's first host for which that is not so.
    pub fn watch_liveness(&mut self, most: Duration) {
        self.idle_at_most = Some(most);
        self.hosts.iter_mut().for_each(|host| host.served = self.now);
        let at = self.now + LOOK;
        self.at(at, Happening::LivenessCheck);
    }

    pub(super) fn check_liveness(&mut self) {
        let Some(most) = self.idle_at_most else { return };
        let now = self.now;
        let can_give = |host: &Host| {
            host.alive
                && !host.lies
                && host.frozen <= now
                && host.cut_off <= now
                && host.uploads < self.plan.uploads
                && host.queue.is_empty()
                && host.have.iter().all(|piece| *piece == Some(0))
        };
        let idle = self.hosts.iter().filter(|host| can_give(host)).count();
        for host in &mut self.hosts {
            let fetches = host.fetches.values().any(|fetching| fetching.flow.is_some());
            let on_its_way = fetches || host.stream.as_ref().is_some_and(|stream| stream.flow.is_some());
            if host.machine.is_none() || !host.alive || idle == 0 || on_its_way || host.cut_off > now {
                host.served = now;
            }
        }
        let left = self.hosts.iter().position(|host| now - host.served > most);
        if let Some(index) = left {
            let host = &self.hosts[index];
            panic!(
                "host {index} has had nothing on its way since {:?} while {idle} complete hosts were idle; it is {now:?} \
                 and it follows {:?}: {:?}",
                host.served, host.following, host.machine
            );
        }
        self.at(now + LOOK, Happening::LivenessCheck);
    }
}
