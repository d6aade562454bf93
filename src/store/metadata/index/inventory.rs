//! What eviction asks: everything at once, by short names; and what it takes out.
//!
//! A short name is the first 16 bytes of a key: the algorithm, and 15 bytes of the hash, which no two digests
//! share. The trees are walked in the order of their keys, so short names come sorted.

use std::collections::HashSet;

use crate::clock::age;
use crate::oci::{Digest, Repo, Tag};
use crate::store::metadata::index::{Index, Part, first_number, key};
use crate::store::metadata::records::{ManifestRecord, TagRecord, decode};

/// A digest, as short as it can be told from all others.
pub(in crate::store) type Short = u128;

/// One blob as the index knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Known {
    pub(in crate::store) size: u64,
    pub(in crate::store) last_use: u64,
    pub(in crate::store) first_use: u64,
}

/// What some digests still mean to repositories.
#[derive(Debug, Default)]
pub(in crate::store) struct Mentions {
    pub(in crate::store) grants: Vec<(Repo, Digest)>,
    pub(in crate::store) tags: Vec<(Repo, Tag)>,
}

pub(in crate::store) fn short(digest: &Digest) -> Short {
    short_of_key(&key::digest(digest)).unwrap_or_default()
}

pub(in crate::store) fn short_of_key(key: &[u8]) -> Option<Short> {
    key.get(..16).and_then(|bytes| bytes.try_into().ok()).map(Short::from_be_bytes)
}

impl Known {
    /// A record as it stands; one of an earlier berth lacks the first use.
    pub(in crate::store) fn read(value: &[u8]) -> Self {
        let number = |at: usize| value.get(at..).map(first_number);
        let last_use = number(8).unwrap_or(0);
        let first_use = number(16).filter(|_| value.len() >= 24).unwrap_or(last_use);
        Self { size: first_number(value), last_use, first_use }
    }

    /// What is known after a use at `at`. No time that is noted lies ahead of `now`: of a use that was noted by a wrong
    /// clock it is known only that it has been.
    pub(in crate::store) fn used(old: Option<Self>, size: u64, at: u64, now: u64) -> Self {
        let at = at.min(now);
        let old = old.map(|old| old.believed(now));
        let last_use = old.map_or(at, |old| old.last_use.max(at));
        Self { size, last_use, first_use: old.map_or(at, |old| old.first_use) }
    }

    /// Whether a use was noted by a clock that was ahead.
    pub(in crate::store) fn is_ahead(self, now: u64) -> bool {
        [self.first_use, self.last_use].into_iter().any(|at| age(at, now).is_none())
    }

    /// The same with times that have been: a use at a time of the future counts as one of now.
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

impl Index {
    /// What is known of a blob.
    pub(in crate::store) fn known(&self, digest: &Digest) -> Option<Known> {
        self.with(|trees| trees.blob.get(key::digest(digest)))?.map(|value| Known::read(&value))
    }

    /// Shows every blob, sorted. Returns whether these were all.
    pub(in crate::store) fn each_blob(&self, show: &mut dyn FnMut(Short, Known)) -> bool {
        let done = self.with(|trees| {
            for item in &trees.blob {
                let (key, value) = item?;
                if let Some(short) = short_of_key(&key) {
                    show(short, Known::read(&value));
                }
            }
            Ok(())
        });
        done.is_some()
    }

    /// Puts times that have been in the place of those that a clock noted which was ahead: from `now` on these blobs
    /// age like all others.
    pub(in crate::store) fn put_uses(&self, blobs: &[Short], now: u64) {
        for digest in blobs.iter().filter_map(|short| self.long(*short)) {
            if let Some(known) = self.known(&digest) {
                self.put_blob(&digest, known.size, now);
            }
        }
    }

    /// The blob of a short name.
    pub(in crate::store) fn long(&self, short: Short) -> Option<Digest> {
        let found =
            self.with(|trees| trees.blob.scan_prefix(short.to_be_bytes()).keys().next().transpose())?;
        key::to_digest(&found?)
    }

    /// Notes what a manifest refers to, and what it claims that to weigh.
    pub(in crate::store) fn put_parts(&self, manifest: &Digest, claimed_bytes: u64, parts: &[Digest]) {
        let mut value = claimed_bytes.to_be_bytes().to_vec();
        value.extend(parts.iter().flat_map(|part| short(part).to_be_bytes()));
        self.change(|trees| trees.parts.insert(key::digest(manifest), value));
    }

    /// What a manifest refers to, if that has been noted.
    pub(in crate::store) fn parts(&self, manifest: &Digest) -> Option<Vec<Short>> {
        let value = self.with(|trees| trees.parts.get(key::digest(manifest)))??;
        Some(value.get(8..).unwrap_or_default().chunks_exact(16).filter_map(short_of_key).collect())
    }

    /// What a manifest claims its blobs to weigh, if that was noted.
    pub(in crate::store) fn claimed(&self, manifest: &Digest) -> Option<u64> {
        self.with(|trees| trees.parts.get(key::digest(manifest)))?.map(|value| first_number(&value))
    }

    /// Whether it is a manifest that refers to anything.
    pub(in crate::store) fn has_parts(&self, manifest: &Digest) -> bool {
        self.with(|trees| trees.parts.contains_key(key::digest(manifest))) == Some(true)
    }

