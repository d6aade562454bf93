//! `_oci/`: each repository as an ordinary OCI image layout, rendered behind from the refs.
//!
//! `oci-layout` and `blobs` (a relative link to the shared folder) are made once. `index.json` names every tag,
//! and every other manifest of the repository that no index stored there names as its child. Whatever another
//! tool has put there stays: fields of the index itself, annotations and fields of entries that are still true,
//! entries that berth cannot judge (an unknown digest algorithm). An entry whose manifest is not here names
//! something that was evicted, and goes: what another tool is still bringing is waited for by adoption. So does one
//! whose ref was removed because there were too many.
//! When nothing is left of a repository, neither entries nor refs, its folder goes too.
//!
//! What berth has rendered or adopted last is remembered by its looks (inode, time, size) in the index; an
//! `index.json` that looks different is another tool's. It also carries a time of modification from before the
//! refs were read. So it never seems newer than a ref that it does not show yet, and adoption cannot take a tag
//! back, even if those looks are lost.
//!
//! # Of many tags
//!
//! A tag that moves is a file of its own, but `index.json` names all of them: 25 MB for 100,000. It is read and
//! written entry by entry, so that it takes memory only for what is not berth's, from what the index says rather
//! than from the files of refs, and **it lags the more, the larger it is**: all large ones together are written
//! at 256 KiB/s on average, and whatever changes until it is a file's turn is written once. A small one follows
//! within a second or two, that of 100,000 tags within minutes. It waits, too, while the index is not complete.
//! At the end of the process only small ones are brought up to date; the next start knows of the others.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fs::{self, Metadata};
use std::io::{self, BufReader, Read as _, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::oci::manifest::{MANIFEST_BYTES_MAX, is_manifest_type};
use crate::oci::{Digest, Manifest, Repo, Tag};
use crate::store::Error;
use crate::store::disk::{self, Look};
use crate::store::layout::index_json::{self, Content, Entry, IndexJson, Members};
use crate::store::metadata::Ledger;
use crate::store::metadata::index::{self, Short, short};
use crate::sync::lock;

/// The annotation that makes an entry a tag (image-spec, "annotations").
pub(in crate::store) const REF_NAME: &str = "org.opencontainers.image.ref.name";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const LAYOUT_FILE: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// File times are coarser than the clock: by milliseconds on local disks, by a second or two on some others.
const CLOCK_GRAIN: Duration = Duration::from_secs(2);
/// An `index.json` beyond this, of some 4,000 tags, waits for its turn.
const LARGE_BYTES: u64 = 1024 * 1024;
/// Most entries of other tools, in bytes, that are carried over from one `index.json` to the next.
const KEPT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// So many children of indexes are looked at for one `index.json`. What is not found to be a child gets an entry of its
/// own, which is one more than needed.
const CHILDREN_LOOKED_AT_MAX: usize = 1_000_000;
/// Bytes of large ones that are written in a second, on average.
const LARGE_BYTES_PER_SECOND: u64 = 256 * 1024;

/// What of an `index.json` that is to be replaced is not berth's to say.
#[derive(Default)]
struct Kept {
    /// What stands beside the entries.
    others: Members,
    /// Entries that stand for something that is not in the refs.
    entries: Vec<Box<RawValue>>,
    digests: HashSet<Digest>,
    /// Entries of the refs' own with something added to them.
    extended: HashMap<(Digest, Option<String>), Box<RawValue>>,
    /// Of all these entries.
    bytes: usize,
}

/// Which of a repository's manifests its indexes name.
struct Children {
    /// All manifests of the repository, sorted.
    manifests: Vec<Short>,
    /// Which of them are named.
    are_named: Vec<bool>,
}

impl Children {
    fn name(&mut self, child: Short) {
        if let Ok(at) = self.manifests.binary_search(&child) {
            self.are_named[at] = true;
        }
    }

    fn has(&self, digest: &Digest) -> bool {
        self.manifests.binary_search(&short(digest)).is_ok_and(|at| self.are_named[at])
    }
}

/// An entry without anything added.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Plain<'a> {
    media_type: &'a str,
    digest: &'a Digest,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<HashMap<&'a str, &'a Tag>>,
}

