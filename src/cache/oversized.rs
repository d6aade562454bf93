//! Images that are larger than the whole budget: their blobs pass through. If they were stored, they would evict
//! everything else, and then one another.
//!
//! A manifest that claims to be that large is only suspected, and only in the repository that it was fetched for: it
//! may name layers of others, with sizes out of thin air. When a blob of it is first asked for there, upstream is asked
//! how large the largest parts are *in that repository*. If those alone are more than the budget, what belongs to the
//! image passes through there. In every other repository, and for images of this one that do fit, the same blobs are
//! stored as ever.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use lru::LruCache;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::error::Error;
use super::upstreams::Upstreams;
use crate::bounded;
use crate::context::{Client, RequestContext};
use crate::oci::manifest::{Descriptor, Manifest};
use crate::oci::{Digest, Document, Registry, Repo};
use crate::parsing;
use crate::shares::Owner;
use crate::store::{self, Store};
use crate::sync::lock;
use crate::telemetry::Metrics;

/// Suspected images of one registry. The least recently asked for is forgotten first, and at worst stored.
const IMAGES_MAX: usize = 64;
/// Parts of all suspected images of one registry: more than any one manifest may name.
const PARTS_MAX: usize = 16_384;
/// Registries with suspected images. A configuration has fewer; with parents there may be any number.
const REGISTRIES_MAX: usize = 256;
/// Parts of one image that upstream is asked about. An image that exceeds the budget only by more parts than these is
/// stored.
const HEADS_MAX: usize = 16;
/// Parts that upstream is asked about at a time.
const HEADS_AT_ONCE: usize = 4;

/// Finds the images that are too large, and says why a blob is not kept.
#[derive(Clone)]
pub(super) struct OversizedImages {
    store: Store,
    metrics: Arc<Metrics>,
    upstreams: Arc<Upstreams>,
    suspected: Arc<Suspected>,
}

/// The images that claim to be larger than the budget, by registry.
#[derive(Default)]
struct Suspected(Mutex<HashMap<Registry, Suspects>>);

/// The suspected images of one registry.
struct Suspects {
    images: LruCache<(Repo, Digest), Suspect>,
    parts: usize,
}

/// A suspected image.
struct Suspect {
    /// The blobs that it names, sorted, without those that an image of the same repository needs that fits.
    parts: Vec<Digest>,
    check: Arc<SizeCheck>,
}

/// What is known of the size of a suspected image.
struct SizeCheck {
    /// Its size in bytes by its own claim.
    bytes: u64,
    /// The blobs that it claims to be largest, the largest first.
    largest: Vec<Digest>,
    /// The size in bytes of these blobs, as upstream has stated it.
    stated: OnceCell<u64>,
}

impl OversizedImages {
    pub(super) fn new(store: &Store, metrics: &Arc<Metrics>, upstreams: &Arc<Upstreams>) -> Self {
        Self {
            store: store.clone(),
            metrics: Arc::clone(metrics),
            upstreams: Arc::clone(upstreams),
            suspected: Arc::default(),
        }
    }

    /// The same state under another configuration.
    pub(super) fn with(&self, upstreams: &Arc<Upstreams>) -> Self {
        Self { upstreams: Arc::clone(upstreams), ..self.clone() }
    }

    /// Suspects the image of a manifest that has come for a repository, or clears it.
    pub(super) async fn weigh(&self, repo: &Repo, digest: &Digest, manifest: &Manifest) {
        if claimed(manifest) > self.store.max_bytes().await {
            self.suspected.suspect(repo, digest, manifest);
        } else {
            self.suspected.clear(repo, digest, manifest);
        }
    }

    /// Suspects again the image of a manifest that was read from disk: an earlier process may have suspected it.
    pub(super) async fn weigh_again(&self, repo: &Repo, document: &Arc<Document>) {
        let digest = document.digest;
        if self.suspected.knows(repo, &digest) {
            return;
        }
        let (document, bytes) = (Arc::clone(document), document.body.len());
        let Ok(_place) = parsing::place(Owner::new(&repo.registry, Client::Own), bytes).await else { return };
        let parse = move || Manifest::parse(Some(&document.media_type), &document.body);
        if let Ok(manifest) = parsing::parse(bytes, parse).await {
            self.weigh(repo, &digest, &manifest).await;
        }
    }

