//! Upstream: everything that berth asks of a registry.
//!
//! One [`Upstream`] per registry: its endpoints in order, its credentials and tokens, its connections, and what is
//! known of its health. It stores nothing; whatever it hands out is what a registry said, checked as far as
//! one answer can be.
//!
//! What it promises:
//! - Berth dials the endpoints, token servers near them, where they redirect to, and the cloud or the Vault that is
//!   configured to have the login (`cloud`, `vault`); never, on an upstream's word, loopback, link-local, private or reserved addresses that
//!   the configuration does not name (`address`, `realm`, `redirect`).
//! - A credential is sent to the endpoint that asked for it (same scheme, host and port) or to a permitted token
//!   server, and nowhere else. It is in no URL, no error, no log line and no `Debug` text (`exchange`, `secret`).
//! - Every wait, body, header, list and retry has a limit; a request has an answer within its budget (`config`, `retry`).
//! - A refusal is believed only if somebody spoke for the registry, and never if it is a store's (`verdict`, `ping`).
//! - An endpoint that is known to be down is asked by a probe only (`circuit`, [`Upstream::run`]); a login that it is
//!   known to refuse is tried by a probe only (`refusals`); an upstream that is offline by configuration is not asked
//!   at all (`client`).
//! - An endpoint that asks to be left alone is, and none is asked more than the operator allows, nor more at once than
//!   it should be, whatever clients ask for (`limit`). A path that answers 503 is left alone for seconds, and no other
//!   for it (`path_pauses`).
//! - What this machine lacks is never held against an endpoint (`error`), and a name server that says nothing holds up
//!   nothing but what needs it (`lookups`).
//! - Every endpoint is told which berths a request has come through. Parents are asked before the registry, each for its
//!   part; no request goes round in a circle, and none waits for itself (`parents`, [`crate::context`]).
//! - What no configuration lists is asked of parents alone, and takes up nothing of its own (`unlisted`).
//! - Fallbacks are asked after the registry's own endpoints, each as who berth is there (`fallback`). An endpoint that is
//!   late with a head has another asked beside it; a body comes from one (`hedge`).
//!
//! Reading order: `config`, `error`, `exchange` (one request to one endpoint), then `manifest`, `blob` and `listing`,
//! which are loops over it.

mod auth;
mod blob;
mod challenge;
mod circuit;
mod client;
mod config;
mod door;
mod error;
mod event;
mod exchange;
mod fallback;
mod hedge;
mod identity;
mod limit;
mod listing;
mod manifest;
mod parents;
mod path_pauses;
mod ping;
mod privacy;
mod quota;
mod realm;
mod redirect;
mod refusals;
mod rename;
mod retry;
mod sameness;
mod server;
mod silence;
#[cfg(test)]
mod tests;
mod token;
mod trial;
mod turns;
mod unlisted;
mod verdict;
mod waits;

use std::future::pending;
use std::ops::Deref;
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

pub(crate) use self::blob::PAGE;
pub use self::blob::{BLOB_BYTES_MAX, BlobStream, Claim};
pub use self::config::{Config, Connections};
pub use self::error::{BuildError, Error, Refusal};
pub use self::event::{Event, Observer, Outcome};
pub use self::fallback::FallbackConfig;
pub use self::limit::{Limit, LimitsConfig};
pub use self::listing::{PageQuery, ReferrerList, TagBody, TagPage, TagStream};
pub use self::manifest::{Fetched, Resolved, Standing, Untold};
pub use self::parents::ParentsConfig;
pub use self::quota::Reserve;
pub use self::rename::Rewrite;
pub use self::retry::Attempts;
pub use self::trial::{Found, Party, Trial};

pub use crate::credentials::{
    AppRole, AzureConfig, CredentialsConfig, EcrConfig, GoogleConfig, InvalidLogins, KubernetesLogin,
    KvVersion, NoLogin, Region, VaultConfig, VaultLogin, VaultPath, VaultProblem,
};
pub use crate::net::{
    Class, ClientCertificate, EndpointUrl as Endpoint, Headers, HostName, InvalidEndpoint, Proxy, Timeouts,
    UserAgent,
};

