//! Offline reports: what is missing from an upstream that is never asked, and which image needs it.
//!
//! An operator who carries images to a site without upstreams wants to know what to carry next. The search for the
//! image is bounded, and happens only when the answer is an error.

use std::sync::Arc;

use super::error::{Error, Missing};
use super::manifests::ManifestFinder;
use crate::oci::{Digest, Image, Reference, Repo, Tag, manifest};
use crate::store::Store;
use crate::upstream;

/// Tags of a repository whose images are searched for a digest.
const TAGS_MAX: usize = 128;

/// Manifests that are read in that search.
const MANIFESTS_MAX: usize = 1000;

/// Says what is missing of an upstream that is never asked.
pub(super) struct OfflineReports {
    store: Store,
    manifests: Arc<ManifestFinder>,
}

impl OfflineReports {
    pub(super) fn new(store: &Store, manifests: &Arc<ManifestFinder>) -> Self {
        Self { store: store.clone(), manifests: Arc::clone(manifests) }
    }

    /// Replaces the error of an upstream that is offline by a report of what is missing. Other errors stay as they are.
    pub(super) async fn describe(&self, repo: &Repo, reference: &Reference, error: Error) -> Error {
        match &error {
            Error::Upstream(cause) if **cause == upstream::Error::Offline => {}
            _ => return error,
        }
        // What cannot be read now does not help to explain.
        let (reference, image) = match reference {
            Reference::Digest(digest) => {
                let image = self.image_with(repo, digest).await.unwrap_or_default();
                (reference.clone(), image)
            }
            Reference::Tag(tag) => match self.store.tag(repo, tag).await {
                Ok(Some(record)) => (Reference::Digest(record.digest), Some(tagged(repo, tag))),
                Ok(None) | Err(_) => (reference.clone(), None),
            },
        };
        Error::Missing(Missing { repo: repo.clone(), reference, image }.into())
    }

    /// A tag of `repo` whose image needs this digest, as a manifest or as a blob.
    async fn image_with(&self, repo: &Repo, digest: &Digest) -> Result<Option<Image>, Error> {
        let mut left = MANIFESTS_MAX;
        for tag in self.store.tags(repo, None, TAGS_MAX).await? {
            let Some(record) = self.store.tag(repo, &tag).await? else { continue };
            if record.digest == *digest || self.needs(repo, &record.digest, digest, &mut left).await? {
                return Ok(Some(tagged(repo, &tag)));
            }
        }
        Ok(None)
    }

    /// Whether the image `root` names `digest`, itself or in one of its manifests, of which at most `left` more are
    /// read.
    async fn needs(
        &self,
        repo: &Repo,
        root: &Digest,
        digest: &Digest,
        left: &mut usize,
    ) -> Result<bool, Error> {
        let names = |parsed: &manifest::Manifest| {
            let parts = parsed.manifests.iter().chain(&parsed.blobs);
            parts.filter_map(manifest::Descriptor::digest).any(|part| part == *digest)
        };
        let Some(root) = self.manifests.parsed(repo, root).await? else { return Ok(false) };
        if names(&root) {
            return Ok(true);
        }
        for child in root.manifests.iter().filter_map(manifest::Descriptor::digest) {
            let Some(fewer) = left.checked_sub(1) else { return Ok(false) };
            *left = fewer;
            if self.manifests.parsed(repo, &child).await?.is_some_and(|child| names(&child)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn tagged(repo: &Repo, tag: &Tag) -> Image {
    Image { repo: repo.clone(), reference: Reference::Tag(tag.clone()) }
}
