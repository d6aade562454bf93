//! The index: what must be fast, derived from the files, and disposable. Only [`database`] names sled.
//!
//! | tree | key | value |
//! |---|---|---|
//! | `blob` | digest | size, last use, first use (three big-endian `u64`) |
//! | `repo` | `registry/name` | one byte: is anything of it public |
//! | `grant` | repo, NUL, digest | `Grant` |
//! | `holding` | digest, registry | one byte: what the grants of the registry's repositories come to; behind it the `ManifestRecord` of a public manifest |
//! | `tag` | repo, NUL, tag | `TagRecord` |
//! | `manifest` | repo, NUL, digest | `ManifestRecord` |
//! | `parts` | digest of a manifest | bytes that it claims (a big-endian `u64`), then what it refers to, by short names |
//! | `referrers` | repo, NUL, digest | bytes of the list, when it was fetched (two big-endian `u64`) |
//! | `layout` | repo | what its `index.json` looked like when it was last in line with the refs |
//! | `behind` | repo | empty: its `index.json` had not followed the refs when berth was stopped |
//! | `meta` | `version`, `clean`, `sums`, `scrub` | when it was closed in order, what there was in each tree then; when the scrub's round began, and the last digest it looked at |
//!
//! What the records stand for on disk is summed up as they come and go ([`counters`]): it counts towards the budget.
//!
//! A digest is one byte for the algorithm and the raw hash; records are JSON, as in the files.
//!
//! **No answer of the index is ever an error, only "don't know"** (`None`), for which the caller looks at the files: see
//! [`database`]. The first failure disables the index until it is rebuilt ([`rebuild`](crate::store::metadata::rebuild));
//! behind every start all records are read and counted ([`counters`]), so that what is broken breaks then, and what is
//! lost is missed; and a pass looks for what the files say and the index does not.

pub(in crate::store) mod blob_use;
mod counters;
pub(in crate::store) mod database;
mod guard;
pub(in crate::store) mod inventory;
pub(in crate::store) mod key;
mod records;
mod tag_cache;
mod trees;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::sync::Notify;

use crate::store::metadata::index::database::{Database, IndexState};
use crate::store::metadata::index::inventory::Inventory;
use crate::store::metadata::index::tag_cache::TagCache;
use crate::store::metadata::index::trees::{BLOCK_BYTES, CountedTree};

/// The index of the files: derived and disposable.
pub(in crate::store) struct Index {
    database: Database,
    tags: TagCache,
}

impl Index {
    /// Opens the index that is there, or an empty one instead, or none if even that fails: the files still answer.
    /// `failed` is notified when the index has failed, so that it is rebuilt.
    pub(in crate::store) fn open(folder: &Path, failed: Arc<Notify>) -> (Self, IndexState) {
        let (database, found) = Database::open(folder, failed);
        (Self { database, tags: TagCache::new() }, found)
    }

    /// Replaces the index by an empty one. Returns whether that was possible.
    pub(in crate::store) fn start_over(&self) -> bool {
        let is_there = self.database.start_over();
        self.tags.clear();
        is_there
    }

    pub(in crate::store) fn is_disabled(&self) -> bool {
        self.database.is_disabled()
    }

    /// Whether the index agrees with the files. False while it is rebuilt, and after an unclean stop until it is
    /// compared.
    pub(in crate::store) fn is_complete(&self) -> bool {
        self.database.is_complete()
    }

    /// Sets whether the index agrees with the files.
    pub(in crate::store) fn set_complete(&self, is_complete: bool) {
        self.database.set_complete(is_complete);
    }

    /// Flushes the index and marks it as closed in order at `at`, unless it has not been compared yet.
    pub(in crate::store) fn close(&self, at: u64) {
        self.database.close(at);
    }

    /// Reads every record once, so that broken ones are found now, and corrects the sums. Returns whether the sums
    /// were right, so that no record was lost.
    pub(in crate::store) fn audit(&self, stop: &AtomicBool) -> bool {
        self.database.audit(stop)
    }

    /// Writes the sums down for the next start.
    pub(in crate::store) fn note_sums(&self) {
        self.database.note_sums();
    }

