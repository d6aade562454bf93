//! The berths, or other mirrors, that are asked before a registry itself.
//!
//! Every address of every endpoint is one parent, so that a name which stands for several (a headless service) is
//! several. Rendezvous hashing of what is asked for over them gives each content one home, the same for every child,
//! and an order of the others for when that is down. Where this very process comes in that order the registry itself is
//! asked: site caches may name one another, and themselves.
//!
//! Where a registry is not listed in the configuration parents may be asked for it all the same (`unlisted`).
//!
//! A parent is an [`Upstream`] with one endpoint of its own: its circuit, its login and its connections. It is sent `ns=`
//! and what [`crate::context`] says, and never the registry's login.

use std::collections::{BTreeMap, HashMap};
use std::future::pending;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderMap, Response};
use hyper::body::Incoming;
use lru::LruCache;
use serde::Deserialize;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use url::Host;

use super::agent::UserAgent;
use super::config::{Config, CredentialsConfig, Endpoint, HostName, Timeouts};
use super::headers::Headers;
use super::identity::{ClientCertificate, is_known};
use super::lookups::lookups;
use super::proxy::Proxy;
use super::section::{section, template};
use super::server::Server;
use super::unlisted::Unknown;
use super::{BuildError, Error, Event, Observer, Role, Upstream, resurface};
use crate::bounded;
use crate::context::via::Instance;
use crate::context::{self, RequestContext};
use crate::oci::{Algorithm, Digest, Registry, Repo, RepoName, Tag};
use crate::sync::lock;

/// Between two look-ups of the parents' names: as long as a site may do without a new one.
const RESOLVE_EVERY: Duration = Duration::from_secs(15);
/// How long a look-up may take.
const RESOLVE_MAX: Duration = Duration::from_secs(5);
/// Parents of one name; further addresses are left out.
const ADDRESSES_MAX: usize = 64;
/// Repositories of which it is remembered what a parent last said of them.
const TOLD_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// Indexes of parents begin here, behind those of all endpoints of a registry.
const INDEX_FIRST: usize = 1 << 16;

section! {
    /// `[parents]`: what is asked before the registries, for all of them.
    pub struct ParentsConfig {
        /// Where they are. Each address of a name is a parent.
        pub endpoints: Vec<Endpoint>,
        /// Whether the registries themselves are never asked.
        #[serde(default)]
        pub only: bool,
        /// Whether they are asked for registries that are not listed, too. If they alone are asked that is so unless this
        /// forbids it.
        #[serde(default)]
        pub any: Option<bool>,
    }
}

impl ParentsConfig {
    /// Whether they may know who berth is, so that what they answer is not for everybody.
    pub fn has_identity(&self) -> bool {
        is_known(self.credentials.as_ref(), self.client_certificate.as_ref(), &self.headers)
    }

    /// Whether they are asked for registries that the configuration does not list.
    pub fn take_any(&self) -> bool {
        self.any.unwrap_or(self.only)
    }

    /// What a parent is asked with for the registry of `config`.
    fn template(&self, config: &Config) -> Config {
        let template = template!(self, config.registry.clone());
        // They are in the site. An egress proxy is for what is not.
        Config { offline: config.offline, proxy: Proxy::None, ..template }
    }
}

/// What an [`Upstream`] that is a parent knows of the berth that it is. Clones share it.
#[derive(Clone)]
pub(super) struct Peer(Arc<Known>);

struct Known {
    index: usize,
    /// Whether it is believed that content is for everybody: the configuration trusts it, or it proves who it is.
    is_trusted: bool,
    instance: Mutex<Option<Instance>>,
    told: Mutex<LruCache<Repo, bool>>,
    unknown: Unknown,
}

impl Peer {
    pub(super) fn new(index: usize, is_trusted: bool) -> Self {
        let told = Mutex::new(bounded::lru(TOLD_MAX));
        let (instance, unknown) = (Mutex::default(), Unknown::default());
        Self(Arc::new(Known { index, is_trusted, instance, told, unknown }))
    }

    /// What stands for its endpoint.
    pub(super) fn index(&self) -> usize {
        self.0.index
    }

    /// The registries that it does not know.
    pub(super) fn unknown(&self) -> &Unknown {
        &self.0.unknown
    }

