//! `index.json` as it stands, read entry by entry: one with 100,000 of them is as large as a small image.

use std::fmt;
use std::fs::{self, File};
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::OFlags;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::layout::looks_of;
use super::{Error, disk};

/// 200,000 tags take some 50 MB; of one beyond this nothing is read.
const INDEX_JSON_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Read at a time.
const READ_BYTES: usize = 64 * 1024;

/// What is done with each entry.
type Visit<'a> = &'a mut dyn FnMut(Value) -> Result<(), Error>;

/// An `index.json` that is there.
pub(super) struct IndexJson {
    /// Inode, time and size: what tells one version from the next.
    pub(super) looks: Vec<u8>,
    pub(super) modified: SystemTime,
    path: PathBuf,
    file: File,
}

/// Opens an `index.json`. The looks are taken first: what is written meanwhile will look different.
pub(super) fn open(path: &Path) -> Result<Option<IndexJson>, Error> {
    let Some((looks, metadata)) = looks_of(path).zip(fs::metadata(path).ok()) else { return Ok(None) };
    let Some(modified) = metadata.modified().ok().filter(|_| metadata.len() <= INDEX_JSON_BYTES_MAX) else {
        return Ok(None);
    };
    let Some(file) = disk::open(path, OFlags::empty())? else { return Ok(None) };
    Ok(Some(IndexJson { looks, modified, path: path.to_owned(), file }))
}

impl IndexJson {
    /// Visits each entry, and returns the other fields; `None` if it turns out to be no JSON object.
    pub(super) fn read(self, visit: Visit<'_>) -> Result<Option<Map<String, Value>>, Error> {
        let reader = BufReader::with_capacity(READ_BYTES, self.file.take(INDEX_JSON_BYTES_MAX));
        let mut json = serde_json::Deserializer::from_reader(reader);
        let mut failed = None;
        let fields = json.deserialize_map(Fields { visit, failed: &mut failed });
        if let Some(error) = failed {
            return Err(error);
        }
        match fields.and_then(|fields| json.end().map(|()| fields)) {
            Err(error) if error.is_io() && !error.is_eof() => {
                Err(Error::io("read", &self.path, error.into()))
            }
            other => Ok(other.ok()),
        }
    }
}

/// The whole object.
struct Fields<'a, 'b> {
    visit: Visit<'a>,
    failed: &'b mut Option<Error>,
}

impl<'de> Visitor<'de> for Fields<'_, '_> {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an image index")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "manifests" {
                map.next_value_seed(Entries { visit: &mut *self.visit, failed: &mut *self.failed })?;
            } else {
                fields.insert(name, map.next_value()?);
            }
        }
        Ok(fields)
    }
}

/// The list of entries, or nothing.
struct Entries<'a, 'b> {
    visit: Visit<'a>,
    failed: &'b mut Option<Error>,
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
        while let Some(entry) = entries.next_element()? {
            if let Err(error) = (self.visit)(entry) {
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
            let fields = open(&path).unwrap().unwrap().read(&mut |_| {
                count += 1;
                Ok(())
            });
            let rest = rest.map(|rest| serde_json::from_str(rest).unwrap());
            assert_eq!((count, fields.unwrap()), (entries, rest), "{text}");
        };
        assert!(open(&path).unwrap().is_none());
        check(r#"{"a":1,"manifests":[{"x":1},2,null],"b":{}}"#, 3, Some(r#"{"a":1,"b":{}}"#));
        check(r#"{"manifests":null}"#, 0, Some("{}"));
        check(r#"{"a":1}"#, 0, Some(r#"{"a":1}"#));
        check(r#"{"manifests":[{"x":1},{"#, 1, None);
        check(r#"{"manifests":"no list"}"#, 0, None);
        check(r"{} and more", 0, None);
        check("", 0, None);
        check("[]", 0, None);
    }
}