    /// Whether a blob belongs to an image of this repository that is larger than the budget, by what upstream states.
    pub(super) async fn is_oversized(&self, repo: &Repo, blob: &Digest, context: &RequestContext) -> bool {
        for check in self.suspected.size_checks(repo, blob) {
            let max_bytes = self.store.max_bytes().await;
            if check.bytes <= max_bytes {
                continue;
            }
            let stated = check.stated.get_or_try_init(|| self.stated(repo, &check, max_bytes, context)).await;
            // If upstream states no size, the image is treated like any other.
            if stated.is_ok_and(|stated| *stated > max_bytes) {
                return true;
            }
        }
        false
    }

    /// The size in bytes that upstream states for the largest parts of an image; it stops asking above `enough`.
    async fn stated(
        &self,
        repo: &Repo,
        check: &SizeCheck,
        enough: u64,
        context: &RequestContext,
    ) -> Result<u64, Error> {
        let mut sum = 0_u64;
        for some in check.largest.chunks(HEADS_AT_ONCE) {
            let mut sizes = JoinSet::new();
            for digest in some {
                let upstream = self.upstreams.of(repo)?.into_owned();
                let (name, digest) = (repo.name.clone(), *digest);
                let context = upstream.settle(context, &digest)?;
                sizes.spawn(async move { upstream.head_blob(&context, &name, &digest).await });
            }
            while let Some(size) = sizes.join_next().await {
                match size.map_err(|_| Error::GivenUp)? {
                    Ok(size) => sum = sum.saturating_add(size),
                    Err(error) if error.is_outage() => return Err(error.into()),
                    Err(error) => debug!(repository = %repo, %error, "a part of a large image is not there"),
                }
            }
            if sum > enough {
                break;
            }
        }
        Ok(sum)
    }

    /// Counts and logs why a blob is not stored.
    pub(super) fn note_unstored(&self, repo: &Repo, digest: &Digest, cause: &store::Error) {
        let error = cause as &dyn std::error::Error;
        match cause {
            store::Error::TooLarge { .. } => self.note_oversized(repo, digest),
            store::Error::NoRoom { .. } => {
                info!(repository = %repo, %digest, error, "a blob passes through unstored: no room may be made for it");
            }
            _ => {
                warn!(repository = %repo, %digest, error, "the disk cannot give or take a blob: it passes through unstored")
            }
        }
    }

    /// Counts and logs that a blob is not stored because it, or its image, is too large.
    pub(super) fn note_oversized(&self, repo: &Repo, digest: &Digest) {
        self.metrics.space.too_large.inc();
        info!(repository = %repo, %digest, "a blob passes through unstored: it, or its image, is larger than max_bytes");
    }
}

impl Suspected {
    /// Suspects an image of a repository.
    fn suspect(&self, repo: &Repo, digest: &Digest, manifest: &Manifest) {
        let mut by_size: Vec<&Descriptor> = manifest.blobs.iter().collect();
        by_size.sort_by_key(|part| std::cmp::Reverse(part.size));
        let largest = by_size.iter().filter_map(|part| part.digest()).take(HEADS_MAX).collect();
        let mut parts: Vec<Digest> = by_size.iter().filter_map(|part| part.digest()).collect();
        parts.sort_unstable();
        let check = Arc::new(SizeCheck { bytes: claimed(manifest), largest, stated: OnceCell::new() });
        let mut registries = lock(&self.0);
        let owner = repo.registry.owner();
        if registries.len() >= REGISTRIES_MAX && !registries.contains_key(&owner) {
            registries.clear();
        }
        registries.entry(owner).or_default().put(repo, digest, Suspect { parts, check });
    }

    /// Notes that an image of a repository fits: what it needs is stored, whatever else needs it.
    fn clear(&self, repo: &Repo, digest: &Digest, manifest: &Manifest) {
        let mut registries = lock(&self.0);
        let Some(suspects) = registries.get_mut(&repo.registry.owner()) else { return };
        suspects.take(repo, digest);
        let needed: Vec<Digest> = manifest.blobs.iter().filter_map(Descriptor::digest).collect();
        for ((of, _), suspect) in &mut suspects.images {
            if of == repo {
                let before = suspect.parts.len();
                suspect.parts.retain(|part| !needed.contains(part));
                suspects.parts -= before - suspect.parts.len();
            }
        }
    }

