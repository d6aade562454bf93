//! Upstream: everything that berth asks of a registry.
//!
//! One [`Upstream`] per registry: its endpoints in order, its credentials and tokens, its connections, and what is
//! known of its health. It stores nothing; whatever it hands out is what a registry said, checked as far as
//! one answer can be.
//!
//! What it promises:
//! - Berth dials the endpoints, token servers near them, and where they redirect to; never, on their word, loopback,
//!   link-local, private or reserved addresses that the configuration does not name (`address`, `realm`, `redirect`).
//! - A credential is sent to the endpoint that asked for it (same scheme, host and port) or to a permitted token
//!   server, and nowhere else. It is in no URL, no error, no log line and no `Debug` text (`exchange`, `secret`).
//! - Every wait, body, header, list and retry has a limit; a request has an answer within its budget (`config`, `retry`).
//! - An endpoint that is known to be down is asked by a probe only (`circuit`, [`Upstream::run`]); a login that it is
//!   known to refuse is tried by a probe only (`refusals`); an upstream that is offline by configuration is not asked
//!   at all (`client`).
//!
//! Reading order: `config`, `error`, `exchange` (one request to one endpoint), then `manifest`, `blob` and `listing`,
//! which are loops over it.

mod address;
mod auth;
mod blob;
mod challenge;
mod circuit;
mod client;
mod config;
mod credentials;
mod error;
mod exchange;
mod listing;
mod login;
mod manifest;
mod realm;
mod redirect;
mod refusals;
mod retry;
mod secret;
mod server;
#[cfg(test)]
mod tests;
mod token;

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http::header::{ACCEPT_ENCODING, USER_AGENT};
use http_body_util::Full;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

pub use self::address::Class;
pub use self::blob::BlobStream;
pub use self::config::{
    Config, Connections, CredentialsConfig, Endpoint, HostName, InvalidEndpoint, Timeouts,
};
pub use self::error::{BuildError, Error, Refusal};
pub use self::listing::TagPage;
pub use self::manifest::{Fetched, Resolved};

use self::auth::Auth;
use self::client::{Client, Way};
use self::credentials::Credentials;
use self::exchange::Ask;
use self::server::{Probe, Server};
use crate::oci::{Registry, RepoName};

/// Probes of one upstream at once: those that hang, and one more.
const PROBES_MAX: usize = 8;

/// Hears of every HTTP request that is sent to an upstream, its token servers and redirect targets included.
pub type Observer = Arc<dyn Fn(&Registry, Outcome) + Send + Sync>;

/// How one HTTP request to an upstream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 2xx or a redirect.
    Ok,
    /// 404.
    NotFound,
    /// 401, also one that only asks for a login, or 403.
    Denied,
    /// 429.
    Limited,
    /// Any other status, or no connection.
    Error,
    /// No answer in time.
    Timeout,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 6] =
        [Self::Ok, Self::NotFound, Self::Denied, Self::Limited, Self::Error, Self::Timeout];

    /// Its name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::Limited => "limited",
            Self::Error => "error",
            Self::Timeout => "timeout",
        }
    }
}

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

/// One registry that can be asked.
pub struct Upstream {
    registry: Registry,
    servers: Vec<Server>,
    credentials: Credentials,
    has_credentials: bool,
    redirect_hosts: Vec<HostName>,
    connections_per_blob: Connections,
    auth: Auth,
    client: Client,
    /// Wakes the prober when there is something to probe.
    opened: Notify,
}

impl Upstream {
    /// Builds the upstream of `config`; reads its credentials and certificates, and connects to nothing.
    ///
    /// # Errors
    /// [`BuildError`] when the configuration names something that cannot be used.
    pub fn build(config: &Config, observer: Observer) -> Result<Arc<Self>, BuildError> {
        let registry = config.registry.clone();
        if config.endpoints.is_empty() {
            return Err(BuildError::NoEndpoints { registry });
        }
        let servers = config.endpoints.iter().cloned().enumerate();
        Ok(Arc::new(Self {
            servers: servers.map(|(index, endpoint)| Server::new(index, endpoint)).collect(),
            credentials: Credentials::load(config.credentials.as_ref(), &registry)?,
            has_credentials: config.credentials.is_some(),
            redirect_hosts: config.redirect_hosts.clone(),
            connections_per_blob: config.connections_per_blob,
            auth: Auth::new(config),
            client: Client::build(config, observer)?,
            opened: Notify::new(),
            registry,
        }))
    }

    /// The name that images carry.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Whether no credential applies to `name`, so that anybody could have fetched what comes from it.
    pub async fn is_public(&self, name: &RepoName) -> bool {
        self.credentials.find(name).await.is_none()
    }

    /// Whether credentials are configured, for some repository at least.
    pub fn has_credentials(&self) -> bool {
        self.has_credentials
    }

    /// Connections over which one large blob may be fetched at once.
    pub fn connections_per_blob(&self) -> usize {
        self.connections_per_blob.count()
    }

    /// Whether it is worth asking.
    pub fn state(&self) -> State {
        if self.client.is_offline() {
            State::Offline
        } else if self.servers.iter().all(Server::is_down) {
            State::Down
        } else {
            State::Up
        }
    }

    /// Whether an endpoint refuses a configured login, so that what needs it is not asked for.
    pub fn is_login_refused(&self) -> bool {
        self.servers.iter().any(Server::refuses_any)
    }

    /// Probes endpoints that are down, and logins that are refused, until `shutdown`.
    pub async fn run(self: Arc<Self>, shutdown: impl Future<Output = ()>) {
        tokio::select! {
            () = shutdown => {}
            () = self.probe() => {}
        }
    }

    /// Begins every probe when it is due, whether or not earlier ones have their answer yet.
    async fn probe(self: &Arc<Self>) {
        let mut probes = JoinSet::new();
        loop {
            let due = self.servers.iter().filter_map(|server| Some((server.probe_at()?, server.index())));
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
                if self.answers(server).await {
                    server.succeeded();
                }
            }
            Probe::Login(identity, name) => {
                let login = self.credentials.find(&name).await.filter(|login| login.identity() == identity);
                // Without it another login is in force, which has done nothing wrong.
                let Some(login) = login else { return server.login_accepted(&identity) };
                let ask = Ask::login(&name);
                match self.exchange_as(Some(&login), server, &ask, self.deadline()).await {
                    Err(Error::LoginRefused) => server.login_proven_refused(&identity),
                    Ok(_) | Err(Error::NotFound | Error::Denied) => server.login_accepted(&identity),
                    // It says nothing about the login.
                    Err(_) => {}
                }
            }
        }
    }

    /// Whether an endpoint says anything that is not the error of a gateway or of a broken server.
    async fn answers(&self, server: &Server) -> bool {
        let request = Request::get(server.endpoint().at("", None).as_str())
            .header(USER_AGENT, exchange::AGENT)
            .header(ACCEPT_ENCODING, "identity")
            .body(Full::new(Bytes::new()));
        let Ok(request) = request else { return false };
        let answer = self.client.send(Way::Direct, request, self.client.timeouts.header).await;
        answer.is_ok_and(|response| !response.status().is_server_error())
    }

    /// When a request that begins now must have its answer.
    fn deadline(&self) -> Instant {
        Instant::now() + self.client.timeouts.budget
    }
}
