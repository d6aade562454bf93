//! The folder of partial files: `partial/<registry>/<algorithm>-<hex>`, and its
//! [map](crate::store::blobs::piece_map).
//!
//! The bytes that are there need not be the beginning: ranges are kept where they belong. They are unverified, so
//! they belong to their registry alone; and of its repositories only those may read what is [left](Resumable) for which
//! the bytes came, or which have a grant.
//!
//! Promises, also across a power loss:
//! - The map never names bytes that are not synced. When a file must be started over, the old map is removed
//!   durably before the new file exists, so that it can never vouch for it.
//! - A file is never cut or emptied: starting over means a new file, and a reader of the old one keeps it.
//! - After a failed sync nothing more is named or committed through this handle: the kernel reports such a
//!   failure once, and calls the lost pages clean from then on.
//! - There is one handle per file. Two downloads that write to one could commit what neither has verified.
//! - Where upstream does not say how large a blob is, its file grows as bytes come, and nobody reads what is left of it:
//!   it is for the next transfer alone, until [`PartialFile::learn`] is told the size.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::clock::{believed, seconds_of, unix_seconds};
use crate::oci::range::Span;
use crate::oci::{Digest, Registry, Repo};
use crate::store::blobs::blob_file::BlobFile;
use crate::store::blobs::piece_map::{Next, Origin, PieceMap, UNKNOWN};
use crate::store::blobs::range_set::RangeSet;
use crate::store::disk::files::{self, allocate, give_back, open_file};
use crate::store::disk::{Disk, FileMode};
use crate::store::error::Error;
use crate::sync::lock;

/// The mode of partial files. Only berth may read unverified bytes.
const PARTIAL_MODE: u32 = 0o600;

/// The key of a partial file. The bytes that a registry sends are that registry's until they are verified.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PartialKey {
    /// The registry that sends it.
    pub registry: Registry,
    /// The digest that it is said to have.
    pub digest: Digest,
}

impl PartialKey {
    /// Makes the key of a digest that a registry sends.
    pub fn new(registry: &Registry, digest: &Digest) -> Self {
        Self { registry: registry.clone(), digest: *digest }
    }

    /// Reads the key from the names of a folder and of a partial file in it.
    pub(in crate::store) fn of_file(folder: &str, name: &str) -> Option<Self> {
        Some(Self { registry: Registry::from_folder(folder)?, digest: Digest::from_file_name(name)? })
    }
}

/// The keys of the partial files that are in use.
type InUseKeys = Arc<Mutex<HashSet<PartialKey>>>;

/// The folder of partial files.
pub(in crate::store) struct Partials {
    disk: Arc<Disk>,
    in_use: InUseKeys,
}

/// The file of a blob that is being downloaded, and its piece map. There is one handle per file. All methods block.
///
/// When it is dropped, it stays on disk with what was synced, for the next download.
pub(in crate::store) struct PartialFile {
    disk: Arc<Disk>,
    path: PathBuf,
    data: BlobFile,
    map_file: File,
    map: PieceMap,
    /// The origin of the bytes found at open; `None` if there were none.
    began: Option<Origin>,
    /// Whether a sync has failed. What this handle wrote since the last good one can no longer be made durable.
    is_broken: bool,
    in_use: InUse,
}

/// A partial file, the file of its map, the map, and the origin of the bytes in it, if there are any.
type Found = (File, File, PieceMap, Option<Origin>);

/// The bytes of a blob that an earlier download has left.
pub struct Resumable {
    /// The size of the whole blob.
    pub total: u64,
    /// The bytes that are there. They are unproven.
    pub pieces: RangeSet,
    /// The file. It stays open when it is removed or completed meanwhile.
    pub file: Arc<File>,
    origin: Origin,
}

impl Resumable {
    /// Whether all of it came for this repository of the registry.
    pub fn is_for(&self, repo: &Repo) -> bool {
        self.origin.is_for(repo)
    }
}

/// A sync that has begun and that another thread may run.
pub struct Sync {
    data: BlobFile,
    pieces: RangeSet,
}

/// A sync that has ended, with success or an error.
pub struct Synced {
    pieces: RangeSet,
    result: io::Result<()>,
}

impl Sync {
    /// Syncs the data. Blocks.
    pub fn run(self) -> Synced {
        Synced { pieces: self.pieces, result: self.data.file().sync_data() }
    }
}

