//! Which pieces a parent has: the child's side of SyncPieces.
//!
//! # The data's way
//! [`PieceSync::follow`] asks a parent over a pooled connection about all pieces of a task and returns its
//! announcements as they come. The stream ends when the parent has said all that it will say.
//!
//! # Invariants
//! - **What a parent says is checked before it is a noun**; a message that makes no sense ends the stream with an error.
//! - Connecting and the head of the answer have a deadline; a connection that gives no sign of life ends its streams.
//! - At most [`MAX_CHANNELS`] connections are kept, at most as many announcements are taken as a task can have pieces.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use damselfly_api::convert::{self, ParentPiece, WireError};
use damselfly_api::dfdaemon::SyncPiecesResponse;
use damselfly_api::dfdaemon::dfdaemon_upload_client::DfdaemonUploadClient;
use damselfly_api::member;
pub use damselfly_api::member::Membership;
use damselfly_api::token::ShowToken;
use damselfly_core::{HostId, MAX_PIECES, PieceNumber, TaskId};
use futures_util::{Stream, StreamExt};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// The most parents to which a connection is kept.
pub const MAX_CHANNELS: usize = 256;

/// The most pieces that a parent is asked about by number. Ours tells about all of them; one of the plain protocol about
/// these, and looks each of them up again and again while it still downloads: for ever, where its task has no such piece.
const ASKED: u32 = 4096;

/// Of a task that has not been cut yet a plain parent is asked about its first piece, which every task has.
const SURE: u32 = 1;

/// The most bytes of one announcement.
const MAX_ANNOUNCEMENT: usize = 4 * 1024;

/// Patience with parents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long a connection may take to come about.
    pub connect_timeout: Duration,
    /// How long the head of the answer may take.
    pub head_timeout: Duration,
    /// After so much silence a parent is asked for a sign of life.
    pub keepalive_interval: Duration,
    /// How long that sign may take.
    pub keepalive_timeout: Duration,
    /// The fleet's token, shown with every call.
    pub token: ShowToken,
    /// What is shown to parents that speak TLS with members.
    pub membership: Option<Membership>,
    /// Whether parents that do not are left alone.
    pub members_only: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(3),
            head_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(5),
            keepalive_timeout: Duration::from_secs(5),
            token: ShowToken::default(),
            membership: None,
            members_only: false,
        }
    }
}

/// Why a parent cannot be followed (any longer).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SyncError {
    /// The parent does not have the task.
    #[error("the parent does not have the task")]
    Missing,
    /// It did not answer, or broke off.
    #[error("the parent does not answer: {0}")]
    Gone(String),
    /// It is no member of the fleet, and only members are asked.
    #[error("the parent does not speak TLS as a member of this fleet, which security.requireTLS demands")]
    Stranger,
    /// It said something that makes no sense.
    #[error("the parent makes no sense: {0}")]
    Senseless(#[from] WireError),
}

/// A piece that a parent has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceAnnouncement {
    /// Which piece.
    pub number: PieceNumber,
    /// Where the parent serves it.
    pub data_addr: SocketAddr,
}

/// Follows parents, over connections that its clones share.
#[derive(Clone, Debug, Default)]
pub struct PieceSync {
    config: Config,
    channels: Arc<Mutex<Channels>>,
}

#[derive(Debug, Default)]
struct Channels {
    by_addr: HashMap<(SocketAddr, bool), (Channel, u64)>,
    uses: u64,
}

impl PieceSync {
    /// Follows with this patience.
    pub fn new(config: Config) -> Self {
        Self { config, channels: Arc::default() }
    }

    /// Asks the parent at `rpc`, who may speak `tls` there, which pieces of `task` it has, and says whether it serves by turns. `host` is the host
    /// that asks; `count` is how many pieces the task has, as far as that is known.
    ///
    /// # Errors
    /// Where the parent does not answer in time, or does not have the task.
    pub async fn follow(
        &self,
        (rpc, tls): (SocketAddr, bool),
        host: &HostId,
        task: &TaskId,
        count: Option<u32>,
    ) -> Result<(bool, impl Stream<Item = Result<PieceAnnouncement, SyncError>> + Send + Unpin + use<>), SyncError>
    {
        let mut stub = DfdaemonUploadClient::with_interceptor(self.channel(rpc, tls)?, self.config.token.clone())
            .max_decoding_message_size(MAX_ANNOUNCEMENT);
        let call = stub.sync_pieces(convert::all_pieces_to_wire(host, task, count.unwrap_or(SURE).min(ASKED)));
        let answer = tokio::time::timeout(self.config.head_timeout, call)
            .await
            .map_err(|_| SyncError::Gone("no answer in time".into()))?
            .map_err(|status| lost(&status))?;
        let turns = convert::gives_turns(answer.metadata());
        Ok((turns, answer.into_inner().take(MAX_PIECES as usize).map(move |said| read(said, rpc))))
    }

    /// The connection to a parent; the one that was idle longest makes room for a new one. Streams on it live on.
    fn channel(&self, rpc: SocketAddr, tls: bool) -> Result<Channel, SyncError> {
        let membership = self.config.membership.as_ref().filter(|_| tls);
        if membership.is_none() && self.config.members_only {
            return Err(SyncError::Stranger);
        }
        let to = (rpc, membership.is_some());
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.uses += 1;
        let now = channels.uses;
        if let Some((channel, used)) = channels.by_addr.get_mut(&to) {
            *used = now;
            return Ok(channel.clone());
        }
        if channels.by_addr.len() >= MAX_CHANNELS {
            let oldest = channels.by_addr.iter().min_by_key(|(_, (_, used))| *used).map(|(addr, _)| *addr);
            oldest.and_then(|addr| channels.by_addr.remove(&addr));
        }
        let channel = member::channel(&self.endpoint(rpc)?, membership);
        channels.by_addr.insert(to, (channel.clone(), now));
        Ok(channel)
    }

    fn endpoint(&self, rpc: SocketAddr) -> Result<Endpoint, SyncError> {
        let endpoint =
            Endpoint::from_shared(format!("http://{rpc}")).map_err(|error| SyncError::Gone(error.to_string()))?;
        Ok(endpoint
            .connect_timeout(self.config.connect_timeout)
            .http2_keep_alive_interval(self.config.keepalive_interval)
            .keep_alive_timeout(self.config.keepalive_timeout)
            .tcp_nodelay(true))
    }
}

fn read(said: Result<SyncPiecesResponse, Status>, rpc: SocketAddr) -> Result<PieceAnnouncement, SyncError> {
    let ParentPiece { number, mut data_addr } =
        convert::parent_piece_from_wire(&said.map_err(|status| lost(&status))?)?;
    // A parent that listens everywhere may not know its own address; it was reached at this one.
    if data_addr.ip().is_unspecified() {
        data_addr.set_ip(rpc.ip());
    }
    Ok(PieceAnnouncement { number, data_addr })
}

fn lost(status: &Status) -> SyncError {
    match status.code() {
        Code::NotFound => SyncError::Missing,
        code => SyncError::Gone(code.description().into()),
    }
}
