//! Carries out what [`plan::plan_refs`] plans: takes refs, and lists of referrers, of which there are too many.
//!
//! A ref that goes costs its repository one question to upstream when it is next asked for, as if it had never been
//! asked. What a pin is about is left alone, and so is all of its repository.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use crate::clock::unix_seconds;
use crate::oci::Repo;
use crate::store::eviction::Sweeper;
use crate::store::eviction::picture::Owners;
use crate::store::eviction::plan::{self, Owner, RefItem, RefLimits};
use crate::store::metadata::Ledger;
use crate::store::metadata::index::{Entry, REPO_ITSELF_BYTES, SeenRef, Short, repo_id};
use crate::store::metadata::refs::Ref;

/// Refs and lists take at most this part of the budget: on a site of ordinary images they take a hundredth.
const REFS_PART: u64 = 16;
/// And may take this much of a tiny one.
const REFS_MIN: u64 = 1 << 20;
/// Refs of one repository: some 240,000 tags, of which `index.json` is as large as any tool would read.
const REPO_REFS_MAX: u64 = 1 << 30;
/// An index in an index, and the manifests of that.
const NESTED_MAX: usize = 3;
/// Refs that come between two looks whether one repository has too many, when all together do not.
const LOOK_BYTES: u64 = REPO_REFS_MAX / 16;

/// Every ref, without its name: there may be millions.
#[derive(Default)]
struct Inventory {
    refs: Vec<RefItem>,
    /// What stands for the name of each.
    ids: Vec<u64>,
    owners: Owners,
    /// The number of each repository, and whether anything in it is whole.
    repos: HashMap<u64, (u32, bool)>,
    /// What must not go.
    kept: HashMap<Owner, u64>,
}

impl Inventory {
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
    /// When each blob was last used, by name, sorted.
    uses: Vec<(Short, u64)>,
    /// Manifests that have all that they need here.
    whole: HashSet<Short>,
}

impl Content {
    fn last_use(&self, name: Short) -> Option<u64> {
        self.uses.binary_search_by_key(&name, |(name, _)| *name).ok().map(|at| self.uses[at].1)
    }
}

impl Ledger {
    /// How much refs, lists and folders of repositories may take.
    pub(in crate::store) fn refs_max(&self) -> u64 {
        (self.budget.max_bytes(self.disk.root()) / REFS_PART).max(REFS_MIN)
    }

    /// There is one more ref. If these are too many now, that is looked after behind.
    pub(in crate::store) fn note_ref(&self) {
        if self.index.refs_bytes() > self.refs_max() {
            self.budget.wake.notify_one();
        }
    }
}

impl Sweeper<'_> {
    /// Takes refs out if there are too many. Returns how many went.
    pub(in crate::store) fn trim_refs(&self) -> usize {
        let (ledger, looked_at) = (self.ledger, &self.ledger.budget.refs_looked_at);
        let (bytes, max) = (ledger.index.refs_bytes(), ledger.refs_max());
        let has_grown = bytes > looked_at.load(Ordering::Relaxed).saturating_add(LOOK_BYTES);
        if !ledger.index.is_complete() || (bytes <= max && !(bytes > REPO_REFS_MAX && has_grown)) {
            return 0;
        }
        let Some(inventory) = self.inventory() else { return 0 };
        let limits = RefLimits { all: max, repo: REPO_REFS_MAX, repo_itself: REPO_ITSELF_BYTES };
        let plan = plan::plan_refs(&inventory.refs, &inventory.kept, limits);
        let goes = plan.into_iter().map(|at| inventory.ids[at]).collect();
        drop(inventory);
        let count = self.remove_refs(&goes);
        looked_at.store(ledger.index.refs_bytes(), Ordering::Relaxed);
        if count > 0 {
            ledger.budget.metrics.space.evicted_refs.inc_by(count as u64);
            tracing::info!(
                count,
                bytes,
                max_bytes = max,
                "too many refs: the least recently used were removed"
            );
        }
        count
    }

    fn inventory(&self) -> Option<Inventory> {
        let ledger = self.ledger;
        let pinned: HashSet<u64> = ledger.pinned_repos()?.iter().map(repo_id).collect();
        let (content, now) = (self.content_of_refs()?, unix_seconds());
        let mut inventory = Inventory::default();
        let are_all = ledger.index.each_ref(&mut |seen| {
            if pinned.contains(&seen.repo_id) {
                let owner = inventory.owners.number(seen.registry);
                *inventory.kept.entry(owner).or_default() += seen.bytes;
            } else {
                inventory.add(&seen, &content, now);
            }
        });
        are_all.then_some(inventory)
    }

    fn content_of_refs(&self) -> Option<Content> {
        let ledger = self.ledger;
        self.note_parts()?;
        let mut content = Content::default();
        let are_all = ledger.index.each_blob(&mut |name, known| content.uses.push((name, known.last_use)));
        // An index has children that were seen before it, or after: as often as they nest.
        for _ in 0..NESTED_MAX {
            let mut whole = std::mem::take(&mut content.whole);
            let are_parts = ledger.index.each_parts(&mut |name, _, parts| {
                let is_here = |name: &Short| content.last_use(*name).is_some();
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

    fn remove_refs(&self, goes: &HashSet<u64>) -> usize {
        let ledger = self.ledger;
        let mut changed: HashSet<Repo> = HashSet::new();
        let entries = ledger.index.refs_of(goes);
        for entry in &entries {
            let (repo, of) = match entry {
                Entry::Tag(repo, tag) => (repo, Ref::Tag(tag)),
                Entry::Manifest(repo, digest) => (repo, Ref::Manifest(digest)),
                Entry::Grant(repo, digest) => (repo, Ref::Blob(digest)),
                Entry::Referrers(repo, digest) => (repo, Ref::Referrers(digest)),
                Entry::Blob(_) | Entry::Repo(_) => continue,
            };
            let _guard = ledger.lock(repo);
            ledger.refs.remove(repo, of);
            ledger.index.remove(entry);
            changed.insert(repo.clone());
        }
        for repo in changed {
            ledger.mark_dirty(&repo);
        }
        entries.len()
    }
}