/// The exclusive use of a partial file, until this is dropped.
pub(in crate::store) struct InUse {
    key: PartialKey,
    all: InUseKeys,
}

impl InUse {
    /// Takes a partial file; `None` if it is in use.
    fn take(key: &PartialKey, all: &InUseKeys) -> Option<Self> {
        let is_free = lock(all).insert(key.clone());
        is_free.then(|| Self { key: key.clone(), all: Arc::clone(all) })
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        lock(&self.all).remove(&self.key);
    }
}

impl Partials {
    pub(in crate::store) fn new(disk: Arc<Disk>) -> Self {
        Self { disk, in_use: Arc::default() }
    }

    /// Returns the keys of the partial files that are in use.
    pub(in crate::store) fn in_use(&self) -> HashSet<PartialKey> {
        lock(&self.in_use).clone()
    }

    /// Whether some registry is sending a digest.
    pub(in crate::store) fn is_filling(&self, digest: &Digest) -> bool {
        lock(&self.in_use).iter().any(|key| key.digest == *digest)
    }

    /// Takes a partial file for exclusive use, before it is opened.
    ///
    /// # Errors
    /// [`Error::InUse`] while somebody else has it.
    pub(in crate::store) fn take(&self, key: &PartialKey) -> Result<InUse, Error> {
        InUse::take(key, &self.in_use).ok_or_else(|| Error::InUse { digest: Box::new(key.digest) })
    }

    /// Opens the partial file, or starts over if it is unusable, of another total, or not for `next`.
    pub(in crate::store) fn open(
        &self,
        in_use: InUse,
        total: Option<u64>,
        next: &Next<'_>,
    ) -> Result<PartialFile, Error> {
        let path = self.path(&in_use.key);
        let opened = self.find_or_create(&path, total.unwrap_or(UNKNOWN), next);
        let (data, map_file, map, began) =
            opened.inspect_err(|error| self.disk.condition().failed(total.unwrap_or(0), error))?;
        let (disk, data) = (Arc::clone(&self.disk), BlobFile::new(data, total.unwrap_or(0)));
        Ok(PartialFile { disk, path, data, map_file, map, began, is_broken: false, in_use })
    }

    /// Returns the bytes that are there, for reading only.
    pub(in crate::store) fn left(&self, key: &PartialKey) -> Option<Resumable> {
        let path = self.path(key);
        let (file, _) = open_file(&path).ok()??;
        let map =
            PieceMap::read(&open_file(&map_path(&path)).ok()??.0).filter(|map| map.total() != UNKNOWN)?;
        let opened = file.metadata().ok()?;
        // A file that is started over gets a new map after it is there. So if this is still the file that has
        // the name, the map is not one of a later file.
        let is_same = fs::metadata(&path).is_ok_and(|named| named.ino() == opened.ino());
        (is_same && named_end(&map) <= opened.len()).then(|| Resumable {
            total: map.total(),
            pieces: map.pieces().clone(),
            file: Arc::new(file),
            origin: map.origin(),
        })
    }

    /// Removes maps without a file and files without a map. The others can be resumed.
    pub(in crate::store) fn sweep(&self) -> Result<(), Error> {
        for path in self.disk.partial_files()? {
            let is_map = path.extension().is_some_and(|extension| extension == "map");
            let other = if is_map { path.with_extension("") } else { map_path(&path) };
            if !other.exists() {
                self.disk.remove_leftover(&path)?;
            }
        }
        Ok(())
    }

    fn find_or_create(&self, path: &Path, total: u64, next: &Next<'_>) -> Result<Found, Error> {
        let existing = open_existing(path, total)?.filter(|(_, _, map)| map.origin().may_go_on(next));
        let (data, map_file, mut map) = match existing {
            Some(existing) => existing,
            None => {
                self.disk.retry_without_folder(|| self.create(path, PieceMap::new(total, next.origin())))?
            }
        };
        let began = (map.pieces().bytes() > 0).then_some(map.origin());
        let origin = map.origin().and(next.origin());
        if map.origin() != origin {
            map.set_origin(origin);
            let pieces = map.pieces().clone();
            map.advance(&map_file, &pieces).map_err(|source| Error::io("write", &map_path(path), source))?;
        }
        Ok((data, map_file, map, began))
    }

    /// Removes the file that an earlier download has left, and returns its exclusive use; `None` if it is in use.
    pub(in crate::store) fn drop_abandoned(&self, key: &PartialKey) -> Result<Option<InUse>, Error> {
        let Some(in_use) = InUse::take(key, &self.in_use) else { return Ok(None) };
        drop_files(&self.disk, &self.path(key))?;
        Ok(Some(in_use))
    }

