//! The parents of one download: what each has, how fast it is, and which are not to be asked again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use damselfly_core::swarm::Offer;
use damselfly_core::{MAX_PIECES, Moment, PeerId, PieceNumber, PieceSet};

/// How many parents are followed at a time at most; what is offered beyond is left.
pub(super) const MAX_PARENTS: usize = 32;
/// How many parents one download bans at most; from then on it takes no new ones.
const MAX_BANNED: usize = 1024;
/// How long a parent that stalled or broke off is left alone when it is offered again; twice as long each time.
const FAILURE_REST: Duration = Duration::from_millis(500);
/// How often that doubles at most.
const REST_DOUBLINGS: u32 = 6;
/// After so long a parent that failed is followed again without having been offered again, if there is no other; after its
/// rest, if there are fewer than so many others.
const ALONE_REST: Duration = Duration::from_secs(1);
const ALONE_PARENTS: usize = 4;
/// One that failed so often in a row is followed only if it is offered: a download without any other hope has to end.
const ALONE_TIMES: u32 = 16;
/// How often a parent may say that it has not what it announced before it counts as gone.
const MAX_MISSING: u32 = 16;
/// How many pieces are in flight from a parent of which nothing is known yet.
const FIRST_LIMIT: u32 = 2;
/// A piece that comes faster than this makes room for one more in flight.
const FAST: Duration = Duration::from_secs(1);
/// A piece that comes slower than this takes one away.
const SLOW: Duration = Duration::from_secs(4);

/// How a parent is asked for pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// For single pieces, as many at a time as its limit says.
    Plain,
    /// By turns, and none is asked for.
    Idle,
    /// By turns, and one is asked for.
    Asked,
}

/// One that stalled or broke off.
#[derive(Debug)]
struct Failed {
    offer: Offer,
    /// How often in a row.
    times: u32,
    at: Moment,
    /// Until when it rests.
    until: Moment,
}

/// One parent.
#[derive(Debug)]
pub(super) struct Parent {
    offer: Offer,
    pub(super) turn: Turn,
    /// It was slow or had no turn to give: it is left alone until then.
    pub(super) rests: Option<Moment>,
    pub(super) has: PieceSet,
    pub(super) in_flight: u32,
    limit: u32,
    /// How long a piece takes from it, smoothed.
    took: Option<Duration>,
    /// No longer offered: it is let go when nothing is in flight from it.
    pub(super) retired: bool,
    missing: u32,
}

impl Parent {
    fn is_free(&self) -> bool {
        self.turn == Turn::Plain && !self.retired && self.rests.is_none() && self.in_flight < self.limit
    }

    /// Whether it may be asked for a turn.
    pub(super) fn may_be_asked(&self) -> bool {
        self.turn == Turn::Idle && !self.retired && self.rests.is_none() && self.in_flight == 0
    }

    /// A piece came after `took`: the number in flight follows.
    pub(super) fn arrived(&mut self, took: Duration, most: u32) {
        self.took = Some(self.took.map_or(took, |old| (old * 3 + took) / 4));
        if took < FAST {
            self.limit = (self.limit + 1).min(most);
        } else if took > SLOW {
            self.limit = self.limit.saturating_sub(1).max(1);
        }
    }

    /// It does not have a piece that it announced; says whether that was once too often.
    pub(super) fn misses(&mut self) -> bool {
        self.missing += 1;
        self.missing >= MAX_MISSING
    }
}

/// All parents, present and past.
#[derive(Debug, Default)]
pub(super) struct Parents {
    pub(super) followed: BTreeMap<PeerId, Parent>,
    banned: BTreeSet<PeerId>,
    /// Those that stalled or broke off and are not banned.
    failures: BTreeMap<PeerId, Failed>,
    /// Left since the last reschedule: not to be offered again.
    failed: Vec<PeerId>,
}

impl Parents {
    /// Takes an offered parent; says whether it is a new one, to be followed.
    pub(super) fn offer(&mut self, now: Moment, offer: &Offer, count: Option<u32>, most_in_flight: u32) -> bool {
        if self.banned.contains(&offer.peer) || self.banned.len() >= MAX_BANNED {
            return false;
        }
        if let Some(parent) = self.followed.get_mut(&offer.peer) {
            parent.retired = false;
            return false;
        }
        if self.followed.len() >= MAX_PARENTS {
            return false;
        }
        let parent = Parent {
            offer: offer.clone(),
            turn: Turn::Plain,
            rests: self.failures.get(&offer.peer).map(|failed| failed.until).filter(|until| *until > now),
            has: PieceSet::empty(count.unwrap_or(MAX_PIECES)),
            in_flight: 0,
            limit: FIRST_LIMIT.min(most_in_flight).max(1),
            took: None,
            retired: false,
            missing: 0,
        };
        self.followed.insert(offer.peer.clone(), parent);
        true
    }

