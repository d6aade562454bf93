//! The index: what must be fast, derived from the files, and disposable. The only file that names sled.
//!
//! | tree | key | value |
//! |---|---|---|
//! | `blob` | digest | size, last use, first use (three big-endian `u64`) |
//! | `repo` | `registry/name` | one byte: is anything of it public |
//! | `grant` | repo, NUL, digest | `Grant` |
//! | `holding` | digest, registry | one byte: what the grants of the registry's repositories come to; behind it the `ManifestRecord` of a public manifest |
//! | `tag` | repo, NUL, tag | `TagRecord` |
//! | `manifest` | repo, NUL, digest | `ManifestRecord` |
//! | `parts` | digest of a manifest | bytes that it claims (a big-endian `u64`), then what it refers to, by short names |
//! | `referrers` | repo, NUL, digest | bytes of the list, when it was fetched (two big-endian `u64`) |
//! | `layout` | repo | what its `index.json` looked like when it was last in line with the refs |
//! | `behind` | repo | empty: its `index.json` had not followed the refs when berth was stopped |
//! | `meta` | `version`, `clean`, `sums`, `scrub` | when it was closed in order, what there was in each tree then; when the scrub's round began, and the last digest it looked at |
//!
//! What the records stand for on disk is summed up as they come and go ([`counters`]): it counts towards the budget.
//!
//! A digest is one byte for the algorithm and the raw hash; records are JSON, as in the files.
//!
//! sled 0.34 syncs with `sync_file_range` and so promises nothing across a power loss, and on garbage it may
//! return an error, panic, or quietly lose records. Hence: **no answer of the index is ever an error, only
//! "don't know"** (`None`), for which the caller looks at the files; every call is behind `catch_unwind`; the
//! first failure disables the index until it is rebuilt ([`rebuild`](crate::store::metadata::rebuild)); behind every start all
//! records are read and counted ([`counters`]), so that what is broken breaks then, and what is lost is missed; and a
//! pass looks for what the files say and the index does not.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use sled::{Db, Tree};
use tokio::sync::Notify;

mod counters;
mod guard;
pub(in crate::store) mod inventory;
mod key;
mod records;
mod seen;
mod tag_cache;

pub(in crate::store) use inventory::{Known, Short, short};
pub(in crate::store) use key::Entry;
pub(in crate::store) use seen::{REPO_ITSELF_BYTES, SeenRef, repo_id};

use counters::Tally;
use guard::{catch, clear_away, drop_quietly};
use tag_cache::Recent;

use crate::sync::lock;

/// Another version of the trees is not migrated but rebuilt.
const VERSION: &[u8] = b"berth 3";
/// sled's own default lets its cache grow to 1 GiB. What is not in it is in the kernel's; and beside it sled keeps
/// some 50 bytes a record in memory.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// What a file takes at least, and on average half of which is lost in its last block.
const BLOCK_BYTES: u64 = 4096;
/// What the folders of a repository take with `oci-layout` and a small `index.json`: a block each, one level of names.
const REPO_BYTES: u64 = 9 * BLOCK_BYTES;
/// What a tag or manifest takes of `index.json`.
const ENTRY_BYTES: u64 = 256;
/// How long sled may keep records in memory only; they can all be found again. At each flush of a store more than half of
/// whose segments are free, as after a rebuild, sled moves half a megabyte that nobody has changed, for ever: once a second
/// that would be 45 GB a day of an idle berth.
const FLUSH_EVERY_MS: u64 = 30_000;

/// How the index was found.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::store) enum Found {
    /// Closed in order, at this many seconds since 1970: believed, but for what changed afterwards.
    Clean(u64),
    /// Left by a process that was killed: to be compared with the files.
    Unclean,
    /// Empty now, to be filled from the files, for this reason.
    Fresh(String),
}

