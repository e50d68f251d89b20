//! One peer's conversation on the wire: `AnnouncePeer`.
//!
//! The first message registers; what follows are reports. **The server ends the stream after the terminal report**: the
//! plain client waits for that. Where the scheduler hangs up by itself, the stream ends with an error, and the client
//! goes to the source.

use std::time::Duration;

use damselfly_api::convert::{Listener, PeerSays, metadata_only, peer_says};
use damselfly_api::member::{Caller, speaks_for};
use damselfly_api::scheduler::{AnnouncePeerRequest, AnnouncePeerResponse};
use damselfly_core::swarm::{Answer, Holding, Holdings, Registration, Report, SourceWish};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

use super::stopped;
use crate::driver::Handle;

/// How long a new stream may be silent before its registration.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);

/// How long a peer that wants only to be known may take to say that it is finished.
const METADATA_ONLY: Duration = Duration::from_secs(60);

/// How long the conversation with a plain peer that may not read the source may be silent on both sides. Nobody has the
/// content then, and such a peer waits for hours: it is told instead, and can fail.
const NOTHING_TO_SAY: Duration = Duration::from_secs(120);

/// What the peer says.
pub(super) trait FromPeer: Stream<Item = Result<AnnouncePeerRequest, Status>> + Unpin {}

impl<S: Stream<Item = Result<AnnouncePeerRequest, Status>> + Unpin> FromPeer for S {}

type ToPeer = mpsc::Sender<Result<AnnouncePeerResponse, Status>>;

/// Converses until either side ends it.
pub(super) async fn converse(handle: Handle, caller: Option<Caller>, mut from_peer: impl FromPeer, to_peer: ToPeer) {
    let ended = tokio::select! {
        ended = registered(&handle, caller.as_ref(), &mut from_peer, &to_peer) => ended,
        () = to_peer.closed() => return,
    };
    if let Err(status) = ended {
        tracing::debug!(code = ?status.code(), reason = status.message(), "a conversation broke off");
        // The peer may have gone already.
        let _ = to_peer.send(Err(status)).await;
    }
}

async fn registered(
    handle: &Handle,
    caller: Option<&Caller>,
    from_peer: &mut impl FromPeer,
    to_peer: &ToPeer,
) -> Result<(), Status> {
    let first = tokio::time::timeout(FIRST_MESSAGE, from_peer.try_next()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no registration"))??;
    let Some(first) = first else { return Ok(()) };
    let PeerSays::Register { registration, metadata_only } = peer_says(first)? else {
        return Err(Status::failed_precondition("a conversation begins with a registration"));
    };
    speaks_for(caller, registration.host.as_str())?;
    if metadata_only {
        return only_known(handle, *registration, from_peer, to_peer).await;
    }
    let listener = Listener::of(&registration);
    let bounded = !registration.extended && registration.source == SourceWish::Forbidden;
    let (answers, reports) = handle.register(*registration).await.map_err(stopped)?;
    Talk { listener, to_peer, bounded, over: false }.run(from_peer, answers, reports).await
}

/// A peer that has the content and wants nothing: it is remembered, and told so.
async fn only_known(
    handle: &Handle,
    registration: Registration,
    from_peer: &mut impl FromPeer,
    to_peer: &ToPeer,
) -> Result<(), Status> {
    let Registration { host, task, peer, origin, held, .. } = registration;
    if let Some(held) = held {
        let list = vec![Holding { task, peer, origin, held }];
        handle.announce_holdings(Holdings { host, all: false, list }).await.map_err(stopped)?;
    }
    let _ = to_peer.send(Ok(metadata_only())).await;
    let finished = async {
        while let Some(message) = from_peer.try_next().await? {
            if matches!(peer_says(message)?, PeerSays::Report(Report::Finished | Report::Failed)) {
                break;
            }
        }
        Ok(())
    };
    tokio::time::timeout(METADATA_ONLY, finished).await.unwrap_or(Ok(()))
}

/// A conversation under way.
struct Talk<'a> {
    listener: Listener,
    to_peer: &'a ToPeer,
    /// Whether it ends after [`NOTHING_TO_SAY`].
    bounded: bool,
    /// Whether the peer has said its last word.
    over: bool,
}

