//! The facts about repositories: each is a ref file first, and then a record of the index.
//!
//! Reading asks the index and, where that says nothing, the files: an index that is empty, broken or out of date
//! costs time and never a wrong answer. The exception is what no file names by its digest alone, that some *other*
//! repository has it publicly: without the index that is "no", and upstream is asked.
//!
//! A fact that is read, merged and written, or read from a file in order to be put into the index, is held by its
//! repository's lock meanwhile: an older value can never replace a newer one, and what the index says is durable.
//! Reading takes no lock.
//!
//! This room owns the refs, the index, the locks, and the list of repositories whose `index.json` is out of date. It
//! uses blobs and the disk; all rooms above use it.

mod granted;
pub(in crate::store) mod grants;
pub(in crate::store) mod index;
mod progress;
pub(in crate::store) mod rebuild;
pub(in crate::store) mod records;
pub(in crate::store) mod refs;
mod stale;

use std::collections::HashSet;
use std::fs;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::clock::{later, unix_seconds};
use crate::oci::manifest::{Descriptor, MANIFEST_BYTES_MAX};
use crate::oci::{Digest, Manifest, Repo, Tag};
use crate::store::blobs::Blobs;
use crate::store::blobs::open_files::{OpenFiles, Whose};
use crate::store::blobs::partials::Partials;
use crate::store::disk::Disk;
use crate::store::disk::lock::Lock;
use crate::store::error::Error;
use crate::store::metadata::index::Index;
use crate::store::metadata::index::blob_use::{ShortDigest, short};
use crate::store::metadata::index::database::IndexState;
use crate::store::metadata::index::key::Fact;
use crate::store::metadata::records::{
    ManifestRecord, NewReferrersFile, ReferrersFile, ReferrersRecord, TagRecord,
};
use crate::store::metadata::refs::{Ref, Refs};
use crate::store::metadata::stale::StaleLayouts;
use crate::sync::lock;

/// Number of locks. Repositories share them; there are enough that two rarely wait for each other.
const LOCKS: usize = 64;
/// Bytes of the lists of referrers that one repository may keep: four of the largest.
const REPO_REFERRERS_MAX: u64 = 4 * MANIFEST_BYTES_MAX as u64;
/// One list of referrers may take one part in `REFERRERS_PART` of the room of all refs.
const REFERRERS_PART: u64 = 4;
/// Number of levels of an image that are followed. Nobody makes an index of indexes of indexes.
pub(in crate::store) const DEPTH_MAX: usize = 4;
/// Number of digests of an image that are followed: enough for an index of 100 platforms with 100 layers each.
pub(in crate::store) const CLOSURE_MAX: usize = 10_000;

/// The facts about repositories: their refs, the index of these, and the locks that keep the two in line. All methods
/// block.
pub(in crate::store) struct Metadata {
    disk: Arc<Disk>,
    blobs: Arc<Blobs>,
    /// The open files, which remember what repositories are granted.
    open_files: Arc<OpenFiles>,
    refs: Refs,
    index: Index,
    /// The repositories whose `index.json` is out of date.
    stale: StaleLayouts,
    /// Notified when there is something to render or to rebuild.
    wake: Arc<Notify>,
    locks: [Mutex<()>; LOCKS],
    /// Held while background work reads a stored manifest, because each may have megabytes.
    reading: Mutex<()>,
    /// The lock of the data folder. It is here because an open partial file keeps the metadata alive, and last so
    /// that the index is closed before the next process may open it.
    process_lock: Lock,
}

impl Metadata {
    pub(in crate::store) fn open(
        disk: Arc<Disk>,
        lock: Lock,
        blobs: Arc<Blobs>,
        open_files: Arc<OpenFiles>,
    ) -> (Self, IndexState) {
        let wake = Arc::new(Notify::new());
        let (index, found) = Index::open(&disk.root().join("index"), Arc::clone(&wake));
        let refs = Refs::new(Arc::clone(&disk));
        let metadata = Self {
            disk,
            blobs,
            open_files,
            stale: StaleLayouts::new(refs.clone()),
            refs,
            index,
            wake,
            locks: [const { Mutex::new(()) }; LOCKS],
            reading: Mutex::default(),
            process_lock: lock,
        };
        (metadata, found)
    }

    pub(in crate::store) fn root(&self) -> &Path {
        self.disk.root()
    }

    pub(in crate::store) fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    pub(in crate::store) fn refs(&self) -> &Refs {
        &self.refs
    }

    pub(in crate::store) fn index(&self) -> &Index {
        &self.index
    }

    pub(in crate::store) fn stale(&self) -> &StaleLayouts {
        &self.stale
    }

    pub(in crate::store) fn process_lock(&self) -> &Lock {
        &self.process_lock
    }

