//! Triggers seeds over gRPC: `dfdaemon.v2.DfdaemonUpload/DownloadTask`, whose stream is read to its end.

use std::net::SocketAddr;
use std::time::Duration;

use damselfly_api::convert::{MAX_MESSAGE, SeedWish, seed_wish_to_wire};
use damselfly_api::dfdaemon::dfdaemon_upload_client::DfdaemonUploadClient;
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
}

impl SeedTrigger for GrpcSeeds {
    fn trigger(&self, request: SeedRequest) -> Triggered {
        let token = self.token.clone();
        Box::pin(async move {
            tokio::time::timeout(LONGEST, follow(request, token)).await.unwrap_or(Ok(())).map_err(TriggerError)
        })
    }
}

async fn follow(request: SeedRequest, token: ShowToken) -> Result<(), String> {
    let addr = SocketAddr::new(request.host.ip, request.host.rpc_port);
    let endpoint = Endpoint::from_shared(format!("http://{addr}")).map_err(|error| error.to_string())?;
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    let channel = endpoint.connect().await.map_err(|error| format!("{addr} cannot be reached: {error}"))?;
    let mut client = DfdaemonUploadClient::with_interceptor(channel, token).max_decoding_message_size(MAX_MESSAGE);
    let wish = seed_wish_to_wire(&SeedWish { origin: request.origin, geometry: None });
    let accepted = tokio::time::timeout(HEADERS_TIMEOUT, client.download_task(wish)).await;
    let accepted = accepted.map_err(|_| format!("{addr} does not answer"))?;
    let mut progress = accepted.map_err(|status| status.message().to_owned())?.into_inner();
    while progress.message().await.map_err(|status| status.message().to_owned())?.is_some() {}
    Ok(())
}
