//! The berths, or other mirrors, that are asked before a registry itself.
//!
//! Every address of every endpoint is one parent, so that a name which stands for several (a headless service) is
//! several. Rendezvous hashing of what is asked for over them gives each content one home, the same for every child,
//! and an order of the others for when that is down. Where this very process comes in that order the registry itself is
//! asked: site caches may name one another, and themselves.
//!
//! Where a registry is not listed in the configuration parents may be asked for it all the same (`unlisted`).
//!
//! A parent is a [`Remote`] with one endpoint of its own: its circuit, its login and its connections. It is sent `ns=`
//! and what [`crate::context`] says, and never the registry's login.

use std::collections::{BTreeMap, HashMap};
use std::future::pending;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Deserialize;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use url::Host;

use super::build;
use super::config::{Config, CredentialsConfig, Endpoint, HostName, Timeouts};
use super::identity::{ClientCertificate, is_known};
use super::section::{section, template};
use crate::context::RequestContext;
use crate::net::headers::Headers;
use crate::net::lookups::lookups;
use crate::net::proxy::Proxy;
use crate::net::user_agent::UserAgent;
use crate::oci::{Algorithm, Digest, Registry, Repo, RepoName};
use crate::remote::Mirror;
use crate::remote::error::BuildError;
use crate::remote::event::{Event, Observer};
use crate::remote::handle::{Remote, Role};
use crate::remote::upkeep::{self, resurface};
use crate::sync::lock;

/// The interval between DNS look-ups of the parents, and so the delay until a new parent is used.
const RESOLVE_EVERY: Duration = Duration::from_secs(15);
/// The longest time of a DNS look-up.
const RESOLVE_MAX: Duration = Duration::from_secs(5);
/// The most parents of one name; further addresses are left out.
const ADDRESSES_MAX: usize = 64;
/// The first index of a parent, above those of all endpoints of a registry.
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

/// One parent.
struct Parent {
    /// The same for every child: the endpoint, and which of its addresses.
    identity: String,
    place: Place,
    /// What stands for its endpoint.
    index: usize,
    remote: Arc<Remote>,
}

impl Parent {
    fn mirror(&self) -> Option<&Mirror> {
        self.remote.mirror()
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
                    let remote = self.member(endpoint, *address, index)?;
                    Arc::new(Parent { identity, place, index, remote })
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
    ) -> Result<Arc<Remote>, BuildError> {
        let mut config = Config { endpoints: vec![endpoint.clone()], ..self.template.clone() };
        let host = endpoint.as_url().host_str().and_then(HostName::parse);
        if let (Some(host), Some(address)) = (host, address) {
            config.addresses.retain(|name, _| *name != host);
            config.addresses.insert(host, vec![address]);
        }
        let is_trusted = self.are_trusted || endpoint.as_url().scheme() == "https";
        let (role, endpoints) = (Role::Parent(Mirror::new(is_trusted)), (index, &config.endpoints[..]));
        build::remote(role, &config, endpoints, Arc::clone(&self.observer))
    }

    fn all(&self) -> Vec<Arc<Parent>> {
        lock(&self.state).all.clone()
    }

    /// Every parent.
    pub(super) fn remotes(&self) -> Vec<Arc<Remote>> {
        self.all().iter().map(|parent| Arc::clone(&parent.remote)).collect()
    }

    /// The parents to ask for what `key` names of `registry`, in order, without those that do not know it; none if the
    /// registry itself is to be asked.
    pub(super) fn order(&self, registry: &Registry, key: &str, context: &RequestContext) -> Vec<Arc<Remote>> {
        if context.is_local() {
            return Vec::new();
        }
        let mut all = self.all();
        all.sort_by_cached_key(|parent| std::cmp::Reverse(weight(&parent.identity, key)));
        let until_self = all.into_iter().take_while(|parent| !parent.mirror().is_some_and(Mirror::is_self));
        let is_asked = |mirror: &Mirror| !mirror.refuses(context) && !mirror.knows_not(registry);
        let rest = until_self.filter(|parent| parent.mirror().is_none_or(is_asked));
        let named = |parent: Arc<Parent>| match registry.is_unlisted() {
            true => Arc::new(parent.remote.named(registry.clone())),
            false => Arc::clone(&parent.remote),
        };
        rest.map(named).collect()
    }

    /// Whether a parent has just said that it does not know `registry`.
    pub(super) fn is_unknown(&self, registry: &Registry) -> bool {
        let says_so = |mirror: &Mirror| mirror.knows_not(registry);
        self.all().iter().any(|parent| parent.mirror().is_some_and(says_so))
    }

    /// Whether a parent has said that `name` is for everybody, and none has denied it.
    pub(super) fn is_public(&self, registry: &Registry, name: &RepoName) -> bool {
        let (all, repo) = (self.all(), Repo::new(registry.clone(), name.clone()));
        let mut told = all.iter().filter_map(|parent| parent.mirror()?.says_public(&repo)).peekable();
        told.peek().is_some() && told.all(|is_public| is_public)
    }

    /// Whether a parent has said that `name` is not for everybody.
    pub(super) fn is_private(&self, registry: &Registry, name: &RepoName) -> bool {
        let repo = Repo::new(registry.clone(), name.clone());
        self.all()
            .iter()
            .any(|parent| parent.mirror().and_then(|mirror| mirror.says_public(&repo)) == Some(false))
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
            let indexes: Vec<_> = all.iter().map(|parent| parent.index).collect();
            handles.retain(|index, handle| {
                let stays = indexes.contains(index);
                if !stays {
                    handle.abort();
                }
                stays
            });
            for parent in &all {
                let remote = Arc::clone(&parent.remote);
                let begin = || running.spawn(upkeep::greet_and_tend(remote));
                handles.entry(parent.index).or_insert_with(begin);
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
    use http::HeaderMap;

    use super::*;
    use crate::context::via::Instance;

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
        let indexes: Vec<_> = before.iter().chain(&after).map(|parent| parent.index).collect();
        assert_ne!(indexes[0], indexes[3], "a new one has a number of its own");
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
            let registry = Registry::parse("registry.example").unwrap();
            let asked = parents.order(&registry, "key", context);
            asked.iter().map(|parent| parent.endpoints()[0].index()).collect()
        };
        let all = order(&RequestContext::default());
        assert_eq!(all.len(), 4);
        let meet = |index: usize, instance: Instance| {
            let all = parents.all();
            let parent = all.iter().find(|parent| parent.index == index).unwrap();
            parent.mirror().unwrap().note_instance(instance);
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
