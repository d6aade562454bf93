//! Makes room: looks at everything, has [`evict`] plan, and carries that out in small steps.
//!
//! Eviction runs behind, woken by every fill, from one mark to another ([`budget`](super::budget)). A fill for
//! which there is no room all the same waits for it here, on its own blocking thread, until its share is free; if
//! that is not to be had, it passes through unstored.
//!
//! A plan is some seconds old when it is carried out. So before something goes it is looked at once more: a
//! manifest that was served meanwhile keeps its image, and so does a file that is being read or filled. Nothing is
//! synced: a file that comes back after a power loss is whole, and is found by the next start.
//!
//! # What becomes of the refs
//!
//! Grants, manifest records and lists of referrers go with the content that they are about, and a tag goes with
//! its manifest: otherwise a site that pulls a few new images each day would have millions of small files after
//! some years, and lists of tags that nobody can be served. The next pull asks upstream, as it would have to
//! anyway, and is granted again. A repository of which nothing is left goes as well, when its layout is rendered.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::budget::Missing;
use super::evict::{self, Item, Node, Plan, Stock, Unit, index};
use super::index::{Entry, Short, short};
use super::ledger::Ledger;
use super::partial::{PartialKey, Partials};
use super::refs::Ref;
use super::{Error, Inner, Store, blocking};
use crate::clock::{is_within, unix_seconds};
use crate::oci::manifest::Descriptor;
use crate::oci::{Digest, Manifest, Repo, Tag};
use crate::sync::lock;

/// How long a fill waits for room: well within the time that its readers are given for a head.
const ADMISSION_MAX: Duration = Duration::from_secs(10);
/// Images that go between two looks at who is waiting, and at what was used meanwhile.
const STEP_UNITS: usize = 32;
/// Looking in vain takes at most this part of the time.
const IN_VAIN_FACTOR: u32 = 9;

/// Who makes room in a store.
pub(super) struct Sweeper<'a> {
    pub(super) ledger: &'a Ledger,
    pub(super) partials: &'a Partials,
}

/// Everything that is stored, as it was a moment ago.
struct Picture {
    stock: Stock,
    /// The names of the blobs, sorted.
    names: Vec<Short>,
    /// The names of the partial files.
    partials: Vec<PartialKey>,
    /// Pins as they were; others mean that the plan is void.
    pins: u64,
}

/// That somebody is evicting, until this is dropped.
struct Turn<'a>(&'a Ledger);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *lock(&self.0.budget.evicting) = false;
        self.0.budget.progress.notify_all();
    }
}

impl Store {
    /// Notes what an image claims to weigh, before its blobs are asked for: if that is more than the budget, they
    /// are not kept, rather than to make everything else go.
    pub async fn expect(&self, manifest: &Manifest) {
        let claimed = manifest.blobs.iter().fold(0_u64, |sum, blob| sum.saturating_add(blob.size));
        let blobs: Vec<Digest> = manifest.blobs.iter().filter_map(Descriptor::digest).collect();
        self.ask(move |ledger| ledger.expect(claimed, &blobs)).await;
    }

    /// Whether a blob may be kept, as far as that is known before its size is.
    ///
    /// # Errors
    /// [`Error::Full`] if it belongs to an image that is larger than the budget.
    pub async fn may_keep(&self, digest: &Digest) -> Result<(), Error> {
        let (inner, digest) = (Arc::clone(&self.0), *digest);
        blocking(move || Sweeper::of(&inner).may_keep(&digest)).await
    }
}

impl<'a> Sweeper<'a> {
    pub(super) fn of(inner: &'a Inner) -> Self {
        Self { ledger: &inner.ledger, partials: &inner.partials }
    }
}

