//! Manifests: just enough of them to know their type and what they refer to.
//!
//! Nothing is ever written back: a manifest is stored and served as the bytes that came, and this is only a
//! view of them. Fields that are not needed are skipped, and a child with a foreign media type or digest
//! algorithm is no error, nor is a member that comes twice or has the wrong type where nobody needs it. At most
//! [`DESCRIPTORS_MAX`] of them are read. What is refused is what no client takes: schema 1 (a cache cannot verify it by
//! hashing), a document of two kinds at once (CVE-2021-41190), and pages that are no manifest, such as the
//! HTML of a captive portal.

use super::digest::Digest;
use super::json::DESCRIPTORS_MAX;
use read::Document;

mod read;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Withdrawn before OCI 1.1 was final, but oras lists it still and some registries hold such artifacts.
const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";
/// What the types of vendors, and so of all manifests, begin with.
const VENDORS: &str = "application/vnd.";
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    manifest_type: Option<&'static str>,
    digest: Option<Digest>,
    /// Its size as claimed.
    pub size: u64,
    /// In an index: the platform it is for.
    pub platform: Option<Box<Described>>,
}

/// What an index says of the platform of one of its manifests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Described {
    /// The operating system; what is not said is empty.
    pub os: Box<str>,
    /// The architecture.
    pub architecture: Box<str>,
    /// The variant of the architecture.
    pub variant: Box<str>,
}

impl Descriptor {
    /// The digest, unless its algorithm is unknown here: never an error in a store.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Its media type, if that is a manifest's.
    pub fn manifest_type(&self) -> Option<&'static str> {
        self.manifest_type
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
}

/// Why a body is not a manifest that berth serves.
#[derive(Debug, thiserror::Error)]
pub enum InvalidManifest {
    /// Refuse it; no client would take it.
    #[error("manifest larger than {MANIFEST_BYTES_MAX} bytes")]
    TooLarge,
    /// It names more than any image has; nothing of it is kept.
    #[error("manifest with more than {DESCRIPTORS_MAX} descriptors")]
    TooManyParts,
    /// Not JSON, or no descriptor where one must be.
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

impl InvalidManifest {
    /// Whether it is a manifest nonetheless, though none that clients take: that will not change. Else it may be
    /// anything, such as the page of a portal.
    pub fn is_manifest(&self) -> bool {
        match self {
            Self::TooLarge | Self::TooManyParts | Self::Schema1 | Self::UnknownType(_) | Self::Shape(_) => {
                true
            }
            Self::NotJson(_) | Self::Untyped => false,
        }
    }
}

impl Manifest {
    /// Reads a manifest. The `Content-Type` decides its type if it is a manifest's, else the `mediaType` within. Without
    /// that the fields decide, unless the `Content-Type` is a vendor's own.
    ///
    /// # Errors
    /// [`InvalidManifest`]: to a cache, all of them mean that upstream did not answer with a manifest.
    pub fn parse(content_type: Option<&str>, body: &[u8]) -> Result<Self, InvalidManifest> {
        if body.len() > MANIFEST_BYTES_MAX {
            return Err(InvalidManifest::TooLarge);
        }
        Document::read(body)?.judge(Declared::read(content_type))
    }

    /// What it refers to: manifests, then blobs. Never the subject, which exists without this manifest.
    pub fn children(&self) -> impl Iterator<Item = &Descriptor> {
        self.manifests.iter().chain(&self.blobs)
    }
}

/// Whether this is the media type, without parameters, of a manifest that berth serves.
pub fn is_manifest_type(media_type: &str) -> bool {
    known(media_type).is_ok()
}

/// What a `Content-Type` says of the type of a manifest.
enum Declared {
    /// That it is this one.
    Known(&'static str),
    /// That it is one that berth does not serve: schema 1, or of some vendor.
    Foreign(InvalidManifest),
    /// Nothing. Servers and stores label files by how they look, or all alike.
    Nothing,
}

impl Declared {
    fn read(content_type: Option<&str>) -> Self {
        let header = content_type.unwrap_or_default();
        let essence = header.split(';').next().unwrap_or_default().trim();
        let is_vendors =
            essence.get(..VENDORS.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(VENDORS));
        match known(essence) {
            Ok(known) => Self::Known(known),
            Err(error) if is_vendors => Self::Foreign(error),
            Err(_) => Self::Nothing,
        }
    }
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

#[cfg(test)]
mod tests;
