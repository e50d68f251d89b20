//! What is done next, decided after every event: which piece from whom, what the source reads, and the next resort
//! when nothing comes from anyone.

use damselfly_core::swarm::{PieceFault, Report, SourceWish};
use damselfly_core::{ByteRange, Moment, PieceNumber};

use super::link::{Outlook, Resort};
use super::pieces::{Fetch, Producer, State};
use super::source::Stage;
use super::{Action, Download, Failure};

/// Of how many pieces the rarest is chosen, beyond the readers' windows. Bounds the work of one choice.
const SAMPLE: usize = 256;

impl Download {
    /// When the machine wants [`super::Event::Timer`], unless something else happens first. `None` once it has ended.
    pub fn deadline(&self) -> Option<Moment> {
        if self.ended {
            return None;
        }
        if !self.readers.any() {
            return Some(self.started + self.config.reader_grace);
        }
        let oldest = self.pieces.iter().flat_map(|pieces| pieces.fetches.values()).map(|fetch| fetch.since).min();
        let fetch = oldest.map(|since| since + self.config.piece_timeout);
        let resort = (!self.is_busy()).then(|| self.quiet + self.link.resort(&self.config, self.outlook()).1);
        let turns = self.turns_deadline();
        let others = [self.source.deadline(&self.config), self.link.again, self.late_deadline(), self.aside_deadline()];
        let leftover = self.readers.deadline(self.config.leftover_grace);
        [fetch, resort, turns, leftover, self.few_until].into_iter().chain(others).flatten().min()
    }

    /// Whether something is under way that will bring a piece or fail.
    fn is_busy(&self) -> bool {
        self.source.is_busy()
            || self.source.aside.is_some()
            || self.pieces.as_ref().is_some_and(|pieces| !pieces.fetches.is_empty())
    }

    fn outlook(&self) -> Outlook {
        Outlook {
            source_usable: self.source.is_usable(),
            source_forbidden: self.source.is_forbidden(),
            source_permitted: self.source.is_open(),
            parents: self.parents.any_useful(),
        }
    }

    /// Does whatever follows from the state that an event left.
    pub(super) fn settle(&mut self, now: Moment) {
        if self.ended || self.is_over(now) {
            return;
        }
        if !self.readers.any() {
            return;
        }
        self.expire_held_up(now);
        self.expire(now);
        self.expire_aside(now);
        // What is not wanted of a lease is given back before another one is asked for.
        self.decline_lease();
        self.look_after_the_late(now);
        self.read_what_is_slow(now);
        self.leave_source();
        // A resort may open the way to another one at once; there are only so many.
        for _ in 0..=self.config.reschedules + 4 {
            self.fetch_from_parents(now);
            self.ask_for_turns();
            self.read_source(now);
            if self.is_busy() || self.ended {
                break;
            }
            if std::mem::take(&mut self.was_busy) {
                self.quiet = now;
            }
            if !self.resort(now) {
                break;
            }
        }
        self.read_aside(now);
        if self.is_busy() {
            self.was_busy = true;
            self.quiet = now;
        }
    }

    /// Ends the download if nobody wants anything more, or all that is wanted is here.
    fn is_over(&mut self, now: Moment) -> bool {
        if !self.readers.any() && (self.readers.ever || now >= self.started + self.config.reader_grace) {
            self.fail(Failure::Abandoned);
        } else if self.readers.any() && self.pieces.as_ref().is_some_and(|pieces| pieces.is_done()) {
            self.finish();
        }
        self.ended
    }

    /// Everything whose time has come, save the next resort.
    fn expire(&mut self, now: Moment) {
        self.expire_turns(now);
        let timeout = self.config.piece_timeout;
        let old =
            self.pieces.iter().flat_map(|pieces| &pieces.fetches).filter(|(_, fetch)| fetch.since + timeout <= now);
        for (piece, parent) in old.map(|(&piece, fetch)| (piece, fetch.parent.clone())).collect::<Vec<_>>() {
            if self.landed(&parent, piece).is_some() {
                self.actions.push_back(Action::Cancel { parent: parent.clone(), piece });
                self.report(Report::PieceFailed { piece, parent: parent.clone(), fault: PieceFault::Stalled });
                self.leave(now, &parent, false);
            }
        }
        if self.source.deadline(&self.config).is_some_and(|at| at <= now) {
            match self.source.stage {
                Stage::Reading { .. } => {
                    self.actions.push_back(Action::StopSource);
                    self.source_cut(now);
                }
                Stage::Backoff { .. } => self.source.stage = Stage::Idle,
                Stage::Idle | Stage::Dead(_) => {}
            }
        }
        if self.link.again.is_some_and(|at| at <= now) {
            self.register(SourceWish::Allowed);
        }
    }