impl Ledger {
    /// Renders what has changed. Other tools' entries must have been adopted before.
    pub(in crate::store) fn render(&self, repo: &Repo) -> Result<(), Error> {
        let _one_at_a_time = lock(&self.rendering);
        if !self.index.is_complete() {
            // Not all is known that there is to show.
            self.mark_dirty(repo);
            return Ok(());
        }
        self.furnish(repo)?;
        let path = self.index_json_path(repo);
        let old = index_json::open(&path)?;
        if old.as_ref().is_some_and(|old| self.is_foreign(repo, &old.looks)) {
            // Another tool was faster. Its entries come first: the next round adopts and renders them.
            self.mark_dirty(repo);
            return Ok(());
        }
        let modified = SystemTime::now() - CLOCK_GRAIN;
        let kept = old.map_or_else(|| Ok(Kept::default()), |old| self.kept(repo, old))?;
        if kept.entries.is_empty() && self.clear_repository(repo)? {
            return Ok(());
        }
        let children = self.children(repo)?;
        let write = |out: &mut dyn Write| self.compose(repo, &kept, &children, out);
        if !is_same(&path, &write)? {
            let bytes = self.index_json_bytes(repo);
            self.disk.replace_with(&path, Look { modified: Some(modified), ..Look::PLAIN }, bytes, &write)?;
        }
        if let Some(looks) = looks_of(&path) {
            self.index.put_layout(repo, &looks);
        }
        Ok(())
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
        self.index.remove(&index::Entry::Repo(repo.clone()));
        Ok(true)
    }

    /// Whether a repository's `index.json` has to wait for its turn.
    pub(in crate::store) fn is_large(&self, repo: &Repo) -> bool {
        self.index_json_bytes(repo) > LARGE_BYTES
    }

    /// How long the writing of a repository's `index.json` is to take from the others' time.
    pub(in crate::store) fn render_time(&self, repo: &Repo) -> Duration {
        match self.index_json_bytes(repo) {
            bytes if bytes > LARGE_BYTES => Duration::from_secs(bytes / LARGE_BYTES_PER_SECOND),
            _ => Duration::ZERO,
        }
    }

    fn index_json_bytes(&self, repo: &Repo) -> u64 {
        fs::metadata(self.index_json_path(repo)).map_or(0, |metadata| metadata.len())
    }

    /// Whether an `index.json` of these looks is another tool's.
    pub(in crate::store) fn is_foreign(&self, repo: &Repo, looks: &[u8]) -> bool {
        self.index.layout(repo).is_none_or(|known| known != looks)
    }

    pub(in crate::store) fn index_json_path(&self, repo: &Repo) -> PathBuf {
        self.refs.layout(repo).join("index.json")
    }

