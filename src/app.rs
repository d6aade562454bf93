//! The composition root: every part is built here, in order, and stopped here, in order.
//!
//! [`App::prepare`] does what needs no disk and no network, so that a bad configuration is told apart from a
//! failure. [`App::serve`] opens the store, binds every listener before it serves the first request, and
//! returns after the drain. Meanwhile `reload` puts another configuration in the place of the first, whole or not at all.

mod fleet;
mod held;
mod reload;

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
use crate::clock::unix_seconds;
use crate::config::Config;
use crate::http::admin::{Admin, Guard, orders};
use crate::http::{self, Data, Plane, Reach, Seats, Serving, Tls};
use crate::oci::route::Registries;
use crate::store::{self, Rate, Store};
use crate::telemetry::Metrics;

pub use held::Held;
pub use reload::Source;

use fleet::{Fleet, Member};
use reload::Running;

/// How long background work may take to put its things in order at the end.
const TIDY_UP_MAX: Duration = Duration::from_secs(10);

/// A configured berth that has not touched disk or network.
pub struct App {
    config: Config,
    registries: Registries,
    members: Vec<Member>,
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
        let members = Member::build_all(&config.all_upstreams(), &[], &metrics)?;
        http::check(&config.http)?;
        Guard::new(&config.admin, &config.data_dir)?;
        Ok(Self { config, registries, members, metrics, tls })
    }

    /// What its operator should know of the configuration, though it can be served.
    pub fn warnings(&self) -> Vec<String> {
        fleet::warnings(&self.members, &[])
    }

    /// What it was configured to be.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Serves until it is asked to stop, and drains, at sockets that are `held` where there are any. Meanwhile the
    /// configuration is read again from `source`.
    ///
    /// # Errors
    /// When the data folder or an address cannot be had, or background work has died.
    pub async fn serve(self, source: Option<Source>, held: Held) -> anyhow::Result<()> {
        let Self { config, registries, members, metrics, tls } = self;
        store::keep_large_apart();
        let (mut signals, mut hang_up) = (Signals::new()?, signal(SignalKind::hangup())?);
        let files = raise_file_limit();
        let (folder, mode) = (config.data_dir.clone(), config.data_mode);
        let _ = tokio::task::spawn_blocking(move || store::close_to_others(&folder, mode)).await;
        let store = Store::open_within(&config.data_dir, config.limits(), Arc::clone(&metrics))
            .await
            .with_context(|| format!("data folder {}", config.data_dir.display()))?;
        let upstreams = members.iter().map(|member| Arc::clone(&member.upstream)).collect();
        let cache = Cache::new(store.clone(), upstreams, config.rules(), &config.cache, Arc::clone(&metrics));
        let serving = Serving::new(cache, registries, Arc::clone(&metrics), &config.http, None)?;
        let data = Arc::new(Data::new(serving));
        let (orders, mut ordered) = orders();
        let guard = Guard::new(&config.admin, &config.data_dir)?;
        let admin = Admin::new(Arc::clone(&metrics), store.clone(), Arc::clone(&data), orders, guard);
        let admin = admin.with_token().await;

        let (stop_data, data_stops) = watch::channel(false);
        let (stop_rest, rest_stops) = watch::channel(false);
        let listeners = bind(&config, held).await?;
        let (mut data_plane, mut rest) = (JoinSet::new(), JoinSet::new());
        let seats = Seats::of_data_plane(files, Arc::clone(&metrics));
        for listener in listeners.data {
            let plane = Plane::Data(Arc::clone(&data), Reach::of(listener.local_addr()?));
            let (tls, seats) = (tls.clone(), Arc::clone(&seats));
            data_plane.spawn(http::serve(listener, plane, tls, seats, data_stops.clone()));
        }
        let admin_address = listeners.admin.local_addr()?;
        let metrics_plane = listeners.metrics.map(|listener| (listener, Plane::Metrics(Arc::clone(&admin))));
        let admin_plane = (listeners.admin, Plane::Admin(Arc::clone(&admin)));
        for (listener, plane) in std::iter::once(admin_plane).chain(metrics_plane) {
            // Each its own: a crowd at the metrics listener must not keep the administrator out.
            let seats = Seats::of_admin_plane(files, Arc::clone(&metrics));
            rest.spawn(http::serve(listener, plane, None, seats, rest_stops.clone()));
        }
        store.announce(admin_address).await;
        let scrub = watch::Sender::new(config.cache.scrub);
        rest.spawn(run_scrub(store.clone(), scrub.subscribe(), rest_stops.clone()));
        rest.spawn(run_store(store.clone(), rest_stops.clone()));
        if let Some(tls) = tls.clone() {
            rest.spawn(until(tls.run(), rest_stops));
        }
        metrics.configuration.loaded(unix_seconds());
        let fleet = Fleet::launch(members);
        let mut running =
            Running { config, source, fleet, data, admin, store, tls, scrub, metrics, refusal: None };
        notify_systemd(&[sd_notify::NotifyState::Ready]);

        tokio::select! {
            () = signals.stop() => {}
            died = first_death(&mut rest) => return Err(died),
            died = running.run(&mut hang_up, &mut ordered) => return Err(died),
        }
        // Whoever still orders a reload is told that there is none.
        drop(ordered);
        let drain_time = running.config.http.drain;
        info!(drain_seconds = drain_time.as_secs_f64(), "stopping: no new connections, bodies may finish");
        notify_systemd(&[sd_notify::NotifyState::Stopping]);
        running.admin.drain();
        stop_data.send_replace(true);
        tokio::select! {
            () = drain_within(drain_time, &mut data_plane) => {}
            () = signals.stop() => warn!("asked to stop a second time: bodies are cut"),
            () = ignore(&mut hang_up) => {}
        }
        data_plane.abort_all();
        running.data.cache().close().await;
        stop_rest.send_replace(true);
        tidy_up(&mut rest).await;
        Ok(())
    }
}

