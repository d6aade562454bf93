//! The database of the index, behind a fence. This is the only file that names sled.
//!
//! sled 0.34 syncs with `sync_file_range` and so promises nothing across a power loss, and on garbage it may return
//! an error, panic, or quietly lose records. Hence: **no answer is ever an error, only "don't know"** (`None`), for
//! which the caller reads the files; every call is behind `catch_unwind`; the first failure disables the database
//! until it is started over; and all records can be read and counted ([`Database::audit`]), so that broken ones fail
//! then, and lost ones are missed.

use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use sled::{Db, Tree};
use tokio::sync::Notify;

use crate::store::metadata::index::counters::{Counters, Sum, Tally};
use crate::store::metadata::index::guard::{catch, clear_away, drop_quietly};
use crate::store::metadata::index::key::Fact;
use crate::store::metadata::index::trees::{CountedTree, first_number, weight};

/// The version of the trees. Trees of another version are not migrated but rebuilt.
const VERSION: &[u8] = b"berth 3";
/// Bytes of sled's cache, whose default is 1 GiB. Pages outside of it are in the kernel's cache; besides, sled keeps
/// some 50 bytes per record in memory.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// Milliseconds for which sled may keep records in memory only; all of them can be rebuilt. At each flush of a store
/// more than half of whose segments are free, as after a rebuild, sled moves half a megabyte that nobody has changed:
/// once a second that would be 45 GB a day of an idle berth.
const FLUSH_EVERY_MS: u64 = 30_000;

/// The state in which the index was found at the start.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::store) enum IndexState {
    /// It was closed in order, at this time in seconds since 1970. It is right but for later changes.
    Clean(u64),
    /// A process that was killed has left it. It must be compared with the files.
    Unclean,
    /// It is empty now, for this reason, and must be filled from the files.
    Fresh(String),
}

/// Number of records that a recount reads at a time. Nobody else can put one into that tree meanwhile.
const STEP_RECORDS: usize = 500;

/// A database of trees of records. Any record may be lost.
pub(in crate::store) struct Database {
    folder: PathBuf,
    trees: RwLock<Option<Arc<Trees>>>,
    /// Whether it agrees with the files. False while it is rebuilt, and after an unclean stop until it is compared;
    /// then lists, and records that can change, are not read from it.
    is_complete: AtomicBool,
    /// Whether it is marked as closed in order. The next change removes the mark.
    is_closed: AtomicBool,
    /// The sums of each [`CountedTree`].
    counters: Counters,
    /// Notified when it has failed, so that it is rebuilt.
    failed: Arc<Notify>,
}

pub(in crate::store) struct Trees {
    db: Db,
    blob: Tree,
    repo: Tree,
    grant: Tree,
    holding: Tree,
    tag: Tree,
    manifest: Tree,
    parts: Tree,
    referrers: Tree,
    layout: Tree,
    behind: Tree,
    meta: Tree,
}

impl Database {
    /// Opens the database that is there, or an empty one instead, or none if even that fails.
    pub(in crate::store) fn open(folder: &Path, failed: Arc<Notify>) -> (Self, IndexState) {
        let database = Self {
            folder: folder.to_owned(),
            trees: RwLock::default(),
            is_complete: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            counters: Counters::default(),
            failed,
        };
        let opened = if folder.exists() { catch(|| Trees::load(folder)) } else { Err("missing".to_owned()) };
        let found = match opened {
            Ok((trees, sums, closed_at)) => {
                database.install(trees);
                database.counters.set_sums(&sums);
                database.is_complete.store(closed_at.is_some(), Ordering::Release);
                closed_at.map_or(IndexState::Unclean, IndexState::Clean)
            }
            Err(reason) => {
                database.start_over();
                IndexState::Fresh(reason)
            }
        };
        (database, found)
    }

    /// Replaces the database by an empty one. Returns whether that was possible.
    pub(in crate::store) fn start_over(&self) -> bool {
        self.is_complete.store(false, Ordering::Release);
        drop_quietly(self.trees.write().unwrap_or_else(PoisonError::into_inner).take());
        self.counters.set_sums(&[]);
        if let Err(error) = clear_away(&self.folder) {
            tracing::warn!(path = %self.folder.display(), %error, "cannot remove the old index");
        }
        match catch(|| Trees::create(&self.folder)) {
            Ok(trees) => {
                self.install(trees);
                true
            }
            Err(reason) => {
                tracing::warn!(path = %self.folder.display(), reason, "no index: answering from the files alone");
                false
            }
        }
    }