    /// Returns a view for those who read all of the index.
    pub(in crate::store) fn inventory(&self) -> Inventory<'_> {
        Inventory::of(&self.database)
    }

    /// Returns the bytes of all blobs. After an unclean stop this is what was last noted, until the records are
    /// counted.
    pub(in crate::store) fn used_bytes(&self) -> u64 {
        self.database.sum(CountedTree::Blob).bytes
    }

    /// Returns the number of blobs, with the same reservation.
    pub(in crate::store) fn blob_count(&self) -> u64 {
        self.database.sum(CountedTree::Blob).records
    }

    /// Returns the bytes that blobs and refs take on disk, with the same reservation.
    pub(in crate::store) fn kept_bytes(&self) -> u64 {
        self.used_bytes() + self.blob_count() * BLOCK_BYTES + self.refs_bytes()
    }

    /// Returns the bytes that refs, lists and folders of repositories take, with the same reservation.
    pub(in crate::store) fn refs_bytes(&self) -> u64 {
        CountedTree::REFS.iter().map(|part| self.database.sum(*part).bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::oci::{Algorithm, Digest};
    use crate::store::metadata::index::blob_use::short;
    use crate::store::metadata::index::key::Fact;

    impl Index {
        /// As if sled had met garbage.
        pub(in crate::store) fn fail(&self) {
            self.database.fail();
        }
    }

    #[test]
    fn a_failed_index_knows_nothing_until_it_is_rebuilt() {
        let folder = tempfile::tempdir().unwrap();
        let (index, _) = Index::open(&folder.path().join("index"), Arc::default());
        let digest = Digest::of(Algorithm::Sha256, b"x");
        index.put_blob(&digest, 5, 0);
        index.put_blob(&digest, 7, 0);
        assert_eq!(index.used_bytes(), 7);
        index.remove(&Fact::Blob(digest));
        assert_eq!(index.used_bytes(), 0);
        index.put_blob(&digest, 7, 0);
        index.set_complete(true);
        assert!(index.has_blob(&digest) && index.is_complete());
        index.fail();
        assert!(!index.has_blob(&digest) && !index.is_complete() && index.is_disabled());
        assert!(index.start_over());
        assert!(!index.has_blob(&digest) && !index.is_complete());
        index.put_blob(&digest, 7, 0);
        assert!(index.has_blob(&digest));
    }

    #[test]
    fn without_a_place_for_an_index_there_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let in_the_way = folder.path().join("file");
        fs::File::create(&in_the_way).unwrap();
        let (index, found) = Index::open(&in_the_way.join("index"), Arc::default());
        assert!(matches!(found, IndexState::Fresh(_)) && index.is_disabled() && !index.start_over());
        assert_eq!(index.used_bytes(), 0);
    }

    #[test]
    fn short_names_sort_as_keys_do_and_lead_back() {
        let folder = tempfile::tempdir().unwrap();
        let (index, _) = Index::open(&folder.path().join("index"), Arc::default());
        let digests: Vec<Digest> = (0..100_u8)
            .flat_map(|number| Algorithm::ALL.map(|algorithm| Digest::of(algorithm, &[number])))
            .collect();
        for digest in &digests {
            index.put_blob(digest, 5, 3);
        }
        index.put_parts(&digests[0], 77, &digests[1..3]);
        let mut shown = Vec::new();
        assert!(index.inventory().each_blob(&mut |short, known| shown.push((short, known))));
        assert!(shown.is_sorted_by_key(|(short, _)| *short) && shown.len() == digests.len());
        for digest in &digests {
            assert_eq!(index.full_digest(short(digest)), Some(*digest));
        }
        let mut parts = Vec::new();
        assert!(index.inventory().each_parts(&mut |short, bytes, of| parts.push((
            short,
            bytes,
            of.to_vec()
        ))));
        assert_eq!(parts, [(short(&digests[0]), 77, vec![short(&digests[1]), short(&digests[2])])]);
        index.forget(&digests.iter().copied().collect());
        assert!(index.inventory().each_parts(&mut |_, _, _| panic!("forgotten")));
    }
}
