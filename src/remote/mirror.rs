//! What is known of a remote that is a mirror of many registries, most likely another berth.
//!
//! Such a remote is told with each request which registry is meant, and answers with more than a registry does: who it is,
//! whether content is for everybody, and that it does not know a registry at all. What is remembered of single registries
//! and repositories is bounded.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::HeaderMap;
use lru::LruCache;
use tokio::time::Instant;

use crate::bounded;
use crate::context::via::Instance;
use crate::context::{self, RequestContext};
use crate::oci::{Registry, Repo};
use crate::sync::lock;

/// Repositories of which it is remembered what a mirror last said of them.
const TOLD_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// How long a mirror is believed that it does not know a registry: as long as any other absence.
const UNKNOWN_MEMORY: Duration = Duration::from_secs(10);
/// Registries of which it is remembered that a mirror does not know them; names of 255 bytes take a quarter of a megabyte.
const UNKNOWN_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// What is known of the berth that a remote is. Clones share it.
#[derive(Clone)]
pub(crate) struct Mirror(Arc<Known>);

struct Known {
    /// Whether it is believed that content is for everybody: the configuration trusts it, or it proves who it is.
    is_trusted: bool,
    instance: Mutex<Option<Instance>>,
    told: Mutex<LruCache<Repo, bool>>,
    unknown: Unknown,
}

impl Mirror {
    /// A mirror of which nothing is known yet.
    pub(crate) fn new(is_trusted: bool) -> Self {
        let told = Mutex::new(bounded::lru(TOLD_MAX));
        let (instance, unknown) = (Mutex::default(), Unknown::default());
        Self(Arc::new(Known { is_trusted, instance, told, unknown }))
    }

    /// Whether the mirror has said that it is a berth.
    pub(crate) fn is_berth(&self) -> bool {
        lock(&self.0.instance).is_some()
    }

    /// Whether the mirror is this very process.
    pub(crate) fn is_self(&self) -> bool {
        *lock(&self.0.instance) == Some(Instance::own())
    }

    /// Whether the mirror would take the request for a loop.
    pub(crate) fn refuses(&self, context: &RequestContext) -> bool {
        lock(&self.0.instance).is_some_and(|instance| context.has(instance) || !context.may_go_on())
    }

    /// Records which berth answers. Returns whether it is news that this is this very process.
    pub(crate) fn note_instance(&self, answering: Instance) -> bool {
        let before = lock(&self.0.instance).replace(answering);
        before != Some(answering) && answering == Instance::own()
    }

    /// Records whether content of `repo` is for everybody: only if the answer says so, anybody would have had it, and the
    /// mirror is trusted. Returns whether it is.
    pub(crate) fn note_public(&self, repo: Repo, headers: &HeaderMap, is_anonymous: bool) -> bool {
        let is_public = is_anonymous && self.0.is_trusted && context::is_public(headers);
        lock(&self.0.told).put(repo, is_public);
        is_public
    }

    /// Whether the mirror last said that `repo` is for everybody; `None` if it has not been asked for it.
    pub(crate) fn says_public(&self, repo: &Repo) -> Option<bool> {
        lock(&self.0.told).peek(repo).copied()
    }

    /// Records that the mirror does not know `registry`.
    pub(crate) fn note_unknown(&self, registry: &Registry) {
        self.0.unknown.note(registry);
    }

    /// Whether the mirror said a moment ago that it does not know `registry`.
    pub(crate) fn knows_not(&self, registry: &Registry) -> bool {
        self.0.unknown.has(registry)
    }
}

/// The registries that a mirror has said it does not know.
struct Unknown(Mutex<LruCache<Registry, Instant>>);

impl Default for Unknown {
    fn default() -> Self {
        Self(Mutex::new(bounded::lru(UNKNOWN_MAX)))
    }
}

impl Unknown {
    /// Records that the mirror says so now.
    fn note(&self, registry: &Registry) {
        lock(&self.0).put(registry.clone(), Instant::now());
    }

    /// Whether the mirror said so a moment ago.
    fn has(&self, registry: &Registry) -> bool {
        lock(&self.0).peek(registry).is_some_and(|said| said.elapsed() < UNKNOWN_MEMORY)
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
}
