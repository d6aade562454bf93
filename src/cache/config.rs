//! `[cache]`: what is kept, and how much of it.

use serde::Deserialize;

use crate::store::Rate;

/// What is kept: `[cache]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How fast stored files are looked at in the background, whether they are still what their names say.
    pub scrub: Rate,
}
