//! One endpoint at run time: whether it is up, whether it takes our logins, and how it wants to be asked.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::auth::Scheme;
use super::circuit::Circuit;
use super::config::Endpoint;
use super::login::Identity;
use super::refusals::Refusals;
use crate::oci::RepoName;

/// What an endpoint is probed for.
pub(super) enum Probe {
    /// Whether it answers.
    Up,
    /// Whether it takes this login, which is for this repository among others.
    Login(Identity, RepoName),
}

/// An endpoint and what was learned about it.
pub(super) struct Server {
    index: usize,
    endpoint: Endpoint,
    circuit: Mutex<Circuit>,
    refusals: Mutex<Refusals>,
    scheme: Mutex<Option<Scheme>>,
}

impl Server {
    /// An endpoint of which nothing is known.
    pub(super) fn new(index: usize, endpoint: Endpoint) -> Self {
        let (circuit, refusals) = (Mutex::default(), Mutex::default());
        Self { index, endpoint, circuit, refusals, scheme: Mutex::default() }
    }

    /// Its place in the configuration.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// Where it is.
    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Whether clients should leave it alone.
    pub(super) fn is_down(&self) -> bool {
        lock(&self.circuit).is_open()
    }

    /// Notes an answer.
    pub(super) fn succeeded(&self) {
        if lock(&self.circuit).succeed() {
            tracing::info!(endpoint = %self.endpoint, "an upstream endpoint answers again");
        }
    }

    /// Notes that it did not answer; true if it now counts as down.
    pub(super) fn failed(&self) -> bool {
        let opened = lock(&self.circuit).fail(Instant::now(), &mut fastrand::Rng::new());
        if opened {
            tracing::warn!(endpoint = %self.endpoint, "an upstream endpoint does not answer: only probes ask it now");
        }
        opened
    }

    /// Whether it refuses this login, as far as clients are concerned.
    pub(super) fn refuses(&self, login: &Identity) -> bool {
        lock(&self.refusals).is_refused(login)
    }

    /// Whether it refuses any login.
    pub(super) fn refuses_any(&self) -> bool {
        lock(&self.refusals).is_any_refused()
    }

    /// Notes that it refused a login when `name` was asked for; true if it now is to be asked what it means.
    pub(super) fn login_refused(&self, login: Identity, name: &RepoName) -> bool {
        lock(&self.refusals).refused(login, name, Instant::now(), &mut fastrand::Rng::new())
    }

    /// Notes that it takes a login, or is asked with it no more.
    pub(super) fn login_accepted(&self, login: &Identity) {
        if lock(&self.refusals).clear(login) {
            tracing::info!(endpoint = %self.endpoint, "an upstream endpoint takes the configured login again");
        }
    }

    /// Notes that it refuses a login, whatever is asked for.
    pub(super) fn login_proven_refused(&self, login: &Identity) {
        if lock(&self.refusals).proven(login) {
            tracing::warn!(endpoint = %self.endpoint, "an upstream endpoint refuses the configured login: only probes use it now");
        }
    }

    /// What to probe next, and when; `None` while all is well.
    pub(super) fn probe_at(&self) -> Option<(Instant, Probe)> {
        let up = lock(&self.circuit).probe_at().map(|at| (at, Probe::Up));
        let login = lock(&self.refusals).probe_at().map(|(at, login, name)| (at, Probe::Login(login, name)));
        up.into_iter().chain(login).min_by_key(|(at, _)| *at)
    }

    /// Notes that a probe begins.
    pub(super) fn probe_begins(&self, probe: &Probe) {
        let (now, random) = (Instant::now(), &mut fastrand::Rng::new());
        match probe {
            Probe::Up => lock(&self.circuit).probe_begins(now, random),
            Probe::Login(login, _) => lock(&self.refusals).probe_begins(login, now, random),
        }
    }

    /// How it asked to be asked.
    pub(super) fn scheme(&self) -> Option<Scheme> {
        lock(&self.scheme).clone()
    }

    /// Notes how it asks to be asked; with `None`, it is to be asked without anything again.
    pub(super) fn learn(&self, scheme: Option<Scheme>) {
        *lock(&self.scheme) = scheme;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // These values are replaced whole, never half.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
