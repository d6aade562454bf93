//! A blob that is being downloaded, and the room that it takes: of the budget, and of the file system as far as that can
//! reserve it.
//!
//! If there can be no room for a blob, that is an error before its readers get a head. The room itself is taken step by
//! step as bytes come ([`Partial::make_room`]), and returned when no more come. The file is one of
//! [`partials`](crate::store::blobs::partials).
//!
//! It is above blobs, which know no budget, and eviction, which opens no downloads. The cache uses it.

use std::sync::Arc;

use rustix::io::Errno;

use crate::oci::Digest;
use crate::oci::range::Span;
use crate::store::blobs::blob_file::BlobFile;
use crate::store::blobs::partials::{PartialFile, PartialKey, Sync, Synced};
use crate::store::blobs::piece_map::Next;
use crate::store::blobs::range_set::RangeSet;
use crate::store::error::Error;
use crate::store::eviction::Eviction;

/// Bytes of room that are taken at a time for a blob that is asked for in parts. Most of these stay small.
const PART_STEP: u64 = 1 << 20;

/// A blob that is being downloaded. All methods block.
///
/// When it is dropped, it stays on disk with what was synced, for the next download.
pub struct Partial {
    file: PartialFile,
    /// Number of its bytes for which room was taken.
    room: u64,
    /// The offset up to which the file system has reserved room.
    allocated: u64,
    /// Last, so that the store outlives the file.
    eviction: Arc<Eviction>,
}

impl Partial {
    /// Opens the partial file of a blob. It starts over if the file is unusable, of another total, or not for `next`.
    /// If `is_whole`, all of the blob will come. If the total is unknown, room is taken step by step.
    pub(in crate::store) fn open(
        eviction: Arc<Eviction>,
        key: &PartialKey,
        total: Option<u64>,
        next: &Next<'_>,
        is_whole: bool,
    ) -> Result<Self, Error> {
        let in_use = eviction.partials().take(key)?;
        eviction.admit(key, total.unwrap_or(0), is_whole)?;
        let file = eviction.partials().open(in_use, total, next)?;
        let room = file.have().bytes();
        eviction.count_partial(key, room);
        Ok(Self { file, room, allocated: 0, eviction })
    }

    /// Returns the bytes that are there and synced: those found at open, and those that [`Partial::sync`] has named
    /// since.
    pub fn have(&self) -> &RangeSet {
        self.file.have()
    }

    /// Returns the size of the whole blob in bytes, if it is known.
    pub fn total(&self) -> Option<u64> {
        self.file.total()
    }

    /// Sets the size of the whole blob, which was not known before. It must not be less than what is there.
    pub fn learn(&mut self, total: u64) {
        self.file.learn(total);
    }

    /// Whether the bytes found at open, if any, had come without a credential.
    pub fn began_public(&self) -> bool {
        self.file.began_public()
    }

    /// Whether the bytes found at open, if any, had come from parents.
    pub fn began_by_parents(&self) -> bool {
        self.file.began_by_parents()
    }

    /// Returns the file, for readers of the bytes that are there.
    pub fn file(&self) -> BlobFile {
        self.file.file()
    }

