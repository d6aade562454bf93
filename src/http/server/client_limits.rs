//! What one client may take: `[http.limits]`, by its address, and `[http.login_limits]`, by its login.
//!
//! Who asks for more is answered 503 with `Retry-After`, and never 429: containerd answers that with another request
//! at once. Bytes are not refused but held back. Nothing of this is set by default, and then costs a request one look
//! at an option.
//!
//! A client is an address, of IPv6 the 64 bits of its network, and where there are logins also a login, from wherever it
//! comes; it keeps to the limits of both. Behind a proxy or a load balancer that hides addresses all addresses are one.

use std::net::IpAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::Response;
use hyper::header::{CONNECTION, HeaderValue};
use lru::LruCache;
use serde::Deserialize;
use tokio::time::{Instant, Sleep, sleep_until};

use super::body::Body;
use super::response::{because, later};
use crate::access::networks::client_network;
use crate::bounded;
use crate::context::Login;
use crate::pace::{Pace, PerSecond};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{ClientLimit, Reason};
use crate::units::ByteRate;

/// Clients that are remembered: twice as many as can be connected. The one that has not connected for longest is
/// forgotten first, and begins anew.
const CLIENTS_MAX: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");
/// When to come back for a connection: a container runtime closes its own after a pull.
const CONNECTION_RETRY: Duration = Duration::from_secs(5);
/// A body is held back in so many steps a second, so that all of a client's bodies go on.
const STEPS_PER_SECOND: u64 = 4;
/// The shortest step: less would cost more than it smoothes.
const STEP_BYTES_MIN: u64 = 16 * 1024;
/// The longest step: what a body sends at once at most.
const STEP_BYTES_MAX: u64 = 1 << 20;

/// What one client may take. What is not set is not limited.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Connections at once. Whoever opens more is answered on them, but not served.
    pub connections: Option<NonZeroUsize>,
    /// Requests in a second, over all its connections.
    pub requests_per_second: Option<PerSecond>,
    /// Bytes of bodies in a second, over all its connections.
    pub bytes_per_second: Option<ByteRate>,
}

/// What one login may take, over all its connections. What is not set is not limited.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoginConfig {
    /// Requests in a second.
    pub requests_per_second: Option<PerSecond>,
    /// Bytes of bodies in a second.
    pub bytes_per_second: Option<ByteRate>,
}

impl From<&LoginConfig> for Config {
    fn from(config: &LoginConfig) -> Self {
        let LoginConfig { requests_per_second, bytes_per_second } = *config;
        // A login has no connections of its own: it comes with each request.
        Self { connections: None, requests_per_second, bytes_per_second }
    }
}

/// Whose limits they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    /// All that come from this address.
    Address(IpAddr),
    /// All that come with this login.
    Login(Login),
}

impl Who {
    fn name(&self) -> &'static str {
        match self {
            Self::Address(_) => "address",
            Self::Login(_) => "login",
        }
    }
}

/// The limits of every client.
pub(crate) struct Limits {
    config: Config,
    clients: Mutex<LruCache<Who, Arc<Client>>>,
    metrics: Arc<Metrics>,
}

/// What one client takes, over all its connections.
struct Client {
    /// What it is known by.
    name: &'static str,
    connections: AtomicUsize,
    requests: Option<Pace>,
    bytes: Option<Pace>,
}

impl Limits {
    /// By `config`; none if it sets no limit.
    pub(crate) fn new(config: &Config, metrics: Arc<Metrics>) -> Option<Arc<Self>> {
        let Config { connections, requests_per_second, bytes_per_second } = config;
        let is_set = connections.is_some() || requests_per_second.is_some() || bytes_per_second.is_some();
        let clients = Mutex::new(bounded::lru(CLIENTS_MAX));
        is_set.then(|| Arc::new(Self { config: config.clone(), clients, metrics }))
    }

    /// Whether these are the limits of `config`.
    pub(crate) fn are_of(&self, config: &Config) -> bool {
        self.config == *config
    }