    /// The size checks of the suspected images of a repository that name this blob.
    fn size_checks(&self, repo: &Repo, blob: &Digest) -> Vec<Arc<SizeCheck>> {
        let mut registries = lock(&self.0);
        let Some(suspects) = registries.get_mut(&repo.registry.owner()) else { return Vec::new() };
        let names_it = |suspect: &Suspect| suspect.parts.binary_search(blob).is_ok();
        let of_repo = suspects.images.iter().filter(|((of, _), suspect)| of == repo && names_it(suspect));
        let found: Vec<_> = of_repo.map(|(key, suspect)| (key.clone(), Arc::clone(&suspect.check))).collect();
        for (key, _) in &found {
            suspects.images.promote(key);
        }
        found.into_iter().map(|(_, check)| check).collect()
    }

    fn knows(&self, repo: &Repo, digest: &Digest) -> bool {
        let registries = lock(&self.0);
        let key = (repo.clone(), *digest);
        registries.get(&repo.registry.owner()).is_some_and(|suspects| suspects.images.contains(&key))
    }
}

impl Default for Suspects {
    fn default() -> Self {
        let images = bounded::lru(NonZeroUsize::new(IMAGES_MAX).expect("not zero"));
        Self { images, parts: 0 }
    }
}

impl Suspects {
    fn put(&mut self, repo: &Repo, digest: &Digest, suspect: Suspect) {
        self.take(repo, digest);
        self.parts += suspect.parts.len();
        while self.parts > PARTS_MAX || self.images.len() == IMAGES_MAX {
            let Some((_, oldest)) = self.images.pop_lru() else { break };
            self.parts -= oldest.parts.len();
        }
        self.images.put((repo.clone(), *digest), suspect);
    }

    fn take(&mut self, repo: &Repo, digest: &Digest) {
        if let Some(old) = self.images.pop(&(repo.clone(), *digest)) {
            self.parts -= old.parts.len();
        }
    }
}

/// The size in bytes of an image by its own claim.
fn claimed(manifest: &Manifest) -> u64 {
    manifest.blobs.iter().fold(0, |sum, blob| sum.saturating_add(blob.size))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::oci::Algorithm;

    const TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

    fn blob(number: u64) -> Digest {
        Digest::of(Algorithm::Sha256, &number.to_be_bytes())
    }

    fn manifest(blobs: impl Iterator<Item = u64>) -> Manifest {
        let part = |number: u64| {
            let media_type = "application/vnd.oci.image.layer.v1.tar";
            json!({ "mediaType": media_type, "digest": blob(number).to_string(), "size": 1_u64 << 50 })
        };
        let layers: Vec<_> = blobs.map(part).collect();
        let body = json!({ "schemaVersion": 2, "mediaType": TYPE, "config": layers[0], "layers": layers });
        Manifest::parse(Some(TYPE), body.to_string().as_bytes()).unwrap()
    }

    fn repo(name: &str) -> Repo {
        Repo::new("docker.io".parse().unwrap(), name.parse().unwrap())
    }

    #[test]
    fn an_image_is_suspected_in_its_own_repository_and_what_another_needs_is_not() {
        let (suspected, large) = (Suspected::default(), blob(1000));
        suspected.suspect(&repo("a/b"), &large, &manifest(1..4));
        let is_suspected = |name: &str, part| !suspected.size_checks(&repo(name), &blob(part)).is_empty();
        assert!(is_suspected("a/b", 1) && is_suspected("a/b", 3));
        assert!(!is_suspected("a/b", 4) && !is_suspected("a/c", 1));
        suspected.clear(&repo("a/c"), &blob(2000), &manifest(2..3));
        assert!(is_suspected("a/b", 2), "that was in another repository");
        suspected.clear(&repo("a/b"), &blob(2000), &manifest(2..3));
        assert!(is_suspected("a/b", 1) && !is_suspected("a/b", 2));
        suspected.clear(&repo("a/b"), &large, &manifest(1..4));
        assert!(!is_suspected("a/b", 1) && !suspected.knows(&repo("a/b"), &large));
    }

    #[test]
    fn what_is_remembered_of_a_registry_is_bounded() {
        let suspected = Suspected::default();
        for number in 0..200 {
            let parts = number * 1000..number * 1000 + 20 * number + 1;
            suspected.suspect(&repo(&format!("a/r{number}")), &blob(number), &manifest(parts));
        }
        let registries = lock(&suspected.0);
        let suspects = registries.values().next().unwrap();
        let parts: usize = suspects.images.iter().map(|(_, suspect)| suspect.parts.len()).sum();
        assert_eq!(parts, suspects.parts);
        assert!(parts <= PARTS_MAX && suspects.images.len() <= IMAGES_MAX && suspects.images.len() > 3);
    }
}
