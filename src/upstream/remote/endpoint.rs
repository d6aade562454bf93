//! One endpoint at run time: whether it is up, whether it takes our logins, and how it wants to be asked.

mod circuit;
mod evidence;
pub(in crate::upstream) mod latency;
pub(in crate::upstream) mod path_pauses;
pub(in crate::upstream) mod pull_quota;
mod rejected_logins;
mod unanswered;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Response;
use hyper::body::Incoming;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use crate::oci::{Digest, RepoName};
use crate::sync::lock;
use crate::upstream::config::Endpoint;
use crate::upstream::login::Identity;
use crate::upstream::remote::auth::Scheme;
use crate::upstream::remote::endpoint::circuit::Circuit;
use crate::upstream::remote::endpoint::evidence::Evidence;
use crate::upstream::remote::endpoint::latency::{Waits, late_after};
use crate::upstream::remote::endpoint::path_pauses::PathPauses;
use crate::upstream::remote::endpoint::pull_quota::{Quota, Reading, Reserve};
use crate::upstream::remote::endpoint::rejected_logins::Refusals;
use crate::upstream::remote::endpoint::unanswered::Unanswered;
use crate::upstream::remote::error::Error;
use crate::upstream::remote::message::is_portal;

/// It is left alone for so long at most, whatever it asks for: a mistaken date must not lame it for days, and one
/// request in an hour is a burden to nobody.
const REST_MAX: Duration = Duration::from_secs(3600);

/// Most answers are here long before. One that is not may be about one image: Docker Hub's slowest take four seconds.
const SILENCE_MIN: Duration = Duration::from_millis(1500);
/// A registry says at once that it is there.
const LOOK_MIN: Duration = Duration::from_secs(1);
/// A line on which everything takes long, such as a satellite's, is not taken for silent.
const USUAL_TIMES: u32 = 3;
/// The same for one that has never answered, of which nobody can tell what is usual. Together they are below the three
/// seconds within which a failure is to be told; a look by way of a satellite takes nearly two.
const SILENCE_FIRST: Duration = Duration::from_secs(1);
const LOOK_FIRST: Duration = Duration::from_millis(1900);

/// From so many answers on it is known which is late; before, connections are still to be made.
const LATE_ANSWERS_MIN: usize = 8;

/// What an endpoint is probed for.
pub(in crate::upstream) enum Probe {
    /// Whether it answers again.
    Up,
    /// Whether it still answers, which somebody doubts.
    Look,
    /// Whether it takes this login, which is for this repository among others.
    Login(Identity, RepoName),
}

/// The endpoints of one registry, in order, and what wakes the one who probes them.
pub(in crate::upstream) struct Endpoints {
    all: Vec<Server>,
    /// Notified when there is something to probe.
    due: Arc<Notify>,
}

impl Endpoints {
    /// Endpoints of which nothing is known; their indexes begin with `first`.
    pub(in crate::upstream) fn new(first: usize, endpoints: &[Endpoint], reserve: Reserve) -> Self {
        let due = Arc::<Notify>::default();
        let endpoints = (first..).zip(endpoints.iter().cloned());
        let server = |(index, endpoint)| Server::new(index, endpoint, reserve, Arc::clone(&due));
        Self { all: endpoints.map(server).collect(), due }
    }

    /// All of them, in the order of the configuration.
    pub(in crate::upstream) fn all(&self) -> &[Server] {
        &self.all
    }

    /// The probe that is due first, when, and the position of its endpoint; `None` while all is well.
    pub(in crate::upstream) fn next_probe(&self) -> Option<(Instant, Probe, usize)> {
        let probes = self.all.iter().enumerate();
        let probes = probes.filter_map(|(at, server)| server.probe_at().map(|(due, probe)| (due, probe, at)));
        probes.min_by_key(|(due, ..)| *due)
    }

    /// Waits until there is something new to probe.
    pub(in crate::upstream) fn changed(&self) -> Notified<'_> {
        self.due.notified()
    }
}

/// An endpoint and what was learned about it.
pub(in crate::upstream) struct Server {
    index: usize,
    endpoint: Endpoint,
    /// Wakes whoever probes the endpoints of the registry.
    due: Arc<Notify>,
    circuit: Mutex<Circuit>,
    /// Why it last gave no usable answer.
    trouble: Mutex<Option<Arc<str>>>,
    waits: Mutex<Waits>,
    /// Tells those who wait for it that a look has found it of no use.
    condemned: Notify,
    /// Tells those who wait for it that a look has found nothing wrong with it.
    acquitted: Notify,
    /// Until when it wants to be left alone.
    rests_until: Mutex<Option<Instant>>,
    paused: Mutex<PathPauses>,
    quota: Mutex<Quota>,
    refusals: Mutex<Refusals>,
    scheme: Mutex<Option<Scheme>>,
    evidence: Evidence,
    unanswered: Mutex<Unanswered>,
    /// Until when it is not asked again how it takes a login, since it asks for none.
    open_until: Mutex<Option<Instant>>,
}

