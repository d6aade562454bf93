//! A configuration that changes while berth runs.
//!
//! It is read again on SIGHUP, on an order of the admin plane, and when its file changes. What was read is validated
//! whole, and everything that it needs is built, before anything changes. The file must not change meanwhile, must set
//! something, and must not open a listener that is closed: a file that is just being written, or was cut off, is often a
//! valid one. (At the start an empty file is right, like none: it takes nothing away.) Then it is put in the place of the
//! old one: for requests by a single swap, so that each is answered by one of the two. If anything is wrong with it, or
//! something differs that only a restart can change, the old one stays in force, all of it.
//!
//! Requests and transfers under way go on with what they began with. Files that a section names are read when that section
//! is new or has changed; later changes of them are noticed where they are used. Such files may come later than the
//! configuration that names them, so a configuration that was refused is tried again, and that is logged only if the reason
//! has changed.

use std::fs;
use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::Running;
use super::signals::ReloadSignal;
use super::systemd::status;
use super::upstreams::{self, RunningUpstream};
use crate::clock::unix_seconds;
use crate::config::{self, Changes, Config};
use crate::http::admin::{AdminGuard, NotReloaded, ReloadRequest, Reloaded};
use crate::http::{self, RegistryApi, tls};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Reload;
use crate::watch::{Watch, at_rest, stamp};

/// Interval at which a configuration that was refused is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// The cause of such a try, for the log.
const TRIED_AGAIN: &str = "it was refused, and what it names may be there by now";

/// Where a configuration comes from.
pub struct Source {
    path: PathBuf,
    load: Arc<dyn Fn() -> anyhow::Result<Config> + Send + Sync>,
    watch: Watch,
}

impl Source {
    /// The file at `path`, which `load` reads and puts flags and environment over. What happens to it from now on is
    /// noticed, so this comes before it is read for the first time.
    pub fn new(path: PathBuf, load: impl Fn() -> anyhow::Result<Config> + Send + Sync + 'static) -> Self {
        let watch = Watch::new(vec![path.clone()]);
        Self { path, load: Arc::new(load), watch }
    }
}

/// A configuration with all that it needs, loaded and not in use yet.
struct Staged {
    config: Config,
    /// The keys of what is different.
    changed: Vec<String>,
    members: Vec<RunningUpstream>,
    serving: RegistryApi,
    guard: AdminGuard,
    /// The certificate, if it has other files than before.
    tls: Option<tls::Next>,
}

/// What the next configuration must know of the one in force.
struct Before {
    config: Config,
    members: Vec<RunningUpstream>,
    serving: Arc<RegistryApi>,
    metrics: Arc<Metrics>,
}

impl Running {
    /// Reloads whenever it is told to. Returns when the work of an upstream has died, which is a fault. May be dropped at
    /// any time: nothing is changed by halves.
    pub(super) async fn run(
        &mut self,
        hang_up: &mut ReloadSignal,
        ordered: &mut mpsc::Receiver<ReloadRequest>,
    ) -> anyhow::Error {
        self.follow();
        loop {
            let (cause, order) = tokio::select! {
                died = self.upstreams.death() => return died,
                () = file_changed(self.source.as_mut()) => ("its file has changed", None),
                Some(()) = hang_up.recv() => ("SIGHUP", None),
                Some(order) = ordered.recv() => ("the admin plane was told to", Some(order)),
                () = sleep(RETRY_INTERVAL), if self.refusal.is_some() => (TRIED_AGAIN, None),
            };
            let reloaded = self.reload(cause).await;
            if let Some(order) = order {
                // The client that gave it may have gone away.
                let _ = order.send(reloaded);
            }
        }
    }

