//! `_oci/`: each repository as an ordinary OCI image layout, rendered behind from the refs.
//!
//! `oci-layout` and `blobs` (a relative link to the shared folder) are made once. `index.json` names every tag,
//! and every other manifest of the repository that no index stored there names as its child. Whatever another
//! tool has put there stays: fields of the index itself, annotations and fields of entries that are still true,
//! entries that berth cannot judge (an unknown digest algorithm). An entry whose manifest is not here names
//! something that was evicted, and goes: what another tool is still bringing is waited for by adoption.
//! When nothing is left of a repository, neither entries nor refs, its folder goes too.
//!
//! What berth has rendered or adopted last is remembered by its looks (inode, time, size) in the index; an
//! `index.json` that looks different is another tool's. It also carries a time of modification from before the
//! refs were read. So it never seems newer than a ref that it does not show yet, and adoption cannot take a tag
//! back, even if those looks are lost.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use super::disk::{self, Look};
use super::index::Entry;
use super::ledger::Ledger;
use super::record::{ManifestRecord, TagRecord};
use super::refs::{Kind, Ref};
use super::{Error, hold};
use crate::oci::manifest::MANIFEST_BYTES_MAX;
use crate::oci::{Digest, Manifest, Repo, Tag, manifest};

/// The annotation that makes an entry a tag (image-spec, "annotations").
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const LAYOUT_FILE: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// 2,000 tags take half a megabyte; beyond this a file is no index that berth would read or write.
const INDEX_JSON_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// File times are coarser than the clock: by milliseconds on local disks, by a second or two on some others.
const CLOCK_GRAIN: Duration = Duration::from_secs(2);

/// An `index.json` as it stands.
pub(super) struct IndexJson {
    /// Inode, time and size: what tells one version from the next.
    pub(super) looks: Vec<u8>,
    pub(super) modified: SystemTime,
    /// The whole object, or an empty one if it is none.
    pub(super) fields: Map<String, Value>,
}

impl IndexJson {
    pub(super) fn entries(&self) -> &[Value] {
        self.fields.get("manifests").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
}

/// What of a repository an `index.json` shows.
#[derive(Default)]
struct Facts {
    tags: BTreeMap<Tag, TagRecord>,
    manifests: BTreeMap<Digest, ManifestRecord>,
    /// What stored indexes name; these need no entry of their own.
    children: BTreeSet<Digest>,
}

/// The tag that an entry names, if it has a name and that can be one.
pub(super) fn entry_tag(entry: &Value) -> Option<Tag> {
    Tag::parse(entry_name(entry)?).ok()
}

pub(super) fn entry_digest(entry: &Value) -> Option<Digest> {
    Digest::parse(entry.get("digest")?.as_str()?).ok()
}

fn entry_name(entry: &Value) -> Option<&str> {
    entry.get("annotations")?.get(REF_NAME)?.as_str()
}

impl Ledger {
    /// Renders what has changed. Other tools' entries must have been adopted before.
    pub(super) fn render(&self, repo: &Repo) -> Result<(), Error> {
        let _one_at_a_time = hold(&self.rendering);
        self.furnish(repo)?;
        let path = self.index_json_path(repo);
        let old = read_index_json(&path)?;
        if old.as_ref().is_some_and(|old| self.is_foreign(repo, &old.looks)) {
            // Another tool was faster. Its entries come first: the next round adopts and renders them.
            self.mark_dirty(repo);
            return Ok(());
        }
        let modified = SystemTime::now() - CLOCK_GRAIN;
        let mut fields = old.map(|old| old.fields).unwrap_or_default();
        // Whoever wrote these had the time to bring their manifests: what is not here was evicted.
        if let Some(Value::Array(entries)) = fields.get_mut("manifests") {
            entries.retain(|entry| entry_digest(entry).is_none_or(|digest| self.is_here(&digest)));
        }
        let facts = self.facts(repo)?;
        let is_nothing_left = facts.tags.is_empty()
            && facts.manifests.is_empty()
            && fields.get("manifests").is_none_or(|entries| *entries == json!([]));
        if is_nothing_left && self.clear_repository(repo)? {
            return Ok(());
        }
        self.write_index_json(repo, &path, &compose(fields, &facts), modified)
    }

