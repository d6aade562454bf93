//! The bytes of a blob on their way to one client, from wherever they are.
//!
//! Four sources, one type: a stored file, parts that earlier flights have left, a file that a flight is filling,
//! and, when the disk cannot take it, or fails on the way, upstream itself. Memory per reader is a chunk, whatever
//! the blob's size, and less where the kernel sends the file; no chunk is larger than what its client takes at once. A failure after the head was sent is an error here and
//! a cut connection at the client: no error text is ever put into a body.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use rustix::io::{ReadWriteFlags, preadv2};

use super::chunk::{self, Chunk, Room};
use crate::cache::download::coverage::Taken;
use crate::cache::download::flight::{HOLD_BACK, Reader};
use crate::cache::error::Error;
use crate::cache::passthrough::{Detour, Direct};
use crate::context::Client;
use crate::oci::Digest;
use crate::oci::range::Span;
use crate::oci::ranges::Part;
use crate::store::{BlobFile, Left, Mapped, Pending, Store};
use crate::telemetry::metrics::Source;
use crate::upstream::BLOB_BYTES_MAX;

/// Bytes sent at once from a mapped file.
const MAPPED_BYTES: u64 = 1 << 20;
/// Bytes that one client is sent in a row while others wait for their turn: from memory nothing else would stop it.
const TURN_BYTES: u64 = 1 << 20;

/// Content that can be read, and how it was come by.
pub struct Blob {
    /// Bytes of the whole; none as long as upstream has not said how long it is.
    pub total: Option<u64>,
    /// How it was come by.
    pub source: Source,
    from: From,
}

/// How bytes of a file come to the connection.
#[derive(Clone, Debug)]
pub enum Way {
    /// Through a buffer, for who looks at them: TLS encrypts. As many at once as there is room for.
    Copied(Room),
    /// From where the kernel has them: for a plain socket, which does not look.
    Mapped,
}

enum From {
    Stored {
        file: BlobFile,
        suspect: Suspect,
        /// A verification of the file, which decides whether the end is sent.
        pending: Option<Pending>,
    },
    /// Has the bytes that are asked for, unproven.
    Left(Arc<File>, Taken),
    Flight {
        reader: Reader,
        file: BlobFile,
        detour: Box<Detour>,
    },
    Direct(Box<Direct>),
}

