//! The composition root: every part is built here, in order, and stopped here, in order.
//!
//! [`App::prepare`] does what needs no disk and no network, so that a bad configuration is told apart from a failure.
//! [`App::serve`] opens the store, binds every listener before it serves the first request, and returns after the drain.
//! Meanwhile `reload` puts another configuration in the place of the first, whole or not at all.
//!
//! Uses every room; only `cli` uses it. In it `systemd`, `signals` and `tasks` know no other part; `listeners` and
//! `upstreams` come next, `reload` uses them, and this file all.

mod listeners;
mod reload;
mod signals;
mod systemd;
mod tasks;
mod upstreams;

use std::future::pending;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::cache::Cache;
use crate::clock::unix_seconds;
use crate::config::Config;
use crate::http::admin::{Admin, AdminGuard, ReloadRequests, orders};
use crate::http::{self, DataPlane, RegistryApi, Tls};
use crate::store::{self, Rate, Store};
use crate::telemetry::Metrics;

pub use reload::Source;
pub use systemd::PassedSockets;

use listeners::Listeners;
use signals::{ReloadSignal, StopSignals};
use tasks::Tasks;
use upstreams::{RunningUpstream, RunningUpstreams};

/// A configured berth that has not touched disk or network.
pub struct App {
    config: Config,
    upstreams: Vec<RunningUpstream>,
    metrics: Arc<Metrics>,
    tls: Option<Tls>,
}

impl App {
    /// Builds what a configuration can be wrong about.
    ///
    /// # Errors
    /// Names the setting and what was expected.
    pub fn prepare(config: Config) -> anyhow::Result<Self> {
        let metrics = Arc::new(Metrics::new());
        let tls = config.http.tls.clone().map(Tls::load).transpose()?;
        let upstreams = RunningUpstream::build_all(&config.all_upstreams(), &[], &metrics)?;
        http::check(&config.http)?;
        AdminGuard::new(&config.admin, &config.data_dir)?;
        Ok(Self { config, upstreams, metrics, tls })
    }

    /// What the operator should know of the configuration, although it can be served.
    pub fn warnings(&self) -> Vec<String> {
        upstreams::warnings(&self.upstreams, &[])
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Serves until it is asked to stop, and drains. The sockets that were `passed` are used for the listeners at their
    /// addresses. Meanwhile the configuration is read again from `source`.
    ///
    /// # Errors
    /// When the data folder or an address cannot be had, or background work has died.
    pub async fn serve(self, source: Option<Source>, passed: PassedSockets) -> anyhow::Result<()> {
        store::keep_large_apart();
        let (mut signals, mut hang_up) = (StopSignals::new()?, ReloadSignal::new()?);
        let files = raise_file_limit();
        let store = self.open_store().await?;
        let data = self.data_plane(&store)?;
        let (orders, mut ordered) = orders();
        let admin = self.admin_plane(&store, &data, orders).await?;
        let Self { config, upstreams, metrics, tls } = self;

        let listeners = Listeners::bind(&config, passed).await?;
        let admin_address = listeners.admin_address()?;
        let mut tasks = Tasks::new();
        listeners.serve(&mut tasks, &data, tls.as_ref(), &admin, files, &metrics)?;
        store.announce(admin_address).await;
        let scrub_rate = watch::Sender::new(config.cache.scrub);
        tasks.spawn_until_stop(run_scrub(store.clone(), scrub_rate.subscribe()));
        let upkeep = store.clone();
        tasks.spawn(|mut stop| async move { upkeep.run(http::stopped(&mut stop)).await });
        if let Some(tls) = tls.clone() {
            tasks.spawn_until_stop(async move { tls.run().await });
        }
        metrics.configuration.loaded(unix_seconds());
        let upstreams = RunningUpstreams::launch(upstreams);
        let mut running = Running {
            config,
            source,
            upstreams,
            data,
            admin,
            store,
            tls,
            scrub_rate,
            metrics,
            refusal: None,
        };
        systemd::ready();

        tokio::select! {
            () = signals.recv() => {}
            died = tasks.death() => return Err(died),
            died = running.run(&mut hang_up, &mut ordered) => return Err(died),
        }
        // A reload that is still ordered is answered: there will be none.
        drop(ordered);
        stop(&running, tasks, signals, hang_up).await;
        Ok(())
    }

    async fn open_store(&self) -> anyhow::Result<Store> {
        let Self { config, metrics, .. } = self;
        let (folder, mode) = (config.data_dir.clone(), config.data_mode);
        let _ = tokio::task::spawn_blocking(move || store::close_to_others(&folder, mode)).await;
        Store::open_within(&config.data_dir, config.limits(), Arc::clone(metrics))
            .await
            .with_context(|| format!("data folder {}", config.data_dir.display()))
    }

    fn data_plane(&self, store: &Store) -> anyhow::Result<Arc<DataPlane>> {
        let Self { config, metrics, .. } = self;
        let upstreams = self.upstreams.iter().map(|upstream| Arc::clone(upstream.upstream())).collect();
        let cache = Cache::new(store.clone(), upstreams, config.rules(), &config.cache, Arc::clone(metrics));
        let registries = config.registries().clone();
        let serving = RegistryApi::new(cache, registries, Arc::clone(metrics), &config.http, None)?;
        Ok(Arc::new(DataPlane::new(serving)))
    }

    async fn admin_plane(
        &self,
        store: &Store,
        data: &Arc<DataPlane>,
        orders: ReloadRequests,
    ) -> anyhow::Result<Arc<Admin>> {
        let guard = AdminGuard::new(&self.config.admin, &self.config.data_dir)?;
        let admin = Admin::new(Arc::clone(&self.metrics), store.clone(), Arc::clone(data), orders, guard);
        Ok(admin.with_token().await)
    }
}

/// A running berth: the parts that a configuration is put into, and the one that is in force.
struct Running {
    config: Config,
    source: Option<Source>,
    upstreams: RunningUpstreams,
    data: Arc<DataPlane>,
    admin: Arc<Admin>,
    store: Store,
    tls: Option<Tls>,
    scrub_rate: watch::Sender<Rate>,
    metrics: Arc<Metrics>,
    /// Why the last configuration that was read is not in force.
    refusal: Option<String>,
}

/// Stops: bodies may finish for a while, then everything ends in order.
async fn stop(running: &Running, mut tasks: Tasks, mut signals: StopSignals, mut hang_up: ReloadSignal) {
    let drain_time = running.config.http.drain;
    info!(drain_seconds = drain_time.as_secs_f64(), "stopping: no new connections, bodies may finish");
    systemd::stopping();
    running.admin.drain();
    tasks.stop_data();
    tokio::select! {
        () = tasks.drain(drain_time) => {}
        () = signals.recv() => warn!("asked to stop a second time: bodies are cut"),
        () = hang_up.ignore() => {}
    }
    tasks.cut_data();
    running.data.cache().close().await;
    tasks.stop().await;
}

/// Hashes stored files in the background, as fast as the configuration says by now.
async fn run_scrub(store: Store, mut rate: watch::Receiver<Rate>) {
    loop {
        let now = *rate.borrow_and_update();
        // Once nobody can change it any more it stays as it is.
        let changed = async {
            if rate.changed().await.is_err() {
                pending().await
            }
        };
        store.scrub(now, changed).await;
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