/// A disposable memory of what the files say.
pub(in crate::store) struct Index {
    folder: PathBuf,
    trees: RwLock<Option<Arc<Trees>>>,
    /// Whether it says what the files say: not while it is being filled, nor after an unclean stop until it
    /// is compared. Until then it is no word on lists, nor on what can change.
    is_complete: AtomicBool,
    /// Whether it is marked as closed in order, which the next change takes back.
    is_closed: AtomicBool,
    recent: Recent,
    /// What is in each [`Part`].
    tallies: [Mutex<Tally>; Part::ALL.len()],
    /// Told when the index has failed, so that somebody rebuilds it.
    failed: Arc<Notify>,
}

struct Trees {
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

/// The trees whose records are counted.
#[derive(Clone, Copy)]
enum Part {
    Blob,
    Grant,
    Holding,
    Tag,
    Manifest,
    Repo,
    Referrers,
}

impl Part {
    /// Each at the place that its number says.
    const ALL: [Self; 7] =
        [Self::Blob, Self::Grant, Self::Holding, Self::Tag, Self::Manifest, Self::Repo, Self::Referrers];
    /// What is said of content, rather than the content itself.
    const REFS: [Self; 5] = [Self::Grant, Self::Tag, Self::Manifest, Self::Repo, Self::Referrers];
}

impl Index {
    /// Opens what is there, or an empty one instead, or none if even that fails: the files still answer.
    pub(in crate::store) fn open(folder: &Path, failed: Arc<Notify>) -> (Self, Found) {
        let index = Self {
            folder: folder.to_owned(),
            trees: RwLock::default(),
            is_complete: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            recent: Recent::new(),
            tallies: Default::default(),
            failed,
        };
        let opened = if folder.exists() { catch(|| Trees::load(folder)) } else { Err("missing".to_owned()) };
        let found = match opened {
            Ok((trees, sums, closed_at)) => {
                index.install(trees);
                index.set_sums(&sums);
                index.is_complete.store(closed_at.is_some(), Ordering::Release);
                closed_at.map_or(Found::Unclean, Found::Clean)
            }
            Err(reason) => {
                index.start_over();
                Found::Fresh(reason)
            }
        };
        (index, found)
    }

