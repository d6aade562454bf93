//! The registry API: a request becomes a route, a route becomes content, content becomes an answer.
//!
//! Every answer has its length, HEAD answers as GET does, and nothing is ever content-coded. Within
//! [`BUDGET`] of a request's head there is a head of an answer, or a clean error: container runtimes give up
//! after thirty seconds without one.
//!
//! A request is answered by one configuration from its head to its end: that which is in force when it comes. Other
//! requests do not wait for a new one to be put in its place.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use hyper::body::{Body as _, Incoming};
use hyper::header::{EXPECT, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use tokio::time::timeout;
use tracing::warn;

use super::Config;
use super::access::{Access, Verdict};
use super::asked::{Asked, discard};
use super::body::Body;
use super::content::{account_for, identify, not_modified, octets, of_blob, of_manifest, refused_ranges};
use super::hosts::{self, Reach};
use super::journal::Account;
use super::limits::{self, Brake, Guest, Limits, Visit, Who};
use super::outlet::Transport;
use super::peers::Peers;
use super::response::{
    API_VERSION, CACHE_STATUS, FILTERS_APPLIED, NAMESPACE, Subject, busy, cache_status, content, failure,
    in_a_loop, log_in, misdirected, outage, unavailable, unrouted, value, wrong_address,
};
use super::seats::network;
use crate::cache::{self, Cache};
use crate::context::{RequestContext, declare_fallback, declare_public, introduce};
use crate::oci::document::CONTENT_DIGEST;
use crate::oci::error::ErrorCode;
use crate::oci::route::{Registries, Route};
use crate::oci::{Digest, Reference, Repo, Speaker};
use crate::telemetry::Metrics;
use crate::upstream::{Claim, HostName};

/// Time within which a request has an answer's head.
const BUDGET: Duration = Duration::from_secs(19);
/// Entries of a list when the client does not say.
const PAGE_DEFAULT: usize = 1000;
/// Entries of a list at most; larger wishes get this many and a link to the rest.
const PAGE_MAX: usize = 1000;

/// What the data plane serves, and to whom: one configuration, and the content behind it.
pub struct Serving {
    cache: Cache,
    registries: Registries,
    /// Names of a listener on loopback.
    hosts: Vec<HostName>,
    access: Access,
    peers: Peers,
    limits: Option<Arc<Limits>>,
    login_limits: Option<Arc<Limits>>,
    metrics: Arc<Metrics>,
    access_log: bool,
    list_private: bool,
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
        let access =
            Access::load(&config.allow, config.htpasswd.as_deref(), before.map(|before| &before.access))?;
        let Config { access_log, list_private, .. } = *config;
        let limits = |config: &limits::Config, known: Option<&Arc<Limits>>| match known
            .filter(|known| known.are_of(config))
        {
            Some(known) => Some(Arc::clone(known)),
            None => Limits::new(config, Arc::clone(&metrics)),
        };
        let known = before.and_then(|before| before.login_limits.as_ref());
        let login_limits = limits(&(&config.login_limits).into(), known);
        let limits = limits(&config.limits, before.and_then(|before| before.limits.as_ref()));
        let (hosts, peers) = (config.hosts.clone(), Peers::new(&config.peers));
        Ok(Self {
            cache,
            registries,
            hosts,
            access,
            peers,
            limits,
            login_limits,
            metrics,
            access_log,
            list_private,
        })
    }

    /// Where its content comes from.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// What one address may take, if that is limited.
    pub(super) fn limits(&self) -> Option<&Arc<Limits>> {
        self.limits.as_ref()
    }

    /// Answers a request of `peer`, for a connection that takes bodies by `transport`.
    pub(super) async fn answer(
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
        let mut context = RequestContext::read(network(peer.ip()), &head.headers);
        let is_of_client = context.is_of_client();
        let admitted = match guest.as_ref().and_then(|guest| guest.refuse()) {
            Some(refusal) => Err(Box::new(refusal)),
            None if reach == Reach::Loopback && !self.has_host(&head) => Err(Box::new(misdirected())),
            None => {
                let verdict = self.access.judge(peer.ip(), &head.headers).await;
                if let Verdict::Allowed(name) = &verdict {
                    if let Some(name) = name {
                        context = context.with_login(name);
                    }
                    if !is_of_client && self.peers.has(peer.ip(), name.as_deref()) {
                        context = context.from_peer(&head.headers);
                    }
                }
                self.admit(verdict)
            }
        };
        let (mut response, user) = match admitted {
            Ok(user) => {
                let Parts { method, uri, headers, .. } = head;
                let asked = Asked { method, uri, headers, context, transport };
                (self.respond(&asked, &mut account).await, user)
            }
            Err(refusal) => (refuse(&mut account, &head.uri, *refusal), None),
        };
        if is_announced {
            discard(body).await;
        }
        response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
        if !is_of_client {
            introduce(response.headers_mut());
        }
        account.answered(response.status().as_u16(), response.body().len());
        let brake = Brake::of(guest.into_iter().chain(user));
        response.map(|body| body.watched(account).braked(brake))
    }

    /// Whether a request names a host that a listener on loopback has.
    fn has_host(&self, head: &Parts) -> bool {
        hosts::are_known(&head.uri, &head.headers, &self.hosts, |host| self.registries.have_host(host))
    }

    /// What the login of a request may take, if it has one and that is limited.
    ///
    /// # Errors
    /// What the request is answered with, if it is not let in.
    fn admit(&self, verdict: Verdict) -> Result<Option<Arc<Guest>>, Box<Response<Body>>> {
        let refusal = match verdict {
            Verdict::Allowed(name) => {
                let limits = self.login_limits.as_ref().zip(name);
                let user = limits.map(|(limits, name)| limits.greet(Who::Login(name)));
                match user.as_ref().and_then(|user| user.refuse()) {
                    Some(refusal) => refusal,
                    None => return Ok(user),
                }
            }
            Verdict::WrongAddress => wrong_address(),
            Verdict::LogIn => log_in(),
            Verdict::Busy => busy(),
        };
        Err(Box::new(refusal))
    }

    async fn respond(&self, asked: &Asked, account: &mut Account) -> Response<Body> {
        let route =
            match self.registries.route(&asked.method, asked.host(), asked.uri.path(), asked.uri.query()) {
                Ok(route) => Arc::new(route),
                Err(error) => return refuse(account, &asked.uri, unrouted(&error)),
            };
        account.begin(&route);
        let mut response = if asked.context.is_loop() {
            in_a_loop()
        } else {
            match self.at_hand(asked, &route, account) {
                Some(response) => response,
                None => self.find(asked, &route, account).await,
            }
        };
        if !asked.context.is_of_client() && self.is_for_everybody(&route, digest_of(&route, &response)).await
        {
            declare_public(response.headers_mut());
        }
        response
    }

    /// Whether a berth may share what it is answered with among its repositories.
    async fn is_for_everybody(&self, route: &Route, digest: Option<Digest>) -> bool {
        let Some(repo) = repository(route) else { return false };
        let is_public = match digest {
            Some(digest) => self.cache.is_for_everybody(repo, &digest).await,
            None => self.cache.is_public(repo).await,
        };
        is_public.unwrap_or(false)
    }

    /// The answer, or why there is none, in time.
    async fn find(&self, asked: &Asked, route: &Arc<Route>, account: &mut Account) -> Response<Body> {
        let request = account.request;
        let subject = subject(route);
        // On the heap, so that what most requests do is small: futures are moved before they run.
        let budget = asked.context.patience(BUDGET);
        match timeout(budget, Box::pin(self.serve(asked, route, account))).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                account.cause = error.to_string();
                if matches!(error, cache::Error::Store(_) | cache::Error::Read(_)) {
                    warn!(request = format_args!("{request:016x}"), %error, "the data folder failed a request");
                }
                // The berth that asks may have somebody else to ask.
                match error.is_loop() && !asked.context.is_of_client() {
                    true => in_a_loop(),
                    false => unavailable(&error, subject),
                }
            }
            Err(_) => outage("upstream did not answer in time; the transfer may go on: try again"),
        }
    }

    async fn serve(
        &self,
        asked: &Asked,
        route: &Route,
        account: &mut Account,
    ) -> Result<Response<Body>, cache::Error> {
        match route {
            Route::Base => Ok(json(Bytes::from_static(b"{}"))),
            Route::Extensions => Ok(json(Bytes::from_static(br#"{"extensions":[]}"#))),
            Route::Catalog { n, last } => self.catalog(asked, *n, last.as_deref()).await,
            Route::Manifest { repo, reference } => self.manifest(asked, repo, reference, account).await,
            Route::Blob { repo, digest } if asked.method == Method::HEAD => {
                self.blob_head(asked, repo, digest, account).await
            }
            Route::Blob { repo, digest } => self.blob(asked, repo, digest, account).await,
            Route::Tags { repo, n, last } => self.tags(asked, repo, *n, last.as_deref(), account).await,
            Route::Referrers { repo, digest, artifact_type } => {
                self.referrers(asked, (repo, digest), artifact_type.as_deref(), account).await
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
            Route::Blob { repo, digest } if asked.method == Method::GET => {
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
        let manifest = self.cache.manifest(repo, reference, &asked.context).await?;
        Ok(of_manifest(asked, repo, manifest, account))
    }

    async fn blob_head(
        &self,
        asked: &Asked,
        repo: &Repo,
        digest: &Digest,
        account: &mut Account,
    ) -> Result<Response<Body>, cache::Error> {
        let (Claim { size, speaker }, source) = self.cache.blob_size(repo, digest, &asked.context).await?;
        let status = cache_status(source, false, false);
        account.cache = status;
        let mut response =
            if asked.has(digest) { not_modified() } else { octets(StatusCode::OK, Body::empty(), size) };
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
        let blob = self.cache.blob(repo, digest, ranges.as_ref(), &asked.context).await?;
        Ok(of_blob(asked, (repo, digest), blob, ranges, account))
    }

    async fn tags(
        &self,
        asked: &Asked,
        repo: &Repo,
        n: Option<usize>,
        last: Option<&str>,
        account: &mut Account,
    ) -> Result<Response<Body>, cache::Error> {
        let is_hidden = async || -> Result<bool, cache::Error> {
            Ok(!self.list_private && !self.cache.is_public(repo).await?)
        };
        // Where there are parents, their answer says whether it is.
        if is_hidden().await? && !self.cache.has_parents(repo)? {
            return Ok(hidden());
        }
        let size = n.unwrap_or(PAGE_DEFAULT).min(PAGE_MAX);
        if size == 0 {
            return Ok(json(list("tags", Some(repo.name.as_str()), std::iter::empty())));
        }
        let page = self.cache.tags(repo, size, last, &asked.context).await?;
        if is_hidden().await? {
            return Ok(hidden());
        }
        let body =
            list("tags", Some(repo.name.as_str()), page.entries.iter().map(|tag| tag.as_str().to_owned()));
        let mut response = json(body);
        let next = page.entries.last().filter(|_| page.more);
        asked.link_to_next(&mut response, size, next.map(|tag| tag.as_str().to_owned()));
        response.headers_mut().insert(NAMESPACE, value(repo.registry.as_str()));
        let status = cache_status(page.source, false, false);
        account.cache = status;
        response.headers_mut().insert(CACHE_STATUS, HeaderValue::from_static(status));
        Ok(response)
    }

    async fn catalog(
        &self,
        asked: &Asked,
        n: Option<usize>,
        last: Option<&str>,
    ) -> Result<Response<Body>, cache::Error> {
        let size = n.unwrap_or(PAGE_DEFAULT).min(PAGE_MAX);
        let last = last.and_then(|last| {
            let (registry, name) = last.split_once('/')?;
            Some(Repo { registry: registry.parse().ok()?, name: name.parse().ok()? })
        });
        if size == 0 {
            return Ok(json(list("repositories", None, std::iter::empty())));
        }
        let may_have = |repo: &Repo| self.registries.may_have(repo);
        let page = self.cache.repositories(size, last, self.list_private, may_have).await?;
        let mut response = json(list("repositories", None, page.entries.iter().map(ToString::to_string)));
        let next = page.entries.last().filter(|_| page.more);
        asked.link_to_next(&mut response, size, next.map(ToString::to_string));
        Ok(response)
    }

    async fn referrers(
        &self,
        asked: &Asked,
        (repo, digest): (&Repo, &Digest),
        artifact_type: Option<&str>,
        account: &mut Account,
    ) -> Result<Response<Body>, cache::Error> {
        let Some(referrers) = self.cache.referrers(repo, digest, &asked.context).await? else {
            return Ok(failure(
                StatusCode::NOT_FOUND,
                ErrorCode::ManifestUnknown,
                "upstream does not say what refers to this manifest, and nothing is stored",
            ));
        };
        let status = cache_status(referrers.source, false, false);
        account.cache = status;
        let (referrers, is_filtered) = match artifact_type {
            Some(artifact_type) => referrers.of_type(artifact_type).await,
            None => (referrers, false),
        };
        let index = "application/vnd.oci.image.index.v1+json";
        let mut response = content(StatusCode::OK, index, referrers.body);
        let headers = response.headers_mut();
        headers.insert(NAMESPACE, value(repo.registry.as_str()));
        if is_filtered {
            headers.insert(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
        }
        headers.insert(CACHE_STATUS, HeaderValue::from_static(status));
        Ok(response)
    }
}

/// An answer to a request that did not come as far as a route.
fn refuse(account: &mut Account, uri: &Uri, response: Response<Body>) -> Response<Body> {
    account.astray(uri.path());
    response
}

/// A list that is not shown.
fn hidden() -> Response<Body> {
    failure(
        StatusCode::NOT_FOUND,
        ErrorCode::NameUnknown,
        "lists show only what needs no credential upstream, unless [http] list_private is set",
    )
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

/// What a request is about.
fn repository(route: &Route) -> Option<&Repo> {
    match route {
        Route::Manifest { repo, .. }
        | Route::Blob { repo, .. }
        | Route::Referrers { repo, .. }
        | Route::Tags { repo, .. } => Some(repo),
        Route::Base | Route::Extensions | Route::Catalog { .. } => None,
    }
}

fn subject(route: &Route) -> Subject {
    match route {
        Route::Manifest { .. } | Route::Referrers { .. } => Subject::Manifest,
        Route::Blob { .. } => Subject::Blob,
        Route::Base | Route::Extensions | Route::Catalog { .. } | Route::Tags { .. } => Subject::Repository,
    }
}

fn json(body: Bytes) -> Response<Body> {
    content(StatusCode::OK, "application/json", body)
}

/// `{"name": …, "tags": […]}`, or the like.
fn list(key: &str, name: Option<&str>, entries: impl Iterator<Item = String>) -> Bytes {
    let mut object = serde_json::Map::new();
    if let Some(name) = name {
        object.insert("name".to_owned(), name.into());
    }
    object.insert(key.to_owned(), entries.map(serde_json::Value::from).collect());
    serde_json::Value::from(object).to_string().into()
}
