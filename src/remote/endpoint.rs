//! One endpoint at run time: whether it is up, how fast it answers, whether it takes our logins, which authentication it
//! asks for, and how much it gives out.

mod circuit;
mod evidence;
pub(crate) mod latency;
pub(crate) mod path_pauses;
pub(crate) mod pull_quota;
mod rejected_logins;
mod unanswered;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Response;
use hyper::body::Incoming;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use crate::credentials::login::Fingerprint;
use crate::net::EndpointUrl;
use crate::oci::{Digest, RepoName};
use crate::remote::auth::Scheme;
use crate::remote::endpoint::circuit::Circuit;
use crate::remote::endpoint::evidence::Evidence;
use crate::remote::endpoint::latency::{LatencyWindow, late_after};
use crate::remote::endpoint::path_pauses::PathPauses;
use crate::remote::endpoint::pull_quota::{Quota, QuotaReading, Reserve};
use crate::remote::endpoint::rejected_logins::RejectedLogins;
use crate::remote::endpoint::unanswered::Unanswered;
use crate::remote::error::Error;
use crate::remote::message::is_portal;
use crate::sync::lock;

/// The longest time for which an endpoint is left alone, whatever it asks for: a mistaken date must not disable it for
/// days, and one request in an hour is a burden to nobody.
const REST_MAX: Duration = Duration::from_secs(3600);

/// The shortest silence after which an endpoint is suspected, once its latency is known. Most answers come long before;
/// a slow one may be about one image: Docker Hub's slowest take four seconds.
const SILENCE_MIN: Duration = Duration::from_millis(1500);
/// The shortest time that a suspected endpoint has to answer `GET /v2/`, once its latency is known: a registry answers
/// that at once.
const LOOK_MIN: Duration = Duration::from_secs(1);
/// How many times the usual latency an endpoint may stay silent, so that a line on which everything takes long, such as a
/// satellite's, is not taken for dead.
const USUAL_TIMES: u32 = 3;
/// The same two times for an endpoint that has never answered, whose usual latency is not known. Together they are below
/// the three seconds within which a failure must be reported; `GET /v2/` by way of a satellite takes nearly two.
const SILENCE_FIRST: Duration = Duration::from_secs(1);
const LOOK_FIRST: Duration = Duration::from_millis(1900);

/// Latencies that are needed before the p95 is used; earlier ones include the set-up of connections.
const LATE_ANSWERS_MIN: usize = 8;

/// What a probe of an endpoint is to find out.
pub(crate) enum Probe {
    /// Whether the endpoint, which is down, answers again.
    Up,
    /// Whether the endpoint, which is suspected, still answers.
    Look,
    /// Whether the endpoint takes this login, which is for this repository among others.
    Login(Fingerprint, RepoName),
}

/// The endpoints of one remote, in order, and what wakes the task that probes them.
pub(crate) struct Endpoints {
    all: Vec<Endpoint>,
    /// Notified when there is something to probe.
    due: Arc<Notify>,
}

impl Endpoints {
    /// New endpoints at these URLs; their indexes begin with `first`.
    pub(crate) fn new(first: usize, endpoints: &[EndpointUrl], reserve: Reserve) -> Self {
        let due = Arc::<Notify>::default();
        let endpoints = (first..).zip(endpoints.iter().cloned());
        let endpoint = |(index, endpoint)| Endpoint::new(index, endpoint, reserve, Arc::clone(&due));
        Self { all: endpoints.map(endpoint).collect(), due }
    }

    /// All endpoints, in the order of the configuration.
    pub(crate) fn all(&self) -> &[Endpoint] {
        &self.all
    }

    /// The next probe, when it is due, and the position of its endpoint; `None` while all is well.
    pub(crate) fn next_probe(&self) -> Option<(Instant, Probe, usize)> {
        let probes = self.all.iter().enumerate();
        let probes =
            probes.filter_map(|(at, endpoint)| endpoint.probe_at().map(|(due, probe)| (due, probe, at)));
        probes.min_by_key(|(due, ..)| *due)
    }

    /// Waits until there is something new to probe.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.due.notified()
    }
}

