//! Makes room: looks at everything, has [`evict`] plan, and carries that out in small steps.
//!
//! Eviction runs behind, woken by every fill, from one mark to another ([`budget`](crate::store::eviction::budget)). A fill for
//! which there is no room all the same waits for it here, on its own blocking thread, until its share is free; if
//! that is not to be had, it passes through unstored.
//!
//! What upstream merely claims to have makes nothing go: [`Eviction::admit`] looks whether there could be room at all,
//! and [`Eviction::take_room`] makes it as bytes come.
//!
//! # What becomes of the refs
//!
//! They count, and have a limit of their own within the budget, so that nothing goes for a flood of them
//! (`sweep/refs.rs`).
//!
//! Grants, manifest records and lists of referrers go with the content that they are about, and a tag goes with
//! its manifest: otherwise a site that pulls a few new images each day would have millions of small files after
//! some years, and lists of tags that nobody can be served. The next pull asks upstream, as it would have to
//! anyway, and is granted again. A repository of which nothing is left goes as well, when its layout is rendered.

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

/// How long a fill waits for room: well within the time that its readers are given for a head.
const ADMISSION_MAX: Duration = Duration::from_secs(10);
/// Looking in vain takes at most this part of the time.
const IN_VAIN_FACTOR: u32 = 9;

/// Keeps what is stored within its limits. All methods block.
pub(in crate::store) struct Eviction {
    disk: Arc<Disk>,
    metadata: Arc<Metadata>,
    contents: Arc<Contents>,
    partials: Partials,
    budget: Budget,
    pins: Pins,
    refs: RefTrimmer,
    sweeping: SweepLock,
    /// Held during a look at what could go.
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

    /// Stores small content; a disk without room for it is given some.
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

    /// Counts a blob whose file has come.
    pub(in crate::store) fn note_stored(&self, digest: &Digest, size: u64) {
        self.contents.note_stored(digest, size);
        self.budget.wake();
    }

    /// Notes that there is one more ref. If these are too many now, that is looked after behind.
    pub(in crate::store) fn note_ref(&self) {
        if self.metadata.index().refs_bytes() > self.refs_max() {
            self.budget.wake();
        }
    }

    /// A partial file has become a blob of `size` bytes.
    pub(in crate::store) fn landed(&self, key: &PartialKey, size: u64) {
        self.disk.condition().succeeded(size);
        self.budget.landed(key, || self.note_stored(&key.digest, size));
    }

