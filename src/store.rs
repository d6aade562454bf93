//! The store: blobs under their digests, and who may be served them.
//!
//! # On disk
//!
//! ```text
//! <data_dir>/
//!   blobs/{sha256,sha512}/<hex>            whole, verified, read-only; manifests too       blob.rs
//!   partial/<algorithm>-<hex>{,.map}       downloads under way                    partial.rs, map.rs
//!   partial/.tmp-<n>                       files being staged, swept at start              disk.rs
//!   repos/<registry>/<name>/_oci/refs/     the truth: one small file per fact              refs.rs
//!   repos/<registry>/<name>/_oci/          an OCI image layout, rendered behind          layout.rs
//!   quarantine/                            damaged files, and what was in the way     quarantine.rs, obstacle.rs
//!   pins.json                              images that stay                              pin.rs
//!   admin-token                            opens the admin plane                      secret.rs
//!   index/                                 derived and disposable                          index.rs
//!   lock                                   one process at a time                           lock.rs
//! ```
//!
//! A repository component never begins with `_`, so `_oci` is safe; the colon of a port becomes `_5000_` in a
//! folder name, because other tools split at colons. All of it must be on one file system.
//!
//! # Durability
//!
//! Stage → hash → sync the file → rename → sync the folder; a folder that is made is synced into its parent
//! first. So a file under its digest is whole by construction, and a ref is either the old one or the new one.
//! The map of a partial file never names bytes that are not synced. A grant is durable before a blob appears:
//! callers grant first, and [`Store::grant`] returns when that would survive a power loss. The index promises
//! nothing across one.
//!
//! # What is truth, and what is rebuilt
//!
//! The files are the truth. The index answers what must be fast; where it says nothing, the files are asked
//! before a miss is reported. One that is missing, broken, or of another version is removed and rebuilt from the
//! files behind, at start or if it fails while berth runs ([`Store::run`]); only times of use and of checks
//! are lost. A pass behind every start looks for what other tools, or a crash, have put out of line, and adopts
//! layouts that other tools have written (`adopt.rs`). No start reads all of the index or of the files first.
//!
//! # How much is kept
//!
//! [`Limits`] says how much may be kept, `budget.rs` counts, `evict.rs` plans what goes when there is no room, and
//! `sweep.rs` carries that out. A file that is gone is a miss, not an error.
//!
//! # Blocking
//!
//! Everything here touches the disk, so every method leaves the runtime by `spawn_blocking`. Work that has begun
//! is finished even if its caller goes away.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::oci::{Digest, Document, Manifest, Repo, Tag};
use crate::telemetry::Metrics;

mod blobs;
mod disk;
mod error;
mod eviction;
mod integrity;
mod layout;
mod maintenance;
#[expect(unsafe_code, reason = "asks the allocator for something that has no safe name")]
mod malloc;
mod metadata;
mod partial;
mod secret;

pub use blobs::open_files::{BlobFile, Mapped, MappedWeak};
pub use blobs::piece_map::Next;
pub use blobs::range_set::Pieces;
pub use disk::health::Health;
pub use disk::privacy::{Mode, close_to_others};
pub use error::Error;
pub use eviction::budget::{InvalidSize, Limits, Size};
pub use eviction::pins::{Pin, Pinned};
pub use integrity::Damage;
pub use integrity::recheck::Pending;
pub use integrity::scrub::Rate;
pub use integrity::verify::{Finding, Verification};
pub use malloc::keep_large_apart;
pub use metadata::records::{Grant, ManifestRecord, Previous, Proof, ReferrersRecord, TagRecord};
pub use partial::{Left, Partial, PartialKey, Sync, Synced};

use eviction::Sweeper;
use integrity::recheck::Rechecks;
use integrity::scrub;
use metadata::Ledger;
use metadata::index::Found;
use partial::Partials;

/// How long a request waits for the adoption of what another tool has just written; the adoption goes on.
const ADOPTION_WAIT: Duration = Duration::from_secs(5);

/// The store of one data folder. Clones share it.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    ledger: Arc<Ledger>,
    partials: Partials,
    /// What the previous process left of the index.
    found: Found,
    /// When this one began, in seconds since 1970.
    opened_at: u64,
    /// The index being rebuilt, if that takes longer than a start may.
    rebuilding: Mutex<Option<JoinHandle<()>>>,
    /// Ends background passes early.
    stop: Arc<AtomicBool>,
    /// The look at every stored file that is under way, or the last one.
    verification: Mutex<Verification>,
    /// Held while a blob is looked at that a reader could not read.
    suspect: Arc<tokio::sync::Mutex<()>>,
    /// Verifications behind readers.
    rechecks: Arc<Rechecks>,
}

