//! The bytes of a blob on their way to one client, from any source.
//!
//! Four sources have one type: a stored file, parts that earlier flights have left, a file that a flight is writing,
//! and, when the disk cannot take the blob or fails on the way, upstream itself. Memory per reader is a chunk, whatever
//! the size of the blob, and less where the kernel sends the file; no chunk is larger than what its client takes at
//! once. A failure after the head was sent is an error here and a cut connection at the client: no error text is ever
//! put into a body.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use rustix::io::{ReadWriteFlags, preadv2};

use super::chunk::{self, Chunk, Room};
use crate::cache::download::coverage::BytesRead;
use crate::cache::download::flight::{FlightReader, HOLD_BACK};
use crate::cache::error::Error;
use crate::cache::passthrough::{Passthrough, PassthroughStream};
use crate::context::Client;
use crate::oci::Digest;
use crate::oci::range::Span;
use crate::oci::ranges::Part;
use crate::store::{BlobFile, Mapped, PendingVerification, Resumable, Store};
use crate::telemetry::metrics::Source;
use crate::upstream::BLOB_BYTES_MAX;

/// Bytes that are sent at once from a mapped file.
const MAPPED_BYTES: u64 = 1 << 20;
/// Bytes that one client is sent in a row while others wait for their turn: with bytes from memory nothing else would
/// stop it.
const TURN_BYTES: u64 = 1 << 20;

/// A blob that can be read, and where it comes from.
pub struct Blob {
    /// The size of the whole in bytes; `None` while upstream has not said it.
    pub total: Option<u64>,
    /// Where it comes from.
    pub source: Source,
    from: From,
}

/// How the bytes of a file reach the connection.
#[derive(Clone, Debug)]
pub enum Way {
    /// Through a buffer, for a connection that looks at them: TLS encrypts. The room says how many at once.
    Copied(Room),
    /// From the page cache, by the kernel: for a plain socket, which does not look at them.
    Mapped,
}

enum From {
    Stored {
        file: BlobFile,
        suspect: Suspect,
        /// A verification of the file, whose result decides whether the end is sent.
        pending: Option<PendingVerification>,
    },
    /// A partial file that has all the bytes that are asked for, unverified.
    Partial(Arc<File>, BytesRead),
    Flight {
        reader: FlightReader,
        file: BlobFile,
        passthrough: Box<Passthrough>,
    },
    Passthrough(Box<PassthroughStream>),
}

/// What to report to the store if a stored file cannot be read.
struct Suspect {
    digest: Digest,
    store: Store,
}

impl Blob {
    pub(in crate::cache) fn stored(file: BlobFile, digest: &Digest, store: &Store) -> Self {
        let suspect = Suspect { digest: *digest, store: store.clone() };
        Self {
            total: Some(file.size),
            source: Source::Hit,
            from: From::Stored { file, suspect, pending: None },
        }
    }

    /// A blob that a flight brings. The `passthrough` is for a disk that fails before the end.
    pub(in crate::cache) fn from_flight(
        reader: FlightReader,
        file: BlobFile,
        source: Source,
        passthrough: Passthrough,
    ) -> Self {
        let (total, file) = match reader.known() {
            Some((total, whole)) => (Some(total), whole),
            None => (None, file),
        };
        Self { total, source, from: From::Flight { reader, file, passthrough: Box::new(passthrough) } }
    }

    /// A blob of which every byte that will be read is in a partial file.
    pub(in crate::cache) fn partial(left: Resumable, bytes_read: BytesRead) -> Self {
        Self { total: Some(left.total), source: Source::Hit, from: From::Partial(left.file, bytes_read) }
    }

    pub(in crate::cache) fn passthrough(direct: PassthroughStream) -> Self {
        Self { total: direct.total(), source: Source::Miss, from: From::Passthrough(Box::new(direct)) }
    }

    /// Whether every byte is on disk and verified.
    pub fn is_stored(&self) -> bool {
        matches!(self.from, From::Stored { .. })
    }

    /// Whether it passes through without being stored.
    pub fn is_direct(&self) -> bool {
        matches!(self.from, From::Passthrough(_))
    }

    /// Whether a fallback sends it, as far as that is known.
    pub fn is_of_fallback(&self) -> bool {
        match &self.from {
            From::Flight { reader, .. } => reader.has_fallback(),
            From::Passthrough(direct) => direct.is_of_fallback(),
            From::Stored { .. } | From::Partial(..) => false,
        }
    }

    /// Waits until the size is known. False if that turns out only at the end.
    pub async fn measure(&mut self) -> bool {
        if self.total.is_none()
            && let From::Flight { reader, file, .. } = &mut self.from
            && let Some((total, whole)) = reader.wait_for_total().await
        {
            (self.total, *file) = (Some(total), whole);
        }
        self.total.is_some()
    }

