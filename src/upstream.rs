//! Upstream: everything that berth asks of a registry, and whom it asks for it.
//!
//! One [`Upstream`] per registry. It chooses: parents are asked first, then the registry's own endpoints, then its
//! fallbacks, each of them again while the time of the request lasts, and one beside another that is late. Each of these is
//! a `Remote` (`remote`), one registry that is asked and knows of no other. An upstream stores nothing; what it returns is
//! what a registry said, checked as far as one answer can be.
//!
//! What it promises:
//! - Berth dials the endpoints, token servers near them, where they redirect to, and the cloud or the Vault that is
//!   configured to have the login (`credentials`); never, on an upstream's word, loopback, link-local, private or reserved
//!   addresses that the configuration does not name (`net::guard`, `remote::auth::realm`, `remote::redirect`).
//! - A credential is sent to the endpoint that asked for it (same scheme, host and port) or to a permitted token
//!   server, and nowhere else. It is in no URL, no error, no log line and no `Debug` text (`remote::exchange`, `net::secret`).
//! - Every wait, body, header, list and retry has a limit; a request has an answer within its budget (`config`, `attempts`).
//! - A refusal is believed only if there is evidence that it is the registry's, and never if it is a store's
//!   (`remote::exchange::verdict`, `remote::transport::ping`).
//! - An endpoint that is known to be down is asked by a probe only, and a login that it is known to reject is tried by a
//!   probe only (`remote::endpoint`, `remote::upkeep`); an upstream that is offline by configuration is not asked at all
//!   (`remote::exchange`).
//! - An endpoint that asks to be left alone is, and none is asked more than the operator allows, nor more at once than
//!   it should be, whatever clients ask for (`remote::limits`). A path that answers 503 is left alone for seconds, and no
//!   other for it (`remote::endpoint::path_pauses`).
//! - What this machine lacks is never held against an endpoint (`remote::error`), and a name server that says nothing holds
//!   up nothing but what needs it (`net::lookups`).
//! - Every endpoint is told which berths a request has come through. Parents are asked before the registry, each for its
//!   part; no request goes round in a circle, and none waits for itself (`parents`, [`crate::context`]).
//! - What no configuration lists is asked of parents alone, and takes up nothing of its own (`unlisted`).
//! - Fallbacks are asked after the registry's own endpoints, each with its own login (`fallback`). An endpoint that is
//!   late with a head has another asked beside it; a body comes from one (`hedge`).
//!
//! Reading order: `config`, `remote`, then `attempts` (the order, and when again), `parents`, `fallback`, `hedge`, and
//! `ask`, which is what can be asked: loops over `attempts`.

mod ask;
mod attempts;
mod build;
mod config;
mod fallback;
mod hedge;
mod identity;
mod parents;
mod sameness;
mod section;
#[cfg(test)]
mod tests;
mod unlisted;

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinSet;

pub use self::attempts::Attempts;
pub use self::config::{Config, Connections};
pub use self::fallback::FallbackConfig;
pub use self::parents::ParentsConfig;
pub use crate::remote::endpoint::pull_quota::Reserve;
pub use crate::remote::error::{BuildError, Error, Refusal};
pub use crate::remote::event::{Event, LimitKind, Observer, Outcome};
pub use crate::remote::limits::LimitsConfig;
pub(crate) use crate::remote::requests::blobs::PAGE;
pub use crate::remote::requests::blobs::{BLOB_BYTES_MAX, BlobStream, Claim};
pub use crate::remote::requests::lists::{PageQuery, ReferrerList, TagBody, TagPage, TagStream};
pub use crate::remote::requests::login_check::{Found, Party, Trial};
pub use crate::remote::requests::manifests::{Fetched, Freshness, Resolved, Untold};
pub use crate::remote::rewrite::Rewrite;

pub use crate::credentials::{
    AppRole, AzureConfig, CredentialsConfig, EcrConfig, GoogleConfig, InvalidLogins, KubernetesLogin,
    KvVersion, NoLogin, Region, VaultConfig, VaultLogin, VaultPath, VaultProblem,
};
pub use crate::net::{
    Class, ClientCertificate, EndpointUrl as Endpoint, Headers, HostName, InvalidEndpoint, Proxy, Timeouts,
    UserAgent,
};

use self::attempts::RemoteOrder;
use self::hedge::Hedges;
use self::parents::Parents;
use self::sameness::Sameness;
use crate::context::RequestContext;
use crate::oci::{Digest, Registry, RepoName, Tag};
use crate::remote::{Remote, Role, upkeep};

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

/// One registry, with its parents if it has any, and with what is asked when its own endpoints have no answer.
pub struct Upstream {
    /// The registry itself; without endpoints if only parents are asked.
    own: Arc<Remote>,
    parents: Option<Arc<Parents>>,
    fallbacks: Vec<Arc<Remote>>,
    shared: Arc<Shared>,
}