    /// Takes a parent out that stalled or broke off, and rests before it is asked again if it is offered again; or is
    /// banned.
    pub(super) fn leave(&mut self, now: Moment, peer: &PeerId, ban: bool) -> Option<Parent> {
        let parent = self.followed.remove(peer);
        if parent.is_none() && !ban {
            return None;
        }
        if ban {
            self.failures.remove(peer);
            self.banned.insert(peer.clone());
        } else if let Some(parent) = &parent {
            let offer = parent.offer.clone();
            let failed = self.failures.entry(peer.clone()).or_insert(Failed { offer, times: 0, at: now, until: now });
            failed.at = now;
            failed.until = now + FAILURE_REST.saturating_mul(1 << failed.times.min(REST_DOUBLINGS));
            failed.times += 1;
        }
        self.refuse(peer);
        if self.failures.len() > MAX_BANNED {
            self.failures.pop_first();
        }
        parent
    }

    /// When one that failed is to be followed again, though nobody offers it, and who.
    fn next_known(&self) -> Option<(Moment, &Failed)> {
        let useful = self.followed.values().filter(|parent| !parent.retired).count();
        if useful >= ALONE_PARENTS || self.banned.len() >= MAX_BANNED {
            return None;
        }
        let rest = |failed: &Failed| {
            let soonest = failed.at + ALONE_REST;
            if useful == 0 { soonest } else { failed.until.max(soonest) }
        };
        let is_left =
            |(peer, failed): &(&PeerId, &Failed)| failed.times < ALONE_TIMES && !self.followed.contains_key(*peer);
        let left = self.failures.iter().filter(is_left);
        left.map(|(_, failed)| (rest(failed), failed)).min_by_key(|(at, _)| *at)
    }

    /// When [`Self::known_again`] has somebody.
    pub(super) fn known_deadline(&self) -> Option<Moment> {
        self.next_known().map(|(at, _)| at)
    }

    /// One to follow again, where few are followed: the scheduler may be as much out of reach as it was.
    pub(super) fn known_again(&mut self, now: Moment) -> Option<Offer> {
        let offer = self.next_known().filter(|(at, _)| *at <= now)?.1.offer.clone();
        if let Some(failed) = self.failures.get_mut(&offer.peer) {
            failed.until = now;
        }
        Some(offer)
    }

    /// A piece came from it: what it failed before counts no more.
    pub(super) fn forgive(&mut self, peer: &PeerId) {
        self.failures.remove(peer);
    }

    /// Not to be offered again.
    pub(super) fn refuse(&mut self, peer: &PeerId) {
        if !self.failed.contains(peer) && self.failed.len() < MAX_BANNED {
            self.failed.push(peer.clone());
        }
    }

    /// Those left since the last time this was asked.
    pub(super) fn take_failed(&mut self) -> Vec<PeerId> {
        std::mem::take(&mut self.failed)
    }

    /// Whether there is a parent that may still be asked.
    pub(super) fn any_useful(&self) -> bool {
        self.followed.values().any(|parent| !parent.retired)
    }

    /// Whether there is one that is known to have something.
    pub(super) fn any_holder(&self) -> bool {
        self.followed.values().any(|parent| !parent.retired && !parent.has.is_empty())
    }

    /// Whether some parent may be asked for one more piece.
    pub(super) fn any_free(&self) -> bool {
        self.followed.values().any(Parent::is_free)
    }

    /// Whether a parent that may be asked for one more piece has this one.
    pub(super) fn any_free_with(&self, piece: PieceNumber) -> bool {
        self.followed.values().any(|parent| parent.is_free() && parent.has.contains(piece))
    }

    /// Of the parents that may be asked for one more piece and have this one, the one that is likely to give it first;
    /// of equal ones, any.
    pub(super) fn best_for(&self, piece: PieceNumber, rng: &mut fastrand::Rng) -> Option<PeerId> {
        let cost = |parent: &Parent| parent.took.unwrap_or_default().saturating_mul(parent.in_flight + 1);
        let free = self.followed.iter().filter(|(_, parent)| parent.is_free() && parent.has.contains(piece));
        free.map(|(peer, parent)| ((cost(parent), parent.in_flight, rng.u32(..)), peer))
            .min()
            .map(|(_, peer)| peer.clone())
    }
}
