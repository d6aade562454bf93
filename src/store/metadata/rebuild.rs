//! Brings the index in line with the files: all of it when it is new, what differs when it is old.
//!
//! What nobody can have changed since the index was closed in order is not read: the times of folders tell, so that a
//! start costs next to nothing, whatever the number of files. The rest is visited file by file, without ever holding
//! the names of a folder in memory.
//!
//! Additions come first, then removals. Berth itself removes refs under the repository's lock, so a record is put or
//! removed under that lock and after another look at its file: whatever happens meanwhile, the last one to write the
//! index has seen the newest file.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::clock::unix_seconds;
use crate::oci::{Algorithm, Digest, Repo, Tag};
use crate::store::disk::files;
use crate::store::error::Error;
use crate::store::metadata::Metadata;
use crate::store::metadata::grants::merged;
use crate::store::metadata::index::key::Fact;
use crate::store::metadata::progress::PassProgress;
use crate::store::metadata::records::{Grant, ManifestRecord, TagRecord};
use crate::store::metadata::refs::{Ref, RefKind};
use crate::sync::lock;

/// Seconds by which the time of a change may lie before the change: file times are coarser than the clock, and set
/// before a write is done.
const CLOCK_GRAIN_SECONDS: u64 = 5;

/// How much of the index is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Trust {
    /// The index is right about folders of refs that have not changed since this time, in seconds since 1970: every
    /// replaced, added and removed file changes its folder. The files of other folders are read.
    Since(u64),
    /// The index may be wrong anywhere, so every file is read.
    Nothing,
}

impl Trust {
    fn covers(self, folder: &Path) -> bool {
        let changed = match fs::metadata(folder) {
            Ok(metadata) => metadata.ctime(),
            // The one above it has changed if it was ever there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(_) => i64::MAX,
        };
        match self {
            Self::Since(at) => changed.cast_unsigned() < at.saturating_sub(CLOCK_GRAIN_SECONDS),
            Self::Nothing => false,
        }
    }

    /// Whether a folder and all above it, up to the data folder, are unchanged. A folder may also be exchanged as a
    /// whole, which only the one above it shows.
    fn covers_all(self, folder: &Path, root: &Path) -> bool {
        folder.ancestors().take_while(|path| *path != root).all(|path| self.covers(path))
    }
}

/// The result of a pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Summary {
    /// Number of records that the pass has added or changed.
    pub added: usize,
    /// Number of records that it has removed because their files are gone.
    pub removed: usize,
}

/// What a pass need not compare: it is in the index, and nobody else has changed it.
#[derive(Default)]
struct Unchanged {
    blobs: HashSet<Algorithm>,
    repos: HashSet<Repo>,
}

impl Unchanged {
    fn has(&self, entry: &Fact) -> bool {
        match entry {
            Fact::Blob(digest) => self.blobs.contains(&digest.algorithm()),
            Fact::Repo(repo)
            | Fact::Tag(repo, _)
            | Fact::Manifest(repo, _)
            | Fact::Grant(repo, _)
            | Fact::Referrers(repo, _) => self.repos.contains(repo),
        }
    }
}

/// Brings the index in line with the files, one pass at a time.
pub(in crate::store) struct Reconciler {
    metadata: Arc<Metadata>,
    /// How far a pass over all files is.
    progress: PassProgress,
    /// Held during a pass.
    passing: Mutex<()>,
}

impl Reconciler {
    pub(in crate::store) fn new(metadata: Arc<Metadata>) -> Self {
        Self { metadata, progress: PassProgress::default(), passing: Mutex::default() }
    }

