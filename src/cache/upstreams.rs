//! The upstreams of one configuration, by registry.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use super::error::Error;
use crate::oci::{Digest, Registry, Repo};
use crate::store::PartialKey;
use crate::upstream::Upstream;

/// The upstreams that a configuration names, and which of its registries are one and the same.
pub(super) struct Upstreams {
    by_registry: HashMap<Registry, Arc<Upstream>>,
    /// The upstream for every registry that the configuration does not name, if it allows such registries.
    unlisted: Option<Arc<Upstream>>,
    /// The names under which each registry is configured: see [`Upstream::is_one_with`].
    one_with: HashMap<Registry, Vec<Registry>>,
}

impl Upstreams {
    pub(super) fn new(upstreams: Vec<Arc<Upstream>>) -> Self {
        let (mut unlisted, upstreams): (Vec<_>, Vec<_>) =
            upstreams.into_iter().partition(|upstream| upstream.registry().is_unlisted());
        let one_with = upstreams.iter().map(|upstream| {
            let same = upstreams
                .iter()
                .filter(|other| other.registry() == upstream.registry() || other.is_one_with(upstream));
            let mut names: Vec<_> = same.map(|other| other.registry().clone()).collect();
            names.sort_unstable();
            (upstream.registry().clone(), names)
        });
        let one_with = one_with.collect();
        let by_registry =
            upstreams.into_iter().map(|upstream| (upstream.registry().clone(), upstream)).collect();
        Self { by_registry, unlisted: unlisted.pop(), one_with }
    }

    /// Every upstream.
    pub(super) fn all(&self) -> impl Iterator<Item = &Upstream> {
        self.by_registry.values().chain(&self.unlisted).map(Arc::as_ref)
    }

    /// The upstream of the registry of `repo`.
    ///
    /// # Errors
    /// [`Error::NoUpstream`].
    pub(super) fn of(&self, repo: &Repo) -> Result<Cow<'_, Arc<Upstream>>, Error> {
        match (self.by_registry.get(&repo.registry), &self.unlisted) {
            (Some(upstream), _) => Ok(Cow::Borrowed(upstream)),
            (None, Some(unlisted)) => Ok(Cow::Owned(unlisted.of_unlisted(&repo.registry))),
            (None, None) => Err(Error::NoUpstream),
        }
    }

    /// Whether there is an upstream for `repo`.
    pub(super) fn serve(&self, repo: &Repo) -> bool {
        self.by_registry.contains_key(&repo.registry) || self.unlisted.is_some()
    }

    /// Whether another configuration has taken the place of the upstream of `repo`.
    pub(super) fn is_retired(&self, repo: &Repo) -> bool {
        self.of(repo).is_ok_and(|upstream| upstream.is_retired())
    }

    /// The key of a content as a download: its digest, and the registry that it comes from.
    pub(super) fn key(&self, repo: &Repo, digest: &Digest) -> PartialKey {
        PartialKey::new(self.one_with(&repo.registry).first().unwrap_or(&repo.registry), digest)
    }

    /// The names under which a registry is configured, always in the same order.
    pub(super) fn one_with<'a>(&'a self, registry: &'a Registry) -> &'a [Registry] {
        self.one_with.get(registry).map_or_else(|| std::slice::from_ref(registry), Vec::as_slice)
    }
}