    /// Where the file of a blob belongs.
    pub(in crate::store) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.contents.blobs().path(digest)
    }

    /// A partial file takes room for so many of its bytes from now on.
    pub(in crate::store) fn count_partial(&self, key: &PartialKey, bytes: u64) {
        self.budget.count_partial(key, bytes + MAP_BYTES);
    }

    /// A partial file is gone.
    pub(in crate::store) fn release(&self, key: &PartialKey) {
        self.budget.release(key);
    }

    // === Limits ===

    /// The most that all may take, in bytes.
    pub(in crate::store) fn max_bytes(&self) -> u64 {
        self.budget.max_bytes(self.disk.root())
    }

    /// The most that refs, lists and folders of repositories may take, in bytes.
    pub(in crate::store) fn refs_max(&self) -> u64 {
        RefTrimmer::max(self.max_bytes())
    }

    /// Bytes of all that counts.
    pub(in crate::store) fn used_bytes(&self) -> u64 {
        self.budget.used_bytes(&|| self.metadata.index().kept_bytes())
    }

    /// How much further room is taken at a time, in bytes, for what has come so far.
    pub(in crate::store) fn step(&self, received: u64) -> u64 {
        budget::step(received, self.max_bytes())
    }

    /// From now on other limits count, and the configuration has other pins.
    pub(in crate::store) fn set_limits(&self, limits: Limits) {
        self.budget.set_limits(limits);
        self.pins.note_change();
    }

    /// Keeps an image from now on. A pin of the same image is replaced.
    pub(in crate::store) fn pin(&self, pin: &Pin) -> Result<Pinned, Error> {
        self.pins.pin(pin)
    }

    /// Lets an image go its way. Returns whether it was pinned by command.
    pub(in crate::store) fn unpin(&self, image: &Image) -> Result<bool, Error> {
        self.pins.unpin(image)
    }

    /// Every pin, those of the configuration first, and what it keeps.
    pub(in crate::store) fn pinned(&self) -> Vec<Pinned> {
        self.pins.all(&self.budget.limits().pins)
    }

    // === Room ===

    /// Returns when eviction behind may have something to do.
    pub(in crate::store) async fn woken(&self) {
        self.budget.woken().await;
    }

    /// Has eviction behind look whether there is something to do.
    pub(in crate::store) fn wake(&self) {
        self.budget.wake();
    }

    /// Evicts down to the lower mark. `stop` ends it early.
    pub(in crate::store) fn run_behind(&self, stop: &AtomicBool) {
        if let Some(_guard) = self.sweeping.try_take() {
            self.trim_refs();
        }
        while !stop.load(Ordering::Relaxed)
            && let Some(missing) =
                self.budget.behind(self.disk.root(), &|| self.metadata.index().kept_bytes())
            && let Some(guard) = self.sweeping.try_take()
        {
            let goal = Goal { bytes: missing.best, excess_max: self.max_bytes() / 2 };
            if self.evict(None, missing.least, goal, &guard, stop) == 0 {
                return;
            }
        }
    }

    /// Whether a partial file of `total` bytes may begin, all of which will come if `is_whole`. Nothing goes for it
    /// yet, and no room is taken: upstream merely says that it has so much.
    pub(in crate::store) fn admit(&self, key: &PartialKey, total: u64, is_whole: bool) -> Result<(), Error> {
        let root = self.disk.root();
        let max_bytes = self.max_bytes();
        if total > max_bytes {
            return Err(Error::TooLarge { bytes: total, max_bytes });
        }
        let kept_bytes = || self.metadata.index().kept_bytes();
        let bytes = total.saturating_add(MAP_BYTES);
        match self.budget.shortfall(root, &kept_bytes, key, bytes) {
            Some(missing) if is_whole && self.may_go(&key.registry) < missing.least => {
                Err(self.no_room(key, missing))
            }
            _ => Ok(()),
        }
    }

    /// Takes room for so many bytes of a partial file, once enough has gone.
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

    /// Lets so many bytes go for what a registry brings, because the disk itself is full. Returns whether that was
    /// possible.
    pub(in crate::store) fn make_room(&self, registry: Option<&Registry>, bytes: u64) -> bool {
        let missing = Shortfall { least: bytes, best: bytes, is_disk_full: true, is_floor_hit: false };
        self.wait_for(registry, missing, Instant::now() + ADMISSION_MAX)
    }

    /// Evicts, or waits while others do. Returns whether it is worth to look again.
    fn wait_for(&self, registry: Option<&Registry>, missing: Shortfall, deadline: Instant) -> bool {
        if let Some(guard) = self.sweeping.try_take() {
            let goal = Goal::of(missing.best);
            let gone = self.evict(registry, missing.least, goal, &guard, &AtomicBool::new(false));
            return gone >= missing.least;
        }
        self.sweeping.wait(deadline.saturating_duration_since(Instant::now()));
        Instant::now() < deadline
    }

    /// One look, one plan, one sweep. Returns the bytes that went: none unless `least` may go for `bringer`.
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
        if budget.may_go(bringer).is_some_and(|bytes| bytes < least) {
            return 0;
        }
        // No content goes to make up for them.
        self.trim_refs();
        let started = Instant::now();
        self.contents.write_uses();
        let Some(picture) = self.look(bringer) else { return 0 };
        let plan = picture.plan(goal, self.metadata.index(), &|digest| self.is_in_use(digest));
        if plan.bytes < least {
            budget.note_may_go(bringer, plan.bytes, started.elapsed() * IN_VAIN_FACTOR);
            tracing::debug!(missing = least, may_go = plan.bytes, "no room can be made");
            return 0;
        }
        budget.forget_may_go();
        let (contents, metadata) = (&*self.contents, &*self.metadata);
        Sweep::new(contents, metadata, &self.partials, budget, &self.pins, &picture).run(&plan, guard, stop)
    }

    /// How much could go for what a registry brings. Nothing goes.
    fn may_go(&self, bringer: &Registry) -> u64 {
        // One look at a time: who waits for it finds what it has found.
        let _one_at_a_time = lock(&self.looking);
        if let Some(bytes) = self.budget.may_go(Some(bringer)) {
            return bytes;
        }
        let started = Instant::now();
        self.contents.write_uses();
        let Some(picture) = self.look(Some(bringer)) else { return 0 };
        let everything =
            picture.plan(Goal::of(u64::MAX), self.metadata.index(), &|digest| self.is_in_use(digest));
        self.budget.note_may_go(Some(bringer), everything.bytes, started.elapsed() * IN_VAIN_FACTOR);
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
