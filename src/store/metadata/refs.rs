//! `repos/<registry>/<name>/_oci/refs/`: the truth about who has what, one small file per fact.
//!
//! ```text
//! refs/tags/<tag>                  TagRecord
//! refs/manifests/<algorithm>-<hex> ManifestRecord; implies a grant
//! refs/blobs/<algorithm>-<hex>     Grant
//! refs/referrers/<algorithm>-<hex> ReferrersFile
//! ```
//!
//! Everything here is a plain file operation without memory; what a file says is in
//! [`records`](crate::store::metadata::records).
//! A repository's folders may nest (`a` and `a/b` are both names), which is why its files are all below `_oci`,
//! a component that no name can have.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::oci::manifest::MANIFEST_BYTES_MAX;
use crate::oci::{Digest, Registry, Repo, RepoName, Tag};
use crate::store::disk::files;
use crate::store::disk::{Disk, FileMode};
use crate::store::error::Error;
use crate::store::metadata::records::{Grant, ManifestRecord, TagRecord, decode, encode};

/// Bytes of the largest ref. It is a list of referrers: as large as a manifest, and written as a JSON string, whose
/// escapes can double it.
const REF_BYTES_MAX: u64 = 2 * MANIFEST_BYTES_MAX as u64 + 4096;
/// Name of the folder of a repository that is an OCI layout.
const LAYOUT: &str = "_oci";

