//! The half of a fill that writes, hashes and announces, on a thread of the blocking pool.
//!
//! Data is synced every [`SYNC_BYTES`], on another thread, and only then named in the partial file's map. Where
//! the network is faster than the disk, the writer waits for it: after a crash at most [`UNSYNCED_MAX`], and
//! what was in the air, is asked again.

use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::flight::{Flight, HOLD_BACK, Head};
use crate::oci::{Digest, Verifier};
use crate::store::{self, Partial, Synced};

/// Written bytes after which the data is synced and the map brought up to date.
const SYNC_BYTES: u64 = 16 << 20;
/// Written bytes that the map does not name yet.
const UNSYNCED_MAX: u64 = 48 << 20;
/// Chunks between the two halves; hyper's are at most some hundred KiB each.
const CHUNKS_WAITING_MAX: usize = 4;
/// Buffer for hashing again what an earlier process had stored.
const REHASH_BYTES: usize = 1 << 20;

/// Takes what upstream sends, in order.
pub(super) struct Writer {
    flight: Arc<Flight>,
    partial: Partial,
    verifier: Verifier,
    have: u64,
    sync_began_at: u64,
    syncing: Option<JoinHandle<Synced>>,
    runtime: Handle,
}

/// What a writer leaves.
pub(super) struct Written {
    pub(super) partial: Partial,
    /// Of all that is there.
    pub(super) digest: Digest,
    pub(super) have: u64,
}

impl Writer {
    /// Starts the thread; it ends when the channel closes. Its handle yields what it wrote.
    pub(super) fn spawn(
        flight: &Arc<Flight>,
        partial: Partial,
    ) -> (mpsc::Sender<Bytes>, JoinHandle<Result<Written, store::Error>>) {
        let have = partial.have();
        // Small content is proven before its readers hear anything: a lie is then a clean error.
        if partial.total() > HOLD_BACK {
            flight.announce(Head { total: partial.total(), file: partial.file() }, have);
        }
        let writer = Self {
            flight: Arc::clone(flight),
            partial,
            verifier: Verifier::new(flight.digest.algorithm()),
            have,
            sync_began_at: have,
            syncing: None,
            runtime: Handle::current(),
        };
        let (sender, chunks) = mpsc::channel(CHUNKS_WAITING_MAX);
        (sender, tokio::task::spawn_blocking(move || writer.run(chunks)))
    }

    fn run(mut self, mut chunks: mpsc::Receiver<Bytes>) -> Result<Written, store::Error> {
        self.rehash()?;
        while let Some(chunk) = chunks.blocking_recv() {
            self.partial.write_at(self.have, &chunk)?;
            self.verifier.update(&chunk);
            self.have += chunk.len() as u64;
            // What has come at one time is announced at one time: each announcement wakes every reader.
            if chunks.is_empty() {
                self.flight.advance(self.have);
            }
            self.sync_behind()?;
        }
        self.end_sync()?;
        if self.have < self.partial.total() {
            self.partial.sync(self.have)?;
        }
        Ok(Written { partial: self.partial, digest: self.verifier.finish(), have: self.have })
    }

    /// Hashes what an earlier flight stored: it is trusted only as part of the whole.
    fn rehash(&mut self) -> Result<(), store::Error> {
        let mut buffer = vec![0; REHASH_BYTES];
        let mut at = 0;
        while at < self.have {
            let wanted = usize::try_from(self.have - at).map_or(REHASH_BYTES, |left| left.min(REHASH_BYTES));
            self.partial.read_at(at, &mut buffer[..wanted])?;
            self.verifier.update(&buffer[..wanted]);
            at += wanted as u64;
        }
        Ok(())
    }

    /// Begins to sync what is here, on another thread and one at a time: the transfer does not wait for it unless
    /// the disk is far behind.
    fn sync_behind(&mut self) -> Result<(), store::Error> {
        let is_far_behind = self.have - self.partial.have() >= UNSYNCED_MAX;
        if is_far_behind || self.syncing.as_ref().is_some_and(JoinHandle::is_finished) {
            self.end_sync()?;
        }
        if self.syncing.is_none() && self.have - self.sync_began_at >= SYNC_BYTES {
            self.sync_began_at = self.have;
            let sync = self.partial.begin_sync(self.have);
            self.syncing = Some(self.runtime.spawn_blocking(move || sync.run()));
        }
        Ok(())
    }

    /// Names what the last sync made durable.
    fn end_sync(&mut self) -> Result<(), store::Error> {
        let Some(syncing) = self.syncing.take() else { return Ok(()) };
        match self.runtime.block_on(syncing) {
            Ok(synced) => self.partial.end_sync(synced),
            // The runtime is going away: what is not named is asked again.
            Err(_) => Ok(()),
        }
    }
}
