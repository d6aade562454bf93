//! `quarantine/<algorithm>-<hex>`: what was found damaged, for whoever wants to know how it came to that.
//!
//! A damaged blob leaves `blobs/` at once, so that the next request is a miss and fetches it again. Who is reading it is
//! cut. What was sent before the damage was found cannot be taken back: the client's own check of the digest is what is
//! left, and when it then asks once more, the file is verified ([`recheck`](crate::store::integrity::recheck)).
//!
//! What was [in the way](crate::store::disk::obstacle) of a file comes here, too. The folder is bounded, and evidence only: nothing is
//! ever read from it.

pub(in crate::store) mod recheck;
pub(in crate::store) mod scrub;
pub(in crate::store) mod verify;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::clock::{believed, unix_seconds};
use crate::oci::Digest;
use crate::store::Error;
use crate::store::disk::{Disk, is_absent, list, sync_folder};
use crate::store::metadata::Ledger;
use crate::store::metadata::index::Entry;
use crate::sync::lock;

/// Files kept; the oldest go first.
const FILES_MAX: usize = 16;
/// Bytes kept, and at most this part of a small disk: what is fetched again needs room.
const BYTES_MAX: u64 = 1 << 30;
const DISK_PART: u64 = 64;
/// Damaged blobs remembered that could not be moved. Beyond it they are found again, one by one.
const CONDEMNED_MAX: usize = 65_536;
/// How long a file counts as lost that the disk did not give back and that could not be moved: a disk that fails
/// altogether may come back with everything.
const UNREADABLE_MEMORY: Duration = Duration::from_secs(60);

/// What is wrong with a stored file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Damage {
    /// Its content is not what its name says.
    Changed,
    /// The disk does not give it back.
    Unreadable,
}

impl Damage {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Changed => "its content is not what its name says",
            Self::Unreadable => "the disk does not give it back",
        }
    }
}

/// Damaged blobs that stay where they are, because the disk cannot change, and count as absent.
#[derive(Default)]
pub(in crate::store) struct Condemned {
    /// Until when; for ever if there is none.
    digests: Mutex<HashMap<Digest, Option<Instant>>>,
    /// Whether there are any: asked at every hit.
    is_any: AtomicBool,
    /// Several may find one file damaged at once: it is moved once.
    moving: Mutex<()>,
}

impl Condemned {
    pub(in crate::store) fn has(&self, digest: &Digest) -> bool {
        if !self.is_any.load(Ordering::Acquire) {
            return false;
        }
        let until = lock(&self.digests).get(digest).copied();
        match until {
            Some(Some(until)) if until < Instant::now() => {
                self.acquit(digest);
                false
            }
            other => other.is_some(),
        }
    }

    fn add(&self, digest: &Digest, damage: Damage) {
        let until = match damage {
            Damage::Changed => None,
            Damage::Unreadable => Some(Instant::now() + UNREADABLE_MEMORY),
        };
        let mut digests = lock(&self.digests);
        if digests.len() < CONDEMNED_MAX {
            digests.insert(*digest, until);
            self.is_any.store(true, Ordering::Release);
        }
    }

    /// Another file has taken its place.
    pub(in crate::store) fn acquit(&self, digest: &Digest) {
        if self.is_any.load(Ordering::Acquire) {
            let mut digests = lock(&self.digests);
            digests.remove(digest);
            self.is_any.store(!digests.is_empty(), Ordering::Release);
        }
    }
}

impl Ledger {
    /// Takes a blob out of service if this failure to read it says that it is lost: the disk, or the file system
    /// on it, does not give it back, as opposed to a lack of memory, permission or files. Returns whether it did.
    pub(in crate::store) fn is_lost(&self, digest: &Digest, error: &Error) -> bool {
        let Error::Io { source, .. } = error else { return false };
        let lost = [Errno::IO, Errno::UCLEAN, Errno::BADMSG];
        if !lost.iter().any(|lost| source.raw_os_error() == Some(lost.raw_os_error())) {
            return false;
        }
        self.disk.condition.lost_a_file();
        self.quarantine(digest, Damage::Unreadable);
        true
    }

    /// A blob, or none if the disk has lost it.
    pub(in crate::store) fn unless_lost<T>(
        &self,
        digest: &Digest,
        read: Result<Option<T>, Error>,
    ) -> Result<Option<T>, Error> {
        match read {
            Err(error) if self.is_lost(digest, &error) => Ok(None),
            other => other,
        }
    }

    /// Takes a damaged blob out of service.
    pub(in crate::store) fn quarantine(&self, digest: &Digest, damage: Damage) {
        let path = self.blobs.path(digest);
        let _one_at_a_time = lock(&self.condemned.moving);
        if path.symlink_metadata().is_err_and(|error| is_absent(&error)) {
            self.index.remove(&Entry::Blob(*digest));
            return;
        }
        // From now on: the move may take its time.
        self.condemned.add(digest, damage);
        match damage {
            Damage::Changed => self.opened.condemn(digest),
            // What is in memory can still be read.
            Damage::Unreadable => self.opened.forget(digest),
        }
        self.disk.condition.metrics.quarantined.inc();
        self.index.remove(&Entry::Blob(*digest));
        match self.move_away(digest, &path) {
            Ok(()) => {
                self.condemned.acquit(digest);
                tracing::warn!(%digest, damage = damage.as_str(), "a stored file is damaged: it is put aside, and will be fetched again");
            }
            Err(error) => tracing::warn!(
                %digest,
                damage = damage.as_str(),
                error = &error as &dyn std::error::Error,
                "a stored file is damaged and cannot be moved away: it is ignored"
            ),
        }
        if let Err(error) = self.disk.bound_quarantine() {
            tracing::warn!(error = &error as &dyn std::error::Error, "the quarantine cannot be kept small");
        }
    }