    /// Returns when a partial file was last written to, in seconds since 1970; zero if that is a time in the future.
    pub(in crate::store) fn last_change(&self, key: &PartialKey) -> u64 {
        let modified = fs::metadata(self.path(key)).and_then(|metadata| metadata.modified());
        modified.map_or(0, |at| believed(seconds_of(at), unix_seconds()))
    }

    pub(in crate::store) fn path(&self, key: &PartialKey) -> PathBuf {
        self.disk.partials().join(key.registry.to_folder()).join(key.digest.file_name())
    }

    fn create(&self, path: &Path, mut map: PieceMap) -> Result<(File, File, PieceMap), Error> {
        let folder = files::parent(path);
        self.disk.ensure(folder)?;
        drop_files(&self.disk, path)?;
        let data = create_file(path)?;
        let map_path = map_path(path);
        let map_file = create_file(&map_path)?;
        map.advance(&map_file, &RangeSet::default())
            .map_err(|source| Error::io("write", &map_path, source))?;
        files::sync_folder(folder)?;
        Ok((data, map_file, map))
    }
}

impl PartialFile {
    pub(in crate::store) fn key(&self) -> &PartialKey {
        &self.in_use.key
    }

    /// Returns the bytes that are there and synced.
    pub(in crate::store) fn have(&self) -> &RangeSet {
        self.map.pieces()
    }

    /// Returns the size of the whole blob in bytes, if it is known.
    pub(in crate::store) fn total(&self) -> Option<u64> {
        Some(self.map.total()).filter(|total| *total != UNKNOWN)
    }

    /// Sets the size of the whole blob, which was not known before.
    pub(in crate::store) fn learn(&mut self, total: u64) {
        self.map.set_total(total);
        self.data = self.data.of_size(total);
    }

    /// Whether the bytes found at open, if any, had come without a credential.
    pub(in crate::store) fn began_public(&self) -> bool {
        self.began.is_none_or(|origin| origin.is_public())
    }

    /// Whether the bytes found at open, if any, had come from parents.
    pub(in crate::store) fn began_by_parents(&self) -> bool {
        self.began.is_none_or(|origin| origin.is_by_parents())
    }

    /// Returns the file, for readers of the bytes that are there.
    pub(in crate::store) fn file(&self) -> BlobFile {
        self.data.clone()
    }

