//! `[cache]`: what is kept, and how much of it.

use serde::Deserialize;

use crate::store::Rate;

/// What is kept: `[cache]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What becomes of a blob of which only parts were asked for.
    pub complete: Complete,
    /// How fast stored files are looked at in the background, whether they are still what their names say.
    pub scrub: Rate,
}

/// Whether the rest of a blob is fetched once the parts that were asked for are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Complete {
    /// When clients have taken more than a quarter of it: then it is being read, not merely looked at.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Only when somebody asks for all of it.
    Never,
}

impl Complete {
    /// Whether to fetch the rest of `total` bytes, of which clients have taken so many.
    pub(super) fn is_worth_it(self, taken: u64, total: u64) -> bool {
        match self {
            Self::Auto => taken > total / 4,
            Self::Always => true,
            Self::Never => false,
        }
    }
}
