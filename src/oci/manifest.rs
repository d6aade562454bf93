//! Manifests: just enough of them to know their type and what they refer to.
//!
//! Nothing is ever written back: a manifest is stored and served as the bytes that came, and this is only a
//! view of them. Fields that are not needed are skipped, and a child with a foreign media type or digest
//! algorithm is no error. What is refused is what no client takes: schema 1 (a cache cannot verify it by
//! hashing), a document of two kinds at once (CVE-2021-41190), and pages that are no manifest, such as the
//! HTML of a captive portal.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::digest::Digest;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Withdrawn before OCI 1.1 was final, but oras lists it still and some registries hold such artifacts.
const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";
const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+";

/// What every upstream is asked for, whatever the client accepts: with less, some registries answer schema 1
/// or one platform of an index.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.oci.artifact.manifest.v1+json";

/// The largest manifest: containerd's real cap (4 × 1048 × 1048), a little above the 4 MiB that registries
/// should take.
pub const MANIFEST_BYTES_MAX: usize = 4_393_216;

/// What a manifest refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A config and layers.
    Image,
    /// Other manifests, usually one per platform.
    Index,
    /// Blobs, in the withdrawn artifact form.
    Artifact,
}

/// A claim about some content. It proves nothing: see "Who may be served a digest" in the design.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Its media type.
    #[serde(default, deserialize_with = "null_is_default")]
    pub media_type: String,
    /// Its digest as written, perhaps of an algorithm unknown here.
    #[serde(default, deserialize_with = "null_is_default")]
    pub digest: String,
    /// Its size as claimed.
    #[serde(default, deserialize_with = "null_is_default")]
    pub size: u64,
    /// The type of artifact it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Notes on it.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// In an index: the platform it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Value>,
}

impl Descriptor {
    /// The digest, unless its algorithm is unknown here: never an error in a store.
    pub fn digest(&self) -> Option<Digest> {
        Digest::parse(&self.digest).ok()
    }
}

/// What a manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// One of the types in [`ACCEPT`].
    pub media_type: String,
    /// Whether the content says that type itself; else it is the word of whoever sent it.
    pub is_type_confirmed: bool,
    /// What it refers to.
    pub kind: Kind,
    /// The manifests of an index.
    pub manifests: Vec<Descriptor>,
    /// The config and layers of an image, or the blobs of an artifact.
    pub blobs: Vec<Descriptor>,
    /// The manifest that this one is about.
    pub subject: Option<Descriptor>,
    /// Its own artifact type, else for an image the type of its config: what a referrers list shows.
    pub artifact_type: Option<String>,
    /// Notes on it.
    pub annotations: BTreeMap<String, String>,
}

/// Why a body is not a manifest that berth serves.
#[derive(Debug, thiserror::Error)]
pub enum InvalidManifest {
    /// Refuse it; no client would take it.
    #[error("manifest larger than {MANIFEST_BYTES_MAX} bytes")]
    TooLarge,
    /// Not JSON, or fields of the wrong type.
    #[error("not the JSON of a manifest")]
    NotJson(#[source] serde_json::Error),
    /// The old Docker form.
    #[error("manifest of schema 1, which clients no longer take")]
    Schema1,
    /// A type that is not a manifest's; the text is cut and printable.
    #[error("not a manifest's media type: `{0}`")]
    UnknownType(String),
    /// It has not the fields of its type, or those of two types.
    #[error("the fields do not fit the media type {0}")]
    Shape(&'static str),
    /// Neither a type nor telling fields.
    #[error("neither a media type nor the fields of a manifest")]
    Untyped,
}

/// The fields of all kinds of manifest. A list that is null counts as empty but there, as Go writes it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    #[serde(default, deserialize_with = "present")]
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    #[serde(default, deserialize_with = "present")]
    layers: Option<Vec<Descriptor>>,
    #[serde(default, deserialize_with = "present")]
    blobs: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    #[serde(default, deserialize_with = "null_is_default")]
    annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// Reads a manifest. The `Content-Type` decides its type if it is a manifest's. If it is none or a
    /// general one, the `mediaType` within decides, else the fields do.
    ///
    /// # Errors
    /// [`InvalidManifest`]: to a cache, all of them mean that upstream did not answer with a manifest.
    pub fn parse(content_type: Option<&str>, body: &[u8]) -> Result<Self, InvalidManifest> {
        if body.len() > MANIFEST_BYTES_MAX {
            return Err(InvalidManifest::TooLarge);
        }
        let header = declared(content_type)?;
        let document: Document = serde_json::from_slice(body).map_err(InvalidManifest::NotJson)?;
        if document.schema_version == Some(1) {
            return Err(InvalidManifest::Schema1);
        }
        let inner = document.media_type.as_deref().filter(|inner| !inner.is_empty());
        let stated = match inner {
            Some(inner) => known(inner),
            None if document.manifests.is_some() => Ok(OCI_INDEX),
            None if document.config.is_some() && document.layers.is_some() => Ok(OCI_MANIFEST),
            None => Err(InvalidManifest::Untyped),
        };
        let is_type_confirmed =
            header.is_none_or(|header| stated.as_ref().is_ok_and(|stated| *stated == header));
        let media_type = header.map_or(stated, Ok)?;
        document.into_manifest(media_type, is_type_confirmed)
    }

    /// What it refers to: manifests, then blobs. Never the subject, which exists without this manifest.
    pub fn children(&self) -> impl Iterator<Item = &Descriptor> {
        self.manifests.iter().chain(&self.blobs)
    }
}

impl Document {
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
        let config_type = self.config.as_ref().map(|config| config.media_type.clone());
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
            subject: self.subject,
            artifact_type: self.artifact_type.or(config_type).filter(|text| !text.is_empty()),
            annotations: self.annotations,
        })
    }
}

/// Whether this is the media type, without parameters, of a manifest that berth serves.
pub fn is_manifest_type(media_type: &str) -> bool {
    known(media_type).is_ok()
}

/// The manifest type that a `Content-Type` names; `None` if it names none but does not exclude one.
fn declared(content_type: Option<&str>) -> Result<Option<&'static str>, InvalidManifest> {
    let header = content_type.unwrap_or_default();
    let essence = header.split(';').next().unwrap_or_default().trim();
    let general = essence.is_empty()
        || essence.eq_ignore_ascii_case("application/json")
        || essence.eq_ignore_ascii_case("application/octet-stream")
        || essence.rsplit('/').next().is_some_and(|subtype| subtype.eq_ignore_ascii_case("plain"));
    if general { Ok(None) } else { known(essence).map(Some) }
}

fn known(media_type: &str) -> Result<&'static str, InvalidManifest> {
    if media_type.starts_with(SCHEMA_1) {
        return Err(InvalidManifest::Schema1);
    }
    [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST, OCI_ARTIFACT]
        .into_iter()
        .find(|known| media_type.eq_ignore_ascii_case(known))
        .ok_or_else(|| InvalidManifest::UnknownType(super::printable(media_type)))
}

/// The kind of one of the known types.
fn kind(media_type: &str) -> Kind {
    match media_type {
        OCI_INDEX | DOCKER_LIST => Kind::Index,
        OCI_ARTIFACT => Kind::Artifact,
        _ => Kind::Image,
    }
}

fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

fn present<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<Option<T>, D::Error> {
    null_is_default(from).map(Some)
}

#[cfg(test)]
mod tests;
