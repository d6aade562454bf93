//! Tag records that were read a moment ago: most requests for a tag are for one of few.
//!
//! A record is put in after it was read from the database, unless a change came in between, and removed after every
//! change: so none stays that is older than the database.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use lru::LruCache;

use crate::bounded;
use crate::store::metadata::records::TagRecord;
use crate::sync::lock;

/// Number of records in the cache, which take some two megabytes.
const RECORDS_MAX: usize = 8192;

pub(in crate::store) struct TagCache(Mutex<Records>);

struct Records {
    by_key: LruCache<Vec<u8>, Arc<TagRecord>>,
    /// The number of changes so far.
    changes: u64,
}

impl TagCache {
    pub(in crate::store) fn new() -> Self {
        let room = NonZeroUsize::new(RECORDS_MAX).expect("not zero");
        Self(Mutex::new(Records { by_key: bounded::lru(room), changes: 0 }))
    }

    pub(in crate::store) fn get(&self, key: &[u8]) -> Option<Arc<TagRecord>> {
        lock(&self.0).by_key.get(key).cloned()
    }

    /// Returns the number of changes. It is read before a record that is then put in.
    pub(in crate::store) fn changes(&self) -> u64 {
        lock(&self.0).changes
    }

    /// Puts in a record that was read after `changes`, unless anything changed since.
    pub(in crate::store) fn put(&self, key: Vec<u8>, record: &TagRecord, changes: u64) {
        let mut records = lock(&self.0);
        if records.changes == changes {
            records.by_key.put(key, Arc::new(record.clone()));
        }
    }

    /// Removes the record of `key`, which has changed.
    pub(in crate::store) fn forget(&self, key: &[u8]) {
        let mut records = lock(&self.0);
        records.changes += 1;
        records.by_key.pop(key);
    }

    /// Removes all records, any of which may have changed.
    pub(in crate::store) fn clear(&self) {
        let mut records = lock(&self.0);
        records.changes += 1;
        records.by_key.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, Digest};

    #[test]
    fn what_changed_while_it_was_read_is_not_put_in() {
        let recent = TagCache::new();
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let text = format!(r#"{{"digest":"{digest}","media_type":"a/b","size":1}}"#);
        let record: TagRecord = serde_json::from_str(&text).unwrap();
        let before = recent.changes();
        recent.forget(b"other");
        recent.put(b"key".to_vec(), &record, before);
        assert_eq!(recent.get(b"key"), None);
        recent.put(b"key".to_vec(), &record, recent.changes());
        assert_eq!(recent.get(b"key").as_deref(), Some(&record));
        recent.forget(b"key");
        assert_eq!(recent.get(b"key"), None);
    }
}
