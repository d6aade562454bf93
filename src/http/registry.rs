//! The registry API: a request becomes a route, a route becomes content, content becomes an answer.
//!
//! Every answer has its length, but for a blob on its way of which upstream does not say it: that comes in chunks. HEAD
//! answers as GET does, and nothing is ever content-coded. Within
//! [`BUDGET`] of a request's head there is a head of an answer, or a clean error: container runtimes give up
//! after thirty seconds without one.
//!
//! A request is answered by one configuration from its head to its end: that which is in force when it comes. Other
//! requests do not wait for a new one to be put in its place.

mod content;
pub(super) mod data_plane;
mod error_table;
mod going_on;
mod lists;
mod request;

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
use super::server::access_log::Account;
use super::server::body::Body;
use super::server::client_limits::{self, Brake, Guest, Limits, Visit, Who};
use super::server::head;
use super::server::hosts::{self, Reach};
use super::server::response::{because_of_silence, close};
use super::server::transport::Transport;
use crate::access::networks::client_network;
use crate::access::{Access, Action, Principal};
use crate::cache::{self, Cache, Size};
use crate::context::{Login, RequestContext, declare_fallback, declare_public, introduce};
use crate::oci::document::CONTENT_DIGEST;
use crate::oci::route::{Registries, Route};
use crate::oci::{Digest, Reference, Repo, Speaker};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Reason;
use crate::upstream::{self, HostName};

use content::{
    account_for, cache_status, identify, not_modified, of_blob, of_manifest, refused_ranges, whole_blob,
};
use error_table::{
    Subject, in_a_loop, misdirected, not_authenticated, not_authorized, outage, unavailable, unrouted,
};
use going_on::{GoingOn, stopping};
use lists::{Lists, json};
use request::{Asked, discard, host_of};

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// Time within which a request has an answer's head.
const BUDGET: Duration = Duration::from_secs(19);
/// How long ranges wait until it is known where the blob ends: half of the budget.
const MEASURE_MAX: Duration = Duration::from_secs(9);

/// What the data plane serves, and to whom: one configuration, and the content behind it.
pub struct Serving {
    cache: Cache,
    lists: Lists,
    registries: Arc<Registries>,
    /// Names of a listener on loopback.
    hosts: Vec<HostName>,
    access: Access,
    limits: Option<Arc<Limits>>,
    login_limits: Option<Arc<Limits>>,
    metrics: Arc<Metrics>,
    access_log: bool,
    /// While berth stops.
    going_on: GoingOn,
}

