//! Which upstream is asked for a repository.

use std::borrow::Cow;
use std::sync::Arc;

use super::{Cache, Error};
use crate::oci::{Digest, Registry, Repo};
use crate::store::PartialKey;
use crate::upstream::Upstream;

impl Cache {
    /// Every upstream.
    pub fn upstreams(&self) -> impl Iterator<Item = &Upstream> {
        self.0.upstreams.values().chain(&self.0.unlisted).map(Arc::as_ref)
    }

    /// The upstream of its registry.
    ///
    /// # Errors
    /// [`Error::NoUpstream`].
    pub(super) fn upstream(&self, repo: &Repo) -> Result<Cow<'_, Arc<Upstream>>, Error> {
        match (self.0.upstreams.get(&repo.registry), &self.0.unlisted) {
            (Some(upstream), _) => Ok(Cow::Borrowed(upstream)),
            (None, Some(unlisted)) => Ok(Cow::Owned(unlisted.of_unlisted(&repo.registry))),
            (None, None) => Err(Error::NoUpstream),
        }
    }

    /// Whether there is an upstream for it.
    pub(super) fn is_served(&self, repo: &Repo) -> bool {
        self.0.upstreams.contains_key(&repo.registry) || self.0.unlisted.is_some()
    }

    /// What a content is as a transfer of a repository's registry.
    pub(super) fn key(&self, repo: &Repo, digest: &Digest) -> PartialKey {
        PartialKey::new(self.one_with(&repo.registry).first().unwrap_or(&repo.registry), digest)
    }

    /// The names under which a registry is configured, always in the same order.
    pub(super) fn one_with<'a>(&'a self, registry: &'a Registry) -> &'a [Registry] {
        self.0.one_with.get(registry).map_or_else(|| std::slice::from_ref(registry), Vec::as_slice)
    }
}
