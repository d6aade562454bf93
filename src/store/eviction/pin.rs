//! A pin as the configuration and the admin API have it.

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, Image, Platform};

/// An image that is never evicted: `[[pin]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// The image.
    #[serde(rename = "ref")]
    pub image: Image,
    /// Its platforms that are kept. An empty list keeps all.
    #[serde(default)]
    pub platforms: Vec<Platform>,
}

/// A pin and what it keeps at the moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// The pin.
    pub pin: Pin,
    /// Whether it is in the configuration, so that no command can remove it.
    pub configured: bool,
    /// The manifest that its tag names here.
    pub digest: Option<Digest>,
    /// Number of its manifests and blobs that are stored.
    pub here: u64,
    /// Their size in bytes.
    pub bytes: u64,
    /// Number of manifests and blobs that it names and that are not stored. It is not known what manifests name that
    /// are not stored.
    pub missing: u64,
}
