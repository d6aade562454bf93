//! The half of a fill that writes, hashes and announces, on a thread of the blocking pool.
//!
//! Bytes may come for any place. What comes in order is hashed as it passes; what the start has grown up to, and
//! what an earlier flight stored, is read again, while nothing else is to do or a step with every write. It is
//! in memory mostly, and hashed only when the whole is wanted.
//!
//! Data is synced every [`SYNC_BYTES`], on another thread, and only then named in the partial file's map. Where
//! the network is faster than the disk, the writer waits for it: after a crash at most [`UNSYNCED_MAX`], and
//! what was in the air, is asked again.

use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, error::TryRecvError};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::flight::{Flight, HOLD_BACK};
use crate::oci::range::Span;
use crate::oci::{Digest, Verifier};
use crate::store::{self, Partial, Pieces, Synced};

/// Written bytes after which the data is synced and the map brought up to date.
const SYNC_BYTES: u64 = 16 << 20;
/// Written bytes that the map does not name yet.
const UNSYNCED_MAX: u64 = 48 << 20;
/// Chunks between the two halves; hyper's are at most some hundred KiB each.
const CHUNKS_WAITING_MAX: usize = 4;
/// Bytes read again at once, to be hashed.
const REHASH_BYTES: usize = 1 << 20;
/// Bytes hashed again between two words about it, for readers that wait for the proof.
const HASH_NEWS_BYTES: u64 = 64 << 20;
/// Bytes written between two announcements, at most.
const NEWS_BYTES: u64 = 4 << 20;

/// What the writer is given.
pub(in crate::cache) enum Given {
    /// Bytes from this offset on.
    Bytes(u64, Bytes),
    /// Nothing comes for a while: what is here must survive a crash.
    Pause,
    /// The body has ended, of a content whose size is not known: how large it is, if what is here is all of it.
    End(oneshot::Sender<Option<u64>>),
    /// How large the content is, which was not known before.
    Total(u64),
    /// Readers have waited long enough to hear that there is an answer.
    Head,
}

/// Takes what upstream sends.
pub(in crate::cache) struct Writer {
    flight: Arc<Flight>,
    partial: Partial,
    verifier: Verifier,
    hashed: u64,
    written: Pieces,
    /// There can be room for all of it, or only parts are wanted.
    is_admitted: bool,
    /// Readers have been told that there is an answer.
    is_told: bool,
    /// Written and not yet announced.
    news: Option<Span>,
    /// How many bytes were written when the last sync began, and the last one that has ended.
    sync_began_at: u64,
    synced: u64,
    syncing: Option<JoinHandle<Synced>>,
    runtime: Handle,
    buffer: Vec<u8>,
}

/// What a writer leaves.
pub(in crate::cache) struct Written {
    pub partial: Partial,
    /// Of the whole, if all of it is there and there was time to hash it.
    pub digest: Option<Digest>,
}

impl Writer {
    /// Starts the thread; it ends when the channel closes. Its handle yields what it wrote.
    pub(in crate::cache) fn spawn(
        flight: &Arc<Flight>,
        partial: Partial,
    ) -> (mpsc::Sender<Given>, JoinHandle<Result<Written, store::Error>>) {
        let written = partial.have().clone();
        let mut writer = Self {
            flight: Arc::clone(flight),
            partial,
            verifier: Verifier::new(flight.digest().algorithm()),
            hashed: 0,
            is_admitted: flight.is_whole(),
            is_told: false,
            news: None,
            sync_began_at: written.bytes(),
            synced: written.bytes(),
            written,
            syncing: None,
            runtime: Handle::current(),
            buffer: Vec::new(),
        };
        writer.tell();
        let (sender, chunks) = mpsc::channel(CHUNKS_WAITING_MAX);
        (sender, tokio::task::spawn_blocking(move || writer.run(chunks)))
    }

    fn run(mut self, mut chunks: mpsc::Receiver<Given>) -> Result<Written, store::Error> {
        loop {
            let given = if self.is_hash_behind() {
                match chunks.try_recv() {
                    Ok(given) => given,
                    Err(TryRecvError::Empty) => {
                        self.hash_step()?;
                        continue;
                    }
                    Err(TryRecvError::Disconnected) => break,
                }
            } else {
                let Some(given) = chunks.blocking_recv() else { break };
                given
            };
            match given {
                Given::Bytes(offset, bytes) => {
                    self.write(offset, &bytes)?;
                    // What has come at one time is announced at one time: each announcement wakes every reader.
                    if chunks.is_empty() {
                        self.announce();
                    }
                    self.sync_behind()?;
                }
                Given::Pause => self.settle()?,
                Given::End(answer) => {
                    self.announce();
                    let size = self.proven_size()?;
                    // Whoever asked may have been stopped.
                    let _ = answer.send(size);
                }
                Given::Total(total) => self.learn(total)?,
                Given::Head => self.tell_now(),
            }
        }
        self.finish()
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), store::Error> {
        let is_whole = self.flight.is_whole();
        if !self.is_admitted && is_whole {
            // The rest of what began as a part: a disk that is too full for it must not be filled with a half.
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
        } else if self.is_hash_behind() {
            self.hash_step()?;
        }
        match &mut self.news {
            Some(news) if news.end == span.start && span.end - news.start <= NEWS_BYTES => {
                news.end = span.end
            }
            _ => {
                self.announce();
                self.news = Some(span);
            }
        }
        Ok(())
    }

