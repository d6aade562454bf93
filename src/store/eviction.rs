//! Eviction: keeps the store within its limits. It looks at everything, plans, and carries the plan out in small
//! steps.
//!
//! It runs in the background, woken by every download, from one mark to another ([`budget`]). A download for which
//! there is no room all the same waits for it here, on its own blocking thread, until its share is free; if that is
//! not to be had, the content passes through unstored.
//!
//! What upstream merely claims to have evicts nothing: [`Eviction::admit`] checks whether there could be room at all,
//! and [`Eviction::take_room`] makes it as bytes come.
//!
//! # What becomes of the refs
//!
//! They count, and have a limit of their own within the budget, so that no content goes for a flood of them
//! (`eviction/refs.rs`).
//!
//! Grants, manifest records and lists of referrers go with the content that they are about, and a tag goes with its
//! manifest: otherwise a site that pulls a few new images each day would have millions of small files after some
//! years, and lists of tags that nobody can be served. The next pull asks upstream, as it would have to anyway, and
//! is granted again. A repository without refs goes as well, when its layout is rendered.
//!
//! This room owns the budget, the pins and the partial files. It uses contents, metadata, blobs and the disk; layouts
//! and downloads use it.

pub(in crate::store) mod budget;
mod owners;
mod picture;
pub(in crate::store) mod pin;
mod pins;
mod plan;
mod refs;
mod sweep;
mod sweep_lock;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::oci::{Digest, Image, Registry};
use crate::store::blobs::partials::{PartialKey, Partials};
use crate::store::contents::Contents;
use crate::store::disk::Disk;
use crate::store::error::Error;
use crate::store::eviction::budget::{Budget, Limits, MAP_BYTES, Shortfall};
use crate::store::eviction::picture::Picture;
use crate::store::eviction::pin::{Pin, Pinned};
use crate::store::eviction::pins::Pins;
use crate::store::eviction::plan::Goal;
use crate::store::eviction::refs::RefTrimmer;
use crate::store::eviction::sweep::{Sweep, is_in_use};
use crate::store::eviction::sweep_lock::{SweepGuard, SweepLock};
use crate::store::metadata::Metadata;
use crate::sync::lock;

/// How long a download waits for room. It is well within the time that its readers have for a response head.
const ADMISSION_MAX: Duration = Duration::from_secs(10);
/// After a look that found nothing, its result is believed for this many times the duration of the look.
const IN_VAIN_FACTOR: u32 = 9;

/// Keeps the store within its limits. All methods block, unless they are `async`.
pub(in crate::store) struct Eviction {
    disk: Arc<Disk>,
    metadata: Arc<Metadata>,
    contents: Arc<Contents>,
    partials: Partials,
    budget: Budget,
    pins: Pins,
    refs: RefTrimmer,
    sweeping: SweepLock,
    /// Held while it is counted how much could be evicted.
    looking: Mutex<()>,
}

impl Eviction {
    pub(in crate::store) fn new(
        disk: Arc<Disk>,
        metadata: Arc<Metadata>,
        contents: Arc<Contents>,
        partials: Partials,
        limits: Limits,
    ) -> Self {
        let budget = Budget::new(limits, Arc::clone(disk.metrics()));
        budget.count_partials(&disk.partial_files().unwrap_or_default());
        Self {
            pins: Pins::load(Arc::clone(&disk), Arc::clone(&metadata)),
            disk,
            metadata,
            contents,
            partials,
            budget,
            refs: RefTrimmer::default(),
            sweeping: SweepLock::default(),
            looking: Mutex::default(),
        }
    }

    pub(in crate::store) fn disk(&self) -> &Disk {
        &self.disk
    }

    pub(in crate::store) fn partials(&self) -> &Partials {
        &self.partials
    }

    // === What comes ===

    /// Stores small content. If the disk has no room for it, something is evicted.
    pub(in crate::store) fn put(&self, digest: &Digest, content: &[u8]) -> Result<(), Error> {
        match self.put_once(digest, content) {
            Err(error) if error.is_for_want_of_room() && self.make_room(None, content.len() as u64) => {
                self.put_once(digest, content)
            }
            other => other,
        }
    }

    fn put_once(&self, digest: &Digest, content: &[u8]) -> Result<(), Error> {
        if self.contents.put(digest, content)? {
            self.budget.wake();
        }
        Ok(())
    }

    /// Notes that the file of a blob was stored.
    pub(in crate::store) fn note_stored(&self, digest: &Digest, size: u64) {
        self.contents.note_stored(digest, size);
        self.budget.wake();
    }

