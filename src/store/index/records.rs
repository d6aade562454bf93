//! The records of the index: what is asked of each tree, and what is put there.
//!
//! The trees and their encodings are described in [`index`](super). Every question can be answered with "don't
//! know", and every change can be lost.

use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Entry, Index, Known, collect, first_number, key, raise};
use crate::oci::{Digest, Repo, Tag};
use crate::store::record::{ManifestRecord, TagRecord, decode, encode};
use crate::store::scrub::Round;

impl Index {
    /// Notes a blob, or another use of it.
    pub(in crate::store) fn put_blob(&self, digest: &Digest, size: u64, at: u64) {
        let key = key::digest(digest);
        let old = self.change(|trees| {
            let old = trees.blob.get(&key)?.map(|value| Known::read(&value));
            let first_use = old.map_or(at, |old| old.first_use);
            let last_use = old.map_or(at, |old| old.last_use.max(at));
            trees.blob.insert(&key, &Known { size, last_use, first_use }.write())
        });
        if let Some(old) = old {
            self.used_bytes.fetch_add(size, Ordering::Relaxed);
            self.forget_bytes(old.as_deref());
        }
    }

    pub(in crate::store) fn has_blob(&self, digest: &Digest) -> bool {
        self.blob_size(digest).is_some()
    }

    pub(in crate::store) fn blob_size(&self, digest: &Digest) -> Option<u64> {
        self.with(|trees| trees.blob.get(key::digest(digest)))?.map(|value| first_number(&value))
    }

    /// Whether `repo` is granted `digest`, and if so, publicly.
    pub(in crate::store) fn grant(&self, repo: &Repo, digest: &Digest) -> Option<bool> {
        self.with(|trees| trees.grant.get(key::repo_digest(repo, digest)))?.map(|value| *value == [1])
    }

    /// Whether any repository was given `digest` without a credential.
    pub(in crate::store) fn is_public(&self, digest: &Digest) -> bool {
        self.with(|trees| trees.public.contains_key(key::digest(digest))) == Some(true)
    }

    pub(in crate::store) fn put_grant(&self, repo: &Repo, digest: &Digest, public: bool) {
        self.change(|trees| {
            raise(&trees.grant, &key::repo_digest(repo, digest), public)?;
            raise(&trees.repo, &key::repo(repo), public)?;
            if public && !trees.public.contains_key(key::digest(digest))? {
                trees.public.insert(key::digest(digest), &[])?;
            }
            Ok(())
        });
    }

    pub(in crate::store) fn tag(&self, repo: &Repo, tag: &Tag) -> Option<TagRecord> {
        let (key, changes) = (key::tag(repo, tag.as_str()), self.recent.changes());
        let record = decode(&self.with(|trees| trees.tag.get(&key))??)?;
        self.recent.put(key, &record, changes);
        Some(record)
    }

    /// A tag's record, if it was read a moment ago and is the whole truth.
    pub(in crate::store) fn tag_at_hand(&self, repo: &Repo, tag: &Tag) -> Option<Arc<TagRecord>> {
        self.recent.get(&key::tag(repo, tag.as_str())).filter(|_| self.is_complete())
    }

    pub(in crate::store) fn put_tag(&self, repo: &Repo, tag: &Tag, record: &TagRecord) {
        let key = key::tag(repo, tag.as_str());
        self.change(|trees| {
            trees.tag.insert(&key, encode(record))?;
            raise(&trees.repo, &key::repo(repo), record.public)
        });
        self.recent.forget(&key);
    }

    /// Notes that upstream confirmed a tag; a record that meanwhile moved keeps what it moved to.
    pub(in crate::store) fn checked(&self, repo: &Repo, tag: &Tag, at: u64) {
        let note = |value: Option<&[u8]>| {
            let value = value?;
            let Some(mut record) = decode::<TagRecord>(value) else { return Some(value.to_vec()) };
            record.checked_at = record.checked_at.max(at);
            Some(encode(&record))
        };
        let key = key::tag(repo, tag.as_str());
        self.change(|trees| trees.tag.update_and_fetch(&key, note).map(drop));
        self.recent.forget(&key);
    }

    /// A page of tags in byte order; `None` if the list would not be the whole one.
    pub(in crate::store) fn tags(&self, repo: &Repo, after: Option<&str>, n: usize) -> Option<Vec<Tag>> {
        if !self.is_complete() {
            return None;
        }
        let mut from = key::tag(repo, after.unwrap_or_default());
        if after.is_some() {
            // The smallest key that is greater than `after` itself.
            from.push(0);
        }
        let prefix = key::prefix(repo);
        self.with(|trees| {
            let mut page = Vec::new();
            for item in trees.tag.range(from..) {
                let (found, _) = item?;
                if page.len() == n || !found.starts_with(&prefix) {
                    break;
                }
                page.extend(key::to_tag_name(&found));
            }
            Ok(page)
        })
    }

    pub(in crate::store) fn manifest(&self, repo: &Repo, digest: &Digest) -> Option<ManifestRecord> {
        decode(&self.with(|trees| trees.manifest.get(key::repo_digest(repo, digest)))??)
    }