    pub(in crate::store) fn is_disabled(&self) -> bool {
        self.trees.read().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    pub(in crate::store) fn is_complete(&self) -> bool {
        self.is_complete.load(Ordering::Acquire) && !self.is_disabled()
    }

    /// Sets whether it agrees with the files.
    pub(in crate::store) fn set_complete(&self, is_complete: bool) {
        self.is_complete.store(is_complete, Ordering::Release);
    }

    /// Flushes everything and marks the database as closed in order at `at`, unless it has not been compared yet.
    pub(in crate::store) fn close(&self, at: u64) {
        if !self.is_complete() {
            return;
        }
        self.note_sums();
        self.with(|trees| {
            trees.db.flush()?;
            trees.meta.insert("clean", &at.to_be_bytes())?;
            trees.db.flush()
        });
        self.is_closed.store(true, Ordering::Release);
    }

    /// Returns the sum of a tree. After an unclean stop this is what was last noted, until the records are counted.
    pub(in crate::store) fn sum(&self, tree: CountedTree) -> Sum {
        self.counters.of(tree).sum()
    }

    /// Has sled change something. The database is not closed in order any more then.
    pub(in crate::store) fn change<T>(&self, ask: impl FnOnce(&Trees) -> sled::Result<T>) -> Option<T> {
        if self.is_closed.swap(false, Ordering::AcqRel) {
            self.with(|trees| {
                trees.meta.remove("clean")?;
                trees.db.flush()
            });
        }
        self.with(ask)
    }

    /// Asks sled. After the first failure it is not asked again.
    pub(in crate::store) fn with<T>(&self, ask: impl FnOnce(&Trees) -> sled::Result<T>) -> Option<T> {
        let trees = self.trees.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        match catch(|| ask(&trees)) {
            Ok(answer) => Some(answer),
            Err(reason) => {
                tracing::warn!(path = %self.folder.display(), reason, "the index has failed and will be rebuilt");
                self.disable(&trees);
                self.failed.notify_one();
                drop_quietly(trees);
                None
            }
        }
    }

    /// Puts a record, and counts it.
    pub(in crate::store) fn put(&self, tree: CountedTree, key: &[u8], value: &[u8]) {
        let mut counted = self.counters.of(tree);
        self.insert(tree, &mut counted, key, value);
    }

    /// Replaces a record by what `change` returns, if it returns anything. Nobody else changes the record meanwhile.
    pub(in crate::store) fn update(
        &self,
        tree: CountedTree,
        key: &[u8],
        change: impl FnOnce(Option<&[u8]>) -> Option<Vec<u8>>,
    ) {
        let mut counted = self.counters.of(tree);
        let Some(old) = self.with(|trees| trees.of(tree).get(key)) else { return };
        if let Some(value) = change(old.as_deref()) {
            self.insert(tree, &mut counted, key, &value);
        }
    }

    /// Removes a record, and counts that.
    pub(in crate::store) fn take(&self, tree: CountedTree, key: &[u8]) {
        let mut counted = self.counters.of(tree);
        if let Some(Some(old)) = self.change(|trees| trees.of(tree).remove(key)) {
            counted.replace(key, Some(weight(tree, &old)), None);
        }
    }

    fn insert(&self, tree: CountedTree, counted: &mut Tally, key: &[u8], value: &[u8]) {
        if let Some(old) = self.change(|trees| trees.of(tree).insert(key, value)) {
            counted.replace(key, old.map(|old| weight(tree, &old)), Some(weight(tree, value)));
        }
    }

    /// Reads every record once, so that broken ones are found now, and corrects the sums. Returns whether the sums
    /// were right, so that no record was lost.
    pub(in crate::store) fn audit(&self, stop: &AtomicBool) -> bool {
        let mut was_right = true;
        for tree in CountedTree::ALL {
            was_right &= self.recount(tree, stop) == Some(true);
        }
        let others = self.with(|trees| {
            for item in &trees.layout {
                item?;
            }
            Ok(())
        });
        was_right && others.is_some()
    }

    fn recount(&self, tree: CountedTree, stop: &AtomicBool) -> Option<bool> {
        self.counters.of(tree).begin();
        let mut reached = Vec::new();
        loop {
            let mut counted = self.counters.of(tree);
            let mut records = 0;
            let step = self.with(|trees| {
                let from = (Bound::Excluded(&*reached), Bound::Unbounded);
                for item in trees.of(tree).range::<&[u8], _>(from).take(STEP_RECORDS) {
                    let (key, value) = item?;
                    counted.count(&key, weight(tree, &value));
                    records += 1;
                }
                Ok(())
            });
            if step.is_none() || stop.load(Ordering::Relaxed) {
                counted.abandon();
                return None;
            }
            if records < STEP_RECORDS {
                return counted.end();
            }
            reached = counted.reached()?.to_vec();
        }
    }

    /// Writes the sums down for the next start.
    pub(in crate::store) fn note_sums(&self) {
        let sums = self.counters.to_bytes();
        self.with(|trees| trees.meta.insert("sums", sums));
    }

    fn install(&self, trees: Trees) {
        *self.trees.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(trees));
    }

    /// Takes failed trees out of use, unless others have taken their place already.
    fn disable(&self, failed: &Arc<Trees>) {
        let mut trees = self.trees.write().unwrap_or_else(PoisonError::into_inner);
        if trees.as_ref().is_some_and(|trees| Arc::ptr_eq(trees, failed)) {
            self.is_complete.store(false, Ordering::Release);
            // Not the last one: the caller has `failed`, and drops it without the lock.
            *trees = None;
        }
    }
}

