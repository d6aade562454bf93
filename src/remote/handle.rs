//! A remote: its endpoints, how berth logs in there, its connections and its limits.
//!
//! A remote is the registry itself, one of its mirrors, or another registry that stands in for it: what it is decides as
//! whose word its answers count ([`Speaker`]), and whether it is told for which registry it is asked ([`Mirror`]). It
//! knows of no other remote: which of several is asked, in which order and when again is not its concern.

use std::borrow::Cow;
use std::sync::Arc;

use tokio::time::Instant;

use crate::credentials::CredentialSource;
use crate::net::client_certificate::WatchedCertificate;
use crate::net::headers::Headers;
use crate::net::{EndpointUrl, HostName};
use crate::oci::{Registry, RepoName, Speaker};
use crate::remote::auth::Auth;
use crate::remote::client::Client;
use crate::remote::endpoint::{Endpoint, Endpoints};
use crate::remote::error::Error;
use crate::remote::event::Event;
use crate::remote::limits::{Limits, LimitsConfig};
use crate::remote::mirror::Mirror;
use crate::remote::redirect::Redirects;
use crate::remote::rewrite::{self, Rewrite};
use crate::remote::transport::Transport;

/// One remote, and the registry that it is asked for. Cheap to name anew.
pub(crate) struct Remote {
    registry: Registry,
    shared: Arc<Shared>,
}

/// What it takes to ask; the same for every registry that it is asked for.
struct Shared {
    speaker: Speaker,
    endpoints: Endpoints,
    /// Whether every request tells who berth is, by a certificate or by headers of the configuration.
    is_always_known: bool,
    identity: Option<Arc<WatchedCertificate>>,
    rewrites: Vec<Rewrite>,
    auth: Auth,
    limits: Limits,
    transport: Transport,
}

/// As what a remote is asked.
pub(crate) enum Role {
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

/// What a remote is made of.
pub(crate) struct Settings {
    /// The registry that it is asked for, near which its token servers are.
    pub(crate) registry: Registry,
    /// Where its logins come from.
    pub(crate) credential: CredentialSource,
    /// Its connections.
    pub(crate) client: Client,
    /// The certificate that its endpoints are shown.
    pub(crate) identity: Option<Arc<WatchedCertificate>>,
    /// Whether every request tells who berth is, by a certificate or by headers.
    pub(crate) is_always_known: bool,
    /// Headers that its endpoints are sent besides.
    pub(crate) headers: Headers,
    /// Names that repositories have there.
    pub(crate) rewrites: Vec<Rewrite>,
    /// Where it may redirect to.
    pub(crate) redirects: Redirects,
    /// Token servers outside of the registry's own domain.
    pub(crate) realm_hosts: Vec<HostName>,
    /// How much may be asked of it.
    pub(crate) limits: LimitsConfig,
}

impl Remote {
    /// A remote with these endpoints, whose indexes begin with `first`.
    pub(crate) fn new(role: Role, settings: Settings, (first, endpoints): (usize, &[EndpointUrl])) -> Self {
        let Settings { registry, credential, client, identity, is_always_known, .. } = settings;
        let (client, realms) = (Arc::new(client), (registry.clone(), settings.realm_hosts));
        let shared = Shared {
            speaker: role.speaker(),
            endpoints: Endpoints::new(first, endpoints, settings.limits.reserve),
            is_always_known,
            identity,
            rewrites: settings.rewrites,
            auth: Auth::new(realms, credential, Arc::clone(&client)),
            limits: Limits::new(&settings.limits, Arc::clone(&client)),
            transport: Transport::new(client, settings.headers, settings.redirects, role.into_mirror()),
        };
        Self { registry, shared: Arc::new(shared) }
    }

    /// The same remote, asked for another registry, as a mirror of many can be.
    pub(crate) fn named(&self, registry: Registry) -> Self {
        Self { registry, shared: Arc::clone(&self.shared) }
    }

    /// The registry that it is asked for.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// As whose word its answers count.
    pub(crate) fn speaker(&self) -> Speaker {
        self.shared.speaker
    }

    /// Its endpoints, in the order of the configuration.
    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        self.shared.endpoints.all()
    }

    /// Its endpoints, for the task that probes them.
    pub(crate) fn probed(&self) -> &Endpoints {
        &self.shared.endpoints
    }

    /// What is known of it as a mirror of many registries, if it is one.
    pub(crate) fn mirror(&self) -> Option<&Mirror> {
        self.shared.transport.mirror()
    }

    /// Whether it is a mirror that has said that it is a berth.
    pub(crate) fn is_berth(&self) -> bool {
        self.mirror().is_some_and(Mirror::is_berth)
    }

    /// The certificate that its endpoints are shown, if there is one.
    pub(crate) fn identity(&self) -> Option<&WatchedCertificate> {
        self.shared.identity.as_deref()
    }

    /// How berth logs in there.
    pub(crate) fn auth(&self) -> &Auth {
        &self.shared.auth
    }

    /// How much may be asked of it.
    pub(crate) fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// What its requests go out by.
    pub(crate) fn transport(&self) -> &Transport {
        &self.shared.transport
    }

    /// The name that a repository has there.
    ///
    /// # Errors
    /// When it would be longer than a name can be.
    pub(crate) fn name_there<'a>(&self, name: &'a RepoName) -> Result<Cow<'a, RepoName>, Error> {
        rewrite::at_upstream(&self.shared.rewrites, name)
    }

    /// Whether every request tells it who berth is.
    pub(crate) fn is_always_known(&self) -> bool {
        self.shared.is_always_known
    }

    /// Whether requests for `name` do not tell it who berth is, so that anybody could have what comes from it.
    pub(crate) async fn is_public(&self, name: &RepoName) -> bool {
        let Ok(there) = self.name_there(name) else { return false };
        !self.shared.is_always_known && !self.shared.auth.applies_to(&there).await
    }

    /// Whether the configuration says that it is never asked.
    pub(crate) fn is_offline(&self) -> bool {
        self.shared.transport.client().is_offline()
    }

    /// Whether it may be asked, and none of its endpoints answers.
    pub(crate) fn is_down(&self) -> bool {
        !self.is_offline() && self.are_endpoints_down()
    }

    /// Whether no endpoint answers.
    pub(crate) fn are_endpoints_down(&self) -> bool {
        self.endpoints().iter().all(Endpoint::is_down)
    }

    /// Whether an endpoint gives out so few more manifests that they are kept for images never seen.
    pub(crate) fn is_short(&self) -> bool {
        self.endpoints().iter().any(Endpoint::is_short)
    }

    /// Whether an endpoint refuses a configured login, so that what needs it is not asked for.
    pub(crate) fn refuses_login(&self) -> bool {
        self.endpoints().iter().any(Endpoint::refuses_any)
    }

    /// When a request that begins now must have its answer.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.shared.transport.client().timeouts.budget
    }

    /// Tells the observer of an event.
    pub(crate) fn tell(&self, event: Event) {
        self.shared.transport.client().tell(event);
    }

    /// What an operator should know of its configuration, though berth can work with it.
    pub(crate) fn warnings(&self) -> impl Iterator<Item = String> {
        let of_client = self.shared.transport.client().warnings().iter().cloned();
        self.shared.auth.warning().into_iter().chain(of_client)
    }
}