impl Serving {
    /// Serves `cache` by `config`. What is the same as `before` is taken over with what it knows: who has logged in, and
    /// what each client has taken.
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
        let limits = |config: &client_limits::Config, known: Option<&Arc<Limits>>| match known
            .filter(|known| known.are_of(config))
        {
            Some(known) => Some(Arc::clone(known)),
            None => Limits::new(config, Arc::clone(&metrics)),
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
            going_on: GoingOn::default(),
        })
    }

    /// Where its content comes from.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Which registry and repository a request means.
    pub(crate) fn registries(&self) -> &Registries {
        &self.registries
    }

    /// What one address may take, if that is limited.
    pub(crate) fn limits(&self) -> Option<&Arc<Limits>> {
        self.limits.as_ref()
    }

    /// Answers a request of `peer`, for a connection that takes bodies by `transport`.
    pub(crate) async fn answer(
        &self,
        peer: SocketAddr,
        reach: Reach,
        visit: &Visit,
        request: Request<Incoming>,
        transport: Transport,
    ) -> Response<Body> {
        let guest = visit.guest(self.limits.as_ref());
        let (head, body) = request.into_parts();
        // A client that waits for leave to send its body gets its answer without having sent it.
        let is_announced = !body.is_end_stream() && !head.headers.contains_key(EXPECT);
        let account = Account::open(Arc::clone(&self.metrics), self.access_log, peer, head.method.clone());
        let mut account = Box::new(account);
        let mut context = RequestContext::read(client_network(peer.ip()), &head.headers);
        let is_of_client = context.is_of_client();
        let admitted = match guest.as_ref().and_then(|guest| guest.refuse()) {
            Some(refusal) => Err(Box::new(refusal)),
            None if reach == Reach::Loopback && !self.has_host(&head) => Err(Box::new(misdirected())),
            None => match self.access.authenticate(peer.ip(), &head.headers).await {
                Ok(principal) => {
                    if let Some(name) = principal.user() {
                        context = context.with_login(name);
                    }
                    if !is_of_client && self.access.is_peer(peer.ip(), &principal) {
                        context = context.from_peer(&head.headers);
                    }
                    self.admit(principal)
                }
                Err(error) => Err(Box::new(not_authenticated(error))),
            },
        };
        let (mut response, user) = match admitted {
            Ok((principal, user)) => {
                let asked = Asked::new(head, context, transport);
                (self.respond(&asked, &principal, visit, &mut account).await, user)
            }
            Err(refusal) => {
                self.lead_astray(&mut account, &head.uri, &head.headers);
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
        let brake = Brake::of(guest.into_iter().chain(user));
        close(account, response).map(|body| body.braked(brake))
    }

    /// Refuses a request whose head means different things to different programs.
    pub(crate) fn refuse_head(
        &self,
        peer: SocketAddr,
        request: &Request<Incoming>,
        fault: &str,
    ) -> Response<Body> {
        let method = request.method().clone();
        let mut account = Box::new(Account::open(Arc::clone(&self.metrics), self.access_log, peer, method));
        self.lead_astray(&mut account, request.uri(), request.headers());
        close(account, head::refuse(fault))
    }

    /// Counts a request that could not be read.
    pub(crate) fn count_unreadable(&self) {
        self.metrics.refused(Reason::Request);
    }

    /// Notes of a request that did not come as far as a route what is known of it all the same.
    fn lead_astray(&self, account: &mut Account, uri: &Uri, headers: &HeaderMap) {
        let registry = self.registries.meant(host_of(uri, headers), uri.path(), uri.query());
        account.astray(uri.path(), registry);
    }

    /// Whether a request names a host that a listener on loopback has.
    fn has_host(&self, head: &Parts) -> bool {
        hosts::are_known(&head.uri, &head.headers, &self.hosts, |host| self.registries.have_host(host))
    }

    /// The principal, and what its login may take, if it has one and that is limited.
    ///
    /// # Errors
    /// What the request is answered with, if that login takes too much.
    fn admit(&self, principal: Principal) -> Result<(Principal, Option<Arc<Guest>>), Box<Response<Body>>> {
        let limits = self.login_limits.as_ref().zip(principal.user());
        let user = limits.map(|(limits, name)| limits.greet(Who::Login(Login::named(name))));
        match user.as_ref().and_then(|user| user.refuse()) {
            Some(refusal) => Err(Box::new(refusal)),
            None => Ok((principal, user)),
        }
    }

    /// What a request asks for, if `principal` may have that.
    ///
    /// # Errors
    /// What the request is answered with otherwise. Whether it makes sense is not told of a repository that the principal
    /// may not have.
    fn authorized_route(&self, asked: &Asked, principal: &Principal) -> Result<Route, Box<Response<Body>>> {
        let uri = asked.uri();
        let routed = self.registries.route_of_any(asked.method(), asked.host(), uri.path(), uri.query());
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
        asked: &Asked,
        principal: &Principal,
        visit: &Visit,
        account: &mut Account,
    ) -> Response<Body> {
        let route = match self.authorized_route(asked, principal) {
            Ok(route) => Arc::new(route),
            Err(refusal) => {
                self.lead_astray(account, asked.uri(), asked.headers());
                return *refusal;
            }
        };
        account.begin(&route);
        if visit.is_late() && !self.going_on.has_more(&self.cache, visit, asked, &route) {
            return stopping();
        }
        let mut response = if asked.context().is_loop() {
            in_a_loop()
        } else {
            match self.at_hand(asked, &route, account) {
                Some(response) => response,
                None => self.find(asked, &route, principal, account).await,
            }
        };
        if !asked.context().is_of_client()
            && self.is_for_everybody(&route, digest_of(&route, &response)).await
        {
            declare_public(response.headers_mut());
        }
        response
    }

    /// Whether a berth may share what it is answered with among its repositories.
    async fn is_for_everybody(&self, route: &Route, digest: Option<Digest>) -> bool {
        let Some(repo) = route.repository() else { return false };
        let is_public = match digest {
            Some(digest) => self.cache.is_for_everybody(repo, &digest).await,
            None => self.cache.is_public(repo).await,
        };
        is_public.unwrap_or(false)
    }

    /// The answer, or why there is none, in time.
    async fn find(
        &self,
        asked: &Asked,
        route: &Route,
        principal: &Principal,
        account: &mut Account,
    ) -> Response<Body> {
        let request = account.request();
        let subject = Subject::of(route);
        // On the heap, so that what most requests do is small: futures are moved before they run.
        let budget = asked.context().patience(BUDGET);
        match timeout(budget, Box::pin(self.serve(asked, route, principal, account))).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                if matches!(error, cache::Error::Store(_) | cache::Error::Read(_)) {
                    warn!(request = format_args!("{request:016x}"), %error, "the data folder failed a request");
                }
                // The berth that asks may have somebody else to ask.
                match error.is_loop() && !asked.context().is_of_client() {
                    true => in_a_loop(),
                    false => unavailable(&error, subject),
                }
            }
            Err(_) => because_of_silence(outage(
                "upstream did not answer in time; the transfer may go on: try again",
            )),
        }
    }

    async fn serve(
        &self,
        asked: &Asked,
        route: &Route,
        principal: &Principal,
        account: &mut Account,
    ) -> Result<Response<Body>, cache::Error> {
        match route {
            Route::Base => Ok(json(Bytes::from_static(b"{}"))),
            Route::Extensions => Ok(json(Bytes::from_static(br#"{"extensions":[]}"#))),
            Route::Catalog { n, last } => {
                let may_have =
                    |repo: &Repo| self.access.authorize(principal, Action::Pull, Some(repo)).is_ok();
                self.lists.catalog(asked, *n, last.as_deref(), may_have).await
            }
            Route::Manifest { repo, reference } => self.manifest(asked, repo, reference, account).await,
            Route::Blob { repo, digest } if asked.method() == Method::HEAD => {
                self.blob_head(asked, repo, digest, account).await
            }
            Route::Blob { repo, digest } => self.blob(asked, repo, digest, account).await,
            Route::Tags { repo, n, last } => self.lists.tags(asked, repo, *n, last.as_deref(), account).await,
            Route::Referrers { repo, digest, artifact_type } => {
                self.lists.referrers(asked, (repo, digest), artifact_type.as_deref(), account).await
            }
        }
    }

    /// The answer to what was asked a moment ago, without a wait for anything.
    fn at_hand(&self, asked: &Asked, route: &Route, account: &mut Account) -> Option<Response<Body>> {
        match route {
            Route::Manifest { repo, reference } => {
                let manifest = self.cache.manifest_at_hand(repo, reference)?;
                Some(of_manifest(asked, repo, manifest, account))
            }
            Route::Blob { repo, digest } if asked.method() == Method::GET => {
                let blob = self.cache.blob_at_hand(repo, digest)?;
                Some(match asked.ranges(digest) {
                    Ok(ranges) => of_blob(asked, (repo, digest), blob, ranges, account),
                    Err(refusal) => refused_ranges(refusal),
                })
            }
            _ => None,
        }
    }

    async fn manifest(
        &self,
        asked: &Asked,
        repo: &Repo,
        reference: &Reference,
        account: &mut Account,
    ) -> Result<Response<Body>, cache::Error> {
        let manifest = self.cache.manifest(repo, reference, asked.context()).await?;
        Ok(of_manifest(asked, repo, manifest, account))
    }

    async fn blob_head(
        &self,
        asked: &Asked,
        repo: &Repo,
        digest: &Digest,
        account: &mut Account,
    ) -> Result<Response<Body>, cache::Error> {
        let (Size { bytes, speaker }, source) = self.cache.blob_size(repo, digest, asked.context()).await?;
        let status = cache_status(source, false, false);
        account.cached(status);
        let body = || if bytes.is_some() { Body::empty() } else { Body::of_unknown_length() };
        let mut response = if asked.has(digest) { not_modified() } else { whole_blob(asked, body(), bytes) };
        identify(&mut response, digest);
        account_for(&mut response, repo, status);
        if speaker == Speaker::Fallback {
            declare_fallback(response.headers_mut());
        }
        Ok(response)
    }

    async fn blob(
        &self,
        asked: &Asked,
        repo: &Repo,
        digest: &Digest,
        account: &mut Account,
    ) -> Result<Response<Body>, cache::Error> {
        let ranges = match asked.ranges(digest) {
            Ok(ranges) => ranges,
            Err(refusal) => return Ok(refused_ranges(refusal)),
        };
        let mut blob = self.cache.blob(repo, digest, ranges.as_ref(), asked.context()).await?;
        if blob.total.is_none() && !asked.is_chunked() {
            // To such a client an end that is cut off is an end like any other.
            if !blob.measure().await {
                return Err(upstream::Error::NoLength.into());
            }
        } else if blob.total.is_none() && ranges.is_some() {
            // Who asks for parts gets everything if it does not turn out in time: that is what upstream does, too.
            let _ = timeout(asked.context().patience(MEASURE_MAX), blob.measure()).await;
        }
        let is_of_fallback = blob.is_of_fallback();
        let mut response = of_blob(asked, (repo, digest), blob, ranges, account);
        if is_of_fallback {
            declare_fallback(response.headers_mut());
        }
        Ok(response)
    }
}

/// Of the content that is answered with, if it is content.
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

/// What a principal needs the right to, for a request to have an answer.
fn action(route: &Route) -> Action {
    match route {
        Route::Base | Route::Extensions => Action::Ping,
        Route::Catalog { .. } => Action::Catalog,
        Route::Manifest { .. } | Route::Blob { .. } | Route::Tags { .. } | Route::Referrers { .. } => {
            Action::Pull
        }
    }
}
