//! `blobs/<algorithm>/<hex>`: whole, verified, immutable content.
//!
//! Berth writes here only by renaming a synced file whose digest is verified, with mode 0440. Other tools write here
//! too, through the `blobs` link of a layout (`skopeo copy … oci:…`), or when a backup is put back, and nobody
//! vouches for them. The write permission tells the two apart: **a file that anybody may write to is hashed before it
//! is served**, then synced and made read-only; if the hash is wrong, the file counts as absent, and is left alone
//! because it may still be growing.
//!
//! In this room are also the table of open files, and partial files with their maps. It uses the disk only; metadata
//! and all rooms above use it.

pub(in crate::store) mod blob_file;
#[expect(unsafe_code, reason = "maps files: the module says why that is sound")]
mod mmap;
pub(in crate::store) mod open_files;
pub(in crate::store) mod partials;
pub(in crate::store) mod piece_map;
pub(in crate::store) mod range_set;
pub(in crate::store) mod soundness;

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::oci::{Algorithm, Digest, Verifier};
use crate::store::blobs::blob_file::BlobFile;
use crate::store::disk::files::{self, open_file};
use crate::store::disk::{Disk, FileMode};
use crate::store::error::Error;
use crate::sync::lock;

/// Bytes read at a time for hashing: enough that the cost of system calls does not matter.
const HASH_CHUNK_BYTES: usize = 256 * 1024;

/// The folder of blobs.
pub(in crate::store) struct Blobs {
    disk: Arc<Disk>,
    /// Held while a foreign file is hashed, so that two requests for it do not both hash it.
    proving: Mutex<()>,
}

impl Blobs {
    pub(in crate::store) fn new(disk: Arc<Disk>) -> Self {
        Self { disk, proving: Mutex::default() }
    }

    pub(in crate::store) fn folder(&self, algorithm: Algorithm) -> PathBuf {
        self.disk.root().join("blobs").join(algorithm.as_str())
    }

    pub(in crate::store) fn path(&self, digest: &Digest) -> PathBuf {
        self.folder(digest.algorithm()).join(digest.hex())
    }

    pub(in crate::store) fn open(&self, digest: &Digest) -> Result<Option<BlobFile>, Error> {
        let path = self.path(digest);
        let Some((file, metadata)) = open_file(&path)? else { return Ok(None) };
        if !is_writable(&metadata) {
            return Ok(Some(BlobFile::new(file, metadata.len())));
        }
        let _one_at_a_time = lock(&self.proving);
        let metadata = file.metadata().map_err(|source| Error::io("read", &path, source))?;
        if is_writable(&metadata) && !prove(digest, &path, &file)? {
            return Ok(None);
        }
        // Asked again: it may have grown until it was hashed.
        let size = file.metadata().map_err(|source| Error::io("read", &path, source))?.len();
        Ok(Some(BlobFile::new(file, size)))
    }

    /// Whether a stored blob still has the content that its name says.
    pub(in crate::store) fn is_sound(&self, digest: &Digest, blob: &BlobFile) -> Result<bool, Error> {
        let _one_at_a_time = lock(&self.proving);
        let path = self.path(digest);
        let actual =
            hash(digest.algorithm(), blob.file()).map_err(|source| Error::io("verify", &path, source))?;
        Ok(actual == *digest)
    }

    /// Returns the metadata of the file of a blob, if there is one that nobody may write to.
    pub(in crate::store) fn sealed_metadata(&self, digest: &Digest) -> Option<Metadata> {
        let metadata = std::fs::symlink_metadata(self.path(digest)).ok()?;
        (metadata.is_file() && !is_writable(&metadata)).then_some(metadata)
    }

    /// Returns the size of a blob if its file is there. A foreign file is not verified.
    pub(in crate::store) fn size(&self, digest: &Digest) -> Option<u64> {
        self.size_and_time(digest).map(|(size, _)| size)
    }

    /// Returns the size of a blob and when it was last written to, in seconds since 1970.
    pub(in crate::store) fn size_and_time(&self, digest: &Digest) -> Option<(u64, u64)> {
        let metadata = std::fs::symlink_metadata(self.path(digest)).ok()?;
        let modified_at = u64::try_from(metadata.mtime()).unwrap_or(0);
        metadata.is_file().then_some((metadata.len(), modified_at))
    }

    /// Removes a blob, if it is there. Returns its size. The removal is not synced: a blob that comes back after a
    /// power loss is whole.
    pub(in crate::store) fn remove(&self, digest: &Digest) -> Result<u64, Error> {
        let path = self.path(digest);
        let size = self.size(digest).unwrap_or(0);
        match std::fs::remove_file(&path) {
            Err(error) if !files::is_absent(&error) => Err(Error::io("evict", &path, error)),
            Ok(()) | Err(_) => Ok(size),
        }
    }

    /// Reads a whole blob, if it is there and not larger than `bytes_max`.
    pub(in crate::store) fn read(&self, digest: &Digest, bytes_max: u64) -> Result<Option<Vec<u8>>, Error> {
        let Some(blob) = self.open(digest)? else { return Ok(None) };
        self.read_opened(digest, &blob, bytes_max)
    }

    /// Reads a whole opened blob, if it is not larger than `bytes_max`.
    pub(in crate::store) fn read_opened(
        &self,
        digest: &Digest,
        blob: &BlobFile,
        bytes_max: u64,
    ) -> Result<Option<Vec<u8>>, Error> {
        let Some(size) = usize::try_from(blob.size).ok().filter(|_| blob.size <= bytes_max) else {
            return Ok(None);
        };
        let mut content = vec![0; size];
        let read = blob.file().read_exact_at(&mut content, 0);
        read.map_err(|source| Error::io("read", &self.path(digest), source))?;
        Ok(Some(content))
    }