    fn move_away(&self, digest: &Digest, path: &Path) -> Result<(), Error> {
        self.disk.rename(path, &self.disk.quarantine().join(digest.file_name()))?;
        sync_folder(&self.blobs.folder(digest.algorithm()))
    }
}

impl Disk {
    /// Removes what is more than is kept, the oldest first. A folder counts as one file; nobody counts what is in it.
    pub(in crate::store) fn bound_quarantine(&self) -> Result<(), Error> {
        let (mut files, now) = (Vec::new(), unix_seconds());
        for name in list(&self.quarantine())? {
            let path = self.quarantine().join(name);
            // A file's name changes its times of change, not of modification: it tells when it came here.
            if let Ok(metadata) = fs::symlink_metadata(&path) {
                let came_at = believed(u64::try_from(metadata.ctime()).unwrap_or(0), now);
                files.push((came_at, metadata.ctime_nsec(), metadata.len(), path));
            }
        }
        files.sort();
        let disk_bytes = rustix::fs::statvfs(self.root()).map_or(0, |it| it.f_blocks * it.f_frsize);
        let bytes_max = BYTES_MAX.min(disk_bytes / DISK_PART);
        let mut bytes = 0;
        for (number, (_, _, len, path)) in files.into_iter().rev().enumerate() {
            bytes += len;
            if number >= FILES_MAX || bytes > bytes_max {
                self.remove_all(&path)?;
            }
        }
        Ok(())
    }

    fn remove_all(&self, path: &Path) -> Result<(), Error> {
        if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir()) {
            return fs::remove_dir_all(path).map_err(|source| Error::io("remove", path, source));
        }
        self.remove(path)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::oci::{Algorithm, Repo};
    use crate::store::disk::lock::Lock;
    use crate::store::eviction::budget::{Budget, Limits};
    use crate::store::metadata::records::ManifestRecord;

    fn ledger(folder: &Path) -> Ledger {
        let disk = Arc::new(Disk::open(folder, Arc::default()).unwrap());
        let lock = Lock::take(folder).unwrap();
        let budget = Budget::new(Limits::default(), Arc::default(), Arc::default());
        Ledger::open(disk, lock, budget).0
    }

    #[test]
    fn what_is_damaged_is_absent_until_it_is_stored_again() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = ledger(folder.path());
        let digest = Digest::of(Algorithm::Sha256, b"x");
        for damage in [Damage::Changed, Damage::Unreadable] {
            ledger.put(&digest, b"x").unwrap();
            assert!(ledger.blob(&digest).unwrap().is_some());
            ledger.quarantine(&digest, damage);
            // By somebody else, at the same time.
            ledger.quarantine(&digest, damage);
            assert!(ledger.blob(&digest).unwrap().is_none());
            assert!(!ledger.condemned.has(&digest) && ledger.index.used_bytes() == 0);
        }
        assert_eq!(ledger.disk.condition.metrics.quarantined.get(), 2);
        assert_eq!(list(&ledger.disk.quarantine()).unwrap(), [&*digest.file_name()]);
    }

    #[test]
    fn what_cannot_be_moved_is_absent_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = ledger(folder.path());
        fs::File::create(ledger.disk.quarantine()).unwrap();
        fs::create_dir_all(folder.path().join("quarantine.rejected/below")).unwrap();
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let repo = Repo::new("docker.io".parse().unwrap(), "a/b".parse().unwrap());
        let (media_type, speaker) = ("a/b".to_owned(), crate::oci::Speaker::Registry);
        let record = ManifestRecord { media_type, size: 1, public: false, speaker, fetched_at: 0 };
        ledger.set_manifest(&repo, &digest, &record).unwrap();
        let is_there = || {
            let there = ledger.blob(&digest).unwrap().is_some();
            assert_eq!(ledger.manifest(&repo, &digest).unwrap().is_some(), there, "as a manifest");
            there
        };
        for damage in [Damage::Changed, Damage::Unreadable] {
            ledger.put(&digest, b"x").unwrap();
            ledger.quarantine(&digest, damage);
            assert!(!is_there());
            assert!(ledger.blobs.path(&digest).exists());
            ledger.blob_stored(&digest, 1);
            assert!(is_there(), "another file is there now");
        }
    }

    #[test]
    fn only_what_the_disk_does_not_give_back_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = ledger(folder.path());
        let digest = Digest::of(Algorithm::Sha256, b"x");
        ledger.put(&digest, b"x").unwrap();
        let error = |errno: Errno| Error::io("read", Path::new("x"), errno.into());
        for harmless in [Errno::ACCESS, Errno::MFILE, Errno::NOMEM, Errno::NOSPC] {
            assert!(!ledger.is_lost(&digest, &error(harmless)), "{harmless}");
        }
        assert!(ledger.blob(&digest).unwrap().is_some());
        assert!(ledger.is_lost(&digest, &error(Errno::IO)));
        assert!(ledger.blob(&digest).unwrap().is_none());
    }
}
