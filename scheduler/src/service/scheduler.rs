//! The RPCs of `scheduler.v2.Scheduler` that are served; the others keep their default, UNIMPLEMENTED.

use damselfly_api::common::{Host, Task};
use damselfly_api::convert::{self, host_from_wire, list_hosts, mark_extended, mark_run};
use damselfly_api::member::{Caller, speaks_for};
use damselfly_api::scheduler::scheduler_server::Scheduler;
use damselfly_api::scheduler::{
    AnnounceHostRequest, AnnouncePeerRequest, AnnouncePeerResponse, DeleteHostRequest, DeleteTaskRequest,
    ListHostsRequest, ListHostsResponse, StatTaskRequest,
};
use damselfly_runtime::Watch;
use damselfly_scheduler_core::{Core, TaskView};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{announce, stopped};
use crate::driver::Handle;

/// How many answers of one conversation wait for the network.
const UNSENT: usize = 16;

/// The most hosts that are listed.
const MOST_HOSTS: usize = 10_000;

/// The service.
pub(super) struct Service {
    handle: Handle,
    drain: Watch,
    /// Tells this run from every other. With the number of the host in it, which changes when the host was forgotten: who
    /// sees the sum change says again what it holds.
    run: u64,
}

impl Service {
    pub(super) fn new(handle: Handle, drain: Watch) -> Self {
        Self { handle, drain, run: fastrand::u64(..) }
    }
}

#[async_trait]
impl Scheduler for Service {
    /// Answers its headers at once: a client that waits for them goes to the source after ten seconds.
    async fn announce_peer(
        &self,
        request: Request<Streaming<AnnouncePeerRequest>>,
    ) -> Result<Response<BoxStream<AnnouncePeerResponse>>, Status> {
        let (to_peer, answers) = mpsc::channel(UNSENT);
        let caller = request.extensions().get::<Caller>().cloned();
        let conversation = announce::converse(self.handle.clone(), caller, request.into_inner(), to_peer);
        let drain = self.drain.clone();
        tokio::spawn(async move {
            let _guard = drain.guard();
            conversation.await;
        });
        let mut response = Response::new(Box::pin(ReceiverStream::new(answers)) as BoxStream<_>);
        mark_extended(response.metadata_mut());
        Ok(response)
    }

    async fn announce_host(&self, request: Request<AnnounceHostRequest>) -> Result<Response<()>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let (host, _interval) = host_from_wire(request.into_inner())?;
        speaks_for(caller.as_ref(), host.id.as_str())?;
        tracing::debug!(host = %host.id, "announced");
        let number = self.handle.announce_host(host).await.map_err(stopped)?;
        let mut response = Response::new(());
        mark_run(response.metadata_mut(), self.run.wrapping_add(number));
        Ok(response)
    }

    async fn delete_host(&self, request: Request<DeleteHostRequest>) -> Result<Response<()>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let host = convert::host_id(request.into_inner().host_id)?;
        speaks_for(caller.as_ref(), host.as_str())?;
        self.handle.leave_host(&host).await.map_err(stopped)?;
        Ok(Response::new(()))
    }

    async fn list_hosts(&self, request: Request<ListHostsRequest>) -> Result<Response<ListHostsResponse>, Status> {
        let kind = request.into_inner().r#type;
        let wanted = move |seed: bool| kind.is_none_or(|kind| (kind != 0) == seed);
        let look = move |core: &Core| -> Vec<_> {
            core.hosts().map(|host| host.info).filter(|host| wanted(host.seed)).take(MOST_HOSTS).collect()
        };
        let hosts = self.handle.snapshot(look).await.map_err(stopped)?;
        let hosts: Vec<Host> = list_hosts(hosts.iter());
        Ok(Response::new(ListHostsResponse { hosts }))
    }

    async fn stat_task(&self, request: Request<StatTaskRequest>) -> Result<Response<Task>, Status> {
        let id = convert::task_id(&request.into_inner().task_id)?;
        let task = self.handle.snapshot(move |core| core.task(&id)).await.map_err(stopped)?;
        let task = task.ok_or_else(|| Status::not_found("no such task"))?;
        Ok(Response::new(task_to_wire(task)))
    }

    async fn delete_task(&self, request: Request<DeleteTaskRequest>) -> Result<Response<()>, Status> {
        let id = convert::task_id(&request.into_inner().task_id)?;
        self.handle.delete_task(id).await.map_err(stopped)?;
        Ok(Response::new(()))
    }
}

fn task_to_wire(task: TaskView) -> Task {
    Task {
        id: task.id.to_string(),
        url: task.origin.url,
        digest: task.origin.digest,
        tag: Some(task.origin.tag),
        application: Some(task.origin.application),
        content_length: task.geometry.map_or(0, |geometry| geometry.length()),
        piece_count: task.geometry.map_or(0, |geometry| geometry.count()),
        state: if task.holders > 0 { "Succeeded" } else { "Running" }.into(),
        peer_count: u32::try_from(task.peer_count).unwrap_or(u32::MAX),
        has_available_peer: task.holders > 0,
        created_at: Some(Default::default()),
        updated_at: Some(Default::default()),
        ..Task::default()
    }
}
