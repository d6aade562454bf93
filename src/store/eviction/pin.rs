//! A pin as the configuration and the admin API have it.

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, Image, Platform};

/// An image that stays: `[[pin]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// Which image.
    #[serde(rename = "ref")]
    pub image: Image,
    /// Which of its platforms; none: all.
    #[serde(default)]
    pub platforms: Vec<Platform>,
}

/// A pin, and what it keeps just now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// What was pinned.
    pub pin: Pin,
    /// Whether the configuration has it, so that no command can take it away.
    pub configured: bool,
    /// What its tag means here.
    pub digest: Option<Digest>,
    /// Manifests and blobs that are here.
    pub here: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Those that it names and that are not here; of manifests that are not here nobody knows what they name.
    pub missing: u64,
}