    /// A connection of `client`, or a request of a login, begins.
    pub(crate) fn greet(self: &Arc<Self>, client: Who) -> Arc<Guest> {
        let Config { connections, requests_per_second, bytes_per_second } = self.config;
        // A panic elsewhere leaves the list whole.
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let name = client.name();
        let client = clients.get_or_insert(client, || {
            Arc::new(Client {
                name,
                connections: AtomicUsize::new(0),
                requests: requests_per_second.map(Pace::new),
                bytes: bytes_per_second.map(Pace::of_bytes),
            })
        });
        let client = Arc::clone(client);
        drop(clients);
        let before = client.connections.fetch_add(1, Ordering::Relaxed);
        let is_seated = connections.is_none_or(|max| before < max.get());
        if !is_seated {
            client.connections.fetch_sub(1, Ordering::Relaxed);
        }
        let step_bytes = bytes_per_second.map_or(STEP_BYTES_MAX, |ByteRate(bytes)| step(bytes));
        Arc::new(Guest { limits: Arc::clone(self), client, is_seated, step_bytes })
    }
}

/// Bytes that a body may send before it waits again.
fn step(per_second: NonZeroU64) -> u64 {
    (per_second.get() / STEPS_PER_SECOND).clamp(STEP_BYTES_MIN, STEP_BYTES_MAX)
}

/// One connection, and what its client may take by the limits that there are.
pub(crate) struct Visit {
    client: Who,
    guest: Mutex<Option<Arc<Guest>>>,
    /// Whether it came while berth stops.
    is_late: AtomicBool,
    /// Whether it has gone on with what was under way then.
    has_gone_on: AtomicBool,
}

impl Visit {
    /// A connection of `client` begins.
    pub(crate) fn begin(client: IpAddr, limits: Option<&Arc<Limits>>) -> Self {
        let client = Who::Address(client_network(client));
        let guest = limits.map(|limits| limits.greet(client.clone()));
        Self {
            client,
            guest: Mutex::new(guest),
            is_late: AtomicBool::new(false),
            has_gone_on: AtomicBool::new(false),
        }
    }

    /// The same, which came while berth stops, if so.
    pub(crate) fn late(self, is_late: bool) -> Self {
        Self { is_late: AtomicBool::new(is_late), ..self }
    }

    /// Berth stops before its first request.
    pub(crate) fn be_late(&self) {
        self.is_late.store(true, Ordering::Relaxed);
    }

    /// Whether it did.
    pub(crate) fn is_late(&self) -> bool {
        self.is_late.load(Ordering::Relaxed)
    }

    /// It goes on with what was under way.
    pub(crate) fn go_on(&self) {
        self.has_gone_on.store(true, Ordering::Relaxed);
    }

    /// Whether it has.
    pub(crate) fn has_gone_on(&self) -> bool {
        self.has_gone_on.load(Ordering::Relaxed)
    }

    /// Who it is by these limits: others may have come with a new configuration.
    pub(crate) fn guest(&self, limits: Option<&Arc<Limits>>) -> Option<Arc<Guest>> {
        let limits = limits?;
        // It is replaced whole. One connection has one request at a time, so that nobody waits here.
        let mut guest = self.guest.lock().unwrap_or_else(PoisonError::into_inner);
        let known = guest.as_ref().filter(|guest| Arc::ptr_eq(&guest.limits, limits));
        let current = known.map_or_else(|| limits.greet(self.client.clone()), Arc::clone);
        *guest = Some(Arc::clone(&current));
        Some(current)
    }
}

/// The client of one connection.
pub(crate) struct Guest {
    limits: Arc<Limits>,
    client: Arc<Client>,
    /// Whether it is one of the connections that the client may have.
    is_seated: bool,
    step_bytes: u64,
}

impl Guest {
    /// What a request that is too much is answered with.
    pub(crate) fn refuse(&self) -> Option<Response<Body>> {
        if !self.is_seated {
            self.limits.metrics.client_limited(ClientLimit::Connections);
            let mut response = later(
                CONNECTION_RETRY,
                &format!("this {} has too many connections to this mirror", self.client.name),
            );
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            return Some(because(Reason::ClientLimit, response));
        }
        let now = Instant::now();
        let wait = self.client.requests.as_ref()?.take(1, now, now).err()?;
        self.limits.metrics.client_limited(ClientLimit::Requests);
        let refusal = later(wait, &format!("this {} sends this mirror too many requests", self.client.name));
        Some(because(Reason::ClientLimit, refusal))
    }

