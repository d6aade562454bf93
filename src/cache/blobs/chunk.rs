//! Chunks: pieces of a blob in memory, on their way to connections that copy them.
//!
//! The memory of a large chunk goes from one chunk to the next, of whatever reader: it is cleared once and not for
//! every chunk, which was a twentieth of the work of sending a blob over TLS. A reader that waits for its client holds
//! a small chunk, and the memory that no chunk uses is bounded ([`Spares`]).

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use crate::sync::lock;

/// Bytes that are read at once, if the connection takes as many.
const BYTES: usize = 256 * 1024;
/// Bytes that are read at once while few chunks are on their way: clients that wait for every chunk are woken half as
/// often, and that costs the sender more than the memory. Over TLS one client got a tenth more.
const BYTES_OF_FEW: usize = 512 * 1024;
/// Up to this many chunks are few.
const FEW_MAX: usize = 4;

/// How many bytes a connection takes at once, as it last said. Clones share the number.
#[derive(Clone, Debug)]
pub struct Room(Arc<AtomicUsize>);

impl Room {
    /// Bytes that are read for a connection however little it takes. Two such chunks, the one that is encrypted and the
    /// next, stay in memory while its client takes nothing.
    pub const BYTES_MIN: usize = 32 * 1024;

    /// The room of a connection that has not said yet how much it takes.
    #[must_use]
    pub fn unknown() -> Self {
        Self(Arc::new(AtomicUsize::new(0)))
    }

    /// The connection takes `bytes` now.
    pub fn set(&self, bytes: usize) {
        self.0.store(bytes, Ordering::Relaxed);
    }

    /// The connection has taken `bytes` of what it said.
    pub fn take(&self, bytes: usize) {
        // Only the connection changes it, and that does one thing at a time.
        self.set(self.0.load(Ordering::Relaxed).saturating_sub(bytes));
    }

    /// The number of bytes to give to the connection next.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed).clamp(Self::BYTES_MIN, BYTES_OF_FEW)
    }
}

/// How many bytes are read at once for a connection with this room; `None` if it takes anything.
pub(in crate::cache) fn bytes(room: Option<&Room>) -> u64 {
    let most = if PIECES.load(Ordering::Relaxed) <= FEW_MAX { BYTES_OF_FEW } else { BYTES };
    room.map_or(most, |room| room.bytes().min(most)) as u64
}

/// Chunks that are on their way.
static PIECES: AtomicUsize = AtomicUsize::new(0);

/// A chunk that is being read, and then on its way to the connection.
pub(in crate::cache) struct Chunk {
    memory: Vec<u8>,
    /// How many bytes of the memory count.
    len: usize,
}

impl Chunk {
    /// A chunk for `len` bytes.
    pub(in crate::cache) fn of(len: usize) -> Self {
        PIECES.fetch_add(1, Ordering::Relaxed);
        let spare = if len > Room::BYTES_MIN { lock(&SPARES).take(len) } else { None };
        Self { memory: spare.unwrap_or_else(|| vec![0; len]), len }
    }

    /// The memory to read the bytes into.
    pub(in crate::cache) fn room(&mut self) -> &mut [u8] {
        &mut self.memory[..self.len]
    }

    /// The first `len` bytes, which were read; or all, if there are fewer.
    pub(in crate::cache) fn into_bytes(mut self, len: usize) -> Bytes {
        self.len = self.len.min(len);
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        PIECES.fetch_sub(1, Ordering::Relaxed);
        if self.memory.len() > Room::BYTES_MIN {
            lock(&SPARES).keep(std::mem::take(&mut self.memory));
        }
    }
}

static SPARES: Mutex<Spares> = Mutex::new(Spares { memory: Vec::new(), bytes: 0 });

/// Memory of large chunks that were sent, for the next ones.
struct Spares {
    memory: Vec<Vec<u8>>,
    bytes: usize,
}

impl Spares {
    /// The most bytes that are kept for the next chunks: with more readers than that, some clear new memory.
    const BYTES_MAX: usize = 4 << 20;

    /// Memory for at least `len` bytes: what was used last, which may still be in the cache of the processor.
    fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        let at = self.memory.iter().rposition(|memory| memory.len() >= len)?;
        let memory = self.memory.remove(at);
        self.bytes -= memory.len();
        Some(memory)
    }

    fn keep(&mut self, memory: Vec<u8>) {
        if self.bytes + memory.len() <= Self::BYTES_MAX {
            self.bytes += memory.len();
            self.memory.push(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_given_what_it_takes_within_bounds() {
        let room = Room::unknown();
        for (said, given) in [(0, 32 << 10), (100_000, 100_000), (usize::MAX, 512 << 10)] {
            room.set(said);
            assert_eq!(room.clone().bytes(), given);
        }
        room.set(100_000);
        room.take(40_000);
        assert_eq!(room.bytes(), 60_000);
        room.take(70_000);
        assert_eq!(room.bytes(), Room::BYTES_MIN);
    }

    #[test]
    fn memory_is_used_again_and_what_nobody_uses_is_bounded() {
        let mut spares = Spares { memory: Vec::new(), bytes: 0 };
        for _ in 0..100 {
            spares.keep(vec![0; 100_000]);
        }
        assert_eq!(spares.memory.len(), Spares::BYTES_MAX / 100_000);
        spares.keep(vec![0; 10_000]);
        assert_eq!(spares.take(50_000).map(|memory| memory.len()), Some(100_000));
        assert!(spares.take(200_000).is_none());
        while spares.take(1).is_some() {}
        assert_eq!((spares.bytes, spares.memory.len()), (0, 0));
    }

    #[test]
    fn a_chunk_shows_only_what_was_read() {
        for len in [10, 100_000] {
            let mut chunk = Chunk::of(len);
            chunk.room().fill(7);
            assert_eq!(chunk.into_bytes(3), [7; 3][..]);
            let mut chunk = Chunk::of(len);
            chunk.room().fill(8);
            assert_eq!(chunk.into_bytes(usize::MAX), vec![8; len]);
        }
    }
}