/// What registries that no configuration lists have in common.
struct Shared {
    /// What makes it one with the same registry under another name; `None` if it is asked by that name, as mirrors are.
    sameness: Option<Sameness>,
    connections_per_blob: Connections,
    /// `None` where no endpoint is ever asked beside another.
    hedges: Option<Hedges>,
    is_retired: AtomicBool,
}

impl Upstream {
    /// Builds the upstream of `config`; reads its credentials and certificates, and connects to nothing.
    ///
    /// # Errors
    /// [`BuildError`] when the configuration names something that cannot be used.
    pub fn build(config: &Config, observer: Observer) -> Result<Arc<Self>, BuildError> {
        let parents = Parents::build(config, &observer)?.map(Arc::new);
        let fallbacks = fallback::build_all(config, &observer)?;
        if config.endpoints.is_empty() && !config.asks_only_parents() {
            return Err(BuildError::NoEndpoints { registry: config.registry.clone() });
        }
        let endpoints = if config.asks_only_parents() { &[][..] } else { &config.endpoints };
        let shared = Shared {
            sameness: Sameness::of(config),
            connections_per_blob: config.connections_per_blob,
            hedges: Hedges::new(endpoints.len(), &config.limits),
            is_retired: AtomicBool::new(false),
        };
        let own = match config.mirror {
            true => {
                // It is asked by way of its endpoints, and these have all that is needed.
                let (credentials, client_certificate, headers) = (None, None, Headers::default());
                let config = Config { credentials, client_certificate, headers, ..config.clone() };
                build::remote(Role::Registry, &config, (0, endpoints), observer)?
            }
            false => build::remote(Role::Registry, config, (0, endpoints), observer)?,
        };
        Ok(Arc::new(Self { own, parents, fallbacks, shared: Arc::new(shared) }))
    }

    /// The same for another registry that is not listed.
    pub fn of_unlisted(&self, registry: &Registry) -> Arc<Self> {
        let own = Arc::new(self.own.named(registry.clone().unlisted()));
        let (parents, shared) = (self.parents.clone(), Arc::clone(&self.shared));
        Arc::new(Self { own, parents, fallbacks: Vec::new(), shared })
    }

    /// The name that images carry.
    pub fn registry(&self) -> &Registry {
        self.own.registry()
    }

    /// Records that another upstream takes its place, or none: from now on only those ask it that have it already.
    pub fn retire(&self) {
        self.shared.is_retired.store(true, Ordering::Release);
    }

    /// Whether another upstream has taken its place: what it says now says nothing about what that one will.
    pub fn is_retired(&self) -> bool {
        self.shared.is_retired.load(Ordering::Acquire)
    }

    /// Whether it is asked by way of parents, whose answers say whether content is for everybody.
    pub fn has_parents(&self) -> bool {
        self.parents.is_some()
    }

    /// Whether only parents are ever asked for content.
    pub fn has_only_parents(&self) -> bool {
        self.own.endpoints().is_empty() && self.fallbacks.is_empty()
    }

    /// Whether another registry may answer in its place.
    pub fn has_fallbacks(&self) -> bool {
        !self.fallbacks.is_empty()
    }

    /// Whether another is the same registry under another name: the endpoints are the same, and so is the login.
    pub fn is_one_with(&self, other: &Self) -> bool {
        self.shared.sameness.is_some() && self.shared.sameness == other.shared.sameness
    }

    /// Connections over which one large blob may be fetched at once.
    pub fn connections_per_blob(&self) -> usize {
        self.shared.connections_per_blob.count()
    }

    /// Whether it is worth asking.
    pub fn state(&self) -> State {
        let are_fallbacks_down = || self.fallbacks.iter().all(|fallback| fallback.is_down());
        if self.own.is_offline() {
            State::Offline
        } else if self.own.are_endpoints_down() && self.are_parents_down() && are_fallbacks_down() {
            State::Down
        } else {
            State::Up
        }
    }

    fn parents(&self) -> Vec<Arc<Remote>> {
        self.parents.as_ref().map(|parents| parents.remotes()).unwrap_or_default()
    }

    fn are_parents_down(&self) -> bool {
        self.parents().iter().all(|parent| parent.is_down())
    }

    /// Whether an endpoint gives out so few more manifests that they are kept for images never seen.
    pub fn is_short(&self) -> bool {
        // Fallbacks are asked about known tags only while nobody else answers.
        let is_left_to_fallbacks = self.own.are_endpoints_down() && self.are_parents_down();
        let is_fallback_short = || self.fallbacks.iter().any(|fallback| fallback.is_short());
        self.own.is_short() || is_left_to_fallbacks && is_fallback_short()
    }

