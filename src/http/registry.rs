//! The registry API: a request becomes a route, a route becomes content, content becomes a response.
//!
//! The order is: authenticate, route, authorize, answer. A client that is not let in is refused before its path is read.
//! What a principal may not have is refused before anything is said about it. A policy has its place where the digest is
//! known: for a blob after the authorization, for a manifest when it was found and before the response is made. Its verdict
//! has to be in memory, since what was asked for a moment ago is answered without a wait ([`RegistryApi::cached`]).
//!
//! Every response has its length, but for a blob in transfer whose length upstream does not say: that is sent in chunks.
//! HEAD is answered as GET is, and nothing is ever content-coded. Within [`BUDGET`] of a request's head there is the head of
//! a response, or a clean error: container runtimes give up after thirty seconds without one.
//!
//! A request is answered by one configuration from its head to its end: the one that is in force when it comes. Other
//! requests do not wait for a new one to be put in its place.
//!
//! This room uses the server beneath it, `access`, and the cache. The admin plane uses its [`data_plane`].

mod content;
pub(super) mod data_plane;
mod error_table;
mod lists;
mod request;
mod resumable;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use hyper::body::{Body as _, Incoming};
use hyper::header::{EXPECT, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Request, Response, Uri};
use tokio::time::timeout;
use tracing::warn;

use super::config::Config;
use super::server::access_log::RequestLog;
use super::server::body::Body;
use super::server::client_limits::{self, ClientHandle, ClientKey, ClientLimits, ConnectionClient, Throttle};
use super::server::head;
use super::server::hosts::{self, Reach};
use super::server::response::{because_of_silence, finish};
use super::server::transport::BodyTransport;
use crate::access::networks::client_network;
use crate::access::{Access, Action, Principal};
use crate::cache::{self, BlobSize, Cache};
use crate::context::{Login, RequestContext, declare_fallback, declare_public, introduce};
use crate::oci::document::CONTENT_DIGEST;
use crate::oci::route::{Registries, Route};
use crate::oci::{Digest, Reference, Repo, Speaker};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Reason;
use crate::upstream::{self, HostName};

use content::{
    blob_response, cache_status, manifest_response, not_modified, refused_ranges, set_digest, set_source,
    whole_blob,
};
use error_table::{
    Subject, loop_detected, misdirected, not_authenticated, not_authorized, outage, unavailable, unrouted,
};
use lists::{Lists, json};
use request::{RegistryRequest, discard, host_of};
use resumable::{ResumableBlobs, stopping};

/// Response header by which clients know a registry.
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// Time within which a request has the head of its response.
const BUDGET: Duration = Duration::from_secs(19);
/// Time that a request for ranges waits until the length of the blob is known: half of the budget.
const MEASURE_MAX: Duration = Duration::from_secs(9);

/// One configuration of the data plane: what it serves, to whom, and the cache behind it.
pub struct RegistryApi {
    cache: Cache,
    lists: Lists,
    registries: Arc<Registries>,
    /// Names that a listener on loopback has as `Host`.
    hosts: Vec<HostName>,
    access: Access,
    limits: Option<Arc<ClientLimits>>,
    login_limits: Option<Arc<ClientLimits>>,
    metrics: Arc<Metrics>,
    access_log: bool,
    /// The blobs that are still served while berth stops.
    resumable: ResumableBlobs,
}

/// A request whose client is let in.
struct Admitted {
    principal: Principal,
    context: RequestContext,
    /// The client's handle in the limits of its login, if it has one and that is limited.
    user: Option<Arc<ClientHandle>>,
}

impl RegistryApi {
    /// Serves `cache` by `config`. Parts that are the same as `before` are taken over with what they know: which logins were
    /// right, and what each client has taken.
    ///
    /// # Errors
    /// When `htpasswd` cannot be read.
    pub fn new(
        cache: Cache,
        registries: Registries,
        metrics: Arc<Metrics>,
        config: &Config,
        before: Option<&Self>,
    ) -> anyhow::Result<Self> {
        let registries = Arc::new(registries);
        let access = Access::load(
            &config.allow,
            config.htpasswd.as_deref(),
            &config.peers,
            Arc::clone(&registries),
            before.map(|before| &before.access),
        )?;
        let limits = |config: &client_limits::Config, known: Option<&Arc<ClientLimits>>| match known
            .filter(|known| known.are_of(config))
        {
            Some(known) => Some(Arc::clone(known)),
            None => ClientLimits::new(config, Arc::clone(&metrics)),
        };
        let known = before.and_then(|before| before.login_limits.as_ref());
        let login_limits = limits(&(&config.login_limits).into(), known);
        let limits = limits(&config.limits, before.and_then(|before| before.limits.as_ref()));
        Ok(Self {
            lists: Lists::new(cache.clone(), config.lists_private()),
            cache,
            registries,
            hosts: config.hosts.clone(),
            access,
            limits,
            login_limits,
            metrics,
            access_log: config.access_log,
            resumable: ResumableBlobs::default(),
        })
    }

