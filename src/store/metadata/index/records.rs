//! The records of the index: what is asked of each tree, and what is put there.
//!
//! The trees and their encodings are described in [`index`](super). Every question can be answered with "don't
//! know", and every change can be lost.

use std::ops::Bound;
use std::sync::Arc;

use crate::clock::{later, unix_seconds};
use crate::oci::{Digest, Registry, Repo, Tag};
use crate::store::integrity::scrub::Round;
use crate::store::metadata::grants::{self, Holding, Holdings};
use crate::store::metadata::index::counters::Tally;
use crate::store::metadata::index::{
    Entry, Index, Known, Part, Tree, Trees, collect, first_number, key, weight,
};
use crate::store::metadata::records::{Grant, ManifestRecord, TagRecord, decode, encode};
use crate::sync::lock;

impl Index {
    /// Notes a blob, or another use of it.
    pub(in crate::store) fn put_blob(&self, digest: &Digest, size: u64, at: u64) {
        let key = key::digest(digest);
        let mut tally = lock(&self.tallies[Part::Blob as usize]);
        let old = self.with(|trees| trees.blob.get(&key)).flatten().map(|value| Known::read(&value));
        let value = Known::used(old, size, at, unix_seconds()).write();
        self.insert(Part::Blob, &mut tally, &key, &value);
    }

    pub(in crate::store) fn has_blob(&self, digest: &Digest) -> bool {
        self.blob_size(digest).is_some()
    }

    pub(in crate::store) fn blob_size(&self, digest: &Digest) -> Option<u64> {
        self.with(|trees| trees.blob.get(key::digest(digest)))?.map(|value| first_number(&value))
    }

    /// What `repo` is granted of `digest`.
    pub(in crate::store) fn grant(&self, repo: &Repo, digest: &Digest) -> Option<Grant> {
        decode(&self.with(|trees| trees.grant.get(key::repo_digest(repo, digest)))??)
    }

    /// What each registry holds of a digest.
    pub(in crate::store) fn holdings(&self, digest: &Digest) -> Option<Holdings> {
        let mut holdings = Holdings::new();
        self.each_holding(digest, &mut |registry, value| {
            let registry = registry.and_then(|registry| Registry::parse(registry).ok());
            holdings.extend(registry.zip(value.first().copied().map(Holding::from_byte)));
        })?;
        Some(holdings)
    }

    fn each_holding(&self, digest: &Digest, visit: &mut dyn FnMut(Option<&str>, &[u8])) -> Option<()> {
        let prefix = key::digest(digest);
        self.with(|trees| {
            for item in trees.holding.scan_prefix(&prefix) {
                let (key, value) = item?;
                visit(std::str::from_utf8(&key[prefix.len()..]).ok(), &value);
            }
            Ok(())
        })
    }

    /// Notes a grant, which is all that the repository's files say of the digest.
    pub(in crate::store) fn put_grant(&self, repo: &Repo, digest: &Digest, grant: Grant) {
        let value = encode(&grant);
        let is_news = |old: Option<&[u8]>| old != Some(&*value);
        self.put_if(Part::Grant, &key::repo_digest(repo, digest), &value, is_news);
        self.raise_repo(repo, grant.public);
        self.put_holding(repo, digest, Holding::of(grant), None);
    }

    /// Notes what a registry holds, and of what type a manifest is that it has publicly.
    fn put_holding(&self, of: &Repo, digest: &Digest, holding: Holding, public: Option<&ManifestRecord>) {
        let key = key::holding(digest, &of.registry);
        let mut tally = lock(&self.tallies[Part::Holding as usize]);
        let Some(old) = self.with(|trees| trees.holding.get(&key)) else { return };
        let (flags, record) = old.as_deref().and_then(|old| old.split_first()).unwrap_or((&0, &[]));
        let mut value = vec![Holding::from_byte(*flags).and(holding).byte()];
        match public {
            Some(public) => value.extend(encode(public)),
            None => value.extend_from_slice(record),
        }
        if old.as_deref() != Some(&*value) {
            self.insert(Part::Holding, &mut tally, &key, &value);
        }
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
        self.put(Part::Tag, &key, &encode(record));
        self.recent.forget(&key);
        self.raise_repo(repo, record.public);
    }

