//! Who has what: each fact is a ref file first, and then a record of the index.
//!
//! Reading asks the index and, where that says nothing, the files: an index that is empty, broken or behind
//! costs time and never a wrong answer. The exception is what no file names by its digest alone, that some
//! *other* repository has it publicly: without the index that is "no", and upstream is asked.
//!
//! A fact that is read, merged and written, or read from a file in order to be put into the index, is held by
//! its repository's lock meanwhile: an older value can never replace a newer one, and what the index says is
//! durable. Reading takes no lock.

pub(in crate::store) mod grants;
pub(in crate::store) mod index;
pub(in crate::store) mod progress;
pub(in crate::store) mod rebuild;
pub(in crate::store) mod records;
pub(in crate::store) mod refs;

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;
use std::{fs, io};

use rustix::process::{Resource, getrlimit};
use tokio::sync::Notify;

use crate::clock::{age, later, unix_seconds};
use crate::oci::manifest::MANIFEST_BYTES_MAX;
use crate::oci::{Digest, Document, Repo, Tag};
use crate::store::Error;
use crate::store::blobs::Blobs;
use crate::store::blobs::open_files::{BlobFile, Opened, Whose, is_same_file};
use crate::store::disk::Disk;
use crate::store::disk::lock::Lock;
use crate::store::eviction::budget::Budget;
use crate::store::eviction::pins::Pins;
use crate::store::integrity::recheck::UNREAD_SECONDS;
use crate::store::integrity::{Condemned, Damage};
use crate::store::metadata::index::{Entry, Found, Index};
use crate::store::metadata::progress::Progress;
use crate::store::metadata::records::{
    ManifestRecord, NewReferrersFile, ReferrersFile, ReferrersRecord, TagRecord,
};
use crate::store::metadata::refs::{Ref, Refs};
use crate::sync::lock;

/// Repositories share locks beyond this many: enough that two rarely meet on one.
const LOCKS: usize = 64;
/// Bytes of the lists of referrers that one repository may keep: four of the largest.
const REPO_REFERRERS_MAX: u64 = 4 * MANIFEST_BYTES_MAX as u64;
/// Of what all refs may take, one list may take this part.
const REFERRERS_PART: u64 = 4;
/// Uses remembered between two write-outs; beyond it the least interesting thing is lost, the time of a use.
const USED_MAX: usize = 65_536;

/// The store without its async face; all methods block.
pub(in crate::store) struct Ledger {
    pub(in crate::store) disk: Arc<Disk>,
    pub(in crate::store) blobs: Blobs,
    /// Damaged blobs whose files could not be moved away.
    pub(in crate::store) condemned: Condemned,
    pub(in crate::store) refs: Refs,
    pub(in crate::store) index: Index,
    /// What costs no look at the disk.
    pub(in crate::store) opened: Opened,
    pub(in crate::store) budget: Budget,
    pub(in crate::store) pins: Pins,
    /// How far a pass over all files is.
    pub(in crate::store) progress: Progress,
    /// Serialises adoption, so that one layout is hashed once. Async, because requests wait for it.
    pub(in crate::store) adopting: Arc<tokio::sync::Mutex<()>>,
    /// Serialises what rewrites an `index.json`.
    pub(in crate::store) rendering: Mutex<()>,
    /// Told when there is something to render or to rebuild.
    pub(in crate::store) wake: Arc<Notify>,
    /// Serialises the reading of stored manifests for what is behind, each of which may have megabytes.
    pub(in crate::store) reading: Mutex<()>,
    locks: [Mutex<()>; LOCKS],
    /// Whose `index.json` is behind, and when it is to follow.
    dirty: Mutex<BTreeMap<Repo, Instant>>,
    /// When the last of the large ones among them is to be rendered.
    large_turn: Mutex<Option<Instant>>,
    /// Serialises the passes that fill the index.
    pub(in crate::store) passing: Mutex<()>,
    used: Mutex<HashMap<Digest, (u64, u64)>>,
    /// Here, because an open partial file keeps the ledger alive; last, so that the index is closed before the
    /// next process may open it.
    pub(in crate::store) process_lock: Lock,
}

impl Ledger {
    pub(in crate::store) fn open(disk: Arc<Disk>, lock: Lock, budget: Budget) -> (Self, Found) {
        let wake = Arc::new(Notify::new());
        let (index, found) = Index::open(&disk.root().join("index"), Arc::clone(&wake));
        let ledger = Self {
            blobs: Blobs::new(Arc::clone(&disk)),
            condemned: Condemned::default(),
            refs: Refs::new(Arc::clone(&disk)),
            pins: Pins::load(&disk),
            budget,
            disk,
            index,
            opened: Opened::new(getrlimit(Resource::Nofile).current),
            progress: Progress::default(),
            adopting: Arc::default(),
            rendering: Mutex::default(),
            reading: Mutex::default(),
            wake,
            locks: [const { Mutex::new(()) }; LOCKS],
            dirty: Mutex::default(),
            large_turn: Mutex::default(),
            passing: Mutex::default(),
            used: Mutex::default(),
            process_lock: lock,
        };
        (ledger, found)
    }