    /// Notes that there may be one more ref. If there are too many, the background eviction removes some.
    pub(in crate::store) fn note_ref(&self) {
        if self.metadata.index().refs_bytes() > self.refs_max() {
            self.budget.wake();
        }
    }

    /// Notes that a partial file has become a blob of `size` bytes.
    pub(in crate::store) fn committed(&self, key: &PartialKey, size: u64) {
        self.disk.condition().succeeded(size);
        self.budget.committed(key, || self.note_stored(&key.digest, size));
    }

    /// Returns the path of the file of a blob.
    pub(in crate::store) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.contents.blobs().path(digest)
    }

    /// Sets the room of a partial file to that of `bytes` and its map.
    pub(in crate::store) fn count_partial(&self, key: &PartialKey, bytes: u64) {
        self.budget.count_partial(key, bytes + MAP_BYTES);
    }

    /// Notes that a partial file is gone.
    pub(in crate::store) fn release(&self, key: &PartialKey) {
        self.budget.release(key);
    }

    // === Limits ===

    /// Returns the most that everything may take, in bytes.
    pub(in crate::store) fn max_bytes(&self) -> u64 {
        self.budget.max_bytes(self.disk.root())
    }

    /// Returns the most that refs, lists and folders of repositories may take, in bytes.
    pub(in crate::store) fn refs_max(&self) -> u64 {
        RefTrimmer::max(self.max_bytes())
    }

    /// Returns the bytes of everything that counts towards the budget.
    pub(in crate::store) fn used_bytes(&self) -> u64 {
        self.budget.used_bytes(&|| self.metadata.index().kept_bytes())
    }

    /// Returns how many bytes of further room are taken at a time after `received` bytes.
    pub(in crate::store) fn step(&self, received: u64) -> u64 {
        budget::step(received, self.max_bytes())
    }

    /// Replaces the limits and the pins of the configuration.
    pub(in crate::store) fn set_limits(&self, limits: Limits) {
        self.budget.set_limits(limits);
        self.pins.note_change();
    }

    /// Keeps an image from now on. A pin of the same image is replaced.
    pub(in crate::store) fn pin(&self, pin: &Pin) -> Result<Pinned, Error> {
        self.pins.pin(pin)
    }

    /// Removes the pin of an image. Returns whether it was pinned by command.
    pub(in crate::store) fn unpin(&self, image: &Image) -> Result<bool, Error> {
        self.pins.unpin(image)
    }

    /// Returns every pin and what it keeps, those of the configuration first.
    pub(in crate::store) fn pinned(&self) -> Vec<Pinned> {
        self.pins.all(&self.budget.limits().pins)
    }

    // === Room ===

    /// Waits until the background eviction may have something to do.
    pub(in crate::store) async fn woken(&self) {
        self.budget.woken().await;
    }

    /// Has the background eviction check whether there is something to do.
    pub(in crate::store) fn wake(&self) {
        self.budget.wake();
    }

    /// Evicts down to the lower mark. `stop` ends it early.
    pub(in crate::store) fn run_in_background(&self, stop: &AtomicBool) {
        if let Some(_guard) = self.sweeping.try_take() {
            self.trim_refs();
        }
        while !stop.load(Ordering::Relaxed)
            && let Some(missing) =
                self.budget.background_shortfall(self.disk.root(), &|| self.metadata.index().kept_bytes())
            && let Some(guard) = self.sweeping.try_take()
        {
            let goal = Goal { bytes: missing.best, excess_max: self.max_bytes() / 2 };
            if self.evict(None, missing.least, goal, &guard, stop) == 0 {
                return;
            }
        }
    }

    /// Checks that there can be room for a partial file of `total` bytes, all of which will come if `is_whole`.
    /// Nothing is evicted and no room is taken yet, because upstream merely claims that size.
    pub(in crate::store) fn admit(&self, key: &PartialKey, total: u64, is_whole: bool) -> Result<(), Error> {
        let root = self.disk.root();
        let max_bytes = self.max_bytes();
        if total > max_bytes {
            return Err(Error::TooLarge { bytes: total, max_bytes });
        }
        let kept_bytes = || self.metadata.index().kept_bytes();
        let bytes = total.saturating_add(MAP_BYTES);
        match self.budget.shortfall(root, &kept_bytes, key, bytes) {
            Some(missing) if is_whole && self.evictable(&key.registry) < missing.least => {
                Err(self.no_room(key, missing))
            }
            _ => Ok(()),
        }
    }

    /// Takes room for `bytes` of a partial file and its map, and evicts what is needed.
    pub(in crate::store) fn take_room(&self, key: &PartialKey, bytes: u64) -> Result<(), Error> {
        let deadline = Instant::now() + ADMISSION_MAX;
        loop {
            let kept_bytes = || self.metadata.index().kept_bytes();
            match self.budget.reserve(self.disk.root(), &kept_bytes, key, bytes + MAP_BYTES) {
                Ok(()) => {
                    // There may be little left for the next.
                    self.budget.wake();
                    return Ok(());
                }
                Err(missing) if self.wait_for(Some(&key.registry), missing, deadline) => {}
                Err(missing) => return Err(self.no_room(key, missing)),
            }
        }
    }

    fn no_room(&self, key: &PartialKey, missing: Shortfall) -> Error {
        if !missing.is_disk_full {
            return Error::NoRoom { least: missing.least };
        }
        let error = Error::disk_full(&self.partials.path(key));
        self.disk.condition().failed(missing.least, &error);
        error
    }

    /// Evicts `bytes` for content of a registry, because the disk itself is full. Returns whether that was possible.
    pub(in crate::store) fn make_room(&self, registry: Option<&Registry>, bytes: u64) -> bool {
        let missing = Shortfall { least: bytes, best: bytes, is_disk_full: true, is_floor_hit: false };
        self.wait_for(registry, missing, Instant::now() + ADMISSION_MAX)
    }

    /// Evicts, or waits while another thread does. Returns whether to try again.
    fn wait_for(&self, registry: Option<&Registry>, missing: Shortfall, deadline: Instant) -> bool {
        if let Some(guard) = self.sweeping.try_take() {
            let goal = Goal::of(missing.best);
            let gone = self.evict(registry, missing.least, goal, &guard, &AtomicBool::new(false));
            return gone >= missing.least;
        }
        self.sweeping.wait(deadline.saturating_duration_since(Instant::now()));
        Instant::now() < deadline
    }

    /// Looks, plans and sweeps once. Returns the bytes that were evicted: none unless `least` may go for `bringer`.
    fn evict(
        &self,
        bringer: Option<&Registry>,
        least: u64,
        goal: Goal,
        guard: &SweepGuard<'_>,
        stop: &AtomicBool,
    ) -> u64 {
        let least = least.max(1);
        let budget = &self.budget;
        if budget.evictable(bringer).is_some_and(|bytes| bytes < least) {
            return 0;
        }
        // No content goes to make up for them.
        self.trim_refs();
        let started = Instant::now();
        self.contents.write_uses();
        let Some(picture) = self.look(bringer) else { return 0 };
        let plan = picture.plan(goal, self.metadata.index(), &|digest| self.is_in_use(digest));
        if plan.bytes < least {
            budget.note_evictable(bringer, plan.bytes, started.elapsed() * IN_VAIN_FACTOR);
            tracing::debug!(missing = least, may_go = plan.bytes, "no room can be made");
            return 0;
        }
        budget.forget_evictable();
        let (contents, metadata) = (&*self.contents, &*self.metadata);
        Sweep::new(contents, metadata, &self.partials, budget, &self.pins, &picture).run(&plan, guard, stop)
    }

    /// Returns how many bytes could be evicted for content of a registry. Evicts nothing.
    fn evictable(&self, bringer: &Registry) -> u64 {
        // One look at a time: who waits for it finds what it has found.
        let _one_at_a_time = lock(&self.looking);
        if let Some(bytes) = self.budget.evictable(Some(bringer)) {
            return bytes;
        }
        let started = Instant::now();
        self.contents.write_uses();
        let Some(picture) = self.look(Some(bringer)) else { return 0 };
        let everything =
            picture.plan(Goal::of(u64::MAX), self.metadata.index(), &|digest| self.is_in_use(digest));
        self.budget.note_evictable(Some(bringer), everything.bytes, started.elapsed() * IN_VAIN_FACTOR);
        everything.bytes
    }

    fn look(&self, bringer: Option<&Registry>) -> Option<Picture> {
        Picture::take(&self.metadata, &self.budget, &self.pins, &self.partials, bringer)
    }

    fn is_in_use(&self, digest: &Digest) -> bool {
        is_in_use(&self.contents, &self.partials, digest)
    }

    fn trim_refs(&self) {
        self.refs.trim(&self.metadata, &self.budget, &self.pins);
    }
}