    /// Notes that upstream confirmed a tag; a record that meanwhile moved keeps what it moved to.
    pub(in crate::store) fn checked(&self, repo: &Repo, tag: &Tag, at: u64) {
        let note = |value: Option<&[u8]>| {
            let value = value?;
            let Some(mut record) = decode::<TagRecord>(value) else { return Some(value.to_vec()) };
            record.checked_at = later(record.checked_at, at, unix_seconds());
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
        let mut record = None;
        self.each_holding(digest, &mut |_, value| {
            record = record.take().or_else(|| decode(value.get(1..)?));
        })?;
        record
    }

    pub(in crate::store) fn put_manifest(&self, repo: &Repo, digest: &Digest, record: &ManifestRecord) {
        let grant = record.grant();
        let all = self.grant(repo, digest).map_or(grant, |old| grants::merged(old, grant));
        self.put_grant(repo, digest, all);
        if record.public {
            self.put_holding(repo, digest, Holding::of(grant), Some(record));
        }
        self.put(Part::Manifest, &key::repo_digest(repo, digest), &encode(record));
    }

    pub(in crate::store) fn knows(&self, repo: &Repo) -> bool {
        self.with(|trees| trees.repo.contains_key(key::repo(repo))) == Some(true)
    }

    pub(in crate::store) fn put_repo(&self, repo: &Repo) {
        self.raise_repo(repo, false);
    }

    /// Knows a repository, and that it has something public; that stays so once it is.
    fn raise_repo(&self, repo: &Repo, public: bool) {
        let is_less = |old: Option<&[u8]>| old.is_none_or(|old| public && old != [1]);
        self.put_if(Part::Repo, &key::repo(repo), &[u8::from(public)], is_less);
    }

    /// Notes a list of referrers of so many bytes, as a file has it.
    pub(in crate::store) fn put_referrers(&self, repo: &Repo, digest: &Digest, bytes: u64, fetched_at: u64) {
        let value = (u128::from(bytes) << 64 | u128::from(fetched_at)).to_be_bytes();
        self.put(Part::Referrers, &key::repo_digest(repo, digest), &value);
        self.put_repo(repo);
    }

    /// Whether a list of referrers is known, and of how many bytes.
    pub(in crate::store) fn referrers(&self, repo: &Repo, digest: &Digest) -> Option<u64> {
        let value = self.with(|trees| trees.referrers.get(key::repo_digest(repo, digest)))??;
        Some(first_number(&value))
    }

    /// The lists of referrers that a repository has: about what, of how many bytes, and when they were fetched.
    pub(in crate::store) fn referrers_of(&self, repo: &Repo) -> Vec<(Digest, u64, u64)> {
        let lists = self.with(|trees| {
            let mut lists = Vec::new();
            for item in trees.referrers.scan_prefix(key::prefix(repo)) {
                let (key, value) = item?;
                if let Some(Entry::Referrers(_, digest)) = key::to_referrers(&key) {
                    lists.push((digest, first_number(&value), value.get(8..).map_or(0, first_number)));
                }
            }
            Ok(lists)
        });
        lists.unwrap_or_default()
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

    /// Remembers across a restart that a repository's `index.json` has not followed its refs.
    pub(in crate::store) fn put_behind(&self, repo: &Repo) {
        self.change(|trees| trees.behind.insert(key::repo(repo), &[]));
    }

    /// The repositories that were remembered so; they are remembered no longer.
    pub(in crate::store) fn take_behind(&self) -> Vec<Repo> {
        let behind = self.with(|trees| {
            let names: Vec<_> = trees.behind.iter().keys().collect::<Result<_, _>>()?;
            trees.behind.clear()?;
            Ok(names)
        });
        behind.unwrap_or_default().iter().filter_map(|name| key::to_repo(name)).collect()
    }

    /// A repository's tags one by one, in byte order; `None` if they would not be all.
    pub(in crate::store) fn each_tag<E>(
        &self,
        repo: &Repo,
        visit: &mut dyn FnMut(Tag, TagRecord) -> Result<(), E>,
    ) -> Option<Result<(), E>> {
        let read = |key: &[u8], value: &[u8]| Some((key::to_tag_name(key)?, decode(value)?));
        self.each(
            repo,
            |trees| &trees.tag,
            |key, value| match read(key, value) {
                Some((tag, record)) => visit(tag, record),
                None => Ok(()),
            },
        )
    }

    /// A repository's manifests one by one, in the order of their digests; `None` if they would not be all.
    pub(in crate::store) fn each_manifest<E>(
        &self,
        repo: &Repo,
        visit: &mut dyn FnMut(Digest, ManifestRecord) -> Result<(), E>,
    ) -> Option<Result<(), E>> {
        let read = |key: &[u8], value: &[u8]| match key::to_manifest(key)? {
            Entry::Manifest(_, digest) => Some((digest, decode(value)?)),
            _ => None,
        };
        self.each(
            repo,
            |trees| &trees.manifest,
            |key, value| match read(key, value) {
                Some((digest, record)) => visit(digest, record),
                None => Ok(()),
            },
        )
    }

    fn each<E>(
        &self,
        repo: &Repo,
        tree: fn(&Trees) -> &Tree,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Option<Result<(), E>> {
        if !self.is_complete() {
            return None;
        }
        self.with(|trees| {
            for item in tree(trees).scan_prefix(key::prefix(repo)) {
                let (key, value) = item?;
                if let Err(error) = visit(&key, &value) {
                    return Ok(Err(error));
                }
            }
            Ok(Ok(()))
        })
    }

    /// How many repositories there are.
    pub(in crate::store) fn repo_count(&self) -> usize {
        self.with(|trees| Ok(trees.repo.len())).unwrap_or_default()
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
            look(&trees.referrers, key::to_referrers)?;
            // Last: what is in a repository that is gone has been found by now.
            look(&trees.repo, key::to_repository)?;
            Ok(missing)
        });
        missing.unwrap_or_default()
    }

    pub(in crate::store) fn remove(&self, entry: &Entry) {
        match entry {
            Entry::Blob(digest) => self.take(Part::Blob, &key::digest(digest)),
            Entry::Tag(repo, tag) => {
                let key = key::tag(repo, tag.as_str());
                self.take(Part::Tag, &key);
                self.recent.forget(&key);
            }
            Entry::Manifest(repo, digest) => self.take(Part::Manifest, &key::repo_digest(repo, digest)),
            Entry::Grant(repo, digest) => self.take(Part::Grant, &key::repo_digest(repo, digest)),
            Entry::Referrers(repo, digest) => self.take(Part::Referrers, &key::repo_digest(repo, digest)),
            Entry::Repo(repo) => self.take(Part::Repo, &key::repo(repo)),
        }
    }

    /// Puts a record, and counts it.
    fn put(&self, part: Part, key: &[u8], value: &[u8]) {
        let mut tally = lock(&self.tallies[part as usize]);
        self.insert(part, &mut tally, key, value);
    }

    /// Does so if it is to replace what is there. Nobody else changes that meanwhile.
    fn put_if(&self, part: Part, key: &[u8], value: &[u8], replaces: impl Fn(Option<&[u8]>) -> bool) {
        let mut tally = lock(&self.tallies[part as usize]);
        let old = self.with(|trees| trees.of(part).get(key));
        if old.is_some_and(|old| replaces(old.as_deref())) {
            self.insert(part, &mut tally, key, value);
        }
    }

    fn insert(&self, part: Part, tally: &mut Tally, key: &[u8], value: &[u8]) {
        if let Some(old) = self.change(|trees| trees.of(part).insert(key, value)) {
            tally.replace(key, old.map(|old| weight(part, &old)), Some(weight(part, value)));
        }
    }

    /// Removes a record, and counts that.
    pub(super) fn take(&self, part: Part, key: &[u8]) {
        let mut tally = lock(&self.tallies[part as usize]);
        if let Some(Some(old)) = self.change(|trees| trees.of(part).remove(key)) {
            tally.replace(key, Some(weight(part, &old)), None);
        }
    }
}
