//! What goes wrong, and how it shows.

use super::*;

/// After so long without a sign of life a host takes its conversation with the scheduler for broken...
const SCHEDULER_KEEPALIVE: Duration = Duration::from_secs(13);
/// ... and one that it cannot begin.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// After so long the scheduler takes a conversation for broken whose host says nothing any more.
const KEEPALIVE: Duration = Duration::from_secs(10);

impl World {
    /// From the start on, this host sends wrong bytes for half of the pieces.
    pub fn make_liar(&mut self, host: usize) {
        self.hosts[host].lies = true;
    }

    pub(super) fn go_wrong(&mut self, fault: Fault) {
        match fault {
            Fault::Kill { host, loud } => self.kill(host, loud),
            Fault::KillSourceReader => {
                if let Some(host) = self.hosts.iter().position(|host| host.alive && host.stream.is_some()) {
                    self.kill(host, true);
                }
            }
            Fault::Revive { host } => self.revive(host),
            Fault::Freeze { host, time } => self.freeze(host, time),
            Fault::CutOff { host, time } => self.cut_off(host, time),
            Fault::CutOrigin { time } => self.cut_origin(time),
            Fault::RestartScheduler { time } => self.restart_scheduler(time),
            Fault::FreezeScheduler { time } => self.freeze_scheduler(time),
            Fault::Slow { host, up, down } => {
                let place = self.hosts[host].place;
                let mut due = Vec::new();
                self.net.change(self.now, place, (up, down), &mut due);
                due.into_iter().for_each(|due| self.at(due.at, Happening::Flows { due }));
            }
            Fault::Delay { by, time } => self.slower = (by, self.now + time),
        }
    }

    fn kill(&mut self, index: usize, loud: bool) {
        if !self.hosts[index].alive {
            return;
        }
        let pieces: Vec<_> = self.hosts[index].fetches.keys().copied().collect();
        pieces.into_iter().for_each(|piece| self.drop_fetch(index, piece));
        self.drop_stream(index);
        let asks: Vec<PeerId> = self.hosts[index].asks.keys().cloned().collect();
        asks.iter().for_each(|parent| self.drop_ask(index, parent));
        let host = &mut self.hosts[index];
        if host.finished.is_none() {
            self.unfinished -= 1;
        }
        host.alive = false;
        host.life += 1;
        host.machine = None;
        host.conversation = None;
        host.wake = None;
        host.following.clear();
        let peer = host.peer.clone();
        let followers = std::mem::take(&mut host.followers);
        self.stop_sending(index, if loud { PieceFault::Gone } else { PieceFault::Stalled });
        for (child, life) in followers.into_iter().filter(|_| loud) {
            let at = self.now + self.delay();
            let names = self.hosts[child].following.iter().filter(|name| self.peers.get(name) == Some(&index));
            for parent in names.cloned().collect::<Vec<_>>() {
                self.at(at, Happening::Gone { child, life, parent });
            }
        }
        let after = if loud { self.delay() } else { KEEPALIVE };
        let (at, epoch) = (self.now + after, self.epoch);
        self.at(at, Happening::ToCore { epoch, from: None, event: Box::new(scheduler::Event::PeerGone(peer)) });
    }

    /// Whatever the host is sending fails.
    fn stop_sending(&mut self, index: usize, fault: PieceFault) {
        self.hosts[index].queue.clear();
        self.hosts[index].uploads = 0;
        for child in 0..self.hosts.len() {
            let asks = self.hosts[child].asks.iter().filter(|(_, ask)| ask.at == index);
            for (parent, id) in asks.map(|(parent, ask)| (parent.clone(), ask.id)).collect::<Vec<_>>() {
                let after = if fault == PieceFault::Stalled { STALL } else { self.delay() };
                let at = self.now + after;
                self.at(at, Happening::AskExpires { child, parent, id, fault: Some(fault) });
            }
        }
        for child in 0..self.hosts.len() {
            let hit = self.hosts[child].fetches.iter_mut().filter(|(_, fetching)| fetching.from == index);
            let hit: Vec<_> = hit.map(|(&piece, fetching)| (piece, fetching.id, fetching.flow.take())).collect();
            for (piece, id, flow) in hit {
                if let Some(fetching) = self.hosts[child].fetches.get_mut(&piece) {
                    fetching.in_turn = false;
                }
                let Some(flow) = flow else { continue };
                self.unflow(flow);
                let after = if fault == PieceFault::Stalled { STALL } else { self.delay() };
                let at = self.now + after;
                self.at(at, Happening::FetchFails { child, id, piece, fault });
            }
        }
    }

