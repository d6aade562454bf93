//! Open files and small manifests in memory, with the repositories that may be served them.
//!
//! Most requests are for what was asked a moment ago. These find it here with one look into a table: no call to the
//! disk, to the index, or to another thread. Nothing here is truth: an entry is used for [`BELIEVED_FOR_SECONDS`],
//! and the next request then checks the file as if there were no entry (`Contents::blob`), so that a file that
//! somebody has removed or cut short is noticed.
//!
//! Times of use are noted in the entries, and written to the index later.

use std::collections::HashMap;
use std::fs::Metadata;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use lru::LruCache;

use crate::bounded;
use crate::clock::{age, unix_seconds};
use crate::oci::{Digest, Document, Repo};
use crate::store::blobs::blob_file::BlobFile;
use crate::sync::lock;

/// Seconds for which an entry is used without checking that its file still exists.
const BELIEVED_FOR_SECONDS: u64 = 1;
/// Seconds after which a mapping without readers is unmapped: its pages count as memory of the process.
const MAPPED_FOR_SECONDS: u64 = 10;
/// Seconds for which a blob counts as being read after its last use: the longest pause between two ranges of one
/// client.
const READ_LATELY_SECONDS: u64 = 5;
/// Number of repositories that are remembered for one digest. Others are looked up each time.
const REPOS_MAX: usize = 16;
/// Number of shards of a table. Each has its own lock, so that requests for different digests do not wait for each
/// other.
const SHARDS: usize = 16;
/// Number of files kept open, and which part of the process's limit they may take (one in [`FILES_SHARE`]).
const FILES_MAX: usize = 512;
const FILES_SHARE: u64 = 16;
/// Number of manifests in memory, and their size in bytes together.
const MANIFESTS_MAX: usize = 8192;
const MANIFESTS_BYTES_MAX: usize = 16 << 20;
/// Number of closed files whose last use is remembered until it is written to the index. Beyond it only times of use
/// are lost.
const DISPLACED_MAX: usize = 65_536;
/// Bytes of the largest manifest that is kept in memory. A larger one is read from disk each time.
const MANIFEST_BYTES_MAX: usize = 256 << 10;

/// Open files and manifests in memory, with the repositories that may be served them.
pub(in crate::store) struct OpenFiles {
    blobs: Table<BlobFile>,
    manifests: Table<Arc<Document>>,
    /// The size and last use of files that had to make room, until [`OpenFiles::uses`] returns them.
    displaced: Mutex<HashMap<Digest, (u64, u64)>>,
}

/// A table by digest. The least recently used entry is forgotten first.
struct Table<T> {
    shards: [Mutex<Shard<T>>; SHARDS],
    bytes_max: usize,
}

struct Shard<T> {
    items: LruCache<Digest, Arc<Cached<T>>>,
    bytes: usize,
}

struct Cached<T> {
    what: T,
    bytes: usize,
    /// Whether every repository may be served it.
    is_public: AtomicBool,
    /// The repositories that may be served it.
    repos: Mutex<Vec<Repo>>,
    /// The time of the last use, in seconds since 1970.
    used_at: AtomicU64,
    /// The last use that the index knows of, in seconds since 1970.
    noted_at: AtomicU64,
    /// When its file was last checked, in seconds since 1970.
    looked_at: AtomicU64,
}

/// The repositories that may be served something.
#[derive(Clone, Copy)]
pub(in crate::store) enum Whose<'a> {
    Public,
    Repo(&'a Repo),
}

/// A digest, the size of its content in bytes, and its last use in seconds since 1970.
pub(in crate::store) type Use = (Digest, u64, u64);

impl OpenFiles {
    /// Makes empty tables for a process that may have `files` open; `None` is no limit.
    pub(in crate::store) fn new(files: Option<u64>) -> Self {
        let fit = files.and_then(|files| usize::try_from(files / FILES_SHARE).ok()).unwrap_or(FILES_MAX);
        Self {
            blobs: Table::new(fit.clamp(SHARDS, FILES_MAX), usize::MAX),
            manifests: Table::new(MANIFESTS_MAX, MANIFESTS_BYTES_MAX),
            displaced: Mutex::default(),
        }
    }

    /// Returns a blob that `repo` may be served, if its file is open.
    pub(in crate::store) fn blob(&self, repo: &Repo, digest: &Digest) -> Option<BlobFile> {
        self.blobs.get_for(repo, digest).filter(|blob| !blob.is_suspect())
    }