    /// Whether it has said that it is a berth.
    pub(super) fn is_berth(&self) -> bool {
        lock(&self.0.instance).is_some()
    }

    /// Whether it is this very process.
    pub(super) fn is_self(&self) -> bool {
        *lock(&self.0.instance) == Some(Instance::own())
    }

    /// Whether it would take the request for a loop.
    fn refuses(&self, context: &RequestContext) -> bool {
        lock(&self.0.instance).is_some_and(|instance| context.has(instance) || !context.may_go_on())
    }

    /// Hears who answers; true if it is news that this is this very process.
    fn meet(&self, answering: Instance) -> bool {
        let before = lock(&self.0.instance).replace(answering);
        before != Some(answering) && answering == Instance::own()
    }

    /// Hears whether content of `name` is for everybody: only if it says so, would say it to anybody, and is trusted.
    pub(super) fn hear(&self, repo: Repo, headers: &HeaderMap, is_anonymous: bool) -> bool {
        let is_public = is_anonymous && self.0.is_trusted && context::is_public(headers);
        lock(&self.0.told).put(repo, is_public);
        is_public
    }

    fn told(&self, repo: &Repo) -> Option<bool> {
        lock(&self.0.told).peek(repo).copied()
    }
}

impl Upstream {
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

    pub(super) fn settle_by(&self, context: &RequestContext, key: &str) -> Result<RequestContext, Error> {
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

    /// By what a tag has its home at a parent.
    pub(super) fn key_of_tag(&self, name: &RepoName, tag: &Tag) -> String {
        format!("{}/{name}:{tag}", self.registry)
    }

    /// Whether this comes from a parent that is a berth: then an error is about what was asked for rather than about the
    /// parent.
    pub(super) fn meets_berth(&self, server: &Server, sent: &Result<Response<Incoming>, Error>) -> bool {
        let (Some(peer), Ok(response)) = (self.peer(), sent) else { return false };
        let Some(answering) = Instance::answering(response.headers()) else { return false };
        if peer.meet(answering) {
            let (registry, endpoint) = (self.registry(), server.endpoint());
            tracing::info!(%registry, %endpoint, "a parent is this very process: the registry itself is asked in its place");
        }
        true
    }
}

/// One parent.
struct Parent {
    /// The same for every child: the endpoint, and which of its addresses.
    identity: String,
    place: Place,
    upstream: Arc<Upstream>,
}

impl Parent {
    fn peer(&self) -> Option<&Peer> {
        self.upstream.peer()
    }
}

/// The parents of one registry.
pub(super) struct Parents {
    template: Config,
    /// Whether the configuration trusts them all, whatever they prove: `[parents]` are the site's own.
    are_trusted: bool,
    observer: Observer,
    state: Mutex<Members>,
}

struct Members {
    all: Vec<Arc<Parent>>,
    index_next: usize,
}

/// An endpoint, and which of its addresses is meant; none: whichever the system finds.
type Place = (Endpoint, Option<IpAddr>);

impl Parents {
    /// The parents that `config` names. Names are looked up later.
    ///
    /// # Errors
    /// [`BuildError`] when the configuration names something that cannot be used.
    pub(super) fn build(config: &Config, observer: &Observer) -> Result<Option<Self>, BuildError> {
        let template = match &config.parents {
            _ if config.mirror => Config { mirror: false, parents: None, ..config.clone() },
            Some(parents) => parents.template(config),
            None => return Ok(None),
        };
        if template.endpoints.is_empty() {
            return Err(BuildError::NoEndpoints { registry: config.registry.clone() });
        }
        let inner = Arc::clone(observer);
        let observer: Observer = Arc::new(move |registry, event| match event {
            Event::Ended(outcome) => inner(registry, Event::EndedAtParent(outcome)),
            other => inner(registry, other),
        });
        let state = Mutex::new(Members { all: Vec::new(), index_next: INDEX_FIRST });
        let are_trusted = !config.mirror || config.trusted;
        let parents = Self { template, are_trusted, observer, state };
        let places: Vec<_> =
            parents.template.endpoints.iter().flat_map(|endpoint| parents.configured(endpoint)).collect();
        parents.settle(&places)?;
        Ok(Some(parents))
    }

