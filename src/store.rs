//! The store: blobs under their digests, and who may be served them.
//!
//! # On disk
//!
//! ```text
//! <data_dir>/
//!   blobs/{sha256,sha512}/<hex>            whole, verified, read-only; manifests too    blobs.rs
//!   partial/<registry>/<algorithm>-<hex>   downloads that are running, with their maps  blobs/partials.rs, piece_map.rs
//!   partial/.tmp-<n>                       files being staged, swept at start           disk.rs
//!   repos/<registry>/<name>/_oci/refs/     the truth: one small file per fact           metadata/refs.rs
//!   repos/<registry>/<name>/_oci/          an OCI image layout, rendered later          layout.rs
//!   quarantine/                            damaged files, and what was in the way       integrity.rs, disk/obstacle.rs
//!   pins.json                              images that stay                             eviction/pins.rs
//!   admin-token                            opens the admin plane                        Store::put_secret
//!   index/                                 derived and disposable                       metadata/index.rs
//!   lock                                   one process at a time                        disk/lock.rs
//! ```
//!
//! A repository component never begins with `_`, so `_oci` is safe; the colon of a port becomes `_5000_` in a folder
//! name, because other tools split at colons. All of it must be on one file system.
//!
//! # Rooms
//!
//! Each uses only those above it in this list; all are used by this file and by `requests.rs`, and by nothing outside
//! of the store:
//!
//! - `error`, `malloc`, `blocking`: the errors, the allocator, and how blocking work leaves the runtime.
//! - `disk`: the one way in which files change, and whether the disk takes that.
//! - `blobs`: content under its digest, open files, and partial files.
//! - `metadata`: the facts about repositories, as ref files and in the index.
//! - `integrity`: damaged files are taken out of service; verification and scrub.
//! - `contents`: stored blobs and manifests, opened for a request.
//! - `eviction`: budget, pins, and what goes when there is no room.
//! - `layout` and `partial`: OCI layouts that other tools read and write; a download and the room that it takes.
//! - `maintenance`: the background work of all of them.
//!
//! # Durability
//!
//! Stage → hash → sync the file → rename → sync the folder; a folder that is made is synced into its parent first. So
//! a file under its digest is whole by construction, and a ref is either the old one or the new one. The map of a
//! partial file never names bytes that are not synced. A grant is durable before a blob appears: callers grant first,
//! and [`Store::grant`] returns when that would survive a power loss. The index promises nothing across one.
//!
//! # What is truth, and what is rebuilt
//!
//! The files are the truth. The index answers what must be fast; where it says nothing, the files are asked before a
//! miss is reported. An index that is missing, broken, or of another version is removed and rebuilt from the files in
//! the background, at start or when it fails while berth runs ([`Store::run`]); only times of use and of checks are
//! lost. After every start a pass looks for what other tools, or a crash, have put out of line, and adopts layouts
//! that other tools have written (`layout/adopt.rs`). No start reads all of the index or of the files first.
//!
//! # How much is kept
//!
//! [`Limits`] says how much may be kept, `eviction/budget.rs` counts, `eviction/plan.rs` plans what goes when there
//! is no room, and `eviction/sweep.rs` carries that out. A file that is gone is a miss, not an error.
//!
//! # Blocking
//!
//! Everything here touches the disk, so every method leaves the runtime by `spawn_blocking`. Work that has begun is
//! finished even if its caller goes away.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::process::{Resource, getrlimit};

use crate::clock::unix_seconds;
use crate::oci::{Algorithm, Image};
use crate::telemetry::Metrics;

mod blobs;
mod blocking;
mod contents;
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
mod requests;

pub use blobs::blob_file::{BlobFile, Mapped, MappedWeak};
pub use blobs::partials::{PartialKey, Resumable, Sync, Synced};
pub use blobs::piece_map::Next;
pub use blobs::range_set::RangeSet;
pub use disk::health::Health;
pub use disk::privacy::{Mode, close_to_others};
pub use error::Error;
pub use eviction::budget::{InvalidSize, Limits, SpaceLimit};
pub use eviction::pin::{Pin, Pinned};
pub use integrity::damaged::Damage;
pub use integrity::recheck::PendingVerification;
pub use integrity::scrub::Rate;
pub use integrity::verify::{Finding, Verification};
pub use malloc::keep_large_apart;
pub use metadata::records::{Grant, ManifestRecord, Previous, Proof, ReferrersRecord, TagRecord};
pub use partial::Partial;

use blobs::Blobs;
use blobs::open_files::OpenFiles;
use blobs::partials::Partials;
use blocking::blocking;
use contents::Contents;
use disk::lock::Lock;
use disk::{Disk, FileMode};
use eviction::Eviction;
use integrity::Integrity;
use integrity::recheck::Rechecks;
use integrity::scrub;
use integrity::verify::Verify;
use layout::Layouts;
use maintenance::Maintenance;
use metadata::Metadata;
use metadata::index::database::IndexState;

