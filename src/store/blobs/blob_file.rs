//! The file of a blob, opened for reading, and slices of it that the kernel sends from its own memory.

use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use rustix::fs::{Advice, fadvise};

use crate::store::blobs::mmap::Mmap;
use crate::store::blobs::soundness::Soundness;
use crate::sync::lock;

/// Bytes that the kernel is asked to read ahead when a blob is not in memory.
const AHEAD_BYTES: u64 = 4 << 20;

/// The file of a blob, opened for reading. It may be stored, or still being downloaded; then only the bytes that are
/// written may be read. Clones share the file.
#[derive(Clone)]
pub struct BlobFile {
    /// The size of the whole blob in bytes.
    pub size: u64,
    open: Arc<Open>,
}

/// The open file. The bytes that may be read never change, also when its name is removed.
struct Open {
    file: File,
    mapping: Mutex<Option<Arc<Mmap>>>,
    /// Whether bytes of it could not be sent.
    is_suspect: AtomicBool,
    soundness: Soundness,
}

impl BlobFile {
    /// Wraps the file of a blob of `size` bytes.
    pub(crate) fn new(file: File, size: u64) -> Self {
        let (mapping, is_suspect, soundness) = Default::default();
        Self { size, open: Arc::new(Open { file, mapping, is_suspect, soundness }) }
    }

    /// Returns the same file with another size of the blob, once that is known.
    pub(in crate::store) fn of_size(&self, size: u64) -> Self {
        Self { size, open: Arc::clone(&self.open) }
    }

    /// Returns the file.
    pub fn file(&self) -> &File {
        &self.open.file
    }

    /// Maps the content into memory. It is for a plain socket only: see [`Mapped`].
    ///
    /// # Errors
    /// When the system has no room for it.
    pub fn mapped(&self) -> std::io::Result<Mapped> {
        let mut kept = lock(&self.open.mapping);
        let mapping = match &*kept {
            Some(mapping) => Arc::clone(mapping),
            None => Arc::clone(kept.insert(Arc::new(Mmap::of(&self.open.file, self.size)?))),
        };
        Ok(Mapped { blob: self.clone(), mapping })
    }

    /// Whether its content was found not to match its digest. A reader must then not get the end of it.
    pub fn is_damaged(&self) -> bool {
        self.open.soundness.is_damaged()
    }

    /// Returns what is known of the soundness of the content.
    pub(in crate::store) fn soundness(&self) -> &Soundness {
        &self.open.soundness
    }

    /// Whether a file with this metadata is the same file, with the same size.
    pub(in crate::store) fn is_same_file(&self, found: &std::fs::Metadata) -> bool {
        let same = |own: std::fs::Metadata| {
            (own.ino(), own.dev(), own.len()) == (found.ino(), found.dev(), found.len())
                && own.len() == self.size
        };
        self.file().metadata().is_ok_and(same)
    }

    pub(in crate::store) fn unmap(&self) {
        drop(lock(&self.open.mapping).take());
    }

    /// Whether bytes of it could not be sent.
    pub(in crate::store) fn is_suspect(&self) -> bool {
        self.open.is_suspect.load(Ordering::Acquire)
    }

    /// Whether anything but the table of open files holds it.
    pub(in crate::store) fn is_being_read(&self) -> bool {
        Arc::strong_count(&self.open) > 1
    }
}

impl AsRef<File> for BlobFile {
    fn as_ref(&self) -> &File {
        &self.open.file
    }
}

/// Bytes of a blob that are sent from where the kernel has them.
///
/// They may go to a plain socket, and be looked at by nobody: a file that somebody cuts short would end the
/// process. The kernel answers the write with an error instead.
#[derive(Clone)]
pub struct Mapped {
    blob: BlobFile,
    mapping: Arc<Mmap>,
}

/// A weak reference to a mapped file. Its holder does not count as a reader.
pub struct MappedWeak {
    size: u64,
    open: Weak<Open>,
    mapping: Weak<Mmap>,
}

impl MappedWeak {
    /// Returns the mapped file, if it is still held by a reader.
    pub fn upgrade(&self) -> Option<Mapped> {
        let blob = BlobFile { size: self.size, open: self.open.upgrade()? };
        Some(Mapped { blob, mapping: self.mapping.upgrade()? })
    }
}

impl Mapped {
    /// Returns a weak reference to it.
    pub fn downgrade(&self) -> MappedWeak {
        let (open, mapping) = (Arc::downgrade(&self.blob.open), Arc::downgrade(&self.mapping));
        MappedWeak { size: self.blob.size, open, mapping }
    }

    /// Returns the file that is mapped.
    pub fn file(&self) -> &File {
        self.blob.file()
    }

    /// Notes that bytes of it could not be sent: its file is checked before it is served again.
    pub fn suspect(&self) {
        self.blob.open.is_suspect.store(true, Ordering::Release);
    }

    /// Returns where in the content a slice of it begins; `None` for any other slice.
    pub fn offset_of(&self, slice: &[u8]) -> Option<u64> {
        self.mapping.offset_of(slice).map(|offset| offset as u64)
    }

    /// Returns these bytes of the content, if all of them are in memory so that nothing waits for the disk.
    pub fn bytes(&self, range: Range<usize>) -> Option<Bytes> {
        self.mapping.is_resident(range.clone()).then(|| self.mapping.bytes(range))
    }

    /// Returns these bytes after waiting for the disk; `None` where the kernel cannot do that. Blocks.
    ///
    /// # Errors
    /// When the disk fails, or the file has become shorter.
    pub fn bring(&self, range: Range<usize>) -> std::io::Result<Option<Bytes>> {
        // Page by page the disk would be asked for little at a time. A mere hint, so its failure is none.
        let _ = fadvise(self.file(), range.start as u64, NonZeroU64::new(AHEAD_BYTES), Advice::WillNeed);
        Ok(self.mapping.populate(range.clone())?.then(|| self.mapping.bytes(range)))
    }
}
