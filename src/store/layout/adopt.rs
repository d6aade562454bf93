//! Adoption: what another tool has put into a layout becomes tags, manifests and grants.
//!
//! `skopeo copy docker://… oci:<data_dir>/repos/<registry>/<name>/_oci:<tag>` is enough to make an image servable. An
//! entry of a foreign `index.json` with a name becomes a tag if there is no ref of that name, or if `index.json` is
//! newer than the ref and says otherwise. An entry without a name becomes a manifest.
//!
//! Nothing is taken on trust: every manifest and every blob of its closure is hashed before it is granted (to this
//! repository only, never publicly), and what is missing is not granted. A `blobs` folder that is not berth's link is
//! emptied into the shared one, file by file as each is verified, and then becomes the link.
//!
//! A tool that copies file by file may write `index.json` first. So a young one with entries that cannot be adopted
//! is read again; once it has not changed for a while, what is missing counts as missing.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::clock::{age, seconds_of, unix_seconds};
use crate::oci::manifest::is_manifest_type;
use crate::oci::{Algorithm, Digest, Repo, Speaker, Tag};
use crate::store::contents::Contents;
use crate::store::disk::{Disk, files};
use crate::store::error::Error;
use crate::store::eviction::Eviction;
use crate::store::layout::index_json::{self, Content, IndexEntry, IndexJson};
use crate::store::metadata::records::{Grant, ManifestRecord, Previous, Proof, TagRecord};
use crate::store::metadata::refs::Ref;
use crate::store::metadata::{CLOSURE_MAX, DEPTH_MAX, Metadata};

/// Time after the last change of an `index.json` from which on it counts as finished.
const SETTLED_AFTER: Duration = Duration::from_secs(60);
/// The grant of what another tool has put into a repository's layout: it is for that repository alone.
const ADOPTED: Grant = Grant { public: false, proof: Some(Proof::Adopted), speaker: Speaker::Registry };

/// The result of adopting an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The refs say the same, or something newer.
    Known,
    Adopted,
    /// The content is missing or wrong, perhaps because it is not complete yet.
    Missing,
}

/// The adoption of what another tool has put into one repository's layout.
pub(in crate::store) struct Adoption<'a> {
    disk: &'a Disk,
    metadata: &'a Metadata,
    contents: &'a Contents,
    eviction: &'a Eviction,
    repo: &'a Repo,
    /// When its `index.json` was written.
    modified: SystemTime,
}

/// Adopts what another tool has put into the layout of `repo`. Returns how many entries were adopted. It must not run
/// twice at once.
pub(in crate::store) fn adopt(
    disk: &Disk,
    metadata: &Metadata,
    contents: &Contents,
    eviction: &Eviction,
    repo: &Repo,
) -> Result<usize, Error> {
    let Some(index_json) = index_json::open(&metadata.refs().index_json(repo))? else { return Ok(0) };
    let modified = index_json.modified();
    Adoption { disk, metadata, contents, eviction, repo, modified }.run(index_json)
}

