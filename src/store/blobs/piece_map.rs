//! `partial/<registry>/<algorithm>-<hex>.map`: which bytes of a partial file survive a power loss.
//!
//! Two records, each in a page of 4 KiB of its own, written in turn:
//!
//! ```text
//! 0    8  "berthma3"
//! 8    8  sequence, big-endian; its lowest bit is the page
//! 16   8  size of the whole blob; all ones while upstream has not told it
//! 24  32  SHA-256 of the repository that all of it came for; zeros if for several
//! 56   1  1 if all of it came without a credential, and 2 if all of it came from parents, added up
//! 57   7  number of spans n
//! 64 16n  start and end of each span that is synced, in order
//!     32  SHA-256 of all before
//! ```
//!
//! The newer record whose checksum holds is believed. A write that is torn by a power loss spoils the record
//! that was being written, and the one before it still stands. The caller syncs the data before the record
//! that names it is written. Why not a staged file and a rename: that is three syncs for each step, not one.
//!
//! A record has room for [`SPANS_MAX`] spans. Of more the longest are named, and always the one at the start;
//! the others are merely asked for again after a crash.

use std::cmp::Reverse;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::oci::range::Span;
use crate::oci::{Algorithm, Digest, Repo, Speaker};
use crate::store::blobs::range_set::RangeSet;

const MAGIC: &[u8; 8] = b"berthma3";
const FIELDS_BYTES: usize = 64;
const SPAN_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 32;
/// Bytes of the page of each record, so that one write never touches the other record.
const PAGE_BYTES: usize = 4096;
/// Number of spans that fit into a record.
const SPANS_MAX: usize = (PAGE_BYTES - FIELDS_BYTES - CHECKSUM_BYTES) / SPAN_BYTES;

/// The repository for which bytes came and how they came, as far as a map tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Origin {
    repo: [u8; 32],
    /// Whether all of it came without a credential.
    is_public: bool,
    /// Whether all of it came from parents.
    is_by_parents: bool,
}

impl Origin {
    /// Stands for several repositories.
    const SEVERAL: [u8; 32] = [0; 32];

    /// Returns the origin of these bytes together with those of `other`.
    pub(in crate::store) fn and(self, other: Self) -> Self {
        Self {
            repo: if self.repo == other.repo { self.repo } else { Self::SEVERAL },
            is_public: self.is_public && other.is_public,
            is_by_parents: self.is_by_parents && other.is_by_parents,
        }
    }

    /// Whether all of it came for `repo`.
    pub(in crate::store) fn is_for(&self, repo: &Repo) -> bool {
        self.repo == name_of(repo)
    }

    /// Whether all of it came without a credential, so that every repository of the registry may read it.
    pub(in crate::store) fn is_public(&self) -> bool {
        self.is_public
    }

    /// Whether all of it came from parents.
    pub(in crate::store) fn is_by_parents(&self) -> bool {
        self.is_by_parents
    }

    /// Whether the transfer of `next` may continue with the bytes that are there. Bytes for another repository stay
    /// that repository's until the registry itself says otherwise, and a transfer that anybody may follow begins anew
    /// rather than with private bytes.
    pub(in crate::store) fn may_go_on(&self, next: &Next<'_>) -> bool {
        if next.is_public && !self.is_public {
            return false;
        }
        self.is_public
            || next.is_granted
            || self.is_for(next.repo)
            || match next.speaker {
                Speaker::Registry => true,
                Speaker::Parent => self.is_by_parents,
                Speaker::Fallback => false,
            }
    }

    fn flags(self) -> u8 {
        u8::from(self.is_public) | u8::from(self.is_by_parents) << 1
    }
}

/// A transfer that is about to begin.
#[derive(Clone, Copy, Debug)]
pub struct Next<'a> {
    /// The repository that it is for. Upstream has just said that it may have the content.
    pub repo: &'a Repo,
    /// Whether that repository has a grant already.
    pub is_granted: bool,
    /// Whether all of the content comes without a credential, and anybody may follow.
    pub is_public: bool,
    /// Whether only parents will send it.
    pub is_by_parents: bool,
    /// The server that has said so and sends the first bytes.
    pub speaker: Speaker,
}

impl Next<'_> {
    pub(in crate::store) fn origin(&self) -> Origin {
        let Self { is_public, is_by_parents, .. } = *self;
        Origin { repo: name_of(self.repo), is_public, is_by_parents }
    }
}

fn name_of(repo: &Repo) -> [u8; 32] {
    let digest = Digest::of(Algorithm::Sha256, repo.to_string().as_bytes());
    let mut name = [0; 32];
    name.copy_from_slice(digest.raw());
    name
}

/// Stands for a size that upstream has not told. The body then has no length, and its end is the end of the blob.
pub(in crate::store) const UNKNOWN: u64 = u64::MAX;

