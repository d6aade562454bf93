//! Bounded memories that take room as they fill.
//!
//! [`LruCache::new`] makes a table for as many entries as there may ever be: half a mebibyte for 16,384, and each entry in
//! it touches a page that nothing else is on. berth has many such memories, and nearly all of them stay nearly empty.

use std::hash::Hash;
use std::num::NonZeroUsize;

use lru::LruCache;

/// A memory of at most `max` entries, which forgets the least recently used one first.
pub fn lru<K: Hash + Eq, V>(max: NonZeroUsize) -> LruCache<K, V> {
    let mut cache = LruCache::unbounded();
    cache.resize(max);
    cache
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_holds_as_many_entries_as_it_may_and_no_more() {
        let max = NonZeroUsize::new(3).unwrap();
        let mut cache = lru(max);
        for number in 0..10 {
            cache.put(number, ());
        }
        assert_eq!((cache.cap(), cache.iter().map(|(number, ())| *number).collect()), (max, vec![9, 8, 7]));
    }
}
