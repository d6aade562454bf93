//! The index read as a whole, for eviction: everything at once, by short digests. There may be millions of records,
//! so they are shown one by one and not collected.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};

use crate::oci::{Digest, Repo, Tag};
use crate::store::metadata::index::blob_use::{BlobUse, ShortDigest, short_of_key};
use crate::store::metadata::index::database::Database;
use crate::store::metadata::index::key::{self, Fact};
use crate::store::metadata::index::trees::{CountedTree, first_number, weight};
use crate::store::metadata::records::{ManifestRecord, TagRecord, decode};

pub(in crate::store) use crate::store::metadata::index::trees::REPO_BYTES as REPO_ITSELF_BYTES;

/// The grants and tags that name some digests.
#[derive(Debug, Default)]
pub(in crate::store) struct Mentions {
    pub grants: Vec<(Repo, Digest)>,
    pub tags: Vec<(Repo, Tag)>,
}

/// A tag, a manifest's record, a grant or a list of referrers.
pub(in crate::store) struct SeenRef<'a> {
    /// A hash of its name.
    pub id: u64,
    pub registry: &'a str,
    /// A hash of its repository.
    pub repo_id: u64,
    /// The content that it is about.
    pub about: ShortDigest,
    /// Whether clients ask for the content by it, as by a tag or a manifest's record.
    pub is_root: bool,
    pub bytes: u64,
    /// When it was last of use as far as its record tells, in seconds since 1970.
    pub used_at: u64,
}

fn id(part: CountedTree, key: &[u8]) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one((part as usize, key))
}

/// Returns the hash of a repository that [`SeenRef`] has.
pub(in crate::store) fn repo_id(repo: &Repo) -> u64 {
    id(CountedTree::Repo, &key::repo(repo))
}

fn seen<'a>(part: CountedTree, key: &'a [u8], value: &[u8]) -> Option<SeenRef<'a>> {
    let (repo, rest) = key::split(key)?;
    let (about, used_at) = match part {
        CountedTree::Tag => {
            let record: TagRecord = decode(value)?;
            (short_of_key(&key::digest(&record.digest))?, record.fetched_at.max(record.checked_at))
        }
        CountedTree::Manifest => (short_of_key(rest)?, decode::<ManifestRecord>(value)?.fetched_at),
        CountedTree::Referrers => (short_of_key(rest)?, value.get(8..).map_or(0, first_number)),
        CountedTree::Grant => (short_of_key(rest)?, 0),
        CountedTree::Blob | CountedTree::Holding | CountedTree::Repo => return None,
    };
    Some(SeenRef {
        id: id(part, key),
        registry: key::registry(repo)?,
        repo_id: id(CountedTree::Repo, repo),
        about,
        is_root: matches!(part, CountedTree::Tag | CountedTree::Manifest),
        bytes: weight(part, value),
        used_at,
    })
}

/// The trees of refs.
const PARTS: [CountedTree; 4] =
    [CountedTree::Tag, CountedTree::Manifest, CountedTree::Grant, CountedTree::Referrers];

/// A view of all of the index.
pub(in crate::store) struct Inventory<'a> {
    database: &'a Database,
}

impl<'a> Inventory<'a> {
    pub(in crate::store) fn of(database: &'a Database) -> Self {
        Self { database }
    }

    /// Shows every blob, sorted by short digest. Returns whether all were shown.
    pub(in crate::store) fn each_blob(&self, show: &mut dyn FnMut(ShortDigest, BlobUse)) -> bool {
        let done = self.database.with(|trees| {
            for item in trees.of(CountedTree::Blob) {
                let (key, value) = item?;
                if let Some(short) = short_of_key(&key) {
                    show(short, BlobUse::read(&value));
                }
            }
            Ok(())
        });
        done.is_some()
    }

    /// Shows for every manifest the size that it claims and what it refers to, sorted by short digest. Returns
    /// whether all were shown.
    pub(in crate::store) fn each_parts(
        &self,
        show: &mut dyn FnMut(ShortDigest, u64, &[ShortDigest]),
    ) -> bool {
        let mut parts = Vec::new();
        let done = self.database.with(|trees| {
            for item in trees.parts() {
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

    /// Shows which registries hold which digests, sorted by short digest. Returns whether all were shown.
    pub(in crate::store) fn each_holding_of_all(&self, show: &mut dyn FnMut(&str, ShortDigest)) -> bool {
        let done = self.database.with(|trees| {
            for key in trees.of(CountedTree::Holding).iter().keys() {
                let key = key?;
                if let (Some(registry), Some(name)) = (key::holder(&key), short_of_key(&key)) {
                    show(registry, name);
                }
            }
            Ok(())
        });
        done.is_some()
    }

    /// Returns the stored manifests for which it is not noted what they refer to, with their media types.
    pub(in crate::store) fn without_parts(&self) -> Option<Vec<(Digest, String)>> {
        let mut seen = HashSet::new();
        self.database.with(|trees| {
            let mut found = Vec::new();
            for item in trees.of(CountedTree::Manifest) {
                let (key, value) = item?;
                let Some((_, digest)) = key::split(&key) else { continue };
                let is_news = !trees.parts().contains_key(digest)?
                    && trees.of(CountedTree::Blob).contains_key(digest)?;
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

    /// Returns the refs about digests that are gone.
    pub(in crate::store) fn mentions(&self, gone: &HashSet<Digest>) -> Mentions {
        let found = self.database.with(|trees| {
            let mut found = Mentions::default();
            for key in trees.of(CountedTree::Grant).iter().keys() {
                let key = key?;
                let Some((repo, digest)) = key::split(&key) else { continue };
                if let Some(digest) = key::to_digest(digest).filter(|digest| gone.contains(digest)) {
                    found.grants.extend(key::to_repo(repo).map(|repo| (repo, digest)));
                }
            }
            for item in trees.of(CountedTree::Tag) {
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

    /// Shows every ref. Returns whether all were shown.
    pub(in crate::store) fn each_ref(&self, show: &mut dyn FnMut(SeenRef<'_>)) -> bool {
        let done = self.database.with(|trees| {
            for part in PARTS {
                for item in trees.of(part) {
                    let (key, value) = item?;
                    seen(part, &key, &value).into_iter().for_each(&mut *show);
                }
            }
            Ok(())
        });
        done.is_some()
    }

    /// Returns the refs with these hashes.
    pub(in crate::store) fn refs_of(&self, ids: &HashSet<u64>) -> Vec<Fact> {
        let found = self.database.with(|trees| {
            let mut found = Vec::new();
            for part in PARTS {
                for item in trees.of(part).iter().keys() {
                    let item = item?;
                    if ids.contains(&id(part, &item)) {
                        found.extend(match part {
                            CountedTree::Tag => key::to_tag(&item),
                            CountedTree::Manifest => key::to_manifest(&item),
                            CountedTree::Grant => key::to_grant(&item),
                            _ => key::to_referrers(&item),
                        });
                    }
                }
            }
            Ok(found)
        });
        found.unwrap_or_default()
    }
}
