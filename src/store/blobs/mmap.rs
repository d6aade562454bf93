//! Files of blobs mapped into memory, so that the kernel can send them without a copy through a buffer of ours.
//!
//! This is unsafe code (the only other in the store is in [`malloc`](crate::store::malloc)). The measured need: reading
//! into a buffer and sending from there moves every byte twice, and half of a hit's time was that copy
//! (`benches/run hot`).
//!
//! # Why this is sound
//! A mapping is handed out as [`Bytes`], a plain slice for anybody. Two things could break that promise:
//! - *The file changes.* What is mapped is under its digest: written by nobody once it has that name, with mode 0440,
//!   and removed rather than rewritten. A file that is still coming is mapped as well; of that, bytes are handed
//!   out once they are written, and what is written is not written again but with the same bytes of a blob asked
//!   twice. Whoever overwrites a file all the same makes a client's digest check fail, as it would with any other
//!   way to send it; no code of ours decides anything by these bytes.
//! - *The file is cut short, or the disk fails.* A touched page that is not there is SIGBUS, the end of the
//!   process, if it is touched by *our* code; the kernel, when it copies out of a mapping, answers EFAULT instead.
//!   So mapped bytes go to a plain socket and nowhere else: [`Mmap::bytes`] says so, and has one caller. TLS
//!   encrypts in our own code and reads files with `pread`.
//!
//! Nor may a page that is not in memory block a worker of the runtime: [`Mmap::is_resident`] asks before, and
//! [`Mmap::populate`], which waits for the disk on a thread that may, brings what is missing. It reports a
//! page that cannot be had as an error.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use rustix::param::page_size;

use crate::clock::unix_seconds;

/// Number of pages that one call to the kernel asks about: as many as fit on the stack.
const PAGES_ASKED_MAX: usize = 1024;

/// Bytes of a block. Of each block it is remembered when it was last in memory.
const BLOCK_BYTES: usize = 1 << 20;
/// Number of blocks whose records are allocated together, when the first of them is sent. So a kibibyte of file costs
/// less than a hundredth of a byte, and a size that is merely claimed costs next to nothing.
const BLOCKS_TOGETHER: usize = 1024;
/// Seconds for which a block counts as being in memory. Content that is sent again and again does not leave memory
/// within two seconds, and asking the kernel about each page took a fifth of the time of sending it.
const RESIDENT_FOR_SECONDS: u64 = 1;

/// A whole file, mapped into memory.
pub(in crate::store) struct Mmap {
    start: NonNull<u8>,
    bytes: Bytes,
    /// When each block was last found in memory, in seconds since 1970; [`BLOCKS_TOGETHER`] at a time.
    resident_at: Box<[OnceLock<Box<[AtomicU64]>>]>,
}