/// The content of a piece map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) struct PieceMap {
    sequence: u64,
    /// Size of the whole blob, or [`UNKNOWN`].
    total: u64,
    /// Where the bytes are from.
    origin: Origin,
    /// The bytes that are synced.
    pieces: RangeSet,
}

impl PieceMap {
    pub(in crate::store) fn new(total: u64, origin: Origin) -> Self {
        Self { sequence: 0, total, origin, pieces: RangeSet::default() }
    }

    /// Returns the size of the whole blob in bytes, or [`UNKNOWN`].
    pub(in crate::store) fn total(&self) -> u64 {
        self.total
    }

    /// Where the bytes are from.
    pub(in crate::store) fn origin(&self) -> Origin {
        self.origin
    }

    /// The bytes that are synced.
    pub(in crate::store) fn pieces(&self) -> &RangeSet {
        &self.pieces
    }

    /// Sets the size of the whole blob. It is written with the next record.
    pub(in crate::store) fn set_total(&mut self, total: u64) {
        self.total = total;
    }

    /// Sets the origin of the bytes. It is written with the next record.
    pub(in crate::store) fn set_origin(&mut self, origin: Origin) {
        self.origin = origin;
    }

    /// Reads the newest record that is whole.
    pub(in crate::store) fn read(file: &File) -> Option<Self> {
        let records = [0, 1].map(|page| {
            let mut record = Vec::with_capacity(PAGE_BYTES);
            read_page(file, page * PAGE_BYTES as u64, &mut record).ok()?;
            Self::decode(&record)
        });
        records.into_iter().flatten().max_by_key(|map| map.sequence)
    }

    /// Writes and syncs a record that names `pieces`, which are synced already.
    pub(in crate::store) fn advance(&mut self, file: &File, pieces: &RangeSet) -> io::Result<()> {
        let mut next = Self { sequence: self.sequence + 1, pieces: fitting(pieces), ..*self };
        let page = (next.sequence & 1) * PAGE_BYTES as u64;
        file.write_all_at(&next.encode(), page)?;
        file.sync_data()?;
        std::mem::swap(self, &mut next);
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let spans = self.pieces.spans();
        let mut record = Vec::with_capacity(FIELDS_BYTES + spans.len() * SPAN_BYTES + CHECKSUM_BYTES);
        record.extend_from_slice(MAGIC);
        record.extend_from_slice(&self.sequence.to_be_bytes());
        record.extend_from_slice(&self.total.to_be_bytes());
        record.extend_from_slice(&self.origin.repo);
        record.push(self.origin.flags());
        record.extend_from_slice(&(spans.len() as u64).to_be_bytes()[1..]);
        for span in spans {
            record.extend_from_slice(&span.start.to_be_bytes());
            record.extend_from_slice(&span.end.to_be_bytes());
        }
        let checksum = Digest::of(Algorithm::Sha256, &record);
        record.extend_from_slice(checksum.raw());
        record
    }

    fn decode(page: &[u8]) -> Option<Self> {
        let number = |at: usize| {
            let bytes = page.get(at..at + 8)?;
            Some(u64::from_be_bytes(bytes.try_into().ok()?))
        };
        let (flags, count) = (*page.get(56)?, number(56)? & (u64::MAX >> 8));
        let count = usize::try_from(count).ok().filter(|count| *count <= SPANS_MAX)?;
        let fields = page.get(..FIELDS_BYTES + count * SPAN_BYTES)?;
        let checksum = page.get(fields.len()..fields.len() + CHECKSUM_BYTES)?;
        if !fields.starts_with(MAGIC) || Digest::of(Algorithm::Sha256, fields).raw() != checksum {
            return None;
        }
        let total = number(16)?;
        let mut pieces = RangeSet::default();
        for at in (FIELDS_BYTES..fields.len()).step_by(SPAN_BYTES) {
            let span = Span { start: number(at)?, end: number(at + 8)? };
            if span.start >= span.end || span.end > total {
                return None;
            }
            pieces.insert(span);
        }
        let repo = page.get(24..56)?.try_into().ok()?;
        let origin = Origin { repo, is_public: flags & 1 != 0, is_by_parents: flags & 2 != 0 };
        Some(Self { sequence: number(8)?, total, origin, pieces })
    }
}

/// Reads as much of a page as the file has.
fn read_page(file: &File, at: u64, page: &mut Vec<u8>) -> io::Result<()> {
    page.resize(PAGE_BYTES, 0);
    let mut len = 0;
    while len < PAGE_BYTES {
        match file.read_at(&mut page[len..], at + len as u64)? {
            0 => break,
            count => len += count,
        }
    }
    page.truncate(len);
    Ok(())
}

