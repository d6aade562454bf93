//! Pins: images of which nothing that is stored is evicted, all of them or chosen platforms.
//!
//! `<data_dir>/pins.json` is the truth about those that were made by command, and may be edited while berth is
//! stopped. Those of the configuration are kept in memory only, with the limits of the budget. A pin of a tag follows
//! the tag; while the image that the tag names now is not whole here, the image that it named before stays as well. A
//! pin fetches nothing: it counts from when its image is pulled.
//!
//! Why one file, when other facts have one each: pins are few, and eviction needs all of them each time, of however
//! many repositories. If it cannot be read, nobody knows what is pinned, and nothing is evicted.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::oci::manifest::{Descriptor, Kind, is_manifest_type};
use crate::oci::{Digest, Image, Manifest, Platform, Reference, Repo};
use crate::store::disk::{Disk, FileMode, files};
use crate::store::error::Error;
use crate::store::eviction::pin::{Pin, Pinned};
use crate::store::metadata::records::{decode, encode};
use crate::store::metadata::{CLOSURE_MAX, DEPTH_MAX, Metadata};
use crate::sync::lock;

/// Number of pins that can be made by command: more than anybody looks after.
const PINS_MAX: usize = 10_000;
/// Bytes of `pins.json`: what that many pins take, with room for long names.
const PINS_BYTES_MAX: u64 = 16 << 20;

/// The pins that were made by command, and what all pins keep.
pub(in crate::store) struct Pins {
    disk: Arc<Disk>,
    metadata: Arc<Metadata>,
    path: PathBuf,
    /// The pins; `None` if they could not be read.
    all: Mutex<Option<Vec<Pin>>>,
    changes: AtomicU64,
}

/// What must not be evicted because it is pinned.
#[derive(Default)]
pub(in crate::store) struct Keep {
    /// Manifests whose closure stays.
    pub manifests: HashSet<Digest>,
    /// The manifests that are part of the closure of an index, if not all are.
    pub chosen: HashMap<Digest, HashSet<Digest>>,
}

/// What is stored of an image, and what is missing.
#[derive(Default)]
struct Closure {
    manifests: usize,
    here: u64,
    bytes: u64,
    missing_manifests: u64,
    missing_blobs: u64,
    /// The parts of the root that were followed.
    chosen: HashSet<Digest>,
}

impl Closure {
    /// Whether a client can run it: all manifests that are stored have their blobs.
    fn is_whole(&self, is_index: bool) -> bool {
        self.missing_blobs == 0 && self.manifests > usize::from(is_index)
    }
}

impl Pins {
    pub(in crate::store) fn load(disk: Arc<Disk>, metadata: Arc<Metadata>) -> Self {
        let path = disk.root().join("pins.json");
        let all = match files::read(&path, PINS_BYTES_MAX) {
            Ok(None) if !path.exists() => Some(Vec::new()),
            Ok(Some(content)) => decode(&content),
            Ok(None) | Err(_) => None,
        };
        if all.is_none() {
            tracing::error!(path = %path.display(), "the pins cannot be read: nothing is evicted until they can");
        }
        Self { disk, metadata, path, all: Mutex::new(all), changes: AtomicU64::new(0) }
    }

