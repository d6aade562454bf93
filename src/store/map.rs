//! `partial/<algorithm>-<hex>.map`: how much of a partial file survives a power loss.
//!
//! Two records of 64 bytes, each at the start of its own 4 KiB page, written in turn:
//!
//! ```text
//! 0   8  "berthmap"
//! 8   8  sequence, big-endian; its lowest bit is the page
//! 16  8  size of the whole blob
//! 24  8  length of the prefix that is synced
//! 32 32  SHA-256 of the 32 bytes before
//! ```
//!
//! The newer record whose checksum holds is believed. A write that is torn by a power loss spoils the record
//! that was being written, and the one before it still stands. The caller syncs the data before the record
//! that names it is written. Why not a staged file and a rename: that is three syncs for each step, not one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::oci::{Algorithm, Digest};

const MAGIC: &[u8; 8] = b"berthmap";
const FIELDS_BYTES: usize = 32;
const RECORD_BYTES: usize = 64;
/// A page each, so that one write never touches the other record.
const PAGE_BYTES: u64 = 4096;

/// What a map says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Map {
    sequence: u64,
    /// Size of the whole blob.
    pub(super) total: u64,
    /// The bytes from the start that are synced.
    pub(super) prefix: u64,
}

impl Map {
    pub(super) fn new(total: u64) -> Self {
        Self { sequence: 0, total, prefix: 0 }
    }

    /// The newest record that is whole.
    pub(super) fn read(file: &File) -> Option<Self> {
        let records = [0, 1].map(|page| {
            let mut record = [0; RECORD_BYTES];
            file.read_exact_at(&mut record, page * PAGE_BYTES).ok()?;
            Self::decode(&record)
        });
        records.into_iter().flatten().max_by_key(|map| map.sequence)
    }

    /// Names a longer prefix, whose bytes are synced already, and syncs that.
    pub(super) fn advance(&mut self, file: &File, prefix: u64) -> io::Result<()> {
        let next = Self { sequence: self.sequence + 1, total: self.total, prefix };
        file.write_all_at(&next.encode(), (next.sequence & 1) * PAGE_BYTES)?;
        file.sync_data()?;
        *self = next;
        Ok(())
    }

    fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut record = [0; RECORD_BYTES];
        record[..8].copy_from_slice(MAGIC);
        record[8..16].copy_from_slice(&self.sequence.to_be_bytes());
        record[16..24].copy_from_slice(&self.total.to_be_bytes());
        record[24..32].copy_from_slice(&self.prefix.to_be_bytes());
        let checksum = Digest::of(Algorithm::Sha256, &record[..FIELDS_BYTES]);
        record[FIELDS_BYTES..].copy_from_slice(checksum.raw());
        record
    }

    fn decode(record: &[u8; RECORD_BYTES]) -> Option<Self> {
        let (fields, checksum) = record.split_at(FIELDS_BYTES);
        if !fields.starts_with(MAGIC) || Digest::of(Algorithm::Sha256, fields).raw() != checksum {
            return None;
        }
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&fields[at..at + 8]);
            u64::from_be_bytes(bytes)
        };
        let map = Self { sequence: number(8), total: number(16), prefix: number(24) };
        (map.prefix <= map.total).then_some(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_record_leaves_the_one_before_it() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(Map::read(&file), None, "empty");
        let mut map = Map::new(1000);
        map.advance(&file, 10).unwrap();
        assert_eq!(Map::read(&file), Some(map));
        map.advance(&file, 20).unwrap();
        let before = map;
        map.advance(&file, 30).unwrap();
        assert_eq!(Map::read(&file), Some(map));
        for torn_at in 0..RECORD_BYTES as u64 {
            let mut byte = [0];
            file.read_exact_at(&mut byte, PAGE_BYTES + torn_at).unwrap();
            file.write_all_at(&[byte[0] ^ 0x40], PAGE_BYTES + torn_at).unwrap();
            assert_eq!(Map::read(&file), Some(before), "byte {torn_at}");
            file.write_all_at(&byte, PAGE_BYTES + torn_at).unwrap();
        }
        assert_eq!(Map::read(&file), Some(map));
        file.set_len(PAGE_BYTES + 7).unwrap();
        assert_eq!(Map::read(&file), Some(before), "cut");
    }

    #[test]
    fn a_prefix_beyond_the_total_is_not_believed() {
        let absurd = Map { sequence: 1, total: 5, prefix: 6 };
        assert_eq!(Map::decode(&absurd.encode()), None);
    }
}
