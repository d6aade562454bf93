//! How much is in the trees, known without counting, and checked by counting behind.
//!
//! sled may lose records without a word, and reading all of them takes seconds for every million: too long for a
//! start. So each record is counted as it comes and goes, the sums are noted when the index is closed, and behind
//! every start [`Index::audit`] reads all there is and compares. It does so in small steps and in the order of the
//! keys; what changes meanwhile at a key that it has passed changes both sums, so the two agree to the record.

use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::store::metadata::index::{Index, Part, Tree, Trees, first_number, weight};
use crate::sync::lock;

/// Records read at a time: nobody else can put one into that tree meanwhile.
const STEP_RECORDS: usize = 500;
/// Of a sum as it is noted.
const SUM_BYTES: usize = 16;

/// How many records there are, and how many bytes they stand for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Sum {
    pub(in crate::store) records: u64,
    pub(in crate::store) bytes: u64,
}

/// The sum of a tree, and the recount that is under way.
#[derive(Debug, Default)]
pub(in crate::store) struct Tally {
    pub(in crate::store) sum: Sum,
    recount: Option<Recount>,
}

#[derive(Debug, Default)]
struct Recount {
    /// The last key that was counted.
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
    /// A record has come, gone or changed; numbers are the bytes that it stands for.
    pub(in crate::store) fn replace(&mut self, key: &[u8], old: Option<u64>, new: Option<u64>) {
        self.sum.replace(old, new);
        if let Some(recount) = self.recount.as_mut().filter(|recount| key <= &*recount.reached) {
            recount.sum.replace(old, new);
        }
    }

    fn begin(&mut self) {
        self.recount = Some(Recount::default());
    }

    fn count(&mut self, key: &[u8], bytes: u64) {
        if let Some(recount) = &mut self.recount {
            recount.sum.replace(None, Some(bytes));
            recount.reached.clear();
            recount.reached.extend_from_slice(key);
        }
    }

    /// Believes what was counted. Returns whether that is news, if it was counted to the end.
    fn end(&mut self) -> Option<bool> {
        let counted = self.recount.take()?.sum;
        let was_right = counted == self.sum;
        self.sum = counted;
        Some(was_right)
    }
}

impl Index {
    /// Reads every record once, so that what is broken breaks now, and brings the sums in line. Returns whether
    /// they were right, and so nothing was lost.
    pub(in crate::store) fn audit(&self, stop: &AtomicBool) -> bool {
        let mut was_right = true;
        for part in Part::ALL {
            was_right &= self.recount(part, stop) == Some(true);
        }
        let others = self.with(|trees| {
            for item in &trees.layout {
                item?;
            }
            Ok(())
        });
        was_right && others.is_some()
    }

    fn recount(&self, part: Part, stop: &AtomicBool) -> Option<bool> {
        let tally = &self.tallies[part as usize];
        lock(tally).begin();
        let mut reached = Vec::new();
        loop {
            let mut tally = lock(tally);
            let mut records = 0;
            let step = self.with(|trees| {
                let from = (Bound::Excluded(&*reached), Bound::Unbounded);
                for item in trees.of(part).range::<&[u8], _>(from).take(STEP_RECORDS) {
                    let (key, value) = item?;
                    tally.count(&key, weight(part, &value));
                    records += 1;
                }
                Ok(())
            });
            if step.is_none() || stop.load(Ordering::Relaxed) {
                tally.recount = None;
                return None;
            }
            if records < STEP_RECORDS {
                return tally.end();
            }
            reached.clone_from(&tally.recount.as_ref()?.reached);
        }
    }

    /// Notes the sums, for the next start.
    pub(in crate::store) fn note_sums(&self) {
        let sums: Vec<u8> = self.tallies.iter().flat_map(|tally| lock(tally).sum.to_bytes()).collect();
        self.with(|trees| trees.meta.insert("sums", sums));
    }

    /// Begins with these sums.
    pub(in crate::store) fn set_sums(&self, sums: &[u8]) {
        for (at, tally) in self.tallies.iter().enumerate() {
            let sum = sums.chunks(SUM_BYTES).nth(at).map_or_else(Sum::default, Sum::from_bytes);
            *lock(tally) = Tally { sum, recount: None };
        }
    }
}

impl Trees {
    pub(in crate::store) fn of(&self, part: Part) -> &Tree {
        match part {
            Part::Blob => &self.blob,
            Part::Grant => &self.grant,
            Part::Holding => &self.holding,
            Part::Tag => &self.tag,
            Part::Manifest => &self.manifest,
            Part::Repo => &self.repo,
            Part::Referrers => &self.referrers,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::oci::{Algorithm, Digest};

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

    #[test]
    fn lost_records_are_missed_once() {
        let folder = tempfile::tempdir().unwrap();
        let (index, _) = Index::open(&folder.path().join("index"), Arc::default());
        let go_on = AtomicBool::new(false);
        let digest = |number: u64| Digest::of(Algorithm::Sha256, &number.to_be_bytes());
        for number in 0..2 * STEP_RECORDS as u64 {
            index.put_blob(&digest(number), number, 0);
        }
        assert!(index.audit(&go_on));
        index
            .with(|trees| trees.blob.remove(crate::store::metadata::index::key::digest(&digest(700))))
            .unwrap();
        let before = index.used_bytes();
        assert!(!index.audit(&go_on));
        assert_eq!(index.used_bytes(), before - 700);
        assert!(index.audit(&go_on));
        assert!(!index.audit(&AtomicBool::new(true)), "not to the end");
    }
}