/// How full the store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of all blobs.
    pub used_bytes: u64,
    /// Bytes of all that counts towards the budget.
    pub budget_used_bytes: u64,
    /// The most that these may be.
    pub budget_bytes: u64,
    /// Size of the file system that they are on.
    pub total_bytes: u64,
}

impl Store {
    /// Opens a data folder, which is made if need be, and makes sure that there is an index: where a rebuild takes
    /// long, it goes on behind, and the files answer meanwhile.
    ///
    /// Starts nothing else: see [`Store::run`]. A disk that is full, read-only or failing is no error if it has a data
    /// folder that can be locked. What becomes of it is counted in `metrics`.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process has it; otherwise if there is no such folder, nor can one be made.
    pub async fn open(folder: &Path, metrics: Arc<Metrics>) -> Result<Self, Error> {
        Self::open_within(folder, Limits::default(), metrics).await
    }

    /// The same, for who brings content: never more than `limits` allow.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub async fn open_within(folder: &Path, limits: Limits, metrics: Arc<Metrics>) -> Result<Self, Error> {
        let folder = folder.to_owned();
        let inner = blocking(move || maintenance::open(&folder, limits, metrics)).await?;
        maintenance::begin_rebuild(&inner).await;
        Ok(Self(Arc::new(inner)))
    }

    /// Does what is behind, until `shutdown`: renders `index.json` files, adopts, reconciles and rebuilds the
    /// index, and tries whether a failing disk has recovered. Then marks the index as closed in order, so it is best
    /// ended last: a change that comes later still takes effect, but the next start has to compare everything.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) {
        maintenance::run(&self.0, shutdown).await;
    }

    /// Tells other processes, which cannot have the data folder meanwhile, where to ask this one.
    pub async fn announce(&self, admin: SocketAddr) {
        self.ask(move |ledger| ledger.process_lock.announce(admin)).await;
    }

    /// Whether the disk takes what it is given.
    pub fn health(&self) -> Health {
        self.0.ledger.disk.condition.health()
    }

    /// Looks at stored files in the background, round after round, until `shutdown`. What is damaged is put aside,
    /// and will be fetched again.
    pub async fn scrub(&self, rate: Rate, shutdown: impl Future<Output = ()>) {
        tokio::select! {
            () = scrub::run(Arc::clone(&self.0.ledger), rate) => {}
            () = shutdown => {}
        }
    }

    /// Ends what was opened for a command, without [`Store::run`]: the next process need not compare more than it
    /// would have without this one.
    pub async fn close(self) {
        blocking(move || maintenance::close(&self.0)).await;
    }

    /// A stored blob, opened.
    ///
    /// # Errors
    /// If the disk fails. A blob that is not there is `None`.
    pub async fn blob(&self, digest: &Digest) -> Result<Option<BlobFile>, Error> {
        let digest = *digest;
        self.ask(move |ledger| ledger.blob(&digest)).await
    }

    /// Whether a repository may be served a digest, as [`Store::granted`] says, and the stored blob, opened.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn find(&self, repo: &Repo, digest: &Digest) -> Result<(bool, Option<BlobFile>), Error> {
        let (repo, digest) = (repo.clone(), *digest);
        // In this order: what is granted is noted with what is at hand.
        self.ask(move |ledger| {
            let blob = ledger.blob(&digest)?;
            Ok((ledger.granted(&repo, &digest)?, blob))
        })
        .await
    }

    /// A stored blob that `repo` may be served, if that is known without a look at disk or index. Never blocks.
    pub fn blob_at_hand(&self, repo: &Repo, digest: &Digest) -> Option<BlobFile> {
        self.0.ledger.opened.blob(repo, digest)
    }

    /// A stored manifest that `repo` may be served, if that is known without a look at disk or index. Never blocks.
    pub fn manifest_at_hand(&self, repo: &Repo, digest: &Digest) -> Option<Arc<Document>> {
        self.0.ledger.opened.manifest(repo, digest)
    }

    /// What a tag means here, if that is known without a look at disk or index. Never blocks.
    pub fn tag_at_hand(&self, repo: &Repo, tag: &Tag) -> Option<Arc<TagRecord>> {
        self.0.ledger.index.tag_at_hand(repo, tag)
    }

    /// Stores small content, such as a manifest. Content that is there already is left alone.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`] if it is something else; [`Error::Full`] or [`Error::Io`].
    pub async fn put(&self, digest: &Digest, content: Bytes) -> Result<(), Error> {
        let (inner, digest) = (Arc::clone(&self.0), *digest);
        blocking(move || Sweeper::of(&inner).put(&digest, &content)).await
    }

    /// Opens the partial file of a blob of `total` bytes, if upstream says how many, or begins one, for the transfer that is `next`; with room for
    /// everything if `is_whole`. What is there of another total, or not for that transfer, is dropped.
    ///
    /// # Errors
    /// [`Error::InUse`] while somebody else has it; [`Error::TooLarge`], [`Error::NoRoom`] or [`Error::Full`] if there
    /// can be no room for it; [`Error::Io`].
    pub async fn partial(
        &self,
        key: &PartialKey,
        total: Option<u64>,
        next: Next<'_>,
        is_whole: bool,
    ) -> Result<Partial, Error> {
        let (inner, key, repo) = (Arc::clone(&self.0), key.clone(), next.repo.clone());
        let Next { is_granted, is_public, is_by_parents, speaker, .. } = next;
        blocking(move || {
            let next = Next { repo: &repo, is_granted, is_public, is_by_parents, speaker };
            inner.partials.open(Arc::clone(&inner.ledger), &key, total, &next, is_whole)
        })
        .await
    }

    /// What is there of a blob whose download has stopped, or is under way; nothing if that is not sound.
    pub async fn left(&self, key: &PartialKey) -> Option<Left> {
        let (inner, key) = (Arc::clone(&self.0), key.clone());
        blocking(move || inner.partials.left(&key)).await
    }

    /// What a tag means here. One that is not known may have been written by another tool just now.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn tag(&self, repo: &Repo, tag: &Tag) -> Result<Option<TagRecord>, Error> {
        let (of, name) = (repo.clone(), tag.clone());
        let found = self.ask(move |ledger| ledger.tag(&of, &name)).await?;
        if found.is_some() || !self.adopt(repo).await {
            return Ok(found);
        }
        let (of, name) = (repo.clone(), tag.clone());
        self.ask(move |ledger| ledger.tag(&of, &name)).await
    }

    /// Makes a tag mean something else, durably.
    ///
    /// # Errors
    /// [`Error::Full`] or [`Error::Io`].
    pub async fn set_tag(&self, repo: &Repo, tag: &Tag, record: &TagRecord) -> Result<(), Error> {
        let (repo, tag, record) = (repo.clone(), tag.clone(), record.clone());
        self.ask(move |ledger| ledger.set_tag(&repo, &tag, &record)).await
    }

    /// Notes that upstream confirmed a tag. Only the index knows, so it may be forgotten.
    pub async fn checked(&self, repo: &Repo, tag: &Tag, at: u64) {
        let (repo, tag) = (repo.clone(), tag.clone());
        self.ask(move |ledger| ledger.index.checked(&repo, &tag, at)).await;
    }

    /// A page of at most `n` tags after `after`, in byte order.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn tags(&self, repo: &Repo, after: Option<&str>, n: usize) -> Result<Vec<Tag>, Error> {
        self.adopt(repo).await;
        let (repo, after) = (repo.clone(), after.map(str::to_owned));
        self.ask(move |ledger| ledger.tags(&repo, after.as_deref(), n)).await
    }

    /// A stored manifest that a repository may be served: known here, or publicly elsewhere.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn manifest(&self, repo: &Repo, digest: &Digest) -> Result<Option<Arc<Document>>, Error> {
        let (repo, digest) = (repo.clone(), *digest);
        self.ask(move |ledger| ledger.manifest(&repo, &digest)).await
    }

    /// The same, and whether its image claims to be larger than all that may be kept.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn manifest_weighed(
        &self,
        repo: &Repo,
        digest: &Digest,
    ) -> Result<Option<(Arc<Document>, bool)>, Error> {
        let (repo, digest) = (repo.clone(), *digest);
        self.ask(move |ledger| {
            let document = ledger.manifest(&repo, &digest)?;
            Ok(document.map(|document| (document, ledger.claims_too_much(&digest))))
        })
        .await
    }

    /// Notes what a manifest is, durably, and grants it to the repository.
    ///
    /// # Errors
    /// [`Error::Full`] or [`Error::Io`].
    pub async fn set_manifest(
        &self,
        repo: &Repo,
        digest: &Digest,
        record: &ManifestRecord,
    ) -> Result<(), Error> {
        let (repo, digest, record) = (repo.clone(), *digest, record.clone());
        self.ask(move |ledger| ledger.set_manifest(&repo, &digest, &record)).await
    }

    /// Notes what a stored manifest refers to.
    pub async fn note_parts(&self, digest: &Digest, manifest: &Manifest) {
        let (digest, manifest) = (*digest, manifest.clone());
        self.ask(move |ledger| ledger.note_parts(&digest, Some(&manifest))).await;
    }

    /// The most that may be kept.
    pub async fn max_bytes(&self) -> u64 {
        self.ask(|ledger| ledger.budget.max_bytes(ledger.disk.root())).await
    }

    /// Upstream's list of what refers to a manifest, as it was last seen.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn referrers(&self, repo: &Repo, digest: &Digest) -> Result<Option<ReferrersRecord>, Error> {
        let (repo, digest) = (repo.clone(), *digest);
        self.ask(move |ledger| ledger.referrers(&repo, &digest)).await
    }

    /// How large the file is that has the list; none has no bytes.
    pub async fn referrers_bytes(&self, repo: &Repo, digest: &Digest) -> u64 {
        let (repo, digest) = (repo.clone(), *digest);
        self.ask(move |ledger| ledger.referrers_bytes(&repo, &digest)).await
    }

    /// Keeps upstream's list of what refers to a manifest.
    ///
    /// # Errors
    /// [`Error::Full`] or [`Error::Io`], the latter also for a body that is not UTF-8 and so no JSON.
    pub async fn set_referrers(
        &self,
        repo: &Repo,
        digest: &Digest,
        record: &ReferrersRecord,
    ) -> Result<(), Error> {
        let (repo, digest, record) = (repo.clone(), *digest, record.clone());
        self.ask(move |ledger| ledger.set_referrers(&repo, &digest, &record)).await
    }

    /// Whether there is anything at all of a repository.
    ///
    /// # Errors
    /// None today: a folder that cannot be looked at counts as absent.
    pub async fn knows(&self, repo: &Repo) -> Result<bool, Error> {
        let repo = repo.clone();
        self.ask(move |ledger| Ok(ledger.knows(&repo))).await
    }

    /// A page of at most `n` repositories after `after`, in byte order of `registry/name`: those with anything
    /// public, or all.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn repositories(
        &self,
        after: Option<&Repo>,
        n: usize,
        private_too: bool,
    ) -> Result<Vec<Repo>, Error> {
        let after = after.cloned();
        self.ask(move |ledger| ledger.repositories(after.as_ref(), n, private_too)).await
    }

    /// How full the store is.
    pub async fn usage(&self) -> Usage {
        self.ask(|ledger| {
            let total = rustix::fs::statvfs(ledger.disk.root());
            let total_bytes = total.map_or(0, |total| total.f_blocks.saturating_mul(total.f_frsize));
            let used_bytes = ledger.index.used_bytes();
            Usage {
                used_bytes,
                budget_used_bytes: ledger.budget.used_bytes(&|| ledger.index.kept_bytes()),
                budget_bytes: ledger.budget.max_bytes(ledger.disk.root()).min(total_bytes),
                total_bytes,
            }
        })
        .await
    }

    /// How far a pass over all files is that brings the index in line, from 0 to 1; 1 if there is none.
    pub fn index_ratio(&self) -> f64 {
        self.0.ledger.progress.ratio()
    }

    /// Adopts what another tool has put into a repository's layout, if anything looks like it. Returns whether
    /// it is worth to look again.
    async fn adopt(&self, repo: &Repo) -> bool {
        let of = repo.clone();
        if !self.ask(move |ledger| ledger.is_adoptable(&of)).await {
            return false;
        }
        let repo = repo.clone();
        let adoption = async {
            let turn = Arc::clone(&self.0.ledger.adopting).lock_owned().await;
            self.ask(move |ledger| {
                let _turn = turn;
                if let Err(error) = ledger.adopt(&repo) {
                    tracing::warn!(%repo, error = &error as &dyn std::error::Error, "cannot adopt a layout");
                }
            })
            .await;
        };
        // Too long for a request: it is answered from what is known so far.
        let _ = tokio::time::timeout(ADOPTION_WAIT, adoption).await;
        true
    }

    async fn ask<T: Send + 'static>(&self, question: impl FnOnce(&Ledger) -> T + Send + 'static) -> T {
        let ledger = Arc::clone(&self.0.ledger);
        blocking(move || question(&ledger)).await
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Runs what blocks away from the runtime. A panic in it is the caller's.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // Never "cancelled": that is only for work that a stopping runtime has not begun, and then nobody
        // is here to see it.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests;
