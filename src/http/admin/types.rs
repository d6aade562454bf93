//! What the admin API takes and gives, as JSON. The daemon and the commands share these types.
//!
//! | path | command | answer |
//! |---|---|---|
//! | [`VERIFY`](super::paths::VERIFY) | [`VerifyCommand`] | [`Verification`] |
//! | [`PINS`](super::paths::PINS) | [`Pin`] | [`Pinned`], of a GET a list of them |
//! | [`UNPIN`](super::paths::UNPIN) | [`UnpinCommand`] | whether there was such a pin |
//! | [`REFRESH`](super::paths::REFRESH) | [`RefreshCommand`] | [`RefreshedTags`] |
//! | [`RELOAD`](super::paths::RELOAD) | [`ReloadCommand`] | [`Reloaded`] |
//!
//! A command that fails is answered with a [`ApiFailure`].

use serde::{Deserialize, Serialize};

pub use super::reload::Reloaded;
pub use crate::cache::{RefreshOutcome, Refreshed};
use crate::oci::Image;
pub use crate::store::{Pin, Pinned, Verification};

/// Begins a verification of every stored file.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyCommand {}

/// Reads the configuration again.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReloadCommand {}

/// Takes a pin back.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnpinCommand {
    /// The image that is pinned.
    #[serde(rename = "ref")]
    pub image: Image,
}

/// Checks tags upstream.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefreshCommand {
    /// An image by its tag.
    #[serde(rename = "ref")]
    pub image: Image,
    /// Whether all known tags of its repository are checked, some at a time.
    #[serde(default)]
    pub all_tags: bool,
    /// The tag after which they are, of all tags.
    #[serde(default)]
    pub after: Option<String>,
}

/// Tags that were checked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RefreshedTags {
    /// What came of each.
    pub tags: Vec<Refreshed>,
    /// Whether there are more after these.
    pub more: bool,
}

/// Why a command was not carried out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ApiFailure {
    /// The reason, and what was expected.
    pub error: String,
}