/// One fact about a repository, as a file.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) enum Ref<'a> {
    Tag(&'a Tag),
    Manifest(&'a Digest),
    Blob(&'a Digest),
    Referrers(&'a Digest),
}

/// The kind of a fact. Each has a folder.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) enum RefKind {
    Tags,
    Manifests,
    Blobs,
    Referrers,
}

impl RefKind {
    pub(in crate::store) const ALL: [Self; 4] = [Self::Tags, Self::Manifests, Self::Blobs, Self::Referrers];
}

/// Is called for each of many; returns false to end the visit.
pub(in crate::store) type VisitRef<'a, T> = &'a mut dyn FnMut(T) -> Result<bool, Error>;

/// The ref files of all repositories. Clones are of the same files.
#[derive(Clone)]
pub(in crate::store) struct Refs {
    disk: Arc<Disk>,
}

impl Refs {
    pub(in crate::store) fn new(disk: Arc<Disk>) -> Self {
        Self { disk }
    }

    /// Returns the folder of a repository's layout.
    pub(in crate::store) fn layout(&self, repo: &Repo) -> PathBuf {
        let registry = self.disk.root().join("repos").join(repo.registry.to_folder());
        registry.join(repo.name.as_str()).join(LAYOUT)
    }

    /// Returns the path of a repository's `index.json`.
    pub(in crate::store) fn index_json(&self, repo: &Repo) -> PathBuf {
        self.layout(repo).join("index.json")
    }

    /// Returns the size of a repository's `index.json` in bytes; zero if there is none.
    pub(in crate::store) fn index_json_bytes(&self, repo: &Repo) -> u64 {
        fs::metadata(self.index_json(repo)).map_or(0, |metadata| metadata.len())
    }

    /// Returns the folder of one kind of facts.
    pub(in crate::store) fn folder(&self, repo: &Repo, kind: RefKind) -> PathBuf {
        self.layout(repo).join(match kind {
            RefKind::Tags => "refs/tags",
            RefKind::Manifests => "refs/manifests",
            RefKind::Blobs => "refs/blobs",
            RefKind::Referrers => "refs/referrers",
        })
    }

    pub(in crate::store) fn path(&self, repo: &Repo, of: Ref<'_>) -> PathBuf {
        match of {
            Ref::Tag(tag) => self.folder(repo, RefKind::Tags).join(tag.as_str()),
            Ref::Manifest(digest) => self.folder(repo, RefKind::Manifests).join(digest.file_name()),
            Ref::Blob(digest) => self.folder(repo, RefKind::Blobs).join(digest.file_name()),
            Ref::Referrers(digest) => self.folder(repo, RefKind::Referrers).join(digest.file_name()),
        }
    }

    /// Reads one fact. A file that cannot be decoded counts as absent, and will be written anew.
    pub(in crate::store) fn read<T: DeserializeOwned>(
        &self,
        repo: &Repo,
        of: Ref<'_>,
    ) -> Result<Option<T>, Error> {
        let path = self.path(repo, of);
        let Some(content) = files::read(&path, REF_BYTES_MAX)? else { return Ok(None) };
        let record = decode(&content);
        if record.is_none() {
            tracing::warn!(path = %path.display(), "unreadable ref ignored");
        }
        Ok(record)
    }

    /// Writes one fact atomically and durably.
    pub(in crate::store) fn write<T: Serialize>(
        &self,
        repo: &Repo,
        of: Ref<'_>,
        record: &T,
    ) -> Result<(), Error> {
        self.disk.replace(&self.path(repo, of), &encode(record), FileMode::PLAIN)
    }

    /// Removes a fact. This is not synced: after a power loss the fact may be there again, and is not wrong.
    pub(in crate::store) fn remove(&self, repo: &Repo, of: Ref<'_>) {
        let path = self.path(repo, of);
        if let Err(error) = fs::remove_file(&path)
            && !files::is_absent(&error)
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove what is said of evicted content");
        }
    }

    /// Whether a repository has no facts any more.
    pub(in crate::store) fn is_empty(&self, repo: &Repo) -> Result<bool, Error> {
        for kind in RefKind::ALL {
            if let Some(name) = files::names(&self.folder(repo, kind))?.next() {
                return name.map(|_| false);
            }
        }
        Ok(true)
    }

    /// Removes the folders of a repository without facts, and those above it that become empty.
    pub(in crate::store) fn clear(&self, repo: &Repo) {
        let layout = self.layout(repo);
        for folder in
            RefKind::ALL.map(|kind| self.folder(repo, kind)).into_iter().chain([layout.join("refs")])
        {
            let _ = fs::remove_dir(folder);
        }
        let root = self.disk.root().join("repos");
        for folder in layout.ancestors().take_while(|folder| *folder != root) {
            // The first that is not empty is where something else is.
            if fs::remove_dir(folder).is_err() {
                return;
            }
        }
    }

    pub(in crate::store) fn exists(&self, repo: &Repo, of: Ref<'_>) -> bool {
        self.path(repo, of).exists()
    }

    /// Returns the size of the file of a fact in bytes, and when it was written, in seconds since 1970.
    pub(in crate::store) fn size_and_time(&self, repo: &Repo, of: Ref<'_>) -> Option<(u64, u64)> {
        let metadata = fs::symlink_metadata(self.path(repo, of)).ok()?;
        Some((metadata.len(), u64::try_from(metadata.mtime()).unwrap_or(0)))
    }

    /// Returns when a fact was written.
    pub(in crate::store) fn modified(&self, repo: &Repo, of: Ref<'_>) -> Option<SystemTime> {
        fs::metadata(self.path(repo, of)).ok()?.modified().ok()
    }

    /// Returns the tags of a repository in byte order.
    pub(in crate::store) fn tags(&self, repo: &Repo) -> Result<Vec<Tag>, Error> {
        let mut tags = Vec::new();
        self.each_tag(repo, &mut |tag| {
            tags.push(tag);
            Ok(true)
        })?;
        tags.sort_unstable();
        Ok(tags)
    }

    /// Visits the tags of a repository one by one, in no order: there may be many.
    pub(in crate::store) fn each_tag(&self, repo: &Repo, visit: VisitRef<'_, Tag>) -> Result<(), Error> {
        self.each(repo, RefKind::Tags, |name| Tag::parse(name).ok(), visit)
    }

    /// Visits the digests that a repository has facts of one kind about, one by one, in no order.
    pub(in crate::store) fn each_digest(
        &self,
        repo: &Repo,
        kind: RefKind,
        visit: VisitRef<'_, Digest>,
    ) -> Result<(), Error> {
        self.each(repo, kind, Digest::from_file_name, visit)
    }

    fn each<T>(
        &self,
        repo: &Repo,
        kind: RefKind,
        parse: fn(&str) -> Option<T>,
        visit: VisitRef<'_, T>,
    ) -> Result<(), Error> {
        for name in files::names(&self.folder(repo, kind))? {
            if let Some(item) = name?.to_str().and_then(parse)
                && !visit(item)?
            {
                break;
            }
        }
        Ok(())
    }

    /// Counts the files of facts of a repository.
    pub(in crate::store) fn count(&self, repo: &Repo) -> Result<u64, Error> {
        let mut count = 0;
        for kind in RefKind::ALL {
            count += files::names(&self.folder(repo, kind))?.count() as u64;
        }
        Ok(count)
    }

    /// Whether any fact of a repository is public, according to the files.
    pub(in crate::store) fn is_any_public(&self, repo: &Repo) -> Result<bool, Error> {
        let mut is_public = false;
        self.each_digest(repo, RefKind::Manifests, &mut |digest| {
            let record: Option<ManifestRecord> = self.read(repo, Ref::Manifest(&digest))?;
            is_public |= record.is_some_and(|record| record.public);
            Ok(!is_public)
        })?;
        self.each_digest(repo, RefKind::Blobs, &mut |digest| {
            is_public |= self.read(repo, Ref::Blob(&digest))?.is_some_and(|grant: Grant| grant.public);
            Ok(!is_public)
        })?;
        self.each_tag(repo, &mut |tag| {
            is_public |= self.read(repo, Ref::Tag(&tag))?.is_some_and(|record: TagRecord| record.public);
            Ok(!is_public)
        })?;
        Ok(is_public)
    }

    /// Whether the repository has a layout, also one of another tool.
    pub(in crate::store) fn knows(&self, repo: &Repo) -> bool {
        self.layout(repo).is_dir()
    }

    /// Returns every repository that has a layout, in byte order of `registry/name`.
    pub(in crate::store) fn repositories(&self) -> Result<Vec<Repo>, Error> {
        let root = self.disk.root().join("repos");
        let mut found = Vec::new();
        for folder in files::list(&root)? {
            let Some(registry) = folder.to_str().and_then(Registry::from_folder) else { continue };
            walk(&root.join(&folder), &registry, &mut found)?;
        }
        found.sort_unstable_by_key(Repo::to_string);
        Ok(found)
    }
}

/// Finds the repositories of one registry, with a list of waiting folders rather than recursion.
fn walk(registry_folder: &Path, registry: &Registry, found: &mut Vec<Repo>) -> Result<(), Error> {
    let mut waiting = vec![String::new()];
    while let Some(name) = waiting.pop() {
        let folder = registry_folder.join(&name);
        for entry in files::list(&folder)? {
            let Some(entry_name) = entry.to_str() else { continue };
            // Links are not followed: they could lead in a circle.
            let is_folder = fs::symlink_metadata(folder.join(&entry)).is_ok_and(|entry| entry.is_dir());
            if !is_folder {
                continue;
            }
            if entry_name == LAYOUT {
                if let Ok(name) = RepoName::parse(&name) {
                    found.push(Repo { registry: registry.clone(), name });
                }
                continue;
            }
            let child = if name.is_empty() { entry_name.to_owned() } else { format!("{name}/{entry_name}") };
            // The grammar bounds both the depth and the names; nothing else can lead to a repository.
            if RepoName::parse(&child).is_ok() {
                waiting.push(child);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn grant(public: bool) -> Grant {
        Grant { public, proof: None, speaker: crate::oci::Speaker::Registry }
    }

    fn repo(registry: &str, name: &str) -> Repo {
        Repo { registry: Registry::parse(registry).unwrap(), name: RepoName::parse(name).unwrap() }
    }

    #[test]
    fn folders_carry_no_colon_and_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let refs = Refs::new(Arc::new(Disk::open(folder.path(), Arc::default()).unwrap()));
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let all = [
            repo("docker.io", "library/alpine"),
            repo("localhost:5000", "a"),
            repo("localhost:5000", "a/b"),
            repo("localhost:5000", "a/b/c/d/e"),
        ];
        for repo in all.iter().rev() {
            assert!(!refs.knows(repo));
            refs.write(repo, Ref::Blob(&digest), &grant(true)).unwrap();
            assert!(!refs.path(repo, Ref::Blob(&digest)).to_str().unwrap().contains(':'));
            assert!(refs.knows(repo));
        }
        assert_eq!(refs.repositories().unwrap(), all);
        assert_eq!(refs.count(&all[1]).unwrap(), 1);
        let mut seen = Vec::new();
        let mut see = |digest| {
            seen.push(digest);
            Ok(true)
        };
        refs.each_digest(&all[1], RefKind::Blobs, &mut see).unwrap();
        assert_eq!(seen, [digest]);
        assert_eq!(refs.read(&all[1], Ref::Blob(&digest)).unwrap(), Some(grant(true)));
        assert_eq!(refs.read::<Grant>(&all[1], Ref::Manifest(&digest)).unwrap(), None);
    }

    #[test]
    fn tags_come_in_byte_order_without_what_is_no_tag() {
        let folder = tempfile::tempdir().unwrap();
        let refs = Refs::new(Arc::new(Disk::open(folder.path(), Arc::default()).unwrap()));
        let repo = repo("docker.io", "a");
        for tag in ["b", "B", "10", "9", "_x"] {
            refs.write(&repo, Ref::Tag(&Tag::parse(tag).unwrap()), &grant(false)).unwrap();
        }
        fs::File::create(refs.layout(&repo).join("refs/tags/.hidden")).unwrap();
        let tags = refs.tags(&repo).unwrap();
        assert_eq!(tags.iter().map(Tag::as_str).collect::<Vec<_>>(), ["10", "9", "B", "_x", "b"]);
    }
}