    /// Where an endpoint is as far as the configuration says.
    fn configured(&self, endpoint: &Endpoint) -> Vec<Place> {
        let host = endpoint.as_url().host_str().unwrap_or_default();
        let pinned = self.template.addresses.iter().find(|(name, _)| name.is(host));
        match pinned {
            Some((_, addresses)) => places(endpoint, addresses),
            None => vec![(endpoint.clone(), None)],
        }
    }

    /// Where an endpoint is now; none if that cannot be found out.
    async fn located(&self, endpoint: &Endpoint) -> Option<Vec<Place>> {
        let configured = self.configured(endpoint);
        let Some(Host::Domain(name)) = endpoint.as_url().host() else { return Some(configured) };
        if configured.iter().any(|(_, address)| address.is_some()) {
            return Some(configured);
        }
        let looked_up = lookups().find(&self.template.registry, name);
        let addresses = timeout(RESOLVE_MAX, looked_up).await.ok()?.ok()?;
        (!addresses.is_empty()).then(|| places(endpoint, &addresses))
    }

    /// Where an endpoint was when it was last found out.
    fn known(&self, endpoint: &Endpoint) -> Vec<Place> {
        self.all().iter().map(|parent| parent.place.clone()).filter(|(of, _)| of == endpoint).collect()
    }

    /// These are the parents from now on; those that stay keep what is known of them.
    fn settle(&self, places: &[Place]) -> Result<(), BuildError> {
        let mut members = lock(&self.state);
        let mut all: Vec<Arc<Parent>> = Vec::with_capacity(places.len());
        for (endpoint, address) in places {
            let identity = match address {
                Some(address) => format!("{endpoint} {address}"),
                None => endpoint.to_string(),
            };
            if all.iter().any(|parent| parent.identity == identity) {
                continue;
            }
            let known = members.all.iter().find(|parent| parent.identity == identity);
            let parent = match known {
                Some(parent) => Arc::clone(parent),
                None => {
                    let index = members.index_next;
                    members.index_next += 1;
                    let place = (endpoint.clone(), *address);
                    Arc::new(Parent { upstream: self.member(endpoint, *address, index)?, identity, place })
                }
            };
            all.push(parent);
        }
        members.all = all;
        Ok(())
    }

    fn member(
        &self,
        endpoint: &Endpoint,
        address: Option<IpAddr>,
        index: usize,
    ) -> Result<Arc<Upstream>, BuildError> {
        let mut config = Config { endpoints: vec![endpoint.clone()], ..self.template.clone() };
        let host = endpoint.as_url().host_str().and_then(HostName::parse);
        if let (Some(host), Some(address)) = (host, address) {
            config.addresses.retain(|name, _| *name != host);
            config.addresses.insert(host, vec![address]);
        }
        let is_trusted = self.are_trusted || endpoint.as_url().scheme() == "https";
        Upstream::build_as(Role::Parent(Peer::new(index, is_trusted)), &config, Arc::clone(&self.observer))
    }

    fn all(&self) -> Vec<Arc<Parent>> {
        lock(&self.state).all.clone()
    }

    /// Every parent.
    pub(super) fn upstreams(&self) -> Vec<Arc<Upstream>> {
        self.all().iter().map(|parent| Arc::clone(&parent.upstream)).collect()
    }

    /// Whom to ask for what `key` names, in order; nobody if the registry itself is to be asked.
    pub(super) fn order(&self, key: &str, context: &RequestContext) -> Vec<Arc<Upstream>> {
        if context.is_local() {
            return Vec::new();
        }
        let mut all = self.all();
        all.sort_by_cached_key(|parent| std::cmp::Reverse(weight(&parent.identity, key)));
        let until_self = all.into_iter().take_while(|parent| !parent.peer().is_some_and(Peer::is_self));
        let rest = until_self.filter(|parent| !parent.peer().is_some_and(|peer| peer.refuses(context)));
        rest.map(|parent| Arc::clone(&parent.upstream)).collect()
    }

    /// Whether a parent has said that `name` is for everybody, and none has denied it.
    pub(super) fn is_public(&self, registry: &Registry, name: &RepoName) -> bool {
        let (all, repo) = (self.all(), Repo::new(registry.clone(), name.clone()));
        let mut told = all.iter().filter_map(|parent| parent.peer()?.told(&repo)).peekable();
        told.peek().is_some() && told.all(|is_public| is_public)
    }

