//! A manifest's members, read one after the other: what is not needed is never built, and descriptors are counted.
//!
//! The reader is as loose as that of clients, which are written in Go. A member may come twice, and in two letter cases:
//! Go takes the last and other readers another, so all that any of them names is taken for a part. A value of the wrong
//! type counts as absent, unless it stands where a descriptor or a list of them must.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize as _;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{
    Declared, Described, Descriptor, InvalidManifest, Kind, Manifest, OCI_INDEX, OCI_MANIFEST, kind, known,
};
use crate::oci::Digest;
use crate::oci::json::{DESCRIPTORS_MAX, List, Text, all_members, members};

/// Longest text of a platform; what an index says of one has some 60 bytes.
const PLATFORM_BYTES_MAX: usize = 1024;
/// Longest media type or digest, as written; a longer one is none that is known here.
const TEXT_BYTES_MAX: usize = 1024;

/// The members of all kinds of manifest. A list that is null counts as empty but there, as Go writes it.
#[derive(Default)]
pub(super) struct Document {
    /// Whether that is 1.
    schema_version: Option<bool>,
    media_type: Option<Result<&'static str, InvalidManifest>>,
    manifests: Option<Vec<Descriptor>>,
    config: Vec<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    blobs: Option<Vec<Descriptor>>,
    /// So many descriptors so far, of all of these.
    count: usize,
}

impl Document {
    /// Reads a body without judging what it says.
    pub(super) fn read(body: &[u8]) -> Result<Self, InvalidManifest> {
        let mut document = Self::default();
        let body = text_of(body);
        let mut json = serde_json::Deserializer::from_slice(&body);
        let read = json.deserialize_map(&mut document).and_then(|()| json.end());
        match read {
            Ok(()) => Ok(document),
            Err(_) if document.count > DESCRIPTORS_MAX => Err(InvalidManifest::TooManyParts),
            Err(error) => Err(InvalidManifest::NotJson(error)),
        }
    }

    /// Judges it: `header` is the type that was sent along.
    pub(super) fn judge(mut self, header: Declared) -> Result<Manifest, InvalidManifest> {
        if self.schema_version == Some(true) {
            return Err(InvalidManifest::Schema1);
        }
        let is_manifest = self.is_like_a_manifest();
        let (stated, is_said) = match self.media_type.take() {
            Some(inner) => (inner, true),
            None if self.manifests.is_some() => (Ok(OCI_INDEX), false),
            None if !self.config.is_empty() && self.layers.is_some() => (Ok(OCI_MANIFEST), false),
            None => (Err(InvalidManifest::Untyped), false),
        };
        match header {
            Declared::Known(header) => {
                let is_type_confirmed = stated.is_ok_and(|stated| stated == header);
                self.into_manifest(header, is_type_confirmed)
            }
            // A label of another kind of thing is not believed before the content.
            Declared::Foreign(error) if !(is_said && stated.is_ok()) => {
                let is_manifest = is_manifest || matches!(error, InvalidManifest::Schema1);
                Err(if is_manifest { error } else { InvalidManifest::Untyped })
            }
            Declared::Foreign(_) | Declared::Nothing => self.into_manifest(stated?, true),
        }
    }

    /// Whether it has any member that only manifests have.
    fn is_like_a_manifest(&self) -> bool {
        let has_parts = self.manifests.is_some() || self.layers.is_some() || self.blobs.is_some();
        has_parts || self.schema_version.is_some() || self.media_type.is_some() || !self.config.is_empty()
    }

    fn into_manifest(
        self,
        media_type: &'static str,
        is_type_confirmed: bool,
    ) -> Result<Manifest, InvalidManifest> {
        let kind = kind(media_type);
        let image = !self.config.is_empty() || self.layers.is_some();
        // An index of nothing may leave its list out.
        let is_versioned = self.schema_version.is_some();
        let fits = match kind {
            Kind::Index => (self.manifests.is_some() || is_versioned) && !image,
            Kind::Image => image && self.manifests.is_none(),
            Kind::Artifact => !image && self.manifests.is_none(),
        };
        if !fits {
            let is_any = image || self.manifests.is_some();
            return Err(if is_any { InvalidManifest::Shape(media_type) } else { InvalidManifest::Untyped });
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
}

/// The same bytes, with a question mark for each that is in no character: clients put U+FFFD there, which is longer.
fn text_of(body: &[u8]) -> Cow<'_, [u8]> {
    let mut text = Cow::Borrowed(body);
    let mut at = 0;
    while let Err(error) = std::str::from_utf8(&text[at..]) {
        let from = at + error.valid_up_to();
        at = error.error_len().map_or(text.len(), |length| from + length);
        text.to_mut()[from..at].fill(b'?');
    }
    text
}

/// Counts a descriptor, before it is read.
fn count<E: serde::de::Error>(count: &mut usize) -> Result<(), E> {
    *count += 1;
    if *count > DESCRIPTORS_MAX { Err(E::custom("too many descriptors")) } else { Ok(()) }
}

/// Reads a list of descriptors, and adds them to those of its name that came before.
fn list<'de, A: MapAccess<'de>>(
    map: &mut A,
    into: &mut Option<Vec<Descriptor>>,
    count: &mut usize,
) -> Result<(), A::Error> {
    let list = into.get_or_insert_default();
    map.next_value_seed(List(&mut Next { list, count }))
}

/// A short text; none if it is something else.
fn text<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<String>, A::Error> {
    let value = map.next_value::<&RawValue>()?.get();
    Ok(if value.len() <= TEXT_BYTES_MAX { serde_json::from_str(value).ok() } else { None })
}

impl<'de> Visitor<'de> for &mut Document {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a manifest")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        const NAMES: [&str; 7] =
            ["schemaVersion", "mediaType", "manifests", "config", "layers", "blobs", "subject"];
        all_members(&mut map, &NAMES, |name, map| {
            match name {
                "schemaVersion" => {
                    let version: Result<f64, _> = serde_json::from_str(map.next_value::<&RawValue>()?.get());
                    self.schema_version = version.ok().map(|version| (0.5..1.5).contains(&version));
                }
                "mediaType" => {
                    if let Some(text) = text(map)?.filter(|text| !text.is_empty()) {
                        self.media_type = Some(known(&text));
                    }
                }
                "manifests" => list(map, &mut self.manifests, &mut self.count)?,
                "config" => {
                    count(&mut self.count)?;
                    self.config.extend(map.next_value::<Option<Descriptor>>()?);
                }
                "layers" => list(map, &mut self.layers, &mut self.count)?,
                "blobs" => list(map, &mut self.blobs, &mut self.count)?,
                // It exists without this manifest.
                _ => {
                    count(&mut self.count)?;
                    map.next_value::<IgnoredAny>()?;
                }
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
        self.list.push(Option::deserialize(json)?.unwrap_or_default());
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
        all_members(&mut map, &["mediaType", "digest", "size", "platform"], |name, map| {
            match name {
                "mediaType" => {
                    if let Some(text) = text(map)? {
                        descriptor.manifest_type = known(&text).ok();
                    }
                }
                "digest" => {
                    if let Some(text) = text(map)? {
                        descriptor.digest = Digest::parse(&text).ok();
                    }
                }
                // One that is negative, or no number, is as good as unknown.
                "size" => descriptor.size = map.next_value::<&RawValue>()?.get().parse().unwrap_or_default(),
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