    /// The cache that its content comes from.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The registries that requests may mean.
    pub(crate) fn registries(&self) -> &Registries {
        &self.registries
    }

    /// The limits of one address, if there are any.
    pub(crate) fn limits(&self) -> Option<&Arc<ClientLimits>> {
        self.limits.as_ref()
    }

    /// Answers a request of `peer`, on the connection of `client`, which takes bodies by `transport`: finds out who is
    /// asking, for what, and whether they may have it, in this order.
    pub(crate) async fn answer(
        &self,
        peer: SocketAddr,
        reach: Reach,
        client: &ConnectionClient,
        request: Request<Incoming>,
        transport: BodyTransport,
    ) -> Response<Body> {
        let handle = client.handle(self.limits.as_ref());
        let (head, body) = request.into_parts();
        // A client that waits for leave to send its body gets its response without having sent it.
        let is_announced = !body.is_end_stream() && !head.headers.contains_key(EXPECT);
        let log = RequestLog::begin(Arc::clone(&self.metrics), self.access_log, peer, head.method.clone());
        let mut log = Box::new(log);
        let context = RequestContext::read(client_network(peer.ip()), &head.headers);
        let is_of_client = context.is_of_client();
        let admitted = match handle.as_ref().and_then(|handle| handle.check()) {
            Some(refusal) => Err(Box::new(refusal)),
            None if reach == Reach::Loopback && !self.has_host(&head) => Err(Box::new(misdirected())),
            None => self.authenticate(peer, &head.headers, context).await,
        };
        let (mut response, user) = match admitted {
            Ok(Admitted { principal, context, user }) => {
                let request = RegistryRequest::new(head, context, transport);
                (self.respond(&request, &principal, client, &mut log).await, user)
            }
            Err(refusal) => {
                self.log_unrouted(&mut log, &head.uri, &head.headers);
                (*refusal, None)
            }
        };
        if is_announced {
            discard(body).await;
        }
        response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
        if !is_of_client {
            introduce(response.headers_mut());
        }
        let throttle = Throttle::of(handle.into_iter().chain(user));
        finish(log, response).map(|body| body.throttled(throttle))
    }

    /// Refuses a request whose head means different things to different programs.
    pub(crate) fn refuse_head(
        &self,
        peer: SocketAddr,
        request: &Request<Incoming>,
        fault: &str,
    ) -> Response<Body> {
        let method = request.method().clone();
        let mut log = Box::new(RequestLog::begin(Arc::clone(&self.metrics), self.access_log, peer, method));
        self.log_unrouted(&mut log, request.uri(), request.headers());
        finish(log, head::refuse(fault))
    }

    /// Counts a request that could not be read.
    pub(crate) fn count_unreadable(&self) {
        self.metrics.refused(Reason::Request);
    }

    /// Logs what is known of a request without a route.
    fn log_unrouted(&self, log: &mut RequestLog, uri: &Uri, headers: &HeaderMap) {
        let registry = self.registries.meant(host_of(uri, headers), uri.path(), uri.query());
        log.unrouted(uri.path(), registry);
    }

    /// Whether a request names a host that a listener on loopback has.
    fn has_host(&self, head: &Parts) -> bool {
        hosts::are_known(&head.uri, &head.headers, &self.hosts, |host| self.registries.have_host(host))
    }

    /// Finds out who is asking, and whether their login is within its limits.
    ///
    /// # Errors
    /// The refusal.
    async fn authenticate(
        &self,
        peer: SocketAddr,
        headers: &HeaderMap,
        mut context: RequestContext,
    ) -> Result<Admitted, Box<Response<Body>>> {
        let principal = self.access.authenticate(peer.ip(), headers).await;
        let principal = principal.map_err(|error| Box::new(not_authenticated(error)))?;
        if let Some(name) = principal.user() {
            context = context.with_login(name);
        }
        if !context.is_of_client() && self.access.is_peer(peer.ip(), &principal) {
            context = context.from_peer(headers);
        }
        let limits = self.login_limits.as_ref().zip(principal.user());
        let user = limits.map(|(limits, name)| limits.client(ClientKey::Login(Login::named(name))));
        match user.as_ref().and_then(|user| user.check()) {
            Some(refusal) => Err(Box::new(refusal)),
            None => Ok(Admitted { principal, context, user }),
        }
    }

