//! Whether what an upstream has is for everybody: nothing says who berth is that asks for it.

use super::{Upstream, rename};
use crate::oci::RepoName;

impl Upstream {
    /// Whether nothing says who berth is that asks for `name`, so that anybody could have fetched what comes from it.
    pub async fn is_public(&self, name: &RepoName) -> bool {
        // Through which login a parent has its content is known from its answers only.
        let is_by_parents = self.parents().is_none_or(|parents| parents.is_public(&self.registry, name));
        is_by_parents && self.is_own_public(name).await && self.are_fallbacks_public(name).await
    }

    /// The same of its own endpoints.
    pub(super) async fn is_own_public(&self, name: &RepoName) -> bool {
        let Ok(there) = rename::at_upstream(&self.rewrites, name) else { return false };
        !self.is_always_known && !self.credential.applies_to(&there).await
    }

    /// Whether what it has of a repository is for those with a login, as far as that is known without being asked: a
    /// parent that has not been asked yet has not said.
    pub async fn is_known_private(&self, name: &RepoName) -> bool {
        let is_by_parents = self.parents().is_some_and(|parents| parents.is_private(&self.registry, name));
        is_by_parents || !self.is_own_public(name).await || !self.are_fallbacks_public(name).await
    }
}
