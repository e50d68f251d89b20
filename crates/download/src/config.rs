//! The machine's limits and patience, and how one download begins.

use std::time::Duration;

use damselfly_core::swarm::SourceWish;
use damselfly_core::{Geometry, PieceSet};

/// The limits and patience of a download.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// How many pieces are fetched from parents at a time.
    pub concurrent_pieces: u32,
    /// How many of them from one parent at most. How many in fact follows its measured rate.
    pub pieces_per_parent: u32,
    /// How many pieces come at a time from parents that serve by turns. One that is slow beside the others is not
    /// counted. Few, so that each is finished soon and can be passed on.
    pub turns_at_once: u32,
    /// A fetch that takes so much longer than three usual ones is slow: another parent may be asked for the piece.
    pub slow_margin: Duration,
    /// How long a parent is left alone that was slow, or had no turn to give.
    pub rest: Duration,
    /// How long a reader waits for its next piece, beside what a piece usually takes, before the scheduler is asked for
    /// just that one; and then the source, if the scheduler does not say that somebody brings it.
    pub late: Duration,
    /// How long the scheduler may take to answer that.
    pub late_grace: Duration,
    /// How often the scheduler is believed that somebody brings a late piece that parents have.
    pub late_confirmed: u32,
    /// How often it is believed where no parent has it: somebody reads it from the source, and the scheduler hears from that
    /// one every second. A source that is slow is slower still if everybody reads it. With [`Self::late`] two minutes.
    pub late_read: u32,
    /// How many pieces ahead of a reader are fetched before the rest of the content.
    pub window: u32,
    /// How often at most the very next piece of a reader is preferred to others of its window. Less means a steadier
    /// stream for it; more means that hosts of a crowd fetch different pieces, and all are done earlier.
    pub urgent_interval: Duration,
    /// One in so many pieces at most is such a one. Without this bound a crowd on slow links fetches nothing else: all want
    /// the same piece of whoever has it first, one after another, and have nothing to give each other.
    pub urgent_share: u32,
    /// How long the scheduler may take for its first answer before the source is asked without it.
    pub scheduler_grace: Duration,
    /// How long a reader waits for its first byte while the scheduler says "wait".
    pub first_byte_budget: Duration,
    /// How many more such times it waits while the scheduler says, to its wish for the source, that somebody gets on.
    pub confirmed_waits: u32,
    /// How long the scheduler may take to grant the source after that, before it is asked anyway.
    pub wanted_grace: Duration,
    /// How long after the scheduler was lost the source is asked, when no parent is of use.
    pub lost_grace: Duration,
    /// Up to this much is added to `lost_grace` and `first_byte_budget`, drawn from the seed: a fleet that loses its
    /// scheduler must not arrive at the source all at once.
    pub jitter: Duration,
    /// How long nothing may come from anyone before the next resort.
    pub patience: Duration,
    /// How often the scheduler is asked for other parents without any progress in between, before the source is wanted.
    pub reschedules: u32,
    /// How many resorts of any kind are taken without any progress in between, before the source is entered.
    pub rounds: u32,
    /// The wait before the second reschedule, source retry or registration without progress; doubled each time.
    pub backoff: Duration,
    /// How often a lost scheduler is tried again.
    pub reregistrations: u32,
    /// A fetch that is older than this is given up, whatever the driver says.
    pub piece_timeout: Duration,
    /// A source stream that brings nothing for so long counts as cut.
    pub source_stall: Duration,
    /// How often a cut source stream is taken up again without any progress in between.
    pub source_retries: u32,
    /// How many pieces one source stream reads at most while there are parents, who may have the next ones by then.
    pub source_run: u32,
    /// How long a download that may not use the source waits for peers without any progress.
    pub forbidden_patience: Duration,
    /// A reader whose next piece is so many pieces ahead of the source stream gets a stream of its own, for so many pieces
    /// at a time; 0: never.
    pub far: u32,
    /// Readers who want so many pieces at most, and less than half of the content, read here and there: what they wait for
    /// is asked of the scheduler at once; 0: never.
    pub scattered: u32,
    /// How long what was under way for a reader that left may take to be finished.
    pub leftover_grace: Duration,
    /// How long a download waits for its first reader.
    pub reader_grace: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            concurrent_pieces: 8,
            pieces_per_parent: 4,
            turns_at_once: 4,
            slow_margin: Duration::from_millis(300),
            rest: Duration::from_millis(250),
            late: Duration::from_millis(1500),
            late_grace: Duration::from_millis(500),
            late_confirmed: 8,
            late_read: 24,
            window: 16,
            urgent_interval: Duration::from_millis(500),
            urgent_share: 4,
            scheduler_grace: Duration::from_secs(1),
            first_byte_budget: Duration::from_secs(10),
            confirmed_waits: 5,
            wanted_grace: Duration::from_secs(1),
            lost_grace: Duration::from_millis(500),
            jitter: Duration::from_secs(2),
            patience: Duration::from_secs(4),
            reschedules: 2,
            rounds: 12,
            backoff: Duration::from_millis(250),
            reregistrations: 8,
            piece_timeout: Duration::from_secs(120),
            source_stall: Duration::from_secs(30),
            source_retries: 4,
            source_run: 16,
            forbidden_patience: Duration::from_secs(60),
            far: 0,
            scattered: 16,
            leftover_grace: Duration::from_secs(15),
            reader_grace: Duration::from_secs(10),
        }
    }
}

/// How one download begins.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Limits and patience.
    pub config: Config,
    /// How the content is cut, if known.
    pub geometry: Option<Geometry>,
    /// The pieces that are here and checked; ignored where there is no geometry.
    pub have: PieceSet,
    /// May the source be used?
    pub source: SourceWish,
    /// An answer of the source, from offset 0 on, is open already: reading from it costs the source nothing more.
    pub source_under_way: bool,
    /// Is there a scheduler to register with?
    pub scheduler: bool,
    /// Where every random choice comes from.
    pub seed: u64,
}
