//! One registry that can be asked: its endpoints, who berth is there, its connections and its limits.
//!
//! A remote is the registry itself, one of its mirrors, or another registry that stands in for it: what it is decides as
//! whose word its answers count ([`Speaker`]), and whether it is told for which registry it is asked ([`Mirror`]). It
//! knows of no other remote: which of several is asked, in which order and when again is not its concern.

use std::borrow::Cow;
use std::sync::Arc;

use tokio::time::Instant;

use crate::oci::{Registry, RepoName, Speaker};
use crate::upstream::client::Client;
use crate::upstream::config::{Config, Endpoint};
use crate::upstream::credential::Credential;
use crate::upstream::identity::Identity;
use crate::upstream::remote::auth::Auth;
use crate::upstream::remote::endpoint::{Endpoints, Server};
use crate::upstream::remote::error::{BuildError, Error};
use crate::upstream::remote::event::{Event, Observer};
use crate::upstream::remote::limits::Limits;
use crate::upstream::remote::mirror::Mirror;
use crate::upstream::remote::redirect::Redirects;
use crate::upstream::remote::rewrite::{self, Rewrite};
use crate::upstream::remote::transport::Sender;

/// One registry that can be asked, under the name that it is asked for.
pub(in crate::upstream) struct Remote {
    registry: Registry,
    shared: Arc<Shared>,
}

/// What it takes to ask; the same for every name that it is asked for.
struct Shared {
    speaker: Speaker,
    endpoints: Endpoints,
    /// Every request says who berth is, with a certificate or with headers of the configuration.
    is_always_known: bool,
    identity: Option<Arc<Identity>>,
    rewrites: Vec<Rewrite>,
    auth: Auth,
    limits: Limits,
    sender: Sender,
}

/// As what a remote is asked.
pub(in crate::upstream) enum Role {
    /// The registry itself.
    Registry,
    /// A mirror of many registries, which is asked before the registry itself.
    Parent(Mirror),
    /// Another registry, which stands in for the registry itself.
    Fallback,
}

impl Role {
    fn speaker(&self) -> Speaker {
        match self {
            Self::Registry => Speaker::Registry,
            Self::Parent(_) => Speaker::Parent,
            Self::Fallback => Speaker::Fallback,
        }
    }

    fn into_mirror(self) -> Option<Mirror> {
        match self {
            Self::Parent(mirror) => Some(mirror),
            Self::Registry | Self::Fallback => None,
        }
    }
}

impl Remote {
    /// A remote with these endpoints, whose indexes begin with `first`. Reads the credentials and certificates that
    /// `config` names, and connects to nothing.
    ///
    /// # Errors
    /// [`BuildError`] when the configuration names something that cannot be used.
    pub(in crate::upstream) fn build(
        role: Role,
        config: &Config,
        (first, endpoints): (usize, &[Endpoint]),
        observer: Observer,
    ) -> Result<Self, BuildError> {
        let identity = config.client_certificate.as_ref().map(Identity::load).transpose()?;
        let credential = Credential::load(config, &observer)?;
        let client = Arc::new(Client::build(config, identity.clone(), observer)?);
        let (hosts, plain_http_hosts) = (config.redirect_hosts.clone(), config.plain_http_hosts.clone());
        let redirects = Redirects::new(hosts, plain_http_hosts);
        let shared = Shared {
            speaker: role.speaker(),
            endpoints: Endpoints::new(first, endpoints, config.limits.reserve),
            is_always_known: config.is_always_known(),
            identity,
            rewrites: config.rewrite.clone(),
            auth: Auth::new(
                (config.registry.clone(), config.realm_hosts.clone()),
                credential,
                Arc::clone(&client),
            ),
            limits: Limits::new(&config.limits, Arc::clone(&client)),
            sender: Sender::new(client, config.headers.clone(), redirects, role.into_mirror()),
        };
        Ok(Self { registry: config.registry.clone(), shared: Arc::new(shared) })
    }