    /// Writes bytes at their place.
    ///
    /// # Errors
    /// [`Error::Full`] or [`Error::Io`], also for bytes beyond the total.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.noted(self.file.write_at(offset, bytes))
    }

    /// Syncs the data, then names `pieces` as there.
    ///
    /// # Errors
    /// [`Error::Full`] or [`Error::Io`]; afterwards this handle refuses to sync or commit.
    pub fn sync(&mut self, pieces: RangeSet) -> Result<(), Error> {
        let synced = self.file.sync(pieces);
        self.noted(synced)
    }

    /// Reads bytes that are there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.noted(self.file.read_at(offset, bytes))
    }

    /// Begins a sync that another thread runs: [`Sync::run`] there, then [`Partial::end_sync`] here.
    pub fn begin_sync(&self, pieces: RangeSet) -> Sync {
        self.file.begin_sync(pieces)
    }

    /// Names the bytes that were synced.
    ///
    /// # Errors
    /// As [`Partial::sync`].
    pub fn end_sync(&mut self, synced: Synced) -> Result<(), Error> {
        let ended = self.file.end_sync(synced);
        self.noted(ended)
    }

    /// Makes the file a blob. `proven` is the digest that the caller found by hashing all of it.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`] if that is another digest, and the file is dropped; [`Error::Full`] or
    /// [`Error::Io`] if the disk fails, and the file stays for another try.
    pub fn commit(self, proven: &Digest) -> Result<(), Error> {
        self.noted(self.file.refuse_if_broken())?;
        let digest = self.file.key().digest;
        if *proven != digest {
            let error = Error::mismatch(&digest, *proven);
            self.discard();
            return Err(error);
        }
        let size = self.noted(self.file.whole_size())?;
        self.file.give_back_behind(self.allocated);
        self.noted(self.file.seal())?;
        self.file.become_blob(&self.eviction.blob_path(&digest))?;
        self.eviction.committed(self.file.key(), size);
        Ok(())
    }

    /// Removes the file, because its content turned out to be wrong.
    pub fn discard(self) {
        if self.file.discard() {
            self.eviction.release(self.file.key());
        }
    }

    /// Checks that there can be room for all of the blob, of which more is wanted than at first.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::NoRoom`] or [`Error::Full`].
    pub fn admit_whole(&self) -> Result<(), Error> {
        self.eviction.admit(self.file.key(), self.total().unwrap_or(0), true)
    }

    /// Takes room for `span`, which has just come, beside `have`, and for a step more. If `is_whole`, all of the blob
    /// will come, mostly in order.
    ///
    /// # Errors
    /// [`Error::NoRoom`], [`Error::Full`] or [`Error::Io`]; then no more room is taken than before.
    pub fn make_room(&mut self, have: &RangeSet, span: Span, is_whole: bool) -> Result<(), Error> {
        let received = have.bytes() + span.len();
        if received <= self.room {
            return Ok(());
        }
        let step = if is_whole { self.eviction.step(received) } else { PART_STEP };
        let room = received.saturating_add(step).min(self.total().unwrap_or(u64::MAX)).max(received);
        self.eviction.take_room(self.file.key(), room)?;
        if is_whole {
            let end = (span.start + (room - have.bytes())).min(self.total().unwrap_or(u64::MAX));
            self.allocate(have, Span { start: span.start, end })?;
            self.allocated = self.allocated.max(end);
        }
        self.room = room;
        Ok(())
    }

    /// Returns the room that was taken beyond `have`, because nothing comes for a while.
    pub fn rest(&mut self, have: &RangeSet) {
        if self.file.give_back_behind(self.allocated) {
            self.allocated = 0;
        }
        if self.room > have.bytes() {
            self.room = have.bytes();
            self.eviction.count_partial(self.file.key(), self.room);
        }
    }

    /// Reserves room for `span` in the file system.
    fn allocate(&self, have: &RangeSet, span: Span) -> Result<(), Error> {
        let key = self.file.key();
        let allocated = self.file.allocate(span).or_else(|error| match Errno::from_io_error(&error) {
            // Others fill the disk as well: what is not needed any more gives way to what is.
            Some(Errno::NOSPC | Errno::DQUOT) if self.eviction.make_room(Some(&key.registry), span.len()) => {
                self.file.allocate(span)
            }
            _ => Err(error),
        });
        self.noted(allocated.map_err(|error| {
            self.eviction.count_partial(key, have.bytes());
            // Some file systems keep what they could find.
            self.file.give_back(have, span);
            self.file.failed("reserve room for", error)
        }))
    }

    /// Notes a failure of the disk, and returns the result.
    fn noted<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.inspect_err(|error| {
            self.eviction.disk().condition().failed(self.total().unwrap_or(self.room), error);
        })
    }
}