    /// Waits until there is something to render or to rebuild.
    pub(in crate::store) async fn wait_for_work(&self) {
        self.wake.notified().await;
    }

    /// Takes the lock under which the facts of a repository change.
    pub(in crate::store) fn lock(&self, repo: &Repo) -> MutexGuard<'_, ()> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(repo);
        let number = usize::try_from(hash % LOCKS as u64).expect("a remainder below 64 fits");
        lock(&self.locks[number])
    }

    /// Whether the `index.json` with this fingerprint is another tool's: it is not the one that was last rendered or
    /// adopted.
    pub(in crate::store) fn is_foreign_layout(&self, repo: &Repo, fingerprint: &[u8]) -> bool {
        self.index.layout(repo).is_none_or(|known| known != fingerprint)
    }

    /// Notes that the `index.json` of a repository is out of date and must be rendered.
    pub(in crate::store) fn mark_stale(&self, repo: &Repo) {
        if self.stale.mark(repo) {
            self.wake.notify_one();
        }
    }

    // === Manifests ===

    /// Returns the record of a manifest: that of `repo` itself, or of any repository that has it publicly. Without
    /// the index only the former can be found.
    pub(in crate::store) fn manifest<'a>(
        &self,
        repo: &'a Repo,
        digest: &Digest,
    ) -> Result<Option<(ManifestRecord, Whose<'a>)>, Error> {
        let own = self.own_manifest(repo, digest)?.map(|record| (record, Whose::Repo(repo)));
        let public = || {
            let record = self.index.public_manifest(digest).filter(|_| self.index.is_public(digest));
            record.map(|record| (record, Whose::Public))
        };
        Ok(own.or_else(public))
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

    /// Writes the record of a manifest durably, which grants it to the repository. Returns whether the record is new.
    pub(in crate::store) fn set_manifest(
        &self,
        repo: &Repo,
        digest: &Digest,
        record: &ManifestRecord,
    ) -> Result<bool, Error> {
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
        self.open_files.forget_manifest(digest);
        drop(guard);
        if is_news {
            self.mark_stale(repo);
        }
        Ok(is_news)
    }

    /// Reads and parses a stored manifest.
    pub(in crate::store) fn stored_manifest(
        &self,
        digest: &Digest,
        media_type: &str,
    ) -> Result<Option<Manifest>, Error> {
        // What is behind has its time: a large one after the other.
        let _one_at_a_time = lock(&self.reading);
        let Some(body) = self.blobs.read(digest, MANIFEST_BYTES_MAX as u64)? else { return Ok(None) };
        Ok(Manifest::parse(Some(media_type), &body).ok())
    }

    /// Returns what a manifest refers to. The manifest is read once, and the result is kept as long as it is stored.
    pub(in crate::store) fn parts(
        &self,
        digest: &Digest,
        media_type: &str,
    ) -> Result<Vec<ShortDigest>, Error> {
        if let Some(parts) = self.index.parts(digest) {
            return Ok(parts);
        }
        let manifest = self.stored_manifest(digest, media_type)?;
        if manifest.is_none() && !self.is_here(digest) {
            return Ok(Vec::new());
        }
        Ok(self.note_parts(digest, manifest.as_ref()))
    }

    /// Notes what a manifest refers to and the size that it claims for its blobs. A manifest that cannot be read
    /// refers to nothing.
    pub(in crate::store) fn note_parts(
        &self,
        digest: &Digest,
        manifest: Option<&Manifest>,
    ) -> Vec<ShortDigest> {
        let blobs = manifest.iter().flat_map(|manifest| &manifest.blobs);
        let claimed_bytes = blobs.fold(0_u64, |sum, blob| sum.saturating_add(blob.size));
        let children = manifest.iter().flat_map(|manifest| manifest.children());
        let parts: Vec<Digest> = children.filter_map(Descriptor::digest).collect();
        self.index.put_parts(digest, claimed_bytes, &parts);
        parts.iter().map(short).collect()
    }

    /// Notes what manifests refer to for which that is not noted yet; `None` if it is not known which these are.
    pub(in crate::store) fn note_all_parts(&self) -> Option<()> {
        for (digest, media_type) in self.index.inventory().without_parts()? {
            // Noted by this. One that the disk does not give is asked for again by the next look.
            let _ = self.parts(&digest, &media_type);
        }
        Some(())
    }

    /// Whether a blob is stored, according to the index or its file.
    pub(in crate::store) fn is_here(&self, digest: &Digest) -> bool {
        self.index.has_blob(digest) || self.blobs.size(digest).is_some()
    }

    // === Tags ===

    /// Returns the record of a tag, without adopting what another tool may have written.
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

    /// Writes the record of a tag durably.
    pub(in crate::store) fn set_tag(&self, repo: &Repo, tag: &Tag, record: &TagRecord) -> Result<(), Error> {
        {
            let _guard = self.lock(repo);
            self.refs.write(repo, Ref::Tag(tag), record)?;
            self.index.put_tag(repo, tag, record);
        }
        self.mark_stale(repo);
        Ok(())
    }

    /// Returns a page of tags in byte order.
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

    /// Returns a page of repositories in byte order of `registry/name`.
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
            if is_after && (private_too || self.refs.is_any_public(&repo)?) {
                page.push(repo);
            }
        }
        Ok(page)
    }

    // === Referrers ===

    /// Returns the size of the file of a list of referrers, in bytes.
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

    /// Keeps a list of referrers if its manifest is stored and the repository's own; all refs together may take
    /// `refs_max` bytes. Other lists are not worth the disk, because anybody can ask about any digest in any
    /// repository. Returns whether the list is kept.
    pub(in crate::store) fn set_referrers(
        &self,
        repo: &Repo,
        digest: &Digest,
        record: &ReferrersRecord,
        refs_max: u64,
    ) -> Result<bool, Error> {
        let of = Ref::Referrers(digest);
        let is_ours = self.own_manifest(repo, digest)?.is_some() && self.blobs.size(digest).is_some();
        if !is_ours || record.body.len() as u64 > refs_max / REFERRERS_PART {
            return Ok(false);
        }
        let body = std::str::from_utf8(&record.body)
            .map_err(|error| Error::io("keep as JSON", &self.refs.path(repo, of), io::Error::other(error)))?;
        let _guard = self.lock(repo);
        self.make_room_for_referrers(repo, digest, record.body.len() as u64);
        self.refs.write(repo, of, &NewReferrersFile { fetched_at: record.fetched_at, body })?;
        self.index.put_referrers(repo, digest, self.referrers_bytes(repo, digest), record.fetched_at);
        Ok(true)
    }

    /// Removes the oldest lists of a repository until there is room for one more.
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
            self.index.remove(&Fact::Referrers(repo.clone(), other));
            self.disk.metrics().space.evicted_refs.inc();
            sum -= bytes;
        }
    }

    // === What goes ===

    /// Removes the refs about content that is gone, unless that has come back or is being downloaded.
    pub(in crate::store) fn forget(&self, gone: &HashSet<Digest>, partials: &Partials) {
        self.index.forget(gone);
        let mentions = self.index.inventory().mentions(gone);
        let mut changed: HashSet<Repo> = HashSet::new();
        let is_back = |digest: &Digest| self.blobs.size(digest).is_some() || partials.is_filling(digest);
        for (repo, digest) in mentions.grants {
            let guard = self.lock(&repo);
            if !is_back(&digest) {
                self.forget_grant(&repo, &digest);
            }
            drop(guard);
            changed.insert(repo);
        }
        for (repo, tag) in mentions.tags {
            let guard = self.lock(&repo);
            // It may have moved meanwhile.
            let record = self.index.tag(&repo, &tag);
            if record.is_some_and(|record| gone.contains(&record.digest) && !is_back(&record.digest)) {
                self.refs.remove(&repo, Ref::Tag(&tag));
                self.index.remove(&Fact::Tag(repo.clone(), tag.clone()));
            }
            drop(guard);
            changed.insert(repo);
        }
        for repo in changed {
            self.mark_stale(&repo);
        }
    }

    fn forget_grant(&self, repo: &Repo, digest: &Digest) {
        for of in [Ref::Blob(digest), Ref::Manifest(digest), Ref::Referrers(digest)] {
            self.refs.remove(repo, of);
        }
        self.index.remove(&Fact::Manifest(repo.clone(), *digest));
        self.index.remove(&Fact::Grant(repo.clone(), *digest));
        self.index.remove(&Fact::Referrers(repo.clone(), *digest));
    }

    /// Removes these refs.
    pub(in crate::store) fn remove_refs(&self, entries: &[Fact]) {
        let mut changed: HashSet<Repo> = HashSet::new();
        for entry in entries {
            let (repo, of) = match entry {
                Fact::Tag(repo, tag) => (repo, Ref::Tag(tag)),
                Fact::Manifest(repo, digest) => (repo, Ref::Manifest(digest)),
                Fact::Grant(repo, digest) => (repo, Ref::Blob(digest)),
                Fact::Referrers(repo, digest) => (repo, Ref::Referrers(digest)),
                Fact::Blob(_) | Fact::Repo(_) => continue,
            };
            let _guard = self.lock(repo);
            self.refs.remove(repo, of);
            self.index.remove(entry);
            changed.insert(repo.clone());
        }
        for repo in changed {
            self.mark_stale(&repo);
        }
    }
}
