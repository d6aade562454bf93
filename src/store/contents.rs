//! Stored blobs and manifests, opened for a request: sound as far as is known, and kept open for the next request.
//!
//! It is above blobs, metadata and integrity, because a file that is opened may turn out to be damaged, or to have
//! another size than the index knows. Requests, eviction and adoption use it.

use std::sync::Arc;

use crate::clock::{age, unix_seconds};
use crate::oci::manifest::MANIFEST_BYTES_MAX;
use crate::oci::{Digest, Document, Repo};
use crate::store::blobs::Blobs;
use crate::store::blobs::blob_file::BlobFile;
use crate::store::blobs::open_files::OpenFiles;
use crate::store::error::Error;
use crate::store::integrity::Integrity;
use crate::store::integrity::damaged::Damage;
use crate::store::metadata::Metadata;
use crate::store::metadata::index::key::Fact;

/// Seconds without a use after which a file is verified behind its first reader. The scrub looks at everything once a day,
/// but may be switched off, or have more to read than a day is long.
const UNREAD_SECONDS: u64 = 7 * 24 * 60 * 60;

/// Opens what is stored. All methods block.
pub(in crate::store) struct Contents {
    blobs: Arc<Blobs>,
    open_files: Arc<OpenFiles>,
    metadata: Arc<Metadata>,
    integrity: Arc<Integrity>,
}

impl Contents {
    pub(in crate::store) fn new(
        blobs: Arc<Blobs>,
        open_files: Arc<OpenFiles>,
        metadata: Arc<Metadata>,
        integrity: Arc<Integrity>,
    ) -> Self {
        Self { blobs, open_files, metadata, integrity }
    }

    pub(in crate::store) fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// Opens a stored blob, and keeps its file open for the next request.
    pub(in crate::store) fn blob(&self, digest: &Digest) -> Result<Option<BlobFile>, Error> {
        if let Some(looks) = self.blobs.sealed_metadata(digest)
            && !self.integrity.is_damaged(digest)
            && let Some(blob) = self.open_files.confirm(digest, &looks)
        {
            blob.soundness().compare(&looks);
            return Ok(Some(blob));
        }
        self.open_files.forget(digest);
        let Some(blob) = self.open_blob(digest)? else { return Ok(None) };
        // A file that somebody has cut short would be served as a whole one of that length.
        let known = self.metadata.index().blob_use(digest);
        let was_changed = known.is_some_and(|known| known.size != blob.size);
        if was_changed && self.discard_unsound(digest, &blob)? {
            return Ok(None);
        }
        let is_recent = |last_use: u64| age(last_use, unix_seconds()).is_some_and(|age| age < UNREAD_SECONDS);
        if known.is_some_and(|known| !is_recent(known.last_use)) {
            blob.soundness().note_unread();
        }
        self.open_files.keep_blob(digest, &blob);
        Ok(Some(blob))
    }

    /// Opens a stored blob, unless it is known to be damaged or the disk has lost it.
    fn open_blob(&self, digest: &Digest) -> Result<Option<BlobFile>, Error> {
        if self.integrity.is_damaged(digest) {
            return Ok(None);
        }
        self.integrity.unless_lost(digest, self.blobs.open(digest))
    }

    /// Takes a stored blob out of service if its content does not match its digest. Returns whether that is so.
    fn discard_unsound(&self, digest: &Digest, blob: &BlobFile) -> Result<bool, Error> {
        let is_sound = self.blobs.is_sound(digest, blob).map(Some);
        match self.integrity.unless_lost(digest, is_sound)? {
            Some(true) => return Ok(false),
            Some(false) => self.integrity.quarantine(digest, Damage::Changed),
            None => {}
        }
        Ok(true)
    }

    /// Reads a manifest that `repo` has itself or that is public, and keeps it in memory for the next request.
    pub(in crate::store) fn manifest(
        &self,
        repo: &Repo,
        digest: &Digest,
    ) -> Result<Option<Arc<Document>>, Error> {
        let Some((record, whose)) = self.metadata.manifest(repo, digest)? else { return Ok(None) };
        let Some(blob) = self.open_blob(digest)? else {
            self.open_files.forget(digest);
            return Ok(None);
        };
        let content = self.blobs.read_opened(digest, &blob, MANIFEST_BYTES_MAX as u64);
        let content = self.integrity.unless_lost(digest, content)?;
        // Small enough to be proven each time; a wrong one would be served, and believed to be here, for ever.
        let Some(content) = content.filter(|content| Digest::of(digest.algorithm(), content) == *digest)
        else {
            self.discard_unsound(digest, &blob)?;
            return Ok(None);
        };
        let document = Arc::new(Document::new(*digest, record.media_type, content.into()));
        self.open_files.keep_manifest(&document, whose);
        Ok(Some(document))
    }

    /// Stores small content. Returns whether it was not there before.
    pub(in crate::store) fn put(&self, digest: &Digest, content: &[u8]) -> Result<bool, Error> {
        let is_new = self.blobs.put(digest, content)?;
        if is_new {
            self.note_stored(digest, content.len() as u64);
        }
        Ok(is_new)
    }

    /// Notes that the file of a blob was stored.
    pub(in crate::store) fn note_stored(&self, digest: &Digest, size: u64) {
        self.integrity.replaced(digest);
        self.metadata.index().put_blob(digest, size, unix_seconds());
    }

    /// Removes a stored blob, if it is there. Returns its size. Readers keep the open file.
    pub(in crate::store) fn remove(&self, digest: &Digest) -> Result<u64, Error> {
        self.open_files.forget(digest);
        let size = self.blobs.remove(digest)?;
        // Once more: somebody may have opened it just before.
        self.open_files.forget(digest);
        self.metadata.index().remove(&Fact::Blob(*digest));
        Ok(size)
    }

    /// Whether somebody reads the file of a digest now.
    pub(in crate::store) fn is_being_read(&self, digest: &Digest) -> bool {
        self.open_files.is_being_read(digest)
    }

    /// Writes the times of use to the index, which also adds blobs that another tool has brought.
    pub(in crate::store) fn write_uses(&self) {
        for (digest, size, at) in self.open_files.uses() {
            // Evicted since it was used, it must not come back into the index.
            if self.blobs.size(&digest).is_some() {
                self.metadata.index().put_blob(&digest, size, at);
            }
        }
    }

    /// Unmaps files that nobody has read for a while.
    pub(in crate::store) fn unmap_idle(&self) {
        self.open_files.unmap_idle();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::store::disk::Disk;
    use crate::store::disk::lock::Lock;

    impl Contents {
        /// What is served from a folder, without eviction.
        pub(in crate::store) fn in_folder(folder: &Path) -> (Self, Arc<Integrity>) {
            let disk = Arc::new(Disk::open(folder, Arc::default()).unwrap());
            let lock = Lock::take(folder).unwrap();
            let (blobs, open_files) =
                (Arc::new(Blobs::new(Arc::clone(&disk))), Arc::new(OpenFiles::new(None)));
            let (metadata, _) =
                Metadata::open(Arc::clone(&disk), lock, Arc::clone(&blobs), Arc::clone(&open_files));
            let metadata = Arc::new(metadata);
            let integrity = Arc::new(Integrity::new(
                disk,
                Arc::clone(&blobs),
                Arc::clone(&open_files),
                Arc::clone(&metadata),
            ));
            (Self::new(blobs, open_files, metadata, Arc::clone(&integrity)), integrity)
        }
    }
}
