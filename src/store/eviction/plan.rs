//! What goes when there is no room: a pure plan. It is made from a picture (`eviction/picture.rs`), and carried out
//! by the sweep (`eviction/sweep.rs`).
//!
//! # The rule, for operators
//!
//! 1. The image that has gone unused for longest goes first, whole: its manifests, and the layers that no image
//!    which stays needs.
//! 2. One that was asked for again, more than an hour after it came, counts as used 30 days later than it was
//!    ([`worth`]): what is pulled once, such as the builds of a pipeline, does not push out what is pulled daily.
//! 3. What no image needs (a layer that other images used later than the last that went, an abandoned download)
//!    waits for its turn by the same rule.
//! 4. What another registry has been asked for within a week is spared, up to that registry's fair share: see
//!    [`shares`]. Among the content of one registry there is no such thing.
//!
//! What a manifest names that another registry alone has is not part of its image here.
//!
//! Held content never goes: the closures of pins, and of manifests that were served a moment ago, and what is being
//! read or downloaded.
//!
//! # Why so
//!
//! Plain least-recently-used per blob forgets what is popular whenever many images are pulled once, and keeps layers
//! whose manifests are gone. The simulator in `plan/tests.rs` compares: bytes fetched again are some 0.75 to 0.85 of
//! what plain LRU needs, whether 30 or 1,000 images are pulled in a day, and Belady's optimum, which knows the
//! future, is at 0.5. Counting every use (with decay) gained nothing over counting "again", and a roll-out on a
//! hundred nodes is one occasion, not a hundred. The bonus ends: an image that was popular once is not kept for ever.
//!
//! The size of an image is no reason to keep it or to let it go: a byte costs as much to fetch again whatever it
//! belongs to.

pub(in crate::store) mod refs;
pub(in crate::store) mod shares;
pub(in crate::store) mod stock;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};

use crate::store::eviction::plan::shares::FairShares;
use crate::store::eviction::plan::stock::{Stock, index};

/// Seconds after the first use within which further uses count as the same occasion.
const OCCASION_SECONDS: u64 = 60 * 60;
/// Seconds that are added to the last use of something that was asked for again.
const AGAIN_SECONDS: u64 = 30 * 24 * 60 * 60;

/// Returns the time up to which something is worth keeping, in seconds since 1970. Only comparisons have a meaning.
pub(in crate::store) fn worth(first_use: u64, last_use: u64) -> u64 {
    let again = last_use.saturating_sub(first_use) > OCCASION_SECONDS;
    last_use + if again { AGAIN_SECONDS } else { 0 }
}

/// How much is to be evicted.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Goal {
    pub bytes: u64,
    /// The plan ends before a unit by which this many more bytes would go: room that nobody needs yet is not worth an
    /// image that fills half of it.
    pub excess_max: u64,
}

impl Goal {
    /// Makes a goal of something that needs the room now.
    pub(in crate::store) fn of(bytes: u64) -> Self {
        Self { bytes, excess_max: u64::MAX }
    }
}

/// Content that is evicted together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) enum Unit {
    /// A manifest and what goes with it, or a single blob that nothing needs.
    Blobs(Vec<u32>),
    /// A partial file.
    Partial(u32),
}

/// What is to be evicted, in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Plan {
    pub units: Vec<Unit>,
    pub bytes: u64,
}

/// A candidate for eviction. They are ordered by worth and then by number, so that a plan is the same each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Candidate {
    Blob(u32),
    Partial(u32),
}

/// Chooses what to evict until the goal is reached or nothing more may go.
///
/// `is_in_use` says whether a blob must not go just now. Its whole image then stays.
pub(in crate::store) fn plan(stock: &Stock, goal: Goal, is_in_use: &dyn Fn(u32) -> bool) -> Plan {
    let mut sorting = Sorting::new(stock);
    let mut plan = Plan::default();
    while plan.bytes < goal.bytes
        && let Some(Reverse((worth, candidate))) = sorting.waiting.pop()
    {
        let (unit, bytes) = match candidate {
            Candidate::Partial(number) => (Unit::Partial(number), stock.partials[index(number)].bytes),
            Candidate::Blob(number) => {
                let Some(unit) = sorting.remove(number, worth, is_in_use) else { continue };
                let bytes = unit.iter().map(|number| stock.blobs[index(*number)].bytes).sum::<u64>();
                (Unit::Blobs(unit), bytes)
            }
        };
        if (plan.bytes + bytes).saturating_sub(goal.bytes) > goal.excess_max {
            break;
        }
        plan.bytes += bytes;
        plan.units.push(unit);
    }
    plan
}

