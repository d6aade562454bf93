//! How much is in the trees, known without counting, and checked by counting in the background.
//!
//! sled may lose records without a word, and reading all of them takes seconds for every million: too long for a
//! start. So each record is counted as it comes and goes, the sums are noted when the index is closed, and after
//! every start [`audit`](crate::store::metadata::index::database::Database::audit) reads all records and compares. It
//! does so in small steps and in the order of the keys; what changes meanwhile at a key that it has passed changes
//! both sums, so the two agree to the record.

use std::sync::{Mutex, MutexGuard};

use crate::store::metadata::index::trees::{CountedTree, first_number};
use crate::sync::lock;

/// Bytes of an encoded sum.
const SUM_BYTES: usize = 16;

/// The number of records, and the bytes on disk that they stand for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Sum {
    pub records: u64,
    pub bytes: u64,
}

/// The sum of a tree, and the recount that is running, if one is.
#[derive(Debug, Default)]
pub(in crate::store) struct Tally {
    sum: Sum,
    recount: Option<Recount>,
}

#[derive(Debug, Default)]
struct Recount {
    /// The last key that the recount has read.
    reached: Vec<u8>,
    sum: Sum,
}

impl Sum {
    fn replace(&mut self, old: Option<u64>, new: Option<u64>) {
        if let Some(bytes) = old {
            // What is noted after an unclean stop may be behind, and so too small.
            self.records = self.records.saturating_sub(1);
            self.bytes = self.bytes.saturating_sub(bytes);
        }
        if let Some(bytes) = new {
            self.records += 1;
            self.bytes += bytes;
        }
    }

    fn to_bytes(self) -> [u8; SUM_BYTES] {
        (u128::from(self.records) << 64 | u128::from(self.bytes)).to_be_bytes()
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        Self { records: first_number(bytes), bytes: bytes.get(8..).map_or(0, first_number) }
    }
}

impl Tally {
    /// Notes that a record has come, gone or changed. `old` and `new` are the bytes that it stood and stands for.
    pub(in crate::store) fn replace(&mut self, key: &[u8], old: Option<u64>, new: Option<u64>) {
        self.sum.replace(old, new);
        if let Some(recount) = self.recount.as_mut().filter(|recount| key <= &*recount.reached) {
            recount.sum.replace(old, new);
        }
    }

    pub(in crate::store) fn sum(&self) -> Sum {
        self.sum
    }

    /// Begins a recount.
    pub(in crate::store) fn begin(&mut self) {
        self.recount = Some(Recount::default());
    }

    /// Counts one record of the recount.
    pub(in crate::store) fn count(&mut self, key: &[u8], bytes: u64) {
        if let Some(recount) = &mut self.recount {
            recount.sum.replace(None, Some(bytes));
            recount.reached.clear();
            recount.reached.extend_from_slice(key);
        }
    }

    /// Ends a recount without a result.
    pub(in crate::store) fn abandon(&mut self) {
        self.recount = None;
    }

    /// Returns the last key that the recount has read.
    pub(in crate::store) fn reached(&self) -> Option<&[u8]> {
        Some(&self.recount.as_ref()?.reached)
    }

    /// Ends a recount and takes its sum. Returns whether the sum before was right; `None` if there is no recount.
    pub(in crate::store) fn end(&mut self) -> Option<bool> {
        let counted = self.recount.take()?.sum;
        let was_right = counted == self.sum;
        self.sum = counted;
        Some(was_right)
    }
}

/// The tallies of all counted trees.
#[derive(Default)]
pub(in crate::store) struct Counters([Mutex<Tally>; CountedTree::ALL.len()]);

impl Counters {
    /// Locks the tally of a tree.
    pub(in crate::store) fn of(&self, tree: CountedTree) -> MutexGuard<'_, Tally> {
        lock(&self.0[tree as usize])
    }

    /// Encodes all sums, in the order of [`CountedTree::ALL`].
    pub(in crate::store) fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|tally| lock(tally).sum.to_bytes()).collect()
    }

    /// Replaces all sums by encoded ones.
    pub(in crate::store) fn set_sums(&self, sums: &[u8]) {
        for (at, tally) in self.0.iter().enumerate() {
            let sum = sums.chunks(SUM_BYTES).nth(at).map_or_else(Sum::default, Sum::from_bytes);
            *lock(tally) = Tally { sum, recount: None };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recount_agrees_whatever_changes_meanwhile() {
        let mut tally = Tally::default();
        tally.replace(b"b", None, Some(2));
        tally.replace(b"d", None, Some(4));
        tally.begin();
        tally.count(b"b", 2);
        // Behind what was counted, and before it.
        tally.replace(b"a", None, Some(1));
        tally.replace(b"b", Some(2), Some(20));
        tally.replace(b"c", None, Some(3));
        tally.replace(b"d", Some(4), None);
        tally.count(b"c", 3);
        assert_eq!(tally.end(), Some(true));
        assert_eq!(tally.sum, Sum { records: 3, bytes: 24 });
        tally.begin();
        tally.count(b"a", 1);
        assert_eq!((tally.end(), tally.end()), (Some(false), None));
        assert_eq!(tally.sum, Sum { records: 1, bytes: 1 });
        assert_eq!(Sum::from_bytes(&tally.sum.to_bytes()), tally.sum);
    }
}