    /// Replaces whatever is there by an empty index. Returns whether there is one now.
    pub(in crate::store) fn start_over(&self) -> bool {
        self.is_complete.store(false, Ordering::Release);
        drop_quietly(self.trees.write().unwrap_or_else(PoisonError::into_inner).take());
        self.recent.clear();
        self.set_sums(&[]);
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

    /// Says whether it says what the files say.
    pub(in crate::store) fn set_complete(&self, is_complete: bool) {
        self.is_complete.store(is_complete, Ordering::Release);
    }

    /// Writes everything out and, unless it has not been compared yet, marks the index as closed in order.
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

    /// Bytes of all blobs. After an unclean stop it is what was last noted, until they are counted.
    pub(in crate::store) fn used_bytes(&self) -> u64 {
        lock(&self.tallies[Part::Blob as usize]).sum.bytes
    }

    /// How many blobs there are, with the same reservation.
    pub(in crate::store) fn blob_count(&self) -> u64 {
        self.count(Part::Blob)
    }

    /// Bytes that blobs and refs take on disk, with the same reservation.
    pub(in crate::store) fn kept_bytes(&self) -> u64 {
        self.used_bytes() + self.blob_count() * BLOCK_BYTES + self.refs_bytes()
    }

    /// Bytes that refs, lists and folders of repositories take, with the same reservation.
    pub(in crate::store) fn refs_bytes(&self) -> u64 {
        Part::REFS.iter().map(|part| lock(&self.tallies[*part as usize]).sum.bytes).sum()
    }

    fn count(&self, part: Part) -> u64 {
        lock(&self.tallies[part as usize]).sum.records
    }

    /// Asks sled to change something, after which the index is not closed in order any more.
    fn change<T>(&self, ask: impl FnOnce(&Trees) -> sled::Result<T>) -> Option<T> {
        if self.is_closed.swap(false, Ordering::AcqRel) {
            self.with(|trees| {
                trees.meta.remove("clean")?;
                trees.db.flush()
            });
        }
        self.with(ask)
    }

    /// Asks sled. The first time that it fails, it is not asked again.
    fn with<T>(&self, ask: impl FnOnce(&Trees) -> sled::Result<T>) -> Option<T> {
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

    fn install(&self, trees: Trees) {
        *self.trees.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(trees));
    }

    /// Asks these trees no more; others may have taken their place already.
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
    /// Opens an index that another process has left: its sums, and when it was closed in order.
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
}

/// Adds what `read` makes of the keys of a tree and `filter` lets through.
fn collect(
    tree: &Tree,
    read: fn(&[u8]) -> Option<Entry>,
    filter: &dyn Fn(&Entry) -> bool,
    into: &mut Vec<Entry>,
) -> sled::Result<()> {
    for item in tree {
        into.extend(read(&item?.0).filter(filter));
    }
    Ok(())
}

/// The bytes on disk that a record stands for; of a blob, those of its content.
fn weight(part: Part, value: &[u8]) -> u64 {
    match part {
        Part::Blob => first_number(value),
        Part::Grant => BLOCK_BYTES,
        // A file says what the record does.
        Part::Tag | Part::Manifest => in_blocks(value.len() as u64) + ENTRY_BYTES,
        Part::Repo => REPO_BYTES,
        Part::Referrers => in_blocks(first_number(value)),
        Part::Holding => 0,
    }
}

/// What a file of so many bytes takes.
fn in_blocks(bytes: u64) -> u64 {
    bytes.max(1).next_multiple_of(BLOCK_BYTES)
}

fn first_number(value: &[u8]) -> u64 {
    let bytes = value.get(..8).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::oci::Digest;

    impl Index {
        /// As if sled had met garbage.
        pub(in crate::store) fn fail(&self) {
            assert_eq!(self.with(|_| -> sled::Result<()> { panic!("garbage, on purpose") }), None);
        }
    }

    #[test]
    fn an_index_of_another_version_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("index");
        let (index, found) = Index::open(&folder, Arc::default());
        assert_eq!(found, Found::Fresh("missing".to_owned()));
        index.with(|trees| trees.meta.insert("version", b"berth 0")).unwrap();
        index.set_complete(true);
        index.close(7);
        drop(index);
        let (index, found) = Index::open(&folder, Arc::default());
        assert!(matches!(found, Found::Fresh(_)), "{found:?}");
        drop(index);
        let (index, found) = Index::open(&folder, Arc::default());
        assert_eq!(found, Found::Unclean);
        index.close(7);
        drop(index);
        let (index, found) = Index::open(&folder, Arc::default());
        assert_eq!(found, Found::Unclean, "closed before it was compared");
        index.set_complete(true);
        index.close(7);
        drop(index);
        assert_eq!(Index::open(&folder, Arc::default()).1, Found::Clean(7));
    }

    #[test]
    fn a_failed_index_knows_nothing_until_it_is_rebuilt() {
        let folder = tempfile::tempdir().unwrap();
        let (index, _) = Index::open(&folder.path().join("index"), Arc::default());
        let digest = Digest::of(crate::oci::Algorithm::Sha256, b"x");
        index.put_blob(&digest, 5, 0);
        index.put_blob(&digest, 7, 0);
        assert_eq!(index.used_bytes(), 7);
        index.remove(&Entry::Blob(digest));
        assert_eq!(index.used_bytes(), 0);
        index.put_blob(&digest, 7, 0);
        index.set_complete(true);
        assert!(index.has_blob(&digest) && index.is_complete());
        index.fail();
        assert!(!index.has_blob(&digest) && !index.is_complete() && index.is_disabled());
        assert!(index.start_over());
        assert!(!index.has_blob(&digest) && !index.is_complete());
        index.put_blob(&digest, 7, 0);
        assert!(index.has_blob(&digest));
    }

    #[test]
    fn without_a_place_for_an_index_there_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let in_the_way = folder.path().join("file");
        fs::File::create(&in_the_way).unwrap();
        let (index, found) = Index::open(&in_the_way.join("index"), Arc::default());
        assert!(matches!(found, Found::Fresh(_)) && index.is_disabled() && !index.start_over());
        assert_eq!(index.used_bytes(), 0);
    }
}