    /// Whether an endpoint refuses a configured login, so that what needs it is not asked for.
    pub fn is_login_refused(&self) -> bool {
        let refuses = |remote: &Arc<Remote>| remote.refuses_login();
        refuses(&self.own) || self.parents().iter().any(refuses) || self.fallbacks.iter().any(refuses)
    }

    /// Whether requests for `name` do not tell who berth is, so that anybody could have fetched what comes from it.
    pub async fn is_public(&self, name: &RepoName) -> bool {
        // Through which login a parent has its content is known from its answers only.
        let by_parents = |parents: &Arc<Parents>| parents.is_public(self.registry(), name);
        self.parents.as_ref().is_none_or(by_parents) && self.is_public_without_parents(name).await
    }

    /// Whether what it has of a repository is for those with a login, as far as that is known without being asked: a
    /// parent that has not been asked yet has not said.
    pub async fn is_known_private(&self, name: &RepoName) -> bool {
        let by_parents = |parents: &Arc<Parents>| parents.is_private(self.registry(), name);
        self.parents.as_ref().is_some_and(by_parents) || !self.is_public_without_parents(name).await
    }

    /// Whether that is so of its own endpoints and of its fallbacks, any of which may send the next part of a content.
    async fn is_public_without_parents(&self, name: &RepoName) -> bool {
        for remote in std::iter::once(&self.own).chain(&self.fallbacks) {
            if !remote.is_public(name).await {
                return false;
            }
        }
        true
    }

    /// Where a request for a content goes on to: the same context, unless no parent is to be asked.
    ///
    /// # Errors
    /// [`Error::Loop`] if it claims to have come through all parents that there are for it, and no peer says so.
    pub fn settle(&self, context: &RequestContext, digest: &Digest) -> Result<RequestContext, Error> {
        self.settle_by(context, &digest.to_string())
    }

    /// The same for a tag.
    ///
    /// # Errors
    /// As [`Upstream::settle`].
    pub fn settle_tag(
        &self,
        context: &RequestContext,
        name: &RepoName,
        tag: &Tag,
    ) -> Result<RequestContext, Error> {
        self.settle_by(context, &self.key_of_tag(name, tag))
    }

    fn settle_by(&self, context: &RequestContext, key: &str) -> Result<RequestContext, Error> {
        let has_parent = |context: &RequestContext| !self.parents_in_order(key, context).is_empty();
        if has_parent(context) {
            Ok(context.clone())
        } else if context.is_of_client() || !has_parent(&RequestContext::default()) {
            Ok(context.local())
        } else if context.may_bypass() {
            Ok(context.bypass())
        } else {
            Err(Error::Loop)
        }
    }

    /// The parents to ask for what `key` names, in order; none if the registry itself is to be asked.
    fn parents_in_order(&self, key: &str, context: &RequestContext) -> Vec<Arc<Remote>> {
        let in_order = |parents: &Arc<Parents>| parents.order(self.registry(), key, context);
        self.parents.as_ref().map(in_order).unwrap_or_default()
    }

    /// The key by which a tag is assigned to one of the parents.
    fn key_of_tag(&self, name: &RepoName, tag: &Tag) -> String {
        format!("{}/{name}:{tag}", self.registry())
    }

    /// The remotes to ask for what `key` names, in order.
    fn route(&self, key: &str, context: &RequestContext) -> RemoteOrder<'_> {
        let route = RemoteOrder::new(self.parents_in_order(key, context), &self.own, &self.fallbacks);
        let route = route.hedged_by(self.shared.hedges.as_ref()).unknown_if(self.is_unknown_to_parents());
        match context.may_bypass() {
            true => route,
            false => route.without_bypass(self.settle_by(context, key).is_err()),
        }
    }

    /// Whether a parent has just said that it does not know this registry, for which only parents are asked.
    fn is_unknown_to_parents(&self) -> bool {
        let is_unknown = |parents: &Arc<Parents>| parents.is_unknown(self.registry());
        self.has_only_parents() && self.parents.as_ref().is_some_and(is_unknown)
    }

    /// Probes endpoints that are down, and logins that are refused, and renews the login if it is one that ends, until
    /// `shutdown`.
    pub async fn run(self: Arc<Self>, shutdown: impl Future<Output = ()>) {
        tokio::select! {
            () = shutdown => {}
            () = upkeep::tend(&self.own) => {}
            () = self.keep_parents() => {}
            () = self.tend_fallbacks() => {}
        }
    }

    async fn keep_parents(&self) {
        match &self.parents {
            Some(parents) => parents.run().await,
            None => pending().await,
        }
    }

    async fn tend_fallbacks(&self) {
        let mut tending = JoinSet::new();
        for fallback in &self.fallbacks {
            let fallback = Arc::clone(fallback);
            tending.spawn(async move { upkeep::tend(&fallback).await });
        }
        while let Some(ended) = tending.join_next().await {
            upkeep::resurface(ended);
        }
        pending().await
    }
}