    /// Whether a parent has said that `name` is not for everybody.
    pub(super) fn is_private(&self, registry: &Registry, name: &RepoName) -> bool {
        let repo = Repo::new(registry.clone(), name.clone());
        self.all().iter().any(|parent| parent.peer().and_then(|peer| peer.told(&repo)) == Some(false))
    }

    /// Keeps the list of parents, and what is known of each, up to date.
    pub(super) async fn run(&self) {
        if self.template.offline {
            // Nor is DNS asked.
            return pending().await;
        }
        let mut running = JoinSet::new();
        let mut handles: HashMap<usize, AbortHandle> = HashMap::new();
        loop {
            self.look_up().await;
            let all = self.all();
            let indexes: Vec<_> = all.iter().filter_map(|parent| parent.peer().map(Peer::index)).collect();
            handles.retain(|index, handle| {
                let stays = indexes.contains(index);
                if !stays {
                    handle.abort();
                }
                stays
            });
            for (index, parent) in indexes.iter().zip(&all) {
                let upstream = Arc::clone(&parent.upstream);
                handles.entry(*index).or_insert_with(|| running.spawn(upstream.greet_and_tend()));
            }
            std::iter::from_fn(|| running.try_join_next()).for_each(resurface);
            sleep(RESOLVE_EVERY).await;
        }
    }

