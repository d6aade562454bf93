//! The composition root: every part is built here, in order, and stopped here, in order.
//!
//! [`App::prepare`] does what needs no disk and no network, so that a bad configuration is told apart from a
//! failure. [`App::serve`] opens the store, binds every listener before it serves the first request, and
//! returns after the drain.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::cache::Cache;
use crate::config::Config;
use crate::http::admin::Admin;
use crate::http::{self, Data, Plane, Seats, Tls};
use crate::oci::Registry;
use crate::oci::route::Registries;
use crate::store::{Rate, Store};
use crate::telemetry::Metrics;
use crate::upstream::{Event, Upstream};

/// Connections of the admin plane, and as many of the metrics listener.
const ADMIN_CONNECTIONS_MAX: usize = 64;
/// How long background work may take to put its things in order at the end.
const TIDY_UP_MAX: Duration = Duration::from_secs(10);

/// A configured berth that has not touched disk or network.
pub struct App {
    config: Config,
    registries: Registries,
    upstreams: Vec<Arc<Upstream>>,
    metrics: Arc<Metrics>,
    tls: Option<Tls>,
}

impl App {
    /// Builds what a configuration can be wrong about.
    ///
    /// # Errors
    /// Names the setting and what was expected.
    pub fn prepare(config: Config) -> anyhow::Result<Self> {
        let registries = config.registries()?;
        let metrics = Arc::new(Metrics::new());
        let tls = config.http.tls.clone().map(Tls::load).transpose()?;
        let upstreams = config.upstreams.iter().map(|upstream| {
            let metrics = Arc::clone(&metrics);
            let observer = move |registry: &Registry, event: Event| observe(&metrics, registry, event);
            Upstream::build(upstream, Arc::new(observer))
                .with_context(|| format!("upstream {}", upstream.registry))
        });
        let upstreams = upstreams.collect::<anyhow::Result<_>>()?;
        http::check(&config.http)?;
        Ok(Self { config, registries, upstreams, metrics, tls })
    }

    /// What it was configured to be.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Serves until it is asked to stop, and drains.
    ///
    /// # Errors
    /// When the data folder or an address cannot be had, or background work has died.
    pub async fn serve(self) -> anyhow::Result<()> {
        let Self { config, registries, upstreams, metrics, tls } = self;
        let mut signals = Signals::new()?;
        let files = raise_file_limit();
        let limits = config.cache.limits(config.pins.clone());
        let store = Store::open_within(&config.data_dir, limits, Arc::clone(&metrics))
            .await
            .with_context(|| format!("data folder {}", config.data_dir.display()))?;
        let cache =
            Cache::new(store.clone(), upstreams.clone(), config.rules(), &config.cache, Arc::clone(&metrics));
        let data = Data::new(cache.clone(), registries, Arc::clone(&metrics), &config.http)?;
        let admin = Arc::new(Admin::new(Arc::clone(&metrics), store.clone(), cache.clone()));

        let (stop_data, data_stops) = watch::channel(false);
        let (stop_rest, rest_stops) = watch::channel(false);
        let listeners = bind(&config).await?;
        let (mut data_plane, mut rest) = (JoinSet::new(), JoinSet::new());
        let seats = Seats::of_data_plane(files, Arc::clone(&metrics));
        let plane = Plane::Data(Arc::new(data));
        for listener in listeners.data {
            let (plane, tls, seats) = (plane.clone(), tls.clone(), Arc::clone(&seats));
            data_plane.spawn(http::serve(listener, plane, tls, seats, data_stops.clone()));
        }
        let admin_address = listeners.admin.local_addr()?;
        let metrics_plane = listeners.metrics.map(|listener| (listener, Plane::Metrics(Arc::clone(&admin))));
        let admin_plane = (listeners.admin, Plane::Admin(Arc::clone(&admin)));
        for (listener, plane) in std::iter::once(admin_plane).chain(metrics_plane) {
            // Each its own: a crowd at the metrics listener must not keep the administrator out.
            let seats = Seats::new(ADMIN_CONNECTIONS_MAX, Arc::clone(&metrics));
            rest.spawn(http::serve(listener, plane, None, seats, rest_stops.clone()));
        }
        store.announce(admin_address).await;
        rest.spawn(run_scrub(store.clone(), config.cache.scrub, rest_stops.clone()));
        rest.spawn(run_store(store, rest_stops.clone()));
        for upstream in upstreams {
            rest.spawn(run_upstream(upstream, rest_stops.clone()));
        }
        if let Some(tls) = tls {
            rest.spawn(until(tls.run(), rest_stops));
        }
        notify_systemd(&[sd_notify::NotifyState::Ready]);

        tokio::select! {
            () = signals.stop() => {}
            died = first_death(&mut rest) => return Err(died),
        }
        info!(drain_seconds = config.http.drain_seconds, "stopping: no new connections, bodies may finish");
        notify_systemd(&[sd_notify::NotifyState::Stopping]);
        admin.drain();
        stop_data.send_replace(true);
        tokio::select! {
            drained = timeout(Duration::from_secs(config.http.drain_seconds), drain(&mut data_plane)) => match drained {
                Ok(()) => info!("drained"),
                Err(_) => warn!("some bodies did not finish in time and are cut"),
            },
            () = signals.stop() => warn!("asked to stop a second time: bodies are cut"),
        }
        data_plane.abort_all();
        cache.close().await;
        stop_rest.send_replace(true);
        if timeout(TIDY_UP_MAX, drain(&mut rest)).await.is_err() {
            warn!("background work did not finish in time; the next start puts things in order");
        }
        Ok(())
    }
}