    /// Writes bytes at `offset`. It is an error if they end beyond the total.
    pub(in crate::store) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.map.total()) {
            return Err(self.failed("write beyond the end of", io::ErrorKind::InvalidInput.into()));
        }
        self.data.file().write_all_at(bytes, offset).map_err(|source| self.failed("write", source))
    }

    /// Reads bytes that are there.
    pub(in crate::store) fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.data.file().read_exact_at(bytes, offset).map_err(|source| self.failed("read", source))
    }

    /// Syncs the data, then names `pieces` as there. After an error this handle refuses to sync or commit.
    pub(in crate::store) fn sync(&mut self, pieces: RangeSet) -> Result<(), Error> {
        if pieces.spans().last().is_some_and(|last| last.end > self.map.total()) {
            return Err(self.failed("sync beyond the end of", io::ErrorKind::InvalidInput.into()));
        }
        self.end_sync(self.begin_sync(pieces).run())
    }

    pub(in crate::store) fn begin_sync(&self, pieces: RangeSet) -> Sync {
        Sync { data: self.data.clone(), pieces }
    }

    /// Names the bytes that were synced.
    pub(in crate::store) fn end_sync(&mut self, synced: Synced) -> Result<(), Error> {
        self.refuse_if_broken()?;
        let Synced { pieces, result } = synced;
        let result = result.and_then(|()| self.map.advance(&self.map_file, &pieces));
        result.map_err(|source| {
            self.is_broken = true;
            self.failed("sync", source)
        })
    }

    /// Returns an error if an earlier sync has failed, so that the file must not become a blob.
    pub(in crate::store) fn refuse_if_broken(&self) -> Result<(), Error> {
        if self.is_broken {
            return Err(self.failed("trust", io::Error::other("an earlier sync has failed")));
        }
        Ok(())
    }

    /// Returns the length of the file. It is an error if that is not the size of the blob.
    pub(in crate::store) fn whole_size(&self) -> Result<u64, Error> {
        let size = self.data.file().metadata().map_err(|source| self.failed("read", source))?.len();
        if size != self.map.total() {
            return Err(self.failed("commit half of", io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(size)
    }

    /// Makes the file immutable and durable, after all of it was verified.
    pub(in crate::store) fn seal(&self) -> Result<(), Error> {
        let data = self.data.file();
        data.set_permissions(FileMode::IMMUTABLE.permissions())
            .and_then(|()| data.sync_all())
            .map_err(|source| self.failed("sync", source))
    }

    /// Moves a sealed file to its place among the blobs.
    pub(in crate::store) fn become_blob(&self, path: &Path) -> Result<(), Error> {
        self.disk.rename(&self.path, path)?;
        // Syncs the folder that the file has left, too. The blob is there already, so nothing is lost if the
        // map stays: it is swept at the next start.
        if let Err(error) = self.disk.remove(&map_path(&self.path)) {
            tracing::warn!(%error, digest = %self.key().digest, "cannot remove the map of a finished blob");
        }
        Ok(())
    }

    /// Removes the file and its map, because the content turned out to be wrong. Returns whether they are gone.
    pub(in crate::store) fn discard(&self) -> bool {
        let dropped = drop_files(&self.disk, &self.path);
        if let Err(error) = &dropped {
            tracing::warn!(%error, digest = %self.key().digest, "cannot drop a partial file");
        }
        dropped.is_ok()
    }

    /// Reserves room for `span` in the file system.
    pub(in crate::store) fn allocate(&self, span: Span) -> io::Result<()> {
        allocate(self.data.file(), span)
    }

    /// Returns the room of `span` to the file system, but for the bytes of `have`.
    pub(in crate::store) fn give_back(&self, have: &RangeSet, span: Span) {
        let mut at = span.start;
        while let Some(gap) = have.gap(Span { start: at, end: span.end }) {
            give_back(self.data.file(), gap);
            at = gap.end;
        }
    }

    /// Returns reserved room behind the end of the file, up to `end`. Returns whether there was any.
    pub(in crate::store) fn give_back_behind(&self, end: u64) -> bool {
        let length = self.data.file().metadata().map_or(u64::MAX, |metadata| metadata.len());
        if end > length {
            give_back(self.data.file(), Span { start: length, end });
        }
        end > length
    }

    /// Makes an error about this file.
    pub(in crate::store) fn failed(&self, action: &'static str, source: io::Error) -> Error {
        Error::io(action, &self.path, source)
    }
}

/// Opens a file and a map that belong together and to a blob of `total` bytes.
fn open_existing(path: &Path, total: u64) -> Result<Option<(File, File, PieceMap)>, Error> {
    let map_path = map_path(path);
    // A link, a pipe or the like is no partial file.
    let is_file = |path: &Path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file());
    if !is_file(path) || !is_file(&map_path) {
        return Ok(None);
    }
    // A commit that failed half-way has taken the right to write away.
    let _ = fs::set_permissions(path, Permissions::from_mode(PARTIAL_MODE));
    let Some(data) = open_to_write(path)? else { return Ok(None) };
    let Some(map_file) = open_to_write(&map_path)? else { return Ok(None) };
    let Some(map) = PieceMap::read(&map_file) else { return Ok(None) };
    let length = data.metadata().map_err(|source| Error::io("read", path, source))?.len();
    // Longer than the blob can only be a file that somebody else has written to.
    let belongs = map.total() == total && named_end(&map) <= length && length <= total;
    Ok(belongs.then_some((data, map_file, map)))
}

/// Returns the length that a file must have to hold the bytes that its map names.
fn named_end(map: &PieceMap) -> u64 {
    map.pieces().spans().last().map_or(0, |last| last.end)
}

fn open_to_write(path: &Path) -> Result<Option<File>, Error> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if files::is_absent(&error) => Ok(None),
        Err(source) => Err(Error::io("open", path, source)),
    }
}

fn create_file(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(PARTIAL_MODE);
    options.open(path).map_err(|source| Error::io("create", path, source))
}

/// Removes the map first, durably, and then the file: a map must never be there with another file than its own.
fn drop_files(disk: &Disk, path: &Path) -> Result<(), Error> {
    disk.remove(&map_path(path))?;
    disk.remove(path)
}

fn map_path(path: &Path) -> PathBuf {
    path.with_extension("map")
}