    /// The record of a manifest that some repository has publicly.
    pub(in crate::store) fn public_manifest(&self, digest: &Digest) -> Option<ManifestRecord> {
        decode(&self.with(|trees| trees.public.get(key::digest(digest)))??)
    }

    pub(in crate::store) fn put_manifest(&self, repo: &Repo, digest: &Digest, record: &ManifestRecord) {
        self.put_grant(repo, digest, record.public);
        self.change(|trees| {
            if record.public {
                trees.public.insert(key::digest(digest), encode(record))?;
            }
            trees.manifest.insert(key::repo_digest(repo, digest), encode(record))
        });
    }

    pub(in crate::store) fn knows(&self, repo: &Repo) -> bool {
        self.with(|trees| trees.repo.contains_key(key::repo(repo))) == Some(true)
    }

    pub(in crate::store) fn put_repo(&self, repo: &Repo) {
        self.change(|trees| raise(&trees.repo, &key::repo(repo), false));
    }

    /// A page of repositories in byte order; `None` if the list would not be the whole one.
    pub(in crate::store) fn repositories(
        &self,
        after: Option<&Repo>,
        n: usize,
        private_too: bool,
    ) -> Option<Vec<Repo>> {
        if !self.is_complete() {
            return None;
        }
        let from = after.map(key::prefix).unwrap_or_default();
        self.with(|trees| {
            let mut page = Vec::new();
            for item in trees.repo.range(from..) {
                let (name, value) = item?;
                if page.len() == n {
                    break;
                }
                if private_too || *value == [1] {
                    page.extend(key::to_repo(&name));
                }
            }
            Ok(page)
        })
    }

    /// What a repository's `index.json` looked like when it was last in line with the refs.
    pub(in crate::store) fn layout(&self, repo: &Repo) -> Option<Vec<u8>> {
        Some(self.with(|trees| trees.layout.get(key::repo(repo)))??.to_vec())
    }

    pub(in crate::store) fn put_layout(&self, repo: &Repo, looks: &[u8]) {
        self.change(|trees| trees.layout.insert(key::repo(repo), looks));
    }

    /// A page of at most `n` blobs after `after`, in the order of their keys; `None` if there would be gaps.
    pub(in crate::store) fn blobs(&self, after: Option<&Digest>, n: usize) -> Option<Vec<Digest>> {
        if !self.is_complete() {
            return None;
        }
        let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(key::digest(after)));
        self.with(|trees| {
            let range = trees.blob.range((from, Bound::<Vec<u8>>::Unbounded)).take(n);
            range.map(|item| Ok(key::to_digest(&item?.0))).filter_map(Result::transpose).collect()
        })
    }

    /// How far the scrub is.
    pub(in crate::store) fn round(&self) -> Option<Round> {
        let value = self.with(|trees| trees.meta.get("scrub"))??;
        Some(Round { began_at: first_number(&value), at: key::to_digest(value.get(8..)?) })
    }

    /// Not a change of what the index says of the files: it stays closed in order if it was.
    pub(in crate::store) fn set_round(&self, round: Round) {
        let mut value = round.began_at.to_be_bytes().to_vec();
        value.extend(round.at.as_ref().map(key::digest).unwrap_or_default());
        self.with(|trees| trees.meta.insert("scrub", value));
    }

    /// Everything that the index says of which `is_there` disagrees.
    pub(in crate::store) fn missing(&self, is_there: &dyn Fn(&Entry) -> bool) -> Vec<Entry> {
        let missing = self.with(|trees| {
            let mut missing = Vec::new();
            let not_there = |entry: &Entry| !is_there(entry);
            let mut look = |tree, read| collect(tree, read, &not_there, &mut missing);
            look(&trees.blob, key::to_blob)?;
            look(&trees.tag, key::to_tag)?;
            look(&trees.manifest, key::to_manifest)?;
            look(&trees.grant, key::to_grant)?;
            // Last: what is in a repository that is gone has been found by now.
            look(&trees.repo, key::to_repository)?;
            Ok(missing)
        });
        missing.unwrap_or_default()
    }

    pub(in crate::store) fn remove(&self, entry: &Entry) {
        let old = self.change(|trees| match entry {
            Entry::Blob(digest) => trees.blob.remove(key::digest(digest)),
            Entry::Repo(repo) => trees.repo.remove(key::repo(repo)),
            Entry::Tag(repo, tag) => trees.tag.remove(key::tag(repo, tag.as_str())),
            Entry::Manifest(repo, digest) => trees.manifest.remove(key::repo_digest(repo, digest)),
            Entry::Grant(repo, digest) => trees.grant.remove(key::repo_digest(repo, digest)),
        });
        match (entry, old) {
            (Entry::Blob(_), Some(old)) => self.forget_bytes(old.as_deref()),
            (Entry::Tag(repo, tag), _) => self.recent.forget(&key::tag(repo, tag.as_str())),
            _ => {}
        }
    }

    fn forget_bytes(&self, blob: Option<&[u8]>) {
        self.used_bytes.fetch_sub(blob.map_or(0, first_number), Ordering::Relaxed);
    }
}
