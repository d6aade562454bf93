//! The half of a download that writes, hashes and announces, on a thread of the blocking pool.
//!
//! Bytes may come for any offset. Bytes in order are hashed as they pass. Bytes that were written before the start grew
//! up to them, and bytes that an earlier flight stored, are read again to be hashed: while there is nothing else to do,
//! or a step with every write. They are in memory mostly, and are hashed only when the whole is wanted.
//!
//! Data is synced every [`SYNC_BYTES`] on another thread, and only then named in the partial file's map. Where the
//! network is faster than the disk, the writer waits for the disk: so after a crash at most [`UNSYNCED_MAX`] bytes, and
//! what was under way, are asked for again.

use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, error::TryRecvError};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::flight::{Flight, HOLD_BACK};
use crate::oci::range::Span;
use crate::oci::{Digest, Verifier};
use crate::store::{self, Partial, RangeSet, Synced};

/// Written bytes after which the data is synced and the map is brought up to date.
const SYNC_BYTES: u64 = 16 << 20;
/// The most written bytes that the map does not name yet.
const UNSYNCED_MAX: u64 = 48 << 20;
/// Chunks that wait between the two halves. Those of hyper have at most some hundred KiB each.
const CHUNKS_WAITING_MAX: usize = 4;
/// Bytes that are read again at once, to be hashed.
const REHASH_BYTES: usize = 1 << 20;
/// Bytes that are hashed again between two reports to the readers that wait for the verification.
const HASH_REPORT_BYTES: u64 = 64 << 20;
/// The most bytes that are written between two announcements.
const ANNOUNCE_BYTES_MAX: u64 = 4 << 20;

/// What the writer is told to do.
pub(super) enum WriterCommand {
    /// Write these bytes at this offset.
    Write(u64, Bytes),
    /// Make what is here survive a crash: nothing comes for a while.
    Pause,
    /// The body of a content of unknown size has ended: say how large the content is, if it is all here.
    End(oneshot::Sender<Option<u64>>),
    /// The size of the content is known now, in bytes.
    Total(u64),
    /// Announce the file: readers have waited long enough for a response head.
    Announce,
}

/// Writes what upstream sends.
pub(super) struct Writer {
    flight: Arc<Flight>,
    partial: Partial,
    verifier: Verifier,
    hashed: u64,
    written: RangeSet,
    /// The store has admitted all of the content, or only parts are wanted.
    is_admitted: bool,
    /// Readers have been told that there is a response.
    is_file_announced: bool,
    /// The span that is written and not announced yet.
    unannounced: Option<Span>,
    /// The number of bytes that were written when the last sync began, and when the last finished one did.
    sync_began_at: u64,
    synced: u64,
    syncing: Option<JoinHandle<Synced>>,
    runtime: Handle,
    buffer: Vec<u8>,
}

/// What a writer leaves.
pub(super) struct WriterResult {
    pub partial: Partial,
    /// The digest of the whole, if all of it is there and there was time to hash it.
    pub digest: Option<Digest>,
}

impl Writer {
    /// Starts the thread, which ends when the channel closes. The handle yields the result.
    pub(super) fn spawn(
        flight: &Arc<Flight>,
        partial: Partial,
    ) -> (mpsc::Sender<WriterCommand>, JoinHandle<Result<WriterResult, store::Error>>) {
        let written = partial.have().clone();
        let mut writer = Self {
            flight: Arc::clone(flight),
            partial,
            verifier: Verifier::new(flight.digest().algorithm()),
            hashed: 0,
            is_admitted: flight.is_whole(),
            is_file_announced: false,
            unannounced: None,
            sync_began_at: written.bytes(),
            synced: written.bytes(),
            written,
            syncing: None,
            runtime: Handle::current(),
            buffer: Vec::new(),
        };
        writer.announce_file_if_safe();
        let (sender, chunks) = mpsc::channel(CHUNKS_WAITING_MAX);
        (sender, tokio::task::spawn_blocking(move || writer.run(chunks)))
    }

    fn run(mut self, mut chunks: mpsc::Receiver<WriterCommand>) -> Result<WriterResult, store::Error> {
        loop {
            let command = if self.is_hash_lagging() {
                match chunks.try_recv() {
                    Ok(command) => command,
                    Err(TryRecvError::Empty) => {
                        self.hash_step()?;
                        continue;
                    }
                    Err(TryRecvError::Disconnected) => break,
                }
            } else {
                let Some(command) = chunks.blocking_recv() else { break };
                command
            };
            match command {
                WriterCommand::Write(offset, bytes) => {
                    self.write(offset, &bytes)?;
                    // What has come at one time is announced at one time: each announcement wakes every reader.
                    if chunks.is_empty() {
                        self.announce();
                    }
                    self.sync_in_background()?;
                }
                WriterCommand::Pause => self.flush()?,
                WriterCommand::End(sender) => {
                    self.announce();
                    let size = self.verified_size()?;
                    // The connection that asked may have been stopped.
                    let _ = sender.send(size);
                }
                WriterCommand::Total(total) => self.learn(total)?,
                WriterCommand::Announce => self.announce_file(),
            }
        }
        self.finish()
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), store::Error> {
        let is_whole = self.flight.is_whole();
        if !self.is_admitted && is_whole {
            // The download began as a part, and all of it is wanted now: a disk that is too full for it must not be
            // filled with a half.
            self.partial.admit_whole()?;
            self.is_admitted = true;
        }
        let span = Span { start: offset, end: offset + bytes.len() as u64 };
        self.partial.make_room(&self.written, span, is_whole)?;
        self.partial.write_at(offset, bytes)?;
        self.written.insert(span);
        if offset == self.hashed {
            self.verifier.update(bytes);
            self.hashed = span.end;
        } else if self.is_hash_lagging() {
            self.hash_step()?;
        }
        match &mut self.unannounced {
            Some(span_before)
                if span_before.end == span.start && span.end - span_before.start <= ANNOUNCE_BYTES_MAX =>
            {
                span_before.end = span.end
            }
            _ => {
                self.announce();
                self.unannounced = Some(span);
            }
        }
        Ok(())
    }