impl Adoption<'_> {
    fn run(&self, index_json: IndexJson) -> Result<usize, Error> {
        let repo = self.repo;
        let found = index_json.fingerprint().to_vec();
        let are_blobs_settled = self.merge_blobs(&self.metadata.refs().layout(repo).join("blobs"))?;
        let (mut adopted, mut missing) = (0, 0);
        let content = index_json.read(&mut |entry| {
            match self.adopt_entry(&entry)? {
                Outcome::Known => {}
                Outcome::Adopted => adopted += 1,
                Outcome::Missing => missing += 1,
            }
            Ok(())
        })?;
        if matches!(content, Content::TooLong) {
            tracing::warn!(%repo, "the index.json of another tool has an entry that is too long to be read");
        }
        let is_done = match content {
            Content::Index(_) => missing == 0,
            Content::NoJson => false,
            // Whatever is still to come makes it no shorter.
            Content::TooLong => true,
        };
        if are_blobs_settled && (is_done || is_settled(self.modified)) {
            self.metadata.index().put_layout(repo, &found);
        }
        if adopted > 0 {
            tracing::info!(%repo, adopted, missing, "adopted what another tool has put into a layout");
            self.metadata.mark_stale(repo);
        }
        Ok(adopted)
    }

    fn grant(&self, digest: &Digest) -> Result<(), Error> {
        if self.metadata.grant(self.repo, digest, ADOPTED)? {
            self.eviction.note_ref();
        }
        Ok(())
    }

    fn adopt_entry(&self, entry: &IndexEntry) -> Result<Outcome, Error> {
        // Of an algorithm that berth cannot verify: it stays in `index.json` and is no business of the refs.
        let Some(digest) = entry.digest else { return Ok(Outcome::Known) };
        let (tag, repo) = (entry.tag(), self.repo);
        let old = match &tag {
            Some(tag) => self.metadata.refs().read::<TagRecord>(repo, Ref::Tag(tag))?,
            None => None,
        };
        let is_known = match (&tag, &old) {
            (Some(tag), Some(old)) => old.digest == digest || !self.is_newer(tag),
            (Some(_), None) => false,
            (None, _) => self.metadata.refs().exists(repo, Ref::Manifest(&digest)),
        };
        if is_known {
            return Ok(Outcome::Known);
        }
        let fetched_at = seconds_of(self.modified).min(unix_seconds());
        let Some(record) = self.adopt_closure(&digest, &entry.media_type, fetched_at)? else {
            tracing::debug!(%repo, %digest, "entry of another tool without its manifest");
            return Ok(Outcome::Missing);
        };
        if let Some(tag) = tag {
            let previous = old.map(|old| {
                Box::new(Previous { digest: old.digest, media_type: old.media_type, size: old.size })
            });
            let (media_type, size) = (record.media_type, record.size);
            // Never checked: upstream, if there is one, has the last word.
            let record =
                TagRecord { digest, media_type, size, fetched_at, checked_at: 0, public: false, previous };
            self.metadata.set_tag(repo, &tag, &record)?;
            self.eviction.note_ref();
        }
        Ok(Outcome::Adopted)
    }

    fn is_newer(&self, tag: &Tag) -> bool {
        let written = self.metadata.refs().modified(self.repo, Ref::Tag(tag));
        written.is_none_or(|written| is_newer(self.modified, written, SystemTime::now()))
    }

    /// Grants a manifest and the stored content that it refers to. `None` if the manifest itself is not stored.
    ///
    /// Children come first: the record of the manifest itself, which makes it known, is written last.
    fn adopt_closure(
        &self,
        root: &Digest,
        media_type: &str,
        fetched_at: u64,
    ) -> Result<Option<ManifestRecord>, Error> {
        let mut records = Vec::new();
        let mut seen = HashSet::from([*root]);
        let mut waiting = vec![(*root, media_type, 0)];
        while let Some((digest, media_type, depth)) = waiting.pop() {
            let Some(blob) = self.contents.blob(&digest)? else { continue };
            let manifest = match is_manifest_type(media_type) || depth == 0 {
                true => self.metadata.stored_manifest(&digest, media_type)?,
                false => None,
            };
            let Some(manifest) = manifest else {
                if depth > 0 {
                    self.grant(&digest)?;
                }
                continue;
            };
            for child in manifest.children() {
                let Some(digest) = child.digest() else { continue };
                if depth < DEPTH_MAX && seen.len() < CLOSURE_MAX && seen.insert(digest) {
                    waiting.push((digest, child.manifest_type().unwrap_or_default(), depth + 1));
                }
            }
            let media_type = manifest.media_type;
            records.push((digest, {
                let (speaker, public) = (Speaker::Registry, false);
                ManifestRecord { media_type, size: blob.size, public, speaker, fetched_at }
            }));
        }
        for (digest, record) in records.iter().rev() {
            if self.metadata.set_manifest(self.repo, digest, record)? {
                self.eviction.note_ref();
            }
        }
        Ok(records.into_iter().next().filter(|(digest, _)| digest == root).map(|(_, record)| record))
    }

    /// Moves the files of another tool's `blobs` folder into the shared one, so that the next render can put the link
    /// there. If wrong files remain that nobody writes any more, the folder is put aside. Returns whether nothing is
    /// left to wait for.
    fn merge_blobs(&self, folder: &Path) -> Result<bool, Error> {
        if !fs::symlink_metadata(folder).is_ok_and(|metadata| metadata.is_dir()) {
            return Ok(true);
        }
        let mut is_settled_all = true;
        for algorithm in Algorithm::ALL {
            let algorithm_folder = folder.join(algorithm.as_str());
            for name in files::list(&algorithm_folder)? {
                let path = algorithm_folder.join(&name);
                if !self.take_blob(algorithm, &name, &path)? {
                    is_settled_all &= fs::metadata(&path).and_then(|it| it.modified()).is_ok_and(is_settled);
                }
            }
            let _ = fs::remove_dir(&algorithm_folder);
        }
        if fs::remove_dir(folder).is_err() && is_settled_all {
            let aside = folder.with_extension("rejected");
            tracing::warn!(path = %aside.display(), "put aside: not the blobs that their names say");
            if let Err(error) = self.disk.rename(folder, &aside) {
                // Such a folder is there already. This one stays in the way of the link until somebody looks.
                tracing::warn!(path = %folder.display(), %error, "cannot put aside what is not berth's");
            }
        }
        Ok(is_settled_all)
    }

    fn take_blob(&self, algorithm: Algorithm, name: &OsStr, path: &Path) -> Result<bool, Error> {
        let digest = name.to_str().and_then(|hex| Digest::from_hex(algorithm, hex));
        let Some(digest) = digest else { return Ok(false) };
        let is_taken = self.contents.blobs().take(&digest, path)?;
        if is_taken && let Some(size) = self.contents.blobs().size(&digest) {
            self.eviction.note_stored(&digest, size);
        }
        Ok(is_taken)
    }
}

