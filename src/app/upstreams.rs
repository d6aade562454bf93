//! The upstreams in use, and the background work of each.
//!
//! An upstream whose section has not changed stays as it is, with its tokens, connections, circuits and quotas. One that is
//! replaced or taken away is still used by what began with it, such as a transfer under way, and its background work goes
//! on until then.

use std::future::pending;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::info;

use crate::oci::Registry;
use crate::telemetry::Metrics;
use crate::upstream::{self, Event, Upstream};
use crate::watch::{Stamp, stamp};

/// Interval at which it is checked whether an upstream that was replaced is still in use.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// An upstream, and what it was built from.
#[derive(Clone)]
pub(super) struct RunningUpstream {
    config: upstream::Config,
    /// What the files of its certificate authorities looked like when it read them, which it does once.
    stamps: Vec<Option<Stamp>>,
    upstream: Arc<Upstream>,
}

impl RunningUpstream {
    /// The upstream of each section: the one of `before` where nothing has changed, else a new one.
    ///
    /// # Errors
    /// Names the registry and what was expected.
    pub(super) fn build_all(
        configs: &[upstream::Config],
        before: &[Self],
        metrics: &Arc<Metrics>,
    ) -> anyhow::Result<Vec<Self>> {
        let build = |config: &upstream::Config| {
            let stamps: Vec<_> = config.authorities().map(|path| stamp(path).ok()).collect();
            match before.iter().find(|before| before.is_of(config, &stamps)) {
                Some(member) => Ok(Self { config: config.clone(), ..member.clone() }),
                None => Self::build(config, stamps, metrics),
            }
        };
        configs.iter().map(build).collect()
    }

    fn build(
        config: &upstream::Config,
        stamps: Vec<Option<Stamp>>,
        metrics: &Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let metrics = Arc::clone(metrics);
        let observer = move |registry: &Registry, event: Event| observe(&metrics, registry, event);
        let upstream = Upstream::build(config, Arc::new(observer))
            .with_context(|| format!("upstream {}", config.registry))?;
        Ok(Self { config: config.clone(), stamps, upstream })
    }

    fn is_of(&self, config: &upstream::Config, stamps: &[Option<Stamp>]) -> bool {
        self.config.is_same_upstream(config) && self.stamps == *stamps
    }

    /// The upstream itself.
    pub(super) fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// Whether this is the same upstream, not merely one of the same registry.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.upstream, &other.upstream)
    }

    /// Whether both were built from the same section.
    pub(super) fn is_configured_as(&self, other: &Self) -> bool {
        self.config == other.config
    }

    /// The files that its section names and that it does not watch itself, and what they looked like when it was built.
    pub(super) fn files(&self) -> impl Iterator<Item = (PathBuf, Option<Stamp>)> {
        self.config.authorities().cloned().zip(self.stamps.iter().copied())
    }
}

/// The warnings about the configuration of `members`, each once, without those that were true of `before`.
pub(super) fn warnings(members: &[RunningUpstream], before: &[RunningUpstream]) -> Vec<String> {
    let known: Vec<_> = before.iter().flat_map(|member| member.upstream.warnings()).collect();
    let mut warnings = Vec::new();
    for warning in members.iter().flat_map(|member| member.upstream.warnings()) {
        if !known.contains(&warning) && !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }
    warnings
}

/// Every upstream in use, with its background work.
pub(super) struct RunningUpstreams {
    members: Vec<(RunningUpstream, oneshot::Sender<()>)>,
    work: JoinSet<()>,
}

impl RunningUpstreams {
    /// Starts the background work of `members`.
    pub(super) fn launch(members: Vec<RunningUpstream>) -> Self {
        let mut upstreams = Self { members: Vec::new(), work: JoinSet::new() };
        upstreams.replace(members);
        upstreams
    }

    /// The upstreams in use.
    pub(super) fn members(&self) -> Vec<RunningUpstream> {
        self.members.iter().map(|(member, _)| member.clone()).collect()
    }

