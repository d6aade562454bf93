//! The limits of one client: `[http.limits]`, by its address, and `[http.login_limits]`, by its login.
//!
//! A client that asks for more is answered 503 with `Retry-After`, and never 429: containerd answers that with another
//! request at once. Bytes are not refused but slowed down. Nothing of this is set by default, and then costs a request one
//! look at an option.
//!
//! A client is an address, or the 64 bits of an IPv6 network, and where there are logins also a login, from any address; it
//! keeps to the limits of both. Behind a proxy or a load balancer that hides addresses all addresses are one.

use std::net::IpAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::Response;
use hyper::header::{CONNECTION, HeaderValue};
use lru::LruCache;
use serde::Deserialize;

use super::body::Body;
use super::response::{because, later};
use crate::access::networks::client_network;
use crate::bounded;
use crate::context::Login;
use crate::ratelimit::{ByteLimit, Debt, RateLimit};
use crate::sync::lock;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{ClientLimit, Reason};
use crate::units::{ByteRate, PerSecond};

/// Number of clients that are remembered: twice as many as can be connected. The one that has not connected for longest is
/// forgotten first, and begins anew.
const CLIENTS_MAX: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");
/// `Retry-After` of a connection too many: a container runtime closes its own after a pull.
const CONNECTION_RETRY: Duration = Duration::from_secs(5);
/// Steps in a second in which a body is slowed down, so that all of a client's bodies go on.
const STEPS_PER_SECOND: u64 = 4;
/// Bytes of the shortest step: less would cost more than it smoothes.
const STEP_BYTES_MIN: u64 = 16 * 1024;
/// Bytes of the longest step, which is what a body sends at once at most.
const STEP_BYTES_MAX: u64 = 1 << 20;

/// The limits of one client. What is not set is not limited.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Connections at once. Requests on further ones are refused.
    pub connections: Option<NonZeroUsize>,
    /// Requests in a second, over all its connections.
    pub requests_per_second: Option<PerSecond>,
    /// Bytes of bodies in a second, over all its connections.
    pub bytes_per_second: Option<ByteRate>,
}

/// The limits of one login, over all its connections. What is not set is not limited.
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

/// The client that limits are kept for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ClientKey {
    /// All clients at this address.
    Address(IpAddr),
    /// All clients with this login.
    Login(Login),
}

impl ClientKey {
    fn name(&self) -> &'static str {
        match self {
            Self::Address(_) => "address",
            Self::Login(_) => "login",
        }
    }
}

/// The limits of all clients.
pub(crate) struct ClientLimits {
    config: Config,
    clients: Mutex<LruCache<ClientKey, Arc<ClientUsage>>>,
    metrics: Arc<Metrics>,
}

/// What one client takes, over all its connections.
struct ClientUsage {
    /// The word for it in a refusal.
    name: &'static str,
    connections: AtomicUsize,
    requests: Option<RateLimit>,
    bytes: Option<Arc<ByteLimit>>,
}

impl ClientLimits {
    /// The limits of `config`; `None` if it sets none.
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

    /// The handle of `client`, for a connection that begins or a request with a login.
    pub(crate) fn client(self: &Arc<Self>, client: ClientKey) -> Arc<ClientHandle> {
        let Config { connections, requests_per_second, bytes_per_second } = self.config;
        let mut clients = lock(&self.clients);
        let name = client.name();
        let client = clients.get_or_insert(client, || {
            Arc::new(ClientUsage {
                name,
                connections: AtomicUsize::new(0),
                requests: requests_per_second.map(RateLimit::new),
                bytes: bytes_per_second.map(ByteLimit::new),
            })
        });
        let client = Arc::clone(client);
        drop(clients);
        let before = client.connections.fetch_add(1, Ordering::Relaxed);
        let has_place = connections.is_none_or(|max| before < max.get());
        if !has_place {
            client.connections.fetch_sub(1, Ordering::Relaxed);
        }
        let step_bytes = bytes_per_second.map_or(STEP_BYTES_MAX, |ByteRate(bytes)| step(bytes));
        Arc::new(ClientHandle { limits: Arc::clone(self), client, has_place, step_bytes })
    }
}