/// The mapped memory, which is unmapped when the last slice is gone.
struct Region {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a region is memory that nobody writes to, and that stays until it is dropped.
unsafe impl Send for Region {}
// SAFETY: as above; shared reading is all there is.
unsafe impl Sync for Region {}
// SAFETY: the pointer is that of the region that `bytes` keeps, and is only passed to the kernel.
unsafe impl Send for Mmap {}
// SAFETY: as above.
unsafe impl Sync for Mmap {}

impl AsRef<[u8]> for Region {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `start` and `len` are those of a successful `mmap`, which `Drop` undoes and nothing else. For
        // what may happen to the file, see the module's own account.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped with this address and length, once; the last slice is gone.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

impl Mmap {
    /// Maps the first `size` bytes of a file; `size` must not be zero.
    pub(in crate::store) fn of(file: &File, size: u64) -> io::Result<Self> {
        let len = usize::try_from(size).map_err(|_| io::ErrorKind::FileTooLarge)?;
        // SAFETY: a new mapping at a place of the kernel's choice touches nothing that is there.
        let start = unsafe { mmap(ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file, 0) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        let together = len.div_ceil(BLOCK_BYTES).div_ceil(BLOCKS_TOGETHER);
        let resident_at = (0..together).map(|_| OnceLock::new()).collect();
        Ok(Self { start, bytes: Bytes::from_owner(Region { start, len }), resident_at })
    }

    /// Returns bytes for a plain socket to send. No code may look at them: see the module.
    pub(in crate::store) fn bytes(&self, range: Range<usize>) -> Bytes {
        self.bytes.slice(range)
    }

    /// Returns where in the file a slice of [`Mmap::bytes`] begins; `None` for any other slice. It reads no byte of
    /// the slice.
    pub(in crate::store) fn offset_of(&self, slice: &[u8]) -> Option<usize> {
        let offset = slice.as_ptr().addr().checked_sub(self.start.addr().get())?;
        (offset.checked_add(slice.len())? <= self.bytes.len()).then_some(offset)
    }

    /// Whether every byte of `range` is in memory, or was a moment ago.
    pub(in crate::store) fn is_resident(&self, range: Range<usize>) -> bool {
        let (now, end) = (unix_seconds(), range.end.min(self.bytes.len()));
        let blocks = range.start / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
        blocks.into_iter().all(|block| {
            let Some(resident_at) = self.resident_at(block) else { return false };
            let is_remembered = now.checked_sub(resident_at.load(Ordering::Relaxed));
            if is_remembered.is_some_and(|age| age <= RESIDENT_FOR_SECONDS) {
                return true;
            }
            let whole = block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES;
            if self.ask_resident(whole.clone()) {
                resident_at.store(now, Ordering::Relaxed);
                return true;
            }
            self.ask_resident(whole.start.max(range.start)..whole.end.min(end))
        })
    }

    /// Notes that the whole blocks of `range` have just come into memory. So not every hit goes through the thread
    /// pool where `mincore` is forbidden, as in some sandboxes.
    fn remember(&self, range: &Range<usize>) {
        let blocks = self.bytes.len().div_ceil(BLOCK_BYTES);
        let end = if range.end >= self.bytes.len() { blocks } else { range.end / BLOCK_BYTES };
        for resident_at in (range.start.div_ceil(BLOCK_BYTES)..end).map_while(|block| self.resident_at(block))
        {
            resident_at.store(unix_seconds(), Ordering::Relaxed);
        }
    }

    fn resident_at(&self, block: usize) -> Option<&AtomicU64> {
        let first = block / BLOCKS_TOGETHER * BLOCKS_TOGETHER;
        let count = self.bytes.len().div_ceil(BLOCK_BYTES).saturating_sub(first).min(BLOCKS_TOGETHER);
        let some = || (0..count).map(|_| AtomicU64::new(0)).collect();
        self.resident_at.get(block / BLOCKS_TOGETHER)?.get_or_init(some).get(block - first)
    }

    /// Whether the kernel has every byte of `range` in memory now.
    fn ask_resident(&self, range: Range<usize>) -> bool {
        let (mut at, end) = (page_of(range.start), range.end.min(self.bytes.len()));
        let mut pages = [0_u8; PAGES_ASKED_MAX];
        while at < end {
            let len = (end - at).min(PAGES_ASKED_MAX * page_size());
            // SAFETY: `at..at + len` is within the mapping, and `pages` has a byte for each page of it.
            let answer =
                unsafe { libc::mincore(self.start.as_ptr().add(at).cast(), len, pages.as_mut_ptr()) };
            if answer != 0 || pages[..len.div_ceil(page_size())].iter().any(|page| page & 1 == 0) {
                return false;
            }
            at += len;
        }
        true
    }

    /// Brings `range` into memory, and waits for it. Returns false where this kernel has no such call.
    ///
    /// # Errors
    /// When the disk fails, or the file has become shorter.
    pub(in crate::store) fn populate(&self, range: Range<usize>) -> io::Result<bool> {
        let at = page_of(range.start);
        let len = range.end.min(self.bytes.len()).saturating_sub(at);
        // SAFETY: within the mapping; reading pages in changes nothing that anybody sees.
        let populated =
            unsafe { madvise(self.start.as_ptr().add(at).cast(), len, Advice::LinuxPopulateRead) };
        match populated {
            Ok(()) => {
                self.remember(&range);
                Ok(true)
            }
            Err(Errno::INVAL | Errno::NOSYS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Returns where the page of a byte begins, as system calls need it.
fn page_of(at: usize) -> usize {
    at / page_size() * page_size()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn mapped(content: &[u8]) -> (File, Mmap) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let mapping = Mmap::of(&file, content.len() as u64).unwrap();
        (file, mapping)
    }

    #[test]
    fn a_slice_outlives_the_mapping_it_is_from() {
        let content: Vec<u8> =
            (0..PAGES_ASKED_MAX * page_size() + 5000).map(|at| at.to_le_bytes()[1]).collect();
        let (_, mapping) = mapped(&content);
        assert!(mapping.populate(0..content.len()).unwrap());
        assert!(mapping.is_resident(0..content.len()) && mapping.is_resident(4097..4098));
        let slice = mapping.bytes(5000..content.len());
        assert_eq!((mapping.offset_of(&slice), mapping.offset_of(&slice[7..])), (Some(5000), Some(5007)));
        assert_eq!(mapping.offset_of(&content), None);
        drop(mapping);
        assert!(slice == content[5000..]);
    }

    #[test]
    fn the_size_of_a_file_costs_no_memory() {
        let file = tempfile::tempfile().unwrap();
        let size = 3 * (BLOCKS_TOGETHER * BLOCK_BYTES) + 5 * BLOCK_BYTES + 7;
        file.set_len(size as u64).unwrap();
        let mapping = Mmap::of(&file, size as u64).unwrap();
        let made =
            || mapping.resident_at.iter().filter_map(OnceLock::get).map(|some| some.len()).sum::<usize>();
        assert_eq!(made(), 0);
        assert!(mapping.populate(size - 5000..size).unwrap());
        assert!(mapping.is_resident(size - 4096..size));
        assert_eq!(made(), 6, "the last few blocks");
    }

    #[test]
    fn what_a_file_has_lost_is_not_resident_and_an_error_to_bring() {
        let (file, mapping) = mapped(&vec![7; 3 * page_size()]);
        file.set_len(page_size() as u64).unwrap();
        assert!(!mapping.is_resident(0..3 * page_size()));
        assert!(mapping.populate(0..page_size()).is_ok());
        assert_eq!(
            mapping.populate(0..3 * page_size()).unwrap_err().raw_os_error(),
            Some(Errno::FAULT.raw_os_error())
        );
    }
}
