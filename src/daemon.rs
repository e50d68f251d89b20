//! The composition root: configuration in, running daemon out. Read [`run`] as the table of contents.
//!
//! # Start
//! Storage first, because it alone says whether the data directory is ours; then every listener, so that all of them
//! are known before anybody is told; then what stands on them. **No other service has to be there**: schedulers, peers
//! and origins are found, lost and found again while the daemon runs.
//!
//! SIGHUP ends nothing: it has the configuration read again (`reload`).
//!
//! # End
//! The signal stops the proxy's accepting and tells the scheduler that this host leaves; what clients have in hand may
//! finish for the grace; then the peers' ports close, storage is flushed, and `addresses.json` and the socket go.

mod bound;
mod peering;
mod proxying;
mod reload;
#[cfg(test)]
mod tests;
mod upkeep;
mod welcome;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use damselfly_core::Audience;
use damselfly_runtime::admin::{self, Admin, Readiness};
use damselfly_runtime::drain::Drained;
use damselfly_runtime::{AddressesFile, Drain, Signals};
use prometheus_client::registry::Registry;
use tokio::sync::oneshot;

use self::bound::Bound;
use crate::config::{Config, Loaded};
use crate::limit::{self, Limiter};
use crate::net::HttpClient;
use crate::p2p::transport::{self, DataServer};
use crate::proxy::PrivateContent;
use crate::rpc;
use crate::storage::{Storage, StorageError};

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// What keeps it from starting: the data directory, a listener, the configuration. Once it runs, nothing does.
pub async fn run(loaded: Loaded) -> anyhow::Result<()> {
    let config = loaded.config;
    loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let mut signals = Signals::catch().context("catching signals")?;
    let drain = Drain::new();
    let mut registry = Registry::default();
    let limiter = limiter(&config, &mut registry);
    if let Some(hangups) = signals.hangups() {
        tokio::spawn(reload::at_hangup(hangups, loaded.flags, loaded.effective, limiter.clone()));
    }

    let shares_private = config.proxy.private_content == PrivateContent::Share;
    let inheritance = Inheritance { keep: config.keep, shares_private };
    let storage = open_storage(&config, inheritance, &mut registry).await?;
    let bound = Bound::all(&config, storage.missing().is_some()).await?;
    let addresses = bound.addresses(&config)?;

    let http = HttpClient::new(config.client.clone()).context("setting up the HTTP client")?;

    let host = peering::host(&config, &addresses);
    tracing::info!(host = %host.id, addresses = %serde_json::to_string(&addresses)?, "listening");
    let scheduler = peering::scheduler(&config, drain.watch(), &mut registry)?;
    let tasks = peering::tasks(&config, &host, &storage, &http, &scheduler, &limiter, &mut registry);
    let looks_inside = proxying::interceptor(&config, &storage)?;
    let proxy = proxying::proxy(&config, &http, &tasks, looks_inside, &limiter, drain.watch(), &mut registry);

    let (peers_end, peers_ended) = oneshot::channel::<()>();
    // A host that shares nothing serves an empty store.
    let shared = if config.share { storage.clone() } else { Storage::in_memory(0) };
    let data = data_server(&shared, limiter, &mut registry);
    let data = tokio::spawn(async move { data.serve(bound.data, ended(peers_ended)).await });
    let peer = peering::peer_server(&config, &host, &shared, &tasks, &addresses, drain.watch(), &mut registry);
    let peers = tokio::spawn(peering::serve(peer, bound.peer));
    tokio::spawn(peering::announcer(&config, &host, &tasks, &scheduler).run(drain.watch()));
    let upkeep = tokio::spawn(upkeep::sweep(storage.clone(), config.gc_interval));
    let scrub = tokio::spawn(upkeep::scrub(storage.clone(), config.scrub_rate));
    tokio::spawn(upkeep::give_back_memory());

    let readiness = Readiness::new(drain.watch());
    let look_after = tokio::spawn(upkeep::look_after(storage.clone(), inheritance, readiness.clone()));
    let routes = Admin::new(registry, readiness.clone(), serde_json::to_value(&addresses)?).router();
    let routes = routes.merge(rpc::admin::router(storage.clone(), Arc::new(move || tasks.in_flight())));
    let (admin_end, admin_ended) = oneshot::channel::<()>();
    let admin = tokio::spawn(admin::serve(bound.admin, routes, ended(admin_ended)));

    let ours = [addresses.proxy, addresses.admin, addresses.peer, addresses.data];
    let ours = ours.into_iter().chain(addresses.transparent).chain(addresses.mirrors.values().copied());
    http.own_addresses().set(ours.collect());
    for (listener, mirror) in bound.mirrors.into_iter().zip(&config.mirror_ports) {
        tokio::spawn(proxy.clone().serve_mirror(listener, mirror.registry.clone()));
    }
    if let Some(listener) = bound.transparent {
        tokio::spawn(proxy.clone().serve_transparent(listener));
    }
    tokio::spawn(proxy.clone().serve(bound.proxy));
    if let Some(socket) = bound.socket {
        let (listener, path) = (socket.listener, socket.path);
        let proxy = proxy.clone();
        tokio::spawn(async move {
            proxy.serve_unix(listener).await;
            drop(path);
        });
    }
    let file = match AddressesFile::write(&config.data_dir, &addresses) {
        Ok(file) => Some(file),
        Err(error) if storage.missing().is_some() => {
            tracing::warn!(%error, data_dir = %config.data_dir.display(), "addresses.json cannot be written");
            None
        }
        Err(error) => return Err(error).context("writing addresses.json"),
    };
    readiness.set_ready();
    welcome::print(&addresses, &config);

    let signal = signals.first().await;
    tracing::info!(signal, grace = ?config.grace, "draining");
    if let Drained::GraceOver { left } = drain.wait(config.grace).await {
        tracing::warn!(left, "the grace is over: what is left is cut off");
    }
    upkeep.abort();
    scrub.abort();
    look_after.abort();
    drop(peers_end);
    let _ = tokio::time::timeout(config.grace, async { tokio::join!(data, peers) }).await;
    storage.flush().await;
    drop(file);
    drop(admin_end);
    let _ = tokio::time::timeout(ADMIN_END, admin).await;
    tracing::info!("stopped");
    Ok(())
}