    /// The lock of whatever changes a repository's facts.
    pub(in crate::store) fn lock(&self, repo: &Repo) -> MutexGuard<'_, ()> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(repo);
        let number = usize::try_from(hash % LOCKS as u64).expect("a remainder below 64 fits");
        lock(&self.locks[number])
    }

    // === Blobs ===

    /// A stored blob, opened; from here on it is at hand.
    pub(in crate::store) fn blob(&self, digest: &Digest) -> Result<Option<BlobFile>, Error> {
        if let Some(looks) = self.blobs.look(digest)
            && !self.condemned.has(digest)
            && let Some(blob) = self.opened.confirm(digest, |blob| is_same_file(blob, &looks))
        {
            blob.soundness().compare(&looks);
            return Ok(Some(blob));
        }
        self.opened.forget(digest);
        let Some(blob) = self.open_blob(digest)? else { return Ok(None) };
        // A file that somebody has cut short would be served as a whole one of that length.
        let known = self.index.known(digest);
        let was_changed = known.is_some_and(|known| known.size != blob.size);
        if was_changed && self.discard_unsound(digest, &blob)? {
            return Ok(None);
        }
        let is_recent = |last_use: u64| age(last_use, unix_seconds()).is_some_and(|age| age < UNREAD_SECONDS);
        if known.is_some_and(|known| !is_recent(known.last_use)) {
            blob.soundness().note_unread();
        }
        if let Some((displaced, size, at)) = self.opened.keep_blob(digest, &blob) {
            let mut used = lock(&self.used);
            if used.len() < USED_MAX {
                used.insert(displaced, (size, at));
            }
        }
        Ok(Some(blob))
    }

    /// A stored blob, opened, unless it is known to be damaged or the disk has lost it.
    fn open_blob(&self, digest: &Digest) -> Result<Option<BlobFile>, Error> {
        if self.condemned.has(digest) {
            return Ok(None);
        }
        self.unless_lost(digest, self.blobs.open(digest))
    }

    /// Takes a stored blob out of service if it is not what its name says. Returns whether that is so.
    fn discard_unsound(&self, digest: &Digest, blob: &BlobFile) -> Result<bool, Error> {
        let is_sound = self.blobs.is_sound(digest, blob).map(Some);
        match self.unless_lost(digest, is_sound)? {
            Some(true) => return Ok(false),
            Some(false) => self.quarantine(digest, Damage::Changed),
            None => {}
        }
        Ok(true)
    }

    pub(in crate::store) fn put(&self, digest: &Digest, content: &[u8]) -> Result<(), Error> {
        if self.blobs.put(digest, content)? {
            self.blob_stored(digest, content.len() as u64);
        }
        Ok(())
    }

    pub(in crate::store) fn blob_stored(&self, digest: &Digest, size: u64) {
        self.condemned.acquit(digest);
        self.index.put_blob(digest, size, unix_seconds());
        self.budget.wake.notify_one();
    }

    /// Writes the times of use behind, which also makes the index know blobs that another tool has brought.
    pub(in crate::store) fn write_uses(&self) {
        let displaced = std::mem::take(&mut *lock(&self.used));
        let displaced = displaced.into_iter().map(|(digest, (size, at))| (digest, size, at));
        for (digest, size, at) in displaced.chain(self.opened.uses()) {
            // Evicted since it was used, it must not come back into the index.
            if self.blobs.size(&digest).is_some() {
                self.index.put_blob(&digest, size, at);
            }
        }
    }

    // === Manifests ===

    /// A manifest as `repo` knows it itself, or whoever has it publicly. Without the index only the former can be
    /// found. From here on it is at hand.
    pub(in crate::store) fn manifest(
        &self,
        repo: &Repo,
        digest: &Digest,
    ) -> Result<Option<Arc<Document>>, Error> {
        let own = self.own_manifest(repo, digest)?.map(|record| (record, Whose::Repo(repo)));
        let public = || {
            let record = self.index.public_manifest(digest).filter(|_| self.index.is_public(digest));
            record.map(|record| (record, Whose::Public))
        };
        let Some((record, whose)) = own.or_else(public) else { return Ok(None) };
        let Some(blob) = self.open_blob(digest)? else {
            self.opened.forget(digest);
            return Ok(None);
        };
        let content = self.blobs.read_opened(digest, &blob, MANIFEST_BYTES_MAX as u64);
        let content = self.unless_lost(digest, content)?;
        // Small enough to be proven each time; a wrong one would be served, and believed to be here, for ever.
        let Some(content) = content.filter(|content| Digest::of(digest.algorithm(), content) == *digest)
        else {
            self.discard_unsound(digest, &blob)?;
            return Ok(None);
        };
        let document = Arc::new(Document::new(*digest, record.media_type, content.into()));
        self.opened.keep_manifest(&document, whose);
        Ok(Some(document))
    }

    fn own_manifest(&self, repo: &Repo, digest: &Digest) -> Result<Option<ManifestRecord>, Error> {
        if let Some(record) = self.index.manifest(repo, digest) {
            return Ok(Some(record));
        }
        if !self.refs.exists(repo, Ref::Manifest(digest)) {
            return Ok(None);
        }
        let _guard = self.lock(repo);
        let record = self.refs.read(repo, Ref::Manifest(digest))?;
        if let Some(record) = &record {
            self.index.put_manifest(repo, digest, record);
        }
        Ok(record)
    }

    pub(in crate::store) fn set_manifest(
        &self,
        repo: &Repo,
        digest: &Digest,
        record: &ManifestRecord,
    ) -> Result<(), Error> {
        let mut record = record.clone();
        let guard = self.lock(repo);
        let old: Option<ManifestRecord> = self.refs.read(repo, Ref::Manifest(digest))?;
        record.public = self.believed(digest, record.grant()).public;
        record.public |= old.as_ref().is_some_and(|old| old.public);
        let is_same = |old: &ManifestRecord| {
            (old.public, &old.media_type, old.size, old.speaker)
                == (record.public, &record.media_type, record.size, record.speaker)
        };
        let is_news = !old.as_ref().is_some_and(is_same);
        if is_news {
            self.refs.write(repo, Ref::Manifest(digest), &record)?;
        }
        self.index.put_manifest(repo, digest, &record);
        self.opened.forget_manifest(digest);
        drop(guard);
        if is_news {
            self.mark_dirty(repo);
            self.note_ref();
        }
        Ok(())
    }

    // === Tags ===

    /// What a tag means, without a look at what another tool may have written.
    pub(in crate::store) fn tag(&self, repo: &Repo, tag: &Tag) -> Result<Option<TagRecord>, Error> {
        let known = self.index.tag(repo, tag);
        if known.is_some() && self.index.is_complete() {
            return Ok(known);
        }
        if !self.refs.exists(repo, Ref::Tag(tag)) {
            return Ok(None);
        }
        let _guard = self.lock(repo);
        let mut record: Option<TagRecord> = self.refs.read(repo, Ref::Tag(tag))?;
        if let Some(record) = &mut record {
            // A file does not hear of every check.
            if let Some(known) = self.index.tag(repo, tag).filter(|known| known.digest == record.digest) {
                record.checked_at = later(record.checked_at, known.checked_at, unix_seconds());
            }
            self.index.put_tag(repo, tag, record);
        }
        Ok(record)
    }

    pub(in crate::store) fn set_tag(&self, repo: &Repo, tag: &Tag, record: &TagRecord) -> Result<(), Error> {
        {
            let _guard = self.lock(repo);
            self.refs.write(repo, Ref::Tag(tag), record)?;
            self.index.put_tag(repo, tag, record);
        }
        self.mark_dirty(repo);
        self.note_ref();
        Ok(())
    }

    /// A page of tags in byte order.
    pub(in crate::store) fn tags(
        &self,
        repo: &Repo,
        after: Option<&str>,
        n: usize,
    ) -> Result<Vec<Tag>, Error> {
        if self.index.knows(repo)
            && let Some(page) = self.index.tags(repo, after, n)
        {
            return Ok(page);
        }
        let tags = self.refs.tags(repo)?;
        let is_after = |tag: &Tag| after.is_none_or(|after| tag.as_str() > after);
        Ok(tags.into_iter().filter(is_after).take(n).collect())
    }

    // === Repositories ===

    pub(in crate::store) fn knows(&self, repo: &Repo) -> bool {
        self.index.knows(repo) || self.refs.knows(repo)
    }

    /// A page of repositories in byte order of `registry/name`.
    pub(in crate::store) fn repositories(
        &self,
        after: Option<&Repo>,
        n: usize,
        private_too: bool,
    ) -> Result<Vec<Repo>, Error> {
        if let Some(page) = self.index.repositories(after, n, private_too) {
            return Ok(page);
        }
        let after = after.map(Repo::to_string);
        let mut page = Vec::new();
        for repo in self.refs.repositories()? {
            if page.len() == n {
                break;
            }
            let is_after = after.as_ref().is_none_or(|after| repo.to_string() > *after);
            if is_after && (private_too || self.is_any_public(&repo)?) {
                page.push(repo);
            }
        }
        Ok(page)
    }

    // === Referrers ===

    /// How large the file is that has the list.
    pub(in crate::store) fn referrers_bytes(&self, repo: &Repo, digest: &Digest) -> u64 {
        fs::metadata(self.refs.path(repo, Ref::Referrers(digest))).map_or(0, |metadata| metadata.len())
    }

    pub(in crate::store) fn referrers(
        &self,
        repo: &Repo,
        digest: &Digest,
    ) -> Result<Option<ReferrersRecord>, Error> {
        let file: Option<ReferrersFile> = self.refs.read(repo, Ref::Referrers(digest))?;
        Ok(file.map(|file| ReferrersRecord { body: file.body.into(), fetched_at: file.fetched_at }))
    }

    /// Keeps a list about a manifest that is here, and the repository's own. Any other is not worth the disk: anybody
    /// can ask about any digest, in any repository.
    pub(in crate::store) fn set_referrers(
        &self,
        repo: &Repo,
        digest: &Digest,
        record: &ReferrersRecord,
    ) -> Result<(), Error> {
        let of = Ref::Referrers(digest);
        let is_ours = self.own_manifest(repo, digest)?.is_some() && self.blobs.size(digest).is_some();
        if !is_ours || record.body.len() as u64 > self.refs_max() / REFERRERS_PART {
            return Ok(());
        }
        let body = std::str::from_utf8(&record.body)
            .map_err(|error| Error::io("keep as JSON", &self.refs.path(repo, of), io::Error::other(error)))?;
        let _guard = self.lock(repo);
        self.make_room_for_referrers(repo, digest, record.body.len() as u64);
        self.refs.write(repo, of, &NewReferrersFile { fetched_at: record.fetched_at, body })?;
        self.index.put_referrers(repo, digest, self.referrers_bytes(repo, digest), record.fetched_at);
        self.note_ref();
        Ok(())
    }

    /// Takes out the oldest lists of a repository, until it has room for one more.
    fn make_room_for_referrers(&self, repo: &Repo, digest: &Digest, bytes: u64) {
        let mut lists = self.index.referrers_of(repo);
        lists.retain(|(other, ..)| other != digest);
        lists.sort_unstable_by_key(|(_, _, fetched_at)| *fetched_at);
        let mut sum = bytes + lists.iter().map(|(_, bytes, _)| bytes).sum::<u64>();
        for (other, bytes, _) in lists {
            if sum <= REPO_REFERRERS_MAX {
                return;
            }
            self.refs.remove(repo, Ref::Referrers(&other));
            self.index.remove(&Entry::Referrers(repo.clone(), other));
            self.budget.metrics.space.evicted_refs.inc();
            sum -= bytes;
        }
    }

    // === What is behind ===

    /// A repository's `index.json` is behind from now on, and is to follow in time.
    pub(in crate::store) fn mark_dirty(&self, repo: &Repo) {
        let is_news = !lock(&self.dirty).contains_key(repo);
        if is_news {
            let due = self.render_turn(repo);
            lock(&self.dirty).entry(repo.clone()).or_insert(due);
            self.wake.notify_one();
        }
    }

    /// When a repository may be rendered: at once, or if that writes much, after all of that kind that came first.
    fn render_turn(&self, repo: &Repo) -> Instant {
        let (now, takes) = (Instant::now(), self.render_time(repo));
        if takes.is_zero() {
            return now;
        }
        let mut turn = lock(&self.large_turn);
        let due = turn.map_or(now, |turn| turn.max(now)) + takes;
        *turn = Some(due);
        due
    }

    /// What is to be rendered now need not be rendered later for what has changed until now.
    pub(in crate::store) fn forget_dirty(&self, repo: &Repo) {
        lock(&self.dirty).remove(repo);
    }

    /// The repository that has been due for longest, which counts as rendered.
    pub(in crate::store) fn take_due(&self) -> Option<Repo> {
        let mut dirty = lock(&self.dirty);
        let (repo, due) = dirty.iter().min_by_key(|(_, due)| **due)?;
        if *due > Instant::now() {
            return None;
        }
        let repo = repo.clone();
        dirty.remove(&repo);
        Some(repo)
    }

    /// All that are to be rendered some time, which count as rendered.
    pub(in crate::store) fn take_dirty(&self) -> Vec<Repo> {
        std::mem::take(&mut *lock(&self.dirty)).into_keys().collect()
    }

    /// When the next repository is to be rendered.
    pub(in crate::store) fn next_due(&self) -> Option<Instant> {
        lock(&self.dirty).values().min().copied()
    }
}
