//! What an upstream that is never asked leaves missing, and which image it is missing from.
//!
//! Who carries images to a site without upstreams wants to know what to carry next. The look for the image is
//! bounded, and happens only when the answer is an error.

use std::fmt;

use super::Cache;
use super::error::Error;
use crate::oci::{Digest, Image, Reference, Repo, Tag, manifest};
use crate::upstream;

/// Tags of a repository among whose images that of a digest is looked for.
const TAGS_MAX: usize = 128;

/// Manifests that are read in search of that image.
const MANIFESTS_MAX: usize = 1000;

/// Something that is not here, in a registry that is offline by configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Where it would be.
    pub repo: Repo,
    /// What was asked for, or what the tag that was asked for means.
    pub reference: Reference,
    /// An image of the repository that needs it, if one is known.
    pub image: Option<Image>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { repo, reference, image } = self;
        write!(f, "{} is offline by this mirror's configuration, and ", repo.registry)?;
        match (reference, image) {
            (Reference::Digest(digest), Some(image)) => write!(f, "{image} is missing {digest}"),
            (Reference::Digest(digest), None) => write!(f, "{repo} is missing {digest}"),
            (Reference::Tag(tag), _) => write!(f, "{repo}:{tag} is not here"),
        }
    }
}

impl Cache {
    /// Says of what an upstream that is offline was not asked for what it is. Other errors stay as they are.
    pub(super) async fn explain(&self, repo: &Repo, reference: &Reference, error: Error) -> Error {
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
            Reference::Tag(tag) => match self.0.store.tag(repo, tag).await {
                Ok(Some(record)) => (Reference::Digest(record.digest), Some(tagged(repo, tag))),
                Ok(None) | Err(_) => (reference.clone(), None),
            },
        };
        Error::Missing(Missing { repo: repo.clone(), reference, image }.into())
    }

    /// A tag of `repo` whose image needs this, as a manifest or as a blob.
    async fn image_with(&self, repo: &Repo, digest: &Digest) -> Result<Option<Image>, Error> {
        let mut left = MANIFESTS_MAX;
        for tag in self.0.store.tags(repo, None, TAGS_MAX).await? {
            let Some(record) = self.0.store.tag(repo, &tag).await? else { continue };
            if record.digest == *digest || self.needs(repo, &record.digest, digest, &mut left).await? {
                return Ok(Some(tagged(repo, &tag)));
            }
        }
        Ok(None)
    }

    /// Whether the image `root` names `digest`, itself or in one of its manifests; of these so many more are read.
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
        let Some(root) = self.parsed(repo, root).await? else { return Ok(false) };
        if names(&root) {
            return Ok(true);
        }
        for child in root.manifests.iter().filter_map(manifest::Descriptor::digest) {
            let Some(fewer) = left.checked_sub(1) else { return Ok(false) };
            *left = fewer;
            if self.parsed(repo, &child).await?.is_some_and(|child| names(&child)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn tagged(repo: &Repo, tag: &Tag) -> Image {
    Image { repo: repo.clone(), reference: Reference::Tag(tag.clone()) }
}
