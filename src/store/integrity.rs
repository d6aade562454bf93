//! Whether stored files still have the content that their digests say, and what happens to those that do not.
//!
//! A damaged blob leaves `blobs/` at once, so that the next request is a miss and fetches it again. Its readers are
//! cut off. What was sent before the damage was found cannot be taken back: the client's own check of the digest is
//! what is left, and when it then asks once more, the file is verified ([`recheck`]).
//!
//! `quarantine/<algorithm>-<hex>` keeps damaged files for an operator who wants to know how it came to that. What was
//! [in the way](crate::store::disk::obstacle) of a file comes there, too. The folder is bounded, and evidence only:
//! nothing is ever read from it.
//!
//! This room owns the set of damaged blobs. It uses metadata, blobs and the disk; contents use it.

pub(in crate::store) mod damaged;
pub(in crate::store) mod recheck;
pub(in crate::store) mod scrub;
pub(in crate::store) mod verify;

use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use crate::oci::Digest;
use crate::store::blobs::Blobs;
use crate::store::blobs::open_files::OpenFiles;
use crate::store::disk::Disk;
use crate::store::disk::files::{is_absent, sync_folder};
use crate::store::error::Error;
use crate::store::integrity::damaged::{Damage, DamagedSet};
use crate::store::metadata::Metadata;
use crate::store::metadata::index::Index;
use crate::store::metadata::index::key::Fact;
use crate::sync::lock;

/// Takes damaged blobs out of service. All methods block.
pub(in crate::store) struct Integrity {
    disk: Arc<Disk>,
    blobs: Arc<Blobs>,
    open_files: Arc<OpenFiles>,
    metadata: Arc<Metadata>,
    damaged: DamagedSet,
    /// Held while a file is moved: several readers may find it damaged at once.
    moving: Mutex<()>,
}

impl Integrity {
    pub(in crate::store) fn new(
        disk: Arc<Disk>,
        blobs: Arc<Blobs>,
        open_files: Arc<OpenFiles>,
        metadata: Arc<Metadata>,
    ) -> Self {
        Self { disk, blobs, open_files, metadata, damaged: DamagedSet::default(), moving: Mutex::default() }
    }

    pub(in crate::store) fn disk(&self) -> &Disk {
        &self.disk
    }

    pub(in crate::store) fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    pub(in crate::store) fn open_files(&self) -> &OpenFiles {
        &self.open_files
    }

    pub(in crate::store) fn index(&self) -> &Index {
        self.metadata.index()
    }

    /// Whether a blob is damaged, and counts as absent although its file is there.
    pub(in crate::store) fn is_damaged(&self, digest: &Digest) -> bool {
        self.damaged.has(digest)
    }

    /// Notes that another file has taken the place of a blob.
    pub(in crate::store) fn replaced(&self, digest: &Digest) {
        self.damaged.remove(digest);
    }

    /// Takes a blob out of service if an error of reading it says that the disk or its file system has lost it, as
    /// opposed to a lack of memory, permission or file handles. Returns whether it did.
    pub(in crate::store) fn is_lost(&self, digest: &Digest, error: &Error) -> bool {
        let Error::Io { source, .. } = error else { return false };
        let lost = [Errno::IO, Errno::UCLEAN, Errno::BADMSG];
        if !lost.iter().any(|lost| source.raw_os_error() == Some(lost.raw_os_error())) {
            return false;
        }
        self.disk.condition().lost_a_file();
        self.quarantine(digest, Damage::Unreadable);
        true
    }

    /// Returns the result of reading a blob; `None` if the disk has lost the blob.
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
        let _one_at_a_time = lock(&self.moving);
        if path.symlink_metadata().is_err_and(|error| is_absent(&error)) {
            self.metadata.index().remove(&Fact::Blob(*digest));
            return;
        }
        // From now on: the move may take its time.
        self.damaged.add(digest, damage);
        match damage {
            Damage::Changed => self.open_files.mark_damaged(digest),
            // What is in memory can still be read.
            Damage::Unreadable => self.open_files.forget(digest),
        }
        self.disk.metrics().quarantined.inc();
        self.metadata.index().remove(&Fact::Blob(*digest));
        match self.move_away(digest, &path) {
            Ok(()) => {
                self.damaged.remove(digest);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, Repo};
    use crate::store::contents::Contents;
    use crate::store::disk::files::list;
    use crate::store::metadata::records::ManifestRecord;

    #[test]
    fn what_is_damaged_is_absent_until_it_is_stored_again() {
        let folder = tempfile::tempdir().unwrap();
        let (contents, integrity) = Contents::in_folder(folder.path());
        let digest = Digest::of(Algorithm::Sha256, b"x");
        for damage in [Damage::Changed, Damage::Unreadable] {
            contents.put(&digest, b"x").unwrap();
            assert!(contents.blob(&digest).unwrap().is_some());
            integrity.quarantine(&digest, damage);
            // By somebody else, at the same time.
            integrity.quarantine(&digest, damage);
            assert!(contents.blob(&digest).unwrap().is_none());
            assert!(!integrity.is_damaged(&digest) && integrity.index().used_bytes() == 0);
        }
        assert_eq!(integrity.disk.metrics().quarantined.get(), 2);
        assert_eq!(list(integrity.disk.quarantine()).unwrap(), [&*digest.file_name()]);
    }

    #[test]
    fn what_cannot_be_moved_is_absent_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (contents, integrity) = Contents::in_folder(folder.path());
        std::fs::File::create(integrity.disk.quarantine()).unwrap();
        std::fs::create_dir_all(folder.path().join("quarantine.rejected/below")).unwrap();
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let repo = Repo::new("docker.io".parse().unwrap(), "a/b".parse().unwrap());
        let (media_type, speaker) = ("a/b".to_owned(), crate::oci::Speaker::Registry);
        let record = ManifestRecord { media_type, size: 1, public: false, speaker, fetched_at: 0 };
        integrity.metadata.set_manifest(&repo, &digest, &record).unwrap();
        let is_there = || {
            let there = contents.blob(&digest).unwrap().is_some();
            assert_eq!(contents.manifest(&repo, &digest).unwrap().is_some(), there, "as a manifest");
            there
        };
        for damage in [Damage::Changed, Damage::Unreadable] {
            contents.put(&digest, b"x").unwrap();
            integrity.quarantine(&digest, damage);
            assert!(!is_there());
            assert!(integrity.blobs.path(&digest).exists());
            contents.note_stored(&digest, 1);
            assert!(is_there(), "another file is there now");
        }
    }

    #[test]
    fn only_what_the_disk_does_not_give_back_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let (contents, integrity) = Contents::in_folder(folder.path());
        let digest = Digest::of(Algorithm::Sha256, b"x");
        contents.put(&digest, b"x").unwrap();
        let error = |errno: Errno| Error::io("read", Path::new("x"), errno.into());
        for harmless in [Errno::ACCESS, Errno::MFILE, Errno::NOMEM, Errno::NOSPC] {
            assert!(!integrity.is_lost(&digest, &error(harmless)), "{harmless}");
        }
        assert!(contents.blob(&digest).unwrap().is_some());
        assert!(integrity.is_lost(&digest, &error(Errno::IO)));
        assert!(contents.blob(&digest).unwrap().is_none());
    }
}