/// Counts what happens on the way to an upstream.
fn observe(metrics: &Metrics, registry: &Registry, event: Event) {
    let registry = registry.as_str();
    match event {
        Event::Ended(outcome) => metrics.upstream_request(registry, outcome.as_str()),
        Event::EndedAtParent(outcome) => metrics.parent_request(registry, outcome.as_str()),
        Event::Waited(limit) => metrics.upstream_waited(registry, limit.as_str()),
        Event::Refused(limit) => metrics.upstream_refused(registry, limit.as_str()),
        Event::Quota { limit, remaining } => metrics.upstream_quota(registry, limit, remaining),
    }
}

/// Every listener, bound.
struct Listeners {
    data: Vec<TcpListener>,
    admin: TcpListener,
    metrics: Option<TcpListener>,
}

async fn bind(config: &Config) -> anyhow::Result<Listeners> {
    let mut data = Vec::new();
    for address in &config.http.listen {
        data.push(listen(*address, "data").await?);
    }
    let admin = listen(config.admin.listen, "admin").await?;
    let metrics = match config.admin.metrics_listen {
        Some(address) => Some(listen(address, "metrics").await?),
        None => None,
    };
    Ok(Listeners { data, admin, metrics })
}

async fn listen(address: SocketAddr, plane: &str) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("the {plane} plane cannot listen on {address}"))?;
    info!(plane, address = %listener.local_addr()?, "listening");
    Ok(listener)
}

async fn run_store(store: Store, mut stops: watch::Receiver<bool>) {
    store.run(http::turned_true(&mut stops)).await;
}

async fn run_scrub(store: Store, rate: Rate, mut stops: watch::Receiver<bool>) {
    store.scrub(rate, http::turned_true(&mut stops)).await;
}

async fn run_upstream(upstream: Arc<Upstream>, stops: watch::Receiver<bool>) {
    until(upstream.run(pending()), stops).await;
}

/// Runs `work` until it is time to stop.
async fn until(work: impl Future<Output = ()>, mut stops: watch::Receiver<bool>) {
    tokio::select! {
        () = work => {}
        () = http::turned_true(&mut stops) => {}
    }
}

/// Waits for a part that must run for ever to end, which is a fault.
async fn first_death(parts: &mut JoinSet<()>) -> anyhow::Error {
    match parts.join_next().await {
        Some(Err(error)) => anyhow!(error).context("background work has died"),
        Some(Ok(())) | None => anyhow!("background work has ended before it was asked to"),
    }
}

async fn drain(parts: &mut JoinSet<()>) {
    while let Some(ended) = parts.join_next().await {
        if let Err(error) = ended {
            warn!(%error, "a part did not end well");
        }
    }
}

/// What the process is told from outside.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits to be asked to stop. SIGHUP is answered and changes nothing.
    async fn stop(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hang_up.recv() => warn!(
                    "SIGHUP: the configuration is read at start only, restart to apply it; certificates, htpasswd and \
                     credential files are read again by themselves"
                ),
            }
        }
    }
}

fn notify_systemd(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, state) {
        warn!(%error, "systemd could not be told");
    }
}

/// Every connection is a file: takes as many as the system lets us have, and says how many that is.
fn raise_file_limit() -> Option<u64> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            warn!(%error, "the limit of open files could not be raised");
        }
    }
    getrlimit(Resource::Nofile).current
}