    fn announce(&mut self) {
        if let Some(span) = self.unannounced.take() {
            self.flight.advance(span);
        }
        if !self.is_file_announced {
            self.announce_file_if_safe();
        }
    }

    /// Lets readers know that there is a response, unless the content is better verified first. That is so for small
    /// content, where a lie then is a clean error, and for what calls itself a page, which no client is to see.
    fn announce_file_if_safe(&mut self) {
        let known_bytes = self.partial.total().unwrap_or_else(|| self.written.bytes());
        if known_bytes > HOLD_BACK && !self.flight.is_page() {
            self.announce_file();
        }
    }

    fn announce_file(&mut self) {
        if !self.is_file_announced {
            self.is_file_announced = true;
            self.flight.announce(self.partial.file(), self.partial.total(), self.written.clone());
        }
    }

    /// The size of the content is known now.
    fn learn(&mut self, total: u64) -> Result<(), store::Error> {
        self.partial.learn(total);
        if self.is_file_announced {
            self.flight.announce(self.partial.file(), Some(total), self.written.clone());
        }
        // A disk that is too full for it must not be filled with a half.
        if self.flight.is_whole() { self.partial.admit_whole() } else { Ok(()) }
    }

    /// The size of the content, if the bytes from the start on are all of it: then they have the digest.
    fn verified_size(&mut self) -> Result<Option<u64>, store::Error> {
        while self.is_hash_lagging() {
            self.hash_step()?;
        }
        let is_in_order = self.hashed == self.written.bytes();
        let is_all = is_in_order && self.verifier.clone().finish() == *self.flight.digest();
        Ok(is_all.then_some(self.hashed))
    }

    /// Whether there are bytes to hash that have passed already.
    fn is_hash_lagging(&self) -> bool {
        self.flight.is_whole() && self.written.run_end(self.hashed) > self.hashed
    }

    /// Hashes some of what is on disk. Those bytes are trusted only as part of the whole.
    fn hash_step(&mut self) -> Result<(), store::Error> {
        self.buffer.resize(REHASH_BYTES, 0);
        let behind = self.written.run_end(self.hashed) - self.hashed;
        let len = usize::try_from(behind).map_or(REHASH_BYTES, |behind| behind.min(REHASH_BYTES));
        self.partial.read_at(self.hashed, &mut self.buffer[..len])?;
        self.verifier.update(&self.buffer[..len]);
        let before = self.hashed;
        self.hashed += len as u64;
        if before / HASH_REPORT_BYTES != self.hashed / HASH_REPORT_BYTES {
            self.flight.set_hashed(self.hashed);
        }
        Ok(())
    }

    /// Begins to sync what is here, on another thread and one sync at a time. The transfer does not wait for it unless
    /// the disk is far behind.
    fn sync_in_background(&mut self) -> Result<(), store::Error> {
        if self.flight.is_page() {
            return Ok(());
        }
        let written = self.written.bytes();
        let is_far_behind = written - self.synced >= UNSYNCED_MAX;
        if is_far_behind || self.syncing.as_ref().is_some_and(JoinHandle::is_finished) {
            self.end_sync()?;
        }
        if self.syncing.is_none() && written - self.sync_began_at >= SYNC_BYTES {
            self.sync_began_at = written;
            let sync = self.partial.begin_sync(self.written.clone());
            self.syncing = Some(self.runtime.spawn_blocking(move || sync.run()));
        }
        Ok(())
    }

    /// Names in the map what the last sync has made durable.
    fn end_sync(&mut self) -> Result<(), store::Error> {
        let Some(syncing) = self.syncing.take() else { return Ok(()) };
        match self.runtime.block_on(syncing) {
            Ok(synced) => {
                self.synced = self.sync_began_at;
                self.partial.end_sync(synced)
            }
            // The runtime is shutting down: what is not named is asked for again.
            Err(_) => Ok(()),
        }
    }

    /// Announces, syncs and names all that is here, and releases the room beyond it.
    fn flush(&mut self) -> Result<(), store::Error> {
        self.announce();
        self.end_sync()?;
        // What may be a page must not be found by a later flight.
        if self.synced < self.written.bytes() && !self.flight.is_page() {
            self.partial.sync(self.written.clone())?;
            (self.synced, self.sync_began_at) = (self.written.bytes(), self.written.bytes());
        }
        self.partial.rest(&self.written);
        Ok(())
    }

    fn finish(mut self) -> Result<WriterResult, store::Error> {
        let Some(total) = self.partial.total().filter(|total| self.written.bytes() == *total) else {
            self.flush()?;
            return Ok(WriterResult { partial: self.partial, digest: None });
        };
        // A whole file is synced when it goes to its place.
        self.announce();
        self.end_sync()?;
        while self.hashed < total {
            if self.flight.is_stopping() {
                self.flush()?;
                return Ok(WriterResult { partial: self.partial, digest: None });
            }
            self.hash_step()?;
        }
        Ok(WriterResult { partial: self.partial, digest: Some(self.verifier.finish()) })
    }
}