    /// Reads a part of it for `client`; the end of an open part waits until the whole is verified.
    pub fn read(self, part: Part, way: Way, client: Client) -> BlobReading {
        // A range with an end of its own is not the whole, even if it is all there is.
        let whole = (part.is_open && part.span.start == 0).then_some(client);
        self.choose_parts(std::slice::from_ref(&part));
        self.begin(part, way, whole)
    }

    /// Reads several parts of it; [`BlobReading::next_part`] begins with the first.
    pub fn read_parts(self, parts: Box<[Part]>, way: Way) -> BlobReading {
        let start = parts.first().map_or(0, |first| first.span.start);
        let nothing = Part { span: Span { start, end: start }, is_open: false };
        self.choose_parts(&parts);
        let mut reading = self.begin(nothing, way, None);
        reading.parts = parts;
        reading
    }

    /// Tells a flight which parts will be read.
    fn choose_parts(&self, parts: &[Part]) {
        if let From::Flight { reader, .. } = &self.from {
            reader.choose_parts(parts, self.total.unwrap_or(BLOB_BYTES_MAX));
        }
    }

    /// Begins to read `part`. `whole` is the client, if it reads all of the blob.
    fn begin(mut self, part: Part, way: Way, whole: Option<Client>) -> BlobReading {
        if let From::Stored { file, suspect, pending } = &mut self.from {
            *pending = suspect.store.begin_reading(&suspect.digest, file, whole);
        }
        let mapped = match (&self.from, &way) {
            // Without room for another mapping, reading still works. An empty file has no mapping.
            (From::Stored { file, .. } | From::Flight { file, .. }, Way::Mapped) if self.total.is_some() => {
                file.mapped().ok()
            }
            _ => None,
        };
        let room = match way {
            Way::Copied(room) => Some(room),
            Way::Mapped => None,
        };
        let Part { span: Span { start, end }, is_open: held } = part;
        let total = self.total.unwrap_or(u64::MAX);
        let end = end.min(total);
        let tally = match &self.from {
            From::Partial(_, bytes_read) => Some(bytes_read.clone()),
            From::Flight { reader, .. } if start > 0 || end < total => Some(reader.bytes_read()),
            From::Stored { .. } | From::Flight { .. } | From::Passthrough(_) => None,
        };
        let (parts, next) = (Box::default(), 0);
        BlobReading {
            from: self.from,
            mapped,
            start,
            position: start,
            end,
            held,
            parts,
            next,
            tally,
            in_a_row: 0,
            room,
        }
    }
}

/// A blob being read in order.
pub struct BlobReading {
    from: From,
    /// The mapping that its bytes are sent from, if the kernel sends them.
    mapped: Option<Mapped>,
    start: u64,
    position: u64,
    end: u64,
    held: bool,
    /// The parts that are read, if there are several, and the index of the next.
    parts: Box<[Part]>,
    next: usize,
    /// The account of what was read, if that is only a part of the content.
    tally: Option<BytesRead>,
    /// Bytes read since other clients had their turn.
    in_a_row: u64,
    /// How much the connection takes at once; `None` if it takes anything.
    room: Option<Room>,
}

impl BlobReading {
    /// The mapping that its bytes are sent from, if the kernel sends them.
    pub fn mapped(&self) -> Option<&Mapped> {
        self.mapped.as_ref()
    }

    /// Whether all of the current part has been read.
    pub fn is_done(&self) -> bool {
        self.position >= self.end
    }

    /// Goes on with the next part, if there is one.
    pub fn next_part(&mut self) -> Option<Part> {
        let part = *self.parts.get(self.next)?;
        self.note_read();
        let Part { span: Span { start, end }, is_open } = part;
        (self.start, self.position, self.end, self.held) = (start, start, end, is_open);
        if let From::Flight { reader, .. } = &self.from {
            reader.start_part(self.next, start);
        }
        self.next += 1;
        Some(part)
    }

    /// The next bytes, if they are in memory and can be sent from there.
    pub fn at_hand(&mut self) -> Option<Bytes> {
        self.mapped.as_ref()?;
        let there = match &mut self.from {
            From::Flight { reader, .. } => reader.readable_to(self.position, self.held),
            From::Stored { file, .. } if file.is_damaged() => return None,
            From::Stored { pending: Some(_), .. } => self.end.saturating_sub(HOLD_BACK),
            From::Stored { .. } | From::Partial(..) | From::Passthrough(_) => self.end,
        };
        self.mapped_up_to(there)
    }

    /// Whether other clients should have their turn before the next bytes. Once asked, it is false again for a while.
    pub fn is_turn_over(&mut self) -> bool {
        let is_over = self.in_a_row >= TURN_BYTES;
        if is_over {
            self.in_a_row = 0;
        }
        is_over
    }

    /// The next bytes of a mapped file that has the bytes before `there`, if they are in memory.
    fn mapped_up_to(&mut self, there: u64) -> Option<Bytes> {
        let bytes = self.mapped.as_ref()?.bytes(self.ahead(there)?)?;
        Some(self.count(bytes))
    }