/// One endpoint, and what is known of it.
pub(crate) struct Endpoint {
    index: usize,
    url: EndpointUrl,
    /// Wakes the task that probes the endpoints of the remote.
    due: Arc<Notify>,
    circuit: Mutex<Circuit>,
    /// Why the endpoint last gave no usable answer.
    trouble: Mutex<Option<Arc<str>>>,
    latencies: Mutex<LatencyWindow>,
    /// Notified when a probe has found the endpoint of no use.
    marked_down: Notify,
    /// Notified when a probe has found nothing wrong with the endpoint.
    cleared: Notify,
    /// Until when the endpoint wants to be left alone.
    rests_until: Mutex<Option<Instant>>,
    paused: Mutex<PathPauses>,
    quota: Mutex<Quota>,
    rejected_logins: Mutex<RejectedLogins>,
    scheme: Mutex<Option<Scheme>>,
    evidence: Evidence,
    unanswered: Mutex<Unanswered>,
    /// Until when the endpoint is not asked again how it takes a login, because it asks for none.
    open_until: Mutex<Option<Instant>>,
}

impl Endpoint {
    /// An endpoint of which nothing is known yet. `due` wakes the task that probes it.
    pub(crate) fn new(index: usize, url: EndpointUrl, reserve: Reserve, due: Arc<Notify>) -> Self {
        Self {
            index,
            url,
            due,
            circuit: Mutex::default(),
            trouble: Mutex::default(),
            latencies: Mutex::default(),
            marked_down: Notify::new(),
            cleared: Notify::new(),
            rests_until: Mutex::default(),
            paused: Mutex::default(),
            quota: Mutex::new(Quota::new(reserve)),
            rejected_logins: Mutex::default(),
            scheme: Mutex::default(),
            evidence: Evidence::default(),
            unanswered: Mutex::default(),
            open_until: Mutex::default(),
        }
    }

    /// The position of the endpoint in the configuration.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// What is known of who answers there, a registry or something in its place.
    pub(crate) fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// The URL of the endpoint.
    pub(crate) fn url(&self) -> &EndpointUrl {
        &self.url
    }

    /// Whether the endpoint is down, so that only probes ask it.
    pub(crate) fn is_down(&self) -> bool {
        lock(&self.circuit).is_open()
    }

    /// Records that the endpoint has answered.
    pub(crate) fn succeeded(&self) {
        if lock(&self.circuit).succeed() {
            tracing::info!(endpoint = %self.url, "an upstream endpoint answers again");
        }
    }

    /// Records that the endpoint did not answer, and why. After several times in a row it counts as down.
    pub(crate) fn failed(&self, cause: &Error) {
        *lock(&self.trouble) = Some(cause.to_string().into());
        let opened = lock(&self.circuit).fail(Instant::now(), &mut fastrand::Rng::new());
        if opened {
            tracing::warn!(endpoint = %self.url, %cause, "an upstream endpoint does not answer: only probes ask it now");
            self.due.notify_one();
        }
    }

    /// Records why a probe has had no usable answer, for the log. Returns `Some(false)`, the result of such a probe.
    pub(crate) fn is_useless(&self, cause: &str) -> Option<bool> {
        *lock(&self.trouble) = Some(cause.into());
        Some(false)
    }

    /// Records whether the endpoint answered a request, and after what time. A 5xx may be about one image or repository, so
    /// a probe decides. What this machine lacks says nothing about the endpoint.
    pub(crate) fn heard(&self, sent: &Result<Response<Incoming>, Error>, wait: Duration) {
        match sent {
            Ok(response) if matches!(response.status().as_u16(), 502..=504) => return self.suspect(),
            // That says nothing about the endpoint; a caller that suspects it finds out.
            Ok(response) if response.status().is_server_error() || is_portal(response) => return,
            Err(Error::Local { .. } | Error::Busy { .. }) => return,
            Err(error @ (Error::Timeout | Error::Unreachable { .. })) => return self.failed(error),
            Ok(_) | Err(_) => {}
        }
        self.waited(wait);
        self.succeeded();
    }

    /// Records how long the head of an answer took.
    pub(crate) fn waited(&self, wait: Duration) {
        lock(&self.latencies).note(wait);
    }

    /// For how long a request waits before the endpoint is suspected.
    pub(crate) fn patience(&self) -> Duration {
        let usual = lock(&self.latencies).usual();
        usual.map_or(SILENCE_FIRST, |usual| (usual * USUAL_TIMES).max(SILENCE_MIN))
    }

    /// After how long an answer is late. A few known latencies tell nothing yet.
    pub(crate) fn late_after(&self) -> Duration {
        let latencies = lock(&self.latencies);
        late_after(latencies.usual().filter(|_| latencies.count() >= LATE_ANSWERS_MIN))
    }