impl Talk<'_> {
    async fn run(
        mut self,
        from_peer: &mut impl FromPeer,
        mut answers: mpsc::Receiver<Answer>,
        reports: mpsc::Sender<Report>,
    ) -> Result<(), Status> {
        let mut reports = Some(reports);
        loop {
            tokio::select! {
                // What was answered before the last report was heard still goes out.
                biased;
                answer = answers.recv() => match answer {
                    Some(answer) => self.tell(answer).await,
                    None if self.over => return Ok(()),
                    None => return Err(Status::unavailable("the scheduler ended the conversation")),
                },
                message = from_peer.try_next(), if reports.is_some() => match message? {
                    Some(message) => {
                        if let Some(report) = self.hear(message)? {
                            forward(reports.as_ref(), report).await;
                        }
                    }
                    // It has nothing more to say. Unless it has finished it is gone: nobody would hear of its end.
                    None => {
                        self.over = true;
                        reports = None;
                    }
                },
                // Begun anew with whatever either side says.
                () = tokio::time::sleep(NOTHING_TO_SAY), if self.bounded => {
                    return Err(Status::unavailable("no host has the content, and this one may not read the source"));
                }
            }
        }
    }

    async fn tell(&self, answer: Answer) {
        for message in self.listener.messages(answer) {
            // A peer that is gone is noticed by `converse`.
            let _ = self.to_peer.send(Ok(message)).await;
        }
    }

    fn hear(&mut self, message: AnnouncePeerRequest) -> Result<Option<Report>, Status> {
        match peer_says(message)? {
            PeerSays::Nothing => Ok(None),
            PeerSays::Register { .. } => Err(Status::failed_precondition("registered already")),
            PeerSays::Report(report) => {
                self.over |= matches!(report, Report::Finished | Report::Failed);
                Ok(Some(report))
            }
        }
    }
}

/// The driver may have hung up; then the answers are closed too, and that is noticed next.
async fn forward(reports: Option<&mpsc::Sender<Report>>, report: Report) {
    if let Some(reports) = reports {
        let _ = reports.send(report).await;
    }
}

#[cfg(test)]
mod tests {
    use damselfly_api::convert::registration_to_wire;
    use damselfly_core::TaskId;
    use damselfly_core::swarm::Origin;
    use tokio::time::{Instant, timeout};
    use tokio_stream::wrappers::ReceiverStream;
    use tonic::Code;

    use super::*;
    use crate::driver::{Config, NoSeeds, SinceStart};

    /// Registers a peer of a task that nobody has, says nothing more, and returns how its conversation ended, if it did.
    async fn silent(source: SourceWish, extended: bool) -> (Option<Code>, Duration) {
        let handle = Handle::spawn(Config::default(), SinceStart::new(), NoSeeds);
        let registration = Registration {
            host: "h".into(),
            task: TaskId::from_bytes([1; 32]),
            peer: "p".into(),
            origin: Origin { url: "http://o.example.com/x".into(), ..Origin::default() },
            geometry: None,
            held: None,
            source,
            extended,
        };
        let (says, from_peer) = mpsc::channel(4);
        let (to_peer, mut told) = mpsc::channel(16);
        tokio::spawn(converse(handle, None, ReceiverStream::new(from_peer), to_peer));
        let begun = Instant::now();
        says.send(Ok(registration_to_wire(&registration))).await.expect("it listens");
        let end = async {
            loop {
                match told.recv().await {
                    Some(Ok(_)) => {}
                    Some(Err(status)) => return Some(status.code()),
                    None => return None,
                }
            }
        };
        let ended = timeout(Duration::from_secs(3600), end).await;
        (ended.unwrap_or_default(), begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_plain_peer_without_a_source_is_told_that_nobody_has_the_content() {
        let (code, after) = silent(SourceWish::Forbidden, false).await;
        assert_eq!(code, Some(Code::Unavailable));
        assert!(after >= NOTHING_TO_SAY && after < NOTHING_TO_SAY + Duration::from_secs(1), "{after:?}");
        assert_eq!(silent(SourceWish::Allowed, false).await.0, None, "it was sent to the source and may take long");
        assert_eq!(silent(SourceWish::Forbidden, true).await.0, None, "ours have waits of their own");
    }
}