    /// Fetches as much from parents as the limits allow.
    fn fetch_from_parents(&mut self, now: Moment) {
        while let Some(piece) = self.choose(now) {
            let (Some(peer), Some(pieces)) = (self.parents.best_for(piece, &mut self.rng), &mut self.pieces) else {
                return;
            };
            let Some(parent) = self.parents.followed.get_mut(&peer) else { return };
            parent.in_flight += 1;
            let fetch = Fetch {
                parent: peer.clone(),
                since: now,
                slow: false,
                #[cfg(any(test, debug_assertions))]
                by_turn: false,
            };
            pieces.fetch(piece, fetch, &self.proofs);
            let proof = self.proofs.known.get(&piece).copied();
            self.actions.push_back(Action::Fetch { parent: peer, piece, proof });
        }
    }

    /// The next piece to fetch from a parent: now and then the one that a reader waits for; else the rarest of those that
    /// readers want soon; else the rarest of all. Among equally rare ones any: in a crowd, hosts that want the same
    /// pieces fetch different ones first, and have something to give each other.
    fn choose(&mut self, now: Moment) -> Option<PieceNumber> {
        let pieces = self.pieces.as_ref()?;
        let room = pieces.fetches.len() < self.pieces_at_once();
        if !room || pieces.ready().is_empty() || !self.parents.any_free() {
            return None;
        }
        let source = &self.source;
        let source_is_free = source.is_usable() && !source.is_busy();
        // What was taken from a slow parent for the source is not another slow parent's.
        let is_for_source = |piece| source_is_free && source.must_read(piece) && source.may_read(piece);
        let can =
            |piece: PieceNumber| pieces.is_ready(piece) && !is_for_source(piece) && self.parents.any_free_with(piece);
        let windows: Vec<_> = self.readers.windows(pieces, self.config.window).collect();
        if self.urgent_is_due(now)
            && let Some(next) = windows.iter().map(|window| PieceNumber(window.start)).find(|&piece| can(piece))
        {
            self.chose_urgent(now);
            return Some(next);
        }
        self.since_urgent = self.since_urgent.saturating_add(1);
        let rng = &mut self.rng;
        let soon = windows.into_iter().flatten().map(PieceNumber).filter(|&piece| can(piece));
        if let Some((_, piece)) = soon.map(|piece| ((pieces.held_by(piece), rng.u32(..)), piece)).min() {
            return Some(piece);
        }
        let ready = pieces.ready();
        let start = rng.usize(..ready.len());
        let sample =
            ready.iter().cycle().skip(start).take(ready.len().min(SAMPLE)).copied().filter(|&piece| can(piece));
        sample.map(|piece| ((pieces.held_by(piece), rng.u32(..)), piece)).min().map(|(_, piece)| piece)
    }

    /// Whether a reader's very next piece may be preferred now.
    pub(super) fn urgent_is_due(&self, now: Moment) -> bool {
        self.urgent <= now && self.since_urgent + 1 >= self.config.urgent_share
    }

    pub(super) fn chose_urgent(&mut self, now: Moment) {
        self.urgent = now + self.config.urgent_interval;
        self.since_urgent = 0;
    }

    /// Leaves the source stream before its next piece if a parent can give that one, or nobody wants it any more; and
    /// the answer that was under way as soon as parents serve. A stream that is read without a grant gives way to
    /// parents that have anything at all, even less than is here: what they will have comes from the one who was granted
    /// the source, and a herd of equals would otherwise read on side by side.
    fn leave_source(&mut self) {
        if self.source.under_way
            && !self.source.is_reading()
            && !self.source.is_open()
            && self.source.lease.is_none()
            && self.parents.any_holder()
        {
            self.source.under_way = false;
            self.actions.push_back(Action::StopSource);
        }
        let Stage::Reading { run: Some(run), .. } = &self.source.stage else { return };
        let next = PieceNumber(run.start);
        let unwanted = (run.start..run.end).all(|number| !self.wanted.contains(PieceNumber(number)));
        let called_back = !self.source.may_read(next) && self.parents.any_holder();
        let urgent = self.source.urgent.is_some_and(|urgent| urgent != next && self.is_for_source(urgent));
        let by_parents = self.parents_can_give(next) && !self.source.must_read(next);
        let superfluous = urgent || called_back || !self.wanted.contains(next) || by_parents;
        let at_boundary = self.source.at_boundary;
        if !run.is_empty() && (unwanted || (superfluous && at_boundary)) {
            self.source.stage = Stage::Idle;
            self.source.under_way = false;
            self.actions.push_back(Action::StopSource);
            if let Some(pieces) = &mut self.pieces {
                pieces.release_source(&self.wanted, &self.proofs);
            }
        }
    }

    /// Whether a parent has the piece, and it may be taken from one.
    pub(super) fn parents_can_give(&self, piece: PieceNumber) -> bool {
        let held = self.pieces.as_ref().is_some_and(|pieces| pieces.held_by(piece) > 0);
        held && (!self.proofs.required || self.proofs.known.contains_key(&piece))
    }

    /// Gives a lease back whose pieces are not wanted here.
    fn decline_lease(&mut self) {
        let (Some(lease), Some(pieces)) = (self.source.lease.clone(), &self.pieces) else { return };
        let mut missing = lease.clone().map(PieceNumber).filter(|&piece| pieces.state(piece) != Some(State::Have));
        let Some(first) = missing.next() else {
            self.source.lease = None;
            return;
        };
        if !self.wanted.contains(first) && missing.all(|piece| !self.wanted.contains(piece)) {
            self.source.lease = None;
            self.report(Report::Declined { piece: first });
        }
    }

