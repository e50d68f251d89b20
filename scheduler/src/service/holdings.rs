//! Hosts say what they hold, and watch whether the scheduler is there.

use damselfly_api::convert::holdings_from_wire;
use damselfly_api::member::{Caller, speaks_for};
use damselfly_api::ours::holdings_server::Holdings;
use damselfly_api::ours::{AnnounceHoldingsRequest, AnnounceHoldingsResponse, WatchRequest, WatchResponse};
use damselfly_runtime::Watch;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, async_trait};

use super::stopped;
use crate::driver::Handle;

/// The service.
pub(super) struct Service {
    pub(super) handle: Handle,
    pub(super) drain: Watch,
}

#[async_trait]
impl Holdings for Service {
    async fn announce(
        &self,
        request: Request<AnnounceHoldingsRequest>,
    ) -> Result<Response<AnnounceHoldingsResponse>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let holdings = holdings_from_wire(request.into_inner())?;
        speaks_for(caller.as_ref(), holdings.host.as_str())?;
        self.handle.announce_holdings(holdings).await.map_err(stopped)?;
        Ok(Response::new(AnnounceHoldingsResponse {}))
    }

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<BoxStream<WatchResponse>>, Status> {
        let (here, watches) = mpsc::channel(1);
        // The channel is empty.
        let _ = here.try_send(Ok(WatchResponse {}));
        let drain = self.drain.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = drain.draining() => {}
                () = here.closed() => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(watches))))
    }
}
