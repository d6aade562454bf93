//! `index.json` as it is, read entry by entry: one with 100,000 of them is as large as a small image.
//!
//! Other programs write it, and what they put there stays as the text that it is: only the entry that is being read
//! is parsed. An entry, and all that stands beside the entries, has a limit; a file beyond it is not read, and so
//! must not be replaced either.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, BufReader, Read, Take};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::OFlags;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::{RawValue, to_raw_value};

use crate::oci::{Digest, Tag};
use crate::store::disk::files;
use crate::store::error::Error;

/// The annotation that makes an entry a tag (image-spec, "annotations").
pub(in crate::store) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Bytes of the largest `index.json` that is read. 200,000 tags take some 50 MB.
const INDEX_JSON_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Bytes of the longest entry, and of the longest member beside the entries. Tools write some hundred bytes.
const ENTRY_BYTES_MAX: usize = 64 * 1024;
/// Bytes of all members beside the entries.
const OTHERS_BYTES_MAX: usize = 1024 * 1024;
/// Size of the read buffer in bytes.
const READ_BYTES: usize = 64 * 1024;

/// Is called with each entry.
type Visit<'a> = &'a mut dyn FnMut(IndexEntry) -> Result<(), Error>;
/// The members of a JSON object as they are in the file.
pub(in crate::store) type Members = BTreeMap<String, Box<RawValue>>;

/// An opened `index.json`.
pub(in crate::store) struct IndexJson {
    fingerprint: Vec<u8>,
    modified: SystemTime,
    path: PathBuf,
    file: File,
}

/// The content of an `index.json` besides its entries.
#[derive(Debug)]
pub(in crate::store) enum Content {
    /// It is an index with these members beside its entries.
    Index(Members),
    /// It is no JSON object, and has no entries.
    NoJson,
    /// It is beyond the limits, and must not be replaced.
    TooLong,
}

/// An entry of an index, and what berth reads of it.
#[derive(Debug)]
pub(in crate::store) struct IndexEntry {
    pub text: Box<RawValue>,
    /// The digest; `None` if berth cannot verify its algorithm.
    pub digest: Option<Digest>,
    /// Its name, which need not be a valid tag.
    pub name: Option<String>,
    pub media_type: String,
    /// Whether it has annotations.
    pub is_annotated: bool,
    /// Whether it has nothing but what berth itself would write.
    pub is_plain: bool,
}

impl IndexEntry {
    fn read(text: Box<RawValue>) -> Self {
        // What is no object stands for nothing that berth knows.
        let members: Members = serde_json::from_str(text.get()).unwrap_or_default();
        let text_of = |members: &Members, name: &str| -> Option<String> {
            serde_json::from_str(members.get(name)?.get()).ok()
        };
        let notes = members.get("annotations");
        let annotations: Option<Members> = notes.and_then(|notes| serde_json::from_str(notes.get()).ok());
        let has_only = |members: &Members, names: &[&str]| members.keys().all(|it| names.contains(&&**it));
        let is_plain = has_only(&members, &["mediaType", "digest", "size", "annotations"])
            && notes.is_none_or(|_| annotations.as_ref().is_some_and(|it| has_only(it, &[REF_NAME])));
        Self {
            digest: text_of(&members, "digest").and_then(|digest| Digest::parse(&digest).ok()),
            name: annotations.as_ref().and_then(|annotations| text_of(annotations, REF_NAME)),
            media_type: text_of(&members, "mediaType").unwrap_or_default(),
            is_annotated: notes.is_some(),
            is_plain,
            text,
        }
    }

    /// Returns its name if that is a valid tag.
    pub(in crate::store) fn tag(&self) -> Option<Tag> {
        Tag::parse(self.name.as_ref()?).ok()
    }
}

/// Returns the members of an entry with this digest, media type and size.
pub(in crate::store) fn restated(
    entry: &RawValue,
    digest: &Digest,
    media_type: &str,
    size: u64,
) -> serde_json::Result<Members> {
    let mut members: Members = serde_json::from_str(entry.get())?;
    members.insert("mediaType".to_owned(), to_raw_value(media_type)?);
    members.insert("digest".to_owned(), to_raw_value(digest)?);
    members.insert("size".to_owned(), to_raw_value(&size)?);
    Ok(members)
}

