//! The bytes of a blob on their way to one client, from wherever they are.
//!
//! Three sources, one type: a stored file, a file that a flight is filling, and, when the disk cannot take
//! it, or fails on the way, upstream itself. Memory per reader is a chunk, whatever the blob's size. A failure after the head was
//! sent is an error here and a cut connection at the client: no error text is ever put into a body.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustix::io::{ReadWriteFlags, preadv2};
use tracing::warn;

use super::direct::{Detour, Direct};
use super::error::Error;
use super::flight::{Head, Reader};
use crate::store::StoredBlob;
use crate::telemetry::metrics::Source;

/// Bytes read at once.
const CHUNK_BYTES: u64 = 256 * 1024;

/// Bytes that one client is sent in a row while others wait for their turn: from memory nothing else would stop it.
const TURN_BYTES: u64 = 1 << 20;

/// Content that can be read, and how it was come by.
pub struct Blob {
    /// Bytes of the whole.
    pub total: u64,
    /// How it was come by.
    pub source: Source,
    from: From,
}

enum From {
    Stored(Arc<File>),
    Flight { reader: Reader, file: Arc<File>, total: u64, detour: Box<Detour> },
    Direct(Box<Direct>),
}

impl Blob {
    pub(super) fn stored(blob: StoredBlob) -> Self {
        Self { total: blob.size, source: Source::Hit, from: From::Stored(blob.file) }
    }

    /// `detour` is for a disk that fails before the end.
    pub(super) fn flying(reader: Reader, head: Head, source: Source, detour: Detour) -> Self {
        let Head { total, file } = head;
        Self { total, source, from: From::Flight { reader, file, total, detour: Box::new(detour) } }
    }

    pub(super) fn direct(direct: Direct) -> Self {
        Self { total: direct.total(), source: Source::Miss, from: From::Direct(Box::new(direct)) }
    }

    /// Whether every byte is on disk and proven.
    pub fn is_stored(&self) -> bool {
        matches!(self.from, From::Stored(_))
    }

    /// Whether it passes through without being kept.
    pub fn is_direct(&self) -> bool {
        matches!(self.from, From::Direct(_))
    }

    /// The bytes from `start` up to `end`. `held`: those at the end of the content wait until the whole is
    /// proven.
    pub fn read(self, start: u64, end: u64, held: bool) -> Reading {
        Reading {
            from: self.from,
            position: start,
            end: end.min(self.total),
            held,
            in_a_row: 0,
            buffer: BytesMut::new(),
        }
    }
}

/// A blob being read in order.
pub struct Reading {
    from: From,
    position: u64,
    end: u64,
    held: bool,
    /// Bytes read since others had their turn.
    in_a_row: u64,
    /// Where chunks are read to: the same memory again and again, while each is sent before the next is read.
    buffer: BytesMut,
}

impl Reading {
    /// The next bytes; none at the end.
    ///
    /// # Errors
    /// [`Error`], after which the body must be broken off.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if self.position >= self.end {
            return Ok(None);
        }
        if let From::Flight { reader, file, total, detour } = &mut self.from
            && let Err(Error::Store(cause)) = reader.beyond(self.position, self.held).await
        {
            warn!(digest = %detour.digest, error = &*cause as &dyn std::error::Error, "the disk failed a transfer: its readers get the rest unstored");
            let rest = detour.as_ref().clone().rest(Arc::clone(file), self.position, *total).await?;
            self.from = From::Direct(Box::new(rest));
        }
        if self.in_a_row >= TURN_BYTES {
            self.in_a_row = 0;
            tokio::task::yield_now().await;
        }
        let (file, there) = match &mut self.from {
            From::Stored(file) => (Arc::clone(file), self.end),
            From::Flight { reader, file, .. } => {
                (Arc::clone(file), reader.beyond(self.position, self.held).await?)
            }
            From::Direct(direct) => {
                let bytes = direct.next(self.position, self.end, self.held).await?;
                self.position += bytes.len() as u64;
                return Ok(Some(bytes));
            }
        };
        let len = (there.min(self.end) - self.position).min(CHUNK_BYTES);
        let buffer = std::mem::take(&mut self.buffer);
        self.buffer = read_at(file, self.position, len, buffer).await?;
        let bytes = self.buffer.split().freeze();
        self.position += bytes.len() as u64;
        self.in_a_row += bytes.len() as u64;
        Ok(Some(bytes))
    }
}

/// Reads some of the `len` bytes at `position`: at once what is in memory, as nearly all is that many want. A
/// page that must come from the disk would block a worker of the runtime, so it blocks a thread of the pool.
async fn read_at(file: Arc<File>, position: u64, len: u64, mut buffer: BytesMut) -> Result<BytesMut, Error> {
    buffer.resize(usize::try_from(len).expect("at most a chunk"), 0);
    let in_memory = preadv2(&file, &mut [IoSliceMut::new(&mut buffer)], position, ReadWriteFlags::NOWAIT);
    if let Ok(count @ 1..) = in_memory {
        buffer.truncate(count);
        return Ok(buffer);
    }
    let read = move || file.read_exact_at(&mut buffer, position).map(|()| buffer);
    let read = tokio::task::spawn_blocking(read).await.map_err(|_| Error::GivenUp)?;
    read.map_err(|error| Error::Read(Arc::new(error)))
}
