//! Keeps refs within their limit: removes those that [`plan_refs`] chooses, and lists of referrers.
//!
//! A ref that goes costs its repository one question to upstream when it is next asked for, as if it had never been
//! asked. All refs of a repository with a pinned image stay.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::unix_seconds;
use crate::store::eviction::budget::{Budget, Limits};
use crate::store::eviction::owners::Owners;
use crate::store::eviction::pins::Pins;
use crate::store::eviction::plan::refs::{RefItem, RefLimits, plan_refs};
use crate::store::eviction::plan::stock::OwnerId;
use crate::store::metadata::Metadata;
use crate::store::metadata::index::blob_use::ShortDigest;
use crate::store::metadata::index::inventory::{REPO_ITSELF_BYTES, SeenRef, repo_id};

/// Refs and lists may take one part in `REFS_PART` of the budget. On a site of ordinary images they take a hundredth.
const REFS_PART: u64 = 16;
/// Bytes that refs and lists may take of a tiny budget.
const REFS_MIN: u64 = 1 << 20;
/// Bytes that the refs of one repository may take: some 240,000 tags, with an `index.json` as large as any tool would
/// read.
const REPO_REFS_MAX: u64 = 1 << 30;
/// Levels of nested indexes that are followed.
const NESTED_MAX: usize = 3;
/// Bytes of refs that come between two checks whether one repository has too many, while all together do not.
const LOOK_BYTES: u64 = REPO_REFS_MAX / 16;

/// Every ref without its name, because there may be millions.
#[derive(Default)]
struct AllRefs {
    refs: Vec<RefItem>,
    /// The hash of the name of each.
    ids: Vec<u64>,
    owners: Owners,
    /// The number of each repository, and whether anything in it is whole.
    repos: HashMap<u64, (u32, bool)>,
    /// Bytes of refs that must stay, by owner.
    kept: HashMap<OwnerId, u64>,
}

impl AllRefs {
    /// Lists all refs. Those of `pinned` repositories count and must stay. `None` if not all refs are known.
    fn of(metadata: &Metadata, pinned: &HashSet<u64>) -> Option<Self> {
        let (content, now) = (Content::of(metadata)?, unix_seconds());
        let mut all = Self::default();
        let are_all = metadata.index().inventory().each_ref(&mut |seen| {
            if pinned.contains(&seen.repo_id) {
                let owner = all.owners.number(seen.registry);
                *all.kept.entry(owner).or_default() += seen.bytes;
            } else {
                all.add(&seen, &content, now);
            }
        });
        are_all.then_some(all)
    }

    fn add(&mut self, seen: &SeenRef<'_>, content: &Content, now: u64) {
        let next = u32::try_from(self.repos.len()).unwrap_or(u32::MAX);
        let (number, has_whole) = self.repos.entry(seen.repo_id).or_insert((next, false));
        // What goes with the roots of a repository is worth as much as they are, and they are seen before it.
        let is_whole = if seen.is_root { content.whole.contains(&seen.about) } else { *has_whole };
        *has_whole |= is_whole;
        self.refs.push(RefItem {
            owner: self.owners.number(seen.registry),
            repo: *number,
            bytes: seen.bytes,
            // What was noted by a clock that was ahead is no younger than what was used just now.
            worth: seen.used_at.max(content.last_use(seen.about).unwrap_or(0)).min(now),
            is_whole,
        });
        self.ids.push(seen.id);
    }
}

/// What is known of the content that refs are about.
#[derive(Default)]
struct Content {
    /// The last use of each blob, sorted by short digest.
    uses: Vec<(ShortDigest, u64)>,
    /// Manifests with everything stored that they need.
    whole: HashSet<ShortDigest>,
}

impl Content {
    /// Reads what is known of all content; `None` if not all is known.
    fn of(metadata: &Metadata) -> Option<Self> {
        metadata.note_all_parts()?;
        let inventory = metadata.index().inventory();
        let mut content = Self::default();
        let are_all = inventory.each_blob(&mut |name, known| content.uses.push((name, known.last_use)));
        // An index has children that were seen before it, or after: as often as they nest.
        for _ in 0..NESTED_MAX {
            let mut whole = std::mem::take(&mut content.whole);
            let are_parts = inventory.each_parts(&mut |name, _, parts| {
                let is_here = |name: &ShortDigest| content.last_use(*name).is_some();
                let has_all = parts.iter().all(is_here);
                if is_here(&name) && (has_all || parts.iter().any(|part| whole.contains(part))) {
                    whole.insert(name);
                }
            });
            content.whole = whole;
            if !are_parts {
                return None;
            }
        }
        are_all.then_some(content)
    }

    fn last_use(&self, name: ShortDigest) -> Option<u64> {
        self.uses.binary_search_by_key(&name, |(name, _)| *name).ok().map(|at| self.uses[at].1)
    }
}

/// Keeps the refs within their limit.
#[derive(Default)]
pub(in crate::store) struct RefTrimmer {
    /// Bytes of all refs at the last look at all of them.
    looked_at: AtomicU64,
}

impl RefTrimmer {
    /// Returns the bytes that refs, lists and folders of repositories may take of a budget.
    pub(in crate::store) fn max(budget_bytes: u64) -> u64 {
        (budget_bytes / REFS_PART).max(REFS_MIN)
    }

    /// Removes refs if there are too many.
    pub(in crate::store) fn trim(&self, metadata: &Metadata, budget: &Budget, pins: &Pins) {
        let (index, limits) = (metadata.index(), budget.limits());
        let (bytes, max) = (index.refs_bytes(), Self::max(budget.max_bytes(metadata.root())));
        let has_grown = bytes > self.looked_at.load(Ordering::Relaxed).saturating_add(LOOK_BYTES);
        if !index.is_complete() || (bytes <= max && !(bytes > REPO_REFS_MAX && has_grown)) {
            return;
        }
        let Some(all) = Self::look(metadata, pins, &limits) else { return };
        let limits = RefLimits { all: max, repo: REPO_REFS_MAX, repo_itself: REPO_ITSELF_BYTES };
        let plan = plan_refs(&all.refs, &all.kept, limits);
        let goes = plan.into_iter().map(|at| all.ids[at]).collect();
        drop(all);
        let entries = index.inventory().refs_of(&goes);
        metadata.remove_refs(&entries);
        self.looked_at.store(index.refs_bytes(), Ordering::Relaxed);
        let count = entries.len();
        if count > 0 {
            budget.metrics().space.evicted_refs.inc_by(count as u64);
            tracing::info!(
                count,
                bytes,
                max_bytes = max,
                "too many refs: the least recently used were removed"
            );
        }
    }

    fn look(metadata: &Metadata, pins: &Pins, limits: &Limits) -> Option<AllRefs> {
        let pinned: HashSet<u64> = pins.repos(&limits.pins)?.iter().map(repo_id).collect();
        AllRefs::of(metadata, &pinned)
    }
}