    /// Returns a manifest that `repo` may be served, if it is in memory.
    pub(in crate::store) fn manifest(&self, repo: &Repo, digest: &Digest) -> Option<Arc<Document>> {
        self.manifests.get_for(repo, digest)
    }

    /// Returns the open file of a digest if it is still the file with this metadata, and notes that it was checked.
    pub(in crate::store) fn confirm(&self, digest: &Digest, looks: &Metadata) -> Option<BlobFile> {
        let item = self.blobs.item(digest)?;
        if item.what.is_suspect() || !item.what.is_same_file(looks) {
            return None;
        }
        item.confirm();
        Some(item.what.clone())
    }

    /// Keeps the file of a blob open.
    pub(in crate::store) fn keep_blob(&self, digest: &Digest, blob: &BlobFile) {
        let Some((displaced, item)) = self.blobs.put(*digest, blob.clone(), 0) else { return };
        let mut uses = lock(&self.displaced);
        if uses.len() < DISPLACED_MAX {
            uses.insert(displaced, (item.what.size, item.used_at.load(Ordering::Relaxed)));
        }
    }

    /// Keeps a manifest in memory, unless it is large.
    ///
    /// Repositories may disagree about its media type. Then it is kept for the last one only.
    pub(in crate::store) fn keep_manifest(&self, manifest: &Arc<Document>, whose: Whose<'_>) {
        let digest = &manifest.digest;
        if manifest.body.len() > MANIFEST_BYTES_MAX {
            return;
        }
        if self.manifests.item(digest).is_some_and(|item| item.what.media_type != manifest.media_type) {
            self.manifests.remove(digest);
        }
        self.manifests.put(*digest, Arc::clone(manifest), manifest.body.len());
        if let Some(item) = self.manifests.item(digest) {
            item.grant(whose);
        }
    }

    /// Forgets a manifest whose record has changed.
    pub(in crate::store) fn forget_manifest(&self, digest: &Digest) {
        self.manifests.remove(digest);
    }

    /// Notes who may be served a blob whose file is open.
    pub(in crate::store) fn grant(&self, digest: &Digest, whose: Whose<'_>) {
        if let Some(item) = self.blobs.item(digest) {
            item.grant(whose);
        }
    }

    /// Forgets a digest, before its file goes. Readers keep the open file.
    pub(in crate::store) fn forget(&self, digest: &Digest) {
        self.blobs.remove(digest);
        self.manifests.remove(digest);
    }

    /// Forgets a blob whose file was found damaged, and cuts its readers off.
    pub(in crate::store) fn mark_damaged(&self, digest: &Digest) {
        if let Some(item) = self.blobs.item(digest) {
            item.what.soundness().note_damaged();
        }
        self.forget(digest);
    }

    /// Whether somebody reads the file of a digest now.
    pub(in crate::store) fn is_being_read(&self, digest: &Digest) -> bool {
        self.blobs.item(digest).is_some_and(|item| item.what.is_being_read())
    }

    /// Whether somebody reads the file of a digest, or did within the last seconds.
    pub(in crate::store) fn was_read_lately(&self, digest: &Digest) -> bool {
        let is_late =
            |used_at: u64| age(used_at, unix_seconds()).is_some_and(|age| age <= READ_LATELY_SECONDS);
        let item = self.blobs.item(digest);
        item.is_some_and(|item| item.what.is_being_read() || is_late(item.used_at.load(Ordering::Relaxed)))
    }

    /// Returns the uses since the last call.
    pub(in crate::store) fn uses(&self) -> Vec<Use> {
        let displaced = std::mem::take(&mut *lock(&self.displaced));
        let mut uses: Vec<Use> =
            displaced.into_iter().map(|(digest, (size, at))| (digest, size, at)).collect();
        self.blobs.each(|digest, item| uses.extend(item.news().map(|at| (*digest, item.what.size, at))));
        self.manifests.each(|digest, item| {
            uses.extend(item.news().map(|at| (*digest, item.what.body.len() as u64, at)))
        });
        uses
    }

    /// Unmaps files that nobody has read for a while.
    pub(in crate::store) fn unmap_idle(&self) {
        let now = unix_seconds();
        let mut resting = Vec::new();
        self.blobs.each(|_, item| {
            let idle = age(item.used_at.load(Ordering::Relaxed), now);
            if idle.is_none_or(|idle| idle > MAPPED_FOR_SECONDS) && !item.what.is_being_read() {
                resting.push(item.what.clone());
            }
        });
        // Without the table's lock: to unmap a large file takes a while.
        resting.iter().for_each(BlobFile::unmap);
    }
}