    /// Within what time the endpoint answers `GET /v2/` if it is of any use.
    pub(crate) fn look_within(&self) -> Duration {
        let usual = lock(&self.latencies).usual();
        usual.map_or(LOOK_FIRST, |usual| (usual * USUAL_TIMES).max(LOOK_MIN))
    }

    /// Records how long a probe took, if no latency is known yet: an endpoint that is slow in everything has no other.
    pub(crate) fn probed(&self, wait: Duration) {
        let mut latencies = lock(&self.latencies);
        if latencies.usual().is_none() {
            latencies.note(wait);
        }
    }

    /// Suspects that the endpoint is of no use at all, so that a probe finds out.
    pub(crate) fn suspect(&self) {
        if lock(&self.circuit).suspect(Instant::now()) {
            self.due.notify_one();
        }
    }

    /// Waits until a probe has found the endpoint of no use.
    pub(crate) fn marked_down(&self) -> Notified<'_> {
        self.marked_down.notified()
    }

    /// Marks the endpoint down: a probe has found it of no use.
    pub(crate) fn mark_down(&self) {
        if lock(&self.circuit).mark_down(Instant::now(), &mut fastrand::Rng::new()) {
            let cause = lock(&self.trouble).clone();
            tracing::warn!(endpoint = %self.url, cause = cause.as_deref(), "an upstream endpoint gives no usable answer to anything: only probes ask it now");
        }
        self.marked_down.notify_waiters();
        self.due.notify_one();
    }

    /// Waits until a probe has found nothing wrong with the endpoint.
    pub(crate) fn cleared(&self) -> Notified<'_> {
        self.cleared.notified()
    }

    /// Records that a probe has found nothing wrong with the endpoint.
    pub(crate) fn clear_suspicion(&self) {
        self.cleared.notify_waiters();
    }

    /// Whether the endpoint is known to reject this login, so that only probes send it.
    pub(crate) fn refuses(&self, login: &Fingerprint) -> bool {
        lock(&self.rejected_logins).is_refused(login)
    }

    /// Whether the endpoint is known to reject any login.
    pub(crate) fn refuses_any(&self) -> bool {
        lock(&self.rejected_logins).is_any_refused()
    }

    /// Records that the endpoint rejected `login` for `name`. After several times in a row a probe finds out whether it
    /// rejects the login for everything.
    pub(crate) fn login_refused(&self, login: Fingerprint, name: &RepoName) {
        if lock(&self.rejected_logins).refused(login, name, Instant::now(), &mut fastrand::Rng::new()) {
            self.due.notify_one();
        }
    }

    /// Records that the endpoint takes `login`, or is sent it no longer.
    pub(crate) fn login_accepted(&self, login: &Fingerprint) {
        if lock(&self.rejected_logins).clear(login) {
            tracing::info!(endpoint = %self.url, "an upstream endpoint takes the configured login again");
        }
    }

    /// Records that a probe has found `login` rejected, whatever is asked for.
    pub(crate) fn login_proven_refused(&self, login: &Fingerprint) {
        if lock(&self.rejected_logins).proven(login) {
            tracing::warn!(endpoint = %self.url, "an upstream endpoint refuses the configured login: only probes use it now");
        }
    }

    /// The next probe, and when it is due; `None` while all is well.
    pub(crate) fn probe_at(&self) -> Option<(Instant, Probe)> {
        let circuit = lock(&self.circuit);
        let up = circuit.probe_at().map(|at| (at, if circuit.is_open() { Probe::Up } else { Probe::Look }));
        drop(circuit);
        let login =
            lock(&self.rejected_logins).probe_at().map(|(at, login, name)| (at, Probe::Login(login, name)));
        up.into_iter().chain(login).min_by_key(|(at, _)| *at)
    }

    /// Records that a probe begins.
    pub(crate) fn probe_begins(&self, probe: &Probe) {
        let (now, random) = (Instant::now(), &mut fastrand::Rng::new());
        match probe {
            Probe::Up | Probe::Look => lock(&self.circuit).probe_begins(now, random),
            Probe::Login(login, _) => lock(&self.rejected_logins).probe_begins(login, now, random),
        }
    }

    /// Leaves the endpoint alone for the time that it asks for.
    pub(crate) fn back_off(&self, wait: Duration) {
        let until = Instant::now() + wait.min(REST_MAX);
        let before = lock(&self.rests_until).replace(until);
        if before.is_none_or(|before| before < Instant::now()) {
            tracing::warn!(endpoint = %self.url, seconds = wait.as_secs(), "an upstream endpoint asks to be left alone");
        }
    }

    /// For how much longer the endpoint is left alone; `None` if it is not.
    pub(crate) fn rests_for(&self) -> Option<Duration> {
        let left = (*lock(&self.rests_until))?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// Checks whether a request for `path` may be sent.
    ///
    /// # Errors
    /// For how much longer the path is left alone.
    pub(crate) fn check_path(&self, path: &str) -> Result<(), Duration> {
        lock(&self.paused).check(path, Instant::now())
    }

    /// Leaves `path` alone for this time, as its answer asks. That says nothing about other paths.
    pub(crate) fn pause_path(&self, path: &str, wait: Duration) {
        if lock(&self.paused).pause(path, wait, Instant::now()) {
            tracing::warn!(endpoint = %self.url, path, seconds = wait.as_secs(), "an upstream endpoint answers 503 for a path: that path alone is left alone, for some seconds");
        }
    }

    /// Records that `path` answers, so that it is left alone no longer.
    pub(crate) fn path_answers(&self, path: &str) {
        lock(&self.paused).end(path);
    }

    /// What the endpoint said a moment ago, if it does not know what refers to this manifest.
    pub(crate) fn says_nothing_of(&self, name: &RepoName, digest: &Digest) -> Option<Error> {
        lock(&self.unanswered).check(name, digest, Instant::now())
    }

    /// Remembers for this time that the endpoint does not know what refers to this manifest, and what it `said`.
    pub(crate) fn said_nothing_of(&self, name: &RepoName, digest: &Digest, said: Error, wait: Duration) {
        lock(&self.unanswered).note(name, digest, said, Instant::now() + wait);
    }

    /// Takes one of the pulls that are left of the quota, until the answer is here.
    ///
    /// # Errors
    /// After how long to try again, if none is left.
    pub(crate) fn acquire(&self) -> Result<Spent<'_>, Duration> {
        lock(&self.quota).acquire(Instant::now()).map(|()| Spent(self))
    }

    /// Records what the answer to a request that was sent at `sent_at` says of the quota. Returns whether that is news.
    pub(crate) fn update_quota(&self, reading: QuotaReading, sent_at: Instant) -> bool {
        let now = Instant::now();
        let mut quota = lock(&self.quota);
        let was_short = quota.is_short(now);
        let is_news = quota.update(reading, sent_at, now);
        let is_short = quota.is_short(now);
        drop(quota);
        let QuotaReading { limit, remaining, .. } = reading;
        match (was_short, is_short) {
            (false, true) => {
                tracing::warn!(endpoint = %self.url, limit, remaining, "an upstream's quota is down to its reserve: tags that are known are served as they are");
            }
            (true, false) => {
                tracing::info!(endpoint = %self.url, limit, remaining, "an upstream's quota is above its reserve again");
            }
            (false, false) | (true, true) => {}
        }
        is_news
    }

    /// Records that nothing is left of the quota.
    pub(crate) fn exhausted(&self) {
        lock(&self.quota).exhausted(Instant::now());
    }

    /// Whether what is left of the quota is kept for images never seen.
    pub(crate) fn is_short(&self) -> bool {
        lock(&self.quota).is_short(Instant::now())
    }

    /// The authentication scheme that the endpoint asks for, as far as it is known.
    pub(crate) fn scheme(&self) -> Option<Scheme> {
        lock(&self.scheme).clone()
    }

    /// Remembers the authentication scheme that the endpoint asks for; `None` forgets it.
    pub(crate) fn set_scheme(&self, scheme: Option<Scheme>) {
        *lock(&self.scheme) = scheme;
    }

    /// Whether the endpoint was found a while ago to ask for no login.
    pub(crate) fn is_known_open(&self) -> bool {
        lock(&self.open_until).is_some_and(|until| Instant::now() < until)
    }

    /// Records that the endpoint asks for no login, which is believed for this time.
    pub(crate) fn found_open(&self, time: Duration) {
        *lock(&self.open_until) = Some(Instant::now() + time);
    }
}

/// One pull of an endpoint's quota, taken for a request that is under way until this is dropped.
pub(crate) struct Spent<'a>(&'a Endpoint);

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
        let endpoint =
            Endpoint::new(0, EndpointUrl::parse("https://h").unwrap(), Reserve::default(), Arc::default());
        let (unknown, usual) = (endpoint.late_after(), Duration::from_secs(3));
        (1..LATE_ANSWERS_MIN).for_each(|_| endpoint.waited(usual));
        assert_eq!(endpoint.late_after(), unknown);
        endpoint.waited(usual);
        assert_eq!(endpoint.late_after(), usual);
    }
}