    /// The route of a request, if `principal` may have what it leads to.
    ///
    /// # Errors
    /// The refusal. It is the same for all requests to a repository that the principal may not have, well formed or not.
    fn authorized_route(
        &self,
        request: &RegistryRequest,
        principal: &Principal,
    ) -> Result<Route, Box<Response<Body>>> {
        let uri = request.uri();
        let routed = self.registries.route_of_any(request.method(), request.host(), uri.path(), uri.query());
        let (action, repo) = match &routed {
            Ok(route) => (action(route), route.repository()),
            Err(unrouted) => (Action::Pull, unrouted.repo.as_deref()),
        };
        if self.access.authorize(principal, action, repo).is_err() {
            return Err(Box::new(not_authorized(repo)));
        }
        routed.map_err(|reason| Box::new(unrouted(&reason.error)))
    }

    async fn respond(
        &self,
        request: &RegistryRequest,
        principal: &Principal,
        client: &ConnectionClient,
        log: &mut RequestLog,
    ) -> Response<Body> {
        let route = match self.authorized_route(request, principal) {
            Ok(route) => Arc::new(route),
            Err(refusal) => {
                self.log_unrouted(log, request.uri(), request.headers());
                return *refusal;
            }
        };
        log.routed(&route);
        if client.is_late() && !self.resumable.is_resumed(&self.cache, client, request, &route) {
            return stopping();
        }
        let mut response = if request.context().is_loop() {
            loop_detected()
        } else {
            match self.cached(request, &route, log) {
                Some(response) => response,
                None => self.answer_in_time(request, &route, principal, log).await,
            }
        };
        if !request.context().is_of_client() && self.is_public(&route, digest_of(&route, &response)).await {
            declare_public(response.headers_mut());
        }
        response
    }

    /// Whether a berth that asks may share the content among its repositories.
    async fn is_public(&self, route: &Route, digest: Option<Digest>) -> bool {
        let Some(repo) = route.repository() else { return false };
        let is_public = match digest {
            Some(digest) => self.cache.is_public_content(repo, &digest).await,
            None => self.cache.is_public(repo).await,
        };
        is_public.unwrap_or(false)
    }

