//! Between the hosts and the scheduler's core.

use super::*;

impl World {
    /// Sends to the scheduler, in order with what the host sent before.
    fn send(&mut self, index: usize, conversation: Option<u64>, event: scheduler::Event) {
        let at = (self.now.max(self.hosts[index].cut_off) + self.delay()).max(self.hosts[index].sent);
        self.hosts[index].sent = at;
        let from = conversation.map(|conversation| (index, conversation));
        let epoch = self.epoch;
        self.at(at, Happening::ToCore { epoch, from, event: Box::new(event) });
    }

    /// A host tells the scheduler that it is there, and what it holds.
    pub(super) fn announce(&mut self, index: usize) {
        let info = HostInfo {
            id: self.host_id(index),
            seed: false,
            hostname: format!("host-{index}"),
            ip: [10, 0, (index / 250) as u8, (index % 250) as u8].into(),
            rpc_port: 4000,
            data_port: 4005,
            proxy_port: None,
            upload_slots: self.plan.slots,
            idc: String::new(),
            location: String::new(),
            tls: false,
        };
        self.send(index, None, scheduler::Event::HostAnnounced(info));
        if let Some(held) = self.held(index) {
            let peer = self.hosts[index].peer.clone();
            let holding = Holding { task: Self::task(), peer, origin: Self::origin_of(), held };
            let host = self.host_id(index);
            self.send(index, None, scheduler::Event::Held(host, holding));
        }
    }

    fn held(&self, index: usize) -> Option<Held> {
        let have = &self.hosts[index].have;
        let held = self.plan.geometry.pieces().filter_map(|piece| {
            let variant = have[piece.index()]?;
            Some((piece, digest(piece, variant).blake3))
        });
        let pieces: Vec<_> = held.collect();
        (!pieces.is_empty()).then_some(Held { geometry: self.plan.geometry, pieces })
    }

    pub(super) fn register(&mut self, index: usize, source: SourceWish) {
        let conversation = self.id();
        self.hosts[index].conversation = Some(conversation);
        let registration = Registration {
            host: self.host_id(index),
            task: Self::task(),
            peer: self.hosts[index].peer.clone(),
            origin: Self::origin_of(),
            geometry: self.hosts[index].machine.as_ref().and_then(download::Download::geometry),
            held: self.held(index),
            source,
            extended: true,
        };
        self.send(index, Some(conversation), scheduler::Event::Register(registration));
    }

    pub(super) fn report(&mut self, index: usize, report: Report) {
        let Some(conversation) = self.hosts[index].conversation else { return };
        let peer = self.hosts[index].peer.clone();
        self.send(index, Some(conversation), scheduler::Event::Report(peer, report));
    }

    pub(super) fn core_hears(&mut self, epoch: u32, from: Option<(usize, u64)>, event: scheduler::Event) {
        if self.core.is_none() || epoch != self.epoch {
            if let Some((host, conversation)) = from {
                let at = self.now + self.delay();
                self.at(at, Happening::Lost { host, conversation });
            }
            return;
        }
        if self.is_silent(from, &event) {
            let at = self.scheduler_frozen;
            return self.at(at, Happening::ToCore { epoch, from, event: Box::new(event) });
        }
        match (&event, from) {
            (scheduler::Event::Register(registration), Some(from)) => {
                self.conversations.insert(registration.peer.clone(), from);
            }
            (scheduler::Event::Report(peer, _), Some(from)) if self.conversations.get(peer) != Some(&from) => return,
            (scheduler::Event::PeerGone(peer), _) => {
                self.conversations.remove(peer);
            }
            _ => {}
        }
        self.core(event);
    }

    /// Tells the scheduler's core, and does what it asks.
    pub(super) fn core(&mut self, event: scheduler::Event) {
        let now = self.moment();
        let Some(core) = &mut self.core else { return };
        self.outcome.decisions += 1;
        core.handle(now, event);
        while let Some(output) = self.core.as_mut().and_then(scheduler::Core::poll) {
            match output {
                scheduler::Output::Answer(peer, answer) => self.answer(&peer, answer),
                scheduler::Output::End(peer) => {
                    if let Some((host, conversation)) = self.conversations.remove(&peer) {
                        let at = (self.now + self.delay()).max(self.hosts[host].received);
                        self.at(at, Happening::Lost { host, conversation });
                    }
                }
                scheduler::Output::TriggerSeed { .. } => panic!("there are no seeds"),
                scheduler::Output::Fact(_) | scheduler::Output::Notice(_) => {}
            }
        }
        let deadline = self.core.as_ref().and_then(scheduler::Core::deadline);
        if let Some(at) = deadline.map(|deadline| deadline.since_start().max(self.now))
            && self.core_wake.is_none_or(|wake| at < wake)
        {
            self.core_wake = Some(at);
            let epoch = self.epoch;
            self.at(at, Happening::CoreWake { epoch });
        }
    }

    fn answer(&mut self, peer: &PeerId, answer: Answer) {
        let Some(&(host, conversation)) = self.conversations.get(peer) else { return };
        if let Answer::GoToSource { .. } = &answer {
            self.outcome.grants += 1;
        }
        let at = (self.now.max(self.hosts[host].cut_off) + self.delay()).max(self.hosts[host].received);
        self.hosts[host].received = at;
        self.at(at, Happening::Answer { host, conversation, answer });
    }
}