    /// Shows what every manifest refers to and claims that to weigh, sorted. Returns whether these were all.
    pub(in crate::store) fn each_parts(&self, show: &mut dyn FnMut(Short, u64, &[Short])) -> bool {
        let mut parts = Vec::new();
        let done = self.with(|trees| {
            for item in &trees.parts {
                let (key, value) = item?;
                let Some(short) = short_of_key(&key) else { continue };
                parts.clear();
                parts.extend(value.get(8..).unwrap_or_default().chunks_exact(16).filter_map(short_of_key));
                show(short, first_number(&value), &parts);
            }
            Ok(())
        });
        done.is_some()
    }

    /// Shows which registries hold which digests, in the order of these. Returns whether these were all.
    pub(in crate::store) fn each_holding_of_all(&self, show: &mut dyn FnMut(&str, Short)) -> bool {
        let done = self.with(|trees| {
            for key in trees.holding.iter().keys() {
                let key = key?;
                if let (Some(registry), Some(name)) = (key::holder(&key), short_of_key(&key)) {
                    show(registry, name);
                }
            }
            Ok(())
        });
        done.is_some()
    }

    /// The manifests of which nobody has noted what they refer to, with their media types.
    pub(in crate::store) fn without_parts(&self) -> Option<Vec<(Digest, String)>> {
        let mut seen = HashSet::new();
        self.with(|trees| {
            let mut found = Vec::new();
            for item in &trees.manifest {
                let (key, value) = item?;
                let Some((_, digest)) = key::split(&key) else { continue };
                let is_news = !trees.parts.contains_key(digest)? && trees.blob.contains_key(digest)?;
                if is_news
                    && let Some(digest) = key::to_digest(digest)
                    && seen.insert(digest)
                    && let Some(record) = decode::<ManifestRecord>(&value)
                {
                    found.push((digest, record.media_type));
                }
            }
            Ok(found)
        })
    }

    /// Forgets what only the index says of these digests, which are gone.
    pub(in crate::store) fn forget(&self, gone: &HashSet<Digest>) {
        for digest in gone {
            let key = key::digest(digest);
            self.change(|trees| trees.parts.remove(&key));
            self.forget_holdings(&key);
        }
    }

    fn forget_holdings(&self, digest: &[u8]) {
        let keys = self.with(|trees| trees.holding.scan_prefix(digest).keys().collect::<Result<Vec<_>, _>>());
        for key in keys.unwrap_or_default() {
            self.take(Part::Holding, &key);
        }
    }

    /// What refs still say of digests that are gone.
    pub(in crate::store) fn mentions(&self, gone: &HashSet<Digest>) -> Mentions {
        let found = self.with(|trees| {
            let mut found = Mentions::default();
            for key in trees.grant.iter().keys() {
                let key = key?;
                let Some((repo, digest)) = key::split(&key) else { continue };
                if let Some(digest) = key::to_digest(digest).filter(|digest| gone.contains(digest)) {
                    found.grants.extend(key::to_repo(repo).map(|repo| (repo, digest)));
                }
            }
            for item in &trees.tag {
                let (key, value) = item?;
                let is_gone = decode::<TagRecord>(&value).is_some_and(|record| gone.contains(&record.digest));
                if let (true, Some((repo, _))) = (is_gone, key::split(&key)) {
                    found.tags.extend(key::to_repo(repo).zip(key::to_tag_name(&key)));
                }
            }
            Ok(found)
        });
        found.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn records_of_an_earlier_berth_are_read() {
        let known = Known { size: 7, last_use: 9, first_use: 8 };
        assert_eq!(Known::read(&known.write()), known);
        assert_eq!(Known::read(&known.write()[..16]), Known { first_use: 9, ..known });
        assert_eq!(Known::read(b""), Known { size: 0, last_use: 0, first_use: 0 });
    }

    #[test]
    fn a_use_at_a_time_of_the_future_counts_as_one_of_now() {
        const NOW: u64 = 1_000_000;
        let known = |first_use, last_use| Known { size: 7, last_use, first_use };
        let check = |old: Option<Known>, at: u64, expected: Known| {
            assert_eq!(Known::used(old, 7, at, NOW), expected, "{old:?} used at {at}");
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
    fn short_names_sort_as_keys_do_and_lead_back() {
        let folder = tempfile::tempdir().unwrap();
        let (index, _) = Index::open(&folder.path().join("index"), std::sync::Arc::default());
        let digests: Vec<Digest> = (0..100_u8)
            .flat_map(|number| Algorithm::ALL.map(|algorithm| Digest::of(algorithm, &[number])))
            .collect();
        for digest in &digests {
            index.put_blob(digest, 5, 3);
        }
        index.put_parts(&digests[0], 77, &digests[1..3]);
        let mut shown = Vec::new();
        assert!(index.each_blob(&mut |short, known| shown.push((short, known))));
        assert!(shown.is_sorted_by_key(|(short, _)| *short) && shown.len() == digests.len());
        for digest in &digests {
            assert_eq!(index.long(short(digest)), Some(*digest));
        }
        let mut parts = Vec::new();
        assert!(index.each_parts(&mut |short, bytes, of| parts.push((short, bytes, of.to_vec()))));
        assert_eq!(parts, [(short(&digests[0]), 77, vec![short(&digests[1]), short(&digests[2])])]);
        index.forget(&digests.iter().copied().collect());
        assert!(index.each_parts(&mut |_, _, _| panic!("forgotten")));
    }

    #[test]
    fn fuzzed_records_are_read_as_far_as_they_go() {
        let target =
            crate::fuzz::Target { name: "index-blob", words: &["\0", "\0\0\0\0\0\0\0\0", "\u{1}", "\u{7f}"] };
        target.holds(|input| {
            let known = Known::read(input);
            assert_eq!(Known::read(&known.write()), known);
            assert_eq!(short_of_key(input).is_some(), input.len() >= 16);
        });
    }
}