    /// Opens the source where it is needed and may be read.
    fn read_source(&mut self, now: Moment) {
        if !self.source.is_usable() || self.source.is_busy() {
            return;
        }
        let Some(geometry) = self.geometry() else {
            if !self.source.is_open() && self.source.lease.is_none() {
                return;
            }
            self.source.stage = Stage::Reading { run: None, lived: now };
            self.source.under_way = false;
            self.actions.push_back(Action::ReadSource { range: None });
            return;
        };
        let Some(first) = self.first_for_source() else { return };
        let mut end = first.0 + 1;
        let most = if self.parents.any_useful() { self.config.source_run.max(1) } else { u32::MAX };
        while end - first.0 < most && self.is_for_source(PieceNumber(end)) {
            end += 1;
        }
        let to = (u64::from(end) * geometry.piece_length()).min(geometry.length());
        let range = ByteRange::new(u64::from(first.0) * geometry.piece_length(), to);
        self.claim(first.0, end, now);
        self.actions.push_back(Action::ReadSource { range });
    }

    /// A stream that was asked for before anyone knew the geometry brings all pieces. If not all are needed it is left,
    /// and what is needed is asked for by its range.
    pub(super) fn claim_whole(&mut self) {
        let Stage::Reading { run: None, lived } = self.source.stage else { return };
        let Some(pieces) = &self.pieces else { return };
        let run = self.source.gives.take().unwrap_or(0..pieces.geometry().count());
        if !run.is_empty() && run.clone().all(|piece| pieces.is_needed(PieceNumber(piece))) {
            self.claim(run.start, run.end, lived);
        } else {
            self.source.stage = Stage::Idle;
            self.actions.push_back(Action::StopSource);
        }
    }

    /// The source stream is the producer of these pieces.
    fn claim(&mut self, first: u32, end: u32, now: Moment) {
        for number in first..end {
            debug_assert!(self.pieces.as_ref().is_some_and(|pieces| pieces.is_needed(PieceNumber(number))));
            self.set(PieceNumber(number), State::InFlight(Producer::Source));
        }
        self.source.resume = None;
        self.source.under_way = false;
        self.source.at_boundary = false;
        let lived = self.source.silent.take().unwrap_or(now);
        self.source.stage = Stage::Reading { run: Some(first..end), lived };
    }

    /// Needed, to be read, and no parent can give it; or a reader waits for it.
    fn is_for_source(&self, piece: PieceNumber) -> bool {
        let must = self.source.must_read(piece);
        let needed = |pieces: &super::pieces::Pieces| pieces.is_needed(piece) && (must || !pieces.is_ready(piece));
        self.source.may_read(piece) && self.pieces.as_ref().is_some_and(needed)
    }

    /// Where the source is to begin: where it was cut, else at what a reader waits for, else at the first piece that
    /// nobody else has.
    fn first_for_source(&mut self) -> Option<PieceNumber> {
        if let Some(urgent) = self.source.urgent.filter(|&piece| self.is_for_source(piece)) {
            return Some(urgent);
        }
        let resume = self.source.resume.filter(|&piece| self.is_for_source(piece));
        if resume.is_none() && !self.source.is_open() {
            let mut lease = self.source.lease.clone()?;
            return lease.find(|&number| self.is_for_source(PieceNumber(number))).map(PieceNumber);
        }
        let pieces = self.pieces.as_ref()?;
        if resume.is_some() || !pieces.any_needed() {
            return resume;
        }
        let windows: Vec<_> = self.readers.windows(pieces, u32::MAX).collect();
        let soonest = windows.into_iter().filter_map(|window| {
            let start = window.start;
            window.map(PieceNumber).find(|&piece| self.is_for_source(piece)).map(|piece| (piece.0 - start, piece))
        });
        let soonest = soonest.min().map(|(_, piece)| piece);
        soonest.or_else(|| pieces.geometry().pieces().find(|&piece| self.is_for_source(piece)))
    }

    /// Takes the next resort if its time has come; says whether it did.
    fn resort(&mut self, now: Moment) -> bool {
        let (resort, wait) = self.link.resort(&self.config, self.outlook());
        if self.quiet + wait > now && !self.is_hopeless() {
            return false;
        }
        self.quiet = now;
        if !self.is_promised() {
            self.link.resorted();
        }
        match resort {
            Resort::Reschedule => {
                let failed = self.parents.take_failed();
                self.link.rescheduled(self.parents.any_useful());
                self.report(Report::Reschedule { failed });
            }
            Resort::Want => self.register(SourceWish::Wanted),
            Resort::Enter => self.source.permitted = true,
            Resort::GiveUp => self.fail(self.source.failure()),
        }
        true
    }

    /// The source refuses for good, and no parent is there: nothing is worth waiting for.
    fn is_hopeless(&self) -> bool {
        matches!(self.source.stage, Stage::Dead(Failure::Refused | Failure::Unsized)) && !self.parents.any_useful()
    }
}
