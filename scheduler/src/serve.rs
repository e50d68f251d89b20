//! The composition root: configuration in, running scheduler out.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use damselfly_runtime::admin::{self, Admin, Readiness};
use damselfly_runtime::{AddressesFile, Drain, MemberFiles, Secret, Signals, UsageError, listen};
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::InterceptorLayer;
use tonic::transport::Server;

use crate::config::Config;
use crate::driver::{Handle, SinceStart};
use crate::seed::{GrpcSeeds, ShowToken};
use crate::service::{DemandMember, DemandToken, Membership, incoming};
use crate::{http, service};

/// How often a silent connection is tested, and how long the test may take: so long may a peer be dead unnoticed.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// The most conversations on one connection.
const MAX_STREAMS: u32 = 4096;

/// Where it listens, as `addresses.json` and `/addresses` say it.
#[derive(Debug, Serialize)]
struct Addresses {
    grpc: SocketAddr,
    http: SocketAddr,
}

/// Runs until a signal, then drains.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    let signals = Signals::catch().context("catching signals")?;
    if let Some(dir) = &config.data_dir {
        prepare(dir)?;
    }
    let drain = Drain::new();
    let grpc = listen::tcp(config.listen, "listen or --listen")?;
    let web = listen::tcp(config.http, "http or --http")?;
    let addresses = Addresses { grpc: grpc.local_addr()?, http: web.local_addr()? };

    let token = config.token()?;
    let token = token.as_ref().map(Secret::reveal);
    let members_only = config.security.require_tls;
    if token.is_none() && !members_only {
        tracing::warn!(
            "neither security.token nor security.requireTLS is set: every host that can reach the gRPC port can join this fleet"
        );
    }
    let demand = DemandToken::new(token);
    let membership = membership(&config)?;
    let seeds = GrpcSeeds { token: ShowToken::new(token), membership: membership.clone(), members_only };
    let handle = Handle::spawn(config.driver(), SinceStart::new(), seeds);
    let readiness = Readiness::new(drain.watch());
    let mut registry = Registry::default();
    handle.metrics().register(&mut registry);
    let router = Admin::new(registry, readiness.clone(), serde_json::to_value(&addresses)?).router();
    let router = router.merge(http::router(handle.clone()));

    let end = CancellationToken::new();
    let web = tokio::spawn(admin::serve(web, router, end.clone().cancelled_owned()));
    let grpc = tokio::spawn(serve_grpc(grpc, handle, (membership, DemandMember(members_only), demand), &drain).await);
    let file = config.data_dir.as_deref().map(|dir| AddressesFile::write(dir, &addresses)).transpose();
    let file = file.context("writing addresses.json")?;
    readiness.set_ready();
    tracing::info!(grpc = %addresses.grpc, http = %addresses.http, "scheduler listens");

    let signal = signals.first().await;
    tracing::info!(signal, grace = ?config.grace, "draining");
    let drained = drain.wait(config.grace).await;
    tracing::info!(?drained, "ending");
    grpc.abort();
    end.cancel();
    drop(file);
    // Connections that stay open after the grace are not waited for.
    let _ = tokio::time::timeout(Duration::from_millis(100), web).await;
    Ok(())
}

/// Makes the directory; a killed process may have left its addresses there.
fn prepare(dir: &Path) -> anyhow::Result<()> {
    let name = dir.display();
    fs::create_dir_all(dir).with_context(|| format!("dataDir {name}"))?;
    AddressesFile::remove_stale(dir).with_context(|| format!("dataDir {name}"))
}

/// What the scheduler shows to the members of its fleet.
fn membership(config: &Config) -> anyhow::Result<Option<Membership>> {
    let files = config.security.member_files().map_err(|(key, why)| UsageError::new(format!("{key}: {why}")))?;
    let Some(MemberFiles { ca_cert, cert, key }) = files else { return Ok(None) };
    let loaded = Membership::load(ca_cert, cert, key);
    Ok(Some(loaded.map_err(|error| UsageError::new(format!("security.caCert, cert and key: {error}")))?))
}

async fn serve_grpc(
    listener: TcpListener,
    handle: Handle,
    (membership, demand, token): (Option<Membership>, DemandMember, DemandToken),
    drain: &Drain,
) -> impl Future<Output = Result<(), tonic::transport::Error>> + Send + 'static {
    let routes = service::routes(handle, drain.watch()).await;
    let watch = drain.watch();
    Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .max_concurrent_streams(MAX_STREAMS)
        .layer(InterceptorLayer::new(demand))
        .layer(InterceptorLayer::new(token))
        .add_routes(routes)
        .serve_with_incoming_shutdown(Box::pin(incoming(listener, membership)), async move { watch.draining().await })
}
