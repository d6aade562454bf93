//! What the index knows of a blob, and short digests.
//!
//! A short digest is the first 16 bytes of a key: the algorithm, and 15 bytes of the hash, which no two digests
//! share. The trees are walked in the order of their keys, so short digests come sorted.

use crate::clock::age;
use crate::oci::Digest;
use crate::store::metadata::index::key;
use crate::store::metadata::index::trees::first_number;

/// A digest, shortened to the bytes that tell it from all others.
pub(in crate::store) type ShortDigest = u128;

/// The size of a blob in bytes, and its first and last use in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct BlobUse {
    pub size: u64,
    pub last_use: u64,
    pub first_use: u64,
}

pub(in crate::store) fn short(digest: &Digest) -> ShortDigest {
    short_of_key(&key::digest(digest)).unwrap_or_default()
}

pub(in crate::store) fn short_of_key(key: &[u8]) -> Option<ShortDigest> {
    key.get(..16).and_then(|bytes| bytes.try_into().ok()).map(ShortDigest::from_be_bytes)
}

impl BlobUse {
    /// Reads a record. One of an earlier version lacks the first use.
    pub(in crate::store) fn read(value: &[u8]) -> Self {
        let number = |at: usize| value.get(at..).map(first_number);
        let last_use = number(8).unwrap_or(0);
        let first_use = number(16).filter(|_| value.len() >= 24).unwrap_or(last_use);
        Self { size: first_number(value), last_use, first_use }
    }

    /// Returns the record after a use at `at`. No time in it lies after `now`: of a use that a wrong clock has noted
    /// it is only known that it was.
    pub(in crate::store) fn used(old: Option<Self>, size: u64, at: u64, now: u64) -> Self {
        let at = at.min(now);
        let old = old.map(|old| old.believed(now));
        let last_use = old.map_or(at, |old| old.last_use.max(at));
        Self { size, last_use, first_use: old.map_or(at, |old| old.first_use) }
    }

    /// Whether a clock that was ahead has noted a use.
    pub(in crate::store) fn is_ahead(self, now: u64) -> bool {
        [self.first_use, self.last_use].into_iter().any(|at| age(at, now).is_none())
    }

    /// Returns the record with uses in the future replaced by uses at `now`.
    pub(in crate::store) fn believed(self, now: u64) -> Self {
        let last_use = self.last_use.min(now);
        Self { last_use, first_use: self.first_use.min(last_use), ..self }
    }

    pub(in crate::store) fn write(self) -> [u8; 24] {
        let mut value = [0; 24];
        value[..8].copy_from_slice(&self.size.to_be_bytes());
        value[8..16].copy_from_slice(&self.last_use.to_be_bytes());
        value[16..].copy_from_slice(&self.first_use.to_be_bytes());
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_an_earlier_berth_are_read() {
        let known = BlobUse { size: 7, last_use: 9, first_use: 8 };
        assert_eq!(BlobUse::read(&known.write()), known);
        assert_eq!(BlobUse::read(&known.write()[..16]), BlobUse { first_use: 9, ..known });
        assert_eq!(BlobUse::read(b""), BlobUse { size: 0, last_use: 0, first_use: 0 });
    }

    #[test]
    fn a_use_at_a_time_of_the_future_counts_as_one_of_now() {
        const NOW: u64 = 1_000_000;
        let known = |first_use, last_use| BlobUse { size: 7, last_use, first_use };
        let check = |old: Option<BlobUse>, at: u64, expected: BlobUse| {
            assert_eq!(BlobUse::used(old, 7, at, NOW), expected, "{old:?} used at {at}");
        };
        check(None, NOW, known(NOW, NOW));
        check(None, 5, known(5, 5));
        check(None, NOW + 999, known(NOW, NOW));
        check(Some(known(5, 9)), NOW, known(5, NOW));
        check(Some(known(5, 9)), 7, known(5, 9));
        check(Some(known(5, 9)), NOW + 999, known(5, NOW));
        check(Some(known(5, NOW + 999)), 7, known(5, NOW));
        check(Some(known(NOW + 500, NOW + 999)), NOW, known(NOW, NOW));
        for (first_use, last_use, is_ahead) in
            [(5, 9, false), (5, NOW + 60, false), (5, NOW + 61, true), (NOW + 61, 9, true)]
        {
            assert_eq!(known(first_use, last_use).is_ahead(NOW), is_ahead, "{first_use} {last_use}");
        }
    }

    #[test]
    fn fuzzed_records_are_read_as_far_as_they_go() {
        let target =
            crate::fuzz::Target { name: "index-blob", words: &["\0", "\0\0\0\0\0\0\0\0", "\u{1}", "\u{7f}"] };
        target.holds(|input| {
            let known = BlobUse::read(input);
            assert_eq!(BlobUse::read(&known.write()), known);
            assert_eq!(short_of_key(input).is_some(), input.len() >= 16);
        });
    }
}