    /// Puts `members` in use. The work of an upstream that is not among them ends when nothing uses it any more.
    pub(super) fn replace(&mut self, members: Vec<RunningUpstream>) {
        let mut before = std::mem::take(&mut self.members);
        for member in members {
            let known = before.iter().position(|(known, _)| known.is(&member));
            let in_use = match known {
                Some(at) => before.swap_remove(at).1,
                None => {
                    let (in_use, retired) = oneshot::channel();
                    self.work.spawn(run(Arc::clone(&member.upstream), retired));
                    in_use
                }
            };
            self.members.push((member, in_use));
        }
    }

    /// Waits until the work of an upstream dies, which is a fault.
    pub(super) async fn death(&mut self) -> anyhow::Error {
        loop {
            match self.work.join_next().await {
                Some(Err(error)) => return anyhow!(error).context("background work has died"),
                // One that nobody uses any more.
                Some(Ok(())) => {}
                None => pending().await,
            }
        }
    }
}

/// Runs the background work of one upstream until that is out of use.
async fn run(upstream: Arc<Upstream>, retired: oneshot::Receiver<()>) {
    let users = Arc::downgrade(&upstream);
    tokio::select! {
        () = upstream.run(pending()) => {}
        () = out_of_use(&users, retired) => {}
    }
}

async fn out_of_use(users: &Weak<Upstream>, retired: oneshot::Receiver<()>) {
    // Nothing is ever sent: the sender goes with the place in the list.
    let _ = retired.await;
    // The work itself has it, too.
    while users.strong_count() > 1 {
        sleep(CHECK_INTERVAL).await;
    }
    if let Some(upstream) = users.upgrade() {
        info!(registry = %upstream.registry(), "an upstream that was replaced or taken away is let go: nothing uses it any more");
    }
}

/// Counts what happens on the way to an upstream.
fn observe(metrics: &Metrics, registry: &Registry, event: Event) {
    let registry = registry.label();
    match event {
        Event::Ended(outcome) => metrics.upstream_request(registry, outcome.as_str()),
        Event::EndedAtParent(outcome) => metrics.parent_request(registry, outcome.as_str()),
        Event::Hedged => metrics.upstream_hedged(registry),
        Event::Waited(limit) => metrics.upstream_waited(registry, limit.as_str()),
        Event::Refused(limit) => metrics.upstream_refused(registry, limit.as_str()),
        Event::Quota { limit, remaining } => metrics.upstream_quota(registry, limit, remaining),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(config: &upstream::Config, before: &[RunningUpstream]) -> RunningUpstream {
        let built = RunningUpstream::build_all(std::slice::from_ref(config), before, &Arc::default());
        built.unwrap().pop().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_upstream_stays_while_it_is_configured_or_used() {
        let endpoint = "http://127.0.0.1:1".parse().unwrap();
        let mut config = upstream::Config::new(Registry::parse("a.example").unwrap(), vec![endpoint]);
        let mut upstreams = RunningUpstreams::launch(vec![build(&config, &[])]);
        let first = Arc::downgrade(&upstreams.members[0].0.upstream);
        let is_there = async || {
            // Long enough for a check.
            sleep(CHECK_INTERVAL * 3).await;
            first.strong_count() > 0
        };
        config.aliases = vec!["a".to_owned()];
        let member = build(&config, &upstreams.members());
        assert!(member.is(&upstreams.members[0].0), "by another name it is the same");
        upstreams.replace(vec![member]);
        assert!(is_there().await);

        let user = first.upgrade();
        config.realm_hosts = vec![upstream::HostName::parse("b.example").unwrap()];
        let member = build(&config, &upstreams.members());
        assert!(!member.is(&upstreams.members[0].0));
        upstreams.replace(vec![member]);
        assert!(is_there().await, "somebody has it");
        drop(user);
        assert!(!is_there().await);
        assert_eq!(upstreams.members().len(), 1);
    }
}