    fn revive(&mut self, index: usize) {
        if !self.hosts[index].alive {
            self.hosts[index].alive = true;
            if self.hosts[index].finished.is_none() {
                self.unfinished += 1;
            }
            self.announce(index);
            let now = self.now;
            self.at(now, Happening::Begin { host: index });
        }
    }

    fn freeze(&mut self, index: usize, time: Duration) {
        if self.hosts[index].alive {
            self.hosts[index].frozen = self.now + time;
            self.cut_off(index, time);
        }
    }

    /// Whatever is on its way to or from the host stalls; its source stream goes on when it is back.
    fn cut_off(&mut self, index: usize, time: Duration) {
        if !self.hosts[index].alive {
            return;
        }
        self.hosts[index].cut_off = self.now + time;
        self.stop_sending(index, PieceFault::Stalled);
        let at = self.now + STALL;
        let asks: Vec<_> =
            self.hosts[index].asks.iter().map(|(parent, ask)| (parent.clone(), ask.id, ask.at)).collect();
        for (parent, id, host) in asks {
            self.hosts[host].queue.retain(|(_, _, queued)| *queued != id);
            self.at(at, Happening::AskExpires { child: index, parent, id, fault: Some(PieceFault::Stalled) });
        }
        let fetches = self.hosts[index].fetches.iter_mut();
        let fetches: Vec<_> = fetches.map(|(&piece, fetching)| (piece, fetching.id, fetching.flow.take())).collect();
        for (piece, id, flow) in fetches {
            if let Some(flow) = flow {
                self.unflow(flow);
            }
            self.at(at, Happening::FetchFails { child: index, id, piece, fault: PieceFault::Stalled });
        }
        if let Some(stream) = &mut self.hosts[index].stream {
            let (id, flow) = (stream.id, stream.flow.take());
            if let Some(flow) = flow {
                self.unflow(flow);
            }
            let at = self.now + time;
            self.at(at, Happening::StreamBegins { child: index, id });
        }
    }

    /// Whether anything gets from one of these hosts to the other.
    pub(super) fn reaches(&self, a: usize, b: usize) -> bool {
        self.now >= self.hosts[a].cut_off && self.now >= self.hosts[b].cut_off
    }

    fn cut_origin(&mut self, time: Duration) {
        self.origin_away = self.now + time;
        for child in 0..self.hosts.len() {
            if let Some(id) = self.hosts[child].stream.as_ref().map(|stream| stream.id) {
                let now = self.now;
                self.at(now, Happening::StreamEnds { child, id, end: download::End::Cut });
            }
        }
    }

    fn restart_scheduler(&mut self, time: Duration) {
        if self.core.take().is_none() {
            return;
        }
        self.epoch += 1;
        self.core_wake = None;
        for (host, conversation) in std::mem::take(&mut self.conversations).into_values() {
            let at = self.now + self.delay();
            self.at(at, Happening::Lost { host, conversation });
        }
        let at = self.now + time;
        self.at(at, Happening::SchedulerUp);
    }

    /// What is said to the scheduler waits, and hosts notice by its silence.
    fn freeze_scheduler(&mut self, time: Duration) {
        self.scheduler_frozen = self.now + time;
        for (host, conversation) in self.conversations.clone().into_values() {
            let at = self.now + SCHEDULER_KEEPALIVE;
            self.at(at, Happening::Silent { host, conversation });
        }
    }

    /// Whether the scheduler says nothing now. Who began a conversation gives it up after a while.
    pub(super) fn is_silent(&mut self, from: Option<(usize, u64)>, event: &scheduler::Event) -> bool {
        let silent = self.now < self.scheduler_frozen;
        if let (true, Some((host, conversation)), scheduler::Event::Register(_)) = (silent, from, event) {
            let at = self.now + HEAD_TIME;
            self.at(at, Happening::Silent { host, conversation });
        }
        silent
    }

    /// The scheduler is back and knows nothing; the hosts notice within a second.
    pub(super) fn scheduler_up(&mut self) {
        let seed = self.rng.u64(..);
        self.core = Some(scheduler::Core::new(self.core_config.clone(), seed));
        for host in 0..self.hosts.len() {
            if self.hosts[host].alive {
                self.announce(host);
            }
        }
    }
}