/// Whom to tell if a stored file cannot be read.
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

    /// `detour` is for a disk that fails before the end.
    pub(in crate::cache) fn flying(reader: Reader, file: BlobFile, source: Source, detour: Detour) -> Self {
        let (total, file) = match reader.known() {
            Some((total, whole)) => (Some(total), whole),
            None => (None, file),
        };
        Self { total, source, from: From::Flight { reader, file, detour: Box::new(detour) } }
    }

    /// What is left has every byte that will be read.
    pub(in crate::cache) fn left(left: Left, taken: Taken) -> Self {
        Self { total: Some(left.total), source: Source::Hit, from: From::Left(left.file, taken) }
    }

    pub(in crate::cache) fn direct(direct: Direct) -> Self {
        Self { total: direct.total(), source: Source::Miss, from: From::Direct(Box::new(direct)) }
    }

    /// Whether every byte is on disk and proven.
    pub fn is_stored(&self) -> bool {
        matches!(self.from, From::Stored { .. })
    }

    /// Whether it passes through without being kept.
    pub fn is_direct(&self) -> bool {
        matches!(self.from, From::Direct(_))
    }

    /// Whether a fallback sends it, as far as that is known.
    pub fn is_of_fallback(&self) -> bool {
        match &self.from {
            From::Flight { reader, .. } => reader.is_by_fallback(),
            From::Direct(direct) => direct.is_of_fallback(),
            From::Stored { .. } | From::Left(..) => false,
        }
    }

    /// Waits until it is known how long it is. False if that turns out only when it has been read.
    pub async fn measure(&mut self) -> bool {
        if self.total.is_none()
            && let From::Flight { reader, file, .. } = &mut self.from
            && let Some((total, whole)) = reader.measured().await
        {
            (self.total, *file) = (Some(total), whole);
        }
        self.total.is_some()
    }

    /// A part of it, for `client`; the end of an open one waits until the whole is proven.
    pub fn read(self, part: Part, way: Way, client: Client) -> Reading {
        // A range that ends where it says is no whole, even if it is all there is.
        let whole = (part.is_open && part.span.start == 0).then_some(client);
        self.decide(std::slice::from_ref(&part));
        self.begin(part, way, whole)
    }

    /// Several parts of it, of which the first is yet to be begun with: see [`Reading::next_part`].
    pub fn read_parts(self, parts: Box<[Part]>, way: Way) -> Reading {
        let start = parts.first().map_or(0, |first| first.span.start);
        let nothing = Part { span: Span { start, end: start }, is_open: false };
        self.decide(&parts);
        let mut reading = self.begin(nothing, way, None);
        reading.parts = parts;
        reading
    }

    /// Tells a flight what will be read of it.
    fn decide(&self, parts: &[Part]) {
        if let From::Flight { reader, .. } = &self.from {
            reader.decide(parts, self.total.unwrap_or(BLOB_BYTES_MAX));
        }
    }

    /// `whole` says who reads it, if that is all of it.
    fn begin(mut self, part: Part, way: Way, whole: Option<Client>) -> Reading {
        if let From::Stored { file, suspect, pending } = &mut self.from {
            *pending = suspect.store.begin_reading(&suspect.digest, file, whole);
        }
        let mapped = match (&self.from, &way) {
            // Without room for another mapping, reading still works. There is none of nothing.
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
            From::Left(_, taken) => Some(taken.clone()),
            From::Flight { reader, .. } if start > 0 || end < total => Some(reader.taken()),
            From::Stored { .. } | From::Flight { .. } | From::Direct(_) => None,
        };
        let (parts, next) = (Box::default(), 0);
        Reading {
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
pub struct Reading {
    from: From,
    /// What its bytes are sent from, if the kernel does that.
    mapped: Option<Mapped>,
    start: u64,
    position: u64,
    end: u64,
    held: bool,
    /// What is read, if it is several parts, and the next of them.
    parts: Box<[Part]>,
    next: usize,
    /// Where it is counted what was read, if that is a part of the content.
    tally: Option<Taken>,
    /// Bytes read since others had their turn.
    in_a_row: u64,
    /// How much its connection takes at once; none if it takes anything.
    room: Option<Room>,
}

impl Reading {
    /// The file that its bytes are sent from, if that is so.
    pub fn mapped(&self) -> Option<&Mapped> {
        self.mapped.as_ref()
    }

    /// Whether all of its part has been read.
    pub fn is_done(&self) -> bool {
        self.position >= self.end
    }

    /// Goes on with the next part, if there is one.
    pub fn next_part(&mut self) -> Option<Part> {
        let part = *self.parts.get(self.next)?;
        self.note_taken();
        let Part { span: Span { start, end }, is_open } = part;
        (self.start, self.position, self.end, self.held) = (start, start, end, is_open);
        if let From::Flight { reader, .. } = &self.from {
            reader.turn_to(self.next, start);
        }
        self.next += 1;
        Some(part)
    }

    /// The next bytes, if they are in memory and can be sent from there.
    pub fn at_hand(&mut self) -> Option<Bytes> {
        self.mapped.as_ref()?;
        let there = match &mut self.from {
            From::Flight { reader, .. } => reader.there(self.position, self.held),
            From::Stored { file, .. } if file.is_damaged() => return None,
            From::Stored { pending: Some(_), .. } => self.end.saturating_sub(HOLD_BACK),
            From::Stored { .. } | From::Left(..) | From::Direct(_) => self.end,
        };
        self.mapped_up_to(there)
    }

    /// Whether others should have their turn before the next bytes; asked once, it is not so again for a while.
    pub fn is_turn_over(&mut self) -> bool {
        let is_over = self.in_a_row >= TURN_BYTES;
        if is_over {
            self.in_a_row = 0;
        }
        is_over
    }

    /// The next bytes of a mapped file, of which there is what lies before `there`, if they are in memory.
    fn mapped_up_to(&mut self, there: u64) -> Option<Bytes> {
        let bytes = self.mapped.as_ref()?.bytes(self.ahead(there)?)?;
        Some(self.taken(bytes))
    }

    /// Where the next bytes of a mapped file are; none if there are none.
    fn ahead(&self, there: u64) -> Option<Range<usize>> {
        let end = self.end.min(there).min(self.position + MAPPED_BYTES);
        let range = usize::try_from(self.position).ok()?..usize::try_from(end).ok()?;
        (!range.is_empty()).then_some(range)
    }

    /// Counts what was read of this part.
    fn note_taken(&self) {
        if let Some(tally) = &self.tally {
            tally.add(Span { start: self.start, end: self.position });
        }
    }

    fn taken(&mut self, bytes: Bytes) -> Bytes {
        self.position += bytes.len() as u64;
        self.in_a_row += bytes.len() as u64;
        bytes
    }

    /// The next bytes; none at the end.
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
            // So long it is, as has just turned out.
            return Ok(None);
        }
        if let Some(bytes) = self.mapped_up_to(there) {
            return Ok(Some(bytes));
        }
        if let (Some(mapped), Some(range)) = (&self.mapped, self.ahead(there))
            && let Some(bytes) = bring(mapped.clone(), range).await?
        {
            return Ok(Some(self.taken(bytes)));
        }
        let position = self.position;
        let len = chunk::bytes(self.room.as_ref()).min(there - position);
        let bytes = match &mut self.from {
            From::Stored { file, .. } | From::Flight { file, .. } => {
                read_at(file.clone(), position, len).await?
            }
            From::Left(file, _) => read_at(Arc::clone(file), position, len).await?,
            From::Direct(direct) => {
                let part = Part { span: Span { start: position, end: self.end }, is_open: self.held };
                let bytes = direct.next(part, &self.parts[self.next..]).await?;
                return Ok(bytes.map(|bytes| self.taken(bytes)));
            }
        };
        Ok(Some(self.taken(bytes)))
    }

    /// Waits until there are further bytes, and says up to where. Where the disk fails a flight, the rest comes
    /// from upstream.
    async fn wait(&mut self) -> Result<u64, Error> {
        let (reader, file, detour) = match &mut self.from {
            From::Flight { reader, file, detour } => (reader, file, detour),
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
            From::Left(..) | From::Direct(_) => return Ok(self.end),
        };
        let cause = match reader.beyond(self.position, self.held).await {
            Err(Error::Store(cause)) => cause,
            there => return Ok(there?.min(self.end)),
        };
        detour.say_why(&cause);
        let (detour, total) = (detour.as_ref().clone(), reader.total());
        let rest = if !self.held {
            detour.unproven(self.position, total).await?
        } else if reader.has(Span { start: 0, end: self.position }) {
            detour.rest(file.clone(), self.position, total).await?
        } else {
            detour.whole().await?
        };
        (self.from, self.mapped) = (From::Direct(Box::new(rest)), None);
        Ok(self.end)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.note_taken();
    }
}

/// Waits for bytes of a mapped file that were not in memory, on a thread of the pool.
async fn bring(mapped: Mapped, range: Range<usize>) -> Result<Option<Bytes>, Error> {
    in_pool(move || mapped.bring(range)).await
}

/// Reads some of the `len` bytes at `position`: at once what is in memory, as nearly all is that many want. A
/// page that must come from the disk would block a worker of the runtime, so it blocks a thread of the pool.
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