/// A plan in the making.
struct Sorting<'a> {
    stock: &'a Stock,
    /// For each blob, how many stored manifests that stay refer to it.
    needed_by: Vec<u32>,
    held: Vec<bool>,
    /// The blobs that were asked for within a week, themselves or as a part of an image.
    recent: Vec<bool>,
    shares: FairShares,
    waiting: BinaryHeap<Reverse<(u64, Candidate)>>,
}

impl<'a> Sorting<'a> {
    fn new(stock: &'a Stock) -> Self {
        let mut needed_by = vec![0; stock.blobs.len()];
        for part in stock.manifests.iter().flat_map(|node| stock.own_parts_of(node.blob)) {
            needed_by[index(part)] += 1;
        }
        let numbers = || (0..).zip(&stock.blobs);
        let asked_for = numbers().filter(|(_, blob)| blob.is_recent).map(|(number, _)| number).collect();
        let recent = stock.closure(asked_for, true);
        let shares = FairShares::new(stock, &recent);
        let mut held = stock.closure(stock.held.clone(), false);
        let leased = stock.closure(stock.leased.clone(), true);
        held.iter_mut().zip(leased).for_each(|(held, is_leased)| *held |= is_leased);
        let mut sorting = Self { stock, needed_by, held, recent, shares, waiting: BinaryHeap::new() };
        for number in (0..).take(stock.blobs.len()) {
            if sorting.needed_by[index(number)] == 0 && !sorting.held[index(number)] {
                let worth = sorting.worth_of_all(number);
                sorting.waiting.push(Reverse((worth, Candidate::Blob(number))));
            }
        }
        for (number, partial) in (0..).zip(&stock.partials) {
            sorting.waiting.push(Reverse((partial.worth, Candidate::Partial(number))));
        }
        sorting
    }

    /// Returns the worth of an image, which is that of its most wanted manifest: clients may ask for the index, for a
    /// platform's manifest, or for both. Layers do not count, because other images may have made them popular.
    fn worth_of_all(&self, root: u32) -> u64 {
        let mut worth = self.stock.blobs[index(root)].worth;
        // Each once: a hostile index can name the same one a thousand times on each of several levels.
        let mut seen = HashSet::new();
        let mut waiting = vec![root];
        while let Some(number) = waiting.pop() {
            let is_manifest = |part: &u32| !self.stock.parts_of(*part).is_empty();
            for part in self.stock.own_parts_of(number).filter(is_manifest) {
                if seen.insert(part) {
                    worth = worth.max(self.stock.blobs[index(part)].worth);
                    waiting.push(part);
                }
            }
        }
        worth
    }

    /// Takes out an image or a single blob. Returns it and what goes with it; `None` if any of that is in use, or
    /// spared for another registry.
    fn remove(&mut self, root: u32, worth: u64, is_in_use: &dyn Fn(u32) -> bool) -> Option<Vec<u32>> {
        let stock = self.stock;
        let mut goes = vec![root];
        let mut stays = Vec::new();
        let mut at = 0;
        while let Some(number) = goes.get(at).copied() {
            at += 1;
            for part in stock.own_parts_of(number) {
                let needed_by = &mut self.needed_by[index(part)];
                *needed_by -= 1;
                if *needed_by > 0 || self.held[index(part)] {
                    continue;
                }
                // A manifest's worth is in that of its image; a layer may have been used later by others.
                let is_manifest = !stock.parts_of(part).is_empty();
                if is_manifest || stock.blobs[index(part)].worth <= worth {
                    goes.push(part);
                } else {
                    stays.push(part);
                }
            }
        }
        let stays_whole = goes.iter().any(|number| is_in_use(*number));
        if stays_whole || !self.shares.take(stock, &self.recent, &goes) {
            for part in goes.iter().flat_map(|number| stock.own_parts_of(*number)) {
                self.needed_by[index(part)] += 1;
            }
            return None;
        }
        for number in stays {
            let own = stock.blobs[index(number)].worth;
            self.waiting.push(Reverse((own, Candidate::Blob(number))));
        }
        Some(goes)
    }
}

#[cfg(test)]
mod tests;
