//! Makes room: looks at everything, has [`evict`] plan, and carries that out in small steps.
//!
//! Eviction runs behind, woken by every fill, from one mark to another ([`budget`](crate::store::eviction::budget)). A fill for
//! which there is no room all the same waits for it here, on its own blocking thread, until its share is free; if
//! that is not to be had, it passes through unstored.
//!
//! What upstream merely claims to have makes nothing go: [`Sweeper::admit`] looks whether there could be room at all,
//! and [`Sweeper::take_room`] makes it as bytes come.
//!
//! A plan is some seconds old when it is carried out. So before something goes it is looked at once more: a
//! manifest that was served meanwhile keeps its image, and so does a file that is being read or filled. Nothing is
//! synced: a file that comes back after a power loss is whole, and is found by the next start.
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
pub(in crate::store) mod picture;
pub(in crate::store) mod pins;
pub(in crate::store) mod plan;
mod refs;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::clock::{is_within, unix_seconds};
use crate::oci::{Digest, Registry, Repo, Tag};
use crate::store::eviction::budget::{MAP_BYTES, Missing};
use crate::store::eviction::plan::{Goal, Plan, Unit, index};
use crate::store::metadata::Ledger;
use crate::store::metadata::index::Entry;
use crate::store::metadata::refs::Ref;
use crate::store::partial::{PartialKey, Partials};
use crate::store::{Error, Inner};
use crate::sync::lock;

use picture::Picture;

/// How long a fill waits for room: well within the time that its readers are given for a head.
const ADMISSION_MAX: Duration = Duration::from_secs(10);
/// Images that go between two looks at who is waiting, and at what was used meanwhile.
const STEP_UNITS: usize = 32;
/// Looking in vain takes at most this part of the time.
const IN_VAIN_FACTOR: u32 = 9;

/// Who makes room in a store.
pub(in crate::store) struct Sweeper<'a> {
    pub(in crate::store) ledger: &'a Ledger,
    pub(in crate::store) partials: &'a Partials,
}

/// That somebody is evicting, until this is dropped.
struct Turn<'a>(&'a Ledger);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *lock(&self.0.budget.evicting) = false;
        self.0.budget.progress.notify_all();
    }
}

impl<'a> Sweeper<'a> {
    pub(in crate::store) fn of(inner: &'a Inner) -> Self {
        Self { ledger: &inner.ledger, partials: &inner.partials }
    }
}

