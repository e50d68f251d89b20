//! Triggers seeds over gRPC: `dfdaemon.v2.DfdaemonUpload/DownloadTask`, whose stream is read to its end.

use std::net::SocketAddr;
use std::time::Duration;

use damselfly_api::convert::{MAX_MESSAGE, SeedWish, seed_wish_to_wire};
use damselfly_api::dfdaemon::dfdaemon_upload_client::DfdaemonUploadClient;
use damselfly_api::member::{Membership, channel};
pub use damselfly_api::token::ShowToken;
use tonic::transport::Endpoint;

use crate::driver::{SeedRequest, SeedTrigger, TriggerError, Triggered};

/// How long a seed may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long it may take to accept the task.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a silent connection is tested, and how long the test may take.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// The longest that one task is followed. The seed goes on without us.
const LONGEST: Duration = Duration::from_secs(6 * 3600);

/// Reaches seeds at their announced address.
#[derive(Clone, Debug, Default)]
pub struct GrpcSeeds {
    /// The fleet's token, shown with every call.
    pub token: ShowToken,
    /// What is shown to seeds that speak TLS with members.
    pub membership: Option<Membership>,
    /// Whether seeds that do not are left alone.
    pub members_only: bool,
}

impl SeedTrigger for GrpcSeeds {
    fn trigger(&self, request: SeedRequest) -> Triggered {
        let this = self.clone();
        Box::pin(async move {
            tokio::time::timeout(LONGEST, this.follow(request)).await.unwrap_or(Ok(())).map_err(TriggerError)
        })
    }
}

impl GrpcSeeds {
    async fn follow(self, request: SeedRequest) -> Result<(), String> {
        let Self { token, membership, members_only } = self;
        let membership = membership.filter(|_| request.host.tls);
        if members_only && membership.is_none() {
            return Err("it does not speak TLS as a member of this fleet, which security.requireTLS demands".into());
        }
        let addr = SocketAddr::new(request.host.ip, request.host.rpc_port);
        let endpoint = Endpoint::from_shared(format!("http://{addr}")).map_err(|error| error.to_string())?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let channel = channel(&endpoint, membership.as_ref());
        let mut client = DfdaemonUploadClient::with_interceptor(channel, token).max_decoding_message_size(MAX_MESSAGE);
        let wish = seed_wish_to_wire(&SeedWish { origin: request.origin, geometry: None });
        let accepted = tokio::time::timeout(HEADERS_TIMEOUT, client.download_task(wish)).await;
        let accepted = accepted.map_err(|_| format!("{addr} does not answer"))?;
        let mut progress = accepted.map_err(|status| status.message().to_owned())?.into_inner();
        while progress.message().await.map_err(|status| status.message().to_owned())?.is_some() {}
        Ok(())
    }
}