    /// Returns the number of changes so far.
    pub(in crate::store) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Notes that pins have changed, so that no plan by the old ones is carried out.
    pub(in crate::store) fn note_change(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Changes the pins durably. `change` returns whether it changed anything.
    fn change(&self, change: impl FnOnce(&mut Vec<Pin>) -> bool) -> Result<bool, Error> {
        let failed = |source| Error::io("read", &self.path, source);
        let mut all = lock(&self.all);
        let old = all.as_ref().ok_or_else(|| failed(std::io::Error::other("its content is not known")))?;
        let mut new = old.clone();
        if !change(&mut new) {
            return Ok(false);
        }
        if new.len() > PINS_MAX {
            return Err(failed(std::io::Error::other("it has too many pins")));
        }
        self.disk.replace(&self.path, &encode(&new), FileMode::PLAIN)?;
        *all = Some(new);
        self.note_change();
        Ok(true)
    }

    /// Keeps an image from now on. A pin of the same image is replaced.
    pub(in crate::store) fn pin(&self, pin: &Pin) -> Result<Pinned, Error> {
        self.change(|all| {
            all.retain(|old| old.image != pin.image);
            all.push(pin.clone());
            true
        })?;
        Ok(self.pinned(pin.clone(), false))
    }

    /// Removes the pin of an image. Returns whether it was pinned by command.
    pub(in crate::store) fn unpin(&self, image: &Image) -> Result<bool, Error> {
        self.change(|all| {
            let before = all.len();
            all.retain(|pin| pin.image != *image);
            all.len() < before
        })
    }

    /// Returns every pin and what it keeps, those of the configuration first.
    pub(in crate::store) fn all(&self, configured: &[Pin]) -> Vec<Pinned> {
        let made = lock(&self.all).clone().unwrap_or_default();
        let configured = configured.iter().cloned().map(|pin| self.pinned(pin, true));
        configured.chain(made.into_iter().map(|pin| self.pinned(pin, false))).collect()
    }

    /// Returns the repositories with a pinned image; `None` if the pins are not known.
    pub(in crate::store) fn repos(&self, configured: &[Pin]) -> Option<HashSet<Repo>> {
        let made = lock(&self.all).clone()?;
        Some(made.iter().chain(configured).map(|pin| pin.image.repo.clone()).collect())
    }

    /// Returns what the pins keep; `None` if the pins are not known.
    pub(in crate::store) fn keep(&self, configured: &[Pin]) -> Option<Keep> {
        let made = lock(&self.all).clone()?;
        let mut keep = Keep::default();
        let mut whole = HashSet::new();
        for pin in made.iter().chain(configured) {
            for (root, closure) in self.roots(pin) {
                if pin.platforms.is_empty() || closure.manifests == 0 {
                    whole.insert(root);
                } else {
                    keep.chosen.entry(root).or_default().extend(closure.chosen);
                }
                keep.manifests.insert(root);
            }
        }
        keep.chosen.retain(|root, _| !whole.contains(root));
        Some(keep)
    }

    fn pinned(&self, pin: Pin, configured: bool) -> Pinned {
        let (digest, closure) = match self.roots(&pin).into_iter().next() {
            Some((digest, closure)) => (Some(digest), closure),
            None => (None, Closure::default()),
        };
        let missing = closure.missing_manifests + closure.missing_blobs;
        Pinned { pin, configured, digest, here: closure.here, bytes: closure.bytes, missing }
    }

    /// Returns the images that a pin keeps, first the one that it names now.
    fn roots(&self, pin: &Pin) -> Vec<(Digest, Closure)> {
        let Image { repo, reference } = &pin.image;
        let mut roots = Vec::new();
        let mut add = |digest: Digest, media_type: &str| {
            let closure = self.closure(&digest, media_type, &pin.platforms);
            let is_index = self.is_index(&digest, media_type);
            let is_whole = closure.is_whole(is_index);
            roots.push((digest, closure));
            is_whole
        };
        match reference {
            Reference::Digest(digest) => {
                let record = self.metadata.index().manifest(repo, digest);
                add(*digest, record.as_ref().map_or("", |record| &record.media_type));
            }
            Reference::Tag(tag) => {
                if let Ok(Some(record)) = self.metadata.tag(repo, tag)
                    && !add(record.digest, &record.media_type)
                    && let Some(previous) = record.previous
                {
                    add(previous.digest, &previous.media_type);
                }
            }
        }
        roots
    }

    fn is_index(&self, digest: &Digest, media_type: &str) -> bool {
        self.manifest_here(digest, media_type).is_some_and(|manifest| manifest.kind == Kind::Index)
    }

    fn manifest_here(&self, digest: &Digest, media_type: &str) -> Option<Manifest> {
        self.metadata.stored_manifest(digest, media_type).ok().flatten()
    }

    fn closure(&self, root: &Digest, media_type: &str, platforms: &[Platform]) -> Closure {
        let mut closure = Closure::default();
        let mut seen = HashSet::from([*root]);
        let mut waiting = vec![(*root, media_type, 0)];
        while let Some((digest, media_type, depth)) = waiting.pop() {
            let is_manifest = depth == 0 || is_manifest_type(media_type);
            let Some(size) = self.metadata.blobs().size(&digest) else {
                *(if is_manifest { &mut closure.missing_manifests } else { &mut closure.missing_blobs }) += 1;
                continue;
            };
            closure.here += 1;
            closure.bytes += size;
            let manifest = if is_manifest { self.manifest_here(&digest, media_type) } else { None };
            let Some(manifest) = manifest else { continue };
            closure.manifests += 1;
            for part in manifest.children().filter(|part| is_chosen(&manifest, part, platforms)) {
                let Some(digest) = part.digest() else { continue };
                if depth == 0 {
                    closure.chosen.insert(digest);
                }
                if depth < DEPTH_MAX && seen.len() < CLOSURE_MAX && seen.insert(digest) {
                    waiting.push((digest, part.manifest_type().unwrap_or_default(), depth + 1));
                }
            }
        }
        closure
    }
}

/// Whether a part of a manifest is for one of these platforms. Only the manifests of an index can be for others.
fn is_chosen(manifest: &Manifest, part: &Descriptor, platforms: &[Platform]) -> bool {
    let is_of = |platform: &Platform| part.platform.as_ref().is_some_and(|described| platform.is(described));
    manifest.kind != Kind::Index || platforms.is_empty() || platforms.iter().any(is_of)
}