/// Opens an `index.json`. Its fingerprint is taken first, so that a file that is written meanwhile has another one.
pub(in crate::store) fn open(path: &Path) -> Result<Option<IndexJson>, Error> {
    let Some((found, metadata)) = fingerprint(path).zip(fs::metadata(path).ok()) else { return Ok(None) };
    let Some(modified) = metadata.modified().ok().filter(|_| metadata.len() <= INDEX_JSON_BYTES_MAX) else {
        return Ok(None);
    };
    let Some(file) = files::open(path, OFlags::empty())? else { return Ok(None) };
    Ok(Some(IndexJson { fingerprint: found, modified, path: path.to_owned(), file }))
}

/// Returns what tells one version of a file from the next: inode, size and time of modification. `None` if it is no
/// file.
pub(in crate::store) fn fingerprint(path: &Path) -> Option<Vec<u8>> {
    let of = |metadata: &Metadata| {
        let numbers = [metadata.ino(), metadata.len(), metadata.mtime().cast_unsigned()];
        let nanoseconds = metadata.mtime_nsec().to_be_bytes();
        numbers.iter().flat_map(|number| number.to_be_bytes()).chain(nanoseconds).collect()
    };
    fs::metadata(path).ok().filter(Metadata::is_file).as_ref().map(of)
}

impl IndexJson {
    /// Returns what tells this version from the next.
    pub(in crate::store) fn fingerprint(&self) -> &[u8] {
        &self.fingerprint
    }

    pub(in crate::store) fn modified(&self) -> SystemTime {
        self.modified
    }

    /// Visits each entry.
    pub(in crate::store) fn read(self, visit: Visit<'_>) -> Result<Content, Error> {
        let left = Cell::new(ENTRY_BYTES_MAX);
        let reader = BufReader::with_capacity(READ_BYTES, self.file.take(INDEX_JSON_BYTES_MAX));
        let mut json = serde_json::Deserializer::from_reader(Metered { reader, left: &left });
        let mut failed = None;
        let others = json.deserialize_map(Whole { visit, failed: &mut failed, left: &left });
        if let Some(error) = failed {
            return Err(error);
        }
        match others.and_then(|others| json.end().map(|()| others)) {
            Ok(others) => Ok(Content::Index(others)),
            Err(_) if left.get() == 0 => Ok(Content::TooLong),
            Err(error) if error.is_io() && !error.is_eof() => {
                Err(Error::io("read", &self.path, error.into()))
            }
            Err(_) => Ok(Content::NoJson),
        }
    }

    /// Makes the error that it is too long to be replaced.
    pub(in crate::store) fn too_long(path: &Path) -> Error {
        let source = "more of another tool's in it than berth keeps track of: it is left as it is";
        Error::io("replace", path, io::Error::other(source))
    }
}

/// A reader that fails after `left` bytes, unless more are allowed meanwhile.
struct Metered<'a> {
    reader: BufReader<Take<File>>,
    left: &'a Cell<usize>,
}

impl Read for Metered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        if left == 0 {
            return Err(io::Error::other("too long"));
        }
        let some = buffer.len().min(left);
        let count = self.reader.read(&mut buffer[..some])?;
        self.left.set(left - count);
        Ok(count)
    }
}

/// Reads the whole JSON object.
struct Whole<'a, 'b> {
    visit: Visit<'a>,
    failed: &'b mut Option<Error>,
    left: &'b Cell<usize>,
}

impl<'de> Visitor<'de> for Whole<'_, '_> {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an image index")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut others, mut bytes) = (Members::new(), 0);
        while let Some(name) = map.next_key::<String>()? {
            if name == "manifests" {
                let (visit, failed) = (&mut *self.visit, &mut *self.failed);
                map.next_value_seed(Entries { visit, failed, left: self.left })?;
                continue;
            }
            let value: Box<RawValue> = map.next_value()?;
            bytes += name.len() + value.get().len();
            if bytes > OTHERS_BYTES_MAX {
                self.left.set(0);
                return Err(A::Error::custom("too long"));
            }
            self.left.set(ENTRY_BYTES_MAX);
            others.insert(name, value);
        }
        Ok(others)
    }
}

