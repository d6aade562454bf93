//! Every ref in turn, for who has to choose among them: there may be millions, so they are shown and not handed out.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};

use crate::store::metadata::index::inventory::short_of_key;
use crate::store::metadata::index::{Entry, Index, Part, REPO_BYTES, Short, first_number, key, weight};
use crate::store::metadata::records::{ManifestRecord, TagRecord, decode};

/// A tag, a manifest's record, a grant or a list of referrers.
pub(in crate::store) struct SeenRef<'a> {
    /// Stands for its name.
    pub(in crate::store) id: u64,
    pub(in crate::store) registry: &'a str,
    /// Stands for its repository.
    pub(in crate::store) repo_id: u64,
    /// The content that it is about.
    pub(in crate::store) about: Short,
    /// Whether it is a name by which that is asked for, rather than what goes with it.
    pub(in crate::store) is_root: bool,
    pub(in crate::store) bytes: u64,
    /// When it was last of use, as far as itself can tell, in seconds since 1970.
    pub(in crate::store) used_at: u64,
}

/// What a repository itself takes.
pub(in crate::store) const REPO_ITSELF_BYTES: u64 = REPO_BYTES;

fn id(part: Part, key: &[u8]) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one((part as usize, key))
}

/// Stands for a repository.
pub(in crate::store) fn repo_id(repo: &crate::oci::Repo) -> u64 {
    id(Part::Repo, &key::repo(repo))
}

fn seen<'a>(part: Part, key: &'a [u8], value: &[u8]) -> Option<SeenRef<'a>> {
    let (repo, rest) = key::split(key)?;
    let (about, used_at) = match part {
        Part::Tag => {
            let record: TagRecord = decode(value)?;
            (short_of_key(&key::digest(&record.digest))?, record.fetched_at.max(record.checked_at))
        }
        Part::Manifest => (short_of_key(rest)?, decode::<ManifestRecord>(value)?.fetched_at),
        Part::Referrers => (short_of_key(rest)?, value.get(8..).map_or(0, first_number)),
        Part::Grant => (short_of_key(rest)?, 0),
        Part::Blob | Part::Holding | Part::Repo => return None,
    };
    Some(SeenRef {
        id: id(part, key),
        registry: key::registry(repo)?,
        repo_id: id(Part::Repo, repo),
        about,
        is_root: matches!(part, Part::Tag | Part::Manifest),
        bytes: weight(part, value),
        used_at,
    })
}

/// The trees that refs are in.
const PARTS: [Part; 4] = [Part::Tag, Part::Manifest, Part::Grant, Part::Referrers];

impl Index {
    /// Shows every ref. Returns whether these were all.
    pub(in crate::store) fn each_ref(&self, show: &mut dyn FnMut(SeenRef<'_>)) -> bool {
        let done = self.with(|trees| {
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

    /// The refs that these stand for.
    pub(in crate::store) fn refs_of(&self, ids: &HashSet<u64>) -> Vec<Entry> {
        let found = self.with(|trees| {
            let mut found = Vec::new();
            for part in PARTS {
                for item in trees.of(part).iter().keys() {
                    let item = item?;
                    if ids.contains(&id(part, &item)) {
                        found.extend(match part {
                            Part::Tag => key::to_tag(&item),
                            Part::Manifest => key::to_manifest(&item),
                            Part::Grant => key::to_grant(&item),
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