/// The store of one data folder. Clones share it.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

/// The owners that make up a store.
struct Inner {
    disk: Arc<Disk>,
    open_files: Arc<OpenFiles>,
    metadata: Arc<Metadata>,
    contents: Arc<Contents>,
    integrity: Arc<Integrity>,
    eviction: Arc<Eviction>,
    layouts: Arc<Layouts>,
    maintenance: Arc<Maintenance>,
    /// The looks at stored files that somebody asks for.
    verify: Arc<Verify>,
    /// Verifications behind readers.
    rechecks: Arc<Rechecks>,
}

/// How full a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The size of all blobs in bytes.
    pub used_bytes: u64,
    /// Bytes of everything that counts towards the budget.
    pub budget_used_bytes: u64,
    /// The budget in bytes.
    pub budget_bytes: u64,
    /// Size of the file system in bytes.
    pub total_bytes: u64,
}

impl Store {
    /// Opens a data folder, which is made if need be, and makes sure that there is an index. If a rebuild takes long,
    /// it goes on in the background, and the files answer meanwhile.
    ///
    /// It starts nothing else: see [`Store::run`]. A disk that is full, read-only or failing is no error if it has a
    /// data folder that can be locked. Failures are counted in `metrics`.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process has it; otherwise if there is no such folder, nor can one be made.
    pub async fn open(folder: &Path, metrics: Arc<Metrics>) -> Result<Self, Error> {
        Self::open_within(folder, Limits::default(), metrics).await
    }

    /// Opens a data folder as [`Store::open`] does, and keeps it within `limits`.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub async fn open_within(folder: &Path, limits: Limits, metrics: Arc<Metrics>) -> Result<Self, Error> {
        let folder = folder.to_owned();
        let inner = blocking(move || Inner::open(&folder, limits, metrics)).await?;
        inner.maintenance.begin_rebuild().await;
        Ok(Self(Arc::new(inner)))
    }

    /// Does the background work until `shutdown`: renders `index.json` files, adopts, compares and rebuilds the
    /// index, evicts, and probes a failing disk. Then it marks the index as closed in order, so it should end last: a
    /// later change still takes effect, but the next start has to compare everything.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) {
        self.0.maintenance.run(shutdown).await;
    }

    /// Writes down for other processes, which cannot open the data folder meanwhile, where the admin plane of this
    /// one is.
    pub async fn announce(&self, admin: SocketAddr) {
        self.ask(move |inner| inner.metadata.process_lock().announce(admin)).await;
    }

    /// Returns whether the disk takes what is written.
    pub fn health(&self) -> Health {
        self.0.disk.condition().health()
    }

    /// Verifies stored files in the background, round after round, until `shutdown`. Damaged ones are put aside, and
    /// will be fetched again.
    pub async fn scrub(&self, rate: Rate, shutdown: impl Future<Output = ()>) {
        tokio::select! {
            () = scrub::run(Arc::clone(&self.0.integrity), rate) => {}
            () = shutdown => {}
        }
    }

    /// Closes a store that was opened for a command, without [`Store::run`]. The next process need not compare more
    /// than it would have without this one.
    pub async fn close(self) {
        blocking(move || self.0.maintenance.close()).await;
    }

    /// Returns the most that may be kept, in bytes.
    pub async fn max_bytes(&self) -> u64 {
        self.ask(|inner| inner.eviction.max_bytes()).await
    }

    /// How full a store is.
    pub async fn usage(&self) -> Usage {
        self.ask(|inner| {
            let total = rustix::fs::statvfs(inner.disk.root());
            let total_bytes = total.map_or(0, |total| total.f_blocks.saturating_mul(total.f_frsize));
            Usage {
                used_bytes: inner.metadata.index().used_bytes(),
                budget_used_bytes: inner.eviction.used_bytes(),
                budget_bytes: inner.eviction.max_bytes().min(total_bytes),
                total_bytes,
            }
        })
        .await
    }

    /// Returns how far a rebuild of the index from all files is, from 0 to 1; 1 if there is none.
    pub fn index_ratio(&self) -> f64 {
        self.0.maintenance.reconciler().ratio()
    }

    /// Begins to verify all stored files, unless that is running; [`Store::verification`] tells how far it is.
    /// Damaged files are put aside, and will be fetched again.
    pub fn verify(&self) {
        self.0.verify.begin();
    }

    /// Returns how far the verification of all stored files is, or the result of the last one.
    pub fn verification(&self) -> Verification {
        self.0.verify.state()
    }

    /// Pins an image: whatever is stored of it, now or later, is not evicted. A pin of the same image is replaced.
    ///
    /// # Errors
    /// [`Error::Full`] or [`Error::Io`].
    pub async fn pin(&self, pin: Pin) -> Result<Pinned, Error> {
        self.ask(move |inner| inner.eviction.pin(&pin)).await
    }

    /// Removes a pin. Returns whether there was one that [`Store::pin`] made.
    ///
    /// # Errors
    /// [`Error::Full`] or [`Error::Io`].
    pub async fn unpin(&self, image: Image) -> Result<bool, Error> {
        self.ask(move |inner| inner.eviction.unpin(&image)).await
    }

    /// Replaces the limits and the pins of the configuration. Returns at once; the background eviction removes what
    /// is too much.
    pub fn set_limits(&self, limits: Limits) {
        self.0.eviction.set_limits(limits);
    }

    /// Returns every pin and what it keeps, those of the configuration first.
    pub async fn pins(&self) -> Vec<Pinned> {
        self.ask(|inner| inner.eviction.pinned()).await
    }

    /// Writes `content` into the file `name` of the data folder, which only berth's own user may read. It replaces
    /// any file or link.
    ///
    /// # Errors
    /// [`Error::Full`] or [`Error::Io`].
    pub async fn put_secret(&self, name: &'static str, content: String) -> Result<(), Error> {
        self.ask(move |inner| {
            inner.disk.replace(&inner.disk.root().join(name), content.as_bytes(), FileMode::SECRET)
        })
        .await
    }

    async fn ask<T: Send + 'static>(&self, question: impl FnOnce(&Inner) -> T + Send + 'static) -> T {
        let inner = Arc::clone(&self.0);
        blocking(move || question(&inner)).await
    }
}