impl Sweeper<'_> {
    /// Stores small content; a disk without room for it is given some.
    pub(in crate::store) fn put(&self, digest: &Digest, content: &[u8]) -> Result<(), Error> {
        match self.ledger.put(digest, content) {
            Err(error) if error.is_for_want_of_room() && self.make_room(None, content.len() as u64) => {
                self.ledger.put(digest, content)
            }
            other => other,
        }
    }

    /// Evicts down to the lower mark. `stop` ends it early.
    pub(in crate::store) fn run_behind(&self, stop: &AtomicBool) {
        let (ledger, budget) = (self.ledger, &self.ledger.budget);
        if let Some(_turn) = self.turn() {
            self.trim_refs();
        }
        while !stop.load(Ordering::Relaxed)
            && let Some(missing) = budget.behind(ledger.disk.root(), &|| ledger.index.kept_bytes())
            && let Some(turn) = self.turn()
        {
            let excess_max = budget.max_bytes(ledger.disk.root()) / 2;
            let goal = Goal { bytes: missing.best, excess_max };
            if self.evict(None, missing.least, goal, &turn, stop) == 0 {
                return;
            }
        }
    }

    /// Whether a partial file of `total` bytes may begin, all of which will come if `is_whole`. Nothing goes for it
    /// yet, and no room is taken: upstream merely says that it has so much.
    pub(in crate::store) fn admit(&self, key: &PartialKey, total: u64, is_whole: bool) -> Result<(), Error> {
        let (ledger, budget) = (self.ledger, &self.ledger.budget);
        let root = ledger.disk.root();
        let max_bytes = budget.max_bytes(root);
        if total > max_bytes {
            return Err(Error::TooLarge { bytes: total, max_bytes });
        }
        let kept_bytes = || ledger.index.kept_bytes();
        let bytes = total.saturating_add(MAP_BYTES);
        match budget.missing(root, &kept_bytes, key, bytes) {
            Some(missing) if is_whole && self.may_go(&key.registry) < missing.least => {
                Err(self.no_room(key, missing))
            }
            _ => Ok(()),
        }
    }

    /// Takes room for so many bytes of a partial file, once enough has gone.
    pub(in crate::store) fn take_room(&self, key: &PartialKey, bytes: u64) -> Result<(), Error> {
        let (ledger, budget) = (self.ledger, &self.ledger.budget);
        let deadline = Instant::now() + ADMISSION_MAX;
        loop {
            let kept_bytes = || ledger.index.kept_bytes();
            match budget.reserve(ledger.disk.root(), &kept_bytes, key, bytes) {
                Ok(()) => {
                    // There may be little left for the next.
                    budget.wake.notify_one();
                    return Ok(());
                }
                Err(missing) if self.wait_for(Some(&key.registry), missing, deadline) => {}
                Err(missing) => return Err(self.no_room(key, missing)),
            }
        }
    }

    fn no_room(&self, key: &PartialKey, missing: Missing) -> Error {
        if !missing.is_disk_full {
            return Error::NoRoom { least: missing.least };
        }
        let error = Error::disk_full(&self.partials.path(key));
        self.ledger.disk.condition.failed(missing.least, &error);
        error
    }

    /// Lets so many bytes go for what a registry brings, because the disk itself is full. Returns whether that was
    /// possible.
    pub(in crate::store) fn make_room(&self, registry: Option<&Registry>, bytes: u64) -> bool {
        let missing = Missing { least: bytes, best: bytes, is_disk_full: true, is_floor_hit: false };
        self.wait_for(registry, missing, Instant::now() + ADMISSION_MAX)
    }

    /// Evicts, or waits while others do. Returns whether it is worth to look again.
    fn wait_for(&self, registry: Option<&Registry>, missing: Missing, deadline: Instant) -> bool {
        if let Some(turn) = self.turn() {
            let goal = Goal::of(missing.best);
            let gone = self.evict(registry, missing.least, goal, &turn, &AtomicBool::new(false));
            return gone >= missing.least;
        }
        let budget = &self.ledger.budget;
        let left = deadline.saturating_duration_since(Instant::now());
        let busy = lock(&budget.evicting);
        if *busy {
            drop(budget.progress.wait_timeout(busy, left));
        }
        Instant::now() < deadline
    }

    fn turn(&self) -> Option<Turn<'_>> {
        let mut busy = lock(&self.ledger.budget.evicting);
        if *busy {
            return None;
        }
        *busy = true;
        Some(Turn(self.ledger))
    }

    /// One look, one plan, one sweep. Returns the bytes that went: none unless `least` may go for `bringer`.
    fn evict(
        &self,
        bringer: Option<&Registry>,
        least: u64,
        goal: Goal,
        _turn: &Turn<'_>,
        stop: &AtomicBool,
    ) -> u64 {
        let least = least.max(1);
        let budget = &self.ledger.budget;
        if budget.may_go(bringer).is_some_and(|bytes| bytes < least) {
            return 0;
        }
        // No content goes to make up for them.
        self.trim_refs();
        let started = Instant::now();
        self.ledger.write_uses();
        let Some(picture) = self.look(bringer) else { return 0 };
        let plan = plan::plan(&picture.stock, goal, &|number| self.is_in_use(&picture, number));
        if plan.bytes < least {
            budget.note_may_go(bringer, plan.bytes, started.elapsed() * IN_VAIN_FACTOR);
            tracing::debug!(missing = least, may_go = plan.bytes, "no room can be made");
            return 0;
        }
        budget.forget_may_go();
        self.carry_out(&plan, &picture, stop)
    }

    /// How much could go for what a registry brings. Nothing goes.
    fn may_go(&self, bringer: &Registry) -> u64 {
        let budget = &self.ledger.budget;
        // One look at a time: who waits for it finds what it has found.
        let _one_at_a_time = lock(&budget.looking);
        if let Some(bytes) = budget.may_go(Some(bringer)) {
            return bytes;
        }
        let started = Instant::now();
        self.ledger.write_uses();
        let Some(picture) = self.look(Some(bringer)) else { return 0 };
        let everything =
            plan::plan(&picture.stock, Goal::of(u64::MAX), &|number| self.is_in_use(&picture, number));
        budget.note_may_go(Some(bringer), everything.bytes, started.elapsed() * IN_VAIN_FACTOR);
        everything.bytes
    }

    fn is_in_use(&self, picture: &Picture, number: u32) -> bool {
        let digest = self.ledger.index.long(picture.names[index(number)]);
        digest.is_none_or(|digest| self.ledger.is_in_use(&digest))
    }

    // === The sweep ===

    fn carry_out(&self, plan: &Plan, picture: &Picture, stop: &AtomicBool) -> u64 {
        let (ledger, budget) = (self.ledger, &self.ledger.budget);
        let mut gone = HashSet::new();
        let mut freed = 0;
        for (number, unit) in plan.units.iter().enumerate() {
            if number % STEP_UNITS == 0 {
                ledger.write_uses();
                budget.progress.notify_all();
            }
            if stop.load(Ordering::Relaxed) || ledger.pins.changes() != picture.pins {
                break;
            }
            match self.remove(unit, picture, &mut gone) {
                Ok(bytes) => freed += bytes,
                Err(error) => {
                    // A disk that fails, or became read-only. The next fill tries again.
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot evict");
                    break;
                }
            }
        }
        budget.metrics.space.evicted_bytes.inc_by(freed);
        tracing::info!(bytes = freed, manifests_and_blobs = gone.len(), "evicted");
        self.forget(&gone);
        freed
    }

    fn remove(&self, unit: &Unit, picture: &Picture, gone: &mut HashSet<Digest>) -> Result<u64, Error> {
        let ledger = self.ledger;
        let numbers = match unit {
            Unit::Blobs(numbers) => numbers,
            Unit::Partial(number) => {
                return self.partials.drop_abandoned(ledger, &picture.partials[index(*number)]);
            }
        };
        let names = numbers.iter().map(|number| picture.names[index(*number)]);
        let digests: Vec<Digest> = names.filter_map(|name| ledger.index.long(name)).collect();
        // Served, read or filled since the plan was made.
        let is_wanted = |digest: &Digest| ledger.is_in_use(digest) || self.is_leased(digest);
        if digests.iter().any(is_wanted) {
            return Ok(0);
        }
        let mut freed = 0;
        for digest in digests {
            freed += ledger.remove_blob(&digest)?;
            ledger.budget.metrics.space.evicted_blobs.inc();
            gone.insert(digest);
        }
        Ok(freed)
    }

    /// Whether it is a manifest that was served a moment ago. A layer that was is none of anybody's business: who
    /// reads it has it open.
    fn is_leased(&self, digest: &Digest) -> bool {
        let lease = self.ledger.budget.limits().lease;
        let is_recent = |last_use: u64| is_within(last_use, lease, unix_seconds());
        self.ledger.index.has_parts(digest)
            && self.ledger.index.known(digest).is_some_and(|known| is_recent(known.last_use))
    }

    // === The refs ===

    /// Takes out what refs say of content that is gone.
    fn forget(&self, gone: &HashSet<Digest>) {
        if gone.is_empty() {
            return;
        }
        let ledger = self.ledger;
        ledger.index.forget(gone);
        let mentions = ledger.index.mentions(gone);
        let mut changed: HashSet<Repo> = HashSet::new();
        for (repo, digest) in mentions.grants {
            self.forget_grant(&repo, &digest);
            changed.insert(repo);
        }
        for (repo, tag) in mentions.tags {
            self.forget_tag(&repo, &tag, gone);
            changed.insert(repo);
        }
        for repo in changed {
            ledger.mark_dirty(&repo);
        }
    }

    fn forget_grant(&self, repo: &Repo, digest: &Digest) {
        let ledger = self.ledger;
        let _guard = ledger.lock(repo);
        if self.is_back(digest) {
            return;
        }
        for of in [Ref::Blob(digest), Ref::Manifest(digest), Ref::Referrers(digest)] {
            ledger.refs.remove(repo, of);
        }
        ledger.index.remove(&Entry::Manifest(repo.clone(), *digest));
        ledger.index.remove(&Entry::Grant(repo.clone(), *digest));
        ledger.index.remove(&Entry::Referrers(repo.clone(), *digest));
    }

    fn forget_tag(&self, repo: &Repo, tag: &Tag, gone: &HashSet<Digest>) {
        let ledger = self.ledger;
        let _guard = ledger.lock(repo);
        // It may have moved meanwhile.
        let record = ledger.index.tag(repo, tag);
        if record.is_some_and(|record| gone.contains(&record.digest) && !self.is_back(&record.digest)) {
            ledger.refs.remove(repo, Ref::Tag(tag));
            ledger.index.remove(&Entry::Tag(repo.clone(), tag.clone()));
        }
    }

    /// Whether content that went has come back, or is about to.
    fn is_back(&self, digest: &Digest) -> bool {
        self.ledger.blobs.size(digest).is_some() || self.ledger.budget.is_filling(digest)
    }
}

impl Ledger {
    /// Whether a blob must not go just now.
    fn is_in_use(&self, digest: &Digest) -> bool {
        self.budget.is_filling(digest) || self.opened.is_being_read(digest)
    }

    /// Removes a stored blob, if it is there. Returns how large it was. Who has it open keeps it.
    pub(in crate::store) fn remove_blob(&self, digest: &Digest) -> Result<u64, Error> {
        self.opened.forget(digest);
        let size = self.blobs.remove(digest)?;
        // Once more: somebody may have opened it just before.
        self.opened.forget(digest);
        self.index.remove(&Entry::Blob(*digest));
        Ok(size)
    }
}
