//! Limits of bandwidth: the whole host's, by class of traffic, and those of single tasks beneath them; and whose turn it is
//! where only so much is done at a time ([`Slots`]).
//!
//! `machine` decides who moves how many bytes when, and is pure; [`Limiter`] lets callers wait for it. Whoever moves bytes
//! has a [`Flow`] (all transfers of one task, or of one request that is passed on), and either waits *before* it moves
//! them ([`Flow::take`]) or reports what came and waits *then* ([`Flow::settle`]), so it never holds more than one buffer:
//! the other end is slowed by the connection's own flow control.
//!
//! **A class without a limit costs one load of an atomic.** **What is waited for here is this host's own doing:** it is
//! measured ([`Flow::held_up`]), so that nobody takes it for a slow parent or source.

mod body;
mod flow;
mod machine;
mod metrics;
mod slots;
#[cfg(test)]
mod tests;

use std::num::NonZeroU64;
use std::str::FromStr;

pub use body::LimitedBody;
pub use flow::{ClassReport, Flow, Limiter, Wait};
pub use metrics::Metrics;
pub use slots::{Slot, Slots};

/// What kind of traffic bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// What tasks download, from other hosts and from sources.
    Download,
    /// What of it comes from sources.
    BackToSource,
    /// Pieces for other hosts.
    Upload,
    /// What is passed on and no task: forwarded requests and their answers, tunnels.
    PassThrough,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Download, Self::BackToSource, Self::Upload, Self::PassThrough];

    /// Its name, as operators write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Download => "download",
            Self::BackToSource => "back-to-source",
            Self::Upload => "upload",
            Self::PassThrough => "pass-through",
        }
    }
}

impl FromStr for Class {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|class| class.name() == text);
        named.ok_or_else(|| {
            format!("{text:?} is no class of traffic: there are {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}

/// The limits of one class, in bytes a second; `None` where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Of the whole host.
    pub total: Option<NonZeroU64>,
    /// Of each task, or of each request that is passed on.
    pub per_flow: Option<NonZeroU64>,
}

impl Limit {
    /// The least limit that there is, in bytes a second. Under a lower one connections would seem dead to the other end.
    pub const LEAST: u64 = 16 << 10;

    /// A rate of so many bytes a second; none where that is 0.
    ///
    /// # Errors
    /// It is below [`Self::LEAST`].
    pub fn rate(bytes: u64) -> Result<Option<NonZeroU64>, String> {
        match NonZeroU64::new(bytes) {
            Some(rate) if rate.get() < Self::LEAST => {
                Err(format!("{rate} is less than the {} bytes a second that connections need to live", Self::LEAST))
            }
            rate => Ok(rate),
        }
    }

    /// Whether there is any.
    pub const fn is_some(&self) -> bool {
        self.total.is_some() || self.per_flow.is_some()
    }
}

/// The limits of all classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// See [`Class::Download`].
    pub download: Limit,
    /// See [`Class::BackToSource`].
    pub back_to_source: Limit,
    /// See [`Class::Upload`].
    pub upload: Limit,
    /// See [`Class::PassThrough`].
    pub pass_through: Limit,
}

impl Limits {
    /// Those of one class.
    pub const fn of(&self, class: Class) -> Limit {
        match class {
            Class::Download => self.download,
            Class::BackToSource => self.back_to_source,
            Class::Upload => self.upload,
            Class::PassThrough => self.pass_through,
        }
    }
}

/// How urgent a download is: Dragonfly's levels, of which the highest is the most urgent and the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(u8);

impl Priority {
    /// How many there are.
    pub const LEVELS: usize = 7;

    /// What somebody waits for, as far as nobody says otherwise.
    pub const HIGHEST: Self = Self(Self::LEVELS as u8 - 1);

    /// The priority of this level; `None` where there is no such level.
    pub const fn new(level: u8) -> Option<Self> {
        if level <= Self::HIGHEST.0 { Some(Self(level)) } else { None }
    }

    /// Its level.
    pub const fn level(self) -> u8 {
        self.0
    }

    const fn index(self) -> usize {
        self.0 as usize
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self::HIGHEST
    }
}

impl FromStr for Priority {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let level = text.trim().parse().ok().and_then(Self::new);
        level.ok_or_else(|| format!("{text:?} is no priority: there are 0 to 6, of which 6 goes first"))
    }
}