impl Trees {
    /// Opens the trees that another process has left. Returns also their sums, and when they were closed in order.
    fn load(folder: &Path) -> sled::Result<(Self, Vec<u8>, Option<u64>)> {
        let trees = Self::open(folder)?;
        if trees.meta.get("version")?.as_deref() != Some(VERSION) {
            return Err(sled::Error::Unsupported("of another version".to_owned()));
        }
        let sums = trees.meta.get("sums")?.map(|sums| sums.to_vec()).unwrap_or_default();
        // Until it is closed in order.
        let closed_at = trees.meta.remove("clean")?.map(|at| first_number(&at));
        trees.db.flush()?;
        Ok((trees, sums, closed_at))
    }

    fn create(folder: &Path) -> sled::Result<Self> {
        let trees = Self::open(folder)?;
        trees.meta.insert("version", VERSION)?;
        trees.db.flush()?;
        Ok(trees)
    }

    fn open(folder: &Path) -> sled::Result<Self> {
        let config = sled::Config::new().path(folder).cache_capacity(CACHE_BYTES);
        let db = config.flush_every_ms(Some(FLUSH_EVERY_MS)).open()?;
        Ok(Self {
            blob: db.open_tree("blob")?,
            repo: db.open_tree("repo")?,
            grant: db.open_tree("grant")?,
            holding: db.open_tree("holding")?,
            tag: db.open_tree("tag")?,
            manifest: db.open_tree("manifest")?,
            parts: db.open_tree("parts")?,
            referrers: db.open_tree("referrers")?,
            layout: db.open_tree("layout")?,
            behind: db.open_tree("behind")?,
            meta: db.open_tree("meta")?,
            db,
        })
    }

    /// Adds the facts that `read` makes of the keys of a tree and that pass `filter`.
    pub(in crate::store) fn collect(
        &self,
        tree: CountedTree,
        read: fn(&[u8]) -> Option<Fact>,
        filter: &dyn Fn(&Fact) -> bool,
        into: &mut Vec<Fact>,
    ) -> sled::Result<()> {
        for item in self.of(tree) {
            into.extend(read(&item?.0).filter(filter));
        }
        Ok(())
    }

    /// Returns a counted tree.
    pub(in crate::store) fn of(&self, tree: CountedTree) -> &Tree {
        match tree {
            CountedTree::Blob => &self.blob,
            CountedTree::Grant => &self.grant,
            CountedTree::Holding => &self.holding,
            CountedTree::Tag => &self.tag,
            CountedTree::Manifest => &self.manifest,
            CountedTree::Repo => &self.repo,
            CountedTree::Referrers => &self.referrers,
        }
    }

    pub(in crate::store) fn parts(&self) -> &Tree {
        &self.parts
    }

    pub(in crate::store) fn layout(&self) -> &Tree {
        &self.layout
    }

    pub(in crate::store) fn behind(&self) -> &Tree {
        &self.behind
    }

    pub(in crate::store) fn meta(&self) -> &Tree {
        &self.meta
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, Digest};

    impl Database {
        /// As if sled had met garbage.
        pub(in crate::store) fn fail(&self) {
            assert_eq!(self.with(|_| -> sled::Result<()> { panic!("garbage, on purpose") }), None);
        }
    }

    #[test]
    fn an_index_of_another_version_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("index");
        let (index, found) = Database::open(&folder, Arc::default());
        assert_eq!(found, IndexState::Fresh("missing".to_owned()));
        index.with(|trees| trees.meta.insert("version", b"berth 0")).unwrap();
        index.set_complete(true);
        index.close(7);
        drop(index);
        let (index, found) = Database::open(&folder, Arc::default());
        assert!(matches!(found, IndexState::Fresh(_)), "{found:?}");
        drop(index);
        let (index, found) = Database::open(&folder, Arc::default());
        assert_eq!(found, IndexState::Unclean);
        index.close(7);
        drop(index);
        let (index, found) = Database::open(&folder, Arc::default());
        assert_eq!(found, IndexState::Unclean, "closed before it was compared");
        index.set_complete(true);
        index.close(7);
        drop(index);
        assert_eq!(Database::open(&folder, Arc::default()).1, IndexState::Clean(7));
    }

    #[test]
    fn lost_records_are_missed_once() {
        let folder = tempfile::tempdir().unwrap();
        let (index, _) = Database::open(&folder.path().join("index"), Arc::default());
        let go_on = AtomicBool::new(false);
        let key = |number: u64| Digest::of(Algorithm::Sha256, &number.to_be_bytes()).raw().to_vec();
        for number in 0..2 * STEP_RECORDS as u64 {
            index.put(CountedTree::Blob, &key(number), &number.to_be_bytes());
        }
        assert!(index.audit(&go_on));
        index.with(|trees| trees.blob.remove(key(700))).unwrap();
        let before = index.sum(CountedTree::Blob).bytes;
        assert!(!index.audit(&go_on));
        assert_eq!(index.sum(CountedTree::Blob).bytes, before - 700);
        assert!(index.audit(&go_on));
        assert!(!index.audit(&AtomicBool::new(true)), "not to the end");
    }
}