/// Reads the list of entries, or `null`.
struct Entries<'a, 'b> {
    visit: Visit<'a>,
    failed: &'b mut Option<Error>,
    left: &'b Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Entries<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of descriptors")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(text) = entries.next_element()? {
            self.left.set(ENTRY_BYTES_MAX);
            if let Err(error) = (self.visit)(IndexEntry::read(text)) {
                *self.failed = Some(error);
                return Err(A::Error::custom("an entry cannot be dealt with"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn entries_come_one_by_one_and_the_rest_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.json");
        let check = |text: &str, entries: usize, rest: Option<&str>| {
            File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
            let mut count = 0;
            let content = open(&path).unwrap().unwrap().read(&mut |_| {
                count += 1;
                Ok(())
            });
            let found = match content.unwrap() {
                Content::Index(others) => Some(serde_json::to_string(&others).unwrap()),
                Content::NoJson => None,
                Content::TooLong => Some("too long".to_owned()),
            };
            assert_eq!((count, found.as_deref()), (entries, rest), "{text:.60}");
        };
        let long = "x".repeat(ENTRY_BYTES_MAX);
        assert!(open(&path).unwrap().is_none());
        check(r#"{"a":1,"manifests":[{"x":1},2,null],"b":{}}"#, 3, Some(r#"{"a":1,"b":{}}"#));
        check(r#"{"manifests":null}"#, 0, Some("{}"));
        check(r#"{"a":1}"#, 0, Some(r#"{"a":1}"#));
        check(r#"{"manifests":[{"x":1},{"#, 1, None);
        check(r#"{"manifests":"no list"}"#, 0, None);
        check(r"{} and more", 0, None);
        check("", 0, None);
        check("[]", 0, None);
        check(&format!(r#"{{"manifests":[1,{{"x":"{long}"}}]}}"#), 1, Some("too long"));
        check(&format!(r#"{{"manifests":[1],"x":"{long}"}}"#), 1, Some("too long"));
        check(&format!(r#"{{"manifests":[1{}]}}"#, " ".repeat(ENTRY_BYTES_MAX)), 1, Some("too long"));
        let half = &long[long.len() / 2..];
        let many: Vec<_> = (0..40).map(|number| format!(r#""{number}":"{half}""#)).collect();
        check(&format!("{{{}}}", many.join(",")), 0, Some("too long"));
        let many = vec![format!(r#"{{"x":"{half}"}}"#); 40];
        check(&format!(r#"{{"manifests":[{}]}}"#, many.join(",")), 40, Some("{}"));
    }

    #[test]
    fn an_entry_is_plain_if_berth_would_say_the_same() {
        let read = |text: &str| IndexEntry::read(serde_json::from_str(text).unwrap());
        let digest = format!("sha256:{}", "ab".repeat(32));
        let named = format!(
            r#"{{"mediaType":"m","digest":"{digest}","size":1,"annotations":{{"{REF_NAME}":"\u0031"}}}}"#
        );
        let entry = read(&named);
        assert_eq!((entry.name.as_deref(), entry.media_type.as_str()), (Some("1"), "m"));
        assert_eq!(entry.digest.map(|it| it.to_string()), Some(digest));
        assert!(entry.is_plain && entry.is_annotated && entry.tag().is_some());
        let check = |text: &str, is_plain: bool, is_annotated: bool| {
            let entry = read(text);
            assert_eq!((entry.is_plain, entry.is_annotated), (is_plain, is_annotated), "{text}");
        };
        check(r#"{"size":1}"#, true, false);
        check(r#"{"size":1,"platform":{}}"#, false, false);
        check(r#"{"annotations":{"a":"b"}}"#, false, true);
        check(r#"{"annotations":null}"#, false, true);
        assert!(read("7").digest.is_none() && read(r#"{"digest":"blake3:00"}"#).digest.is_none());
    }

    #[test]
    fn fuzzed_layouts_of_other_tools_are_read_or_left_alone() {
        let target = crate::fuzz::Target {
            name: "index-json",
            words: &[
                "\"manifests\":",
                "\"digest\":",
                "\"size\":",
                "\"mediaType\":",
                "\"annotations\":",
                "\"org.opencontainers.image.ref.name\":",
                "\"platform\":",
                "sha256:",
                "latest",
                "../",
            ],
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.json");
        target.holds_for_json(|input| {
            File::create(&path).unwrap().write_all(input).unwrap();
            let content = open(&path).unwrap().unwrap().read(&mut |entry| {
                let tag = entry.tag();
                assert!(tag.is_none_or(|tag| !tag.as_str().contains('/') && !tag.as_str().starts_with('.')));
                assert!(entry.digest.is_none_or(|digest| Digest::parse(&digest.to_string()) == Ok(digest)));
                Ok(())
            });
            if let Content::Index(others) = content.unwrap() {
                assert!(!others.contains_key("manifests"));
            }
        });
    }
}
