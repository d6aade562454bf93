//! Renders the `index.json` of a repository from its refs.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, BufReader, Read as _, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::oci::manifest::is_manifest_type;
use crate::oci::{Digest, Repo, Tag};
use crate::store::disk::files;
use crate::store::disk::{Disk, FileMode};
use crate::store::error::Error;
use crate::store::layout::index_json::{
    self, Content, IndexEntry, IndexJson, Members, REF_NAME, fingerprint,
};
use crate::store::metadata::Metadata;
use crate::store::metadata::index::blob_use::{ShortDigest, short};
use crate::store::metadata::index::key::Fact;

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const LAYOUT_FILE: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// The time by which file times may lag behind the clock: milliseconds on local disks, a second or two on some
/// others.
const CLOCK_GRAIN: Duration = Duration::from_secs(2);
/// Bytes of entries of other tools that are carried over from one `index.json` to the next.
const KEPT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Number of children of indexes that are read for one `index.json`. Beyond it a child may get an entry of its own,
/// which it does not need.
const CHILDREN_LOOKED_AT_MAX: usize = 1_000_000;
/// The parts of an old `index.json` that are not berth's, and stay.
#[derive(Default)]
struct Kept {
    /// The members beside the entries.
    others: Members,
    /// Entries for something that is not in the refs.
    entries: Vec<Box<RawValue>>,
    digests: HashSet<Digest>,
    /// Entries for refs, to which another tool has added something.
    extended: HashMap<(Digest, Option<String>), Box<RawValue>>,
    /// Bytes of all these entries.
    bytes: usize,
}

/// The manifests of a repository that its indexes name.
struct Children {
    /// All manifests of the repository, sorted.
    manifests: Vec<ShortDigest>,
    /// Whether each of them is named.
    are_named: Vec<bool>,
}

impl Children {
    fn name(&mut self, child: ShortDigest) {
        if let Ok(at) = self.manifests.binary_search(&child) {
            self.are_named[at] = true;
        }
    }

    fn has(&self, digest: &Digest) -> bool {
        self.manifests.binary_search(&short(digest)).is_ok_and(|at| self.are_named[at])
    }
}

/// An entry to which nothing is added.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Plain<'a> {
    media_type: &'a str,
    digest: &'a Digest,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<HashMap<&'a str, &'a Tag>>,
}

/// The rendering of one repository.
pub(in crate::store) struct Rendering<'a> {
    disk: &'a Disk,
    metadata: &'a Metadata,
    repo: &'a Repo,
    /// The path of its `index.json`.
    path: PathBuf,
}

impl<'a> Rendering<'a> {
    pub(in crate::store) fn of(disk: &'a Disk, metadata: &'a Metadata, repo: &'a Repo) -> Self {
        Self { disk, metadata, repo, path: metadata.refs().index_json(repo) }
    }

    /// Renders what has changed. Entries of other tools must have been adopted before.
    pub(in crate::store) fn run(&self) -> Result<(), Error> {
        let (metadata, repo, path) = (self.metadata, self.repo, &self.path);
        if !metadata.index().is_complete() {
            // Not all is known that there is to show.
            metadata.mark_stale(repo);
            return Ok(());
        }
        self.furnish()?;
        let old = index_json::open(path)?;
        if old.as_ref().is_some_and(|old| metadata.is_foreign_layout(repo, old.fingerprint())) {
            // Another tool was faster. Its entries come first: the next round adopts and renders them.
            metadata.mark_stale(repo);
            return Ok(());
        }
        let modified = SystemTime::now() - CLOCK_GRAIN;
        let kept = old.map_or_else(|| Ok(Kept::default()), |old| self.kept(old))?;
        if kept.entries.is_empty() && self.clear_repository()? {
            return Ok(());
        }
        let children = self.children()?;
        let write = |out: &mut dyn Write| self.compose(&kept, &children, out);
        if !is_same(path, &write)? {
            let bytes = metadata.refs().index_json_bytes(repo);
            self.disk.replace_with(path, FileMode::PLAIN.modified_at(modified), bytes, &write)?;
        }
        if let Some(found) = fingerprint(path) {
            metadata.index().put_layout(repo, &found);
        }
        Ok(())
    }

    /// Removes the folder of a repository if it has no refs any more. Returns whether that is so.
    fn clear_repository(&self) -> Result<bool, Error> {
        let _guard = self.metadata.lock(self.repo);
        if !self.metadata.refs().is_empty(self.repo)? {
            return Ok(false);
        }
        let layout = self.metadata.refs().layout(self.repo);
        // Of berth's own making only: what else there may be, somebody else has put there.
        for name in ["index.json", "oci-layout", "blobs"] {
            let _ = fs::remove_file(layout.join(name));
        }
        self.metadata.refs().clear(self.repo);
        self.metadata.index().remove(&Fact::Repo(self.repo.clone()));
        Ok(true)
    }

