//! Registries that the configuration does not list, which parents are asked for: a node cannot know what its site knows.
//!
//! Clients may name as many as they like, so none of them has anything of its own: one [`Upstream`] stands for all, with its
//! parents, their circuits and connections, and what is asked for one registry is asked by a copy of it with another name.
//! What is remembered of single registries is bounded: what parents have said of their repositories, and that they do not
//! know them at all ([`Unknown`]).

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use super::config::Config;
use super::parents::{ParentsConfig, Peer};
use super::{Role, Upstream};
use crate::bounded;
use crate::context::RequestContext;
use crate::oci::Registry;
use crate::sync::lock;

/// For how long a parent is believed that it does not know a registry: as long as any other absence.
const UNKNOWN_MEMORY: Duration = Duration::from_secs(10);
/// Registries of which it is remembered that a parent does not know them; names of 255 bytes take a quarter of a megabyte.
const UNKNOWN_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

impl Config {
    /// What parents are asked with for every registry that is not listed; `None` if they are not.
    pub fn unlisted(parents: &ParentsConfig, offline: bool) -> Option<Self> {
        let parents = parents.take_any().then(|| ParentsConfig { only: true, ..parents.clone() });
        parents.map(|parents| Self {
            offline,
            parents: Some(parents),
            ..Self::new(Registry::all_unlisted(), Vec::new())
        })
    }
}

/// The registries that a parent has said it does not know.
pub(super) struct Unknown(Mutex<LruCache<Registry, Instant>>);

impl Default for Unknown {
    fn default() -> Self {
        Self(Mutex::new(bounded::lru(UNKNOWN_MAX)))
    }
}

impl Unknown {
    /// It says so now.
    pub(super) fn note(&self, registry: &Registry) {
        lock(&self.0).put(registry.clone(), Instant::now());
    }

    /// Whether it said so a moment ago.
    fn has(&self, registry: &Registry) -> bool {
        lock(&self.0).peek(registry).is_some_and(|said| said.elapsed() < UNKNOWN_MEMORY)
    }
}

impl Upstream {
    /// The same for another registry that is not listed.
    pub fn of_unlisted(&self, registry: &Registry) -> Arc<Self> {
        let role = match &self.role {
            Role::Registry(parents, _) => Role::Registry(parents.clone(), Vec::new()),
            Role::Parent(peer) => Role::Parent(peer.clone()),
            Role::Fallback(first) => Role::Fallback(*first),
        };
        Arc::new(Self { registry: registry.clone().unlisted(), role, shared: Arc::clone(&self.shared) })
    }

    /// Whom to ask for what `key` names, in order, but for those who do not know the registry; nobody if it itself is to
    /// be asked.
    pub(super) fn parents_in_order(&self, key: &str, context: &RequestContext) -> Vec<Arc<Self>> {
        let Some(parents) = self.parents() else { return Vec::new() };
        let knows =
            |parent: &Arc<Self>| !parent.peer().is_some_and(|peer| peer.unknown().has(&self.registry));
        let in_order = parents.order(key, context).into_iter().filter(knows);
        match self.registry.is_unlisted() {
            true => in_order.map(|parent| parent.of_unlisted(&self.registry)).collect(),
            false => in_order.collect(),
        }
    }

    /// Whether a parent has just said that it does not know this registry, which nobody else is asked for.
    pub(super) fn unknown_to_parents(&self) -> bool {
        let says_so =
            |parent: &Arc<Self>| parent.peer().is_some_and(|peer: &Peer| peer.unknown().has(&self.registry));
        self.has_only_parents()
            && self.parents().is_some_and(|parents| parents.upstreams().iter().any(says_so))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_a_parent_does_not_know_is_remembered_for_a_while_and_of_so_many_only() {
        let unknown = Unknown::default();
        let registry = |number: usize| Registry::parse(&format!("r{number}.example")).unwrap();
        unknown.note(&registry(0));
        assert!(unknown.has(&registry(0)) && !unknown.has(&registry(1)));
        tokio::time::advance(UNKNOWN_MEMORY).await;
        assert!(!unknown.has(&registry(0)));
        (0..=UNKNOWN_MAX.get()).for_each(|number| unknown.note(&registry(number)));
        assert!(!unknown.has(&registry(0)) && unknown.has(&registry(UNKNOWN_MAX.get())));
    }

    #[test]
    fn one_stands_for_all_of_them_and_shares_what_it_takes_to_ask() {
        let parents: ParentsConfig =
            toml::from_str("endpoints = ['http://site.example:5000']\nany = true").unwrap();
        let config = Config::unlisted(&parents, false).unwrap();
        let all = Upstream::build(&config, Arc::new(|_, _| {})).unwrap();
        let one = all.of_unlisted(&Registry::parse("a.example").unwrap());
        assert!(Arc::ptr_eq(&all.shared, &one.shared) && one.has_only_parents());
        assert_eq!((one.registry().as_str(), one.registry().label()), ("a.example", "other"));
        let asked = one.parents_in_order("key", &RequestContext::default());
        let names: Vec<_> = asked.iter().map(|parent| parent.registry().as_str()).collect();
        assert_eq!(names, ["a.example"]);
        asked[0].peer().unwrap().unknown().note(one.registry());
        assert!(one.parents_in_order("key", &RequestContext::default()).is_empty());
        let other = all.of_unlisted(&Registry::parse("b.example").unwrap());
        assert!(one.unknown_to_parents() && !other.unknown_to_parents());
    }

    #[test]
    fn parents_alone_are_asked_for_any_registry_unless_that_is_forbidden() {
        let check = |keys: &str, expected: bool| {
            let parents: ParentsConfig =
                toml::from_str(&format!("endpoints = ['http://s']\n{keys}")).unwrap();
            assert_eq!(Config::unlisted(&parents, false).is_some(), expected, "{keys}");
        };
        check("", false);
        check("any = true", true);
        check("only = true", true);
        check("only = true\nany = false", false);
    }
}