impl Sweeper<'_> {
    /// Stores small content; a disk without room for it is given some.
    pub(super) fn put(&self, digest: &Digest, content: &[u8]) -> Result<(), Error> {
        match self.ledger.put(digest, content) {
            Err(error) if error.is_for_want_of_room() && self.make_room(content.len() as u64) => {
                self.ledger.put(digest, content)
            }
            other => other,
        }
    }

    /// Evicts down to the lower mark. `stop` ends it early.
    pub(super) fn run_behind(&self, stop: &AtomicBool) {
        let ledger = self.ledger;
        while !stop.load(Ordering::Relaxed)
            && let Some(missing) = ledger.budget.behind(ledger.disk.root(), &|| ledger.index.used_bytes())
            && let Some(turn) = self.turn()
        {
            if self.evict(missing, &turn, stop) == 0 {
                return;
            }
        }
    }

    /// Reserves room for a partial file of `total` bytes, once enough has gone.
    pub(super) fn admit(&self, key: &PartialKey, total: u64) -> Result<(), Error> {
        let (ledger, budget) = (self.ledger, &self.ledger.budget);
        let root = ledger.disk.root();
        self.may_keep(&key.digest)?;
        if total > budget.max_bytes(root) {
            budget.metrics.too_large.inc();
            return Err(Error::no_room(&self.partials.path(key)));
        }
        let deadline = Instant::now() + ADMISSION_MAX;
        loop {
            match budget.reserve(root, &|| ledger.index.used_bytes(), key, total) {
                Ok(()) => {
                    // There may be little left for the next.
                    budget.wake.notify_one();
                    return Ok(());
                }
                Err(missing) if self.wait_for(missing, deadline) => {}
                Err(missing) => {
                    let error = Error::no_room(&self.partials.path(key));
                    if missing.is_disk_full {
                        ledger.disk.condition.failed(total, &error);
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Refuses what belongs to an image that is larger than the budget.
    pub(super) fn may_keep(&self, digest: &Digest) -> Result<(), Error> {
        if self.ledger.budget.is_too_large(digest) {
            self.ledger.budget.metrics.too_large.inc();
            return Err(Error::no_room(self.ledger.disk.root()));
        }
        Ok(())
    }

    /// Lets so many bytes go, because the disk itself is full. Returns whether that was possible.
    pub(super) fn make_room(&self, bytes: u64) -> bool {
        self.wait_for(
            Missing { least: bytes, best: bytes, is_disk_full: true },
            Instant::now() + ADMISSION_MAX,
        )
    }

    /// Evicts, or waits while others do. Returns whether it is worth to look again.
    fn wait_for(&self, missing: Missing, deadline: Instant) -> bool {
        if let Some(turn) = self.turn() {
            return self.evict(missing, &turn, &AtomicBool::new(false)) >= missing.least;
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

    /// One look, one plan, one sweep. Returns the bytes that went.
    fn evict(&self, missing: Missing, _turn: &Turn<'_>, stop: &AtomicBool) -> u64 {
        let least = missing.least.max(1);
        let budget = &self.ledger.budget;
        if budget.is_exhausted(least) {
            return 0;
        }
        let started = Instant::now();
        self.ledger.write_uses();
        let Some(picture) = self.look() else { return 0 };
        let plan = evict::plan(&picture.stock, missing.best, &|number| self.is_in_use(&picture, number));
        if plan.bytes < least {
            budget.exhausted(plan.bytes, started.elapsed() * IN_VAIN_FACTOR);
            tracing::debug!(missing = least, may_go = plan.bytes, "no room can be made");
            return 0;
        }
        self.carry_out(&plan, &picture, stop)
    }

    fn is_in_use(&self, picture: &Picture, number: u32) -> bool {
        let digest = self.ledger.index.long(picture.names[index(number)]);
        digest.is_none_or(|digest| self.ledger.is_in_use(&digest))
    }

    // === The picture ===

    /// Everything that is stored; `None` while not all of it is known.
    fn look(&self) -> Option<Picture> {
        let ledger = self.ledger;
        if !ledger.index.is_complete() {
            return None;
        }
        let pins = ledger.pins.changes();
        let keep = ledger.keep()?;
        self.note_parts()?;
        let (now, lease) = (unix_seconds(), ledger.budget.limits().lease);
        let mut stock = Stock::default();
        let (mut names, mut is_leased, mut ahead) = (Vec::new(), Vec::new(), Vec::new());
        let are_all = ledger.index.each_blob(&mut |name, known| {
            names.push(name);
            if known.is_ahead(now) {
                ahead.push(name);
            }
            let known = known.believed(now);
            is_leased.push(is_within(known.last_use, lease, now));
            let worth = evict::worth(known.first_use, known.last_use);
            stock.blobs.push(Item { bytes: known.size, worth });
        });
        ledger.index.put_uses(&ahead, now);
        let kept: HashSet<Short> = keep.manifests.iter().map(short).collect();
        let chosen: HashMap<Short, HashSet<Short>> = keep
            .chosen
            .iter()
            .map(|(root, parts)| (short(root), parts.iter().map(short).collect()))
            .collect();
        let number_of = |name: &Short| names.binary_search(name).ok();
        let are_all = are_all
            && ledger.index.each_parts(&mut |name, _, parts| {
                let Some(number) = number_of(&name) else { return };
                let from = stock.parts.len();
                let parts =
                    parts.iter().filter(|part| chosen.get(&name).is_none_or(|chosen| chosen.contains(part)));
                stock.parts.extend(parts.filter_map(number_of).map(to_number));
                let (blob, from, to) = (to_number(number), to_number(from), to_number(stock.parts.len()));
                stock.manifests.push(Node { blob, from, to });
                if is_leased[number] || kept.contains(&name) {
                    stock.held.push(blob);
                }
            });
        let partials = self.look_at_partials(&mut stock);
        are_all.then_some(Picture { stock, names, partials, pins })
    }

    /// Notes what manifests refer to that have come since the last look.
    fn note_parts(&self) -> Option<()> {
        let ledger = self.ledger;
        for (digest, media_type) in ledger.index.without_parts()? {
            // Noted by this. One that the disk does not give is asked for again by the next look.
            let _ = ledger.parts(&digest, &media_type);
        }
        let max_bytes = ledger.budget.max_bytes(ledger.disk.root());
        // The large ones first: what another image needs, too, is no part of a large one only.
        for are_large in [true, false] {
            ledger.index.each_parts(&mut |_, claimed_bytes, parts| {
                if (claimed_bytes > max_bytes) == are_large {
                    ledger.budget.expect(max_bytes, claimed_bytes, parts);
                }
            });
        }
        Some(())
    }

    /// Partial files that nobody fills; each is worth as much as its last change is young.
    fn look_at_partials(&self, stock: &mut Stock) -> Vec<PartialKey> {
        let mut names = Vec::new();
        for (key, bytes) in self.ledger.budget.abandoned() {
            stock.partials.push(Item { bytes, worth: self.partials.last_change(&key) });
            names.push(key);
        }
        names
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
        budget.metrics.evicted_bytes.inc_by(freed);
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
            ledger.budget.metrics.evicted_blobs.inc();
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

    /// Notes what an image of these blobs claims to weigh.
    pub(super) fn expect(&self, claimed_bytes: u64, blobs: &[Digest]) {
        let names: Vec<Short> = blobs.iter().map(short).collect();
        self.budget.expect(self.budget.max_bytes(self.disk.root()), claimed_bytes, &names);
    }

    /// Removes a stored blob, if it is there. Returns how large it was. Who has it open keeps it.
    pub(super) fn remove_blob(&self, digest: &Digest) -> Result<u64, Error> {
        self.opened.forget(digest);
        let size = self.blobs.remove(digest)?;
        // Once more: somebody may have opened it just before.
        self.opened.forget(digest);
        self.index.remove(&Entry::Blob(*digest));
        Ok(size)
    }
}

fn to_number(at: usize) -> u32 {
    u32::try_from(at).expect("a file system has no room for four thousand million blobs")
}