    /// What makes the folder a layout: the marker file and the link to the blobs.
    fn furnish(&self, repo: &Repo) -> Result<(), Error> {
        let layout = self.refs.layout(repo);
        let marker = layout.join("oci-layout");
        if !marker.is_file() {
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

    /// What stays of an `index.json`.
    fn kept(&self, repo: &Repo, old: IndexJson) -> Result<Kept, Error> {
        let path = self.index_json_path(repo);
        let mut kept = Kept::default();
        let content = old.read(&mut |entry| {
            if entry.digest.is_some_and(|digest| !self.is_here(&digest)) {
                // Whoever wrote it had the time to bring the manifest: it was evicted.
                return Ok(());
            }
            let is_foreign = self.is_foreign_entry(repo, &entry);
            if !is_foreign && (entry.is_plain || entry.digest.is_none()) {
                return Ok(());
            }
            let is_ref = entry.digest.is_some() && (entry.name.is_none() || entry.tag().is_some());
            if is_foreign && is_ref && entry.is_plain && is_manifest_type(&entry.media_type) {
                // It is here and was adopted once: its ref was removed because there were too many.
                return Ok(());
            }
            kept.bytes += entry.text.get().len();
            if kept.bytes > KEPT_BYTES_MAX {
                return Err(IndexJson::too_long(&path));
            }
            if is_foreign {
                kept.digests.extend(entry.digest);
                kept.entries.push(entry.text);
            } else if let Some(digest) = entry.digest {
                kept.extended.insert((digest, entry.name), entry.text);
            }
            Ok(())
        })?;
        match content {
            Content::Index(others) => Ok(Kept { others, ..kept }),
            Content::NoJson => Ok(Kept::default()),
            Content::TooLong => Err(IndexJson::too_long(&path)),
        }
    }

    /// Whether an entry stands for something that is not in the refs: another name than a tag of theirs, content
    /// that they do not have, or notes on a manifest without a name.
    fn is_foreign_entry(&self, repo: &Repo, entry: &Entry) -> bool {
        match entry.name {
            Some(_) => entry.tag().is_none_or(|tag| self.index.tag(repo, &tag).is_none()),
            None => {
                let is_ours = |digest| self.index.manifest(repo, &digest).is_some();
                !entry.digest.is_some_and(is_ours) || entry.is_annotated
            }
        }
    }

    /// What the repository's stored indexes name as their children and it has: these need no entry of their own.
    fn children(&self, repo: &Repo) -> Result<Children, Error> {
        let (mut manifests, mut indexes) = (Vec::new(), Vec::new());
        complete(self.index.each_manifest(repo, &mut |digest, record| {
            manifests.push(short(&digest));
            if record.media_type.contains("index") || record.media_type.contains("list") {
                indexes.push((digest, record.media_type));
            }
            Ok(())
        }))
        .map_err(|error| Error::io("read what is known of", &self.refs.layout(repo), error))?;
        manifests.sort_unstable();
        let mut children = Children { are_named: vec![false; manifests.len()], manifests };
        let mut looked_at = 0;
        for (digest, media_type) in indexes {
            let parts = self.parts(&digest, &media_type)?;
            looked_at += parts.len();
            parts.into_iter().for_each(|part| children.name(part));
            if looked_at > CHILDREN_LOOKED_AT_MAX {
                break;
            }
        }
        Ok(children)
    }

    /// What a manifest refers to: it is read once, and what it says is remembered for as long as it is here.
    pub(in crate::store) fn parts(&self, digest: &Digest, media_type: &str) -> Result<Vec<Short>, Error> {
        if let Some(parts) = self.index.parts(digest) {
            return Ok(parts);
        }
        let manifest = self.stored_manifest(digest, media_type)?;
        if manifest.is_none() && !self.is_here(digest) {
            return Ok(Vec::new());
        }
        Ok(self.note_parts(digest, manifest.as_ref()))
    }

    /// The new `index.json`: what the refs say, and what of the old one is not theirs to say. An entry a line, and
    /// the entries last, because there may be many.
    fn compose(&self, repo: &Repo, kept: &Kept, children: &Children, out: &mut dyn Write) -> io::Result<()> {
        write!(out, "{{\"schemaVersion\":2,\"mediaType\":\"{INDEX_TYPE}\"")?;
        for (name, value) in &kept.others {
            if !["schemaVersion", "mediaType", "manifests"].contains(&name.as_str()) {
                write!(out, ",{}:{value}", json!(name))?;
            }
        }
        write!(out, ",\"manifests\":[")?;
        let lines = RefCell::new(Lines { out, has_any: false });
        let mut tagged = Vec::new();
        let tags = self.index.each_tag(repo, &mut |tag, record| {
            if !self.is_here(&record.digest) {
                return Ok(());
            }
            tagged.push(record.digest);
            let extended = kept.extended.get(&(record.digest, Some(tag.as_str().to_owned())));
            let extended = extended.map(|entry| &**entry);
            lines.borrow_mut().entry(extended, &record.digest, &record.media_type, record.size, Some(&tag))
        });
        complete(tags)?;
        tagged.sort_unstable();
        let is_named = |digest: &Digest| {
            tagged.binary_search(digest).is_ok() || children.has(digest) || kept.digests.contains(digest)
        };
        let manifests = self.index.each_manifest(repo, &mut |digest, record| {
            if is_named(&digest) || !self.is_here(&digest) {
                return Ok(());
            }
            let extended = kept.extended.get(&(digest, None)).map(|entry| &**entry);
            lines.borrow_mut().entry(extended, &digest, &record.media_type, record.size, None)
        });
        complete(manifests)?;
        let mut lines = lines.into_inner();
        for entry in &kept.entries {
            lines.line(entry)?;
        }
        writeln!(lines.out, "\n]}}")
    }

    /// A manifest that is stored, read.
    pub(in crate::store) fn stored_manifest(
        &self,
        digest: &Digest,
        media_type: &str,
    ) -> Result<Option<Manifest>, Error> {
        // What is behind has its time: a large one after the other.
        let _one_at_a_time = lock(&self.reading);
        let Some(body) = self.blobs.read(digest, MANIFEST_BYTES_MAX as u64)? else { return Ok(None) };
        Ok(Manifest::parse(Some(media_type), &body).ok())
    }
}

/// Entries, one a line.
struct Lines<'a> {
    out: &'a mut dyn Write,
    has_any: bool,
}

impl Lines<'_> {
    fn entry(
        &mut self,
        extended: Option<&RawValue>,
        digest: &Digest,
        media_type: &str,
        size: u64,
        tag: Option<&Tag>,
    ) -> io::Result<()> {
        let Some(extended) = extended else {
            let annotations = tag.map(|tag| HashMap::from([(REF_NAME, tag)]));
            return self.line(&Plain { media_type, digest, size, annotations });
        };
        // Its name is the tag: by that it was found.
        self.line(&index_json::restated(extended, digest, media_type, size)?)
    }