    /// Stores small content under its digest. Returns whether it was not there before.
    pub(in crate::store) fn put(&self, digest: &Digest, content: &[u8]) -> Result<bool, Error> {
        let actual = Digest::of(digest.algorithm(), content);
        if actual != *digest {
            return Err(Error::mismatch(digest, actual));
        }
        if self.open(digest)?.is_some() {
            return Ok(false);
        }
        self.disk.replace(&self.path(digest), content, FileMode::IMMUTABLE)?;
        Ok(true)
    }

    /// Moves a foreign file into the folder of blobs if its content has that digest. Returns whether it has.
    pub(in crate::store) fn take(&self, digest: &Digest, from: &Path) -> Result<bool, Error> {
        if self.open(digest)?.is_some() {
            self.disk.remove(from)?;
            return Ok(true);
        }
        let Some((file, _)) = open_file(from)? else { return Ok(false) };
        // Whatever its mode: read-only means proven only in the folder of blobs.
        if !prove(digest, from, &file)? {
            return Ok(false);
        }
        self.disk.rename(from, &self.path(digest))?;
        Ok(true)
    }
}

/// Hashes a foreign file and makes it berth's own. Returns false if its content has another digest.
///
/// Its data is synced before its mode says that it is proven, or a power loss could leave a file that says
/// so and is full of zeros.
fn prove(digest: &Digest, path: &Path, file: &File) -> Result<bool, Error> {
    let failed = |source| Error::io("verify", path, source);
    file.sync_data().map_err(failed)?;
    if hash(digest.algorithm(), file).map_err(failed)? != *digest {
        tracing::warn!(path = %path.display(), "not what its name says: file of another tool ignored");
        return Ok(false);
    }
    if let Err(error) = file.set_permissions(FileMode::IMMUTABLE.permissions()) {
        // Somebody else's file, or a read-only disk: it is good, and will be hashed again next time.
        tracing::debug!(path = %path.display(), %error, "cannot mark a foreign file as verified");
        return Ok(true);
    }
    file.sync_all().map_err(failed)?;
    if let Some(folder) = path.parent() {
        files::sync_folder(folder)?;
    }
    Ok(true)
}

pub(in crate::store) fn is_writable(metadata: &Metadata) -> bool {
    metadata.permissions().mode() & 0o222 != 0
}

fn hash(algorithm: Algorithm, file: &File) -> io::Result<Digest> {
    let mut verifier = Verifier::new(algorithm);
    let mut chunk = vec![0; HASH_CHUNK_BYTES];
    let mut file = file;
    io::Seek::rewind(&mut file)?;
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(verifier.finish()),
            Ok(count) => verifier.update(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use super::*;

    fn blobs(folder: &Path) -> Blobs {
        Blobs::new(Arc::new(Disk::open(folder, Arc::default()).unwrap()))
    }

    #[test]
    fn content_is_stored_once_read_only_and_only_under_its_own_digest() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = blobs(folder.path());
        for algorithm in Algorithm::ALL {
            let digest = Digest::of(algorithm, b"content");
            assert!(blobs.open(&digest).unwrap().is_none());
            assert!(blobs.put(&digest, b"content").unwrap());
            assert!(!blobs.put(&digest, b"content").unwrap());
            assert_eq!(blobs.open(&digest).unwrap().unwrap().size, 7);
            let path = folder.path().join("blobs").join(algorithm.as_str()).join(digest.hex());
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o440);

            let error = blobs.put(&digest, b"other").unwrap_err();
            assert!(matches!(error, Error::DigestMismatch { .. }));
            let other = Digest::of(algorithm, b"other");
            assert!(matches!(blobs.put(&other, b"content"), Err(Error::DigestMismatch { .. })));
            assert!(blobs.open(&other).unwrap().is_none());
        }
    }

    #[test]
    fn a_file_of_another_tool_is_hashed_before_it_is_served() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = blobs(folder.path());
        let digest = Digest::of(Algorithm::Sha256, b"content");
        let path = blobs.path(&digest);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut file = File::create(&path).unwrap();
        file.write_all(b"cont").unwrap();
        assert!(blobs.open(&digest).unwrap().is_none(), "half of it");
        file.write_all(b"ent").unwrap();
        assert_eq!(blobs.open(&digest).unwrap().unwrap().size, 7);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o440);
    }

    #[test]
    fn a_wrong_file_of_another_tool_gives_way_to_the_right_content() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = blobs(folder.path());
        let digest = Digest::of(Algorithm::Sha256, b"content");
        fs::create_dir_all(blobs.folder(Algorithm::Sha256)).unwrap();
        File::create(blobs.path(&digest)).unwrap().write_all(b"garbage").unwrap();
        assert!(blobs.put(&digest, b"content").unwrap());
        assert_eq!(fs::read(blobs.path(&digest)).unwrap(), b"content");
    }

    #[test]
    fn a_folder_under_a_blobs_name_is_absent() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = blobs(folder.path());
        let digest = Digest::of(Algorithm::Sha256, b"content");
        fs::create_dir_all(blobs.path(&digest)).unwrap();
        assert!(blobs.open(&digest).unwrap().is_none());
    }
}