    fn is_here(&self, digest: &Digest) -> bool {
        self.index.has_blob(digest) || self.blobs.size(digest).is_some()
    }

    /// Removes the folder of a repository of which everything was evicted. Returns whether that is so.
    fn clear_repository(&self, repo: &Repo) -> Result<bool, Error> {
        let _guard = self.lock(repo);
        if !self.refs.is_empty(repo)? {
            return Ok(false);
        }
        let layout = self.refs.layout(repo);
        // Of berth's own making only: what else there may be, somebody else has put there.
        for name in ["index.json", "oci-layout", "blobs"] {
            let _ = fs::remove_file(layout.join(name));
        }
        self.refs.clear(repo);
        self.index.remove(&Entry::Repo(repo.clone()));
        Ok(true)
    }

    /// Whether an `index.json` of these looks is another tool's.
    pub(super) fn is_foreign(&self, repo: &Repo, looks: &[u8]) -> bool {
        self.index.layout(repo).is_none_or(|known| known != looks)
    }

    pub(super) fn index_json_path(&self, repo: &Repo) -> PathBuf {
        self.refs.layout(repo).join("index.json")
    }

    /// What makes the folder a layout: the marker file and the link to the blobs.
    fn furnish(&self, repo: &Repo) -> Result<(), Error> {
        let layout = self.refs.layout(repo);
        let marker = layout.join("oci-layout");
        if !marker.exists() {
            self.disk.replace(&marker, LAYOUT_FILE, Look::PLAIN)?;
        }
        let link = layout.join("blobs");
        let target = link_target(&layout, self.disk.root());
        match fs::symlink_metadata(&link) {
            // A folder of another tool, in which there is something that adoption could not take.
            Ok(metadata) if metadata.is_dir() => Ok(()),
            Ok(_) if fs::read_link(&link).is_ok_and(|points_to| points_to == target) => Ok(()),
            Ok(_) | Err(_) => self.disk.link(&link, &target),
        }
    }

    fn write_index_json(
        &self,
        repo: &Repo,
        path: &Path,
        content: &[u8],
        modified: SystemTime,
    ) -> Result<(), Error> {
        let is_same = disk::read(path, INDEX_JSON_BYTES_MAX)?.is_some_and(|old| old == content);
        if !is_same {
            self.disk.replace(path, content, Look { modified: Some(modified), ..Look::PLAIN })?;
        }
        if let Some(looks) = looks_of(path) {
            self.index.put_layout(repo, &looks);
        }
        Ok(())
    }

    /// What a repository's files say.
    fn facts(&self, repo: &Repo) -> Result<Facts, Error> {
        let mut facts = Facts::default();
        for tag in self.refs.tags(repo)? {
            if let Some(record) = self.refs.read::<TagRecord>(repo, Ref::Tag(&tag))?
                && self.is_here(&record.digest)
            {
                facts.tags.insert(tag, record);
            }
        }
        for digest in self.refs.digests(repo, Kind::Manifests)?.into_iter().filter(|it| self.is_here(it)) {
            if let Some(record) = self.refs.read(repo, Ref::Manifest(&digest))? {
                facts.manifests.insert(digest, record);
            }
        }
        facts.children = self.children(&facts.manifests)?;
        Ok(facts)
    }

    /// What the stored indexes among `manifests` name as their children.
    fn children(&self, manifests: &BTreeMap<Digest, ManifestRecord>) -> Result<BTreeSet<Digest>, Error> {
        let mut children = BTreeSet::new();
        for (digest, record) in manifests {
            if !record.media_type.contains("index") && !record.media_type.contains("list") {
                continue;
            }
            if let Some(manifest) = self.stored_manifest(digest, &record.media_type)? {
                children.extend(manifest.manifests.iter().filter_map(manifest::Descriptor::digest));
            }
        }
        Ok(children)
    }