    fn announce(&mut self) {
        if let Some(news) = self.news.take() {
            self.flight.advance(news);
        }
        if !self.is_told {
            self.tell();
        }
    }

    /// Lets readers know that there is an answer, unless it is better proven first. So is small content: a lie is then a
    /// clean error. And what calls itself a page, which no client is to see.
    fn tell(&mut self) {
        let known_bytes = self.partial.total().unwrap_or_else(|| self.written.bytes());
        if known_bytes > HOLD_BACK && !self.flight.is_page() {
            self.tell_now();
        }
    }

    fn tell_now(&mut self) {
        if !self.is_told {
            self.is_told = true;
            self.flight.announce(self.partial.file(), self.partial.total(), self.written.clone());
        }
    }

    /// The content has this size.
    fn learn(&mut self, total: u64) -> Result<(), store::Error> {
        self.partial.learn(total);
        if self.is_told {
            self.flight.announce(self.partial.file(), Some(total), self.written.clone());
        }
        // A disk that is too full for it must not be filled with a half.
        if self.flight.is_whole() { self.partial.admit_whole() } else { Ok(()) }
    }

    /// The size of the content, if what is here from the start on is all of it: then that has the digest.
    fn proven_size(&mut self) -> Result<Option<u64>, store::Error> {
        while self.is_hash_behind() {
            self.hash_step()?;
        }
        let is_in_order = self.hashed == self.written.bytes();
        let is_all = is_in_order && self.verifier.clone().finish() == *self.flight.digest();
        Ok(is_all.then_some(self.hashed))
    }

    /// Whether there is something to hash that has passed already.
    fn is_hash_behind(&self) -> bool {
        self.flight.is_whole() && self.written.run_end(self.hashed) > self.hashed
    }

    /// Hashes some of what is on disk: it is trusted only as part of the whole.
    fn hash_step(&mut self) -> Result<(), store::Error> {
        self.buffer.resize(REHASH_BYTES, 0);
        let behind = self.written.run_end(self.hashed) - self.hashed;
        let len = usize::try_from(behind).map_or(REHASH_BYTES, |behind| behind.min(REHASH_BYTES));
        self.partial.read_at(self.hashed, &mut self.buffer[..len])?;
        self.verifier.update(&self.buffer[..len]);
        let before = self.hashed;
        self.hashed += len as u64;
        if before / HASH_NEWS_BYTES != self.hashed / HASH_NEWS_BYTES {
            self.flight.hashed(self.hashed);
        }
        Ok(())
    }

    /// Begins to sync what is here, on another thread and one at a time: the transfer does not wait for it unless
    /// the disk is far behind.
    fn sync_behind(&mut self) -> Result<(), store::Error> {
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

    /// Names what the last sync made durable.
    fn end_sync(&mut self) -> Result<(), store::Error> {
        let Some(syncing) = self.syncing.take() else { return Ok(()) };
        match self.runtime.block_on(syncing) {
            Ok(synced) => {
                self.synced = self.sync_began_at;
                self.partial.end_sync(synced)
            }
            // The runtime is going away: what is not named is asked again.
            Err(_) => Ok(()),
        }
    }

    /// Announces, syncs and names all that is here, and takes no more room than that.
    fn settle(&mut self) -> Result<(), store::Error> {
        self.announce();
        self.end_sync()?;
        // Nobody is to find what may be a page.
        if self.synced < self.written.bytes() && !self.flight.is_page() {
            self.partial.sync(self.written.clone())?;
            (self.synced, self.sync_began_at) = (self.written.bytes(), self.written.bytes());
        }
        self.partial.rest(&self.written);
        Ok(())
    }

    fn finish(mut self) -> Result<Written, store::Error> {
        let Some(total) = self.partial.total().filter(|total| self.written.bytes() == *total) else {
            self.settle()?;
            return Ok(Written { partial: self.partial, digest: None });
        };
        // A whole file is synced when it gets its place.
        self.announce();
        self.end_sync()?;
        while self.hashed < total {
            if self.flight.is_stopping() {
                self.settle()?;
                return Ok(Written { partial: self.partial, digest: None });
            }
            self.hash_step()?;
        }
        Ok(Written { partial: self.partial, digest: Some(self.verifier.finish()) })
    }
}