/// Waits a while for background work to put things in order.
async fn tidy_up(rest: &mut JoinSet<()>) {
    if timeout(TIDY_UP_MAX, drain(rest)).await.is_err() {
        warn!("background work did not finish in time; the next start puts things in order");
    }
}

/// Every listener, bound.
struct Listeners {
    data: Vec<TcpListener>,
    admin: TcpListener,
    metrics: Option<TcpListener>,
}

async fn bind(config: &Config, mut held: Held) -> anyhow::Result<Listeners> {
    let mut data = Vec::new();
    for address in &config.http.listen {
        data.push(listen(*address, "data", &mut held).await?);
    }
    let admin = listen(config.admin.listen, "admin", &mut held).await?;
    let metrics = match config.admin.metrics_listen {
        Some(address) => Some(listen(address, "metrics", &mut held).await?),
        None => None,
    };
    Ok(Listeners { data, admin, metrics })
}

async fn listen(address: SocketAddr, plane: &str, held: &mut Held) -> anyhow::Result<TcpListener> {
    let listener = match held.remove(address) {
        Some(held) => TcpListener::from_std(held),
        None => TcpListener::bind(address).await,
    };
    let listener = listener.with_context(|| format!("the {plane} plane cannot listen on {address}"))?;
    info!(plane, address = %listener.local_addr()?, "listening");
    Ok(listener)
}

async fn run_store(store: Store, mut stops: watch::Receiver<bool>) {
    store.run(http::turned_true(&mut stops)).await;
}

/// Looks at stored files, as fast as the configuration says by now.
async fn run_scrub(store: Store, mut rate: watch::Receiver<Rate>, stops: watch::Receiver<bool>) {
    let work = async {
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
    };
    until(work, stops).await;
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

/// Lets bodies finish for as long as that.
async fn drain_within(limit: Duration, data_plane: &mut JoinSet<()>) {
    match timeout(limit, drain(data_plane)).await {
        Ok(()) => info!("drained"),
        Err(_) => warn!("some bodies did not finish in time and are cut"),
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
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits to be asked to stop.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Answers SIGHUP while berth stops, and never returns.
async fn ignore(hang_up: &mut Signal) {
    while hang_up.recv().await.is_some() {
        warn!("SIGHUP: nothing is reloaded, berth is stopping");
    }
    pending().await
}

/// Tells the supervisor, and whoever asks it, what berth is about.
fn status(text: &str) {
    notify_systemd(&[sd_notify::NotifyState::Status(&text.replace('\n', " "))]);
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
