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
//! A signal, or a process that takes over: see [`end`].

mod bound;
mod end;
mod peering;
mod proxying;
mod reload;
#[cfg(test)]
mod tests;
mod upkeep;
mod welcome;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use damselfly_core::Audience;
use damselfly_runtime::admin::{self, Admin, Readiness};
use damselfly_runtime::{AddressesFile, Drain, Inherited, Signals};
use prometheus_client::registry::Registry;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use self::bound::Bound;
use self::end::{Cause, Heritage, Running};
use crate::config::{Config, Loaded};
use crate::limit::{self, Limiter};
use crate::net::HttpClient;
use crate::p2p::transport::{self, DataServer};
use crate::proxy::PrivateContent;
use crate::rpc::{self, peer::Membership};
use crate::storage::{Storage, StorageError};

/// Runs the daemon until it is told to stop, on the sockets that were passed to it and on its own.
///
/// # Errors
/// What keeps it from starting: the data directory, a listener, the configuration. Once it runs, nothing does.
pub async fn run(loaded: Loaded, passed: Inherited) -> anyhow::Result<()> {
    let (config, take_over) = (loaded.config, loaded.flags.take_over);
    loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let mut signals = Signals::catch().context("catching signals")?;
    let (clients, peers) = (Drain::new(), Drain::new());
    let mut registry = Registry::default();
    let limiter = limiter(&config, &mut registry);
    if let Some(hangups) = signals.hangups() {
        tokio::spawn(reload::at_hangup(hangups, loaded.flags, loaded.effective, limiter.clone()));
    }

    let shares_private = config.proxy.private_content == PrivateContent::Share;
    let inheritance = Inheritance { keep: config.keep, shares_private };
    let predecessor = if take_over { end::predecessor(&config).await? } else { None };
    let (predecessor, sockets) = predecessor.map_or((None, passed), |(process, sockets)| (Some(process), sockets));
    let storage = open_storage(&config, inheritance, predecessor.is_some(), &mut registry).await?;
    let mut bound = Bound::all(&config, storage.missing().is_some(), sockets).await?;
    let addresses = bound.addresses(&config)?;
    let heritage = Heritage::of(&mut bound)?;

    let http = HttpClient::new(config.client.clone()).context("setting up the HTTP client")?;

    let membership = peering::membership(&config)?;
    let host = peering::host(&config, &addresses);
    tracing::info!(host = %host.id, addresses = %serde_json::to_string(&addresses)?, "listening");
    let scheduler = peering::scheduler(&config, &membership, peers.watch(), &mut registry)?;
    let tasks = peering::tasks(&config, (&host, &membership), &storage, &http, &scheduler, &limiter, &mut registry);
    let looks_inside = proxying::interceptor(&config, &storage)?;
    let proxy = proxying::proxy(&config, &http, &tasks, looks_inside, &limiter, clients.watch(), &mut registry);

    let (data_port, peers_ended) = oneshot::channel::<()>();
    let (shares, shared) = watch::channel(predecessor.is_none());
    let begins = || end::begins(shared.clone(), peers.watch());
    // A host that shares nothing serves an empty store.
    let given = if config.share { storage.clone() } else { Storage::in_memory(0) };
    let data = data_server(&config, &given, &membership, limiter, &mut registry);
    let data = spawn_once(begins(), async move { data.serve(bound.data, ended(peers_ended)).await });
    let peer =
        peering::peer_server(&config, &membership, (&host, &addresses), &given, &tasks, peers.watch(), &mut registry);
    let peer = spawn_once(begins(), peering::serve(peer, bound.peer));
    spawn_once(begins(), peering::announcer(&config, &membership, &host, &tasks, &scheduler).run(peers.watch()));
    let upkeep = tokio::spawn(upkeep::sweep(storage.clone(), config.gc_interval));
    let scrub = tokio::spawn(upkeep::scrub(storage.clone(), config.scrub_rate));
    tokio::spawn(upkeep::give_back_memory());

    let readiness = Readiness::new(clients.watch());
    let look_after = tokio::spawn(upkeep::look_after(storage.clone(), inheritance, readiness.clone()));
    let routes = Admin::new(registry, readiness.clone(), serde_json::to_value(&addresses)?).router();
    let counted = tasks.clone();
    let routes = routes.merge(rpc::admin::router(storage.clone(), Arc::new(move || counted.in_flight())));
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
        let (proxy, drain) = (proxy.clone(), clients.watch());
        tokio::spawn(async move {
            proxy.serve_unix(listener).await;
            if drain.is_handed_over() {
                path.leave();
            }
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
    if let Some(predecessor) = predecessor {
        bound.lent.end();
        tokio::spawn(end::succeed(predecessor, storage.clone(), inheritance, shares));
    }

    let cause = heritage.wait(signals).await;
    let file = match (&cause, file) {
        // The successor has written its own.
        (Cause::Succeeded(_), Some(file)) => {
            file.leave();
            None
        }
        (_, file) => file,
    };
    [upkeep, scrub, look_after].iter().for_each(|task| task.abort());
    let running = Running { clients, peers, tasks, storage, data_port, admin: admin_end };
    let began = Instant::now();
    running.end(cause, config.grace).await;
    // The grace is for all of it: who waits at the door meanwhile waits no longer.
    let left = config.grace.saturating_sub(began.elapsed());
    tokio::join!(end::finish(data, left), end::finish(peer, left), end::finish(admin, Duration::ZERO));
    drop(file);
    tracing::info!("stopped");
    Ok(())
}

/// Runs a task once it may begin, if it ever does.
fn spawn_once(
    begins: impl Future<Output = bool> + Send + 'static,
    task: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        if begins.await {
            task.await;
        }
    })
}

/// How fast bytes may move.
fn limiter(config: &Config, registry: &mut Registry) -> Limiter {
    let metrics = limit::Metrics::default();
    metrics.register(registry);
    Limiter::new(&config.limits, &metrics)
}

fn data_server(
    config: &Config,
    storage: &Storage,
    membership: &Option<Membership>,
    limiter: Limiter,
    registry: &mut Registry,
) -> DataServer {
    let metrics = transport::Metrics::default();
    metrics.register(registry);
    let config = transport::ServerConfig {
        membership: membership.clone(),
        members_only: config.members_only,
        ..transport::ServerConfig::default()
    };
    DataServer::new(storage.clone(), config, limiter, metrics)
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
/// So it begins where another process has the directory, and is about to leave it to this one.
async fn open_storage(
    config: &Config,
    inheritance: Inheritance,
    taking_over: bool,
    registry: &mut Registry,
) -> anyhow::Result<Storage> {
    if taking_over {
        let settings = config.storage.clone();
        let in_use = StorageError::InUse(settings.dir.clone());
        let storage = Storage::without(settings, &in_use);
        storage.metrics().register(registry);
        return Ok(storage);
    }
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
