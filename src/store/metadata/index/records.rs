//! The records of the index: what is asked of each tree, and what is put there.
//!
//! The trees and their encodings are described in [`index`](crate::store::metadata::index). Every question can be answered
//! with "don't know", and every change can be lost.

use std::collections::HashSet;
use std::ops::Bound;
use std::sync::Arc;

use crate::clock::{later, unix_seconds};
use crate::oci::{Digest, Registry, Repo, Tag};
use crate::store::metadata::grants::{self, Holding, Holdings};
use crate::store::metadata::index::Index;
use crate::store::metadata::index::blob_use::{BlobUse, ShortDigest, short, short_of_key};
use crate::store::metadata::index::key::{self, Fact};
use crate::store::metadata::index::trees::{CountedTree, first_number};
use crate::store::metadata::records::{Grant, ManifestRecord, TagRecord, decode, encode};

impl Index {
    /// Notes a blob, or another use of it.
    pub(in crate::store) fn put_blob(&self, digest: &Digest, size: u64, at: u64) {
        self.database.update(CountedTree::Blob, &key::digest(digest), |old| {
            let old = old.map(BlobUse::read);
            Some(BlobUse::used(old, size, at, unix_seconds()).write().to_vec())
        });
    }

    pub(in crate::store) fn has_blob(&self, digest: &Digest) -> bool {
        self.blob_size(digest).is_some()
    }

    pub(in crate::store) fn blob_size(&self, digest: &Digest) -> Option<u64> {
        self.database
            .with(|trees| trees.of(CountedTree::Blob).get(key::digest(digest)))?
            .map(|value| first_number(&value))
    }

    /// Returns the grant of a digest to a repository.
    pub(in crate::store) fn grant(&self, repo: &Repo, digest: &Digest) -> Option<Grant> {
        decode(
            &self
                .database
                .with(|trees| trees.of(CountedTree::Grant).get(key::repo_digest(repo, digest)))??,
        )
    }