impl Server {
    /// An endpoint of which nothing is known.
    pub(in crate::upstream) fn new(
        index: usize,
        endpoint: Endpoint,
        reserve: Reserve,
        due: Arc<Notify>,
    ) -> Self {
        let (circuit, rests_until, refusals) = (Mutex::default(), Mutex::default(), Mutex::default());
        let (quota, scheme) = (Mutex::new(Quota::new(reserve)), Mutex::default());
        let (waits, condemned, paused) = (Mutex::default(), Notify::new(), Mutex::default());
        let (acquitted, evidence) = (Notify::new(), Evidence::default());
        let unanswered = Mutex::default();
        let open_until = Mutex::default();
        let trouble = Mutex::default();
        Self {
            index,
            endpoint,
            due,
            circuit,
            trouble,
            waits,
            condemned,
            acquitted,
            rests_until,
            paused,
            quota,
            refusals,
            scheme,
            evidence,
            unanswered,
            open_until,
        }
    }

    /// Its place in the configuration.
    pub(in crate::upstream) fn index(&self) -> usize {
        self.index
    }

    /// Whether it is a registry that answers there.
    pub(in crate::upstream) fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// Where it is.
    pub(in crate::upstream) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Whether clients should leave it alone.
    pub(in crate::upstream) fn is_down(&self) -> bool {
        lock(&self.circuit).is_open()
    }

    /// Notes an answer.
    pub(in crate::upstream) fn succeeded(&self) {
        if lock(&self.circuit).succeed() {
            tracing::info!(endpoint = %self.endpoint, "an upstream endpoint answers again");
        }
    }

    /// Notes that it did not answer, and why. After several times in a row it counts as down.
    pub(in crate::upstream) fn failed(&self, cause: &Error) {
        *lock(&self.trouble) = Some(cause.to_string().into());
        let opened = lock(&self.circuit).fail(Instant::now(), &mut fastrand::Rng::new());
        if opened {
            tracing::warn!(endpoint = %self.endpoint, %cause, "an upstream endpoint does not answer: only probes ask it now");
            self.due.notify_one();
        }
    }

    /// Notes that a look has had no usable answer, and why, for whoever will be told of it. Always says so itself.
    pub(in crate::upstream) fn is_useless(&self, cause: &str) -> Option<bool> {
        *lock(&self.trouble) = Some(cause.into());
        Some(false)
    }

    /// Notes whether it answered a request, and after what time. A 5xx may be about one image or repository: a look at it
    /// decides. What this machine lacks says nothing about it.
    pub(in crate::upstream) fn heard(&self, sent: &Result<Response<Incoming>, Error>, wait: Duration) {
        match sent {
            Ok(response) if matches!(response.status().as_u16(), 502..=504) => return self.doubt(),
            // Says nothing about the server; `doubt` finds out.
            Ok(response) if response.status().is_server_error() || is_portal(response) => return,
            Err(Error::Local { .. } | Error::Busy { .. }) => return,
            Err(error @ (Error::Timeout | Error::Unreachable { .. })) => return self.failed(error),
            Ok(_) | Err(_) => {}
        }
        self.waited(wait);
        self.succeeded();
    }

    /// Notes how long it took until the head of an answer was here.
    pub(in crate::upstream) fn waited(&self, wait: Duration) {
        lock(&self.waits).note(wait);
    }

    /// For how long a request waits before the endpoint is doubted.
    pub(in crate::upstream) fn patience(&self) -> Duration {
        let usual = lock(&self.waits).usual();
        usual.map_or(SILENCE_FIRST, |usual| (usual * USUAL_TIMES).max(SILENCE_MIN))
    }

    /// After how long an answer is late. A few that are known tell nothing yet.
    pub(in crate::upstream) fn late_after(&self) -> Duration {
        let waits = lock(&self.waits);
        late_after(waits.usual().filter(|_| waits.count() >= LATE_ANSWERS_MIN))
    }

