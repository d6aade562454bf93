//! A manifest's members, read one after the other: what is not needed is never built, and descriptors are counted.

use std::fmt;

use serde::Deserialize as _;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Described, Descriptor, InvalidManifest, Kind, Manifest, OCI_INDEX, OCI_MANIFEST, kind, known};
use crate::oci::Digest;
use crate::oci::json::{DESCRIPTORS_MAX, List, Text, members};

/// Longest text of a platform; what an index says of one has some 60 bytes.
const PLATFORM_BYTES_MAX: usize = 1024;

/// The members of all kinds of manifest. A list that is null counts as empty but there, as Go writes it.
#[derive(Default)]
pub(super) struct Document {
    schema_version: Option<u64>,
    media_type: Option<Result<&'static str, InvalidManifest>>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    blobs: Option<Vec<Descriptor>>,
    /// So many descriptors so far, of all of these.
    count: usize,
}

impl Document {
    /// Reads a body without judging what it says.
    pub(super) fn read(body: &[u8]) -> Result<Self, InvalidManifest> {
        let mut document = Self::default();
        let mut json = serde_json::Deserializer::from_slice(body);
        let read = json.deserialize_map(&mut document).and_then(|()| json.end());
        match read {
            Ok(()) => Ok(document),
            Err(_) if document.count > DESCRIPTORS_MAX => Err(InvalidManifest::TooManyParts),
            Err(error) => Err(InvalidManifest::NotJson(error)),
        }
    }

    /// Judges it: `header` is the type that was sent along.
    pub(super) fn judge(mut self, header: Option<&'static str>) -> Result<Manifest, InvalidManifest> {
        if self.schema_version == Some(1) {
            return Err(InvalidManifest::Schema1);
        }
        let stated = match self.media_type.take() {
            Some(inner) => inner,
            None if self.manifests.is_some() => Ok(OCI_INDEX),
            None if self.config.is_some() && self.layers.is_some() => Ok(OCI_MANIFEST),
            None => Err(InvalidManifest::Untyped),
        };
        let is_type_confirmed =
            header.is_none_or(|header| stated.as_ref().is_ok_and(|stated| *stated == header));
        let media_type = header.map_or(stated, Ok)?;
        self.into_manifest(media_type, is_type_confirmed)
    }

    fn into_manifest(
        self,
        media_type: &'static str,
        is_type_confirmed: bool,
    ) -> Result<Manifest, InvalidManifest> {
        let kind = kind(media_type);
        let image = self.config.is_some() || self.layers.is_some();
        let fits = match kind {
            Kind::Index => self.manifests.is_some() && !image,
            Kind::Image => image && self.manifests.is_none(),
            Kind::Artifact => !image && self.manifests.is_none(),
        };
        if !fits {
            return Err(InvalidManifest::Shape(media_type));
        }
        let blobs = match kind {
            Kind::Index => Vec::new(),
            Kind::Image => self.config.into_iter().chain(self.layers.unwrap_or_default()).collect(),
            Kind::Artifact => self.blobs.unwrap_or_default(),
        };
        Ok(Manifest {
            media_type: media_type.to_owned(),
            is_type_confirmed,
            kind,
            manifests: self.manifests.unwrap_or_default(),
            blobs,
        })
    }

    fn list<'de, A: MapAccess<'de>>(&mut self, map: &mut A) -> Result<Vec<Descriptor>, A::Error> {
        let mut list = Vec::new();
        map.next_value_seed(List(&mut Next { list: &mut list, count: &mut self.count }))?;
        Ok(list)
    }

    fn one<'de, A: MapAccess<'de>>(&mut self, map: &mut A) -> Result<Option<Descriptor>, A::Error> {
        count(&mut self.count)?;
        map.next_value::<Option<Descriptor>>()
    }
}

/// Counts a descriptor, before it is read.
fn count<E: serde::de::Error>(count: &mut usize) -> Result<(), E> {
    *count += 1;
    if *count > DESCRIPTORS_MAX { Err(E::custom("too many descriptors")) } else { Ok(()) }
}

impl<'de> Visitor<'de> for &mut Document {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a manifest")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        const NAMES: [&str; 7] =
            ["schemaVersion", "mediaType", "manifests", "config", "layers", "blobs", "subject"];
        members(&mut map, &NAMES, |name, map| {
            match name {
                "schemaVersion" => self.schema_version = map.next_value()?,
                "mediaType" => {
                    let typed = |text: &str| (!text.is_empty()).then(|| known(text));
                    self.media_type = map.next_value_seed(Text(typed))?.flatten();
                }
                "manifests" => self.manifests = Some(self.list(map)?),
                "config" => self.config = self.one(map)?,
                "layers" => self.layers = Some(self.list(map)?),
                "blobs" => self.blobs = Some(self.list(map)?),
                // It exists without this manifest, and is only to be well-formed.
                _ => drop(self.one(map)?),
            }
            Ok(())
        })
    }
}

/// Reads the next descriptor of a list.
struct Next<'a> {
    list: &'a mut Vec<Descriptor>,
    count: &'a mut usize,
}

impl<'de> DeserializeSeed<'de> for &mut Next<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        count(self.count)?;
        self.list.push(Descriptor::deserialize(json)?);
        Ok(())
    }
}

impl<'de> serde::Deserialize<'de> for Descriptor {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_map(Fields)
    }
}

/// Reads a descriptor.
struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Descriptor;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a descriptor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Descriptor, A::Error> {
        let mut descriptor = Descriptor::default();
        members(&mut map, &["mediaType", "digest", "size", "platform"], |name, map| {
            match name {
                "mediaType" => {
                    let typed = |text: &str| known(text).ok();
                    descriptor.manifest_type = map.next_value_seed(Text(typed))?.flatten();
                }
                "digest" => {
                    let parsed = |text: &str| Digest::parse(text).ok();
                    descriptor.digest = map.next_value_seed(Text(parsed))?.flatten();
                }
                "size" => descriptor.size = map.next_value::<Option<u64>>()?.unwrap_or_default(),
                _ => descriptor.platform = Described::read(map.next_value::<&RawValue>()?.get()),
            }
            Ok(())
        })?;
        Ok(descriptor)
    }
}

impl Described {
    /// What an index says of a platform; none if that is nonsense, which hinders nobody who does not pin platforms.
    pub(crate) fn read(text: &str) -> Option<Box<Self>> {
        if text.len() > PLATFORM_BYTES_MAX {
            return None;
        }
        let mut json = serde_json::Deserializer::from_str(text);
        json.deserialize_map(Platforms).ok().map(Box::new)
    }
}

/// Reads what an index says of a platform.
struct Platforms;

impl<'de> Visitor<'de> for Platforms {
    type Value = Described;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a platform")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Described, A::Error> {
        let mut described = Described::default();
        members(&mut map, &["os", "architecture", "variant"], |name, map| {
            let text = map.next_value_seed(Text(|text: &str| Box::from(text)))?.unwrap_or_default();
            match name {
                "os" => described.os = text,
                "architecture" => described.architecture = text,
                _ => described.variant = text,
            }
            Ok(())
        })?;
        Ok(described)
    }
}