    async fn reload(&mut self, cause: &str) -> Result<Reloaded, NotReloaded> {
        let Some(source) = &mut self.source else {
            warn!(cause, "nothing is reloaded: {}", NotReloaded::NoFile);
            return Err(NotReloaded::NoFile);
        };
        let at_rest = at_rest(&source.path).await;
        source.watch.look();
        let (load, file) = (Arc::clone(&source.load), source.path.display().to_string());
        let before = Before {
            config: self.config.clone(),
            members: self.upstreams.members(),
            serving: self.data.serving(),
            metrics: Arc::clone(&self.metrics),
        };
        // It reads files, some of which may be on the network.
        let path = source.path.clone();
        let next = spawn_blocking(move || {
            // A pipe could be waited for in vain. At the start it may well be one: it can be read once.
            let is_other = fs::metadata(&path).is_ok_and(|found| !found.is_file());
            ensure!(!is_other, "configuration {file}: expected a regular file");
            let config = load()?;
            ensure!(
                config::has_keys(&path)?,
                "configuration {file}: expected at least one key: a file without any would take back all that the one before says. To run without a configuration, restart berth"
            );
            let next = Staged::build(config, &before).with_context(|| format!("configuration {file}"))?;
            // What was read may else be half of it.
            ensure!(
                at_rest.is_some() && stamp(&path).ok() == at_rest,
                "configuration {file}: expected that it stays as it is while it is read: it is being written"
            );
            Ok(next)
        });
        let next = next.await.unwrap_or_else(|fault| Err(fault.into()));
        let refused_before = self.refusal.take();
        match next {
            Ok(next) if next.changed.is_empty() => {
                self.metrics.configuration.reloaded(Reload::Unchanged, unix_seconds());
                info!(cause, "the configuration was read again: it is the one in force");
                status("the configuration is the one in its file");
                Ok(Reloaded { changed: Vec::new() })
            }
            Ok(next) => {
                let changed = self.apply(next);
                self.metrics.configuration.reloaded(Reload::Applied, unix_seconds());
                info!(cause, changed = changed.join(", "), "the configuration was reloaded");
                status("the configuration was reloaded");
                Ok(Reloaded { changed })
            }
            Err(error) => {
                let error = format!("{error:#}");
                self.refusal = Some(error.clone());
                if cause == TRIED_AGAIN && self.refusal == refused_before {
                    return Err(NotReloaded::Refused(error));
                }
                self.metrics.configuration.reloaded(Reload::Refused, unix_seconds());
                error!(cause, error, "the configuration is refused, and the one before stays in force");
                status(&format!("the configuration was refused: {error}"));
                Err(NotReloaded::Refused(error))
            }
        }
    }

    /// Puts a configuration in place. Returns what is different.
    fn apply(&mut self, next: Staged) -> Vec<String> {
        let Staged { config, changed, members, serving, guard, tls } = next;
        let before = self.upstreams.members();
        for warning in upstreams::warnings(&members, &before) {
            warn!("{warning}");
        }
        self.data.replace(serving);
        self.admin.replace_guard(guard);
        let cache = self.data.cache();
        // First, so that nothing which one of them still says is remembered after that was forgotten.
        for member in before.iter().filter(|member| !is_kept(member, &before, &members)) {
            member.upstream().retire();
        }
        for member in before.iter().chain(&members).filter(|member| !is_kept(member, &before, &members)) {
            cache.forget(member.upstream().registry());
        }
        self.upstreams.replace(members);
        let limits = config.limits();
        if limits != self.config.limits() {
            self.store.set_limits(limits);
        }
        let rate = config.cache.scrub;
        self.scrub_rate.send_if_modified(|current| std::mem::replace(current, rate) != rate);
        if let (Some(current), Some(next)) = (&self.tls, tls) {
            current.replace(next);
        }
        self.config = config;
        self.follow();
        changed
    }

    /// Watches the files of the configuration that are not watched where they are used.
    fn follow(&mut self) {
        let members = self.upstreams.members();
        if let Some(source) = &mut self.source {
            source.watch.follow(members.iter().flat_map(RunningUpstream::files));
        }
    }
}

impl Staged {
    /// Builds what `config` needs, or fails and has changed nothing.
    fn build(config: Config, before: &Before) -> anyhow::Result<Self> {
        let Changes { in_place: mut changed, by_restart } = Changes::between(&before.config, &config);
        ensure!(by_restart.is_empty(), "{}", by_restart.join("; "));
        before.config.check_next(&config)?;
        http::check(&config.http)?;
        let members = RunningUpstream::build_all(&config.all_upstreams(), &before.members, &before.metrics)?;
        // The section is the same, and what it names is not.
        let rebuilt = members.iter().filter(|member| {
            before.members.iter().any(|old| old.is_configured_as(member) && !old.is(member))
        });
        changed
            .extend(rebuilt.map(|member| format!("upstream {}: ca", member.upstream().registry().label())));
        let tls = (config.http.tls != before.config.http.tls)
            .then(|| config.http.tls.clone().map(tls::Next::load))
            .flatten()
            .transpose()?;
        let upstreams = members.iter().map(|member| Arc::clone(member.upstream())).collect();
        let cache = before.serving.cache().with(upstreams, config.rules(), &config.cache);
        let metrics = Arc::clone(&before.metrics);
        let serving = RegistryApi::new(
            cache,
            config.registries().clone(),
            metrics,
            &config.http,
            Some(&before.serving),
        )?;
        let guard = AdminGuard::new(&config.admin, &config.data_dir)?;
        Ok(Self { config, changed, members, serving, guard, tls })
    }
}

fn is_kept(member: &RunningUpstream, before: &[RunningUpstream], now: &[RunningUpstream]) -> bool {
    [before, now].iter().all(|all| all.iter().any(|other| other.is(member)))
}

async fn file_changed(source: Option<&mut Source>) {
    match source {
        Some(source) => source.watch.changed().await,
        None => pending().await,
    }
}