    /// Within what it answers a look if it is of any use.
    pub(in crate::upstream) fn look_within(&self) -> Duration {
        let usual = lock(&self.waits).usual();
        usual.map_or(LOOK_FIRST, |usual| (usual * USUAL_TIMES).max(LOOK_MIN))
    }

    /// Notes how long it took to answer a probe: that is how it is known at all, if it is slow in everything.
    pub(in crate::upstream) fn probed(&self, wait: Duration) {
        let mut waits = lock(&self.waits);
        if waits.usual().is_none() {
            waits.note(wait);
        }
    }

    /// Has it looked at: it may be of no use at all.
    pub(in crate::upstream) fn doubt(&self) {
        if lock(&self.circuit).doubt(Instant::now()) {
            self.due.notify_one();
        }
    }

    /// Waits until a look has found it of no use.
    pub(in crate::upstream) fn condemned(&self) -> Notified<'_> {
        self.condemned.notified()
    }

    /// Notes that a look has found it of no use.
    pub(in crate::upstream) fn condemn(&self) {
        if lock(&self.circuit).condemn(Instant::now(), &mut fastrand::Rng::new()) {
            let cause = lock(&self.trouble).clone();
            tracing::warn!(endpoint = %self.endpoint, cause = cause.as_deref(), "an upstream endpoint gives no usable answer to anything: only probes ask it now");
        }
        self.condemned.notify_waiters();
        self.due.notify_one();
    }

    /// Waits until a look has found nothing wrong with it.
    pub(in crate::upstream) fn acquitted(&self) -> Notified<'_> {
        self.acquitted.notified()
    }

    /// Notes that a look has found nothing wrong with it.
    pub(in crate::upstream) fn acquit(&self) {
        self.acquitted.notify_waiters();
    }

    /// Whether it refuses this login, as far as clients are concerned.
    pub(in crate::upstream) fn refuses(&self, login: &Identity) -> bool {
        lock(&self.refusals).is_refused(login)
    }

    /// Whether it refuses any login.
    pub(in crate::upstream) fn refuses_any(&self) -> bool {
        lock(&self.refusals).is_any_refused()
    }

    /// Notes that it refused a login when `name` was asked for. After several times in a row a probe asks what it means.
    pub(in crate::upstream) fn login_refused(&self, login: Identity, name: &RepoName) {
        if lock(&self.refusals).refused(login, name, Instant::now(), &mut fastrand::Rng::new()) {
            self.due.notify_one();
        }
    }

    /// Notes that it takes a login, or is asked with it no more.
    pub(in crate::upstream) fn login_accepted(&self, login: &Identity) {
        if lock(&self.refusals).clear(login) {
            tracing::info!(endpoint = %self.endpoint, "an upstream endpoint takes the configured login again");
        }
    }

    /// Notes that it refuses a login, whatever is asked for.
    pub(in crate::upstream) fn login_proven_refused(&self, login: &Identity) {
        if lock(&self.refusals).proven(login) {
            tracing::warn!(endpoint = %self.endpoint, "an upstream endpoint refuses the configured login: only probes use it now");
        }
    }

    /// What to probe next, and when; `None` while all is well.
    pub(in crate::upstream) fn probe_at(&self) -> Option<(Instant, Probe)> {
        let circuit = lock(&self.circuit);
        let up = circuit.probe_at().map(|at| (at, if circuit.is_open() { Probe::Up } else { Probe::Look }));
        drop(circuit);
        let login = lock(&self.refusals).probe_at().map(|(at, login, name)| (at, Probe::Login(login, name)));
        up.into_iter().chain(login).min_by_key(|(at, _)| *at)
    }

    /// Notes that a probe begins.
    pub(in crate::upstream) fn probe_begins(&self, probe: &Probe) {
        let (now, random) = (Instant::now(), &mut fastrand::Rng::new());
        match probe {
            Probe::Up | Probe::Look => lock(&self.circuit).probe_begins(now, random),
            Probe::Login(login, _) => lock(&self.refusals).probe_begins(login, now, random),
        }
    }

    /// Notes that it asks to be left alone for so long.
    pub(in crate::upstream) fn rest(&self, wait: Duration) {
        let until = Instant::now() + wait.min(REST_MAX);
        let before = lock(&self.rests_until).replace(until);
        if before.is_none_or(|before| before < Instant::now()) {
            tracing::warn!(endpoint = %self.endpoint, seconds = wait.as_secs(), "an upstream endpoint asks to be left alone");
        }
    }

    /// For how long it still wants to be left alone, if it does.
    pub(in crate::upstream) fn rests_for(&self) -> Option<Duration> {
        let left = (*lock(&self.rests_until))?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// Whether a request for `path` may be sent.
    ///
    /// # Errors
    /// For how long the path is left alone.
    pub(in crate::upstream) fn check_path(&self, path: &str) -> Result<(), Duration> {
        lock(&self.paused).check(path, Instant::now())
    }

    /// Notes that `path` asks to be left alone for so long. That says nothing about other paths.
    pub(in crate::upstream) fn pause_path(&self, path: &str, wait: Duration) {
        if lock(&self.paused).pause(path, wait, Instant::now()) {
            tracing::warn!(endpoint = %self.endpoint, path, seconds = wait.as_secs(), "an upstream endpoint answers 503 for a path: that path alone is left alone, for some seconds");
        }
    }

    /// Notes that `path` answers.
    pub(in crate::upstream) fn path_answers(&self, path: &str) {
        lock(&self.paused).end(path);
    }

    /// What it said a moment ago, if it does not answer what refers to this manifest.
    pub(in crate::upstream) fn says_nothing_of(&self, name: &RepoName, digest: &Digest) -> Option<Error> {
        lock(&self.unanswered).check(name, digest, Instant::now())
    }

    /// Notes for so long that it does not answer what refers to this manifest.
    pub(in crate::upstream) fn said_nothing_of(
        &self,
        name: &RepoName,
        digest: &Digest,
        said: Error,
        wait: Duration,
    ) {
        lock(&self.unanswered).note(name, digest, said, Instant::now() + wait);
    }

    /// Takes one of the manifests that it still gives out, until the answer is here.
    ///
    /// # Errors
    /// When to try again, if there is none left.
    pub(in crate::upstream) fn spend(&self) -> Result<Spent<'_>, Duration> {
        lock(&self.quota).spend(Instant::now()).map(|()| Spent(self))
    }

    /// Notes what the answer to a request that was sent at `sent_at` says of its quota; true if it is news.
    pub(in crate::upstream) fn hear(&self, reading: Reading, sent_at: Instant) -> bool {
        let now = Instant::now();
        let mut quota = lock(&self.quota);
        let was_short = quota.is_short(now);
        let is_news = quota.hear(reading, sent_at, now);
        let is_short = quota.is_short(now);
        drop(quota);
        let Reading { limit, remaining, .. } = reading;
        match (was_short, is_short) {
            (false, true) => {
                tracing::warn!(endpoint = %self.endpoint, limit, remaining, "an upstream's quota is down to its reserve: tags that are known are served as they are");
            }
            (true, false) => {
                tracing::info!(endpoint = %self.endpoint, limit, remaining, "an upstream's quota is above its reserve again");
            }
            (false, false) | (true, true) => {}
        }
        is_news
    }

    /// Notes that it gives out no more.
    pub(in crate::upstream) fn exhausted(&self) {
        lock(&self.quota).exhausted(Instant::now());
    }

    /// Whether what is left of its quota is for images never seen.
    pub(in crate::upstream) fn is_short(&self) -> bool {
        lock(&self.quota).is_short(Instant::now())
    }

    /// How it asked to be asked.
    pub(in crate::upstream) fn scheme(&self) -> Option<Scheme> {
        lock(&self.scheme).clone()
    }

    /// Notes how it asks to be asked; with `None`, it is to be asked without anything again.
    pub(in crate::upstream) fn learn(&self, scheme: Option<Scheme>) {
        *lock(&self.scheme) = scheme;
    }

    /// Whether it was found a while ago to ask for no login.
    pub(in crate::upstream) fn is_known_open(&self) -> bool {
        lock(&self.open_until).is_some_and(|until| Instant::now() < until)
    }

    /// Notes that it asks for no login, which is believed for so long.
    pub(in crate::upstream) fn found_open(&self, time: Duration) {
        *lock(&self.open_until) = Some(Instant::now() + time);
    }
}

/// One of an endpoint's quota, spent on a request that is under way.
pub(in crate::upstream) struct Spent<'a>(&'a Server);

impl Drop for Spent<'_> {
    fn drop(&mut self) {
        lock(&self.0.quota).answered();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_late_is_known_from_some_answers_on() {
        let server =
            Server::new(0, Endpoint::parse("https://h").unwrap(), Reserve::default(), Arc::default());
        let (unknown, usual) = (server.late_after(), Duration::from_secs(3));
        (1..LATE_ANSWERS_MIN).for_each(|_| server.waited(usual));
        assert_eq!(server.late_after(), unknown);
        server.waited(usual);
        assert_eq!(server.late_after(), usual);
    }
}