    /// The same remote, asked for another registry, as a mirror of many can be.
    pub(in crate::upstream) fn named(&self, registry: Registry) -> Self {
        Self { registry, shared: Arc::clone(&self.shared) }
    }

    /// The registry that it is asked for.
    pub(in crate::upstream) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// As whose word its answers count.
    pub(in crate::upstream) fn speaker(&self) -> Speaker {
        self.shared.speaker
    }

    /// Its endpoints, in the order of the configuration.
    pub(in crate::upstream) fn endpoints(&self) -> &[Server] {
        self.shared.endpoints.all()
    }

    /// Its endpoints, for the one who probes them.
    pub(in crate::upstream) fn probed(&self) -> &Endpoints {
        &self.shared.endpoints
    }

    /// What is known of it as a mirror of many registries, if it is one.
    pub(in crate::upstream) fn mirror(&self) -> Option<&Mirror> {
        self.shared.sender.mirror()
    }

    /// Whether it is a mirror that has said that it is a berth.
    pub(in crate::upstream) fn is_berth(&self) -> bool {
        self.mirror().is_some_and(Mirror::is_berth)
    }

    /// The certificate that its endpoints are shown, if there is one.
    pub(in crate::upstream) fn identity(&self) -> Option<&Identity> {
        self.shared.identity.as_deref()
    }

    /// Who berth is there.
    pub(in crate::upstream) fn auth(&self) -> &Auth {
        &self.shared.auth
    }

    /// How much may be asked of it.
    pub(in crate::upstream) fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// What requests go out by.
    pub(in crate::upstream) fn sender(&self) -> &Sender {
        &self.shared.sender
    }

    /// The name that a repository has there.
    ///
    /// # Errors
    /// When it would be longer than a name can be.
    pub(in crate::upstream) fn name_there<'a>(&self, name: &'a RepoName) -> Result<Cow<'a, RepoName>, Error> {
        rewrite::at_upstream(&self.shared.rewrites, name)
    }

    /// Whether every request tells it who berth is.
    pub(in crate::upstream) fn is_always_known(&self) -> bool {
        self.shared.is_always_known
    }

    /// Whether nothing tells it who berth is that asks for `name`.
    pub(in crate::upstream) async fn is_public(&self, name: &RepoName) -> bool {
        let Ok(there) = self.name_there(name) else { return false };
        !self.shared.is_always_known && !self.shared.auth.applies_to(&there).await
    }

    /// Whether the configuration says that it is never asked.
    pub(in crate::upstream) fn is_offline(&self) -> bool {
        self.shared.sender.client().is_offline()
    }

    /// Whether it may be asked, and none of its endpoints answers.
    pub(in crate::upstream) fn is_down(&self) -> bool {
        !self.is_offline() && self.are_endpoints_down()
    }

    /// Whether no endpoint answers.
    pub(in crate::upstream) fn are_endpoints_down(&self) -> bool {
        self.endpoints().iter().all(Server::is_down)
    }

    /// Whether an endpoint gives out so few more manifests that they are kept for images never seen.
    pub(in crate::upstream) fn is_short(&self) -> bool {
        self.endpoints().iter().any(Server::is_short)
    }

    /// Whether an endpoint refuses a configured login, so that what needs it is not asked for.
    pub(in crate::upstream) fn refuses_login(&self) -> bool {
        self.endpoints().iter().any(Server::refuses_any)
    }

    /// When a request that begins now must have its answer.
    pub(in crate::upstream) fn deadline(&self) -> Instant {
        Instant::now() + self.shared.sender.client().timeouts.budget
    }

    /// Lets the observer know.
    pub(in crate::upstream) fn tell(&self, event: Event) {
        self.shared.sender.client().tell(event);
    }

    /// What an operator should know of its configuration, though berth can work with it.
    pub(in crate::upstream) fn warnings(&self) -> impl Iterator<Item = String> {
        let of_client = self.shared.sender.client().warnings().iter().cloned();
        self.shared.auth.warning().into_iter().chain(of_client)
    }
}