    /// Takes its part of a body: when it may have the next.
    fn take(&self, bytes: u64, now: Instant) -> Option<Instant> {
        let turn = self.client.bytes.as_ref()?.owe(bytes, now);
        (turn > now).then_some(turn)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if self.is_seated {
            self.client.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Holds back one body.
pub(crate) struct Brake {
    guests: Vec<Arc<Guest>>,
    /// Taken from the body and not yet sent.
    rest: Bytes,
    wait: Option<Pin<Box<Sleep>>>,
}

impl Brake {
    /// What holds back a body for all that it goes to, if anything does.
    pub(crate) fn of(guests: impl IntoIterator<Item = Arc<Guest>>) -> Option<Box<Self>> {
        let guests: Vec<_> = guests.into_iter().filter(|guest| guest.client.bytes.is_some()).collect();
        (!guests.is_empty()).then(|| Box::new(Self { guests, rest: Bytes::new(), wait: None }))
    }

    /// The next bytes of a body that gives its own by `next`.
    pub(crate) fn poll<E>(
        &mut self,
        context: &mut Context<'_>,
        next: impl FnOnce(&mut Context<'_>) -> Poll<Option<Result<Bytes, E>>>,
    ) -> Poll<Option<Result<Bytes, E>>> {
        if let Some(wait) = &mut self.wait {
            ready!(wait.as_mut().poll(context));
            self.wait = None;
        }
        if self.rest.is_empty() {
            match ready!(next(context)) {
                Some(Ok(bytes)) => self.rest = bytes,
                end => return Poll::Ready(end),
            }
        }
        let step_bytes = self.guests.iter().map(|guest| guest.step_bytes).min().unwrap_or(STEP_BYTES_MAX);
        let step = usize::try_from(step_bytes).unwrap_or(usize::MAX).min(self.rest.len());
        let bytes = self.rest.split_to(step);
        let now = Instant::now();
        let turns =
            self.guests.iter().filter_map(|guest| Some((guest.take(bytes.len() as u64, now)?, guest)));
        if let Some((turn, guest)) = turns.max_by_key(|(turn, _)| *turn) {
            guest.limits.metrics.client_limited(ClientLimit::Bytes);
            self.wait = Some(Box::pin(sleep_until(turn)));
        }
        Poll::Ready(Some(Ok(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(text: &str) -> Option<Arc<Limits>> {
        Limits::new(&toml::from_str(text).unwrap(), Arc::default())
    }

    #[tokio::test(start_paused = true)]
    async fn each_address_has_limits_of_its_own() {
        assert!(limits("").is_none());
        let limits = limits("connections = 2\nrequests_per_second = 1").unwrap();
        let greet = |client: &str| limits.greet(Who::Address(client_network(client.parse().unwrap())));
        let is_refused = |guest: &Guest| guest.refuse().is_some();
        let [first, second] = [greet("10.0.0.1"), greet("::ffff:10.0.0.1")];
        assert!(!is_refused(&first) && is_refused(&second), "they share what one client may ask");
        let third = greet("10.0.0.1");
        assert!(!third.is_seated && greet("10.0.0.2").is_seated);
        drop(third);
        assert!(!greet("10.0.0.1").is_seated, "who was not seated leaves no seat");
        drop(first);
        assert!(greet("10.0.0.1").is_seated);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!is_refused(&second));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_from_before_keeps_to_the_limits_of_now() {
        let [old, new] = ["connections = 1", "requests_per_second = 1"].map(|text| limits(text).unwrap());
        let client = "10.0.0.1".parse().unwrap();
        let visits = [None, Some(&old), Some(&old)].map(|limits| Visit::begin(client, limits));
        let refused = |limits: &Arc<Limits>| {
            visits.each_ref().map(|visit| visit.guest(Some(limits)).unwrap().refuse().is_some())
        };
        assert_eq!(refused(&old), [true, false, true], "in the order in which they were greeted");
        assert_eq!(refused(&new), [false, true, true], "one request for all of them");
        assert_eq!(refused(&old), [false, true, true], "they left their seats");
        assert!(visits.iter().all(|visit| visit.guest(None).is_none()));
    }

    #[test]
    fn only_so_many_clients_are_remembered() {
        let limits = limits("connections = 1").unwrap();
        for client in 0..40_000_u32 {
            assert!(limits.greet(Who::Address(std::net::Ipv4Addr::from(client).into())).is_seated);
        }
        assert_eq!(limits.clients.lock().unwrap().len(), CLIENTS_MAX.get());
    }
}