/// Whether an `index.json` that was written at `modified` is newer than a ref that was written at `written`. Times in
/// the future come from a clock that was ahead: such an `index.json` counts as written now, and is rendered anew with
/// a time in the past; such a ref is older than any `index.json` of the present.
fn is_newer(modified: SystemTime, written: SystemTime, now: SystemTime) -> bool {
    let is_ahead = |time: SystemTime| age(seconds_of(time), seconds_of(now)).is_none();
    match (is_ahead(modified), is_ahead(written)) {
        (false, false) | (true, true) => modified > written,
        (true, false) | (false, true) => true,
    }
}

/// Whether a file has not changed for long enough to be finished. A time in the future counts as long ago.
fn is_settled(modified: SystemTime) -> bool {
    let age = age(seconds_of(modified), unix_seconds());
    age.is_none_or(|age| Duration::from_secs(age) > SETTLED_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_future_is_not_newer_than_everything_for_years() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let at = |seconds: i64| match u64::try_from(seconds) {
            Ok(ahead) => now + Duration::from_secs(ahead),
            Err(_) => now - Duration::from_secs(seconds.unsigned_abs()),
        };
        let year = 365 * 24 * 3600;
        let check = |modified: i64, written: i64, expected: bool| {
            assert_eq!(is_newer(at(modified), at(written), now), expected, "{modified} against {written}");
        };
        check(-5, -9, true);
        check(-9, -5, false);
        check(-5, -5, false);
        check(30, 0, true);
        check(0, 30, false);
        check(-5, year, true);
        check(year, -5, true);
        check(year, year + 9, false);
        check(year + 9, year, true);
    }

    #[test]
    fn what_is_settled_has_been_left_alone() {
        let now = SystemTime::now();
        assert!(!is_settled(now) && !is_settled(now + Duration::from_secs(30)));
        assert!(is_settled(now - 2 * SETTLED_AFTER));
        assert!(is_settled(now + Duration::from_secs(365 * 24 * 3600)));
    }
}