    /// Looks every name up. One that cannot be found out stays what it was.
    async fn look_up(&self) {
        let mut all = Vec::new();
        for endpoint in &self.template.endpoints {
            match self.located(endpoint).await {
                Some(places) => all.extend(places),
                None => all.extend(self.known(endpoint)),
            }
        }
        if let Err(error) = self.settle(&all) {
            tracing::warn!(%error, "a new parent cannot be used");
        }
    }
}

/// Every address of an endpoint. Of a name with both kinds only those of IPv4 count: they are the same machines.
fn places(endpoint: &Endpoint, addresses: &[IpAddr]) -> Vec<Place> {
    let is_v4 = addresses.iter().any(IpAddr::is_ipv4);
    let mut addresses: Vec<_> = addresses.iter().filter(|address| address.is_ipv4() == is_v4).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.into_iter().take(ADDRESSES_MAX).map(|address| (endpoint.clone(), Some(*address))).collect()
}

/// How near a parent is to what `key` names: the highest weight is its home.
fn weight(identity: &str, key: &str) -> Digest {
    Digest::of(Algorithm::Sha256, format!("{identity}\n{key}").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home<'a>(parents: &[&'a str], key: &str) -> &'a str {
        parents.iter().max_by_key(|parent| weight(parent, key)).unwrap()
    }

    #[test]
    fn every_parent_is_home_to_its_part_and_only_that_moves_when_it_goes() {
        let all = ["http://s:5000 10.0.0.1", "http://s:5000 10.0.0.2", "http://s:5000 10.0.0.3"];
        let mut homes = HashMap::new();
        for number in 0..3000 {
            let key = format!("sha256:{number}");
            let before = home(&all, &key);
            *homes.entry(before).or_insert(0) += 1;
            let after = home(&all[..2], &key);
            assert!(before == after || before == all[2], "{key} moved from {before} to {after}");
        }
        assert!(homes.values().all(|count| (900..1100).contains(count)), "{homes:?}");
    }

    fn registry() -> Config {
        let parents = ParentsConfig {
            endpoints: vec![Endpoint::parse("http://site.example:5000").unwrap()],
            only: false,
            any: None,
            credentials: None,
            ca: Vec::new(),
            client_certificate: None,
            headers: Headers::default(),
            user_agent: None,
            addresses: BTreeMap::new(),
            timeouts: Timeouts::default(),
        };
        let endpoint = Endpoint::parse("https://registry.example").unwrap();
        let config = Config::new("registry.example".parse().unwrap(), vec![endpoint]);
        Config { parents: Some(parents), ..config }
    }

    #[test]
    fn addresses_come_and_go_and_those_that_stay_keep_what_is_known() {
        let observer: Observer = Arc::new(|_, _| {});
        let parents = Parents::build(&registry(), &observer).unwrap().unwrap();
        let endpoint = &parents.template.endpoints[0];
        let settle = |addresses: &[&str]| {
            let addresses: Vec<_> = addresses.iter().map(|text| text.parse().unwrap()).collect();
            parents.settle(&places(endpoint, &addresses)).unwrap();
            parents.all()
        };
        assert_eq!(parents.all()[0].identity, "http://site.example:5000", "until it is looked up");
        let before = settle(&["10.0.0.1", "10.0.0.2"]);
        let after = settle(&["10.0.0.3", "10.0.0.2"]);
        let identities: Vec<_> = after.iter().map(|parent| &*parent.identity).collect();
        assert_eq!(identities, ["http://site.example:5000 10.0.0.2", "http://site.example:5000 10.0.0.3"]);
        assert!(Arc::ptr_eq(&before[1], &after[0]));
        let indexes: Vec<_> = before.iter().chain(&after).filter_map(|parent| parent.peer()).collect();
        assert_ne!(indexes[0].index(), indexes[3].index(), "a new one has a number of its own");
    }

    #[tokio::test]
    async fn a_name_that_cannot_be_looked_up_keeps_no_other_from_being() {
        let observer: Observer = Arc::new(|_, _| {});
        let mut config = registry();
        let section = config.parents.as_mut().unwrap();
        section.endpoints = ["http://gone.invalid:5000", "http://localhost:5000"]
            .map(|text| Endpoint::parse(text).unwrap())
            .to_vec();
        let parents = Parents::build(&config, &observer).unwrap().unwrap();
        let gone = parents.template.endpoints[0].clone();
        let before = places(&gone, &["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()]);
        parents.settle(&before).unwrap();
        parents.look_up().await;
        let all = parents.all();
        assert_eq!(all.iter().take(2).map(|parent| parent.place.clone()).collect::<Vec<_>>(), before);
        let found = &all[2].place;
        assert!(found.0 == parents.template.endpoints[1] && found.1.unwrap().is_loopback(), "{found:?}");
    }

    #[test]
    fn the_order_ends_at_oneself_and_leaves_out_who_has_been_asked() {
        let observer: Observer = Arc::new(|_, _| {});
        let parents = Parents::build(&registry(), &observer).unwrap().unwrap();
        let addresses: Vec<_> = (1..=4).map(|last| IpAddr::from([10, 0, 0, last])).collect();
        parents.settle(&places(&parents.template.endpoints[0], &addresses)).unwrap();
        let order = |context: &RequestContext| -> Vec<_> {
            parents.order("key", context).iter().map(|parent| parent.peer().unwrap().index()).collect()
        };
        let all = order(&RequestContext::default());
        assert_eq!(all.len(), 4);
        let meet = |index: usize, instance: Instance| {
            let upstreams = parents.upstreams();
            let peer = upstreams.iter().filter_map(|parent| parent.peer()).find(|peer| peer.index() == index);
            lock(&peer.unwrap().0.instance).replace(instance);
        };
        let (via, other) = ("1.1 berth-00000000000000aa", "1.1 berth-00000000000000bb");
        let headers = |via: &str| HeaderMap::from_iter([(http::header::VIA, via.parse().unwrap())]);
        meet(all[0], Instance::answering(&headers(via)).unwrap());
        assert_eq!(order(&RequestContext::read(IpAddr::from([10, 0, 0, 9]), &headers(via))), all[1..]);
        assert_eq!(order(&RequestContext::read(IpAddr::from([10, 0, 0, 9]), &headers(other))), all);
        meet(all[2], Instance::own());
        assert_eq!(order(&RequestContext::default()), all[..2]);
        assert!(order(&RequestContext::default().local()).is_empty());
    }

    #[test]
    fn a_machine_with_addresses_of_both_kinds_is_one_parent() {
        let endpoint = Endpoint::parse("http://site:5000").unwrap();
        let check = |addresses: &[&str], expected: &[&str]| {
            let addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
            let found: Vec<_> =
                places(&endpoint, &addresses).into_iter().map(|(_, ip)| ip.unwrap().to_string()).collect();
            assert_eq!(found, expected);
        };
        check(&["fd00::2", "10.0.0.2", "fd00::1", "10.0.0.1", "10.0.0.2"], &["10.0.0.1", "10.0.0.2"]);
        check(&["fd00::2", "fd00::1"], &["fd00::1", "fd00::2"]);
    }
}