    fn line<T: Serialize>(&mut self, entry: &T) -> io::Result<()> {
        self.out.write_all(if self.has_any { b",\n" } else { b"\n" })?;
        self.has_any = true;
        Ok(serde_json::to_writer(&mut *self.out, entry)?)
    }
}

/// What was visited of the index must have been all.
fn complete(visited: Option<io::Result<()>>) -> io::Result<()> {
    visited.unwrap_or_else(|| Err(io::Error::other("the index has failed meanwhile")))
}

/// Whether a file has just the content that `write` would write.
fn is_same(path: &Path, write: &dyn Fn(&mut dyn Write) -> io::Result<()>) -> Result<bool, Error> {
    let Some(file) = disk::open(path, OFlags::empty())? else { return Ok(false) };
    let mut old = Compared { old: BufReader::new(file), differs: false };
    match write(&mut old) {
        Err(_) if old.differs => Ok(false),
        Err(source) => Err(Error::io("render", path, source)),
        Ok(()) => Ok(matches!(old.old.read(&mut [0]), Ok(0))),
    }
}

/// Takes no more than what is in a file already.
struct Compared<R> {
    old: R,
    differs: bool,
}

impl<R: io::Read> Write for Compared<R> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut old = [0; 4096];
        let count = bytes.len().min(old.len());
        let is_read = self.old.read_exact(&mut old[..count]).is_ok();
        self.differs |= !is_read || old[..count] != bytes[..count];
        if self.differs { Err(io::Error::other("differs")) } else { Ok(count) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(in crate::store) fn looks_of(path: &Path) -> Option<Vec<u8>> {
    let of = |metadata: &Metadata| {
        let numbers = [metadata.ino(), metadata.len(), metadata.mtime().cast_unsigned()];
        let nanoseconds = metadata.mtime_nsec().to_be_bytes();
        numbers.iter().flat_map(|number| number.to_be_bytes()).chain(nanoseconds).collect()
    };
    fs::metadata(path).ok().filter(Metadata::is_file).as_ref().map(of)
}

/// From a layout up to the data folder and down to its blobs.
fn link_target(layout: &Path, root: &Path) -> PathBuf {
    let depth = layout.strip_prefix(root).map_or(0, |below| below.components().count());
    std::iter::repeat_n("..", depth).collect::<PathBuf>().join("blobs")
}