impl Inner {
    /// Takes the lock of a data folder, removes what a killed process left, and opens the parts of the store.
    fn open(folder: &Path, limits: Limits, metrics: Arc<Metrics>) -> Result<Self, Error> {
        let opened_at = unix_seconds();
        let disk = Arc::new(Disk::open(folder, metrics)?);
        let lock = Lock::take(disk.root())?;
        let partials = Partials::new(Arc::clone(&disk));
        if let Err(error) = prepare(&disk, &partials) {
            // Whatever it is: what is there can be served, and the rest passes through.
            disk.condition().failed(0, &error);
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the data folder cannot be put in order"
            );
        }
        let blobs = Arc::new(Blobs::new(Arc::clone(&disk)));
        let open_files = Arc::new(OpenFiles::new(getrlimit(Resource::Nofile).current));
        let (metadata, found) =
            Metadata::open(Arc::clone(&disk), lock, Arc::clone(&blobs), Arc::clone(&open_files));
        let metadata = Arc::new(metadata);
        if !matches!(found, IndexState::Clean(_)) {
            // What a killed process renamed and had no time to sync is found by this one, and counts as durable.
            let synced = std::fs::File::open(disk.root()).map(rustix::fs::syncfs);
            tracing::debug!(?synced, "synced the file system after an unclean stop");
        }
        let integrity = Arc::new(Integrity::new(
            Arc::clone(&disk),
            Arc::clone(&blobs),
            Arc::clone(&open_files),
            Arc::clone(&metadata),
        ));
        let contents = Arc::new(Contents::new(
            blobs,
            Arc::clone(&open_files),
            Arc::clone(&metadata),
            Arc::clone(&integrity),
        ));
        let parts = || (Arc::clone(&disk), Arc::clone(&metadata), Arc::clone(&contents));
        let (of_disk, facts, served) = parts();
        let eviction = Arc::new(Eviction::new(of_disk, facts, served, partials, limits));
        let (of_disk, facts, served) = parts();
        let layouts = Arc::new(Layouts::new(of_disk, facts, served, Arc::clone(&eviction)));
        let (of_disk, facts, served) = parts();
        let (evicting, rendering) = (Arc::clone(&eviction), Arc::clone(&layouts));
        let maintenance =
            Arc::new(Maintenance::new(of_disk, facts, served, evicting, rendering, found, opened_at));
        let stop = maintenance.stop();
        let verify = Arc::new(Verify::new(Arc::clone(&integrity), Arc::clone(stop)));
        let rechecks = Arc::new(Rechecks::new(Arc::clone(&integrity), Arc::clone(stop)));
        Ok(Self {
            disk,
            open_files,
            metadata,
            contents,
            integrity,
            eviction,
            layouts,
            maintenance,
            verify,
            rechecks,
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.maintenance.stop().store(true, Ordering::Relaxed);
    }
}

/// The folders, without what a killed process left in them.
fn prepare(disk: &Disk, partials: &Partials) -> Result<(), Error> {
    for algorithm in Algorithm::ALL {
        disk.ensure(&disk.root().join("blobs").join(algorithm.as_str()))?;
    }
    disk.ensure(&disk.root().join("repos"))?;
    disk.ensure(&disk.partials())?;
    let count = disk.sweep()?;
    if count > 0 {
        tracing::info!(count, "removed files that a killed process had staged");
    }
    partials.sweep()
}

#[cfg(test)]
mod tests;