    /// Returns what each registry holds of a digest.
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
        self.database.with(|trees| {
            for item in trees.of(CountedTree::Holding).scan_prefix(&prefix) {
                let (key, value) = item?;
                visit(std::str::from_utf8(&key[prefix.len()..]).ok(), &value);
            }
            Ok(())
        })
    }

    /// Puts a grant, which stands for all that the repository's files say of the digest.
    pub(in crate::store) fn put_grant(&self, repo: &Repo, digest: &Digest, grant: Grant) {
        let value = encode(&grant);
        self.database.update(CountedTree::Grant, &key::repo_digest(repo, digest), |old| {
            (old != Some(&*value)).then_some(value)
        });
        self.raise_repo(repo, grant.public);
        self.put_holding(repo, digest, Holding::of(grant), None);
    }

    /// Adds to what a registry holds of a digest, and puts the record of a manifest that it has publicly.
    fn put_holding(&self, of: &Repo, digest: &Digest, holding: Holding, public: Option<&ManifestRecord>) {
        self.database.update(CountedTree::Holding, &key::holding(digest, &of.registry), |old| {
            let (flags, record) = old.and_then(|old| old.split_first()).unwrap_or((&0, &[]));
            let mut value = vec![Holding::from_byte(*flags).and(holding).byte()];
            match public {
                Some(public) => value.extend(encode(public)),
                None => value.extend_from_slice(record),
            }
            (old != Some(&*value)).then_some(value)
        });
    }

    pub(in crate::store) fn tag(&self, repo: &Repo, tag: &Tag) -> Option<TagRecord> {
        let (key, changes) = (key::tag(repo, tag.as_str()), self.tags.changes());
        let record = decode(&self.database.with(|trees| trees.of(CountedTree::Tag).get(&key))??)?;
        self.tags.put(key, &record, changes);
        Some(record)
    }

    /// Returns a tag's record if it is cached and the index is complete.
    pub(in crate::store) fn tag_at_hand(&self, repo: &Repo, tag: &Tag) -> Option<Arc<TagRecord>> {
        self.tags.get(&key::tag(repo, tag.as_str())).filter(|_| self.database.is_complete())
    }

    pub(in crate::store) fn put_tag(&self, repo: &Repo, tag: &Tag, record: &TagRecord) {
        let key = key::tag(repo, tag.as_str());
        self.database.put(CountedTree::Tag, &key, &encode(record));
        self.tags.forget(&key);
        self.raise_repo(repo, record.public);
    }

    /// Notes that upstream confirmed a tag at `at`, in seconds since 1970. A tag that moved meanwhile keeps its new
    /// manifest.
    pub(in crate::store) fn checked(&self, repo: &Repo, tag: &Tag, at: u64) {
        let note = |value: Option<&[u8]>| {
            let value = value?;
            let Some(mut record) = decode::<TagRecord>(value) else { return Some(value.to_vec()) };
            record.checked_at = later(record.checked_at, at, unix_seconds());
            Some(encode(&record))
        };
        let key = key::tag(repo, tag.as_str());
        self.database.change(|trees| trees.of(CountedTree::Tag).update_and_fetch(&key, note).map(drop));
        self.tags.forget(&key);
    }

    /// Returns a page of tags in byte order; `None` if the index is not complete.
    pub(in crate::store) fn tags(&self, repo: &Repo, after: Option<&str>, n: usize) -> Option<Vec<Tag>> {
        if !self.database.is_complete() {
            return None;
        }
        let mut from = key::tag(repo, after.unwrap_or_default());
        if after.is_some() {
            // The smallest key that is greater than `after` itself.
            from.push(0);
        }
        let prefix = key::prefix(repo);
        self.database.with(|trees| {
            let mut page = Vec::new();
            for item in trees.of(CountedTree::Tag).range(from..) {
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
        decode(
            &self
                .database
                .with(|trees| trees.of(CountedTree::Manifest).get(key::repo_digest(repo, digest)))??,
        )
    }

    /// Returns the record of a manifest that some repository has publicly.
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
        self.database.put(CountedTree::Manifest, &key::repo_digest(repo, digest), &encode(record));
    }

    pub(in crate::store) fn knows(&self, repo: &Repo) -> bool {
        self.database.with(|trees| trees.of(CountedTree::Repo).contains_key(key::repo(repo))) == Some(true)
    }

    pub(in crate::store) fn put_repo(&self, repo: &Repo) {
        self.raise_repo(repo, false);
    }

    /// Puts a repository and whether it has anything public, which stays so once it is.
    fn raise_repo(&self, repo: &Repo, public: bool) {
        self.database.update(CountedTree::Repo, &key::repo(repo), |old| {
            let is_less = old.is_none_or(|old| public && old != [1]);
            is_less.then(|| vec![u8::from(public)])
        });
    }

    /// Puts a list of referrers: its size in bytes, and when it was fetched, in seconds since 1970.
    pub(in crate::store) fn put_referrers(&self, repo: &Repo, digest: &Digest, bytes: u64, fetched_at: u64) {
        let value = (u128::from(bytes) << 64 | u128::from(fetched_at)).to_be_bytes();
        self.database.put(CountedTree::Referrers, &key::repo_digest(repo, digest), &value);
        self.put_repo(repo);
    }

    /// Returns the size of a list of referrers in bytes, if it is known.
    pub(in crate::store) fn referrers(&self, repo: &Repo, digest: &Digest) -> Option<u64> {
        let value = self
            .database
            .with(|trees| trees.of(CountedTree::Referrers).get(key::repo_digest(repo, digest)))??;
        Some(first_number(&value))
    }

    /// Returns the lists of referrers of a repository: the digest, the size in bytes, and when it was fetched.
    pub(in crate::store) fn referrers_of(&self, repo: &Repo) -> Vec<(Digest, u64, u64)> {
        let lists = self.database.with(|trees| {
            let mut lists = Vec::new();
            for item in trees.of(CountedTree::Referrers).scan_prefix(key::prefix(repo)) {
                let (key, value) = item?;
                if let Some(Fact::Referrers(_, digest)) = key::to_referrers(&key) {
                    lists.push((digest, first_number(&value), value.get(8..).map_or(0, first_number)));
                }
            }
            Ok(lists)
        });
        lists.unwrap_or_default()
    }

    /// Returns a page of repositories in byte order; `None` if the index is not complete.
    pub(in crate::store) fn repositories(
        &self,
        after: Option<&Repo>,
        n: usize,
        private_too: bool,
    ) -> Option<Vec<Repo>> {
        if !self.database.is_complete() {
            return None;
        }
        let from = after.map(key::prefix).unwrap_or_default();
        self.database.with(|trees| {
            let mut page = Vec::new();
            for item in trees.of(CountedTree::Repo).range(from..) {
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

    /// Returns the fingerprint of the `index.json` that was last rendered or adopted.
    pub(in crate::store) fn layout(&self, repo: &Repo) -> Option<Vec<u8>> {
        Some(self.database.with(|trees| trees.layout().get(key::repo(repo)))??.to_vec())
    }

    pub(in crate::store) fn put_layout(&self, repo: &Repo, looks: &[u8]) {
        self.database.change(|trees| trees.layout().insert(key::repo(repo), looks));
    }

    /// Returns a page of at most `n` blobs after `after`, in the order of their keys; `None` if the index is not
    /// complete.
    pub(in crate::store) fn blobs(&self, after: Option<&Digest>, n: usize) -> Option<Vec<Digest>> {
        if !self.database.is_complete() {
            return None;
        }
        let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(key::digest(after)));
        self.database.with(|trees| {
            let range = trees.of(CountedTree::Blob).range((from, Bound::<Vec<u8>>::Unbounded)).take(n);
            range.map(|item| Ok(key::to_digest(&item?.0))).filter_map(Result::transpose).collect()
        })
    }

    /// Returns when the round of the scrub began, in seconds since 1970, and the last blob that it has read.
    pub(in crate::store) fn scrub_round(&self) -> Option<(u64, Option<Digest>)> {
        let value = self.database.with(|trees| trees.meta().get("scrub"))??;
        Some((first_number(&value), key::to_digest(value.get(8..)?)))
    }

    /// Notes how far the scrub is. This changes nothing that the index says of the files, so it stays closed in
    /// order.
    pub(in crate::store) fn set_scrub_round(&self, began_at: u64, at: Option<&Digest>) {
        let mut value = began_at.to_be_bytes().to_vec();
        value.extend(at.map(key::digest).unwrap_or_default());
        self.database.with(|trees| trees.meta().insert("scrub", value));
    }

    /// Remembers across a restart that a repository's `index.json` is out of date.
    pub(in crate::store) fn put_stale_layout(&self, repo: &Repo) {
        self.database.change(|trees| trees.behind().insert(key::repo(repo), &[]));
    }

    /// Takes the repositories that were remembered as out of date.
    pub(in crate::store) fn take_stale_layouts(&self) -> Vec<Repo> {
        let behind = self.database.with(|trees| {
            let names: Vec<_> = trees.behind().iter().keys().collect::<Result<_, _>>()?;
            trees.behind().clear()?;
            Ok(names)
        });
        behind.unwrap_or_default().iter().filter_map(|name| key::to_repo(name)).collect()
    }

    /// Visits a repository's tags in byte order; `None` if the index is not complete.
    pub(in crate::store) fn each_tag<E>(
        &self,
        repo: &Repo,
        visit: &mut dyn FnMut(Tag, TagRecord) -> Result<(), E>,
    ) -> Option<Result<(), E>> {
        let read = |key: &[u8], value: &[u8]| Some((key::to_tag_name(key)?, decode(value)?));
        self.each(repo, CountedTree::Tag, |key, value| match read(key, value) {
            Some((tag, record)) => visit(tag, record),
            None => Ok(()),
        })
    }

    /// Visits a repository's manifests in the order of their digests; `None` if the index is not complete.
    pub(in crate::store) fn each_manifest<E>(
        &self,
        repo: &Repo,
        visit: &mut dyn FnMut(Digest, ManifestRecord) -> Result<(), E>,
    ) -> Option<Result<(), E>> {
        let read = |key: &[u8], value: &[u8]| match key::to_manifest(key)? {
            Fact::Manifest(_, digest) => Some((digest, decode(value)?)),
            _ => None,
        };
        self.each(repo, CountedTree::Manifest, |key, value| match read(key, value) {
            Some((digest, record)) => visit(digest, record),
            None => Ok(()),
        })
    }

    fn each<E>(
        &self,
        repo: &Repo,
        part: CountedTree,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Option<Result<(), E>> {
        if !self.database.is_complete() {
            return None;
        }
        self.database.with(|trees| {
            for item in trees.of(part).scan_prefix(key::prefix(repo)) {
                let (key, value) = item?;
                if let Err(error) = visit(&key, &value) {
                    return Ok(Err(error));
                }
            }
            Ok(Ok(()))
        })
    }

    /// Returns the number of repositories.
    pub(in crate::store) fn repo_count(&self) -> usize {
        self.database.with(|trees| Ok(trees.of(CountedTree::Repo).len())).unwrap_or_default()
    }

    /// Returns the facts of the index for which `is_there` is false.
    pub(in crate::store) fn missing(&self, is_there: &dyn Fn(&Fact) -> bool) -> Vec<Fact> {
        let missing = self.database.with(|trees| {
            let mut missing = Vec::new();
            let not_there = |entry: &Fact| !is_there(entry);
            let mut look = |part, read| trees.collect(part, read, &not_there, &mut missing);
            look(CountedTree::Blob, key::to_blob)?;
            look(CountedTree::Tag, key::to_tag)?;
            look(CountedTree::Manifest, key::to_manifest)?;
            look(CountedTree::Grant, key::to_grant)?;
            look(CountedTree::Referrers, key::to_referrers)?;
            // Last: what is in a repository that is gone has been found by now.
            look(CountedTree::Repo, key::to_repository)?;
            Ok(missing)
        });
        missing.unwrap_or_default()
    }

    pub(in crate::store) fn remove(&self, entry: &Fact) {
        match entry {
            Fact::Blob(digest) => self.database.take(CountedTree::Blob, &key::digest(digest)),
            Fact::Tag(repo, tag) => {
                let key = key::tag(repo, tag.as_str());
                self.database.take(CountedTree::Tag, &key);
                self.tags.forget(&key);
            }
            Fact::Manifest(repo, digest) => {
                self.database.take(CountedTree::Manifest, &key::repo_digest(repo, digest))
            }
            Fact::Grant(repo, digest) => {
                self.database.take(CountedTree::Grant, &key::repo_digest(repo, digest))
            }
            Fact::Referrers(repo, digest) => {
                self.database.take(CountedTree::Referrers, &key::repo_digest(repo, digest))
            }
            Fact::Repo(repo) => self.database.take(CountedTree::Repo, &key::repo(repo)),
        }
    }

    /// Whether every repository may be served a digest.
    pub(in crate::store) fn is_public(&self, digest: &Digest) -> bool {
        let Some(holdings) = self.holdings(digest) else { return false };
        // As long as not all is known, another registry may hold it too.
        grants::is_sent_publicly(&holdings) || self.database.is_complete() && grants::is_public(&holdings)
    }

    /// Returns the size and the uses of a blob.
    pub(in crate::store) fn blob_use(&self, digest: &Digest) -> Option<BlobUse> {
        self.database
            .with(|trees| trees.of(CountedTree::Blob).get(key::digest(digest)))?
            .map(|value| BlobUse::read(&value))
    }

    /// Notes a use at `now` for blobs whose uses lie in the future, so that they age like all others from now on.
    pub(in crate::store) fn put_uses(&self, blobs: &[ShortDigest], now: u64) {
        for digest in blobs.iter().filter_map(|short| self.full_digest(*short)) {
            if let Some(known) = self.blob_use(&digest) {
                self.put_blob(&digest, known.size, now);
            }
        }
    }

    /// Returns the digest of a short digest, if there is such a blob.
    pub(in crate::store) fn full_digest(&self, short: ShortDigest) -> Option<Digest> {
        let found = self.database.with(|trees| {
            trees.of(CountedTree::Blob).scan_prefix(short.to_be_bytes()).keys().next().transpose()
        })?;
        key::to_digest(&found?)
    }

    /// Puts what a manifest refers to, and the size in bytes that it claims for that.
    pub(in crate::store) fn put_parts(&self, manifest: &Digest, claimed_bytes: u64, parts: &[Digest]) {
        let mut value = claimed_bytes.to_be_bytes().to_vec();
        value.extend(parts.iter().flat_map(|part| short(part).to_be_bytes()));
        self.database.change(|trees| trees.parts().insert(key::digest(manifest), value));
    }

    /// Returns what a manifest refers to, if that is noted.
    pub(in crate::store) fn parts(&self, manifest: &Digest) -> Option<Vec<ShortDigest>> {
        let value = self.database.with(|trees| trees.parts().get(key::digest(manifest)))??;
        Some(value.get(8..).unwrap_or_default().chunks_exact(16).filter_map(short_of_key).collect())
    }

    /// Returns the size in bytes that a manifest claims for its blobs, if that is noted.
    pub(in crate::store) fn claimed(&self, manifest: &Digest) -> Option<u64> {
        self.database
            .with(|trees| trees.parts().get(key::digest(manifest)))?
            .map(|value| first_number(&value))
    }

    /// Whether it is a manifest for which it is noted what it refers to.
    pub(in crate::store) fn has_parts(&self, manifest: &Digest) -> bool {
        self.database.with(|trees| trees.parts().contains_key(key::digest(manifest))) == Some(true)
    }

    /// Removes records that only the index has about digests that are gone.
    pub(in crate::store) fn forget(&self, gone: &HashSet<Digest>) {
        for digest in gone {
            let key = key::digest(digest);
            self.database.change(|trees| trees.parts().remove(&key));
            self.forget_holdings(&key);
        }
    }

    fn forget_holdings(&self, digest: &[u8]) {
        let keys = self.database.with(|trees| {
            trees.of(CountedTree::Holding).scan_prefix(digest).keys().collect::<Result<Vec<_>, _>>()
        });
        for key in keys.unwrap_or_default() {
            self.database.take(CountedTree::Holding, &key);
        }
    }
}