impl<T: Clone> Table<T> {
    fn new(items_max: usize, bytes_max: usize) -> Self {
        let room = NonZeroUsize::new(items_max.div_ceil(SHARDS)).unwrap_or(NonZeroUsize::MIN);
        let shard = |_| Mutex::new(Shard { items: bounded::lru(room), bytes: 0 });
        Self { shards: std::array::from_fn(shard), bytes_max: bytes_max / SHARDS }
    }

    /// Returns an entry that `repo` may be served and whose file was checked a moment ago.
    fn get_for(&self, repo: &Repo, digest: &Digest) -> Option<T> {
        let item = self.item(digest)?;
        let now = unix_seconds();
        if !item.is_believed(now) || !item.is_granted(repo) {
            return None;
        }
        item.used_at.store(now, Ordering::Relaxed);
        Some(item.what.clone())
    }

    fn item(&self, digest: &Digest) -> Option<Arc<Cached<T>>> {
        lock(self.shard(digest)).items.get(digest).cloned()
    }

    /// Puts an entry in; the grants of the digest stay. Returns the entry that it displaced.
    fn put(&self, digest: Digest, what: T, bytes: usize) -> Option<(Digest, Arc<Cached<T>>)> {
        let mut shard = lock(self.shard(&digest));
        let now = unix_seconds();
        let old = shard.items.pop(&digest);
        let (is_public, repos) = old.as_ref().map_or((false, Vec::new()), |old| {
            (old.is_public.load(Ordering::Relaxed), lock(&old.repos).clone())
        });
        shard.bytes = shard.bytes + bytes - old.map_or(0, |old| old.bytes);
        let item = Cached {
            what,
            bytes,
            is_public: AtomicBool::new(is_public),
            repos: Mutex::new(repos),
            used_at: AtomicU64::new(now),
            noted_at: AtomicU64::new(0),
            looked_at: AtomicU64::new(now),
        };
        let displaced = shard.items.push(digest, Arc::new(item));
        if let Some((_, displaced)) = &displaced {
            shard.bytes -= displaced.bytes;
        }
        while shard.bytes > self.bytes_max
            && let Some((_, dropped)) = shard.items.pop_lru()
        {
            shard.bytes -= dropped.bytes;
        }
        displaced
    }

    fn remove(&self, digest: &Digest) {
        let mut shard = lock(self.shard(digest));
        if let Some(item) = shard.items.pop(digest) {
            shard.bytes -= item.bytes;
        }
    }

    fn each(&self, mut look: impl FnMut(&Digest, &Cached<T>)) {
        for shard in &self.shards {
            for (digest, item) in &lock(shard).items {
                look(digest, item);
            }
        }
    }

    fn shard(&self, digest: &Digest) -> &Mutex<Shard<T>> {
        &self.shards[usize::from(digest.raw()[0]) % SHARDS]
    }
}

impl<T> Cached<T> {
    /// Whether its file was checked a moment ago. If the clock has jumped back, it was not.
    fn is_believed(&self, now: u64) -> bool {
        let age = now.checked_sub(self.looked_at.load(Ordering::Relaxed));
        age.is_some_and(|age| age <= BELIEVED_FOR_SECONDS)
    }

    fn confirm(&self) {
        let now = unix_seconds();
        self.looked_at.store(now, Ordering::Relaxed);
        self.used_at.store(now, Ordering::Relaxed);
    }

    fn is_granted(&self, repo: &Repo) -> bool {
        self.is_public.load(Ordering::Relaxed) || lock(&self.repos).contains(repo)
    }

    fn grant(&self, whose: Whose<'_>) {
        match whose {
            Whose::Public => self.is_public.store(true, Ordering::Relaxed),
            Whose::Repo(repo) => {
                let mut repos = lock(&self.repos);
                if repos.len() < REPOS_MAX && !repos.contains(repo) {
                    repos.push(repo.clone());
                }
            }
        }
    }

    /// Returns the time of the last use, if the index does not know it yet.
    fn news(&self) -> Option<u64> {
        let used_at = self.used_at.load(Ordering::Relaxed);
        (self.noted_at.swap(used_at, Ordering::Relaxed) != used_at).then_some(used_at)
    }
}