    /// Waits until no other pass runs, and keeps others from beginning.
    pub(in crate::store) fn begin_pass(&self) -> MutexGuard<'_, ()> {
        lock(&self.passing)
    }

    /// Returns how far a pass over all files is, from 0 to 1; 1 if there is none.
    pub(in crate::store) fn ratio(&self) -> f64 {
        self.progress.ratio()
    }

    /// Compares the index with all files once. `stop` ends it early, without harm.
    pub(in crate::store) fn reconcile(&self, trust: Trust, stop: &AtomicBool) -> Result<Summary, Error> {
        if trust == Trust::Nothing {
            self.progress.begin(self.count_files(stop)?);
        }
        let result = self.compare(trust, stop);
        self.progress.end();
        result
    }

    fn compare(&self, trust: Trust, stop: &AtomicBool) -> Result<Summary, Error> {
        let (mut summary, mut unchanged) = (Summary::default(), Unchanged::default());
        let (mut blobs, mut is_any_changed, root) = (0, false, self.metadata.root());
        for algorithm in Algorithm::ALL {
            if trust.covers_all(&self.metadata.blobs().folder(algorithm), root) {
                unchanged.blobs.insert(algorithm);
            } else {
                is_any_changed = true;
                summary.added += self.learn_blobs(algorithm, &mut blobs, stop)?;
            }
        }
        // All that were found are in the index by now: if it has no more, none of its is missing.
        if unchanged.blobs.is_empty() && blobs >= self.metadata.index().blob_count() {
            unchanged.blobs.extend(Algorithm::ALL);
        }
        for repo in self.metadata.refs().repositories()? {
            if RefKind::ALL
                .iter()
                .all(|kind| trust.covers_all(&self.metadata.refs().folder(&repo, *kind), root))
                && self.metadata.index().knows(&repo)
            {
                unchanged.repos.insert(repo);
                continue;
            }
            is_any_changed = true;
            summary.added += self.learn_repository(&repo, trust, stop)?;
            if stop.load(Ordering::Relaxed) {
                return Ok(summary);
            }
        }
        if stop.load(Ordering::Relaxed) {
            return Ok(summary);
        }
        // A list is whole from here on, and cannot become less so.
        self.metadata.index().set_complete(true);
        if !is_any_changed && self.metadata.index().repo_count() == unchanged.repos.len() {
            return Ok(summary);
        }
        let is_there =
            |entry: &Fact| unchanged.has(entry) || stop.load(Ordering::Relaxed) || self.is_there(entry);
        for entry in self.metadata.index().missing(&is_there) {
            summary.removed += usize::from(self.unlearn(&entry));
        }
        Ok(summary)
    }

    /// Counts the files that are to be read.
    fn count_files(&self, stop: &AtomicBool) -> Result<u64, Error> {
        let mut count = 0;
        for algorithm in Algorithm::ALL {
            count += files::names(&self.metadata.blobs().folder(algorithm))?.count() as u64;
        }
        for repo in self.metadata.refs().repositories()? {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            count += self.metadata.refs().count(&repo)?;
        }
        Ok(count)
    }

    fn learn_blobs(&self, algorithm: Algorithm, seen: &mut u64, stop: &AtomicBool) -> Result<usize, Error> {
        let mut added = 0;
        for name in files::names(&self.metadata.blobs().folder(algorithm))? {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            self.progress.step();
            let Some(digest) = name?.to_str().and_then(|hex| Digest::from_hex(algorithm, hex)) else {
                continue;
            };
            if self.metadata.index().has_blob(&digest) {
                *seen += 1;
            } else if let Some((size, modified_at)) = self.metadata.blobs().size_and_time(&digest) {
                // When it came: of times of use nothing is left, and "now" would keep all from being evicted.
                self.metadata.index().put_blob(&digest, size, modified_at.min(unix_seconds()));
                added += 1;
                *seen += 1;
            }
        }
        Ok(added)
    }

    fn learn_repository(&self, repo: &Repo, trust: Trust, stop: &AtomicBool) -> Result<usize, Error> {
        self.metadata.index().put_repo(repo);
        let trusts = |kind| trust.covers(&self.metadata.refs().folder(repo, kind));
        let goes_on = || {
            self.progress.step();
            !stop.load(Ordering::Relaxed)
        };
        let mut added = 0;
        let trusts_tags = trusts(RefKind::Tags);
        self.metadata.refs().each_tag(repo, &mut |tag| {
            added += usize::from(self.learn_tag(repo, &tag, trusts_tags)?);
            Ok(goes_on())
        })?;
        let trusts_manifests = trusts(RefKind::Manifests);
        self.metadata.refs().each_digest(repo, RefKind::Manifests, &mut |digest| {
            added += usize::from(self.learn_manifest(repo, &digest, trusts_manifests)?);
            Ok(goes_on())
        })?;
        let trusts_grants = trusts(RefKind::Blobs);
        self.metadata.refs().each_digest(repo, RefKind::Blobs, &mut |digest| {
            let old = self.metadata.index().grant(repo, &digest);
            if !(old.is_some() && trusts_grants)
                && let Some(grant) = self.metadata.refs().read::<Grant>(repo, Ref::Blob(&digest))?
            {
                // Its manifests have been learned by now.
                let manifest = self.metadata.index().manifest(repo, &digest);
                let all = manifest.map_or(grant, |record| merged(grant, record.grant()));
                added += usize::from(old != Some(all));
                self.metadata.index().put_grant(repo, &digest, all);
            }
            Ok(goes_on())
        })?;
        self.metadata.refs().each_digest(repo, RefKind::Referrers, &mut |digest| {
            added += usize::from(self.learn_referrers(repo, &digest));
            Ok(goes_on())
        })?;
        Ok(added)
    }

    /// Puts a list of referrers into the index: its size and age are those of its file.
    fn learn_referrers(&self, repo: &Repo, digest: &Digest) -> bool {
        let _guard = self.metadata.lock(repo);
        let Some((bytes, modified_at)) = self.metadata.refs().size_and_time(repo, Ref::Referrers(digest))
        else {
            return false;
        };
        let is_news = self.metadata.index().referrers(repo, digest) != Some(bytes);
        if is_news {
            self.metadata.index().put_referrers(repo, digest, bytes, modified_at.min(unix_seconds()));
        }
        is_news
    }

    fn learn_tag(&self, repo: &Repo, tag: &Tag, trusts: bool) -> Result<bool, Error> {
        let old = self.metadata.index().tag(repo, tag);
        if old.is_some() && trusts {
            return Ok(false);
        }
        let _guard = self.metadata.lock(repo);
        let Some(record) = self.metadata.refs().read::<TagRecord>(repo, Ref::Tag(tag))? else {
            return Ok(false);
        };
        // The index may know of a later check of the same tag than the file does.
        let is_news = old.is_none_or(|old| TagRecord { checked_at: record.checked_at, ..old } != record);
        if is_news {
            self.metadata.index().put_tag(repo, tag, &record);
        }
        Ok(is_news)
    }

    fn learn_manifest(&self, repo: &Repo, digest: &Digest, trusts: bool) -> Result<bool, Error> {
        let old = self.metadata.index().manifest(repo, digest);
        if old.is_some() && trusts && self.metadata.index().grant(repo, digest).is_some() {
            return Ok(false);
        }
        let _guard = self.metadata.lock(repo);
        let Some(record) = self.metadata.refs().read::<ManifestRecord>(repo, Ref::Manifest(digest))? else {
            return Ok(false);
        };
        // Also where nothing differs: the grant, and that it is public, are records of their own.
        self.metadata.index().put_manifest(repo, digest, &record);
        Ok(old.as_ref() != Some(&record))
    }

    fn is_there(&self, entry: &Fact) -> bool {
        match entry {
            Fact::Blob(digest) => self.metadata.blobs().size(digest).is_some(),
            Fact::Repo(repo) => self.metadata.refs().knows(repo),
            Fact::Tag(repo, tag) => self.metadata.refs().exists(repo, Ref::Tag(tag)),
            Fact::Manifest(repo, digest) => self.metadata.refs().exists(repo, Ref::Manifest(digest)),
            Fact::Referrers(repo, digest) => self.metadata.refs().exists(repo, Ref::Referrers(digest)),
            Fact::Grant(repo, digest) => {
                self.metadata.refs().exists(repo, Ref::Blob(digest))
                    || self.metadata.refs().exists(repo, Ref::Manifest(digest))
            }
        }
    }

    fn unlearn(&self, entry: &Fact) -> bool {
        let _guard = match entry {
            Fact::Blob(_) => None,
            Fact::Repo(repo)
            | Fact::Tag(repo, _)
            | Fact::Manifest(repo, _)
            | Fact::Grant(repo, _)
            | Fact::Referrers(repo, _) => Some(self.metadata.lock(repo)),
        };
        let is_gone = !self.is_there(entry);
        if is_gone {
            self.metadata.index().remove(entry);
        }
        is_gone
    }
}