/// Bytes that a body may send before it waits again.
fn step(per_second: NonZeroU64) -> u64 {
    (per_second.get() / STEPS_PER_SECOND).clamp(STEP_BYTES_MIN, STEP_BYTES_MAX)
}

/// The client of one connection, whose limits may be replaced by a reload.
pub(crate) struct ConnectionClient {
    key: ClientKey,
    handle: Mutex<Option<Arc<ClientHandle>>>,
    /// Whether the connection was accepted while berth stops.
    is_late: AtomicBool,
    /// Whether it has then resumed a blob that was in progress.
    has_resumed: AtomicBool,
}

impl ConnectionClient {
    /// The client of a connection that begins.
    pub(crate) fn new(client: IpAddr, limits: Option<&Arc<ClientLimits>>) -> Self {
        let key = ClientKey::Address(client_network(client));
        let handle = limits.map(|limits| limits.client(key.clone()));
        Self {
            key,
            handle: Mutex::new(handle),
            is_late: AtomicBool::new(false),
            has_resumed: AtomicBool::new(false),
        }
    }

    /// The same, with whether the connection was accepted while berth stops.
    pub(crate) fn late(self, is_late: bool) -> Self {
        Self { is_late: AtomicBool::new(is_late), ..self }
    }

    /// Notes that berth stops before the first request.
    pub(crate) fn set_late(&self) {
        self.is_late.store(true, Ordering::Relaxed);
    }

    /// Whether berth was stopping before the first request.
    pub(crate) fn is_late(&self) -> bool {
        self.is_late.load(Ordering::Relaxed)
    }

    /// Notes that the client resumes a blob that was in progress.
    pub(crate) fn note_resumed(&self) {
        self.has_resumed.store(true, Ordering::Relaxed);
    }

    /// Whether the client has resumed a blob.
    pub(crate) fn has_resumed(&self) -> bool {
        self.has_resumed.load(Ordering::Relaxed)
    }

    /// The client's handle in `limits`, made anew if a reload has replaced the limits.
    pub(crate) fn handle(&self, limits: Option<&Arc<ClientLimits>>) -> Option<Arc<ClientHandle>> {
        let limits = limits?;
        // One connection has one request at a time, so that none waits here.
        let mut handle = lock(&self.handle);
        let known = handle.as_ref().filter(|handle| Arc::ptr_eq(&handle.limits, limits));
        let current = known.map_or_else(|| limits.client(self.key.clone()), Arc::clone);
        *handle = Some(Arc::clone(&current));
        Some(current)
    }
}

/// The share that one connection, or one request, has in the limits of its client.
pub(crate) struct ClientHandle {
    limits: Arc<ClientLimits>,
    client: Arc<ClientUsage>,
    /// Whether it counts among the connections that the client may have.
    has_place: bool,
    step_bytes: u64,
}

impl ClientHandle {
    /// Counts a request. Returns the refusal if it is one too many.
    pub(crate) fn check(&self) -> Option<Response<Body>> {
        if !self.has_place {
            self.limits.metrics.client_limited(ClientLimit::Connections);
            let mut response = later(
                CONNECTION_RETRY,
                &format!("this {} has too many connections to this mirror", self.client.name),
            );
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            return Some(because(Reason::ClientLimit, response));
        }
        let wait = self.client.requests.as_ref()?.take().err()?;
        self.limits.metrics.client_limited(ClientLimit::Requests);
        let refusal = later(wait, &format!("this {} sends this mirror too many requests", self.client.name));
        Some(because(Reason::ClientLimit, refusal))
    }
}

