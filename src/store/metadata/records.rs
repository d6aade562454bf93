//! The content of ref files: one JSON object each, without a version, read tolerantly.
//!
//! Missing fields take their default and unknown fields are ignored, so that an older or newer berth can read the
//! same data folder. The same encodings serve as values in the index.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::oci::{Digest, Registry, Speaker};

/// What a tag names, and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagRecord {
    /// The manifest that the tag names.
    pub digest: Digest,
    /// Its exact media type, as upstream gave it.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
    /// When it was fetched, in seconds since 1970.
    #[serde(default)]
    pub fetched_at: u64,
    /// When upstream last confirmed it, in seconds since 1970; zero for never.
    #[serde(default)]
    pub checked_at: u64,
    /// Whether it came from upstream without a credential.
    #[serde(default)]
    pub public: bool,
    /// The manifest that the tag named before. It is served if upstream fails before the new image is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Box<Previous>>,
}

/// The manifest that a tag named before it moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// The manifest.
    pub digest: Digest,
    /// Its exact media type.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
}

/// What one repository knows of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestRecord {
    /// Its exact media type, as upstream gave it.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
    /// Whether it came from upstream without a credential. Once true, it stays true.
    #[serde(default)]
    pub public: bool,
    /// The server that sent it.
    #[serde(default)]
    pub speaker: Speaker,
    /// When it was fetched, in seconds since 1970.
    #[serde(default)]
    pub fetched_at: u64,
}

impl ManifestRecord {
    /// Returns the grant that it implies: a manifest comes by a transfer from its own registry.
    pub(in crate::store) fn grant(&self) -> Grant {
        Grant { public: self.public, proof: Some(Proof::Sent), speaker: self.speaker }
    }
}

/// Upstream's list of what refers to a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferrersRecord {
    /// An image index, byte for byte.
    pub body: Bytes,
    /// When it was fetched, in seconds since 1970.
    pub fetched_at: u64,
}

/// [`ReferrersRecord`] as it is in a file. The body is JSON text, and so a JSON string can hold it.
#[derive(Deserialize)]
pub(in crate::store) struct ReferrersFile {
    #[serde(default)]
    pub fetched_at: u64,
    pub body: String,
}

/// [`ReferrersFile`] for writing, without a copy of a body that may have megabytes.
#[derive(Serialize)]
pub(in crate::store) struct NewReferrersFile<'a> {
    pub fetched_at: u64,
    pub body: &'a str,
}

/// The right of a repository to be served a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Whether it came without a credential, so that every other repository may be served it too.
    #[serde(default)]
    pub public: bool,
    /// How it was proven; `None` if an earlier version of berth took a claim for a proof.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    /// The server that proved it.
    #[serde(default)]
    pub speaker: Speaker,
}

/// How it was proven that a repository may be served a digest; the better proof is the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proof {
    /// An earlier version of berth granted it when no other registry held the content.
    Kept,
    /// Another tool has put it into the repository's layout.
    Adopted,
    /// The registry, which holds it, has said that this repository has it, with the right size.
    Stated,
    /// The registry has sent all of it for this repository.
    Sent,
}

/// [`Grant`] as it is in a file, with the registry that proved it.
#[derive(Serialize)]
pub(in crate::store) struct GrantFile<'a> {
    #[serde(flatten)]
    grant: Grant,
    registry: &'a str,
}

impl<'a> GrantFile<'a> {
    pub(in crate::store) fn new(grant: Grant, registry: &'a Registry) -> Self {
        Self { grant, registry: registry.as_str() }
    }
}

/// Encodes a record for a file or for the index.
pub(in crate::store) fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(record).expect("a struct of plain fields always serialises")
}

/// Decodes a record that [`encode`] wrote; `None` for anything else.
pub(in crate::store) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_other_versions_are_read() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let text = format!(r#"{{"digest":"{digest}","media_type":"x/y","size":3,"colour":"red"}}"#);
        let record: TagRecord = decode(text.as_bytes()).unwrap();
        assert_eq!((record.size, record.checked_at, record.public, &record.previous), (3, 0, false, &None));
        assert_eq!(decode::<TagRecord>(&encode(&record)), Some(record));
        assert_eq!(decode::<TagRecord>(b"{}"), None);
        assert_eq!(decode::<TagRecord>(b"\0\0\0"), None);
        let earlier = Grant { public: false, proof: None, speaker: Speaker::Registry };
        assert_eq!(decode::<Grant>(b"{}"), Some(earlier));
        let grant = Grant { public: true, proof: Some(Proof::Sent), speaker: Speaker::Parent };
        let registry = Registry::parse("r.example").unwrap();
        let file = encode(&GrantFile::new(grant, &registry));
        assert_eq!(
            String::from_utf8_lossy(&file),
            r#"{"public":true,"proof":"sent","speaker":"parent","registry":"r.example"}"#
        );
        assert_eq!(decode::<Grant>(&file), Some(grant));
    }

    #[test]
    fn fuzzed_records_read_back_as_they_are_written() {
        let target = crate::fuzz::Target {
            name: "record",
            words: &[
                "\"digest\":",
                "\"media_type\":",
                "\"size\":",
                "\"fetched_at\":",
                "\"checked_at\":",
                "\"public\":",
                "\"previous\":",
                "\"body\":",
                "18446744073709551615",
                "1e3",
                "sha256:",
                "sha512:",
            ],
        };
        fn check<T: Serialize + DeserializeOwned>(input: &[u8]) {
            let Some(written) = decode::<T>(input).map(|record| encode(&record)) else { return };
            assert_eq!(decode::<T>(&written).map(|record| encode(&record)), Some(written));
        }
        target.holds_for_json(|input| {
            check::<TagRecord>(input);
            check::<ManifestRecord>(input);
            if let Some(file) = decode::<ReferrersFile>(input) {
                let written = encode(&NewReferrersFile { fetched_at: file.fetched_at, body: &file.body });
                assert!(decode::<ReferrersFile>(&written).is_some_and(|read| read.body == file.body));
            }
            check::<Grant>(input);
        });
    }
}
