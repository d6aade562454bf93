//! The room of a partial file: taken step by step as bytes come, and given back when no more do.

use std::fs::File;
use std::io;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{Errno, retry_on_intr};

use crate::oci::range::Span;
use crate::store::Error;
use crate::store::blobs::range_set::Pieces;
use crate::store::eviction::Sweeper;
use crate::store::eviction::budget::{self, MAP_BYTES};
use crate::store::partial::{Partial, Partials};

/// Room is taken in steps of this for what is asked for in parts: most of those stay small.
const PART_STEP: u64 = 1 << 20;

impl Partial {
    /// Says so if there can be no room for all of it, of which more is wanted than was at first.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::NoRoom`] or [`Error::Full`].
    pub fn admit_whole(&self) -> Result<(), Error> {
        let partials = Partials::of(&self.ledger);
        Sweeper { ledger: &self.ledger, partials: &partials }.admit(
            &self.key,
            self.total().unwrap_or(0),
            true,
        )
    }

    /// Makes sure that there is room for `span`, which has just come, beside what `have` says, and for a step more.
    /// `is_whole`: all of it will come, mostly in order.
    ///
    /// # Errors
    /// [`Error::NoRoom`], [`Error::Full`] or [`Error::Io`]; then no more room is taken than before.
    pub fn make_room(&mut self, have: &Pieces, span: Span, is_whole: bool) -> Result<(), Error> {
        let received = have.bytes() + span.len();
        if received <= self.room {
            return Ok(());
        }
        let step = if is_whole {
            budget::step(received, self.ledger.budget.max_bytes(self.ledger.disk.root()))
        } else {
            PART_STEP
        };
        let room = received.saturating_add(step).min(self.map.total).max(received);
        let partials = Partials::of(&self.ledger);
        let sweeper = Sweeper { ledger: &self.ledger, partials: &partials };
        sweeper.take_room(&self.key, room + MAP_BYTES)?;
        if is_whole {
            let end = (span.start + (room - have.bytes())).min(self.map.total);
            self.allocate(&sweeper, have, Span { start: span.start, end })?;
            self.allocated = self.allocated.max(end);
        }
        self.room = room;
        Ok(())
    }

    /// Gives back the room that was taken for more than `have`: nothing comes for a while.
    pub fn rest(&mut self, have: &Pieces) {
        let length = self.data.file().metadata().map_or(u64::MAX, |metadata| metadata.len());
        if self.allocated > length {
            give_back(self.data.file(), Span { start: length, end: self.allocated });
            self.allocated = 0;
        }
        if self.room > have.bytes() {
            self.room = have.bytes();
            self.ledger.budget.count_partial(&self.key, self.room + MAP_BYTES);
        }
    }

    /// Has the file system promise the room of `span`.
    fn allocate(&self, sweeper: &Sweeper<'_>, have: &Pieces, span: Span) -> Result<(), Error> {
        let file = self.data.file();
        let allocated = allocate(file, span).or_else(|error| match Errno::from_io_error(&error) {
            // Others fill the disk as well: what is not needed any more gives way to what is.
            Some(Errno::NOSPC | Errno::DQUOT) if sweeper.make_room(Some(&self.key.registry), span.len()) => {
                allocate(file, span)
            }
            _ => Err(error),
        });
        allocated.map_err(|error| {
            self.ledger.budget.count_partial(&self.key, have.bytes() + MAP_BYTES);
            // Some file systems keep what they could find.
            let mut at = span.start;
            while let Some(gap) = have.gap(Span { start: at, end: span.end }) {
                give_back(file, gap);
                at = gap.end;
            }
            self.failed("reserve room for", error)
        })
    }
}

/// Gives the file system back what it has promised of a part. What it does not take, the next start counts.
pub(in crate::store) fn give_back(file: &File, span: Span) {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let _ = fallocate(file, flags, span.start, span.len());
}

/// Reserves room for a part of a file, without changing its length.
pub(in crate::store) fn allocate(file: &File, span: Span) -> io::Result<()> {
    let allocate = || fallocate(file, FallocateFlags::KEEP_SIZE, span.start, span.len());
    match if span.start >= span.end { Ok(()) } else { retry_on_intr(allocate) } {
        Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => Err(error.into()),
        // Other failures mean that this file system cannot reserve: then only writing can tell.
        Ok(()) | Err(_) => Ok(()),
    }
}