    /// The response, or why there is none, within the budget.
    async fn answer_in_time(
        &self,
        request: &RegistryRequest,
        route: &Route,
        principal: &Principal,
        log: &mut RequestLog,
    ) -> Response<Body> {
        let request_id = log.request_id();
        let subject = Subject::of(route);
        // On the heap, so that the future of most requests is small: futures are moved before they run.
        let budget = request.context().patience(BUDGET);
        match timeout(budget, Box::pin(self.look_up(request, route, principal, log))).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                if matches!(error, cache::Error::Store(_) | cache::Error::Read(_)) {
                    warn!(request = format_args!("{request_id:016x}"), %error, "the data folder failed a request");
                }
                // A berth that asks may have another place to ask.
                match error.is_loop() && !request.context().is_of_client() {
                    true => loop_detected(),
                    false => unavailable(&error, subject),
                }
            }
            Err(_) => because_of_silence(outage(
                "upstream did not answer in time; the transfer may go on: try again",
            )),
        }
    }

    async fn look_up(
        &self,
        request: &RegistryRequest,
        route: &Route,
        principal: &Principal,
        log: &mut RequestLog,
    ) -> Result<Response<Body>, cache::Error> {
        match route {
            Route::Base => Ok(json(Bytes::from_static(b"{}"))),
            Route::Extensions => Ok(json(Bytes::from_static(br#"{"extensions":[]}"#))),
            Route::Catalog { n, last } => {
                let may_have =
                    |repo: &Repo| self.access.authorize(principal, Action::Pull, Some(repo)).is_ok();
                self.lists.catalog(request, *n, last.as_deref(), may_have).await
            }
            Route::Manifest { repo, reference } => self.manifest(request, repo, reference, log).await,
            Route::Blob { repo, digest } if request.method() == Method::HEAD => {
                self.blob_head(request, repo, digest, log).await
            }
            Route::Blob { repo, digest } => self.blob(request, repo, digest, log).await,
            Route::Tags { repo, n, last } => self.lists.tags(request, repo, *n, last.as_deref(), log).await,
            Route::Referrers { repo, digest, artifact_type } => {
                self.lists.referrers(request, (repo, digest), artifact_type.as_deref(), log).await
            }
        }
    }

    /// The response to what was asked for a moment ago: from memory, without a wait.
    fn cached(
        &self,
        request: &RegistryRequest,
        route: &Route,
        log: &mut RequestLog,
    ) -> Option<Response<Body>> {
        match route {
            Route::Manifest { repo, reference } => {
                let manifest = self.cache.manifest_at_hand(repo, reference)?;
                Some(manifest_response(request, repo, manifest, log))
            }
            Route::Blob { repo, digest } if request.method() == Method::GET => {
                let blob = self.cache.blob_at_hand(repo, digest)?;
                Some(match request.ranges(digest) {
                    Ok(ranges) => blob_response(request, (repo, digest), blob, ranges, log),
                    Err(refusal) => refused_ranges(refusal),
                })
            }
            _ => None,
        }
    }

    async fn manifest(
        &self,
        request: &RegistryRequest,
        repo: &Repo,
        reference: &Reference,
        log: &mut RequestLog,
    ) -> Result<Response<Body>, cache::Error> {
        let manifest = self.cache.manifest(repo, reference, request.context()).await?;
        Ok(manifest_response(request, repo, manifest, log))
    }

    async fn blob_head(
        &self,
        request: &RegistryRequest,
        repo: &Repo,
        digest: &Digest,
        log: &mut RequestLog,
    ) -> Result<Response<Body>, cache::Error> {
        let (BlobSize { bytes, speaker }, source) =
            self.cache.blob_size(repo, digest, request.context()).await?;
        let status = cache_status(source, false, false);
        log.set_cache_status(status);
        let body = || if bytes.is_some() { Body::empty() } else { Body::of_unknown_length() };
        let mut response =
            if request.has(digest) { not_modified() } else { whole_blob(request, body(), bytes) };
        set_digest(&mut response, digest);
        set_source(&mut response, repo, status);
        if speaker == Speaker::Fallback {
            declare_fallback(response.headers_mut());
        }
        Ok(response)
    }

    async fn blob(
        &self,
        request: &RegistryRequest,
        repo: &Repo,
        digest: &Digest,
        log: &mut RequestLog,
    ) -> Result<Response<Body>, cache::Error> {
        let ranges = match request.ranges(digest) {
            Ok(ranges) => ranges,
            Err(refusal) => return Ok(refused_ranges(refusal)),
        };
        let mut blob = self.cache.blob(repo, digest, ranges.as_ref(), request.context()).await?;
        if blob.total.is_none() && !request.is_chunked() {
            // Such a client cannot tell a body that is cut off from one that has ended.
            if !blob.measure().await {
                return Err(upstream::Error::NoLength.into());
            }
        } else if blob.total.is_none() && ranges.is_some() {
            // If the length is not known in time, a client that asks for ranges gets everything, as it would from upstream.
            let _ = timeout(request.context().patience(MEASURE_MAX), blob.measure()).await;
        }
        let is_of_fallback = blob.is_of_fallback();
        let mut response = blob_response(request, (repo, digest), blob, ranges, log);
        if is_of_fallback {
            declare_fallback(response.headers_mut());
        }
        Ok(response)
    }
}

/// The digest of the content of a response, if it has content.
fn digest_of(route: &Route, response: &Response<Body>) -> Option<Digest> {
    match route {
        Route::Blob { digest, .. } | Route::Manifest { reference: Reference::Digest(digest), .. } => {
            Some(*digest)
        }
        Route::Manifest { reference: Reference::Tag(_), .. } => {
            Digest::parse(response.headers().get(CONTENT_DIGEST)?.to_str().ok()?).ok()
        }
        _ => None,
    }
}

/// The action that a principal must be allowed to do, to have an answer.
fn action(route: &Route) -> Action {
    match route {
        Route::Base | Route::Extensions => Action::Ping,
        Route::Catalog { .. } => Action::Catalog,
        Route::Manifest { .. } | Route::Blob { .. } | Route::Tags { .. } | Route::Referrers { .. } => {
            Action::Pull
        }
    }
}
