//! Why a task goes as it goes, as JSON and for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::time::Duration;

use damselfly_scheduler_core::{Explanation, LeaseView, ParentView, PeerExplanation};
use serde::Serialize;

use crate::http::{Peer, Task, without_query};

/// An [`Explanation`] as JSON; times in seconds.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Explained {
    #[serde(flatten)]
    task: Task,
    source: Source,
    explained: Vec<ExplainedPeer>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Source {
    readers: Vec<Reader>,
    leases_lost: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds_a_piece: Option<f64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Reader {
    peer: String,
    pieces: String,
    heard_seconds_ago: f64,
    reads_this_piece_for_seconds: f64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExplainedPeer {
    #[serde(flatten)]
    peer: Peer,
    held: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_piece_seconds_ago: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waits_for_piece: Option<u32>,
    from: Vec<Given>,
    /// Who is no parent of it, and why.
    others: BTreeMap<String, &'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Given {
    peer: String,
    pieces: u32,
    bytes_per_second: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seconds_ago: Option<f64>,
}

impl From<&Explanation> for Explained {
    fn from(why: &Explanation) -> Self {
        let piece = piece_length(why);
        let source = Source {
            readers: why.leases.iter().map(Reader::from).collect(),
            leases_lost: why.leases_lost,
            seconds_a_piece: why.source_took.map(|took| took.as_secs_f64()),
        };
        let explained = why.peers.iter().map(|peer| explained(peer, piece)).collect();
        Self { task: Task::summary(&why.task), source, explained }
    }
}

fn piece_length(why: &Explanation) -> u64 {
    why.task.geometry.map_or(0, |geometry| geometry.piece_length())
}

impl From<&LeaseView> for Reader {
    fn from(lease: &LeaseView) -> Self {
        Self {
            peer: lease.peer.to_string(),
            pieces: run(&lease.pieces),
            heard_seconds_ago: lease.heard.as_secs_f64(),
            reads_this_piece_for_seconds: lease.reading.as_secs_f64(),
        }
    }
}

fn explained(why: &PeerExplanation, piece: u64) -> ExplainedPeer {
    let from = |parent: &ParentView| Given {
        peer: parent.id.to_string(),
        pieces: parent.pieces,
        bytes_per_second: rate(parent, piece),
        last_seconds_ago: parent.last.map(|ago| ago.as_secs_f64()),
    };
    ExplainedPeer {
        peer: Peer::from(&why.peer),
        held: why.held.iter().map(run).collect(),
        last_piece_seconds_ago: why.idle.map(|idle| idle.as_secs_f64()),
        waits_for_piece: why.waits_for.map(|piece| piece.0),
        from: why.parents.iter().map(from).collect(),
        others: why.others.iter().map(|(peer, why)| (peer.to_string(), why.words())).collect(),
    }
}

fn rate(parent: &ParentView, piece: u64) -> u64 {
    parent.milli_pieces.saturating_mul(piece) / 1000
}

/// Pieces in the way of people: both ends are meant.
fn run(pieces: &Range<u32>) -> String {
    match pieces.end {
        u32::MAX => format!("{}-", pieces.start),
        end if end <= pieces.start + 1 => pieces.start.to_string(),
        end => format!("{}-{}", pieces.start, end - 1),
    }
}

fn ago(time: Duration) -> String {
    format!("{:.1} s ago", time.as_secs_f64())
}

/// An [`Explanation`] for people.
pub(crate) fn text(why: &Explanation) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut out, why);
    out
}

fn write(out: &mut String, why: &Explanation) -> std::fmt::Result {
    let task = &why.task;
    let url = without_query(&task.origin.url);
    writeln!(out, "task {}\n     {url}", task.id)?;
    match task.geometry {
        Some(cut) => {
            writeln!(out, "     {} bytes in {} pieces of {}", cut.length(), cut.count(), cut.piece_length())?;
        }
        None => writeln!(out, "     nobody knows its length yet")?,
    }
    writeln!(
        out,
        "     {} peers, {} of them holders, {} pieces vouched for",
        task.peer_count, task.holders, task.proofs
    )?;
    writeln!(out, "\nsource")?;
    if let Some(seed) = &task.seed {
        writeln!(out, "  seed {seed} was asked to read it and has not come yet")?;
    }
    if let Some(took) = why.source_took {
        writeln!(out, "  a piece takes {:.2} s", took.as_secs_f64())?;
    }
    if why.leases_lost > 0 {
        writeln!(out, "  {} leases in a row were lost without a byte", why.leases_lost)?;
    }
    if why.leases.is_empty() {
        writeln!(out, "  nobody reads it by a lease")?;
    }
    for lease in &why.leases {
        let LeaseView { peer, pieces, heard, reading } = lease;
        let reading = reading.as_secs_f64();
        writeln!(out, "  {peer} reads {}: heard {}, at this piece for {reading:.1} s", run(pieces), ago(*heard))?;
    }
    for peer in &why.peers {
        write_peer(out, peer, piece_length(why))?;
    }
    if why.peers.len() < task.peer_count {
        writeln!(out, "\n{} more peers", task.peer_count - why.peers.len())?;
    }
    Ok(())
}

fn write_peer(out: &mut String, why: &PeerExplanation, piece: u64) -> std::fmt::Result {
    let peer = &why.peer;
    writeln!(
        out,
        "\n{} on {}: {}, {} pieces, {} children",
        peer.id, peer.host, peer.state, peer.pieces, peer.children
    )?;
    if !why.held.is_empty() {
        let runs: Vec<String> = why.held.iter().map(run).collect();
        writeln!(out, "  has {}", runs.join(", "))?;
    }
    if let Some(idle) = why.idle {
        writeln!(out, "  last piece, or beginning: {}", ago(idle))?;
    }
    if let Some(piece) = why.waits_for {
        writeln!(out, "  a reader waits for piece {}", piece.0)?;
    }
    for parent in &why.parents {
        let kib = rate(parent, piece) / 1024;
        let last = parent.last.map_or_else(|| "nothing yet".to_owned(), ago);
        writeln!(out, "  from {}: {} pieces, {kib} KiB/s, last {last}", parent.id, parent.pieces)?;
    }
    let mut reasons: BTreeMap<_, usize> = BTreeMap::new();
    for (_, reason) in &why.others {
        *reasons.entry(*reason).or_default() += 1;
    }
    let reasons: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} {}", reason.words())).collect();
    if !reasons.is_empty() {
        writeln!(out, "  not from: {}", reasons.join(", "))?;
    }
    Ok(())
}
