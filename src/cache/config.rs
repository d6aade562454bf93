//! `[cache]`: what is kept, and how much of it.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

use crate::store::{Limits, Pin, Rate, SpaceLimit};
use crate::units;

/// Default of `max_bytes`: most of a disk that belongs to berth, with room for its small files and for mistakes of
/// others.
const MAX_BYTES: SpaceLimit = SpaceLimit::Share(80.0);
/// Default of `min_free`: most file systems become slow and fragmented with less, whoever fills them. It is not more,
/// because berth should work on the machine of somebody who tries it out, and those disks are rather full.
const MIN_FREE: SpaceLimit = SpaceLimit::Share(5.0);
/// Default of `lease_seconds`: a pull of a large image over a slow line, with pauses; podman has no way to get a single
/// layer from elsewhere.
const LEASE: Duration = Duration::from_secs(15 * 60);

/// What is kept: `[cache]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The most that blobs and partial files may take.
    #[serde(deserialize_with = "some")]
    pub max_bytes: SpaceLimit,
    /// What is left free on the file system, whatever uses the rest.
    pub min_free: SpaceLimit,
    /// How long what is stored of an image stays after its manifest was served.
    #[serde(rename = "lease_seconds", deserialize_with = "units::duration")]
    pub lease: Duration,
    /// What becomes of a blob of which only parts were asked for.
    pub complete: Complete,
    /// How fast stored files are verified in the background, in bytes per second.
    pub scrub: Rate,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_bytes: MAX_BYTES,
            min_free: MIN_FREE,
            lease: LEASE,
            complete: Complete::default(),
            scrub: Rate::default(),
        }
    }
}

/// Reads a size that is more than nothing: a cache that stores nothing is none, and each client's pull would be a
/// download.
fn some<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SpaceLimit, D::Error> {
    match SpaceLimit::deserialize(deserializer)? {
        SpaceLimit::Bytes(0) | SpaceLimit::Share(0.0) => {
            Err(de::Error::custom("expected more than nothing, such as \"200GiB\" or \"80%\""))
        }
        size => Ok(size),
    }
}

impl Config {
    /// The limits of the store under this configuration.
    pub fn limits(&self, pins: Vec<Pin>) -> Limits {
        let Self { max_bytes, min_free, lease, .. } = *self;
        Limits { max_bytes, min_free, lease, pins, sharing: None }
    }
}

/// Whether the rest of a blob is fetched once the parts that were asked for are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Complete {
    /// When clients have read more than a quarter of it: then it is being read, not merely looked at.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Only when somebody asks for all of it.
    Never,
}

impl fmt::Display for Complete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Never => "never",
        })
    }
}

impl Complete {
    /// Whether to fetch the rest of `total` bytes, of which clients have read `read` bytes.
    pub(super) fn is_worth_it(self, read: u64, total: u64) -> bool {
        match self {
            Self::Auto => read > total / 4,
            Self::Always => true,
            Self::Never => false,
        }
    }
}
