//! Hosts say what they hold.

use damselfly_api::convert::holdings_from_wire;
use damselfly_api::ours::holdings_server::Holdings;
use damselfly_api::ours::{AnnounceHoldingsRequest, AnnounceHoldingsResponse};
use tonic::{Request, Response, Status, async_trait};

use super::stopped;
use crate::driver::Handle;

/// The service.
pub(super) struct Service(pub(super) Handle);

#[async_trait]
impl Holdings for Service {
    async fn announce(
        &self,
        request: Request<AnnounceHoldingsRequest>,
    ) -> Result<Response<AnnounceHoldingsResponse>, Status> {
        let (host, holdings) = holdings_from_wire(request.into_inner())?;
        self.0.announce_holdings(&host, holdings).await.map_err(stopped)?;
        Ok(Response::new(AnnounceHoldingsResponse {}))
    }
}