use self::auth::Auth;
use self::client::Client;
use self::exchange::Ask;
use self::hedge::Hedges;
use self::identity::Identity;
use self::limit::Limits;
use self::parents::{Parents, Peer};
use self::redirect::Redirects;
use self::sameness::Sameness;
use self::server::{Probe, Server};
use crate::credentials::{CredentialSource, docker_config, jwt, login};
use crate::net::guard as address;
use crate::net::{headers, lookups, proxy, secret, user_agent as agent};
use crate::oci::{Registry, Speaker};

/// Probes of one upstream at once: those that hang, and one more.
const PROBES_MAX: usize = 8;

/// Whether an upstream is worth asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Ask it.
    Up,
    /// Use what is known: none of its endpoints answers, and requests fail at once.
    Down,
    /// Use what is known: the configuration forbids to ask, and requests fail at once.
    Offline,
}

/// What an [`Upstream`] is asked as.
enum Role {
    /// The registry, by way of its parents if it has any, and what is asked when its own endpoints have no answer.
    Registry(Option<Arc<Parents>>, Vec<Arc<Upstream>>),
    /// One of the parents.
    Parent(Peer),
    /// One of the fallbacks; the index of its first endpoint.
    Fallback(usize),
}

/// One registry that can be asked.
pub struct Upstream {
    registry: Registry,
    role: Role,
    shared: Arc<Shared>,
}

impl Deref for Upstream {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

/// What it takes to ask; registries that no configuration lists share one.
pub struct Shared {
    /// What it has in common with itself under another name; `None` if it is asked by that name, as mirrors are.
    sameness: Option<Sameness>,
    /// The endpoints of the registry itself; none if only parents are asked.
    servers: Vec<Server>,
    credential: CredentialSource,
    /// Every request says who berth is, with a certificate or with headers of the configuration.
    is_always_known: bool,
    identity: Option<Arc<Identity>>,
    headers: Headers,
    rewrites: Vec<Rewrite>,
    redirects: Redirects,
    connections_per_blob: Connections,
    limits: Limits,
    /// `None` where no endpoint is ever asked beside another.
    hedges: Option<Hedges>,
    auth: Auth,
    client: Arc<Client>,
    /// Wakes the prober when there is something to probe.
    opened: Notify,
    is_retired: AtomicBool,
}

impl Upstream {
    /// Builds the upstream of `config`; reads its credentials and certificates, and connects to nothing.
    ///
    /// # Errors
    /// [`BuildError`] when the configuration names something that cannot be used.
    pub fn build(config: &Config, observer: Observer) -> Result<Arc<Self>, BuildError> {
        let parents = Parents::build(config, &observer)?.map(Arc::new);
        let role = Role::Registry(parents, fallback::build_all(config, &observer)?);
        if config.mirror {
            // It is asked by way of its endpoints, and these have all that is needed.
            let (credentials, client_certificate, headers) = (None, None, Headers::default());
            let config = Config { credentials, client_certificate, headers, ..config.clone() };
            return Self::build_as(role, &config, observer);
        }
        Self::build_as(role, config, observer)
    }

    fn build_as(role: Role, config: &Config, observer: Observer) -> Result<Arc<Self>, BuildError> {
        let registry = config.registry.clone();
        if config.endpoints.is_empty() && !config.asks_only_parents() {
            return Err(BuildError::NoEndpoints { registry });
        }
        let first = match &role {
            Role::Registry(..) => 0,
            Role::Parent(peer) => peer.index(),
            Role::Fallback(first) => *first,
        };
        let endpoints = if config.asks_only_parents() { &[][..] } else { &config.endpoints };
        let servers = (first..).zip(endpoints.iter().cloned());
        let identity = config.client_certificate.as_ref().map(Identity::load).transpose()?;
        let shared = Shared {
            servers: servers
                .map(|(index, endpoint)| Server::new(index, endpoint, config.limits.reserve))
                .collect(),
            credential: client::login_of(config, &observer)?,
            is_always_known: config.is_always_known(),
            client: Arc::new(Client::build(config, identity.clone(), observer)?),
            identity,
            headers: config.headers.clone(),
            rewrites: config.rewrite.clone(),
            redirects: Redirects::new(config),
            connections_per_blob: config.connections_per_blob,
            limits: Limits::new(&config.limits),
            hedges: Hedges::new(endpoints.len(), &config.limits),
            auth: Auth::new(config),
            opened: Notify::new(),
            is_retired: AtomicBool::new(false),
            sameness: Sameness::of(config),
        };
        Ok(Arc::new(Self { registry, role, shared: Arc::new(shared) }))
    }

