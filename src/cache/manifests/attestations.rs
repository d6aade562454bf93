//! Layers of attestations, which are fetched in the background after their manifest.
//!
//! BuildKit puts an attestation beside the image of each platform: a manifest whose layers are in-toto documents. Some
//! runtimes fetch that manifest and none of its layers; others want the layers before they run the image. In a mixed
//! fleet the first would leave an image in the cache that the others cannot pull while the registry is unreachable. So
//! the small layers are fetched once the manifest is.
//!
//! What a manifest says of its layers is a claim: no more than it says, and not much, is asked for because of it.

use std::sync::Arc;

use memchr::memmem;
use tracing::debug;

use crate::cache::blobs::BlobFinder;
use crate::cache::blobs::blob::Way;
use crate::cache::blobs::chunk::Room;
use crate::cache::error::Error;
use crate::context::{Client, RequestContext};
use crate::oci::manifest::{Kind, Manifest};
use crate::oci::range::Span;
use crate::oci::ranges::Part;
use crate::oci::{Digest, Range, Ranges, Repo};
use crate::shares::{Owner, Shares};

/// How the media types of such layers begin. A manifest without this text has no such layer.
const IN_TOTO: &[u8] = b"application/vnd.in-toto";
/// The largest layer that is fetched, in bytes. Provenance has a few kilobytes, most lists of packages less than this;
/// larger layers come when they are asked for.
const LAYER_BYTES_MAX: u64 = 4 << 20;
/// The most layers of one manifest that are fetched; BuildKit makes one or two.
const LAYERS_MAX: usize = 8;

/// Fetches the layers of attestations.
#[derive(Clone)]
pub(in crate::cache) struct Attestations {
    blobs: Arc<BlobFinder>,
    /// The limit on work in the background.
    behind: Shares,
}

impl Attestations {
    pub(in crate::cache) fn new(blobs: &Arc<BlobFinder>, behind: &Shares) -> Self {
        Self { blobs: Arc::clone(blobs), behind: behind.clone() }
    }

    /// Fetches the small layers of a new manifest in the background, if it is an attestation.
    pub(in crate::cache) fn bring(&self, repo: &Repo, manifest: &Manifest, body: &[u8], client: Client) {
        if manifest.kind != Kind::Image || memmem::find(body, IN_TOTO).is_none() {
            return;
        }
        let small = manifest.blobs.iter().filter(|part| (1..=LAYER_BYTES_MAX).contains(&part.size));
        let small: Vec<_> =
            small.filter_map(|part| Some((part.digest()?, part.size))).take(LAYERS_MAX).collect();
        let (attestations, repo) = (self.clone(), repo.clone());
        tokio::spawn(async move {
            for (digest, bytes) in small {
                let owner = Owner::new(&repo.registry, client);
                let Ok(_permit) = attestations.behind.acquire(owner, 1).await else {
                    debug!(repository = %repo, "layers of an attestation come when they are asked for: too much else is done behind answers");
                    return;
                };
                if let Err(error) = attestations.bring_layer(&repo, &digest, bytes).await {
                    debug!(repository = %repo, %digest, %error, "a layer of an attestation could not be fetched");
                }
            }
        });
    }

    /// Fetches `bytes` bytes of a blob into the store.
    async fn bring_layer(&self, repo: &Repo, digest: &Digest, bytes: u64) -> Result<(), Error> {
        let range = Ranges::One(Range::Closed { first: 0, last: bytes.saturating_sub(1) });
        let blob = self.blobs.find(repo, digest, Some(&range), &RequestContext::default()).await?;
        if blob.is_stored() || blob.is_direct() {
            return Ok(());
        }
        let part = Part { span: Span { start: 0, end: bytes }, is_open: false };
        let mut reading = blob.read(part, Way::Copied(Room::unknown()), Client::Own);
        while reading.next().await?.is_some() {}
        Ok(())
    }
}