/// Returns the spans that a record has room for.
fn fitting(pieces: &RangeSet) -> RangeSet {
    if pieces.spans().len() <= SPANS_MAX {
        return pieces.clone();
    }
    let mut spans = pieces.spans().to_vec();
    spans.sort_by_key(|span| (span.start > 0, Reverse(span.len())));
    let mut fitting = RangeSet::default();
    spans.into_iter().take(SPANS_MAX).for_each(|span| fitting.insert(span));
    fitting
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Origin = Origin { repo: [7; 32], is_public: true, is_by_parents: false };

    fn pieces(spans: &[(u64, u64)]) -> RangeSet {
        let mut pieces = RangeSet::default();
        spans.iter().for_each(|(start, end)| pieces.insert(Span { start: *start, end: *end }));
        pieces
    }

    #[test]
    fn a_torn_record_leaves_the_one_before_it() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(PieceMap::read(&file), None, "empty");
        let mut map = PieceMap::new(1000, ORIGIN);
        map.advance(&file, &pieces(&[(0, 10)])).unwrap();
        assert_eq!(PieceMap::read(&file), Some(map.clone()));
        map.advance(&file, &pieces(&[(0, 20), (500, 1000)])).unwrap();
        let before = map.clone();
        map.advance(&file, &pieces(&[(0, 30), (400, 1000)])).unwrap();
        assert_eq!(PieceMap::read(&file), Some(map.clone()));
        let page = PAGE_BYTES as u64;
        let record_bytes = map.encode().len() as u64;
        for torn_at in 0..record_bytes {
            let mut byte = [0];
            file.read_exact_at(&mut byte, page + torn_at).unwrap();
            file.write_all_at(&[byte[0] ^ 0x40], page + torn_at).unwrap();
            assert_eq!(PieceMap::read(&file), Some(before.clone()), "byte {torn_at}");
            file.write_all_at(&byte, page + torn_at).unwrap();
        }
        assert_eq!(PieceMap::read(&file), Some(map));
        for length in [page + 7, page + FIELDS_BYTES as u64, page + record_bytes - 1] {
            file.set_len(length).unwrap();
            assert_eq!(PieceMap::read(&file), Some(before.clone()), "cut at {length}");
        }
    }

    #[test]
    fn a_piece_beyond_the_total_is_not_believed() {
        for spans in [&[(0, 6)][..], &[(0, 1), (3, 6)]] {
            let absurd = PieceMap { sequence: 1, total: 5, origin: ORIGIN, pieces: pieces(spans) };
            assert_eq!(PieceMap::decode(&absurd.encode()), None);
        }
    }

    #[test]
    fn of_too_many_pieces_the_start_and_the_longest_are_named() {
        let many: Vec<_> = (0..1000).map(|n| (n * 100, n * 100 + 1 + n % 50)).collect();
        let file = tempfile::tempfile().unwrap();
        let mut map = PieceMap::new(100_000, ORIGIN);
        map.advance(&file, &pieces(&many)).unwrap();
        let named = PieceMap::read(&file).unwrap().pieces;
        assert_eq!(named.spans().len(), SPANS_MAX);
        assert!(named.contains(Span { start: 0, end: 1 }));
        assert!(named.spans().iter().all(|span| span.start == 0 || span.len() > 30));
        map.advance(&file, &pieces(&[(0, 100_000)])).unwrap();
        assert_eq!(PieceMap::read(&file).unwrap().pieces, RangeSet::prefix(100_000));
        assert_eq!(file.metadata().unwrap().len(), 2 * PAGE_BYTES as u64);
    }

    #[test]
    fn fuzzed_records_name_bytes_in_order_and_within_the_blob() {
        let target = crate::fuzz::Target {
            name: "map",
            words: &["berthma2", "\0\0\0\0\0\0\0\0", "\0\0\0\0\0\0\0\u{1}", "\u{7f}"],
        };
        target.holds(|input| {
            // Once as it is, and once as somebody would write it who can count a checksum.
            let count = input.get(56..64).map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap()));
            let len = usize::try_from(count)
                .ok()
                .and_then(|count| count.checked_mul(SPAN_BYTES)?.checked_add(FIELDS_BYTES));
            let fields = &input[..len.unwrap_or(usize::MAX).min(input.len())];
            let signed = [fields, Digest::of(Algorithm::Sha256, fields).raw()].concat();
            for page in [input, &signed] {
                let (peak, map) = crate::fuzz::peak(|| PieceMap::decode(page));
                assert!(peak <= 4 * PAGE_BYTES, "{peak}");
                let Some(map) = map else { continue };
                let spans = map.pieces.spans();
                assert!(spans.iter().all(|span| span.start < span.end && span.end <= map.total));
                assert!(spans.windows(2).all(|two| two[0].end < two[1].start), "{spans:?}");
                assert_eq!(PieceMap::decode(&map.encode()), Some(map));
            }
        });
    }
}