/// How long the admin HTTP's last answers may take.
const ADMIN_END: Duration = Duration::from_secs(1);

/// How fast bytes may move.
fn limiter(config: &Config, registry: &mut Registry) -> Limiter {
    let metrics = limit::Metrics::default();
    metrics.register(registry);
    Limiter::new(&config.limits, &metrics)
}

fn data_server(storage: &Storage, limiter: Limiter, registry: &mut Registry) -> DataServer {
    let metrics = transport::Metrics::default();
    metrics.register(registry);
    DataServer::new(storage.clone(), transport::ServerConfig::default(), limiter, metrics)
}

/// Resolves when the other half is dropped.
async fn ended(half: oneshot::Receiver<()>) {
    let _ = half.await;
}

/// What is done with what an earlier process has left in a store.
#[derive(Clone, Copy)]
struct Inheritance {
    keep: bool,
    shares_private: bool,
}

impl Inheritance {
    fn accept(self, storage: &Storage) {
        let stored = storage.list().into_iter();
        if !self.keep {
            stored.for_each(|task| storage.remove(&task.id));
        } else if !self.shares_private {
            // What an earlier process was allowed to share this one is not.
            let private = stored.filter(|task| task.audience == Audience::Private);
            private.filter_map(|task| storage.peek(&task.id)).for_each(|task| task.set_audience(Audience::Host));
        }
    }
}

/// Opens the store. A directory that cannot be used is no reason not to start: this host is a proxy without a store then.
async fn open_storage(config: &Config, inheritance: Inheritance, registry: &mut Registry) -> anyhow::Result<Storage> {
    let dir = config.data_dir.clone();
    let settings = config.storage.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let made = std::fs::create_dir_all(&dir);
        match Storage::open(settings.clone()) {
            Ok(storage) => {
                inheritance.accept(&storage);
                Ok(storage)
            }
            Err(error @ StorageError::InUse(_)) => Err(error),
            Err(error) => {
                tracing::error!(%error, data_dir = ?made, "no content is stored: this host is a proxy only until the \
                    storage directory can be used");
                Ok(Storage::without(settings, &error))
            }
        }
    });
    let storage = opened.await.context("opening the storage")??;
    storage.metrics().register(registry);
    // From here on the directory is ours, and so is what a killed daemon left in it.
    let stale = AddressesFile::remove_stale(&config.data_dir);
    if storage.missing().is_none() {
        stale.with_context(|| format!("clearing {}", config.data_dir.display()))?;
    }
    Ok(storage)
}
