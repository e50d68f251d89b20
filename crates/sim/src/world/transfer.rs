//! Between the hosts: who has what, and the bytes on the links.

use super::*;

impl World {
    /// A host has a piece: its followers hear of it.
    pub(super) fn keep(&mut self, index: usize, piece: PieceNumber, variant: u32) {
        self.hosts[index].have[piece.index()] = Some(variant);
        let followers: Vec<_> = self.hosts[index].followers.iter().copied().collect();
        for (child, life) in followers {
            self.announce_piece(index, child, life, piece);
        }
        let host = &mut self.hosts[index];
        let before = host.prefix;
        while host.have.get(host.prefix as usize).is_some_and(Option::is_some) {
            host.prefix += 1;
        }
        if host.prefix != before {
            if host.first.is_none() {
                host.first = Some(self.now);
            } else {
                host.gap = host.gap.max(self.now - host.moved);
            }
            host.moved = self.now;
        }
        if host.prefix != before && host.want != Want::Prefetch {
            let offset = u64::from(host.prefix) * self.plan.geometry.piece_length();
            let (reader, now) = (download::ReaderId(1), self.moment());
            if let Some(machine) = &mut self.hosts[index].machine {
                machine.handle(now, download::Event::ReaderAt { reader, offset });
            }
        }
    }

    fn announce_piece(&mut self, parent: usize, child: usize, life: u32, piece: PieceNumber) {
        // Under whichever of the parent's names the child follows it.
        let names: Vec<_> =
            self.hosts[child].following.iter().filter(|peer| self.peers.get(peer) == Some(&parent)).cloned().collect();
        for name in names {
            let until = self.hosts[child].cut_off.max(self.hosts[parent].cut_off);
            let at = self.now.max(until) + self.delay();
            let heard = self.hosts[child].heard.entry(name.clone()).or_default();
            *heard = at.max(*heard);
            let at = *heard;
            self.at(at, Happening::Has { child, life, parent: name, piece });
        }
    }

    pub(super) fn subscribe(&mut self, child: usize, life: u32, parent: PeerId) {
        let index = self.peers[&parent];
        if self.hosts[child].life != life || !self.hosts[child].following.contains(&parent) {
            return;
        }
        if !self.hosts[index].alive || !self.reaches(child, index) {
            let at = self.now + if self.hosts[index].alive { STALL } else { self.delay() };
            return self.at(at, Happening::Gone { child, life, parent });
        }
        self.hosts[index].followers.insert((child, life));
        self.tell(child, download::Event::ParentQueues { parent: parent.clone() });
        if !self.hosts[child].following.contains(&parent) {
            return;
        }
        for piece in self.plan.geometry.pieces() {
            if self.hosts[index].have[piece.index()].is_some() {
                self.announce_piece(index, child, life, piece);
            }
        }
    }

    pub(super) fn fetch_begins(&mut self, child: usize, id: u64, piece: PieceNumber) {
        let Some(fetching) = self.hosts[child].fetches.get(&piece).filter(|fetching| fetching.id == id) else { return };
        let from = fetching.from;
        let parent = &self.hosts[from];
        let fails = |world: &mut Self, after, fault| {
            let at = world.now + after;
            world.at(at, Happening::FetchFails { child, id, piece, fault });
        };
        if !parent.alive {
            let delay = self.delay();
            fails(self, delay, PieceFault::Gone);
        } else if self.now < parent.frozen || !self.reaches(child, from) {
            fails(self, STALL, PieceFault::Stalled);
        } else if let Some(variant) = parent.serves(piece) {
            let (from, to) = (parent.place, self.hosts[child].place);
            let bytes = self.plan.geometry.span(piece).map_or(0, |span| span.len());
            self.hosts[from].sent_pieces[piece.index()] += 1;
            let flow = self.flow(from, to, bytes, Carries::Fetch { child, id, piece });
            if let Some(fetching) = self.hosts[child].fetches.get_mut(&piece) {
                fetching.flow = Some(flow);
                fetching.variant = variant;
            }
        } else {
            let delay = self.delay();
            fails(self, delay, PieceFault::Missing);
        }
    }

    pub(super) fn fetch_fails(&mut self, child: usize, id: u64, piece: PieceNumber, fault: PieceFault) {
        let Some(fetching) = self.hosts[child].fetches.get(&piece).filter(|fetching| fetching.id == id) else { return };
        let parent = fetching.parent.clone();
        self.drop_fetch(child, piece);
        self.tell(child, download::Event::PieceFailed { parent, piece, fault });
    }

