//! Carries a plan out, in small steps.
//!
//! A plan is some seconds old when it is carried out. So everything is checked once more before it goes: a manifest
//! that was served meanwhile keeps its image, and so does a file that is being read or downloaded. Nothing is synced:
//! a file that comes back after a power loss is whole, and is found by the next start.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::clock::{is_within, unix_seconds};
use crate::oci::Digest;
use crate::store::blobs::partials::Partials;
use crate::store::contents::Contents;
use crate::store::error::Error;
use crate::store::eviction::budget::Budget;
use crate::store::eviction::picture::Picture;
use crate::store::eviction::pins::Pins;
use crate::store::eviction::plan::{Plan, Unit};
use crate::store::eviction::sweep_lock::SweepGuard;
use crate::store::metadata::Metadata;

/// Number of images that are evicted between two notes of what was used meanwhile.
const STEP_UNITS: usize = 32;

/// A plan being carried out, and what it has evicted.
pub(in crate::store) struct Sweep<'a> {
    contents: &'a Contents,
    metadata: &'a Metadata,
    partials: &'a Partials,
    budget: &'a Budget,
    pins: &'a Pins,
    picture: &'a Picture,
    gone: HashSet<Digest>,
}

impl<'a> Sweep<'a> {
    pub(in crate::store) fn new(
        contents: &'a Contents,
        metadata: &'a Metadata,
        partials: &'a Partials,
        budget: &'a Budget,
        pins: &'a Pins,
        picture: &'a Picture,
    ) -> Self {
        Self { contents, metadata, partials, budget, pins, picture, gone: HashSet::new() }
    }

    /// Evicts what is planned. Returns how many bytes. `stop` ends it early.
    pub(in crate::store) fn run(mut self, plan: &Plan, guard: &SweepGuard<'_>, stop: &AtomicBool) -> u64 {
        let mut freed = 0;
        for (number, unit) in plan.units.iter().enumerate() {
            if number % STEP_UNITS == 0 {
                self.contents.write_uses();
                guard.tell_progress();
            }
            if stop.load(Ordering::Relaxed) || !self.picture.has_pins(self.pins) {
                break;
            }
            match self.remove(unit) {
                Ok(bytes) => freed += bytes,
                Err(error) => {
                    // A disk that fails, or became read-only. The next fill tries again.
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot evict");
                    break;
                }
            }
        }
        self.budget.metrics().space.evicted_bytes.inc_by(freed);
        tracing::info!(bytes = freed, manifests_and_blobs = self.gone.len(), "evicted");
        if !self.gone.is_empty() {
            self.metadata.forget(&self.gone, self.partials);
        }
        freed
    }

    fn remove(&mut self, unit: &Unit) -> Result<u64, Error> {
        let numbers = match unit {
            Unit::Blobs(numbers) => numbers,
            Unit::Partial(number) => return self.remove_partial(*number),
        };
        let index = self.metadata.index();
        let digests = numbers.iter().filter_map(|number| self.picture.digest(index, *number));
        let digests: Vec<Digest> = digests.collect();
        // Served, read or filled since the plan was made.
        let is_wanted =
            |digest: &Digest| is_in_use(self.contents, self.partials, digest) || self.is_leased(digest);
        if digests.iter().any(is_wanted) {
            return Ok(0);
        }
        let mut freed = 0;
        for digest in digests {
            freed += self.contents.remove(&digest)?;
            self.budget.metrics().space.evicted_blobs.inc();
            self.gone.insert(digest);
        }
        Ok(freed)
    }

    /// Removes the file that an earlier download has left, unless it is in use. Returns the room that it took.
    fn remove_partial(&self, number: u32) -> Result<u64, Error> {
        let key = self.picture.partial(number);
        let Some(_in_use) = self.partials.drop_abandoned(key)? else { return Ok(0) };
        Ok(self.budget.release(key))
    }

    /// Whether it is a manifest that was served within the lease. Layers are not checked: their readers have them
    /// open.
    fn is_leased(&self, digest: &Digest) -> bool {
        let lease = self.budget.limits().lease;
        let is_recent = |last_use: u64| is_within(last_use, lease, unix_seconds());
        self.metadata.index().has_parts(digest)
            && self.metadata.index().blob_use(digest).is_some_and(|known| is_recent(known.last_use))
    }
}

/// Whether a blob must not go just now, because it is being downloaded or read.
pub(in crate::store) fn is_in_use(contents: &Contents, partials: &Partials, digest: &Digest) -> bool {
    partials.is_filling(digest) || contents.is_being_read(digest)
}