impl Drop for ClientHandle {
    fn drop(&mut self) {
        if self.has_place {
            self.client.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Slows down one body.
pub(crate) struct Throttle {
    clients: Vec<Arc<ClientHandle>>,
    /// What was sent to each of these and is not yet paid for. Empty while that is waited for.
    debts: Vec<Debt>,
    /// Taken from the body and not yet sent.
    rest: Bytes,
    /// Pays the debts, and gives them back.
    paying: Option<Pin<Box<dyn Future<Output = Vec<Debt>> + Send>>>,
}

impl Throttle {
    /// What holds back a body for all that it goes to, if anything does.
    pub(crate) fn of(clients: impl IntoIterator<Item = Arc<ClientHandle>>) -> Option<Box<Self>> {
        let of = |client: Arc<ClientHandle>| Some((Debt::new(client.client.bytes.clone()?), client));
        let (debts, clients): (Vec<_>, Vec<_>) = clients.into_iter().filter_map(of).unzip();
        (!clients.is_empty()).then(|| Box::new(Self { clients, debts, rest: Bytes::new(), paying: None }))
    }

    /// The next bytes of a body that gives its own by `next`.
    pub(crate) fn poll<E>(
        &mut self,
        context: &mut Context<'_>,
        next: impl FnOnce(&mut Context<'_>) -> Poll<Option<Result<Bytes, E>>>,
    ) -> Poll<Option<Result<Bytes, E>>> {
        if let Some(paying) = &mut self.paying {
            self.debts = ready!(paying.as_mut().poll(context));
            self.paying = None;
        }
        if self.rest.is_empty() {
            match ready!(next(context)) {
                Some(Ok(bytes)) => self.rest = bytes,
                end => return Poll::Ready(end),
            }
        }
        let step_bytes = self.clients.iter().map(|client| client.step_bytes).min().unwrap_or(STEP_BYTES_MAX);
        let step = usize::try_from(step_bytes).unwrap_or(usize::MAX).min(self.rest.len());
        let bytes = self.rest.split_to(step);
        let mut unpaid = None;
        for (client, debt) in self.clients.iter().zip(&mut self.debts) {
            if !debt.add(bytes.len() as u64) {
                unpaid = Some(client);
            }
        }
        if let Some(client) = unpaid {
            client.limits.metrics.client_limited(ClientLimit::Bytes);
            let debts = std::mem::take(&mut self.debts);
            self.paying = Some(Box::pin(pay(debts)));
        }
        Poll::Ready(Some(Ok(bytes)))
    }
}

/// Waits until all of `debts` are paid.
async fn pay(mut debts: Vec<Debt>) -> Vec<Debt> {
    for debt in &mut debts {
        debt.pay().await;
    }
    debts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(text: &str) -> Option<Arc<ClientLimits>> {
        ClientLimits::new(&toml::from_str(text).unwrap(), Arc::default())
    }

    #[tokio::test(start_paused = true)]
    async fn each_address_has_limits_of_its_own() {
        assert!(limits("").is_none());
        let limits = limits("connections = 2\nrequests_per_second = 1").unwrap();
        let client =
            |client: &str| limits.client(ClientKey::Address(client_network(client.parse().unwrap())));
        let is_refused = |handle: &ClientHandle| handle.check().is_some();
        let [first, second] = [client("10.0.0.1"), client("::ffff:10.0.0.1")];
        assert!(!is_refused(&first) && is_refused(&second), "they share what one client may ask");
        let third = client("10.0.0.1");
        assert!(!third.has_place && client("10.0.0.2").has_place);
        drop(third);
        assert!(!client("10.0.0.1").has_place, "who was not seated leaves no seat");
        drop(first);
        assert!(client("10.0.0.1").has_place);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!is_refused(&second));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_from_before_keeps_to_the_limits_of_now() {
        let [old, new] = ["connections = 1", "requests_per_second = 1"].map(|text| limits(text).unwrap());
        let client = "10.0.0.1".parse().unwrap();
        let connections = [None, Some(&old), Some(&old)].map(|limits| ConnectionClient::new(client, limits));
        let refused = |limits: &Arc<ClientLimits>| {
            connections.each_ref().map(|client| client.handle(Some(limits)).unwrap().check().is_some())
        };
        assert_eq!(refused(&old), [true, false, true], "in the order in which they were greeted");
        assert_eq!(refused(&new), [false, true, true], "one request for all of them");
        assert_eq!(refused(&old), [false, true, true], "they left their seats");
        assert!(connections.iter().all(|client| client.handle(None).is_none()));
    }

    #[test]
    fn only_so_many_clients_are_remembered() {
        let limits = limits("connections = 1").unwrap();
        for client in 0..40_000_u32 {
            assert!(limits.client(ClientKey::Address(std::net::Ipv4Addr::from(client).into())).has_place);
        }
        assert_eq!(limits.clients.lock().unwrap().len(), CLIENTS_MAX.get());
    }
}