    /// Where the next bytes are in the mapping; `None` if there are none.
    fn ahead(&self, there: u64) -> Option<Range<usize>> {
        let end = self.end.min(there).min(self.position + MAPPED_BYTES);
        let range = usize::try_from(self.position).ok()?..usize::try_from(end).ok()?;
        (!range.is_empty()).then_some(range)
    }

    /// Adds what was read of this part to the account.
    fn note_read(&self) {
        if let Some(tally) = &self.tally {
            tally.add(Span { start: self.start, end: self.position });
        }
    }

    fn count(&mut self, bytes: Bytes) -> Bytes {
        self.position += bytes.len() as u64;
        self.in_a_row += bytes.len() as u64;
        bytes
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// [`Error`], after which the body must be broken off.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let next = self.read_on().await;
        if let (Err(Error::Read(_)), From::Stored { suspect, .. }) = (&next, &self.from) {
            // This reader is lost. The next one must not be.
            suspect.store.suspect(&suspect.digest);
        }
        next
    }

    async fn read_on(&mut self) -> Result<Option<Bytes>, Error> {
        if self.is_done() {
            return Ok(None);
        }
        let there = self.wait().await?;
        if there == self.position {
            // It has just turned out that the content ends here.
            return Ok(None);
        }
        if let Some(bytes) = self.mapped_up_to(there) {
            return Ok(Some(bytes));
        }
        if let (Some(mapped), Some(range)) = (&self.mapped, self.ahead(there))
            && let Some(bytes) = bring(mapped.clone(), range).await?
        {
            return Ok(Some(self.count(bytes)));
        }
        let position = self.position;
        let len = chunk::bytes(self.room.as_ref()).min(there - position);
        let bytes = match &mut self.from {
            From::Stored { file, .. } | From::Flight { file, .. } => {
                read_at(file.clone(), position, len).await?
            }
            From::Partial(file, _) => read_at(Arc::clone(file), position, len).await?,
            From::Passthrough(direct) => {
                let part = Part { span: Span { start: position, end: self.end }, is_open: self.held };
                let bytes = direct.next(part, &self.parts[self.next..]).await?;
                return Ok(bytes.map(|bytes| self.count(bytes)));
            }
        };
        Ok(Some(self.count(bytes)))
    }

    /// Waits until there are further bytes, and returns the position up to which there are. Where the disk fails a
    /// flight, the rest comes from upstream.
    async fn wait(&mut self) -> Result<u64, Error> {
        let (reader, file, passthrough) = match &mut self.from {
            From::Flight { reader, file, passthrough } => (reader, file, passthrough),
            From::Stored { file, pending, .. } => {
                let before_end = self.end.saturating_sub(HOLD_BACK);
                if self.position >= before_end
                    && let Some(mut pending) = pending.take()
                {
                    pending.ended().await;
                }
                return match pending {
                    _ if file.is_damaged() => Err(Error::Damaged),
                    Some(_) => Ok(before_end),
                    None => Ok(self.end),
                };
            }
            From::Partial(..) | From::Passthrough(_) => return Ok(self.end),
        };
        let cause = match reader.wait_beyond(self.position, self.held).await {
            Err(Error::Store(cause)) => cause,
            there => return Ok(there?.min(self.end)),
        };
        passthrough.log_failure(&cause);
        let (passthrough, total) = (passthrough.as_ref().clone(), reader.total());
        let rest = if !self.held {
            passthrough.unverified_from(self.position, total).await?
        } else if reader.has(Span { start: 0, end: self.position }) {
            passthrough.verified_from(file.clone(), self.position, total).await?
        } else {
            passthrough.whole().await?
        };
        (self.from, self.mapped) = (From::Passthrough(Box::new(rest)), None);
        Ok(self.end)
    }
}

impl Drop for BlobReading {
    fn drop(&mut self) {
        self.note_read();
    }
}

/// Reads bytes of a mapped file that were not in memory, on a thread of the blocking pool.
async fn bring(mapped: Mapped, range: Range<usize>) -> Result<Option<Bytes>, Error> {
    in_pool(move || mapped.bring(range)).await
}

/// Reads some of the `len` bytes at `position`: at once those in memory, where nearly all bytes are that many clients
/// want. A page that must come from the disk would block a worker of the runtime, so it blocks a thread of the pool.
async fn read_at(file: impl AsRef<File> + Send + 'static, position: u64, len: u64) -> Result<Bytes, Error> {
    let mut chunk = Chunk::of(usize::try_from(len).expect("at most a chunk"));
    let in_memory =
        preadv2(file.as_ref(), &mut [IoSliceMut::new(chunk.room())], position, ReadWriteFlags::NOWAIT);
    if let Ok(count @ 1..) = in_memory {
        return Ok(chunk.into_bytes(count));
    }
    in_pool(move || {
        file.as_ref().read_exact_at(chunk.room(), position).map(|()| chunk.into_bytes(usize::MAX))
    })
    .await
}

async fn in_pool<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|_| Error::GivenUp)?;
    done.map_err(|error| Error::Read(Arc::new(error)))
}