    /// The name that images carry.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Another takes its place, or none: from now on it is asked for those only who have it already.
    pub fn retire(&self) {
        self.is_retired.store(true, Ordering::Release);
    }

    /// Whether another has taken its place: what it says now says nothing about what that will.
    pub fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Acquire)
    }

    /// Whether it is asked by way of parents, whose answers say whether content is for everybody.
    pub fn has_parents(&self) -> bool {
        self.parents().is_some()
    }

    fn parents(&self) -> Option<&Parents> {
        match &self.role {
            Role::Registry(parents, _) => parents.as_deref(),
            Role::Parent(_) | Role::Fallback(_) => None,
        }
    }

    /// Whether nobody but parents is ever asked for content.
    pub fn has_only_parents(&self) -> bool {
        self.servers.is_empty() && self.fallbacks().is_empty()
    }

    /// As whom it speaks.
    fn speaker(&self) -> Speaker {
        match &self.role {
            Role::Registry(..) => Speaker::Registry,
            Role::Parent(_) => Speaker::Parent,
            Role::Fallback(_) => Speaker::Fallback,
        }
    }

    /// Whether another is the same registry under another name: the endpoints are the same, and so is the login.
    pub fn is_one_with(&self, other: &Self) -> bool {
        self.sameness.is_some() && self.sameness == other.sameness
    }

    /// Whether it is a parent that has said that it is a berth.
    fn is_berth(&self) -> bool {
        self.peer().is_some_and(Peer::is_berth)
    }

    /// What is known of the berth that it is, if it is a parent.
    fn peer(&self) -> Option<&Peer> {
        match &self.role {
            Role::Registry(..) | Role::Fallback(_) => None,
            Role::Parent(peer) => Some(peer),
        }
    }

    /// Connections over which one large blob may be fetched at once.
    pub fn connections_per_blob(&self) -> usize {
        self.connections_per_blob.count()
    }

    /// Whether it is worth asking.
    pub fn state(&self) -> State {
        if self.client.is_offline() {
            State::Offline
        } else if self.is_own_down() && self.are_parents_down() && self.are_fallbacks_down() {
            State::Down
        } else {
            State::Up
        }
    }

    /// Whether no endpoint of its own answers.
    fn is_own_down(&self) -> bool {
        self.servers.iter().all(Server::is_down)
    }

    fn are_parents_down(&self) -> bool {
        let are_down =
            |parents: &Parents| parents.upstreams().iter().all(|parent| parent.state() == State::Down);
        self.parents().is_none_or(are_down)
    }

    /// Whether an endpoint gives out so few more manifests that they are kept for images never seen.
    pub fn is_short(&self) -> bool {
        // Fallbacks are asked about known tags only while nobody else answers.
        let is_left_to_fallbacks = self.is_own_down() && self.are_parents_down();
        self.servers.iter().any(Server::is_short) || is_left_to_fallbacks && self.is_fallback_short()
    }

    /// Whether an endpoint refuses a configured login, so that what needs it is not asked for.
    pub fn is_login_refused(&self) -> bool {
        let by_parent =
            |parents: &Parents| parents.upstreams().iter().any(|parent| parent.is_login_refused());
        let by_own = self.servers.iter().any(Server::refuses_any);
        by_own || self.parents().is_some_and(by_parent) || self.is_login_refused_by_fallback()
    }

    /// Probes endpoints that are down, and logins that are refused, and renews the login if it is one that ends, until
    /// `shutdown`.
    pub async fn run(self: Arc<Self>, shutdown: impl Future<Output = ()>) {
        tokio::select! {
            () = shutdown => {}
            () = self.tend() => {}
            () = self.keep_parents() => {}
            () = self.tend_fallbacks() => {}
        }
    }

    /// As a parent: asks who it is, and looks after its endpoint.
    async fn greet_and_tend(self: Arc<Self>) {
        if let Some(server) = self.servers.first() {
            // Whether it answers does not matter yet.
            let _ = self.answers(server, self.client.timeouts.header).await;
        }
        self.tend().await;
    }

    async fn tend(self: &Arc<Self>) {
        tokio::select! {
            () = self.probe() => {}
            () = self.watch_identity() => {}
            () = self.keep_login() => {}
        }
    }

    async fn keep_parents(&self) {
        match self.parents() {
            Some(parents) => parents.run().await,
            None => pending().await,
        }
    }

    async fn watch_identity(&self) {
        match &self.identity {
            Some(identity) => identity.watch().await,
            None => pending().await,
        }
    }

    async fn keep_login(&self) {
        match self.credential.issued() {
            Some(issued) => issued.keep(&self.client).await,
            None => pending().await,
        }
    }

    /// Begins every probe when it is due, whether or not earlier ones have their answer yet.
    async fn probe(self: &Arc<Self>) {
        let mut probes = JoinSet::new();
        loop {
            let due = self.servers.iter().enumerate();
            let due = due.filter_map(|(index, server)| Some((server.probe_at()?, index)));
            let due = due.min_by_key(|((at, _), _)| *at);
            let Some(((at, probe), index)) = due else {
                self.opened.notified().await;
                continue;
            };
            tokio::select! {
                // Something else went down meanwhile, and may be due before this.
                () = self.opened.notified() => continue,
                // One probe fewer; it may also have changed what is due.
                Some(_) = probes.join_next() => continue,
                () = sleep_until(at), if probes.len() < PROBES_MAX => {}
            }
            self.servers[index].probe_begins(&probe);
            let upstream = Arc::clone(self);
            probes.spawn(async move { upstream.look_at(&upstream.servers[index], probe).await });
        }
    }

    /// One probe, and what it means.
    async fn look_at(&self, server: &Server, probe: Probe) {
        match probe {
            Probe::Up => {
                let begun = Instant::now();
                if self.answers(server, self.client.timeouts.header).await == Some(true) {
                    server.probed(begun.elapsed());
                    server.succeeded();
                }
            }
            Probe::Look => {
                let within = server.look_within().min(self.client.timeouts.header);
                match self.answers(server, within).await {
                    Some(true) => server.acquit(),
                    Some(false) => {
                        server.condemn();
                        self.opened.notify_one();
                    }
                    None => {}
                }
            }
            Probe::Login(identity, name) => {
                let deadline = self.deadline();
                let Ok(there) = rename::at_upstream(&self.rewrites, &name) else { return };
                let Ok(login) = self.login(&there, deadline).await else { return };
                // Without it another login is in force, which has done nothing wrong.
                let Some(login) = login.filter(|login| login.identity() == identity) else {
                    return server.login_accepted(&identity);
                };
                let ask = Ask::login(&name);
                match self.exchange_as(Some(&login), server, &ask, &there, deadline).await {
                    Err(Error::LoginRefused) => server.login_proven_refused(&identity),
                    Ok(_) | Err(Error::NotFound | Error::Denied) => server.login_accepted(&identity),
                    // It says nothing about the login.
                    Err(_) => {}
                }
            }
        }
    }

    /// When a request that begins now must have its answer.
    fn deadline(&self) -> Instant {
        Instant::now() + self.client.timeouts.budget
    }
}

/// Goes on with the panic of a part that has ended with one: work that has died is a fault of the whole.
fn resurface(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && let Ok(panic) = error.try_into_panic()
    {
        panic::resume_unwind(panic);
    }
}
