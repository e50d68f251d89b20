//! One conversation over gRPC: between the download's channels and the `AnnouncePeer` stream.
//!
//! Neither direction waits for the other: a scheduler that does not read while it writes, or a download that reports
//! while it should listen, stops only its own direction.

use std::collections::VecDeque;
use std::time::Duration;

use damselfly_api::convert::Voice;
use damselfly_api::scheduler::{AnnouncePeerRequest, AnnouncePeerResponse};
use damselfly_core::swarm::{Answer, Report};
use tokio::sync::mpsc;
use tonic::Streaming;

use super::QUEUE;

/// How long a scheduler may take to end the conversation after the last report.
const END_TIME: Duration = Duration::from_secs(10);

pub(super) struct Pump {
    pub(super) voice: Voice,
    pub(super) inbound: Streaming<AnnouncePeerResponse>,
    pub(super) outbound: mpsc::Sender<AnnouncePeerRequest>,
    pub(super) reports: mpsc::Receiver<Report>,
    pub(super) answers: mpsc::Sender<Answer>,
}

/// How a conversation ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// As it should, or because the download is gone.
    Over,
    /// The scheduler broke it off.
    Lost(String),
}

impl Pump {
    pub(super) async fn run(mut self) -> End {
        let mut to_send: VecDeque<AnnouncePeerRequest> = VecDeque::new();
        let mut to_tell: VecDeque<Answer> = VecDeque::new();
        let mut end_by = None;
        loop {
            tokio::select! {
                permit = self.outbound.reserve(), if !to_send.is_empty() => match (permit, to_send.pop_front()) {
                    (Ok(permit), Some(message)) => permit.send(message),
                    _ => return Self::lost(end_by.is_some(), "it closed the stream"),
                },
                permit = self.answers.reserve(), if !to_tell.is_empty() => {
                    let answer = to_tell.pop_front();
                    // A download that does not listen any more may still have reports under way.
                    if let (Ok(permit), Some(answer)) = (permit, answer) {
                        permit.send(answer);
                    }
                }
                report = self.reports.recv(), if end_by.is_none() && to_send.is_empty() => match report {
                    Some(report) => {
                        if matches!(report, Report::Finished | Report::Failed) {
                            end_by = Some(tokio::time::Instant::now() + END_TIME);
                        }
                        to_send.extend(self.voice.say(report));
                    }
                    None => return End::Over,
                },
                message = self.inbound.message(), if to_tell.is_empty() && to_send.len() < QUEUE => match message {
                    Ok(Some(message)) => match self.voice.hear(message) {
                        Ok(heard) => {
                            to_tell.extend(heard.answer);
                            to_send.extend(heard.reply);
                        }
                        Err(error) => return Self::lost(end_by.is_some(), &error.to_string()),
                    },
                    Ok(None) => return Self::lost(end_by.is_some(), "it ended the conversation"),
                    Err(status) => return Self::lost(end_by.is_some(), &super::grpc::sentence(&status)),
                },
                () = until(end_by) => return End::Over,
            }
        }
    }

    fn lost(ended: bool, why: &str) -> End {
        if ended { End::Over } else { End::Lost(why.into()) }
    }
}

async fn until(end: Option<tokio::time::Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}
