//! Brings the index in line with the files: all of it when it is new, what differs when it is old.
//!
//! Additions come first, then removals. What berth itself takes out of the refs, it does under the repository's
//! lock, so a record is put or removed under that lock and after another look at its file: whatever happens
//! meanwhile, the last one to write the index has seen the newest file.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::index::Entry;
use super::ledger::{Ledger, unix_seconds};
use super::record::{Grant, ManifestRecord, TagRecord};
use super::refs::{Kind, Ref};
use super::{Error, disk};
use crate::oci::{Algorithm, Digest, Repo};

/// File times are coarser than the clock, and set by it some time before a write is done.
const CLOCK_GRAIN_SECONDS: u64 = 5;

/// How much of the index is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// What it has is right where a folder of refs has not changed since then (in seconds since 1970): every
    /// replaced, added and removed file changes its folder. Otherwise every file is read.
    Since(u64),
    /// What it has may be old anywhere, so every file is read.
    Nothing,
}

impl Trust {
    fn covers(self, folder: &Path) -> bool {
        let changed = fs::metadata(folder).map_or(i64::MAX, |metadata| metadata.ctime());
        match self {
            Self::Since(at) => changed.cast_unsigned() < at.saturating_sub(CLOCK_GRAIN_SECONDS),
            Self::Nothing => false,
        }
    }
}

/// What a pass found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    /// Records that the index has now and did not have, or not so.
    pub(super) added: usize,
    /// Records whose files are gone.
    pub(super) removed: usize,
}

impl Ledger {
    /// Compares everything once. `stop` ends it early, without harm.
    pub(super) fn reconcile(&self, trust: Trust, stop: &AtomicBool) -> Result<Summary, Error> {
        let mut summary = Summary::default();
        for algorithm in Algorithm::ALL {
            summary.added += self.learn_blobs(algorithm, stop)?;
        }
        for repo in self.refs.repositories()? {
            if stop.load(Ordering::Relaxed) {
                return Ok(summary);
            }
            summary.added += self.learn_repository(&repo, trust)?;
        }
        // A list is whole from here on, and cannot become less so.
        self.index.set_complete();
        for entry in self.index.missing(&|entry| stop.load(Ordering::Relaxed) || self.is_there(entry)) {
            summary.removed += usize::from(self.unlearn(&entry));
        }
        Ok(summary)
    }

    fn learn_blobs(&self, algorithm: Algorithm, stop: &AtomicBool) -> Result<usize, Error> {
        let mut added = 0;
        for name in disk::list(&self.blobs.folder(algorithm))? {
            let Some(digest) = name.to_str().and_then(|hex| Digest::from_hex(algorithm, hex)) else {
                continue;
            };
            if stop.load(Ordering::Relaxed) {
                break;
            }
            if !self.index.has_blob(&digest)
                && let Some((size, modified_at)) = self.blobs.size_and_time(&digest)
            {
                // When it came: of times of use nothing is left, and "now" would keep all from being evicted.
                self.index.put_blob(&digest, size, modified_at.min(unix_seconds()));
                added += 1;
            }
        }
        Ok(added)
    }

    fn learn_repository(&self, repo: &Repo, trust: Trust) -> Result<usize, Error> {
        self.index.put_repo(repo);
        let trusts = |kind| trust.covers(&self.refs.folder(repo, kind));
        let mut added = 0;
        let trusts_tags = trusts(Kind::Tags);
        for tag in self.refs.tags(repo)? {
            let old = self.index.tag(repo, &tag);
            if old.is_some() && trusts_tags {
                continue;
            }
            let _guard = self.lock(repo);
            let Some(record) = self.refs.read::<TagRecord>(repo, Ref::Tag(&tag))? else { continue };
            // The index may know of a later check of the same tag than the file does.
            if old.is_none_or(|old| TagRecord { checked_at: record.checked_at, ..old } != record) {
                self.index.put_tag(repo, &tag, &record);
                added += 1;
            }
        }
        let trusts_manifests = trusts(Kind::Manifests);
        for digest in self.refs.digests(repo, Kind::Manifests)? {
            let old = self.index.manifest(repo, &digest);
            if old.is_some() && trusts_manifests && self.index.grant(repo, &digest).is_some() {
                continue;
            }
            let _guard = self.lock(repo);
            let Some(record) = self.refs.read::<ManifestRecord>(repo, Ref::Manifest(&digest))? else {
                continue;
            };
            added += usize::from(old.as_ref() != Some(&record));
            // Also where nothing differs: the grant, and that it is public, are records of their own.
            self.index.put_manifest(repo, &digest, &record);
        }
        let trusts_grants = trusts(Kind::Blobs);
        for digest in self.refs.digests(repo, Kind::Blobs)? {
            let old = self.index.grant(repo, &digest);
            if old.is_some() && trusts_grants {
                continue;
            }
            let Some(Grant { public }) = self.refs.read(repo, Ref::Blob(&digest))? else { continue };
            added += usize::from(old.is_none_or(|old| public && !old));
            self.index.put_grant(repo, &digest, public);
        }
        Ok(added)
    }

    fn is_there(&self, entry: &Entry) -> bool {
        match entry {
            Entry::Blob(digest) => self.blobs.size(digest).is_some(),
            Entry::Repo(repo) => self.refs.knows(repo),
            Entry::Tag(repo, tag) => self.refs.exists(repo, Ref::Tag(tag)),
            Entry::Manifest(repo, digest) => self.refs.exists(repo, Ref::Manifest(digest)),
            Entry::Grant(repo, digest) => {
                self.refs.exists(repo, Ref::Blob(digest)) || self.refs.exists(repo, Ref::Manifest(digest))
            }
        }
    }

    fn unlearn(&self, entry: &Entry) -> bool {
        let _guard = match entry {
            Entry::Blob(_) => None,
            Entry::Repo(repo) | Entry::Tag(repo, _) | Entry::Manifest(repo, _) | Entry::Grant(repo, _) => {
                Some(self.lock(repo))
            }
        };
        let is_gone = !self.is_there(entry);
        if is_gone {
            self.index.remove(entry);
        }
        is_gone
    }

    /// Whether any fact of a repository is public, from the files.
    pub(super) fn is_any_public(&self, repo: &Repo) -> Result<bool, Error> {
        for digest in self.refs.digests(repo, Kind::Manifests)? {
            if self
                .refs
                .read(repo, Ref::Manifest(&digest))?
                .is_some_and(|record: ManifestRecord| record.public)
            {
                return Ok(true);
            }
        }
        for digest in self.refs.digests(repo, Kind::Blobs)? {
            if self.refs.read(repo, Ref::Blob(&digest))?.is_some_and(|grant: Grant| grant.public) {
                return Ok(true);
            }
        }
        for tag in self.refs.tags(repo)? {
            if self.refs.read(repo, Ref::Tag(&tag))?.is_some_and(|record: TagRecord| record.public) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