    /// Makes the folder a layout, with the marker file and the link to the blobs.
    fn furnish(&self) -> Result<(), Error> {
        let layout = self.metadata.refs().layout(self.repo);
        let marker = layout.join("oci-layout");
        if !marker.is_file() {
            self.disk.replace(&marker, LAYOUT_FILE, FileMode::PLAIN)?;
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

    /// Returns the parts of an old `index.json` that stay.
    fn kept(&self, old: IndexJson) -> Result<Kept, Error> {
        let path = self.path.clone();
        let mut kept = Kept::default();
        let content = old.read(&mut |entry| {
            if entry.digest.is_some_and(|digest| !self.metadata.is_here(&digest)) {
                // Whoever wrote it had the time to bring the manifest: it was evicted.
                return Ok(());
            }
            let is_foreign = self.is_foreign_entry(&entry);
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

    /// Whether an entry is for something that is not in the refs: an unknown tag, unknown content, or annotations of
    /// a manifest without a name.
    fn is_foreign_entry(&self, entry: &IndexEntry) -> bool {
        match entry.name {
            Some(_) => entry.tag().is_none_or(|tag| self.metadata.index().tag(self.repo, &tag).is_none()),
            None => {
                let is_ours = |digest| self.metadata.index().manifest(self.repo, &digest).is_some();
                !entry.digest.is_some_and(is_ours) || entry.is_annotated
            }
        }
    }

    /// Returns the manifests of the repository that its stored indexes name. They need no entry of their own.
    fn children(&self) -> Result<Children, Error> {
        let (mut manifests, mut indexes) = (Vec::new(), Vec::new());
        complete(self.metadata.index().each_manifest(self.repo, &mut |digest, record| {
            manifests.push(short(&digest));
            if record.media_type.contains("index") || record.media_type.contains("list") {
                indexes.push((digest, record.media_type));
            }
            Ok(())
        }))
        .map_err(|error| {
            Error::io("read what is known of", &self.metadata.refs().layout(self.repo), error)
        })?;
        manifests.sort_unstable();
        let mut children = Children { are_named: vec![false; manifests.len()], manifests };
        let mut looked_at = 0;
        for (digest, media_type) in indexes {
            let parts = self.metadata.parts(&digest, &media_type)?;
            looked_at += parts.len();
            parts.into_iter().for_each(|part| children.name(part));
            if looked_at > CHILDREN_LOOKED_AT_MAX {
                break;
            }
        }
        Ok(children)
    }

    /// Writes the new `index.json`: the refs, and the parts of the old one that stay. Each entry has a line, and the
    /// entries come last, because there may be many.
    fn compose(&self, kept: &Kept, children: &Children, out: &mut dyn Write) -> io::Result<()> {
        write!(out, "{{\"schemaVersion\":2,\"mediaType\":\"{INDEX_TYPE}\"")?;
        for (name, value) in &kept.others {
            if !["schemaVersion", "mediaType", "manifests"].contains(&name.as_str()) {
                write!(out, ",{}:{value}", json!(name))?;
            }
        }
        write!(out, ",\"manifests\":[")?;
        let lines = RefCell::new(Lines { out, has_any: false });
        let mut tagged = Vec::new();
        let tags = self.metadata.index().each_tag(self.repo, &mut |tag, record| {
            if !self.metadata.is_here(&record.digest) {
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
        let manifests = self.metadata.index().each_manifest(self.repo, &mut |digest, record| {
            if is_named(&digest) || !self.metadata.is_here(&digest) {
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
}

/// Writes entries, one a line.
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

/// Returns an error unless all of the index was visited.
fn complete(visited: Option<io::Result<()>>) -> io::Result<()> {
    visited.unwrap_or_else(|| Err(io::Error::other("the index has failed meanwhile")))
}

/// Whether a file has exactly the content that `write` would write.
fn is_same(path: &Path, write: &dyn Fn(&mut dyn Write) -> io::Result<()>) -> Result<bool, Error> {
    let Some(file) = files::open(path, OFlags::empty())? else { return Ok(false) };
    let mut old = Compared { old: BufReader::new(file), differs: false };
    match write(&mut old) {
        Err(_) if old.differs => Ok(false),
        Err(source) => Err(Error::io("render", path, source)),
        Ok(()) => Ok(matches!(old.old.read(&mut [0]), Ok(0))),
    }
}

/// A writer that fails on the first byte that differs from a file.
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

/// Returns the relative path from a layout to the shared blobs.
fn link_target(layout: &Path, root: &Path) -> PathBuf {
    let depth = layout.strip_prefix(root).map_or(0, |below| below.components().count());
    std::iter::repeat_n("..", depth).collect::<PathBuf>().join("blobs")
}