    pub(super) fn drop_fetch(&mut self, child: usize, piece: PieceNumber) {
        let fetching = self.hosts[child].fetches.remove(&piece).expect("only what is fetched is dropped");
        if let Some(flow) = fetching.flow {
            self.unflow(flow);
        }
        if fetching.in_turn {
            self.turn_over_soon(fetching.from);
        }
    }

    pub(super) fn drop_stream(&mut self, child: usize) {
        if let Some(flow) = self.hosts[child].stream.take().and_then(|stream| stream.flow) {
            self.unflow(flow);
        }
    }

    fn flow(&mut self, from: Place, to: Place, bytes: u64, carries: Carries) -> u64 {
        let mut due = Vec::new();
        let flow = self.net.begin(self.now, from, to, bytes, &mut due);
        self.flows.insert(flow, carries);
        due.into_iter().for_each(|due| self.at(due.at, Happening::Flows { due }));
        flow
    }

    pub(super) fn unflow(&mut self, flow: u64) {
        let mut due = Vec::new();
        self.net.end(self.now, flow, &mut due);
        self.flows.remove(&flow);
        due.into_iter().for_each(|due| self.at(due.at, Happening::Flows { due }));
    }

    /// A transfer is done.
    pub(super) fn flowed(&mut self, flow: u64) {
        let carries = self.flows.get(&flow).copied();
        self.unflow(flow);
        match carries {
            Some(Carries::Fetch { child, id, piece }) => {
                let Some(fetching) = self.hosts[child].fetches.remove(&piece) else { return };
                assert_eq!(fetching.id, id);
                self.hosts[fetching.from].uploaded += self.plan.geometry.span(piece).map_or(0, |span| span.len());
                if fetching.in_turn {
                    self.upload_over(fetching.from);
                }
                self.outcome.bad_arrivals += u32::from(fetching.variant != 0);
                self.hosts[child].arrived.insert(piece, fetching.variant);
                let digest = digest(piece, fetching.variant);
                self.tell(child, download::Event::PieceArrived { parent: fetching.parent, piece, digest });
            }
            Some(Carries::Source { child, id }) => {
                let Some(stream) = &mut self.hosts[child].stream else { return };
                assert_eq!(stream.id, id);
                let piece = PieceNumber(stream.next);
                stream.next += 1;
                stream.flow = None;
                let bytes = self.plan.geometry.span(piece).map_or(0, |span| span.len());
                self.outcome.origin_bytes += bytes;
                self.tell(child, download::Event::SourceProgress { bytes });
                self.keep(child, piece, 0);
                self.tell(child, download::Event::SourcePiece { piece, digest: digest(piece, 0) });
                self.stream_goes_on(child, id);
            }
            None => {}
        }
    }

    pub(super) fn stream_begins(&mut self, child: usize, id: u64) {
        if self.hosts[child].stream.as_ref().is_none_or(|stream| stream.id != id) {
            return;
        }
        let cut_off = self.hosts[child].cut_off;
        if self.now < cut_off {
            return self.at(cut_off, Happening::StreamBegins { child, id });
        }
        if self.now < self.origin_away {
            self.drop_stream(child);
            return self.tell(child, download::Event::SourceEnded(download::End::Cut));
        }
        self.tell(child, download::Event::SourceOpened { geometry: self.plan.geometry });
        self.stream_goes_on(child, id);
        self.stream_lives(child, id);
    }

    /// Bytes come while a piece takes its time.
    pub(super) fn stream_lives(&mut self, child: usize, id: u64) {
        let lives = self.hosts[child].stream.as_ref().is_some_and(|stream| stream.id == id && stream.flow.is_some());
        if lives {
            let at = self.now + Duration::from_secs(1);
            self.at(at, Happening::StreamLives { child, id });
            self.tell(child, download::Event::SourceProgress { bytes: 1 });
        }
    }

    fn stream_goes_on(&mut self, child: usize, id: u64) {
        let Some(stream) = self.hosts[child].stream.as_ref().filter(|stream| stream.id == id) else { return };
        if stream.next == stream.end {
            let now = self.now;
            return self.at(now, Happening::StreamEnds { child, id, end: download::End::Complete });
        }
        let bytes = self.plan.geometry.span(PieceNumber(stream.next)).map_or(0, |span| span.len());
        let flow = self.flow(self.origin, self.hosts[child].place, bytes, Carries::Source { child, id });
        if let Some(stream) = &mut self.hosts[child].stream {
            stream.flow = Some(flow);
        }
    }
}