    /// A manifest that is stored, read.
    pub(super) fn stored_manifest(
        &self,
        digest: &Digest,
        media_type: &str,
    ) -> Result<Option<Manifest>, Error> {
        let Some(body) = self.blobs.read(digest, MANIFEST_BYTES_MAX as u64)? else { return Ok(None) };
        Ok(Manifest::parse(Some(media_type), &body).ok())
    }
}

/// The new `index.json`: what the refs say, and what of the old one is not theirs to say.
fn compose(mut fields: Map<String, Value>, facts: &Facts) -> Vec<u8> {
    let Facts { tags, manifests, children } = facts;
    let old = match fields.remove("manifests") {
        Some(Value::Array(entries)) => entries,
        Some(_) | None => Vec::new(),
    };
    let known: HashMap<(Digest, Option<&str>), &Value> =
        old.iter().filter_map(|entry| Some(((entry_digest(entry)?, entry_name(entry)), entry))).collect();
    let kept: Vec<&Value> = old.iter().filter(|entry| is_foreign_entry(entry, facts)).collect();
    let is_kept: BTreeSet<Digest> = kept.iter().filter_map(|entry| entry_digest(entry)).collect();
    let is_tagged: BTreeSet<Digest> = tags.values().map(|record| record.digest).collect();

    let mut entries = Vec::with_capacity(tags.len() + kept.len());
    for (tag, record) in tags {
        let base = known.get(&(record.digest, Some(tag.as_str()))).copied();
        entries.push(entry(base, &record.digest, &record.media_type, record.size, Some(tag)));
    }
    for (digest, record) in manifests {
        let is_named = is_tagged.contains(digest) || children.contains(digest) || is_kept.contains(digest);
        if !is_named {
            let base = known.get(&(*digest, None)).copied();
            entries.push(entry(base, digest, &record.media_type, record.size, None));
        }
    }
    entries.extend(kept.into_iter().cloned());
    fields.insert("schemaVersion".to_owned(), json!(2));
    fields.insert("mediaType".to_owned(), json!(INDEX_TYPE));
    fields.insert("manifests".to_owned(), Value::Array(entries));
    to_bytes(fields)
}

/// Whether an entry stands for something that is not in the refs: another name than a tag of theirs, content
/// that they do not have, or notes on a manifest without a name.
fn is_foreign_entry(entry: &Value, facts: &Facts) -> bool {
    match entry_name(entry) {
        Some(_) => entry_tag(entry).is_none_or(|tag| !facts.tags.contains_key(&tag)),
        None => {
            let is_ours = entry_digest(entry).is_some_and(|digest| facts.manifests.contains_key(&digest));
            !is_ours || entry.get("annotations").is_some()
        }
    }
}

fn entry(base: Option<&Value>, digest: &Digest, media_type: &str, size: u64, tag: Option<&Tag>) -> Value {
    let mut entry = base.cloned().unwrap_or_else(|| json!({}));
    entry["mediaType"] = json!(media_type);
    entry["digest"] = json!(digest);
    entry["size"] = json!(size);
    if let Some(tag) = tag {
        entry["annotations"][REF_NAME] = json!(tag);
    }
    entry
}

fn to_bytes(fields: Map<String, Value>) -> Vec<u8> {
    let mut bytes =
        serde_json::to_vec_pretty(&Value::Object(fields)).expect("a JSON value always serialises");
    bytes.push(b'\n');
    bytes
}

/// Reads an `index.json`. The looks are taken first: what is written meanwhile will look different.
pub(super) fn read_index_json(path: &Path) -> Result<Option<IndexJson>, Error> {
    let Some((looks, modified)) = looks_of(path).zip(fs::metadata(path).and_then(|it| it.modified()).ok())
    else {
        return Ok(None);
    };
    let Some(content) = disk::read(path, INDEX_JSON_BYTES_MAX)? else { return Ok(None) };
    let fields = serde_json::from_slice(&content).unwrap_or_default();
    Ok(Some(IndexJson { looks, modified, fields }))
}

pub(super) fn looks_of(path: &Path) -> Option<Vec<u8>> {
    let of = |metadata: &Metadata| {
        let numbers = [metadata.ino(), metadata.len(), metadata.mtime().cast_unsigned()];
        let nanoseconds = metadata.mtime_nsec().to_be_bytes();
        numbers.iter().flat_map(|number| number.to_be_bytes()).chain(nanoseconds).collect()
    };
    fs::metadata(path).ok().as_ref().map(of)
}

/// From a layout up to the data folder and down to its blobs.
fn link_target(layout: &Path, root: &Path) -> PathBuf {
    let depth = layout.strip_prefix(root).map_or(0, |below| below.components().count());
    std::iter::repeat_n("..", depth).collect::<PathBuf>().join("blobs")
}
